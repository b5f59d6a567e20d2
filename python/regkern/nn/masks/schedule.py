"""Schedules for the probability of dropout and DropBlock layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from regkern import _checks as checks
from regkern.nn.masks.drop_block import _DropBlock
from regkern.nn.masks.dropout import _Dropout
from regkern.nn.masks.low_rank import LoRADropoutLinear
from regkern.nn.masks.patches import PatchMask
from regkern.nn.masks.weights import Mixout, WeightDropout

#: What has a probability `p` that a schedule may set.
_SCHEDULED = (_DropBlock, _Dropout, LoRADropoutLinear, Mixout, WeightDropout)


class _Schedule:
    """A number of layers as a function of the steps made; the counter lives here."""

    op: str
    attribute = "p"  # of the layers, and of the schedule

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.layers: list[Any] = self._layers_of(layers)
        self.count = 0
        self._set()

    def _layers_of(self, layers: Iterable[nn.Module]) -> list[Any]:
        found = [layer for layer in layers if isinstance(layer, _SCHEDULED)]
        if not found:
            raise ValueError(
                f"regkern.{self.op}: expected layers of regkern's dropout or DropBlock, got none"
            )
        return found

    def _set(self) -> None:
        number = getattr(self, self.attribute)
        for layer in self.layers:
            if isinstance(getattr(layer, self.attribute), Tensor):
                getattr(layer, self.attribute).fill_(number)
            else:
                setattr(layer, self.attribute, number)

    def step(self) -> None:
        self.count += 1
        self._set()

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.count = state["count"]
        self._set()

    def _steps(self, name: str, steps: int, least: int = 1) -> int:
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"regkern.{self.op}: expected `{name}` to be an int, got {steps!r}")
        checks.at_least(self.op, name, steps, least)
        return steps


class _Line(_Schedule):
    """From start to stop in equal steps."""

    def __init__(self, layers: Iterable[nn.Module], start: float, stop: float, steps: int) -> None:
        checks.probability(self.op, "start", start)
        checks.probability(self.op, "stop", stop)
        self.start, self.stop, self.steps = start, stop, self._steps("steps", steps)
        super().__init__(layers)

    def _present(self) -> float:
        # Both ends are met exactly.
        done = min(self.count, self.steps) / self.steps
        return self.start * (1.0 - done) + self.stop * done


class LinearSchedule(_Line):
    r"""Moves p of dropout and DropBlock layers in equal steps.

    .. math:: p_t = \mathrm{start} + (\mathrm{stop} - \mathrm{start}) \min(t / \mathrm{steps}, 1)

    ``step()`` goes from t to t + 1. The counter t lives here, as in torch's learning rate
    schedulers: the layers' and the model's ``state_dict`` stay as they are, and this object has its
    own. Where p is a tensor it is filled in place, which recompiles nothing.

    Parameters
    ----------
    layers : iterable of layers
        Of which those of regkern's dropout, mixout and DropBlock are taken.
    start, stop : float
        In [0, 1].
    steps : int
        Calls of ``step()`` until p = stop, at least 1.

    References
    ----------
    Ghiasi, Lin and Le, 2018: "gradually decreasing keep_prob over time".
    """

    op = "linear_schedule"

    @property
    def p(self) -> float:
        """The present value."""
        return self._present()


class HardnessSchedule(_Line):
    r"""Moves alpha of `PatchMask` layers from easy to hard in equal steps.

    .. math::
        \alpha_t = \mathrm{start} + (\mathrm{stop} - \mathrm{start}) \min(t / \mathrm{steps}, 1)

    ``step()`` goes from t to t + 1. Where alpha is a tensor it is filled in place, which recompiles
    nothing.

    Parameters
    ----------
    model : nn.Module or iterable of layers
        Of which the `PatchMask` layers of kind ``hard`` are taken.
    start, stop : float
        In [0, 1].
    steps : int
        Calls of ``step()`` until alpha = stop, at least 1.

    References
    ----------
    Wang et al., "Hard patches mining for masked image modeling", CVPR 2023: from 0 to 0.5.
    """

    op = "HardnessSchedule"
    attribute = "alpha"

    def __init__(
        self, model: nn.Module | Iterable[nn.Module], start: float, stop: float, steps: int
    ) -> None:
        super().__init__(
            model.modules() if isinstance(model, nn.Module) else model, start, stop, steps
        )

    def _layers_of(self, layers: Iterable[nn.Module]) -> list[Any]:
        found = [m for m in layers if isinstance(m, PatchMask) and m.kind == "hard"]
        if not found:
            raise ValueError(
                f"regkern.{self.op}: expected PatchMask layers of kind 'hard', got none"
            )
        return found

    @property
    def alpha(self) -> float:
        """The present value."""
        return self._present()


class EarlySchedule(_Schedule):
    r"""Dropout in the first steps alone, against underfitting.

    .. math:: p_t = p \cdot 1[t < T] \quad\text{or}\quad p \, (1 - t/T) \cdot 1[t < T]

    Parameters
    ----------
    layers : iterable of layers
        As of `LinearSchedule`, with whose methods.
    p : float
        In [0, 1].
    steps : int
        T, at least 1.
    linear : bool
        The second form.

    References
    ----------
    Liu, Xu, Jin, Shen and Darrell, "Dropout reduces underfitting", ICML 2023.
    """

    op = "EarlySchedule"

    def __init__(
        self, layers: Iterable[nn.Module], p: float, steps: int, linear: bool = False
    ) -> None:
        checks.probability(self.op, "p", p)
        self.first, self.steps, self.linear = p, self._steps("steps", steps), linear
        super().__init__(layers)

    @property
    def p(self) -> float:
        """The present value."""
        left = max(1.0 - self.count / self.steps, 0.0)
        return self.first * (left if self.linear else float(left > 0.0))


class LateSchedule(_Schedule):
    r"""Dropout from some step on.

    .. math:: p_t = p \cdot 1[t \ge T]

    Parameters
    ----------
    layers : iterable of layers
        As of `LinearSchedule`, with whose methods.
    p : float
        In [0, 1].
    start : int
        T, at least 0.

    References
    ----------
    Liu, Xu, Jin, Shen and Darrell, "Dropout reduces underfitting", ICML 2023.
    """

    op = "LateSchedule"

    def __init__(self, layers: Iterable[nn.Module], p: float, start: int) -> None:
        checks.probability(self.op, "p", p)
        self.last, self.start = p, self._steps("start", start, 0)
        super().__init__(layers)

    @property
    def p(self) -> float:
        """The present value."""
        return self.last if self.count >= self.start else 0.0


class CurriculumSchedule(_Schedule):
    r"""Dropout that grows from nothing to p, fast at first.

    .. math:: p_t = p \, (1 - e^{-\gamma t/T})

    Parameters
    ----------
    layers : iterable of layers
        As of `LinearSchedule`, with whose methods.
    p : float
        In [0, 1].
    steps : int
        T of the whole training, at least 1.
    gamma : float
        :math:`\gamma > 0`; at t = T, p is missed by a factor :math:`e^{-\gamma}`.

    References
    ----------
    Morerio, Cavazza, Volpi, Vidal and Murino, "Curriculum dropout", ICCV 2017.
    """

    op = "CurriculumSchedule"

    def __init__(
        self, layers: Iterable[nn.Module], p: float, steps: int, gamma: float = 10.0
    ) -> None:
        checks.probability(self.op, "p", p)
        if not gamma > 0:
            raise ValueError(f"regkern.{self.op}: expected `gamma` above 0, got {gamma}")
        self.last, self.steps, self.gamma = p, self._steps("steps", steps), gamma
        super().__init__(layers)

    @property
    def p(self) -> float:
        """The present value."""
        return self.last * -math.expm1(-self.gamma * self.count / self.steps)


def linear_schedule(
    model: nn.Module | Iterable[nn.Module], start: float, stop: float, steps: int
) -> LinearSchedule:
    """A `LinearSchedule` over the dropout and DropBlock layers of a model, or among those given."""
    layers = model.modules() if isinstance(model, nn.Module) else model
    return LinearSchedule(layers, start, stop, steps)

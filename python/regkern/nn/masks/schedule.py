"""Schedules for the probability of dropout and DropBlock layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from regkern import _checks as checks
from regkern.nn.masks.drop_block import _DropBlock
from regkern.nn.masks.dropout import _Dropout


class LinearSchedule:
    r"""Moves p of dropout and DropBlock layers in equal steps.

    .. math:: p_t = \mathrm{start} + (\mathrm{stop} - \mathrm{start}) \min(t / \mathrm{steps}, 1)

    ``step()`` goes from t to t + 1. The counter t lives here, as in torch's learning rate
    schedulers: the layers' and the model's ``state_dict`` stay as they are, and this object has its
    own. Where p is a tensor it is filled in place, which recompiles nothing.

    Parameters
    ----------
    layers : iterable of layers
        Of which those of regkern's dropout and DropBlock are taken.
    start, stop : float
        In [0, 1].
    steps : int
        Calls of ``step()`` until p = stop, at least 1.

    References
    ----------
    Ghiasi, Lin and Le, 2018: "gradually decreasing keep_prob over time".
    """

    def __init__(self, layers: Iterable[nn.Module], start: float, stop: float, steps: int) -> None:
        op = "linear_schedule"
        self.layers = [layer for layer in layers if isinstance(layer, _DropBlock | _Dropout)]
        if not self.layers:
            raise ValueError(
                f"regkern.{op}: expected layers of regkern's dropout or DropBlock, got none"
            )
        checks.probability(op, "start", start)
        checks.probability(op, "stop", stop)
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"regkern.{op}: expected `steps` to be an int, got {steps!r}")
        checks.at_least(op, "steps", steps, 1)
        self.start, self.stop, self.steps = start, stop, steps
        self.count = 0
        self._set()

    @property
    def p(self) -> float:
        """The present value."""
        # Both ends are met exactly.
        done = min(self.count, self.steps) / self.steps
        return self.start * (1.0 - done) + self.stop * done

    def _set(self) -> None:
        for layer in self.layers:
            if isinstance(layer.p, Tensor):
                layer.p.fill_(self.p)
            else:
                layer.p = self.p

    def step(self) -> None:
        self.count += 1
        self._set()

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.count = state["count"]
        self._set()


def linear_schedule(
    model: nn.Module | Iterable[nn.Module], start: float, stop: float, steps: int
) -> LinearSchedule:
    """A `LinearSchedule` over the dropout and DropBlock layers of a model, or among those given."""
    layers = model.modules() if isinstance(model, nn.Module) else model
    return LinearSchedule(layers, start, stop, steps)

"""A penalty for any optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regkern.optim.proximal import ProxAdamW, ProxSGD
from regkern.optim.regularized import (
    COUNTERS,
    OBJECTS,
    Schedule,
    check_regularized,
    healing,
    next_step,
    without_objects,
)
from regkern.proximal.penalty import Penalty


class Proximal(torch.optim.Optimizer):
    r"""Any optimizer, with the proximal operator of a penalty after each of its steps.

    .. math::
        p ← \operatorname{prox}_{lr\,λ\,r}(\text{step}(p))

    with the learning rate that the parameter group has at that time. What looks at the optimizer
    sees the wrapped one: parameter groups, state, defaults, so learning-rate schedulers and
    gradient scalers work on this one.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Steps as it would alone.
    penalty : Penalty, optional
        Of all parameters that have gradients. A parameter group that has a key ``penalty`` of its
        own, None included, has that one.
    prox_every : int, default 1
        The prox follows each n-th step alone, with the sum of the n learning rates.
    schedule : function of int, optional
        A factor of λ for every step, which count from 1: :class:`CubicRamp`, :class:`WarmUp`.
    heal_after : int, optional
        After so many steps there is no prox any more, and elements that are zero stay zero.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The prox reads and writes the parameters once more; :class:`ProxSGD` and :class:`ProxAdamW` do
    without. After ``heal_after`` each step remembers what was zero: a byte for each element.
    The learning rate of an adaptive optimizer is not the length of its steps: the prox is the one
    of the euclidean metric.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        penalty: Penalty | None,
        *,
        prox_every: int = 1,
        schedule: Schedule | None = None,
        heal_after: int | None = None,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                "regkern.optim.Proximal: expected `optimizer` to be a torch.optim.Optimizer, got "
                f"{type(optimizer)}"
            )
        if isinstance(optimizer, ProxSGD | ProxAdamW | Proximal):
            raise TypeError(
                "regkern.optim.Proximal: expected `optimizer` to be one without a penalty, got "
                f"{type(optimizer)}"
            )
        self.optimizer = optimizer
        self._settings = {
            "penalty": penalty,
            "prox_every": prox_every,
            "schedule": schedule,
            "heal_after": heal_after,
            **COUNTERS,
        }
        # What the base class keeps stays the wrapped optimizer's; hooks are this one's own.
        super().__init__(optimizer.param_groups, {})
        for group in optimizer.param_groups:
            self._complete(group)

    def _complete(self, group: dict[str, Any]) -> None:
        for key, value in self._settings.items():
            group.setdefault(key, value)
        check_regularized("Proximal", group)
        if "lr" not in group:
            raise ValueError(
                "regkern.optim.Proximal: expected `optimizer` to have a learning rate `lr`, got "
                f"{sorted(k for k in group if k != 'params')}"
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        """The base class sets an empty list, and groups once they are loaded."""
        if value:
            self.optimizer.param_groups = value

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        return self.optimizer.state

    @state.setter
    def state(self, value: defaultdict[Tensor, Any]) -> None:
        if value:
            self.optimizer.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        if value:
            self.optimizer.defaults = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if any(group is param_group for group in self.optimizer.param_groups):
            return  # the base class shows those that the wrapped optimizer has
        self.optimizer.add_param_group(param_group)
        self._complete(self.optimizer.param_groups[-1])

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's, without penalties and schedules."""
        return without_objects(self.optimizer.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this optimizer, or one of the wrapped optimizer's kind."""
        kept = [{k: group[k] for k in OBJECTS} for group in self.param_groups]
        self.optimizer.load_state_dict(state_dict)
        for group, objects in zip(self.param_groups, kept, strict=True):
            group.update(objects)
            self._complete(group)

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "_settings": self._settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(  # type: ignore[misc]
            state["optimizer"],
            **{k: v for k, v in state["_settings"].items() if k not in COUNTERS},
        )

    def __repr__(self) -> str:
        return f"Proximal({self.optimizer!r})"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure``, if given, is called by the wrapped optimizer."""
        zeros: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if healing(group):
                zeros += [(p, p == 0) for p in group["params"]]
        loss = self.optimizer.step(closure)
        for p, zero in zeros:
            p.masked_fill_(zero, 0.0)
        for group in self.param_groups:
            step = next_step(group)
            touched = [p for p in group["params"] if p.grad is not None]
            if step is not None and touched:
                group["penalty"].prox_(touched, step)
        return loss

"""When a penalty is due, and with which step: what the proximal optimizers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from regkern.proximal.penalty import Penalty

Schedule = Callable[[int], float]

#: Keys of a parameter group that a state dict does not have: they are code, not state.
OBJECTS = ("penalty", "schedule")

#: What a parameter group counts for itself.
COUNTERS: dict[str, Any] = {"prox_step": 0, "pending": 0.0}


def check_regularized(op: str, group: dict[str, Any]) -> None:
    """The keys that say when a penalty is due."""
    penalty, every, heal = group["penalty"], group["prox_every"], group["heal_after"]
    if penalty is not None and not isinstance(penalty, Penalty):
        raise TypeError(
            f"regkern.optim.{op}: expected `penalty` to be a Penalty or None, got {type(penalty)}"
        )
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"regkern.optim.{op}: expected `prox_every` to be an int, got {every!r}")
    if every < 1:
        raise ValueError(f"regkern.optim.{op}: expected `prox_every` to be at least 1, got {every}")
    if group["schedule"] is not None and not callable(group["schedule"]):
        raise TypeError(
            f"regkern.optim.{op}: expected `schedule` to be a function of the step, got "
            f"{group['schedule']!r}"
        )
    if heal is not None and (isinstance(heal, bool) or not isinstance(heal, int)):
        raise TypeError(f"regkern.optim.{op}: expected `heal_after` to be an int, got {heal!r}")
    if heal is not None and heal < 0:
        raise ValueError(f"regkern.optim.{op}: expected `heal_after` to be at least 0, got {heal}")


def healing(group: dict[str, Any]) -> bool:
    """Whether the penalty has had its time at the next step, and what is zero stays zero."""
    heal = group["heal_after"]
    return group["penalty"] is not None and heal is not None and group["prox_step"] >= heal


def next_step(group: dict[str, Any], cumulative: bool = False) -> float | Tensor | None:
    """Counts a step of the group; the step of its prox where one is due now.

    That is the sum of learning rate times schedule over the steps since the last prox, or, where
    ``cumulative``, over all steps.
    """
    heals = healing(group)
    group["prox_step"] += 1
    if group["penalty"] is None or heals:
        return None
    lr, schedule = group["lr"], group["schedule"]
    if isinstance(lr, Tensor):
        lr = float(lr) if lr.is_cpu else lr.detach()
    now = lr if schedule is None else lr * schedule(group["prox_step"])
    pending: float | Tensor = group["pending"]
    # A number that a schedule changes in place is copied by the sum.
    total: float | Tensor = now + pending
    if cumulative:
        group["pending"] = total
        return total
    if group["prox_step"] % group["prox_every"] != 0:
        group["pending"] = total
        return None
    group["pending"] = 0.0
    return total


def without_objects(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict without penalties and schedules."""
    groups = [
        {k: v for k, v in group.items() if k not in OBJECTS} for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}

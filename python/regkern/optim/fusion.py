"""Which penalties a fused step applies while the parameter is in the cache, and how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from regkern.proximal.group_penalties import GroupPenalty
from regkern.proximal.groups import Groups
from regkern.proximal.penalties_elementwise import ElementwisePenalty
from regkern.proximal.penalty import Penalty

After = Literal["elements", "groups", "metric"]

#: The longest group that is shrunk in the step: longer ones are more than one segment of a sum.
LONGEST_RUN = 1 << 16


@dataclass(frozen=True)
class Following:
    """What follows the step of every element, or group, as the ops take it.

    ``soft`` is the λ of the soft threshold before group norms are taken.
    """

    after: After
    law: str
    shape: float = 0.0
    bounds: tuple[float, ...] = ()
    positive: bool = False
    soft: float | Tensor | None = None
    groups: Groups | None = None
    root_weights: bool = False


@dataclass(frozen=True)
class Run:
    """Groups of a tensor that are runs of neighbours, and the weight that they share."""

    length: int
    weight: float


def following(penalty: Penalty | None) -> Following | None:
    """What a step applies of this penalty; None: nothing, its ``prox_`` follows."""
    # Subclasses may have a prox of their own.
    if isinstance(penalty, ElementwisePenalty) and _prox_is(penalty, ElementwisePenalty):
        if penalty.weights is not None:
            return None
        bounds = (penalty.low, penalty.high)
        free = bounds == (-math.inf, math.inf)
        return Following(
            "elements", penalty.law, penalty.shape or 0.0, bounds=() if free else bounds
        )
    if isinstance(penalty, GroupPenalty) and _prox_is(penalty, GroupPenalty):
        if penalty._l1 is not None or isinstance(penalty.weights, Tensor):
            return None
        if penalty.groups.kind == "union":
            return None  # a group is complete only when all tensors are stepped
        return Following(
            "groups",
            penalty.law,
            penalty.shape,
            positive=penalty.positive,
            soft=penalty._soft,
            groups=penalty.groups,
            root_weights=penalty.weights == "sqrt",
        )
    return None


def _prox_is(penalty: Penalty, kind: type[Penalty]) -> bool:
    return type(penalty).prox_ is kind.prox_


def run_of(what: Following, p: Tensor) -> Run | None:
    """The groups of a tensor; None where they are no runs of neighbours, or too long."""
    if what.groups is None:
        return Run(1, 1.0)
    layout = what.groups.layout([p])
    if p.numel() == 0:
        return Run(1, 1.0)
    outer, _, inner = layout.geometry
    if layout.map is not None or layout.group_sizes is not None or outer != 1:
        return None
    if inner > LONGEST_RUN:
        return None
    return Run(inner, math.sqrt(inner) if what.root_weights else 1.0)

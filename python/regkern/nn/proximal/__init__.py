"""Modules of the proximal family."""

from regkern.nn.proximal.elementwise import (
    Shrink,
)
from regkern.nn.proximal.recipes import (
    ASH,
    Stablemax,
    StablemaxCrossEntropyLoss,
    WeightCompander,
)
from regkern.nn.proximal.simplex import (
    Entmax15,
    Entmax15Loss,
    Sparsemax,
    SparsemaxLoss,
)
from regkern.nn.proximal.unfolded import (
    UnfoldedISTA,
)

__all__ = [
    "ASH",
    "Entmax15",
    "Entmax15Loss",
    "Shrink",
    "Sparsemax",
    "SparsemaxLoss",
    "Stablemax",
    "StablemaxCrossEntropyLoss",
    "UnfoldedISTA",
    "WeightCompander",
]

"""Swap rules of the proximal family: the entmax package's maps and losses."""

from __future__ import annotations

from typing import Any

from torch import nn

from regkern.nn.proximal.simplex import Entmax15, Entmax15Loss, Sparsemax, SparsemaxLoss
from regkern.proximal.simplex import Reduction
from regkern.swap import register_swap

_REDUCTIONS: dict[str, Reduction] = {
    "elementwise_mean": "mean",
    "sum": "sum",
    "none": "none",
}


# How many elements to sort first (`k`) changes nothing in the result.


@register_swap("entmax.activations.Sparsemax")
def _sparsemax(old: Any) -> nn.Module:
    return Sparsemax(old.dim)


@register_swap("entmax.activations.Entmax15")
def _entmax15(old: Any) -> nn.Module:
    return Entmax15(old.dim)


@register_swap("entmax.losses.SparsemaxLoss")
def _sparsemax_loss(old: Any) -> nn.Module:
    return SparsemaxLoss(-1, old.ignore_index, _REDUCTIONS[old.reduction])


@register_swap("entmax.losses.Entmax15Loss")
def _entmax15_loss(old: Any) -> nn.Module:
    return Entmax15Loss(-1, old.ignore_index, _REDUCTIONS[old.reduction])

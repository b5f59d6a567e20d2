"""Updates of patterns, by dense matrices and sorts."""

from __future__ import annotations

import torch
from torch import Tensor


def prune(weight: Tensor, mask: Tensor, k: int) -> Tensor:
    """The mask of the k entries of the largest magnitudes, of equal ones the first."""
    magnitude = torch.where(mask, weight.abs(), -1.0).view(-1)
    return _first(magnitude, k).view(mask.shape)


def grow(scores: Tensor, mask: Tensor, k: int) -> Tensor:
    """A mask with k places more: those without an entry of the largest magnitudes."""
    magnitude = torch.where(mask, -1.0, scores.abs()).view(-1)
    return mask | _first(magnitude, k).view(mask.shape)


def _first(scores: Tensor, k: int) -> Tensor:
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[torch.sort(scores, descending=True, stable=True).indices[:k]] = True
    return chosen


def linear_scores(g: Tensor, x: Tensor) -> Tensor:
    """The gradient of a dense weight: gᵀ x."""
    return g.flatten(0, -2).t() @ x.flatten(0, -2)


def remap(values: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """What the entries of a mask had, as those of another one have it."""
    dense = values.new_zeros(old.shape)
    dense[old] = values
    return dense[new]

"""Definitions of what is done with the norms of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def row_norms(x: Tensor) -> Tensor:
    """The norm of every row of (rows, rest), with gradient 0 at a zero row."""
    square = x.flatten(1).square().sum(1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _per_row(factor: Tensor, x: Tensor) -> Tensor:
    return factor.reshape(-1, *(1,) * (x.dim() - 1))


def norm_loss(weights: Sequence[Tensor]) -> Tensor:
    """Σ (1 − |w_o|)²."""
    total = torch.zeros((), dtype=weights[0].dtype)
    for w in weights:
        total = total + (1 - row_norms(w)).square().sum()
    return total


def norm_loss_step(x: Tensor, step: float) -> Tensor:
    """w − 2 a (1 − 1 / |w|) w."""
    s = row_norms(x)
    inverse = torch.where(s == 0, 1.0, 1 / s)
    return x * _per_row(1 - 2 * step * (1 - inverse), x)


def row_project(x: Tensor) -> Tensor:
    """w / |w|; a zero row stays zero, with gradient 0."""
    s = row_norms(x)
    return x * _per_row(torch.where(s == 0, 0.0, 1 / torch.where(s == 0, 1.0, s)), x)


def row_equilibrate(x: Tensor, side: str = "rows") -> Tensor:
    """Rows, columns, or rows and then columns of the matrix (outputs, rest) of norm 1."""
    if side == "rows":
        return row_project(x)
    w = x.flatten(1)
    if side == "both":
        w = row_project(w)
    return row_project(w.mT).mT.reshape(x.shape)

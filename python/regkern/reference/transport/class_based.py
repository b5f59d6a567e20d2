"""Definition: the objective of class-based optimal transport."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_of_norms(q: Tensor, labels: Tensor) -> Tensor:
    """Σ |q_i − q_j| over pairs of rows of one class (negative labels: none)."""
    total = torch.zeros((), dtype=q.dtype)
    for i in range(len(q)):
        for j in range(i):
            if labels[i] == labels[j] and labels[i] >= 0:
                total = total + (q[i] - q[j]).square().sum().sqrt()
    return total


def class_based_objective(
    q: Tensor,
    cost: Tensor,
    lam: tuple[float, float],
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    value = (cost * q).sum()
    if rows is not None:
        value = value + lam[0] * sum_of_norms(q, rows)
    if columns is not None:
        value = value + lam[1] * sum_of_norms(q.mT, columns)
    return value

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


def class_based_transport(
    cost: Tensor,
    lam: tuple[float, float],
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    steps: int = 20000,
) -> Tensor:
    """The plan of uniform masses, by Chambolle and Pock's iteration with a dual variable for every
    pair and for every mass."""
    n, m = cost.shape

    def differences(labels: Tensor | None, count: int) -> Tensor:
        found = [
            (i, j)
            for i in range(count)
            for j in range(i)
            if labels is not None and labels[i] == labels[j] and labels[i] >= 0
        ]
        matrix = torch.zeros(len(found), count, dtype=cost.dtype)
        for k, (i, j) in enumerate(found):
            matrix[k, i], matrix[k, j] = 1.0, -1.0
        return matrix

    by_row, by_column = differences(rows, n), differences(columns, m)
    norms = [float(torch.linalg.matrix_norm(d, 2)) if len(d) else 0.0 for d in (by_row, by_column)]
    step = 0.99 / (norms[0] ** 2 + norms[1] ** 2 + n + m) ** 0.5
    q = torch.full_like(cost, 1.0 / (n * m))
    z, w = by_row @ q, by_column @ q.mT
    f, g = cost.new_zeros(n), cost.new_zeros(m)

    def ball(v: Tensor, radius: float) -> Tensor:
        return v * (radius / v.square().sum(1, keepdim=True).sqrt().clamp(min=1e-300)).clamp(max=1)

    z, w = ball(z, lam[0]), ball(w, lam[1])
    for _ in range(steps):
        slope = cost + by_row.mT @ z + (by_column.mT @ w).mT + f[:, None] + g
        new = (q - step * slope).clamp(min=0)
        ahead = 2 * new - q
        z = ball(z + step * (by_row @ ahead), lam[0])
        w = ball(w + step * (by_column @ ahead.mT), lam[1])
        f = f + step * (ahead.sum(1) - 1.0 / n)
        g = g + step * (ahead.sum(0) - 1.0 / m)
        q = new
    return q

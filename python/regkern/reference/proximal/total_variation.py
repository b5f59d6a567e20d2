"""Total variation as a taut string, and the fused lasso."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _taut_string(x: Tensor, lam: Tensor) -> Tensor:
    """Slopes of the shortest line inside a tube of half width λ around the running sums of x."""
    n = x.shape[0]
    sums = torch.cat([torch.zeros(1, dtype=x.dtype), x.cumsum(0)])
    inside = torch.ones(n + 1, dtype=x.dtype)
    inside[0] = inside[n] = 0.0
    width = torch.clamp(lam, max=2.0 * n * float(x.detach().abs().max()) + 1.0) * inside
    lower, upper = sums - width, sums + width
    pieces: list[Tensor] = []
    at, height = 0, sums[0]
    while at < n:
        steepest, flattest = at + 1, at + 1

        def slope(bound: Tensor, j: int, at: int = at, height: Tensor = height) -> Tensor:
            return (bound[j] - height) / (j - at)

        bend, end = upper, n
        for j in range(at + 1, n + 1):
            if slope(lower, j) > slope(upper, flattest):
                bend, end = upper, flattest
                break
            if slope(upper, j) < slope(lower, steepest):
                bend, end = lower, steepest
                break
            if slope(upper, j) <= slope(upper, flattest):
                flattest = j
            if slope(lower, j) >= slope(lower, steepest):
                steepest = j
        pieces += [slope(bend, end)] * (end - at)
        at, height = end, bend[end]
    return torch.stack(pieces)


def prox_total_variation(x: Tensor, lam: float | Tensor, dim: int = -1) -> Tensor:
    moved = x.movedim(dim, -1)
    rows = moved.reshape(-1, x.shape[dim])
    factors = torch.as_tensor(lam, dtype=x.dtype).reshape(-1).expand(rows.shape[0])
    if x.numel() == 0:
        return x.clone()
    lines = [
        row
        if factor == 0
        else _taut_string(row, factor)
        if bool(row.isfinite().all()) and factor > 0
        else row * math.nan
        for row, factor in zip(rows, factors, strict=True)
    ]
    return torch.stack(lines).reshape(moved.shape).movedim(-1, dim)


def prox_fused_lasso(x: Tensor, lam: float | Tensor, l1: float | Tensor, dim: int = -1) -> Tensor:
    y = prox_total_variation(x, lam, dim)
    return y.sign() * (y.abs() - l1).clamp(min=0)

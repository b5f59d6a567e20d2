"""N:M patterns by counting who comes before whom."""

from __future__ import annotations

import torch
from torch import Tensor


def n_m_mask(scores: Tensor, n: int = 2, m: int = 4, dim: int = -1) -> Tensor:
    a = scores.detach().abs().movedim(dim, -1)
    a = torch.where(a.isnan(), torch.inf, a)
    size = a.shape[-1]
    nan = scores.detach().isnan().movedim(dim, -1)
    keep = torch.zeros_like(a, dtype=torch.bool)
    for start in range(0, size, m):
        group = range(start, min(start + m, size))
        for i in group:
            rank = torch.zeros_like(a[..., 0], dtype=torch.int64)
            for j in group:
                above = (nan[..., j] & ~nan[..., i]) | (a[..., j] > a[..., i])
                above = above & ~(nan[..., i] & ~nan[..., j])
                equal = (a[..., j] == a[..., i]) & (nan[..., j] == nan[..., i])
                rank = rank + (above | (equal & (j < i))).long()
            keep[..., i] = rank < n
    return keep.movedim(-1, dim)


def n_m_projection(
    x: Tensor, n: int = 2, m: int = 4, dim: int = -1, straight_through: bool = False
) -> Tensor:
    mask = n_m_mask(x, n, m, dim)
    if not straight_through:
        return torch.where(mask, x, 0.0)
    finite = torch.nan_to_num(x, 0.0, 0.0, 0.0)
    return torch.where(mask, x, finite - finite.detach())

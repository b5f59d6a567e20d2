"""Penalties on other norms of groups, and on groups that overlap, by their formulas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regkern.reference.proximal import projections


def _groups_of(x: Tensor, dim: int) -> Tensor:
    """A row for each index of ``dim``."""
    return x.movedim(dim, 0).reshape(x.shape[dim], -1)


def group_linf(x: Tensor, lam: float, dim: int = 0, weights: str = "sqrt") -> Tensor:
    """λ Σ w max |x_g|."""
    rows = _groups_of(x, dim)
    w = rows.shape[1] ** 0.5 if weights == "sqrt" else 1.0
    return lam * w * rows.abs().amax(1).sum()


def prox_group_linf(x: Tensor, threshold: float, dim: int = 0, weights: str = "sqrt") -> Tensor:
    """Group by group what the projection onto the l1 ball of radius t w leaves."""
    if x.numel() == 0:
        return x.clone()
    rows = _groups_of(x, dim)
    w = rows.shape[1] ** 0.5 if weights == "sqrt" else 1.0
    y = projections.prox_linf(rows, threshold * w)
    return y.reshape(x.movedim(dim, 0).shape).movedim(0, dim)


def exclusive_lasso(x: Tensor, lam: float, dim: int) -> Tensor:
    """½ λ Σ (Σ |x_i|)², groups along ``dim``."""
    return 0.5 * lam * x.abs().sum(dim).square().sum()


def prox_exclusive_lasso(x: Tensor, threshold: float, dim: int) -> Tensor:
    return projections.prox_exclusive_lasso(x, threshold, dim)


def prox_overlapping_group_l2(
    x: Tensor, groups: Sequence[Sequence[int]], threshold: float | Tensor, sweeps: int
) -> Tensor:
    """Σ v_g of the minimum of ½ ‖x − Σ v_g‖² + t Σ √|g| ‖v_g‖, one group after the other; x where
    no group is. Of one dimension."""
    parts = [torch.zeros_like(x) for _ in groups]
    for _ in range(sweeps):
        for i, g in enumerate(groups):
            index = torch.tensor(g)
            rest = (x - sum(p for j, p in enumerate(parts) if j != i))[index]
            norm = rest.norm()
            t = threshold * len(g) ** 0.5
            parts[i][index] = torch.where(norm <= t, 0.0, rest * (1.0 - t / norm))
    covered = torch.zeros(len(x), dtype=torch.bool)
    covered[[i for g in groups for i in g]] = True
    return torch.where(covered, torch.stack(parts).sum(0), x)

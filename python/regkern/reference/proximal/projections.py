"""Projections by sorting, in the precision of their input."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _per_slice(value: float | Tensor, x: Tensor, dim: int) -> Tensor:
    t = torch.as_tensor(value, dtype=x.dtype)
    if t.dim() == x.dim() - 1 and t.numel() != 1:
        t = t.unsqueeze(dim)
    return t.reshape(()) if t.numel() == 1 else t


def _poison(x: Tensor, bad: Tensor, y: Tensor) -> Tensor:
    return torch.where(bad, math.nan, y)


def _threshold(a: Tensor, t: Tensor, dim: int) -> Tensor:
    """τ with Σ [a − τ]₊ = t, from the sorted elements."""
    top = a.detach().amax(dim, keepdim=True)
    top = torch.where(torch.isfinite(top), top, 0.0)
    ordered = torch.sort(a - top, dim=dim, descending=True).values
    lowest = torch.finfo(a.dtype).min / (2 * a.shape[dim])
    ordered = torch.where(ordered == -math.inf, lowest, ordered)
    shape = [1] * a.dim()
    shape[dim] = -1
    k = torch.arange(1, a.shape[dim] + 1, dtype=a.dtype).reshape(shape)
    candidate = (ordered.cumsum(dim) - t) / k
    size = (ordered > candidate).sum(dim, keepdim=True).clamp(min=1)
    return candidate.gather(dim, size - 1) + top


def simplex_projection(x: Tensor, total: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    t = _per_slice(total, x, dim)
    if x.numel() == 0:
        return x.clone()
    bad = (x.isnan() | (x == math.inf)).any(dim, keepdim=True)
    bad = bad | (x == -math.inf).all(dim, keepdim=True) | ~(t >= 0)
    clean = torch.where(bad, 0.0, x)
    tau = _threshold(clean, torch.where(t >= 0, t, 0.0), dim)
    return _poison(x, bad, (clean - tau).clamp(min=0))


def l1_ball_projection(
    x: Tensor, radius: float | Tensor = 1.0, dim: int = -1, weights: Tensor | None = None
) -> Tensor:
    r = _per_slice(radius, x, dim)
    if x.numel() == 0:
        return x.clone()
    bad = ~x.isfinite().all(dim, keepdim=True) | ~(r >= 0)
    clean = torch.where(bad, 0.0, x)
    a = clean.abs()
    w = torch.ones(x.shape[dim], dtype=x.dtype) if weights is None else weights.to(x.dtype)
    shape = [1] * x.dim()
    shape[dim] = -1
    w = w.reshape(shape).expand_as(x)
    inside = (a * w).sum(dim, keepdim=True) <= r
    theta = torch.where(inside, 0.0, _weighted_root(a, w, torch.where(r == math.inf, 0.0, r), dim))
    y = torch.where(inside, clean, clean.sign() * (a - w * theta).clamp(min=0))
    return torch.where(r == math.inf, x, _poison(x, bad, y))


def _weighted_root(a: Tensor, w: Tensor, r: Tensor, dim: int, extra: Tensor | float = 0) -> Tensor:
    """τ with Σ w [a − w τ]₊ = r + extra τ, by the order of the ratios a / w."""
    ratio = torch.where(w > 0, a / torch.where(w > 0, w, 1.0), math.inf)
    order = ratio.detach().argsort(dim=dim, descending=True)
    a, w, ratio = (v.gather(dim, order) for v in (a, w, ratio))
    squares = (w * w).cumsum(dim) + extra
    candidate = ((a * w).cumsum(dim) - r) / torch.where(squares > 0, squares, 1.0)
    size = (ratio > candidate).sum(dim, keepdim=True).clamp(min=1)
    return candidate.gather(dim, size - 1)


def l2_ball_projection(x: Tensor, radius: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    r = _per_slice(radius, x, dim)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    bad = ~x.isfinite().all(dim, keepdim=True)
    y = torch.where(norm <= r, x, x * (r / torch.where(norm > 0, norm, 1.0)))
    return torch.where((r == math.inf) & ~bad, x, _poison(x, bad & (r < math.inf), y))


def linf_ball_projection(x: Tensor, radius: float | Tensor = 1.0) -> Tensor:
    r = torch.as_tensor(radius, dtype=x.dtype)
    return torch.maximum(torch.minimum(x, r), -r)


def prox_linf(x: Tensor, threshold: float | Tensor, dim: int = -1) -> Tensor:
    """What the projection onto the l1 ball leaves (Moreau)."""
    t = _per_slice(threshold, x, dim)
    return torch.where(t == 0, x, x - l1_ball_projection(x, t, dim))


def prox_exclusive_lasso(
    x: Tensor, threshold: float | Tensor, dim: int = -1, weights: Tensor | None = None
) -> Tensor:
    t = _per_slice(threshold, x, dim)
    if x.numel() == 0:
        return x.clone()
    shape = [1] * x.dim()
    shape[dim] = -1
    w = torch.ones(x.shape[dim], dtype=x.dtype) if weights is None else weights.to(x.dtype)
    w = w.reshape(shape).expand_as(x)
    bad = ~x.isfinite().all(dim, keepdim=True) | ~(t >= 0)
    clean = torch.where(bad, 0.0, x)
    positive = torch.where(t > 0, t, 1.0)
    root = _weighted_root(clean.abs(), w, torch.zeros_like(t), dim, 1.0 / positive)
    y = clean.sign() * (clean.abs() - w * root).clamp(min=0)
    return torch.where(t == 0, x, _poison(x, bad, y))


def capped_simplex_projection(
    x: Tensor, total: float | Tensor, cap: float = 1.0, dim: int = -1
) -> Tensor:
    """The root among the break points x and x − cap, between which the sum is linear."""
    t = _per_slice(total, x, dim)
    if x.numel() == 0:
        return x.clone()
    bad = ~x.isfinite().all(dim, keepdim=True) | ~(t >= 0) | (t > cap * x.shape[dim])
    clean = torch.where(bad, 0.0, x).movedim(dim, -1)
    right = t.expand(bad.shape).movedim(dim, -1)
    points = torch.cat([clean, clean - cap], -1).detach().sort(-1, descending=True).values
    sums = (clean.detach()[..., None, :] - points[..., None]).clamp(0, cap).sum(-1)
    after = (sums < right).sum(-1, keepdim=True).clamp(1, points.shape[-1] - 1)
    middle = (points.gather(-1, after - 1) + points.gather(-1, after)) / 2
    free = (clean > middle) & (clean < middle + cap)
    capped = (clean >= middle + cap).sum(-1, keepdim=True)
    count = free.sum(-1, keepdim=True)
    tau = ((clean * free).sum(-1, keepdim=True) + cap * capped - right) / count.clamp(min=1)
    tau = torch.where(count > 0, tau, middle)
    return _poison(x, bad, (clean - tau).clamp(0, cap).movedim(-1, dim))


def k_sparse_simplex_projection(
    x: Tensor, k: int, total: float | Tensor = 1.0, dim: int = -1
) -> Tensor:
    if k >= x.shape[dim]:
        return simplex_projection(x, total, dim)
    order = x.detach().argsort(dim=dim, descending=True, stable=True)
    rank = order.argsort(dim=dim)
    return simplex_projection(torch.where(rank < k, x, -math.inf), total, dim)

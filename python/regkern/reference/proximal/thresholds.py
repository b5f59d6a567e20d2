"""Thresholds of whole networks: definitions by a stable sort."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _largest_first(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """All magnitudes, NaN as infinity's better, and their order; the lowest index leads ties."""
    flat = torch.cat([x.reshape(-1).double() for x in tensors]).abs()
    key = torch.where(flat == float("inf"), torch.finfo(torch.float64).max, flat)
    key = torch.where(flat.isnan(), float("inf"), key)
    return flat, torch.sort(key, descending=True, stable=True).indices


def kth_magnitude(tensors: Sequence[Tensor], k: int) -> Tensor:
    """The k-th smallest."""
    flat, order = _largest_first(tensors)
    return flat[order[len(flat) - k]]


def top_k_mask(tensors: Sequence[Tensor], k: int) -> list[Tensor]:
    """The k largest."""
    flat, order = _largest_first(tensors)
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:k]] = True
    parts = torch.split(mask, [x.numel() for x in tensors])
    return [m.reshape(x.shape) for m, x in zip(parts, tensors, strict=True)]


def shrink_smallest(tensors: Sequence[Tensor], factor: float, k: int) -> list[Tensor]:
    """The k smallest times a factor; 0 makes them zero."""
    count = sum(x.numel() for x in tensors)
    masks = top_k_mask(tensors, count - k)
    small = [torch.zeros_like(x) if factor == 0 else x * factor for x in tensors]
    return [torch.where(m, x, y) for m, x, y in zip(masks, tensors, small, strict=True)]

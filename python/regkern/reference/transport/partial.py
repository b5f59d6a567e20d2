"""Partial entropic transport of uniform weights: half-steps, with the level found by sorting."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def level(raw: Tensor, mass: float, eps: float) -> Tensor:
    """h with Σ min(1, e^((h − s)/ε)) / n = m, by how many of the points are full."""
    n = raw.shape[-1]
    start = raw.sort(-1).values
    first = start[..., :1]
    # Of points k, …, n − 1, which are not full where the first k are.
    rest = ((first - start) / eps).exp().flip(-1).cumsum(-1).flip(-1)
    full = torch.arange(n, dtype=raw.dtype, device=raw.device)
    levels = first + eps * ((n * mass - full).clamp(min=1e-9) / rest).log()
    fits = (levels <= start) & (full < n * mass)
    return levels.gather(-1, fits.long().argmax(-1, keepdim=True))


def partial_transport(
    cost: Tensor, mass: float, eps: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """f + h (B, n) and g (B, m) of costs (B, n, m)."""
    n, m = cost.shape[-2:]
    g = cost.new_zeros((cost.shape[0], m))
    f = h = cost.new_zeros((cost.shape[0], n))
    for _ in range(iterations):
        raw = eps * (math.log(m) - ((g[:, None] - cost) / eps).logsumexp(-1))
        f = (raw - level(raw, mass, eps)).clamp(max=0.0)
        raw = eps * (math.log(n) - ((f[..., None] - cost) / eps).logsumexp(-2))
        h = level(raw, mass, eps)
        g = (raw - h).clamp(max=0.0)
    return f + h, g

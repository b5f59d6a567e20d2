"""A sample of partial transport."""

from __future__ import annotations

import math

import torch
from regkern.transport.partial import partial_transport
from sample import Sample
from torch import Tensor

_MASS = 0.6


def _ours(cost: Tensor) -> Tensor:
    found = partial_transport(cost, mass=_MASS, eps=0.5, tol=None, max_iter=60)
    return torch.cat([found.f, found.g], -1).to(cost.dtype)


def _level(raw: Tensor) -> Tensor:
    """h with Σ min(1, e^((h − s)/ε)) / n = m: by the number of full points."""
    n = raw.shape[-1]
    start = raw.sort(-1).values
    weight = ((start[..., :1] - start) / 0.5).exp()
    open_mass = weight.flip(-1).cumsum(-1).flip(-1)
    full = torch.arange(n, dtype=raw.dtype)
    # With the first k full.
    levels = start[..., :1] + 0.5 * ((n * _MASS - full).clamp(min=1e-9) / open_mass).log()
    fits = (levels <= start) & (full < n * _MASS)
    return levels.gather(-1, fits.long().argmax(-1, keepdim=True))


def _definition(cost: Tensor) -> Tensor:
    cost = cost.double()
    n, m = cost.shape[-2:]
    g = cost.new_zeros((cost.shape[0], m))
    f = level = cost.new_zeros((cost.shape[0], n))
    for _ in range(60):
        raw = -0.5 * ((g[:, None] - cost) / 0.5).logsumexp(-1) + 0.5 * math.log(m)
        f = (raw - _level(raw)).clamp(max=0.0)
        raw = -0.5 * ((f[..., None] - cost) / 0.5).logsumexp(-2)
        raw = raw + 0.5 * math.log(n)
        level = _level(raw)
        g = (raw - level).clamp(max=0.0)
    return torch.cat([f + level, g], -1)


SAMPLES = [
    Sample(
        "transport_dense_partial",
        "half",
        ((2, 7, 5),),
        {},
        _ours,
        _definition,
        differentiable=False,
    )
]

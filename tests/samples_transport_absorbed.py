"""A sample of Sinkhorn's iteration on a kernel that is kept."""

from __future__ import annotations

import torch
from regkern.reference.transport import dense as reference
from regkern.transport.solver import sinkhorn
from sample import Sample
from torch import Tensor


def _kept(cost: Tensor) -> Tensor:
    # Rows that start on multiples of 16 bytes, and rows that do not.
    sinkhorn(cost[..., :40], eps=0.5, tol=None, max_iter=3, storage="kernel")
    found = sinkhorn(
        cost, eps=0.5, tol=None, max_iter=9, rho=(None, 0.7), storage="kernel", scaling=0.6
    )
    # It begins beyond the range of the first kernel's scalings.
    again = sinkhorn(
        cost,
        eps=0.5,
        tol=None,
        max_iter=40,
        rho=(None, 0.7),
        storage="kernel",
        init=(found.f, found.g * 10.0),
    )
    return torch.cat([again.f, again.g], -1).to(cost.dtype)


def _definition(cost: Tensor) -> Tensor:
    batch, n, m = cost.shape
    cost = cost.double()
    a, b = (torch.full((batch, k), 1.0 / k, dtype=torch.float64) for k in (n, m))
    eps = torch.full((batch,), 0.5, dtype=torch.float64)
    return torch.cat(reference.potentials(cost, a, b, eps, (None, 0.7), 200), -1)


SAMPLES = [
    Sample(
        "transport_dense_solve",
        "kept",
        ((2, 11, 45),),
        {},
        _kept,
        _definition,
        differentiable=False,
    )
]

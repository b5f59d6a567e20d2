"""A sample of partial transport."""

from __future__ import annotations

import torch
from regkern.reference.transport import partial as reference
from regkern.transport.partial import partial_transport
from sample import Sample
from torch import Tensor


def _ours(cost: Tensor) -> Tensor:
    # From a few iterations on.
    begun = partial_transport(cost, mass=0.6, eps=0.5, tol=None, max_iter=3)
    found = partial_transport(cost, mass=0.6, eps=0.5, tol=None, max_iter=60, init=begun)
    return torch.cat([found.f, found.g], -1).to(cost.dtype)


def _definition(cost: Tensor) -> Tensor:
    return torch.cat(reference.partial_transport(cost.double(), 0.6, 0.5, 60), -1)


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

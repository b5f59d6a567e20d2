"""A sample of group-lasso transport."""

from __future__ import annotations

import torch
from regkern.reference.transport.grouped import grouped_transport
from regkern.transport import sparse
from sample import Sample
from torch import Tensor

_GROUPS = torch.tensor([3, 1, 3, 1, 1, 0])
_GAMMA, _MU = 3.0, 0.25


def _ours(cost: Tensor) -> Tensor:
    result = sparse.sparse_transport(
        cost, gamma=_GAMMA, groups=_GROUPS.to(cost.device), mu=_MU, tol=1e-9, max_iter=80
    )
    return result.value.to(cost.dtype)


def _definition(cost: Tensor) -> Tensor:
    n, m = cost.shape[-2:]
    a, b = (torch.full((k,), 1.0 / k, dtype=torch.float64) for k in (n, m))
    values = [grouped_transport(c, a, b, _GROUPS, _GAMMA, _MU) for c in cost]
    return torch.stack(values) if values else cost.new_zeros(0)


SAMPLES = [
    Sample(
        "sparse_transport",
        "grouped",
        ((2, 6, 37),),
        {},
        _ours,
        _definition,
        differentiable=False,
    )
]

"""Samples of Sinkhorn's iteration on many small costs."""

from __future__ import annotations

import math

import torch
from regkern.reference.transport import dense as reference
from regkern.transport.dense import Settings
from regkern.transport.small import solve_small
from sample import Sample
from torch import Tensor

_ITERATIONS = 6


def _solved(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    batch = cost.shape[0]
    eps = torch.full((batch,), 0.5, dtype=torch.float64, device=cost.device)
    rho = torch.full((2, batch), math.inf, dtype=torch.float64, device=cost.device)
    rho[1] = 0.7
    how = Settings(None, _ITERATIONS, 4, "none", 1.0, 1.0)
    weights = (w.double().softmax(-1) for w in (a, b))
    found = solve_small(cost.contiguous(), *weights, eps, rho, how)
    return torch.cat(found[:2], -1).to(cost.dtype)


def _definition(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    cost, a, b = cost.double(), a.double().softmax(-1), b.double().softmax(-1)
    eps = torch.full((cost.shape[0],), 0.5, dtype=torch.float64)
    return torch.cat(reference.potentials(cost, a, b, eps, (None, 0.7), _ITERATIONS), -1)


def _stopped(cost: Tensor) -> Tensor:
    batch, n, m = cost.shape
    a, b = (torch.full((batch, k), 1.0 / k, dtype=torch.float64) for k in (n, m))
    eps = torch.full((batch,), 0.5, dtype=torch.float64, device=cost.device)
    rho = torch.full((2, batch), math.inf, dtype=torch.float64, device=cost.device)
    how = Settings(1e-9, 60, 4, "relaxed", 1.1, 1.0)
    a, b = a.to(cost.device), b.to(cost.device)
    found = solve_small(cost.contiguous(), a, b, eps, rho, how)
    return torch.cat(found[:2], -1).to(cost.dtype)


def _limit(cost: Tensor) -> Tensor:
    batch, n, m = cost.shape
    a, b = (torch.full((batch, k), 1.0 / k, dtype=torch.float64) for k in (n, m))
    eps = torch.full((batch,), 0.5, dtype=torch.float64)
    return torch.cat(reference.potentials(cost.double(), a, b, eps, iterations=120), -1)


SAMPLES: list[Sample] = [
    Sample(
        "transport_small_solve",
        "lanes",
        ((9, 4, 5), (9, 4), (9, 5)),
        {},
        _solved,
        _definition,
        differentiable=False,
    ),
    Sample(
        "transport_small_solve",
        "rows",
        ((2, 20, 34),),
        {},
        _stopped,
        _limit,
        differentiable=False,
    ),
]

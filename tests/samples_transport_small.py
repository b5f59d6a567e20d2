"""Samples of Sinkhorn's iteration on many small costs."""

from __future__ import annotations

import math

import torch
from regkern.reference.transport import dense as reference
from regkern.transport.dense import Settings
from regkern.transport.small import solve_small, value_slopes
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
    return torch.cat((found.f, found.g, found.value[:, None]), -1).to(cost.dtype)


def _definition(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    cost, a, b = cost.double(), a.double().softmax(-1), b.double().softmax(-1)
    eps = torch.full((cost.shape[0],), 0.5, dtype=torch.float64)
    f, g = reference.potentials(cost, a, b, eps, (None, 0.7), _ITERATIONS)
    value = reference.value(cost, a, b, f, g, eps, (None, 0.7))
    return torch.cat((f, g, value[:, None]), -1)


def _stopped(cost: Tensor) -> Tensor:
    eps = torch.full((cost.shape[0],), 0.5, dtype=torch.float64, device=cost.device)
    how = Settings(1e-9, 60, 4, "relaxed", 1.1, 1.0)
    found = solve_small(cost.contiguous(), None, None, eps, None, how)
    return torch.cat((found.f, found.g), -1).to(cost.dtype)


def _limit(cost: Tensor) -> Tensor:
    batch, n, m = cost.shape
    a, b = (torch.full((batch, k), 1.0 / k, dtype=torch.float64) for k in (n, m))
    eps = torch.full((batch,), 0.5, dtype=torch.float64)
    return torch.cat(reference.potentials(cost.double(), a, b, eps, iterations=120), -1)


def _potentials(cost: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    f, g = (0.3 * a.double()).contiguous(), (0.2 * b.double() - 1).contiguous()
    eps = torch.full((cost.shape[0],), 0.9, dtype=torch.float64, device=cost.device)
    return f, g, eps, eps + 0.4


def _slopes(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    f, g, eps, scale = _potentials(cost, a, b)
    # An infinite cost forbids a pair, and there is no other.
    cost, weights = cost.abs().contiguous(), a.double().softmax(-1).contiguous()
    slope, *sums = value_slopes(cost, weights, None, f, g, eps, scale, True)
    parts = (slope.double().flatten(1), *sums[:2], sums[2][:, None])
    return torch.cat(parts, -1).to(cost.dtype)


def _slopes_definition(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    f, g, eps, scale = _potentials(cost, a, b)
    cost, uniform = cost.abs(), torch.full_like(b, 1.0 / b.shape[-1])
    plan = reference.plan(cost, a.softmax(-1), uniform, f, g, eps)
    exponents = plan * (f[:, :, None] + g[:, None, :] - cost)
    far = torch.where(plan == 0, 0.0, exponents).sum((1, 2))
    slope = (scale[:, None, None] * plan).flatten(1)
    return torch.cat((slope, plan.sum(2), plan.sum(1), far[:, None]), -1)


SAMPLES: list[Sample] = [
    Sample(
        "transport_small_slopes",
        "lanes",
        ((9, 4, 5), (9, 4), (9, 5)),
        {},
        _slopes,
        _slopes_definition,
        differentiable=False,
    ),
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

"""Samples of Sinkhorn's iteration on dense costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from regkern.reference.transport import dense as reference
from regkern.transport.solver import sinkhorn
from sample import Sample
from torch import Tensor


def _eps(x: Tensor) -> Tensor:
    """0.5 for every problem of a float64 tensor, which the definition is given."""
    return torch.full((x.shape[0],), 0.5, dtype=torch.float64)


def _unrolled(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    found = sinkhorn(
        cost,
        a=a.double().softmax(-1),
        b=b.double().softmax(-1),
        eps=0.5,
        rho=(None, 0.7),
        tol=None,
        max_iter=2,
        gradient="unroll",
    )
    return found.plan()


def _unrolled_definition(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # An empty or a single batch is handed over as it is.
    cost, a, b = cost.double(), a.double().softmax(-1), b.double().softmax(-1)
    f, g = reference.potentials(cost, a, b, _eps(cost), (None, 0.7), 2)
    return reference.plan(cost, a, b, f, g, _eps(cost))


def _solved(acceleration: str | None) -> Callable[[Tensor], Tensor]:
    def call(cost: Tensor) -> Tensor:
        found = sinkhorn(
            cost, eps=0.5, tol=1e-9, max_iter=60, check_every=4, acceleration=acceleration
        )
        # Rows of it do not start on multiples of 16 bytes, as those of the unrolled sample do.
        found.plan()
        return torch.cat([found.f, found.g], -1).to(cost.dtype)

    return call


def _solved_definition(cost: Tensor) -> Tensor:
    batch, n, m = cost.shape
    cost = cost.double()
    a, b = (torch.full((batch, k), 1.0 / k, dtype=torch.float64) for k in (n, m))
    return torch.cat(reference.potentials(cost, a, b, _eps(cost), iterations=120), -1)


SAMPLES: list[Sample] = [
    Sample(
        "sinkhorn",
        "unrolled",
        ((2, 5, 8), (2, 5), (2, 8)),
        {},
        _unrolled,
        _unrolled_definition,
    ),
    Sample(
        "sinkhorn",
        "anderson",
        ((2, 34, 45),),
        {},
        _solved("anderson"),
        _solved_definition,
        differentiable=False,
    ),
]

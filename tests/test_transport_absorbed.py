"""Sinkhorn's iteration on a kernel that is kept: the results of the log domain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from regkern.transport.result import Transport
from regkern.transport.solver import sinkhorn
from torch import Tensor

DOUBLE = torch.float64
INF = float("inf")


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(700 + salt)
    return torch.rand(shape, dtype=DOUBLE, generator=generator).to(dtype)


def weights(*shape: int, salt: int = 0) -> Tensor:
    w = draw(*shape, salt=salt) + 0.1
    return w / w.sum(-1, keepdim=True)


def both(cost: Tensor, **options: Any) -> tuple[Transport, Transport]:
    return sinkhorn(cost, **options), sinkhorn(cost, storage="kernel", **options)


def assert_same(log: Transport, kept: Transport, tolerance: float) -> None:
    torch.testing.assert_close(kept.f, log.f, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(kept.g, log.g, rtol=tolerance, atol=tolerance)
    assert torch.equal(kept.status, log.status)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rho": (0.4, None)},
        {"acceleration": "anderson"},
        {"acceleration": 1.4},
        {"scaling": 0.5},
    ],
    ids=str,
)
def test_is_the_log_domain(options: dict[str, Any]) -> None:
    # Tails of tiles, blocks of rows and panels; one kernel is wide enough to be padded.
    for n, m in ((13, 37), (9, 1100)):
        cost, a, b = draw(2, n, m), weights(2, n), weights(2, m, salt=1)
        a[0, 3] = 0.0
        b[1, 5] = 0.0
        a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
        eps = torch.tensor([0.02, 0.5], dtype=DOUBLE)
        settings = {"tol": None, "max_iter": 12, "a": a, "b": b, "eps": eps, **options}
        assert_same(*both(cost, **settings), 1e-9)


def test_scalings_that_leave_the_range_are_absorbed() -> None:
    """At ε = 10⁻³ of the costs potentials move by hundreds of ε, in float32 as in float64."""
    cost = torch.cdist(draw(60, 3), draw(70, 3, salt=1)).square()
    eps = 1e-3 * float(cost.mean())
    log, kept = both(cost.float(), eps=eps, tol=None, max_iter=400)
    torch.testing.assert_close(kept.value, log.value, rtol=1e-4, atol=1e-5)
    assert_same(*both(cost, eps=eps, tol=None, max_iter=400), 1e-9)
    # The beginning is far off, differently for each point.
    begin = 50.0 * draw(60, salt=2), 50.0 * draw(70, salt=3)
    assert_same(*both(cost, eps=eps, tol=None, max_iter=30, init=begin), 1e-9)


def test_iterations_are_those_of_the_log_domain() -> None:
    cost = torch.cdist(draw(3, 50, 2), draw(3, 40, 2, salt=1)).float()
    log, kept = both(cost, eps=0.05, tol=1e-4, max_iter=2000)
    assert torch.equal(log.iterations, kept.iterations)
    assert bool((kept.status == 0).all())


def test_corners() -> None:
    cost = draw(3, 6, 8)
    cost[0, 2, 1:] = INF  # one partner
    cost[1, 3] = INF  # no partner
    cost[2, 1, 4] = torch.nan
    log, kept = both(cost, eps=0.1, tol=None, max_iter=20)
    assert torch.equal(log.f.isnan(), kept.f.isnan())
    assert torch.equal(log.f.isinf(), kept.f.isinf())
    torch.testing.assert_close(kept.f, log.f, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert torch.equal(log.status, kept.status)
    empty = sinkhorn(draw(0, 3, 4), eps=0.1, storage="kernel")
    assert empty.f.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_and_strides(dtype: torch.dtype) -> None:
    cost = draw(2, 9, 21, dtype=dtype).mT
    log, kept = both(cost, eps=0.1, tol=None, max_iter=9)
    assert_same(log, kept, 1e-5)
    dense = sinkhorn(cost.contiguous(), eps=0.1, tol=None, max_iter=9, storage="kernel")
    assert torch.equal(dense.f, kept.f)


def test_gradients_are_those_of_the_optimum() -> None:
    cost = draw(5, 7)
    grads = []
    for storage in (None, "kernel"):
        c = cost.clone().requires_grad_()
        found = sinkhorn(c, eps=0.2, tol=1e-13, storage=storage, gradient="implicit")
        (found.value + found.f.square().sum()).backward()
        grads.append(c.grad)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_errors() -> None:
    x = draw(4, 2)
    with pytest.raises(ValueError, match="expected `storage` None of points"):
        sinkhorn(x=x, y=x, eps=0.1, storage="kernel")
    with pytest.raises(ValueError, match="`storage`"):
        sinkhorn(draw(4, 4), eps=0.1, storage="plan")

"""Sparse routing: loads, weights, gradients, the module."""

from __future__ import annotations

import pytest
import torch
from regkern.nn.transport.router import SparseRouter
from regkern.proximal.projections import k_sparse_simplex_projection
from regkern.transport.router import Routing, sparse_route
from torch import Tensor

DOUBLE = torch.float64


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(900 + salt)
    return torch.randn(shape, dtype=DOUBLE, generator=generator).to(dtype)


def dense(routing: Routing, experts: int) -> Tensor:
    weights = routing.weights
    empty = weights.new_zeros((*weights.shape[:-1], experts))
    return empty.scatter_add(-1, routing.indices.clamp(min=0), weights)


def test_load_is_balanced_where_scores_are_not() -> None:
    scores = draw(400, 8)
    scores[:, 2] += 3.0
    loads = sparse_route(scores, 4, 2.0, tol=1e-3, max_iter=200)
    assert (loads.load - 1 / 8).abs().max() < 0.02
    assert sparse_route(scores, 4, 2.0, max_iter=0).load.max() > 0.4
    capacity = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0])
    asked = sparse_route(scores, 4, 2.0, capacity, tol=1e-3, max_iter=200)
    assert (asked.load - capacity / 20).abs().max() < 0.02
    torch.testing.assert_close(asked.violation, (asked.load - capacity / 20).abs().sum())
    torch.testing.assert_close(asked.load, dense(asked, 8).mean(0))


def test_weights_are_the_projection_and_so_are_their_gradients() -> None:
    scores = draw(2, 30, 6).requires_grad_()
    gamma = torch.tensor(1.5, dtype=DOUBLE, requires_grad=True)
    routing = sparse_route(scores, 3, gamma)
    ours = dense(routing, 6)
    shifted = scores + routing.potentials.unsqueeze(-2)
    theirs = k_sparse_simplex_projection(shifted / gamma, 3)
    torch.testing.assert_close(ours, theirs)
    g = draw(2, 30, 6, salt=1)
    for a, b in zip(
        torch.autograd.grad(ours, (scores, gamma), g, create_graph=True),
        torch.autograd.grad(theirs, (scores, gamma), g),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(2, 30, dtype=DOUBLE))
    assert bool(((routing.indices < 0) == (routing.weights == 0)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_router_learns_potentials_and_keeps_them(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    router = SparseRouter(12, 6, 3, 0.5, max_iter=100, tol=1e-3).to(dtype)
    x = draw(4, 50, 12, dtype=dtype)
    router(x)
    routing = router(x)
    assert routing.indices.shape == routing.weights.shape == (4, 50, 3)
    assert routing.weights.dtype == dtype
    routing.weights.float().square().sum().backward()
    assert router.scores.weight.grad is not None
    assert bool(torch.isfinite(router.scores.weight.grad).all())
    kept = router.potentials.clone()
    router.eval()
    alone = router(x[:1, :7])
    assert torch.equal(router.potentials, kept)
    if dtype == torch.float32:
        assert torch.equal(alone.indices, router(x).indices[:1, :7])
    assert "k=3" in repr(router)


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"regkern\.sparse_route: expected `scores`"):
        sparse_route(torch.zeros(3, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"regkern\.sparse_route: expected `scores`"):
        sparse_route(torch.zeros(3))
    with pytest.raises(ValueError, match=r"regkern\.sparse_route: expected `gamma`"):
        sparse_route(torch.zeros(3, 2), gamma=0.0)
    with pytest.raises(ValueError, match=r"regkern\.sparse_route: expected `capacity`"):
        sparse_route(torch.zeros(3, 2), capacity=torch.ones(3))
    with pytest.raises(ValueError, match=r"regkern\.SparseRouter: expected `experts`"):
        SparseRouter(4, 2, 3)

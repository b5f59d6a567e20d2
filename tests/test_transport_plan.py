"""Products with a plan that is not formed: values, gradients, and a refused second derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from regkern.transport import dense
from regkern.transport.result import Transport
from regkern.transport.solver import COSTS, sinkhorn
from torch import Tensor

DOUBLE = torch.float64


def draw(*shape: int, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(900 + salt)
    return torch.rand(shape, dtype=DOUBLE, generator=generator)


def weights(*shape: int, salt: int = 0) -> Tensor:
    w = draw(*shape, salt=salt) + 0.1
    return w / w.sum(-1, keepdim=True)


def grads_of(
    solve: Callable[..., Transport],
    read: Callable[[Transport], Tensor],
    tensors: list[Tensor],
    up: Tensor,
    beside: Tensor | None = None,
) -> list[Tensor]:
    inputs = [t.clone().requires_grad_() for t in tensors]
    out = read(solve(*inputs))
    wanted = inputs if beside is None else [*inputs, beside]
    return list(torch.autograd.grad(out, wanted, up))


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-9) -> None:
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


DENSE = [draw(2, 5, 7), weights(2, 5), weights(2, 7, salt=1), torch.tensor([0.2, 0.6]).double()]


def solve_dense(gradient: str, **options: Any) -> Callable[..., Transport]:
    def solve(cost: Tensor, a: Tensor, b: Tensor, eps: Tensor) -> Transport:
        rest: dict[str, Any] = (
            {"tol": None, "max_iter": 4} if gradient == "unroll" else {"tol": 1e-13}
        )
        return sinkhorn(cost, a=a, b=b, eps=eps, gradient=gradient, **rest, **options)

    return solve


@pytest.mark.parametrize("side", ["rows", "columns"])
@pytest.mark.parametrize("gradient", ["implicit", "unroll"])
def test_apply_has_the_gradients_of_the_plan(gradient: str, side: str) -> None:
    columns = side == "columns"
    v = draw(2, 5 if columns else 7, 3, salt=2).requires_grad_()
    up = draw(2, 7 if columns else 5, 3, salt=3)
    # The weights of the last one are not hard, and one weight is zero.
    a = DENSE[1].clone()
    a[:, 2] = 0.0
    tensors = [DENSE[0], a / a.sum(-1, keepdim=True), *DENSE[2:]]
    for rho in (None, (0.5, None)):
        solve = solve_dense(gradient, rho=rho)
        ours = grads_of(solve, lambda t: t.apply(v, side), tensors, up, v)
        formed = grads_of(
            solve, lambda t: (t.plan().mT if columns else t.plan()) @ v, tensors, up, v
        )
        assert_same(ours, formed)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    v, up = draw(2, 7, 3, salt=2), draw(2, 5, 3, salt=3)
    solve = solve_dense("unroll")
    whole = grads_of(solve, lambda t: t.apply(v), DENSE, up)
    monkeypatch.setitem(dense._BLOCK, "cpu", 14)
    assert_same(grads_of(solve, lambda t: t.apply(v), DENSE, up), whole, 1e-12)


def test_forbidden_pairs_have_no_gradient() -> None:
    cost = DENSE[0].clone()
    cost[:, 1, 2:4] = torch.inf
    tensors, v, up = [cost, *DENSE[1:]], draw(2, 7, 3, salt=2), draw(2, 5, 3, salt=3)
    solve = solve_dense("implicit")
    ours = grads_of(solve, lambda t: t.apply(v), tensors, up)
    assert_same(ours, grads_of(solve, lambda t: t.plan() @ v, tensors, up))
    assert bool((ours[0][:, 1, 2:4] == 0).all())


@pytest.mark.parametrize("cost_fn", COSTS)
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_points(cost_fn: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = side == "columns"
    x, y = draw(2, 5, 3) + 1.0, draw(2, 7, 3, salt=1) - 0.5
    tensors = [x, y, *DENSE[1:]]
    v = draw(2, 5 if columns else 7, 4, salt=2).requires_grad_()
    up = draw(2, 7 if columns else 5, 4, salt=3)

    def solve(x: Tensor, y: Tensor, a: Tensor, b: Tensor, eps: Tensor) -> Transport:
        return sinkhorn(
            x=x, y=y, a=a, b=b, eps=eps, cost_fn=cost_fn, tol=None, max_iter=3, gradient="unroll"
        )

    if cost_fn == "euclidean":  # in several parts
        monkeypatch.setattr("regkern.transport.points._WIDTH", 8)
    ours = grads_of(solve, lambda t: t.apply(v, side), tensors, up, v)
    formed = grads_of(solve, lambda t: (t.plan().mT if columns else t.plan()) @ v, tensors, up, v)
    assert_same(ours, formed, 1e-8)


def test_barycentric_map_follows_its_points() -> None:
    cost, a, b, eps = DENSE
    y = draw(2, 7, 2, salt=4).requires_grad_()

    def mapped(cost: Tensor, y: Tensor) -> Tensor:
        found = sinkhorn(cost, a=a, b=b, eps=eps, tol=1e-13, gradient="implicit")
        return found.barycentric(y)

    assert torch.autograd.gradcheck(mapped, (cost.clone().requires_grad_(), y), fast_mode=True)


def test_v_alone_has_gradients_under_the_envelope() -> None:
    cost = DENSE[0].clone().requires_grad_()
    found = sinkhorn(cost, eps=0.3)
    v = draw(2, 7, 3, salt=2).requires_grad_()
    out = found.apply(v)
    (dv,) = torch.autograd.grad(out.sum(), v)
    torch.testing.assert_close(dv, found.plan().sum(-2)[..., None].expand_as(v))
    assert not found.apply(v.detach()).requires_grad
    vector = draw(2, 7, salt=2).float().requires_grad_()
    found.apply(vector).sum().backward()
    assert vector.grad is not None
    assert vector.grad.dtype == torch.float32


def test_second_derivatives_are_refused() -> None:
    v = draw(2, 7, 3, salt=2).requires_grad_()
    cost = DENSE[0].clone().requires_grad_()
    of_costs = sinkhorn(cost, eps=0.3, tol=None, max_iter=2, gradient="unroll")
    x = draw(2, 7, 3).requires_grad_()
    of_points = sinkhorn(x=x, y=x, eps=0.3, tol=None, max_iter=2, gradient="unroll")
    for found, source in ((of_costs, cost), (of_points, x)):
        (dv,) = torch.autograd.grad(found.apply(v).sum(), v, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(dv.square().sum(), source)


OPTIONS: dict[str, Any] = {"eps": 0.5, "tol": None, "max_iter": 1, "gradient": "unroll"}


def test_transforms() -> None:
    def loss(cost: Tensor, x: Tensor, v: Tensor) -> Tensor:
        dense = sinkhorn(cost, **OPTIONS).apply(v)
        cloud = sinkhorn(x=x, y=v, **OPTIONS).apply(v)
        return dense.square().sum() + cloud.square().sum()

    tensors = [draw(2, 5, 7), draw(2, 5, 3, salt=1), draw(2, 7, 3, salt=2)]
    twins = [t.clone().requires_grad_() for t in tensors]
    expected = list(torch.autograd.grad(loss(*twins), twins))
    assert_same(list(torch.func.grad(loss, argnums=(0, 1, 2))(*tensors)), expected)
    stacked = [torch.stack([t, t.flip(-1)]) for t in tensors]
    each = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*stacked)
    assert_same([t[0] for t in each], expected)


def test_compile() -> None:
    a, b, eps = DENSE[1:]
    f, g = draw(2, 5, salt=5), draw(2, 7, salt=6)

    def loss(cost: Tensor, v: Tensor) -> Tensor:
        engine = dense.DenseCost(cost)
        return engine.apply(a, b, f, g, eps, v, False).square().sum()

    twins = [draw(2, 5, 7).requires_grad_(), draw(2, 7, 3, salt=2).requires_grad_()]
    expected = list(torch.autograd.grad(loss(*twins), twins))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_same(list(torch.autograd.grad(compiled(*twins), twins)), expected)

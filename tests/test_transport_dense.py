"""Sinkhorn's iteration on dense costs: laws, corners, gradients, the defects of others, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regkern.reference.transport import dense as reference
from regkern.transport.dense import solve_dense
from regkern.transport.result import Transport
from regkern.transport.solver import sinkhorn
from torch import Tensor

DOUBLE = torch.float64
INF = float("inf")
Reach = tuple[float | None, float | None]


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(300 + salt)
    return torch.rand(shape, dtype=DOUBLE, generator=generator).to(dtype)


def weights(*shape: int, salt: int = 0) -> Tensor:
    w = draw(*shape, salt=salt) + 0.1
    return w / w.sum(-1, keepdim=True)


def close(x: Tensor, y: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def points(n: int, m: int, d: int = 3, salt: int = 0) -> Tensor:
    return torch.cdist(draw(n, d, salt=salt), draw(m, d, salt=salt + 1)).square()


def exact(cost: Tensor, **options: Any) -> Transport:
    return sinkhorn(cost, **{"tol": 1e-13, "max_iter": 20_000, **options})


# ---- the definition ----

REACHES = pytest.mark.parametrize(
    "rho", [(None, None), (0.5, 0.5), (None, 0.7), (0.4, None)], ids=str
)


@REACHES
def test_potentials_and_value(rho: Reach) -> None:
    cost, a, b = draw(3, 9, 13), weights(3, 9), weights(3, 13, salt=1)
    eps = torch.tensor([0.05, 0.3, 2.0], dtype=DOUBLE)
    found = exact(cost, a=a, b=b, eps=eps, rho=rho)
    f, g = reference.potentials(cost, a, b, eps, rho, 700)
    close(found.f, f)
    close(found.g, g)
    p = reference.plan(cost, a, b, f, g, eps)
    close(found.plan(), p)
    close(found.value, reference.value(cost, a, b, f, g, eps, rho))
    close(found.value, reference.primal(cost, p, a, b, eps, rho))
    close(found.cost, (p * cost).sum((-2, -1)))
    assert found.status.tolist() == [0, 0, 0]
    assert bool((found.error < 1e-12).all())


def test_iterations_are_those_of_the_definition() -> None:
    # More columns than a tile, more rows than a chunk, neither a multiple of anything.
    cost, a, b = draw(1, 37, 1091), weights(1, 37), weights(1, 1091, salt=1)
    eps = torch.tensor([0.02], dtype=DOUBLE)
    for rho in ((None, None), (0.3, 0.2)):
        found = sinkhorn(cost, a=a, b=b, eps=eps, rho=rho, tol=None, max_iter=3)
        f, g = reference.potentials(cost, a, b, eps, rho, 3)
        close(found.f, f)
        close(found.g, g)
        assert found.iterations.item() == 3
    wide = sinkhorn(cost.mT, a=b, b=a, eps=eps, tol=None, max_iter=3)
    f, g = reference.potentials(cost.mT, b, a, eps, iterations=3)
    close(wide.f, f)
    close(wide.g, g)


def test_error_is_what_the_plan_misses() -> None:
    cost, a, b = draw(2, 20, 30), 3 * weights(2, 20), 3 * weights(2, 30, salt=1)
    for acceleration in (None, 1.4, "adaptive", "anderson"):
        found = sinkhorn(cost, a=a, b=b, eps=0.02, tol=None, max_iter=7, acceleration=acceleration)
        p = found.plan()
        close(found.error, (p.sum(-1) - a).abs().sum(-1) / 3)
        close(p.sum(-2), b)
        assert found.status.tolist() == [1, 1]


def test_it_stops_problem_by_problem() -> None:
    cost = draw(3, 16, 16)
    eps = torch.tensor([0.01, 0.1, 1.0], dtype=DOUBLE)
    found = sinkhorn(cost, eps=eps, tol=1e-6, max_iter=4000, check_every=5)
    counts = found.iterations.tolist()
    assert counts[0] > counts[1] > counts[2]
    assert all(c % 5 == 0 for c in counts)
    for i in range(3):
        alone = sinkhorn(cost[i], eps=eps[i], tol=1e-6, max_iter=4000, check_every=5)
        assert alone.iterations == counts[i]
        assert torch.equal(alone.f, found.f[i])


def test_entropies() -> None:
    cost, a, b = draw(6, 8), weights(6), weights(8, salt=1)
    found = exact(cost, a=a, b=b, eps=0.1, entropy="plain")
    p = found.plan()
    close(found.value, (p * cost).sum() + 0.1 * (p * p.log()).sum())


def test_linear_programme_in_the_limit() -> None:
    scipy = pytest.importorskip("scipy.optimize")
    cost = draw(6, 6)
    rows, columns = scipy.linear_sum_assignment(cost.numpy())
    found = sinkhorn(cost, eps=5e-3, tol=1e-4, max_iter=4000, acceleration="anderson", scaling=0.9)
    assert found.status == 0
    best = cost[rows, columns].mean()
    close(found.cost, best, 5e-3)
    assert found.argmax().tolist() == columns.tolist()


def test_pot_agrees() -> None:
    ot = pytest.importorskip("ot")
    cost, a, b = draw(7, 9), weights(7), weights(9, salt=1)
    found = exact(cost, a=a, b=b, eps=0.05)
    p = ot.sinkhorn(a, b, cost, 0.05, method="sinkhorn_log", stopThr=1e-13, numItermax=20_000)
    close(found.plan(), p, 1e-9)
    q = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost, 0.05, 0.3, stopThr=1e-14, numItermax=20_000, reg_type="kl"
    )
    close(exact(cost, a=a, b=b, eps=0.05, rho=0.3).plan(), q, 1e-7)


# ---- properties ----


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(-3, 3), st.integers(0, 99))
def test_properties(n: int, m: int, shift: float, salt: int) -> None:
    cost, a, b = draw(n, m, salt=salt), weights(n, salt=salt), weights(m, salt=salt + 1)
    found = exact(cost, a=a, b=b, eps=0.2)
    p = found.plan()
    close(p.sum(-1), a)
    close((a * found.f).sum(), (b * found.g).sum())
    other = exact(cost.mT, a=b, b=a, eps=0.2)
    close(other.plan().mT, p)
    close(other.value, found.value)
    moved = exact(cost + shift, a=a, b=b, eps=0.2)
    close(moved.plan(), p)
    close(moved.value, found.value + shift)
    rows, columns = torch.randperm(n), torch.randperm(m)
    mixed = exact(cost[rows][:, columns], a=a[rows], b=b[columns], eps=0.2)
    close(mixed.plan(), p[rows][:, columns])


def test_any_eps() -> None:
    cost = draw(12, 10, dtype=torch.float32)
    for eps in (1e-4, 1e-2, 1.0, 1e4):
        found = sinkhorn(cost, eps=eps, tol=None, max_iter=20)
        f, g = reference.potentials(
            cost.double()[None],
            torch.full((1, 12), 1 / 12, dtype=DOUBLE),
            torch.full((1, 10), 1 / 10, dtype=DOUBLE),
            torch.tensor([eps], dtype=DOUBLE),
            iterations=20,
        )
        # A potential is ε times a logarithm, whose error is that of float32.
        close(found.f.double(), f[0], 2e-6 + 2e-7 * eps)
        close(found.g.double(), g[0], 2e-6 + 2e-7 * eps)
        assert found.plan().isfinite().all()


def test_float32_needs_no_more_iterations() -> None:
    cost = points(60, 60)
    wide = sinkhorn(cost, eps=1e-3, eps_rel="mean", tol=1e-3, max_iter=5000)
    narrow = sinkhorn(cost.float(), eps=1e-3, eps_rel="mean", tol=1e-3, max_iter=5000)
    assert wide.status == narrow.status == 0
    assert abs(int(wide.iterations) - int(narrow.iterations)) <= 10
    close(narrow.value.double(), wide.value, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_read_as_they_are(dtype: torch.dtype) -> None:
    cost = draw(2, 70, 90, dtype=dtype)
    found = sinkhorn(cost, eps=0.1, tol=None, max_iter=30)
    same = sinkhorn(cost.float(), eps=0.1, tol=None, max_iter=30)
    assert found.f.dtype == torch.float32
    assert found.plan().dtype == dtype
    assert torch.equal(found.f, same.f)
    assert torch.equal(found.value, same.value)


# ---- acceleration ----


def test_acceleration_converges_to_the_same() -> None:
    cost = points(60, 50)
    plain = sinkhorn(cost, eps=0.01, eps_rel="mean", tol=1e-7, max_iter=5000)
    counts = {}
    for acceleration, scaling in (
        (None, 0.7),
        (1.5, None),
        ("adaptive", None),
        ("anderson", 0.5),
        ("anderson", None),
    ):
        found = sinkhorn(
            cost,
            eps=0.01,
            eps_rel="mean",
            tol=1e-7,
            max_iter=5000,
            acceleration=acceleration,
            scaling=scaling,
        )
        assert found.status == 0
        assert found.error < 1e-7
        close(found.value, plain.value, 1e-6)
        counts[acceleration] = int(found.iterations)
    for acceleration, times in ((1.5, 1.5), ("adaptive", 1.5), ("anderson", 4)):
        assert times * counts[acceleration] < int(plain.iterations)


def test_anderson_survives_unbalanced_and_hard_problems() -> None:
    cost, a, b = points(30, 40), weights(30), weights(40, salt=1)
    cost[:10, 25:] = INF
    for rho in (None, 0.3, (None, 0.1)):
        options: dict[str, Any] = {"a": a, "b": b, "eps": 0.05, "rho": rho, "tol": 1e-9}
        fast = sinkhorn(cost, max_iter=3000, acceleration="anderson", **options)
        slow = sinkhorn(cost, max_iter=20_000, **options)
        assert fast.status == slow.status == 0
        close(fast.plan(), slow.plan(), 1e-6)


def test_warm_start() -> None:
    cost = points(40, 40)
    first = sinkhorn(cost, eps=0.05, tol=1e-6, max_iter=5000)
    again = sinkhorn(cost, eps=0.05, tol=1e-6, max_iter=5000, init=first, check_every=1)
    assert again.iterations == 1
    rows = sinkhorn(cost, eps=0.05, tol=1e-6, max_iter=5000, init=(first.f, None), check_every=1)
    assert int(rows.iterations) <= 2


# ---- what takes no part ----


def test_zero_weights_are_not_there() -> None:
    cost, a, b = draw(6, 7), weights(6), weights(7, salt=1)
    cost[2] = -50.0
    a, b = a * (torch.arange(6) != 2), b * (torch.arange(7) != 5)
    a, b = a / a.sum(), b / b.sum()
    rows, columns = a > 0, b > 0
    cost.requires_grad_()
    for dtype in (DOUBLE, torch.float32):
        found = exact(cost.to(dtype), a=a, b=b, eps=0.05, gradient="implicit")
        part = exact(cost.detach()[rows][:, columns], a=a[rows], b=b[columns], eps=0.05)
        tolerance = 1e-9 if dtype == DOUBLE else 1e-5
        close(found.f[rows].double(), part.f, tolerance)
        close(found.plan()[rows][:, columns].double(), part.plan(), tolerance)
        assert found.f.isfinite().all()
        assert found.g.isfinite().all()
        assert bool((found.plan()[2] == 0).all())
        loss = found.value + found.f[rows].square().sum() + found.plan().square().sum()
        (g,) = torch.autograd.grad(loss, cost)
        assert bool(g.isfinite().all())
        assert bool((g[2] == 0).all())
        assert bool((g[:, 5] == 0).all())


def test_potentials_without_weight_are_the_soft_transform() -> None:
    cost = draw(5, 5)
    a = torch.tensor([0.0, 0.5, 0.5, 0.0, 0.0], dtype=DOUBLE)
    found = exact(cost, a=a, eps=0.1)
    b = torch.full((1, 5), 0.2, dtype=DOUBLE)
    f = reference.soft_transform(cost[None], b, found.g[None], torch.tensor([0.1], dtype=DOUBLE))
    close(found.f, f[0])


def test_masks_and_lengths() -> None:
    cost = draw(2, 6, 5)
    lengths = (torch.tensor([4, 6]), torch.tensor([5, 2]))
    mask = (torch.arange(6) < lengths[0][:, None], torch.arange(5) < lengths[1][:, None])
    by_length = exact(cost, eps=0.1, lengths=lengths)
    by_mask = exact(cost, eps=0.1, mask=mask)
    assert torch.equal(by_length.plan(), by_mask.plan())
    for i, (n, m) in enumerate(zip(*lengths, strict=True)):
        alone = exact(cost[i, :n, :m], eps=0.1)
        close(by_mask.plan()[i, :n, :m], alone.plan())
        close(by_mask.value[i], alone.value)


def test_forbidden_pairs() -> None:
    cost = draw(5, 6).requires_grad_()
    with torch.no_grad():
        cost[0, :4], cost[3, 5] = INF, INF
    found = exact(cost, eps=0.05)
    f, _ = reference.potentials(
        cost.detach()[None],
        torch.full((1, 5), 0.2, dtype=DOUBLE),
        torch.full((1, 6), 1 / 6, dtype=DOUBLE),
        torch.tensor([0.05], dtype=DOUBLE),
        iterations=1500,
    )
    close(found.f, f[0])
    assert bool((found.plan()[0, :4] == 0).all())
    (d,) = torch.autograd.grad(found.value, cost)
    close(d, found.plan())
    eps = torch.tensor(0.05, dtype=DOUBLE, requires_grad=True)
    for gradient in ("envelope", "implicit"):
        (d,) = torch.autograd.grad(exact(cost, eps=eps, gradient=gradient).value, eps)
        assert d.isfinite()


def test_infeasible_problems_say_so() -> None:
    cost = draw(3, 4, 4)
    cost[1, 2] = INF
    cost[2, :, 1] = INF
    found = sinkhorn(cost, eps=0.1, max_iter=20)
    assert found.status.tolist() == [0, 2, 2]
    with pytest.raises(ValueError, match=r"finite plan.*\[1, 2\]"):
        sinkhorn(cost, eps=0.1, max_iter=20, check=True)
    # Soft marginals have a plan for everything.
    soft = sinkhorn(cost, eps=0.1, rho=1.0, max_iter=100)
    assert soft.status.tolist() == [0, 0, 0]
    assert soft.value.isfinite().all()
    assert soft.plan().isfinite().all()


def test_nan_stays_in_its_problem() -> None:
    cost = draw(2, 4, 4)
    cost[0, 1, 1] = math.nan
    found = sinkhorn(cost, eps=0.1)
    assert found.status.tolist() == [2, 0]
    assert found.value[0].isnan()
    assert found.value[1].isfinite()
    with pytest.raises(ValueError, match="NaN"):
        sinkhorn(cost, eps=0.1, check=True)


def test_one_point() -> None:
    found = sinkhorn(torch.tensor([[2.0]]), eps=0.1)
    assert found.plan().item() == pytest.approx(1.0, rel=1e-6)
    assert found.value.item() == pytest.approx(2.0, rel=1e-6)
    assert sinkhorn(torch.zeros(0, 3, 4), eps=0.1).value.shape == (0,)


# ---- gradients ----


def _inputs(n: int = 4, m: int = 5) -> tuple[Tensor, ...]:
    eps = torch.tensor(0.15, dtype=DOUBLE)
    raw = (draw(n, m), draw(n, salt=1), draw(m, salt=2), eps)
    return tuple(t.requires_grad_() for t in raw)


def _problem(gradient: str, rho: Any, **options: Any) -> Callable[..., Transport]:
    """Weights by softmax: of mass 1 however they are varied."""

    def call(cost: Tensor, a: Tensor, b: Tensor, eps: Tensor) -> Transport:
        return sinkhorn(
            cost,
            a=a.softmax(-1),
            b=b.softmax(-1),
            eps=eps,
            rho=rho,
            gradient=gradient,
            **{"tol": 1e-14, "max_iter": 5000, **options},
        )

    return call


@pytest.mark.parametrize("rho", [None, (None, 0.7), 0.5], ids=str)
def test_gradients_of_the_value(rho: Any) -> None:
    for gradient in ("envelope", "implicit"):
        call = _problem(gradient, rho)
        assert torch.autograd.gradcheck(lambda *t, c=call: c(*t).value, _inputs(), fast_mode=True)
    call = _problem("implicit", rho)
    assert torch.autograd.gradgradcheck(
        lambda *t: call(*t).value, _inputs(3, 4), atol=1e-4, fast_mode=True
    )


@pytest.mark.parametrize("rho", [None, (0.4, None), 0.5], ids=str)
def test_implicit_gradients(rho: Any) -> None:
    call = _problem("implicit", rho)

    def outputs(*t: Tensor) -> tuple[Tensor, ...]:
        found = call(*t)
        return found.plan(), found.f, found.g, found.value

    assert torch.autograd.gradcheck(outputs, _inputs(), fast_mode=True)


def test_unrolled_gradients_are_those_of_the_iterations() -> None:
    cost, a, b, eps = _inputs()
    call = _problem("unroll", (None, 0.7), tol=None, max_iter=4)
    ours = call(cost, a, b, eps)
    f, g = reference.potentials(
        cost[None], a.softmax(-1)[None], b.softmax(-1)[None], eps[None], (None, 0.7), 4
    )
    close(ours.f, f[0])
    p = reference.plan(cost[None], a.softmax(-1)[None], b.softmax(-1)[None], f, g, eps[None])
    w = draw(4, 5, salt=9)
    for x, y in zip(
        torch.autograd.grad((ours.plan() * w).sum() + ours.f.sum(), (cost, a, b, eps)),
        torch.autograd.grad((p[0] * w).sum() + f.sum(), (cost, a, b, eps)),
        strict=True,
    ):
        close(x, y)
    assert torch.autograd.gradgradcheck(lambda *t: call(*t).value, _inputs(3, 3), fast_mode=True)


def test_gradients_of_rho() -> None:
    cost, a, b = draw(4, 5), weights(4), weights(5, salt=1)
    rho = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    for gradient in ("envelope", "implicit"):
        assert torch.autograd.gradcheck(
            lambda r, k=gradient: exact(cost, a=a, b=b, eps=0.2, rho=r, gradient=k).value, rho
        )


def test_implicit_gradients_of_many_tiny_float32_problems() -> None:
    cost = (draw(64, 4, 4) * 3).requires_grad_()
    w = draw(64, 4, 4, salt=5)
    grads = []
    for dtype in (DOUBLE, torch.float32):
        found = sinkhorn(cost.to(dtype), eps=0.3, tol=1e-5, max_iter=3000, gradient="implicit")
        grads.append(torch.autograd.grad((found.plan() * w.to(dtype)).sum(), cost)[0])
    assert grads[1].isfinite().all()
    close(grads[1], grads[0], 5e-3)


def test_what_is_not_differentiable_says_so() -> None:
    cost = draw(4, 5).requires_grad_()
    found = sinkhorn(cost, eps=0.2)
    assert not found.plan().requires_grad
    assert not found.f.requires_grad
    (g,) = torch.autograd.grad(found.value, cost, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        g.square().sum().backward()
    implicit = sinkhorn(cost, eps=0.2, gradient="implicit")
    (g,) = torch.autograd.grad(implicit.f.sum(), cost, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        g.square().sum().backward()


def test_second_derivative_of_the_value_is_the_plans_first() -> None:
    cost = draw(4, 5).requires_grad_()
    w = draw(4, 5, salt=3)
    found = exact(cost, eps=0.2, gradient="implicit")
    (g,) = torch.autograd.grad(found.value, cost, create_graph=True)
    (second,) = torch.autograd.grad((g * w).sum(), cost)
    again = exact(cost, eps=0.2, gradient="implicit")
    (plan,) = torch.autograd.grad((again.plan() * w).sum(), cost)
    close(second, plan, 1e-8)


def test_envelope_gradient_of_weights_that_are_not_uniform() -> None:
    # POT's gradient of a misses −ε log a.
    cost, a, b = draw(5, 4), weights(5), weights(4, salt=1)
    along = torch.tensor([1.0, -1.0, 0.5, -0.25, -0.25], dtype=DOUBLE)
    a.requires_grad_()
    (g,) = torch.autograd.grad(exact(cost, a=a, b=b, eps=0.1).value, a)
    with torch.no_grad():
        h = 1e-5
        slope = (
            exact(cost, a=a + h * along, b=b, eps=0.1).value
            - exact(cost, a=a - h * along, b=b, eps=0.1).value
        ) / (2 * h)
    close((g * along).sum(), slope, 1e-6)


# ---- what is not formed ----


def test_products_with_the_plan() -> None:
    cost, a, b = draw(2, 6, 9), weights(2, 6), weights(2, 9, salt=1)
    found = exact(cost, a=a, b=b, eps=0.05)
    p = found.plan()
    v, w = draw(2, 9, 3, salt=2), draw(2, 6, salt=3)
    close(found.apply(v), p @ v)
    close(found.apply(w, "columns"), (p.mT @ w[..., None])[..., 0])
    close(found.barycentric(v), p @ v / p.sum(-1, keepdim=True))
    assert torch.equal(found.argmax(), p.argmax(-1))
    assert torch.equal(found.argmax("columns"), p.argmax(-2))
    alone = exact(cost[0], a=a[0], b=b[0], eps=0.05)
    close(alone.apply(v[0, :, 0]), p[0] @ v[0, :, 0])


def test_blocks_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = draw(2, 30, 20)
    cost[0, 3, 4] = INF
    found = sinkhorn(cost, eps=0.05)
    v, w = draw(2, 20, 2, salt=1), draw(2, 30, salt=2)
    whole = (found.apply(v), found.apply(w, "columns"), found.argmax("columns"), found.cost)
    monkeypatch.setattr("regkern.transport.dense._BLOCK", {"cpu": 70})
    parts = (found.apply(v), found.apply(w, "columns"), found.argmax("columns"), found.cost)
    for x, y in zip(whole, parts, strict=True):
        close(x, y)
    relative = sinkhorn(cost, eps=0.05, eps_rel="mean", tol=None, max_iter=3)
    mean = torch.where(cost.isinf(), 0.0, cost).sum((-2, -1)) / cost.isfinite().sum((-2, -1))
    close(relative.f, sinkhorn(cost, eps=0.05 * mean, tol=None, max_iter=3).f)
    largest = torch.where(cost.isinf(), 0.0, cost).amax((-2, -1))
    relative = sinkhorn(cost, eps=0.05, eps_rel="max", tol=None, max_iter=3)
    close(relative.f, sinkhorn(cost, eps=0.05 * largest, tol=None, max_iter=3).f)


# ---- errors ----

C45 = draw(4, 5)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: sinkhorn(eps=0.1), ValueError, "`cost`, or `x` and `y`"),
        (lambda: sinkhorn(C45, x=C45, y=C45, eps=0.1), ValueError, "both or neither"),
        (lambda: sinkhorn(C45.int(), eps=0.1), TypeError, "dtype"),
        (lambda: sinkhorn(C45[0], eps=0.1), ValueError, "shape"),
        (lambda: sinkhorn(C45, eps=0.0), ValueError, "`eps` to be positive"),
        (lambda: sinkhorn(C45, eps=torch.tensor(-1.0)), ValueError, "`eps` to be positive"),
        (lambda: sinkhorn(C45, eps="1"), TypeError, "`eps` to be a number"),
        (lambda: sinkhorn(C45, eps=torch.ones(3)), ValueError, "`eps`"),
        (lambda: sinkhorn(C45, eps=0.1, eps_rel="median"), ValueError, "`eps_rel`"),
        (lambda: sinkhorn(C45, a=torch.ones(5), eps=0.1), ValueError, "`a` of shape"),
        (lambda: sinkhorn(C45, a=torch.ones(4), eps=0.1), ValueError, "same mass"),
        (lambda: sinkhorn(C45, a=-torch.ones(4), eps=0.1), ValueError, "at least 0"),
        (lambda: sinkhorn(C45, eps=0.1, rho=-1.0), ValueError, "`rho`"),
        (lambda: sinkhorn(C45, eps=0.1, rho=(1.0, 2.0, 3.0)), ValueError, "`rho`"),
        (lambda: sinkhorn(C45, eps=0.1, tol=0.0), ValueError, "`tol`"),
        (lambda: sinkhorn(C45, eps=0.1, acceleration="newton"), ValueError, "`acceleration`"),
        (lambda: sinkhorn(C45, eps=0.1, acceleration=2.5), ValueError, "`acceleration`"),
        (lambda: sinkhorn(C45, eps=0.1, scaling=1.5), ValueError, "`scaling`"),
        (lambda: sinkhorn(C45, eps=0.1, gradient="none"), ValueError, "`gradient`"),
        (lambda: sinkhorn(C45, eps=0.1, gradient="unroll"), ValueError, "unroll"),
        (lambda: sinkhorn(C45, eps=0.1, entropy="plain", rho=1.0), ValueError, "plain"),
        (lambda: sinkhorn(C45, eps=0.1, init=(torch.ones(3), None)), ValueError, "`init`"),
        (lambda: sinkhorn(C45, eps=0.1, mask=(torch.ones(4), None)), TypeError, "bools"),
        (lambda: sinkhorn(C45, eps=0.1, lengths=(torch.ones(4), None)), TypeError, "`lengths`"),
        (lambda: sinkhorn(C45, eps=0.1).apply(torch.ones(4)), ValueError, "`v` of shape"),
        (lambda: sinkhorn(C45, eps=0.1).argmax("x"), ValueError, "`side`"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_raw_ops_check_what_they_are_given() -> None:
    u, v, e = (torch.ones(1, k, dtype=DOUBLE) for k in (4, 5, 1))
    rho = torch.full((2, 1), INF, dtype=DOUBLE)
    options = (None, 5, 10, "none", 1.0, 1.0)
    with pytest.raises(RuntimeError, match="`a` of shape"):
        solve_dense(C45[None], v, v, e[0], rho, options)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="float64"):
        solve_dense(C45[None], u.float(), v, e[0], rho, options)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="`omega` in"):
        solve_dense(C45[None], u, v, e[0], rho, (None, 5, 10, "none", 2.0, 1.0))  # type: ignore[arg-type]


def test_normalized_when_asked() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE)
    close(exact(C45, a=a, eps=0.1, normalize=True).plan().sum(-1), a / 10)

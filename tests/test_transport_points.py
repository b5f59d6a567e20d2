"""Transport between clouds, the divergence, the Monge gap: laws, corners, errors, rivals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from regkern.nn.transport.divergence import SamplesLoss, SinkhornDivergence
from regkern.reference.transport import dense as dense_reference
from regkern.reference.transport import points as reference
from regkern.transport.divergence import monge_gap, sinkhorn_divergence
from regkern.transport.points import COSTS, PointCost
from regkern.transport.solver import sinkhorn
from torch import Tensor

DOUBLE = torch.float64
EACH_COST = pytest.mark.parametrize("cost_fn", COSTS)


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(300 + salt)
    return torch.randn(shape, dtype=DOUBLE, generator=generator).to(dtype)


def weights(*shape: int, salt: int = 0, zeros: bool = False) -> Tensor:
    w = draw(*shape, salt=50 + salt).square() + 0.1
    if zeros:
        w[..., 1] = 0.0
    return w / w.sum(-1, keepdim=True)


def close(a: Tensor, b: Tensor, tol: float = 1e-10) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=tol, atol=tol)


SIZES = ((1, 1, 3), (2, 3, 1), (5, 7, 2), (40, 130, 3), (33, 129, 8), (65, 50, 17), (9, 300, 64))


# ---- the engine against all costs in memory ----


@EACH_COST
@pytest.mark.parametrize("size", [*SIZES, (12, 1100, 100)], ids=str)
def test_everything_matches_the_dense_definition(cost_fn: str, size: tuple[int, int, int]) -> None:
    n, m, d = size
    x, y = draw(2, n, d), draw(2, m, d, salt=1)
    a, b = weights(2, n, zeros=n > 2), weights(2, m, salt=1, zeros=m > 2)
    cost = reference.costs(x, y, cost_fn)
    eps = torch.tensor([0.3, 0.7], dtype=DOUBLE) * cost.abs().mean()
    found = sinkhorn(x=x, y=y, cost_fn=cost_fn, a=a, b=b, eps=eps, tol=None, max_iter=12)
    f, g = dense_reference.potentials(cost, a, b, eps, iterations=12)
    plan = dense_reference.plan(cost, a, b, f, g, eps)
    close(found.f, f)
    close(found.g, g)
    close(found.value, dense_reference.value(cost, a, b, f, g, eps))
    close(found.plan(), plan)
    close(found.cost, (plan * cost).sum((1, 2)))
    v, w = draw(2, m, 3, salt=2), draw(2, n, 3, salt=3)
    close(found.apply(v), plan @ v)
    close(found.apply(w, "columns"), plan.mT @ w)
    if n > 1 and m > 1 and d > 1:
        kept = a[0] > 0
        assert torch.equal(found.argmax()[0, kept], plan[0, kept].argmax(-1))
        kept = b[0] > 0
        assert torch.equal(found.argmax("columns")[0, kept], plan[0][:, kept].argmax(-2))
    engine = PointCost(x, y, cost_fn)
    close(engine.scale("mean"), cost.mean((1, 2)))
    close(engine.scale("max"), cost.abs().amax((1, 2)))


@EACH_COST
def test_float32_and_halves(cost_fn: str) -> None:
    x, y = draw(70, 20), draw(150, 20, salt=1)
    for dtype, tol in ((torch.float32, 2e-6), (torch.bfloat16, 2e-6), (torch.float16, 2e-6)):
        p, q = x.to(dtype), y.to(dtype)
        scale = float(reference.costs(x, y, cost_fn).abs().mean())
        options: dict[str, Any] = {"eps": 0.1 * scale, "cost_fn": cost_fn, "tol": None}
        ours = sinkhorn(x=p, y=q, max_iter=10, **options)
        exact = sinkhorn(x=p.double(), y=q.double(), max_iter=10, **options)
        assert ours.f.dtype == torch.float32
        close(ours.f / scale, exact.f / scale, tol)
        close(ours.value / scale, exact.value / scale, tol)


@pytest.mark.parametrize("cost_fn", ["sqeuclidean", "half_sqeuclidean", "euclidean"])
def test_an_offset_changes_nothing(cost_fn: str) -> None:
    # Multiples of 1/64, which an offset of 1000 leaves as they are.
    x, y = ((draw(n, 3, salt=n, dtype=torch.float32) * 64).round() / 64 for n in (200, 170))
    options: dict[str, Any] = {"eps": 0.05, "cost_fn": cost_fn, "tol": None, "max_iter": 20}
    here, there = (sinkhorn(x=x + s, y=y + s, **options) for s in (0.0, 1000.0))
    close(here.value, there.value, 1e-5)
    # Of the size of the costs.
    close(here.f / 6, there.f / 6, 1e-5)


def test_points_without_weight_do_not_matter() -> None:
    x, y = draw(9, 3), draw(140, 3, salt=1)
    b = weights(140)
    b[::3] = 0.0
    far = torch.where((b > 0)[:, None], y, 1e3 * y)
    one, two = (sinkhorn(x=x, y=t, b=b / b.sum(), eps=0.3, tol=None, max_iter=9) for t in (y, far))
    kept = b > 0
    close(one.f, two.f)
    close(one.g[kept], two.g[kept])
    few = sinkhorn(x=x, y=y[kept], b=b[kept] / b.sum(), eps=0.3, tol=None, max_iter=9)
    close(one.f, few.f)


def test_tiny_eps_and_duplicates_are_finite_in_float32() -> None:
    x = draw(64, 2, dtype=torch.float32).repeat(2, 1)
    found = sinkhorn(x=x, y=x.flip(0), eps=1e-4, tol=None, max_iter=30)
    assert found.f.isfinite().all()
    assert abs(float(found.value)) < 1e-3


def test_acceleration_and_stopping_work_on_points() -> None:
    x, y = draw(80, 3), draw(90, 3, salt=1)
    exact = sinkhorn(x=x, y=y, eps=0.2, tol=1e-11, max_iter=5000)
    for acceleration in ("anderson", "adaptive", 1.5):
        found = sinkhorn(x=x, y=y, eps=0.2, tol=1e-9, acceleration=acceleration)
        assert int(found.status) == 0
        assert float(found.error) < 1e-9
        close(found.value, exact.value, 1e-8)
    relative = sinkhorn(x=x, y=y, eps=0.05, eps_rel="mean", scaling=0.5, tol=1e-8)
    cost = reference.costs(x, y, "sqeuclidean")
    close(relative.value, sinkhorn(cost, eps=0.05 * float(cost.mean()), tol=1e-8).value, 1e-7)


# ---- gradients ----


@EACH_COST
@pytest.mark.parametrize("columns", [False, True])
def test_gradients_of_the_softmin(cost_fn: str, columns: bool) -> None:
    x, y = draw(2, 3, 2), draw(2, 4, 2, salt=1)
    w = weights(2, 3 if columns else 4)
    source = draw(2, 3 if columns else 4, salt=2)
    eps = torch.tensor([0.4, 0.9], dtype=DOUBLE)

    def call(x: Tensor, y: Tensor, w: Tensor, source: Tensor, eps: Tensor) -> Tensor:
        return PointCost(x, y, cost_fn).softmin(w, source, eps, columns)

    inputs = [t.requires_grad_() for t in (x, y, w, source, eps)]
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@EACH_COST
@pytest.mark.parametrize("rho", [None, 0.7])
def test_gradients_of_the_value_are_those_at_the_optimum(cost_fn: str, rho: float | None) -> None:
    x, y = draw(1, 6, 3), draw(1, 9, 3, salt=1)
    a, b = weights(1, 6), weights(1, 9, salt=1)
    inputs = [t.clone().requires_grad_() for t in (x, y, a, b)]
    eps = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    p, q, u, v = inputs
    ours = sinkhorn(
        x=p, y=q, a=u, b=v, eps=eps, rho=rho, cost_fn=cost_fn, tol=1e-13, max_iter=3000
    ).value
    theirs = reference.value(p, q, u, v, 1.0, cost_fn, rho, 400)
    close(ours, theirs)
    grads = torch.autograd.grad(ours.sum(), [*inputs, eps])
    for ours_of, theirs_of in zip(grads, torch.autograd.grad(theirs.sum(), inputs), strict=False):
        if ours_of.shape[-1] != 3 and rho is None:
            # On the tangent space of masses that add up to one.
            ours_of, theirs_of = (t - t.mean() for t in (ours_of, theirs_of))
        close(ours_of, theirs_of, 1e-7)
    step = 1e-5
    up, down = (reference.value(x, y, a, b, 1.0 + s, cost_fn, rho, 400) for s in (step, -step))
    close(grads[-1], ((up - down) / (2 * step)).sum(), 1e-6)


def test_coinciding_points_have_a_finite_gradient() -> None:
    x = draw(5, 3).requires_grad_()
    sinkhorn(x=x, y=x.detach().clone(), eps=0.1, cost_fn="euclidean").value.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_second_derivatives_are_refused() -> None:
    x, y = draw(4, 2).requires_grad_(), draw(5, 2, salt=1)
    (grad,) = torch.autograd.grad(sinkhorn(x=x, y=y, eps=0.5).value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        grad.sum().backward()


def test_implicit_gradients_of_the_potentials() -> None:
    x, y = draw(5, 2), draw(6, 2, salt=1)
    cost = reference.costs(x, y, "sqeuclidean")
    options: dict[str, Any] = {"eps": 0.8, "tol": 1e-13, "gradient": "implicit"}
    x.requires_grad_()
    given = reference.costs(x, y, "sqeuclidean")
    ours = torch.autograd.grad(sinkhorn(x=x, y=y, **options).f.square().sum(), x)[0]
    theirs = torch.autograd.grad(sinkhorn(given, **options).f.square().sum(), x)[0]
    assert cost.shape == given.shape
    close(ours, theirs, 1e-8)


# ---- the divergence and the Monge gap ----


@pytest.mark.parametrize("sizes", [(7, 7), (6, 9)], ids=["batched", "apart"])
@pytest.mark.parametrize("rho", [None, 0.6])
def test_divergence_matches_its_definition(sizes: tuple[int, int], rho: float | None) -> None:
    n, m = sizes
    x, y = draw(2, n, 3), draw(2, m, 3, salt=1)
    a, b = weights(2, n), weights(2, m, salt=1)
    if rho is not None:
        b = 1.5 * b
    p, q = x.clone().requires_grad_(), y.clone().requires_grad_()
    ours = sinkhorn_divergence(p, q, a, b, eps=4.0, rho=rho, tol=1e-13, max_iter=3000)
    theirs = reference.sinkhorn_divergence(p, q, a, b, 4.0, rho=rho)
    close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours.sum(), (p, q)),
        torch.autograd.grad(theirs.sum(), (p, q)),
        strict=True,
    ):
        close(mine, other, 1e-8)


@pytest.mark.parametrize("rho", [None, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_divergence_of_equal_clouds_is_zero(rho: float | None, dtype: torch.dtype) -> None:
    x = draw(50, 3, dtype=dtype)
    assert float(sinkhorn_divergence(x, x.clone(), eps=0.1, rho=rho)) == 0.0


def test_divergence_is_positive_symmetric_and_shrinks_with_the_distance() -> None:
    x, y = draw(40, 2), draw(40, 2, salt=1)
    near, far = (sinkhorn_divergence(x, y + s, eps=0.1, tol=1e-9) for s in (0.0, 2.0))
    assert 0.0 < float(near) < float(far)
    close(near, sinkhorn_divergence(y, x, eps=0.1, tol=1e-9), 1e-8)
    # Translations: the squared distance of the means is what a translation adds.
    moved = sinkhorn_divergence(x, x + 3.0, eps=1.0, tol=1e-9, max_iter=5000)
    close(moved, torch.tensor(18.0), 1e-6)


def test_monge_gap_and_its_bound() -> None:
    x = draw(2, 12, 3)
    sent = draw(2, 12, 3, salt=1).requires_grad_()
    gap = monge_gap(x, sent, eps=4.0, tol=1e-12, max_iter=5000)
    other = reference.monge_gap(x, sent, 4.0, iterations=1500)
    close(gap, other)
    assert bool((gap >= 4.0 * math.log(12)).all())
    close(torch.autograd.grad(gap.sum(), sent)[0], torch.autograd.grad(other.sum(), sent)[0], 1e-8)
    # The identity is optimal: with a small ε nothing is left but the bound.
    close(
        monge_gap(x, x, eps=1e-3, tol=1e-9),
        torch.full((2,), 1e-3 * math.log(12)),
        1e-6,
    )
    shifted = monge_gap(x, sent, eps=4.0, entropy="kl", tol=1e-12, max_iter=5000)
    close(gap - shifted, torch.full((2,), 2 * 4.0 * math.log(12), dtype=DOUBLE))


def test_layers() -> None:
    x, y = draw(3, 8, 2), draw(3, 8, 2, salt=1)
    values = sinkhorn_divergence(x, y, eps=0.3)
    assert torch.equal(SinkhornDivergence(0.3)(x, y), values.mean())
    assert torch.equal(SinkhornDivergence(0.3, "sum")(x, y), values.sum())
    assert torch.equal(SinkhornDivergence(0.3, "none")(x, y), values)
    assert SamplesLoss()(x, y).shape == (3,)
    f, g = SamplesLoss(potentials=True)(x[0], y[0])
    assert f.shape == (8,)
    assert g.shape == (8,)


# ---- rivals ----


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("sinkhorn", {}),
        ("sinkhorn", {"p": 1}),
        ("sinkhorn", {"reach": 0.8}),
        ("sinkhorn", {"debias": False}),
        ("energy", {}),
        ("gaussian", {}),
        ("laplacian", {}),
    ],
    ids=str,
)
def test_samples_loss_is_geomloss(loss: str, options: dict[str, Any]) -> None:
    geomloss = pytest.importorskip("geomloss")
    from regkern.swap.transport import _samples_loss

    x, y = draw(30, 2), draw(25, 2, salt=1) + 0.5
    a, b = weights(30), weights(25, salt=1)
    old = geomloss.SamplesLoss(loss, blur=0.5, scaling=0.98, backend="tensorized", **options)
    ours = _samples_loss(old)(a, x, b, y)
    # Its annealing has a lag, which is what its own `scaling` costs.
    close(ours, old(a, x, b, y), 2e-3)


def test_value_is_pots() -> None:
    ot = pytest.importorskip("ot")
    x, y = draw(20, 3), draw(30, 3, salt=1)
    a, b = weights(20), weights(30, salt=1)
    cost = reference.costs(x, y, "sqeuclidean")
    plan = ot.sinkhorn(a.numpy(), b.numpy(), cost.numpy(), 0.5, "sinkhorn_log", stopThr=1e-12)
    found = sinkhorn(x=x, y=y, a=a, b=b, eps=0.5, tol=1e-12, max_iter=5000)
    close(found.plan(), torch.from_numpy(plan), 1e-9)


# ---- errors ----


def test_errors() -> None:
    x, y = draw(4, 2), draw(5, 2, salt=1)
    with pytest.raises(ValueError, match="sinkhorn_divergence: expected `y`"):
        sinkhorn_divergence(x, draw(5, 3), eps=0.1)
    with pytest.raises(ValueError, match="sinkhorn_divergence: expected `b`"):
        sinkhorn_divergence(x, y, b=weights(4), eps=0.1)
    with pytest.raises(ValueError, match="`cost_fn` to be one of"):
        sinkhorn_divergence(x, y, eps=0.1, cost_fn="manhattan")
    with pytest.raises(TypeError, match="`x` to be a tensor"):
        sinkhorn_divergence(3.0, y, eps=0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`mapped` of shape"):
        monge_gap(x, y, eps=0.1)
    with pytest.raises(ValueError, match="`scaling` in"):
        SamplesLoss(scaling=1.0)
    with pytest.raises(ValueError, match="`cost` to be None"):
        SamplesLoss(cost="Norm2(X-Y)")
    rows = draw(1, 4, 2)
    ones = torch.ones((1, 5), dtype=DOUBLE)
    e = torch.ones((1,), dtype=DOUBLE)
    op = torch.ops.regkern.transport_points_softmin
    with pytest.raises(RuntimeError, match="`panels` of shape"):
        op(rows, rows, None, None, ones, ones, e, "product", 1.0)
    with pytest.raises(RuntimeError, match="`kernel` to be one of"):
        op(rows, draw(1, 1, 2, 128), None, None, ones, ones, e, "sum", 1.0)

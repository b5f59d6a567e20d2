"""Partial transport: optimality, the linear programme, others, gradients, corners, errors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy
import pytest
import torch
from regkern.reference.transport import partial as reference
from regkern.transport.partial import partial_transport
from scipy.optimize import linprog
from torch import Tensor

DOUBLE = torch.float64
INF = float("inf")


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(800 + salt)
    return torch.rand(shape, dtype=DOUBLE, generator=generator).to(dtype)


def weights(*shape: int, salt: int = 0, total: float = 1.0) -> Tensor:
    w = draw(*shape, salt=salt) + 0.1
    return total * w / w.sum(-1, keepdim=True)


def exact(cost: Tensor, **options: Any) -> Any:
    return partial_transport(cost, **{"tol": 1e-13, "max_iter": 20_000, **options})


@pytest.mark.parametrize("entropy", ["kl", "plain"])
def test_plan_is_optimal(entropy: str) -> None:
    """The problem is convex: what satisfies its optimality conditions is its solution."""
    cost, a, b = draw(3, 6, 9), weights(3, 6), weights(3, 9, salt=1, total=1.4)
    mass, eps = torch.tensor([0.3, 0.7, 0.95]).double(), torch.tensor([0.05, 0.2, 1.0]).double()
    found = exact(cost, a=a, b=b, mass=mass, eps=eps, entropy=entropy)
    plan = found.plan()
    torch.testing.assert_close(plan.sum((-2, -1)), mass, rtol=1e-9, atol=0.0)
    base = plan / (a[..., None] * b[:, None]) if entropy == "kl" else plan
    dual = cost + eps[:, None, None] * base.log()  # f_i + g_j + h
    for axis, weight in ((-1, a), (-2, b)):
        gaps = weight - plan.sum(axis)
        assert bool((gaps >= -1e-9).all())
        potential = dual - dual.amax(axis + 1 if axis == -2 else -2, keepdim=True)
        potential = potential.mean(axis)
        # Of separable ones: no larger than 0, and 0 where there is room left.
        assert float((potential * gaps).abs().max()) < 1e-7
    rank = dual - dual[:, :1] - dual[:, :, :1] + dual[:, :1, :1]
    assert float(rank.abs().max()) < 1e-9
    terms = torch.special.xlogy(plan, base)
    if entropy == "kl":
        terms = terms - plan + a[..., None] * b[:, None]
    objective = ((plan * cost).sum((-2, -1))) + eps * terms.sum((-2, -1))
    torch.testing.assert_close(found.value, objective, rtol=1e-8, atol=1e-10)


def test_linear_programme_as_entropy_goes() -> None:
    n, m, mass = 7, 8, 0.55
    cost, a, b = draw(n, m), weights(n), weights(m, salt=1)
    rows = numpy.kron(numpy.eye(n), numpy.ones(m))
    columns = numpy.kron(numpy.ones(n), numpy.eye(m))
    best = linprog(
        cost.numpy().ravel(),
        A_ub=numpy.vstack([rows, columns]),
        b_ub=torch.cat([a, b]).numpy(),
        A_eq=numpy.ones((1, n * m)),
        b_eq=[mass],
    )
    found = partial_transport(cost, a=a, b=b, mass=mass, eps=1e-3, tol=1e-7, max_iter=50_000)
    assert abs(float(found.cost) - best.fun) < 2e-3


def test_pot_agrees() -> None:
    ot = pytest.importorskip("ot")
    cost, a, b = draw(6, 9), weights(6), weights(9, salt=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ot.partial.entropic_partial_wasserstein(
            a.numpy(), b.numpy(), cost.numpy(), 0.1, m=0.6, numItermax=5000, stopThr=1e-14
        )
    ours = exact(cost, a=a, b=b, mass=0.6, eps=0.1, entropy="plain")
    torch.testing.assert_close(ours.plan(), torch.from_numpy(theirs), rtol=1e-6, atol=1e-8)


def test_all_of_the_mass_is_sinkhorn() -> None:
    from regkern.transport.solver import sinkhorn

    cost, a, b = draw(6, 9), weights(6), weights(9, salt=1)
    ours = exact(cost, a=a, b=b, mass=1.0, eps=0.2)
    theirs = sinkhorn(cost, a=a, b=b, eps=0.2, tol=1e-13)
    torch.testing.assert_close(ours.plan(), theirs.plan(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.value, theirs.value, rtol=1e-8, atol=1e-9)


def test_points_and_their_costs_agree() -> None:
    x, y = draw(2, 6, 3), draw(2, 9, 3, salt=1)
    of_points = partial_transport(x=x, y=y, mass=0.5, eps=0.1, tol=None, max_iter=30)
    of_costs = partial_transport(
        torch.cdist(x, y).square(), mass=0.5, eps=0.1, tol=None, max_iter=30
    )
    for name in ("f", "g", "value", "error"):
        torch.testing.assert_close(
            getattr(of_points, name), getattr(of_costs, name), rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("entropy", ["kl", "plain"])
def test_gradients(entropy: str) -> None:
    def value(cost: Tensor, a: Tensor, b: Tensor, mass: Tensor, eps: Tensor) -> Tensor:
        found = exact(cost, a=a, b=b, mass=mass, eps=eps, entropy=entropy)
        result: Tensor = found.value
        return result

    mass, eps = torch.tensor([0.3, 0.7]).double(), torch.tensor([0.1, 0.4]).double()
    tensors = [draw(2, 4, 5), weights(2, 4), weights(2, 5, salt=1), mass, eps]
    for t in tensors:
        t.requires_grad_()
    assert torch.autograd.gradcheck(value, tensors, atol=1e-5, rtol=1e-3)
    (dc,) = torch.autograd.grad(value(*tensors).sum(), tensors[0])
    plan = exact(*tensors[:1], a=tensors[1], b=tensors[2], mass=mass, eps=eps, entropy=entropy)
    torch.testing.assert_close(dc, plan.plan(), rtol=1e-6, atol=1e-9)
    x = draw(4, 3).requires_grad_()
    y = draw(5, 3, salt=1)
    cloud = partial_transport(x=x, y=y, mass=0.5, eps=0.2, entropy=entropy, tol=1e-13)
    (dx,) = torch.autograd.grad(cloud.value, x, create_graph=True)
    difference = 2.0 * (x[:, None] - y)
    torch.testing.assert_close(dx, (cloud.plan()[..., None] * difference).sum(1))
    with pytest.raises(RuntimeError, match="no second derivative"):
        dx.sum().backward()


def implicitly(entropy: str, points: bool = False) -> Any:
    """Potentials, plan and value of six problems' arguments."""

    def solve(
        cost: Tensor, second: Tensor | None, a: Tensor, b: Tensor, mass: Tensor, eps: Tensor
    ) -> Any:
        given: dict[str, Any] = {"x": cost, "y": second} if points else {"cost": cost}
        options: dict[str, Any] = {"gradient": "implicit", "entropy": entropy, "tol": 1e-14}
        return partial_transport(**given, a=a, b=b, mass=mass, eps=eps, max_iter=20_000, **options)

    return solve


def outputs(found: Any) -> tuple[Tensor, ...]:
    v = draw(found.g.shape[-1], 2, salt=9).expand(*found.g.shape, 2)
    return found.f, found.g, found.value, found.plan(), found.apply(v)


def arguments(n: int = 5, m: int = 6) -> list[Tensor]:
    """Of problems in which some rows and columns are full, some are not, and of one whose rows are
    all but full."""
    a, b = weights(3, n), weights(3, m, salt=1, total=1.3)
    mass = torch.tensor([0.6, 0.85, 0.99], dtype=DOUBLE)
    eps = torch.tensor([0.05, 0.1, 0.3], dtype=DOUBLE)
    return [t.requires_grad_() for t in (draw(3, n, m, salt=4), a, b, mass, eps)]


@pytest.mark.parametrize("entropy", ["kl", "plain"])
def test_implicit_gradients(entropy: str) -> None:
    solve = implicitly(entropy)
    cost, *rest = arguments()
    found = solve(cost, None, *rest)
    below = [(t - t.amax(-1, keepdim=True)).detach() < -1e-6 for t in (found.f, found.g)]
    if entropy == "kl":
        assert all(bool(t.any()) and not bool(t.all()) for t in below)
    assert torch.autograd.gradcheck(
        lambda c, *t: outputs(solve(c, None, *t)), (cost, *rest), fast_mode=True, atol=1e-5
    )
    assert torch.autograd.gradgradcheck(
        lambda c, *t: solve(c, None, *t).value, (cost, *rest), fast_mode=True, atol=1e-4
    )


def test_implicit_gradients_of_points() -> None:
    x, y = draw(3, 5, 2).requires_grad_(), draw(3, 6, 2, salt=1).requires_grad_()
    _, a, b, mass, eps = arguments()
    tensors, w = (x, y, a, b, mass, eps), draw(3, 5, 2, salt=7)
    v = draw(3, 6, 2, salt=8)
    of_points, of_costs = implicitly("kl", True), implicitly("kl")

    def total(found: Any) -> Tensor:
        sums: Tensor = (found.apply(v) * w).sum() + (found.f * w[..., 0]).sum() + found.value.sum()
        return sums

    ours = torch.autograd.grad(total(of_points(*tensors)), tensors)
    cost = (x[:, :, None] - y[:, None]).square().sum(-1)
    theirs = torch.autograd.grad(total(of_costs(cost, None, *tensors[2:])), tensors)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    found = of_points(*tensors)
    for output in (found.f.sum(), found.value.sum()):
        (dx,) = torch.autograd.grad(output, x, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            dx.square().sum().backward()


def test_implicit_gradients_are_the_limit_of_the_unrolled() -> None:
    cost = clouds(7, 9).expand(2, 7, 9).clone().requires_grad_()
    w = draw(2, 7, 9, salt=3)
    f, g = reference.partial_transport(cost, 0.7, 0.1, 400)
    theirs = ((f[..., None] + g[:, None] - cost) / 0.1).exp() / 63.0
    ours = exact(cost, mass=0.7, eps=0.1, gradient="implicit").plan()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad((ours * w).sum(), cost)[0],
        torch.autograd.grad((theirs * w).sum(), cost)[0],
        rtol=1e-6,
        atol=1e-9,
    )


def test_implicit_gradients_where_all_is_moved() -> None:
    """The plan is that of balanced transport, and so are its derivatives."""
    from regkern.transport.solver import sinkhorn

    cost, a, b = draw(5, 6).requires_grad_(), weights(5), weights(6, salt=1)
    w = draw(5, 6, salt=2)
    ours = exact(cost, a=a, b=b, mass=1.0, eps=0.2, gradient="implicit").plan()
    theirs = sinkhorn(cost, a=a, b=b, eps=0.2, tol=1e-13, gradient="implicit").plan()
    torch.testing.assert_close(
        torch.autograd.grad((ours * w).sum(), cost)[0],
        torch.autograd.grad((theirs * w).sum(), cost)[0],
        rtol=1e-5,
        atol=1e-8,
    )


def test_implicit_gradients_of_what_takes_no_part() -> None:
    cost = clouds(6, 7)
    cost[2], cost[:, 3] = INF, INF
    a = weights(6)
    a[1] = 0.0
    a.requires_grad_()
    cost.requires_grad_()
    w = draw(6, 7, salt=2)
    here, there = torch.tensor([0, 3, 4, 5]), torch.tensor([0, 1, 2, 4, 5, 6])
    options: dict[str, Any] = {"mass": 0.5, "eps": 0.1, "gradient": "implicit"}
    b = weights(7, salt=1)
    found = exact(cost, a=a, b=b, **options)
    dc, da = torch.autograd.grad((found.plan() * w).sum(), (cost, a))
    alone = exact(cost[here][:, there], a=a[here], b=b[there], **options)
    ec, ea = torch.autograd.grad((alone.plan() * w[here][:, there]).sum(), (cost, a))
    torch.testing.assert_close(dc, ec, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(da, ea, rtol=1e-6, atol=1e-9)
    assert not bool(da[1])
    # In single precision, of halves, and of no problems.
    for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        low = cost.detach().to(dtype).requires_grad_()
        plan = partial_transport(low, a=a, b=b, tol=1e-6, **options).plan()
        (dl,) = torch.autograd.grad((plan * w.to(dtype)).sum(), low)
        assert dl.dtype == dtype
        torch.testing.assert_close(dl.double(), dc, rtol=near, atol=near * float(dc.abs().max()))
    none = draw(0, 3, 4).requires_grad_()
    partial_transport(none, **options).plan().sum().backward()
    assert none.grad is not None
    assert none.grad.shape == (0, 3, 4)


def test_corners() -> None:
    cost = draw(4, 5)
    a = weights(4)
    a[1] = 0.0
    found = exact(cost, a=a, mass=0.4, eps=0.1)
    assert float(found.plan()[1].abs().max()) == 0.0
    forbidden = cost.clone()
    forbidden[2], forbidden[:, 3] = INF, INF
    found = exact(forbidden, mass=0.4, eps=0.1)
    assert int(found.status) == 0
    assert float(found.plan()[2].sum() + found.plan()[:, 3].sum()) == 0.0
    assert abs(float(found.plan().sum()) - 0.4) < 1e-9
    # Two of four rows have half of the mass, no more.
    forbidden[1] = INF
    assert int(partial_transport(forbidden, mass=0.6, eps=0.1, max_iter=50).status) == 1
    forbidden[0, 0] = torch.nan
    broken = partial_transport(forbidden, mass=0.3, eps=0.1)
    assert int(broken.status) == 2
    assert bool(broken.value.isnan())
    assert partial_transport(draw(0, 3, 4), mass=0.5).f.shape == (0, 3)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        low = cost.to(dtype).mT
        ours = partial_transport(low, mass=0.5, eps=0.2, tol=None, max_iter=20)
        wide = partial_transport(low.double(), mass=0.5, eps=0.2, tol=None, max_iter=20)
        assert ours.value.dtype == torch.float32
        torch.testing.assert_close(ours.f.double(), wide.f, rtol=1e-5, atol=1e-5)


def test_problems_stop_by_themselves() -> None:
    cost = draw(2, 20, 30, dtype=torch.float32)
    eps = torch.tensor([1.0, 0.005], dtype=torch.float32)
    found = partial_transport(cost, mass=0.5, eps=eps, tol=1e-4, max_iter=5000)
    assert int(found.iterations[0]) < int(found.iterations[1])
    alone = partial_transport(cost[0], mass=0.5, eps=1.0, tol=1e-4, max_iter=5000)
    assert torch.equal(alone.f, found.f[0])


def clouds(n: int = 40, m: int = 30, dtype: torch.dtype = DOUBLE) -> Tensor:
    """Costs between points, some of which all of the mass of others is sent to."""
    return torch.cdist(draw(n, 2), draw(m, 2, salt=1) + 0.3).square().to(dtype)


def test_a_problem_without_full_points_takes_one_iteration() -> None:
    found = partial_transport(draw(20, 30), mass=0.1, eps=0.5)
    assert int(found.status) == 0
    assert int(found.iterations) == 1


@pytest.mark.parametrize("entropy", ["kl", "plain"])
def test_warm_start(entropy: str) -> None:
    cost, a, b = clouds(), weights(40), weights(30, salt=1)
    options: dict[str, Any] = {"a": a, "b": b, "mass": 0.9, "eps": 0.05, "entropy": entropy}
    cold = exact(cost, tol=1e-10, **options)
    assert int(cold.iterations) > 20
    again = exact(cost, tol=1e-10, init=cold, **options)
    assert int(again.iterations) == 1
    torch.testing.assert_close(again.plan(), cold.plan(), rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(again.value, cold.value)
    # A constant moves from g to h, and f is not looked at.
    moved = exact(cost, tol=1e-10, init=(None, cold.g + 3.0), **options)
    assert int(moved.iterations) == 1
    torch.testing.assert_close(moved.g, cold.g, rtol=1e-7, atol=1e-9)
    # A near problem is near its solution, and any start comes to the same one.
    near = cost * (1.0 + 1e-4 * draw(40, 30, salt=2))
    first, warm = exact(near, tol=1e-6, **options), exact(near, tol=1e-6, init=cold, **options)
    assert int(warm.iterations) < int(first.iterations)
    far = exact(cost, init=(draw(40), 5.0 * draw(30, salt=3)), **options)
    torch.testing.assert_close(far.plan(), cold.plan(), rtol=1e-5, atol=1e-9)


def test_warm_start_of_batches_points_and_single_precision() -> None:
    x, y = draw(2, 12, 3), draw(2, 9, 3, salt=1)
    cold = partial_transport(x=x, y=y, mass=0.8, eps=0.05, tol=1e-9)
    warm = partial_transport(x=x, y=y, mass=0.8, eps=0.05, tol=1e-9, init=cold)
    assert warm.iterations.tolist() == [1, 1]
    single = torch.cdist(x, y).square().float()
    low = partial_transport(single, mass=0.8, eps=0.05, tol=1e-4, init=(None, cold.g.float()))
    assert low.iterations.tolist() == [1, 1]
    start = cold.g.clone()
    start[1, 2] = torch.nan
    broken = partial_transport(x=x, y=y, mass=0.8, eps=0.05, init=(None, start))
    assert broken.status.tolist() == [0, 2]
    start[1, 2] = INF
    whole = partial_transport(x=x, y=y, mass=0.8, eps=0.05, tol=1e-9, init=(None, start))
    torch.testing.assert_close(whole.plan(), cold.plan(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("entropy", ["kl", "plain"])
def test_what_is_masked_takes_no_part(entropy: str) -> None:
    cost = clouds(8, 9).expand(2, 8, 9).clone()
    cost[0, 5:], cost[1, :, 2] = 1e3, -1e3
    options: dict[str, Any] = {"mass": 0.8, "eps": 0.1, "entropy": entropy}
    rows = torch.tensor([5, 8])
    columns = torch.ones(2, 9, dtype=torch.bool)
    columns[1, 2] = False
    found = exact(cost, lengths=(rows, None), mask=(None, columns), **options)
    one, other = exact(cost[0, :5], **options), exact(cost[1, :, columns[1]], **options)
    plan = found.plan()
    torch.testing.assert_close(plan[0, :5], one.plan())
    torch.testing.assert_close(plan[1][:, columns[1]], other.plan())
    torch.testing.assert_close(plan.sum((-2, -1)), torch.full((2,), 0.8, dtype=DOUBLE))
    torch.testing.assert_close(found.value, torch.stack([one.value, other.value]))
    # Both at once, of given weights; what takes no part has no gradient.
    a = weights(8, total=1.5).requires_grad_()
    mask = torch.arange(8) != 1
    cut = exact(cost[1], a=a, mask=(mask, columns[1]), lengths=(torch.tensor(7), None), **options)
    kept = mask & (torch.arange(8) < 7)
    alone = exact(cost[1][kept][:, columns[1]], a=a[kept], **options)
    torch.testing.assert_close(cut.value, alone.value)
    (da,) = torch.autograd.grad(cut.value, a)
    assert da[~kept].tolist() == [0.0, 0.0]
    torch.testing.assert_close(da, torch.autograd.grad(alone.value, a)[0])


def test_errors() -> None:
    cost = draw(4, 5)
    for call, message in (
        (lambda: partial_transport(cost, mass=1.5), "`mass` of at most 1.0"),
        (lambda: partial_transport(cost, mass=0.0), "`mass` to be positive"),
        (lambda: partial_transport(cost, mass=0.5, eps=-1.0), "`eps`"),
        (lambda: partial_transport(cost, mass=torch.ones(3)), "`mass` of shape"),
        (lambda: partial_transport(mass=0.5), "`cost`, or `x` and `y`"),
        (lambda: partial_transport(cost, mass=0.5, gradient="unroll"), "`gradient`"),
        (lambda: partial_transport(cost[0], mass=0.5), "`cost` of shape"),
        (lambda: partial_transport(cost, mass=0.5, tol=0.0), "`tol`"),
        (lambda: partial_transport(cost, a=cost[0], mass=0.5), "`a` of shape"),
        (lambda: partial_transport(cost, mass=0.5, init=(None, cost[0, :4])), "`init` with g"),
        (lambda: partial_transport(cost, mass=0.5, mask=(cost[0] > 0, None)), "`mask` of shape"),
        (
            lambda: partial_transport(cost, mass=0.5, lengths=(torch.ones(2).int(), None)),
            "`lengths` of shape",
        ),
        (
            lambda: partial_transport(cost, mass=0.6, lengths=(torch.tensor(0), None)),
            "`mass` of at most 0.0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for call, message in (
        (lambda: partial_transport(cost, mass=0.5, init=(cost[:, 0], None)), "init's g"),
        (lambda: partial_transport(cost, mass=0.5, mask=(cost[:, 0], None)), "`mask` of bools"),
        (lambda: partial_transport(cost, mass=0.5, lengths=cost[0]), "`lengths` to be a pair"),
        (lambda: partial_transport(cost, mass=0.5, lengths=(None, cost[0, 0])), "integer"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    one = torch.ones(1, dtype=DOUBLE)
    with pytest.raises(RuntimeError, match="transport_dense_partial"):
        torch.ops.regkern.transport_dense_partial(
            cost[None], cost[None, 0], cost[None, 0], one, one, one, one, None, None, 5, 1
        )

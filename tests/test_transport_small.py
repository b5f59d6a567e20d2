"""Sinkhorn's iteration on many small costs, against the engine of large ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from regkern.reference.transport import dense as reference
from regkern.transport.dense import DenseCost, Potentials, Settings, solve_dense
from regkern.transport.small import SmallSolution, is_small, solve_small, value_slopes
from regkern.transport.solver import sinkhorn
from torch import Tensor

DOUBLE = torch.float64
INF = math.inf


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(700 + salt)
    return torch.rand(shape, dtype=DOUBLE, generator=generator).to(dtype)


def weights(*shape: int, salt: int = 0) -> Tensor:
    w = draw(*shape, salt=salt) + 0.1
    return w / w.sum(-1, keepdim=True)


def settings(**options: Any) -> Settings:
    plain = Settings(None, 40, 10, "none", 1.0, 1.0)
    return plain._replace(**options)


def potentials(found: SmallSolution) -> Potentials:
    return Potentials(found.f, found.g, found.error, found.iterations, found.status)


def both(cost: Tensor, *args: Any, **options: Any) -> tuple[Potentials, Potentials]:
    small = potentials(solve_small(cost, *args, **options))
    return small, solve_dense(cost, *args, **options)


def agree(small: Potentials, dense: Potentials, tolerance: float) -> None:
    for name in ("f", "g", "error"):
        x, y = getattr(small, name), getattr(dense, name)
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
    assert torch.equal(small.iterations, dense.iterations)
    assert torch.equal(small.status, dense.status)


def close(x: Tensor, y: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


# Problems in lanes, with a register that is not full, and by rows, with sums that are not full.
SHAPES = pytest.mark.parametrize("shape", [(21, 4, 4), (5, 3, 16), (2, 70, 37)], ids=str)
REACHES = pytest.mark.parametrize(
    "rho", [(INF, INF), (0.5, 0.5), (INF, 0.7), (0.4, INF), "each"], ids=str
)


def problem(
    shape: tuple[int, int, int], rho: Any = (INF, INF), dtype: torch.dtype = DOUBLE
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, n, m = shape
    cost, a, b = draw(*shape, dtype=dtype), weights(batch, n), weights(batch, m, salt=1)
    eps = 0.02 + draw(batch, salt=2)
    if rho == "each":
        reach = torch.where(draw(2, batch, salt=3) < 0.5, INF, draw(2, batch, salt=4) + 0.1)
    else:
        reach = torch.tensor(rho, dtype=DOUBLE)[:, None].expand(2, batch).contiguous()
    return cost, a, b, eps, reach


@SHAPES
@REACHES
@pytest.mark.parametrize("omega", [1.0, 1.4])
def test_engines_agree(shape: tuple[int, int, int], rho: Any, omega: float) -> None:
    acceleration = "none" if omega == 1.0 else "relaxed"
    for dtype, tolerance in ((DOUBLE, 1e-11), (torch.float32, 3e-6)):
        args = problem(shape, rho, dtype)
        for tol, max_iter in ((None, 13), (1e-3, 400)):
            how = settings(tol=tol, max_iter=max_iter, acceleration=acceleration, omega=omega)
            agree(*both(*args, how), tolerance)


@SHAPES
def test_other_options_agree(shape: tuple[int, int, int]) -> None:
    cost, a, b, eps, rho = problem(shape)
    f, g = draw(*shape[:2], salt=5), draw(shape[0], shape[2], salt=6)
    for start in ({"f": f}, {"g": g}, {"f": f, "g": g}):
        for how in (
            settings(max_iter=0),
            settings(max_iter=3),
            settings(max_iter=0, acceleration="relaxed", omega=1.3),
            settings(tol=1e-5, max_iter=90, check_every=7, acceleration="relaxed"),
        ):
            agree(*both(cost, a, b, eps, rho, how, **start), 1e-11)


@SHAPES
@REACHES
def test_what_takes_no_part(shape: tuple[int, int, int], rho: Any) -> None:
    m = shape[-1]
    cost, a, b, eps, reach = problem(shape, rho)
    a[:, 1], b[:, 2] = 0.0, 0.0
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    cost[:, 0, : m // 2] = INF
    # Rows and columns without partners: all of it, and all of it that has weight.
    cost[-1, 2], cost[-2, :, 1] = INF, INF
    cost[0, 0, [j for j in range(m) if j != 2]] = INF
    a[-1, 1] = 0.0
    for tol in (None, 1e-6):
        small, dense = both(cost, a, b, eps, reach, settings(tol=tol, max_iter=60))
        agree(small, dense, 1e-11)
        if rho == (INF, INF):
            assert small.status[0] == small.status[-1] == small.status[-2] == 2


def test_nan_stays_in_its_problem() -> None:
    for shape in ((9, 4, 5), (3, 20, 18)):
        args = problem(shape)
        args[0][1, 2, 3] = math.nan
        for tol in (None, 1e-9):
            small, dense = both(*args, settings(tol=tol))
            assert torch.equal(small.status, dense.status)
            assert small.status[1] == 2
            assert bool(small.f[0].isfinite().all())
            assert bool(small.f[1].isnan().all())
            assert bool(small.g[1].isnan().all())


@pytest.mark.parametrize("shape", [(9, 5, 4), (1, 20, 17)], ids=str)
def test_any_eps(shape: tuple[int, int, int]) -> None:
    cost, a, b, _, rho = problem(shape)
    a[:, 0] = 1e-30
    cost = 10 * cost - 5
    for dtype, tolerance in ((DOUBLE, 1e-10), (torch.float32, 1e-5)):
        for size in (1e-4, 1e-2, 1e4):
            eps = torch.full((shape[0],), size, dtype=DOUBLE)
            for reach, pair in ((rho, (None, None)), (torch.full_like(rho, 0.3), (0.3, 0.3))):
                args = (cost.to(dtype).double(), a, b, eps, reach, settings(max_iter=15))
                narrow = solve_small(cost.to(dtype), *args[1:])
                f, g = reference.potentials(*args[:4], pair, 15)
                close(narrow.f, f, tolerance + 3e-7 * size * (dtype != DOUBLE))
                close(narrow.g, g, tolerance + 3e-7 * size * (dtype != DOUBLE))
                assert bool(narrow.f.isfinite().all())


def test_problems_do_not_see_each_other() -> None:
    for shape in ((19, 4, 4), (19, 7, 9), (3, 20, 33)):
        cost, a, b, eps, rho = problem(shape, "each", torch.float32)
        eps[::3] *= 0.02
        how = settings(tol=1e-4, max_iter=300, check_every=3)
        found = solve_small(cost, a, b, eps, rho, how)
        assert len(set(found.iterations.tolist())) > 1
        for p in (0, shape[0] - 1):
            one = slice(p, p + 1)
            alone = solve_small(cost[one], a[one], b[one], eps[one], rho[:, one].contiguous(), how)
            for x, y in zip(alone, found, strict=True):
                assert torch.equal(x[0], y[p])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_read_as_they_are(dtype: torch.dtype) -> None:
    for shape in ((9, 4, 4), (1, 17, 20)):
        args = problem(shape, dtype=dtype)
        narrow = solve_small(*args, settings())
        same = solve_small(args[0].float(), *args[1:], settings())
        for x, y in zip(narrow, same, strict=True):
            assert torch.equal(x, y)


def test_who_solves_what() -> None:
    cost = torch.empty(2, 128, 128)
    assert is_small(cost, settings(), None)
    assert is_small(cost, settings(acceleration="relaxed", omega=1.3), None)
    assert not is_small(torch.empty(2, 128, 129), settings(), None)
    assert not is_small(cost, settings(acceleration="anderson"), None)
    assert not is_small(cost, settings(), torch.ones(2))
    args = problem((3, 6, 6))
    found = DenseCost(args[0]).solve(*args[1:], settings(), None, None, None)
    assert torch.equal(found.f, solve_small(*args, settings())[0])


@pytest.mark.parametrize("gradient", ["envelope", "implicit", "unroll"])
def test_gradients(gradient: str) -> None:
    cost, a, b = draw(3, 4, 5).requires_grad_(), weights(3, 4), weights(3, 5, salt=1)
    found = sinkhorn(cost, a=a, b=b, eps=0.3, tol=None, max_iter=300, gradient=gradient)
    (slope,) = torch.autograd.grad(found.value.sum(), cost)
    close(slope, found.plan().detach())


@pytest.mark.parametrize("shape", [(9, 8, 8), (9, 4, 4), (5, 3, 7), (2, 20, 17)], ids=str)
@pytest.mark.parametrize("rho", [(INF, INF), (0.5, 0.7), (INF, 0.4)], ids=str)
def test_value_and_its_gradients_are_those_of_large_costs(
    shape: tuple[int, int, int], rho: tuple[float, float]
) -> None:
    cost, a, b, eps, _ = problem(shape)
    a[0, 1], b[1, 2] = 0.0, 0.0
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    cost[0, 0, 0] = INF
    eps = eps + 0.1
    reach = [None if r == INF else torch.full((shape[0],), r, dtype=DOUBLE) for r in rho]
    inputs = [t.requires_grad_() for t in (cost, a, b, eps, *reach) if t is not None]
    grad = draw(shape[0], salt=9)

    def run(storage: str | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        how: dict[str, Any] = {"tol": None, "max_iter": 200, "storage": storage}
        value = sinkhorn(cost, a=a, b=b, eps=eps, rho=reach, **how).value
        return value.detach(), torch.autograd.grad(value, inputs, grad)

    (value, slopes), (wanted, others) = run(None), run("kernel")
    close(value, wanted, 1e-12)
    for ours, theirs in zip(slopes, others, strict=True):
        close(ours, theirs, 1e-8)


def test_spans_are_done_over() -> None:
    # Costs that leave the range in some of the iterations, and problems that stop in between.
    for n in (4, 6, 8):
        cost, a, b, eps, rho = problem((37, n, n), dtype=torch.float32)
        cost, eps = 20 * cost, eps * (1 + draw(37, salt=8) * 8)
        for how in (settings(max_iter=25), settings(tol=1e-2, max_iter=60, check_every=7)):
            agree(*both(cost, a, b, eps, rho, how), 3e-5)


@pytest.mark.parametrize("shape", [(21, 4, 4), (9, 8, 8), (5, 3, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_plain_problems_have_the_bits_of_others(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """Those that begin at zero by their potentials go the longer way."""
    batch, n, m = shape
    cost, eps = draw(*shape, salt=40, dtype=dtype), draw(batch, salt=41) + 0.01
    if batch > 16:  # one vector of problems, or two, of which some are no plain ones
        cost[1, 0, 1], cost[2, 0] = INF, INF
        cost[3, 1, 1] = math.nan
    zeros = torch.zeros(batch, m, dtype=DOUBLE)
    for a, b in ((None, None), (weights(batch, n, salt=42), weights(batch, m, salt=43))):
        plain = solve_small(cost, a, b, eps, None, settings())
        begun = solve_small(cost, a, b, eps, None, settings(), None, zeros)
        for name, x, y in zip(SmallSolution._fields, plain, begun, strict=True):
            assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), name


def test_slopes_have_the_bits_of_the_plan() -> None:
    cost, a, _, eps, _ = problem((19, 5, 7), dtype=torch.float32)
    a[:, 0], cost[2, 1, 1] = 0.0, INF
    found = sinkhorn(cost, a=a / a.sum(-1, keepdim=True), eps=eps, tol=1e-5)
    slope, rows, columns, _ = value_slopes(cost, *found._problem, None, True)
    assert torch.equal(slope, found.plan())
    assert torch.equal(value_slopes(cost, *found._problem, None, False)[0], slope)
    close(rows, found.plan().double().sum(-1), 1e-12)
    close(columns, found.plan().double().sum(-2), 1e-12)


def test_second_derivative_is_refused() -> None:
    cost = draw(3, 4, 4).requires_grad_()
    value = sinkhorn(cost, eps=0.5).value.sum()
    (slope,) = torch.autograd.grad(value, cost, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(slope.square().sum(), cost)


# ---- the adaptive over-relaxation of the engine of large costs ----


def test_adaptive_takes_half_of_the_iterations() -> None:
    for n, d, eps in ((90, 3, 0.01), (70, 2, 0.02), (60, 8, 0.01)):
        cost = torch.cdist(draw(n, d, salt=n), draw(n + 3, d, salt=n + 1)).square()
        how: dict[str, Any] = {"eps": eps, "eps_rel": "mean", "tol": 1e-6, "max_iter": 4000}
        plain = sinkhorn(cost, **how)
        fast = sinkhorn(cost, acceleration="adaptive", **how)
        assert plain.status == fast.status == 0
        assert 2 * int(fast.iterations) <= int(plain.iterations)
        close(fast.value, plain.value, 1e-6)


def test_adaptive_never_diverges() -> None:
    # Errors that jump, soft sides and forbidden pairs.
    cost, a, b = draw(6, 12, 10), weights(6, 12), weights(6, 10, salt=1)
    cost[1:, :5, 6:] = INF
    cost[2] *= 30
    for rho in (None, 0.2, (None, 0.05)):
        how: dict[str, Any] = {"a": a, "b": b, "eps": 0.03, "rho": rho, "tol": 1e-8}
        plain = sinkhorn(cost, max_iter=30_000, check_every=50, **how)
        fast = sinkhorn(cost, acceleration="adaptive", max_iter=30_000, check_every=50, **how)
        assert torch.equal(plain.status, fast.status)
        assert bool((fast.iterations <= plain.iterations + 100).all())


def test_errors() -> None:
    args = problem((2, 4, 5))
    with pytest.raises(RuntimeError, match="1 to 128 points"):
        solve_small(torch.zeros(2, 4, 129), *args[1:], settings())
    with pytest.raises(RuntimeError, match="`acceleration`"):
        solve_small(*args, settings(acceleration="anderson"))
    with pytest.raises(RuntimeError, match="`a` of shape"):
        solve_small(args[0], args[2], *args[2:], settings())
    with pytest.raises(RuntimeError, match="1 to 16 points"):
        torch.ops.regkern.transport_small_slopes(
            torch.zeros(2, 4, 17), *args[1:3], args[1], args[2], args[3], None, False
        )


def test_compiles_with_its_gradient() -> None:
    def slope(cost: Tensor) -> Tensor:
        return sinkhorn(cost, eps=0.4, tol=None, max_iter=20).value.sum()

    cost, same = (draw(5, 4, 4).requires_grad_() for _ in range(2))
    run = torch.compile(slope, fullgraph=True, backend="aot_eager")
    (ours,) = torch.autograd.grad(run(cost), cost)
    (wanted,) = torch.autograd.grad(slope(same), same)
    assert torch.equal(ours, wanted)

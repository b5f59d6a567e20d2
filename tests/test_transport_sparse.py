"""Sparse plans, exact transport on the line and assignments: laws, corners, errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from recording import Recorder, replay
from regkern.reference.transport import exact as exact_reference
from regkern.reference.transport import sparse as reference
from regkern.transport.exact import assignment, transport_1d, wasserstein_1d
from regkern.transport.sparse import sparse_transport
from torch import Tensor

DOUBLE = torch.float64
INF = float("inf")
METHODS = pytest.mark.parametrize("method", ["semi_dual", "dual"])
ENTRIES = pytest.mark.parametrize("k", [None, 4])
LISTS = pytest.mark.parametrize("k", [None, 4, 20])  # none, sorted, a heap


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(600 + salt)
    return torch.rand(shape, dtype=DOUBLE, generator=generator).to(dtype)


def weights(*shape: int, salt: int = 0) -> Tensor:
    w = draw(*shape, salt=50 + salt) + 0.2
    return w / w.sum(-1, keepdim=True)


def close(a: Tensor, b: Tensor, atol: float = 1e-9, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=atol)


def exact_value(cost: Tensor, a: Tensor, b: Tensor) -> float:
    """The linear program's optimum."""
    n, m = cost.shape
    rows = torch.kron(torch.eye(n, dtype=DOUBLE), torch.ones(1, m, dtype=DOUBLE))
    columns = torch.kron(torch.ones(1, n, dtype=DOUBLE), torch.eye(m, dtype=DOUBLE))
    result = pytest.importorskip("scipy.optimize").linprog(
        cost.numpy().ravel(),
        A_eq=torch.cat([rows, columns]).numpy(),
        b_eq=torch.cat([a, b]).numpy(),
    )
    return float(result.fun)


# ---- sparse plans ----


@METHODS
@ENTRIES
def test_plan_is_the_quadratic_one_where_k_leaves_room(method: str, k: int | None) -> None:
    cost, a, b = draw(9, 13), weights(9), weights(13, salt=1)
    expected = reference.quadratic_transport(cost, a, b, 2.0)
    assert int((expected > 0).sum(0).max()) <= 4
    result = sparse_transport(cost, a, b, 2.0, k, method, tol=1e-10)
    close(result.plan(), expected, 1e-8)
    close(result.value, reference.objective(expected, cost, 2.0))
    assert result.status == 0
    assert result.violation <= 1e-10
    close(a @ result.f, b @ result.g)


@METHODS
def test_many_entries_a_column(method: str) -> None:
    """Plans that are not sparse at all: γ is large."""
    cost, a, b = draw(40, 21), weights(40), weights(21, salt=1)
    expected = reference.quadratic_transport(cost, a, b, 300.0)
    assert (expected > 0).double().mean() > 0.5
    result = sparse_transport(cost, a, b, 300.0, None, method, tol=1e-11, max_iter=400)
    close(result.plan(), expected, 1e-9)


def test_potentials_of_a_k_that_binds() -> None:
    """Value and plan are those of the semi-dual at the potentials, and columns are exact."""
    cost, a, b = draw(12, 15), weights(12), weights(15, salt=1)
    result = sparse_transport(cost, a, b, 40.0, 2, max_iter=300)
    value, plan = reference.semi_dual(result.f, cost, a, b, 40.0, 2)
    close(result.value, value)
    close(result.plan(), plan)
    close(plan.sum(0), b)
    close(result.violation, (plan.sum(1) - a).abs().sum())
    assert int((plan > 0).sum(0).max()) <= 2
    assert result.status == 3
    # Weak duality: k may only raise the optimum, and the dual stays below it.
    free = sparse_transport(cost, a, b, 40.0, tol=1e-9).value
    assert result.value > free - 1e-7


def test_semi_dual_is_maximal() -> None:
    cost, a, b = draw(8, 10, salt=3), weights(8), weights(10, salt=1)
    result = sparse_transport(cost, a, b, 20.0, 2, tol=0.0, max_iter=500)
    for i in range(20):
        moved = result.f + 0.02 * (draw(8, salt=20 + i) - 0.5)
        assert reference.semi_dual(moved, cost, a, b, 20.0, 2)[0] <= result.value + 1e-5


def test_long_lists_are_the_quadratic_plan_where_they_have_room() -> None:
    cost, a, b = draw(70, 35), weights(70), weights(35, salt=1)
    cost[3, :20], a[5], b[7] = INF, 0.0, 0.0
    a, b = a / a.sum(), b / b.sum()
    expected = reference.quadratic_transport(cost, a, b, 20.0)
    assert 4 < int((expected > 0).sum(0).max()) <= 17
    for method, k in itertools.product(("semi_dual", "dual"), (17, 32, 64, 70, 90)):
        result = sparse_transport(cost, a, b, 20.0, k, method, tol=1e-10)
        close(result.plan(), expected, 1e-8)
        close(result.value, reference.objective(expected, cost, 20.0))
        assert result.status == 0
        assert result.indices.shape == (35, k)
        single = sparse_transport(cost.float(), a, b, 20.0, k, method, tol=1e-10)
        close(single.plan(), expected, 1e-5)


@pytest.mark.parametrize("k", [17, 32, 64])
@pytest.mark.parametrize("ties", [False, True])
def test_long_lists_that_bind(k: int, ties: bool) -> None:
    """Value and plan are those of the semi-dual at the potentials, of the first of equal rows."""
    cost, a, b = draw(70, 21), weights(70), weights(21, salt=1)
    cost = (cost * 5).floor() if ties else cost
    for evaluations in (0, 5):
        result = sparse_transport(cost, a, b, 9e4, k, max_iter=evaluations)
        value, plan = reference.semi_dual(result.f, cost, a, b, 9e4, k)
        close(result.value, value)
        close(result.plan(), plan)
        close(plan.sum(0), b)
        assert int((plan > 0).sum(0).max()) == k
        values = result.values
        assert (values[:, 1:] <= values[:, :-1]).all()
        there = result.indices.T >= 0
        picked = plan.gather(0, result.indices.T.long().clamp(min=0))
        close(torch.where(there, picked, 0.0), values.T)


def test_short_and_long_lists_agree() -> None:
    """Sixteen are a sorted list, seventeen a heap: of sixteen rows they are the same."""
    for method in ("semi_dual", "dual"):
        cost = (draw(2, 16, 40) * 6).floor()
        short, long = (
            sparse_transport(cost, gamma=30.0, k=k, method=method, tol=1e-6) for k in (16, 17)
        )
        assert torch.equal(short.f, long.f)
        assert torch.equal(short.value, long.value)
        assert torch.equal(short.plan(), long.plan())
        assert (long.indices[..., 16] == -1).all()


@METHODS
@ENTRIES
def test_small_gamma_is_the_linear_program(method: str, k: int | None) -> None:
    cost, a, b = draw(7, 9), weights(7), weights(9, salt=1)
    result = sparse_transport(cost, a, b, 1e-3, k, method, tol=1e-7, max_iter=3000)
    assert abs(float(result.value) - exact_value(cost, a, b)) < 1e-3


def test_one_entry_takes_the_first_of_equal_rows() -> None:
    cost = torch.zeros(3, 4, dtype=DOUBLE)
    result = sparse_transport(cost, k=1, max_iter=0)
    assert result.indices.tolist() == [[0]] * 4
    close(result.values, torch.full((4, 1), 0.25))
    two = sparse_transport(cost, k=2, gamma=1.0, max_iter=0)
    assert two.indices.tolist() == [[0, 1]] * 4


@METHODS
@LISTS
def test_zero_weights_and_forbidden_pairs(method: str, k: int | None) -> None:
    cost = draw(7, 8)
    cost[1, :5] = INF
    cost[4] = INF
    a, b = weights(7), weights(8, salt=1)
    a[4] = a[2] = b[3] = 0.0
    a, b = a / a.sum(), b / b.sum()
    leaves = [t.clone().requires_grad_() for t in (cost, a, b)]
    result = sparse_transport(*leaves, 2.0, k, method, tol=1e-9)
    plan = result.plan()
    close(plan, reference.quadratic_transport(cost, a, b, 2.0), 1e-8)
    assert bool((plan[[2, 4]] == 0).all() and (plan[:, 3] == 0).all())
    assert bool(torch.isfinite(result.f).all() and torch.isfinite(result.g).all())
    dc, da, db = torch.autograd.grad(result.value + (plan * draw(7, 8, salt=9)).sum(), leaves)
    assert all(bool(torch.isfinite(g).all()) for g in (dc, da, db))
    assert bool((da[[2, 4]] == 0).all() and db[3] == 0 and (dc[cost == INF] == 0).all())


@METHODS
@ENTRIES
def test_batches_are_their_problems(method: str, k: int | None) -> None:
    cost, a, b = draw(2, 5, 6, 7), weights(5, 6), weights(2, 1, 7, salt=1)
    gamma = torch.tensor([[1.0], [3.0]], dtype=DOUBLE)
    result = sparse_transport(cost, a, b, gamma, k, method, tol=1e-6)
    shared = sparse_transport(cost[0, 0], a, b[0, 0], 1.0, k, method, tol=1e-6)
    assert result.value.shape == (2, 5)
    assert shared.value.shape == (5,)
    for i in range(2):
        for j in range(5):
            one = sparse_transport(
                cost[i, j], a[j], b[i, 0], float(gamma[i, 0]), k, method, tol=1e-6
            )
            assert torch.equal(result.f[i, j], one.f)
            assert torch.equal(result.plan()[i, j], one.plan())
    assert torch.equal(shared.value[0], result.value[0, 0])


@METHODS
@LISTS
def test_value_gradients(method: str, k: int | None) -> None:
    cost, a, b = draw(5, 6), weights(5), weights(6, salt=1)
    gamma = torch.tensor(2.0, dtype=DOUBLE)
    leaves = [t.requires_grad_() for t in (cost, a, b, gamma)]

    def value(cost: Tensor, a: Tensor, b: Tensor, gamma: Tensor) -> Tensor:
        b = b * (a.sum() / b.sum())  # what moves one total moves both
        return sparse_transport(cost, a, b, gamma, k, method, tol=1e-12).value

    assert torch.autograd.gradcheck(value, leaves, eps=1e-5, atol=1e-5)
    (first,) = torch.autograd.grad(value(*leaves), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="sparse_transport: expected no second derivative"):
        first.square().sum().backward()


@METHODS
@ENTRIES
def test_plan_gradients(method: str, k: int | None) -> None:
    cost, a, b = draw(5, 6), weights(5), weights(6, salt=1)
    gamma = torch.tensor(2.0, dtype=DOUBLE)
    leaves = [t.requires_grad_() for t in (cost, a, b, gamma)]

    def plan(cost: Tensor, a: Tensor, b: Tensor, gamma: Tensor) -> Tensor:
        b = b * (a.sum() / b.sum())
        return sparse_transport(cost, a, b, gamma, k, method, tol=1e-11).plan()

    assert torch.autograd.gradcheck(plan, leaves, eps=1e-4, atol=1e-4)


def test_values_are_the_plan_at_the_indices() -> None:
    cost = draw(2, 6, 7).requires_grad_()
    result = sparse_transport(cost, k=5, gamma=2.0, tol=1e-10)
    values = result.values
    plan = result.plan()
    for p in range(2):
        for j in range(7):
            for r, i in enumerate(result.indices[p, j].tolist()):
                assert values[p, j, r] == (0.0 if i < 0 else plan[p, i, j])
    (from_values,) = torch.autograd.grad(values.square().sum(), cost)
    (from_plan,) = torch.autograd.grad(plan.square().sum(), cost)
    close(from_values, from_plan)
    close(result.to_sparse().to_dense(), plan)
    close(sparse_transport(cost.detach(), gamma=2.0, tol=1e-10).to_sparse().to_dense(), plan, 1e-8)


def test_float32_costs_have_the_same_plan_in_float64() -> None:
    cost = draw(30, 20, dtype=torch.float32)
    for k in (None, 3):
        single = sparse_transport(cost, k=k, gamma=5.0, tol=1e-8)
        double = sparse_transport(cost.double(), k=k, gamma=5.0, tol=1e-8)
        assert single.value.dtype == torch.float32
        assert torch.equal(single.value.double(), double.value.float().double())
        assert torch.equal(single.indices, double.indices)
    half = cost.to(torch.bfloat16)
    assert torch.equal(
        sparse_transport(half, gamma=5.0).f, sparse_transport(half.float(), gamma=5.0).f
    )


def test_large_and_small_costs() -> None:
    """An offset and a scale of the cost change nothing else."""
    cost, a, b = draw(9, 8), weights(9), weights(8, salt=1)
    plan = sparse_transport(cost, a, b, 1.0, tol=1e-9).plan()
    close(sparse_transport(cost + 1e6, a, b, 1.0, tol=1e-9).plan(), plan, 1e-7)
    for scale in (1e-20, 1e12):
        scaled = sparse_transport(cost * scale, a, b, scale, tol=1e-9)
        close(scaled.plan(), plan, 1e-7)


def test_warm_start_and_fixed_iterations() -> None:
    cost = draw(20, 30)
    cold = sparse_transport(cost, gamma=3.0, tol=1e-8)
    warm = sparse_transport(cost, gamma=3.0, tol=1e-8, init=(cold.f, cold.g))
    assert warm.iterations <= 2
    assert warm.status == 0
    assert cold.iterations > 5
    few = sparse_transport(cost, gamma=3.0, tol=None, max_iter=7)
    assert few.iterations == 7
    assert few.status == 1
    close(few.violation, _violation(few.plan(), 20, 30))


def _violation(plan: Tensor, n: int, m: int) -> Tensor:
    return (plan.sum(1) - 1 / n).abs().sum() + (plan.sum(0) - 1 / m).abs().sum()


@METHODS
@LISTS
def test_what_has_no_solution(method: str, k: int | None) -> None:
    for bad in (math.nan, -INF):
        cost = draw(3, 4, 5)
        cost[1, 2, 3] = bad
        result = sparse_transport(cost, k=k, method=method)
        assert result.status.tolist() == [0, 2, 0]
        assert result.value.isnan().tolist() == [False, True, False]
        assert bool(result.f[1].isnan().all())
    cost = draw(4, 5)
    cost[:, 2] = INF
    result = sparse_transport(cost, k=k, method=method, max_iter=60)
    assert result.status != 0


def test_nothing_is_printed_or_changed(capfd: pytest.CaptureFixture[str]) -> None:
    tensors = draw(6, 7), weights(6), weights(7, salt=1)
    kept = [t.clone() for t in tensors]
    sparse_transport(*tensors, k=3)
    assert all(torch.equal(x, y) for x, y in zip(tensors, kept, strict=True))
    assert capfd.readouterr() == ("", "")


def test_pot_agrees() -> None:
    ot = pytest.importorskip("ot")
    cost, a, b = draw(15, 11), weights(15), weights(11, salt=1)
    theirs = ot.smooth.smooth_ot_dual(
        a.numpy(), b.numpy(), cost.numpy(), 3.0, reg_type="l2", stopThr=1e-14, numItermax=5000
    )
    close(sparse_transport(cost, a, b, 3.0, tol=1e-9).plan(), torch.from_numpy(theirs), 1e-4)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (TypeError, {"cost": torch.zeros(3, 3, dtype=torch.int64)}),
        (ValueError, {"cost": torch.zeros(3)}),
        (ValueError, {"cost": torch.zeros(0, 3)}),
        (ValueError, {"a": torch.ones(4) / 4}),
        (ValueError, {"a": torch.tensor([1.5, -0.5, 0.0])}),
        (ValueError, {"a": torch.ones(3)}),
        (ValueError, {"gamma": 0.0}),
        (ValueError, {"gamma": torch.tensor(-1.0)}),
        (ValueError, {"k": 0}),
        (ValueError, {"k": -1}),
        (ValueError, {"k": 2**22}),
        (TypeError, {"k": 2.0}),
        (ValueError, {"method": "primal"}),
        (ValueError, {"tol": -1.0}),
        (ValueError, {"max_iter": -1}),
        (ValueError, {"init": (torch.zeros(3), torch.zeros(2))}),
        (ValueError, {"cost": torch.zeros(4, 3, 3), "a": torch.ones(3, 3) / 3}),
    ],
)
def test_errors(kind: type[Exception], arguments: dict[str, Any]) -> None:
    with pytest.raises(kind, match=r"regkern\.sparse_transport: expected"):
        sparse_transport(**{"cost": torch.zeros(3, 3), **arguments})


# ---- the line ----


@pytest.mark.parametrize("p", [1.0, 2.0, 1.7])
def test_line_is_the_linear_program(p: float) -> None:
    x, y, a, b = draw(6), draw(9, salt=1) * 2, weights(6), weights(9, salt=1)
    a[2] = 0.0
    a = a / a.sum()
    cost = (x[:, None] - y).abs() ** p
    value = wasserstein_1d(x, y, a, b, p)
    assert abs(float(value) - exact_value(cost, a, b)) < 1e-10
    plan = torch.zeros(6, 9, dtype=DOUBLE)
    entries = transport_1d(x, y, a, b)
    plan.index_put_((entries.rows, entries.columns), entries.mass, accumulate=True)
    close(plan.sum(0), b)
    close(plan.sum(1), a)
    close((plan * cost).sum(), value)


def test_line_gradients() -> None:
    leaves = [
        t.requires_grad_() for t in (draw(2, 5), draw(2, 4, salt=1), weights(5), weights(4, salt=2))
    ]
    for p in (1.0, 2.0, 3.5):

        def value(x: Tensor, y: Tensor, a: Tensor, b: Tensor, p: float = p) -> Tensor:
            return wasserstein_1d(x, y, a, b * (a.sum() / b.sum()), p)

        assert torch.autograd.gradcheck(value, leaves)
        (first,) = torch.autograd.grad(value(*leaves).sum(), leaves[0], create_graph=True)
        with pytest.raises(RuntimeError, match="wasserstein_1d: expected no second derivative"):
            first.square().sum().backward()


def test_line_weights_have_dual_potentials_at_ties_too() -> None:
    x, y = draw(6), draw(6, salt=1)
    a, b = (torch.full((6,), 1 / 6, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    value = wasserstein_1d(x, y, a, b, 2.0)
    f, g = torch.autograd.grad(value, (a, b))
    close(a @ f + b @ g, value)
    assert bool((f[:, None] + g <= (x[:, None] - y).square() + 1e-12).all())


def test_line_of_equal_sizes_is_sorting() -> None:
    x, y = draw(3, 50, dtype=torch.float32), draw(3, 50, salt=1, dtype=torch.float32)
    expected = (x.sort(-1).values - y.sort(-1).values).double().abs().mean(-1)
    close(wasserstein_1d(x, y), expected, 1e-7, 1e-6)
    close(wasserstein_1d(x, x.flip(-1)), torch.zeros(3))
    close(wasserstein_1d(x[:, :1], y, p=2.0), (x[:, :1] - y).square().mean(-1), 1e-6)
    a = weights(50)
    close(
        wasserstein_1d(x, y, a, p=2.5),
        exact_reference.wasserstein_1d(x.double(), y.double(), a, p=2.5),
        1e-6,
        1e-6,
    )


def test_line_errors() -> None:
    x = torch.zeros(3)
    for kind, arguments in (
        (TypeError, {"x": [1.0]}),
        (ValueError, {"x": torch.zeros(2, 0)}),
        (ValueError, {"p": 0.5}),
        (ValueError, {"p": INF}),
        (ValueError, {"a": torch.tensor([2.0, -1.0, 0.0])}),
        (ValueError, {"b": torch.ones(3)}),
        (ValueError, {"b": torch.ones(2) / 2}),
    ):
        with pytest.raises(kind, match=r"regkern\.wasserstein_1d: expected"):
            wasserstein_1d(**{"x": x, "y": x, **arguments})


# ---- assignments ----


@pytest.mark.parametrize("shape", [(9, 9), (5, 12), (13, 4), (1, 1), (200, 200)])
def test_assignment_is_scipys(shape: tuple[int, int]) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    cost = draw(2, *shape, salt=shape[1])
    cost[1] = (cost[1] * 5).floor()  # ties
    result = assignment(cost)
    for c, columns, value, u, v in zip(cost, *result[:4], strict=True):
        rows, theirs = optimize.linear_sum_assignment(c.numpy())
        assert abs(float(value) - c.numpy()[rows, theirs].sum()) < 1e-9
        there = columns >= 0
        assert int(there.sum()) == min(shape) == len(set(columns[there].tolist()))
        close(c[there, columns[there]].sum(), value)
        assert bool((u[:, None] + v <= c + 1e-9).all())
        close(u.sum() + v.sum(), value)
    assert result.status.tolist() == [0, 0]


def test_assignment_with_forbidden_pairs() -> None:
    cost = draw(3, 4, 4)
    cost[:, 0, :3] = INF
    cost[1, 1, :3] = INF  # two rows for one column
    cost[2, 2, 2] = math.nan
    result = assignment(cost)
    assert result.columns[0, 0] == 3
    assert result.status.tolist() == [0, 2, 2]
    assert result.value[1] == INF
    assert bool(result.value[2].isnan())
    assert result.columns[1].tolist() == [-1] * 4
    assert assignment(torch.zeros(2, 0, 5)).value.tolist() == [0.0, 0.0]
    with pytest.raises(TypeError, match=r"regkern\.assignment: expected `cost`"):
        assignment(torch.zeros(3, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"regkern\.assignment: expected `cost`"):
        assignment(torch.zeros(3))


def test_assignment_gradient_is_the_permutation() -> None:
    cost = draw(2, 4, 3).requires_grad_()
    result = assignment(cost)
    (gradient,) = torch.autograd.grad(result.value.sum(), cost)
    close((gradient * cost.detach()).sum((-1, -2)), result.value.detach())
    assert bool(((gradient == 0) | (gradient == 1)).all())
    assert int(gradient.sum()) == 6


def test_gradient_of_the_marginal_of_columns_of_one_entry() -> None:
    """Where an entry has all of its column the potential is not unique, and the gradient is."""
    cost = torch.tensor([[0.0, 3.0, 2.0], [4.0, 0.0, 1.0]], dtype=torch.float64)

    def value(a: Tensor, b: Tensor) -> Tensor:
        a, b = (w / w.sum() for w in (a, b))
        result: Tensor = sparse_transport(
            cost, a, b, gamma=0.1, method="dual", tol=1e-11, max_iter=2000
        ).value
        return result

    a = torch.tensor([0.6, 0.4], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.3, 0.2, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(value, (a, b), atol=1e-5, rtol=1e-3)


def test_same_bits_in_the_emulator(emulator: Any) -> None:
    """Of costs that are no numbers, too: a column's list has what the others have."""
    torch.ops.load_library(str(emulator))
    with Recorder() as recorder:
        for method in ("semi_dual", "dual"):
            for k in (4, 20):
                cost = draw(2, 40, 9, salt=k)
                cost[0, 3, 2], cost[0, 5, 4], cost[0, 11, 6] = math.nan, -INF, INF
                sparse_transport(cost, weights(40), weights(9), 0.05, k=k, method=method)
    expected, emulated = (replay(recorder.calls, name) for name in ("regkern", "regkern_emulator"))
    assert expected
    for a, b in zip(expected, emulated, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)

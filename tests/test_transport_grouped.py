"""Group-lasso transport: optimality, the primal problem, limits, gradients, errors."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from regkern.transport.sparse import sparse_transport
from scipy.optimize import minimize
from torch import Tensor

DOUBLE = torch.float64
LABELS = torch.tensor([7, -2, 7, 7, 0, -2])


def draw(*shape: int, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(600 + salt)
    return torch.rand(shape, dtype=DOUBLE, generator=generator)


def weights(*shape: int, salt: int = 0) -> Tensor:
    w = draw(*shape, salt=salt) + 0.1
    return w / w.sum(-1, keepdim=True)


def exact(cost: Tensor, groups: Tensor = LABELS, **options: Any) -> Any:
    return sparse_transport(cost, groups=groups, **{"tol": 1e-11, "max_iter": 5000, **options})


def norms(x: Tensor, groups: Tensor) -> Tensor:
    """(..., groups, m) of the columns of x (..., n, m)."""
    return torch.stack([x[..., groups == k, :].norm(dim=-2) for k in groups.unique()], -2)


def primal(plan: Tensor, cost: Tensor, groups: Tensor, gamma: Any, mu: Any) -> Tensor:
    terms = (plan * cost).sum((-2, -1)) + 0.5 * gamma * plan.square().sum((-2, -1))
    return terms + mu * norms(plan, groups).sum((-2, -1))


def dual(f: Tensor, g: Tensor, found: Any, groups: Tensor, gamma: Tensor, mu: Tensor) -> Tensor:
    """With max ⟨x, p⟩ − γ/2 |p|² − μ |p| over p ≥ 0, |p| ≤ b_j of each group, reached along x₊.

    No feasible plan is beyond |p| ≤ b_j, so this is below all of them.
    """
    cost, a, b = found._raw[:3]
    gamma, mu = gamma[..., None, None], mu[..., None, None]
    x = (f[..., :, None] + g[..., None, :] - cost).clamp(min=0.0)
    slope = (norms(x, groups) - mu).clamp(min=0.0)
    size = torch.minimum(slope / gamma, b[..., None, :])
    gains = size * (slope - 0.5 * gamma * size)
    return (a * f).sum(-1) + (g * b).sum(-1) - gains.sum((-2, -1))


def test_primal_and_dual_meet() -> None:
    """Of feasible plans none is below the dual, and ours is not above it."""
    cost, a, b = draw(3, 6, 9), weights(3, 6), weights(3, 9, salt=1)
    gamma, mu = torch.tensor([0.3, 1.0, 4.0]).double(), torch.tensor([0.02, 0.1, 0.5]).double()
    found = exact(cost, a=a, b=b, gamma=gamma, mu=mu)
    plan = found.plan()
    assert bool((found.violation < 1e-9).all())
    torch.testing.assert_close(plan.sum(-1), a, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(plan.sum(-2), b, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(
        primal(plan, cost, LABELS, gamma, mu), found.value, rtol=1e-7, atol=1e-9
    )
    torch.testing.assert_close(
        dual(found.f, found.g, found, LABELS, gamma, mu), found.value, rtol=1e-8, atol=1e-9
    )
    # Groups as a whole are there or not, and some are not.
    empty = norms(plan, LABELS) == 0
    assert bool(empty.any())


def test_primal_problem_by_itself() -> None:
    groups = torch.tensor([0, 1, 0, 1])
    cost, a, b = draw(4, 3), weights(4), weights(3, salt=1)

    def objective(p: Any) -> float:
        return float(primal(torch.from_numpy(p).reshape(4, 3), cost, groups, 0.5, 0.1))

    marginals = numpy.vstack(
        [numpy.kron(numpy.eye(4), numpy.ones(3)), numpy.kron(numpy.ones(4), numpy.eye(3))]
    )
    target = torch.cat([a, b]).numpy()
    best = minimize(
        objective,
        torch.outer(a, b).numpy().ravel(),
        method="SLSQP",
        bounds=[(0.0, None)] * 12,
        constraints={"type": "eq", "fun": lambda p: (marginals @ p - target)[:-1]},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    found = exact(cost, groups, a=a, b=b, gamma=0.5, mu=0.1)
    assert abs(float(found.value) - best.fun) < 1e-6
    assert float((found.plan().flatten() - torch.from_numpy(best.x)).abs().max()) < 1e-3


def test_limits() -> None:
    cost, a, b = draw(6, 9), weights(6), weights(9, salt=1)
    quadratic = sparse_transport(cost, a=a, b=b, gamma=0.5, tol=1e-11, max_iter=5000)
    small = exact(cost, a=a, b=b, gamma=0.5, mu=1e-9)
    torch.testing.assert_close(small.plan(), quadratic.plan(), rtol=1e-5, atol=1e-6)
    # Of groups of one row: the l1 norm, which is the same for all plans.
    alone = exact(cost, torch.arange(6), a=a, b=b, gamma=0.5, mu=0.2)
    torch.testing.assert_close(alone.plan(), quadratic.plan(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone.value, quadratic.value + 0.2, rtol=1e-7, atol=1e-9)


def test_order_of_rows_and_names_of_groups_do_not_matter() -> None:
    cost, a, b = draw(6, 9), weights(6), weights(9, salt=1)
    found = exact(cost, a=a, b=b, gamma=0.5, mu=0.1)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    other = exact(cost[order], 10 - LABELS[order], a=a[order], b=b, gamma=0.5, mu=0.1)
    torch.testing.assert_close(other.plan(), found.plan()[order], rtol=1e-6, atol=1e-8)


def test_many_columns_and_corners() -> None:
    cost = draw(20, 300)
    groups = torch.arange(20) % 3
    a = weights(20)
    a[4] = 0.0
    cost[7, :100] = torch.inf
    found = exact(cost, groups, a=a / a.sum(), gamma=2.0, mu=1e-3, tol=1e-8)
    assert int(found.status) == 0
    plan = found.plan()
    assert float(plan[4].abs().sum() + plan[7, :100].sum()) == 0.0
    low = exact(cost.float(), groups, a=a / a.sum(), gamma=2.0, mu=1e-3, tol=1e-6)
    wide = exact(cost.float().double(), groups, a=a / a.sum(), gamma=2.0, mu=1e-3, tol=1e-6)
    torch.testing.assert_close(low.value.double(), wide.value, rtol=1e-6, atol=1e-7)
    cost[0, 0] = torch.nan
    assert int(exact(cost, groups, gamma=2.0, mu=1e-3).status) == 2
    for dtype in (torch.bfloat16, torch.float16):
        half = draw(6, 5).to(dtype).mT.contiguous().mT
        ours = sparse_transport(half, groups=LABELS, mu=0.1, tol=1e-6)
        theirs = sparse_transport(half.double(), groups=LABELS, mu=0.1, tol=1e-6)
        torch.testing.assert_close(ours.value.double(), theirs.value, rtol=1e-5, atol=1e-6)
    assert exact(draw(0, 6, 4)).f.shape == (0, 6)


def test_gradients() -> None:
    def value(cost: Tensor, a: Tensor, b: Tensor, gamma: Tensor, mu: Tensor) -> Tensor:
        a, b = (w / w.sum() for w in (a, b))
        result: Tensor = exact(cost, a=a, b=b, gamma=gamma, mu=mu).value
        return result

    tensors = [
        draw(6, 4),
        weights(6),
        weights(4, salt=1),
        torch.tensor(0.5).double(),
        torch.tensor(0.1).double(),
    ]
    for t in tensors:
        t.requires_grad_()
    assert torch.autograd.gradcheck(value, tensors, atol=1e-4, rtol=1e-3)
    found = exact(tensors[0], gamma=0.5, mu=0.1)
    with pytest.raises(RuntimeError, match="gradient of `value` alone"):
        found.plan().sum().backward()


def test_errors() -> None:
    cost = draw(6, 4)
    for options, error, message in (
        ({"groups": LABELS[:5]}, ValueError, "`groups` of shape"),
        ({"groups": LABELS.double()}, TypeError, "`groups` of integers"),
        ({"groups": LABELS, "k": 2}, ValueError, "`groups` with k=None"),
        ({"groups": LABELS, "method": "semi_dual"}, ValueError, "`groups` with k=None"),
        ({"groups": LABELS, "mu": -1.0}, ValueError, "`mu`"),
    ):
        with pytest.raises(error, match=message):
            sparse_transport(cost, **options)  # type: ignore[arg-type]
    one = torch.ones(1, dtype=DOUBLE)
    vectors = (torch.ones(1, 6, dtype=DOUBLE), torch.ones(1, 4, dtype=DOUBLE))
    with pytest.raises(RuntimeError, match="`group_rows`"):
        torch.ops.regkern.sparse_transport(
            cost[None], *vectors, one, *vectors, 0, "dual", 0.1, 5, one, None, None
        )

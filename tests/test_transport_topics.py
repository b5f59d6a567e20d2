"""ECRTM's loss, class-based transport and Wasserstein dictionaries: laws, corners, errors."""

from __future__ import annotations

import math

import pytest
import torch
from regkern.proximal.pairwise import PairRounds
from regkern.reference.transport import class_based as class_reference
from regkern.reference.transport import dictionary as dictionary_reference
from regkern.reference.transport import topic as topic_reference
from regkern.transport import class_based, dictionary, topic
from torch import Tensor

DOUBLE = torch.float64


def draw(*shape: int, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 + salt)
    return torch.randn(shape, dtype=DOUBLE, generator=generator)


def embeddings(n: int, salt: int = 0) -> Tensor:
    return torch.nn.functional.normalize(draw(n, 3, salt=salt)).requires_grad_()


# ---- ECRTM ----


@pytest.mark.parametrize(("k", "v"), [(5, 12), (9, 4)])
def test_ecrtm_value_and_gradient_through_the_plan(k: int, v: int) -> None:
    t, w = embeddings(k), embeddings(v, 1)
    ours = topic.ecrtm_loss(t, w, tol=1e-13, max_iter=3000)
    theirs = topic_reference.ecrtm_loss(t, w)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    gradient = torch.autograd.grad(ours, (t, w), retain_graph=True)
    for a, b in zip(gradient, torch.autograd.grad(theirs, (t, w)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    # The plan held still is another gradient.
    cost = (t[:, None] - w[None]).square().sum(-1)
    masses = [torch.full((n,), 1.0 / n, dtype=DOUBLE) for n in (k, v)]
    plan = topic_reference.sinkhorn_plan(cost.detach(), *masses, 0.05, 500)
    (envelope,) = torch.autograd.grad((plan * cost).sum(), t)
    assert float((envelope - gradient[0]).abs().max()) > 1e-3
    (g,) = torch.autograd.grad(ours, t, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        g.square().sum().backward()


def test_ecrtm_small_eps_in_float32() -> None:
    """The authors' exp(−α M) is 0 here, and their loss NaN or 0."""
    t, w = embeddings(4).float().detach() * 3, embeddings(8, 1).float().detach() * 3
    t.requires_grad_()
    loss = topic.ecrtm_loss(t, w, 50.0, tol=0.0)
    assert torch.exp(-50.0 * (t[:, None] - w[None]).square().sum(-1)).sum(1).min() < 1e-20
    expected = topic_reference.ecrtm_loss(t.double(), w.double(), 50.0, 1000)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0.0)
    assert torch.autograd.grad(loss, t)[0].isfinite().all()


def test_ecrtm_points_without_mass() -> None:
    t, w = embeddings(5), embeddings(6, 1)
    a = torch.tensor([0.3, 0.0, 0.3, 0.2, 0.2], dtype=DOUBLE)
    b = torch.full((6,), 0.2, dtype=DOUBLE)
    b[4] = 0
    some, others = [0, 2, 3, 4], [0, 1, 2, 3, 5]
    options = {"tol": 1e-12, "max_iter": 3000}
    loss = topic.ecrtm_loss(t, w, a=a, b=b, **options)
    expected = topic.ecrtm_loss(t[some], w[others], a=a[some], b=b[others], **options)
    torch.testing.assert_close(loss, expected)
    for g, h in zip(
        torch.autograd.grad(loss, (t, w)), torch.autograd.grad(expected, (t, w)), strict=True
    ):
        torch.testing.assert_close(g, h, rtol=1e-8, atol=1e-10)
    same = torch.ones(3, 2, dtype=DOUBLE, requires_grad=True)
    loss = topic.ecrtm_loss(same, torch.ones(4, 2, dtype=DOUBLE))
    assert float(loss.detach()) == 0.0
    assert torch.equal(torch.autograd.grad(loss, same)[0], torch.zeros(3, 2, dtype=DOUBLE))


def test_ecrtm_errors() -> None:
    t, w = draw(3, 2), draw(4, 2)
    with pytest.raises(ValueError, match=r"expected `topics` of shape \(K, d\) and `words`"):
        topic.ecrtm_loss(t, w[:, :1])
    with pytest.raises(ValueError, match=r"expected `alpha` above 0, got 0"):
        topic.ecrtm_loss(t, w, 0.0)
    with pytest.raises(ValueError, match=r"expected `a` of shape \(3,\), got \(4,\)"):
        topic.ecrtm_loss(t, w, a=torch.ones(4))
    with pytest.raises(ValueError, match=r"expected `max_iter` to be at least 1, got 0"):
        topic.ecrtm_loss(t, w, max_iter=0)


# ---- class-based transport ----

ROWS, COLUMNS = torch.tensor([0, 0, 0, 1, 1, -1]), torch.tensor([0, 1, 0, 1, 2])


def costs() -> Tensor:
    return (draw(6, 2)[:, None] - draw(5, 2, salt=1)[None]).square().sum(-1)


@pytest.mark.parametrize("lam", [(0.3, 0.1), (2.0, 0.0)])
def test_class_based_transport_reaches_the_optimum(lam: tuple[float, float]) -> None:
    cost = costs()
    found = class_based.class_based_transport(cost, rows=ROWS, columns=COLUMNS, lam=lam)
    plan = found.plan
    assert float(plan.min()) >= 0
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 1 / 6, dtype=DOUBLE))
    torch.testing.assert_close(plan.sum(0), torch.full((5,), 0.2, dtype=DOUBLE), rtol=0, atol=1e-6)
    assert float(found.violation) < 1e-6
    objective = class_reference.class_based_objective(plan, cost, lam, ROWS, COLUMNS)
    torch.testing.assert_close(found.value, objective, rtol=1e-5, atol=1e-7)
    best = class_reference.class_based_transport(cost, lam, ROWS, COLUMNS, steps=4000)
    optimum = class_reference.class_based_objective(best, cost, lam, ROWS, COLUMNS)
    assert -2e-4 < float(objective / optimum) - 1.0 < 4e-3


def test_class_based_transport_without_penalty_is_the_linear_program() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    cost = costs()
    equations = torch.cat(
        [torch.eye(6).repeat_interleave(5, dim=1), torch.eye(5).repeat(1, 6)]
    ).numpy()
    masses = [1 / 6] * 6 + [0.2] * 5
    best = optimize.linprog(cost.flatten().numpy(), A_eq=equations, b_eq=masses).fun
    assert float(class_based.class_based_transport(cost).value) == pytest.approx(best, rel=3e-3)


def test_a_strong_penalty_sends_a_class_to_one_place() -> None:
    found = class_based.class_based_transport(costs(), rows=ROWS, lam=100.0, tol=1e-3)
    plan = found.plan
    torch.testing.assert_close(plan[0], plan[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(plan[3], plan[4], rtol=0, atol=1e-6)
    assert float((plan[0] - plan[3]).abs().max()) > 1e-3
    assert 0 < int(found.iterations) < 500
    again = class_based.class_based_transport(
        costs(), rows=PairRounds.within(ROWS), lam=100.0, tol=1e-3
    )
    assert torch.equal(again.plan, plan)


def test_class_based_masses_and_errors() -> None:
    cost = costs()
    a = torch.tensor([0.5, 0.0, 0.1, 0.1, 0.2, 0.1], dtype=DOUBLE)
    found = class_based.class_based_transport(cost, a, rows=ROWS, max_iter=50)
    torch.testing.assert_close(found.plan.sum(1), a)
    assert torch.equal(found.plan[1], torch.zeros(5, dtype=DOUBLE))
    with pytest.raises(ValueError, match=r"expected `rows` of 6 labels, got \(5,\)"):
        class_based.class_based_transport(cost, rows=COLUMNS)
    with pytest.raises(ValueError, match=r"expected `lam` to be at least 0, got -1"):
        class_based.class_based_transport(cost, lam=-1.0)
    with pytest.raises(ValueError, match=r"expected `b` of shape \(5,\), got \(6,\)"):
        class_based.class_based_transport(cost, b=a)


# ---- dictionaries ----


def grid_cost() -> Tensor:
    at = torch.arange(6, dtype=DOUBLE)
    rows, columns = at.div(3, rounding_mode="floor"), at % 3
    return (rows[:, None] - rows).square() + (columns[:, None] - columns).square()


def test_sinkhorn_conjugate() -> None:
    cost, eps = grid_cost(), 0.3
    cost[0, 1] = math.inf
    q = draw(6, salt=1).abs()
    q[2] = 0
    q = (q / q.sum()).requires_grad_()
    g = draw(6).requires_grad_()
    value = dictionary.sinkhorn_conjugate(g, q, cost, eps)
    torch.testing.assert_close(value, dictionary_reference.sinkhorn_conjugate(g, q, cost, eps))
    (p,) = torch.autograd.grad(value, g, create_graph=True)
    # The maximum is on the simplex, and there p and g are a dual pair: W = ⟨p, g⟩ − H*.
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=DOUBLE))
    plan = topic_reference.sinkhorn_plan(cost, p.detach(), q.detach() + 1e-300, eps, 2000)
    entropy = torch.where(plan > 0, plan * plan.clamp(min=1e-300).log(), 0.0).sum()
    primal = torch.where(plan > 0, plan * cost, 0.0).sum() + eps * entropy
    torch.testing.assert_close(primal, (p * g).sum() - value, rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradgradcheck(
        lambda u: dictionary.sinkhorn_conjugate(u, q.detach(), cost, eps), g, fast_mode=True
    )
    with pytest.raises(ValueError, match=r"expected `eps` above 0, got 0"):
        dictionary.sinkhorn_conjugate(g, q, cost, 0.0)
    with pytest.raises(ValueError, match=r"expected `cost` of shape \(n, m\) for `g`"):
        dictionary.sinkhorn_conjugate(g, q, cost[:3], eps)


def test_wasserstein_dictionary_learns() -> None:
    generator = torch.Generator().manual_seed(3)
    data = torch.rand(6, 8, dtype=DOUBLE, generator=generator) ** 4 + 0.02
    data = data / data.sum(0)
    found = dictionary.wasserstein_cp_dictionary(
        data, grid_cost(), (2, 3), 3, 0.3, sweeps=8, inner=60, generator=generator
    )
    assert [tuple(u.shape) for u in found.factors] == [(2, 3), (3, 3)]
    assert found.codes.shape == (3, 8)
    for block in (*found.factors, found.codes):
        assert float(block.min()) >= 0
        torch.testing.assert_close(block.sum(0), torch.ones(block.shape[1], dtype=DOUBLE))
    assert (found.losses.diff() <= 0).all()
    assert float(found.losses[-1]) < float(found.losses[0]) - 0.1
    with pytest.raises(ValueError, match=r"expected `data` of shape \(4, N\) for `shape` \[2, 2\]"):
        dictionary.wasserstein_cp_dictionary(data, grid_cost(), (2, 2), 3, 0.3)

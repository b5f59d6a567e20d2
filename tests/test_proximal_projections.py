"""Laws, corners and errors of projections, sparse simplex maps and N:M patterns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import regkern
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regkern.nn.proximal import simplex as layers
from regkern.proximal import patterns, projections, simplex
from regkern.reference.proximal import patterns as patterns_reference
from regkern.reference.proximal import projections as reference
from regkern.reference.proximal import simplex as simplex_reference
from regkern.swap import proximal as _rules  # noqa: F401
from torch import Tensor

INF, NAN = math.inf, math.nan
HALVES = (torch.bfloat16, torch.float16)


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- against exhaustive search ----


def _best(candidates: list[Tensor], objective: Callable[[Tensor], Tensor]) -> Tensor:
    return min(candidates, key=lambda y: float(objective(y)))


def _on_simplex(x: Tensor, total: float, cap: float) -> list[Tensor]:
    """The projection for each choice of elements at zero, at the cap and between."""
    found = []
    for choice in itertools.product(range(3), repeat=x.numel()):
        state = torch.tensor(choice)
        free, capped = state == 1, state == 2
        if (bool(capped.any()) and cap == INF) or (not bool(free.any()) and cap == INF):
            continue
        y = capped.double() * cap if cap < INF else torch.zeros_like(x)
        if bool(free.any()):
            tau = (x[free].sum() + y.sum() - total) / free.sum()
            y = torch.where(free, x - tau, y)
        inside = float(y.min()) >= -1e-12 and float(y.max()) <= cap + 1e-12
        if inside and abs(float(y.sum()) - total) < 1e-9:
            found.append(y)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_simplices_by_exhaustive_search(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(5, dtype=torch.float64)
    x = x.round() if seed % 2 else x
    for total, cap in ((1.0, INF), (2.3, 0.8), (4.0, 0.8), (0.3, 2.0)):
        best = _best(_on_simplex(x, total, cap), lambda y: ((y - x) ** 2).sum())
        ours = (
            projections.simplex_projection(x, total)
            if cap == INF
            else projections.capped_simplex_projection(x, total, cap)
        )
        torch.testing.assert_close(ours, best, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [False, True])
def test_exclusive_lasso_by_exhaustive_search(seed: int, weighted: bool) -> None:
    torch.manual_seed(seed)
    x = torch.randn(5, dtype=torch.float64)
    w = torch.rand(5, dtype=torch.float64) + 0.1 if weighted else torch.ones(5).double()
    lam = 0.7

    def objective(y: Tensor) -> Tensor:
        return 0.5 * ((y - x) ** 2).sum() + 0.5 * lam * (w * y.abs()).sum() ** 2

    candidates = []
    for choice in itertools.product((False, True), repeat=5):
        a = torch.tensor(choice)
        s = (w * x.abs())[a].sum() / (1 + lam * (w * w)[a].sum())
        candidates.append(torch.where(a, x - x.sign() * lam * w * s, 0.0))
    best = _best(candidates, objective)
    ours = projections.prox_exclusive_lasso(x, lam, weights=w if weighted else None)
    torch.testing.assert_close(ours, best, rtol=0, atol=1e-10)
    noise = torch.randn(500, 5, dtype=torch.float64) * 0.05
    assert all(objective(ours) <= objective(ours + d) + 1e-12 for d in noise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("n", [1, 2, 31, 128, 300, 5000])
@pytest.mark.parametrize("t", [0.01, 1.0, 40.0])
def test_sizes_and_dtypes(dtype: torch.dtype, n: int, t: float) -> None:
    torch.manual_seed(n)
    x = (torch.randn(5, n) * torch.tensor([0.01, 0.3, 1.0, 30.0, 1e-3])[:, None]).to(dtype)
    wide = x.double()
    for name in ("simplex_projection", "l1_ball_projection", "prox_linf", "prox_exclusive_lasso"):
        ours = getattr(projections, name)(x, t)
        definition = getattr(reference, name)(wide, t)
        size = max(float(definition.abs().max()), 1e-6)
        error = {torch.float64: 1e-12, torch.float32: 5e-7}.get(dtype, 1e-2)
        assert float((ours.double() - definition).abs().max()) <= error * size, name


def test_geometric_rows_need_many_rounds() -> None:
    """Each round of Michelot's drops few elements here."""
    x = double([2.0**-i for i in range(200)]).expand(3, -1)
    for t in (1e-3, 1.0, 1.9):
        torch.testing.assert_close(
            projections.prox_linf(x, t), reference.prox_linf(x, t), rtol=1e-12, atol=1e-12
        )


# ---- laws ----

rows = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(rows, st.floats(0, 200, width=32))
def test_moreau_and_idempotence(values: list[float], t: float) -> None:
    x = double(values)
    ball = projections.l1_ball_projection(x, t)
    torch.testing.assert_close(ball + projections.prox_linf(x, t), x, rtol=0, atol=1e-10)
    assert float(ball.abs().sum()) <= t + 1e-9
    torch.testing.assert_close(projections.l1_ball_projection(ball, t), ball, rtol=0, atol=1e-10)
    p = projections.simplex_projection(x, t)
    assert float(p.min()) >= 0
    assert float(p.sum()) == pytest.approx(t, abs=1e-9)
    torch.testing.assert_close(projections.simplex_projection(p, t), p, rtol=0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(rows, st.floats(0, 50, width=32), st.integers(0, 1000))
def test_non_expansive(values: list[float], t: float, seed: int) -> None:
    x = double(values)
    z = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).double()
    for f in (
        projections.simplex_projection,
        projections.l1_ball_projection,
        projections.prox_linf,
        projections.prox_exclusive_lasso,
        projections.l2_ball_projection,
    ):
        assert (f(x, t) - f(z, t)).norm() <= (x - z).norm() * (1 + 1e-9)


def test_total_n_cap_is_the_corner() -> None:
    x = torch.randn(3, 7)
    y = projections.capped_simplex_projection(x, 3.5, 0.5)
    torch.testing.assert_close(y, torch.full_like(x, 0.5))
    too_much = torch.tensor([3.5, 3.6, 0.0])
    y = projections.capped_simplex_projection(x, too_much, 0.5)
    assert y[1].isnan().all()
    assert torch.equal(y[2], torch.zeros(7))


def test_k_sparse_takes_the_first_of_ties() -> None:
    x = torch.tensor([1.0, 3.0, 3.0, 3.0, 0.0])
    y = projections.k_sparse_simplex_projection(x, 2)
    assert torch.equal(y, torch.tensor([0, 0.5, 0.5, 0, 0]))
    wide = projections.k_sparse_simplex_projection(x, 9)
    assert torch.equal(wide, projections.simplex_projection(x))


# ---- corners ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_threshold_zero_is_the_identity(dtype: torch.dtype) -> None:
    x = torch.randn(4, 9).to(dtype)
    x[0, 0], x[1, 1], x[2, 2], x[3, 3] = -0.0, INF, -INF, NAN
    for f in (projections.prox_linf, projections.prox_exclusive_lasso):
        y = f(x, 0.0)
        assert torch.equal(y.isnan(), x.isnan())
        finite = torch.nan_to_num(x, 1.0)
        assert torch.equal(torch.nan_to_num(y, 1.0), finite)
        assert torch.equal(y.signbit()[0], x.signbit()[0])
    y = projections.l1_ball_projection(x, INF)
    assert torch.equal(torch.nan_to_num(y, 1.0), finite)


def test_infinite_thresholds_and_radius_zero() -> None:
    x = torch.randn(4, 9)
    for f in (projections.prox_linf, projections.prox_exclusive_lasso):
        assert torch.equal(f(x, INF), torch.zeros(4, 9))
    for f in (
        projections.l1_ball_projection,
        projections.simplex_projection,
        projections.l2_ball_projection,
    ):
        assert torch.equal(f(x, 0.0).abs(), torch.zeros(4, 9))


def test_bad_rows_are_alone() -> None:
    x = torch.randn(6, 40)
    good = x.clone()
    x[1, 3], x[3, 5], x[4, :] = NAN, INF, NAN
    bad = torch.tensor([False, True, False, True, True, False])
    for f in (
        projections.simplex_projection,
        projections.l1_ball_projection,
        projections.prox_linf,
        projections.prox_exclusive_lasso,
        projections.l2_ball_projection,
        lambda v, t: projections.capped_simplex_projection(v, t, 1.0),
        lambda v, t: simplex.entmax15(v),
    ):
        y = f(x, 1.5)
        assert y[bad].isnan().all()
        assert torch.equal(y[~bad], f(good, 1.5)[~bad])
    t = torch.tensor([1.0, -1.0, NAN, 1.0, 1.0, 1.0])
    y = projections.prox_linf(good, t)
    assert torch.equal(y.isnan().all(1), torch.tensor([False, True, True, False, False, False]))


@pytest.mark.parametrize("size", [1e30, 1e-30, 1e-42])
def test_huge_and_tiny_numbers(size: float) -> None:
    x = torch.tensor([3.0, -2.0, 1.0, 0.0]) * size
    y = projections.prox_linf(x, size)
    torch.testing.assert_close(y / size, torch.tensor([2.0, -2, 1, 0]), rtol=1e-3, atol=0)
    y = projections.l1_ball_projection(x, 2 * size)
    torch.testing.assert_close(y / size, torch.tensor([1.5, -0.5, 0, 0]), rtol=1e-3, atol=0)


def test_a_small_total_on_a_huge_offset() -> None:
    """1 is far below the spacing of floats at 10³⁰."""
    x = torch.tensor([[1e30, 1e30, 0.0, -1e30]])
    assert torch.equal(simplex.sparsemax(x), torch.tensor([[0.5, 0.5, 0, 0]]))
    assert torch.equal(simplex.entmax15(x), torch.tensor([[0.5, 0.5, 0, 0]]))
    y = projections.l1_ball_projection(x, 1.0)
    torch.testing.assert_close(y, torch.tensor([[1 / 3, 1 / 3, 0, -1 / 3]]))
    logits = torch.tensor([[10000.25, 10000.0, 9000.0]])
    assert torch.equal(simplex.sparsemax(logits), torch.tensor([[0.625, 0.375, 0]]))


def test_equal_elements_and_one_element() -> None:
    for n in (1, 7, 4096):
        x = torch.full((2, n), 3.25)
        torch.testing.assert_close(simplex.sparsemax(x), torch.full((2, n), 1 / n))
        torch.testing.assert_close(simplex.entmax15(x), torch.full((2, n), 1 / n))
        torch.testing.assert_close(projections.prox_linf(x, 1.0), torch.full((2, n), 3.25 - 1 / n))


def test_zero_groups_stay_zero_with_gradient_zero() -> None:
    x = torch.zeros(2, 5, requires_grad=True)
    for f in (projections.prox_linf, projections.prox_exclusive_lasso):
        y = f(x, 1.0)
        (g,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(y, torch.zeros(2, 5))
        assert torch.equal(g, torch.zeros(2, 5))
    y = projections.l1_ball_projection(x, 1.0)  # inside: the identity
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(2, 5))


def test_empty_dimensions() -> None:
    for shape in ((0, 4), (4, 0), (0,), (2, 0, 3)):
        x = torch.zeros(shape, requires_grad=True)
        for f in (simplex.sparsemax, simplex.entmax15, patterns.n_m_projection):
            y = f(x)
            assert y.shape == shape
            y.sum().backward()
        assert projections.prox_linf(x, 1.0, 0).shape == shape


def test_thresholds_as_tensors() -> None:
    x = torch.randn(3, 8, 5)
    t = torch.rand(3, 5) * 4
    y = projections.prox_linf(x, t, 1)
    assert torch.equal(y, projections.prox_linf(x, t[:, None], 1))
    for i, j in itertools.product(range(3), range(5)):
        assert torch.equal(y[i, :, j], projections.prox_linf(x[i, :, j].contiguous(), t[i, j]))


# ---- the list form ----


def test_prox_linf_list() -> None:
    torch.manual_seed(1)
    tensors = [
        torch.randn(6, 4, 3, 3),
        torch.randn(8, 5).bfloat16(),
        torch.randn(7).double(),
        torch.randn(5, 9).t(),
        torch.zeros(0, 4),
        torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    ]
    tensors[0][2] = 0.0
    tensors[0][4] *= 1e-3
    for dim in (0, -1):
        ours = [t.clone() for t in tensors]
        report = projections.prox_linf_(ours, 1.25, dim)
        zeros = 0
        for before, after, norms in zip(tensors, ours, report.norms, strict=True):
            moved = before.movedim(dim, 0)
            rows = (moved.shape[0], math.prod(moved.shape[1:]))
            expected = projections.prox_linf(moved.reshape(rows), 1.25, 1)
            got = after.movedim(dim, 0).reshape(rows)
            assert torch.equal(got, expected)
            assert after.stride() == before.stride()
            assert norms.shape == (moved.shape[0],)
            if before.numel() > 0:
                torch.testing.assert_close(
                    norms.to(got.dtype), got.abs().amax(1), rtol=1e-6, atol=0
                )
                zeros += int((got == 0).all(1).sum())
        assert int(report.zeros) == zeros
    per_tensor = [torch.rand(6), torch.tensor(0.5)]
    ours = [t.clone() for t in tensors[:2]]
    projections.prox_linf_(ours, per_tensor)
    flat = tensors[0].reshape(6, -1)
    assert torch.equal(ours[0].reshape(6, -1), projections.prox_linf(flat, per_tensor[0]))
    leaf = torch.nn.Parameter(torch.randn(3, 4))
    version = leaf._version
    projections.prox_linf_(leaf, 0.5)
    assert leaf._version > version


# ---- sparse maps and losses ----


def test_masked_attention() -> None:
    scores = torch.randn(2, 3, 6, 6)
    mask = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    masked = scores.masked_fill(mask, -INF)
    for f in (simplex.sparsemax, simplex.entmax15):
        for dtype in (torch.float32, *HALVES):
            p = f(masked.to(dtype))
            assert torch.equal(p[..., mask], torch.zeros(2, 3, 15).to(dtype))
            torch.testing.assert_close(p.float().sum(-1), torch.ones(2, 3, 6), rtol=0, atol=2e-2)
        x = masked.clone().requires_grad_()
        (f(x) ** 2).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        nothing = f(torch.full((2, 4), -INF))
        assert torch.equal(nothing.isnan(), torch.softmax(torch.full((2, 4), -INF), -1).isnan())


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_maps_and_losses_are_those_of_entmax(name: str) -> None:
    entmax = pytest.importorskip("entmax")
    torch.manual_seed(2)
    x = torch.randn(40, 23, dtype=torch.float64) * 2
    target = torch.randint(0, 23, (40,))
    theirs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    p, q = getattr(entmax, name)(theirs, dim=-1), getattr(simplex, name)(ours)
    g = torch.randn_like(p)
    torch.testing.assert_close(q, p, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(q, ours, g)[0], torch.autograd.grad(p, theirs, g)[0], rtol=0, atol=1e-9
    )
    a = getattr(entmax, f"{name}_loss")(theirs, target)
    b = getattr(simplex, f"{name}_loss")(ours, target, reduction="none")
    torch.testing.assert_close(b, a, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(b.sum(), ours)[0],
        torch.autograd.grad(a.sum(), theirs)[0],
        rtol=0,
        atol=1e-9,
    )


def test_swapped_layers_compute_the_same() -> None:
    entmax = pytest.importorskip("entmax")
    model = torch.nn.ModuleDict(
        {
            "map": entmax.Sparsemax(dim=1),
            "other": entmax.Entmax15(dim=-1, k=5),
            "loss": entmax.SparsemaxLoss(ignore_index=3),
            "sum": entmax.Entmax15Loss(reduction="sum"),
        }
    )
    x, target = torch.randn(9, 7), torch.tensor([0, 1, 2, 3, 4, 5, 6, 3, 1])
    before = [model["map"](x), model["other"](x), model["loss"](x, target), model["sum"](x, target)]
    report = regkern.swap(model)
    assert not report.left
    assert isinstance(model["map"], layers.Sparsemax)
    assert isinstance(model["other"], layers.Entmax15)
    assert isinstance(model["loss"], layers.SparsemaxLoss)
    after = [model["map"](x), model["other"](x), model["loss"](x, target), model["sum"](x, target)]
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_losses(name: str) -> None:
    loss = getattr(simplex, f"{name}_loss")
    x = torch.randn(6, 5, requires_grad=True)
    target = torch.tensor([0, 4, -100, 2, 1, 3])
    each = loss(x, target, reduction="none")
    assert each.shape == (6,)
    assert float(each.detach()[2]) == 0.0
    assert (each.detach() >= 0).all()
    torch.testing.assert_close(loss(x, target), each.sum() / 5)
    torch.testing.assert_close(loss(x, target, reduction="sum"), each.sum())
    (g,) = torch.autograd.grad(each.sum(), x)
    p = getattr(simplex, name)(x)
    q = torch.nn.functional.one_hot(target.clamp(min=0), 5).float()
    expected = torch.where((target == -100)[:, None], torch.zeros(()), p - q)
    assert torch.equal(g, expected.detach())
    # The loss of a distribution that is one is that of the index.
    distribution = loss(x, q, reduction="none")
    torch.testing.assert_close(distribution[target >= 0], each[target >= 0])
    # It is reached, with a margin.
    far = torch.tensor([[5.0, 0, 0]])
    assert float(loss(far, torch.tensor([0]))) == 0.0
    assert loss(x, torch.tensor([9, 0, 0, 0, 0, 0]), reduction="none").isnan()[0]
    none = torch.full((6,), -100)
    assert loss(x, none).isnan()
    assert loss(x.detach().bfloat16(), target).dtype == torch.bfloat16
    moved = loss(x.detach().t(), target, 0)
    torch.testing.assert_close(moved, loss(x.detach(), target))
    module = {"sparsemax": layers.SparsemaxLoss, "entmax15": layers.Entmax15Loss}[name]
    assert torch.equal(module()(x, target), loss(x, target))


def test_modules() -> None:
    x = torch.randn(3, 4)
    assert torch.equal(layers.Sparsemax(0)(x), simplex.sparsemax(x, 0))
    assert torch.equal(layers.Entmax15()(x), simplex.entmax15(x))
    assert "dim=0" in repr(layers.Sparsemax(0))
    with pytest.raises(ValueError, match="reduction"):
        layers.SparsemaxLoss(reduction="average")  # type: ignore[arg-type]


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 50.0])
def test_entmax_solves_its_equation(spread: float) -> None:
    x = torch.randn(8, 700, dtype=torch.float64) * spread
    p = simplex.entmax15(x)
    torch.testing.assert_close(p.sum(-1), torch.ones(8).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(p, simplex_reference.entmax15(x), rtol=0, atol=1e-9)


# ---- patterns ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (4, 8), (3, 7), (0, 3), (5, 5), (7, 64)])
def test_patterns_with_ties(dtype: torch.dtype, n: int, m: int) -> None:
    shapes = (((5, 70), 1), ((70, 5), 0), ((3, 29, 2), 1), ((4, 128), 1))
    for shape, dim in shapes if m < 64 else (((70, 3), 0), ((2, 70), 1)):
        x = torch.randint(-3, 4, shape).to(dtype)
        expected = patterns_reference.n_m_projection(x, n, m, dim)
        assert torch.equal(patterns.n_m_projection(x, n, m, dim), expected)
        assert torch.equal(
            patterns.n_m_mask(x, n, m, dim), patterns_reference.n_m_mask(x, n, m, dim)
        )
        lists = [x.clone(), x.clone().transpose(0, 1).contiguous().transpose(0, 1)]
        patterns.n_m_projection_(lists, n, m, dim)
        assert torch.equal(lists[0], expected)
        assert torch.equal(lists[1], expected)
        again = patterns.n_m_projection(expected, n, m, dim)
        assert torch.equal(again, expected)


def test_two_of_four() -> None:
    x = torch.tensor([1.0, -1.0, 1.0, 0.5, NAN, 3.0, -INF, 2.0, 1.0, 2.0])
    y = patterns.n_m_projection(x)
    expected = torch.tensor([1.0, -1, 0, 0, NAN, 0, -INF, 0, 1, 2])
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)
    x = torch.randn(8, requires_grad=True)
    (g,) = torch.autograd.grad(patterns.n_m_projection(x).sum(), x)
    assert torch.equal(g, patterns.n_m_mask(x).float())
    (g,) = torch.autograd.grad(patterns.n_m_projection(x, straight_through=True).sum(), x)
    assert torch.equal(g, torch.ones(8))


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: projections.prox_linf(x.long(), 1.0), TypeError, "`x` of dtype float32"),
        (lambda x: projections.prox_linf(x, -1.0), ValueError, "`threshold` to be at least 0"),
        (lambda x: projections.prox_linf(x, "a"), TypeError, "`threshold` to be a number"),
        (lambda x: projections.prox_linf(x, torch.ones(7)), ValueError, "`threshold` of one"),
        (lambda x: projections.prox_linf(x, 1.0, 2), ValueError, r"`dim` in \[-2, 2\), got 2"),
        (lambda x: projections.prox_linf(x, 1.0, True), TypeError, "`dim` to be an int"),
        (lambda x: projections.simplex_projection(x[0, 0]), ValueError, "0-d"),
        (lambda x: projections.simplex_projection(x, NAN), ValueError, "`total`"),
        (
            lambda x: projections.l1_ball_projection(x, 1.0, weights=torch.ones(3)),
            ValueError,
            r"`weights` of shape \(6,\), got \(3,\)",
        ),
        (
            lambda x: projections.l1_ball_projection(
                x, 1.0, weights=torch.ones(6).requires_grad_()
            ),
            ValueError,
            "without gradients",
        ),
        (lambda x: projections.capped_simplex_projection(x, 7.0), ValueError, "`total` to be at"),
        (lambda x: projections.capped_simplex_projection(x, 1.0, 0.0), ValueError, "`cap`"),
        (lambda x: projections.k_sparse_simplex_projection(x, 0), ValueError, "`k`"),
        (lambda x: projections.prox_linf_([x, 3], 1.0), TypeError, r"`tensors\[1\]`"),
        (lambda x: projections.prox_linf_([x], [1.0, 2.0]), ValueError, "`thresholds`"),
        (lambda x: patterns.n_m_projection(x, 5, 4), ValueError, r"`n` in \[0, 4\], got 5"),
        (lambda x: patterns.n_m_projection(x, 2, 65), ValueError, r"`m` in \[1, 64\], got 65"),
        (lambda x: patterns.n_m_projection(x, 2.0, 4), TypeError, "`n` to be an int"),
        (lambda x: simplex.sparsemax_loss(x, torch.zeros(3).long()), ValueError, "`target`"),
        (lambda x: simplex.sparsemax_loss(x, torch.zeros(4).int()), TypeError, "int64"),
        (lambda x: simplex.sparsemax_loss(x, torch.zeros(4, 5)), ValueError, "`target`"),
        (
            lambda x: simplex.entmax15_loss(x, torch.zeros(4).long(), reduction="m"),
            ValueError,
            "`reduction`",
        ),
    ],
)
def test_errors(call: Callable[[Tensor], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(torch.randn(4, 6))


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("row_threshold", ([4, 6, 1, 1], "l3"), "`law` to be one of simplex"),
        ("row_threshold", ([4, 5, 1, 1], "linf"), "`slices` of 24 elements"),
        ("row_threshold", ([4], "linf"), "`slices` of 4 numbers"),
    ],
)
def test_raw_errors(name: str, args: tuple[Any, ...], text: str) -> None:
    op = getattr(torch.ops.regkern, name)
    with pytest.raises(RuntimeError, match=text):
        op(torch.randn(4, 6), torch.ones(1).double(), *args)
    with pytest.raises(RuntimeError, match="`t` of dtype float64"):
        op(torch.randn(4, 6), torch.ones(1), [4, 6, 1, 1], "linf")

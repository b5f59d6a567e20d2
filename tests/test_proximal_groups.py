"""Groups, group penalties and budgets: brute force, laws, corners, errors, defects of others."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import Call, Recorder, equal
from regkern.proximal.envelope import GroupEnvelope, TopKGroups
from regkern.proximal.group_penalties import (
    GroupL0,
    GroupL2,
    GroupLHalf,
    GroupLogSum,
    GroupMCP,
    GroupPenalty,
    GroupSCAD,
    SparseGroup,
    TreeGroups,
)
from regkern.proximal.group_prox import group_norms
from regkern.proximal.groups import Groups
from regkern.reference.proximal import groups as reference
from sample import normal
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPE = (4, 6, 5)
EVERY = {
    "rows": Groups.kept(0),
    "columns": Groups.kept(2),
    "middle": Groups.kept(1),
    "filters": Groups.kept((0, 1)),
    "apart": Groups.kept((0, 2)),
    "whole": Groups.whole(),
    "blocks": Groups.blocks(8),
    "ragged": Groups.blocks(7),
    "blocks-dim": Groups.blocks(3, 1),
    "blocks-ragged": Groups.blocks(4, 1),
    "heads": Groups.heads(3, 1),
    "pointers": Groups.pointers([2, 10, 10, 40, 100]),
    "labels-dim": Groups.labels(torch.tensor([0, 1, 0, -1, 2, 1]), 1),
    "labels": Groups.labels(
        torch.randint(-1, 5, SHAPE, generator=torch.Generator().manual_seed(1))
    ),
}
groups_of_all_kinds = pytest.mark.parametrize("kind", EVERY)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return equal(a.contiguous(), b.contiguous())


# ---- geometry ----


@groups_of_all_kinds
def test_every_geometry(kind: str) -> None:
    groups = EVERY[kind]
    x = normal(SHAPE, torch.float64, 3)
    expected = reference.group_prox(x, groups, 0.5, 0.8, lam_l1=0.1)
    penalty = SparseGroup(0.5, 0.1, groups)
    y = penalty.prox(x, 0.8)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-14)
    z = x.clone()
    report = penalty.prox_(z, 0.8)
    assert same_bits(z, y)
    norms = reference.group_norms(expected, groups)
    torch.testing.assert_close(torch.cat(report.norms), norms, rtol=1e-12, atol=1e-14)
    assert int(report.zeros) == int((norms == 0).sum())
    torch.testing.assert_close(group_norms(x, groups), reference.group_norms(x, groups))
    out = torch.empty(SHAPE, dtype=torch.float64)
    assert penalty.prox(x, 0.8, out=out) is out
    assert same_bits(out, y)
    strided = torch.empty(5, 6, 4, dtype=torch.float64).permute(2, 1, 0).copy_(x)
    penalty.prox_(strided, 0.8)
    assert same_bits(strided, y)


@pytest.mark.parametrize("kind", ["apart", "labels"])
def test_gradients_through_a_map(kind: str) -> None:
    x = normal(SHAPE, torch.float64, 3).requires_grad_()
    step = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    penalty = SparseGroup(0.5, 0.1, EVERY[kind])

    def call(x: Tensor, step: Tensor) -> Tensor:
        return penalty.prox(x, step)

    assert torch.autograd.gradcheck(call, (x, step), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, step), fast_mode=True)


def test_groups_over_several_tensors() -> None:
    """Filter, bias, γ and β of a channel; a LoRA pair; a tensor that no group has."""
    shapes = [(6, 3, 3, 3), (6,), (6,), (4, 9), (7, 4), (5,)]
    groups = Groups.union([(0, 0), (1, 0), (2, 0)], [(3, 0), (4, 1)])
    tensors = [normal(s, torch.float64, i) for i, s in enumerate(shapes)]
    before = [t.clone() for t in tensors]
    report = GroupL2(0.3, groups).prox_(tensors, 0.9)

    def expected(parts: list[Tensor]) -> Tensor:
        rows = torch.cat([p.reshape(p.shape[0], -1) for p in parts], dim=1)
        norms = rows.norm(dim=1)
        return (1 - 0.27 * math.sqrt(rows.shape[1]) / norms).clamp_min(0)

    channel = expected(before[:3])
    for i in range(3):
        shape = [6] + [1] * (before[i].dim() - 1)
        torch.testing.assert_close(tensors[i], before[i] * channel.reshape(shape))
    pair = expected([before[3], before[4].t()])
    torch.testing.assert_close(tensors[3], before[3] * pair[:, None])
    torch.testing.assert_close(tensors[4], before[4] * pair)
    assert same_bits(tensors[5], before[5])
    assert [n.shape for n in report.norms] == [(10,)]


def test_values_of_unions_have_derivatives() -> None:
    groups = Groups.union([(0, 0), (1, 1)], [(2, 0)])
    xs = [
        normal(s, torch.float64, i).requires_grad_() for i, s in enumerate([(3, 2), (4, 3), (2,)])
    ]
    penalty = GroupL2(0.3, groups)

    def value(*xs: Tensor) -> Tensor:
        return penalty.value(xs).square()

    assert torch.autograd.gradcheck(value, xs, fast_mode=True)
    assert torch.autograd.gradgradcheck(value, xs, fast_mode=True)


def test_lists_are_the_tensors_one_by_one() -> None:
    shapes = [(64, 3, 7, 7), (10, 4096), (3, 70000), (2, 5), (0, 4), (300, 9)]
    for dtype in DTYPES:
        tensors = [normal(s, dtype, i) for i, s in enumerate(shapes)]
        twins = [t.clone() for t in tensors]
        penalty = GroupL2(0.9, Groups.kept(0))
        report = penalty.prox_(tensors)
        zeros = 0
        for t, twin, norms in zip(tensors, twins, report.norms, strict=True):
            alone = penalty.prox_(twin)
            zeros += int(alone.zeros)
            assert same_bits(t, twin)
            assert same_bits(norms, alone.norms[0])
        assert int(report.zeros) == zeros


@pytest.mark.parametrize("shape", [(3, 200000), (2, 3, 300), (130, 3, 4), (5, 2, 66000)])
def test_long_runs_and_columns(shape: tuple[int, ...]) -> None:
    """Several segments, runs of inner dimensions, several chunks of rows."""
    for dim in range(len(shape)):
        x = normal(shape, torch.float32, dim)
        rows = x.double().movedim(dim, 0).reshape(shape[dim], -1)
        torch.testing.assert_close(
            group_norms(x, Groups.kept(dim)), rows.norm(dim=1), rtol=1e-6, atol=0.0
        )


# ---- the prox is the minimiser ----

LAWS: dict[str, tuple[GroupPenalty, Any]] = {
    "l2": (GroupL2(0.7, Groups.kept(0), "none"), lambda s: 0.7 * s),
    "l0": (GroupL0(0.7, Groups.kept(0), "none"), lambda s: 0.7 * (s > 0).double()),
    "half": (GroupLHalf(0.7, Groups.kept(0), "none"), lambda s: 0.7 * s.sqrt()),
    "log": (GroupLogSum(0.7, Groups.kept(0), 0.3, "none"), lambda s: 0.7 * torch.log1p(s / 0.3)),
    "mcp": (
        GroupMCP(0.7, Groups.kept(0), 1.5, "none"),
        lambda s: torch.where(s > 1.05, 0.5 * 1.5 * 0.49, 0.7 * s - s * s / 3.0),
    ),
    "scad": (
        GroupSCAD(0.7, Groups.kept(0), 2.5, "none"),
        lambda s: torch.where(
            s <= 0.7,
            0.7 * s,
            torch.where(s > 1.75, 0.5 * 0.49 * 3.5, (2.5 * 0.7 * s - 0.5 * (s * s + 0.49)) / 1.5),
        ),
    ),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("step", [0.5, 3.0])
def test_laws_minimise_over_the_norm(law: str, step: float) -> None:
    """Along x_g, where the minimum must lie; steps within the convex domain and beyond it."""
    penalty, phi = LAWS[law]
    s = torch.linspace(0.01, 4.0, 60, dtype=torch.float64)
    direction = torch.nn.functional.normalize(normal((60, 3), torch.float64, 1))
    y = penalty.prox(s[:, None] * direction, step)
    found = y.norm(dim=1)
    torch.testing.assert_close(y, found[:, None] * direction)
    grid = torch.linspace(0.0, 5.0, 5001, dtype=torch.float64)
    best = (0.5 * (grid - s[:, None]) ** 2 + step * phi(grid)).amin(1)
    reached = 0.5 * (found - s) ** 2 + step * phi(found)
    assert bool((reached <= best + 1e-9).all())
    torch.testing.assert_close(penalty.value(y), phi(found).sum())


@pytest.mark.parametrize("positive", [False, True])
def test_sparse_group_minimises(positive: bool) -> None:
    """The optimality condition, and no better point nearby."""
    x = normal((5, 6), torch.float64, 2) * 2
    v = normal((5, 6), torch.float64, 3).abs()
    penalty = SparseGroup(0.3, 0.4, Groups.kept(0), l1_weights=v, positive=positive)
    y = penalty.prox(x, 0.7)

    def objective(z: Tensor) -> float:
        return float(0.5 * (z - x).square().sum() + 0.7 * penalty.value(z))

    best = objective(y)
    for i in range(300):
        z = y + normal(y.shape, torch.float64, 10 + i) * 10.0 ** -(i % 5)
        assert objective(z.clamp_min(0) if positive else z) >= best - 1e-12
    assert not positive or math.isinf(objective(x))


def test_tree_minimises() -> None:
    x = normal((4, 6), torch.float64, 2)
    tree = TreeGroups(0.3, [Groups.blocks(3), Groups.kept(0), Groups.whole()])
    y = tree.prox(x, 0.6)
    best = 0.5 * (y - x).square().sum() + 0.6 * tree.value(y)
    for i in range(200):
        z = y + normal(y.shape, torch.float64, 10 + i) * 10.0 ** -(i % 5)
        assert 0.5 * (z - x).square().sum() + 0.6 * tree.value(z) >= best - 1e-12
    z = x.clone()
    tree.prox_(z, 0.6)
    assert same_bits(z, y)


# ---- laws ----


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10000), st.floats(0.01, 3.0), st.sampled_from(sorted(EVERY)))
def test_moreau_and_non_expansive(salt: int, step: float, kind: str) -> None:
    groups = EVERY[kind]
    x, z = normal(SHAPE, torch.float64, salt), normal(SHAPE, torch.float64, salt + 1)
    penalty = GroupL2(0.8, groups)
    p, q = penalty.prox(x, step), penalty.prox(z, step)
    assert (p - q).norm() <= (x - z).norm() * (1 + 1e-12)
    # x − prox(x) is the projection on the dual balls: within them, and at their border where the
    # group stays.
    sizes = reference.group_norms(torch.ones(SHAPE, dtype=torch.float64), groups)
    dual, left = group_norms(x - p, groups), group_norms(p, groups)
    assert bool((dual <= 0.8 * step * sizes * (1 + 1e-12)).all())
    torch.testing.assert_close(dual[left > 0], (0.8 * step * sizes)[left > 0])


# ---- corners ----

PENALTIES = {
    "l2": lambda lam, g: GroupL2(lam, g),
    "sparse": lambda lam, g: SparseGroup(lam, lam, g),
    "l0": lambda lam, g: GroupL0(lam, g),
    "mcp": lambda lam, g: GroupMCP(lam, g),
    "scad": lambda lam, g: GroupSCAD(lam, g),
    "half": lambda lam, g: GroupLHalf(lam, g),
    "log": lambda lam, g: GroupLogSum(lam, g),
    "envelope": lambda lam, g: GroupEnvelope(lam, g, 2),
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("kind", ["rows", "columns", "labels"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_and_infinite_thresholds(name: str, kind: str, dtype: torch.dtype) -> None:
    x = normal(SHAPE, dtype, 4)
    x[0] = 0.0
    x[1, 0, 0] = -0.0
    groups = EVERY[kind]
    # The defects of proxssi and PAT: λ = 0 and a zero group give NaN.
    for lam, step in ((0.0, 1.0), (1.0, 0.0)):
        assert same_bits(PENALTIES[name](lam, groups).prox(x, step), x)
        y = x.clone()
        PENALTIES[name](lam, groups).prox_(y, step)
        assert same_bits(y, x)
    labels, _ = reference.labels_of(x.shape, groups)
    y = PENALTIES[name](math.inf, groups).prox(x)
    assert torch.equal(y, torch.where(labels < 0, x, torch.zeros_like(x)))


def test_zero_groups_have_gradient_zero() -> None:
    """jaxopt's prox_group_lasso has a NaN gradient there, pyproximal's L21 a NaN."""
    for lam in (0.0, 0.5):
        x = torch.zeros(3, 4, requires_grad=True)
        penalty = GroupL2(lam, Groups.kept(0))
        (penalty.prox(x).sum() + penalty.value(x)).backward()
        assert x.grad is not None
        assert torch.equal(x.grad, torch.full((3, 4), 1.0 if lam == 0.0 else 0.0))


@pytest.mark.parametrize("name", [n for n in PENALTIES if n != "envelope"])
@pytest.mark.parametrize("kind", ["rows", "columns", "apart"])
def test_nan_poisons_its_own_group(name: str, kind: str) -> None:
    x = normal(SHAPE, torch.float32, 5)
    x[1, 2, 3] = math.nan
    y = PENALTIES[name](0.3, EVERY[kind]).prox(x)
    labels, _ = reference.labels_of(x.shape, EVERY[kind])
    assert torch.equal(y.isnan(), labels == labels[1, 2, 3])


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-42])
def test_beyond_the_range_of_squares(scale: float) -> None:
    for shape, dim in (((5, 9), 0), ((5, 2000), 0), ((70, 5), 1)):
        x = (normal(shape, torch.float64, 6) * scale).float()
        lam = 0.5 * scale
        expected = reference.group_prox(x, Groups.kept(dim), lam, weights="none")
        y = GroupL2(lam, Groups.kept(dim), "none").prox(x)
        torch.testing.assert_close(
            y.double() / scale, expected / scale, rtol=2e-6, atol=4e-3 if scale < 1e-40 else 1e-6
        )
        assert not bool((y == 0).all())


def test_largest_halves() -> None:
    x = torch.full((2, 300), 65504.0, dtype=torch.float16)
    y = GroupL2(1000.0, Groups.kept(0)).prox(x)
    assert torch.equal(y, torch.full_like(x, 64504.0))


def test_sizes_one_and_zero() -> None:
    for shape in ((1, 1), (0, 3), (3, 0), (1,)):
        x = torch.full(shape, 2.0)
        y = GroupL2(0.5, Groups.kept(0)).prox(x)
        assert torch.equal(y, torch.full(shape, 1.5))
        report = GroupL2(0.5, Groups.kept(0)).prox_(x)
        assert report.norms[0].shape == (shape[0],)


def test_parameters_are_changed_outside_autograd() -> None:
    w = torch.nn.Parameter(normal((3, 4), torch.float32, 1))
    version = w._version
    GroupL2(10.0, Groups.kept(0)).prox_([w])
    assert w._version > version
    assert bool((w == 0).all())


def test_step_and_lam_may_be_tensors() -> None:
    x = normal((4, 5), torch.float32, 1)
    number = GroupL2(0.5, Groups.kept(0)).prox(x, 0.25)
    tensor = GroupL2(torch.tensor(0.5), Groups.kept(0)).prox(x, torch.tensor(0.25))
    assert same_bits(number, tensor)


def test_concave_laws_refuse_a_second_derivative() -> None:
    x = normal((4, 5), torch.float64, 1).requires_grad_()
    y = GroupMCP(0.3, Groups.kept(0)).prox(x)
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (g + x).sum().backward()
    (g,) = torch.autograd.grad(GroupMCP(0.3, Groups.kept(0)).value(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (g + x).sum().backward()


@pytest.mark.parametrize("law", LAWS)
def test_gradients_of_the_laws(law: str) -> None:
    penalty, _ = LAWS[law]
    x = (normal((6, 4), torch.float64, 1) * 2).requires_grad_()
    lam = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    step = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def both(x: Tensor, step: Tensor, lam: Tensor) -> Tensor:
        other = type(penalty)(lam, penalty.groups, weights="none")
        return other.prox(x, step).sum() + other.value(x)

    assert torch.autograd.gradcheck(both, (x, step, lam), fast_mode=True)


# ---- budgets ----


def envelope_by_bisection(s: Tensor, d: Tensor, k: float, t: float) -> Tensor:
    """u of the prox: Σ d u grows with α."""
    if float((d * (s > 0)).sum()) <= k:
        return (s > 0).double()
    low, high = 0.0, float(((1 + t) * d.sqrt() / s).max())
    for _ in range(200):
        middle = 0.5 * (low + high)
        u = (middle * s / d.sqrt() - t).clamp(0, 1)
        low, high = (middle, high) if float((d * u).sum()) < k else (low, middle)
    return (high * s / d.sqrt() - t).clamp(0, 1)


@pytest.mark.parametrize("weights", ["none", "sqrt"])
@pytest.mark.parametrize("k", [1, 3.5, 9, 100])
def test_envelope(weights: Any, k: float) -> None:
    groups = Groups.labels(torch.arange(40) % 12 // 2, 0)
    x = normal((40,), torch.float64, 3)
    penalty = GroupEnvelope(0.7, groups, k, weights)
    s = reference.group_norms(x, groups)
    sizes = torch.bincount(torch.arange(40) % 12 // 2).double()
    d = torch.ones_like(s) if weights == "none" else sizes.sqrt()
    u = envelope_by_bisection(s, d, k, 0.35)
    expected = x * (u / (0.35 + u))[torch.arange(40) % 12 // 2]
    y = penalty.prox(x, 0.5)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    z = x.clone()
    penalty.prox_(z, 0.5)
    torch.testing.assert_close(z, y, rtol=0.0, atol=0.0)
    best = 0.5 * (y - x).square().sum() + 0.5 * penalty.value(y)
    for i in range(100):
        z = y + normal(y.shape, torch.float64, 10 + i) * 10.0 ** -(i % 5)
        assert 0.5 * (z - x).square().sum() + 0.5 * penalty.value(z) >= best - 1e-10
    x.requires_grad_()
    step = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(penalty.prox, (x, step), fast_mode=True)
    assert torch.autograd.gradgradcheck(penalty.prox, (x, step), fast_mode=True)
    assert torch.autograd.gradcheck(penalty.value, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(penalty.value, (x,), fast_mode=True)


def test_envelope_is_half_the_squared_k_support_norm() -> None:
    """Argyriou's formula: sorted magnitudes, the k − r − 1 largest squared, the rest summed."""
    for salt, k in itertools.product(range(5), (1, 2, 4)):
        x = normal((7,), torch.float64, salt)
        a = x.abs().sort(descending=True).values
        for r in range(k):
            tail = float(a[k - r - 1 :].sum()) / (r + 1)
            above = math.inf if k - r - 2 < 0 else float(a[k - r - 2])
            if above > tail >= float(a[k - r - 1]):
                norm = float(a[: k - r - 1].square().sum()) + tail * tail * (r + 1)
                break
        value = GroupEnvelope(1.0, Groups.blocks(1), k).value(x)
        assert float(value) == pytest.approx(0.5 * norm, rel=1e-10)


def test_top_k_groups() -> None:
    tensors = [normal((6, 4), torch.float32, 1), normal((5, 9), torch.float32, 2)]
    for score in ("l2", "rms"):
        before = [t.clone() for t in tensors]
        after = [t.clone() for t in tensors]
        report = TopKGroups(Groups.kept(0), 4, score).prox_(after)
        scores = torch.cat(
            [t.norm(dim=1) / (1 if score == "l2" else t.shape[1] ** 0.5) for t in before]
        )
        kept = set(scores.argsort(descending=True)[:4].tolist())
        for i, (a, b) in enumerate(
            zip(
                torch.cat([t.sum(1) for t in after]),
                torch.cat([t.sum(1) for t in before]),
                strict=True,
            )
        ):
            assert float(a) == (pytest.approx(float(b)) if i in kept else 0.0)
        assert int(report.zeros) == 7
    ties = torch.ones(6, 2)
    TopKGroups(Groups.kept(0), 0.5).prox_(ties)
    assert torch.equal(ties.sum(1), torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0, 0.0]))
    assert float(TopKGroups(Groups.kept(0), 3).value(ties)) == 0.0
    assert math.isinf(float(TopKGroups(Groups.kept(0), 2).value(ties)))


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Groups.kept(0.5), TypeError, "Groups.kept: expected `dim` to be an int"),
        (lambda: Groups.blocks(0), ValueError, "`size` to be at least 1, got 0"),
        (lambda: Groups.labels([-2, 0]), ValueError, "`labels` of at least -1, got -2"),
        (lambda: Groups.pointers([3, 1]), ValueError, "`pointers` that rise"),
        (lambda: Groups.union([(0, 0)], [(0, 1)]), ValueError, "each place once"),
        (lambda: GroupL2(-1.0, Groups.kept(0)), ValueError, "`lam` to be at least 0, got -1.0"),
        (lambda: GroupL2(1.0, 0), TypeError, "`groups` to be Groups, got <class 'int'>"),
        (lambda: GroupMCP(1.0, Groups.kept(0), 0.0), ValueError, "`gamma` above 0.0, got 0.0"),
        (lambda: GroupEnvelope(1.0, Groups.kept(0), 0), ValueError, "`k` above 0, got 0"),
        (lambda: TopKGroups(Groups.kept(0), 1.5), ValueError, "a fraction in [0, 1], got 1.5"),
        (
            lambda: GroupL2(1.0, Groups.kept(3)).prox(torch.ones(2, 2)),
            ValueError,
            "a dimension in [-2, 2) of a tensor of shape (2, 2), got 3",
        ),
        (
            lambda: GroupL2(1.0, Groups.heads(3, 0)).prox(torch.ones(4, 2)),
            ValueError,
            "a multiple of 3 heads, got 4",
        ),
        (
            lambda: GroupL2(1.0, Groups.kept(0), torch.ones(3)).prox(torch.ones(2, 2)),
            ValueError,
            "`weights` for 2 groups, got 3",
        ),
        (
            lambda: GroupL2(1.0, Groups.kept(0)).prox_([torch.ones(2), torch.ones(2).double()]),
            TypeError,
            "one dtype, got torch.float32 and torch.float64",
        ),
        (
            lambda: GroupL2(1.0, Groups.kept(0)).prox_(
                [torch.ones(2), torch.ones(2, device="meta")]
            ),
            ValueError,
            "`tensors[1]` on cpu, got meta",
        ),
        (
            lambda: GroupL2(1.0, Groups.kept(0)).prox(torch.ones(2, dtype=torch.int64)),
            TypeError,
            "got torch.int64",
        ),
        (
            lambda: GroupL2(1.0, Groups.kept(0)).prox(torch.ones(2), -1.0),
            ValueError,
            "`step` to be at least 0, got -1.0",
        ),
        (
            lambda: torch.ops.regkern.group_sums([torch.ones(4)], [], [1, 3, 1], None, None, None),
            RuntimeError,
            "`geometry` of 4 elements, got 1 x 3 x 1",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value)


# ---- the same bits elsewhere: see test_contract ----


def record() -> list[Call]:
    """Over all geometries, laws and lengths of runs."""
    with Recorder() as recorder:
        for groups in EVERY.values():
            for dtype in (torch.float32, torch.float64):
                x = normal(SHAPE, dtype, 3).requires_grad_()
                SparseGroup(0.5, 0.1, groups).prox(x, 0.8).square().sum().backward()
                GroupLHalf(0.5, groups).prox_(x.detach().clone())
        lengths = (1, 3, 9, 17, 33, 147, 512, 513, 1100, 4097, 9000, 70001)
        for dtype in DTYPES:
            tensors = [normal((3, n), dtype, n) for n in lengths]
            tensors += [normal((130, 33), dtype, 1), normal((3, 2, 300), dtype, 2)]
            GroupL2(0.9, Groups.kept(0)).prox_([t.clone() for t in tensors])
            GroupL2(0.5, Groups.kept(-1), "none", True).prox_([tensors[-1], tensors[-2]])
            GroupL2(0.5, Groups.kept(1), "none").prox_([tensors[-1], tensors[-2]])
            tiny = [t * 1e-30 for t in tensors[:10]]
            GroupL2(1e-30, Groups.kept(0)).prox_(tiny)
        for penalty, _ in LAWS.values():
            x = normal((40, 5), torch.float64, 4).requires_grad_()
            (penalty.prox(x, 0.7).square().sum() + penalty.value(x)).backward()
    return recorder.calls

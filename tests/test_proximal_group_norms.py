"""Group penalties on the largest magnitude, on squared l1 norms, and on groups that overlap."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from regkern.proximal.group_norm_penalties import ExclusiveLasso, GroupLinf, OverlappingGroupL2
from regkern.proximal.group_penalties import GroupL2
from regkern.proximal.groups import Groups
from regkern.proximal.penalty import Penalty
from torch import Tensor

CHAIN = [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [9, 8]]
DENSE = [[0, 1, 2, 3, 4], [4, 2, 6, 0], [1, 5, 6, 7, 9], [8, 3, 5], [9, 0, 8], [7]]


def _tensor(*shape: int, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(salt)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def _penalties(lam: float | Tensor) -> list[Penalty]:
    """All of them, for tensors of shape (5, 2)."""
    return [
        GroupLinf(lam),
        GroupLinf(lam, 1, "none"),
        ExclusiveLasso(lam, 0),
        ExclusiveLasso(lam, 1),
        OverlappingGroupL2(lam, CHAIN),
        OverlappingGroupL2(lam, [[0, 1], [1, 2, 4], [4, 3]], dim=0),
    ]


ALL = range(len(_penalties(1.0)))


def _minimises(penalty: Penalty, value: Callable[[Tensor], Tensor], x: Tensor, step: float) -> None:
    """No point near the prox, nor between it and others, has a lower objective."""
    y = penalty.prox(x, step)

    def objective(z: Tensor) -> float:
        return float((z - x).square().sum() / 2 + step * value(z))

    least = objective(y)
    for salt in range(60):
        d = _tensor(*x.shape, salt=100 + salt)
        for size in (1e-3, 1e-1, 1.0):
            assert objective(y + size * d) > least
            assert objective(y + size * d * (y != 0)) >= least - 1e-12
    for other in (x, torch.zeros_like(x)):
        assert objective(y + 0.01 * (other - y)) >= least - 1e-12


# ---- the largest magnitude ----


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("weights", ["sqrt", "none", "tensor"])
def test_linf_minimises(dim: int, weights: str) -> None:
    x = _tensor(3, 4, 2, salt=1)
    count = x.shape[dim]
    own = torch.linspace(0.5, 2.0, count, dtype=torch.float64)
    w = {
        "sqrt": torch.full((count,), math.sqrt(24 / count), dtype=torch.float64),
        "none": torch.ones(count, dtype=torch.float64),
        "tensor": own,
    }[weights]
    penalty = GroupLinf(0.4, dim, own if weights == "tensor" else weights)  # type: ignore[arg-type]

    def value(z: Tensor) -> Tensor:
        return 0.4 * (w * z.movedim(dim, 0).reshape(count, -1).abs().amax(1)).sum()

    torch.testing.assert_close(penalty.value(x), value(x))
    torch.testing.assert_close(
        penalty.value([x, x]) if weights != "tensor" else 2 * value(x), 2 * value(x)
    )
    _minimises(penalty, value, x, 0.7)
    y = penalty.prox(x, 0.7)
    assert (y != x).any()
    assert (y != 0).any()


def test_strides_and_single_elements() -> None:
    x = _tensor(4, 3, 2, 5, salt=2)
    for dim in (0, 1, 3):
        torch.testing.assert_close(
            GroupLinf(0.3, dim).prox(x.to(memory_format=torch.channels_last)),
            GroupLinf(0.3, dim).prox(x),
        )
        # In place, and strides as they come.
        for z in (x.to(memory_format=torch.channels_last), x.permute(3, 0, 2, 1)):
            written = z.clone(memory_format=torch.preserve_format)
            GroupLinf(0.3, dim).prox_(written)
            assert torch.equal(written, GroupLinf(0.3, dim).prox(z))
            torch.testing.assert_close(
                ExclusiveLasso(0.3, dim).value(z), 0.15 * z.abs().sum(dim).square().sum()
            )
    v = _tensor(9, salt=3)
    torch.testing.assert_close(GroupLinf(0.3).prox(v), torch.nn.functional.softshrink(v, 0.3))
    torch.testing.assert_close(GroupLinf(0.3).value(v), 0.3 * v.abs().sum())


def test_linf_list_weights() -> None:
    """A number per group, of the first tensor, then of the second; 0 leaves a group alone."""
    xs = [_tensor(3, 4, salt=4), _tensor(2, 5, salt=5)]
    w = torch.tensor([1.0, 0.0, 3.0, 0.5, 2.0])
    penalty = GroupLinf(0.5, 0, w)
    parts = [GroupLinf(0.5, 0, w[:3]), GroupLinf(0.5, 0, w[3:])]
    expected = [p.prox(x) for p, x in zip(parts, xs, strict=True)]
    torch.testing.assert_close(penalty.value(xs), parts[0].value(xs[0]) + parts[1].value(xs[1]))
    written = [x.clone() for x in xs]
    report = penalty.prox_(written)
    for a, b, top in zip(written, expected, report.norms, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(top[top > 0], b.abs().amax(1)[b.abs().amax(1) > 0])
    assert torch.equal(written[0][1], xs[0][1])
    assert torch.equal(parts[0].prox(xs[0], math.inf)[1], xs[0][1])
    with pytest.raises(ValueError, match="for 3 groups"):
        penalty.value(xs[0])


def test_linf_gradients() -> None:
    x = _tensor(3, 5, salt=6).requires_grad_()
    lam = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, lam: GroupLinf(lam).value(x), (x, lam))
    assert torch.autograd.gradcheck(lambda x, lam: GroupLinf(lam).prox(x, 0.9), (x, lam))
    tied = torch.tensor([[1.0, -1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(GroupLinf(1.0, weights="none").value(tied), tied)
    torch.testing.assert_close(g, torch.tensor([[0.5, -0.5, 0.0]], dtype=torch.float64))


# ---- squared l1 norms ----


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_exclusive_minimises(dim: int) -> None:
    x = _tensor(3, 4, 2, salt=7)
    penalty = ExclusiveLasso(0.6, dim)

    def value(z: Tensor) -> Tensor:
        return 0.3 * z.abs().sum(dim).square().sum()

    torch.testing.assert_close(penalty.value(x), value(x))
    torch.testing.assert_close(penalty.value([x, x]), 2 * value(x))
    _minimises(penalty, value, x, 0.8)
    y = penalty.prox(x, 0.8)
    assert (y == 0).any()
    assert (y.abs().sum(dim) > 0).all()


def test_exclusive_gradients() -> None:
    x = _tensor(3, 5, salt=8).requires_grad_()
    lam = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, lam: ExclusiveLasso(lam, 1).value(x), (x, lam))
    assert torch.autograd.gradgradcheck(
        lambda x: ExclusiveLasso(0.3, 0).value(x), (x,), fast_mode=True
    )
    assert torch.autograd.gradcheck(lambda x, lam: ExclusiveLasso(lam, 1).prox(x, 2.0), (x, lam))


# ---- groups that overlap ----


def _projection(x: Tensor, groups: list[list[int]], radii: Tensor) -> Tensor:
    """Onto the intersection of balls: the dual of the projection, by its multipliers.

    With them the minimum over u is x / (1 + Σ multipliers); the dual is smooth and concave.
    """
    member = torch.zeros(len(groups), x.numel(), dtype=torch.float64)
    for k, g in enumerate(groups):
        member[k, g] = 1.0
    multipliers = torch.zeros(len(groups), dtype=torch.float64)
    step = 0.5 / float(2 * (member * x).square().sum())
    momentum = multipliers
    for k in range(60000):
        u = x / (1.0 + momentum @ member)
        slope = member @ u.square() - radii.square()
        after = (momentum + step * slope).clamp(min=0)
        momentum = (
            after + k / (k + 3) * (after - multipliers)
            if ((after - multipliers) * slope).sum() > 0
            else after
        )
        if (after - multipliers).abs().max() < 1e-13 and k > 100:
            break
        multipliers = after
    return x / (1.0 + multipliers @ member)


@pytest.mark.parametrize("groups", [CHAIN, DENSE])
@pytest.mark.parametrize("weights", ["sqrt", "tensor"])
def test_overlap_is_what_the_projection_leaves(groups: list[list[int]], weights: str) -> None:
    x = 1.5 * _tensor(10, salt=9)
    own = torch.linspace(0.6, 1.6, len(groups), dtype=torch.float64)
    w = (
        own
        if weights == "tensor"
        else torch.tensor([float(len(g)) for g in groups]).double().sqrt()
    )
    penalty = OverlappingGroupL2(
        0.5,
        groups,
        own if weights == "tensor" else "sqrt",
        sweeps=600,  # type: ignore[arg-type]
    )
    y = penalty.prox(x, 0.9)
    expected = x - _projection(x, groups, 0.45 * w)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    u = x - y
    for g, radius in zip(groups, w, strict=True):
        assert u[g].norm() <= 0.45 * radius + 1e-9
    # With the default number of sweeps, nearly.
    close = OverlappingGroupL2(0.5, groups, penalty.weights).prox(x, 0.9)
    torch.testing.assert_close(close, y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("groups", [CHAIN, DENSE])
def test_overlap_value_between_its_bounds(groups: list[list[int]]) -> None:
    """Any decomposition is an upper bound; ⟨u, x⟩ with u in the dual balls a lower one."""
    x = _tensor(10, salt=10).requires_grad_()
    w = [float(len(g)) ** 0.5 for g in groups]
    value = OverlappingGroupL2(1.0, groups, value_sweeps=2000).value(x)
    (u,) = torch.autograd.grad(value, x)
    x, value = x.detach(), value.detach()
    worst = max(float(u[g].norm()) / c for g, c in zip(groups, w, strict=True))
    assert float((u * x).sum()) / worst > float(value) * (1 - 1e-6)
    assert worst < 1 + 1e-4
    # Decompositions by brute force: gradient descent over all of them.
    member = torch.zeros(len(groups), 10, dtype=torch.float64)
    for k, g in enumerate(groups):
        member[k, g] = 1.0
    logits = torch.zeros(len(groups), 10, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.Adam([logits], lr=0.1)
    costs = torch.tensor(w, dtype=torch.float64)
    for _ in range(300):
        share = torch.softmax(logits.masked_fill(member == 0, -math.inf), 0)
        norms = ((x * share).square().sum(1) + 1e-16).sqrt()
        upper = (norms * costs).sum()
        descent.zero_grad()
        upper.backward()
        descent.step()
    upper = upper.detach()
    assert float(value) <= float(upper) + 1e-9
    assert float(value) > float(upper) * (1 - 1e-2)
    # The default number of iterations: from above, and near.
    near = OverlappingGroupL2(1.0, groups).value(x)
    assert float(value) - 1e-12 <= float(near) <= float(value) * (1 + 1e-3)


def test_overlap_without_overlaps_is_the_group_lasso() -> None:
    x = _tensor(4, 6, salt=11)
    labels = torch.arange(24) // 6
    plain = GroupL2(0.4, Groups.labels(labels))
    penalty = OverlappingGroupL2(0.4, [list(range(6 * k, 6 * k + 6)) for k in range(4)])
    torch.testing.assert_close(penalty.prox(x), plain.prox(x.reshape(-1)).reshape(4, 6))
    torch.testing.assert_close(penalty.value(x), plain.value(x.reshape(-1)))
    rows = OverlappingGroupL2(0.4, [[0], [1], [2], [3]], dim=0)
    torch.testing.assert_close(rows.prox(x), penalty.prox(x))
    torch.testing.assert_close(rows.value(x), penalty.value(x))


def test_overlap_forms_of_groups() -> None:
    """Indices of a dimension, and the rows of a sparse matrix."""
    x = _tensor(3, 5, 2, salt=12)
    groups = [[0, 1, 2], [2, 3], [3, 0]]
    by_dim = OverlappingGroupL2(0.3, groups, dim=1)
    places = torch.arange(30).reshape(3, 5, 2)
    flat = [places[:, g].reshape(-1) for g in groups]
    elements = OverlappingGroupL2(0.3, flat)
    torch.testing.assert_close(by_dim.prox(x), elements.prox(x))
    torch.testing.assert_close(by_dim.value(x), elements.value(x))
    matrix = torch.zeros(3, 30)
    for k, g in enumerate(flat):
        matrix[k, g] = 1.0
    sparse = OverlappingGroupL2(0.3, matrix.to_sparse_csr())
    assert torch.equal(sparse.prox(x), elements.prox(x))
    # Index 4 is in no group.
    assert torch.equal(by_dim.prox(x, math.inf)[:, 4], x[:, 4])
    assert (by_dim.prox(x, math.inf)[:, :4] == 0).all()


def test_overlap_gradients() -> None:
    x = _tensor(10, salt=13).requires_grad_()
    lam = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def prox(x: Tensor, lam: Tensor) -> Tensor:
        return OverlappingGroupL2(lam, CHAIN, sweeps=5).prox(x, 0.7)

    def value(x: Tensor, lam: Tensor) -> Tensor:
        return OverlappingGroupL2(lam, CHAIN, value_sweeps=400).value(x)

    assert torch.autograd.gradcheck(prox, (x, lam), fast_mode=True)
    assert torch.autograd.gradgradcheck(prox, (x, lam), fast_mode=True)
    assert torch.autograd.gradcheck(value, (x, lam), atol=1e-4, fast_mode=True)
    (g,) = torch.autograd.grad(value(x, lam), x, create_graph=True)
    with pytest.raises(RuntimeError, match="OverlappingGroupL2"):
        torch.autograd.grad(g.sum(), x)


# ---- all of them ----


@pytest.mark.parametrize("k", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_threshold_zero_and_infinity(k: int, dtype: torch.dtype) -> None:
    x = _tensor(5, 2, salt=14).to(dtype)
    x[1, 1] = -0.0
    for y in (_penalties(0.0)[k].prox(x), _penalties(1.0)[k].prox(x, 0.0)):
        assert torch.equal(y, x)
        assert torch.equal(y.signbit(), x.signbit())
    assert (_penalties(math.inf)[k].prox(x) == 0).all()
    assert (_penalties(1.0)[k].prox(x, math.inf) == 0).all()


@pytest.mark.parametrize("k", ALL)
def test_zero_stays_zero_with_gradient_zero(k: int) -> None:
    x = torch.zeros(5, 2, requires_grad=True)
    penalty = _penalties(0.5)[k]
    value, y = penalty.value(x), penalty.prox(x)
    assert float(value.detach()) == 0.0
    assert (y == 0).all()
    assert (torch.autograd.grad(value, x)[0] == 0).all()
    if not isinstance(penalty, ExclusiveLasso):
        assert (torch.autograd.grad(y.sum(), x)[0] == 0).all()


@pytest.mark.parametrize("k", ALL)
def test_nan_stays_in_its_group(k: int) -> None:
    x = _tensor(5, 2, salt=15)
    x[4, 1] = math.nan
    penalty = _penalties(0.3)[k]
    y = penalty.prox(x)
    touched = torch.zeros(5, 2, dtype=torch.bool)
    if isinstance(penalty, OverlappingGroupL2):
        # Of elements 8 and 9; all rows overlap.
        touched[0 if penalty.dim == 0 else 4 :] = True
    elif k in (0, 3):
        touched[4] = True
    else:
        touched[:, 1] = True
    assert torch.equal(y.isnan(), touched)
    assert penalty.value(x).isnan()


@pytest.mark.parametrize("k", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_list_is_the_functional_form(k: int, dtype: torch.dtype) -> None:
    xs = [_tensor(5, 2, salt=16 + i).to(dtype) for i in range(3)]
    penalty = _penalties(torch.tensor(0.4))[k]
    expected = [penalty.prox(x, 0.9) for x in xs]
    report = penalty.prox_(xs, 0.9)
    zeros = 0
    for x, y in zip(xs, expected, strict=True):
        assert y.dtype == dtype
        assert torch.equal(x, y)
        groups = y if not isinstance(penalty, GroupLinf) else y.abs().amax(1 - penalty.dim)
        zeros += int((groups == 0).sum())
    assert int(report.zeros) == zeros
    alone = expected[0].clone()
    penalty.prox_(alone, 0.0)
    assert torch.equal(alone, expected[0])


@pytest.mark.parametrize("k", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_compute_in_float32(k: int, dtype: torch.dtype) -> None:
    x = _tensor(5, 2, salt=20).to(dtype)
    penalty = _penalties(0.3)[k]
    assert torch.equal(penalty.prox(x, 0.8), penalty.prox(x.float(), 0.8).to(dtype))
    assert penalty.value(x).dtype == torch.float32
    torch.testing.assert_close(penalty.value(x), penalty.value(x.float()))


@pytest.mark.parametrize("k", ALL)
def test_empty(k: int) -> None:
    penalty = _penalties(0.3)[k]
    if not isinstance(penalty, OverlappingGroupL2):
        for shape in ((0, 2), (5, 0)):
            x = torch.zeros(shape)
            assert penalty.prox(x).shape == shape
            assert float(penalty.value(x)) == 0.0


def test_arguments() -> None:
    x = torch.ones(5, 2)
    with pytest.raises(ValueError, match=r"GroupLinf: expected `lam` to be at least 0, got -1"):
        GroupLinf(-1.0)
    with pytest.raises(TypeError, match=r"GroupLinf: expected `dim` to be an int, got 0.5"):
        GroupLinf(1.0, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"GroupLinf: expected `weights` to be 'sqrt'"):
        GroupLinf(1.0, 0, "size")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"GroupLinf: expected `dim` in \[-2, 2\), got 2"):
        GroupLinf(1.0, 2).prox(x)
    with pytest.raises(TypeError, match=r"GroupLinf: expected `tensors\[0\]` of dtype"):
        GroupLinf(1.0).prox_(x.int())
    with pytest.raises(ValueError, match=r"GroupLinf: expected `step` to be at least 0, got -1"):
        GroupLinf(1.0).prox_(x, -1.0)
    with pytest.raises(TypeError, match=r"ExclusiveLasso: expected `dim` to be an int, got None"):
        ExclusiveLasso(1.0, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"ExclusiveLasso: expected `dim` in \[-2, 2\), got 3"):
        ExclusiveLasso(1.0, 3).value(x)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ([], ValueError, "expected at least one group, got none"),
        ([[0], []], ValueError, r"expected `groups\[1\]` of one dimension and at least one index"),
        ([[0, 0]], ValueError, r"expected each index of `groups\[0\]` once, got \[0, 0\]"),
        ([[0, -2]], ValueError, r"indices of at least 0, got -2"),
        ([[0.5]], TypeError, r"expected `groups\[0\]` of integers, got torch.float32"),
        (torch.ones(2, 2), ValueError, "sparse CSR matrix, got a tensor of shape"),
        (3, TypeError, "expected `groups` to be a list"),
    ],
)
def test_overlap_arguments(groups: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OverlappingGroupL2(1.0, groups)  # type: ignore[arg-type]


def test_more_overlap_arguments() -> None:
    with pytest.raises(ValueError, match="indices below 8, got 9"):
        OverlappingGroupL2(1.0, CHAIN).prox(torch.ones(8))
    with pytest.raises(ValueError, match="`weights` for 4 groups, got 2"):
        OverlappingGroupL2(1.0, CHAIN, torch.ones(2))
    with pytest.raises(ValueError, match="positive and finite"):
        OverlappingGroupL2(1.0, CHAIN, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="`sweeps` to be at least 1, got 0"):
        OverlappingGroupL2(1.0, CHAIN, sweeps=0)
    with pytest.raises(TypeError, match=r"`value_sweeps` to be an int, got 1\.5"):
        OverlappingGroupL2(1.0, CHAIN, value_sweeps=1.5)  # type: ignore[arg-type]

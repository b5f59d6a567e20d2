"""Recipes in plain torch: by their formulas, and in their corners."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from regkern.nn.proximal import recipes as M
from regkern.proximal import activations as A
from regkern.proximal import gates as G
from regkern.proximal import recipes as R
from regkern.proximal.group_prox import group_norms
from regkern.proximal.groups import Groups
from regkern.proximal.penalties_elementwise import L1
from torch import Tensor, nn
from torch.nn.utils import parametrize

INF, NAN = math.inf, math.nan


def wide(*shape: int, seed: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def leaf(*shape: int, seed: int = 3) -> Tensor:
    return wide(*shape, seed=seed).requires_grad_()


def gradient(value: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), x)[0]


def score(x: float) -> float:
    return x + 1 if x >= 0 else 1 / (1 - x)


# ---- gradients and types of all ----

CLEAN = wide(3, 5, seed=4).bfloat16()
TARGET = torch.tensor([2, -100, 0])
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "stablemax": lambda x: A.stablemax(x),
    "stablemax over rows": lambda x: A.stablemax(x, 0),
    "cross-entropy": lambda x: A.stablemax_cross_entropy(x, TARGET),
    "compand": lambda x: A.compand(x, 1.5, 0.5, 0.25),
    "ash": lambda x: A.ash(x, 0.3, 2.0),
    "hard ash": lambda x: A.ash(x, 0.3, 2.0, dim=(0, 1), hard=True),
    "prox matching": lambda x: R.prox_matching_loss(x, CLEAN.to(x.dtype), 2.5),
    "gate penalty": lambda x: G.gate_penalty([x, x[:, :2] ** 2], 0.3, 2.0, 0.5),
    "sparsity": lambda x: G.rationale_sparsity(x, 0.4),
    "continuity": lambda x: G.rationale_continuity(x),
    "feature flow": lambda x: R.feature_flow([x, x.sin(), x.exp(), x * x], 0.5, 2.0),
    "path norm": lambda x: R.l2_path_norm(x[:2], x.T * 2),
    "mask sparsity": lambda x: R.mask_sparsity(x, x.detach() > -0.2, 0.7, 0.9),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients(name: str) -> None:
    x = leaf(3, 5)
    assert torch.autograd.gradcheck(SMOOTH[name], x)
    assert torch.autograd.gradgradcheck(SMOOTH[name], x, fast_mode=True)


# The others round their arguments on the way, in the functions above.
PLAIN = sorted(SMOOTH.keys() - {"feature flow", "path norm", "gate penalty"})


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_compute_in_float32(name: str, dtype: torch.dtype) -> None:
    x = wide(3, 5).to(dtype)
    half, single = SMOOTH[name](x), SMOOTH[name](x.float())
    assert torch.equal(half, single.to(half.dtype))
    assert half.dtype in (dtype, torch.float32)


def test_gradients_of_parameters() -> None:
    x = leaf(3, 4)
    one, two, three = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.7, 0.9)
    )
    calls: list[Callable[..., Tensor]] = [
        lambda x, a, b, c: A.compand(x, a, b, c),
        lambda x, a, b, c: A.ash(x, 0.2, a),
        lambda x, a, b, c: R.prox_matching_loss(x, x.detach() + 1, a),
        lambda x, a, b, c: G.gate_penalty(x, a, b, c),
        lambda x, a, b, c: G.rationale_sparsity(x, a),
        lambda x, a, b, c: R.feature_flow([x, x * x, x.exp()], a, b),
        lambda x, a, b, c: R.mask_sparsity(x, torch.ones(3, 4), a),
    ]
    for call in calls:
        assert torch.autograd.gradcheck(call, (x, one, two, three))


def test_one_graph() -> None:
    def everything(x: Tensor) -> Tensor:
        gates = G.gate(x, 0.1)
        total: Tensor = sum((f(x).sum() for f in SMOOTH.values()), start=gates.sum())
        return total

    x = leaf(3, 5)
    expected = everything(x)
    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(gradient(compiled, x), gradient(expected, x))


# ---- stablemax ----


def test_stablemax_by_its_formula() -> None:
    x = wide(4, 7) * 5
    p = A.stablemax(x)
    for row, given in zip(p.tolist(), x.tolist(), strict=True):
        total = sum(map(score, given))
        assert row == pytest.approx([score(v) / total for v in given], rel=1e-14)
    torch.testing.assert_close(A.stablemax(x.T, 0).T, p)


def test_stablemax_corners() -> None:
    x = torch.tensor([[1e30, -1e30, 3e38], [-INF, 0.0, 0.0], [NAN, 0.0, 1.0], [0.0, 1.0, INF]])
    p = A.stablemax(x)
    assert p[0].isfinite().all()
    assert float(p[0, 0]) == pytest.approx(1e30 / 3e38, rel=1e-4)
    assert p[1].tolist() == [0.0, 0.5, 0.5]
    assert p[2:].isnan().all()
    assert A.stablemax(torch.empty(0, 3)).shape == (0, 3)
    assert A.stablemax(torch.empty(3, 0)).shape == (3, 0)
    at_zero = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    assert gradient(A.stablemax(at_zero)[:, 0], at_zero).tolist() == [[0.25, -0.25]]


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_stablemax_cross_entropy_by_its_formula(dim: int) -> None:
    x = leaf(3, 4, 5)
    shape = [n for d, n in enumerate(x.shape) if d != dim % 3]
    target = torch.randint(0, x.shape[dim], shape, generator=torch.Generator().manual_seed(0))
    target.view(-1)[1] = -1
    picked = A.stablemax(x, dim).gather(dim, target.clamp(min=0).unsqueeze(dim)).squeeze(dim)
    expected = torch.where(target == -1, 0.0, -picked.log())
    losses = A.stablemax_cross_entropy(x, target, dim, -1, "none")
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(
        A.stablemax_cross_entropy(x, target, dim, -1), expected.sum() / (expected.numel() - 1)
    )
    total = A.stablemax_cross_entropy(x, target, dim, -1, "sum")
    torch.testing.assert_close(total, expected.sum())
    torch.testing.assert_close(gradient(total, x), gradient(expected, x))


def test_stablemax_cross_entropy_absorbs_nothing() -> None:
    # The others have 2e-9 of the score: in float32, 1 - p rounds to 0.
    x = torch.tensor([[1e9, 0.0, 0.0]], requires_grad=True)
    loss = A.stablemax_cross_entropy(x, torch.tensor([0]))
    assert float(loss.detach()) == pytest.approx(2e-9, rel=1e-5)
    twin = x.detach().double().requires_grad_()
    expected = gradient(-A.stablemax(twin)[0, 0].log(), twin)
    torch.testing.assert_close(gradient(loss, x).double(), expected, rtol=1e-5, atol=0)


def test_stablemax_cross_entropy_corners() -> None:
    def call(rows: list[list[float]], target: list[int], reduction: Any = "none") -> list[Any]:
        x = torch.tensor(rows, requires_grad=True)
        loss = A.stablemax_cross_entropy(x, torch.tensor(target), reduction=reduction)
        return [loss.detach().tolist(), gradient(loss, x).tolist()]

    # Far logits: ln(2e30) and 0; no overflow.
    loss, slope = call([[1e30, -1e30], [-1e30, 1e30]], [0, 0])
    assert loss == pytest.approx([0.0, 2 * math.log(1e30)], rel=1e-6)
    assert all(math.isfinite(v) for row in slope for v in row)
    assert call([[3.0]], [0]) == [[0.0], [[0.0]]]
    assert call([[NAN, 1.0]], [-100], "sum") == [0.0, [[0.0, 0.0]]]
    assert call([[1.0, -INF]], [0]) == [[0.0], [[0.0, 0.0]]]
    assert call([[1.0, -INF]], [1])[0] == [INF]
    for bad in ([7], [-1]):
        assert math.isnan(call([[1.0, 2.0]], bad)[0][0])
    assert math.isnan(call([[1.0, 2.0]], [-100], "mean")[0])
    none = A.stablemax_cross_entropy(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert none.isnan()


# ---- compander ----


def test_compand_by_its_formula() -> None:
    v = torch.tensor([-3.0, 0.0, 0.5, 1e30, INF], dtype=torch.float64)
    w = A.compand(v, 2.0, 0.5).tolist()
    assert w == pytest.approx([2 * math.atan(t / 0.5) for t in v.tolist()], rel=1e-15)
    assert A.compand(v, 2.0, 0.5, 0.1)[0] == pytest.approx(2 * math.atan(-6) - 0.3)
    assert A.compand(torch.tensor([NAN, -0.0]), 1.0, 1.0).tolist()[0] != 0
    assert A.compand(torch.empty(0, 2), 1.0, 1.0).shape == (0, 2)


@pytest.mark.parametrize("c", [0.0, 1e-9, 0.1, 10.0])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_compand_inverse(c: float, kind: Any) -> None:
    v = torch.cat([wide(50) * 10 ** torch.linspace(-6, 3, 50), torch.zeros(1)]).double()
    a, b, c = kind(0.8), kind(0.3), kind(c)
    w = A.compand(v, a, b, c)
    again = A.compand(A.compand_inverse(w, a, b, c), a, b, c)
    torch.testing.assert_close(again, w, rtol=1e-12, atol=0)


def test_compand_inverse_corners() -> None:
    w = torch.tensor([100.0, -100.0, INF, NAN, -0.0])
    v = A.compand_inverse(w, 1.0, 0.5)
    assert v[:3].isfinite().all()
    assert A.compand(v, 1.0, 0.5)[:2].tolist() == pytest.approx([1.5705, -1.5705], abs=1e-3)
    assert v[3].isnan()
    assert v[4] == 0
    bent = A.compand_inverse(w, 1.0, 0.5, 1e-3)
    torch.testing.assert_close(A.compand(bent, 1.0, 0.5, 1e-3)[:2], w[:2])
    assert bent[2] == INF
    assert bent[3].isnan()


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("c", [0.0, 0.2])
def test_weight_compander(learn: bool, c: float) -> None:
    layer = nn.Linear(6, 4)
    before = layer.weight.detach().clone()
    compander = M.WeightCompander(1.0, 0.5, c, learn)
    parametrize.register_parametrization(layer, "weight", compander)
    torch.testing.assert_close(layer.weight, before)
    layer(torch.randn(3, 6)).square().sum().backward()
    inner = layer.parametrizations.weight.original  # type: ignore[union-attr, operator]
    assert inner.grad.abs().sum() > 0
    names = {name for name, p in compander.named_parameters() if p.grad is not None}
    assert names == ({"a", "b", "c"} if learn else set())
    layer.weight = before / 2
    torch.testing.assert_close(layer.weight, before / 2)
    assert M.WeightCompander(1.0, 0.5, c, learn).load_state_dict(compander.state_dict())


# ---- ASH ----


@pytest.mark.parametrize("hard", [False, True])
def test_ash_by_its_formula(hard: bool) -> None:
    x = wide(3, 9)
    y = A.ash(x, 0.1, 3.0, hard=hard)
    quantile = 1.2815515655446004
    for got, row in zip(y.tolist(), x.tolist(), strict=True):
        mean, deviation = statistics.fmean(row), statistics.pstdev(row)
        for out, v in zip(got, row, strict=True):
            u = 3.0 * (v - mean - quantile * deviation)
            share = min(max(u / 6 + 0.5, 0), 1) if hard else 1 / (1 + math.exp(-u))
            assert out == pytest.approx(v * share, rel=1e-12)
    assert A.ash(x.T, 0.1, 3.0, 0, hard).T.allclose(y)


def test_ash_lets_the_share_through() -> None:
    x = wide(4, 20_000).float() * 7 + 3
    y = A.ash(x, 0.05, 1e4, hard=True)
    torch.testing.assert_close((y != 0).float().mean(1), torch.full((4,), 0.05), rtol=0.1, atol=0)
    assert ((y == 0) | (y == x)).float().mean() > 0.999


def test_ash_corners() -> None:
    x = torch.full((2, 3), 2.0, requires_grad=True)
    y = A.ash(x, 0.1)
    assert y.tolist() == [[1.0] * 3] * 2
    assert gradient(y, x).tolist() == [[0.5] * 3] * 2
    assert A.ash(torch.tensor([1.0, NAN]), 0.5).isnan().all()
    assert A.ash(torch.empty(3, 0), 0.5).shape == (3, 0)


# ---- prox matching ----


def test_prox_matching_by_its_formula() -> None:
    x, y = wide(4, 2, 3), wide(4, 2, 3, seed=9)
    squares = [sum(v * v for v in row) for row in (y - x).flatten(1).tolist()]
    expected = [1 - math.exp(-s / 4.0) for s in squares]
    assert R.prox_matching_loss(y, x, 2.0, "none").tolist() == pytest.approx(expected)
    assert float(R.prox_matching_loss(y, x, 2.0)) == pytest.approx(statistics.fmean(expected))
    assert float(R.prox_matching_loss(y, x, 2.0, "sum")) == pytest.approx(sum(expected))


def test_prox_matching_near_and_far() -> None:
    x = torch.zeros(4, 1)
    near = torch.tensor([[1e-6], [1e30], [0.0], [NAN]], requires_grad=True)
    loss = R.prox_matching_loss(near, x, 1.0, "none")
    assert loss[0].item() == pytest.approx(1e-12, rel=1e-5, abs=0)  # 1 - exp is 0 in float32
    assert loss[1:3].tolist() == [1.0, 0.0]
    assert loss[3].isnan()
    slope = gradient(loss[:3], near)
    assert slope[0].item() == pytest.approx(2e-6, rel=1e-5)
    assert slope[1:3].tolist() == [[0.0], [0.0]]
    # γ² is 0 in float32.
    apart = torch.tensor([[1e-30], [0.0]], requires_grad=True)
    width = torch.tensor(1e-30, requires_grad=True)
    tiny = R.prox_matching_loss(apart, torch.zeros(2, 1), width, "none")
    assert tiny.tolist() == pytest.approx([1 - math.exp(-1), 0.0], rel=1e-5)
    dx, dwidth = torch.autograd.grad(tiny.sum(), [apart, width])
    assert dx[:, 0].tolist() == pytest.approx([2e30 / math.e, 0.0], rel=1e-5)
    assert dwidth.item() == pytest.approx(-2e30 / math.e, rel=1e-5)
    assert R.prox_matching_loss(x[:0], x[:0], 1.0).isnan()
    assert R.prox_matching_loss(x[:, 0], x[:, 0], 1.0, "none").shape == (4,)


# ---- gates ----


def test_gate() -> None:
    x = torch.tensor([-1.0, 0.25, 0.5, INF, -INF, NAN], requires_grad=True)
    t = torch.tensor(0.25, requires_grad=True)
    g = G.gate(x, t)
    assert g[:5].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert g[5].isnan()
    weights = torch.arange(6.0)
    dx, dt = torch.autograd.grad((g * weights).sum(), [x, t])
    assert dx.tolist() == weights.tolist()
    assert dt.item() == -15
    assert G.gate(torch.tensor([INF, 1e38]), INF).tolist() == [0.0, 0.0]
    rows = torch.func.vmap(torch.func.grad(lambda row: (G.gate(row) * row).sum()))
    torch.testing.assert_close(rows(torch.tensor([[2.0, -3.0]])), torch.tensor([[3.0, -3.0]]))
    per_unit = G.gate(wide(4, 3).bfloat16(), torch.tensor([-9.0, 0.0, 9.0]))
    assert per_unit.dtype == torch.bfloat16
    assert per_unit[:, 0].eq(1).all()
    assert per_unit[:, 2].eq(0).all()
    assert G.gate(torch.empty(0)).shape == (0,)


def test_gate_penalty_by_hand() -> None:
    # Means 1, 1/2 and 0: the share is 1/2, the one gate that varies costs 1/4.
    gates = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert G.gate_penalty(gates, 0.25, 2.0, 3.0).item() == 2 / 16 + 3 / 4
    layers = [gates[:, :1], gates[:, 1:]]
    assert G.gate_penalty(layers, 0.25, 2.0, 3.0).item() == 2 / 16 + 3 / 4
    assert G.gate_penalty(gates[:1], 2 / 3).item() == pytest.approx(0, abs=1e-12)
    assert G.gate_penalty(gates[:0], 0.5).item() == 0.25
    assert G.gate_penalty(torch.tensor([[NAN]]), 0.5).isnan()


def test_rationale_penalties_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert G.rationale_sparsity(z, 0.25).item() == (0.5 + 0.25) / 2
    assert G.rationale_sparsity(z, 0.25, hinge=True).item() == 0.5 / 2
    assert G.rationale_continuity(z).item() == 2 / 2
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    padded = z.clone()
    padded[0, 3] = NAN
    assert G.rationale_sparsity(padded, 0.25, mask=mask).item() == (0.25 + 0.25) / 2
    assert G.rationale_continuity(padded, mask).item() == 1 / 2
    holes = torch.tensor([[1, 0, 1, 0]])
    assert G.rationale_continuity(z[:1], holes).item() == 0
    assert G.rationale_sparsity(z[:, :0], 0.25).item() == 0.25
    assert G.rationale_continuity(z[:0]).item() == 0
    assert G.rationale_continuity(torch.tensor([0.0, NAN])).isnan()
    assert G.rationale_sparsity(z, 0.0, mask=torch.zeros(2, 4)).item() == 0


# ---- penalties ----


def test_feature_flow_by_its_formula() -> None:
    xs = [wide(2, 3, seed=s) for s in range(4)]
    length = sum(abs(v) for a, b in itertools.pairwise(xs) for v in (b - a).flatten().tolist())
    curvature = sum(
        abs(v)
        for a, b, c in zip(xs, xs[1:], xs[2:], strict=False)
        for v in (c - 2 * b + a).flatten().tolist()
    )
    assert R.feature_flow(xs, 0.5, 0.25).item() == pytest.approx(0.5 * length + 0.25 * curvature)
    assert R.feature_flow(xs[:2], 1.0, 9.0).item() == pytest.approx(
        float((xs[1] - xs[0]).abs().sum())
    )
    assert R.feature_flow(xs[:1]).item() == 0
    x = torch.ones(3, requires_grad=True)
    assert gradient(R.feature_flow([x, x * 1, x * 1]), x).tolist() == [0.0] * 3


def test_l2_path_norm() -> None:
    v, w = wide(4), wide(4, 2, 3)
    expected = sum(
        abs(float(a)) * math.sqrt(float((b * b).sum())) for a, b in zip(v, w, strict=True)
    )
    assert R.l2_path_norm(v, w).item() == pytest.approx(expected)
    assert R.l2_path_norm(v[None], w).item() == pytest.approx(expected)
    out = wide(3, 4, seed=8)
    norms = out.norm(dim=0) * w.flatten(1).norm(dim=1)
    torch.testing.assert_close(R.l2_path_norm(out, w), norms.sum())
    # No bigger than weight decay, and equal to it where the two layers are balanced.
    size = group_norms(w, Groups.kept(0))
    balance = (v.abs() / size).sqrt()
    decay = 0.5 * ((v / balance).square().sum() + (size * balance).square().sum())
    assert decay.item() == pytest.approx(expected)
    dead = torch.zeros(2, 3, requires_grad=True)
    alive = torch.ones(2, requires_grad=True)
    dv, dw = torch.autograd.grad(R.l2_path_norm(alive, dead), [alive, dead])
    assert not dv.any()
    assert not dw.any()
    assert R.l2_path_norm(torch.empty(0), torch.empty(0, 3)).item() == 0
    assert R.l2_path_norm(torch.tensor([NAN]), torch.ones(1, 2)).isnan()


def test_mask_sparsity_is_a_weighted_l1() -> None:
    gamma, mask = leaf(40), wide(40, seed=5) > 0
    ours, theirs = R.mask_sparsity(gamma, mask, 0.3), L1(0.3, weights=mask.double()).value(gamma)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, gamma), gradient(theirs, gamma))


def test_mask_sparsity_is_smooth_where_a_step_overshoots() -> None:
    s, lr = 0.5, 0.2  # δ = 0.1
    gamma = torch.tensor([0.0999, -0.05, 0.0, 0.1, 0.3, -2.0, 0.05, NAN], dtype=torch.float64)
    mask = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])
    gamma.requires_grad_()
    value = R.mask_sparsity(gamma, mask, s, lr)
    assert gradient(value, gamma).tolist() == pytest.approx(
        [s * 0.0999, -s * 0.05, 0.0, s, s, -s, 0.0, 0.0]
    )
    # The value is the integral of the slope: no jump at δ.
    below, above = (
        R.mask_sparsity(torch.tensor([g]), torch.ones(1), s, lr) for g in (0.09999, 0.10001)
    )
    assert below.item() == pytest.approx(above.item(), abs=1e-4)
    pair = R.mask_sparsity([gamma[:4], gamma[4:7]], [mask[:4], mask[4:7]], s, lr)
    assert pair.item() == pytest.approx(value.item())
    assert R.mask_sparsity(torch.tensor([NAN]), torch.ones(1), s, lr).isnan()
    assert R.mask_sparsity(torch.empty(0), torch.empty(0), s).item() == 0


# ---- modules and errors ----


def test_modules() -> None:
    x, target = wide(3, 5), torch.tensor([0, 1, -1])
    assert M.Stablemax(0)(x).equal(A.stablemax(x, 0))
    loss = M.StablemaxCrossEntropyLoss(ignore_index=-1, reduction="sum")
    assert loss(x, target).equal(A.stablemax_cross_entropy(x, target, -1, -1, "sum"))
    assert M.ASH(0.2, 3.0, hard=True)(x).equal(A.ash(x, 0.2, 3.0, hard=True))
    compander = M.WeightCompander(1.0, 0.5)
    network = nn.ModuleList([M.Stablemax(), loss, M.ASH(0.2), compander])
    assert "a=1.0, b=0.5, c=0.0" in repr(network)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: A.stablemax(x.int()), "stablemax: expected `x` of dtype"),
        (lambda x: A.stablemax(x, 2), r"`dim` in \[-2, 2\)"),
        (lambda x: A.stablemax_cross_entropy(x, x[:, 0]), "`target` of dtype int64"),
        (
            lambda x: A.stablemax_cross_entropy(x, torch.zeros(5).long()),
            r"`target` of shape \(4,\)",
        ),
        (lambda x: A.stablemax_cross_entropy(x[:, :0], torch.zeros(4).long()), "with classes"),
        (lambda x: A.compand(x, 1.0, 0.0), "compand: expected `b` above 0, got 0.0"),
        (lambda x: A.compand(x, -1.0, 1.0), "`a` to be at least 0"),
        (lambda x: A.compand(x, 1.0, 1.0, torch.ones(2)), "`c` to have one element"),
        (lambda x: A.compand_inverse(3, 1.0, 1.0), "compand_inverse: expected `w`"),
        (lambda x: A.ash(x, 0.0), "`k` between 0 and 1, got 0.0"),
        (lambda x: A.ash(x, torch.tensor(0.5)), "`k` to be a number"),
        (lambda x: A.ash(x, 0.5, dim=(0, 5)), r"`dim` in \[-2, 2\)"),
        (lambda x: R.prox_matching_loss(x, x[:2], 1.0), "expected `x` like `f_y`"),
        (lambda x: R.prox_matching_loss(x, x, 0.0), "`gamma` above 0"),
        (lambda x: R.prox_matching_loss(x, x, 1.0, "max"), "`reduction` to be one of"),
        (lambda x: G.gate(x, torch.ones(4, 1, 1)), r"`threshold` that broadcasts to \(4, 5\)"),
        (lambda x: G.gate(x, "0"), "`threshold` to be a number"),
        (lambda x: G.gate_penalty(x, 1.5), r"`rho` in \[0, 1\]"),
        (lambda x: G.gate_penalty([x, x[0, 0]], 0.5), r"`gates\[1\]` with a batch in front"),
        (lambda x: G.rationale_sparsity(x, 2.0), r"`target` in \[0, 1\]"),
        (lambda x: G.rationale_continuity(x, x[0]), r"`mask` of shape \(4, 5\)"),
        (lambda x: R.feature_flow([]), "a tensor in `features`, got none"),
        (lambda x: R.feature_flow([x, x[:1]]), r"`features\[1\]` like `features\[0\]`"),
        (lambda x: R.l2_path_norm(x, x), r"`w` of shape \(5, ...\)"),
        (lambda x: R.l2_path_norm(x[None], x), r"`v` of shape \(units,\)"),
        (lambda x: R.mask_sparsity(x, x[0], 1.0), r"`mask\[0\]` of shape \(4, 5\)"),
        (lambda x: R.mask_sparsity([x, x], x, 1.0), "2 tensors in `mask`, got 1"),
        (lambda x: M.WeightCompander(0.0, 1.0), "WeightCompander: expected `a` above 0"),
        (lambda x: M.StablemaxCrossEntropyLoss(reduction="max"), "`reduction` to be one of"),  # type: ignore[arg-type]
    ],
)
def test_errors(call: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call(torch.randn(4, 5))

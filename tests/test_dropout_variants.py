"""Variants of dropout: their laws, gradients, modules and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from regkern.masks import heads
from regkern.masks.dropping import dropout
from regkern.masks.events import (
    bernoulli,
    bernoulli_log_prob,
    bernoulli_mask,
    observed_dropout,
    subnetwork_mask,
)
from regkern.masks.gradient_variance import gradient_direction_variance
from regkern.masks.heads import compact_dropout_linear, multi_sample_dropout_linear
from regkern.masks.low_rank import lora_dropout
from regkern.masks.prefixes import nested_dropout, prefix_weights
from regkern.masks.weights import mixout, mixout_
from regkern.nn.masks.dropout import Dropout
from regkern.nn.masks.heads import (
    CompactDropoutLinear,
    MultiSampleDropoutLinear,
    ObservedDropout,
)
from regkern.nn.masks.low_rank import LoRADropoutLinear
from regkern.nn.masks.nested import NestedDropout
from regkern.nn.masks.schedule import CurriculumSchedule, EarlySchedule, LateSchedule
from regkern.nn.masks.weights import (
    Mixout,
    SubnetworkAnnealing,
    WeightDropout,
    mixout_weights,
    weight_dropout,
)
from regkern.reference import variants as reference
from sample import seed
from torch import Tensor, nn
from torch.nn.utils import parametrize

N = 1 << 20


def grads(y: Tensor, *xs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, xs, torch.ones_like(y))


# ---- events ----


@pytest.mark.parametrize("p", [0.5, 0.03, 1 - 1e-3, 2.5 / 65536])
def test_rate_and_variance_of_samples(p: float) -> None:
    b = bernoulli(torch.full((N,), p), seed=seed())
    deviation = math.sqrt(p * (1 - p) / N)
    assert abs(float(b.double().mean()) - p) < 5 * deviation
    counts = b.reshape(-1, 1024).double().sum(1)
    expected = 1024 * p * (1 - p)
    assert float(counts.var()) == pytest.approx(expected, rel=0.3 if expected < 1 else 0.25)


def test_samples_of_neighbours_steps_and_ends() -> None:
    p = torch.full((N,), 0.3)
    a = bernoulli(p, seed=seed()).double() - 0.3
    other = bernoulli(p, seed=seed() + 1).double() - 0.3
    for b in (other, a.roll(1), a.roll(16), a.roll(128)):
        assert abs(float((a * b).mean())) < 5 * 0.21 / math.sqrt(N)
    ends = bernoulli(torch.tensor([0.0, 1.0, -0.1, 1.1, torch.nan]).repeat(50), seed=seed())
    expected = torch.tensor([0.0, 1.0, torch.nan, torch.nan, torch.nan]).repeat(50)
    assert torch.equal(ends.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_the_mask_is_the_sample_and_the_complement_of_dropout() -> None:
    x, p = torch.randn(7, 400), torch.rand(7, 400)
    b = bernoulli(p, seed=seed())
    assert torch.equal(bernoulli_mask(x, p, seed=seed()), x * b)
    assert torch.equal(dropout(x, p, scale=False, seed=seed()), x * (1 - b))
    row = torch.rand(400)
    assert torch.equal(
        bernoulli_mask(x, row, seed=seed()), bernoulli_mask(x, row.expand(7, 400), seed=seed())
    )
    assert torch.equal(
        bernoulli_mask(x, torch.tensor(0.25), seed=seed()), bernoulli_mask(x, 0.25, seed=seed())
    )


def test_straight_through_reaches_what_broadcasts() -> None:
    x = torch.randn(6, 50, dtype=torch.float64, requires_grad=True)
    row = torch.rand(50, dtype=torch.float64, requires_grad=True)
    one = torch.tensor(0.4, requires_grad=True)
    dx, drow = grads(bernoulli_mask(x, row, seed=seed()), x, row)
    assert torch.equal(dx, bernoulli(row.detach().expand(6, 50), seed=seed()))
    torch.testing.assert_close(drow, x.detach().sum(0))
    (done,) = grads(bernoulli_mask(x, one, seed=seed()), one)
    assert float(done) == pytest.approx(float(x.detach().sum()), rel=1e-5)


def test_score_function_is_an_unbiased_gradient() -> None:
    """d E[f(b)] / dp for f = (Σ b)², against its closed form."""
    p = torch.tensor([0.2, 0.5, 0.7])
    many = p.expand(200_000, 3).clone().requires_grad_()
    b, log_prob = bernoulli(many, "score", dim=1, seed=seed())
    assert not b.requires_grad
    reward = b.sum(1) ** 2
    (g,) = torch.autograd.grad((log_prob * reward).sum(), many)
    # E[(Σ b)²] = Σ p (1 − p) + (Σ p)².
    expected = 1 - 2 * p + 2 * p.sum()
    torch.testing.assert_close(g.mean(0), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(
        bernoulli_log_prob(b, many),
        torch.distributions.Bernoulli(many).log_prob(b).sum(),
        rtol=1e-4,
        atol=1e-3,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_annealed_masks(dtype: torch.dtype) -> None:
    w = (torch.randn(40, 600) + 6).to(dtype)
    target = torch.rand(40, 600) < 0.3
    for tau, random in ((0.4, None), (0.0, None), (1.0, None), (0.5, torch.rand(40, 600))):
        y = subnetwork_mask(w, target, tau, random, seed=seed())
        assert torch.equal(y, reference.subnetwork_mask(w, target, tau, random, seed=seed()))
        assert torch.equal(y[target], w[target])
        if random is None:
            assert abs(float((y[~target] != 0).double().mean()) - tau) < 0.03
    v = w.clone().requires_grad_()
    y = subnetwork_mask(v, target, torch.tensor(0.4), seed=seed())
    assert torch.equal(grads(y, v)[0], (y != 0).to(dtype))


def test_observed_data_are_hidden_not_invented() -> None:
    x = torch.randn(4, 5000)
    observed = torch.rand(4, 5000) < 0.6
    x[~observed] = torch.nan
    z = torch.randn(4, 5000)
    a, b = x.clone().requires_grad_(), z.clone().requires_grad_()
    p = torch.tensor(0.3, requires_grad=True)
    y, log_prob = observed_dropout(a, b, observed, p, log_prob=True, dim=1, seed=seed())
    assert not y.isnan().any()
    taken = y == x
    assert not taken[~observed].any()
    assert abs(float(taken[observed].double().mean()) - 0.7) < 0.02
    da, db = grads(y, a, b)
    assert torch.equal(da, taken.float())
    assert torch.equal(db, 1 - taken.float())
    kept = taken.sum(1)
    hidden = observed.sum(1) - kept
    torch.testing.assert_close(log_prob, kept * math.log(0.7) + hidden * math.log(0.3))
    (dp,) = torch.autograd.grad(log_prob.sum(), p)
    assert float(dp) == pytest.approx(float((hidden / 0.3 - kept / 0.7).sum()), rel=1e-4)
    still = observed_dropout(x, z, observed, 0.3, training=False)
    assert torch.equal(still, torch.where(observed, x, z))


# ---- mixout ----


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9, 1.0])
def test_mixout(p: float) -> None:
    w = torch.randn(30, 70, dtype=torch.float64, requires_grad=True)
    old = torch.randn(30, 70, dtype=torch.float64, requires_grad=True)
    for shared in ((), 0):
        y = mixout(w, old, p, shared=shared, seed=seed())
        expected = reference.mixout(w, old, p, shared=shared, seed=seed())
        torch.testing.assert_close(y, expected)
        for ours, theirs in zip(grads(y, w, old), grads(expected, w, old), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert torch.equal(mixout(old, old, p, seed=seed()), old)
    same = mixout(w, old, torch.tensor(p, dtype=torch.float64), seed=seed())
    assert torch.equal(same, mixout(w, old, p, seed=seed()))
    assert mixout(w, old, p, training=False) is w
    # A weight alone, without pre-trained ones, is dropout.
    torch.testing.assert_close(
        mixout(w, torch.zeros_like(w), p, seed=seed()), dropout(w, p, seed=seed())
    )


def test_mixout_has_the_weight_as_its_mean() -> None:
    w, old = torch.randn(200), torch.randn(200)
    ys = mixout(w.expand(20_000, 200).contiguous(), old.expand(20_000, 200).contiguous(), 0.7)
    torch.testing.assert_close(ys.mean(0), w, rtol=0.0, atol=6 * 5 * math.sqrt(2.4 / 20_000))


def test_the_authors_gradient() -> None:
    w = torch.randn(30, 70, requires_grad=True)
    old = torch.randn(30, 70)
    for shared in ((), 0):
        exact = mixout(w, old, 0.8, shared=shared, seed=seed())
        theirs = mixout(w, old, 0.8, shared=shared, author_grad=True, seed=seed())
        assert torch.equal(exact, theirs)
        torch.testing.assert_close(grads(theirs, w)[0], 0.2 * grads(exact, w)[0])


def test_mixout_of_a_network_and_of_its_gradients() -> None:
    ws = [torch.randn(33, 5), torch.randn(7).double(), torch.randn(300).bfloat16()]
    # Nowhere the same, also not in bfloat16: an equal element is one that was replaced.
    old = [w + 1 for w in ws]
    first = mixout(ws[0], old[0], 0.5, seed=seed())
    mixed = [w.clone() for w in ws]
    mixout_(mixed, old, 0.5, seed=seed())
    assert torch.equal(mixed[0], first)
    gs = [torch.ones_like(w) for w in ws]
    mixout_(gs, p=0.5, seed=seed())
    for y, w, g, w0 in zip(mixed, ws, gs, old, strict=True):
        assert torch.equal(g == 0, y == w0)
        assert set(g.unique().tolist()) == {0.0, 2.0}
        exact = (w0.double() + (w.double() - w0.double()) * g.double()).to(y.dtype)
        torch.testing.assert_close(y, exact)


# ---- prefixes ----


@pytest.mark.parametrize(
    "law",
    [
        prefix_weights(12, sigma=5.0, mu=2.0),
        prefix_weights(12, "geometric", rate=0.3),
        prefix_weights(12, "uniform"),
        torch.tensor([0.0, 1.0, 0.0, 3.0] + [0.0] * 8),
    ],
)
def test_lengths_have_their_law(law: Tensor) -> None:
    x = torch.ones(20_000, 12)
    y, k = nested_dropout(x, law, per="sample", return_k=True, seed=seed())
    assert torch.equal(y.sum(1).long(), k)
    assert torch.equal(y, (torch.arange(12) < k[:, None]).float())
    p = law.double() / law.sum()
    counts = torch.bincount(k - 1, minlength=12) / 20_000
    assert bool(((counts - p).abs() <= 5 * torch.sqrt(p * (1 - p) / 20_000)).all())


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_prefixes_of_any_dimension(dim: int) -> None:
    x = torch.randn(6, 7, 90, requires_grad=True)
    y, k = nested_dropout(x, dim=dim, return_k=True, seed=seed())
    size = x.shape[dim]
    shape = [1, 1, 1]
    shape[dim] = size
    mask = (torch.arange(size) < k).reshape(shape).expand_as(x)
    assert torch.equal(y, x * mask)
    assert torch.equal(grads(y, x)[0], mask.float())
    given = torch.tensor([0, 3, 90, 200, 1, -4])
    z = nested_dropout(x, k=given, dim=2, per="sample")
    assert torch.equal(z, x * (torch.arange(90) < given[:, None, None]))


# ---- low rank, heads ----


def test_lora_dropout() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 40, dtype=torch.float64, requires_grad=True)
    a = torch.randn(4, 40, dtype=torch.float64, requires_grad=True)
    b = torch.randn(30, 4, dtype=torch.float64, requires_grad=True)
    for samples in (1, 3):
        ours = lora_dropout(x, a, b, 0.4, scale=1.5, samples=samples, seed=seed())
        theirs = reference.lora_dropout(x, a, b, 0.4, scale=1.5, samples=samples, seed=seed())
        torch.testing.assert_close(ours, theirs)
        for g, h in zip(grads(ours, x, a, b), grads(theirs, x, a, b), strict=True):
            torch.testing.assert_close(g, h)
    y = lora_dropout(x, a, b, 0.4, seed=seed())
    dx, da, db = grads(y, x, a, b)
    columns, rows = dx.abs().sum((0, 1)) == 0, y.abs().sum((0, 1)) == 0
    assert 0 < int(columns.sum()) < 40
    assert 0 < int(rows.sum()) < 30
    assert not da[:, columns].any()
    assert not db[rows].any()
    torch.testing.assert_close(lora_dropout(x, a, b, 0.4, False), x @ a.T @ b.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_multi_sample_dropout_linear(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three chunks, the last of them short.
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", 1000)
    samples, features = 4, 60
    rows = 2 * heads.chunk_rows(samples, features) + 2
    assert rows == 10
    x = torch.randn(2, rows // 2, features).to(dtype).requires_grad_()
    w = (torch.randn(5, features) / 8).to(dtype).requires_grad_()
    b = torch.randn(5).to(dtype).requires_grad_()
    y = multi_sample_dropout_linear(x, w, b, 0.3, samples, seed=seed())
    twins = [t.detach().double().requires_grad_() for t in (x, w, b)]
    z = reference.multi_sample_dropout_linear(*twins, 0.3, samples, chunk=1000, seed=seed())
    assert y.shape == (samples, *x.shape[:-1], 5)
    tolerance = (
        {"rtol": 1e-4, "atol": 1e-4} if dtype != torch.bfloat16 else {"rtol": 0.05, "atol": 0.1}
    )
    torch.testing.assert_close(y.double(), z, **tolerance)
    for g, h in zip(grads(y, x, w, b), grads(z, *twins), strict=True):
        torch.testing.assert_close(g.double(), h, **tolerance)
    assert multi_sample_dropout_linear(x, w, b, 0.3, samples, False).shape == y.shape


def test_multi_sample_dropout_linear_differentiates_and_compiles() -> None:
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, w: Tensor) -> Tensor:
        return multi_sample_dropout_linear(x, w, None, 0.4, 3, seed=seed())

    assert torch.autograd.gradcheck(call, (x, w))
    assert torch.autograd.gradgradcheck(call, (x, w))
    per_row = torch.func.vmap(torch.func.grad(lambda x: (call(x, w) ** 2).sum()))(x[None])
    torch.testing.assert_close(per_row[0], torch.autograd.grad((call(x, w) ** 2).sum(), x)[0])
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(x, w)
    torch.testing.assert_close(compiled, call(x, w))
    torch.testing.assert_close(grads(compiled, x, w), grads(call(x, w), x, w))


def test_compact_dropout_keeps_an_exact_share() -> None:
    x = torch.randn(50, 300, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 300, dtype=torch.float64)
    b = torch.randn(4, dtype=torch.float64)
    y = compact_dropout_linear(x, w, b, 0.9, seed=seed())
    (dx,) = grads(y, x)
    kept = dx[0] != 0
    assert int(kept.sum()) == 30
    torch.testing.assert_close(y, F.linear(x * kept * 10, w, b))
    mean = torch.stack([compact_dropout_linear(x, w, b, 0.5, seed=seed() + i) for i in range(100)])
    error = (mean.mean(0) - F.linear(x, w, b)).detach()
    assert float(error.pow(2).mean().sqrt()) < 6 * math.sqrt(300 / 100)
    torch.testing.assert_close(compact_dropout_linear(x, w, b, 0.9, False), F.linear(x, w, b))


# ---- modules and schedules ----


def test_weight_dropout_of_layers_and_recurrent_weights() -> None:
    torch.manual_seed(0)
    layer = weight_dropout(nn.Linear(50, 40, bias=False), 0.5)
    x = torch.eye(50)
    seen = layer(x)
    assert abs(float((seen == 0).double().mean()) - 0.5) < 0.05
    assert not torch.equal(seen, layer(x))
    assert torch.equal(layer.eval()(x), layer.parametrizations.weight.original.T)
    lstm = weight_dropout(nn.LSTM(6, 8), 0.5, ["weight_hh_l0"])
    inputs = torch.randn(4, 2, 6)
    assert not torch.equal(lstm(inputs)[0], lstm(inputs)[0])
    lstm(inputs)[0].sum().backward()
    g = lstm.parametrizations.weight_hh_l0.original.grad
    assert g is not None
    assert 0 < int((g == 0).sum()) < g.numel()
    assert torch.equal(lstm.eval()(inputs)[0], lstm(inputs)[0])


def test_mixout_weights_begin_as_they_are() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(50, 40)
    x = torch.randn(3, 50)
    expected = layer(x)
    mixout_weights(layer, 0.7, ["weight", "bias"])
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(1.0)
    rule = layer.parametrizations.weight[0]
    assert isinstance(rule, Mixout)
    share = float((layer.weight == rule.pretrained).double().mean())
    assert abs(share - 0.7) < 0.06
    torch.testing.assert_close(layer.eval()(x), expected + x.sum(1, keepdim=True))
    parametrize.remove_parametrizations(layer, "weight")


@pytest.mark.parametrize("random", [False, True])
def test_annealing_ends_at_the_subnetwork(random: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 80)
    target = torch.rand(80, 100) < 0.5
    rule = SubnetworkAnnealing(target, 4, schedule="cosine" if random else "linear", random=random)
    parametrize.register_parametrization(layer, "weight", rule)
    shares = []
    for _ in range(5):
        shares.append(float((layer.weight[~target] != 0).double().mean()))
        rule.step()
    half = 0.5 if random else 1.0
    times = [0.5 * (1 + math.cos(math.pi * t / 4)) if random else 1 - t / 4 for t in range(5)]
    assert all(abs(s - half * t) < 0.04 for s, t in zip(shares, times, strict=True))
    assert shares[-1] == 0.0
    assert torch.equal(layer.weight[target], layer.parametrizations.weight.original[target])
    assert not layer.eval().weight[~target].any()


def test_modules() -> None:
    torch.manual_seed(0)
    x = torch.ones(4096, 10)
    nested = NestedDropout(10, "geometric", rate=0.5, per="sample")
    assert abs(float((nested(x)[:, 1] == 0).double().mean()) - 0.5) < 0.05
    assert nested.eval()(x) is x
    nested.k = 3
    assert torch.equal(nested(x)[0], torch.tensor([1.0] * 3 + [0.0] * 7))
    base = nn.Linear(10, 6)
    lora = LoRADropoutLinear(base, 2, 8.0, 0.3, ensemble=0)
    assert torch.equal(lora(x), base(x))
    nn.init.normal_(lora.b)
    torch.testing.assert_close(lora.eval()(x[:3]), lora.merged()(x[:3]))
    lora.ensemble = 4
    assert not torch.equal(lora(x), lora(x))
    assert [name for name, p in lora.named_parameters() if p.requires_grad] == ["a", "b"]
    assert str(lora).startswith("LoRADropoutLinear(\n  rank=2, p=0.3, samples=1, ensemble=4")


def test_heads() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 40)
    many = MultiSampleDropoutLinear(40, 3, 0.5, 4)
    assert many(x).shape == (4, 5, 3)
    assert len({tuple(y.flatten().tolist()) for y in many(x)}) == 4
    torch.testing.assert_close(many.eval()(x)[2], F.linear(x, many.weight, many.bias))
    assert str(many).endswith("bias=True, p=0.5, samples=4)")
    few = CompactDropoutLinear(40, 3, 0.9, bias=False)
    (dw,) = torch.autograd.grad(few(x).sum(), few.weight)
    assert int((dw != 0).any(0).sum()) == 4
    torch.testing.assert_close(few.eval()(x), F.linear(x, few.weight))
    layer = ObservedDropout(0.5)
    observed = x > 0
    y = layer(x, -x.abs() - 9, observed)
    assert 0 < int((y == x).sum()) < int(observed.sum())
    assert torch.equal(layer.eval()(x, -x, observed), x.abs())


def test_schedules() -> None:
    def course(schedule: Any, layer: Any, n: int) -> list[float]:
        values = []
        for _ in range(n):
            values.append(layer.p)
            schedule.step()
        return values

    layer, rule = Dropout(0.5), WeightDropout(0.5)
    assert course(EarlySchedule([layer, rule], 0.4, 2), layer, 4) == [0.4, 0.4, 0.0, 0.0]
    assert rule.p == 0.0
    early = EarlySchedule([layer], 0.4, 4, linear=True)
    assert course(early, layer, 5) == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert course(LateSchedule([layer], 0.4, 2), layer, 4) == [0.0, 0.0, 0.4, 0.4]
    grown = course(CurriculumSchedule([layer], 0.4, 10, 5.0), layer, 11)
    assert grown == pytest.approx([0.4 * (1 - math.exp(-t / 2)) for t in range(11)])
    late = LateSchedule([layer], 0.4, 2)
    late.load_state_dict({"count": 3})
    assert layer.p == 0.4


def test_gradient_direction_variance() -> None:
    gs = [torch.randn(50, dtype=torch.float64) for _ in range(4)]
    pairs = [
        1 - float(F.cosine_similarity(gs[i], gs[j], 0))
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    expected = sum(pairs) / len(pairs)
    assert float(gradient_direction_variance(gs)) == pytest.approx(expected)
    parts = ([g[:20], g[20:].reshape(5, 6)] for g in gs)
    assert float(gradient_direction_variance(parts)) == pytest.approx(expected)


# ---- errors ----

X = torch.ones(3, 4)
T = torch.ones(3, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: bernoulli(X.int()), TypeError, "expected `p` of dtype"),
        (lambda: bernoulli(X, "reinforce"), ValueError, "expected `gradient` to be one of"),
        (lambda: bernoulli(X, dim=1), ValueError, "expected `dim` with `gradient` 'score'"),
        (lambda: bernoulli_log_prob(X[:2], X), ValueError, r"expected `sample` of shape \(3, 4\)"),
        (lambda: bernoulli_mask(X, torch.ones(5)), ValueError, "broadcastable to"),
        (lambda: bernoulli_mask(X, 1.5), ValueError, r"expected `p` in \[0, 1\], got 1.5"),
        (lambda: subnetwork_mask(X, X, 0.5), ValueError, "expected `target` to be a bool tensor"),
        (lambda: subnetwork_mask(X, T, 2.0), ValueError, r"expected `tau` in \[0, 1\], got 2"),
        (lambda: observed_dropout(X, X[:2], T), ValueError, "expected `x_gen` like `x_obs`"),
        (lambda: mixout(X, X.double()), ValueError, "expected `pretrained` like `w`"),
        (lambda: mixout(X, X, torch.tensor(-0.5)), RuntimeError, r"expected `p` in \[0, 1\]"),
        (lambda: mixout(X, X, shared=2), ValueError, "expected `shared` to be dimensions"),
        (lambda: mixout_([X, X], [X]), ValueError, "expected as many `pretrained` as `weights`, 2"),
        (
            lambda: nested_dropout(X, torch.ones(3)),
            ValueError,
            r"`weights` to be .* of shape \(4,\)",
        ),
        (lambda: nested_dropout(X, dim=2), ValueError, "expected `dim` to be a dimension"),
        (lambda: nested_dropout(X, dim=0, per="sample"), ValueError, "beyond the first"),
        (lambda: nested_dropout(X, k=1.5), TypeError, "expected `k` to be an int"),
        (lambda: prefix_weights(4), ValueError, "expected `sigma` above 0"),
        (lambda: prefix_weights(4, "geometric", rate=1.0), ValueError, r"`rate` in \[0, 1\)"),
        (lambda: lora_dropout(X, X[:, :3], X), ValueError, "expected `a` of shape"),
        (lambda: lora_dropout(X, X, X), ValueError, r"expected `b` of shape \(out, 3\)"),
        (lambda: multi_sample_dropout_linear(X, X, samples=0), ValueError, "at least 1, got 0"),
        (lambda: compact_dropout_linear(X, X, p=torch.tensor(0.5)), TypeError, "to be a number"),
        (lambda: gradient_direction_variance([X]), ValueError, "at least two `gradients`, got 1"),
        (lambda: EarlySchedule([nn.Linear(2, 2)], 0.5, 2), ValueError, "got none"),
        (lambda: weight_dropout(nn.Linear(2, 2), 0.5, "w"), ValueError, "got 'w'"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()

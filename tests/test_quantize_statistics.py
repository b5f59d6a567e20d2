"""Ranges, moments, histograms and observers: laws, corners, errors, the defects of others."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from regkern.nn.quantize.observers import (
    MinMaxObserver,
    MovingAverageObserver,
    PercentileObserver,
)
from regkern.quantize.observers import range_qparams
from regkern.quantize.statistics import (
    histogram,
    moments,
    moments_penalty,
    percentile_range,
    value_range,
)
from regkern.reference.quantize import statistics as reference
from torch import Tensor

warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch.ao")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def _normal(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(salt)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def _same(actual: Any, expected: Any) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True, check_dtype=False)


# ---- value_range ----

GRANULARITIES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((200_003,), {}),
    ((5, 70_000), {"axis": 0}),
    ((900, 300), {"axis": 1}),
    ((3000, 70), {"axis": -1}),
    ((4, 5, 700), {"axis": 1}),
    ((70, 5, 7), {"axis": 1}),
    ((2, 3, 90, 1000), {"axis": 1}),
    ((1000, 512), {"group_size": 32}),
    ((100, 512), {"group_size": 16}),
    ((10, 1000), {"group_size": 48}),
    ((10, 1000), {"group_size": 2000}),
    ((1000, 100), {"axis": 0, "group_size": 32}),
    ((3, 200, 130), {"axis": 1, "group_size": 64}),
    ((300, 700), {"block": (128, 128)}),
    ((2, 64, 90), {"block": (16, 16)}),
    ((300, 700), {"block": (128, 7)}),
    ((2, 300, 400), {"block": (1000, 1000)}),
]


@pytest.mark.parametrize(("shape", "options"), GRANULARITIES, ids=str)
@dtypes
def test_ranges_of_every_granularity(
    shape: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype
) -> None:
    x = _normal(shape, dtype)
    for _ in range(2):
        _same(value_range(x, **options), reference.value_range(x, **options))
        flat = x.view(-1)
        flat[3], flat[50], flat[101] = math.nan, math.inf, -math.nan
        flat[-1] = -math.inf


@dtypes
def test_every_kind_of_nan_shows(dtype: torch.dtype) -> None:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for sign in (1.0, -1.0):
        x = torch.full((64,), 2.0, dtype=dtype)
        infinity = torch.tensor(sign * math.inf, dtype=dtype)
        # The NaN whose bits are next to the infinity's.
        x[17] = (infinity.view(kind) + 1).view(dtype)
        assert bool(x[17].isnan())
        low, high = value_range(x)
        assert bool(low.isnan())
        assert bool(high.isnan())


def test_range_of_a_channels_last_tensor_is_not_copied() -> None:
    x = _normal((2, 6, 5, 4)).contiguous(memory_format=torch.channels_last)
    plain = x.contiguous()
    for options in (
        {},
        *({"axis": a} for a in range(4)),
        *({"axis": a, "group_size": 4} for a in range(4)),
        {"block": (2, 3)},
    ):
        _same(value_range(x, **options), value_range(plain, **options))
    video = _normal((2, 3, 4, 3, 5)).contiguous(memory_format=torch.channels_last_3d)
    _same(value_range(video, axis=1), value_range(video.contiguous(), axis=1))


def test_ranges_of_nothing() -> None:
    low, high = value_range(torch.zeros(0))
    assert (low.item(), high.item()) == (math.inf, -math.inf)
    low, high = value_range(torch.zeros(3, 0), axis=0)
    assert low.tolist() == [math.inf] * 3
    assert high.tolist() == [-math.inf] * 3
    assert value_range(torch.zeros(3, 0), axis=1)[0].shape == (0,)
    assert value_range(torch.zeros(0, 5), group_size=2)[0].shape == (0, 3)
    low, _ = torch.ops.regkern.block_range(torch.zeros(0), [0, 4, 5, 1, 5, 1])
    assert low.tolist() == [math.inf] * 4


def test_range_of_a_scalar() -> None:
    assert [v.item() for v in value_range(torch.tensor(-3.0))] == [-3.0, -3.0]


def test_range_errors() -> None:
    x = torch.zeros(4, 6)
    for arguments, word in (
        ({"axis": 2}, "`axis` in"),
        ({"group_size": 0}, "`group_size` to be at least 1"),
        ({"block": (0, 1)}, "`block` as"),
        ({"block": (1, 2), "axis": 0}, "`block` without"),
    ):
        with pytest.raises(ValueError, match=word):
            value_range(x, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two or more dimensions"):
        value_range(torch.zeros(4), block=(2, 2))
    with pytest.raises(TypeError, match="`x` of dtype float32"):
        value_range(torch.zeros(4, dtype=torch.int32))
    with pytest.raises(TypeError, match="`axis` to be an int"):
        value_range(x, axis=1.0)  # type: ignore[arg-type]
    raw = torch.ops.regkern.block_range
    with pytest.raises(
        RuntimeError, match="24 elements, outer \\* rows \\* cols, got 1 \\* 4 \\* 5"
    ):
        raw(x, [1, 4, 5, 1, 1, 0])
    with pytest.raises(RuntimeError, match=r"`blocks` of 6 numbers .*, got 2"):
        raw(x, [1, 24])
    with pytest.raises(RuntimeError, match="at least 1, got 0 and 1"):
        raw(x, [1, 4, 6, 0, 1, 0])


# ---- moments ----


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((100_003,), None),
        ((20_000, 5), 1),
        ((3, 7, 49), 1),
        ((40, 20, 7, 7), 1),
        ((4, 9, 1000), 1),
        ((300, 70, 3), 1),
        ((3, 5000), 0),
        ((2, 3, 5000), 1),
        ((1,), None),
        ((1023,), None),
        ((1025,), None),
    ],
    ids=str,
)
@dtypes
def test_moments_match_the_definition(
    shape: tuple[int, ...], axis: int | None, dtype: torch.dtype
) -> None:
    x = (_normal(shape, torch.float64) * 0.02 - 0.3).to(dtype)
    actual, expected = moments(x, axis), reference.moments(x, axis)
    _same(actual[:3], expected[:3])
    tight = 1e-11 if dtype == torch.float64 else 2e-6
    # In units of the deviation: the mean's error does not grow with the mean.
    deviation = expected.variance.sqrt() + 1e-30
    assert bool(((actual.mean - expected.mean).abs() <= tight * deviation).all())
    torch.testing.assert_close(actual[4:], expected[4:], rtol=tight, atol=tight)


def test_moments_far_from_zero() -> None:
    """The naive Σx² − N·mean² loses all digits here; so does a mean that is rounded to float32."""
    x = (1000 + 1e-3 * _normal((200_000,), torch.float64)).float()
    expected = reference.moments(x)
    actual = moments(x)
    torch.testing.assert_close(actual[3:], expected[3:], rtol=1e-5, atol=1e-5)
    naive = (x * x).mean() - x.mean() ** 2
    assert abs(naive.double() - expected.variance) > 10 * expected.variance


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e18, 1e37])
def test_moments_at_the_ends_of_float32(scale: float) -> None:
    """x⁴ overflows from 1e10 on and underflows below 1e-11, where chunks were not scaled."""
    x = (_normal((3000,), torch.float64) * scale).float()
    actual, expected = moments(x), reference.moments(x)
    torch.testing.assert_close(actual[3:], expected[3:], rtol=1e-5, atol=1e-5)


def test_moments_with_an_outlier() -> None:
    x = _normal((50_000,))
    x[777] = 1e6
    torch.testing.assert_close(moments(x)[3:], reference.moments(x)[3:], rtol=1e-5, atol=1e-5)


@dtypes
def test_moments_of_equal_numbers(dtype: torch.dtype) -> None:
    for value in (0.0, 0.1, -3e-5, 1e4):
        x = torch.full((5000,), value, dtype=dtype, requires_grad=True)
        m = moments(x)
        assert m.mean.item() == x[0].item()
        assert [v.item() for v in m[4:]] == [0.0, 0.0, 0.0]
        (gradient,) = torch.autograd.grad(m.mean + m.variance + m.skewness + m.kurtosis, x)
        torch.testing.assert_close(gradient, torch.full_like(x, 1 / 5000))


def test_moments_of_known_distributions() -> None:
    uniform = moments(torch.linspace(-1, 1, 100_001))
    assert uniform.kurtosis.item() == pytest.approx(1.8, abs=1e-3)
    assert uniform.skewness.item() == pytest.approx(0.0, abs=1e-6)
    coin = moments(torch.tensor([-1.0, 1.0]).repeat(500))
    assert [v.item() for v in coin] == [-1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    bernoulli = moments(torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(300))  # p = 1/4
    assert bernoulli.skewness.item() == pytest.approx(0.5 / math.sqrt(3 / 16))
    assert bernoulli.kurtosis.item() == pytest.approx(3 + (1 - 6 * 3 / 16) / (3 / 16))


def test_moments_do_not_change_under_affine_maps() -> None:
    x = _normal((7000,), torch.float64)
    a, b = moments(x), moments(-3.0 * x + 11.0)
    torch.testing.assert_close(b.kurtosis, a.kurtosis, rtol=1e-10, atol=0)
    torch.testing.assert_close(b.skewness, -a.skewness, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(b.variance, 9 * a.variance, rtol=1e-10, atol=0)
    torch.testing.assert_close(b.mean, 11.0 - 3 * a.mean, rtol=1e-10, atol=0)


def test_moments_of_what_is_not_finite() -> None:
    for bad, mean in ((math.nan, math.nan), (math.inf, math.inf), (-math.inf, -math.inf)):
        for place in (0, 1500, 4999):
            x = _normal((5000,))
            x[place] = bad
            m = moments(x)
            torch.testing.assert_close(m.mean.item(), mean, equal_nan=True)
            assert all(bool(v.isnan()) for v in m[4:])
            assert m.minimum.isnan().item() == math.isnan(bad)
    x = _normal((5000,))
    x[0], x[4000] = math.inf, -math.inf
    assert bool(moments(x).mean.isnan())
    assert moments(x).amax.item() == math.inf


def test_moments_of_nothing() -> None:
    m = moments(torch.zeros(0))
    assert (m.minimum.item(), m.maximum.item(), m.amax.item()) == (math.inf, -math.inf, 0.0)
    assert all(bool(v.isnan()) for v in m[3:])
    assert moments(torch.zeros(3, 0), axis=0).mean.shape == (3,)
    assert moments(torch.zeros(3, 0), axis=1).mean.shape == (0,)


def test_moments_in_channels_last_have_the_same_bits() -> None:
    plain = _normal((6, 20, 9, 11))
    last = plain.contiguous(memory_format=torch.channels_last)
    for axis in (None, 0, 1, 2, 3):
        _same(moments(last, axis), moments(plain, axis))
        a, b = plain.clone().requires_grad_(), last.clone().requires_grad_()
        ga, gb = (torch.autograd.grad(moments(t, axis).kurtosis.sum(), t)[0] for t in (a, b))
        _same([gb], [ga])
        assert gb.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@dtypes
def test_moments_gradient(axis: int | None, dtype: torch.dtype) -> None:
    """Larger than the registry's samples: several chunks, vectors and tails."""
    x = (_normal((30, 7, 130), torch.float64) ** 2).to(dtype).requires_grad_()
    twin = x.detach().double().requires_grad_()
    weights = _normal((4,), torch.float64, 5)
    ours = sum((w * v).sum() for w, v in zip(weights, moments(x, axis)[3:], strict=True))
    theirs = sum(
        (w * v).sum() for w, v in zip(weights, reference.moments(twin, axis)[3:], strict=True)
    )
    (a,) = torch.autograd.grad(ours, x)
    (b,) = torch.autograd.grad(theirs, twin)
    scale = b.abs().max().item()
    epsilon = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps * 8)
    epsilon = 1e-13 if dtype == torch.float64 else epsilon
    torch.testing.assert_close(a.double(), b, rtol=epsilon, atol=4 * epsilon * scale)


def test_gradient_far_from_zero() -> None:
    """t = x − mean needs the mean to more digits than float32 has."""
    x = (1000 + 1e-3 * _normal((2000,), torch.float64)).float().requires_grad_()
    twin = x.detach().double().requires_grad_()
    (a,) = torch.autograd.grad(moments(x).kurtosis, x)
    (b,) = torch.autograd.grad(reference.moments(twin).kurtosis, twin)
    torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_extremes_have_no_gradient() -> None:
    m = moments(_normal((50,)).requires_grad_())
    assert not any(v.requires_grad for v in m[:3])
    assert all(v.requires_grad for v in m[3:])
    extremes, shape = torch.ops.regkern.moments(_normal((50,)).requires_grad_())
    assert not extremes.requires_grad
    assert shape.requires_grad


def test_moments_errors() -> None:
    with pytest.raises(ValueError, match="`axis` in \\[-2, 2\\), got 2"):
        moments(torch.zeros(2, 3), 2)
    with pytest.raises(TypeError, match=r"regkern\.moments: expected `x` of dtype"):
        moments(torch.zeros(2, dtype=torch.int64))
    raw = torch.ops.regkern
    with pytest.raises(RuntimeError, match="regkern::moments: expected `axis` in"):
        raw.moments(torch.zeros(2, 3), -3)
    with pytest.raises(RuntimeError, match="`moments` of shape \\(4, 3\\), got \\(4, 2\\)"):
        raw.moments_backward(
            torch.zeros(2, 3), torch.zeros(4, 2).double(), torch.zeros(4, 3).double(), 1
        )
    with pytest.raises(RuntimeError, match="`grad` of dtype float64"):
        raw.moments_backward(torch.zeros(2, 3), torch.zeros(4, 1).double(), torch.zeros(4, 1))


# ---- moments_penalty ----


def test_penalty_of_many_weights() -> None:
    """More than one launch holds, of mixed dtypes and layouts."""
    weights = [_normal((3 + i, 5, 3, 3), DTYPES[i % 4], i).requires_grad_() for i in range(70)]
    weights[5] = _normal((4, 8, 3, 3)).to(memory_format=torch.channels_last).requires_grad_()
    weights[6] = _normal((7, 40)).t().requires_grad_()
    weights[7] = torch.full((9,), 0.25, requires_grad=True)
    twins = [w.detach().double().requires_grad_() for w in weights]
    loss = moments_penalty(weights, 1.8, 0.1)
    expected = reference.moments_penalty(twins, 1.8, 0.1)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for w, a, b in zip(
        weights,
        torch.autograd.grad(loss, weights),
        torch.autograd.grad(expected, twins),
        strict=True,
    ):
        assert a.dtype == w.dtype
        assert a.shape == w.shape
        tolerance = 4 * max(torch.finfo(w.dtype).eps, 1e-6)
        torch.testing.assert_close(
            a.double(), b, rtol=tolerance, atol=tolerance * (b.abs().max().item() + 1e-12)
        )


def test_penalty_of_one_weight_is_that_of_a_list_of_it() -> None:
    w = _normal((40, 50))
    assert torch.equal(moments_penalty(w), moments_penalty([w]))
    assert moments_penalty(w).dtype == torch.float32
    assert moments_penalty(w, torch.tensor(1.8), torch.tensor(0.0)).item() == pytest.approx(
        moments_penalty(w).item()
    )


def test_penalty_makes_weights_uniform() -> None:
    w = _normal((4000,)).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.03)
    before = moments(w).kurtosis.item()
    for _ in range(60):
        optimizer.zero_grad()
        moments_penalty([w]).backward()
        optimizer.step()
    after = moments(w)
    assert before > 2.8
    assert abs(after.kurtosis.item() - 1.8) < 0.1
    assert abs(after.skewness.item()) < 0.05


def test_penalty_errors() -> None:
    with pytest.raises(ValueError, match="expected a tensor in `weights`, got none"):
        moments_penalty([])
    with pytest.raises(TypeError, match="`weights\\[1\\]` of dtype"):
        moments_penalty([torch.zeros(2), torch.zeros(2, dtype=torch.int32)])
    with pytest.raises(ValueError, match="`weights\\[1\\]` on cpu, got meta"):
        moments_penalty([torch.zeros(2), torch.zeros(2, device="meta")])
    with pytest.raises(RuntimeError, match="`moments` of shape \\(4, 1\\), got \\(4, 2\\)"):
        torch.ops.regkern.moments_list_backward(
            [torch.zeros(2)], torch.zeros(4, 2).double(), torch.zeros(4, 1).double()
        )


# ---- histogram ----


@dtypes
@pytest.mark.parametrize("bins", [1, 7, 2048, 20_000])
def test_histogram_matches_the_definition(dtype: torch.dtype, bins: int) -> None:
    x = _normal((3001,), dtype)
    few = x if bins < 3000 else x[:40]
    for clip in (False, True):
        actual = histogram(few, bins, -1.5, 2.0, clip)
        if bins <= 7:
            assert torch.equal(actual, reference.histogram(few, bins, -1.5, 2.0, clip))
        inside = few.numel() if clip else int(((few >= -1.5) & (few <= 2.0)).sum())
        assert int(actual.sum()) == inside


def test_histogram_agrees_with_histc_on_exact_edges() -> None:
    x = torch.randint(0, 1025, (20_000,), generator=torch.Generator().manual_seed(0)).float() / 16
    assert torch.equal(histogram(x, 64, 0.0, 64.0), torch.histc(x, 64, 0, 64).long())


def test_histogram_counts_what_is_outside() -> None:
    x = torch.tensor([-5.0, -1.0, 0.0, 1.0, 1.5, math.nan, math.inf, -math.inf])
    low, high = torch.tensor(-1.0).double(), torch.tensor(1.0).double()
    for clip, expected in ((False, [1, 0, 1, 1]), (True, [3, 0, 1, 3])):
        counts, outside = torch.ops.regkern.histogram(x, low, high, 4, clip)
        assert counts.tolist() == expected
        assert outside.tolist() == [2, 2, 1]
    counts, _ = torch.ops.regkern.histogram(x, low + 1, high, 2, False, True)
    assert counts.tolist() == [1, 2]  # of magnitudes


def test_histogram_without_a_range() -> None:
    x = torch.tensor([2.0, 2.0, 3.0, 1.0])
    assert histogram(x, 3, 2.0, 2.0).tolist() == [2, 0, 0]
    for low, high in ((3.0, 1.0), (math.nan, 1.0), (0.0, math.inf)):
        assert histogram(x, 3, low, high).tolist() == [0, 0, 0]
        _, outside = torch.ops.regkern.histogram(
            x, torch.tensor(low).double(), torch.tensor(high).double(), 3
        )
        assert outside.tolist() == [0, 0, 4]
    assert histogram(torch.zeros(0), 3, 0.0, 1.0).tolist() == [0, 0, 0]


def test_histogram_errors() -> None:
    x = torch.zeros(4)
    for bins in (0, 2**24 + 1):
        with pytest.raises(ValueError, match="`bins` in \\[1, 2\\^24\\], got"):
            histogram(x, bins, 0.0, 1.0)
        with pytest.raises(RuntimeError, match="`bins` in \\[1, 2\\^24\\], got"):
            torch.ops.regkern.histogram(x, torch.zeros(()).double(), torch.ones(()).double(), bins)
    with pytest.raises(ValueError, match="`low` of one element"):
        histogram(x, 3, torch.zeros(2), 1.0)
    with pytest.raises(TypeError, match="`high` to be a number"):
        histogram(x, 3, 0.0, "1")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="`low` of dtype float64"):
        torch.ops.regkern.histogram(x, torch.zeros(()), torch.ones(()).double(), 3)


# ---- percentile_range ----


@dtypes
@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.9, 100.0])
def test_percentiles_within_a_bin_of_the_quantile(dtype: torch.dtype, percentile: float) -> None:
    for salt, size in ((0, 30_000), (1, 7), (2, 101), (3, 1)):
        x = _normal((size,), dtype, salt) ** 3
        exact = x.double()
        q = percentile / 100
        low, high = percentile_range(x, percentile, 64)
        bin_width = (exact.max() - exact.min()).item() / 64 * (1 + 1e-6) + 1e-12
        assert abs(low.double() - torch.quantile(exact, 1 - q)) <= bin_width
        assert abs(high.double() - torch.quantile(exact, q)) <= bin_width
        low, high = percentile_range(x, percentile, 64, symmetric=True)
        assert torch.equal(low, -high)
        bin_width = exact.abs().max().item() / 64 * (1 + 1e-6) + 1e-12
        assert abs(high.double() - torch.quantile(exact.abs(), q)) <= bin_width


def test_percentiles_with_empty_bins_between() -> None:
    """The quantile lies between two elements that are many bins apart."""
    x = torch.tensor([0.0, 1.0, 2.0, 100.0])
    low, high = percentile_range(x, 90.0, 1000)
    assert abs(high.item() - torch.quantile(x, 0.9).item()) <= 0.1
    assert abs(low.item() - torch.quantile(x, 0.1).item()) <= 0.1


def test_percentile_ignores_an_outlier() -> None:
    x = torch.cat([_normal((10_000,)), torch.tensor([300.0])])
    assert value_range(x)[1].item() == 300.0
    assert percentile_range(x, 99.9)[1].item() < 4.0


def test_percentiles_of_corners() -> None:
    low, high = percentile_range(torch.full((9,), 2.5))
    assert (low.item(), high.item()) == (2.5, 2.5)
    for bad in (math.nan, math.inf):
        for symmetric in (False, True):
            results = percentile_range(torch.tensor([1.0, bad, 2.0]), symmetric=symmetric)
            assert all(bool(v.isnan()) for v in results)
    low, high = percentile_range(torch.zeros(0))
    assert (low.item(), high.item()) == (math.inf, -math.inf)
    with pytest.raises(ValueError, match="`percentile` in \\[50, 100\\], got 10"):
        percentile_range(torch.ones(3), 10.0)
    with pytest.raises(ValueError, match="`percentile` in \\[0, 100\\], got 101"):
        percentile_range(torch.ones(3), 101.0, symmetric=True)


# ---- observers ----


def _batches(shape: tuple[int, ...] = (8, 5, 6, 7)) -> list[Tensor]:
    return [_normal(shape, salt=salt) * (salt + 1) + 0.3 * salt for salt in range(4)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_observers_equal_those_of_torch_ao(symmetric: bool, signed: bool) -> None:
    from torch.ao.quantization import observer as ao

    dtype = torch.qint8 if signed else torch.quint8
    quant_min, quant_max = (-128, 127) if signed else (0, 255)
    tensor = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    channel = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
    pairs = [
        (MinMaxObserver(), ao.MinMaxObserver(dtype=dtype, qscheme=tensor)),
        (
            MovingAverageObserver(0.1),
            ao.MovingAverageMinMaxObserver(0.1, dtype=dtype, qscheme=tensor),
        ),
        (
            MinMaxObserver(axis=1),
            ao.PerChannelMinMaxObserver(1, dtype=dtype, qscheme=channel),
        ),
        (
            MovingAverageObserver(0.3, axis=0),
            ao.MovingAveragePerChannelMinMaxObserver(0.3, 0, dtype=dtype, qscheme=channel),
        ),
    ]
    for ours, theirs in pairs:
        for x in _batches():
            assert ours(x) is x
            theirs(x)
            assert torch.equal(ours.min_val, theirs.min_val)
            assert torch.equal(ours.max_val, theirs.max_val)
            scale, zero_point = ours.calculate_qparams(quant_min, quant_max, symmetric)
            expected_scale, expected_zero_point = theirs.calculate_qparams()
            assert torch.equal(scale.reshape(-1), expected_scale)
            assert torch.equal(zero_point.reshape(-1), expected_zero_point.long())


def test_qparams_of_corners() -> None:
    def of(low: float, high: float, **options: Any) -> tuple[float, int]:
        s, z = range_qparams(torch.tensor(low), torch.tensor(high), 0, 255, **options)
        return s.item(), int(z.item())

    assert of(math.inf, -math.inf) == (1.0, 0)
    assert of(0.0, 0.0) == (torch.finfo(torch.float32).eps, 0)
    assert of(2.0, 4.0) == (pytest.approx(4 / 255), 0)  # zero is inside
    assert of(-4.0, -2.0) == (pytest.approx(4 / 255), 255)
    assert of(-1.0, 3.0, symmetric=True) == (pytest.approx(3 / 127.5), 128)
    scale, zero_point = of(math.nan, 1.0)
    assert math.isnan(scale)
    assert zero_point == 0
    with pytest.raises(ValueError, match="`quant_min` below `quant_max`, got 7 and 7"):
        range_qparams(torch.zeros(()), torch.ones(()), 7, 7)
    with pytest.raises(ValueError, match="`maximum` like `minimum`"):
        range_qparams(torch.zeros(()), torch.ones(2), 0, 7)


def test_percentile_observer_averages_percentiles() -> None:
    observer = PercentileObserver(99.0, 512, momentum=0.25)
    low = high = None
    for x in _batches():
        current = percentile_range(x, 99.0, 512)
        low = current[0] if low is None else low + 0.25 * (current[0] - low)
        high = current[1] if high is None else high + 0.25 * (current[1] - high)
        observer(x)
    assert low is not None
    assert high is not None
    torch.testing.assert_close(observer.min_val, low)
    torch.testing.assert_close(observer.max_val, high)


def test_when_observers_observe() -> None:
    x, y = torch.tensor([-1.0, 1.0]), torch.tensor([-9.0, 9.0])
    always, training = MinMaxObserver(), MinMaxObserver(training_only=True)
    for observer in (always, training):
        observer(x)
        observer.eval()
        observer(y)
    assert always.max_val.item() == 9.0
    assert training.max_val.item() == 1.0
    training.train()
    training.enabled = False
    training(y)
    assert training.max_val.item() == 1.0
    training(torch.zeros(0))
    training.enabled = True
    training(torch.zeros(0))
    assert training.max_val.item() == 1.0
    training.reset()
    assert (training.min_val.item(), training.max_val.item()) == (math.inf, -math.inf)


def test_observers_keep_nan_and_gradients() -> None:
    observer = MinMaxObserver()
    observer(torch.tensor([math.nan, 1.0]))
    observer(torch.tensor([0.0, 1.0]))
    assert bool(observer.min_val.isnan())
    x = torch.ones(3, requires_grad=True)
    assert MinMaxObserver()(x) is x


def test_observers_state_and_errors() -> None:
    a, b = MovingAverageObserver(0.5, axis=1), MovingAverageObserver(0.5, axis=1)
    for x in _batches((4, 6)):
        a(x)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a.min_val, b.min_val)
    b(_batches((4, 6))[0])
    with pytest.raises(ValueError, match="expected 6 channels as before, got 7"):
        a(torch.zeros(2, 7))
    for momentum in (0.0, 1.5):
        with pytest.raises(ValueError, match="`momentum` in"):
            MovingAverageObserver(momentum)
    with pytest.raises(ValueError, match="`percentile` in"):
        PercentileObserver(20.0)
    with pytest.raises(ValueError, match="`bins` in"):
        PercentileObserver(bins=0)


# ---- more than the registry's small samples: the CUDA kernels' branches, on the emulator ----


def test_emulator_on_larger_tensors(emulator: Any) -> None:
    torch.ops.load_library(str(emulator))
    cpu, cuda = torch.ops.regkern, torch.ops.regkern_emulator
    for dtype in DTYPES:
        big = _normal((40_001,), dtype)
        for blocks in (
            [1, 1, 40_000, 1, 40_000, 0],
            [1, 1, 40_001, 1, 40_001, 0],
            [4, 10, 1000, 1, 1000, 1],
            [1, 1000, 40, 1000, 1, 0],
            [1, 1000, 40, 32, 1, 0],
            [1, 1000, 40, 48, 8, 0],
            [1, 400, 100, 1, 32, 0],
            [2, 200, 100, 64, 50, 0],
            [2, 200, 100, 200, 100, 1],
        ):
            x = big[: blocks[0] * blocks[1] * blocks[2]]
            _same(cuda.block_range(x, blocks), cpu.block_range(x, blocks))
        for shape, axis in (
            ((40_001,), None),
            ((20, 5, 400), 1),
            ((300, 7, 19), 1),
            ((4000, 10), 1),
            ((2, 20_000), 0),
        ):
            x = big[: math.prod(shape)].view(shape)
            expected = cpu.moments(x, axis)
            _same(cuda.moments(x, axis), expected)
            grad = _normal(tuple(expected[1].shape), torch.float64, 9)
            _same(
                [cuda.moments_backward(x, expected[1], grad, axis)],
                [cpu.moments_backward(x, expected[1], grad, axis)],
            )
        parts = [big[i * 300 : i * 300 + 17 * i + 1] for i in range(40)]
        expected = cpu.moments_list(parts)
        _same(cuda.moments_list(parts), expected)
        grad = _normal((4, 40), torch.float64, 9)
        _same(
            cuda.moments_list_backward(parts, expected[1], grad),
            cpu.moments_list_backward(parts, expected[1], grad),
        )
        low, high = torch.tensor(-1.0).double(), torch.tensor(2.0).double()
        for bins in (10, 20_000):
            _same(
                cuda.histogram(big[1:], low, high, bins, True),
                cpu.histogram(big[1:], low, high, bins, True),
            )

"""Rounding and fake quantization: every pattern, exact probabilities, torch and torchao."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from regkern import make_seed
from regkern.quantize.fake import encode, fake_quantize, quantize_weights, round_gradient
from regkern.quantize.formats import Format, format_of
from regkern.quantize.rounding import round_to, round_to_, stochastic_round, stochastic_round_
from regkern.reference.quantize import rounding as reference
from sample import seed
from torch import Tensor

EVERY_BF16 = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
# Every 16411th pattern of float32, 260 000 of them, with all exponents and both signs.
DENSE_FP32 = torch.arange(0, 2**32, 16411).to(torch.int32).view(torch.float32)
SMALL = (
    "e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e2m3fn", "e3m2fn", "e2m1fn",
    "e3m4", "e2m5", "e5m3fn", "e4m1", "e6m1",
)  # fmt: skip
TORCH = (
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float16, torch.bfloat16,
)  # fmt: skip


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32)) or bool(
        ((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all()
    )


def magnitudes(form: Format) -> Tensor:
    """The finite magnitudes of a format by their codes, ascending, and one beyond: float64."""
    values = []
    for code in range(2 ** (form.exponent_bits + form.mantissa_bits) + 2**form.mantissa_bits):
        exponent, fraction = divmod(code, 2**form.mantissa_bits)
        m = fraction / 2**form.mantissa_bits
        value = (
            math.ldexp(m, 1 - form.bias)
            if exponent == 0
            else math.ldexp(1 + m, exponent - form.bias)
        )
        values.append(value)
        if value > form.max:
            break
    return torch.tensor(values, dtype=torch.float64)


def by_table(x: Tensor, form: Format, rounding: str) -> Tensor:
    """Rounding by search in the list of all numbers of the format: an independent definition."""
    table = magnitudes(form)
    a = x.double().abs().clamp(max=float(table[-1]))
    a = torch.where(x.isnan(), torch.zeros_like(a), a)
    below = (torch.searchsorted(table, a, right=True) - 1).clamp(max=len(table) - 2)
    low, high = table[below], table[below + 1]
    middle = (low + high) / 2
    even = below % 2 == 0
    up = {
        "nearest_even": (a > middle) | ((a == middle) & ~even),
        "nearest_away": a >= middle,
        "toward_zero": a >= high,
        "floor": (a >= high) | ((a > low) & (x < 0)),
    }[rounding]
    y = torch.where(up, high, low)
    limit = form.max if form.saturates else math.inf if form.infinity else math.nan
    toward = rounding == "toward_zero"
    to_max = torch.full_like(y, form.max) if toward else torch.full_like(y, limit)
    if rounding == "floor":
        to_max = torch.where(x > 0, torch.full_like(y, form.max), to_max)
    y = torch.where(y > form.max, to_max, y)
    inf = math.inf if form.infinity else limit
    y = torch.where(x.isinf(), torch.full_like(y, inf), y)
    y = torch.copysign(y, x.double())
    if not form.negative_zero:
        y = torch.where(y == 0, torch.zeros_like(y), y)
    return torch.where(x.isnan(), torch.full_like(y, math.nan), y).float()


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_every_pattern_against_torch_casts(dtype: torch.dtype) -> None:
    for x in (EVERY_BF16.float(), DENSE_FP32):
        expected = x.to(dtype)
        assert same_bits(round_to(x, dtype), expected.float())
        stored = round_to(x, dtype, dtype=dtype)
        assert stored.dtype == dtype
        assert same_bits(stored.float(), expected.float())
    assert same_bits(
        round_to(EVERY_BF16, dtype).float(), EVERY_BF16.to(dtype).to(torch.bfloat16).float()
    )


@pytest.mark.parametrize("rounding", ["nearest_even", "nearest_away", "toward_zero", "floor"])
@pytest.mark.parametrize("name", SMALL)
def test_every_pattern_against_the_list_of_numbers(name: str, rounding: str) -> None:
    form = format_of("test", name)
    # The middles of neighbours, too, which a coarse grid may miss.
    table = magnitudes(form)
    ties = ((table[1:] + table[:-1]) / 2).float()
    for x in (EVERY_BF16.float(), DENSE_FP32, ties, -ties):
        assert same_bits(round_to(x, name, rounding=rounding), by_table(x, form, rounding))
        # float64 takes another path through the kernel.
        wide = round_to(x.double(), name, rounding=rounding).float()
        assert same_bits(wide, by_table(x, form, rounding))


def test_powers_of_two() -> None:
    """Without a mantissa bit n is 1 for all numbers: ties go up, to 2."""
    x = torch.tensor([1.0, 1.49, 1.5, 1.51, 2.9, 3.0, -6.0])
    assert round_to(x, "e4m0").tolist() == [1.0, 1.0, 2.0, 2.0, 2.0, 4.0, -8.0]


@pytest.mark.parametrize("rounding", ["nearest_even", "nearest_away", "toward_zero", "floor"])
@pytest.mark.parametrize("name", ["bfloat16", "tf32", "e8m3", "e8m0"])
def test_fewer_mantissa_bits(name: str, rounding: str) -> None:
    """The path on bits, against the definition, also on subnormals."""
    x = DENSE_FP32
    expected = reference.round_to(x, name, rounding=rounding)
    assert same_bits(round_to(x, name, rounding=rounding), expected)
    assert same_bits(round_to(x.double(), name, rounding=rounding).float(), expected)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "e4m3fn", "e2m1fn", "e5m2", "fixed8.4"])
def test_what_the_format_has_never_moves(name: str) -> None:
    form = format_of("test", name)
    if form.kind == "integer":
        x = torch.arange(form.low, form.high + 1).float() * form.step
    elif form.bits == 16:
        x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(form.dtype).float()
    else:
        x = torch.cat([magnitudes(form)[:-1], -magnitudes(form)[:-1]]).float()
    x = x.repeat(8)
    for rounding in ("nearest_even", "nearest_away", "toward_zero", "floor", "stochastic"):
        y = round_to(x, name, rounding=rounding)
        assert torch.equal(y.isnan(), x.isnan())
        assert torch.equal(y[~y.isnan()], x[~x.isnan()])
    zeros = round_to(torch.tensor([0.0, -0.0]), name if form.kind == "floating" else "e4m3")
    assert torch.signbit(zeros).tolist() == [False, True]


@pytest.mark.parametrize("name", ["bfloat16", "e4m3fn", "e2m1fn", "float16"])
@pytest.mark.parametrize("subnormal", [False, True])
def test_exact_probability_over_all_fractions(name: str, subnormal: bool) -> None:
    """Element by element: up iff fraction > (U + 1/2) 2^-16, for each of the 2^16 fractions."""
    form = format_of("test", name)
    if subnormal:
        low = 2.0 ** (1 - form.bias - form.mantissa_bits)
        high = 2 * low
    else:
        low, high = 1.0, 1.0 + 2.0**-form.mantissa_bits
    n = torch.arange(2**16, dtype=torch.float64)
    x = low + (high - low) * n / 2**16
    s = make_seed()
    bits = reference.random_bits(s, torch.arange(2**16), 16)
    expected = torch.where(n > bits, high, low)
    assert torch.equal(stochastic_round(x, name, seed=s), expected)
    if torch.equal(x.float().double(), x):  # but for float16, whose fractions need 26 bits
        assert torch.equal(stochastic_round(x.float(), name, seed=s).double(), expected)
    else:
        assert name == "float16"


def test_stochastic_rounding_is_unbiased() -> None:
    """Mean within 5 sigma over 10^7 draws; neighbours only; in the subnormal range, too."""
    for name, value in (("e4m3fn", 1.06), ("e4m3fn", 0.0007), ("bfloat16", 1e-40), ("e2m1fn", 2.9)):
        x = torch.full((10_000_000,), value)
        y = stochastic_round(x, name, seed=seed())
        low, high = y.min(), y.max()
        assert torch.equal(low, round_to(x[:1], name, rounding="toward_zero")[0])
        ups = int((y == high).count_nonzero())
        assert ups + int((y == low).count_nonzero()) == x.numel()
        up = ups / x.numel()
        p = (x[0].double() - low.double()) / (high.double() - low.double())
        sigma = math.sqrt(p * (1 - p) / x.numel())
        # The probability has 16 bits.
        assert abs(up - p) < 5 * sigma + 2.0**-17


@pytest.mark.parametrize("bits", [8, 16, 23])
def test_random_bits(bits: int) -> None:
    x = torch.rand(5000, generator=torch.Generator().manual_seed(1)) * 4
    s = make_seed()
    y = stochastic_round(x, "e2m1fn", seed=s, random_bits=bits)
    expected = reference.round_to(x, "e2m1fn", rounding="stochastic", seed=s, random_bits=bits)
    assert torch.equal(y, expected)
    # Draws of different elements do not repeat.
    u = reference.random_bits(s, torch.arange(4096), bits)
    assert len(torch.unique(u)) > 0.6 * min(4096, 2**bits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_into_storage_rounds_to_the_same_numbers(dtype: torch.dtype) -> None:
    # What overflows saturates; NaN and infinities are compared, too.
    s = make_seed()
    for x in (DENSE_FP32, EVERY_BF16.float(), torch.randn(4001)):
        stored = stochastic_round(x, dtype, dtype=dtype, seed=s)
        assert stored.dtype == dtype
        assert same_bits(stored.float(), stochastic_round(x, dtype, seed=s))


def test_seeds() -> None:
    x = torch.randn(100, 64)
    torch.manual_seed(3)
    a, b = stochastic_round(x, "e4m3"), stochastic_round(x, "e4m3")
    torch.manual_seed(3)
    assert torch.equal(stochastic_round(x, "e4m3"), a)
    assert not torch.equal(a, b)
    # A copy for each direction of a matrix product: the two rounding errors are uncorrelated.
    y = torch.full((512, 512), 1.0625)
    rows, cols = stochastic_round(y, "e4m3"), stochastic_round(y.t().contiguous(), "e4m3").t()
    correlation = torch.corrcoef(torch.stack([rows.flatten(), cols.flatten()]))[0, 1]
    assert abs(correlation) < 0.01
    generator = torch.Generator().manual_seed(5)
    c = stochastic_round(x, "e4m3", generator=generator)
    assert torch.equal(c, stochastic_round(x, "e4m3", generator=generator.manual_seed(5)))


def test_overflow_and_nan() -> None:
    """torchao makes NaN -0 and FLT_MAX infinite; QPyTorch makes NaN 480."""
    big = torch.tensor([3.4028235e38, -3.4028235e38, math.inf, -math.inf])
    patterns = torch.tensor([0x7FFFFFFF, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)
    y = stochastic_round(big, "bfloat16")
    assert y.tolist() == [3.3895313892515355e38, -3.3895313892515355e38, math.inf, -math.inf]
    for name in ("bfloat16", "float16", "e4m3", "e2m1", "int8", "mxfp4", "nvfp4", "fixed8.4"):
        assert stochastic_round(patterns, name).isnan().all()
        assert round_to(patterns, name).isnan().all()
    assert round_to(big, "e4m3").tolist() == [448.0, -448.0, 448.0, -448.0]
    assert round_to(big, "e4m3", overflow="infinity").isnan().all()
    assert round_to(big, "e5m2").tolist() == [math.inf, -math.inf] * 2
    assert round_to(big, "e5m2", overflow="saturate").tolist() == [
        57344.0,
        -57344.0,
        math.inf,
        -math.inf,
    ]
    assert round_to(big[:2], "e5m2", rounding="toward_zero").tolist() == [57344.0, -57344.0]
    assert round_to(big[:2], "e5m2", rounding="floor").tolist() == [57344.0, -math.inf]
    assert round_to(torch.tensor([500.0, -500.0]), "e4m3ieee").tolist() == [math.inf, -math.inf]


def test_outputs() -> None:
    x = torch.randn(6, 50)
    s = make_seed()
    y = stochastic_round(x, "bf16", seed=s)
    half = stochastic_round(x, "bf16", seed=s, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.float(), y)
    for out in (
        torch.empty(6, 50), torch.empty(6, 50, dtype=torch.bfloat16),
        torch.empty(6, 100, dtype=torch.bfloat16)[:, ::2], torch.empty(50, 6).t(),
    ):  # fmt: skip
        assert stochastic_round(x, "bf16", seed=s, out=out) is out
        assert torch.equal(out.float(), y)
    e4m3 = torch.empty(6, 50, dtype=torch.float8_e4m3fn)
    round_to(x, "e4m3", out=e4m3)
    assert torch.equal(e4m3.float(), x.to(torch.float8_e4m3fn).float())
    mx = torch.empty(6, 50)
    round_to(x, "mxfp4", out=mx)
    assert torch.equal(mx, round_to(x, "mxfp4"))
    z = x.clone()
    assert stochastic_round_(z, "bf16", seed=s) is z
    assert torch.equal(z, y)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2"])
@pytest.mark.parametrize("mode", ["floor", "ceil", "rceil", "even"])
def test_microscaling_against_torchao(name: str, mode: str) -> None:
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    config = pytest.importorskip("torchao.prototype.mx_formats.config")
    kinds = {
        "mxfp4": torch.float4_e2m1fn_x2, "mxfp8_e4m3": torch.float8_e4m3fn,
        "mxfp8_e5m2": torch.float8_e5m2, "mxfp6_e2m3": "fp6_e2m3", "mxfp6_e3m2": "fp6_e3m2",
    }  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(64, 128, generator=generator) * torch.exp2(
        torch.randint(-20, 20, (64, 128), generator=generator).float()
    )
    x[3, :32] = 0
    scaling = config.ScaleCalculationMode[mode.upper()]
    scale, data = mx.to_mx(x, kinds[name], 32, scaling)
    theirs = mx.to_dtype(data, scale, kinds[name], 32, torch.float32)
    ours = round_to(x, name, scale_mode=mode)
    assert torch.equal(ours, theirs)
    encoded = encode(x, name, scale_mode=mode)
    assert torch.equal(encoded.scale.view(torch.uint8), scale.view(torch.uint8))
    if name.startswith("mxfp8") or name == "mxfp4":
        assert torch.equal(encoded.data.view(torch.uint8), data.view(torch.uint8))


def test_nvfp4_against_torchao() -> None:
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(2))
    tensor_scale = nv.per_tensor_amax_to_scale(x.abs().amax())
    scale, data = nv.nvfp4_quantize(x, 16, tensor_scale)
    encoded = encode(x, "nvfp4")
    assert torch.equal(encoded.tensor_scale, tensor_scale.reshape(1))
    assert torch.equal(encoded.scale.view(torch.uint8).flatten(), scale.view(torch.uint8).flatten())
    assert torch.equal(encoded.data.view(torch.uint8), data)


@pytest.mark.parametrize(
    "name", ["e4m3", "e5m2", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp4", "mxint8", "bfp5", "nvfp4", "int8",
             "int4", "uint4", "fixed8.4", "int12", "float16"],
)  # fmt: skip
def test_encode_and_decode(name: str) -> None:
    x = torch.randn(6, 70, generator=torch.Generator().manual_seed(4)) * 3
    options: dict[str, Any] = {}
    encoded = encode(x, name, **options)
    assert torch.equal(encoded.decode(), round_to(x, name, **options))
    along = encode(x, name, axis=0).decode() if format_of("", name).rule else None
    assert along is None or torch.equal(along, round_to(x, name, axis=0))
    s = make_seed()
    stochastic = encode(x, name, rounding="stochastic", seed=s)
    assert torch.equal(stochastic.decode(), stochastic_round(x, name, seed=s))
    bits = {"mxfp4": 4, "nvfp4": 4, "int4": 4, "uint4": 4, "int12": 16, "float16": 16}.get(name, 8)
    assert encoded.data.numel() * encoded.data.element_size() == x.numel() * bits // 8


def test_microscaling_scale_modes() -> None:
    """What rceil promises: nothing clips, so stochastic rounding has no bias."""
    x = torch.full((1000, 32), 7.9)
    assert stochastic_round(x, "mxfp4").mean() == pytest.approx(7.9, abs=0.02)
    assert stochastic_round(x, "mxfp4", scale_mode="floor").mean() == 6.0
    scale = {m: encode(x[:1], "mxfp4", scale_mode=m).scale.float().item()  # type: ignore[arg-type]
             for m in ("floor", "ceil", "rceil", "even", "midpoint")}  # fmt: skip
    assert scale == {"floor": 1.0, "ceil": 2.0, "rceil": 2.0, "even": 2.0, "midpoint": 2.0}
    # e4m3: largest 448; 480 is the middle of 448 and 512, and 496 rounds to 512 with three bits.
    for value, up in ((440.0, "c"), (450.0, "cr"), (485.0, "crm"), (497.0, "crme")):
        block = torch.full((1, 32), value)
        for mode, letter in (("ceil", "c"), ("rceil", "r"), ("midpoint", "m"), ("even", "e")):
            s = encode(block, "mxfp8_e4m3", scale_mode=mode).scale.float().item()  # type: ignore[arg-type]
            assert s == (2.0 if letter in up else 1.0), (value, mode)
    tiny = torch.tensor([[1e-45, 2e-39] * 16])
    assert torch.equal(round_to(tiny, "mxfp8_e4m3"), reference.round_to(tiny, "mxfp8_e4m3"))


# ---- fake quantization ----


def test_aten_bit_for_bit() -> None:
    x = torch.randn(4, 6, 50, generator=torch.Generator().manual_seed(5)) * 5
    x[0, 0, :4] = torch.tensor([math.inf, -math.inf, 0.0, -0.0])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        v = x.to(dtype)
        for scale, zero, low, high in ((0.1, 0, -128, 127), (0.037, 7, 0, 255), (0.5, -3, -8, 7)):
            ours = fake_quantize(
                v, torch.tensor(scale), zero, format="int8", quant_min=low, quant_max=high
            )
            theirs = torch.fake_quantize_per_tensor_affine(v, scale, zero, low, high)
            assert torch.equal(ours, theirs)
            # Where 1 / scale is large, infinity overflows ATen's integers in the channel form.
            v = v[1:]
            s = torch.rand(6, generator=torch.Generator().manual_seed(6)) + 0.05
            z = torch.full((6,), zero, dtype=torch.int32)
            ours = fake_quantize(
                v, s, z, quant_min=low, quant_max=high, granularity="channel", axis=1
            )
            theirs = torch.fake_quantize_per_channel_affine(v, s, z, 1, low, high)
            assert torch.equal(ours, theirs)
    # The gradient's mask.
    a, b = (x.clone().requires_grad_() for _ in range(2))
    g = torch.randn_like(x)
    fake_quantize(a, torch.tensor(0.05), 3, format="int4").backward(g)
    torch.fake_quantize_per_tensor_affine(b, 0.05, 3, -8, 7).backward(g)
    assert torch.equal(a.grad, b.grad)
    # pytorch#106780: ATen makes NaN the lowest code.
    assert fake_quantize(torch.tensor([math.nan, 1.0]), 0.1).isnan().tolist() == [True, False]


@pytest.mark.parametrize("channel", [False, True])
def test_learned_scales_against_aten(channel: bool) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(8, 4, 33, generator=generator) * 2
    g = torch.randn(8, 4, 33, generator=generator)
    n = 4 if channel else 1
    s, z = torch.rand(n, generator=generator) * 0.1 + 0.05, torch.tensor([1.2, -3.0, 0.6, 2.7])[:n]
    ours = [t.clone().requires_grad_() for t in (x, s, z)]
    theirs = [t.clone().requires_grad_() for t in (x, s, z)]
    granularity = "channel" if channel else "tensor"
    y = fake_quantize(*ours, format="int4", granularity=granularity, axis=1, gradient_factor=0.37)
    if channel:
        w = torch._fake_quantize_learnable_per_channel_affine(*theirs, 1, -8, 7, 0.37)
    else:
        w = torch._fake_quantize_learnable_per_tensor_affine(*theirs, -8, 7, 0.37)
    assert torch.equal(y, w)
    y.backward(g)
    w.backward(g)
    assert torch.equal(ours[0].grad, theirs[0].grad)
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_learned_step_sizes() -> None:
    """LSQ's formulas by hand, its factor, and the form whose steps stay positive."""
    x = torch.tensor([-3.0, -0.3, 0.26, 0.9, 5.0])
    s = torch.tensor(0.5, requires_grad=True)
    fake_quantize(x, s, format="int3").sum().backward()
    # x / s = -6 (below -4), -0.6, 0.52, 1.8, 10 (above 3)
    expected = -4 + (-1 + 0.6) + (1 - 0.52) + (2 - 1.8) + 3
    assert s.grad.item() == pytest.approx(expected, abs=1e-6)
    lsq = torch.tensor(0.5, requires_grad=True)
    fake_quantize(x, lsq, format="int3", gradient_factor="lsq").sum().backward()
    assert lsq.grad.item() == pytest.approx(expected / math.sqrt(5 * 3), abs=1e-6)
    log = torch.tensor(math.log(0.5), requires_grad=True)
    y = fake_quantize(x, log, format="int3", log_scale=True)
    assert torch.equal(y, fake_quantize(x, s.detach(), format="int3"))
    y.sum().backward()
    assert log.grad.item() == pytest.approx(expected * 0.5, abs=1e-6)


def test_noise_is_uniform_and_independent_of_x() -> None:
    """QReg: rounding replaced by n ~ U(-s/2, s/2), of variance s^2 / 12."""
    x = torch.rand(1_000_000) * 10 - 5
    error = (fake_quantize(x, 0.1, rounding="noise") - x).double()
    assert error.abs().max() <= 0.05 + 1e-6
    assert error.var().item() == pytest.approx(0.01 / 12, rel=0.01)
    assert abs(torch.corrcoef(torch.stack([x.double(), error]))[0, 1]) < 0.005


def test_another_format_for_the_backward() -> None:
    x = torch.randn(64, 64, requires_grad=True)
    g = torch.randn(64, 64)
    y = fake_quantize(x, 0.5, format="int4", gradient="identity", gradient_format="e5m2")
    (dx,) = torch.autograd.grad(y, x, g)
    assert torch.equal(round_to(dx, "e5m2"), dx)
    assert (dx - g).abs().max() <= g.abs().max() / 4
    s = make_seed()
    (dx,) = torch.autograd.grad(round_gradient(x, "mxfp4", seed=s), x, g)
    assert torch.equal(dx, stochastic_round(g, "mxfp4", seed=s))


def test_dynamic_ranges_against_torch_ao() -> None:
    observer = pytest.importorskip("torch.ao.quantization.observer")
    x = torch.randn(33, 70, generator=torch.Generator().manual_seed(8)) * 3
    for symmetric in (True, False):
        scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        o = observer.MinMaxObserver(
            dtype=torch.qint8, qscheme=scheme, quant_min=-128, quant_max=127
        )
        o(x)
        s, z = o.calculate_qparams()
        q = fake_quantize(x, symmetric=symmetric, return_scale=True)
        assert torch.equal(q.scale.reshape(1), s)
        if not symmetric:
            assert torch.equal(q.zero_point.reshape(1).int(), z.int())
        assert torch.equal(q.y, fake_quantize(x, s, z))


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "token"},
        {"granularity": "group", "block_size": 40},
        {"granularity": "group", "block_size": 32},
        {"granularity": "group", "block_size": 50, "axis": 0},
        {"granularity": "block", "block_size": (16, 90)},
        {"granularity": "block", "block_size": (140, 1100)},
        {"granularity": "channel", "axis": 0},
        {"granularity": "channel", "axis": 1},
        {"granularity": "tensor"},
    ],
    ids=str,
)
def test_large_tensors_of_every_granularity(options: dict[str, Any]) -> None:
    """Tiles, pieces of blocks and ragged ends: given, computed, and with their gradients."""
    x = torch.randn(151, 1200, generator=torch.Generator().manual_seed(9)).requires_grad_()
    for symmetric in (True, False):
        q = fake_quantize(x, format="int4", symmetric=symmetric, return_scale=True, **options)
        expected = reference.fake_quantize(x, format="int4", symmetric=symmetric, **options)
        assert torch.equal(q.y, expected)
        ones = torch.ones_like(x)
        (ours,) = torch.autograd.grad(q.y, x, ones)
        assert torch.equal(ours, torch.autograd.grad(expected, x, ones)[0])
        s = q.scale.clone().requires_grad_()
        learned = fake_quantize(x, s, q.zero_point, format="int4", **options)
        assert torch.equal(learned, q.y)
        twin = s.detach().clone().requires_grad_()
        defined = reference.fake_quantize(x, twin, q.zero_point, format="int4", **options)
        g = torch.randn(151, 1200, generator=torch.Generator().manual_seed(10))
        a = torch.autograd.grad(learned, (x, s), g)
        b = torch.autograd.grad(defined, (x, twin), g)
        torch.testing.assert_close(a[0], b[0])
        torch.testing.assert_close(a[1], b[1], rtol=1e-4, atol=1e-3)


def test_quantize_weights() -> None:
    w = torch.randn(32, 64)
    assert len(torch.unique(quantize_weights(w, "int4"))) <= 16
    assert torch.equal(quantize_weights(w, "mxfp4"), round_to(w, "mxfp4"))


def test_gradient_of_an_in_place_call() -> None:
    x = torch.randn(5, 7, requires_grad=True)
    y = round_to_(x * 2, "e4m3")
    y.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
    with pytest.raises(RuntimeError, match="leaf"):
        round_to_(torch.randn(3, requires_grad=True), "e4m3")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: round_to(x, "e9m2"), ValueError, "e4m3fn, e4m3fnuz.*'e9m2'"),
        (lambda x: round_to(x, "fp7"), ValueError, "one of bfloat16, float16"),
        (lambda x: round_to(x.int(), "e4m3"), TypeError, "`x` of dtype float32.*int32"),
        (lambda x: round_to(x, "e4m3", rounding="up"), ValueError, "one of nearest"),
        (lambda x: stochastic_round(x, "e4m3", random_bits=12), ValueError, "8, 16 or 23, got 12"),
        (lambda x: round_to(x, "e4m3", seed=make_seed()), ValueError, "no `seed`"),
        (lambda x: round_to(x, "e4m3", block_size=3), ValueError, "no `block_size`"),
        (lambda x: round_to(x, "mxfp4", block_size=0), ValueError, "`block_size`"),
        (lambda x: round_to(x, "mxfp4", axis=2), ValueError, "`axis` from -2 to 1, got 2"),
        (lambda x: round_to(x, "mxfp4", scale_mode="up"), ValueError, "`scale_mode` to be one of"),
        (lambda x: round_to(x, "mxfp4", tensor_scale=x[0, :1]), ValueError, "no `tensor_scale`"),
        (lambda x: round_to(x, "e4m3", out=x[:1]), ValueError, "`out` of shape"),
        (lambda x: round_to(x, "e4m3", out=x.int()), ValueError, "`out` of a float dtype"),
        (lambda x: round_to(x, "e4m3", dtype=torch.int8), ValueError, "`dtype`"),
        (lambda x: encode(x, "e2m1"), ValueError, "codes of 8 bits"),
        (lambda x: encode(x[:, :7], "mxfp4"), ValueError, "even length"),
        (lambda x: fake_quantize(x, 0.0), ValueError, "positive and finite"),
        (lambda x: fake_quantize(x, -1.0), ValueError, "positive and finite"),
        (lambda x: fake_quantize(x, math.inf), ValueError, "positive and finite"),
        (lambda x: fake_quantize(x, math.nan), ValueError, "positive and finite"),
        (lambda x: fake_quantize(x, 1.0, 200), ValueError, "`zero_point` from -128 to 127"),
        (lambda x: fake_quantize(x, zero_point=3), ValueError, "expected `scale`"),
        (lambda x: fake_quantize(x, torch.ones(3)), ValueError, "`scale` of 1 elements"),
        (lambda x: fake_quantize(x, torch.ones(1).to("meta")), ValueError, "`scale` on cpu"),
        (lambda x: fake_quantize(x, format="mxfp4"), ValueError, "without scales of its own"),
        (lambda x: fake_quantize(x, format="e4m3", symmetric=False), ValueError, "symmetric=False"),
        (lambda x: fake_quantize(x, 1.0, format="e4m3", rounding="noise"), ValueError, "'noise'"),
        (lambda x: fake_quantize(x, quant_min=5), ValueError, "`quant_min` <= 0"),
        (lambda x: fake_quantize(x, granularity="row"), ValueError, "`granularity`"),
        (lambda x: fake_quantize(x, granularity="group"), ValueError, "`block_size`"),
        (lambda x: fake_quantize(x, gradient="none"), ValueError, "`gradient`"),
        (lambda x: fake_quantize(x, 1.0, gradient_factor="x"), ValueError, "`gradient_factor`"),
    ],
)  # fmt: skip
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(torch.randn(4, 8))


def test_errors_of_the_raw_ops() -> None:
    ops, x = torch.ops.regkern, torch.randn(4, 8)
    with pytest.raises(RuntimeError, match="regkern::round_to: expected `format` eXmY"):
        ops.round_to(x, "e4")
    with pytest.raises(RuntimeError, match="expected `seed`"):
        ops.round_to(x, "e4m3fn", "stochastic")
    with pytest.raises(RuntimeError, match="integer `format`"):
        ops.round_to(x, "e4m3fn", "noise", make_seed())
    with pytest.raises(RuntimeError, match="`blocks` of 32 elements"):
        ops.fake_quantize(x, [1, 1, 33, 1, 8, 0], "int:-8:7", "symmetric")
    with pytest.raises(RuntimeError, match="`scale` of 4 elements, one per block, got"):
        ops.fake_quantize(x, [1, 4, 8, 1, 8, 0], "int:-8:7", "given", torch.ones(3))
    with pytest.raises(RuntimeError, match="low < high"):
        ops.fake_quantize(x, [1, 4, 8, 1, 8, 0], "int:7:-8", "symmetric")
    with pytest.raises(RuntimeError, match="`mode` to be one of"):
        ops.fake_quantize(x, [1, 4, 8, 1, 8, 0], "e2m1fn", "mx", mode="up")

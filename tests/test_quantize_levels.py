"""Nearest levels, latent codes, stuck bits and trained bits: laws, corners, errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from regkern.nn.quantize.latent import LatentQuantizer
from regkern.quantize.bitwise import (
    bitwise_scale,
    bitwise_weights,
    pack_bits,
    sign_ste,
    unpack_bits,
)
from regkern.quantize.faults import inject_faults, stuck_at, stuck_at_masks
from regkern.quantize.latent import latent_quantize
from regkern.quantize.levels import level_sum, nearest_level
from regkern.quantize.penalty import level_penalty
from regkern.reference.quantize import levels as reference
from torch import Tensor

SEED = torch.tensor([17, 23])
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def normal(*shape: int, salt: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(salt)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


# ---- nearest_level ----


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("count", [1, 2, 16, 37, 256, 257])
def test_every_level_is_nearest_to_itself(dtype: torch.dtype, count: int) -> None:
    levels = normal(count, salt=count, dtype=dtype)  # not sorted
    y, code = nearest_level(levels, levels)
    assert torch.equal(y, levels)
    # bfloat16 has equal ones among them: the first counts.
    assert torch.equal(levels[code.long()], levels)
    assert code.dtype == (torch.uint8 if count <= 256 else torch.int32)


def test_ties_take_the_lowest_index() -> None:
    x = torch.tensor([0.0, 1.5, -0.5])
    # 0 is as near to −1 as to 1; the order of the levels decides.
    assert nearest_level(x, torch.tensor([-1.0, 1.0])).code.tolist() == [0, 1, 0]
    assert nearest_level(x, torch.tensor([1.0, -1.0])).code.tolist() == [0, 0, 1]
    assert nearest_level(x, torch.tensor([1.0, 1.0, -1.0, -1.0])).code.tolist() == [0, 0, 2]


def test_far_and_infinite_elements_take_the_end_levels() -> None:
    """argmin_j |x − v_j| in float32 takes level 0: all distances round to the same number."""
    levels = torch.tensor([0.2, 0.1, 0.4, -0.3])
    x = torch.tensor([1e9, -1e9, math.inf, -math.inf, 3e38])
    assert (x[:, None] - levels).abs().argmin(1).tolist() == [0] * 5
    assert nearest_level(x, levels).code.tolist() == [2, 3, 2, 3, 2]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan(position: int) -> None:
    x = torch.tensor([0.1, math.nan, 2.0])
    y, code = nearest_level(x, torch.tensor([0.0, 1.0, 2.0]))
    assert y.isnan().tolist() == [False, True, False]
    assert code.tolist() == [0, 0, 2]
    levels = torch.tensor([0.0, 1.0, 2.0])
    levels[position] = math.nan
    y, code = nearest_level(x, levels)
    assert y.isnan().all()
    assert not code.any()


def test_allowed_levels() -> None:
    x = normal(5000, salt=3)
    levels = normal(11, salt=4)
    for dtype in (torch.int32, torch.int64):
        allowed = torch.randint(1, 2**11, x.shape, dtype=dtype)
        y, code = nearest_level(x, levels, allowed)
        assert (allowed.long() >> code.long() & 1).all()
        permitted = reference.allowed_levels(allowed, 11)
        best = torch.where(permitted, (x[:, None] - levels).abs(), math.inf).amin(1)
        assert torch.equal((x - y).abs(), best)


def test_the_highest_levels_can_be_allowed() -> None:
    levels = torch.arange(64.0)
    x = torch.full((64,), 10.2)
    allowed = torch.ones(64, dtype=torch.int64) << torch.arange(64)
    assert nearest_level(x, levels, allowed).code.tolist() == list(range(64))
    few = torch.ones(32, dtype=torch.int32) << torch.arange(32)
    assert nearest_level(x[:32], levels[:32], few).code.tolist() == list(range(32))


def test_nothing_allowed() -> None:
    x, levels = normal(100), torch.tensor([0.0, 1.0])
    allowed = torch.full((100,), 3)
    allowed[71] = 4  # a bit beyond the levels allows nothing
    with pytest.raises(RuntimeError, match="every mask in `allowed` to allow a level"):
        nearest_level(x, levels, allowed)
    with pytest.raises(RuntimeError, match="every mask in `allowed` to allow a level"):
        level_penalty(x, levels=levels, allowed=allowed)


def test_gradient_of_levels_is_a_segmented_sum() -> None:
    x, levels = normal(4, 6, 50), normal(6, 5, salt=1).requires_grad_()
    g = normal(4, 6, 50, salt=2)
    y, code = nearest_level(x, levels, dim=1)
    (dlevels,) = torch.autograd.grad(y, levels, g)
    for c in range(6):
        for j in range(5):
            expected = g[:, c][code[:, c] == j].double().sum()
            assert dlevels[c, j].item() == pytest.approx(expected.item(), abs=1e-5)


def test_sums_are_in_double() -> None:
    """A float32 sum of 2^25 ones stops at 2^24."""
    n = 2**24 + 2**12
    g = torch.ones(1).expand(n).contiguous()
    total = level_sum(g, torch.zeros(n, dtype=torch.uint8), 1)
    assert total.item() == n


def test_clipped_gradient() -> None:
    x = torch.tensor([-2.0, -1.0, 0.3, 1.0, 1.1, math.inf], requires_grad=True)
    levels = torch.tensor([1.0, -1.0, 0.0])
    y = nearest_level(x, levels, gradient="clip").y
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.tolist() == [0, 1, 1, 1, 0, 0]
    (dx,) = torch.autograd.grad(nearest_level(x, levels).y.sum(), x)
    assert dx.tolist() == [1] * 6


def test_codes_outside_the_levels_are_the_last_one() -> None:
    g = torch.ones(70)
    code = torch.full((70,), 200, dtype=torch.uint8)
    assert level_sum(g, code, 3).tolist() == [0, 0, 70]


# ---- latent_quantize ----


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_any_axis_and_layout(dim: int, layout: torch.memory_format) -> None:
    z = normal(3, 4, 5, 6).contiguous(memory_format=layout)
    codebook = normal(z.shape[dim], 7, salt=1)
    out = latent_quantize(z, codebook, dim)
    zhat, indices, quantization, commitment = reference.latent_quantize(
        z.double(), codebook.double(), dim
    )
    assert torch.equal(out.zhat.double(), zhat)
    assert torch.equal(out.indices.long(), indices)
    assert out.zhat.is_contiguous(memory_format=layout)
    assert out.indices.is_contiguous(memory_format=layout)
    assert out.quantization_loss.item() == pytest.approx(quantization.item(), rel=1e-6)
    assert out.commitment_loss.item() == pytest.approx(commitment.item(), rel=1e-6)


def test_zhat_is_exactly_a_scalar_of_the_codebook() -> None:
    """z + (ẑ − z) is not: it rounds twice."""
    z, codebook = normal(1000, 3) * 100, normal(3, 5, salt=1)
    out = latent_quantize(z, codebook)
    for d in range(3):
        assert torch.isin(out.zhat[:, d], codebook[d]).all()
    assert not torch.equal(z + (out.zhat - z), out.zhat)


def test_gradients_of_the_three_outputs() -> None:
    z, codebook = normal(9, 4).requires_grad_(), normal(4, 3, salt=1).requires_grad_()
    zhat, indices, quantization, commitment = latent_quantize(z, codebook)
    g = normal(9, 4, salt=2)
    assert torch.equal(torch.autograd.grad(zhat, z, g, retain_graph=True)[0], g)
    dz, dcodebook = torch.autograd.grad(zhat, (z, codebook), g, retain_graph=True)
    assert not dcodebook.any()
    dz, dcodebook = torch.autograd.grad(quantization, (z, codebook), retain_graph=True)
    assert not dz.any()
    rows = torch.arange(4).expand(9, 4)
    expected = torch.zeros(4, 3).index_put(
        (rows, indices.long()), 2 * (zhat - z).detach() / 36, accumulate=True
    )
    torch.testing.assert_close(dcodebook, expected)
    dz, dcodebook = torch.autograd.grad(commitment, (z, codebook))
    assert not dcodebook.any()
    torch.testing.assert_close(dz, 2 * (z - zhat).detach() / 36)


def test_second_derivatives_of_the_losses() -> None:
    z = normal(5, 2, dtype=torch.float64).requires_grad_()
    codebook = normal(2, 3, salt=1, dtype=torch.float64).requires_grad_()

    def gradients(f: Any) -> list[Tensor]:
        _, _, quantization, commitment = f(z, codebook)
        first = torch.autograd.grad(
            3 * quantization + commitment**2, (z, codebook), create_graph=True
        )
        return list(torch.autograd.grad(sum((t**2).sum() for t in first), (z, codebook)))

    for a, b in zip(gradients(latent_quantize), gradients(reference.latent_quantize), strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_has_no_loss() -> None:
    z, codebook = torch.zeros(0, 3, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    out = latent_quantize(z, codebook)
    assert out.quantization_loss.item() == out.commitment_loss.item() == 0.0
    (dcodebook,) = torch.autograd.grad(out.quantization_loss, codebook)
    assert not dcodebook.any()
    assert level_penalty(z, step=0.5, reduction="mean").item() == 0.0


def test_nan_in_a_latent() -> None:
    z = normal(8, 3)
    z[2, 1] = math.nan
    out = latent_quantize(z, torch.linspace(-1, 1, 5).repeat(3, 1))
    assert out.zhat.isnan().sum() == 1
    assert out.indices[2, 1] == 0
    assert out.quantization_loss.isnan()
    assert out.commitment_loss.isnan()


def test_module() -> None:
    module = LatentQuantizer(5, 8)
    assert torch.equal(module.codebook[3], torch.linspace(-0.5, 0.5, 8))
    z = normal(20, 5)
    out = module(z)
    assert torch.equal(module.decode(out.indices), out.zhat)
    out.quantization_loss.backward()
    assert module.codebook.grad is not None
    assert module.codebook.grad.any()
    fixed = LatentQuantizer(5, 8, learnable=False, dim=1)
    assert not list(fixed.parameters())
    assert "codebook" in fixed.state_dict()
    assert torch.equal(fixed(z[..., None]).zhat[..., 0], out.zhat)
    with pytest.raises(ValueError, match="`num_dims` and `num_levels`"):
        LatentQuantizer(5, 0)
    assert "5, 8" in repr(module)


def test_a_codebook_is_learned() -> None:
    """With both losses the scalars move to where the data is (one-dimensional k-means)."""
    module = LatentQuantizer(1, 3)
    centres = torch.tensor([-2.0, 0.5, 3.0])
    z = (centres[torch.arange(300) % 3] + 0.01 * normal(300))[:, None]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.4)
    for _ in range(80):
        optimizer.zero_grad()
        module(z).quantization_loss.backward()
        optimizer.step()
    torch.testing.assert_close(module.codebook[0].sort().values, centres, atol=0.01, rtol=0)


# ---- stuck bits ----


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_stuck_at(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    code, sa0, sa1 = (
        torch.randint(info.min, info.max, (3, 47), dtype=dtype, generator=g)
        for g in (torch.Generator().manual_seed(i) for i in range(3))
    )
    expected = (code | sa1) & ~sa0
    assert torch.equal(stuck_at(code, sa0, sa1), expected)
    assert torch.equal(stuck_at(code.t(), sa0.t(), sa1.t()), expected.t())
    assert torch.equal(stuck_at(code[1:, 3:], sa0[1:, 3:], sa1[1:, 3:]), expected[1:, 3:])
    # Reading again changes nothing.
    assert torch.equal(stuck_at(expected, sa0, sa1), expected)


def bits_of(masks: Tensor, bits: int) -> Tensor:
    return masks.long()[..., None] >> torch.arange(bits) & 1


@pytest.mark.parametrize(("rate", "p_sa1"), [(0.01, 0.5), (0.2, 0.9), (0.7, 0.1), (1e-4, 0.3)])
@pytest.mark.parametrize("bits", [3, 8, 13])
def test_law_of_the_masks(bits: int, rate: float, p_sa1: float) -> None:
    n = 300_000
    sa0, sa1 = stuck_at_masks((n,), bits, rate, p_sa1, dtype=torch.int32, seed=SEED)
    assert not (sa0 & sa1).any()
    assert not ((sa0 | sa1) >> bits).any()
    for masks, p in ((sa0, rate * (1 - p_sa1)), (sa1, rate * p_sa1)):
        share = bits_of(masks, bits).double().mean(0)
        assert (share - p).abs().max() < 5 * math.sqrt(p * (1 - p) / n)


def test_bits_are_independent() -> None:
    n, rate = 400_000, 0.3
    sa0, sa1 = stuck_at_masks((n,), 4, rate, seed=SEED)
    stuck = bits_of(sa0 | sa1, 4).double()
    centred = (stuck - rate) / math.sqrt(rate * (1 - rate))
    # Bits of an element, and of neighbours: those of two elements share a counter.
    rows = torch.cat([centred[:-1], centred[1:]], 1)
    correlation = rows.t() @ rows / n - torch.eye(8)
    assert correlation.abs().max() < 5 / math.sqrt(n)


def test_rates_below_the_resolution_of_a_half() -> None:
    """16 bits alone would make 1/131072 either 0 or 1/65536."""
    rate, n, bits = 2.0**-17, 400_000, 32
    sa0, sa1 = stuck_at_masks((n,), bits, rate, seed=SEED)
    count = int(bits_of(sa0, bits).sum() + bits_of(sa1, bits).sum())
    expected = n * bits * rate
    assert abs(count - expected) < 5 * math.sqrt(expected)
    # Here halves decide nothing, words do. The definition is slow: the first elements.
    some = 20_000
    first, second = reference.stuck_at_masks((some,), bits, rate, 0.5, SEED)
    assert first.any() or second.any()
    assert torch.equal(sa0[:some].long() & 0xFFFFFFFF, first)
    assert torch.equal(sa1[:some].long() & 0xFFFFFFFF, second)


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("p_sa1", [0.0, 1.0])
def test_extreme_rates(rate: float, p_sa1: float) -> None:
    sa0, sa1 = stuck_at_masks((1000,), 64, rate, p_sa1, seed=SEED)
    assert (sa0 == (-1 if rate == 1 and p_sa1 == 0 else 0)).all()
    assert (sa1 == (-1 if rate == 1 and p_sa1 == 1 else 0)).all()


@pytest.mark.parametrize("bits", [1, 4, 5, 8, 9, 16, 17, 32, 33, 64])
def test_masks_of_every_width(bits: int) -> None:
    ours = stuck_at_masks((3, 43), bits, 0.3, 0.4, dtype=torch.int64, seed=SEED)
    theirs = reference.stuck_at_masks((3, 43), bits, 0.3, 0.4, SEED)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    default = stuck_at_masks((3, 43), bits, 0.3, 0.4, seed=SEED)[0]
    assert default.element_size() * 8 >= bits
    assert torch.equal(bits_of(default, bits), bits_of(theirs[0], bits))


def test_injected_masks_are_the_drawn_ones() -> None:
    for bits in (2, 4, 7, 8, 12, 16):
        w = normal(5, 131)
        sa0, sa1 = stuck_at_masks(w.shape, bits, 0.1, 0.6, dtype=torch.int32, seed=SEED)
        drawn = inject_faults(w, 0.02, 1, bits, rate=0.1, p_sa1=0.6, seed=SEED)
        given = inject_faults(w, 0.02, 1, bits, sa0=sa0, sa1=sa1)
        assert torch.equal(drawn, given)
        assert not torch.equal(drawn, inject_faults(w, 0.02, 1, bits, rate=0.0, seed=SEED))


def test_a_stuck_sign_bit_changes_the_sign() -> None:
    w = torch.tensor([3.0, -3.0, 7.0, -8.0, 100.0])
    sign = torch.full((5,), 8, dtype=torch.uint8)
    # 4 bits: 0011 -> 1011 = -5, 1101 = -3, 0111 -> 1111 = -1, 1000 = -8.
    assert inject_faults(w, 1.0, 0, 4, sa1=sign).tolist() == [-5, -3, -1, -8, -1]
    assert inject_faults(w, 1.0, 0, 4, sa0=sign).tolist() == [3, 5, 7, 0, 7]


def test_without_faults_it_is_fake_quantization() -> None:
    w = normal(6, 200)
    scale = torch.tensor([0.01, 0.02, 0.5, 0.0625, 0.03, 1.0])
    zero = torch.tensor([0, 3, -4, 7, 0, -8])
    y = inject_faults(w, scale, zero, 8, rate=0.0, dim=0, seed=SEED)
    expected = torch.fake_quantize_per_channel_affine(w, scale, zero.int(), 0, -128, 127)
    torch.testing.assert_close(y, expected)


def test_faults_in_corners() -> None:
    w = torch.tensor([math.nan, math.inf, -math.inf, 0.5, -0.5, 1.5])
    y = inject_faults(w, 1.0, 0, 8, rate=0.0)
    assert y[0].isnan()
    assert y[1:].tolist() == [127, -128, 0, 0, 2]  # ties to even
    y = inject_faults(w, 0.0, 0, 8, rate=0.0)
    assert y[0].isnan()
    assert y[3:].tolist() == [0, 0, 0]
    w = normal(40).requires_grad_()
    (dw,) = torch.autograd.grad(inject_faults(w, 0.1, rate=0.5, seed=SEED).sum(), w)
    assert torch.equal(dw, torch.ones(40))


# ---- level_penalty ----


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_every_mask_of_stuck_bits(bits: int, unsigned: bool) -> None:
    """Against the search over all codes: every pair of masks that differs in effect, of 8 bits some
    pairs with other targets each time."""
    generator = torch.Generator().manual_seed(1)
    least, most = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    pairs = torch.tensor([(a, b) for a in range(2**bits) for b in range(2**bits)])
    if bits == 8:
        pairs = pairs[torch.randperm(len(pairs), generator=generator)[:900]]
    targets = torch.cat([torch.arange(least - 1, most + 2, 0.5), torch.tensor([0.3, -0.7, 1e30])])
    for part in pairs.split(64):
        some = targets[torch.randperm(len(targets), generator=generator)[:100]]
        chunk = some.repeat(len(part), 1).requires_grad_()
        sa0, sa1 = (part[:, i, None].expand_as(chunk).contiguous() for i in (0, 1))
        value = level_penalty(chunk, step=1.0, quant_min=least, quant_max=most, sa0=sa0, sa1=sa1)
        (dw,) = torch.autograd.grad(value, chunk)
        code = (chunk - dw / 2).detach().round()
        expected = reference.nearest_code(chunk.detach().double(), least, most, sa0, sa1)
        near = chunk.abs() < 1e20
        assert torch.equal(code[near], expected[near].float())


def test_penalty_without_masks_is_that_of_free_cells() -> None:
    w = normal(3000) * 3
    none = torch.zeros(3000, dtype=torch.int16)
    free = level_penalty(w, step=0.1, quant_min=-16, quant_max=15)
    masked = level_penalty(w, step=0.1, quant_min=-16, quant_max=15, sa0=none, sa1=none)
    torch.testing.assert_close(free, masked)
    stuck = level_penalty(w, step=0.1, quant_min=-16, quant_max=15, sa0=none + 2, sa1=none)
    assert stuck > free


def test_penalty_is_zero_at_the_levels() -> None:
    levels = normal(9)
    assert level_penalty(levels[torch.arange(500) % 9], levels=levels).item() == 0.0
    grid = torch.arange(-8, 8) * 0.25
    assert level_penalty(grid, step=0.25, quant_min=-8, quant_max=7).item() == 0.0


def test_gradients_of_the_penalty_are_derivatives() -> None:
    """Away from the borders between codes the penalty is smooth in everything."""
    w = normal(40, dtype=torch.float64).requires_grad_()
    levels = normal(5, salt=1, dtype=torch.float64).requires_grad_()
    step = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    options = {"variability": 0.1, "seed": SEED}
    check = torch.autograd.gradcheck
    assert check(lambda a, v: level_penalty(a, levels=v, **options), (w, levels), eps=1e-8)
    assert check(lambda a, s: level_penalty(a, step=s, **options), (w, step), eps=1e-8)
    again = torch.autograd.gradgradcheck
    assert again(lambda a, v: level_penalty(a, levels=v, **options), (w, levels), eps=1e-8)
    assert again(
        lambda a, s: level_penalty(a, step=s, reduction="mean", **options), (w, step), eps=1e-8
    )


def test_variability_does_not_depend_on_the_layout() -> None:
    w = normal(2, 3, 4, 5)
    options = {"step": 0.2, "variability": 0.3, "seed": SEED}
    expected = level_penalty(w, **options)
    last = w.contiguous(memory_format=torch.channels_last).requires_grad_()
    value = level_penalty(last, **options)
    assert torch.equal(value, expected)
    assert torch.equal(
        level_penalty(w.transpose(0, 1).contiguous().transpose(0, 1), **options), value
    )
    (dw,) = torch.autograd.grad(value, last)
    assert dw.is_contiguous(memory_format=torch.channels_last)


def test_penalty_in_corners() -> None:
    w = normal(10)
    assert level_penalty(w, step=0.0).item() == pytest.approx((w**2).sum().item())
    w[3] = math.nan
    assert level_penalty(w, step=0.1).isnan()
    assert level_penalty(w, levels=torch.tensor([0.0, 1.0])).isnan()
    assert level_penalty(torch.tensor([math.inf]), step=0.1).item() == math.inf


# ---- trained bits ----


@pytest.mark.parametrize("b", [1, 4, 7, 8, 15, 16, 24])
@pytest.mark.parametrize("dtype", FLOATS)
def test_packed_bits_are_the_weights(b: int, dtype: torch.dtype) -> None:
    bits, sign = normal(b, 3, 41, dtype=dtype), normal(3, 41, salt=1, dtype=dtype)
    codes = pack_bits(bits, sign)
    assert codes.dtype == (torch.int8 if b < 8 else torch.int16 if b < 16 else torch.int32)
    assert torch.equal(codes.long(), reference.pack_bits(bits, sign))
    if dtype == torch.float32:
        assert torch.equal(bitwise_weights(bits, sign, 1.0), codes.float())
    for latent in (False, True):
        planes, signs = unpack_bits(codes, b, latent=latent, dtype=dtype)
        assert set(planes.unique().tolist()) <= ({-1.0, 1.0} if latent else {0.0, 1.0})
        assert torch.equal(pack_bits(planes, signs), codes)
    assert torch.equal(pack_bits(bits).long(), codes.abs().long())


def test_zero_has_no_bit_and_a_positive_sign() -> None:
    zero = torch.tensor([0.0, -0.0])
    assert bitwise_weights(zero.expand(3, 2), zero, 2.0).tolist() == [0, 0]
    assert bitwise_weights(torch.ones(3, 2), zero, 2.0).tolist() == [14, 14]
    nan = torch.tensor([[math.nan, 1.0], [1.0, 1.0]])
    assert bitwise_weights(nan, torch.ones(2), 1.0).isnan().tolist() == [True, False]
    assert bitwise_weights(torch.ones(2, 2), nan[0], 1.0).isnan().tolist() == [True, False]


@pytest.mark.parametrize("b", [1, 2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_bitwise_scale_gives_the_deviation_of_he(b: int, signed: bool) -> None:
    fan_in, n = 50, 200_000
    bits, sign = normal(b, n, salt=b), normal(n, salt=20)
    scale = bitwise_scale(b, fan_in, signed=signed)
    w = bitwise_weights(bits, sign if signed else None, scale).double()
    wanted = 2 / fan_in
    spread = ((w - w.mean()) ** 2).std() / math.sqrt(n) if b > 1 or not signed else 1e-6
    assert abs(w.var() - wanted) < 5 * max(float(spread), 1e-3 * wanted)


def test_frozen_bits() -> None:
    bits, sign = normal(4, 30).requires_grad_(), normal(30, salt=1).requires_grad_()
    scale = torch.tensor(0.5, requires_grad=True)
    w = bitwise_weights(bits, sign, scale, trainable_bits=0b1001)
    dbits, dsign, dscale = torch.autograd.grad(w.sum(), (bits, sign, scale))
    s = torch.where(sign < 0, -1.0, 1.0)
    assert torch.equal(dbits[0], 0.5 * s)
    assert torch.equal(dbits[3], 4 * s)
    assert not dbits[1:3].any()
    assert torch.equal(dsign, (w / s).detach())
    assert dscale.item() == pytest.approx((w / 0.5).sum().item(), rel=1e-6)


def test_second_derivatives_of_trained_bits() -> None:
    """Straight through twice: w is taken as linear in c, in the sign and in each bit."""
    leaves = [
        normal(3, 7, dtype=torch.float64).requires_grad_(),
        normal(7, salt=1, dtype=torch.float64).requires_grad_(),
        torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
    ]

    def gradients(f: Any) -> list[Tensor]:
        w = f(*leaves, trainable_bits=0b101)
        first = torch.autograd.grad((w**2).sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum((t**3).sum() for t in first), leaves))

    for a, b in zip(gradients(bitwise_weights), gradients(reference.bitwise_weights), strict=True):
        torch.testing.assert_close(a, b)


# ---- sign_ste ----


@pytest.mark.parametrize("dtype", FLOATS)
def test_sign_of_zero_is_one(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, 2.0, -3.0, math.nan, math.inf, -math.inf], dtype=dtype)
    y = sign_ste(x)
    assert y[[0, 1, 2, 3, 5, 6]].tolist() == [1, 1, 1, -1, 1, -1]
    assert y[4].isnan()
    assert torch.sign(x)[0] == 0  # what a weight of a binary network must not be


def test_surrogates() -> None:
    x = torch.tensor([-1.5, -1.0, 0.0, 0.5, 1.0, 1.0001, 400.0], requires_grad=True)
    (dx,) = torch.autograd.grad(sign_ste(x, "hardtanh").sum(), x)
    assert dx.tolist() == [0, 1, 1, 1, 1, 0, 0]
    (dx,) = torch.autograd.grad(sign_ste(x, "tanh", 3.0).sum(), x)
    (expected,) = torch.autograd.grad(torch.tanh(3.0 * x.double()).sum(), x)
    torch.testing.assert_close(dx, expected)
    assert dx[-1].item() == 0.0


def test_small_tails_of_tanh() -> None:
    """1 − tanh² cancels: in float32 it is 0 from |x| = 9.1 on."""
    x = torch.tensor([20.0], requires_grad=True)
    (dx,) = torch.autograd.grad(sign_ste(x, "tanh"), x)
    assert dx.item() == pytest.approx(4 * math.exp(-40), rel=1e-6)
    assert (1 - torch.tanh(x) ** 2).item() == 0.0


def test_tanh_can_be_differentiated_twice() -> None:
    x = normal(20, dtype=torch.float64).requires_grad_()
    (first,) = torch.autograd.grad(sign_ste(x, "tanh", 1.3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    t = torch.tanh(1.3 * x)
    (expected,) = torch.autograd.grad((1.3 * (1 - t * t)).sum(), x)
    torch.testing.assert_close(second, expected)


# ---- errors ----


X, LEVELS = torch.zeros(4, 3), torch.zeros(5)
MASK = torch.zeros(4, 3, dtype=torch.int8)

WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: nearest_level(X.long(), LEVELS), TypeError, "nearest_level: expected `x` of dtype"),
    (lambda: nearest_level(X, LEVELS.long()), TypeError, "expected `levels` of dtype"),
    (lambda: nearest_level(X, LEVELS[None, None]), ValueError, r"`levels` of shape \(L\)"),
    (lambda: nearest_level(X, LEVELS[:0]), ValueError, "1 to 4096 levels, got 0"),
    (lambda: nearest_level(X, torch.zeros(4097)), ValueError, "1 to 4096 levels, got 4097"),
    (lambda: nearest_level(X, LEVELS[None]), ValueError, r"`levels` of 4 rows, got \(1, 5\)"),
    (lambda: nearest_level(X, torch.zeros(3, 2), dim=2), ValueError, "`dim` from -2 to 1, got 2"),
    (lambda: nearest_level(X, LEVELS, X), TypeError, "`allowed` of dtype int32 or int64"),
    (lambda: nearest_level(X, LEVELS, X[1:].int()), ValueError, "`allowed` of the shape of `x`"),
    (
        lambda: nearest_level(X, torch.zeros(33), X.int()),
        ValueError,
        "at most 32 levels with `allowed`",
    ),
    (lambda: nearest_level(X, LEVELS, gradient="none"), ValueError, "identity, clip, got 'none'"),
    (lambda: latent_quantize(X.int(), X), TypeError, "latent_quantize: expected `z`"),
    (lambda: latent_quantize(X, LEVELS), ValueError, r"`codebook` of shape \(3, n\), got \(5,\)"),
    (lambda: latent_quantize(X, X), ValueError, r"`codebook` of shape \(3, n\), got \(4, 3\)"),
    (lambda: latent_quantize(X, X.t(), reduction="none"), ValueError, "`reduction`"),
    (lambda: level_penalty(X), ValueError, "`step` or `levels`, got neither"),
    (lambda: level_penalty(X, step=1.0, levels=LEVELS), ValueError, "got both"),
    (lambda: level_penalty(X, step=LEVELS), ValueError, "`step` to have one element"),
    (lambda: level_penalty(X, levels=LEVELS, sa0=MASK), ValueError, "no `sa0` and `sa1`"),
    (lambda: level_penalty(X, step=1.0, allowed=X.int()), ValueError, "no `allowed` with `step`"),
    (lambda: level_penalty(X, step=1.0, sa0=X), TypeError, "`sa0` of an integer dtype"),
    (lambda: level_penalty(X, step=1.0, sa1=MASK[1:]), ValueError, "`sa1` of the shape of `w`"),
    (
        lambda: level_penalty(X, step=1.0, quant_min=-127, sa0=MASK),
        ValueError,
        "all codes of at most 8 bits",
    ),
    (lambda: level_penalty(X, step=1.0, quant_min=5, quant_max=4), ValueError, "`quant_min` <="),
    (lambda: level_penalty(X, step=1.0, variability=-1.0), ValueError, "`variability`"),
    (lambda: stuck_at(X, X, X), TypeError, "stuck_at: expected `code` of dtype uint8"),
    (lambda: stuck_at(MASK, MASK.int(), MASK), ValueError, "`sa0` like `code`"),
    (lambda: stuck_at_masks((3,), 9, 0.1, dtype=torch.int8), ValueError, "`bits` from 1 to 8"),
    (lambda: stuck_at_masks((3,), 65, 0.1), ValueError, "`bits` from 1 to 64, got 65"),
    (lambda: stuck_at_masks((3,), 4, 1.1), ValueError, r"`rate` in \[0, 1\], got 1.1"),
    (lambda: stuck_at_masks((3,), 4, 0.1, dtype=torch.float32), TypeError, "`dtype` to be"),
    (lambda: inject_faults(X, 1.0), ValueError, "`rate`, or `sa0` and `sa1`, got neither"),
    (lambda: inject_faults(X, 1.0, rate=0.1, sa0=MASK), ValueError, "got both"),
    (lambda: inject_faults(X, 1.0, bits=17, rate=0.1), ValueError, "`bits` from 2 to 16"),
    (lambda: inject_faults(X, LEVELS, rate=0.1), ValueError, "of 1 or 4 elements, got 5"),
    (lambda: inject_faults(X, 1.0, sa0=X), TypeError, "`sa0` of dtype"),
    (lambda: bitwise_weights(torch.zeros(25, 2), None, 1.0), ValueError, "b from 1 to 24"),
    (lambda: bitwise_weights(X, X, 1.0), ValueError, "`sign_latent` like a plane"),
    (lambda: bitwise_weights(X, None, LEVELS), ValueError, "`scale` to have one element"),
    (lambda: bitwise_weights(X, None, 1.0, trainable_bits=16), ValueError, "`trainable_bits`"),
    (lambda: unpack_bits(MASK, 8), TypeError, "`codes` of dtype torch.int16 for 8 bits"),
    (lambda: unpack_bits(MASK, 0), ValueError, "`b` from 1 to 24"),
    (lambda: bitwise_scale(0, 3), ValueError, "`b` to be at least 1"),
    (lambda: sign_ste(X, "relu"), ValueError, "identity, hardtanh, tanh, got 'relu'"),
    (lambda: sign_ste(X, "tanh", 0.0), ValueError, "`beta` above 0, got 0.0"),
]


@pytest.mark.parametrize(("call", "error", "text"), WRONG)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


RAW_WRONG: list[tuple[Any, str]] = [
    (lambda o: o.nearest_level(X, LEVELS.double()), "`levels` of dtype float32"),
    (lambda o: o.nearest_level(X, LEVELS[None]), r"`levels` of shape \(4, 5\)"),
    (lambda o: o.nearest_level(X, LEVELS, X.int()[1:]), r"`allowed` of shape \(4, 3\)"),
    (lambda o: o.level_sum(X, X.to(torch.uint8), 300), "`code` of dtype int32"),
    (lambda o: o.latent_quantize(X, LEVELS), r"`codebook` of shape \(D, n\)"),
    (lambda o: o.level_penalty(X, LEVELS, True, 0, 1), "`step` of one element"),
    (lambda o: o.level_penalty(X, LEVELS, False, variability=0.1), "`seed` with `variability`"),
    (lambda o: o.stuck_at(MASK, MASK.int(), MASK), "of the dtype of `code`"),
    (lambda o: o.stuck_at_masks(SEED, [3], 9, 0.1, 0.5, torch.int8), "`bits` from 1 to 8"),
    (lambda o: o.inject_faults(X, LEVELS[:1], LEVELS[:1], 1), "`bits` from 2 to 16"),
    (lambda o: o.bitwise_weights(X, X, LEVELS[0]), "`sign` of the shape of a plane"),
    (lambda o: o.pack_bits(torch.zeros(25, 2)), "from 1 to 24 planes"),
    (lambda o: o.unpack_bits(MASK, 9, False, torch.float32), "`codes` of dtype int8 below 8 bits"),
    (lambda o: o.sign_ste(X, "none"), "one of identity, hardtanh, tanh"),
]


@pytest.mark.parametrize(("call", "text"), RAW_WRONG)
def test_errors_of_the_raw_ops(call: Any, text: str) -> None:
    with pytest.raises(RuntimeError, match=f"regkern::.*expected.*{text}"):
        call(torch.ops.regkern)

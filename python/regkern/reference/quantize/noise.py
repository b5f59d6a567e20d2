"""Quantization noise on weights, by its formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regkern.reference import random as draws


class _StraightThrough(torch.autograd.Function):
    """`value` forward, the identity of `w` backward. Not w + (value - w).detach(): inf - inf."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, value: Tensor) -> Tensor:
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g, None


def straight_through(w: Tensor, value: Tensor) -> Tensor:
    """The value, with the gradient of w."""
    y: Tensor = _StraightThrough.apply(w, value)  # type: ignore[no-untyped-call]
    return y


def item_words(seed: Tensor, stream: str, count: int) -> Tensor:
    """One 32-bit word for each item: word i mod 4 of counter i / 4."""
    item = torch.arange(count)
    return draws.words(seed, stream, item // 4).gather(1, (item % 4)[:, None])[:, 0]


def chosen(seed: Tensor, p: float | Tensor, count: int) -> Tensor:
    """A Bernoulli(p) variable for each item: its word is below p · 2³²."""
    return item_words(seed, "mask", count) < math.floor(float(p) * 2.0**32 + 0.5)


def rounding_bits(seed: Tensor, count: int) -> Tensor:
    """16 bits for each element."""
    return draws.bits(seed, "rounding", torch.arange(count), 16)


# ---- Quant-Noise ----


def blocks_of(shape: Sequence[int], block_size: int) -> tuple[int, int, int]:
    """How Quant-Noise cuts a weight: (rows, row size, block).

    Of (out, in) and (out, in, 1, …, 1) rows are outputs and a block is `block_size` inputs; of
    (out, in, kernel…) a block is the kernel of one output and one input.
    """
    kernel = math.prod(shape[2:])
    if kernel > 1:
        return 1, math.prod(shape), kernel
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape), block_size


def _block_of_element(rows: int, row_size: int, block: int) -> tuple[Tensor, Tensor]:
    """The block of each element, and its place in it; the last block of a row may be shorter."""
    per_row = -(-row_size // block)
    column = torch.arange(row_size)
    place = (column % block).repeat(rows)
    return (torch.arange(rows)[:, None] * per_row + column // block).reshape(-1), place


def nearest_centroid(w: Tensor, codebook: Tensor, block_size: int) -> Tensor:
    """argmin over k of Σⱼ (wⱼ − cₖⱼ)² for each block, the lowest of equals; −2 for a NaN."""
    rows, row_size, block = blocks_of(w.shape, block_size)
    index = []
    for row in w.detach().reshape(rows, row_size):
        for start in range(0, row_size, block):
            piece = row[start : start + block]
            distance = ((piece - codebook.detach()[:, : len(piece)]) ** 2).sum(1)
            nearest = torch.where(distance.isnan(), torch.inf, distance).argmin()
            tied = (distance == distance[nearest]).nonzero()
            index.append(int(tied[0]) if len(tied) else -2)
    return torch.tensor(index, dtype=torch.int32)


def subvector_mean(w: Tensor, block_size: int) -> Tensor:
    """The mean of all blocks, place by place."""
    rows, row_size, block = blocks_of(w.shape, block_size)
    _, place = _block_of_element(rows, row_size, block)
    flat = w.detach().reshape(-1)
    return torch.stack([flat[place == j].mean() for j in range(min(block, row_size))])


def quant_noise(
    w: Tensor,
    p: float | Tensor,
    block_size: int = 8,
    quantizer: str | Tensor | Callable[[Tensor], Tensor] = "zero",
    *,
    gradient: str = "identity",
    training: bool = True,
    seed: Tensor,
) -> Tensor:
    """ŵ = q(w) in the blocks drawn with probability p, w elsewhere; ∂ŵ/∂w = 1."""
    if not training and isinstance(quantizer, str):
        p = 0.0 if quantizer == "zero" else 1.0
    elif not training:
        p = 1.0
    if w.numel() == 0:
        return w * 1.0
    rows, row_size, block = blocks_of(w.shape, block_size)
    of, place = _block_of_element(rows, row_size, block)
    mask = chosen(seed, p, int(of[-1]) + 1)[of].view(w.shape)
    if isinstance(quantizer, Tensor):
        index = nearest_centroid(w, quantizer, block_size)[of].long()
        q = quantizer[index.clamp(min=0), place]
        q = torch.where(index < 0, torch.nan, q).view(w.shape)
    elif quantizer == "mean":
        q = subvector_mean(w, block_size)[place].view(w.shape)
    elif quantizer == "zero":
        q = torch.zeros_like(w)
    else:
        assert callable(quantizer)
        q = quantizer(w)
    through = q if isinstance(quantizer, Tensor) or gradient == "quantizer" else q.detach()
    if gradient == "identity":
        # The codebook has its gradient besides the weight's identity.
        y = torch.where(mask, through, w.detach())
        return _Sum.apply(y, w)  # type: ignore[no-untyped-call, no-any-return]
    return torch.where(mask, through, w)


class _Sum(torch.autograd.Function):
    """y forward; the gradient of y goes to y and to w."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, w: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g, g


# ---- analog noise ----


def _rounded(a: Tensor, bits: Tensor | None) -> Tensor:
    """a >= 0 to an integer: ties up; or up where its fraction exceeds (U + ½) 2⁻¹⁶."""
    floor = a.floor()
    fraction = torch.where(a.isinf(), 0.0, a - floor)
    up = fraction >= 0.5 if bits is None else fraction > (bits + 0.5) / 2.0**16
    return floor + up.to(a.dtype)


def weight_noise(
    w: Tensor,
    kind: str,
    std_dev: float = 0.0,
    *,
    scale: str | float | Tensor = "absmax",
    resolution: float = 0.0,
    stochastic: bool = False,
    coefficients: Sequence[float] = (0.0105392, 0.0786, -0.046924),
    truncate: bool = False,
    drop_connect: float = 0.0,
    rescale: bool = False,
    exempt_last_column: bool = False,
    per_sample: int | None = None,
    gradient: str = "exact",
    seed: Tensor | None = None,
) -> Tensor:
    r"""The modifiers, with n ~ N(0, 1), s = max \|w\|, and r = ``resolution``.

    add_normal: w + σ s n; mult_normal and device_variability: w (1 + σ n);
    discretize: Δ round(w / Δ), Δ = 2 r s, and + σ s n with discretize_add_normal;
    dorefa: s (2 r round((tanh w / (2 tanh s) + ½) / r) − 1) + σ s n;
    poly: w + σ s (c₀ + c₁ u + c₂ u²) n with u = \|w\| / s; prog_noise: sign(w) · \|that\|.
    Then M ⊙ with M ~ Bernoulli(1 − p). s = 0 changes nothing.
    """
    if w.numel() == 0:
        return w * 1.0 if per_sample is None else w.expand(per_sample, *w.shape) * 1.0
    row_size = w.numel() // w.shape[0] if w.dim() > 1 else w.numel()
    v = w.detach().reshape(-1, row_size)
    if isinstance(scale, str):
        measured = v[:, :-1] if exempt_last_column else v
        s = measured.abs().amax(1, keepdim=True) if measured.shape[1] else v[:, :1] * 0
        s = s.amax() if scale == "absmax" else s
    else:
        s = torch.as_tensor(scale, dtype=w.dtype)
        s = s.reshape(-1, 1) if s.numel() > 1 else s.reshape(())
    if resolution >= 1:
        resolution = 1.0 / resolution
    copies = 1 if per_sample is None else per_sample
    total = copies * w.numel()
    zero = torch.zeros(total, dtype=w.dtype)
    n = zero if seed is None or std_dev == 0 else draws.normal(seed, torch.arange(total))
    n = n.to(w.dtype).view(copies, *v.shape)
    bits = None
    if stochastic:
        assert seed is not None
        bits = rounding_bits(seed, total).view(copies, *v.shape)
    factor = torch.ones_like(n)
    v = v.expand(copies, *v.shape)
    needs_scale = True
    if kind == "none":
        y, needs_scale = v, False
    elif kind == "add_normal":
        y = v + std_dev * s * n
    elif kind in ("mult_normal", "device_variability"):
        factor = 1 + std_dev * n
        factor = factor.clamp(min=0) if truncate else factor
        y, needs_scale = v * factor, False
    elif kind in ("discretize", "discretize_add_normal"):
        step = 2 * resolution * s
        y = v.sign() * (_rounded(v.abs() / step, bits) * step) + std_dev * s * n
    elif kind == "dorefa":
        unit = (v.tanh() / (2 * torch.as_tensor(s).tanh()) + 0.5).clamp(0, 1)
        y = s * (2 * _rounded(unit * (1.0 / resolution), bits) * resolution - 1) + std_dev * s * n
    else:
        u = v.abs() / s
        c0, c1, c2 = coefficients
        y = v + std_dev * s * (c0 + u * (c1 + c2 * u)) * n
        if kind == "prog_noise":
            y = torch.where(v == 0, v, v.sign() * y.abs())
    if needs_scale:
        y = torch.where(s == 0, v, y)
    if drop_connect > 0:
        assert seed is not None
        kept = 1.0 / (1.0 - drop_connect) if rescale and drop_connect < 1 else 1.0
        keep = torch.where(chosen(seed, drop_connect, total), 0.0, kept).view(y.shape)
        y = y * keep
        slope = factor * keep if gradient == "exact" else keep.expand(y.shape)
    else:
        slope = factor if gradient == "exact" else torch.ones_like(factor)
    if exempt_last_column:
        last = torch.arange(row_size) == row_size - 1
        y, slope = torch.where(last, v, y), torch.where(last, 1.0, slope)
    shape = w.shape if per_sample is None else (per_sample, *w.shape)
    spread = w if per_sample is None else w.expand(shape)
    through: Tensor = _Linear.apply(spread, y.reshape(shape), slope.reshape(shape))  # type: ignore[no-untyped-call]
    return through


class _Linear(torch.autograd.Function):
    """y forward, g · slope backward."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.saved_tensors[0], None, None


# ---- uniform noise ----


def additive_uniform_noise(
    x: Tensor, step: float | Tensor, *, axis: int = 0, seed: Tensor
) -> Tensor:
    """x + Δ (U − ½); U − ½ = (k − 2²³ + ½) 2⁻²⁴ from the 24 high bits k of the element's word."""
    words = item_words(seed, "noise", x.numel()) if x.numel() else torch.zeros(0)
    centred = (((words.long() >> 8) - 2**23).to(x.dtype) + 0.5) / 2.0**24
    if isinstance(step, Tensor) and step.numel() > 1:
        shape = [1] * x.dim()
        shape[axis] = -1
        step = step.view(shape)
    return x + step * centred.view(x.shape)

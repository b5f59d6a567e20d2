"""Rounding to formats, with and without scales, in plain torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regkern.quantize.formats import Format, format_of
from regkern.quantize.granularity import blocks_of
from regkern.reference import random as draws


def random_bits(seed: Tensor, element: Tensor, k: int) -> Tensor:
    """The k random bits of every element, 23 being the upper ones of 32."""
    drawn = draws.bits(seed, "rounding", element, 32 if k == 23 else k)
    return drawn >> 9 if k == 23 else drawn


def thresholds(x: Tensor, seed: Tensor, k: int) -> Tensor:
    """(U + 1/2) 2^-k of every element, float64, numbered in row-major order."""
    element = torch.arange(x.numel()).reshape(x.shape)
    return (random_bits(seed, element, k).double() + 0.5) * 2.0**-k


def round_integer(t: Tensor, rounding: str, threshold: Tensor | None) -> Tensor:
    """t to an integer: sign(t) (n + up) with n = floor|t|."""
    n = t.abs().floor()
    f = t.abs() - n
    if rounding == "nearest_even":
        up = (f > 0.5) | ((f == 0.5) & (n % 2 == 1))
    elif rounding == "nearest_away":
        up = f >= 0.5
    elif rounding == "toward_zero":
        up = torch.zeros_like(f, dtype=torch.bool)
    elif rounding == "floor":
        up = (f > 0) & (t < 0)
    else:
        assert threshold is not None
        up = f > threshold
    return torch.copysign(n + up.to(n.dtype), t)


def _clipped(form: Format, rounding: str, overflow: str | None) -> bool:
    if overflow is None:
        return rounding == "stochastic" or form.saturates or form.rule is not None
    return overflow == "saturate"


def round_element(
    x: Tensor, form: Format, rounding: str, overflow: str | None, threshold: Tensor | None
) -> Tensor:
    """float64 x on the grid of a floating format: exact, as all its steps are.

    y = sign(x) q (n + up) with q = 2^(max(E, 1 - bias) - m), E the exponent of x.
    """
    finite = torch.where(x.isfinite(), x, torch.zeros_like(x))
    exponent = torch.frexp(finite)[1].double() - 1
    q = torch.exp2(exponent.clamp(min=1 - form.bias) - form.mantissa_bits)
    y = round_integer(finite / q, rounding, threshold) * q
    saturate = torch.full_like(x, _clipped(form, rounding, overflow), dtype=torch.bool)
    # Rounding toward zero, a finite number never becomes infinite.
    towards = rounding == "toward_zero"
    to_max = saturate | towards | ((x > 0) if rounding == "floor" else torch.zeros_like(saturate))
    beyond = math.inf if form.infinity else math.nan
    limit = torch.where(to_max, torch.full_like(x, form.max), torch.full_like(x, beyond))
    y = torch.where(y.abs() > form.max, torch.copysign(limit, x), y)
    at_infinity = form.max if bool(saturate.all()) and not form.infinity else beyond
    y = torch.where(x.isinf(), torch.copysign(torch.full_like(x, at_infinity), x), y)
    if not form.negative_zero:
        y = y + 0.0
    return torch.where(x.isnan(), x, y)


def _computed(x: Tensor) -> Tensor:
    """x in the dtype that is computed in."""
    return x if x.dtype == torch.float64 else x.float()


def round_to(
    x: Tensor,
    format: str,
    *,
    rounding: str = "nearest_even",
    overflow: str | None = None,
    axis: int = -1,
    block_size: int | None = None,
    scale_mode: str | None = None,
    tensor_scale: Tensor | None = None,
    random_bits: int = 16,
    seed: Tensor | None = None,
) -> Tensor:
    """Rounds to a format, whose scales come from blocks along an axis. Straight-through."""
    form = format_of("round_to", format)
    v = _computed(x.detach())
    draws = None if seed is None else thresholds(v, seed, random_bits)
    if form.rule is not None:
        mode = scale_mode or ("rceil" if rounding == "stochastic" else "floor")
        size = block_size or form.block_size or 1
        y = _round_blocks(v, form, rounding, overflow, axis, size, mode, tensor_scale, draws)
    elif form.kind == "integer":
        scale = torch.tensor(form.step, dtype=v.dtype)
        y = _affine(v, scale, torch.zeros_like(scale), form, rounding, draws)[0]
    else:
        y = round_element(v.double(), form, rounding, overflow, draws)
    return x + (y.to(x.dtype) - x).detach() if x.requires_grad else y.to(x.dtype)


def _round_blocks(
    v: Tensor,
    form: Format,
    rounding: str,
    overflow: str | None,
    axis: int,
    size: int,
    mode: str,
    tensor_scale: Tensor | None,
    draws: Tensor | None,
) -> Tensor:
    y = torch.empty_like(v)
    if form.rule == "nvfp4" and tensor_scale is None:
        amax = v.abs().amax() if v.numel() else v.new_ones(())
        tensor_scale = (amax.float() / (6 * 448)) if amax != 0 else torch.ones(())
    for begin in range(0, v.shape[axis], size):
        piece = slice(begin, begin + size)
        index = tuple(piece if d == axis % v.dim() else slice(None) for d in range(v.dim()))
        part = v[index]
        amax = part.abs().amax(axis, keepdim=True)
        if form.rule == "mx":
            scale = torch.exp2(mx_exponent(amax, form, mode)).to(v.dtype)
            inverse = 1 / scale
        else:
            assert tensor_scale is not None
            ts = tensor_scale.to(v.dtype)
            wanted = (amax / 6 / ts).clamp(min=2.0**-6)
            block = round_element(
                wanted.double(), format_of("", "e4m3fn"), "nearest_even", "saturate", None
            ).to(v.dtype)
            scale, inverse = block * ts, (1 / ts) / block
        unusable = ~amax.isfinite()
        scale = torch.where(unusable, torch.full_like(scale, math.nan), scale)
        t = part * inverse
        threshold = None if draws is None else draws[index]
        if form.kind == "integer":
            q = round_integer(t, rounding, None if threshold is None else threshold.to(t.dtype))
            rounded = (q + 0.0).clamp(form.low, form.high)
        else:
            rounded = round_element(t.double(), form, rounding, overflow, threshold).to(v.dtype)
        y[index] = rounded * scale
    return y


def mx_exponent(amax: Tensor, form: Format, mode: str) -> Tensor:
    """X = floor(log2 amax) - emax, and one more as the mode says; float64, in E8M0's range."""
    exponent = torch.frexp(amax.double())[1].double() - 1
    mantissa = amax.double() / torch.exp2(exponent)
    largest = float(form.high) if form.kind == "integer" else form.max
    emax = math.frexp(largest)[1] - 1
    top = largest / 2.0**emax
    places = emax if form.kind == "integer" else form.mantissa_bits
    up = {
        "floor": torch.zeros_like(mantissa, dtype=torch.bool),
        "ceil": mantissa > 1,
        "rceil": mantissa > top,
        # Rounded to the format's mantissa, ties to even, it is 2.
        "even": mantissa >= 2 - 2.0 ** -(places + 1),
        "midpoint": mantissa > (top + 2) / 2,
    }[mode]
    x = torch.where(amax == 0, torch.full_like(exponent, -127.0), exponent - emax + up.double())
    return x.clamp(-127, 127)


def _affine(
    v: Tensor, s: Tensor, z: Tensor, form: Format, rounding: str, draws: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """y, t = x / s, and whether q was inside."""
    t = v * (1 / s)
    threshold = None if draws is None else draws.to(v.dtype)
    if rounding == "noise":
        assert threshold is not None
        q = t + (threshold - 0.5) + z
    else:
        q = round_integer(t, rounding, threshold) + z
    inside = ~((q < form.low) | (q > form.high))
    return (q.clamp(form.low, form.high) - z) * s, t, inside


def _expand(p: Tensor, x: Tensor, blocks: list[int]) -> Tensor:
    """A value per block as a value per element of x."""
    outer, rows, cols, block_rows, block_cols, shared = blocks
    down, across = -(-rows // block_rows), -(-cols // block_cols)
    grid = p.reshape(1 if shared else outer, down, across)
    grid = grid.repeat_interleave(block_rows, 1)[:, :rows]
    grid = grid.repeat_interleave(block_cols, 2)[:, :, :cols]
    return grid.expand(outer, rows, cols).reshape(x.shape)


def _ranges(v: Tensor, blocks: list[int]) -> tuple[Tensor, Tensor]:
    """Least and largest element of every block."""
    outer, rows, cols, block_rows, block_cols, shared = blocks
    view = v.reshape(outer, rows, cols)
    low, high = [], []
    for o in [slice(None)] if shared else range(outer):
        for r in range(0, rows, block_rows):
            for c in range(0, cols, block_cols):
                part = view[o, ..., r : r + block_rows, c : c + block_cols]
                low.append(part.amin())
                high.append(part.amax())
    return (torch.stack(low), torch.stack(high)) if low else (v.new_empty(0), v.new_empty(0))


def fake_quantize(
    x: Tensor,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    *,
    format: str = "int8",
    symmetric: bool = True,
    granularity: str = "tensor",
    axis: int | None = None,
    block_size: Any = None,
    rounding: str = "nearest_even",
    gradient: str = "clip",
    gradient_factor: float = 1.0,
    random_bits: int = 16,
    seed: Tensor | None = None,
) -> Tensor:
    """y = (clamp(round(x / s) + z) - z) s per block; the rounding passes gradients through."""
    form = format_of("fake_quantize", format)
    axis = axis if axis is not None else -1 if granularity == "group" else 0
    blocks, _ = blocks_of("fake_quantize", x, granularity, axis, block_size)
    v = _computed(x)
    draws = None if seed is None else thresholds(v.detach(), seed, random_bits)
    largest = form.max
    if scale is None:
        low, high = _ranges(v.detach(), blocks)
        epsilon = torch.finfo(torch.float32).eps
        usable = low.isfinite() & high.isfinite()
        if symmetric:
            half = (form.high - form.low) / 2 if form.kind == "integer" else largest
            s = (torch.maximum(-low, high) / half).clamp(min=epsilon)
            z = torch.zeros_like(s)
        else:
            low, high = low.clamp(max=0), high.clamp(min=0)
            s = ((high - low) / (form.high - form.low)).clamp(min=epsilon)
            z = (form.low + round_integer(-low / s, "nearest_even", None)).clamp(
                form.low, form.high
            )
        s = torch.where(usable, s, torch.full_like(s, math.nan))
        z = torch.where(usable, z, torch.zeros_like(z))
    else:
        s = scale.reshape(-1).to(v.dtype)
        z = torch.zeros_like(s) if zero_point is None else zero_point.reshape(-1).to(v.dtype)
        whole = torch.floor(z + 0.5).clamp(form.low, form.high)
        z = whole.detach() + (z - z.detach())
        s = s.detach() + (s - s.detach()) * gradient_factor
        z = z.detach() + (z - z.detach()) * gradient_factor
    s, z = _expand(s, v, blocks), _expand(z, v, blocks)
    if form.kind == "integer":
        y, t, inside = _affine(v, s, z, form, rounding, draws)
    else:
        t = v * (1 / s)
        rounded = round_element(t.detach().double(), form, rounding, "saturate", draws).to(v.dtype)
        inside = ~(t.abs() > largest)
        y = rounded * s
    # Straight through: inside y moves with x and, at fixed t, with s; outside with s and z alone.
    y, t = y.detach(), t.detach()
    level = y / s.detach()  # (q - z), or the rounded number
    clamp_level = y.detach() / s.detach() - 0 * z
    inside_form = v + (level - t).nan_to_num(0.0, 0.0, 0.0) * s
    outside_form = clamp_level.nan_to_num(0.0, 0.0, 0.0) * s - (z - z.detach()) * s.detach()
    through = torch.where(inside, inside_form, outside_form)
    if gradient == "identity":
        through = v + (through - v).detach() if scale is None else through
    out = y + (through - through.detach()).nan_to_num(0.0, 0.0, 0.0)
    return out.to(x.dtype)

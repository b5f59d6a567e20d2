"""Definitions of the list ops: stochastic copies, and optimizer steps on rounded weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkern.reference.random import words

#: Elements of a list are numbered from tensor to tensor, each beginning at a multiple of this.
ALIGN = 128
#: What is rounded of an element, its weight and the states of its optimizer, stands this far apart.
APART = 2**50


class Format(NamedTuple):
    """Stored bits of the mantissa, the exponent of the least normal number, the largest number."""

    mantissa: int
    lowest: int
    largest: float


FORMATS = {
    torch.bfloat16: Format(7, -126, torch.finfo(torch.bfloat16).max),
    torch.float16: Format(10, -14, torch.finfo(torch.float16).max),
}


def random_bits(seed: Tensor, first: int, count: int) -> Tensor:
    """The 16 random bits U of the elements ``first`` … ``first + count − 1``.

    Element e of a chunk of 128 reads half ``e // 16`` of the words of counter ``e % 16``; a word's
    lower half comes first.
    """
    element = torch.arange(first, first + count)
    within = element % 128
    drawn = words(seed, "rounding", element // 128 * 16 + within % 16)
    half = within // 16
    word = drawn.gather(-1, (half // 2)[:, None])[:, 0]
    return (word >> (16 * (half % 2))) & 0xFFFF


def round_stochastic(x: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """x to ``dtype``: the neighbour away from zero iff f > (U + ½) / 2¹⁶.

    ``f = (|x| − lower) / (upper − lower)`` is where x lies between its neighbours. A finite number
    never becomes infinite. float32 is left as it is.
    """
    if dtype not in FORMATS:
        return x.to(dtype)
    form = FORMATS[dtype]
    x = x.double()
    _, exponent = torch.frexp(x)
    spacing = torch.ldexp(torch.ones_like(x), (exponent - 1).clamp(min=form.lowest) - form.mantissa)
    quotient = x.abs() / spacing
    lower = quotient.floor()
    up = (quotient - lower) * 2**16 > bits + 0.5
    rounded = ((lower + up) * spacing).clamp(max=form.largest)
    finite = torch.copysign(rounded, x)
    return torch.where(x.isfinite(), finite, x).to(dtype)


def numbered(tensors: Sequence[Tensor], first: int = 0) -> list[int]:
    """The number of each tensor's first element."""
    numbers = []
    for t in tensors:
        numbers.append(first)
        first += math.ceil(t.numel() / ALIGN) * ALIGN
    return numbers


def copy_stochastic(
    src: Sequence[Tensor], dtypes: Sequence[torch.dtype], seed: Tensor, first: int = 0
) -> list[Tensor]:
    """Every tensor of ``src`` in its dtype, each element with random bits of its own."""
    out = []
    for x, dtype, number in zip(src, dtypes, numbered(src, first), strict=True):
        bits = random_bits(seed, number, x.numel()).reshape(x.shape)
        out.append(x.clone() if x.dtype == dtype else round_stochastic(x, bits, dtype))
    return out


def _stored(x: Tensor, like: Tensor, seed: Tensor, which: int, number: int) -> Tensor:
    """x in the dtype of ``like``, rounded with random bits of the ``which``-th kind."""
    bits = random_bits(seed, which * APART + number, x.numel()).reshape(x.shape)
    return round_stochastic(x, bits, like.dtype)


def adamw_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: int,
    seed: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    number: int = 0,
    compute: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    """One step of AdamW (Loshchilov and Hutter, 2019), the t-th, ``t = step``.

    ::

        p ← (1 − lr λ) p
        m ← m + (1 − β₁)(g − m)
        v ← β₂ v + (1 − β₂) g²
        p ← p − lr / (1 − β₁ᵗ) · m / (√(v / (1 − β₂ᵗ)) + ε)

    in ``compute``; then p, m and v (and the largest v so far, with AMSGrad, which replaces v in
    the last line) are rounded to the dtypes they are stored in.
    """
    p, g, m, v = (t.to(compute) for t in (param, grad, exp_avg, exp_avg_sq))
    g = -g if maximize else g
    p = p * (1 - lr * weight_decay)
    m = m + (1 - beta1) * (g - m) if beta1 > 0 else g
    v = beta2 * v + (1 - beta2) * g * g
    largest = None if max_exp_avg_sq is None else torch.maximum(max_exp_avg_sq.to(compute), v)
    used = v if largest is None else largest
    denominator = used.sqrt() / math.sqrt(1 - beta2**step) + eps
    p = p - lr / (1 - beta1**step) * m / denominator
    stored = [
        _stored(p, param, seed, 0, number),
        _stored(m, exp_avg, seed, 1, number),
        _stored(v, exp_avg_sq, seed, 2, number),
    ]
    if largest is not None and max_exp_avg_sq is not None:
        stored.append(_stored(largest, max_exp_avg_sq, seed, 3, number))
    return tuple(stored)


def sgd_step(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    seed: Tensor,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool = False,
    maximize: bool = False,
    fresh: bool = False,
    number: int = 0,
    compute: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    """One step of SGD as torch has it.

    ::

        g ← g + λ p
        b ← μ b + (1 − dampening) g        (b ← g in the first step, ``fresh``)
        p ← p − lr b                       (Nesterov: p − lr (g + μ b))

    in ``compute``; then p and b are rounded to the dtypes they are stored in.
    """
    p, g = param.to(compute), grad.to(compute)
    g = -g if maximize else g
    g = g + weight_decay * p if weight_decay != 0 else g
    if momentum_buffer is None:
        return (_stored(p - lr * g, param, seed, 0, number),)
    b = g if fresh else momentum * momentum_buffer.to(compute) + (1 - dampening) * g
    update = g + momentum * b if nesterov else b
    return (
        _stored(p - lr * update, param, seed, 0, number),
        _stored(b, momentum_buffer, seed, 1, number),
    )

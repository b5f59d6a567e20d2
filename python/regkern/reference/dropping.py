"""Dropout in plain torch, with the mask of a seed drawn number by number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regkern.reference import random as draws

_BLOCK = 128


def keep_mask(seed: Tensor, count: int, p: Tensor) -> Tensor:
    """Whether each of `count` elements is kept: not if a number of 48 random bits is below p.

    The upper 16 bits stand as in stochastic rounding, sixteen apart; the lower 32 are the first
    word of a counter of the element's own.
    """
    element = torch.arange(count)
    upper = draws.bits(seed, "mask", element, 16)
    lower = draws.words(seed, "choice", element)[:, 0]
    units = p.double() * 2.0**16
    level = units.floor()
    fraction = ((units - level) * 2.0**32).floor()
    drop = (upper < level) | ((upper == level) & (lower < fraction))
    return ~drop


def dropout(
    x: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    shared: int | Sequence[int] = (),
    scale: bool = True,
    copies: int | None = None,
    seed: Tensor,
) -> Tensor:
    """x ⊙ M / (1 − p), M of size 1 in the shared dimensions."""
    if not training:
        return x if copies is None else x.expand(copies, *x.shape)
    dims = [shared] if isinstance(shared, int) else list(shared)
    sizes = [1 if d in [s % x.dim() for s in dims] else n for d, n in enumerate(x.shape)]
    count, k = math.prod(sizes), copies or 1
    # Masks of elements start at whole blocks of the generator.
    padded = math.ceil(count / _BLOCK) * _BLOCK if count == x.numel() else count
    each = p if isinstance(p, Tensor) else torch.tensor(p, dtype=torch.float64)
    wide = torch.broadcast_to(each.double(), sizes).reshape(-1)
    held = torch.zeros(k, padded, dtype=torch.float64)
    held[:, :count] = wide
    kept = keep_mask(seed, k * padded, held.reshape(-1)).reshape(k, padded)[:, :count]
    factor = torch.where(wide < 1, 1 / (1 - wide), 1.0) if scale else torch.ones_like(wide)
    mask = (kept * factor).reshape(k, *sizes).to(x.dtype)
    y = x * mask
    return y if copies is not None else y[0]

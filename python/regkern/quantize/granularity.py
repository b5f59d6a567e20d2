"""What shares a scale: granularities as blocks of the kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

Granularity = Literal["tensor", "channel", "token", "group", "block"]
GRANULARITIES = ("tensor", "channel", "token", "group", "block")


def _axis(op: str, x: Tensor, axis: int) -> int:
    if isinstance(axis, bool) or not isinstance(axis, int) or not -x.dim() <= axis < x.dim():
        raise ValueError(
            f"regkern.{op}: expected `axis` from {-x.dim()} to {x.dim() - 1}, got {axis!r}"
        )
    return axis % x.dim()


def blocks_of(
    op: str,
    x: Tensor,
    granularity: str,
    axis: int = 0,
    block_size: int | Sequence[int] | None = None,
) -> tuple[list[int], tuple[int, ...]]:
    """The blocks of a row-major x for the kernels, and the shape of its scales.

    Parameters
    ----------
    granularity
        ``"tensor"``: one scale, shape (). ``"channel"``: one for each index of ``axis``, shape
        (n,). ``"token"``: one for each vector along the last axis, x.shape[:-1] + (1,).
        ``"group"``: one for each ``block_size`` neighbours along ``axis``, the shape of x with
        ceil(n / block_size) there. ``"block"``: one for each (rows, cols) block of the last two
        axes, likewise.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"regkern.{op}: expected `granularity` to be one of {', '.join(GRANULARITIES)}, got "
            f"{granularity!r}"
        )
    n = x.numel()
    if granularity == "tensor" or (x.dim() == 0 and granularity != "block"):
        return [1, 1, n, 1, max(n, 1), 0], ()
    shape = list(x.shape)
    if granularity == "token":
        last = shape[-1]
        return [1, n // last if last else 0, last, 1, max(last, 1), 0], (*shape[:-1], 1)
    if granularity == "channel":
        axis = _axis(op, x, axis)
        outer, size, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
        if axis == x.dim() - 1:
            return [1, outer, size, max(outer, 1), 1, 0], (size,)
        return [outer, size, inner, 1, max(inner, 1), 1], (size,)
    sizes = [block_size] if isinstance(block_size, int) else list(block_size or [])
    wanted = 2 if granularity == "block" else 1
    if len(sizes) != wanted or any(isinstance(s, bool) or s < 1 for s in sizes):
        raise ValueError(
            f"regkern.{op}: expected `block_size` to be {wanted} positive "
            f"number{'s' * (wanted > 1)} with granularity {granularity!r}, got {block_size!r}"
        )
    if granularity == "group":
        axis = _axis(op, x, axis)
        outer, size, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
        counts = [*shape[:axis], -(-size // sizes[0]), *shape[axis + 1 :]]
        if axis == x.dim() - 1:
            return [1, outer, size, 1, sizes[0], 0], tuple(counts)
        return [outer, size, inner, sizes[0], 1, 0], tuple(counts)
    if x.dim() < 2:
        raise ValueError(
            f"regkern.{op}: expected `x` of at least 2 dimensions with granularity 'block', got "
            f"{tuple(shape)}"
        )
    rows, cols = shape[-2:]
    counts = [*shape[:-2], -(-rows // sizes[0]), -(-cols // sizes[1])]
    return [math.prod(shape[:-2]), rows, cols, *sizes, 0], tuple(counts)

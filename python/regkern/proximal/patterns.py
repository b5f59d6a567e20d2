"""N:M patterns: the largest of every few neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import register
from regkern.proximal.projections import Lines, along, check_dim

# ---- raw ops: fake kernels and autograd ----


def _fake_select(
    values: Tensor,
    scores: Tensor,
    n: int,
    m: int,
    slices: Sequence[int],
    straight_through: bool = False,
) -> Tensor:
    return values.new_empty(values.shape)


def _fake_mask(scores: Tensor, n: int, m: int, slices: Sequence[int]) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


_select = register("n_m_select", _fake_select)
_mask = register("n_m_mask", _fake_mask)
_select_ = register("n_m_select_", lambda xs, n, m, slices: None)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, scores, ctx.n, ctx.m, ctx.slices, ctx.straight_through = inputs
    ctx.save_for_backward(scores)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (scores,) = ctx.saved_tensors
    # What was kept by the scores: the map is linear in the values, and its own transpose.
    dx = g if ctx.straight_through else _select(g, scores, ctx.n, ctx.m, ctx.slices)
    return dx, None, None, None, None, None


_select.differentiable(_setup, _backward)


# ---- public functions ----


def _check(op: str, n: int, m: int) -> None:
    for name, value in (("n", n), ("m", m)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"regkern.{op}: expected `{name}` to be an int, got {value!r}")
    if not 1 <= m <= 64:
        raise ValueError(f"regkern.{op}: expected `m` in [1, 64], got {m}")
    if not 0 <= n <= m:
        raise ValueError(f"regkern.{op}: expected `n` in [0, {m}], got {n}")


def n_m_projection(
    x: Tensor, n: int = 2, m: int = 4, dim: int = -1, straight_through: bool = False
) -> Tensor:
    r"""Keeps the n largest magnitudes of every m neighbours, and makes the others zero.

    .. math::
        y_i = \begin{cases} x_i & \text{if } \#\{j \in G(i) : |x_j| > |x_i|, \text{ or }
            |x_j| = |x_i| \text{ and } j < i\} < n \\ 0 & \text{otherwise} \end{cases}

    The nearest point of the pattern; of equal magnitudes the lowest index wins.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    n, m : int
        :math:`0 \le n \le m \le 64`. 2:4 is what sparse tensor cores take.
    dim : int
        Neighbours are along this dimension; a last group of fewer than m keeps up to n of them.
    straight_through : bool
        The gradient passes to all elements, so that zeros can come back. By default it passes to
        those that were kept.

    Returns
    -------
    Tensor
        Like x. NaN counts as the largest magnitude, so it is kept.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, and n and m out of range.

    Notes
    -----
    Bytes moved: x read once, y written once; groups of four meet in registers. Differentiable any
    number of times; the choice itself has no gradient.

    References
    ----------
    A. Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", ICLR
    2021.
    """
    op = "n_m_projection"
    dim = check_dim(op, x, dim)
    _check(op, n, m)
    lines = Lines(x, dim)
    y: Tensor = _select(lines.x, lines.x.detach(), n, m, lines.slices, straight_through)
    return lines.back(y)


def n_m_mask(scores: Tensor, n: int = 2, m: int = 4, dim: int = -1) -> Tensor:
    """Where `n_m_projection` keeps an element.

    Parameters
    ----------
    scores : Tensor
        float32, float64, bfloat16 or float16; magnitudes count.
    n, m : int
        Of every m neighbours n are kept.
    dim : int
        Neighbours are along this dimension.

    Returns
    -------
    Tensor
        bool, of the shape of ``scores``.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that there is not, and n and m out of range.

    Notes
    -----
    Bytes moved: scores read once, a byte written per element.
    """
    op = "n_m_mask"
    dim = check_dim(op, scores, dim)
    _check(op, n, m)
    lines = Lines(scores.detach(), dim)
    return lines.back(_mask(lines.x, n, m, lines.slices))


def n_m_projection_(
    tensors: Tensor | Sequence[Tensor], n: int = 2, m: int = 4, dim: int = -1
) -> None:
    """`n_m_projection` in place, of a whole list of tensors in one call.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        What is written; dtypes mixed as they come, any strides.
    n, m : int
        Of every m neighbours n are kept.
    dim : int
        Neighbours are along this dimension of each tensor.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd. Bytes moved: every element read and written once.
    """
    op = "n_m_projection_"
    xs = checks.tensor_list(op, "tensors", tensors)
    _check(op, n, m)
    slices = [size for x in xs for size in along(x.shape, check_dim(op, x, dim))]
    with torch.no_grad():
        _select_(xs, n, m, slices)

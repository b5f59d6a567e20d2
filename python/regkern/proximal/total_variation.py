"""Total variation and the fused lasso along a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regkern._registration import compute_dtype, register
from regkern.proximal.projections import Lines, check_dim, number_per_slice

# ---- raw ops: fake kernels and autograd ----


def _fake_total_variation(x: Tensor, lam: Tensor, slices: Sequence[int]) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.int8)


_total_variation = register("total_variation", _fake_total_variation)
segment_mean_op = register("segment_mean", lambda x, jump, slices: x.new_empty(x.shape))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, lam, ctx.slices = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(lam, output[1])


def _backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    lam, jump = ctx.saved_tensors
    dx = segment_mean_op(g, jump, ctx.slices)
    # A segment of length L has the value mean + λ (sign of the jump behind − before) / L.
    sign = jump.reshape(ctx.slices).double()
    sign = torch.where(sign == 2, 0.0, sign)
    change = sign - F.pad(sign, (0, 0, 0, 0, 1, 0))[:, :-1]
    along = (dx.reshape(ctx.slices).double() * change).sum((1, 3))
    dlam = along.sum() if lam.numel() == 1 else along
    return dx, dlam.reshape(lam.shape), None


def _mean_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, jump, ctx.slices = inputs
    ctx.save_for_backward(jump)


def _mean_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (jump,) = ctx.saved_tensors
    return segment_mean_op(g, jump, ctx.slices), None, None


_total_variation.differentiable(_setup, _backward)
segment_mean_op.differentiable(_mean_setup, _mean_backward)


# ---- public functions ----


def _prox(op: str, x: Tensor, lam: float | Tensor, dim: int) -> Tensor:
    dim = check_dim(op, x, dim)
    lines = Lines(x, dim)
    factor = lines.per_slice(number_per_slice(op, "lam", lam, x, dim))
    y: Tensor = _total_variation(lines.x, factor, lines.slices)[0]
    return lines.back(y)


def prox_total_variation(x: Tensor, lam: float | Tensor, dim: int = -1) -> Tensor:
    r"""The proximal operator of 1-d total variation, exactly.

    .. math::
        y = \arg\min_y \tfrac{1}{2} \lVert y - x \rVert^2 + \lambda \sum_i |y_{i+1} - y_i|

    ``[1, 1, 5, 5]`` with λ = 1 becomes ``[1.5, 1.5, 4.5, 4.5]``.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    lam : float or Tensor
        :math:`\lambda \ge 0`: a number, a 0-d tensor, or a tensor of x's shape without ``dim``.
        Differentiable. 0 gives x bit for bit, infinity the mean.
    dim : int
        The lines are along this dimension; each is on its own.

    Returns
    -------
    Tensor
        Like x. A line is NaN where an element is not finite, or its λ is negative or NaN.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, a λ below zero.

    Notes
    -----
    Condat's direct algorithm, in double: linear time in practice, quadratic at worst. A thread has
    a line, so many lines run in parallel, and one does not. Bytes moved: x read, y and a byte per
    element written. Backward: the mean of g over each constant segment; twice differentiable.

    References
    ----------
    L. Condat, "A direct algorithm for 1-D total variation denoising", IEEE Signal Processing
    Letters 20, 2013.
    """
    return _prox("prox_total_variation", x, lam, dim)


def prox_fused_lasso(x: Tensor, lam: float | Tensor, l1: float | Tensor, dim: int = -1) -> Tensor:
    r"""The proximal operator of the fused lasso: total variation, then a soft threshold.

    .. math::
        y = \arg\min_y \tfrac{1}{2} \lVert y - x \rVert^2 + \lambda \sum_i |y_{i+1} - y_i|
            + \mu \sum_i |y_i|

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    lam, l1 : float or Tensor
        :math:`\lambda, \mu \ge 0`: numbers, 0-d tensors, or tensors of x's shape without ``dim``.
        Differentiable.
    dim : int
        The lines are along this dimension.

    Returns
    -------
    Tensor
        Like x. See `prox_total_variation`.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, a λ or μ below zero.

    Notes
    -----
    The soft threshold of the solution of the one is the solution of both. It is made of torch ops:
    two reads and writes more.

    References
    ----------
    J. Friedman, T. Hastie, H. Höfling and R. Tibshirani, "Pathwise coordinate optimization", Annals
    of Applied Statistics 1, 2007.
    """
    op = "prox_fused_lasso"
    axis = check_dim(op, x, dim)
    mu = number_per_slice(op, "l1", l1, x, axis).to(compute_dtype(x))
    y = _prox(op, x, lam, dim)
    wide = y.to(compute_dtype(x))
    shrunk = wide.sign() * (wide.abs() - mu).clamp(min=0)
    return torch.where(mu == 0, wide, shrunk).to(x.dtype)

"""Convolutions with a dense weight of which only the entries of a pattern are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import function_apply
from regkern.sparse.convolutions import (
    _PADDING_MODES,
    Numbers,
    _around,
    _check_groups,
    _check_shapes,
    _of_one_row,
    _pair,
    _sample,
)
from regkern.sparse.masked import _check, _check_frozen, _check_vector, _in_autocast
from regkern.sparse.pattern import SparsePattern


class _Options(NamedTuple):
    """Of rows and columns each; padding is the same on either side."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def of_torch(self) -> tuple[Any, ...]:
        """As ``aten::convolution`` has them: not transposed, no padding of the output."""
        spread = list(self.stride), list(self.padding), list(self.dilation)
        return *spread, False, [0, 0], self.groups

    def of_entries(self) -> tuple[Any, ...]:
        rows, columns = self.padding
        around = [rows, rows, columns, columns]
        return list(self.kernel), list(self.stride), around, list(self.dilation), self.groups


def _at_entries(
    g: Tensor, x: Tensor, pattern: SparsePattern, options: _Options, like: Tensor
) -> Tensor:
    """The weight's gradient at the entries, as `like` is."""
    if pattern.nnz == 0:
        return torch.zeros_like(like)
    x = x if x.dtype == g.dtype else x.to(g.dtype)
    sums: Tensor = _sample(g, x, *pattern.tensors(), *options.of_entries())
    return sums.to(like.dtype)


class _Conv(torch.autograd.Function):
    """W * x + b, where W has the values at the pattern; the gradient of W is theirs alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        pattern: SparsePattern,
        options: _Options,
    ) -> Tensor:
        y: Tensor = torch.ops.aten.convolution(x, weight, bias, *options.of_torch())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, _, weight, ctx.pattern, ctx.options = inputs
        ctx.save_for_backward(x, values, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, values, weight = ctx.saved_tensors
        dx = dv = db = None
        if ctx.needs_input_grad[0]:
            dx = function_apply(_Transposed, g, values, x, weight, ctx.pattern, ctx.options)
        if ctx.needs_input_grad[1]:
            dv = _at_entries(g, x, ctx.pattern, ctx.options, values)
        if ctx.needs_input_grad[2]:
            db = g.sum((0, 2, 3))
        return dx, dv, db, None, None, None


class _Transposed(torch.autograd.Function):
    """The gradient of images like x, which depends on g and on the values."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        g: Tensor,
        values: Tensor,
        x: Tensor,
        weight: Tensor,
        pattern: SparsePattern,
        options: _Options,
    ) -> Tensor:
        dx: Tensor = torch.ops.aten.convolution_backward(
            g, x, weight, None, *options.of_torch(), [True, False, False]
        )[0]
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, values, _, weight, ctx.pattern, ctx.options = inputs
        ctx.save_for_backward(g, values, weight)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
        g, values, weight = ctx.saved_tensors
        dg = dv = None
        if ctx.needs_input_grad[0]:
            dg = function_apply(_Conv, h, values, None, weight, ctx.pattern, ctx.options)
        if ctx.needs_input_grad[1]:
            dv = _at_entries(g, h, ctx.pattern, ctx.options, values)
        return dg, dv, None, None, None, None


def _masked_conv(
    op: str,
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None,
    stride: tuple[int, int],
    around: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: object,
    padding_mode: str,
) -> Tensor:
    """Of images (N, I, H, W), all arguments known to be of the kinds that they have here."""
    checks.one_of(op, "padding_mode", padding_mode, _PADDING_MODES)
    x, weight, bias = _in_autocast(x, weight, bias)
    if x.dtype != weight.dtype:
        raise TypeError(
            f"regkern.{op}: expected `x` of dtype {weight.dtype}, that of `weight`, got {x.dtype}"
        )
    given = _check_groups(op, groups, x.shape[1], weight.shape[0])
    kernel = weight.shape[2], weight.shape[3]
    _check_shapes(op, x, pattern, kernel, dilation, around, given)
    top, bottom, left, right = around
    if max(around) > 0 and (padding_mode != "zeros" or top != bottom or left != right):
        mode = "constant" if padding_mode == "zeros" else padding_mode
        x = F.pad(x, (left, right, top, bottom), mode)
        top = left = 0
    options = _Options(kernel, stride, (top, left), dilation, given)
    y: Tensor = function_apply(_Conv, x, values, bias, weight, pattern, options)
    return y


def _check_conv(
    op: str,
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None,
    rank: int,
) -> None:
    checks.floating(op, "x", x)
    if x.dim() not in (rank - 1, rank):
        raise ValueError(
            f"regkern.{op}: expected `x` of {rank - 1} or {rank} dimensions, got {tuple(x.shape)}"
        )
    _check(op, weight, values, pattern)
    _check_frozen(op, weight)
    checks.on_device(op, "weight", weight, x)
    if weight.dim() != rank:
        raise ValueError(
            f"regkern.{op}: expected `weight` of {rank} dimensions, got {tuple(weight.shape)}"
        )
    _check_vector(op, "bias", bias, pattern.shape[0], x)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""A convolution with a dense weight, of which the entries of a pattern are trained.

    .. math::
        y = W * x + b, \qquad \frac{\partial L}{\partial v_e} =
        \sum_{n,p,q} g_{n,o_e,p,q}\, x_{n,c_e,\; s p + d i_e - a,\; s q + d j_e - a}

    with stride s, dilation d and padding a of each axis. Forward and the gradient of x are torch's
    convolution. The gradient of the weight is taken at the entries alone, and nothing of the
    weight's size is allocated for it; an optimizer has states of the size of ``values``.

    Parameters
    ----------
    x : Tensor
        (N, I, H, W) or (I, H, W): float32, float64, bfloat16 or float16; row-major or channels
        last.
    weight : Tensor
        W (O, I / groups, KH, KW) of the dtype of x. It holds the values at the pattern already, as
        :func:`write_entries_` puts them there (with a base, where values are what is added to it:
        the gradient is the same); this is not looked at.
    values : Tensor
        v (nnz,), what the gradient goes to: of the dtype of ``weight``, or of float32 where that is
        a half.
    pattern : SparsePattern
        Where they are in the matrix (O, I / groups · KH · KW).
    bias : Tensor, optional
        b (O,).
    stride, dilation : int or two
        Of rows and columns.
    padding : int, two or four, "same" or "valid"
        Of rows and columns; or left, right, top and bottom, as ``torch.nn.functional.pad`` has
        them.
    groups : int
        Groups of channels, which divide I and O.
    padding_mode : str
        ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    Returns
    -------
    Tensor
        (N, O, OH, OW) or (O, OH, OW). Differentiable in x, values and bias, as often as wanted.
        Under autocast x, weight and bias are cast as those of torch's convolution.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above, and for a weight that requires a gradient.

    Notes
    -----
    Of N OH OW positions with O I / groups KH KW = M weights: 4 N OH OW M + 2 N OH OW nnz operations
    for forward and backward, instead of 6 N OH OW M. For the entries x and g are read once and
    packed, as :func:`sparse_conv2d` does it.

    References
    ----------
    "SaRA: high-efficient diffusion model fine-tuning with progressive sparse low-rank adaptation",
    2024. A. Ansell, E. Ponti, A. Korhonen and I. Vulić, "Composable sparse fine-tuning for
    cross-lingual transfer", ACL 2022.
    """
    op = "masked_conv2d"
    _check_conv(op, x, weight, values, pattern, bias, 4)
    steps, spread = _pair(op, "stride", stride, 1), _pair(op, "dilation", dilation, 1)
    around = _around(op, padding, weight.shape[2:], steps, spread)
    images = x if x.dim() == 4 else x.unsqueeze(0)
    y = _masked_conv(
        op,
        images,
        weight,
        values,
        pattern,
        bias,
        steps,
        around,
        spread,
        groups,
        padding_mode,
    )
    return y if x.dim() == 4 else y.squeeze(0)


def masked_conv1d(
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Numbers | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    r"""A convolution of rows with a dense weight, of which the entries of a pattern are trained:
    :func:`masked_conv2d` of images of one row.

    .. math::
        y = W * x + b, \qquad \frac{\partial L}{\partial v_e} =
        \sum_{n,q} g_{n,o_e,q}\, x_{n,c_e,\; s q + d j_e - a}

    Parameters
    ----------
    x : Tensor
        (N, I, L) or (I, L).
    weight : Tensor
        W (O, I / groups, K), with the values at the pattern already.
    values, pattern, bias
        As of :func:`masked_conv2d`; the pattern is of shape (O, I / groups · K).
    stride, dilation, groups : int
        s, d and the number of groups.
    padding : int or two, "same" or "valid"
        a; or what is left and right.
    padding_mode : str
        As of :func:`masked_conv2d`.

    Returns
    -------
    Tensor
        (N, O, OL) or (O, OL). Differentiable as :func:`masked_conv2d` is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above, and for a weight that requires a gradient.
    """
    op = "masked_conv1d"
    _check_conv(op, x, weight, values, pattern, bias, 3)
    images, steps, around, spread = _of_one_row(
        op,
        x if x.dim() == 3 else x.unsqueeze(0),
        weight.shape[2],
        stride,
        padding,
        dilation,
        padding_mode,
    )
    y = _masked_conv(
        op,
        images,
        weight.unsqueeze(2),
        values,
        pattern,
        bias,
        steps,
        around,
        spread,
        groups,
        "zeros",
    ).squeeze(2)
    return y if x.dim() == 3 else y.squeeze(0)

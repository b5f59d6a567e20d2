"""Convolutions with a sparse weight, at the cost of its entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register
from regkern.sparse.pattern import SparsePattern
from regkern.sparse.products import _check_bias, _check_pattern, _check_values

_ACTIVATIONS = ("none", "relu")
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_PATTERN = 5  # tensors of one
# Numbers of rows and columns: kernel_size, stride, padding, dilation; and groups.
_GEOMETRY = 5

Numbers = int | Sequence[int]


def _images(like: Tensor, *shape: Any) -> Tensor:
    """Images in the memory layout of others."""
    if not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
        return like.new_empty(shape).contiguous(memory_format=torch.channels_last)
    return like.new_empty(shape)


def _fake_conv(x: Tensor, values: Tensor, bias: Any, activation: str, *rest: Any) -> Tensor:
    kernel, stride, padding, dilation, _ = rest[_PATTERN:]
    size = [
        (x.shape[2 + i] + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (kernel[i] - 1) - 1)
        // stride[i]
        + 1
        for i in (0, 1)
    ]
    return _images(x, x.shape[0], rest[0].shape[0] - 1, *size)


def _fake_conv_t(g: Tensor, values: Tensor, height: int, width: int, *rest: Any) -> Tensor:
    kernel, groups = rest[_PATTERN], rest[-1]
    channels = (rest[2].shape[0] - 1) // (kernel[0] * kernel[1]) * groups
    return _images(g, g.shape[0], channels, height, width)


def _fake_sample(g: Tensor, x: Tensor, offsets: Tensor, index: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(index.shape, dtype=compute_dtype(x))


def _fake_backward(g: Tensor, x: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _images(x, *x.shape), x.new_empty(values.shape, dtype=compute_dtype(x))


_conv = register("sparse_conv2d", _fake_conv)
_conv_t = register("sparse_conv2d_t", _fake_conv_t)
_sample = register("sparse_conv2d_sample", _fake_sample)
_backward = register("sparse_conv2d_backward", _fake_backward)

_NO_MORE = (None,) * (_PATTERN + _GEOMETRY)


def _split(rest: Sequence[Any]) -> tuple[Sequence[Tensor], Sequence[Any]]:
    return rest[:_PATTERN], rest[_PATTERN:]


def _forward(x: Tensor, values: Tensor, pattern: Any, geometry: Any) -> Tensor:
    y: Tensor = _conv(x, values, None, "none", *pattern, *geometry)
    return y


def _transposed(g: Tensor, values: Tensor, like: Tensor, pattern: Any, geometry: Any) -> Tensor:
    dx: Tensor = _conv_t(g, values, like.shape[2], like.shape[3], *pattern, *geometry)
    return dx


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, ctx.activation, *rest = inputs
    pattern, ctx.geometry = _split(rest)
    ctx.save_for_backward(x, values, output if ctx.activation == "relu" else None, *pattern)


def _conv_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, values, y, *pattern = ctx.saved_tensors
    if ctx.activation == "relu":
        g = torch.where(y <= 0, 0.0, g)
    of_x, of_values, of_bias = ctx.needs_input_grad[:3]
    dx = dv = db = None
    if of_x and of_values:
        dx, dv = _backward(g, x, values, *pattern, *ctx.geometry)
    elif of_x:
        dx = _transposed(g, values, x, pattern, ctx.geometry)
    elif of_values:
        dv = _sample(g, x, *pattern, *ctx.geometry)
    if of_bias:
        db = g.sum((0, 2, 3), dtype=values.dtype)
    return dx, dv, db, None, *_NO_MORE


def _conv_t_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, values, _, _, *rest = inputs
    pattern, ctx.geometry = _split(rest)
    ctx.save_for_backward(g, values, *pattern)


def _conv_t_backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
    g, values, *pattern = ctx.saved_tensors
    dg = _forward(h, values, pattern, ctx.geometry) if ctx.needs_input_grad[0] else None
    dv = _sample(g, h, *pattern, *ctx.geometry) if ctx.needs_input_grad[1] else None
    return dg, dv, None, None, *_NO_MORE


def _sample_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, x, *rest = inputs
    pattern, ctx.geometry = _split(rest)
    ctx.save_for_backward(g, x, *pattern)


def _sample_backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
    g, x, *pattern = ctx.saved_tensors
    dg = _forward(x, h, pattern, ctx.geometry) if ctx.needs_input_grad[0] else None
    dx = _transposed(g, h, x, pattern, ctx.geometry) if ctx.needs_input_grad[1] else None
    return dg, dx, *_NO_MORE


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, x, values, *rest = inputs
    pattern, ctx.geometry = _split(rest)
    ctx.save_for_backward(g, x, values, *pattern)


def _backward_backward(ctx: Any, h: Tensor, k: Tensor) -> tuple[Any, ...]:
    """Of the transposed product, by h, and of the sums over positions, by k."""
    g, x, values, *pattern = ctx.saved_tensors
    geometry = ctx.geometry
    of_g, of_x, of_values = ctx.needs_input_grad[:3]
    dg = dx = dv = None
    if of_g:
        dg = _forward(h, values, pattern, geometry) + _forward(x, k, pattern, geometry)
    if of_x:
        dx = _transposed(g, k, x, pattern, geometry)
    if of_values:
        dv = _sample(g, h, *pattern, *geometry)
    return dg, dx, dv, *_NO_MORE


_conv.differentiable(_conv_setup, _conv_backward)
_conv_t.differentiable(_conv_t_setup, _conv_t_backward)
_sample.differentiable(_sample_setup, _sample_backward)
_backward.differentiable(_backward_setup, _backward_backward)


def _numbers(op: str, name: str, value: object, counts: tuple[int, ...], least: int) -> list[int]:
    """A number, or as many as one of the counts says."""
    wrong = isinstance(value, str | bool | float | Tensor)
    if not wrong and isinstance(value, Sequence):
        given = list(value)
        wrong = any(isinstance(i, bool) or not isinstance(i, int) for i in given)
    else:
        given = [value]
        wrong = wrong or not isinstance(value, int)
    if wrong:
        raise TypeError(f"regkern.{op}: expected `{name}` of integers, got {value!r}")
    if len(given) not in (1, *counts) or any(i < least for i in given):
        raise ValueError(
            f"regkern.{op}: expected `{name}` of 1 or {' or '.join(map(str, counts))} integers, "
            f"at least {least}, got {value!r}"
        )
    return given


def _pair(op: str, name: str, value: object, least: int) -> tuple[int, int]:
    given = _numbers(op, name, value, (2,), least)
    return given[0], given[-1]


def _around(
    op: str,
    padding: object,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int, int, int]:
    """What is above, below, left and right."""
    if isinstance(padding, str):
        checks.one_of(op, "padding", padding, ("same", "valid"))
        if padding == "valid":
            return 0, 0, 0, 0
        if stride[0] != 1 or stride[1] != 1:
            raise ValueError(
                f"regkern.{op}: expected `stride` of 1 with `padding` 'same', got {tuple(stride)}"
            )
        rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2
    given = _numbers(op, "padding", padding, (2, 4), 0)
    if len(given) == 4:
        left, right, top, bottom = given
        return top, bottom, left, right
    return given[0], given[0], given[-1], given[-1]


def _of_one_row(
    op: str,
    rows: Tensor,
    taps: int,
    stride: object,
    padding: object,
    dilation: object,
    padding_mode: str,
) -> tuple[Tensor, tuple[int, int], tuple[int, int, int, int], tuple[int, int]]:
    """Rows (N, I, L) as images of one row, padded unless with zeros; their stride, what zeros are
    around them, and dilation."""
    checks.one_of(op, "padding_mode", padding_mode, _PADDING_MODES)
    (step,), (spread,) = (
        _numbers(op, name, value, (), 1)
        for name, value in (("stride", stride), ("dilation", dilation))
    )
    if isinstance(padding, str):
        around = _around(op, padding, (1, taps), (1, step), (1, spread))
    else:
        given = _numbers(op, "padding", padding, (2,), 0)
        around = 0, 0, given[0], given[-1]
    if padding_mode != "zeros" and max(around) > 0:
        # torch pads rows so; of images it would want both dimensions.
        rows = torch.nn.functional.pad(rows, around[2:], padding_mode)
        around = 0, 0, 0, 0
    return rows.unsqueeze(2), (1, step), around, (1, spread)


def _kernel_size(
    op: str, kernel_size: Numbers | None, x: Tensor, groups: int, pattern: SparsePattern
) -> tuple[int, int]:
    if kernel_size is not None:
        return _pair(op, "kernel_size", kernel_size, 1)
    taps = int(pattern.shape[1] // max(1, x.shape[1] // groups))
    side = math.isqrt(taps)
    if side * side != taps or side == 0:
        raise ValueError(
            f"regkern.{op}: expected `kernel_size`, since {taps} columns of `pattern` for a "
            "channel are no square, got None"
        )
    return side, side


def _check_shapes(
    op: str,
    x: Tensor,
    pattern: SparsePattern,
    kernel: Sequence[int],
    dilation: Sequence[int],
    around: Sequence[int],
    groups: int,
) -> None:
    columns = x.shape[1] // groups * kernel[0] * kernel[1]
    if pattern.shape[1] != columns:
        raise ValueError(
            f"regkern.{op}: expected `pattern` of {columns} columns, for {x.shape[1]} channels in "
            f"{groups} groups and a kernel of {tuple(kernel)}, got {pattern.shape}"
        )
    for i in (0, 1):
        size = x.shape[2 + i] + around[2 * i] + around[2 * i + 1]
        if size < dilation[i] * (kernel[i] - 1) + 1:
            raise ValueError(
                f"regkern.{op}: expected an `x` that a kernel of {tuple(kernel)} with dilation "
                f"{tuple(dilation)} fits into, got {tuple(x.shape)}"
            )


def _convolve(
    op: str,
    x: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    around: tuple[int, int, int, int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    activation: str,
) -> Tensor:
    checks.one_of(op, "activation", activation, _ACTIVATIONS)
    checks.one_of(op, "padding_mode", padding_mode, _PADDING_MODES)
    values = _check_values(op, values, pattern, x)
    bias = _check_bias(op, bias, pattern, x)
    _check_shapes(op, x, pattern, kernel, dilation, around, groups)
    top, bottom, left, right = around
    if padding_mode != "zeros" and max(around) > 0:
        x = torch.nn.functional.pad(x, (left, right, top, bottom), padding_mode)
        around = 0, 0, 0, 0
    y: Tensor = _conv(
        x,
        values,
        bias,
        activation,
        *pattern.tensors(),
        list(kernel),
        list(stride),
        list(around),
        list(dilation),
        groups,
    )
    return y


def sample_conv2d(
    op: str,
    g: Tensor,
    x: Tensor,
    pattern: SparsePattern,
    kernel_size: Numbers,
    stride: Numbers,
    padding: Numbers | str,
    dilation: Numbers,
    groups: int,
    padding_mode: str,
) -> Tensor:
    """The gradient of a dense weight (O, I / groups · KH · KW) at the entries of a pattern, from
    that of the output and the images: (nnz,) in the dtype that kernels compute in."""
    kernel = _pair(op, "kernel_size", kernel_size, 1)
    steps, spread = _pair(op, "stride", stride, 1), _pair(op, "dilation", dilation, 1)
    top, bottom, left, right = around = _around(op, padding, kernel, steps, spread)
    if padding_mode != "zeros" and max(around) > 0:
        x = torch.nn.functional.pad(x, (left, right, top, bottom), padding_mode)
        around = 0, 0, 0, 0
    options = list(kernel), list(steps), list(around), list(spread), groups
    sums: Tensor = _sample(g, x, *pattern.tensors(), *options)
    return sums


def _check_groups(op: str, groups: object, channels: int, outputs: int) -> int:
    given = _numbers(op, "groups", groups, (), 1)[0]
    if channels % given != 0 or outputs % given != 0:
        raise ValueError(
            f"regkern.{op}: expected `groups` that divide {channels} channels and {outputs} "
            f"outputs, got {given}"
        )
    return given


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
    kernel_size: Numbers | None = None,
    padding_mode: str = "zeros",
    activation: str = "none",
) -> Tensor:
    r"""A convolution with a sparse weight, forward and backward at the cost of its entries.

    .. math::
        y_{o,p,q} = \sigma\Bigl(b_o + \sum_{c,i,j} W_{o,c,i,j}\,
        x_{c,\; s p + d i - a,\; s q + d j - a}\Bigr)

    with stride s, dilation d and padding a of each axis, and derivatives by W at the entries alone.
    The weight is sparse, not the images.

    Parameters
    ----------
    x : Tensor
        (N, I, H, W) or (I, H, W): float32, float64, bfloat16 or float16; row-major or channels
        last, which y is then too.
    values : Tensor
        The entries (nnz,) of W (O, I / groups, KH, KW), of the dtype of x, or of float32 where x is
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
    kernel_size : int or two, optional
        KH and KW. None: as many columns as the pattern has for a channel are a square.
    padding_mode : str
        ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
    activation : str
        :math:`\sigma`: ``"none"`` or ``"relu"``.

    Returns
    -------
    Tensor
        (N, O, OH, OW), or (O, OH, OW), of the dtype of x. Differentiable in x, values and bias,
        twice too. Derivatives that nobody needs are not computed.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Sums are taken in float32 (float64 of float64), over entries in order, with the same bits for
    any number of threads and on every device. 2 nnz operations a position of y forward, 4 backward.
    Bytes moved: x is packed, up to 16 images side by side and apart by residues modulo the stride,
    so that an entry reads vectors for any stride and dilation; y is written once. On the CPU 8 MB
    are packed at a time, on CUDA the whole batch. Padding is numbers: infinite weights or gradients
    make NaN of its zeros.

    References
    ----------
    M. Nikdan, T. Pegolotti, E. Iofinova, E. Kurtic and D. Alistarh, "SparseProp: efficient sparse
    backpropagation for faster training of neural networks at the edge", ICML 2023.
    """
    op = "sparse_conv2d"
    checks.floating(op, "x", x)
    if x.dim() != 4 and x.dim() != 3:
        raise ValueError(f"regkern.{op}: expected `x` of 3 or 4 dimensions, got {tuple(x.shape)}")
    _check_pattern(op, pattern, x)
    images = x if x.dim() == 4 else x.unsqueeze(0)
    groups = _check_groups(op, groups, images.shape[1], pattern.shape[0])
    kernel = _kernel_size(op, kernel_size, images, groups, pattern)
    steps, spread = _pair(op, "stride", stride, 1), _pair(op, "dilation", dilation, 1)
    around = _around(op, padding, kernel, steps, spread)
    y = _convolve(
        op,
        images,
        values,
        pattern,
        bias,
        kernel,
        steps,
        around,
        spread,
        groups,
        padding_mode,
        activation,
    )
    return y if x.dim() == 4 else y.squeeze(0)


def sparse_conv1d(
    x: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: Numbers | str = 0,
    dilation: int = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    activation: str = "none",
) -> Tensor:
    r"""A convolution of rows with a sparse weight: :func:`sparse_conv2d` of images of one row.

    .. math::
        y_{o,q} = \sigma\Bigl(b_o + \sum_{c,j} W_{o,c,j}\, x_{c,\; s q + d j - a}\Bigr)

    Parameters
    ----------
    x : Tensor
        (N, I, L) or (I, L).
    values, pattern, bias
        The entries of W (O, I / groups, K), where they are in the matrix (O, I / groups · K), and b
        (O,).
    stride, dilation, groups : int
        s, d and the number of groups.
    padding : int or two, "same" or "valid"
        a; or what is left and right.
    padding_mode, activation : str
        As of :func:`sparse_conv2d`.

    Returns
    -------
    Tensor
        (N, O, OL) or (O, OL). Differentiable as :func:`sparse_conv2d` is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    """
    op = "sparse_conv1d"
    checks.floating(op, "x", x)
    if x.dim() != 3 and x.dim() != 2:
        raise ValueError(f"regkern.{op}: expected `x` of 2 or 3 dimensions, got {tuple(x.shape)}")
    _check_pattern(op, pattern, x)
    rows = x if x.dim() == 3 else x.unsqueeze(0)
    groups = _check_groups(op, groups, rows.shape[1], pattern.shape[0])
    taps = max(1, int(pattern.shape[1] // max(1, rows.shape[1] // groups)))
    images, steps, around, spread = _of_one_row(
        op, rows, taps, stride, padding, dilation, padding_mode
    )
    y = _convolve(
        op,
        images,
        values,
        pattern,
        bias,
        (1, taps),
        steps,
        around,
        spread,
        groups,
        "zeros",
        activation,
    ).squeeze(2)
    return y if x.dim() == 3 else y.squeeze(0)

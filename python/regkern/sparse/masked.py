"""Dense weights of which only the entries of a pattern are trained."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply, register
from regkern.sparse.pattern import SparsePattern, check_pattern
from regkern.sparse.products import sddmm

_write_ = register("sparse_write_", lambda *args: None)


def _at_entries(g: Tensor, x: Tensor, pattern: SparsePattern, like: Tensor) -> Tensor:
    """gᵀ x at the entries, as `like` is."""
    if pattern.nnz == 0:
        return torch.zeros_like(like)
    x = x if x.dtype == g.dtype else x.to(g.dtype)
    return sddmm(g, x, pattern).to(like.dtype)


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, where W has the values at the pattern; the gradient of W is theirs alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, values: Tensor, bias: Tensor | None, weight: Tensor, pattern: SparsePattern
    ) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, values, _, weight, ctx.pattern = inputs
        ctx.save_for_backward(x, values, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, values, weight = ctx.saved_tensors
        dx = dv = db = None
        if ctx.needs_input_grad[0]:
            dx = function_apply(_Transposed, g, values, weight, ctx.pattern)
        if ctx.needs_input_grad[1]:
            dv = _at_entries(g, x, ctx.pattern, values)
        if ctx.needs_input_grad[2]:
            db = g.sum(0)
        return dx, dv, db, None, None


class _Transposed(torch.autograd.Function):
    """g W, which depends on the values as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, values: Tensor, weight: Tensor, pattern: SparsePattern) -> Tensor:
        return g @ weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        g, values, weight, ctx.pattern = inputs
        ctx.save_for_backward(g, values, weight)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
        g, values, weight = ctx.saved_tensors
        dg = dv = None
        if ctx.needs_input_grad[0]:
            dg = function_apply(_Linear, h, values, None, weight, ctx.pattern)
        if ctx.needs_input_grad[1]:
            dv = _at_entries(g, h, ctx.pattern, values)
        return dg, dv, None, None


class _Weight(torch.autograd.Function):
    """W, whose gradient is gathered to that of the values."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, weight: Tensor, pattern: SparsePattern) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, _, ctx.pattern = inputs
        ctx.dtype = values.dtype

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        pattern: SparsePattern = ctx.pattern
        return pattern.gather(g.reshape(pattern.shape)).to(ctx.dtype), None, None


def _check(op: str, weight: object, values: object, pattern: object) -> None:
    checks.floating(op, "weight", weight)
    checks.floating(op, "values", values)
    assert isinstance(weight, Tensor)
    assert isinstance(values, Tensor)
    check_pattern(op, pattern)
    assert isinstance(pattern, SparsePattern)
    checks.on_device(op, "values", values, weight)
    checks.on_device(op, "pattern", pattern.index, weight)
    if tuple(weight.shape if weight.dim() < 3 else weight.flatten(1).shape) != pattern.shape:
        raise ValueError(
            f"regkern.{op}: expected `weight` of shape {pattern.shape}, that of `pattern`, got "
            f"{tuple(weight.shape)}"
        )
    if tuple(values.shape) != (pattern.nnz,):
        raise ValueError(
            f"regkern.{op}: expected `values` of shape ({pattern.nnz},), got {tuple(values.shape)}"
        )
    if values.dtype not in (weight.dtype, compute_dtype(weight)):
        raise TypeError(
            f"regkern.{op}: expected `values` of dtype {weight.dtype} or {compute_dtype(weight)}, "
            f"got {values.dtype}"
        )


def _check_frozen(op: str, weight: Tensor) -> None:
    if weight.requires_grad:
        raise ValueError(
            f"regkern.{op}: expected `weight` without a gradient, which `values` have, got one "
            "that requires it"
        )


def _check_vector(op: str, name: str, value: Tensor | None, size: int, x: Tensor) -> None:
    if value is None:
        return
    checks.on_device(op, name, value, x)
    if tuple(value.shape) != (size,):
        raise ValueError(
            f"regkern.{op}: expected `{name}` of shape ({size},), got {tuple(value.shape)}"
        )


def _in_autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast makes of the inputs of a linear layer or a convolution."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def write_entries_(
    weight: Tensor, values: Tensor, pattern: SparsePattern, base: Tensor | None = None
) -> Tensor:
    r"""Writes the entries of a pattern into a dense matrix, in place.

    .. math:: W_{r_e c_e} \leftarrow v_e + b_e

    Parameters
    ----------
    weight : Tensor
        W (R, C), or contiguous of more dimensions that flatten to that: float32, float64, bfloat16
        or float16.
    values : Tensor
        v (nnz,), of the dtype of ``weight`` or of float32 where that is a half.
    pattern : SparsePattern
        Of shape (R, C).
    base : Tensor, optional
        b, like ``values``; 0 without it.

    Returns
    -------
    Tensor
        ``weight``.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd. The sum is taken in float32 (float64 of float64) and rounded once.
    Bytes moved: 8 an entry read (12 with a base), and what is written.
    """
    op = "write_entries_"
    _check(op, weight, values, pattern)
    if weight.dim() > 2 and not weight.is_contiguous():
        raise ValueError(
            f"regkern.{op}: expected a contiguous `weight` of so many dimensions, got strides "
            f"{weight.stride()}"
        )
    if base is not None:
        checks.same(op, "base", base, values, "values")
    wide = compute_dtype(weight)
    with torch.no_grad():
        matrix = weight if weight.dim() == 2 else weight.view(pattern.shape)
        start = None if base is None else base.detach().to(wide)
        _write_(matrix, values.detach().to(wide), start, pattern.offsets, pattern.index)
    return weight


def masked_linear(
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
) -> Tensor:
    r"""A linear layer with a dense weight, of which the entries of a pattern are trained.

    .. math::
        y = x W^T + b, \qquad \frac{\partial L}{\partial x} = g W, \qquad
        \frac{\partial L}{\partial v_e} = \sum_n g_{n r_e} x_{n c_e}

    Forward and the gradient of x are the dense layer's. The gradient of the weight, which is a
    third of a step's work, is taken at the entries alone, and nothing of the weight's size is
    allocated for it; an optimizer has states of the size of ``values``.

    Parameters
    ----------
    x : Tensor
        (..., C): float32, float64, bfloat16 or float16.
    weight : Tensor
        W (R, C) of the dtype of x. It holds the values at the pattern already, as
        :func:`write_entries_` puts them there (with a base, where values are what is added to it:
        the gradient is the same); this is not looked at.
    values : Tensor
        v (nnz,), what the gradient goes to: of the dtype of ``weight``, or of float32 where that
        is a half.
    pattern : SparsePattern
        Where they are, of shape (R, C).
    bias : Tensor, optional
        b (R,).

    Returns
    -------
    Tensor
        (..., R). Differentiable in x, values and bias, as often as wanted. Under autocast x, weight
        and bias are cast as those of ``torch.nn.functional.linear``.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above, and for a weight that requires a gradient.

    Notes
    -----
    Of N rows of x: 4 N R C + 2 N nnz operations for forward and backward, instead of 6 N R C.

    References
    ----------
    "SaRA: high-efficient diffusion model fine-tuning with progressive sparse low-rank adaptation",
    2024. A. Ansell, E. Ponti, A. Korhonen and I. Vulić, "Composable sparse fine-tuning for
    cross-lingual transfer", ACL 2022. K. Bhardwaj et al., "Sparse high rank adapters", NeurIPS
    2024. M. Nikdan, S. Tabesh, E. Crnčević and D. Alistarh, "RoSA: accurate parameter-efficient
    fine-tuning via robust adaptation", ICML 2024.
    """
    op = "masked_linear"
    checks.floating(op, "x", x)
    _check(op, weight, values, pattern)
    _check_frozen(op, weight)
    checks.on_device(op, "weight", weight, x)
    _check_vector(op, "bias", bias, pattern.shape[0], x)
    x, weight, bias = _in_autocast(x, weight, bias)
    if x.dim() < 1 or x.shape[-1] != pattern.shape[1]:
        raise ValueError(
            f"regkern.{op}: expected `x` of {pattern.shape[1]} features in dimension -1, got "
            f"{tuple(x.shape)}"
        )
    if x.dtype != weight.dtype:
        raise TypeError(
            f"regkern.{op}: expected `x` of dtype {weight.dtype}, that of `weight`, got {x.dtype}"
        )
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y: Tensor = function_apply(_Linear, flat, values, bias, weight, pattern)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def masked_weight(weight: Tensor, values: Tensor, pattern: SparsePattern) -> Tensor:
    r"""A dense weight for any function of it, of which the entries of a pattern are trained.

    .. math:: W, \qquad \frac{\partial L}{\partial v_e} = \frac{\partial L}{\partial W_{r_e c_e}}

    For code that stays as it is: ``F.bilinear(x, y, masked_weight(weight, values, pattern))``. The
    function computes its dense gradient, which is gathered and let go; optimizer states are of the
    size of ``values`` all the same. :func:`masked_linear` and :func:`masked_conv2d` do without the
    dense gradient.

    Parameters
    ----------
    weight : Tensor
        W (R, C), or of more dimensions that flatten to that. It holds the values at the pattern
        already; see :func:`write_entries_`.
    values : Tensor
        v (nnz,), what the gradient goes to: of the dtype of ``weight``, or of float32 where that
        is a half.
    pattern : SparsePattern
        Where they are, of shape (R, C).

    Returns
    -------
    Tensor
        A view of ``weight``. Differentiable as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above, and for a weight that requires a gradient.
    """
    _check("masked_weight", weight, values, pattern)
    _check_frozen("masked_weight", weight)
    y: Tensor = function_apply(_Weight, values, weight, pattern)
    return y

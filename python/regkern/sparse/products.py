"""Products with a sparse matrix, at the cost of its entries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import Op, compute_dtype, observed, register
from regkern.sparse.pattern import SparsePattern, check_pattern

#: What :func:`sparse_linear` knows to apply to its results.
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
# Those whose derivative is one of their result.
_OF_RESULT = ("none", "relu")
_PATTERN = 7  # operands of one


def _columns_first(t: Tensor, features: int, feature_major: bool) -> Tensor:
    batch = t.shape[1 if feature_major else 0]
    return t.new_empty((features, batch) if feature_major else (batch, features))


def _fake_linear(x: Tensor, values: Tensor, bias: Any, activation: str, *rest: Any) -> Tensor:
    return _columns_first(x, rest[0].shape[0] - 1, rest[-1])


def _fake_activated(*args: Any) -> tuple[Tensor, Tensor]:
    y = _fake_linear(*args)
    return y, torch.empty_like(y)


def _fake_linear_t(g: Tensor, values: Tensor, *rest: Any) -> Tensor:
    return _columns_first(g, rest[2].shape[0] - 1, rest[-1])


def _fake_sddmm(g: Tensor, x: Tensor, offsets: Tensor, index: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(index.shape, dtype=compute_dtype(x))


def _fake_backward(g: Tensor, x: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(values.shape, dtype=compute_dtype(x))


_linear = register("sparse_linear", _fake_linear)
_activated = register("sparse_linear_activated", _fake_activated)
_linear_t = register("sparse_linear_t", _fake_linear_t)
_sddmm = register("sddmm", _fake_sddmm)
_backward = register("sparse_linear_backward", _fake_backward)

_NO_PATTERN = (None,) * (_PATTERN + 1)


def _direct(op: Op, *args: Any) -> Any:
    """An op where nothing asks for a derivative: not through the autograd of torch.library, whose
    Python takes longer than a small product."""
    if torch.is_grad_enabled() or observed():
        return op(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return op.raw(*args)


def _multiply(x: Tensor, values: Tensor, pattern: Sequence[Tensor | None], major: bool) -> Tensor:
    y: Tensor = _linear(x, values, None, "none", *pattern, major)
    return y


def _of_activation(activation: str, g: Tensor, z: Tensor) -> Tensor:
    """The derivative by z of the activation of z, or of its result where that will do."""
    if activation == "relu":
        return torch.where(z <= 0, 0.0, g)
    if activation == "none":
        return g
    of_z: Tensor
    if activation == "silu":
        if torch.is_grad_enabled():  # torch's own has no derivative
            share = torch.sigmoid(z)
            return g * share * (1 + z * (1 - share))
        of_z = torch.ops.aten.silu_backward(g, z)
    else:
        tanh = "tanh" if activation == "gelu_tanh" else "none"
        of_z = torch.ops.aten.gelu_backward(g, z, approximate=tanh)
    return of_z


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bias, activation, *pattern, major = inputs
    ctx.given = activation, major
    kept = output if activation == "relu" else None
    ctx.save_for_backward(x, values, None if activation in _OF_RESULT else bias, kept, *pattern)


def _linear_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    activation, major = ctx.given
    x, values, bias, z, *pattern = ctx.saved_tensors
    if activation not in _OF_RESULT:
        z = _linear(x, values, bias, "none", *pattern, major)
    g = _of_activation(activation, g, z)
    return _by_inputs(ctx.needs_input_grad, g, x, values, pattern, major)


def _by_inputs(
    needed: Any, g: Tensor, x: Tensor, values: Tensor, pattern: Any, major: bool
) -> tuple[Any, ...]:
    """The derivatives of a linear layer by its inputs, of g by its results."""
    of_x, of_values, of_bias = needed[:3]
    dx = dv = db = None
    if of_x and of_values:
        dx, dv = _direct(_backward, g, x, values, *pattern, major)
    elif of_x:
        dx = _direct(_linear_t, g, values, *pattern, major)
    elif of_values:
        dv = _direct(_sddmm, g, x, *pattern, major)
    if of_bias:
        db = g.sum(1 if major else 0, dtype=values.dtype)
    return dx, dv, db, None, *_NO_PATTERN


def _activated_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, values, _, activation, *pattern, major = inputs
    ctx.given = activation, major
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, values, output[1], *pattern)


def _activated_backward(ctx: Any, g: Tensor | None, h: Tensor | None) -> tuple[Any, ...]:
    """Of the activated results, by g, and of what they are of, by h."""
    activation, major = ctx.given
    x, values, z, *pattern = ctx.saved_tensors
    if g is not None:
        g = _of_activation(activation, g, z)
    parts = [t for t in (g, h) if t is not None]
    if not parts:
        return (None, None, None, None, *_NO_PATTERN)
    of_z = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return _by_inputs(ctx.needs_input_grad, of_z, x, values, pattern, major)


def _linear_t_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, values, *pattern, ctx.major = inputs
    ctx.save_for_backward(g, values, *pattern)


def _linear_t_backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
    g, values, *pattern = ctx.saved_tensors
    dg = _multiply(h, values, pattern, ctx.major) if ctx.needs_input_grad[0] else None
    dv = _sddmm(g, h, *pattern, ctx.major) if ctx.needs_input_grad[1] else None
    return dg, dv, *_NO_PATTERN


def _sddmm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, x, *pattern, ctx.major = inputs
    ctx.save_for_backward(g, x, *pattern)


def _sddmm_backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
    g, x, *pattern = ctx.saved_tensors
    dg = _multiply(x, h, pattern, ctx.major) if ctx.needs_input_grad[0] else None
    dx = _linear_t(g, h, *pattern, ctx.major) if ctx.needs_input_grad[1] else None
    return dg, dx, *_NO_PATTERN


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, x, values, *pattern, ctx.major = inputs
    ctx.save_for_backward(g, x, values, *pattern)


def _backward_backward(ctx: Any, h: Tensor, k: Tensor) -> tuple[Any, ...]:
    """Of g W, by h, and of the products of g and x at the entries, by k."""
    g, x, values, *pattern = ctx.saved_tensors
    of_g, of_x, of_values = ctx.needs_input_grad[:3]
    dg = dx = dv = None
    if of_g:
        dg = _multiply(h, values, pattern, ctx.major) + _multiply(x, k, pattern, ctx.major)
    if of_x:
        dx = _linear_t(g, k, *pattern, ctx.major)
    if of_values:
        dv = _sddmm(g, h, *pattern, ctx.major)
    return dg, dx, dv, *_NO_PATTERN


class _Layer(torch.autograd.Function):
    """The op of a layer in training, `sparse_linear` or `sparse_linear_activated`."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        if args[3] in _OF_RESULT:
            y = _direct(_linear, *args)
            _linear_setup(ctx, args, y)
            return y
        both = _direct(_activated, *args)
        _activated_setup(ctx, args, both)
        return both

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if len(grads) == 1:
            return _linear_backward(ctx, *grads)
        return _activated_backward(ctx, *grads)


def _layer(*args: Any) -> Tensor:
    """The layer of flat x, by the shortest way there is to it and its derivatives."""
    inputs, activation = args[:3], args[3]
    trained = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    # What an activation is of comes out of the same pass, and the backward needs no other.
    kept = trained and activation not in _OF_RESULT
    if observed():
        results = (_activated if kept else _linear)(*args)
    elif trained:
        results = _Layer.apply(*args)  # type: ignore[no-untyped-call]
    else:
        with torch.no_grad():
            results = _direct(_linear, *args)
    y: Tensor = results[0] if kept else results
    return y


_linear.differentiable(_linear_setup, _linear_backward)
_activated.differentiable(_activated_setup, _activated_backward)
_linear_t.differentiable(_linear_t_setup, _linear_t_backward)
_sddmm.differentiable(_sddmm_setup, _sddmm_backward)
_backward.differentiable(_backward_setup, _backward_backward)


def _check_pattern(op: str, pattern: object, x: Tensor) -> None:
    check_pattern(op, pattern)
    assert isinstance(pattern, SparsePattern)
    checks.on_device(op, "pattern", pattern.index, x)


def _check_values(op: str, values: object, pattern: SparsePattern, x: Tensor) -> Tensor:
    checks.floating(op, "values", values)
    checks.on_device(op, "values", values, x)
    assert isinstance(values, Tensor)
    if tuple(values.shape) != (pattern.nnz,):
        raise ValueError(
            f"regkern.{op}: expected `values` of shape ({pattern.nnz},), got {tuple(values.shape)}"
        )
    if values.dtype != x.dtype and values.dtype != compute_dtype(x):
        raise TypeError(
            f"regkern.{op}: expected `values` of dtype {x.dtype} or {compute_dtype(x)}, got "
            f"{values.dtype}"
        )
    return values.to(compute_dtype(x))


def _check_bias(op: str, bias: object, pattern: SparsePattern, x: Tensor) -> Tensor | None:
    if bias is None:
        return None
    checks.floating(op, "bias", bias)
    checks.on_device(op, "bias", bias, x)
    assert isinstance(bias, Tensor)
    if tuple(bias.shape) != (pattern.shape[0],):
        raise ValueError(
            f"regkern.{op}: expected `bias` of shape ({pattern.shape[0]},), got {tuple(bias.shape)}"
        )
    return bias.to(compute_dtype(x))


def _flat(op: str, name: str, x: Tensor, features: int, feature_major: bool) -> Tensor:
    checks.floating(op, name, x)
    place = 0 if feature_major else -1
    if x.dim() < 1 or x.shape[place] != features:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of {features} features in dimension {place}, got "
            f"{tuple(x.shape)}"
        )
    # Not -1, which is ambiguous where there are no features.
    if feature_major:
        return x.reshape(features, math.prod(x.shape[1:]))
    return x.reshape(math.prod(x.shape[:-1]), features)


def _back(y: Tensor, x: Tensor, feature_major: bool) -> Tensor:
    shape = (y.shape[0], *x.shape[1:]) if feature_major else (*x.shape[:-1], y.shape[1])
    return y.reshape(shape)


def sparse_linear(
    x: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    activation: str = "none",
    feature_major: bool = False,
) -> Tensor:
    r"""A linear layer with a sparse weight, forward and backward at the cost of its entries.

    .. math::
        y = \sigma(x W^T + b), \qquad
        \frac{\partial L}{\partial x} = g W, \qquad
        \frac{\partial L}{\partial W_{rc}} = \sum_b g_{br} x_{bc} \ \text{at the entries alone}

    Parameters
    ----------
    x : Tensor
        (..., C), or with ``feature_major`` (C, ...): float32, float64, bfloat16 or float16.
    values : Tensor
        The entries (nnz,) of W (R, C), of the dtype of x, or of float32 where x is a half.
    pattern : SparsePattern
        Where they are.
    bias : Tensor, optional
        b (R,).
    activation : str
        :math:`\sigma`: ``"none"``, ``"relu"``, ``"gelu"`` (:math:`z \Phi(z)`), ``"gelu_tanh"`` (its
        approximation) or ``"silu"`` (:math:`z / (1 + e^{-z})`), applied where results are written.
    feature_major : bool
        Features come first in x and y: products that follow one another need no transposition.

    Returns
    -------
    Tensor
        (..., R), or (R, ...), of the dtype of x. Differentiable in x, values and bias, twice too.
        Derivatives that nobody needs are not computed.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Sums are taken in float32 (float64 of float64), over entries in order, with the same bits for
    any number of threads and on every device. 2 nnz operations an element of the batch forward, 4
    backward. Bytes moved: x is packed into tiles of the batch, an entry reads one vector of a tile,
    and y is written once; features first and whole tiles (64 of the batch, half as many of
    batches up to 32, of more than 8192 features, and in float64) are read where they are; on CUDA
    they are by products, and packed for the gradient.

    The backward of relu knows its result, the one of the other activations what they are of: in
    training that is written beside the result, and nothing is computed twice.

    References
    ----------
    M. Nikdan, T. Pegolotti, E. Iofinova, E. Kurtic and D. Alistarh, "SparseProp: efficient sparse
    backpropagation for faster training of neural networks at the edge", ICML 2023. T. Gale, M.
    Zaharia, C. Young and E. Elsen, "Sparse GPU kernels for deep learning", SC 2020.
    """
    op = "sparse_linear"
    checks.floating(op, "x", x)
    checks.one_of(op, "activation", activation, ACTIVATIONS)
    _check_pattern(op, pattern, x)
    flat = _flat(op, "x", x, pattern.shape[1], feature_major)
    values = _check_values(op, values, pattern, x)
    bias = _check_bias(op, bias, pattern, x)
    y = _layer(flat, values, bias, activation, *pattern.operands(), feature_major)
    return _back(y, x, feature_major)


def spmm(x: Tensor, values: Tensor, pattern: SparsePattern, feature_major: bool = False) -> Tensor:
    r""":math:`x W^T` of a sparse W (R, C): (..., R) of x (..., C). See :func:`sparse_linear`."""
    op = "spmm"
    checks.floating(op, "x", x)
    _check_pattern(op, pattern, x)
    flat = _flat(op, "x", x, pattern.shape[1], feature_major)
    values = _check_values(op, values, pattern, x)
    return _back(_multiply(flat, values, pattern.operands(), feature_major), x, feature_major)


def spmm_t(
    g: Tensor, values: Tensor, pattern: SparsePattern, feature_major: bool = False
) -> Tensor:
    r""":math:`g W` of a sparse W (R, C): (..., C) of g (..., R). See :func:`sparse_linear`."""
    op = "spmm_t"
    checks.floating(op, "g", g)
    _check_pattern(op, pattern, g)
    flat = _flat(op, "g", g, pattern.shape[0], feature_major)
    values = _check_values(op, values, pattern, g)
    return _back(_linear_t(flat, values, *pattern.operands(), feature_major), g, feature_major)


def sampled(
    op: str, call: Op, g: Tensor, x: Tensor, pattern: SparsePattern, feature_major: bool
) -> Tensor:
    """gᵀ x at the entries of a pattern, by an op of that name."""
    checks.floating(op, "g", g)
    _check_pattern(op, pattern, g)
    checks.floating(op, "x", x)
    checks.on_device(op, "x", x, g)
    flat_g = _flat(op, "g", g, pattern.shape[0], feature_major)
    flat_x = _flat(op, "x", x, pattern.shape[1], feature_major)
    batch = (g.shape[1:], x.shape[1:]) if feature_major else (g.shape[:-1], x.shape[:-1])
    if batch[0] != batch[1] or g.dtype != x.dtype:
        raise ValueError(
            f"regkern.{op}: expected `x` of the batch and dtype of `g` {tuple(g.shape)} {g.dtype}, "
            f"got {tuple(x.shape)} {x.dtype}"
        )
    values: Tensor = call(flat_g, flat_x, *pattern.operands(), feature_major)
    return values


def sddmm(g: Tensor, x: Tensor, pattern: SparsePattern, feature_major: bool = False) -> Tensor:
    r"""The product of two dense matrices at the entries of a pattern alone.

    .. math:: v_{rc} = \sum_b g_{br}\, x_{bc}

    Parameters
    ----------
    g, x : Tensor
        (..., R) and (..., C), or with ``feature_major`` (R, ...) and (C, ...), of one dtype:
        float32, float64, bfloat16 or float16.
    pattern : SparsePattern
        Of shape (R, C).

    Returns
    -------
    Tensor
        (nnz,), float32, or float64 of float64. Differentiable, twice too.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The gradient of a dense weight where only some of it is trained: 2 nnz operations an element of
    the batch, and nothing of the size of the weight. Sums are in the order of
    :func:`sparse_linear`'s, but for those of halves on CUDA by tensor cores, where that reads less:
    see :func:`~regkern.sparse.tensor_cores.sddmm_tiles`.
    """
    return sampled("sddmm", _sddmm, g, x, pattern, feature_major)

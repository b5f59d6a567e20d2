"""Gradients of which the largest are kept."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, register

_select = register("row_select", lambda values, scores, k: dense_like(values))


def _select_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, scores, ctx.k = inputs
    ctx.save_for_backward(scores)


def _select_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (scores,) = ctx.saved_tensors
    return _select(g, scores, ctx.k), None, None


_select.differentiable(_select_setup, _select_backward)


def _check_k(op: str, k: object) -> None:
    if isinstance(k, bool) or not isinstance(k, int | torch.SymInt):
        raise TypeError(f"regkern.{op}: expected `k` to be an integer, got {k!r}")
    if k < 0:
        raise ValueError(f"regkern.{op}: expected `k` to be at least 0, got {k}")


def row_top_k(x: Tensor, k: int) -> Tensor:
    r"""Keeps the k largest magnitudes of each row, and makes the others zero.

    Of equal magnitudes those of the lowest index are kept, exactly k in all.

    Parameters
    ----------
    x : Tensor
        (..., n): float32, float64, bfloat16 or float16; any strides.
    k : int
        At least 0; n and more keep everything.

    Returns
    -------
    Tensor
        Like x. NaN counts as the largest magnitude, and stays where it is not kept. Differentiable
        as often as wanted; the choice itself has no gradient.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Without a sort: the k-th magnitude of a row is found bit by bit, in 31 passes over a row in the
    cache (15 of bfloat16, 18 of float16, 63 of float64). Bytes moved: x read and y written once.
    """
    op = "row_top_k"
    checks.floating(op, "x", x)
    _check_k(op, k)
    if x.dim() < 1:
        raise ValueError(f"regkern.{op}: expected `x` of one dimension or more, got 0-d")
    return _kept(x, k)


def _kept(x: Tensor, k: int) -> Tensor:
    if k >= x.shape[-1]:
        return x.clone()
    if k == 0:
        return x.masked_fill(~x.isnan(), 0.0)
    y: Tensor = _select(x, x.detach(), k)
    return y


def _columns(g: Tensor, k: int) -> Tensor:
    """The k columns of the largest sums of magnitudes over the batch, rising."""
    sums = g.detach().abs().flatten(0, -2).sum(0)
    order = torch.sort(sums, descending=True, stable=True).indices
    return order[:k].sort().values


class _TopGradient(torch.autograd.Function):
    """The identity; of the gradient the k largest of each row, or the k largest columns."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, k: int, unified: bool) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.k, ctx.unified = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        if not ctx.unified or ctx.k >= g.shape[-1]:
            return _kept(g, ctx.k), None, None
        columns = _columns(g, ctx.k)
        kept = g.index_select(-1, columns)
        return torch.zeros_like(g).index_copy(-1, columns, kept), None, None


def topk_gradient(x: Tensor, k: int, unified: bool = False) -> Tensor:
    r"""The identity, whose gradient is cut down to its largest elements (meProp).

    .. math::
        y = x, \qquad \frac{\partial L}{\partial x_{bi}} = \begin{cases}
            g_{bi} & \text{where } |g_{bi}| \text{ is among the } k \text{ largest of row } b \\
            0 & \text{otherwise} \end{cases}

    Parameters
    ----------
    x : Tensor
        (..., n), the output of a layer: float32, float64, bfloat16 or float16.
    k : int
        At least 0; n and more keep everything.
    unified : bool
        The k columns are kept whose :math:`\sum_b |g_{bi}|` are the largest, for the whole batch.

    Returns
    -------
    Tensor
        A view of x. The gradient is differentiable, as `row_top_k` is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Of equal magnitudes the lowest index is kept. The layer before computes with a dense gradient
    that is mostly zeros; :func:`meprop_linear` makes use of that.

    References
    ----------
    X. Sun, X. Ren, S. Ma and H. Wang, "meProp: sparsified back propagation for accelerated deep
    learning with reduced overfitting", ICML 2017.
    """
    op = "topk_gradient"
    checks.floating(op, "x", x)
    _check_k(op, k)
    if x.dim() < 1:
        raise ValueError(f"regkern.{op}: expected `x` of one dimension or more, got 0-d")
    y: Tensor = function_apply(_TopGradient, x, k, unified)
    return y


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, whose backward has the k columns of the gradient alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.k = inputs
        ctx.save_for_backward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        columns = _columns(g, ctx.k)
        kept = g.index_select(-1, columns)
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = kept @ weight.index_select(0, columns)
        if ctx.needs_input_grad[1]:
            rows = kept.t() @ x
            dw = torch.zeros_like(weight).index_copy(0, columns, rows)
        if ctx.needs_input_grad[2]:
            db = torch.zeros_like(bias).index_copy(0, columns, kept.sum(0))
        return dx, dw, db, None


def meprop_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, k: int = 1, unified: bool = True
) -> Tensor:
    r"""A linear layer that passes the k largest of its output's gradient back (meProp).

    .. math:: y = x W^T + b, \qquad
        \frac{\partial L}{\partial x} = \hat g W, \quad
        \frac{\partial L}{\partial W} = \hat g^T x, \quad
        \frac{\partial L}{\partial b} = \sum_n \hat g_n

    with :math:`\hat g` as `topk_gradient` has it.

    Parameters
    ----------
    x : Tensor
        (..., C): float32, float64, bfloat16 or float16.
    weight, bias : Tensor
        W (R, C) and b (R,), of the dtype of x.
    k : int
        At least 0; R and more are the usual layer.
    unified : bool
        The same k columns for the whole batch, so that both products of the backward are dense ones
        of k rows of W: R / k times less work. Otherwise each row has its own, and the products are
        the usual ones.

    Returns
    -------
    Tensor
        (..., R). Differentiable in x, weight and bias, as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Rows of the gradient of W that were not chosen are zeros.

    References
    ----------
    X. Sun, X. Ren, S. Ma and H. Wang, "meProp: sparsified back propagation for accelerated deep
    learning with reduced overfitting", ICML 2017.
    """
    op = "meprop_linear"
    checks.floating(op, "x", x)
    checks.floating(op, "weight", weight)
    checks.on_device(op, "weight", weight, x)
    _check_k(op, k)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"regkern.{op}: expected `weight` (R, C) of the C features of `x` {tuple(x.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if not unified or k >= weight.shape[0]:
        return topk_gradient(torch.nn.functional.linear(x, weight, bias), k)
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y: Tensor = function_apply(_Linear, flat, weight, bias, k)
    return y.reshape(*x.shape[:-1], weight.shape[0])

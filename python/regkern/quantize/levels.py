"""The nearest of a set of learned levels."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, register

MOST_LEVELS = 4096

Gradient = Literal["identity", "clip"]


def code_dtype(levels: int) -> torch.dtype:
    return torch.uint8 if levels <= 256 else torch.int32


def empty_codes(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An empty tensor of codes of x, laid out as the ops do."""
    return torch.empty_like(dense_like(x), dtype=dtype)


def needs(ctx: Any, i: int) -> bool:
    """Whether argument i needs a gradient; arguments at their default may not be handed over."""
    return len(ctx.needs_input_grad) > i and bool(ctx.needs_input_grad[i])


def check_count(op: str, name: str, count: int) -> None:
    if not 1 <= count <= MOST_LEVELS:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of 1 to {MOST_LEVELS} levels, got {count}"
        )


def check_allowed(op: str, allowed: Tensor, x: Tensor, levels: int, what: str = "x") -> None:
    checks.on_device(op, "allowed", allowed, x)
    if allowed.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"regkern.{op}: expected `allowed` of dtype int32 or int64, got {allowed.dtype}"
        )
    if allowed.shape != x.shape:
        raise ValueError(
            f"regkern.{op}: expected `allowed` of the shape of `{what}`, {tuple(x.shape)}, got "
            f"{tuple(allowed.shape)}"
        )
    most = 8 * allowed.element_size()
    if levels > most:
        raise ValueError(
            f"regkern.{op}: expected at most {most} levels with `allowed` of {allowed.dtype}, got "
            f"{levels}"
        )


def taken(values: Tensor, code: Tensor, dim: int) -> Tensor:
    """values[code], or values[channel, code] over axis `dim`, in plain torch."""
    index = code.long()
    if values.dim() == 2:
        shape = [1] * code.dim()
        shape[dim] = values.shape[0]
        channel = torch.arange(values.shape[0], device=code.device).reshape(shape)
        index = index + values.shape[1] * channel
    return values.reshape(-1).take(index)


# ---- raw ops: fake kernels and autograd ----


def _fake_backward(
    g: Tensor,
    x: Tensor,
    levels: Tensor,
    code: Tensor,
    dim: int = 0,
    levels_grad: bool = True,
) -> tuple[Tensor, Tensor]:
    return dense_like(x), torch.empty_like(levels) if levels_grad else levels.new_empty((0,))


_nearest = register(
    "nearest_level",
    lambda x, levels, allowed=None, dim=0, clip=False: (
        dense_like(x),
        empty_codes(x, code_dtype(levels.shape[-1])),
    ),
)
_nearest_backward = register("nearest_level_backward", _fake_backward)
level_sum = register(
    "level_sum",
    lambda g, code, levels, per_channel=False, dim=0: g.new_empty(
        (g.shape[dim], levels) if per_channel else (levels,), dtype=compute_dtype(g)
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, levels, _, ctx.dim, ctx.clip = inputs
    ctx.save_for_backward(x if ctx.clip else None, levels, output[1])


def _backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    x, levels, code = ctx.saved_tensors
    dx, dlevels = g, None
    if ctx.clip:
        dx, dlevels = _nearest_backward(g, x, levels, code, ctx.dim, needs(ctx, 1))
    elif needs(ctx, 1):
        dlevels = level_sum(g, code, levels.shape[-1], levels.dim() == 2, ctx.dim)
    return dx, dlevels if needs(ctx, 1) else None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, x, levels, code, ctx.dim, ctx.levels_grad = inputs
    ctx.save_for_backward(x, levels, code)


def _backward_backward(ctx: Any, u: Tensor, v: Tensor) -> tuple[Any, ...]:
    # dx = g [inside] and dv_j = Σ g are linear in g.
    x, levels, code = ctx.saved_tensors
    low, high = levels.amin(-1), levels.amax(-1)
    if levels.dim() == 2:
        shape = [1] * x.dim()
        shape[ctx.dim] = levels.shape[0]
        low, high = low.reshape(shape), high.reshape(shape)
    dg = torch.where((x < low) | (x > high), 0.0, u)
    if ctx.levels_grad:
        dg = dg + taken(v, code, ctx.dim).to(u.dtype)
    return dg, None, None, None, None, None


def _setup_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, code, _, _, ctx.dim = inputs
    ctx.dtype = g.dtype
    ctx.save_for_backward(code)


def _backward_sum(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    (code,) = ctx.saved_tensors
    return taken(v, code, ctx.dim).to(ctx.dtype), None, None, None, None


_nearest.differentiable(_setup, _backward)
_nearest_backward.differentiable(_setup_backward, _backward_backward)
level_sum.differentiable(_setup_sum, _backward_sum)


# ---- public functions ----


class NearestLevel(NamedTuple):
    """The nearest levels and their codes."""

    y: Tensor
    code: Tensor


def nearest_level(
    x: Tensor,
    levels: Tensor,
    allowed: Tensor | None = None,
    *,
    dim: int = 0,
    gradient: Gradient = "identity",
) -> NearestLevel:
    r"""The nearest of a set of learned, non-uniform levels.

    .. math::
        c_i = \arg\min_j |x_i - v_j|, \qquad y_i = v_{c_i}; \qquad
        \frac{\partial L}{\partial x_i} = g_i, \quad
        \frac{\partial L}{\partial v_j} = \sum_{i : c_i = j} g_i

    Parameters
    ----------
    x : Tensor
        Any shape; float32, float64, bfloat16 or float16. Any strides; channels last is kept.
    levels : Tensor
        (L) for all elements, or (C, L) for each index of axis ``dim``; from 1 to 4096 levels, in
        any order. Taken in float32 (float64 for a float64 x); among equally near ones the first
        counts.
    allowed : Tensor, optional
        int32 (up to 32 levels) or int64 (up to 64), of the shape of x: bit j allows level j. For
        memory cells that are stuck.
    dim : int
        The axis of levels (C, L).
    gradient : {"identity", "clip"}
        "clip": dx is 0 outside [min v, max v].

    Returns
    -------
    NearestLevel
        ``y`` like x, and ``code`` of its shape: uint8 up to 256 levels, else int32. (Indexing with
        a uint8 tensor is a mask for torch: use ``code.long()``.)

    Raises
    ------
    RuntimeError
        On the CPU, where ``allowed`` allows an element no level. Elsewhere that gives NaN.

    Notes
    -----
    Bytes moved: x read, y and code written; backward reads g and code, and g is dx itself. An
    infinite x takes the largest or smallest level; NaN gives NaN and code 0, and so does a NaN
    among the levels. The sums of dv are in double, in an order that does not depend on threads.

    References
    ----------
    Zhu et al., "Trained ternary quantization", ICLR 2017; Yamamoto, "Learnable companding
    quantization", CVPR 2021.
    """
    op = "nearest_level"
    checks.floating(op, "x", x)
    checks.floating(op, "levels", levels)
    checks.on_device(op, "levels", levels, x)
    checks.one_of(op, "gradient", gradient, ("identity", "clip"))
    if levels.dim() not in (1, 2):
        raise ValueError(
            f"regkern.{op}: expected `levels` of shape (L) or (C, L), got {tuple(levels.shape)}"
        )
    check_count(op, "levels", levels.shape[-1])
    if levels.dim() == 2:
        dim = axis(op, x, dim)
        if levels.shape[0] != x.shape[dim]:
            raise ValueError(
                f"regkern.{op}: expected `levels` of {x.shape[dim]} rows, got {tuple(levels.shape)}"
            )
    if allowed is not None:
        check_allowed(op, allowed, x, levels.shape[-1])
    y, code = _nearest(x, levels.to(compute_dtype(x)), allowed, dim, gradient == "clip")
    return NearestLevel(y, code)


def axis(op: str, x: Tensor, dim: int) -> int:
    if not -x.dim() <= dim < x.dim():
        raise ValueError(
            f"regkern.{op}: expected `dim` from {-x.dim()} to {x.dim() - 1}, got {dim}"
        )
    return dim % x.dim()

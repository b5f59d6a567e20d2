"""The distance of weights from the levels that their memory cells can hold."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, register
from regkern.quantize.levels import (
    check_allowed,
    check_count,
    code_dtype,
    empty_codes,
    level_sum,
    needs,
    taken,
)
from regkern.random import resolve_seed

# ---- raw ops: fake kernels and autograd ----


def _fake(
    w: Tensor,
    values: Tensor,
    uniform: bool,
    quant_min: int = 0,
    quant_max: int = 0,
    sa0: Tensor | None = None,
    sa1: Tensor | None = None,
    allowed: Tensor | None = None,
    seed: Tensor | None = None,
    variability: float = 0.0,
    mean: bool = False,
    gradients: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    value = w.new_empty((), dtype=compute_dtype(w))
    if not gradients:
        return value, w.new_empty((0,)), values.new_empty((0,))
    return value, dense_like(w), values.new_empty(values.shape)


def _fake_codes(w: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    return empty_codes(w, torch.int32), empty_codes(w, compute_dtype(w))


_penalty = register("level_penalty", _fake)
_codes = register("level_codes", _fake_codes)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    w, values, ctx.uniform, ctx.least, ctx.most, *masks, ctx.variability, ctx.mean, ctx.ready = (
        inputs
    )
    ctx.save_for_backward(w, values, *masks, output[1], output[2])
    # The gradients of dw and dvalues are wanted in a second derivative alone.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, g: Tensor | None, u: Tensor | None, t: Tensor | None) -> tuple[Any, ...]:
    w, values, sa0, sa1, allowed, seed, dw, dvalues = ctx.saved_tensors
    options = (ctx.uniform, ctx.least, ctx.most, sa0, sa1, allowed, seed, ctx.variability)
    gw = gvalues = None
    if g is not None:
        if not ctx.ready:
            _, dw, dvalues = _penalty(w, values, *options, ctx.mean, True)
        gw = (g * dw).to(w.dtype) if needs(ctx, 0) else None
        gvalues = g * dvalues if needs(ctx, 1) else None
    if u is not None or t is not None:
        gw, gvalues = _second(ctx, w, values, options, gw, gvalues, u, t)
    return gw, gvalues, *([None] * 10)


def _second(
    ctx: Any,
    w: Tensor,
    values: Tensor,
    options: tuple[Any, ...],
    gw: Tensor | None,
    gvalues: Tensor | None,
    u: Tensor | None,
    t: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Adds the gradients of dw and dvalues.

    With Q_i = a_i v_j (j = code_i and a = f, or j = 0 and a = f code) and k = 2κ:
    dw_i = k (w_i − a_i v_j) and dv_j = −k Σ_{code = j} a_i (w_i − a_i v_j).
    """
    k = 2.0 / max(w.numel(), 1) if ctx.mean else 2.0
    code, a = _codes(w, values, *options)
    if ctx.uniform:
        a, index = a * code, torch.zeros_like(code)
    else:
        index = code
    flat = values.reshape(-1)
    wide = torch.zeros_like(a) if u is None else u.to(a.dtype)
    # d(dw)/dw and d(dv)/dw, whose transposes carry to the values.
    back = k * wide
    if t is not None:
        back = back - k * a * taken(t.reshape(-1), index, 0)
    if needs(ctx, 0):
        gw = back.to(w.dtype) if gw is None else gw + back.to(w.dtype)
    if needs(ctx, 1):
        levels = flat.shape[0]
        sums = -level_sum(a * back, index.to(code_dtype(levels)), levels, False, 0)
        sums = sums.reshape(values.shape)
        gvalues = sums if gvalues is None else gvalues + sums
    return gw, gvalues


_penalty.differentiable(_setup, _backward)


# ---- public functions ----


def _check_stuck(op: str, name: str, mask: Tensor, w: Tensor) -> Tensor:
    checks.on_device(op, name, mask, w)
    if mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
        raise TypeError(f"regkern.{op}: expected `{name}` of an integer dtype, got {mask.dtype}")
    if mask.shape != w.shape:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of the shape of `w`, {tuple(w.shape)}, got "
            f"{tuple(mask.shape)}"
        )
    return mask.to(torch.uint8)


def _check_range(op: str, least: int, most: int, stuck: bool) -> None:
    if not -(2**20) <= least <= most <= 2**20:
        raise ValueError(
            f"regkern.{op}: expected -2^20 <= `quant_min` <= `quant_max` <= 2^20, got {least} and "
            f"{most}"
        )
    count = most - least + 1
    power = count & (count - 1) == 0
    if stuck and not (2 <= count <= 256 and power and (least == 0 or least == -count // 2)):
        raise ValueError(
            f"regkern.{op}: expected `quant_min` and `quant_max` to be all codes of at most 8 "
            f"bits, signed or unsigned, with `sa0` or `sa1`, got {least} and {most}"
        )


def level_penalty(
    w: Tensor,
    *,
    step: float | Tensor | None = None,
    levels: Tensor | None = None,
    quant_min: int = -128,
    quant_max: int = 127,
    sa0: Tensor | None = None,
    sa1: Tensor | None = None,
    allowed: Tensor | None = None,
    variability: float = 0.0,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    r"""The squared distance of weights from the levels that their cells can hold.

    .. math::
        R = \sum_i (w_i - Q_i)^2, \qquad Q_i = f_i\, s\, c_i \;\text{ or }\; f_i\, v_{c_i}, \qquad
        f_i = 1 + \sigma \varepsilon_i, \; \varepsilon_i \sim N(0, 1)

    with :math:`c_i` the nearest code that cell i can hold, held fixed in the gradients:
    :math:`dw_i = 2 (w_i - Q_i)`, :math:`ds = -2 \sum_i (w_i - Q_i) f_i c_i`,
    :math:`dv_j = -2 \sum_{c_i = j} (w_i - Q_i) f_i`.

    Parameters
    ----------
    w : Tensor
        Any shape; float32, float64, bfloat16 or float16. Any strides.
    step : float or Tensor
        The distance s of uniform levels, one element. Either this or ``levels``.
    levels : Tensor
        (L), from 1 to 4096 levels in any order.
    quant_min, quant_max : int
        The codes of uniform levels.
    sa0, sa1 : Tensor, optional
        Integer masks of the shape of w: bit k of the code of an element reads 0, or 1, whatever was
        written (0 where both say so). The codes are those c with ``(c | sa1) & ~sa0 == c``, and the
        range is all of up to 8 bits: ``-2^(b-1) … 2^(b-1) - 1`` or ``0 … 2^b - 1``.
    allowed : Tensor, optional
        int32 or int64 masks of permitted ``levels``, as in `nearest_level`.
    variability : float
        σ of what separates one cell's levels from another's.
    seed, generator
        See `make_seed`; for ``variability``.
    reduction : {"sum", "mean"}
        The mean of nothing is 0.

    Returns
    -------
    Tensor
        0-d, float32 (float64 for float64). Differentiable in w, step and levels.

    Notes
    -----
    Without stuck bits the code is ``clamp(round(w / s), quant_min, quant_max)``, ties to even; with
    them the nearest one, the lower of two. A step of 0 has code 0. NaN in w gives NaN. Bytes moved:
    w read and dw written, in one pass with the sums of the values' gradients; without gradients w
    is read and nothing else.

    References
    ----------
    "Regularization-based framework for quantization-, fault- and variability-aware training".
    """
    op = "level_penalty"
    checks.floating(op, "w", w)
    checks.one_of(op, "reduction", reduction, ("sum", "mean"))
    if (step is None) == (levels is None):
        got = "neither" if step is None else "both"
        raise ValueError(f"regkern.{op}: expected `step` or `levels`, got {got}")
    checks.at_least(op, "variability", variability, 0.0)
    dtype = compute_dtype(w)
    if levels is not None:
        checks.floating(op, "levels", levels)
        checks.on_device(op, "levels", levels, w)
        if levels.dim() != 1:
            raise ValueError(
                f"regkern.{op}: expected `levels` of shape (L), got {tuple(levels.shape)}"
            )
        check_count(op, "levels", levels.shape[0])
        if sa0 is not None or sa1 is not None:
            raise ValueError(f"regkern.{op}: expected no `sa0` and `sa1` with `levels`, got one")
        if allowed is not None:
            check_allowed(op, allowed, w, levels.shape[0], "w")
        values, uniform, quant_min, quant_max = levels.to(dtype), False, 0, 0
    else:
        if allowed is not None:
            raise ValueError(f"regkern.{op}: expected no `allowed` with `step`, got one")
        _check_range(op, quant_min, quant_max, sa0 is not None or sa1 is not None)
        values, uniform = _step(op, step, w, dtype), True
        sa0 = None if sa0 is None else _check_stuck(op, "sa0", sa0, w)
        sa1 = None if sa1 is None else _check_stuck(op, "sa1", sa1, w)
    noise = resolve_seed(op, w, seed, generator) if variability != 0 else None
    gradients = torch.is_grad_enabled() and (w.requires_grad or values.requires_grad)
    value: Tensor
    value, _, _ = _penalty(
        w, values, uniform, quant_min, quant_max, sa0, sa1, allowed, noise, float(variability),
        reduction == "mean", gradients,
    )  # fmt: skip
    return value


def _step(op: str, step: float | Tensor | None, w: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(step, Tensor):
        return torch.full((), step, dtype=dtype, device=w.device)  # type: ignore[arg-type]
    checks.floating(op, "step", step)
    checks.on_device(op, "step", step, w)
    if step.numel() != 1:
        raise ValueError(
            f"regkern.{op}: expected `step` to have one element, got {tuple(step.shape)}"
        )
    return step.to(dtype)

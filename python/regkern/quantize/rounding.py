"""Rounding to any format: stochastic, to nearest, toward zero, down."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, register
from regkern.quantize.formats import Format, format_of
from regkern.random import resolve_seed

Rounding = Literal["nearest_even", "nearest_away", "toward_zero", "floor", "stochastic", "noise"]
ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "floor", "stochastic")
ScaleMode = Literal["floor", "ceil", "rceil", "even", "midpoint"]
SCALE_MODES = ("floor", "ceil", "rceil", "even", "midpoint")


# ---- raw ops: fake kernels and autograd ----


def _fake_round_to(
    x: Tensor,
    format: str,
    rounding: str = "nearest_even",
    seed: Tensor | None = None,
    random_bits: int = 16,
    saturate: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return dense_like(x).to(dtype) if dtype is not None else dense_like(x)


round_to_op = register("round_to", _fake_round_to)
round_to_out_op = register(
    "round_to_out",
    lambda x, out, format, rounding="nearest_even", seed=None, random_bits=16, saturate=False: None,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    # Straight through.
    return g.to(ctx.dtype), *([None] * 6)


round_to_op.differentiable(_setup, _backward)


class _InPlace(torch.autograd.Function):
    """The in-place call for autograd, which cannot see through a mutable custom op."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        round_to_out_op.raw(x, x, *args)
        ctx.mark_dirty(x)
        ctx.count = len(args)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g, *([None] * ctx.count)


# ---- public functions ----


def check_rounding(op: str, rounding: str, random_bits: int) -> None:
    checks.one_of(op, "rounding", rounding, ROUNDINGS)
    if random_bits not in (8, 16, 23):
        raise ValueError(
            f"regkern.{op}: expected `random_bits` to be 8, 16 or 23, got {random_bits!r}"
        )


def saturation(op: str, form: Format, rounding: str, overflow: str | None) -> bool:
    """Whether what is too large becomes the largest finite number."""
    if overflow is None:
        # Scaled formats saturate, as OCP says.
        return rounding in ("stochastic", "noise") or form.saturates or form.rule is not None
    checks.one_of(op, "overflow", overflow, ("saturate", "infinity"))
    return overflow == "saturate"


def round_to(
    x: Tensor,
    format: str | torch.dtype | Format,
    *,
    rounding: Rounding = "nearest_even",
    overflow: Literal["saturate", "infinity"] | None = None,
    axis: int = -1,
    block_size: int | None = None,
    scale_mode: ScaleMode | None = None,
    tensor_scale: Tensor | None = None,
    random_bits: int = 16,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Rounds to the numbers of a format.

    .. math::
        y = \operatorname{sign}(x)\, q\, (n + u), \quad n = \lfloor |x| / q \rfloor, \quad
        f = |x| / q - n

    with q the distance of the format's numbers around x (that of its subnormals below the smallest
    normal number). u is 1 where f > 1/2, or f = 1/2 and n is odd (``"nearest_even"``); f >= 1/2
    (``"nearest_away"``); never (``"toward_zero"``); f > 0 and x < 0 (``"floor"``); and with
    probability f (``"stochastic"``): f >= (U + 1/2) 2^-k for the k random bits U of the element. A
    number that the format has never moves, NaN stays NaN, -0 stays -0 where the format has one.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16, any shape and strides.
    format : str or torch.dtype
        ``"bfloat16"``, ``"float16"``, ``"tf32"``, ``"e4m3fn"``, ``"e5m2"``, ``"e4m3fnuz"``,
        ``"e5m2fnuz"``, ``"e2m3fn"``, ``"e3m2fn"``, ``"e2m1fn"``, any ``"eXmY"`` (IEEE, with
        infinities), ``"eXmYfn"``, ``"eXmYfnuz"``; ``"int2"`` … ``"int16"``, ``"uint2"`` …;
        ``"fixedW.F"``; and formats with a scale per block: ``"mxfp8_e4m3"``, ``"mxfp8_e5m2"``,
        ``"mxfp6_e2m3"``, ``"mxfp6_e3m2"``, ``"mxfp4"``, ``"mxint8"`` (OCP, blocks of 32),
        ``"bfpN"`` (N-bit sign and magnitude under a shared exponent), ``"nvfp4"`` (blocks of 16).
        ``"e4m3"``, ``"e2m3"``, ``"e3m2"`` and ``"e2m1"`` are the OCP formats.
    rounding : {"nearest_even", "nearest_away", "toward_zero", "floor", "stochastic"}
    overflow : {"saturate", "infinity"}, optional
        What is too large becomes the largest finite number, or infinity (NaN where the format has
        none). An infinite x stays infinite where the format can say so. Default: as torch's casts
        do, and "saturate" with stochastic rounding, which would be biased otherwise.
    axis, block_size : int
        Of a format with a scale per block: the axis that blocks lie along, and their length. The
        last block of the axis may be shorter.
    scale_mode : {"floor", "ceil", "rceil", "even", "midpoint"}
        Of an MX format: the exponent of the scale is that of the block's largest magnitude less
        that of the format's largest number ("floor", OCP's rule, which clips up to half of the
        range's end); one more where the magnitude is no power of two ("ceil"), where it would be
        clipped ("rceil"), where rounding it to the format's mantissa carries ("even"), or where it
        is past the middle of the largest number and the next power of two ("midpoint"). Default:
        "floor", and "rceil" with stochastic rounding, which is unbiased only if nothing clips.
    tensor_scale : Tensor, optional
        Of nvfp4: float32, one element. Default: the largest magnitude of x / (6 x 448).
    random_bits : {8, 16, 23}
        Of an element. The probability is f rounded to as many bits.
    dtype : torch.dtype, optional
        Of the result: torch's float dtypes, or float8 for their formats. Default: x's.
    out : Tensor, optional
        Where to write, of x's shape; may be x. No gradient then.
    seed, generator
        See `make_seed`.

    Returns
    -------
    Tensor
        The rounded numbers, dequantized; `encode` returns codes and scales.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    The gradient is straight-through: dx = dy. Bytes moved: x read, y written; Philox at 16 bits per
    element costs as much as a copy of float32 on a CPU with AVX-512. An ``out`` saves the page
    faults of a fresh result. A channels-last x takes two more passes with stochastic rounding,
    whose bits are numbered in row-major order. A format without mantissa bits rounds ties up.

    References
    ----------
    Open Compute Project, "Microscaling formats (MX) specification", 2023. Micikevicius et al., "FP8
    formats for deep learning", 2022. Croci et al., "Stochastic rounding: implementation, error
    analysis and applications", 2022.
    """
    return _round("round_to", **locals())


def stochastic_round(
    x: Tensor,
    format: str | torch.dtype | Format,
    *,
    overflow: Literal["saturate", "infinity"] | None = None,
    axis: int = -1,
    block_size: int | None = None,
    scale_mode: ScaleMode | None = None,
    tensor_scale: Tensor | None = None,
    random_bits: int = 16,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Rounds at random to one of the two neighbours in a format, so that the mean is x.

    .. math::
        P(y = x^+) = \frac{x - x^-}{x^+ - x^-}, \qquad \mathbb{E}\, y = x

    `round_to` with ``rounding="stochastic"``; its parameters are those.

    Returns
    -------
    Tensor
        Unbiased, to 2^-(k+1) of the distance of the neighbours at k random bits, wherever x lies in
        the range of the format.
    """
    return _round("stochastic_round", rounding="stochastic", **locals())


def round_to_(x: Tensor, format: str | torch.dtype | Format, **options: Any) -> Tensor:
    """`round_to` in place, with its gradient; the same options but ``out`` and ``dtype``."""
    return _round_inplace("round_to_", x, format, options)


def stochastic_round_(x: Tensor, format: str | torch.dtype | Format, **options: Any) -> Tensor:
    """`stochastic_round` in place, with its gradient; without ``out`` and ``dtype``."""
    return _round_inplace("stochastic_round_", x, format, {**options, "rounding": "stochastic"})


def _round_inplace(
    op: str, x: Tensor, format: str | torch.dtype | Format, options: dict[str, Any]
) -> Tensor:
    for name in ("out", "dtype"):
        if name in options:
            raise TypeError(f"regkern.{op}: expected no `{name}`, which an in-place call has")
    checks.floating(op, "x", x)
    form = format_of(op, format)
    if torch.compiler.is_compiling() or form.rule is not None or form.step != 1.0:
        return x.copy_(_round(op, x=x, format=form, **options))
    arguments = _arguments(op, x, form, **options)
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = function_apply(_InPlace, x, *arguments)
        return result
    round_to_out_op(x, x, *arguments)
    return x


def _arguments(
    op: str,
    x: Tensor,
    form: Format,
    rounding: str = "nearest_even",
    overflow: str | None = None,
    random_bits: int = 16,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
    **unused: Any,
) -> tuple[Any, ...]:
    """What the raw op takes after x (and out)."""
    for name in ("block_size", "scale_mode", "tensor_scale"):
        if form.rule is None and unused.get(name) is not None:
            raise ValueError(
                f"regkern.{op}: expected no `{name}` with format {form.name!r}, which has no scale "
                f"per block, got {unused[name]!r}"
            )
    check_rounding(op, rounding, random_bits)
    if rounding != "stochastic" and (seed is not None or generator is not None):
        raise ValueError(
            f"regkern.{op}: expected no `seed` or `generator` with rounding {rounding!r}, which "
            "draws nothing"
        )
    drawn = resolve_seed(op, x, seed, generator) if rounding == "stochastic" else None
    return form.element, rounding, drawn, random_bits, saturation(op, form, rounding, overflow)


def _round(
    op: str,
    x: Tensor,
    format: str | torch.dtype | Format,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    **options: Any,
) -> Tensor:
    checks.floating(op, "x", x)
    form = format_of(op, format)
    if out is not None:
        _check_out(op, x, form, out, dtype)
    elif dtype is not None and dtype not in checks.FLOATING and dtype != form.dtype:
        raise ValueError(
            f"regkern.{op}: expected `dtype` to be a float dtype or the storage of {form.name!r} "
            f"({form.dtype}), got {dtype}"
        )
    if form.rule is not None or form.step != 1.0:
        # Imported here: fake quantization stands on this module.
        from regkern.quantize.fake import round_blocks

        y = round_blocks(op, x, form, **options)
        if out is not None:
            return out.copy_(y)
        return y if dtype is None else y.to(dtype)
    arguments = _arguments(op, x, form, **options)
    if out is None:
        if dtype is None or dtype == x.dtype:
            result: Tensor = round_to_op(x, *arguments)
            return result
        if dtype == form.dtype and form.bits == 8:
            if not form.nan:
                raise ValueError(f"regkern.{op}: expected a format with a NaN, got {form.name!r}")
            codes: Tensor = round_to_op(_single(x), *arguments, torch.uint8)
            return codes.view(dtype)
        if x.dtype == torch.float64 or dtype == torch.float64:
            return round_to_op(x, *arguments).to(dtype)  # type: ignore[no-any-return]
        converted: Tensor = round_to_op(x, *arguments, dtype)
        return converted
    with torch.no_grad():
        target = out.view(torch.uint8) if out.element_size() == 1 else out
        if torch.compiler.is_compiling():
            target.copy_(round_to_op(x, *arguments, target.dtype))
        else:
            round_to_out_op(x, target, *arguments)
    return out


def _single(x: Tensor) -> Tensor:
    # Codes are made from float32, and two roundings are not one.
    if x.dtype == torch.float64:
        raise ValueError("regkern.round_to: expected `x` float32, bfloat16 or float16 for float8")
    return x


def _check_out(op: str, x: Tensor, form: Format, out: Tensor, dtype: torch.dtype | None) -> None:
    checks.on_device(op, "out", out, x)
    if dtype is not None and dtype != out.dtype:
        raise ValueError(f"regkern.{op}: expected `dtype` to be `out`'s, got {dtype}, {out.dtype}")
    if out.shape != x.shape:
        raise ValueError(
            f"regkern.{op}: expected `out` of shape {tuple(x.shape)}, got {tuple(out.shape)}"
        )
    if out.dtype not in checks.FLOATING and out.dtype != form.dtype:
        raise ValueError(
            f"regkern.{op}: expected `out` of a float dtype or the storage of {form.name!r} "
            f"({form.dtype}), got {out.dtype}"
        )
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ValueError(f"regkern.{op}: expected no gradients with `out`, got one that requires")

"""Fake quantization: rounding with scales, given or from the data, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, function_apply, register
from regkern.masks.drop_block import mask_apply_op
from regkern.quantize.formats import Format, format_of
from regkern.quantize.granularity import Granularity, blocks_of
from regkern.quantize.rounding import (
    SCALE_MODES,
    Rounding,
    ScaleMode,
    check_rounding,
    round_to,
    saturation,
)
from regkern.quantize.statistics import block_range_op
from regkern.random import resolve_seed

Gradient = Literal["clip", "identity"]


# ---- raw ops: fake kernels and autograd ----


def _fake_fake_quantize(
    x: Tensor,
    blocks: Sequence[int],
    format: str,
    rule: str = "given",
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    mode: str = "floor",
    tensor_scale: Tensor | None = None,
    rounding: str = "nearest_even",
    seed: Tensor | None = None,
    random_bits: int = 16,
    saturate: bool = True,
    codes: bool = False,
    save_inside: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    outer, rows, cols, block_rows, block_cols, shared = blocks
    down, across = -(-rows // block_rows), -(-cols // block_cols)
    count = (1 if shared else outer) * down * across
    compute = compute_dtype(x)
    computed, coded = rule != "given", rule in ("mx", "nvfp4")
    if codes:
        form = format_bits(format)
        shape = list(x.shape)
        if form == 4:
            shape[-1] //= 2
        y = x.new_empty(shape, dtype=torch.int16 if form == 16 else torch.uint8)
    else:
        y = dense_like(x)
    return (
        y,
        x.new_empty((count if computed else 0,), dtype=compute),
        x.new_empty((count if rule == "asymmetric" else 0,), dtype=compute),
        x.new_empty((count if coded else 0,), dtype=torch.uint8),
        x.new_empty(((x.numel() + 31) // 32 if save_inside else 0,), dtype=torch.int32),
    )


def format_bits(element: str) -> int:
    """Bits that a code of an element takes: 4, 8 or 16."""
    if element.startswith("int:"):
        low, high = (int(v) for v in element.split(":")[1:])
        return 4 if high - low < 16 else 8 if high - low < 256 else 16
    return 4 if format_of("fake_quantize", element).bits == 4 else 8


fake_quantize_op = register("fake_quantize", _fake_fake_quantize)


def _fake_gradient(
    g: Tensor,
    x: Tensor,
    blocks: Sequence[int],
    format: str,
    scale: Tensor,
    zero_point: Tensor | None = None,
    rounding: str = "nearest_even",
    seed: Tensor | None = None,
    random_bits: int = 16,
    saturate: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    zeros = scale if zero_point is not None else scale.new_empty((0,))
    return dense_like(x), torch.empty_like(scale), torch.empty_like(zeros)


_gradient = register("fake_quantize_backward", _fake_gradient)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, blocks, element, _, scale, zero_point = inputs[:6]
    rounding, seed, bits, saturate, _, inside = inputs[8:]
    learned = any(t is not None and t.requires_grad for t in (scale, zero_point))
    # Of x a bit is enough; the gradient of a scale needs x itself.
    if learned:
        ctx.save_for_backward(x, scale, zero_point, seed)
    else:
        ctx.save_for_backward(output[4] if inside else None)
    ctx.how = None if not learned else (list(blocks), element, rounding, bits, saturate)
    ctx.dim = x.dim()
    ctx.inside = inside
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, g: Tensor, *unused: Any) -> tuple[Any, ...]:
    rest: list[Any] = [None] * 13
    if ctx.how is not None:
        blocks, element, rounding, bits, saturate = ctx.how
        x, scale, zero_point, seed = ctx.saved_tensors
        dx, dscale, dzero = _gradient(
            g, x, blocks, element, scale, zero_point, rounding, seed, bits, saturate
        )
        rest[3] = dscale
        rest[4] = None if zero_point is None else dzero
        return (dx if ctx.inside else g, *rest)
    (inside,) = ctx.saved_tensors
    if inside is None:
        return g, *rest
    one = torch.ones((1,), dtype=torch.float64, device=g.device)
    return mask_apply_op(g, inside, one, max(ctx.dim - 2, 0), "channel"), *rest


fake_quantize_op.differentiable(_setup, _backward)


# ---- public functions ----


def _scale_mode(op: str, form: Format, mode: str | None, rounding: str) -> str:
    if form.rule != "mx":
        if mode is not None:
            raise ValueError(
                f"regkern.{op}: expected no `scale_mode` with format {form.name!r}, got {mode!r}"
            )
        return "floor"
    if mode is None:
        # Stochastic rounding is unbiased only if nothing clips.
        return "rceil" if rounding == "stochastic" else "floor"
    checks.one_of(op, "scale_mode", mode, SCALE_MODES)
    return mode


def _tensor_scale(op: str, x: Tensor, form: Format, given: Tensor | None) -> Tensor | None:
    if form.rule != "nvfp4":
        if given is not None:
            raise ValueError(
                f"regkern.{op}: expected no `tensor_scale` with format {form.name!r}, got one"
            )
        return None
    if given is not None:
        checks.on_device(op, "tensor_scale", given, x)
        if given.numel() != 1:
            raise ValueError(
                f"regkern.{op}: expected `tensor_scale` of one element, got {tuple(given.shape)}"
            )
        return given.detach().reshape(1).to(torch.float32)
    if x.numel() == 0:
        return torch.ones((1,), dtype=torch.float32, device=x.device)
    low, high = block_range_op(x.detach(), blocks_of(op, x, "tensor")[0])
    amax = torch.maximum(-low[0], high[0]).to(torch.float32) / (6.0 * 448.0)
    # A tensor of zeros has scale 1: 0 / 0 has no meaning.
    return torch.where(amax == 0, torch.ones_like(amax), amax).reshape(1)


def _block_arguments(
    op: str,
    x: Tensor,
    form: Format,
    *,
    rounding: str = "nearest_even",
    overflow: str | None = None,
    axis: int = -1,
    block_size: int | None = None,
    scale_mode: str | None = None,
    tensor_scale: Tensor | None = None,
    random_bits: int = 16,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Arguments of the raw op for a format with scales of its own, and the shape of its scales."""
    check_rounding(op, rounding, random_bits)
    mode = _scale_mode(op, form, scale_mode, rounding)
    tensor = _tensor_scale(op, x, form, tensor_scale)
    drawn = _seed(op, x, rounding, seed, generator)
    saturate = saturation(op, form, rounding, overflow)
    if form.rule is None:
        # Fixed point: one scale, known beforehand.
        blocks, shape = blocks_of(op, x, "tensor")
        given = torch.full((1,), form.step, dtype=compute_dtype(x), device=x.device)
        rule, scale = "given", given
        if block_size is not None:
            raise ValueError(
                f"regkern.{op}: expected no `block_size` with format {form.name!r}, got "
                f"{block_size!r}"
            )
    else:
        size = form.block_size if block_size is None else block_size
        blocks, shape = blocks_of(op, x, "group", axis, size)
        rule, scale = form.rule, None
    arguments = (blocks, form.element, rule, scale, None, mode, tensor)
    return (*arguments, rounding, drawn, random_bits, saturate), shape


def _seed(
    op: str, x: Tensor, rounding: str, seed: Tensor | None, generator: torch.Generator | None
) -> Tensor | None:
    if rounding in ("stochastic", "noise"):
        return resolve_seed(op, x, seed, generator)
    if seed is not None or generator is not None:
        raise ValueError(
            f"regkern.{op}: expected no `seed` or `generator` with rounding {rounding!r}, which "
            "draws nothing"
        )
    return None


def round_blocks(op: str, x: Tensor, form: Format, **options: Any) -> Tensor:
    """`round_to` for a format with scales of its own."""
    arguments, _ = _block_arguments(op, x, form, **options)
    result: Tensor = fake_quantize_op(x, *arguments)[0]
    return result


class Encoded(NamedTuple):
    """Codes and scales of a tensor.

    Attributes
    ----------
    data : Tensor
        float8 for the formats that torch has; uint8 or int8 codes of up to 8 bits; two codes of 4
        bits in a byte, the first in its low half (of dtype float4_e2m1fn_x2 where torch has it);
        int16.
    scale : Tensor or None
        float8_e8m0fnu (MX), float8_e4m3fn (nvfp4) per block, float32 elsewhere.
    tensor_scale : Tensor or None
        Of nvfp4.
    format : Format
    axis, block_size, shape
        Where the blocks lie, and the shape of what was encoded.
    """

    data: Tensor
    scale: Tensor | None
    tensor_scale: Tensor | None
    format: Format
    axis: int
    block_size: int | None
    shape: tuple[int, ...]

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers again, in ``dtype``."""
        return _decode(self).to(dtype)


def encode(
    x: Tensor,
    format: str | torch.dtype | Format,
    *,
    rounding: Rounding = "nearest_even",
    axis: int = -1,
    block_size: int | None = None,
    scale_mode: ScaleMode | None = None,
    tensor_scale: Tensor | None = None,
    overflow: Literal["saturate", "infinity"] | None = None,
    random_bits: int = 16,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Encoded:
    """Rounds as `round_to` does and returns codes and scales instead of numbers.

    Parameters
    ----------
    x : Tensor
        float32, bfloat16 or float16.
    format, rounding, axis, block_size, scale_mode, tensor_scale, overflow, random_bits
        See `round_to`. A format of less than 8 bits without scales has no code for NaN and is
        refused.

    Returns
    -------
    Encoded
        ``decode()`` gives the numbers that `round_to` returns, bit for bit. A block with a NaN or
        an infinity has a NaN for its scale.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; also for codes of 4 bits on a last axis of odd length.

    Notes
    -----
    Bytes moved: x read once; codes and scales written. Not differentiable.
    """
    op = "encode"
    checks.floating(op, "x", x)
    form = format_of(op, format)
    if x.dtype == torch.float64:
        raise TypeError(f"regkern.{op}: expected `x` of float32, bfloat16 or float16, got float64")
    options: dict[str, Any] = {
        "rounding": rounding, "overflow": overflow, "random_bits": random_bits, "seed": seed,
        "generator": generator,
    }  # fmt: skip
    shape = tuple(x.shape)
    with torch.no_grad():
        if form.rule is None and form.kind == "floating":
            if (form.bits > 8 or not form.nan) and form.dtype is None:
                raise ValueError(
                    f"regkern.{op}: expected a format with scales, with codes of 8 bits, or that "
                    f"torch has; got {form.name!r}"
                )
            codes = round_to(x, form, dtype=form.dtype or torch.uint8, **options)
            return Encoded(codes, None, None, form, axis, None, shape)
        if form.bits <= 4 and (x.dim() == 0 or x.shape[-1] % 2 != 0):
            raise ValueError(
                f"regkern.{op}: expected a last axis of even length for codes of 4 bits, got "
                f"{shape}"
            )
        arguments, scales = _block_arguments(
            op, x, form, axis=axis, block_size=block_size, scale_mode=scale_mode,
            tensor_scale=tensor_scale, **options,
        )  # fmt: skip
        data, _, _, code, _ = fake_quantize_op(x, *arguments, True)
    size = arguments[0][3] * arguments[0][4] if form.rule is not None else None
    if form.kind == "integer" and form.low < 0 and data.dtype == torch.uint8 and form.bits > 4:
        data = data.view(torch.int8)
    if form.element == "e2m1fn":
        data = data.view(torch.float4_e2m1fn_x2)
    elif form.rule == "mx" and form.kind == "floating" and form.bits == 8:
        data = data.view(getattr(torch, f"float8_{form.element}"))
    scale = None
    if form.rule is not None:
        kind = torch.float8_e8m0fnu if form.rule == "mx" else torch.float8_e4m3fn
        scale = code.reshape(scales).view(kind)
    return Encoded(data, scale, arguments[6], form, axis, size, shape)


def _element_values(form: Format, device: torch.device) -> Tensor:
    """What every code of a small floating element means, float32 (2^bits,)."""
    code = torch.arange(2**form.bits, device=device)
    m = form.mantissa_bits
    exponent, fraction = (code >> m) & (2**form.exponent_bits - 1), code & (2**m - 1)
    normal = (fraction + 2**m).double() * torch.exp2((exponent - form.bias - m).double())
    subnormal = fraction.double() * 2.0 ** (1 - form.bias - m)
    value = torch.where(exponent == 0, subnormal, normal)
    negative = code >= 2 ** (form.bits - 1)
    value = torch.where(negative, -value, value)
    too_large = value.abs() > form.max
    value = torch.where(too_large, torch.full_like(value, math.nan), value)
    if form.infinity:
        infinite = too_large & (fraction == 0)
        sign = 1 - 2 * negative.double()
        value = torch.where(infinite, sign * math.inf, value)
    if not form.negative_zero:
        value = torch.where(code == 2 ** (form.bits - 1), torch.full_like(value, math.nan), value)
    return value.float()


def _decode(e: Encoded) -> Tensor:
    form = e.format
    data = e.data
    if data.dtype.is_floating_point and data.element_size() > 1:
        return data.float()
    if data.dtype.is_floating_point:
        data = data.view(torch.uint8)
    if form.bits <= 4:
        low, high = data & 15, data >> 4
        data = torch.stack((low, high), -1).reshape(e.shape)
        if form.kind == "integer" and form.low < 0:
            data = (data.to(torch.int8) << 4) >> 4
    if form.kind == "integer":
        values = data.float() * form.step
    else:
        values = _element_values(form, data.device)[data.long()]
    if e.scale is None:
        return values
    if form.rule == "mx":
        code = e.scale.view(torch.uint8)
        # torch.ldexp loses 2^-127, a subnormal.
        exponent = code.int() - 127 - (form.bits - 2 if form.kind == "integer" else 0)
        scale = torch.exp2(exponent.double()).float()
        scale = torch.where(code == 255, torch.full_like(scale, math.nan), scale)
    else:
        assert e.tensor_scale is not None
        scale = e.scale.float() * e.tensor_scale
    assert e.block_size is not None
    repeated = scale.repeat_interleave(e.block_size, e.axis)
    return values * repeated.narrow(e.axis, 0, e.shape[e.axis])


class FakeQuantized(NamedTuple):
    """What `fake_quantize` computed: the numbers, and the scales (and zero points) that it used."""

    y: Tensor
    scale: Tensor
    zero_point: Tensor | None


def _given(
    op: str, x: Tensor, scale: Any, zero_point: Any, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    compute = compute_dtype(x)

    def tensor(name: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(
                    f"regkern.{op}: expected `{name}` to be a number or a tensor, got {value!r}"
                )
            return torch.full(shape, value, dtype=compute, device=x.device)
        checks.on_device(op, name, value, x)
        count = math.prod(shape)
        if value.numel() != count:
            raise ValueError(
                f"regkern.{op}: expected `{name}` of {count} elements, one per block (shape "
                f"{shape}), got {tuple(value.shape)}"
            )
        return value

    s = tensor("scale", scale)
    # Values on a GPU are not looked at: a scale that is not positive gives NaN or its mirror there.
    if s.device.type == "cpu" and _readable(s):
        least, most = torch.aminmax(s.detach()) if s.numel() else (s.new_ones(()), s.new_ones(()))
        if not (least > 0 and most < math.inf):
            raise ValueError(
                f"regkern.{op}: expected `scale` to be positive and finite, got {s.detach()}"
            )
    return s, None if zero_point is None else tensor("zero_point", zero_point)


def _readable(t: Tensor) -> bool:
    """Whether the values of a tensor can be looked at here: not while tracing or transforming."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or isinstance(t, torch._subclasses.FakeTensor)
    )


def fake_quantize(
    x: Tensor,
    scale: float | Tensor | None = None,
    zero_point: float | Tensor | None = None,
    *,
    format: str | torch.dtype | Format = "int8",
    quant_min: int | None = None,
    quant_max: int | None = None,
    symmetric: bool = True,
    granularity: Granularity = "tensor",
    axis: int | None = None,
    block_size: int | Sequence[int] | None = None,
    rounding: Rounding = "nearest_even",
    gradient: Gradient = "clip",
    gradient_factor: float | Literal["lsq"] = 1.0,
    log_scale: bool = False,
    gradient_format: str | torch.dtype | Format | None = None,
    overflow: Literal["saturate", "infinity"] | None = None,
    random_bits: int = 16,
    return_scale: bool = False,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    r"""Rounds to a format with a scale per block and back: quantization in training.

    .. math::
        q = \operatorname{clamp}(\operatorname{round}(x / s) + z,\ q_{min},\ q_{max}), \qquad
        y = (q - z)\, s

    Gradients: dx = dy where q was not clamped, else 0; and with `scale` (or `zero_point`) that
    requires grad, those of LSQ and LSQ+ with the factor c:

    .. math::
        ds = c \sum dy \cdot \begin{cases} (q - z) - x / s & \text{inside} \\
        q_{min} - z \text{ or } q_{max} - z & \text{outside} \end{cases}, \qquad
        dz = -c\, s \sum_{\text{outside}} dy

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16.
    scale : float or Tensor, optional
        s, one per block (`granularity` says how many), positive. Default: from the data, as
        ``torch.ao`` does: symmetric s = amax / ((q_max - q_min) / 2) (floating formats: amax /
        their largest number), asymmetric s = (max - min) / (q_max - q_min) with 0 in the range.
    zero_point : float or Tensor, optional
        z, of integer formats. Rounded to the nearest integer (half up) and clamped to the codes if
        floating; its gradient is straight-through.
    format : str
        Of an element, see `round_to`: integers, or a floating format without scales of its own.
    quant_min, quant_max : int, optional
        Codes, instead of the format's.
    symmetric : bool
        With scales from the data: no zero point.
    granularity : {"tensor", "channel", "token", "group", "block"}
        One scale for all; for each index of `axis`; for each vector along the last axis; for each
        `block_size` neighbours along `axis` (default: the last); for each (rows, cols) block of the
        last two axes. Shorter blocks at the ends are fine.
    axis : int, optional
        Default: 0 for channels, -1 for groups.
    rounding : {"nearest_even", "nearest_away", "toward_zero", "floor", "stochastic", "noise"}
        ``"noise"`` adds a uniform number in (-s/2, s/2) instead of rounding (integers alone).
    gradient : {"clip", "identity"}
        dx = 0 outside (a bit per element is saved), or dx = dy everywhere (nothing is saved).
    gradient_factor : float or "lsq"
        c. "lsq": 1 / sqrt(elements per block · q_max).
    log_scale : bool
        `scale` is ln s: its steps cannot make s negative.
    gradient_format : str, optional
        Rounds dy to this format, stochastically, before anything else: another format for the
        backward. MX formats lie along the last axis.
    overflow, random_bits, seed, generator
        See `round_to`.
    return_scale : bool
        Return a `FakeQuantized` with the scales and zero points that were used.

    Returns
    -------
    Tensor or FakeQuantized
        Of x's shape, dtype and layout. Agrees bit for bit with
        ``torch.fake_quantize_per_tensor_affine`` and ``..._per_channel_affine`` (nearest even),
        except that NaN stays NaN.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit: a scale that is not positive and finite, a zero point outside
        of the codes, an integer x.

    Notes
    -----
    Bytes moved: x read, y written, and 1/32 of x for the gradient's mask; backward dy read, dx
    written. With a learned scale x is saved instead and read again. Scales from the data need one
    more read unless a block fits the cache (up to 1024 columns by 128 rows).

    References
    ----------
    Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", 2018. Esser et al., "Learned step size quantization", 2020.
    Bhalgat et al., "LSQ+", 2020. Défossez et al., "Differentiable model compression via pseudo
    quantization noise", 2022.
    """
    op = "fake_quantize"
    checks.floating(op, "x", x)
    form = _element(op, format, quant_min, quant_max)
    checks.one_of(op, "gradient", gradient, ("clip", "identity"))
    if rounding == "noise":
        if form.kind != "integer":
            raise ValueError(
                f"regkern.{op}: expected an integer `format` with rounding 'noise', got "
                f"{form.name!r}"
            )
        check_rounding(op, "stochastic", random_bits)
    else:
        check_rounding(op, rounding, random_bits)
    axis = axis if axis is not None else -1 if granularity == "group" else 0
    blocks, shape = blocks_of(op, x, granularity, axis, block_size)
    drawn = _seed(op, x, rounding, seed, generator)
    saturate = saturation(op, form, rounding, overflow)
    # Nobody asks for the gradient of what requires none.
    save = gradient == "clip" and torch.is_grad_enabled() and x.requires_grad
    tail = ("floor", None, rounding, drawn, random_bits, saturate, False, save)
    if scale is None:
        if zero_point is not None or log_scale:
            raise ValueError(f"regkern.{op}: expected `scale` with `zero_point` or `log_scale`")
        if not symmetric and form.kind != "integer":
            raise ValueError(
                f"regkern.{op}: expected an integer `format` with symmetric=False, got "
                f"{form.name!r}"
            )
        rule = "symmetric" if symmetric else "asymmetric"
        y, s, z, _, _ = fake_quantize_op(x, blocks, form.element, rule, None, None, *tail)
        # An empty tensor has no range, but may have a scale of its own.
        empty = x.numel() == 0
        s = s.new_ones(shape) if empty else s.reshape(shape)
        z = None if symmetric else z.new_zeros(shape) if empty else z.reshape(shape)
    else:
        s, z = _learned(op, x, form, scale, zero_point, shape, blocks, gradient_factor, log_scale)
        flat = s.reshape(-1).to(compute_dtype(x))
        zeros = None if z is None else z.reshape(-1).to(flat.dtype)
        y = fake_quantize_op(x, blocks, form.element, "given", flat, zeros, *tail)[0]
    if gradient_format is not None:
        y = round_gradient(y, gradient_format, generator=generator)
    return FakeQuantized(y, s, z) if return_scale else y


def _element(
    op: str,
    format: str | torch.dtype | Format,
    quant_min: int | None,
    quant_max: int | None,
) -> Format:
    """An element's format: without scales of its own, and with the codes that were asked for."""
    form = format_of(op, format)
    if form.rule is not None or form.step != 1.0:
        raise ValueError(
            f"regkern.{op}: expected a `format` without scales of its own, got {form.name!r}; "
            "round_to has those"
        )
    if quant_min is None and quant_max is None:
        return form
    if form.kind != "integer":
        raise ValueError(
            f"regkern.{op}: expected an integer `format` with `quant_min`, `quant_max`, got "
            f"{form.name!r}"
        )
    low = form.low if quant_min is None else quant_min
    high = form.high if quant_max is None else quant_max
    if not -65536 <= low < high <= 65536 or not low <= 0 <= high:
        raise ValueError(
            f"regkern.{op}: expected `quant_min` <= 0 <= `quant_max`, different and within 2^16, "
            f"got {low} and {high}"
        )
    fields = {**form.__dict__, "element": f"int:{low}:{high}", "low": low, "high": high}
    return Format(**fields)


def _learned(
    op: str,
    x: Tensor,
    form: Format,
    scale: float | Tensor,
    zero_point: float | Tensor | None,
    shape: tuple[int, ...],
    blocks: list[int],
    factor: float | str,
    log_scale: bool,
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point as the kernel takes them, their gradients scaled by the factor."""
    if log_scale:
        if not isinstance(scale, Tensor):
            raise TypeError(f"regkern.{op}: expected `scale` a tensor with log_scale, got {scale}")
        scale = scale.exp()
    s, z = _given(op, x, scale, zero_point, shape)
    if z is not None:
        if form.kind != "integer":
            raise ValueError(
                f"regkern.{op}: expected no `zero_point` with format {form.name!r}, got one"
            )
        if z.device.type == "cpu" and _readable(z) and z.numel():
            least, most = torch.aminmax(z.detach())
            if not (form.low <= least and most <= form.high):
                raise ValueError(
                    f"regkern.{op}: expected `zero_point` from {form.low} to {form.high}, got "
                    f"{z.detach()}"
                )
        if z.is_floating_point():
            whole = torch.floor(z + 0.5).clamp(form.low, form.high)
            z = whole.detach() + (z - z.detach())
    c = 1.0
    if factor == "lsq":
        count = math.prod(shape)
        per_block = x.numel() / count if count else 1.0
        c = 1.0 / math.sqrt(max(per_block * max(form.high, 1), 1.0))
    elif not isinstance(factor, str):
        c = float(factor)
    else:
        raise ValueError(
            f"regkern.{op}: expected `gradient_factor` to be a number or 'lsq', got {factor!r}"
        )
    if c != 1.0:
        s = s.detach() + (s - s.detach()) * c if s.requires_grad else s
        if z is not None and z.requires_grad:
            z = z.detach() + (z - z.detach()) * c
    return s, z


class _RoundGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, form: str, seed: Tensor | None, rounding: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.form, seed, ctx.rounding = inputs
        ctx.save_for_backward(seed)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (seed,) = ctx.saved_tensors
        return round_to(g, ctx.form, rounding=ctx.rounding, seed=seed), None, None, None


def round_gradient(
    x: Tensor,
    format: str | torch.dtype | Format,
    *,
    rounding: Rounding = "stochastic",
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The identity, whose gradient is rounded to a format: another format for the backward.

    Parameters
    ----------
    x : Tensor
    format, rounding, seed, generator
        See `round_to`. Stochastic rounding keeps the gradient unbiased.

    Returns
    -------
    Tensor
        x; dx = round_to(dy, format).
    """
    op = "round_gradient"
    checks.floating(op, "x", x)
    form = format_of(op, format)
    checks.one_of(op, "rounding", rounding, Rounding.__args__[:-1])  # type: ignore[attr-defined]
    drawn = _seed(op, x, rounding, seed, generator)
    result: Tensor = function_apply(_RoundGradient, x, form.name, drawn, rounding)
    return result


def quantize_weights(w: Tensor, quantizer: str) -> Tensor:
    """w rounded to a format: what `quant_noise` calls a quantizer by name.

    Integers get a range per tensor from the data, asymmetric as in the paper (``"int4"``,
    ``"int8"``); other formats are those of `round_to`.
    """
    form = format_of("quant_noise", quantizer)
    if form.kind == "integer" and form.rule is None and form.step == 1.0:
        y: Tensor = fake_quantize(w, format=form, symmetric=False, gradient="identity")
        return y
    return round_to(w, form)

"""Swap rules of the quantize family: torch.ao's, torchao's and qtorch's fake quantizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regkern._registration import function_apply
from regkern.quantize.fake import fake_quantize, fake_quantize_op
from regkern.quantize.granularity import blocks_of
from regkern.quantize.statistics import block_range_op
from regkern.random import make_seed
from regkern.swap import NoCounterpart, register_swap

_QSCHEMES = (
    torch.per_tensor_affine,
    torch.per_tensor_symmetric,
    torch.per_channel_affine,
    torch.per_channel_symmetric,
)


def round_given(
    x: Tensor, blocks: list[int], scale: Tensor, zero_point: Tensor | None, low: int, high: int
) -> Tensor:
    """The op itself: a range with a NaN gives NaN, as it does in the layers replaced here."""
    y: Tensor = fake_quantize_op(
        x,
        blocks,
        f"int:{low}:{high}",
        "given",
        scale.reshape(-1).to(torch.float32),
        None if zero_point is None else zero_point.reshape(-1).to(torch.float32),
        "floor",
        None,
        "nearest_even",
        None,
        16,
        True,
        False,
        torch.is_grad_enabled(),
    )[0]
    return y


def _in_range(low: int, high: int) -> None:
    if not -65536 <= low <= 0 <= high <= 65536 or low == high:
        raise NoCounterpart(f"codes from {low} to {high}; ours hold 0, within 2^16")


# ---- torch.ao ----


def _taken_over(new: nn.Module, old: nn.Module) -> nn.Module:
    """Everything that the old layer holds, under the same names; tables of its own."""
    for name, value in vars(old).items():
        vars(new)[name] = value.copy() if isinstance(value, dict) else value
    return new


@register_swap("torch.ao.quantization.fake_quantize.FakeQuantize")
def _ao(old: Any) -> nn.Module:
    if old.qscheme not in _QSCHEMES:
        raise NoCounterpart(f"{old.qscheme} has zero points that are no integers")
    # Loaded already, or there would be no such layer.
    from regkern.swap.torch_ao import AoFakeQuantize

    observer = old.activation_post_process
    _in_range(observer.quant_min, observer.quant_max)
    return _taken_over(AoFakeQuantize.__new__(AoFakeQuantize), old)


@register_swap("torch.ao.quantization.fake_quantize.FusedMovingAvgObsFakeQuantize")
def _ao_fused(old: Any) -> nn.Module:
    raise NoCounterpart(
        "its scales are computed in double, so its last bits differ, and it is one kernel already"
    )


# ---- torchao ----


class IntxFakeQuantize(nn.Module):
    """In the place of torchao's ``IntxFakeQuantizer``: dynamic integer ranges.

    Scales are computed by torchao's formulas, in its order and in the input's dtype; they have no
    gradient there either. Rounding is one pass. The gradient is dy where torchao multiplies it by s
    and by 1 / s, so it differs in the last bits.
    """

    def __init__(self, config: Any, kind: str, low: int, high: int) -> None:
        super().__init__()
        self.config = config
        self.enabled = True
        self.kind = kind
        self.low, self.high = low, high
        self.scale: Tensor | None = None
        self.zero_point: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                f"regkern.swap: expected `x` of float32, float16 or bfloat16, got {x.dtype}"
            )
        low, high = self.low, self.high
        eps = self.config.eps
        if eps is None:
            eps = torch.finfo(x.dtype).smallest_normal
        if self.kind == "token":
            blocks, _ = blocks_of("swap", x, "token")
            grouped = x.shape[:-1]
        else:
            size = x.shape[-1] if self.kind == "channel" else self.config.group_size
            if x.dim() != 2 or size < 2 or x.shape[-1] % size:
                raise ValueError(
                    f"regkern.swap: expected `x` of 2 dimensions, the last a multiple of the group "
                    f"of {size}, got {tuple(x.shape)}"
                )
            blocks, _ = blocks_of("swap", x, "group", -1, size)
            grouped = torch.Size((x.shape[0], x.shape[1] // size))
        with torch.no_grad():
            least, most = (
                bound.to(x.dtype).view(grouped) for bound in block_range_op(x.detach(), blocks)
            )
            least, most = least.clamp(max=0.0), most.clamp(min=0.0)
            zero: Tensor | None = None
            if self.kind == "token":
                scale = ((most - least) / float(high - low)).clamp(min=eps)
                zero = (low - torch.round(least / scale)).clamp(low, high)
            else:
                scale = (torch.maximum(-least, most) / (float(high - low) / 2)).clamp(min=eps)
            scale = scale.to(torch.float32)
            whole = torch.zeros_like(scale) if zero is None else zero
        # The zero point of a row with a NaN means nothing; its scale is NaN.
        self.scale, self.zero_point = scale, whole.to(torch.int32)
        return round_given(x, blocks, scale, zero, low, high)

    def extra_repr(self) -> str:
        return f"{self.config}"


@register_swap("torchao.quantization.qat.fake_quantizer.IntxFakeQuantizer")
def _torchao(old: Any) -> nn.Module:
    config = old.config
    if config.range_learning:
        raise NoCounterpart("it learns its range; FakeQuantize(range='learned') does")
    if not config.is_dynamic:
        raise NoCounterpart("it keeps the range of its first input")
    if config.zero_point_domain.name != "INT":
        raise NoCounterpart(f"its zero points are {config.zero_point_domain.name}, no integers")
    if config.scale_precision != torch.float32 or config.zero_point_precision != torch.int32:
        raise NoCounterpart(
            f"it rounds scales to {config.scale_precision} and zero points to "
            f"{config.zero_point_precision}; ours are float32 and int32"
        )
    granularity = type(config.granularity).__name__
    kind = {"PerToken": "token", "PerAxis": "channel", "PerGroup": "group"}.get(granularity)
    if kind is None:
        raise NoCounterpart(f"granularity {config.granularity}")
    if kind == "token" and config.is_symmetric:
        raise NoCounterpart("torchao refuses symmetric ranges per token")
    if kind != "token" and not config.is_symmetric:
        raise NoCounterpart(
            "its zero points per group are those of tinygemm, numbers in the middle of the range, "
            "cut to integers"
        )
    name = str(config.dtype).rpartition(".")[2].lower()
    width = int(name.removeprefix("u").removeprefix("int"))
    if width < 2:
        raise NoCounterpart("one bit")
    if kind != "token" and name.startswith("u"):
        raise NoCounterpart("symmetric ranges of unsigned codes use signed bounds for the scale")
    low = 0 if name.startswith("u") else -(2 ** (width - 1))
    new = IntxFakeQuantize(config, kind, low, low + 2**width - 1)
    new.enabled = old.enabled
    new.scale, new.zero_point = old.scale, old.zero_point
    return new


# ---- qtorch ----


class _Number:
    """A fixed-point number with clamping: codes low … high times 2^-F."""

    def __init__(self, word: int, fraction: int, symmetric: bool, stochastic: bool) -> None:
        high = 2 ** (word - 1) - 1
        self.word, self.step, self.stochastic = word, 2.0**-fraction, stochastic
        self.low, self.high = -high if symmetric else -high - 1, high
        self.text = f"fixed{word}.{fraction}" + ", symmetric" * symmetric
        self.text += ", stochastic" if stochastic else ", nearest"

    def __call__(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        y: Tensor = fake_quantize(
            x,
            self.step,
            format=f"int{self.word}",
            quant_min=self.low,
            quant_max=self.high,
            gradient="identity",
            rounding="stochastic" if self.stochastic else "nearest_even",
            random_bits=23,
            seed=seed,
        )
        return y


class _RoundGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, number: _Number, seed: Tensor | None) -> Tensor:
        ctx.number = number
        ctx.save_for_backward(seed)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return ctx.number(g, *ctx.saved_tensors), None, None


class FixedPointQuantizer(nn.Module):
    """In the place of qtorch's ``Quantizer`` of fixed-point numbers."""

    def __init__(self, forward_number: _Number | None, backward_number: _Number | None) -> None:
        super().__init__()
        self.forward_number = forward_number
        self.backward_number = backward_number

    def forward(self, x: Tensor) -> Tensor:
        if self.forward_number is not None:
            x = self.forward_number(x)
        number = self.backward_number
        if number is not None and torch.is_grad_enabled() and x.requires_grad:
            seed = make_seed(x.device) if number.stochastic else None
            x = function_apply(_RoundGradient, x, number, seed)
        return x

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}=({number.text})"
            for name, number in (
                ("forward", self.forward_number),
                ("backward", self.backward_number),
            )
            if number is not None
        )


def _free_variables(function: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # never assigned
            continue
    return found


def _number(number: Any, quantize: Any) -> _Number | None:
    if number is None:
        return None
    kind = type(number).__name__
    if kind == "FloatingPoint":
        raise NoCounterpart(
            "its floating point rounds ties away from zero, and infinity and NaN to numbers"
        )
    if kind == "BlockFloatingPoint":
        raise NoCounterpart(
            "its block floating point rounds ties up, and shares an exponent along whole axes"
        )
    if kind != "FixedPoint":
        raise NoCounterpart(f"a number of class {kind}")
    if not number.clamp:
        raise NoCounterpart("fixed point without clamping")
    if not 2 <= number.wl <= 16 or abs(number.fl) > 100:
        raise NoCounterpart(f"{number.wl} bits; ours have 2 to 16")
    # The rounding is in nothing but the name of the function that is called.
    names = [n for n in quantize.__code__.co_names if n.startswith("fixed_point_quantize_")]
    how = names[0].removeprefix("fixed_point_quantize_") if len(names) == 1 else None
    if how not in ("nearest", "stochastic"):
        raise NoCounterpart(f"a quantizer that is not known: {quantize.__code__.co_names}")
    return _Number(number.wl, number.fl, number.symmetric, how == "stochastic")


@register_swap("qtorch.quant.quant_module.Quantizer")
def _qtorch(old: Any) -> nn.Module:
    # The numbers are free variables of a class that was made by qtorch.quant.quantizer.
    rounding = getattr(old.quantize, "__self__", None)
    if getattr(rounding, "__module__", None) != "qtorch.quant.quant_function":
        raise NoCounterpart("its `quantize` is not one that qtorch made")
    forward = _free_variables(rounding.forward)  # type: ignore[union-attr]
    backward = _free_variables(rounding.backward)  # type: ignore[union-attr]
    if "backward_hooks" in backward or "forward_number" not in forward:
        raise NoCounterpart("its `quantize` zeroes gradients where it clamps")
    return FixedPointQuantizer(
        _number(forward["forward_number"], forward.get("forward_quant")),
        _number(backward["backward_number"], backward.get("backward_quant")),
    )

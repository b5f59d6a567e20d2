"""Fake quantization as modules: ranges from the data, observed, or learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.nn.quantize.rounding import option_repr
from regkern.quantize.fake import Gradient, fake_quantize
from regkern.quantize.formats import Format, format_of
from regkern.quantize.granularity import GRANULARITIES, Granularity
from regkern.quantize.rounding import ROUNDINGS, Rounding, check_rounding

Range = Literal["dynamic", "learned", "observed"]

#: The smallest scale that is learned; the step of an optimizer may end below it, even below 0.
_LEAST = 1e-9


# ---- statistics of blocks ----


def _split(x: Tensor, dim: int, size: int) -> Tensor:
    """An axis as (blocks, elements), the last one filled up with NaN, which no statistic counts."""
    missing = -x.shape[dim] % size
    if missing:
        x = F.pad(x.movedim(dim, -1), (0, missing), value=math.nan).movedim(-1, dim)
    return x.reshape(*x.shape[:dim], x.shape[dim] // size, size, *x.shape[dim + 1 :])


def _blocks(
    x: Tensor, granularity: str, axis: int, block_size: int | Sequence[int] | None
) -> Tensor:
    """x as (*shape of scales, elements of a block), in the order of `blocks_of`."""
    if granularity == "tensor" or x.dim() == 0:
        return x.reshape(-1)
    if granularity == "channel":
        n = x.shape[axis]
        return x.movedim(axis, 0).reshape(n, x.numel() // max(n, 1))
    if granularity == "token":
        return x.unsqueeze(-2)
    if granularity == "group":
        assert isinstance(block_size, int)
        axis = axis % x.dim()
        return _split(x, axis, block_size).movedim(axis + 1, -1)
    assert isinstance(block_size, Sequence)
    rows, cols = block_size
    tiles = _split(_split(x, x.dim() - 1, cols), x.dim() - 2, rows)
    return tiles.movedim(-3, -2).flatten(-2)


def _mean(blocks: Tensor, values: Tensor) -> Tensor:
    """The mean of `values` where `blocks` is finite, per block; NaN of a block without any."""
    finite = blocks.isfinite()
    return torch.where(finite, values, torch.zeros_like(values)).sum(-1) / finite.sum(-1)


def _extremes(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum per block; NaN of a block that has one."""
    if blocks.dim() == 1:
        return torch.aminmax(blocks)
    # Along an axis two passes are faster than torch's one.
    return blocks.amin(-1), blocks.amax(-1)


def _range(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest finite number, per block, with 0 among them."""
    finite = torch.where(blocks.isfinite(), blocks, torch.zeros_like(blocks))
    low, high = _extremes(finite)
    return low.clamp(max=0.0), high.clamp(min=0.0)


def _usable(scale: Tensor) -> Tensor:
    return scale.isfinite() & (scale > 0)


def _straight(value: Tensor, forward: Tensor) -> Tensor:
    """`forward`, with the gradient of `value`."""
    return forward.detach() + (value - value.detach())


def _first_scale(
    blocks: Tensor, form: Format, symmetric: bool, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """What a learned scale starts from, and the least of the range.

    LSQ: s = 2 mean|x| / sqrt(q_max); asymmetric: s = (max - min) / (q_max - q_min).
    """
    least, most = _range(blocks)
    if symmetric:
        top = high if form.kind == "integer" else form.max
        return 2.0 * _mean(blocks, blocks.abs()) / math.sqrt(top), least
    return (most - least) / (high - low), least


# ---- modules ----


class FakeQuantize(nn.Module):
    r"""Rounds to a format with a scale per block and back, in training and in eval mode.

    .. math::
        q = \operatorname{clamp}(\operatorname{round}(x / s) + z,\ q_{min},\ q_{max}), \qquad
        y = (q - z)\, s

    `regkern.fake_quantize` as a module; gradients are those of that function.

    Parameters
    ----------
    format : str or torch.dtype
        Of an element, see `round_to`.
    granularity, axis, block_size, symmetric, quant_min, quant_max, gradient, gradient_format,
    random_bits, generator
        See `fake_quantize`.
    rounding : {"nearest_even", "nearest_away", "toward_zero", "floor", "stochastic", "noise"}
        In training.
    eval_rounding : str, optional
        In eval mode; None returns x as it is.
    range : {"dynamic", "learned", "observed"}
        Where s and z come from.

        ``"dynamic"``: from each input.

        ``"learned"``: the parameters `scale` and, unless symmetric, `zero_point` (LSQ, LSQ+). They
        exist from the start, so that an optimizer can hold them, and take their first values from
        the first input, in any mode: s = 2 mean|x| / sqrt(q_max), or from its range if not
        symmetric. What is NaN or infinite there does not count; a block without anything but zeros
        starts from 1. A scale that a step of the optimizer takes below 1e-9 counts as 1e-9 and
        keeps its gradient.

        ``"observed"``: from moving averages of the minimum and the maximum, `min_val` and
        `max_val`, by the formulas of ``torch.ao``'s ``MovingAverageMinMaxObserver`` and
        ``MovingAveragePerChannelMinMaxObserver``; per tensor or per channel. As there, every input
        is observed, in eval mode too, while `observer_enabled`. An input whose range is not finite
        changes nothing.
    shape : int or tuple of int
        Of learned scales, or of observed ranges: () per tensor, the number of channels, the numbers
        of blocks.
    gradient_factor : float or "lsq"
        Of learned scales.
    log_scale : bool
        `scale` is learned as ln s.
    averaging_constant : float
        Of observed ranges: the share of the newest.
    fit : (float, float), optional
        (c_1, c_2), of dynamic symmetric scales: s = (c_1 sqrt(E x^2) + c_2 E|x|) / q_max instead of
        the largest magnitude. A block of zeros has s = 1; what is NaN or infinite does not count.
    device, dtype
        Of parameters and buffers.

    Attributes
    ----------
    observer_enabled, fake_quant_enabled : bool
        Read on the host: nothing waits for a device.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    NaN stays NaN. Weights as in AQT, one symmetric scale per output channel, without the code that
    has no mirror: ``FakeQuantize("int4", granularity="channel", axis=0, quant_min=-7)``; with a
    scale from a fit to the distribution instead of the largest magnitude add ``fit=(c_1, c_2)``
    (SAWB; the coefficients depend on the bit width).

    References
    ----------
    Esser et al., "Learned step size quantization", 2020. Bhalgat et al., "LSQ+", 2020. Jacob et
    al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", 2018. Choi et al., "Accurate and efficient 2-bit quantized neural networks", 2019.
    """

    zero_point: nn.Parameter | None
    initialized: Tensor
    min_val: Tensor
    max_val: Tensor

    def __init__(
        self,
        format: str | torch.dtype | Format = "int8",
        *,
        granularity: Granularity = "tensor",
        axis: int | None = None,
        block_size: int | Sequence[int] | None = None,
        symmetric: bool = True,
        quant_min: int | None = None,
        quant_max: int | None = None,
        rounding: Rounding = "nearest_even",
        eval_rounding: Rounding | None = "nearest_even",
        range: Range = "dynamic",
        shape: int | Sequence[int] = (),
        gradient: Gradient = "clip",
        gradient_factor: float | Literal["lsq"] = "lsq",
        log_scale: bool = False,
        averaging_constant: float = 0.01,
        fit: tuple[float, float] | None = None,
        gradient_format: str | torch.dtype | Format | None = None,
        random_bits: int = 16,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "FakeQuantize"
        checks.one_of(op, "range", range, ("dynamic", "learned", "observed"))
        checks.one_of(op, "granularity", granularity, GRANULARITIES)
        checks.one_of(op, "rounding", rounding, (*ROUNDINGS, "noise"))
        if eval_rounding is not None:
            checks.one_of(op, "eval_rounding", eval_rounding, ROUNDINGS)
        check_rounding(op, "stochastic", random_bits)
        # The function checks the rest of its arguments, here on nothing.
        fake_quantize(
            torch.empty(0),
            format=format,
            quant_min=quant_min,
            quant_max=quant_max,
            symmetric=symmetric,
            rounding=rounding,
            gradient=gradient,
            gradient_format=gradient_format,
        )
        form = format_of(op, format)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if range == "learned" and granularity == "token":
            raise ValueError(f"regkern.{op}: expected no granularity 'token' with range 'learned'")
        if range == "observed" and granularity not in ("tensor", "channel"):
            raise ValueError(
                f"regkern.{op}: expected granularity 'tensor' or 'channel' with range 'observed', "
                f"got {granularity!r}"
            )
        wanted = {"tensor": 0, "channel": 1}.get(granularity, len(shape))
        if range != "dynamic" and len(shape) != wanted:
            raise ValueError(
                f"regkern.{op}: expected `shape` of {wanted} numbers with granularity "
                f"{granularity!r}, got {shape}"
            )
        if range == "dynamic" and shape:
            raise ValueError(f"regkern.{op}: expected no `shape` with range 'dynamic', got {shape}")
        if log_scale and range != "learned":
            raise ValueError(f"regkern.{op}: expected range 'learned' with `log_scale`")
        if fit is not None and not (range == "dynamic" and symmetric):
            raise ValueError(f"regkern.{op}: expected range 'dynamic' and symmetric with `fit`")
        if fit is not None and not all(math.isfinite(c) for c in fit):
            raise ValueError(f"regkern.{op}: expected `fit` of finite numbers, got {fit}")
        if not 0.0 < averaging_constant <= 1.0:
            raise ValueError(
                f"regkern.{op}: expected `averaging_constant` in (0, 1], got {averaging_constant}"
            )
        self.format = format
        self.granularity: Granularity = granularity
        self.axis = axis if axis is not None else -1 if granularity == "group" else 0
        self.block_size = block_size
        self.symmetric = symmetric
        self.quant_min = form.low if quant_min is None else quant_min
        self.quant_max = form.high if quant_max is None else quant_max
        self.rounding: Rounding = rounding
        self.eval_rounding: Rounding | None = eval_rounding
        self.range: Range = range
        self.shape = shape
        self.gradient: Gradient = gradient
        self.gradient_factor: float | Literal["lsq"] = gradient_factor
        self.log_scale = log_scale
        self.averaging_constant = averaging_constant
        self.fit = fit
        self.gradient_format = gradient_format
        self.random_bits = random_bits
        self.generator = generator
        self.observer_enabled = True
        self.fake_quant_enabled = True
        self._custom = quant_min is not None or quant_max is not None
        self._integer = form.kind == "integer"
        # Whether a first input is still to come. The buffer has the truth, and is on the device.
        self._first = True
        if range == "learned":
            start = torch.full(shape, 0.0 if log_scale else 1.0, device=device, dtype=dtype)
            self.scale = nn.Parameter(start)
            self.zero_point = None if symmetric else nn.Parameter(torch.zeros_like(start))
            self.register_buffer("initialized", torch.zeros(shape, dtype=torch.bool, device=device))
        elif range == "observed":
            for name, value in (("min_val", math.inf), ("max_val", -math.inf)):
                self.register_buffer(name, torch.full(shape, value, device=device, dtype=dtype))

    def enable_observer(self, enabled: bool = True) -> None:
        """Observes ranges, or keeps them as they are."""
        self.observer_enabled = enabled

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Quantizes, or returns x as it is."""
        self.fake_quant_enabled = enabled

    def _elements(self, x: Tensor) -> Tensor:
        blocks = _blocks(x.detach(), self.granularity, self.axis, self.block_size)
        if self.range != "dynamic" and blocks.shape[:-1] != self.shape:
            raise ValueError(
                f"regkern.FakeQuantize: expected `x` of blocks {tuple(self.shape)}, got "
                f"{tuple(blocks.shape[:-1])}, of x {tuple(x.shape)}"
            )
        return blocks

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Learned scales (and zero points) that have none yet take their first values from x."""
        if x.numel() == 0:
            return
        blocks = self._elements(x).to(compute_dtype(x))
        low, high = self.quant_min, self.quant_max
        s, least = _first_scale(
            blocks, format_of("FakeQuantize", self.format), self.symmetric, low, high
        )
        take = _usable(s) & ~self.initialized
        if self.zero_point is not None:
            z = (low - least / s).clamp(low, high).to(self.zero_point.dtype)
            self.zero_point.copy_(torch.where(take, z, self.zero_point))
        s = (s.log() if self.log_scale else s).to(self.scale.dtype)
        self.scale.copy_(torch.where(take, s, self.scale))
        self.initialized.copy_(self.initialized | take)
        self._first = False

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Moves the observed range toward that of x."""
        if x.numel() == 0:
            return
        low, high = _extremes(self._elements(x).to(self.min_val.dtype))
        finite = low.isfinite() & high.isfinite()
        for moving, new in ((self.min_val, low), (self.max_val, high)):
            moved = moving + self.averaging_constant * (new - moving)
            moved = torch.where(moving.isinf(), new, moved)
            moving.copy_(torch.where(finite, moved, moving))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the observed range, as ``torch.ao`` computes them."""
        low, high = self.quant_min, self.quant_max
        least, most = self.min_val.clamp(max=0.0), self.max_val.clamp(min=0.0)
        eps = torch.finfo(torch.float32).eps
        if not self._integer:
            form = format_of("FakeQuantize", self.format)
            s = (torch.maximum(-least, most) / form.max).clamp(min=eps)
            z = torch.zeros_like(s)
        elif self.symmetric:
            s = (torch.maximum(-least, most) / ((high - low) / 2)).clamp(min=eps)
            # The middle of unsigned codes: 128 of 0 … 255; the lower one of a chosen range.
            middle = (low + high) // 2 if self._custom else (low + high + 1) // 2
            z = torch.full_like(s, middle if low >= 0 else 0)
        else:
            s = ((most - least) / (high - low)).clamp(min=eps)
            z = (low - torch.round(least / s)).clamp(low, high)
        # Nothing observed yet.
        known = self.min_val <= self.max_val
        nothing = torch.full_like(z, min(max(0, low), high))
        return torch.where(known, s, torch.ones_like(s)), torch.where(known, z, nothing)

    def _scale(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.range == "learned":
            if self._first:
                self.initialize(x)
            s = self.scale.exp() if self.log_scale else self.scale
            s = _straight(s, s.clamp(min=_LEAST))
            if self.zero_point is None:
                return s, None
            z = self.zero_point.clamp(self.quant_min, self.quant_max)
            return s, _straight(self.zero_point, z)
        if self.range == "observed":
            s, z = self.calculate_qparams()
            return s, z if self._integer else None
        if self.fit is None or x.numel() == 0:
            return None, None
        with torch.no_grad():
            blocks = self._elements(x).to(compute_dtype(x))
            form = format_of("FakeQuantize", self.format)
            top = self.quant_max if self._integer else form.max
            spread = _mean(blocks, blocks * blocks).sqrt()
            s = (self.fit[0] * spread + self.fit[1] * _mean(blocks, blocks.abs())) / top
            return torch.where(_usable(s), s, torch.ones_like(s)), None

    def forward(self, x: Tensor) -> Tensor:
        if self.range == "observed" and self.observer_enabled:
            self.observe(x)
        rounding = self.rounding if self.training else self.eval_rounding
        if not self.fake_quant_enabled or rounding is None:
            return x
        scale, zero_point = self._scale(x)
        y: Tensor = fake_quantize(
            x,
            scale,
            zero_point,
            format=self.format,
            quant_min=self.quant_min if self._custom else None,
            quant_max=self.quant_max if self._custom else None,
            symmetric=self.symmetric,
            granularity=self.granularity,
            axis=self.axis,
            block_size=self.block_size,
            rounding=rounding,
            gradient=self.gradient,
            gradient_factor=self.gradient_factor if self.range == "learned" else 1.0,
            gradient_format=self.gradient_format,
            random_bits=self.random_bits,
            generator=self.generator if rounding in ("stochastic", "noise") else None,
        )
        return y

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        # What was loaded may be from before the first input.
        self._first = True

    def extra_repr(self) -> str:
        defaults: dict[str, object] = {
            "granularity": "tensor",
            "axis": -1 if self.granularity == "group" else 0,
            "block_size": None,
            "symmetric": True,
            "rounding": "nearest_even",
            "eval_rounding": "nearest_even",
            "range": "dynamic",
            "shape": (),
            "gradient": "clip",
            "gradient_factor": "lsq",
            "log_scale": False,
            "averaging_constant": 0.01,
            "fit": None,
            "gradient_format": None,
            "random_bits": 16,
        }
        codes = f", codes={self.quant_min}…{self.quant_max}" if self._custom else ""
        return f"{self.format!r}{codes}{option_repr(self, defaults)}"


class ElasticFakeQuantize(nn.Module):
    r"""One quantizer for many settings, with scale and offset learned for each of them (EQ-Net).

    .. math::
        q = \operatorname{clip}(\operatorname{round}((x - \beta) / s),\ Q_n,\ Q_p), \qquad
        y = s\, q + \beta

    Bit width, granularity and symmetry can be changed from call to call, to train a network that
    works at all of them. Symmetric: Q_n = -2^(b-1), Q_p = 2^(b-1) - 1, β = 0; asymmetric: Q_n = 0,
    Q_p = 2^b - 1. The gradients are those of LSQ+, dβ = c dy where clipped, with the factor
    c = 1 / sqrt(Q_p · elements) per tensor, and 2 / sqrt(Q_p · elements / C_in) per channel. As in
    `fake_quantize`, clipped is what rounds to a code outside: half a step beyond Q_n and Q_p, where
    the paper has these themselves.

    Parameters
    ----------
    bits : sequence of int
        Of 2 to 16.
    granularities : sequence of {"tensor", "channel"}
    symmetries : sequence of bool
    channels : int, optional
        Needed with granularity "channel".
    axis : int
        Of the channels; the other one of the first two axes has C_in.
    device, dtype
        Of the parameters.

    Attributes
    ----------
    scale, offset : nn.ParameterDict
        Under ``"<granularity>_<symmetric|asymmetric>_<bits>"``. They take their first values from
        the first input under their setting: s = 2 mean|x| / sqrt(Q_p), or β = min and
        s = (max - min) / Q_p.

    References
    ----------
    Xu et al., "EQ-Net: Elastic quantization neural networks", 2023.
    """

    initialized: Tensor

    def __init__(
        self,
        bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
        *,
        granularities: Sequence[Literal["tensor", "channel"]] = ("tensor",),
        symmetries: Sequence[bool] = (True, False),
        channels: int | None = None,
        axis: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        op = "ElasticFakeQuantize"
        if not bits or any(isinstance(b, bool) or not 2 <= b <= 16 for b in bits):
            raise ValueError(f"regkern.{op}: expected `bits` from 2 to 16, got {bits!r}")
        for granularity in granularities:
            checks.one_of(op, "granularities", granularity, ("tensor", "channel"))
        if not granularities or not symmetries:
            raise ValueError(f"regkern.{op}: expected `granularities` and `symmetries`, got none")
        if "channel" in granularities and channels is None:
            raise ValueError(f"regkern.{op}: expected `channels` with granularity 'channel'")
        if axis not in (0, 1):
            raise ValueError(f"regkern.{op}: expected `axis` 0 or 1, got {axis!r}")
        self.all_bits = tuple(bits)
        self.granularities = tuple(granularities)
        self.symmetries = tuple(symmetries)
        self.axis = axis
        self.scale = nn.ParameterDict()
        self.offset = nn.ParameterDict()
        self._names: list[str] = []
        for granularity in granularities:
            shape = () if granularity == "tensor" else (channels or 0,)
            for symmetric in symmetries:
                for b in bits:
                    name = self._name(granularity, symmetric, b)
                    self._names.append(name)
                    one = torch.ones(shape, device=device, dtype=dtype)
                    self.scale[name] = nn.Parameter(one)
                    if not symmetric:
                        self.offset[name] = nn.Parameter(torch.zeros_like(one))
        known = torch.zeros(len(self._names), dtype=torch.bool, device=device)
        self.register_buffer("initialized", known)
        self._first = dict.fromkeys(self._names, True)
        self.bits = max(bits)
        self.granularity = granularities[0]
        self.symmetric = symmetries[0]

    @staticmethod
    def _name(granularity: str, symmetric: bool, bits: int) -> str:
        return f"{granularity}_{'symmetric' if symmetric else 'asymmetric'}_{bits}"

    def set_bits(
        self,
        bits: int,
        *,
        granularity: Literal["tensor", "channel"] | None = None,
        symmetric: bool | None = None,
    ) -> None:
        """Bit width, and perhaps granularity and symmetry, from the next call on."""
        granularity = self.granularity if granularity is None else granularity
        symmetric = self.symmetric if symmetric is None else symmetric
        if self._name(granularity, symmetric, bits) not in self.scale:
            raise ValueError(
                f"regkern.ElasticFakeQuantize: expected a setting of {self.extra_repr()}; got bits "
                f"{bits}, granularity {granularity!r}, symmetric={symmetric}"
            )
        self.bits, self.granularity, self.symmetric = bits, granularity, symmetric

    def _levels(self) -> tuple[int, int]:
        if self.symmetric:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    @torch.no_grad()
    def _initialize(self, x: Tensor, name: str) -> None:
        if x.numel() == 0:
            return
        blocks = _blocks(x.detach(), self.granularity, self.axis, None).to(compute_dtype(x))
        low, high = self._levels()
        form = format_of("ElasticFakeQuantize", f"int{self.bits}")
        if self.symmetric:
            s, _ = _first_scale(blocks, form, True, low, high)
        else:
            # The offset is the minimum itself, be it positive.
            finite = blocks.isfinite()
            least = torch.where(finite, blocks, torch.full_like(blocks, math.inf)).amin(-1)
            most = torch.where(finite, blocks, torch.full_like(blocks, -math.inf)).amax(-1)
            s = (most - least) / high
        i = self._names.index(name)
        take = _usable(s) & ~self.initialized[i]
        parameter = self.scale[name]
        parameter.copy_(torch.where(take, s.to(parameter.dtype), parameter))
        if not self.symmetric:
            offset = self.offset[name]
            offset.copy_(torch.where(take, least.to(offset.dtype), offset))
        self.initialized[i] = True
        self._first[name] = False

    def forward(self, x: Tensor) -> Tensor:
        name = self._name(self.granularity, self.symmetric, self.bits)
        if self._first[name]:
            self._initialize(x, name)
        _, high = self._levels()
        count = float(max(x.numel(), 1))
        if self.granularity == "channel":
            c = 2.0 / math.sqrt(high * count / max(x.shape[1 - self.axis], 1))
        else:
            c = 1.0 / math.sqrt(high * count)
        s = self.scale[name]
        s = _straight(s, s.clamp(min=_LEAST))
        beta: Tensor | None = None
        if not self.symmetric:
            beta = self.offset[name]
            beta = (beta.detach() + (beta - beta.detach()) * c).to(x.dtype)
            if self.granularity == "channel":
                shape = [1] * x.dim()
                shape[self.axis] = -1
                beta = beta.reshape(shape)
            x = x - beta
        y: Tensor = fake_quantize(
            x,
            s,
            format=f"int{self.bits}" if self.symmetric else f"uint{self.bits}",
            granularity=self.granularity,
            axis=self.axis,
            gradient_factor=c,
        )
        return y if beta is None else y + beta

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._first = dict.fromkeys(self._names, True)

    def extra_repr(self) -> str:
        return (
            f"bits={self.all_bits}, granularities={self.granularities}, "
            f"symmetries={self.symmetries}, axis={self.axis}"
        )

"""Noise of analog hardware on weights, and uniform noise as a stand-in for rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, register
from regkern.random import resolve_seed

Kind = Literal[
    "none",
    "add_normal",
    "mult_normal",
    "discretize",
    "discretize_add_normal",
    "dorefa",
    "poly",
    "prog_noise",
    "device_variability",
]
KINDS = (
    "none",
    "add_normal",
    "mult_normal",
    "discretize",
    "discretize_add_normal",
    "dorefa",
    "poly",
    "prog_noise",
    "device_variability",
)
Scale = Literal["absmax", "channel"] | float | Tensor

#: Programming noise of phase-change memory (Joshi et al., 2020), as a share of 25 µS.
PCM_COEFFICIENTS = (0.26348 / 25, 1.9650 / 25, -1.1731 / 25)

_LINEAR = ("none", "mult_normal")


# ---- raw ops: fake kernels and autograd ----


def _fake_weight_noise(
    w: Tensor,
    seed: Tensor | None,
    scale: Tensor | None,
    kind: str,
    std_dev: float,
    rows: int,
    row_size: int,
    copies: int = 0,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    return dense_like(w) if copies == 0 else w.new_empty((copies, *w.shape))


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


_noise = register("weight_noise", _fake_weight_noise)
_noise_ = register("weight_noise_", lambda w, *args, **kwargs: None)
_absmax = register(
    "weight_absmax",
    lambda w, rows, row_size, per_row=False, exempt_last_column=False: w.new_empty(
        (rows if per_row else 1,), dtype=_compute_dtype(w)
    ),
)
_uniform = register("uniform_noise", lambda x, *args, **kwargs: dense_like(x))
_uniform_ = register("uniform_noise_", lambda x, *args, **kwargs: None)
_uniform_sum = register(
    "uniform_noise_sum",
    lambda g, seed, channels, inner: g.new_empty((channels,), dtype=_compute_dtype(g)),
)

# Of the raw op, in the schema's order after row_size and copies.
_Options = tuple[float, bool, float, float, float, bool, float, bool, bool]
_DEFAULTS: list[Any] = [0, 0.0, False, 0.0, 0.0, 0.0, False, 0.0, False, False, False]


def _setup_noise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, _, kind, std_dev, rows, row_size, *rest = inputs
    copies, *options, straight_through = [*rest, *_DEFAULTS[len(rest) :]]
    _save_noise(ctx, seed, kind, std_dev, rows, row_size, copies, options, straight_through)


def _save_noise(
    ctx: Any,
    seed: Tensor | None,
    kind: str,
    std_dev: float,
    rows: int,
    row_size: int,
    copies: int,
    options: Sequence[Any],
    straight_through: bool,
) -> None:
    ctx.kind = kind if kind == "mult_normal" and not straight_through else "none"
    ctx.std_dev = std_dev if ctx.kind == "mult_normal" else 0.0
    ctx.rows, ctx.row_size, ctx.copies = rows, row_size, copies
    *_, ctx.truncate, ctx.drop, ctx.rescale, ctx.exempt = options
    ctx.save_for_backward(seed)


def _noise_gradient(ctx: Any, g: Tensor) -> Tensor:
    """g ⊙ (1 + σ n) ⊙ M drawn again, of the kinds that are linear in w; g ⊙ M of the others."""
    if ctx.kind == "mult_normal" or ctx.drop != 0.0:
        (seed,) = ctx.saved_tensors
        rows = ctx.rows * ctx.copies if ctx.copies else ctx.rows
        g = _noise(
            g, seed, None, ctx.kind, ctx.std_dev, rows, ctx.row_size, 0,
            0.0, False, 0.0, 0.0, 0.0, ctx.truncate, ctx.drop, ctx.rescale, ctx.exempt,
        )  # fmt: skip
    return g.sum(0) if ctx.copies else g


def _backward_noise(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    return _noise_gradient(ctx, g), *([None] * 17)


_noise.differentiable(_setup_noise, _backward_noise)


def _setup_uniform(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, seed, ctx.channels, ctx.inner = inputs
    ctx.save_for_backward(seed)


def _uniform_gradients(
    ctx: Any, g: Tensor, needs_x: bool, needs_step: bool
) -> tuple[Tensor | None, Tensor | None]:
    (seed,) = ctx.saved_tensors
    step = _uniform_sum(g, seed, ctx.channels, ctx.inner) if needs_step else None
    return g if needs_x else None, step


def _backward_uniform(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    return *_uniform_gradients(ctx, g, needs[0], needs[1]), None, None, None


_uniform.differentiable(_setup_uniform, _backward_uniform)


def _setup_uniform_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, seed, ctx.channels, ctx.inner = inputs
    ctx.shape, ctx.dtype = g.shape, g.dtype
    ctx.save_for_backward(seed)


def _backward_uniform_sum(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    # Σ g (U − ½) is linear: its transpose is Δ (U − ½) on zeros.
    (seed,) = ctx.saved_tensors
    zeros = g.new_zeros(ctx.shape, dtype=ctx.dtype)
    return _uniform(zeros, g, seed, ctx.channels, ctx.inner), None, None, None


_uniform_sum.differentiable(_setup_uniform_sum, _backward_uniform_sum)


class _NoiseInPlace(torch.autograd.Function):
    """The in-place call for autograd, which cannot see through a mutable custom op."""

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, seed: Tensor | None, scale: Tensor | None, fixed: tuple[Any, ...],
        options: tuple[Any, ...], straight_through: bool,
    ) -> Tensor:  # fmt: skip
        _noise_.raw(w, seed, scale, *fixed, *options)
        ctx.mark_dirty(w)
        kind, std_dev, rows, row_size = fixed
        _save_noise(ctx, seed, kind, std_dev, rows, row_size, 0, options, straight_through)
        return w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _noise_gradient(ctx, g), *([None] * 5)


class _UniformInPlace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, seed: Tensor, channels: int, inner: int
    ) -> Tensor:
        _uniform_.raw(x, step, seed, channels, inner)
        ctx.mark_dirty(x)
        _setup_uniform(ctx, (x, step, seed, channels, inner), x)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _backward_uniform(ctx, g)


# ---- public functions: weight noise ----


def check_options(
    op: str,
    kind: str,
    std_dev: float,
    resolution: float,
    coefficients: Sequence[float],
    drop_connect: float,
    gradient: str,
) -> float:
    """Checks what does not depend on the weight, and returns the resolution as a fraction."""
    checks.one_of(op, "kind", kind, KINDS)
    checks.number(op, "std_dev", std_dev)
    checks.at_least(op, "std_dev", std_dev, 0.0)
    if std_dev == math.inf:
        raise ValueError(f"regkern.{op}: expected `std_dev` to be finite, got {std_dev}")
    checks.number(op, "resolution", resolution)
    if kind in ("discretize", "discretize_add_normal", "dorefa") and not resolution > 0.0:
        raise ValueError(
            f"regkern.{op}: expected `resolution` above 0 with kind {kind!r}, got {resolution}"
        )
    if len(coefficients) != 3:
        raise ValueError(
            f"regkern.{op}: expected 3 `coefficients`, got {len(coefficients)} of them"
        )
    checks.probability(op, "drop_connect", drop_connect)
    checks.one_of(op, "gradient", gradient, ("exact", "identity"))
    return resolution if resolution < 1.0 else 1.0 / resolution


def _scales(
    op: str, w: Tensor, scale: Scale, rows: int, row_size: int, exempt_last_column: bool
) -> Tensor:
    """s, of one element or one for each row."""
    if isinstance(scale, str):
        checks.one_of(op, "scale", scale, ("absmax", "channel"))
        measured: Tensor = _absmax(
            w.detach(), rows, row_size, scale == "channel", exempt_last_column
        )
        return measured
    dtype = _compute_dtype(w)
    if isinstance(scale, Tensor):
        if scale.numel() != 1 and scale.numel() != rows:
            raise ValueError(
                f"regkern.{op}: expected `scale` of 1 or {rows} elements, got {tuple(scale.shape)}"
            )
        return scale.detach().reshape(-1).to(w.device, dtype)
    checks.number(op, "scale", scale)
    if not scale >= 0.0:
        raise ValueError(f"regkern.{op}: expected `scale` to be at least 0, got {scale}")
    return torch.full((1,), scale, dtype=dtype, device=w.device)


def _weight_noise(
    op: str,
    w: Tensor,
    kind: str,
    std_dev: float,
    inplace: bool,
    *,
    scale: Scale,
    resolution: float,
    stochastic: bool,
    coefficients: Sequence[float],
    truncate: bool,
    drop_connect: float,
    rescale: bool,
    exempt_last_column: bool,
    per_sample: int | None,
    gradient: str,
    seed: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    checks.floating(op, "w", w)
    resolution = check_options(op, kind, std_dev, resolution, coefficients, drop_connect, gradient)
    if per_sample is not None:
        if isinstance(per_sample, bool) or not isinstance(per_sample, int | torch.SymInt):
            raise TypeError(f"regkern.{op}: expected `per_sample` to be an int, got {per_sample!r}")
        checks.at_least(op, "per_sample", per_sample, 1)
    if kind == "device_variability" and seed is None:
        raise ValueError(
            f"regkern.{op}: expected `seed` with kind 'device_variability', whose devices do not "
            "change from call to call, got none"
        )
    rows = w.shape[0] if w.dim() > 1 else 1
    row_size = math.prod(w.shape[1:] if w.dim() > 1 else w.shape)
    needs_scale = kind not in ("none", "mult_normal", "device_variability")
    scales = _scales(op, w, scale, rows, row_size, exempt_last_column) if needs_scale else None
    if kind == "discretize":
        std_dev = 0.0
    levels = kind in ("discretize", "discretize_add_normal", "dorefa")
    random = (std_dev != 0.0 and kind != "none") or drop_connect != 0.0 or (levels and stochastic)
    if random or seed is not None or generator is not None:
        seed = resolve_seed(op, w, seed, generator)
    raw = {"discretize_add_normal": "discretize", "device_variability": "mult_normal"}
    truncate = truncate and kind == "device_variability"
    fixed = (raw.get(kind, kind), std_dev, rows, row_size)
    options: _Options = (
        resolution, stochastic, *coefficients, truncate, drop_connect, rescale, exempt_last_column
    )  # type: ignore[assignment]  # fmt: skip
    straight = gradient == "identity"
    if not inplace or torch.compiler.is_compiling():
        copies = 0 if per_sample is None else per_sample
        y: Tensor = _noise(w, seed, scales, *fixed, copies, *options, straight)
        return w.copy_(y) if inplace else y
    if torch.is_grad_enabled() and w.requires_grad:
        function_apply(_NoiseInPlace, w, seed, scales, fixed, options, straight)
        return w
    _noise_.raw(w, seed, scales, *fixed, *options)
    return w


def weight_noise(
    w: Tensor,
    kind: Kind,
    std_dev: float = 0.0,
    *,
    scale: Scale = "absmax",
    resolution: float = 0.0,
    stochastic: bool = False,
    coefficients: Sequence[float] = PCM_COEFFICIENTS,
    truncate: bool = False,
    drop_connect: float = 0.0,
    rescale: bool = False,
    exempt_last_column: bool = False,
    per_sample: int | None = None,
    gradient: Literal["exact", "identity"] = "exact",
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Noise of analog or low-precision hardware on a weight, for one forward.

    With :math:`n \sim N(0, 1)`, :math:`s = \max |w|` and :math:`u = |w| / s`:

    .. math::
        \text{none: } & y = w \\
        \text{add\_normal: } & y = w + \sigma s n \\
        \text{mult\_normal: } & y = w (1 + \sigma n) \\
        \text{device\_variability: } & y = w (1 + \sigma n), \text{ the same } n
        \text{ at every call} \\
        \text{discretize: } & y = \Delta\,\mathrm{round}(w / \Delta), \quad \Delta = 2 r s \\
        \text{discretize\_add\_normal: } & y = \Delta\,\mathrm{round}(w / \Delta) + \sigma s n \\
        \text{dorefa: } & y = s \left(2 r\,\mathrm{round}\left(\frac{1}{r} \left(
            \frac{\tanh w}{2 \tanh s} + \frac12\right)\right) - 1\right) + \sigma s n \\
        \text{poly: } & y = w + \sigma s (c_0 + c_1 u + c_2 u^2) n \\
        \text{prog\_noise: } & y = \mathrm{sign}(w)\,|w + \sigma s (c_0 + c_1 u + c_2 u^2) n|

    and then :math:`y \odot M`, :math:`M \sim \mathrm{Bernoulli}(1 - p)` with p = ``drop_connect``.

    Parameters
    ----------
    w : Tensor
        (out, in, …); float32, float64, bfloat16 or float16, any strides; channels last is kept. w
        itself is not changed.
    kind : str
        One of the above. "device_variability" needs a seed: the devices are what it stands for.
    std_dev : float
        σ, relative to s (to w with "mult_normal" and "device_variability"). With "poly" and
        "prog_noise" a factor on the polynomial, 1 for the hardware that the coefficients describe.
    scale : {"absmax", "channel"}, float or Tensor
        s: the largest absolute value of w or of each output, a number that is assumed instead, or
        tensor of 1 or ``out`` elements. A constant for the gradient.
    resolution : float
        r: the step as a share of the range 2 s; from 1 on it is the number of steps. k bits of
        DoReFa are ``2**k - 1`` steps. Values beyond an assumed s stay beyond it, but for "dorefa".
    stochastic : bool
        Rounds up with the probability of the fraction (16 random bits), instead of to the nearest,
        ties away from zero.
    coefficients : (float, float, float)
        c₀, c₁, c₂. Default: programming noise of phase-change memory, as a share of the range.
    truncate : bool
        With "device_variability": a device does not cross zero, 1 + σ n is at least 0.
    drop_connect : float
        p, the probability that a weight is multiplied by zero.
    rescale : bool
        Multiplies the weights that are kept by 1 / (1 − p).
    exempt_last_column : bool
        The last element of every output, a bias in the weight, is left alone and not part of s.
    per_sample : int, optional
        So many results with noise of their own, stacked in front.
    gradient : {"exact", "identity"}
        With "mult_normal" and "device_variability": the derivative, drawn again in the backward,
        or the identity. All other kinds are straight-through. M masks the gradient in any case.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional

    Returns
    -------
    Tensor
        Like w, or (per_sample, \*w.shape).

    Raises
    ------
    TypeError
        If w is not floating point, or an argument has the wrong type.
    ValueError
        If a value, shape or device does not fit.

    Notes
    -----
    Bytes moved: w read and y written, and w read once more where s is measured. Where s = 0
    nothing changes. Nothing is saved for the backward but the seed. Differentiable any number of
    times.

    References
    ----------
    Joshi et al., "Accurate deep neural network inference using computational phase-change memory",
    Nature Communications 2020. Rasch et al., "Hardware-aware training for large-scale and diverse
    deep learning inference workloads using in-memory computing-based accelerators", Nature
    Communications 2023. Zhou et al., "DoReFa-Net", 2016. Wan et al., "Regularization of neural
    networks using DropConnect", ICML 2013.
    """
    return _weight_noise(
        "weight_noise", w, kind, std_dev, False, scale=scale, resolution=resolution,
        stochastic=stochastic, coefficients=coefficients, truncate=truncate,
        drop_connect=drop_connect, rescale=rescale, exempt_last_column=exempt_last_column,
        per_sample=per_sample, gradient=gradient, seed=seed, generator=generator,
    )  # fmt: skip


def weight_noise_(
    w: Tensor,
    kind: Kind,
    std_dev: float = 0.0,
    *,
    scale: Scale = "absmax",
    resolution: float = 0.0,
    stochastic: bool = False,
    coefficients: Sequence[float] = PCM_COEFFICIENTS,
    truncate: bool = False,
    drop_connect: float = 0.0,
    rescale: bool = False,
    exempt_last_column: bool = False,
    gradient: Literal["exact", "identity"] = "exact",
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """In-place `weight_noise`: the same arguments and result, written over w.

    Differentiable in the graph of w, which must not be a leaf that requires gradients.

    Returns
    -------
    Tensor
        w.
    """
    return _weight_noise(
        "weight_noise_", w, kind, std_dev, True, scale=scale, resolution=resolution,
        stochastic=stochastic, coefficients=coefficients, truncate=truncate,
        drop_connect=drop_connect, rescale=rescale, exempt_last_column=exempt_last_column,
        per_sample=None, gradient=gradient, seed=seed, generator=generator,
    )  # fmt: skip


def drop_connect(
    w: Tensor,
    p: float,
    *,
    rescale: bool = False,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""DropConnect: y = w ⊙ M, M ~ Bernoulli(1 − p); with ``rescale`` times 1 / (1 − p).

    A NaN or an infinity under a dropped place gives NaN, as in dropout. Arguments as of
    `weight_noise`, of which this is the kind "none". Bytes moved: w read, y written.

    References
    ----------
    Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks using DropConnect",
    ICML 2013.
    """
    checks.probability("drop_connect", "p", p)
    return _weight_noise(
        "drop_connect", w, "none", 0.0, False, scale=1.0, resolution=0.0, stochastic=False,
        coefficients=PCM_COEFFICIENTS, truncate=False, drop_connect=p, rescale=rescale,
        exempt_last_column=False, per_sample=None, gradient="exact", seed=seed,
        generator=generator,
    )  # fmt: skip


# ---- public functions: uniform noise ----


def _additive_uniform_noise(
    op: str,
    x: Tensor,
    step: float | Tensor,
    axis: int,
    inplace: bool,
    seed: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    checks.floating(op, "x", x)
    channels, inner = 1, x.numel()
    if not isinstance(step, Tensor):
        checks.number(op, "step", step)
        steps = torch.full((1,), step, dtype=_compute_dtype(x), device=x.device)
    else:
        checks.floating(op, "step", step)
        checks.on_device(op, "step", step, x)
        if step.numel() != 1:
            if not -x.dim() <= axis < x.dim():
                raise ValueError(
                    f"regkern.{op}: expected `axis` of a tensor of rank {x.dim()}, got {axis}"
                )
            axis %= x.dim()
            channels, inner = x.shape[axis], math.prod(x.shape[axis + 1 :])
            if step.dim() != 1 or step.shape[0] != channels:
                raise ValueError(
                    f"regkern.{op}: expected `step` of 1 element or shape ({channels},), got "
                    f"{tuple(step.shape)}"
                )
        steps = step.reshape(-1).to(_compute_dtype(x))
    seed = resolve_seed(op, x, seed, generator)
    if channels == 0:
        return x if inplace else x.clone()
    if not inplace or torch.compiler.is_compiling():
        y: Tensor = _uniform(x, steps, seed, channels, inner)
        return x.copy_(y) if inplace else y
    if torch.is_grad_enabled() and (x.requires_grad or steps.requires_grad):
        function_apply(_UniformInPlace, x, steps, seed, channels, inner)
        return x
    _uniform_.raw(x, steps, seed, channels, inner)
    return x


def additive_uniform_noise(
    x: Tensor,
    step: float | Tensor,
    *,
    axis: int = 0,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Uniform noise of the width of a quantization step, the differentiable stand-in for rounding.

    .. math:: y = x + \Delta (U - \tfrac12), \qquad U \sim U(0, 1), \qquad
        \frac{\partial y}{\partial x} = 1, \quad \frac{\partial y}{\partial \Delta} = U - \tfrac12

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any shape and strides; channels last is kept.
    step : float or Tensor
        Δ: a number, a tensor of one element, or of ``x.shape[axis]`` elements.
    axis : int
        Of the channels, where there are several steps.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional

    Returns
    -------
    Tensor
        Like x. Differentiable any number of times in x and step.

    Notes
    -----
    U takes the middles of 2²⁴ equal intervals, so U − ½ is exact in float32 and symmetric about 0.
    Bytes moved: x read, y written. The gradient of step draws U again, and sums in double in an
    order that depends on the shape alone.

    References
    ----------
    Défossez, Adi and Synnaeve, "Differentiable model compression via pseudo quantization noise",
    TMLR 2022. Ballé, Laparra and Simoncelli, "End-to-end optimized image compression", ICLR 2017.
    """
    return _additive_uniform_noise("additive_uniform_noise", x, step, axis, False, seed, generator)


def additive_uniform_noise_(
    x: Tensor,
    step: float | Tensor,
    *,
    axis: int = 0,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """In-place `additive_uniform_noise`: the same arguments and result, written over x.

    Returns
    -------
    Tensor
        x.
    """
    return _additive_uniform_noise("additive_uniform_noise_", x, step, axis, True, seed, generator)

"""Weights whose bits are trained, and the sign with its surrogates."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, register
from regkern.quantize.levels import needs

MOST_BITS = 24

Surrogate = Literal["identity", "hardtanh", "tanh"]


# ---- raw ops: fake kernels and autograd ----


def _packed(bits: int) -> torch.dtype:
    return torch.int8 if bits < 8 else torch.int16 if bits < 16 else torch.int32


def _row_major(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_weights_backward(
    g: Tensor, bits: Tensor, sign: Tensor | None, scale: Tensor, trainable: int = -1
) -> tuple[Tensor, Tensor, Tensor]:
    dsign = bits.new_empty((0,)) if sign is None else _row_major(sign)
    return _row_major(bits), dsign, scale.new_empty(scale.shape)


_weights = register(
    "bitwise_weights", lambda bits, sign, scale, trainable=-1: bits.new_empty(bits.shape[1:])
)
_weights_backward = register("bitwise_weights_backward", _fake_weights_backward)
_pack = register(
    "pack_bits",
    lambda bits, sign=None: bits.new_empty(bits.shape[1:], dtype=_packed(bits.shape[0])),
)
_unpack = register(
    "unpack_bits",
    lambda codes, bits, latent, dtype: (
        codes.new_empty((bits, *codes.shape), dtype=dtype),
        codes.new_empty(codes.shape, dtype=dtype),
    ),
)
_sign = register("sign_ste", lambda x, surrogate="identity", beta=1.0: dense_like(x))
_sign_backward = register("sign_ste_backward", lambda g, x, surrogate, beta=1.0: dense_like(x))


def _setup_weights(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    bits, sign, scale, ctx.trainable = inputs
    ctx.save_for_backward(bits, sign, scale)


def _backward_weights(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    bits, sign, scale = ctx.saved_tensors
    dbits, dsign, dscale = _weights_backward(g, bits, sign, scale, ctx.trainable)
    return dbits, None if sign is None else dsign, dscale if needs(ctx, 2) else None, None


def _setup_weights_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, bits, sign, scale, ctx.trainable = inputs
    ctx.save_for_backward(g, bits, sign, scale)


def _backward_weights_backward(ctx: Any, u: Tensor, v: Tensor, t: Tensor) -> tuple[Any, ...]:
    # w = c s m is linear in each of c, s = sgn(x_s) and m = Σ 2^i b_i, and straight-through takes s
    # for x_s and b_i for x_i:
    #   dx_i = g c s 2^i [i is trained],   dx_s = g c m,   dc = Σ g s m.
    g, bits, sign, scale = ctx.saved_tensors
    b = bits.shape[0]
    weight = torch.tensor(
        [float(2**i) for i in range(b)], dtype=bits.dtype, device=bits.device
    ).reshape(b, *([1] * (bits.dim() - 1)))
    trained = torch.tensor(
        [float(ctx.trainable >> i & 1) for i in range(b)], dtype=bits.dtype, device=bits.device
    ).reshape(weight.shape)
    m = (torch.where(bits > 0, 1.0, torch.where(bits <= 0, 0.0, bits)) * weight).sum(0)
    s = torch.ones_like(m)
    if sign is not None:
        s = torch.where(sign >= 0, 1.0, torch.where(sign < 0, -1.0, sign)).to(m.dtype)
    c = scale.to(bits.dtype).reshape(())
    along = (u * weight * trained).sum(0)  # Σ_i 2^i u_i
    v = torch.zeros_like(m) if sign is None else v
    t = t.to(bits.dtype).reshape(())
    dg = c * s * along + c * m * v + s * m * t
    ds = g * c * along + g * m * t
    dm = g * c * v + g * s * t
    dc = (g * (s * along + m * v)).sum().to(scale.dtype).reshape(scale.shape)
    return dg, dm * weight * trained, None if sign is None else ds, dc, None


def _setup_sign(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.surrogate, ctx.beta = inputs
    ctx.save_for_backward(None if ctx.surrogate == "identity" else x)


def _backward_sign(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    if ctx.surrogate == "identity":
        return g, None, None
    return _sign_backward(g, x, ctx.surrogate, ctx.beta), None, None


def _setup_sign_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, x, ctx.surrogate, ctx.beta = inputs
    ctx.save_for_backward(g, x)


def _backward_sign_backward(ctx: Any, u: Tensor) -> tuple[Any, ...]:
    # dx = g σ(x): linear in g, and σ' = −2 β tanh(βx) σ for tanh, 0 almost everywhere for hardtanh.
    g, x = ctx.saved_tensors
    dg = _sign_backward(u, x, ctx.surrogate, ctx.beta)
    if ctx.surrogate == "hardtanh":
        return dg, None, None, None
    return dg, -2.0 * ctx.beta * g * torch.tanh(ctx.beta * x) * dg, None, None


_weights.differentiable(_setup_weights, _backward_weights)
_weights_backward.differentiable(_setup_weights_backward, _backward_weights_backward)
_sign.differentiable(_setup_sign, _backward_sign)
_sign_backward.differentiable(_setup_sign_backward, _backward_sign_backward)


# ---- public functions ----


def _check_bits(op: str, bits: Tensor, sign: Tensor | None) -> None:
    checks.floating(op, "bits_latent", bits)
    if bits.dim() < 1 or not 1 <= bits.shape[0] <= MOST_BITS:
        raise ValueError(
            f"regkern.{op}: expected `bits_latent` of shape (b, ...), b from 1 to {MOST_BITS}, got "
            f"{tuple(bits.shape)}"
        )
    if sign is None:
        return
    checks.on_device(op, "sign_latent", sign, bits)
    if sign.shape != bits.shape[1:] or sign.dtype != bits.dtype:
        raise ValueError(
            f"regkern.{op}: expected `sign_latent` like a plane of `bits_latent` "
            f"({tuple(bits.shape[1:])}, {bits.dtype}), got {tuple(sign.shape)}, {sign.dtype}"
        )


def bitwise_weights(
    bits_latent: Tensor,
    sign_latent: Tensor | None,
    scale: float | Tensor,
    *,
    trainable_bits: int | None = None,
) -> Tensor:
    r"""Weights made of bits that are trained.

    .. math::
        w = c\, \mathrm{sgn}(x_s) \sum_{i < b} 2^i\, 1[x_i > 0]; \qquad
        dx_i = g\, c\, \mathrm{sgn}(x_s)\, 2^i, \quad
        dx_s = g\, c \sum_i 2^i\, 1[x_i > 0], \quad
        dc = \sum g\, \mathrm{sgn}(x_s) \sum_i 2^i\, 1[x_i > 0]

    Parameters
    ----------
    bits_latent : Tensor
        (b, …), b from 1 to 24: the latents x_i of the bits, the lowest first. float32, float64,
        bfloat16 or float16.
    sign_latent : Tensor, optional
        (…), the latent x_s of the sign, with sgn 0 = +1. Without it weights are not negative.
    scale : float or Tensor
        c, of one element; a tensor gets its gradient.
    trainable_bits : int, optional
        Bit i set: plane i is trained; the others get a gradient of zero. Default: all.

    Returns
    -------
    Tensor
        (…), row-major, in the dtype of the latents.

    Notes
    -----
    Bytes moved: b + 1 planes read, one written; backward reads g and the planes once and writes all
    their gradients. NaN in a latent gives NaN.

    References
    ----------
    Ivan, "Bit-wise training of neural network weights", 2022.
    """
    op = "bitwise_weights"
    _check_bits(op, bits_latent, sign_latent)
    dtype = compute_dtype(bits_latent)
    if isinstance(scale, Tensor):
        checks.floating(op, "scale", scale)
        checks.on_device(op, "scale", scale, bits_latent)
        if scale.numel() != 1:
            raise ValueError(
                f"regkern.{op}: expected `scale` to have one element, got {tuple(scale.shape)}"
            )
        c = scale.to(dtype)
    else:
        c = torch.full((), scale, dtype=dtype, device=bits_latent.device)
    trainable = -1
    if trainable_bits is not None:
        b = bits_latent.shape[0]
        if not 0 <= trainable_bits < 2**MOST_BITS or trainable_bits >> b != 0:
            raise ValueError(
                f"regkern.{op}: expected `trainable_bits` from 0 to 2^{b} - 1, got {trainable_bits}"
            )
        trainable = trainable_bits
    w: Tensor = _weights(bits_latent, sign_latent, c, trainable)
    return w


def bitwise_scale(b: int, fan_in: int, *, signed: bool = True) -> float:
    r"""The scale c for which weights of uniformly random bits have He's standard deviation.

    With m uniform on 0 … 2^b − 1 and a random sign, E w = 0 and
    :math:`\mathrm{Var}\, w = c^2 E m^2 = c^2 (2^b - 1)(2^{b+1} - 1) / 6`, so

    .. math:: c = \sqrt{\frac{12}{\mathrm{fan\_in}\, (2^b - 1)(2^{b+1} - 1)}}

    gives √(2 / fan_in). Without the sign :math:`\mathrm{Var}\, w = c^2 (4^b - 1) / 12`, about a
    mean of c (2^b − 1) / 2.

    Parameters
    ----------
    b : int
        Number of bits without the sign, from 1.
    fan_in : int
        Inputs of a unit, from 1.
    signed : bool
        Whether weights have a sign.

    Returns
    -------
    float
    """
    op = "bitwise_scale"
    checks.at_least(op, "b", b, 1)
    checks.at_least(op, "fan_in", fan_in, 1)
    second = (2**b - 1) * (2 ** (b + 1) - 1) / 6 if signed else (4**b - 1) / 12
    return math.sqrt(2 / fan_in / second)


def pack_bits(bits_latent: Tensor, sign_latent: Tensor | None = None) -> Tensor:
    r"""The integers :math:`\mathrm{sgn}(x_s) \sum_i 2^i\, 1[x_i > 0]` of trained bits.

    Parameters
    ----------
    bits_latent, sign_latent
        As in `bitwise_weights`. NaN counts as no bit and as +1.

    Returns
    -------
    Tensor
        (…), int8 for b < 8, int16 for b < 16, else int32. A weight is ``scale`` times it. Zero has
        no sign: that of a weight without bits is lost.

    Notes
    -----
    Bytes moved: b + 1 planes read, the codes written.
    """
    _check_bits("pack_bits", bits_latent, sign_latent)
    codes: Tensor = _pack(bits_latent, sign_latent)
    return codes


def unpack_bits(
    codes: Tensor, b: int, *, latent: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """The planes of packed bits, so that ``pack_bits(*unpack_bits(codes, b))`` is ``codes``.

    Parameters
    ----------
    codes : Tensor
        As `pack_bits` makes them for b bits: int8 below 8, int16 below 16, else int32.
    b : int
        Number of bits, from 1 to 24.
    latent : bool
        Bits as −1 and 1 rather than as 0 and 1: latents to train on from.
    dtype : torch.dtype
        float32, float64, bfloat16 or float16.

    Returns
    -------
    (Tensor, Tensor)
        (b, …), the lowest bit first, and the sign (…), −1 or 1; that of 0 is 1.

    Notes
    -----
    Bytes moved: the codes read, b + 1 planes written.
    """
    op = "unpack_bits"
    checks.tensor(op, "codes", codes)
    if not 1 <= b <= MOST_BITS:
        raise ValueError(f"regkern.{op}: expected `b` from 1 to {MOST_BITS}, got {b}")
    if codes.dtype != _packed(b):
        raise TypeError(
            f"regkern.{op}: expected `codes` of dtype {_packed(b)} for {b} bits, got {codes.dtype}"
        )
    if dtype not in checks.FLOATING:
        raise TypeError(
            f"regkern.{op}: expected `dtype` to be float32, float64, bfloat16 or float16, got "
            f"{dtype}"
        )
    planes, sign = _unpack(codes, b, latent, dtype)
    return planes, sign


def sign_ste(x: Tensor, surrogate: Surrogate = "identity", beta: float = 1.0) -> Tensor:
    r"""The sign, with the gradient of something that has one.

    .. math::
        y = \mathrm{sgn}(x), \; \mathrm{sgn}(0) = +1; \qquad
        dx = g, \quad g\, 1[|x| \le 1] \quad\text{or}\quad g\, \beta\, (1 - \tanh^2 \beta x)

    Parameters
    ----------
    x : Tensor
        Any shape; float32, float64, bfloat16 or float16. Any strides; channels last is kept.
    surrogate : {"identity", "hardtanh", "tanh"}
        What the gradient is that of.
    beta : float
        β of "tanh", above 0.

    Returns
    -------
    Tensor
        Like x, −1 or 1 (also for ±0, unlike `torch.sign`); NaN for NaN.

    Notes
    -----
    Bytes moved: x read, y written; backward reads g and x and writes dx, and for "identity" moves
    nothing.

    References
    ----------
    Hubara et al., "Binarized neural networks", NeurIPS 2016; Bengio et al., "Estimating or
    propagating gradients through stochastic neurons", 2013.
    """
    op = "sign_ste"
    checks.floating(op, "x", x)
    checks.one_of(op, "surrogate", surrogate, ("identity", "hardtanh", "tanh"))
    if not beta > 0:
        raise ValueError(f"regkern.{op}: expected `beta` above 0, got {beta}")
    y: Tensor = _sign(x, surrogate, float(beta))
    return y

"""Nearest levels, latent codes, stuck bits and trained bits, by their formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from regkern.reference import random as draws


def straight_through(value: Tensor, x: Tensor, passes: Tensor | None = None) -> Tensor:
    """``value``, with the gradient 1 towards x (where ``passes``) besides its own."""
    x = torch.where(x.isfinite(), x, 0.0)
    if passes is not None:
        x = torch.where(passes, x, x.detach())
    return value + (x - x.detach())


def _reduced(terms: Tensor, reduction: str) -> Tensor:
    """Sum or mean; the mean of nothing is 0."""
    return terms.sum() if reduction == "sum" or terms.numel() == 0 else terms.mean()


# ---- nearest levels ----


def allowed_levels(allowed: Tensor, levels: int) -> Tensor:
    """Bit j of each mask, as (…, levels)."""
    return (allowed.long()[..., None] >> torch.arange(levels) & 1).bool()


def search(x: Tensor, levels: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``code = argmin_j |x − v_j|``, lowest first, and ``v_code``; levels (…, L) for each x."""
    levels = levels.expand(*x.shape, levels.shape[-1])
    low, high = levels.detach().amin(-1), levels.detach().amax(-1)
    inside = torch.minimum(torch.maximum(x.detach(), low), high)
    distance = (inside[..., None] - levels.detach()).abs()
    none = distance.isnan().any(-1)
    if allowed is not None:
        permitted = allowed_levels(allowed, levels.shape[-1])
        none = none | ~permitted.any(-1)
        distance = torch.where(permitted, distance, torch.inf)
    code = torch.where(none, 0, distance.argmin(-1))
    value = levels.gather(-1, code[..., None])[..., 0]
    return torch.where(none, torch.nan, value), code


def nearest_level(
    x: Tensor,
    levels: Tensor,
    allowed: Tensor | None = None,
    *,
    dim: int = 0,
    gradient: str = "identity",
) -> tuple[Tensor, Tensor]:
    """y = v_code with code = argmin_j |x − v_j|; dx = g, dv_j = Σ_{code = j} g."""
    if levels.dim() == 2:
        x = x.movedim(dim, -1)
        allowed = None if allowed is None else allowed.movedim(dim, -1)
    value, code = search(x, levels, allowed)
    passes = None
    if gradient == "clip":
        passes = (x >= levels.detach().amin(-1)) & (x <= levels.detach().amax(-1))
    y = straight_through(value, x, passes)
    return (y.movedim(-1, dim), code.movedim(-1, dim)) if levels.dim() == 2 else (y, code)


def latent_quantize(
    z: Tensor, codebook: Tensor, dim: int = -1, *, reduction: str = "mean"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ẑ_d = v_{d, argmin_j |z_d − v_dj|}, indices, ‖sg(z) − ẑ‖² and ‖z − sg(ẑ)‖²."""
    last = z.movedim(dim, -1)
    value, code = search(last, codebook)
    zhat = straight_through(value.detach(), last)
    quantization = _reduced((last.detach() - value) ** 2, reduction)
    commitment = _reduced((last - value.detach()) ** 2, reduction)
    return zhat.movedim(-1, dim), code.movedim(-1, dim), quantization, commitment


# ---- the penalty ----


def factors(shape: torch.Size, variability: float, seed: Tensor | None) -> Tensor:
    """1 + σ ε per element."""
    if variability == 0:
        return torch.ones(shape, dtype=torch.float64)
    assert seed is not None
    element = torch.arange(shape.numel())
    return (1 + variability * draws.normal(seed, element)).reshape(shape)


def permitted_codes(code: Tensor, sa0: Tensor, sa1: Tensor) -> Tensor:
    """Whether (c | sa1) & ~sa0 = c, on the low 8 bits."""
    c, zero, one = (t.long() & 0xFF for t in (code, sa0, sa1))
    return ((c | one) & ~zero & 0xFF) == c


def nearest_code(
    t: Tensor, quant_min: int, quant_max: int, sa0: Tensor | None, sa1: Tensor | None
) -> Tensor:
    """clamp(round(t)); with stuck bits the nearest code that they leave, the lower one of two."""
    t = t.clamp(quant_min, quant_max)
    if sa0 is None and sa1 is None:
        return t.round()
    none = torch.zeros(t.shape, dtype=torch.long)
    sa0, sa1 = (none if m is None else m.long() for m in (sa0, sa1))
    width = quant_max - quant_min  # all bits set
    codes = torch.arange(quant_min, quant_max + 1)
    allowed = permitted_codes(codes & width, sa0[..., None] & width, sa1[..., None] & width)
    distance = torch.where(allowed, (t[..., None] - codes).abs(), torch.inf)
    code = codes[distance.argmin(-1)].to(t.dtype)
    return torch.where(t.isnan(), t, code)


def level_penalty(
    w: Tensor,
    *,
    step: Tensor | None = None,
    levels: Tensor | None = None,
    quant_min: int = -128,
    quant_max: int = 127,
    sa0: Tensor | None = None,
    sa1: Tensor | None = None,
    allowed: Tensor | None = None,
    variability: float = 0.0,
    seed: Tensor | None = None,
    reduction: str = "sum",
) -> Tensor:
    """Σ (w_i − Q_i)², Q_i the nearest level that cell i can hold."""
    f = factors(w.shape, variability, seed).to(w.dtype)
    if levels is not None:
        q, _ = search(w, levels * f[..., None], allowed)
    else:
        assert step is not None
        s = step * f
        grid = torch.where(s == 0, w.detach() * 0, w.detach() / s.detach())
        q = nearest_code(grid, quant_min, quant_max, sa0, sa1) * s
    return _reduced((w - q) ** 2, reduction)


# ---- stuck bits ----


def fault_slots(bits: int) -> int:
    return next(s for s in (4, 8, 16, 32, 64) if bits <= s)


def stuck_at_masks(
    shape: tuple[int, ...], bits: int, rate: float, p_sa1: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """int64 masks (sa0, sa1): U < rate · p_sa1 is stuck at 1, else U < rate at 0, U of 48 bits."""
    element = torch.arange(torch.Size(shape).numel())[:, None]
    draw = element * fault_slots(bits) + torch.arange(bits)
    words = draws.words(seed, "fault", draw // 8)
    half = draw % 8
    front = words.gather(-1, (half // 2)[..., None])[..., 0] >> half % 2 * 16 & 0xFFFF
    tails = draws.words(seed, "fault", 2**55 + draw // 4)
    u = front << 32 | tails.gather(-1, (draw % 4)[..., None])[..., 0]
    one = u < int(rate * p_sa1 * 2.0**48 + 0.5)
    zero = (u < int(rate * 2.0**48 + 0.5)) & ~one
    weight = torch.ones((), dtype=torch.long) << torch.arange(bits)
    return (zero * weight).sum(-1).reshape(shape), (one * weight).sum(-1).reshape(shape)


def stuck_at(code: Tensor, sa0: Tensor, sa1: Tensor) -> Tensor:
    """(code | sa1) & ~sa0."""
    return (code | sa1) & ~sa0


def inject_faults(
    w: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    *,
    sa0: Tensor | None = None,
    sa1: Tensor | None = None,
    rate: float = 0.0,
    p_sa1: float = 0.5,
    dim: int = 0,
    seed: Tensor | None = None,
) -> Tensor:
    """(faulty(clamp(round(w / s) + z)) − z) s in two's complement; dw = g."""
    if scale.numel() > 1:
        shape = [-1 if i == dim % w.dim() else 1 for i in range(w.dim())]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    if seed is not None:
        sa0, sa1 = stuck_at_masks(tuple(w.shape), bits, rate, p_sa1, seed)
    none = torch.zeros(w.shape, dtype=torch.long)
    sa0, sa1 = (none if m is None else m.long() for m in (sa0, sa1))
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    top = 2 ** (bits - 1)
    grid = (w.detach() * inverse).clamp(-(2.0**20), 2.0**20)
    q = (grid.round() + zero_point).clamp(-top, top - 1)
    faulty = stuck_at(q.nan_to_num().long() & (2 * top - 1), sa0, sa1) & (2 * top - 1)
    faulty = torch.where(faulty >= top, faulty - 2 * top, faulty)
    y = (faulty - zero_point) * scale
    return straight_through(torch.where(q.isnan(), torch.nan, y), w)


# ---- trained bits ----


def _step(x: Tensor) -> Tensor:
    """1[x > 0]; NaN stays."""
    return torch.where(x.isnan(), x, (x > 0).to(x.dtype)).detach()


def _sign(x: Tensor) -> Tensor:
    """sgn with sgn 0 = +1; NaN stays."""
    return torch.where(x.isnan(), x, torch.where(x < 0, -1.0, 1.0).to(x.dtype)).detach()


def bitwise_weights(
    bits: Tensor, sign: Tensor | None, scale: Tensor, *, trainable_bits: int | None = None
) -> Tensor:
    """w = c sgn(x_s) Σ_i 2^i 1[x_i > 0]; dx_i = g c sgn(x_s) 2^i, dx_s = g c Σ_i 2^i 1[x_i > 0]."""
    frozen = 0 if trainable_bits is None else ~trainable_bits
    magnitude = torch.zeros_like(bits[0])
    for i, x in enumerate(bits):
        bit = _step(x) if frozen >> i & 1 else straight_through(_step(x), x)
        magnitude = magnitude + 2**i * bit
    if sign is None:
        return scale * magnitude
    return scale * (straight_through(_sign(sign), sign) * magnitude)


def pack_bits(bits: Tensor, sign: Tensor | None) -> Tensor:
    """sgn(x_s) Σ_i 2^i 1[x_i > 0], int64."""
    weight = (2 ** torch.arange(bits.shape[0])).reshape(-1, *([1] * (bits.dim() - 1)))
    magnitude = ((bits > 0).long() * weight).sum(0)
    return magnitude if sign is None else torch.where(sign < 0, -magnitude, magnitude)


def unpack_bits(codes: Tensor, bits: int, *, latent: bool = False) -> tuple[Tensor, Tensor]:
    """Bit i of |code| for every i, as 0 and 1 or as −1 and 1, and sgn code."""
    codes = codes.long()
    planes = torch.stack([codes.abs() >> i & 1 for i in range(bits)]).float()
    return 2 * planes - 1 if latent else planes, torch.where(codes < 0, -1.0, 1.0)


def sign_ste(x: Tensor, surrogate: str = "identity", beta: float = 1.0) -> Tensor:
    """sgn x; dx = g, g 1[|x| ≤ 1] or g β (1 − tanh² βx)."""
    if surrogate == "hardtanh":
        return straight_through(_sign(x), x, x.abs() <= 1)
    if surrogate == "tanh":
        smooth = torch.tanh(beta * x)
        return _sign(x) + (smooth - smooth.detach())
    return straight_through(_sign(x), x)

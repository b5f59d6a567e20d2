"""Shrinkage laws and their penalties: definitions in plain torch.

`law_value` is the penalty by its formula; `shrunk` its proximal operator in closed form (Newton's
iteration where the closed form is a root), differentiable as often as wanted. That `shrunk` is the
global minimiser is tested against a search on a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LAWS = (
    "soft", "hard", "elastic_net", "squared", "scad", "mcp", "log_sum", "capped", "half",
    "two_thirds", "cel0", "power",
)  # fmt: skip


def law_value(law: str, r: Tensor, lam: Tensor, shape: float | Tensor = 0.0) -> Tensor:
    """φ_λ(r) for magnitudes r ≥ 0; its derivative at 0 is 0."""
    some = torch.where(r == 0, 1.0, r)  # no infinite slope meets the zeros
    a = shape
    if law == "soft":
        value = lam * some
    elif law == "hard":
        value = lam * torch.where(some.isnan(), some.detach(), torch.ones_like(some))
    elif law == "elastic_net":
        value = lam * (a * some + 0.5 * (1 - a) * some**2)
    elif law == "squared":
        value = lam * 0.5 * some**2
    elif law == "scad":
        middle = (a * lam * some - 0.5 * (some**2 + lam**2)) / (a - 1)
        flat = 0.5 * lam**2 * (a + 1) + torch.zeros_like(some)
        value = torch.where(some <= lam, lam * some, torch.where(some > a * lam, flat, middle))
    elif law == "mcp":
        flat = 0.5 * a * lam**2 + torch.zeros_like(some)
        value = torch.where(some > a * lam, flat, lam * some - 0.5 * some**2 / a)
    elif law == "log_sum":
        value = lam * torch.log1p(some / a)
    elif law == "capped":
        value = lam * torch.where(some > a, torch.full_like(some, float(a)), some)
    elif law == "half":
        value = lam * some.sqrt()
    elif law == "two_thirds":
        value = lam * some ** (2 / 3)
    elif law == "cel0":
        gap = (2 * lam).sqrt() - a * some
        value = lam - 0.5 * torch.where(gap <= 0, torch.zeros_like(gap), gap) ** 2
    elif law == "power":
        value = lam * some**a
    else:
        raise ValueError(law)
    return torch.where(r == 0, torch.zeros_like(value), value)


def penalty_elementwise(
    xs: Tensor | Sequence[Tensor],
    law: str,
    lam: float | Tensor = 1.0,
    *,
    shape: float = 0.0,
    weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """Σ w φ_λ(|x|) over all tensors."""
    xs = [xs] if isinstance(xs, Tensor) else list(xs)
    lam = _number(lam, xs[0])
    total = xs[0].new_zeros(())
    for i, x in enumerate(xs):
        value = law_value(law, _magnitude(x), lam, shape)
        total = total + (value if weights is None else value * weights[i]).sum()
    return total


def _number(value: float | Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(like.dtype)
    return torch.full((), value, dtype=like.dtype, device=like.device)


def _magnitude(x: Tensor) -> Tensor:
    return torch.where(x < 0, -x, x)


def shrunk(law: str, s: Tensor, t: Tensor, lam: Tensor, shape: Tensor) -> Tensor:
    """argmin over r ≥ 0 of ½ (r − s)² + t φ_λ(r); of two minimisers the smaller."""
    # The corners are common to all: other thresholds stand in for them below.
    none = (t == 0) | (lam == 0)
    infinite = ~none & ((t == float("inf")) | (lam == float("inf")))
    edge = none | infinite
    r = _LAWS[law](s, torch.where(edge, 1.0, t), torch.where(edge, 1.0, lam), shape)
    r = torch.where(none, s, torch.where(infinite & ~s.isnan(), torch.zeros_like(s), r))
    return torch.where(s.isnan() | (~edge & (t * lam).isnan()), s * t * lam, r)


def _soft(s: Tensor, t: Tensor, lam: Tensor, shape: Tensor) -> Tensor:
    return torch.where(s > t * lam, s - t * lam, 0.0)


def _hard(s: Tensor, t: Tensor, lam: Tensor, shape: Tensor) -> Tensor:
    return torch.where(s > (2 * t * lam).sqrt(), s, 0.0)


def _elastic_net(s: Tensor, t: Tensor, lam: Tensor, rho: Tensor) -> Tensor:
    tau = t * lam
    return torch.where(s > tau * rho, (s - tau * rho) / (1 + tau * (1 - rho)), 0.0)


def _squared(s: Tensor, t: Tensor, lam: Tensor, shape: Tensor) -> Tensor:
    return s / (1 + t * lam)


def _mcp(s: Tensor, t: Tensor, lam: Tensor, a: Tensor) -> Tensor:
    return _concave(s, t, lam, 1 / a)


def _cel0(s: Tensor, t: Tensor, lam: Tensor, a: Tensor) -> Tensor:
    return _concave(s, t, a * (2 * lam).sqrt(), a * a)


def _concave(s: Tensor, t: Tensor, slope: Tensor, curvature: Tensor) -> Tensor:
    convex = t * curvature < 1
    inside = (s - t * slope) / torch.where(convex, 1 - t * curvature, 1.0)
    firm = torch.where(
        s <= t * slope, torch.zeros_like(s), torch.where(curvature * s <= slope, inside, s)
    )
    jump = slope * (t / torch.where(convex, 1.0, curvature)).sqrt()
    return torch.where(convex, firm, torch.where(s > jump, s, 0.0))


def _scad(s: Tensor, t: Tensor, lam: Tensor, a: Tensor) -> Tensor:
    soft = _soft(s, t, lam, a)
    convex = t < a - 1
    inside = ((a - 1) * s - t * lam * a) / torch.where(convex, a - 1 - t, 1.0)
    firm = torch.where(s > a * lam, s, torch.where(s > (1 + t) * lam, inside, soft))
    jump = torch.where(t < a + 1, 0.5 * lam * (a + 1 + t), lam * (t * (a + 1)).sqrt())
    return torch.where(convex, firm, torch.where(s > jump, s, soft))


def _capped(s: Tensor, t: Tensor, lam: Tensor, theta: Tensor) -> Tensor:
    tau = t * lam
    jump = torch.where(tau <= 2 * theta, theta + 0.5 * tau, (2 * theta * tau).sqrt())
    return torch.where(s > jump, s, _soft(s, t, lam, theta))


def _log_sum(s: Tensor, t: Tensor, lam: Tensor, eps: Tensor) -> Tensor:
    tau = t * lam
    square = (s + eps) ** 2 - 4 * tau
    real = square > 0
    r = 0.5 * ((s - eps) + torch.where(real, square, 1.0).sqrt())
    r = torch.where(s == float("inf"), s, r)
    positive = real & (r > 0)
    some = torch.where(positive, r, 1.0)
    better = 0.5 * some**2 - some * s + tau * torch.log1p(some / eps) < 0
    alive = positive & (better | (eps * s > tau) | (s == float("inf")))
    return torch.where(alive, r, 0.0)


def _half(s: Tensor, t: Tensor, lam: Tensor, shape: Tensor) -> Tensor:
    """u = √r: u³ − s u + τ/2 = 0."""
    tau = t * lam
    alive = s > 1.5 * tau ** (2 / 3)
    finite = torch.where(alive & (s < float("inf")), s, 2 * tau ** (2 / 3))

    def step(u: Tensor) -> Tensor:
        return u - (u**3 - finite * u + 0.5 * tau) / (3 * u**2 - finite)

    r = _root(step, finite.detach().sqrt()) ** 2
    return torch.where(alive, torch.where(s < float("inf"), r, s), 0.0)


def _two_thirds(s: Tensor, t: Tensor, lam: Tensor, shape: Tensor) -> Tensor:
    """u = r^(1/3): u⁴ − s u + ⅔ τ = 0."""
    tau = t * lam
    alive = s > 2 * (2 / 3 * tau) ** 0.75
    finite = torch.where(alive & (s < float("inf")), s, 3 * (2 / 3 * tau) ** 0.75)

    def step(u: Tensor) -> Tensor:
        return u - (u**4 - finite * u + 2 / 3 * tau) / (4 * u**3 - finite)

    r = _root(step, finite.detach() ** (1 / 3)) ** 3
    return torch.where(alive, torch.where(s < float("inf"), r, s), 0.0)


def _root(step: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """Newton from above; the last steps carry the derivatives, each doubling their order."""
    with torch.no_grad():
        for _ in range(30):
            u = step(u)
    return step(step(step(u.detach())))


_LAWS = {
    "soft": _soft, "hard": _hard, "elastic_net": _elastic_net, "squared": _squared, "scad": _scad,
    "mcp": _mcp, "log_sum": _log_sum, "capped": _capped, "half": _half, "two_thirds": _two_thirds,
    "cel0": _cel0,
}  # fmt: skip


def prox_elementwise(
    x: Tensor,
    law: str,
    step: float | Tensor = 1.0,
    lam: float | Tensor = 1.0,
    *,
    shape: float | Tensor = 0.0,
    weights: Tensor | None = None,
    low: float = -float("inf"),
    high: float = float("inf"),
) -> Tensor:
    """sgn(x) r(|x|), clamped."""
    t = _number(step, x)
    t = t if weights is None else t * weights
    r = shrunk(law, _magnitude(x), t, _number(lam, x), _number(shape, x))
    y = torch.where(x < 0, -r, r)
    return torch.where(y < low, low, torch.where(y > high, high, y))


def prox_pairs(
    z: Tensor,
    law: str,
    step: float | Tensor = 1.0,
    lam: float | Tensor = 1.0,
    *,
    shape: float | Tensor = 0.0,
) -> Tensor:
    """z r(|z|)/|z| for pairs of real and imaginary part in the last dimension; 0 for 0."""
    square = (z * z).sum(-1, keepdim=True)
    zero = square == 0
    s = torch.where(zero, 1.0, square).sqrt()
    r = shrunk(law, s, _number(step, z), _number(lam, z), _number(shape, z))
    return torch.where(zero, 0.0, z * (r / s))

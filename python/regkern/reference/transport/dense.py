"""Entropic transport with a given cost: the definition, in the log domain."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _log(weight: Tensor) -> Tensor:
    """The logarithm, −∞ of nothing, with gradients of 0 there."""
    there = weight > 0
    return torch.where(there, torch.where(there, weight, 1.0).log(), -math.inf)


def soft_transform(
    cost: Tensor, weight: Tensor, source: Tensor, eps: Tensor, columns: bool = False
) -> Tensor:
    """The soft c-transform of ``source`` (B, m), or of one (B, n) onto the columns."""
    if columns:
        return soft_transform(cost.mT, weight, source, eps)
    e = eps.reshape(-1, 1)
    scaled = (source[:, None, :] - cost) / e[..., None] + _log(weight)[:, None, :]
    return -e * scaled.logsumexp(-1)


def _damping(rho: float | None, eps: Tensor) -> Tensor:
    e = eps.reshape(-1, 1)
    return torch.ones_like(e) if rho is None or math.isinf(rho) else rho / (rho + e)


def potentials(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    eps: Tensor,
    rho: tuple[float | None, float | None] = (None, None),
    iterations: int = 100,
) -> tuple[Tensor, Tensor]:
    """f (B, n) and g (B, m) after that many iterations, of a cost (B, n, m)."""
    g = torch.zeros_like(b)
    f = torch.zeros_like(a)
    for _ in range(iterations):
        f = _damping(rho[0], eps) * soft_transform(cost, b, g, eps)
        g = _damping(rho[1], eps) * soft_transform(cost, a, f, eps, columns=True)
    final = _damping(rho[0], eps) * soft_transform(cost, b, g, eps)
    f = torch.where(a > 0, f, final)
    if rho == (None, None):
        mass = a.sum(-1, keepdim=True) + b.sum(-1, keepdim=True)
        shift = ((b * g).sum(-1, keepdim=True) - (a * f).sum(-1, keepdim=True)) / mass
        f, g = f + shift, g - shift
    return f, g


def plan(cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Tensor:
    """P, of the shape of the cost."""
    exponent = (f[:, :, None] + g[:, None, :] - cost) / eps[:, None, None]
    return a[:, :, None] * b[:, None, :] * exponent.exp()


def _conjugate(potential: Tensor, rho: float | None) -> Tensor:
    if rho is None or math.isinf(rho):
        return potential
    return rho * (1 - (-potential / rho).exp())


def value(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    f: Tensor,
    g: Tensor,
    eps: Tensor,
    rho: tuple[float | None, float | None] = (None, None),
) -> Tensor:
    """The dual objective (B,)."""
    mass = plan(cost, a, b, f, g, eps).sum((-2, -1))
    dual = (a * _conjugate(f, rho[0])).sum(-1) + (b * _conjugate(g, rho[1])).sum(-1)
    return dual - eps * (mass - a.sum(-1) * b.sum(-1))


def primal(
    cost: Tensor,
    p: Tensor,
    a: Tensor,
    b: Tensor,
    eps: Tensor,
    rho: tuple[float | None, float | None] = (None, None),
) -> Tensor:
    """⟨P, C⟩ + ε KL(P | a⊗b) + ρ_a KL(P1 | a) + ρ_b KL(Pᵀ1 | b) of a plan p (B,)."""

    def divergence(x: Tensor, y: Tensor, dims: tuple[int, ...]) -> Tensor:
        ratio = torch.where(x > 0, x, 1.0).log() - torch.where(x > 0, y, 1.0).log()
        return (x * ratio - x + y).sum(dims)

    total = (p * torch.where(p > 0, cost, 0.0)).sum((-2, -1))
    total = total + eps * divergence(p, a[:, :, None] * b[:, None, :], (-2, -1))
    for r, marginal, weight in ((rho[0], p.sum(-1), a), (rho[1], p.sum(-2), b)):
        if r is not None and not math.isinf(r):
            total = total + r * divergence(marginal, weight, (-1,))
    return total

"""Isotonic regression by the minimax formula, and what is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _minimax(n: int, pool: Callable[[int, int], Tensor]) -> Tensor:
    """yᵢ = max over a ≤ i of min over b ≥ i of the value of the pool a … b, along the last axis."""
    values = {(a, b): pool(a, b) for a in range(n) for b in range(a, n)}
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack([values[a, b] for b in range(i, n)], -1).amin(-1)
                    for a in range(i + 1)
                ],
                -1,
            ).amax(-1)
            for i in range(n)
        ],
        -1,
    )


def isotonic_regression(
    x: Tensor, weights: Tensor | None = None, dim: int = -1, increasing: bool = True
) -> Tensor:
    if x.numel() == 0:
        return x.clone()
    if not increasing:
        return -isotonic_regression(-x, weights, dim)
    moved = x.movedim(dim, -1)
    w = torch.ones_like(moved) if weights is None else weights.movedim(dim, -1)
    bad = ~(moved.isfinite() & w.isfinite()).all(-1, keepdim=True)
    clean = torch.where(bad, 0.0, moved)

    def pool(a: int, b: int) -> Tensor:
        u = w[..., a : b + 1]
        return (u * clean[..., a : b + 1]).sum(-1) / u.sum(-1)

    y = _minimax(moved.shape[-1], pool)
    return torch.where(bad, math.nan, y).movedim(-1, dim)


def permutahedron_projection(x: Tensor, w: Tensor, dim: int = -1) -> Tensor:
    ordered, order = x.sort(dim=dim, descending=True)
    if w.dim() == 1:
        shape = [1] * x.dim()
        shape[dim] = -1
        w = w.reshape(shape).expand(x.shape)
    vertex = w.to(x.dtype).sort(dim=dim, descending=True).values
    dual = isotonic_regression(ordered - vertex, None, dim, increasing=False)
    return torch.zeros_like(x).scatter(dim, order, ordered - dual)


def soft_rank(x: Tensor, regularization: float = 1.0, dim: int = -1) -> Tensor:
    ranks = torch.arange(1, x.shape[dim] + 1, dtype=x.dtype)
    return permutahedron_projection(x / regularization, ranks, dim)


def soft_sort(
    x: Tensor, regularization: float = 1.0, dim: int = -1, descending: bool = False
) -> Tensor:
    n = x.shape[dim]
    places = torch.arange(1, n + 1, dtype=x.dtype)
    places = places.flip(0) if descending else places
    shape = [1] * x.dim()
    shape[dim] = -1
    return permutahedron_projection(
        (places / regularization).reshape(shape).expand(x.shape), x, dim
    )


def spectral_risk_weights(
    losses: Tensor, spectrum: Tensor, penalty: str = "chi2", nu: float = 1.0
) -> Tensor:
    n = losses.shape[0]
    ordered, order = losses.sort()
    sigma = spectrum.to(losses.dtype)
    if n == 0 or not bool(losses.isfinite().all()):
        return losses * math.nan
    if nu == 0:
        q = sigma
    elif penalty == "chi2":
        z = ordered / (2 * n * nu) + 1 / n
        q = z - isotonic_regression(z - sigma)
    else:
        z = ordered / nu

        def pool(a: int, b: int) -> Tensor:
            return z[a : b + 1].logsumexp(0) - sigma[a : b + 1].sum().log()

        q = (z - _minimax(n, pool)).exp()
    return torch.zeros_like(q).scatter(0, order, q)


def spectral_risk(
    losses: Tensor, spectrum: Tensor, penalty: str = "chi2", nu: float = 1.0
) -> Tensor:
    q = spectral_risk_weights(losses, spectrum, penalty, nu)
    n = losses.shape[0]
    if penalty == "chi2":
        divergence = n * ((q - 1 / n) ** 2).sum()
    else:
        divergence = (q * torch.where(q > 0, n * q, 1.0).log()).sum()
    return (q * losses).sum() - nu * divergence

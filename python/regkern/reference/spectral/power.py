"""Power iteration and spectral normalization by their formulas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def matrix(weight: Tensor, dim: int = 0) -> Tensor:
    """Dimension `dim` first, all others flattened."""
    return torch.movedim(weight, dim, 0).flatten(1)


def singular_triple(
    weight: Tensor, u: Tensor, v: Tensor, n_iter: int, dim: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """u, v after so many iterations, and σ = uᵀ W v with the gradient u vᵀ."""
    w = matrix(weight, dim)
    if w.numel() == 0:
        return u, v, w.sum()
    with torch.no_grad():
        for _ in range(n_iter):
            y = w @ v
            if y.norm() == 0:
                return u, v, (w * 0).sum()
            u = y / y.norm()
            t = w.T @ u
            v = t / t.norm()
    return u, v, u @ w @ v


def sigmas(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    n_iter: int = 1,
    dim: int = 0,
) -> Tensor:
    """σ of each weight."""
    triples = [singular_triple(*triple, n_iter, dim) for triple in zip(weights, u, v, strict=True)]
    return torch.stack([sigma for _, _, sigma in triples])


def frobenius(weights: Sequence[Tensor]) -> Tensor:
    """|W| of each weight."""
    return torch.stack([torch.linalg.vector_norm(w) for w in weights])


def spectral_normalize(
    weight: Tensor, u: Tensor, v: Tensor, n_iter: int = 1, cap: float | None = None, dim: int = 0
) -> Tensor:
    """W / σ, or W / max(1, σ / cap); 0 where σ is."""
    _, _, sigma = singular_triple(weight, u, v, n_iter, dim)
    if cap is not None:
        divisor = torch.maximum(torch.ones_like(sigma), sigma / cap)
        return weight / divisor
    return weight * 0 if sigma == 0 else weight / sigma

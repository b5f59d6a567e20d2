"""Penalties of spectral norms by their formulas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def of_sigmas(sigma: Tensor, kind: str, k: int = 2, cap: float = 1.0) -> Tensor:
    """The penalty as a function of the spectral norms."""
    if kind == "power":
        return sum(((s**k - 1) ** 2 for s in sigma), start=sigma.new_zeros(()))
    if kind == "sum":
        return sigma.sum()
    if kind == "max":
        return sigma.max()
    outside = bool((sigma >= cap).any())
    return sigma.new_full((), torch.inf) if outside else -(1 - sigma / cap).log().sum()


def of_vectors(biases: Sequence[Tensor], gains: Sequence[Tensor], k: int = 2) -> Tensor:
    """Σ |b|^2k + Σ (γ^k − 1)²."""
    parts = [(b * b).sum() ** k for b in biases] + [((g**k - 1) ** 2).sum() for g in gains]
    return torch.stack(parts).sum()

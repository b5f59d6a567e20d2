"""Polar factors: definitions by the singular value decomposition, and step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def orthogonalized(x: Tensor, coefficients: Sequence[tuple[float, float, float]]) -> Tensor:
    """U p(Σ/‖Σ‖) Vᵀ with p the odd quintics one after the other."""
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    norm = s.norm(dim=-1, keepdim=True)
    s = s / torch.where(norm == 0, 1.0, norm)
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    y: Tensor = (u * s[..., None, :]) @ vt
    return y


def polar_factor(x: Tensor) -> Tensor:
    """U Vᵀ of the singular values that are not 0."""
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    y: Tensor = (u * (s > 0).to(x.dtype)[..., None, :]) @ vt
    return y


def singular_value_clip(x: Tensor, cap: float) -> Tensor:
    """U min(Σ, c) Vᵀ."""
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    y: Tensor = (u * s.clamp(max=cap)[..., None, :]) @ vt
    return y

"""Definitions: nuclear norm and singular value thresholding, by a full SVD."""

from __future__ import annotations

import torch
from torch import Tensor


def nuclear_norm(x: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(x)
    return values.sum(-1)


def singular_value_threshold(x: Tensor, threshold: Tensor | float) -> Tensor:
    """U (Σ - t)₊ Vᵀ."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    t = torch.as_tensor(threshold, dtype=x.dtype)[..., None]
    y: Tensor = (u * (s - t).clamp(min=0)[..., None, :]) @ vh
    return y

"""Beta noise masks in plain torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regkern.reference.random import Draws


def beta_noise(alpha: Tensor, beta: Tensor, *, seed: Tensor) -> Tensor:
    """A Beta variate for every element, NaN where there is none."""
    out = []
    for i, (a, b) in enumerate(zip(alpha.flatten().tolist(), beta.flatten().tolist(), strict=True)):
        valid = 0 < a < math.inf and 0 < b < math.inf
        out.append(Draws(seed, "noise", i).beta(a, b) if valid else math.nan)
    return torch.tensor(out, dtype=torch.float64).reshape(alpha.shape).to(alpha.dtype)


def noise_mask_apply(
    x: Tensor,
    mask: Tensor,
    scale: float | Tensor = 1.0,
    *,
    mode: str = "add",
    interpolation: str = "bilinear",
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    """x + s m or x (1 + s m), m at the size of x."""
    corners = False if interpolation == "bilinear" else None
    large = F.interpolate(mask.to(x.dtype), x.shape[-2:], mode=interpolation, align_corners=corners)
    y = x * (1 + scale * large) if mode == "multiply" else x + scale * large
    return y if clamp is None else y.clamp(*clamp)

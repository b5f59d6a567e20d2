"""Definition: the prox of the distance between two rows."""

from __future__ import annotations

import torch
from torch import Tensor


def prox_pair_difference(x: Tensor, y: Tensor, threshold: Tensor | float) -> tuple[Tensor, Tensor]:
    """x - c d and y + c d with d = x - y and c = min(1/2, t / |d|)."""
    d = x - y
    t = torch.as_tensor(threshold, dtype=x.dtype)[..., None]
    norm = torch.linalg.vector_norm(d, dim=-1, keepdim=True)
    met = norm <= 2 * t
    share = torch.where(met, 0.5, t / torch.where(met, 1.0, norm))
    share = torch.where(t == 0, 0.0, share)
    return x - share * d, y + share * d

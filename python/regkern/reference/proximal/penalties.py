"""Penalties of networks and activations: definitions in plain torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def polarization(tensors: Sequence[Tensor], t: float | Tensor) -> Tensor:
    """Σ t |γ| − |γ − mean γ|."""
    flat = torch.cat([x.reshape(-1) for x in tensors])
    return (t * flat.abs() - (flat - flat.mean()).abs()).sum()


def hypersparse(tensors: Sequence[Tensor], fraction: float) -> Tensor:
    """(1/A) Σ|w| Σ tanh(s |w|) − Σ|w|, with s and A held fixed."""
    flat = torch.cat([x.reshape(-1) for x in tensors]).abs()
    k = max(int(fraction * len(flat)), 1)
    s = math.atanh(1 / math.sqrt(3)) / flat.detach().kthvalue(k).values
    t = torch.tanh(s * flat)
    return flat.sum() * t.sum() / t.detach().sum() - flat.sum()


def flops_penalty(activations: Tensor) -> Tensor:
    """Σ_j (mean_i |A_ij|)²."""
    return (activations.abs().mean(0) ** 2).sum()


def splade_pool(logits: Tensor, mask: Tensor | None = None, pooling: str = "max") -> Tensor:
    """ln(1 + relu) of what the mask keeps, its maximum or sum over the tokens."""
    saturated = torch.log1p(torch.relu(logits))
    if mask is not None:
        saturated = torch.where(mask[:, :, None], saturated, 0.0)
    if pooling == "sum":
        return saturated.sum(1)
    if logits.shape[1] == 0:
        return logits.sum(1)
    # Gradients go to the first of equals; NaN is greater than infinity.
    most = torch.finfo(logits.dtype).max
    place = torch.where(saturated.isnan(), float("inf"), saturated.clamp_max(most)).argmax(1, True)
    return saturated.gather(1, place)[:, 0]

"""Perturbations of whole networks: definitions in plain torch, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def global_norm(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """(Σ |x|^p)^(1/p) of all elements."""
    magnitudes = torch.cat([x.reshape(-1) for x in tensors]).abs()
    if magnitudes.numel() == 0:
        return magnitudes.sum()
    if order == math.inf:
        return magnitudes.max()
    return (magnitudes**order).sum() ** (1 / order)


def clip_norm(tensors: Sequence[Tensor], most: float, order: float = 2.0) -> list[Tensor]:
    """g min(1, c/‖g‖)."""
    norm = global_norm(tensors, order)
    return [x if norm <= most else x * (most / norm) for x in tensors]


def perturbed(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    rho: float,
    kind: str = "sam",
    p: float = 2.0,
    eta: float = 0.01,
) -> list[Tensor]:
    """w + ε̂, where ε̂ maximises ⟨g, ε⟩ over ‖ε/T‖_p ≤ ρ; or w + ρ ‖w‖/‖g‖ g by tensor or row."""
    if kind in ("tensor", "row"):
        out = []
        for w, g in zip(params, grads, strict=True):
            whole = kind == "tensor" or w.dim() < 2
            rows, slopes = (
                t.reshape(1, -1) if whole else t.reshape(t.shape[0], -1) for t in (w, g)
            )
            ratio = rows.norm(dim=1, keepdim=True) / slopes.norm(dim=1, keepdim=True)
            ratio = torch.where(slopes.norm(dim=1, keepdim=True) == 0, 0.0, ratio)
            out.append((rows + rho * ratio * slopes).reshape(w.shape))
        return out
    scales = [w.abs() + eta if kind == "asam" else torch.ones_like(w) for w in params]
    scaled = [t * g for t, g in zip(scales, grads, strict=True)]
    q = 1.0 if p == math.inf else p / (p - 1)
    norm = global_norm(scaled, q)
    if norm == 0:
        return list(params)
    return [
        w + rho * t * s.sign() * (s.abs() / norm) ** (q - 1)
        for w, t, s in zip(params, scales, scaled, strict=True)
    ]


def projected(
    tensors: Sequence[Tensor],
    radius: float,
    grads: Sequence[Tensor] | None = None,
    step: float = 1.0,
    per: str = "tensor",
) -> list[Tensor]:
    """δ + ζ g, scaled into the ball of each tensor or of all."""
    if grads is not None:
        tensors = [x + step * g for x, g in zip(tensors, grads, strict=True)]
    norms = [x.norm() for x in tensors]
    if per == "all":
        norms = [global_norm(tensors)] * len(norms)
    return [x if n <= radius else x * (radius / n) for x, n in zip(tensors, norms, strict=True)]


def without_component(
    tensors: Sequence[Tensor], directions: Sequence[Tensor], rescale: bool = False
) -> list[Tensor]:
    """g − ⟨g, w⟩/⟨w, w⟩ w, with its old length where that is wanted."""
    out = []
    for g, w in zip(tensors, directions, strict=True):
        square = (w * w).sum()
        left = g - (g * w).sum() / square * w if square > 0 else g
        out.append(left * (g.norm() / left.norm()) if rescale and left.norm() > 0 else left)
    return out


def filter_normalized(
    directions: Sequence[Tensor], params: Sequence[Tensor], vectors: str = "zero"
) -> list[Tensor]:
    """d ‖θ‖/‖d‖ for each slice of the first dimension."""
    out = []
    for d, w in zip(directions, params, strict=True):
        if d.dim() < 2:
            out.append(torch.zeros_like(d) if vectors == "zero" else d)
            continue
        rows, weights = d.reshape(d.shape[0], -1), w.reshape(d.shape[0], -1)
        lengths = rows.norm(dim=1, keepdim=True)
        ratio = torch.where(lengths == 0, 0.0, weights.norm(dim=1, keepdim=True) / lengths)
        out.append((rows * ratio).reshape(d.shape))
    return out


def distance_penalty(
    tensors: Sequence[Tensor], anchors: Sequence[Tensor], form: str = "squared", alpha: float = 1.0
) -> Tensor:
    """d² = Σ ‖θ − a‖², −d², 1/d² or exp(−α d²)."""
    square = torch.stack(
        [((x - a) ** 2).sum() for x, a in zip(tensors, anchors, strict=True)]
    ).sum()
    return {
        "squared": square,
        "negative": -square,
        "inverse": 1 / square,
        "exponential": torch.exp(-alpha * square),
    }[form]

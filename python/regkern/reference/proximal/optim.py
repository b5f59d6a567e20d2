"""Proximal steps of optimizers by their definitions, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def sgd_step(
    p: Tensor,
    g: Tensor,
    buffer: Tensor | None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """p and the momentum after a step; ``buffer`` is None in the first."""
    g = -g if maximize else g
    g = g + weight_decay * p if weight_decay != 0.0 else g
    if momentum == 0.0:
        return p - lr * g, None
    buffer = g if buffer is None else momentum * buffer + (1.0 - dampening) * g
    return p - lr * (g + momentum * buffer if nesterov else buffer), buffer


def adamw_step(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    most: Tensor | None,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    maximize: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """p, m, v, the largest v, and the denominators √v̂ + ε, after step t; ``most`` is AMSGrad's."""
    g = -g if maximize else g
    m = betas[0] * m + (1.0 - betas[0]) * g
    v = betas[1] * v + (1.0 - betas[1]) * g * g
    most = torch.maximum(most, v) if most is not None else None
    denominator = ((v if most is None else most) / (1.0 - betas[1] ** t)).sqrt() + eps
    p = (1.0 - lr * weight_decay) * p - lr * (m / (1.0 - betas[0] ** t)) / denominator
    return p, m, v, most, denominator


def metric_soft_threshold(z: Tensor, d: Tensor, t: float) -> Tensor:
    """argmin ½ Σ dᵢ (xᵢ − zᵢ)² + t ‖x‖₁."""
    return z.sign() * (z.abs() - t / d).clamp(min=0.0)


def metric_group_prox(z: Tensor, d: Tensor, t: float) -> Tensor:
    """argmin ½ Σ dᵢ (xᵢ − zᵢ)² + t ‖x‖₂ of one group, its norm θ by bisection."""
    z, d = z.double(), d.double()
    if t == 0.0 or not bool((d * z).norm() > t):
        return z.clone() if t == 0.0 else torch.zeros_like(z)
    low, high = 0.0, float(z.norm())
    for _ in range(200):
        theta = 0.5 * (low + high)
        if float((z / (theta + t / d)).norm()) > 1.0:
            low = theta
        else:
            high = theta
    return z * high / (high + t / d)


def half_space_project(new: Tensor, old: Tensor, eps: float) -> Tensor:
    """Rows of ``new`` that have left the half-space of those of ``old`` as zeros."""
    x, y = (t.double().reshape(t.shape[0], -1) for t in (new, old))
    squares = (y * y).sum(1)
    gone = ((x * y).sum(1) < eps * squares) | (squares == 0)
    return torch.where(gone.reshape(-1, *[1] * (new.dim() - 1)), 0.0, new.double()).to(new.dtype)

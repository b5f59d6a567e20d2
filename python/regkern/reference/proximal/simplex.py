"""Sparse simplex maps by sorting, and the losses by their formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regkern.reference.proximal.projections import simplex_projection


def sparsemax(x: Tensor, dim: int = -1) -> Tensor:
    return simplex_projection(x, 1.0, dim)


def entmax15(x: Tensor, dim: int = -1) -> Tensor:
    """The quadratic in τ is solved for the k largest elements, for every k."""
    if x.numel() == 0:
        return x.clone()
    bad = (x.isnan() | (x == math.inf)).any(dim, keepdim=True)
    bad = bad | (x == -math.inf).all(dim, keepdim=True)
    clean = torch.where(bad, 0.0, x)
    a = ((clean - clean.detach().amax(dim, keepdim=True)) / 2).clamp(min=-2.0)
    ordered = a.sort(dim=dim, descending=True).values
    shape = [1] * x.dim()
    shape[dim] = -1
    k = torch.arange(1, x.shape[dim] + 1, dtype=x.dtype).reshape(shape)
    mean = ordered.cumsum(dim) / k
    spread = (ordered * ordered).cumsum(dim) / k - mean * mean
    room = 1.0 / k - spread
    tau = mean - torch.where(room > 0, room, 1.0).sqrt() * (room > 0)
    size = ((ordered >= tau) & (room >= 0)).cumprod(dim).sum(dim, keepdim=True).clamp(min=1)
    p = (a - tau.gather(dim, size - 1)).clamp(min=0) ** 2
    return torch.where(bad, math.nan, p)


def _loss(p: Tensor, x: Tensor, target: Tensor, dim: int, ignore: int, power: float) -> Tensor:
    if target.is_floating_point():
        q, known = target, torch.ones_like(p.sum(dim), dtype=torch.bool)
    else:
        known = target != ignore
        index = torch.where(known, target, 0).unsqueeze(dim)
        q = torch.zeros_like(p).scatter(dim, index, 1.0)

    def omega(v: Tensor) -> Tensor:
        positive = torch.where(v > 0, v, 1.0)
        return torch.where(v > 0, positive**power, 0.0) / (power * (power - 1.0))

    # The maximum of ⟨·, x⟩ − Ω: its gradient goes through x alone.
    linear = torch.where(p == q, 0.0, (p - q) * (x - x.detach().amax(dim, keepdim=True)))
    return torch.where(known, (omega(q) - omega(p) + linear).sum(dim), 0.0)


def _reduced(loss: Tensor, target: Tensor, ignore: int, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if target.is_floating_point():
        return loss.mean()
    return loss.sum() / (target != ignore).sum()


def sparsemax_loss(
    x: Tensor, target: Tensor, dim: int = -1, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    loss = _loss(sparsemax(x, dim), x, target, dim, ignore_index, 2.0)
    return _reduced(loss, target, ignore_index, reduction)


def entmax15_loss(
    x: Tensor, target: Tensor, dim: int = -1, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    loss = _loss(entmax15(x, dim), x, target, dim, ignore_index, 1.5)
    return _reduced(loss, target, ignore_index, reduction)

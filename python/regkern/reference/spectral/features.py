"""Definitions: statistics of features as penalties."""

from __future__ import annotations

import torch
from torch import Tensor


def covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.mT @ centred / (x.shape[0] - 1)


def _off_diagonal(c: Tensor) -> Tensor:
    return c - torch.diag(c.diagonal())


def standardize_columns(x: Tensor, eps: float = 1e-5) -> Tensor:
    """By the biased variance."""
    centred = x - x.mean(0)
    return centred / (centred.square().mean(0) + eps).sqrt()


def variance_penalty(x: Tensor, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    return torch.relu(gamma - (x.var(0) + eps).sqrt()).mean()


def covariance_penalty(x: Tensor) -> Tensor:
    return _off_diagonal(covariance(x)).square().sum() / x.shape[1]


def vicreg_loss(
    x: Tensor,
    y: Tensor,
    sim: float = 25.0,
    std: float = 25.0,
    cov: float = 1.0,
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    loss = sim * (x - y).square().mean()
    for z in (x, y):
        loss = loss + std * variance_penalty(z, gamma, eps) / 2 + cov * covariance_penalty(z)
    return loss


def whitening_penalty(x: Tensor) -> Tensor:
    return (covariance(x) - torch.eye(x.shape[1], dtype=x.dtype)).square().sum()


def iso_score(x: Tensor, zeta: float = 0.0, covariance_0: Tensor | None = None) -> Tensor:
    """By singular values, as the authors define it."""
    c = covariance(x)
    if covariance_0 is not None:
        c = (1 - zeta) * c + zeta * covariance_0
    if not bool(c.isfinite().all()):
        return c.sum() * torch.nan
    n = x.shape[1]
    values = torch.linalg.svdvals(c)
    normalised = n**0.5 * values / values.norm()
    defect = (normalised - 1.0).norm() / (2 * (n - n**0.5)) ** 0.5
    dimensions = (n - defect**2 * (n - n**0.5)) ** 2 / n**2
    score: Tensor = (n * dimensions - 1) / (n - 1)
    return score


def barlow_twins_loss(x: Tensor, y: Tensor, lam: float = 5e-3, eps: float = 1e-5) -> Tensor:
    c: Tensor = standardize_columns(x, eps).mT @ standardize_columns(y, eps) / x.shape[0]
    return (1 - c.diagonal()).square().sum() + lam * _off_diagonal(c).square().sum()

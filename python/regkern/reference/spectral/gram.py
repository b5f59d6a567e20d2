"""Definitions of the gram penalties and of the norms of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def matrix(weight: Tensor) -> Tensor:
    """(outputs, rest)."""
    return weight.reshape(weight.shape[0], -1)


def residual(weight: Tensor, side: str = "auto", diagonal: bool = True) -> Tensor:
    """W Wᵀ − I or Wᵀ W − I; without the diagonal, the product with 1 − I."""
    w = matrix(weight)
    rows = side == "rows" or (side == "auto" and w.shape[0] <= w.shape[1])
    gram = w @ w.mT if rows else w.mT @ w
    eye = torch.eye(gram.shape[0], dtype=gram.dtype)
    return gram - eye if diagonal else gram * (1 - eye)


def _norm(x: Tensor) -> Tensor:
    """|x|_F, with gradient 0 at 0."""
    square = x.square().sum()
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def orthogonality_penalty(
    weights: Sequence[Tensor], side: str = "auto", squared: bool = True, diagonal: bool = True
) -> Tensor:
    """Σ |W Wᵀ − I|², or the norms."""
    total = torch.zeros((), dtype=weights[0].dtype)
    for w in weights:
        r = residual(w, side, diagonal)
        total = total + (r.square().sum() if squared else _norm(r))
    return total


def sorsa_penalty(us: Sequence[Tensor], vs: Sequence[Tensor]) -> Tensor:
    """The mean over all matrices of |UᵀU − I| and |V Vᵀ − I|."""
    total = orthogonality_penalty(us, "columns", squared=False)
    total = total + orthogonality_penalty(vs, "rows", squared=False)
    return total / (len(us) + len(vs))


def srip_penalty(weights: Sequence[Tensor], side: str = "auto") -> Tensor:
    """Σ σ_max(W Wᵀ − I), exactly."""
    values = [torch.linalg.svdvals(residual(w, side)).amax() for w in weights]
    return torch.stack(values).sum()


def cross_gram_penalty(
    pairs: Sequence[tuple[Tensor, Tensor]], norm: str = "fro", squared: bool = False
) -> Tensor:
    """Σ |A Bᵀ|."""
    total = torch.zeros((), dtype=pairs[0][0].dtype)
    for a, b in pairs:
        c = a @ b.mT
        if norm == "l1":
            total = total + c.abs().sum()
        else:
            total = total + (c.square().sum() if squared else _norm(c))
    return total


def log_det_penalty(features: Tensor, delta: float = 0.0) -> Tensor:
    """−log det(FᵀF + δI)."""
    f = matrix(features)
    return -torch.logdet(f.mT @ f + delta * torch.eye(f.shape[1], dtype=f.dtype))


def coding_rate(features: Tensor, eps: float) -> Tensor:
    """½ log det(I + d / (n ε²) ZᵀZ)."""
    n, d = features.shape
    eye = torch.eye(d, dtype=features.dtype)
    return 0.5 * torch.logdet(eye + d / (n * eps**2) * features.mT @ features)


def invariance_penalty(gradient: Tensor, features: Tensor, delta: float = 0.0) -> Tensor:
    """gᵀ G⁻¹ g with G = φᵀφ / n + δI."""
    n, d = features.shape
    gram = features.mT @ features / n + delta * torch.eye(d, dtype=features.dtype)
    value: Tensor = gradient @ torch.linalg.inv(gram) @ gradient
    return value

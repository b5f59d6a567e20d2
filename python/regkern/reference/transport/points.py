"""Transport between clouds of points: the definition, with all costs in memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regkern.reference.transport import dense


def costs(x: Tensor, y: Tensor, cost_fn: str) -> Tensor:
    """C (..., n, m) from points (..., n, d) and (..., m, d)."""
    x, y = x[..., :, None, :], y[..., None, :, :]
    products = (x * y).sum(-1)
    if cost_fn == "dot":
        return -products
    if cost_fn == "cosine":
        lengths: Tensor = x.norm(dim=-1) * y.norm(dim=-1)
        return 1 - products / lengths
    square = (x - y).square().sum(-1)
    if cost_fn == "euclidean":
        # The derivative of |x − y| at 0 is 0.
        same = square == 0
        return torch.where(same, 0.0, torch.where(same, 1.0, square).sqrt())
    return square if cost_fn == "sqeuclidean" else square / 2


def softmin(
    x: Tensor, y: Tensor, weight: Tensor, source: Tensor, eps: Tensor, cost_fn: str
) -> Tensor:
    """f_i = −ε log Σ_j b_j exp((g_j − c(x_i, y_j)) / ε), for B problems."""
    return dense.soft_transform(costs(x, y, cost_fn), weight, source, eps)


def value(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    eps: float,
    cost_fn: str = "sqeuclidean",
    rho: float | None = None,
    iterations: int = 200,
) -> Tensor:
    """The dual objective of B problems after that many iterations, unrolled."""
    e = torch.full(x.shape[:1], eps, dtype=x.dtype)
    cost = costs(x, y, cost_fn)
    f, g = dense.potentials(cost, a, b, e, (rho, rho), iterations)
    return dense.value(cost, a, b, f, g, e, (rho, rho))


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    eps: float,
    cost_fn: str = "sqeuclidean",
    rho: float | None = None,
    iterations: int = 200,
) -> Tensor:
    """T(a, b) − T(a, a)/2 − T(b, b)/2 + ε (Σa − Σb)²/2."""
    between, of_x, of_y = (
        value(p, q, u, v, eps, cost_fn, rho, iterations)
        for p, q, u, v in ((x, y, a, b), (x, x, a, a), (y, y, b, b))
    )
    return between - (of_x + of_y) / 2 + eps / 2 * (a.sum(-1) - b.sum(-1)) ** 2


def monge_gap(
    x: Tensor, mapped: Tensor, eps: float, cost_fn: str = "sqeuclidean", iterations: int = 200
) -> Tensor:
    """Σ c(x_i, T(x_i)) / n − min ⟨P, C⟩ + ε Σ P log P, of uniform weights."""
    n = x.shape[-2]
    a = torch.full(x.shape[:-1], 1 / n, dtype=x.dtype)
    least = value(x, mapped, a, a, eps, cost_fn, None, iterations)
    own = costs(x, mapped, cost_fn).diagonal(dim1=-2, dim2=-1).mean(-1)
    # KL(P | a⊗a) = Σ P log P + 2 log n
    return own - (least - 2 * eps * math.log(n))

"""Definitions: Sinkhorn by its formulas, the cost of its plan, topic clusters."""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn_plan(cost: Tensor, a: Tensor, b: Tensor, eps: float, steps: int) -> Tensor:
    """P_ij = a_i b_j exp((f_i + g_j − C_ij) / ε) after ``steps`` alternations, unrolled."""
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(steps):
        f = -eps * torch.logsumexp(b.log() + (g - cost) / eps, 1)
        g = -eps * torch.logsumexp(a.log()[:, None] + (f[:, None] - cost) / eps, 0)
    return a[:, None] * b * torch.exp((f[:, None] + g - cost) / eps)


def ecrtm_loss(topics: Tensor, words: Tensor, alpha: float = 20.0, steps: int = 2000) -> Tensor:
    cost = (topics[:, None] - words[None]).square().sum(-1)
    k, v = cost.shape
    a = torch.full((k,), 1.0 / k, dtype=cost.dtype)
    b = torch.full((v,), 1.0 / v, dtype=cost.dtype)
    return (sinkhorn_plan(cost, a, b, 1.0 / alpha, steps) * cost).sum()

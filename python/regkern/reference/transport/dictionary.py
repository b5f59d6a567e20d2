"""Definitions: the conjugate of entropic transport, and a step of a Wasserstein dictionary."""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn_conjugate(g: Tensor, q: Tensor, cost: Tensor, eps: float) -> Tensor:
    """max over p on the simplex of ⟨p, g⟩ − W_ε(p, q), a column of softmax at a time: with the
    coupling's columns free, P_·j = q_j softmax((g − C_·j) / ε)."""
    total = torch.zeros((), dtype=g.dtype)
    for j in range(len(q)):
        if q[j] > 0:
            total = total + eps * q[j] * torch.logsumexp((g - cost[:, j]) / eps, 0)
            total = total - eps * q[j] * q[j].log()
    return total

"""Definitions: the Bures-Wasserstein distance, by eigenvalues."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_root(a: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT


def bures_wasserstein(a: Tensor, b: Tensor, tau: float = 0.0) -> Tensor:
    shift = tau * torch.eye(a.shape[-1], dtype=a.dtype)
    a, b = a + shift, b + shift
    root = matrix_root(b)
    inner = torch.linalg.eigvalsh(root @ a @ root).clamp(min=0).sqrt().sum(-1)

    def trace(c: Tensor) -> Tensor:
        return c.diagonal(dim1=-2, dim2=-1).sum(-1)

    return trace(a) + trace(b) - 2 * inner

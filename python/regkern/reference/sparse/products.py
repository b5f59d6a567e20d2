"""Products with a sparse matrix, entry by entry: what is no entry is not multiplied by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regkern.sparse.pattern import SparsePattern


def sparse_linear(
    x: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    activation: str = "none",
    feature_major: bool = False,
) -> Tensor:
    """σ(x Wᵀ + b)."""
    rows = x.movedim(0, -1) if feature_major else x
    y = rows.new_zeros((*rows.shape[:-1], pattern.shape[0]))
    y = y.index_add(-1, pattern.rows(), rows[..., pattern.index.long()] * values)
    y = y if bias is None else y + bias
    if activation == "relu":
        y = torch.relu(y)
    elif activation == "gelu":
        y = y * torch.special.ndtr(y)
    elif activation == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
        y = 0.5 * y * (1 + torch.tanh(inner))
    elif activation == "silu":
        y = y * torch.sigmoid(y)
    return y.movedim(-1, 0) if feature_major else y


def spmm_t(
    g: Tensor, values: Tensor, pattern: SparsePattern, feature_major: bool = False
) -> Tensor:
    """g W."""
    rows = g.movedim(0, -1) if feature_major else g
    x = rows.new_zeros((*rows.shape[:-1], pattern.shape[1]))
    x = x.index_add(-1, pattern.index.long(), rows[..., pattern.rows()] * values)
    return x.movedim(-1, 0) if feature_major else x


def sddmm(g: Tensor, x: Tensor, pattern: SparsePattern, feature_major: bool = False) -> Tensor:
    """gᵀ x at the entries."""
    if feature_major:
        g, x = g.movedim(0, -1), x.movedim(0, -1)
    full = g.flatten(0, -2).t() @ x.flatten(0, -2)
    return pattern.gather(full)

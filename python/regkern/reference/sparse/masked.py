"""Dense weights trained at the entries of a pattern: the weight is put together, and all of its
gradient computed."""

from __future__ import annotations

import torch
from torch import Tensor

from regkern.sparse.pattern import SparsePattern


def write_entries(
    weight: Tensor, values: Tensor, pattern: SparsePattern, base: Tensor | None = None
) -> Tensor:
    """The weight with v + b at the entries."""
    entries = values if base is None else values + base
    matrix = weight.reshape(pattern.shape)
    return torch.where(pattern.mask(), pattern.scatter(entries), matrix).reshape(weight.shape)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
) -> Tensor:
    """x Wᵀ + b with the values at the entries of W."""
    y = x @ write_entries(weight.detach(), values, pattern).t()
    return y if bias is None else y + bias

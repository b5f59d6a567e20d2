"""Dense weights trained at the entries of a pattern: the weight is put together, and all of its
gradient computed."""

from __future__ import annotations

from typing import Any

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


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """W * x + b with the values at the entries of W; four paddings are left, right, top, bottom."""
    whole = write_entries(weight.detach(), values, pattern)
    if not isinstance(padding, str):
        sides = torch.nn.modules.utils._pair(padding)
        around = sides if len(sides) == 4 else (sides[1], sides[1], sides[0], sides[0])
        mode = "constant" if padding_mode == "zeros" else padding_mode
        x, padding = torch.nn.functional.pad(x, around, mode), 0
    return torch.nn.functional.conv2d(x, whole, bias, stride, padding, dilation, groups)


def masked_conv1d(
    x: Tensor,
    weight: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: Any = 0,
    dilation: int = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """The same of rows; two paddings are left and right."""
    whole = write_entries(weight.detach(), values, pattern)
    if not isinstance(padding, str):
        sides = torch.nn.modules.utils._pair(padding)
        mode = "constant" if padding_mode == "zeros" else padding_mode
        x, padding = torch.nn.functional.pad(x, sides, mode), 0
    return torch.nn.functional.conv1d(x, whole, bias, stride, padding, dilation, groups)

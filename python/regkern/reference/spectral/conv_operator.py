"""Definitions of what is said of convolutions as linear operators: by their dense matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_CONV: tuple[Callable[..., Tensor], ...] = (
    torch.nn.functional.conv1d,
    torch.nn.functional.conv2d,
    torch.nn.functional.conv3d,
)
_TRANSPOSED: tuple[Callable[..., Tensor], ...] = (
    torch.nn.functional.conv_transpose1d,
    torch.nn.functional.conv_transpose2d,
    torch.nn.functional.conv_transpose3d,
)


def dense_operator(
    weight: Tensor,
    input_shape: Sequence[int],
    padding: int = 0,
    transposed: bool = False,
    groups: int = 1,
    circular: bool = False,
    **options: Any,
) -> Tensor:
    """The matrix (outputs, inputs) of a convolution: its effect on every unit image."""
    dims = len(input_shape)
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    shape = (channels, *input_shape)
    numel = torch.Size(shape).numel()
    units = torch.eye(numel, dtype=weight.dtype).reshape(numel, *shape)
    if circular:
        units = torch.nn.functional.pad(units, (padding,) * (2 * dims), mode="circular")
        padding = 0
    function = (_TRANSPOSED if transposed else _CONV)[dims - 1]
    images = function(units, weight, padding=padding, groups=groups, **options)
    return images.flatten(1).mT


def operator_norm(weight: Tensor, input_shape: Sequence[int], **options: Any) -> Tensor:
    """The largest singular value of the matrix."""
    values: Tensor = torch.linalg.svdvals(dense_operator(weight, input_shape, **options))
    return values.amax()


def conv_orthogonality(weight: Tensor, stride: int = 1) -> Tensor:
    """|Conv(K, K) − I|², tap by tap, of a kernel (M, C, k, k)."""
    m, c, k = weight.shape[:3]
    reach = (k - 1) // stride
    total = torch.zeros((), dtype=weight.dtype)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            sy, sx = dy * stride, dx * stride
            here = weight[:, :, max(sy, 0) : k + min(sy, 0), max(sx, 0) : k + min(sx, 0)]
            there = weight[:, :, max(-sy, 0) : k + min(-sy, 0), max(-sx, 0) : k + min(-sx, 0)]
            overlap = here.flatten(1) @ there.flatten(1).mT
            if dy == 0 and dx == 0:
                overlap = overlap - torch.eye(m, dtype=weight.dtype)
            total = total + overlap.square().sum()
    return total - max(m - c * stride**2, 0)

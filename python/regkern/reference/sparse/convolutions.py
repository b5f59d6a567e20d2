"""Convolutions with a sparse weight, entry by entry: what is no entry is not multiplied by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regkern.sparse.pattern import SparsePattern


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    kernel_size: int | Sequence[int] = 3,
    padding_mode: str = "zeros",
    activation: str = "none",
) -> Tensor:
    """σ(b + Σ W x) of images (N, I, H, W)."""
    (kh, kw), (sh, sw), (dh, dw) = _pair(kernel_size), _pair(stride), _pair(dilation)
    if padding == "same":
        rows, columns = dh * (kh - 1), dw * (kw - 1)
        around = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
    elif isinstance(padding, str):
        around = [0, 0, 0, 0]
    elif not isinstance(padding, int) and len(padding) == 4:
        around = list(padding)
    else:
        ph, pw = _pair(padding)
        around = [pw, pw, ph, ph]
    mode = "constant" if padding_mode == "zeros" else padding_mode
    x = torch.nn.functional.pad(x, around, mode)
    height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    outputs, channels = pattern.shape[0], x.shape[1] // groups
    planes = [x.new_zeros(x.shape[0], height, width) for _ in range(outputs)]
    places = zip(pattern.rows().tolist(), pattern.index.tolist(), strict=True)
    for e, (o, column) in enumerate(places):
        c, i, j = column // (kh * kw), column // kw % kh, column % kw
        plane = x[:, o // (outputs // groups) * channels + c]
        seen = plane[:, i * dh :, j * dw :][:, ::sh, ::sw][:, :height, :width]
        planes[o] = planes[o] + values[e] * seen
    y = torch.stack(planes, 1)
    y = y if bias is None else y + bias[:, None, None]
    return torch.relu(y) if activation == "relu" else y


def sparse_conv1d(
    x: Tensor,
    values: Tensor,
    pattern: SparsePattern,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    activation: str = "none",
) -> Tensor:
    """The same of images of one row, (N, I, L)."""
    taps = pattern.shape[1] // (x.shape[1] // groups)
    y = sparse_conv2d(
        x.unsqueeze(2),
        values,
        pattern,
        bias,
        (1, stride),
        (0, padding),
        (1, dilation),
        groups,
        (1, taps),
        activation=activation,
    )
    return y.squeeze(2)

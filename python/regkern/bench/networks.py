"""Parameters of a network as parts of one tensor, for the cases whose op takes a list."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    """The shapes of ResNet-50's 161 parameters."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, channels, 1), (width, width, 3), (4 * width, width, 1)]
            if block == 0:
                convolutions.append((4 * width, channels, 1))
            for out, inputs, k in convolutions:
                shapes += [(out, inputs, k, k), (out,), (out,)]
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def resnet50_weights() -> Shapes:
    """The 54 of them that have more than one dimension."""
    return [shape for shape in resnet50() if len(shape) > 1]


def size(shapes: Shapes) -> int:
    """The number of elements."""
    return sum(math.prod(shape) for shape in shapes)


def parts(x: Tensor, shapes: Shapes) -> list[Tensor]:
    """Views of ``x``: ``shapes`` if they fill it, else two matrices and what is left of it."""
    if x.numel() != size(shapes):
        rows = x.numel() // 18
        shapes = [(rows, 9), (rows, 3, 3), (x.numel() - 18 * rows, 1)]
    views = torch.split(x, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(views, shapes, strict=True)]

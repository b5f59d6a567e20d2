"""Modules, named and shaped like the layers that they replace."""

from regkern.nn.masks import (
    CutMix,
    DropBlock1d,
    DropBlock2d,
    DropBlock3d,
    LinearSchedule,
    MixUp,
    RandomErasing,
    linear_schedule,
)

__all__ = [
    "CutMix",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "LinearSchedule",
    "MixUp",
    "RandomErasing",
    "linear_schedule",
]

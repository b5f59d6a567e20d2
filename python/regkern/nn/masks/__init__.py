"""Modules of the mask family."""

from regkern.nn.masks.drop_block import (
    DropBlock1d,
    DropBlock2d,
    DropBlock3d,
    LinearSchedule,
    linear_schedule,
)
from regkern.nn.masks.transforms import CutMix, MixUp, RandomErasing

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

"""Modules of the mask family."""

from regkern.nn.masks.drop_block import DropBlock1d, DropBlock2d, DropBlock3d
from regkern.nn.masks.dropout import Dropout, Dropout1d, Dropout2d, Dropout3d, DropPath
from regkern.nn.masks.noise import (
    DiffusionPerturb,
    FeatureJitter,
    NoiseInject,
)
from regkern.nn.masks.patches import (
    HardnessSchedule,
    PatchDropout,
    PatchMask,
)
from regkern.nn.masks.schedule import LinearSchedule, linear_schedule
from regkern.nn.masks.shapes import (
    GridMask,
    HideAndSeek,
    Mosaic,
    PatchMix,
    SpecAugment,
)
from regkern.nn.masks.transforms import CutMix, MixUp, RandomErasing

__all__ = [
    "CutMix",
    "DiffusionPerturb",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureJitter",
    "GridMask",
    "HardnessSchedule",
    "HideAndSeek",
    "LinearSchedule",
    "MixUp",
    "Mosaic",
    "NoiseInject",
    "PatchDropout",
    "PatchMask",
    "PatchMix",
    "RandomErasing",
    "SpecAugment",
    "linear_schedule",
]

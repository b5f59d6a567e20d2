"""Modules of the mask family."""

from regkern.nn.masks.drop_block import DropBlock1d, DropBlock2d, DropBlock3d
from regkern.nn.masks.dropout import Dropout, Dropout1d, Dropout2d, Dropout3d, DropPath
from regkern.nn.masks.heads import (
    CompactDropoutLinear,
    MultiSampleDropoutLinear,
    ObservedDropout,
)
from regkern.nn.masks.low_rank import (
    LoRADropoutLinear,
)
from regkern.nn.masks.nested import (
    NestedDropout,
)
from regkern.nn.masks.noise import (
    DiffusionPerturb,
    FeatureJitter,
    NoiseInject,
)
from regkern.nn.masks.patches import (
    PatchDropout,
    PatchMask,
)
from regkern.nn.masks.schedule import (
    CurriculumSchedule,
    EarlySchedule,
    HardnessSchedule,
    LateSchedule,
    LinearSchedule,
    linear_schedule,
)
from regkern.nn.masks.shapes import (
    GridMask,
    HideAndSeek,
    Mosaic,
    PatchMix,
    SpecAugment,
)
from regkern.nn.masks.transforms import CutMix, MixUp, RandomErasing
from regkern.nn.masks.weights import (
    Mixout,
    SubnetworkAnnealing,
    WeightDropout,
    mixout_weights,
    weight_dropout,
)

__all__ = [
    "CompactDropoutLinear",
    "CurriculumSchedule",
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
    "EarlySchedule",
    "FeatureJitter",
    "GridMask",
    "HardnessSchedule",
    "HideAndSeek",
    "LateSchedule",
    "LinearSchedule",
    "LoRADropoutLinear",
    "MixUp",
    "Mixout",
    "Mosaic",
    "MultiSampleDropoutLinear",
    "NestedDropout",
    "NoiseInject",
    "ObservedDropout",
    "PatchDropout",
    "PatchMask",
    "PatchMix",
    "RandomErasing",
    "SpecAugment",
    "SubnetworkAnnealing",
    "WeightDropout",
    "linear_schedule",
    "mixout_weights",
    "weight_dropout",
]

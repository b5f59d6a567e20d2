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
from regkern.nn.quantize import (
    AnalogWeights,
    LatentQuantizer,
    MinMaxObserver,
    MovingAverageObserver,
    PercentileObserver,
    QuantNoise,
)

__all__ = [
    "AnalogWeights",
    "CutMix",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "LatentQuantizer",
    "LinearSchedule",
    "MinMaxObserver",
    "MixUp",
    "MovingAverageObserver",
    "PercentileObserver",
    "QuantNoise",
    "RandomErasing",
    "linear_schedule",
]

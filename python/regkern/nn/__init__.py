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
    ElasticFakeQuantize,
    FakeQuantize,
    LatentQuantizer,
    MinMaxObserver,
    MovingAverageObserver,
    PercentileObserver,
    QuantNoise,
    StochasticRound,
)

__all__ = [
    "AnalogWeights",
    "CutMix",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "ElasticFakeQuantize",
    "FakeQuantize",
    "LatentQuantizer",
    "LinearSchedule",
    "MinMaxObserver",
    "MixUp",
    "MovingAverageObserver",
    "PercentileObserver",
    "QuantNoise",
    "RandomErasing",
    "StochasticRound",
    "linear_schedule",
]

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
from regkern.nn.proximal import (
    Entmax15,
    Entmax15Loss,
    Sparsemax,
    SparsemaxLoss,
    UnfoldedISTA,
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
    "Entmax15",
    "Entmax15Loss",
    "FakeQuantize",
    "LatentQuantizer",
    "LinearSchedule",
    "MinMaxObserver",
    "MixUp",
    "MovingAverageObserver",
    "PercentileObserver",
    "QuantNoise",
    "RandomErasing",
    "Sparsemax",
    "SparsemaxLoss",
    "StochasticRound",
    "UnfoldedISTA",
    "linear_schedule",
]

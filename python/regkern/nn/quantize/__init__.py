"""Modules of the quantize family."""

from regkern.nn.quantize.analog import (
    AnalogWeights,
)
from regkern.nn.quantize.latent import (
    LatentQuantizer,
)
from regkern.nn.quantize.observers import (
    MinMaxObserver,
    MovingAverageObserver,
    PercentileObserver,
)
from regkern.nn.quantize.quant_noise import (
    QuantNoise,
)

__all__ = [
    "AnalogWeights",
    "LatentQuantizer",
    "MinMaxObserver",
    "MovingAverageObserver",
    "PercentileObserver",
    "QuantNoise",
]

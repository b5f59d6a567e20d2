"""Modules of the quantize family."""

from regkern.nn.quantize.analog import (
    AnalogWeights,
)
from regkern.nn.quantize.fake_quantize import (
    ElasticFakeQuantize,
    FakeQuantize,
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
from regkern.nn.quantize.rounding import (
    StochasticRound,
)

__all__ = [
    "AnalogWeights",
    "ElasticFakeQuantize",
    "FakeQuantize",
    "LatentQuantizer",
    "MinMaxObserver",
    "MovingAverageObserver",
    "PercentileObserver",
    "QuantNoise",
    "StochasticRound",
]

"""Stochastic quantization noise: one rounding core for every format."""

from regkern.quantize.fake import (
    Encoded,
    FakeQuantized,
    encode,
    fake_quantize,
    quantize_weights,
    round_gradient,
)
from regkern.quantize.formats import Format, format_of
from regkern.quantize.rounding import round_to, round_to_, stochastic_round, stochastic_round_

__all__ = [
    "Encoded",
    "FakeQuantized",
    "Format",
    "encode",
    "fake_quantize",
    "format_of",
    "quantize_weights",
    "round_gradient",
    "round_to",
    "round_to_",
    "stochastic_round",
    "stochastic_round_",
]

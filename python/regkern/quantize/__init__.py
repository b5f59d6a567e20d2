"""Stochastic quantization noise: one rounding core for every format."""

from regkern.quantize.analog import (
    KINDS,
    PCM_COEFFICIENTS,
    additive_uniform_noise,
    additive_uniform_noise_,
    drop_connect,
    weight_noise,
    weight_noise_,
)
from regkern.quantize.bitwise import (
    bitwise_scale,
    bitwise_weights,
    pack_bits,
    sign_ste,
    unpack_bits,
)
from regkern.quantize.block_noise import (
    nearest_centroid,
    quant_noise,
    quant_noise_,
    subvector_mean,
)
from regkern.quantize.fake import (
    Encoded,
    FakeQuantized,
    encode,
    fake_quantize,
    quantize_weights,
    round_gradient,
)
from regkern.quantize.faults import (
    inject_faults,
    stuck_at,
    stuck_at_masks,
)
from regkern.quantize.formats import (
    Format,
    format_of,
)
from regkern.quantize.latent import (
    LatentQuantized,
    latent_quantize,
)
from regkern.quantize.levels import (
    NearestLevel,
    nearest_level,
)
from regkern.quantize.lists import (
    copy_stochastic_,
)
from regkern.quantize.penalty import (
    level_penalty,
)
from regkern.quantize.rounding import (
    round_to,
    round_to_,
    stochastic_round,
    stochastic_round_,
)
from regkern.quantize.statistics import (
    Moments,
    histogram,
    moments,
    moments_penalty,
    percentile_range,
    value_range,
)

__all__ = [
    "KINDS",
    "PCM_COEFFICIENTS",
    "Encoded",
    "FakeQuantized",
    "Format",
    "LatentQuantized",
    "Moments",
    "NearestLevel",
    "additive_uniform_noise",
    "additive_uniform_noise_",
    "bitwise_scale",
    "bitwise_weights",
    "copy_stochastic_",
    "drop_connect",
    "encode",
    "fake_quantize",
    "format_of",
    "histogram",
    "inject_faults",
    "latent_quantize",
    "level_penalty",
    "moments",
    "moments_penalty",
    "nearest_centroid",
    "nearest_level",
    "pack_bits",
    "percentile_range",
    "quant_noise",
    "quant_noise_",
    "quantize_weights",
    "round_gradient",
    "round_to",
    "round_to_",
    "sign_ste",
    "stochastic_round",
    "stochastic_round_",
    "stuck_at",
    "stuck_at_masks",
    "subvector_mean",
    "unpack_bits",
    "value_range",
    "weight_noise",
    "weight_noise_",
]

"""Modules of the spectral family."""

from regkern.nn.spectral.conditioning import (
    WeightConditioning,
    weight_conditioning,
)
from regkern.nn.spectral.conv import (
    ConvSpectralNorm,
    conv_spectral_norm,
)
from regkern.nn.spectral.features import (
    BarlowTwinsLoss,
    IsotropyPenalty,
    VICRegLoss,
    VirtualAdversarialLoss,
    WhiteningPenalty,
)
from regkern.nn.spectral.layers import (
    SpectralConv1d,
    SpectralConv2d,
    SpectralConv3d,
    SpectralLinear,
)
from regkern.nn.spectral.lipschitz import (
    AOLConv2d,
    AOLLinear,
    DistanceAttention,
    SLLConv2d,
    SLLLinear,
)
from regkern.nn.spectral.norm import (
    SpectralNorm,
    spectral_norm,
)

__all__ = [
    "AOLConv2d",
    "AOLLinear",
    "BarlowTwinsLoss",
    "ConvSpectralNorm",
    "DistanceAttention",
    "IsotropyPenalty",
    "SLLConv2d",
    "SLLLinear",
    "SpectralConv1d",
    "SpectralConv2d",
    "SpectralConv3d",
    "SpectralLinear",
    "SpectralNorm",
    "VICRegLoss",
    "VirtualAdversarialLoss",
    "WeightConditioning",
    "WhiteningPenalty",
    "conv_spectral_norm",
    "spectral_norm",
    "weight_conditioning",
]

"""Modules of the transport family."""

from regkern.nn.transport.divergence import SamplesLoss, SinkhornDivergence
from regkern.nn.transport.losses import (
    ClassBasedTransport,
    ECRTMLoss,
    SlicedWasserstein,
)
from regkern.nn.transport.normalize import SinkhornNormalize
from regkern.nn.transport.router import SparseRouter

__all__ = [
    "ClassBasedTransport",
    "ECRTMLoss",
    "SamplesLoss",
    "SinkhornDivergence",
    "SinkhornNormalize",
    "SlicedWasserstein",
    "SparseRouter",
]

"""Modules of the transport family."""

from regkern.nn.transport.divergence import SamplesLoss, SinkhornDivergence
from regkern.nn.transport.normalize import SinkhornNormalize

__all__ = ["SamplesLoss", "SinkhornDivergence", "SinkhornNormalize"]

"""Modules of the transport family."""

from regkern.nn.transport.divergence import SamplesLoss, SinkhornDivergence
from regkern.nn.transport.normalize import SinkhornNormalize
from regkern.nn.transport.router import SparseRouter

__all__ = ["SamplesLoss", "SinkhornDivergence", "SinkhornNormalize", "SparseRouter"]

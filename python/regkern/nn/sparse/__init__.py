"""Modules of sparse backprop."""

from regkern.nn.sparse.conv import (
    SparseConv1d,
    SparseConv2d,
)
from regkern.nn.sparse.gates import ChannelGate, MaskTunedLinear
from regkern.nn.sparse.linear import SparseLinear
from regkern.nn.sparse.masked import MaskedLinear

__all__ = [
    "ChannelGate",
    "MaskTunedLinear",
    "MaskedLinear",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
]

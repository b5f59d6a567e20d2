"""Modules of sparse backprop."""

from regkern.nn.sparse.conv import (
    SparseConv1d,
    SparseConv2d,
)
from regkern.nn.sparse.gates import ChannelGate, MaskTunedLinear
from regkern.nn.sparse.linear import SparseLinear
from regkern.nn.sparse.masked import MaskedLinear
from regkern.nn.sparse.masked_conv import (
    MaskedConv1d,
    MaskedConv2d,
)

__all__ = [
    "ChannelGate",
    "MaskTunedLinear",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedLinear",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
]

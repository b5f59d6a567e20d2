"""Modules of sparse backprop."""

from regkern.nn.sparse.linear import SparseLinear

__all__ = ["SparseLinear"]

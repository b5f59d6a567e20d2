"""Sparse backprop: products with sparse matrices at the cost of their entries."""

from regkern.sparse.pattern import SparsePattern
from regkern.sparse.products import sddmm, sparse_linear, spmm, spmm_t

__all__ = ["SparsePattern", "sddmm", "sparse_linear", "spmm", "spmm_t"]

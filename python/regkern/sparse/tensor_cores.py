"""Gradients of a few entries of a dense weight by whole tiles, on tensor cores."""

from __future__ import annotations

from torch import Tensor

from regkern._registration import register
from regkern.sparse import products
from regkern.sparse.pattern import SparsePattern

_tiles = register("sddmm_tiles", products._fake_sddmm)
_tiles.differentiable(products._sddmm_setup, products._sddmm_backward)


def sddmm_tiles(
    g: Tensor, x: Tensor, pattern: SparsePattern, feature_major: bool = False
) -> Tensor:
    r"""The product of two dense matrices at the entries of a pattern, by tiles that have any.

    .. math:: v_e = \sum_b g_{b r_e} x_{b c_e}

    On CUDA, of bfloat16 and float16: tiles of 64 by 64 features of :math:`g^T x` with an entry in
    them are computed whole, by tensor cores, and the entries are picked from them; the others are
    skipped. :func:`~regkern.sparse.sddmm` does so by itself for 65536 entries or more with 128 or
    more in a tile on average, where that reads less. Where entries cluster in fewer tiles, as
    pruning by blocks or adapters have them, say so by calling this function. Elsewhere the two are
    the same.

    Parameters
    ----------
    g : Tensor
        (..., R), or with ``feature_major`` (R, ...): float32, float64, bfloat16 or float16.
    x : Tensor
        (..., C), or (C, ...), of the dtype of g.
    pattern : SparsePattern
        Of shape (R, C).
    feature_major : bool
        Features come first in g and x.

    Returns
    -------
    Tensor
        v (nnz,), in float32 (float64 of float64). Differentiable.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Tensor cores add float32 sums in an order of their own: this is the one sum whose bits are not
    those of the CPU. Of n products with a sum of magnitudes S its error is below n 2⁻²² S.

    Bytes moved, of B elements of the batch: 256 B for each tile with entries, against 2 B an entry
    by ``sddmm``, and 8 an entry.

    References
    ----------
    T. Gale, M. Zaharia, C. Young and E. Elsen, "Sparse GPU kernels for deep learning", SC 2020.
    """
    return products.sampled("sddmm_tiles", _tiles, g, x, pattern, feature_major)

"""The largest singular values of a matrix, several at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.spectral.power import as_matrix, check_iterations, check_weights, resolve_dims


class Subspace(NamedTuple):
    """σ (k,), descending, with left vectors (m, k) and right vectors (n, k) as columns."""

    sigma: Tensor
    u: Tensor
    v: Tensor


def subspace_iteration(
    weight: Tensor, v: Tensor, n_iter: int = 1, *, dim: int = 0, update: bool = True
) -> Subspace:
    r"""The k largest singular values and their vectors by subspace iteration.

    .. math:: V \leftarrow \operatorname{qr}(W^\top (W V)), \qquad
        W V = U Σ Z^\top, \qquad V \leftarrow V Z

    the second by a decomposition of m x k numbers, once in the end (Rayleigh-Ritz).

    Parameters
    ----------
    weight : Tensor
        Of two dimensions or more: W is dimension ``dim`` first, all others flattened, (m, n).
    v : Tensor
        (n, k), k ≤ min(m, n), float32 (float64 for float64): where the iteration starts from, any
        independent columns. Overwritten with the result where ``update``.
    n_iter : int
        Iterations; 0 takes V as it is, with orthonormal columns.
    dim : int
        The dimension of rows.
    update : bool
        Whether ``v`` is overwritten.

    Returns
    -------
    Subspace
        σ is differentiable any number of times in ``weight``, vectors being constants:
        :math:`\partial σ_i / \partial W = u_i v_i^\top`. A zero matrix has σ = 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    W is read twice an iteration and once in the end, by matrix products; for the largest value
    alone :func:`power_iteration` reads it once. The error of σ_i falls by
    :math:`(σ_{k+1}/σ_i)^4` an iteration. On CUDA the decompositions wait for the device.

    References
    ----------
    Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011.
    """
    op = "subspace_iteration"
    (w,) = check_weights(op, weight)
    (d,) = resolve_dims(op, [w], dim)
    check_iterations(op, "n_iter", n_iter, 0)
    checks.on_device(op, "v", v, w)
    matrix = as_matrix(w, d).to(compute_dtype(w))
    m, n = matrix.shape
    if v.dim() != 2 or v.shape[0] != n or not 1 <= v.shape[1] <= min(m, n):
        raise ValueError(
            f"regkern.{op}: expected `v` of shape ({n}, k) with k from 1 to {min(m, n)}, got "
            f"{tuple(v.shape)}"
        )
    if v.dtype != matrix.dtype:
        raise TypeError(f"regkern.{op}: expected `v` of dtype {matrix.dtype}, got {v.dtype}")
    with torch.no_grad():
        right = v.clone()
        for _ in range(n_iter):
            # Scaled, squares neither overflow nor vanish.
            left = matrix @ right
            largest = left.abs().amax()
            left = left / torch.where(largest == 0, torch.ones_like(largest), largest)
            right = torch.linalg.qr(matrix.T @ left)[0]
    product = matrix @ right
    with torch.no_grad():
        u, _, turn = torch.linalg.svd(product, full_matrices=False)
        right = right @ turn.T
        if update:
            v.copy_(right)
    return Subspace((u * (product @ turn.T)).sum(0), u, right)

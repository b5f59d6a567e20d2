"""Relaxed permutations: with Gumbel noise, and between the streams of hyper-connections."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.random import resolve_seed
from regkern.spectral.directions import random_directions
from regkern.transport.normalize import sinkhorn_normalize


def gumbel_noise(op: str, like: Tensor, seed: Tensor | None, generator: Any) -> Tensor:
    """Standard Gumbel numbers, of float32 or float64: −ln E, where E is half the sum of the squares
    of two normals."""
    wide = like.new_empty(like.shape, dtype=compute_dtype(like))
    seed = resolve_seed(op, like, seed, generator)
    x, y = random_directions([wide, wide], "normal", seed=seed)
    return -(x.square() + y.square()).mul(0.5).clamp(min=1e-37).log()


def gumbel_sinkhorn(
    logits: Tensor,
    tau: float | Tensor = 1.0,
    n_iter: int = 20,
    *,
    noise: float | Tensor = 1.0,
    n_samples: int | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    r"""Samples of relaxed permutations.

    .. math::
        S((X + \sigma G) / \tau), \qquad G_{ij} \sim \text{Gumbel}(0, 1)

    with S as :func:`regkern.sinkhorn_normalize`. As τ goes to 0 and the steps grow in number, this
    goes to the permutation of largest :math:`\langle P, X + \sigma G \rangle`.

    Parameters
    ----------
    logits : Tensor
        X, (..., n, m).
    tau : float or Tensor
        τ.
    n_iter : int
        Steps.
    noise : float or Tensor
        σ; 0 for none.
    n_samples : int, optional
        How many samples, in a new first dimension.
    seed : Tensor, optional
        int64 ``(key, offset)`` from :func:`regkern.make_seed`.
    generator : torch.Generator, optional
        Draws the seed where there is none.
    **options
        What else :func:`regkern.sinkhorn_normalize` takes: ``rows``, ``columns``, ``slack``, …

    Returns
    -------
    Tensor
        (..., n, m), or (n_samples, ..., n, m).

    Raises
    ------
    TypeError, ValueError
        For wrong types and shapes, and ``n_samples`` below 1.

    Notes
    -----
    A draw belongs to an element: the same seed gives the same noise on CPU and GPU. The noise is
    two tensors of normals that are read once; the rest is one kernel.

    References
    ----------
    G. Mena et al., "Learning latent permutations with Gumbel-Sinkhorn networks", 2018.
    """
    op = "gumbel_sinkhorn"
    checks.floating(op, "logits", logits)
    checks.scale(op, "noise", noise)
    x = logits
    if n_samples is not None:
        checks.at_least(op, "n_samples", n_samples, 1)
        x = x.expand(n_samples, *x.shape)
    if isinstance(noise, Tensor) or noise != 0:
        x = (x + noise * gumbel_noise(op, x, seed, generator)).to(logits.dtype)
    return sinkhorn_normalize(x, n_iter, tau=tau, **options)


class HyperConnection(NamedTuple):
    """How n streams are read (..., n), written (..., n) and mixed (..., n, n)."""

    pre: Tensor
    post: Tensor
    residual: Tensor


def hyper_connection(
    pre: Tensor, post: Tensor, residual: Tensor, n_iter: int = 20, eps: float = 1e-6
) -> HyperConnection:
    r"""The weights of manifold-constrained hyper-connections from their logits.

    .. math::
        H^\text{pre} = \sigma(\cdot), \quad H^\text{post} = 2 \sigma(\cdot), \quad
        H^\text{res} = S(\cdot), \qquad
        x' = H^\text{res} x + (H^\text{post})^\top F(H^\text{pre} x)

    S is :func:`regkern.sinkhorn_normalize` with ``eps``, in the order of the authors' code: a
    softmax over rows, and columns last. Mixing then neither amplifies nor forgets what the streams
    have in common.

    Parameters
    ----------
    pre, post : Tensor
        (..., n) logits, one set by token.
    residual : Tensor
        (..., n, n) logits.
    n_iter : int
        Steps; the softmax is the first.
    eps : float
        Of the normalisation; 0 for exact steps.

    Returns
    -------
    HyperConnection
        ``(pre, post, residual)``.

    References
    ----------
    Z. Xie et al., "mHC: manifold-constrained hyper-connections", 2025.
    """
    op = "hyper_connection"
    for name, t in (("pre", pre), ("post", post), ("residual", residual)):
        checks.floating(op, name, t)
    n = residual.shape[-1]
    if residual.dim() < 2 or residual.shape[-2] != n:
        raise ValueError(
            f"regkern.{op}: expected `residual` (..., n, n), got {tuple(residual.shape)}"
        )
    for name, t in (("pre", pre), ("post", post)):
        if t.shape != residual.shape[:-1]:
            raise ValueError(
                f"regkern.{op}: expected `{name}` {tuple(residual.shape[:-1])}, got "
                f"{tuple(t.shape)}"
            )
    mixed = sinkhorn_normalize(residual, n_iter, eps=eps)
    return HyperConnection(pre.sigmoid(), 2.0 * post.sigmoid(), mixed)

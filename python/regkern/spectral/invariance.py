"""Invariance over environments: gradients and Hessians of a linear classifier in closed form.

The softmax cross-entropy of logits W z has the gradient (p − y) zᵀ by W, and a Hessian that takes V
to (diag p − p pᵀ)(V z) zᵀ: matching them needs no graph of a backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.random import resolve_seed
from regkern.spectral.directions import random_directions


class _Heads:
    """A batch split into environments: weights (E, B) that average over each."""

    def __init__(
        self,
        op: str,
        logits: Tensor,
        labels: Tensor,
        features: Tensor,
        environments: Tensor,
        n: int,
    ) -> None:
        for name, value in (("logits", logits), ("features", features)):
            checks.floating(op, name, value)
            if value.dim() != 2 or value.shape[0] != logits.shape[0]:
                raise ValueError(
                    f"regkern.{op}: expected `{name}` of two dimensions, of one batch, got "
                    f"{tuple(value.shape)}"
                )
        for name, value in (("labels", labels), ("environments", environments)):
            checks.on_device(op, name, value, logits)
            if value.dtype != torch.int64 or tuple(value.shape) != (logits.shape[0],):
                raise ValueError(
                    f"regkern.{op}: expected `{name}` to be int64 of shape ({logits.shape[0]},), "
                    f"got {value.dtype}, {tuple(value.shape)}"
                )
        if n < 1:
            raise ValueError(f"regkern.{op}: expected `n_environments` to be at least 1, got {n}")
        kind = compute_dtype(logits)
        self.p = logits.to(kind).softmax(1)
        target = torch.nn.functional.one_hot(labels, logits.shape[1]).to(kind)
        self.residual = self.p - target
        self.z = features.to(kind)
        own = environments[None, :] == torch.arange(n, device=logits.device)[:, None]
        self.counts = own.sum(1).to(kind)
        self.share = own.to(kind) / self.counts.clamp(min=1)[:, None]

    def averaged(self, rows: Tensor) -> Tensor:
        """Σ_b share_eb rows_b z_bᵀ: (E, K, d)."""
        return torch.einsum("eb,bk,bd->ekd", self.share, rows, self.z)

    def gradients(self) -> Tensor:
        return self.averaged(self.residual)

    def products(self, v: Tensor) -> Tensor:
        """H_e V_e for V of shape (E, K, d)."""
        moved = torch.einsum("ekd,bd->ebk", v, self.z)
        along = (moved * self.p).sum(2, keepdim=True)
        rows = self.p * (moved - along)
        return torch.einsum("eb,ebk,bd->ekd", self.share, rows, self.z)

    def spread(self, values: Tensor) -> Tensor:
        """The mean over environments of the squared distance to their mean; empty ones left out."""
        there = (self.counts > 0).to(values.dtype)
        total = there.sum().clamp(min=1)
        flat = values.flatten(1)
        mean = there @ flat / total
        return there @ (flat - mean).square().sum(1) / total


def head_gradients(
    logits: Tensor, labels: Tensor, features: Tensor, environments: Tensor, n_environments: int
) -> Tensor:
    r"""The gradient of the mean cross-entropy of each environment by the weights of the classifier.

    .. math:: g_e = \operatorname{mean}_{b \in e} (p_b - y_b) z_b^\top

    Parameters
    ----------
    logits : Tensor
        (batch, K).
    labels : Tensor
        int64, (batch).
    features : Tensor
        z, (batch, d): what the classifier multiplies. A column of ones stands for its bias.
    environments : Tensor
        int64, (batch), in [0, ``n_environments``).
    n_environments : int
        E.

    Returns
    -------
    Tensor
        (E, K, d), differentiable in logits and features any number of times; zeros for an
        environment without samples.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Hemati, Zhang, Estiri and Chen, "Understanding Hessian alignment for domain generalization",
    ICCV 2023.
    """
    op = "head_gradients"
    return _Heads(op, logits, labels, features, environments, n_environments).gradients()


def head_hessian_products(
    logits: Tensor,
    labels: Tensor,
    features: Tensor,
    environments: Tensor,
    n_environments: int,
    vectors: Tensor,
) -> Tensor:
    r"""The Hessian of each environment times a vector.

    .. math:: H_e V_e = \operatorname{mean}_{b \in e} (\operatorname{diag} p_b - p_b p_b^\top)
        (V_e z_b) z_b^\top

    Parameters are those of :func:`head_gradients`, and ``vectors`` of shape (E, K, d).
    """
    op = "head_hessian_products"
    heads = _Heads(op, logits, labels, features, environments, n_environments)
    expected = (n_environments, logits.shape[1], features.shape[1])
    if tuple(vectors.shape) != expected:
        raise ValueError(
            f"regkern.{op}: expected `vectors` of shape {expected}, got {tuple(vectors.shape)}"
        )
    return heads.products(vectors.to(heads.p.dtype))


def hessian_gradient_penalty(
    logits: Tensor,
    labels: Tensor,
    features: Tensor,
    environments: Tensor,
    n_environments: int,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 1.0,
) -> Tensor:
    r"""HGP: matches gradients, and Hessians along them, over environments.

    .. math::
        \operatorname{mean}_e \bigl( \alpha \lVert H_e g_e - \overline{H g} \rVert^2
        + \beta \lVert g_e - \bar{g} \rVert^2 \bigr)

    Parameters and errors are those of :func:`head_gradients`; the result is 0-d.

    References
    ----------
    Hemati, Zhang, Estiri and Chen, "Understanding Hessian alignment for domain generalization",
    ICCV 2023.
    """
    op = "hessian_gradient_penalty"
    heads = _Heads(op, logits, labels, features, environments, n_environments)
    g = heads.gradients()
    return alpha * heads.spread(heads.products(g)) + beta * heads.spread(g)


def hessian_diagonal_penalty(
    logits: Tensor,
    labels: Tensor,
    features: Tensor,
    environments: Tensor,
    n_environments: int,
    alpha: float | Tensor = 1.0,
    beta: float | Tensor = 1.0,
    *,
    n: int = 1,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Matches the diagonals of Hessians over environments, by Hutchinson's estimate.

    .. math::
        \operatorname{mean}_e \bigl( \alpha \lVert D_e - \bar{D} \rVert^2
        + \beta \lVert g_e - \bar{g} \rVert^2 \bigr), \qquad
        D_e = \frac{1}{n} \sum_\mu v_\mu \odot H_e v_\mu, \; v \in \{-1, 1\}

    The signs are the same for all environments. ``n=0`` takes the diagonal itself, which has a
    closed form as well: :math:`\operatorname{mean}_b p_k (1 - p_k) z_d^2`.

    Parameters and errors are those of :func:`head_gradients` and :func:`hutchinson_trace`.

    References
    ----------
    Hemati, Zhang, Estiri and Chen, "Understanding Hessian alignment for domain generalization",
    ICCV 2023.
    """
    op = "hessian_diagonal_penalty"
    heads = _Heads(op, logits, labels, features, environments, n_environments)
    if n < 0:
        raise ValueError(f"regkern.{op}: expected `n` to be at least 0, got {n}")
    if n == 0:
        diagonal = torch.einsum(
            "eb,bk,bd->ekd", heads.share, heads.p * (1 - heads.p), heads.z.square()
        )
    else:
        base = resolve_seed(op, logits, seed, generator)
        diagonal = torch.zeros_like(heads.gradients())
        like = diagonal[0]
        for i in range(n):
            s = base if i == 0 else torch.stack([base[0], base[1] + i])
            v = random_directions(like, "rademacher", seed=s)
            diagonal = diagonal + v * heads.products(v.expand_as(diagonal)) / n
    return alpha * heads.spread(diagonal) + beta * heads.spread(heads.gradients())


def fishr_penalty(
    logits: Tensor, labels: Tensor, features: Tensor, environments: Tensor, n_environments: int
) -> Tensor:
    r"""Fishr: matches the variances of per-sample gradients over environments.

    .. math::
        \operatorname{mean}_e \lVert \operatorname{Var}_e - \overline{\operatorname{Var}} \rVert^2,
        \qquad \operatorname{Var}_e = \operatorname{mean}_{b \in e} (g_b - g_e)^2, \;
        g_b = (p_b - y_b) z_b^\top

    Squares of outer products are outer products of squares, so that no per-sample gradient is
    formed. Parameters and errors are those of :func:`head_gradients`; the result is 0-d.

    References
    ----------
    Rame, Dancette and Cord, "Fishr: invariant gradient variances for out-of-distribution
    generalization", ICML 2022.
    """
    op = "fishr_penalty"
    heads = _Heads(op, logits, labels, features, environments, n_environments)
    squares = torch.einsum("eb,bk,bd->ekd", heads.share, heads.residual.square(), heads.z.square())
    return heads.spread(squares - heads.gradients().square())


def irm_penalty(logits: Tensor, labels: Tensor, *, split: bool = False) -> Tensor:
    r"""IRMv1: the squared gradient of the cross-entropy by a factor of the logits, at 1.

    .. math::
        \bigl( \operatorname{mean}_b \langle p_b - y_b, l_b \rangle \bigr)^2

    Parameters
    ----------
    logits : Tensor
        l, (batch, K), of one environment.
    labels : Tensor
        int64, (batch).
    split : bool
        The product of the means over even and odd samples instead: an unbiased estimate of the
        square, which may be negative.

    Returns
    -------
    Tensor
        0-d, differentiable any number of times.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Arjovsky, Bottou, Gulrajani and Lopez-Paz, "Invariant risk minimization", 2019.
    """
    op = "irm_penalty"
    checks.floating(op, "logits", logits)
    checks.on_device(op, "labels", labels, logits)
    if logits.dim() != 2 or tuple(labels.shape) != (logits.shape[0],):
        raise ValueError(
            f"regkern.{op}: expected `logits` of shape (batch, K) and `labels` of shape (batch), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    wide = logits.to(compute_dtype(logits))
    slopes = (wide.softmax(1) * wide).sum(1) - wide.gather(1, labels[:, None])[:, 0]
    if split:
        return slopes[::2].mean() * slopes[1::2].mean()
    return slopes.mean().square()

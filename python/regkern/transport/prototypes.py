"""Targets of clustering: samples are spread evenly over prototypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.transport.normalize import sinkhorn_normalize


@torch.no_grad()
def sinkhorn_assign(
    scores: Tensor, eps: float = 0.05, n_iter: int = 3, *, group: Any = None
) -> Tensor:
    r"""Soft assignments of samples to prototypes, as many to each (SwAV, DINOv2).

    .. math::
        Q = \operatorname{diag}(u) \, e^{S / \varepsilon} \operatorname{diag}(v), \qquad
        Q 1 = 1, \quad Q^\top 1 \approx (B / K) 1

    Columns are normalised first and rows last. Scores of any size are right: there is no overflow
    where features are not normalised.

    Parameters
    ----------
    scores : Tensor
        S, (B, K): samples by prototypes.
    eps : float
        ε.
    n_iter : int
        Steps.
    group : torch.distributed.ProcessGroup, optional
        Each process has some of the samples, and B is their number in all. Sums over columns are
        reduced between the steps, two small reductions each.

    Returns
    -------
    Tensor
        Q, (B, K), without a gradient.

    Raises
    ------
    TypeError, ValueError
        For wrong types and shapes.

    References
    ----------
    M. Caron et al., "Unsupervised learning of visual features by contrasting cluster assignments",
    2020.
    """
    op = "sinkhorn_assign"
    checks.floating(op, "scores", scores)
    if scores.dim() != 2:
        raise ValueError(f"regkern.{op}: expected `scores` (B, K), got {tuple(scores.shape)}")
    if not eps > 0:
        raise ValueError(f"regkern.{op}: expected `eps` greater than 0, got {eps}")
    checks.at_least(op, "n_iter", n_iter, 1)
    if group is None and scores.device.type == "cpu":
        return sinkhorn_normalize(scores, n_iter, tau=eps, order="column_first")
    # One large problem does not fill a GPU from one block: plain passes over all of it do.
    logits = scores.to(compute_dtype(scores)) / eps
    count = logits.new_full((), scores.shape[0])
    _reduce(count, group)
    share = (count / scores.shape[1]).log()
    f = logits.new_zeros(scores.shape[0])
    g = logits.new_zeros(scores.shape[1])
    for _ in range(n_iter):
        g = share - _reduced_logsumexp(logits + f.unsqueeze(1), group)
        f = -torch.logsumexp(logits + g, 1)
    return (logits + f.unsqueeze(1) + g).exp().to(scores.dtype)


def _reduced_logsumexp(x: Tensor, group: Any) -> Tensor:
    """Over the rows of all processes, or of this one where there is no group."""
    most = x.new_full((x.shape[1],), -torch.inf) if x.shape[0] == 0 else x.amax(0)
    _reduce(most, group, largest=True)
    total = (x - most).exp().sum(0)
    _reduce(total, group)
    return most + total.log()


def _reduce(x: Tensor, group: Any, largest: bool = False) -> None:
    if group is not None:
        dist.all_reduce(x, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)


def depict_target(p: Tensor) -> Tensor:
    r"""The target of deep embedded clustering with a balanced relative entropy (DEPICT).

    .. math::
        q_{ik} \propto p_{ik} \Big/ \Big( \sum_{i'} p_{i'k} \Big)^{1/2}, \qquad
        \sum_k q_{ik} = 1

    One step of a normalisation whose columns count with their square root. A cluster without mass
    gets none.

    Parameters
    ----------
    p : Tensor
        (..., N, K) probabilities.

    Returns
    -------
    Tensor
        Like p.

    References
    ----------
    K. Ghasedi Dizaji et al., "Deep clustering via joint convolutional autoencoder embedding and
    relative entropy minimization", 2017.
    """
    checks.floating("depict_target", "p", p)
    if p.dim() < 2:
        raise ValueError(f"regkern.depict_target: expected `p` (..., N, K), got {tuple(p.shape)}")
    mass = p.sum(-2, keepdim=True)
    q = p * torch.where(mass > 0, mass, 1.0).rsqrt()
    total = q.sum(-1, keepdim=True)
    return q / torch.where(total > 0, total, 1.0)

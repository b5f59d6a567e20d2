"""Routing of tokens to a few experts each, under marginals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.transport.arguments import number_of, weights_of
from regkern.transport.sparse import sparse_transport


class Routing(NamedTuple):
    """What `sparse_route` returns.

    ``indices`` (..., T, k) int64: the experts of each token, −1 where there are fewer than k.
    ``weights`` (..., T, k): their shares of the token, which add up to 1; 0 where there is no
    expert. ``load`` (..., E): each expert's share of all tokens. ``potentials`` (..., E): what was
    added to the scores. ``violation`` (...,): the L1 distance of load and capacity.
    """

    indices: Tensor
    weights: Tensor
    load: Tensor
    potentials: Tensor
    violation: Tensor


def sparse_route(
    scores: Tensor,
    k: int = 2,
    gamma: float | Tensor = 1.0,
    capacity: Tensor | None = None,
    max_iter: int = 50,
    tol: float = 1e-2,
    init: Tensor | None = None,
) -> Routing:
    r"""Tokens to at most k experts each, so that the load of the experts is as asked.

    .. math::
        w_t = \arg\min_{w \in \Delta,\, \lVert w \rVert_0 \le k}
        \left\lVert w - (s_t + f) / \gamma \right\rVert^2

    with the potentials f of the experts that maximise the semi-dual of cardinality-constrained
    transport between tokens and capacities: what no auxiliary loss has to teach the scores.

    Parameters
    ----------
    scores : Tensor
        (..., T, E): float32, float64, bfloat16 or float16. Differentiable.
    k : int
        At most so many experts of a token.
    gamma : float or Tensor
        γ > 0: a number or a 0-d tensor. As it goes to 0 a token goes to one expert; as it grows its
        weights become equal. Differentiable.
    capacity : Tensor, optional
        (E,) or (..., E): shares of the load, which are divided by their sum; equal by default.
    max_iter, tol
        See `sparse_transport`. With ``max_iter=0`` potentials stay as they are in ``init``.
    init : Tensor, optional
        Potentials (..., E) to start from, those of the last batch for instance.

    Returns
    -------
    Routing

    Raises
    ------
    TypeError, ValueError
        For other dtypes, shapes that do not fit, γ ≤ 0.

    Notes
    -----
    Gradients are those of the weights on their support, :math:`d w = (ds - \bar{ds}) / \gamma`,
    with experts and potentials held: what choosing differently would bring is not seen, as in any
    top-k routing. Twice differentiable. With k far below E capacities may not be met: `violation`
    says by how much.

    References
    ----------
    T. Liu, J. Puigcerver and M. Blondel, "Sparsity-constrained optimal transport", ICLR 2023.
    """
    op = "sparse_route"
    checks.floating(op, "scores", scores)
    if scores.dim() < 2 or scores.shape[-1] == 0 or scores.shape[-2] == 0:
        raise ValueError(
            f"regkern.{op}: expected `scores` of shape (..., T, E) with T, E > 0, got "
            f"{tuple(scores.shape)}"
        )
    tokens, experts = scores.shape[-2:]
    number = number_of(op, "gamma", gamma, scores)
    shares = weights_of(op, "capacity", capacity, experts, scores)
    ones = torch.ones((tokens,), dtype=torch.float64, device=scores.device)
    with torch.no_grad():
        start = None if init is None else (init.detach(), torch.zeros_like(ones))
        solution = sparse_transport(
            -scores.detach().mT,
            shares.detach() / shares.detach().sum(-1, keepdim=True) * tokens,
            ones,
            number.detach(),
            k,
            "semi_dual",
            tol,
            max_iter,
            start,
        )
        potentials, entries = solution.f, solution.values
        there = entries > 0
        indices = torch.where(there, solution.indices.long(), -1)
        rows = indices.clamp(min=0)
        offsets = potentials.unsqueeze(-2).expand(*entries.shape[:-1], experts).gather(-1, rows)
        flat = torch.zeros_like(potentials).scatter_add(-1, rows.flatten(-2), entries.flatten(-2))
        target = shares.detach() / shares.detach().sum(-1, keepdim=True)
        load = flat / tokens
        violation = (load - target).abs().sum(-1).to(load.dtype)
    kind = compute_dtype(scores)
    wide = scores.to(kind).expand(*entries.shape[:-1], experts)
    x = torch.where(there, wide.gather(-1, rows) + offsets, 0.0)
    count = there.sum(-1, keepdim=True)
    mean = x.sum(-1, keepdim=True) / count
    weights = torch.where(there, (x - mean) / number.to(kind) + 1.0 / count, 0.0)
    return Routing(indices, weights.to(scores.dtype), load, potentials, violation)

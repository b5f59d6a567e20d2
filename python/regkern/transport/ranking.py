"""Sorting and ranking that have gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern.transport.normalize import sinkhorn_normalize
from regkern.transport.permutations import gumbel_noise


def neural_sort(
    scores: Tensor,
    tau: float | Tensor = 1.0,
    *,
    lengths: Tensor | None = None,
    log_output: bool = False,
) -> Tensor:
    r"""A relaxed permutation matrix that sorts in descending order.

    .. math::
        \hat P_{ij} = \operatorname{softmax}_j \frac{(n + 1 - 2i) s_j - \sum_k |s_j - s_k|}{\tau}

    Rows sum to 1; as τ goes to 0, :math:`\hat P s` is s sorted.

    Parameters
    ----------
    scores : Tensor
        s, (..., n).
    tau : float or Tensor
        τ.
    lengths : Tensor, optional
        (...) how many of the n scores there are; what is beyond has zeros in rows and columns.
    log_output : bool
        Return logarithms.

    Returns
    -------
    Tensor
        (..., n, n).

    Notes
    -----
    The sums of differences come from a sort and a cumulative sum, in O(n log n).

    References
    ----------
    A. Grover et al., "Stochastic optimization of sorting networks via continuous relaxations",
    2019.
    """
    op = "neural_sort"
    checks.floating(op, "scores", scores)
    if scores.dim() == 0:
        raise ValueError(f"regkern.{op}: expected `scores` (..., n), got a 0-d tensor")
    n = scores.shape[-1]
    here = _present(op, scores, lengths)
    count = float(n) if here is None else here.sum(-1, keepdim=True).to(scores.dtype)
    s = scores if here is None else torch.where(here, scores, 0.0)
    apart = _differences(s, here)
    if isinstance(tau, Tensor) and tau.dim() > 0:
        tau = tau.reshape(*tau.shape, 1, 1)
    place = torch.arange(1, n + 1, device=scores.device, dtype=scores.dtype)
    factor = count + 1 - 2 * place
    logits = (factor.unsqueeze(-1) * s.unsqueeze(-2) - apart.unsqueeze(-2)) / tau
    if here is None:
        return logits.log_softmax(-1) if log_output else logits.softmax(-1)
    both = here.unsqueeze(-1) & here.unsqueeze(-2)
    # Rows beyond the length get something that has a softmax, and then nothing.
    logits = torch.where(both, logits, torch.where(here.unsqueeze(-1), -math.inf, 0.0))
    p = logits.log_softmax(-1) if log_output else logits.softmax(-1)
    return torch.where(both, p, -math.inf if log_output else 0.0)


def _present(op: str, scores: Tensor, lengths: Tensor | None) -> Tensor | None:
    if lengths is None:
        return None
    checks.on_device(op, "lengths", lengths, scores)
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"regkern.{op}: expected integer `lengths`, got {lengths.dtype}")
    if lengths.shape != scores.shape[:-1]:
        raise ValueError(
            f"regkern.{op}: expected `lengths` {tuple(scores.shape[:-1])}, got "
            f"{tuple(lengths.shape)}"
        )
    return torch.arange(scores.shape[-1], device=scores.device) < lengths.unsqueeze(-1)


def _differences(s: Tensor, here: Tensor | None) -> Tensor:
    """Σ_k |s_j − s_k| over what is present: with what is smaller, and with what is larger."""
    weight = torch.ones_like(s) if here is None else here.to(s.dtype)
    # A mean near the scores keeps the prefix sums small.
    size = weight.sum(-1, keepdim=True).clamp(min=1)
    s = (s - (s * weight).sum(-1, keepdim=True).detach() / size) * weight
    ascending, order = s.sort(-1)
    w = weight.gather(-1, order)
    mass, total = w.cumsum(-1), (w * ascending).cumsum(-1)
    all_mass, all_total = mass[..., -1:], total[..., -1:]
    sums = ascending * (2 * mass - all_mass) + all_total - 2 * total
    return torch.zeros_like(s).scatter(-1, order, sums)


def neural_ndcg(
    scores: Tensor,
    relevance: Tensor,
    tau: float | Tensor = 1.0,
    *,
    k: int | None = None,
    lengths: Tensor | None = None,
    transposed: bool = False,
    n_iter: int = 50,
    powered: bool = True,
    noise: float = 0.0,
    n_samples: int = 32,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""NDCG with a relaxed sort in place of the sort.

    .. math::
        \text{NeuralNDCG}_k = \frac{1}{N_k} \sum_{j \le k} \frac{(S(\hat P) \, g)_j}
        {\log_2 (1 + j)}, \qquad g = 2^y - 1

    with :math:`\hat P` of :func:`regkern.neural_sort`, S of :func:`regkern.sinkhorn_normalize`, and
    :math:`N_k` the same of the ideal order. Negate it for a loss.

    Parameters
    ----------
    scores : Tensor
        (..., n).
    relevance : Tensor
        y, (..., n), at least 0.
    tau : float or Tensor
        τ.
    k : int, optional
        How many places count.
    lengths : Tensor, optional
        (...) how many of the n documents there are.
    transposed : bool
        Normalise rows first and columns last: discounts are spread over documents exactly, and not
        gains over places.
    n_iter : int
        Steps of the normalisation.
    powered : bool
        Whether g is :math:`2^y - 1`, or y.
    noise : float
        β of Gumbel noise that is added to the scores, which are then logarithms of scores; the
        result is a mean over ``n_samples``.
    n_samples : int
        Samples where there is noise.
    seed, generator : optional
        What the noise comes from, as in :func:`regkern.gumbel_sinkhorn`.

    Returns
    -------
    Tensor
        (...), from 0 to about 1; 0 where nothing is relevant.

    References
    ----------
    P. Pobrotyn and R. Białobrzeski, "NeuralNDCG: direct optimisation of a ranking metric via
    differentiable relaxation of sorting", 2021.
    """
    op = "neural_ndcg"
    checks.floating(op, "scores", scores)
    checks.tensor(op, "relevance", relevance)
    if relevance.shape != scores.shape:
        raise ValueError(
            f"regkern.{op}: expected `relevance` {tuple(scores.shape)}, got "
            f"{tuple(relevance.shape)}"
        )
    if k is not None:
        checks.at_least(op, "k", k, 1)
    checks.at_least(op, "noise", noise, 0.0)
    here = _present(op, scores, lengths)
    y = relevance.to(scores.dtype)
    y = y if here is None else torch.where(here, y, 0.0)
    gain = torch.exp2(y) - 1 if powered else y
    n = scores.shape[-1]
    place = torch.arange(1, n + 1, device=scores.device, dtype=scores.dtype)
    discount = torch.where(place <= (n if k is None else k), 1.0 / torch.log2(1 + place), 0.0)
    ideal = (gain.sort(-1, descending=True).values * discount).sum(-1)
    sides, s = lengths, scores
    if noise > 0:
        checks.at_least(op, "n_samples", n_samples, 1)
        s = scores.expand(n_samples, *scores.shape)
        s = s + noise * gumbel_noise(op, s, seed, generator).to(s.dtype)
        sides = None if lengths is None else lengths.expand(n_samples, *lengths.shape)
    logits = neural_sort(s, tau, lengths=sides, log_output=True)
    order = "row_first" if transposed else "column_first"
    p = sinkhorn_normalize(logits, n_iter, rows=sides, columns=sides, order=order)  # type: ignore[arg-type]
    dcg = (discount.unsqueeze(-1) * p * gain.unsqueeze(-2)).sum((-2, -1))
    value = dcg / torch.where(ideal > 0, ideal, 1.0)
    return value.mean(0) if noise > 0 else value

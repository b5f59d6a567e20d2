"""Transport on the line by its quantile functions, assignments by trying all of them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def wasserstein_1d(
    x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None, p: float = 1.0
) -> Tensor:
    """∫ |F⁻¹ − G⁻¹|^p between all quantiles at which either changes."""

    def sorted_side(v: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
        n = v.shape[-1]
        weights = torch.full(v.shape, 1 / n, dtype=v.dtype) if w is None else w.expand(v.shape)
        values, order = v.sort(dim=-1)
        return values, weights.gather(-1, order).cumsum(-1)

    xs, ca = sorted_side(x, a)
    ys, cb = sorted_side(y, b)
    cuts = torch.cat([ca[..., :-1], cb], dim=-1).sort(dim=-1).values
    starts = torch.cat([torch.zeros_like(cuts[..., :1]), cuts[..., :-1]], dim=-1)
    middle = ((cuts + starts) / 2).detach()
    i = torch.searchsorted(ca.detach().contiguous(), middle).clamp(max=x.shape[-1] - 1)
    j = torch.searchsorted(cb.detach().contiguous(), middle).clamp(max=y.shape[-1] - 1)
    d = (xs.gather(-1, i) - ys.gather(-1, j)).abs()
    return ((cuts - starts) * d**p).sum(-1)


def assignment(cost: Tensor) -> Tensor:
    """The least total cost of min(n, m) pairs; NaN where a cost is NaN or −inf."""
    n, m = cost.shape[-2:]
    if n > m:
        return assignment(cost.mT)
    rows = torch.arange(n)
    totals = torch.stack(
        [cost[..., rows, list(chosen)].sum(-1) for chosen in itertools.permutations(range(m), n)]
    )
    bad = (cost.isnan() | (cost == -torch.inf)).flatten(-2).any(-1)
    return torch.where(bad, torch.nan, totals.amin(0))

"""Definitions: optimal transport on lines, and the mean of it over directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def line_cost(
    x: Tensor, y: Tensor, p: float, a: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    """∫ |quantile of x − quantile of y|^p of two runs of numbers."""
    n, m = len(x), len(y)
    a = torch.full((n,), 1.0 / n, dtype=x.dtype) if a is None else a / a.sum()
    b = torch.full((m,), 1.0 / m, dtype=x.dtype) if b is None else b / b.sum()
    xs, i = x.sort()
    ys, j = y.sort()
    ends_x, ends_y = a[i].cumsum(0), b[j].cumsum(0)
    cuts = torch.cat([torch.zeros(1, dtype=x.dtype), ends_x, ends_y]).sort()[0]
    middle = 0.5 * (cuts[1:] + cuts[:-1])
    at_x = torch.searchsorted(ends_x, middle).clamp(max=n - 1)
    at_y = torch.searchsorted(ends_y, middle).clamp(max=m - 1)
    return ((cuts[1:] - cuts[:-1]) * (xs[at_x] - ys[at_y]).abs() ** p).sum()


def lines_cost(
    x: Tensor, y: Tensor, p: float, a: Tensor | None = None, b: Tensor | None = None
) -> Tensor:
    """One for each row of (slices, n) and (slices, m)."""
    return torch.stack([line_cost(u, v, p, a, b) for u, v in zip(x, y, strict=True)])


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    projections: Tensor,
    p: float = 2.0,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> Tensor:
    return lines_cost(projections @ x.mT, projections @ y.mT, p, a, b).mean() ** (1.0 / p)


def weights_wasserstein(tensors: Sequence[Tensor], initials: Sequence[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for w, w0 in zip(tensors, initials, strict=True):
        difference = w.flatten().sort()[0].double() - w0.flatten().sort()[0].double()
        total = total + difference.square().sum()
    return total

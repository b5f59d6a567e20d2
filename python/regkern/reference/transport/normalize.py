"""Sinkhorn's normalisation by its definition: one step after the other, in the log domain."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinkhorn_normalize(
    x: Tensor,
    n_iter: int = 20,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    slack: float | Tensor | None = None,
    tau: float | Tensor = 1.0,
    eps: float = 0.0,
    order: str = "row_first",
    log_input: bool = True,
    log_output: bool = False,
) -> Tensor:
    """As `regkern.sinkhorn_normalize`."""
    if slack is not None:
        x = with_slack(x, slack)
    a, b = weights_of(x, a, b, rows, columns, slack is not None)
    if order == "column_first":
        x, a, b = x.mT, b, a
    a = a.to(x.dtype).expand(x.shape[:-1])
    b = b.to(x.dtype).expand(*x.shape[:-2], x.shape[-1])
    keep = (a > 0).unsqueeze(-1) & (b > 0).unsqueeze(-2)
    if isinstance(tau, Tensor):
        tau = tau.reshape(*tau.shape, 1, 1) if tau.dim() > 0 else tau
    x = x / tau
    y = _guarded(x, n_iter, a, b, keep, eps, log_input) if eps > 0 else None
    if y is not None:
        y = torch.where(keep, y.log(), -math.inf) if log_output else y
    else:
        if not log_input:
            # The slope of ln x where x is 0 counts as none.
            x = torch.where(x == 0, -math.inf, torch.where(x == 0, 1.0, x).log())
        y = _logarithms(x, n_iter, a, b, keep)
        y = y if log_output else torch.where(keep, y.exp(), 0.0)
    return y.mT if order == "column_first" else y


def with_slack(x: Tensor, slack: float | Tensor) -> Tensor:
    """x with one more row and column of that number."""
    z = torch.as_tensor(slack, dtype=x.dtype, device=x.device)
    z = z.reshape(*z.shape, 1, 1).expand(*x.shape[:-2], 1, 1)
    x = torch.cat([x, z.expand(*x.shape[:-1], 1)], -1)
    return torch.cat([x, z.expand(*x.shape[:-2], 1, x.shape[-1])], -2)


def weights_of(
    x: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    rows: Tensor | None,
    columns: Tensor | None,
    slack: bool,
) -> tuple[Tensor, Tensor]:
    """Both marginals of a matrix, which has its slack already."""
    n, m = (s - int(slack) for s in x.shape[-2:])
    here = (
        x.new_ones(n) if rows is None else _mask(rows, n, x),
        x.new_ones(m) if columns is None else _mask(columns, m, x),
    )
    counts = [h.sum(-1, keepdim=True) for h in here]
    if slack:
        ones = [torch.ones_like(c) for c in counts]
        free = [_beside(h, c) for h, c in zip(here, reversed(counts), strict=True)]
        here = tuple(_beside(h, c) for h, c in zip(here, ones, strict=True))  # type: ignore[assignment]
    else:
        share = torch.where(counts[1] > 0, counts[0] / counts[1].clamp(min=1), 0.0)
        free = [here[0], here[1] * share]
    return (
        free[0] if a is None else a.to(x.dtype) * here[0],
        free[1] if b is None else b.to(x.dtype) * here[1],
    )


def _beside(h: Tensor, c: Tensor) -> Tensor:
    batch = (h[..., :1] + c).shape[:-1]
    return torch.cat([h.expand(*batch, h.shape[-1]), c.expand(*batch, 1)], -1)


def _mask(given: Tensor, n: int, x: Tensor) -> Tensor:
    if given.dtype == torch.bool:
        return given.to(x.dtype)
    return (torch.arange(n, device=x.device) < given.unsqueeze(-1)).to(x.dtype)


def _logarithms(x: Tensor, n_iter: int, a: Tensor, b: Tensor, keep: Tensor) -> Tensor:
    logits = torch.where(keep, x, -math.inf)
    g = torch.zeros_like(b)
    f = torch.zeros_like(a)
    for _ in range(n_iter):
        f = _potential(logits + g.unsqueeze(-2), a)
        g = _potential((logits + f.unsqueeze(-1)).mT, b)
    return torch.where(keep, logits + f.unsqueeze(-1) + g.unsqueeze(-2), -math.inf)


def _potential(scores: Tensor, weight: Tensor) -> Tensor:
    """ln weight − LSE of the rows, and 0 where nothing weighs."""
    some = weight > 0
    scores = torch.where(some.unsqueeze(-1), scores, 0.0)
    value = torch.where(some, weight, 1.0).log() - scores.logsumexp(-1)
    return torch.where(some, value, 0.0)


def _guarded(
    x: Tensor, n_iter: int, a: Tensor, b: Tensor, keep: Tensor, eps: float, log_input: bool
) -> Tensor:
    y = x
    if log_input:
        some = (a > 0).unsqueeze(-1)
        y = torch.where(some, torch.where(keep, x, -math.inf), 0.0).softmax(-1) + eps
    y = torch.where(keep, y, 0.0)
    for t in range(n_iter):
        if t > 0 or not log_input:
            y = y * (a / (y.sum(-1) + eps)).unsqueeze(-1)
        y = y * (b / (y.sum(-2) + eps)).unsqueeze(-2)
    return y

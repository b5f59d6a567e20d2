"""Variants of dropout in plain torch: events of elements, mixout, prefixes, low rank, heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regkern.reference import random as draws
from regkern.reference.dropping import dropout, keep_mask


def event(p: Tensor, seed: Tensor) -> Tensor:
    """Whether the event of each element happens, which would drop it in dropout."""
    wide = p.detach().float().double()
    return ~keep_mask(seed, p.numel(), wide.reshape(-1)).reshape(p.shape)


def bernoulli(p: Tensor, *, seed: Tensor) -> Tensor:
    """Straight through."""
    return event(p, seed).to(p.dtype) + (p - p.detach())


def bernoulli_mask(x: Tensor, p: float | Tensor, *, seed: Tensor) -> Tensor:
    return x * bernoulli(_full(p, x), seed=seed).to(x.dtype)


def _full(p: float | Tensor, x: Tensor) -> Tensor:
    # A number keeps its 48 bits, which float32 has not: those of a float64 that event() rounds.
    return (p if isinstance(p, Tensor) else torch.tensor(p)).expand(x.shape)


def subnetwork_mask(
    w: Tensor,
    target: Tensor,
    tau: float | Tensor,
    probabilities: Tensor | None = None,
    *,
    seed: Tensor,
) -> Tensor:
    level = torch.as_tensor(tau, dtype=torch.float64)
    if probabilities is None:
        on = ~keep_mask(seed, w.numel(), level.expand(w.numel())).reshape(w.shape)
    else:
        on = event(probabilities.expand(w.shape).float() * level.float(), seed)
    return w * (target | on)


def observed_mask(observed: Tensor, p: float | Tensor, *, seed: Tensor) -> Tensor:
    level = torch.as_tensor(p, dtype=torch.float64).expand(observed.numel())
    return observed & keep_mask(seed, observed.numel(), level).reshape(observed.shape)


def observed_dropout(
    x_obs: Tensor, x_gen: Tensor, observed: Tensor, p: float | Tensor, *, seed: Tensor
) -> Tensor:
    return torch.where(observed_mask(observed, p, seed=seed), x_obs, x_gen)


def mixout(
    w: Tensor,
    pretrained: Tensor,
    p: float | Tensor,
    *,
    shared: int | Sequence[int] = (),
    seed: Tensor,
) -> Tensor:
    """[M ⊙ W + (1 − M) ⊙ W₀ − p W₀] / (1 − p), whose limit for p → 1 is W₀."""
    level = float(p)
    x, x0 = w.double(), pretrained.double()
    mask = dropout(torch.ones_like(x), level, shared=shared, scale=False, seed=seed)
    if level == 1.0:
        return (x0 + x * 0.0).to(w.dtype)
    return ((mask * x + (1 - mask) * x0 - level * x0) / (1 - level)).to(w.dtype)


def nested_dropout(
    x: Tensor,
    weights: Tensor | None = None,
    *,
    dim: int = 1,
    per: str = "batch",
    seed: Tensor,
) -> Tensor:
    """One sample after the other; lengths by inversion of the distribution function."""
    size = x.shape[dim]
    law = torch.ones(size, dtype=torch.float64) if weights is None else weights.double()
    ends = law.cumsum(0).tolist()
    rows: list[Tensor] = []
    for i, row in enumerate(x if per == "sample" else [x]):
        u = draws.Draws(seed, "choice", i).uniform() * ends[-1]
        k = next((d for d in range(size) if u < ends[d]), size - 1) + 1
        shape = [1] * row.dim()
        shape[dim - 1 if per == "sample" else dim] = size
        rows.append(row * (torch.arange(size) < k).reshape(shape))
    if per == "batch":
        return rows[0]
    return torch.stack(rows) if rows else x * 0


def lora_dropout(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    p: float = 0.5,
    *,
    scale: float = 1.0,
    samples: int = 1,
    seed: Tensor,
) -> Tensor:
    """scale · mean over the samples of m_B ⊙ (B (A (m_A ⊙ x)))."""
    widths = a.shape[1], b.shape[0]
    ones = torch.ones(samples, sum(widths), dtype=torch.float64)
    masks = dropout(ones, p, scale=False, seed=seed).to(x.dtype)
    y = torch.zeros((*x.shape[:-1], widths[1]), dtype=x.dtype)
    for m in masks:
        m_a, m_b = m.split(widths)
        y = y + m_b * (((m_a * x) @ a.T) @ b.T)
    return y * (scale / samples)


def multi_sample_dropout_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    samples: int = 8,
    *,
    chunk: int = 2**20,
    seed: Tensor,
) -> Tensor:
    """Every copy of x by itself; chunks of rows have seeds of their own."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    few_rows = max(1, chunk // max(samples * x.shape[-1], 1))
    ys = []
    for i, few in enumerate(torch.split(rows, few_rows)):
        at = seed + torch.tensor([0, i])
        ys.append(dropout(few, p, copies=samples, seed=at) @ weight.T)
    y = torch.cat(ys, 1)
    y = y if bias is None else y + bias
    return y.reshape(samples, *x.shape[:-1], weight.shape[0])

"""Definitions: normalised samples, random directions, divergences of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from regkern.reference import random


def _kept(x: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
    """Where x counts."""
    keep = torch.ones(x.shape, dtype=torch.bool)
    if lengths is not None:
        steps = torch.arange(x.shape[1])
        within = steps[None, :] < lengths[:, None]
        keep &= within.reshape(*within.shape, *[1] * (x.dim() - 2))
    if mask is not None:
        keep &= mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim()))
    return keep


def normalize_samples(
    x: Tensor,
    scale: float | Tensor = 1.0,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    scales = torch.as_tensor(scale, dtype=x.dtype).expand(x.shape[0])
    rows = []
    for row, keep, s in zip(x, _kept(x, lengths, mask), scales, strict=True):
        kept = torch.where(keep, row, 0.0)
        if bool((kept != 0).any()):
            kept = torch.where(keep, s * kept / kept.square().sum().sqrt(), 0.0)
        rows.append(kept)
    return torch.stack(rows) if rows else x * 1.0


def difference_penalty(a: Tensor, b: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    rows = [((p - q) ** 2).sum() * scale for p, q in zip(a, b, strict=True)]
    return torch.stack(rows) if rows else a.reshape(0)


def softmax_kl(p: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """Classes that both rule out left out; a row that p rules out altogether is 0."""
    p_log, q_log = p.log_softmax(dim), q.log_softmax(dim)
    out = (p == -torch.inf) & (q != torch.inf) & ~q.isnan()
    terms = torch.where(out, 0.0, p_log.exp() * (p_log - torch.where(out, 0.0, q_log)))
    return torch.where((p == -torch.inf).all(dim), 0.0, terms.sum(dim))


def _elements(count: int, first: int) -> Tensor:
    return torch.arange(count) + first


def random_directions(
    shapes: list[tuple[int, ...]], kind: str, scale: float, seed: Tensor
) -> list[Tensor]:
    """Elements are numbered over the list; each tensor begins at a multiple of 128."""
    first, drawn = 0, []
    for shape in shapes:
        count = int(torch.Size(shape).numel())
        element = _elements(count, first)
        if kind == "normal":
            values = random.normal(seed, element)
        else:
            words = random.words(seed, "choice", element // 128)
            word = words.gather(-1, (element % 128 // 32)[:, None])[:, 0]
            values = 1.0 - 2.0 * ((word >> (element % 32)) & 1).double()
        drawn.append((scale * values).reshape(shape))
        first += (count + 127) // 128 * 128
    return drawn


def add_noise(x: Tensor, std: float, kind: str = "normal", *, seed: Tensor) -> Tensor:
    return x + random_directions([tuple(x.shape)], kind, std, seed)[0].to(x.dtype)

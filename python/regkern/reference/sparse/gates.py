"""Gates of weights, gradients and channels by their formulas, rows one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from regkern.reference.random import bits


def score_gate(weight: Tensor, scores: Tensor, threshold: float = 0.0) -> Tensor:
    """W 1[s > τ], with the gradient of s that W 1[…] has by 1[…]."""
    with torch.no_grad():
        gate = torch.where(scores.isnan(), scores, (scores > threshold).to(scores.dtype))
        off = gate - scores
        off = torch.where(scores.isfinite(), off, gate)
    through = torch.where(scores.isfinite(), scores, 0.0)
    return weight * (through + off)


def gradient_dropout(
    g: Tensor, reference: Tensor, strength: float, epsilon: float, seed: Tensor
) -> Tensor:
    """g where P > u, (1 − λ) g elsewhere."""
    dtype = g.dtype
    if dtype != torch.float64:
        g, reference = g.float(), reference.float()
    element = torch.arange(g.numel(), dtype=torch.int64)
    u = ((bits(seed, "mask", element, 32) >> 8) + 0.5) / 2.0**24
    p = 0.5 * (1 + g.sign() * (g + reference) / (g.abs() + reference.abs() + epsilon))
    kept = p > u.reshape(g.shape).to(g.dtype)
    return torch.where(p.isnan(), p, torch.where(kept, g, (1 - strength) * g)).to(dtype)


def row_top_k(x: Tensor, k: int) -> Tensor:
    """The first k of a stable sort by magnitude, NaN first."""
    magnitude = torch.where(x.isnan(), float("inf"), x.abs())
    # Of NaN and infinity NaN comes first.
    order = (
        torch.stack(
            [
                torch.tensor(
                    sorted(range(len(row)), key=lambda i: (not nan[i], -row[i], i)),
                    dtype=torch.int64,
                )
                for row, nan in zip(
                    magnitude.detach().flatten(0, -2).tolist(),
                    x.isnan().flatten(0, -2).tolist(),
                    strict=True,
                )
            ]
        )
        if x.numel() > 0
        else torch.zeros_like(x, dtype=torch.int64)
    )
    mask = torch.zeros(order.shape, dtype=torch.bool)
    mask.scatter_(-1, order[:, :k], torch.ones_like(order[:, :k], dtype=torch.bool))
    return torch.where(mask.reshape(x.shape) | x.isnan(), x, 0.0)


def mass_gate(y: Tensor, mass: float) -> Tensor:
    """The shortest beginning of the channels, sorted by mass, that has the share of all."""
    gates = y.new_zeros(y.shape[:2])
    for sample, gate in zip(y.detach(), gates, strict=True):
        if sample.numel() == 0:
            continue
        peaks = sample.abs().reshape(len(sample), -1).amax(1)
        if not peaks.isfinite().all():
            gate.fill_(float("nan"))
            continue
        order = torch.sort(peaks, descending=True, stable=True).indices
        total = float(peaks.double().sum())
        have = 0.0
        for c in order.tolist():
            if have >= mass * total:
                break
            have += float(peaks[c])
            gate[c] = 1.0
    return gates

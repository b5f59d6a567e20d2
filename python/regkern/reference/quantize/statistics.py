"""Ranges, moments, histograms and percentiles, by their formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regkern.quantize.statistics import Moments


def _range(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    return x.amin(tuple(dims)), x.amax(tuple(dims))


def _grouped(x: Tensor, axis: int, size: int, padding: float) -> Tensor:
    """The axis cut into (groups, size); what is missing from the last group is padded."""
    x = x.movedim(axis, -1)
    x = F.pad(x, (0, -x.shape[-1] % size), value=padding)
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def value_range(
    x: Tensor,
    axis: int | None = None,
    group_size: int | None = None,
    block: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Min and max over the elements of a block; NaN if one is, +inf and −inf if there is none."""
    x = x if x.dtype == torch.float64 else x.float()
    results = []
    for padding in (math.inf, -math.inf):
        if block is not None:
            rows = _grouped(x, -2, block[0], padding)  # (…, C, rows / r, r)
            both = _grouped(rows, -3, block[1], padding)  # (…, rows / r, r, C / c, c)
            blocks = both.transpose(-3, -2).flatten(-2)
        elif group_size is not None:
            axis = -1 if axis is None else axis
            blocks = _grouped(x, axis, group_size, padding)
        elif axis is not None:
            blocks = x.movedim(axis, 0).flatten(1) if x.dim() > 1 else x[:, None]
        else:
            blocks = x.flatten()
        blocks = F.pad(blocks, (0, 1), value=padding)  # never empty
        result = blocks.amin(-1) if padding > 0 else blocks.amax(-1)
        if group_size is not None and axis is not None:
            result = result.movedim(-1, axis)
        results.append(result)
    return results[0], results[1]


def moments(x: Tensor, axis: int | None = None) -> Moments:
    """m_k = mean of (x − mean)ᵏ; variance m₂, skewness m₃ / m₂^{3/2}, kurtosis m₄ / m₂²."""
    x = x.double()
    channels = x.reshape(1, -1) if axis is None else x.movedim(axis, 0)[:, None].flatten(1)
    mean = channels.mean(1)
    t = channels - mean[:, None]
    m2, m3, m4 = ((t**k).mean(1) for k in (2, 3, 4))
    low, high = value_range(channels.detach(), 0)
    # Equal numbers have no shape.
    equal = low == high
    safe = torch.where(equal, 1.0, m2)
    variance = torch.where(equal, 0.0, m2)
    skewness = torch.where(equal, 0.0, m3 / safe**1.5)
    kurtosis = torch.where(equal, 0.0, m4 / safe**2)
    amax = F.pad(channels.detach().abs(), (0, 1)).amax(1)
    result = (low, high, amax, mean, variance, skewness, kurtosis)
    return Moments(*(r.reshape(()) if axis is None else r for r in result))


def moments_penalty(
    weights: Tensor | Sequence[Tensor],
    target_kurtosis: float = 1.8,
    target_skewness: float = 0.0,
) -> Tensor:
    """Mean over the weights of (skewness − target)² + (kurtosis − target)²."""
    tensors = [weights] if isinstance(weights, Tensor) else weights
    losses = []
    for w in tensors:
        m = moments(w)
        losses.append((m.skewness - target_skewness) ** 2 + (m.kurtosis - target_kurtosis) ** 2)
    double = any(w.dtype == torch.float64 for w in tensors)
    return torch.stack(losses).mean().to(torch.float64 if double else torch.float32)


def histogram(x: Tensor, bins: int, low: float, high: float, clip: bool = False) -> Tensor:
    """Elements with ⌊(x − low) · bins / (high − low)⌋ = k, the last bin including `high`."""
    x = x.double().flatten()
    if clip:
        x = x.clamp(low, high)
    x = x[(x >= low) & (x <= high)]
    scale = bins / (high - low) if high > low else 0.0
    index = ((x - low) * scale).floor().clamp(max=bins - 1).long()
    return torch.bincount(index, minlength=bins)


def percentile_range(
    x: Tensor, percentile: float = 99.9, bins: int = 2048, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Quantiles, once the elements of each bin of a histogram are spread evenly over it."""
    if x.numel() == 0:
        return value_range(x)
    q = percentile / 100
    values = x.double().flatten()
    if not bool(values.isfinite().all()):
        return torch.tensor(math.nan), torch.tensor(math.nan)
    values = values.abs() if symmetric else values
    low = 0.0 if symmetric else values.min().item()
    high = values.max().item()
    counts = histogram(values, bins, low, high)
    # Element i of the `count` ones in bin k lies at k + (i + ½) / count.
    k = torch.arange(bins).repeat_interleave(counts)
    i = torch.arange(values.numel()) - (counts.cumsum(0) - counts)[k]
    spread = low + (high - low) / bins * (k + (i.double() + 0.5) / counts[k])
    upper = torch.quantile(spread, q)
    lower = -upper if symmetric else torch.quantile(spread, 1.0 - q)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return lower.to(dtype), upper.to(dtype)

"""Noise in plain torch, with the numbers of a seed drawn one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regkern.reference import random as draws

_BLOCK = 128


def padded(count: int) -> int:
    """Where the second noise of a tensor of that many elements begins."""
    return math.ceil(count / _BLOCK) * _BLOCK


def _word(seed: Tensor, element: Tensor) -> tuple[Tensor, Tensor]:
    """The word of an element's pair, and the pair's number."""
    # Element 128 c + 32 w + 16 h + i is half h of word w of counter 16 c + i.
    chunk, w, i = element // 128, element % 128 // 32, element % 16
    word = draws.words(seed, "noise", chunk * 16 + i).gather(-1, w.unsqueeze(-1)).squeeze(-1)
    return word, chunk * 64 + w * 16 + i


def radii(seed: Tensor, element: Tensor) -> Tensor:
    """The radius of every element's pair: of 16 bits, or of 24 more in the tail."""
    word, pair = _word(seed, element)
    low = word & 0xFFFF
    more = draws.words(seed, "choice", pair)[..., 0]
    fine = (low + ((more >> 8) + 0.5) / 2.0**24).float().double() / 2**16
    return torch.sqrt(-2 * torch.log(torch.where(low < 16, fine, (low + 0.5) / 2.0**16)))


def numbers(seed: Tensor, element: Tensor, kind: str) -> Tensor:
    """The noise of every element, float64: standard normal or uniform in (−1, 1)."""
    if kind == "uniform":
        return ((draws.bits(seed, "noise", element, 32) >> 8).double() + 0.5) / 2.0**23 - 1.0
    word, _ = _word(seed, element)
    high = word >> 16
    angle = ((high & 0x1FFF) + 0.5) * (math.pi / 4 / 8192)
    swap = (high & 0x2000).bool()
    x = torch.where(swap, torch.sin(angle), torch.cos(angle))
    y = torch.where(swap, torch.cos(angle), torch.sin(angle))
    x = torch.where((high & 0x4000).bool(), -x, x)
    y = torch.where((high & 0x8000).bool(), -y, y)
    return radii(seed, element) * torch.where((element % 32 >= 16), y, x)


def noise_inject(
    x: Tensor,
    scale: float | Tensor = 0.1,
    kind: str = "gaussian",
    *,
    multiply: bool = False,
    shared: int | Sequence[int] = (),
    training: bool = True,
    seed: Tensor,
) -> Tensor:
    """x + s n or x (1 + s n), n of size 1 in the shared dimensions."""
    if not training:
        return x
    dims = [d % x.dim() for d in ([shared] if isinstance(shared, int) else shared)]
    sizes = [1 if d in dims else n for d, n in enumerate(x.shape)]
    n = numbers(seed, torch.arange(math.prod(sizes)), kind).reshape(sizes)
    y = x.double() * (1 + scale * n) if multiply else x.double() + scale * n
    return y.to(x.dtype)


def diffusion_perturb(
    x0: Tensor, alpha_bar: float | Tensor, gamma: float = 0.1, *, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """√ᾱ x₀ + √(1 − ᾱ) (ε + γ ξ) and ε."""
    element = torch.arange(x0.numel())
    eps = numbers(seed, element, "gaussian").reshape(x0.shape)
    xi = numbers(seed, padded(x0.numel()) + element, "gaussian").reshape(x0.shape)
    share = torch.as_tensor(alpha_bar, dtype=torch.float64).reshape(-1)
    share = share.expand(x0.shape[0]).reshape(-1, *([1] * (x0.dim() - 1)))
    y = share.sqrt() * x0 + (1 - share).sqrt() * (eps + gamma * xi)
    return y.to(x0.dtype), eps.to(x0.dtype)


def noise_triplet(x: Tensor, eps: float, *, seed: Tensor) -> tuple[Tensor, Tensor]:
    """(x_a, x_b, x_c) one after the other, and α."""
    element = torch.arange(x.numel())
    a, b = (
        x.double() + eps * numbers(seed, first + element, "uniform").reshape(x.shape)
        for first in (0, padded(x.numel()))
    )
    alpha = torch.tensor(
        [draws.Draws(seed, "weight", i).uniform() for i in range(x.shape[0])], dtype=torch.float64
    )
    share = alpha.reshape(-1, *([1] * (x.dim() - 1)))
    return torch.cat([a, b, (1 - share) * a + share * b]).to(x.dtype), alpha


def feature_jitter(f: Tensor, strength: float = 1.0, *, seed: Tensor) -> Tensor:
    """(1 + s σ n) f + s (μ + σ m), with the statistics of the batch as constants."""
    element = torch.arange(f.numel())
    n = numbers(seed, element, "gaussian").reshape(f.shape)
    m = numbers(seed, padded(f.numel()) + element, "gaussian").reshape(f.shape)
    deviation, mean = torch.std_mean(f.detach(), 0, correction=0)
    y = (1 + strength * deviation * n) * f + strength * (mean + deviation * m)
    return y.to(f.dtype)

"""Philox4x32-10 and the draws made from it, in plain torch on int64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

STREAMS = {
    name: number
    for number, name in enumerate(
        ("mask", "noise", "pairing", "box", "weight", "choice", "rounding", "fault")
    )
}
DRAWS_PER_ITEM = 2**16
_LOW = 0xFFFFFFFF


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a · constant, by halves: int64 has no unsigned product."""
    low = (a & 0xFFFF) * constant
    high = (a >> 16) * constant + (low >> 16)
    return (high >> 16) & _LOW, ((high << 16) | (low & 0xFFFF)) & _LOW


def philox4x32(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Ten rounds on four counters of 32 bits each (Salmon et al., 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        h0, l0 = _multiply(c0, 0xD2511F53)
        h1, l1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return [c0, c1, c2, c3]


def words(seed: Tensor, stream: str, index: Tensor) -> Tensor:
    """The four words of every counter ``index``: shape (…, 4)."""
    key, offset = (int(v) % 2**64 for v in seed.tolist())
    index = index.cpu()
    high = (index >> 32) | (STREAMS[stream] << 24)
    low_offset = torch.full_like(index, offset & _LOW)
    high_offset = torch.full_like(index, offset >> 32)
    out = philox4x32([index & _LOW, high, low_offset, high_offset], (key & _LOW, key >> 32))
    return torch.stack(out, -1)


def bits(seed: Tensor, stream: str, element: Tensor, k: int) -> Tensor:
    """The k random bits of every element, for a k that divides 32.

    A counter serves 128 / k elements that stand 16 apart: element chunk (2048 / k) + 16 j + i reads
    the bits [jk, jk + k) of counter 16 chunk + i.
    """
    chunk = 2048 // k
    j, i = element % chunk // 16, element % 16
    w = words(seed, stream, element // chunk * 16 + i)
    word: Tensor = w.gather(-1, (j * k // 32).unsqueeze(-1)).squeeze(-1)
    drawn: Tensor = (word >> (j * k % 32)) & (2**k - 1)
    return drawn


class Draws:
    """The words of one item, one after the other."""

    def __init__(self, seed: Tensor, stream: str, item: int) -> None:
        self._words = self._stream(seed, stream, item)

    @staticmethod
    def _stream(seed: Tensor, stream: str, item: int) -> Iterator[int]:
        index = item * DRAWS_PER_ITEM
        while True:
            yield from words(seed, stream, torch.tensor(index)).tolist()
            index += 1

    def next64(self) -> int:
        low = next(self._words)
        return low | next(self._words) << 32

    def uniform(self) -> float:
        """In (0, 1)."""
        return ((self.next64() >> 12) + 0.5) / 2.0**52

    def below(self, n: int) -> int:
        return next(self._words) * n >> 32

    def normal(self) -> float:
        """The polar method."""
        while True:
            u, v = 2 * self.uniform() - 1, 2 * self.uniform() - 1
            s = u * u + v * v
            if 0 < s < 1:
                return u * math.sqrt(-2 * math.log(s) / s)

    def log_gamma(self, alpha: float) -> float:
        """ln of a Gamma(alpha) variate (Marsaglia and Tsang, 2000)."""
        boost = 0.0
        if alpha < 1:
            boost = math.log(self.uniform()) / alpha
            alpha += 1
        d = alpha - 1 / 3
        c = 1 / math.sqrt(9 * d)
        while True:
            x = self.normal()
            if 1 + c * x <= 0:
                continue
            v = (1 + c * x) ** 3
            if math.log(self.uniform()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return math.log(d) + math.log(v) + boost

    def beta(self, alpha: float, beta: float) -> float:
        if alpha == 1 and beta == 1:
            return self.uniform()
        a, b = self.log_gamma(alpha), self.log_gamma(beta)
        return 1 / (1 + math.exp(min(max(b - a, -700.0), 700.0)))


def normal(seed: Tensor, element: Tensor) -> Tensor:
    """The standard normal of every element (Box and Muller), float64."""
    w = words(seed, "noise", element // 4)
    second = (element & 2).bool()
    w0 = torch.where(second, w[..., 2], w[..., 0])
    w1 = torch.where(second, w[..., 3], w[..., 1])
    # Rounded as the kernels' float32 is: w + ½ needs 25 bits.
    u = ((w0 >> 8).float() + 0.5).double() / 2**24
    turn = 2 * math.pi * (w1 >> 8).double() / 2**24
    radius = torch.sqrt(-2 * torch.log(u))
    return torch.where((element & 1).bool(), radius * torch.sin(turn), radius * torch.cos(turn))

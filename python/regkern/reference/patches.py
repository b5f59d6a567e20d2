"""Patch masks, subsets and the ranking loss in plain torch, with the random keys of a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regkern.reference import random as draws

_BLOCK = 64
_LAST = 2**32 - 1


def random_keys(seed: Tensor, rows: int, n: int) -> Tensor:
    """A key of 31 bits for every token: rows start at whole blocks of the generator."""
    padded = math.ceil(n / _BLOCK) * _BLOCK
    element = torch.arange(rows).unsqueeze(1) * padded + torch.arange(n)
    return draws.bits(seed, "mask", element, 32) >> 1


def _box(
    seed: Tensor,
    item: int,
    grid: tuple[int, int, int],
    area: Sequence[float],
    aspect: Sequence[float],
) -> tuple[slice, slice, slice]:
    d = draws.Draws(seed, "box", item)
    depth, height, width = grid
    size = (area[0] + (area[1] - area[0]) * d.uniform()) * height * width
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = math.exp(low + (high - low) * d.uniform())
    h = min(max(int(math.sqrt(size * ratio) + 0.5), 1), height)
    w = min(max(int(math.sqrt(size / ratio) + 0.5), 1), width)
    deep = 1 + d.below(depth)
    y, x, t = d.below(height - h + 1), d.below(width - w + 1), d.below(depth - deep + 1)
    return slice(t, t + deep), slice(y, y + h), slice(x, x + w)


def _ranks(keys: Tensor) -> Tensor:
    """The rank of each token by key, and by its place where keys are equal."""
    return keys.argsort(dim=1, stable=True).argsort(1)


def patch_mask(
    batch: int,
    n: int | Sequence[int],
    ratio: float = 0.75,
    *,
    keep: int | None = None,
    kind: str = "random",
    scores: Tensor | None = None,
    alpha: float | Tensor = 0.5,
    area: Sequence[float] = (0.15, 0.2),
    aspect: Sequence[float] = (0.75, 1.5),
    blocks: int = 32,
    tube: bool = False,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The `keep` tokens of smallest key are kept; scores and rectangles make keys large."""
    sides = [n] if isinstance(n, int) else list(n)
    depth = sides[0] if tube else 1
    plane = sides[1:] if tube else sides
    count = math.prod(plane)
    kept = math.floor(count * (1 - ratio) + 1e-9) if keep is None else keep // max(depth, 1)
    keys = random_keys(seed, batch, count)
    if kind == "hard":
        assert scores is not None
        number = min(max(float(alpha), 0.0), 1.0)
        top = math.floor(number * (count - kept) + 1e-9)
        order = torch.where(scores.isnan(), math.inf, scores.float())
        # NaN before infinity, and of equal scores the first.
        first = (~scores.isnan()).long().argsort(dim=1, stable=True)
        by_score = first.gather(1, (-order.gather(1, first)).argsort(dim=1, stable=True))
        keys = keys.scatter(1, by_score[:, :top], _LAST)
    if kind == "block":
        grid = (1, *plane)[-3:]
        for row in range(batch if count else 0):
            volume = keys[row].view(grid)
            for b in reversed(range(blocks)):
                where = _box(seed, row * blocks + b, grid, area, aspect)  # type: ignore[arg-type]
                volume[where] = _LAST - b
    mask = _ranks(keys) >= kept
    # Over a volume, the mask of its plane in each.
    mask = mask.repeat(1, depth)
    order = mask.long().argsort(dim=1, stable=True)
    return mask, order[:, : kept * depth], order.argsort(1)


def patch_subsets(
    batch: int,
    n: int,
    least: Sequence[int],
    most: Sequence[int],
    disjoint: bool = True,
    *,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Disjoint subsets take consecutive ranks; others are the first ranks of rows of their own."""
    subsets = len(least)
    sizes = torch.empty(batch, subsets, dtype=torch.int64)
    for row in range(batch):
        for s in range(subsets):
            span = most[s] - least[s] + 1
            d = draws.Draws(seed, "choice", row * subsets + s)
            sizes[row, s] = least[s] + (d.below(span) if span > 1 else 0)
    if disjoint:
        ranks = _ranks(random_keys(seed, batch, n)).unsqueeze(1)
        start = (sizes.cumsum(1) - sizes).unsqueeze(2)
    else:
        ranks = _ranks(random_keys(seed, batch * subsets, n)).view(batch, subsets, n)
        start = torch.zeros(batch, subsets, 1, dtype=torch.int64)
    mask = (ranks >= start) & (ranks < start + sizes.unsqueeze(2))
    ids = torch.full((batch, subsets, max(most)), -1)
    for row in range(batch):
        for s in range(subsets):
            own = mask[row, s].nonzero().flatten()
            ids[row, s, : len(own)] = own
    return mask, ids, sizes


def patch_gather(x: Tensor, ids: Tensor) -> Tensor:
    """By torch.gather, a row of zeros for −1."""
    padded = torch.cat([x, x.new_zeros(x.shape[0], 1, *x.shape[2:])], 1)
    index = torch.where(ids < 0, x.shape[1], ids)
    index = index.reshape(*ids.shape, *[1] * (x.dim() - 2)).expand(*ids.shape, *x.shape[2:])
    return padded.gather(1, index)


def patch_restore(kept: Tensor, ids_restore: Tensor, mask_token: Tensor | None = None) -> Tensor:
    """The kept tokens and then copies of the mask token, gathered."""
    batch, k = kept.shape[:2]
    token = kept.new_zeros(kept.shape[2:]) if mask_token is None else mask_token
    token = token.reshape(kept.shape[2:])
    copies = token.expand(batch, max(ids_restore.shape[1] - k, 0), *kept.shape[2:])
    return patch_gather(torch.cat([kept, copies], 1), ids_restore)


def pairwise_ranking_loss(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean binary cross entropy over all ordered pairs, as a tensor of pairs."""
    gap = predicted.unsqueeze(2) - predicted.unsqueeze(1)
    a, b = target.detach().unsqueeze(2), target.detach().unsqueeze(1)
    valid = a != b
    if mask is not None:
        valid = valid & mask.unsqueeze(2) & mask.unsqueeze(1)
    z = torch.where(a > b, -gap, gap)
    z = torch.where((a.isnan() | b.isnan()).expand_as(z), math.nan, z)
    losses = torch.where(valid, torch.nn.functional.softplus(z, threshold=1e9), 0.0)
    return losses.sum() / valid.sum().clamp(min=1)

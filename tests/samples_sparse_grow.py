"""Samples of the search for places where a sparse weight may grow."""

from __future__ import annotations

import torch
from regkern.sparse import SparsePattern
from regkern.sparse.growing import _scan_
from sample import ListSample
from torch import Tensor

THRESHOLD = 0.8


def _pattern(like: Tensor) -> SparsePattern:
    """With a row in front of those that scores are given of, and one behind them."""
    rows, columns = like.shape
    mask = torch.rand(rows + 2, columns, generator=torch.Generator().manual_seed(rows)) < 0.3
    return SparsePattern.from_mask(mask)


def _room(like: Tensor) -> int:
    """Of a wide matrix there is more than a list takes."""
    return like.numel() // (8 if like.shape[1] > 100 else 1)


def _scan(xs: list[Tensor], scores: list[Tensor]) -> None:
    """In x the magnitudes that the list has, where they are."""
    for x, s in zip(xs, scores, strict=True):
        p, room, found = _pattern(s), _room(s), torch.zeros(1, dtype=torch.int64)
        places, magnitudes = torch.zeros(room, dtype=torch.int64), s.new_zeros(room)
        threshold = torch.full((1,), THRESHOLD, dtype=s.dtype)
        _scan_(places, magnitudes, found, s, p.offsets, p.index, 1, threshold)
        count = min(int(found), room)
        dense = s.new_zeros(x.numel())
        dense[places[:count] - x.shape[1]] = magnitudes[:count]
        with torch.no_grad():
            x.copy_(dense.view(x.shape))


def _scanned(xs: list[Tensor], scores: list[Tensor]) -> list[Tensor]:
    results = []
    for s in scores:
        free = ~_pattern(s).mask()[1:-1]
        hits = (free & ~(s.abs() <= THRESHOLD)).view(-1)
        hits &= hits.cumsum(0) <= _room(s)
        results.append(torch.where(hits.view(s.shape), s.abs(), 0.0))
    return results


LISTS: list[ListSample] = [
    ListSample(
        "sparse_grow_scan_",
        "rows",
        _scan,
        _scanned,
        ((9, 40), (3, 0), (70, 130)),
        lists=2,
        dtypes=(torch.float32, torch.float64),
        compiles=False,
    )
]

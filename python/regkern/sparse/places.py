"""Patterns as lists of places: place r C + c is row r and column c of a matrix (R, C)."""

from __future__ import annotations

import torch
from torch import Tensor

from regkern.sparse.pattern import SparsePattern, _both_views


def places_of(pattern: SparsePattern) -> Tensor:
    """Where the entries are, int64 (nnz,), rising."""
    return pattern.rows() * pattern.shape[1] + pattern.index


def pattern_at(places: Tensor, shape: tuple[int, int]) -> SparsePattern:
    """The pattern of places that rise, as they are known to: nothing is looked at again."""
    rows, columns = shape
    offsets = torch.searchsorted(places, torch.arange(rows + 1, device=places.device) * columns)
    row = torch.arange(rows, dtype=torch.int32, device=places.device)
    row = row.repeat_interleave(offsets.diff(), output_size=places.numel())
    index = (places - row.long() * columns).int()
    return SparsePattern._known(shape, *_both_views(offsets, index, row, columns))

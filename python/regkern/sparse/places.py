"""Patterns as lists of places: place r C + c is row r and column c of a matrix (R, C)."""

from __future__ import annotations

import torch
from torch import Tensor

from regkern.sparse.pattern import SparsePattern


def places_of(pattern: SparsePattern) -> Tensor:
    """Where the entries are, int64 (nnz,), rising."""
    return pattern.rows() * pattern.shape[1] + pattern.index


def pattern_at(places: Tensor, shape: tuple[int, int]) -> SparsePattern:
    """The pattern of places that rise, as they are known to: nothing is looked at again."""
    rows, columns = shape
    starts = torch.arange(rows + 1, device=places.device) * columns
    pattern = SparsePattern.__new__(SparsePattern)
    pattern.shape = shape
    pattern.offsets = torch.searchsorted(places, starts)
    row = torch.arange(rows, dtype=torch.int32, device=places.device)
    row = row.repeat_interleave(pattern.offsets.diff(), output_size=places.numel())
    pattern.index = (places - row.long() * columns).int()
    # Entries are in the order of rows: a stable sort by columns is one by columns and rows.
    sorted_columns, order = torch.sort(pattern.index, stable=True)
    ends = torch.arange(columns + 1, dtype=torch.int32, device=places.device)
    pattern.t_offsets = torch.searchsorted(sorted_columns, ends)
    pattern.t_index = row[order]
    pattern.t_order = order.int()
    return pattern

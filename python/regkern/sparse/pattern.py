"""Where a sparse matrix has entries: immutable, shared, in both views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern.proximal.patterns import n_m_mask

_OP = "SparsePattern"
_LARGEST = 2**31 - 1


def _fail(expected: str, got: object) -> None:
    raise ValueError(f"regkern.{_OP}: expected {expected}, got {got}")


def _integers(name: str, t: object) -> Tensor:
    checks.tensor(_OP, name, t)
    assert isinstance(t, Tensor)
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"regkern.{_OP}: expected `{name}` of integers, got {t.dtype}")
    if t.dim() != 1:
        _fail(f"`{name}` of one dimension", tuple(t.shape))
    return t


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def longest_first(offsets: Tensor, block: int = 32) -> Tensor:
    """Blocks of so many neighbouring rows, int32, those with the longest row first."""
    lengths = offsets.diff()
    blocks = -(-lengths.numel() // block)
    padded = torch.nn.functional.pad(lengths, (0, blocks * block - lengths.numel()))
    longest = padded.reshape(blocks, block).amax(1)
    return torch.sort(longest, descending=True, stable=True).indices.int()


def check_pattern(op: str, pattern: object) -> None:
    """That it is one."""
    if not isinstance(pattern, SparsePattern):
        raise TypeError(
            f"regkern.{op}: expected `pattern` to be a SparsePattern, got {type(pattern)}"
        )


def _both_views(
    offsets: Tensor, index: Tensor, row: Tensor, columns: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of entries in order, int32: as :meth:`SparsePattern.tensors` has them."""
    # Entries are in the order of rows: a stable sort by columns is one by columns and rows.
    by_column, order = torch.sort(index, stable=True)
    ends = torch.arange(columns + 1, dtype=index.dtype, device=index.device)
    return offsets, index, torch.searchsorted(by_column, ends), row[order], order.int()


class SparsePattern:
    r"""The places of the entries of a sparse matrix W (R, C).

    Entries are counted by rows, and in a row by columns: entry e of the ``values`` (nnz,) of W is
    the one at row ``rows()[e]`` and column ``index[e]``. An entry may be 0; it is one all the same.

    Parameters
    ----------
    offsets : Tensor
        Integers (R + 1,): row r has the entries from ``offsets[r]`` to ``offsets[r + 1]``.
    index : Tensor
        Integers (nnz,): their columns, which rise within a row.
    columns : int
        C.

    Attributes
    ----------
    offsets, index : Tensor
        int64 (R + 1,) and int32 (nnz,).
    t_offsets, t_index, t_order : Tensor
        The same of the transpose, int64 (C + 1,) and int32 (nnz,), and for each of its entries
        which one of W it is, int32 (nnz,).

    Raises
    ------
    TypeError, ValueError
        For offsets that fall, indices that are out of range, unsorted or there twice, more than
        2³¹ − 1 rows, columns or entries. Looking at them waits for the device.

    Notes
    -----
    12 bytes an entry; on CUDA the order of blocks of rows by their longest one besides. A pattern
    does not change: another one is another object, and many layers and products may share one.
    """

    __slots__ = (
        "index",
        "offsets",
        "row_blocks",
        "shape",
        "t_index",
        "t_offsets",
        "t_order",
        "t_row_blocks",
    )

    def __init__(self, offsets: Tensor, index: Tensor, columns: int) -> None:
        offsets, index = _integers("offsets", offsets).long(), _integers("index", index).long()
        checks.on_device(_OP, "index", index, offsets)
        rows, nnz = offsets.numel() - 1, index.numel()
        checks.at_least(_OP, "columns", columns, 0)
        if rows < 0:
            _fail("`offsets` of at least one element", 0)
        if max(rows, columns, nnz) > _LARGEST:
            _fail("at most 2147483647 rows, columns and entries", (rows, columns, nnz))
        if int(offsets[0]) != 0 or int(offsets[-1]) != nnz or bool((offsets.diff() < 0).any()):
            _fail(f"`offsets` that do not fall, from 0 to {nnz}", offsets.tolist()[:8])
        if nnz and (int(index.min()) < 0 or int(index.max()) >= columns):
            _fail(f"`index` in [0, {columns})", (int(index.min()), int(index.max())))
        row = torch.arange(rows, device=index.device).repeat_interleave(offsets.diff())
        if bool(((row[1:] == row[:-1]) & (index[1:] <= index[:-1])).any()):
            _fail("`index` that rises within each row", "one that does not")
        self._take(
            (rows, columns),
            *_both_views(offsets.contiguous(), index.int().contiguous(), row.int(), columns),
        )

    def _take(
        self,
        shape: tuple[int, int],
        offsets: Tensor,
        index: Tensor,
        t_offsets: Tensor,
        t_index: Tensor,
        t_order: Tensor,
    ) -> None:
        self.shape = shape
        self.offsets, self.index = offsets, index
        self.t_offsets, self.t_index, self.t_order = t_offsets, t_index, t_order
        # On CUDA long rows are begun with, so that none of them is what is waited for in the end.
        on_cuda = offsets.is_cuda
        self.row_blocks = longest_first(offsets) if on_cuda else None
        self.t_row_blocks = longest_first(t_offsets) if on_cuda else None

    # ---- where it comes from ----

    @classmethod
    def _known(cls, shape: tuple[int, int], *tensors: Tensor) -> SparsePattern:
        """Of tensors that are those of a pattern: nothing is looked at again."""
        made = cls.__new__(cls)
        made._take(shape, *tensors)
        return made

    @classmethod
    def from_mask(cls, mask: Tensor) -> SparsePattern:
        """The entries where a mask (R, C) of bools is True."""
        checks.tensor(_OP, "mask", mask)
        if mask.dtype != torch.bool or mask.dim() != 2:
            _fail("a mask of bools of two dimensions", f"{mask.dtype} {tuple(mask.shape)}")
        _, column = mask.nonzero(as_tuple=True)
        return cls(_offsets(mask.sum(1)), column, mask.shape[1])

    @classmethod
    def from_coo(cls, rows: Tensor, columns: Tensor, shape: Sequence[int]) -> SparsePattern:
        """Entries in any order, each once."""
        rows, columns = _integers("rows", rows).long(), _integers("columns", columns).long()
        if rows.shape != columns.shape or len(shape) != 2:
            _fail("as many `rows` as `columns`, and a shape of two", (rows.shape, columns.shape))
        if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= shape[0]):
            _fail(f"`rows` in [0, {shape[0]})", (int(rows.min()), int(rows.max())))
        order = torch.sort(rows * max(1, shape[1]) + columns).indices
        counts = torch.bincount(rows, minlength=shape[0])
        return cls(_offsets(counts), columns[order], shape[1])

    @classmethod
    def from_torch(cls, matrix: Tensor) -> tuple[SparsePattern, Tensor]:
        """Of a sparse CSR, CSC or COO tensor of torch, and its values."""
        checks.tensor(_OP, "matrix", matrix)
        if matrix.layout not in (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo):
            _fail("a sparse CSR, CSC or COO tensor", matrix.layout)
        if matrix.dim() != 2 or matrix.dense_dim() != 0:
            _fail("a matrix", tuple(matrix.shape))
        if matrix.layout == torch.sparse_csc:
            # Its columns are the rows of the transpose.
            other = cls(matrix.ccol_indices(), matrix.row_indices(), matrix.shape[0])
            pattern = other.transposed()
            return pattern, matrix.values()[other.t_order.long()]
        if matrix.layout == torch.sparse_coo:
            matrix = matrix.coalesce()
            rows, columns = matrix.indices()
            return cls.from_coo(rows, columns, matrix.shape), matrix.values()
        pattern = cls(matrix.crow_indices(), matrix.col_indices(), matrix.shape[1])
        return pattern, matrix.values()

    @classmethod
    def constant_fan_in(cls, index: Tensor, columns: int) -> SparsePattern:
        """The same number of entries in every row: their columns, integers (R, k), rising."""
        checks.tensor(_OP, "index", index)
        if index.dim() != 2:
            _fail("`index` of two dimensions", tuple(index.shape))
        rows, k = index.shape
        offsets = torch.arange(rows + 1, device=index.device) * k
        return cls(offsets, index.reshape(-1), columns)

    @classmethod
    def blocks(cls, mask: Tensor, block: tuple[int, int]) -> SparsePattern:
        """Whole blocks of that many rows and columns, where a mask (R / h, C / w) is True."""
        checks.tensor(_OP, "mask", mask)
        for size in block:
            checks.at_least(_OP, "block", size, 1)
        if mask.dim() != 2:
            _fail("a mask of two dimensions", tuple(mask.shape))
        full = mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        return cls.from_mask(full)

    @classmethod
    def n_m(cls, weight: Tensor, n: int = 2, m: int = 4) -> SparsePattern:
        """Of every m neighbours of a row the n largest magnitudes."""
        return cls.from_mask(n_m_mask(weight, n, m))

    # ---- what it gives ----

    @property
    def nnz(self) -> int:
        """How many entries there are."""
        return self.index.numel()

    @property
    def density(self) -> float:
        """nnz / (R C)."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @property
    def device(self) -> torch.device:
        return self.index.device

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What it is: offsets, index, t_offsets, t_index, t_order."""
        return self.offsets, self.index, self.t_offsets, self.t_index, self.t_order

    def operands(self) -> tuple[Tensor | None, ...]:
        """As products take it: :meth:`tensors`, and the orders in which CUDA takes up rows."""
        return *self.tensors(), self.row_blocks, self.t_row_blocks

    def rows(self) -> Tensor:
        """The row of each entry, int64 (nnz,)."""
        count = torch.arange(self.shape[0], device=self.device)
        return count.repeat_interleave(self.offsets.diff(), output_size=self.nnz)

    def mask(self) -> Tensor:
        """bool (R, C)."""
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[self.rows(), self.index.long()] = True
        return mask

    def gather(self, weight: Tensor) -> Tensor:
        """The entries of a dense matrix, (nnz,). Differentiable."""
        checks.tensor(_OP, "weight", weight)
        if tuple(weight.shape) != self.shape:
            _fail(f"`weight` of shape {self.shape}", tuple(weight.shape))
        return weight[self.rows(), self.index.long()]

    def scatter(self, values: Tensor) -> Tensor:
        """The dense matrix (R, C) with these entries, and 0 elsewhere. Differentiable."""
        checks.tensor(_OP, "values", values)
        if tuple(values.shape) != (self.nnz,):
            _fail(f"`values` of shape ({self.nnz},)", tuple(values.shape))
        dense = values.new_zeros(self.shape)
        return dense.index_put((self.rows(), self.index.long()), values)

    def to_torch(self, values: Tensor) -> Tensor:
        """torch's sparse CSR tensor with these entries."""
        return torch.sparse_csr_tensor(self.offsets, self.index.long(), values, self.shape)

    def to_semi_structured(self, values: Tensor) -> Tensor:
        """torch's 2:4 tensor with these entries, for its matrix products on CUDA.

        At most two entries among four neighbours of a row, as :meth:`n_m` gives them. It is of the
        values at this time; torch multiplies by it and trains other layers through it, not by it.
        """
        rows, columns = self.shape
        if columns % 4:
            _fail("a multiple of 4 columns", columns)
        counts = torch.bincount(
            self.rows() * (columns // 4) + self.index.long() // 4, minlength=rows * columns // 4
        )
        if bool((counts > 2).any()):
            _fail("at most 2 entries among 4 neighbours of a row", int(counts.max()))
        if not values.is_cuda:
            _fail("`values` on CUDA, where torch has 2:4 products", values.device)
        matrix: Tensor = torch.sparse.to_sparse_semi_structured(self.scatter(values))
        return matrix

    def transposed(self) -> SparsePattern:
        """That of the transpose; entry e of it is entry ``t_order[e]`` here."""
        inverse = torch.empty_like(self.t_order)
        inverse[self.t_order.long()] = torch.arange(
            self.nnz, dtype=inverse.dtype, device=inverse.device
        )
        shape = self.shape[1], self.shape[0]
        return self._known(shape, self.t_offsets, self.t_index, self.offsets, self.index, inverse)

    def to(self, device: torch.device | str) -> SparsePattern:
        """The same pattern on another device."""
        if torch.device(device) == self.device:
            return self
        return self._known(self.shape, *(t.to(device) for t in self.tensors()))

    def __repr__(self) -> str:
        return (
            f"SparsePattern(shape={self.shape}, nnz={self.nnz}, density={self.density:.4f}, "
            f"device='{self.device}')"
        )

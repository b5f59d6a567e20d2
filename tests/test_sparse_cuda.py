"""The CUDA kernels of sparse products, in the emulator: rows, tiles and layouts of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recording import equal
from regkern.reference.sparse import products as reference
from regkern.sparse import SparsePattern, sddmm
from regkern.sparse.pattern import longest_first
from regkern.sparse.tensor_cores import sddmm_tiles
from torch import Tensor

OPS = torch.ops.regkern
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def cuda(emulator: Path) -> Any:
    """The ops of the emulator."""
    torch.ops.load_library(str(emulator))
    return torch.ops.regkern_emulator


def _normal(*shape: int, dtype: torch.dtype = torch.float32, salt: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(salt)).to(dtype)


def _pattern(rows: int, columns: int, share: float) -> SparsePattern:
    """Rows from none of the columns to all of them, in no order of their lengths."""
    uniform = torch.rand(rows, columns, generator=torch.Generator().manual_seed(rows))
    mask = uniform < share * (torch.arange(rows) * 5 % 7)[:, None] / 3
    mask[rows // 2], mask[:, columns // 3] = True, False
    return SparsePattern.from_mask(mask)


def _check_all(
    cuda: Any, pattern: SparsePattern, batch: int, major: bool, dtype: Any, ordered: bool = False
) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows, columns = pattern.shape
    x, g = _normal(batch, columns, dtype=dtype), _normal(batch, rows, dtype=dtype, salt=1)
    if major:
        x, g = x.t().contiguous(), g.t().contiguous()
    values, bias = _normal(pattern.nnz, dtype=wide, salt=2), _normal(rows, dtype=wide, salt=3)
    given = (*pattern.operands(), major)
    orders = (longest_first(pattern.offsets), longest_first(pattern.t_offsets))
    on_cuda = (*pattern.tensors(), *orders, major) if ordered else given
    for name, *args in (
        ("sparse_linear", x, values, bias, "relu"),
        ("sparse_linear_activated", x, values, None, "gelu"),
        ("sparse_linear_t", g, values),
        ("sddmm", g, x),
        ("sparse_linear_backward", g, x, values),
    ):
        a, b = getattr(OPS, name)(*args, *given), getattr(cuda, name)(*args, *on_cuda)
        assert equal(a, b), (name, pattern, batch, major, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "batch", "share", "major"),
    [
        (40, 24, 70, 0.5, False),  # two tiles, 16-byte results
        (19, 13, 20, 0.5, False),  # results that are not aligned
        (18, 50, 64, 0.9, True),  # whole tiles, read where they are
        (1, 9, 33, 1.0, True),
        (12, 8, 600, 0.3, False),  # more tiles than are summed at once
        (5, 4, 3, 0.0, False),
    ],
)
def test_same_bits_of_every_shape(
    cuda: Any,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    columns: int,
    batch: int,
    share: float,
    major: bool,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setenv("REGKERN_EMULATOR_ORDER", "shuffle:5")
    _check_all(cuda, _pattern(rows, columns, share), batch, major, dtype)


def test_more_rows_than_blocks(cuda: Any) -> None:
    """A grid that goes round: 4 multiprocessors with 32 blocks of 8 rows each are 1024 rows."""
    pattern = _pattern(1100, 5, 0.4)
    _check_all(cuda, pattern, 40, False, torch.float32)
    _check_all(cuda, pattern.transposed(), 40, False, torch.float32)


def test_rows_are_taken_in_any_order(cuda: Any) -> None:
    pattern = _pattern(100, 70, 0.3)
    for dtype in (torch.float32, torch.float16):
        _check_all(cuda, pattern, 20, False, dtype, ordered=True)
    # What nobody could look at stays within the matrix.
    blocks = torch.tensor([-1, 99, 1, 0], dtype=torch.int32)
    y = cuda.sparse_linear_t(
        _normal(4, 100), _normal(pattern.nnz), *pattern.tensors(), blocks, blocks[:3], False
    )
    assert y.shape == (4, 70)


def test_tiles_that_are_not_aligned_are_packed(cuda: Any) -> None:
    pattern = _pattern(9, 7, 0.5)
    x, values = _normal(3 + 7 * 64)[3:].view(7, 64), _normal(pattern.nnz)
    assert x.data_ptr() % 16
    args = (x, values, None, "none", *pattern.operands(), True)
    assert equal(OPS.sparse_linear(*args), cuda.sparse_linear(*args))


def _tile_error(found: Tensor, g: Tensor, x: Tensor, pattern: SparsePattern) -> Tensor:
    """In units of the bound that is promised."""
    wanted = pattern.gather(g.double().t() @ x.double())
    magnitudes = pattern.gather(g.double().abs().t() @ x.double().abs())
    return ((found - wanted).abs() / (g.shape[0] * 2.0**-22 * magnitudes)).max()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("rows", "columns", "batch", "major"), [(150, 70, 40, False), (3, 65, 20, True)]
)
def test_whole_tiles(
    cuda: Any,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    batch: int,
    major: bool,
) -> None:
    monkeypatch.setenv("REGKERN_EMULATOR_ORDER", "shuffle:5")
    mask = _pattern(rows, columns, 0.2).mask()
    mask[64:128] = False
    pattern = SparsePattern.from_mask(mask)
    g, x = _normal(batch, rows, dtype=dtype), _normal(batch, columns, dtype=dtype, salt=1)
    given = (g.t().contiguous(), x.t().contiguous()) if major else (g, x)
    found = cuda.sddmm_tiles(*given, *pattern.operands(), major)
    assert _tile_error(found, g, x, pattern) < 1
    # Without tensor cores, or with dtypes that they do not have, it is sddmm.
    exact = OPS.sddmm(*given, *pattern.operands(), major)
    assert torch.equal(OPS.sddmm_tiles(*given, *pattern.operands(), major), exact)
    wide = [t.float() for t in given]
    assert torch.equal(
        cuda.sddmm_tiles(*wide, *pattern.operands(), major),
        OPS.sddmm(*wide, *pattern.operands(), major),
    )


def test_tiles_keep_nan_where_it_is(cuda: Any) -> None:
    pattern = _pattern(20, 30, 0.5)
    g, x = _normal(18, 20).half(), _normal(18, 30).half()
    x[4, 6] = float("nan")
    g[2, 3] = float("inf")
    found = cuda.sddmm_tiles(g, x, *pattern.operands(), False)
    wanted = pattern.gather(g.double().t() @ x.double())
    assert torch.equal(found.isfinite(), wanted.isfinite())
    assert torch.equal(found.isnan(), wanted.isnan())


def test_tiles_are_chosen_by_size(cuda: Any) -> None:
    """256 by 256 entries are as many as it takes; one fewer are summed as everywhere."""
    full = torch.ones(256, 256, dtype=torch.bool)
    g, x = _normal(3, 256).bfloat16(), _normal(3, 256, salt=1).bfloat16()
    g[0, 0] = x[0, 0] = 1000.0  # 1e6 absorbs what is added to it, in an order that shows
    for fewer in (0, 1):
        full[-1, 256 - fewer :] = False
        pattern = SparsePattern.from_mask(full)
        given = (g, x, *pattern.operands(), False)
        found = cuda.sddmm(*given)
        assert torch.equal(found, (cuda.sddmm_tiles if fewer == 0 else OPS.sddmm)(*given))
        assert _tile_error(found, g, x, pattern) < 1


def test_tiles_of_a_batch_of_none(cuda: Any) -> None:
    pattern = _pattern(4, 5, 0.5)
    empty = torch.zeros(0, 4).half(), torch.zeros(0, 5).half()
    assert not cuda.sddmm_tiles(*empty, *pattern.operands(), False).any()


def test_public_function_of_tiles() -> None:
    pattern = _pattern(9, 7, 0.5)
    g, x = _normal(2, 6, 9).requires_grad_(), _normal(2, 6, 7).requires_grad_()
    v = sddmm_tiles(g, x, pattern)
    assert torch.equal(v, sddmm(g, x, pattern))
    weights = _normal(pattern.nnz, salt=4)
    expected = reference.sddmm(g, x, pattern)
    for a, b in zip(
        torch.autograd.grad(v, (g, x), weights),
        torch.autograd.grad(expected, (g, x), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"sddmm_tiles: expected `x` of the batch and dtype of `g`"
    ):
        sddmm_tiles(g, x.double(), pattern)

"""Samples of products with sparse matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from regkern import sparse as ours
from regkern.reference.sparse import products as reference
from regkern.sparse import SparsePattern, tensor_cores
from sample import Sample
from torch import Tensor


def pattern_of(rows: int, columns: int, share: float) -> SparsePattern:
    """With an empty row and an empty column."""
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(rows)) < share
    mask[rows // 2], mask[:, columns // 3] = False, False
    return SparsePattern.from_mask(mask)


def _with_pattern(call: Callable[..., Any], pattern: SparsePattern) -> Callable[..., Any]:
    def bound(x: Tensor, other: Tensor, *rest: Tensor, **options: Any) -> Tensor:
        # What is summed over a batch of halves stays in float32.
        y: Tensor = call(x, other, pattern, *rest, **options)
        return y.to(x.dtype)

    return bound


def _sample(
    op: str, name: str, shape: tuple[int, int], shapes: list[tuple[int, ...]], **options: Any
) -> Sample:
    pattern = pattern_of(*shape, 0.3)
    # Values are the second tensor of all but sddmm.
    given = [(pattern.nnz,) if s == (-1,) else s for s in shapes]
    return Sample(
        op,
        name,
        tuple(given),
        options,
        _with_pattern(getattr(ours, op), pattern),
        _with_pattern(getattr(reference, op), pattern),
        batched=False,
    )


SAMPLES: list[Sample] = [
    _sample("sparse_linear", "batch", (21, 13), [(5, 13), (-1,)]),
    _sample("sparse_linear", "bias-relu", (19, 40), [(2, 35, 40), (-1,), (19,)], activation="relu"),
    _sample("sparse_linear", "bias-gelu", (11, 7), [(4, 7), (-1,), (11,)], activation="gelu"),
    _sample(
        "sparse_linear",
        "features-silu",
        (17, 33),
        [(33, 64), (-1,)],
        activation="silu",
        feature_major=True,
    ),
    _sample("spmm_t", "batch", (21, 13), [(70, 21), (-1,)]),
    _sample("sddmm", "batch", (21, 13), [(70, 21), (70, 13)]),
    _sample("sddmm", "features", (18, 9), [(18, 6), (9, 6)], feature_major=True),
    # Of halves CUDA has other bits.
    replace(
        _sample("sddmm", "tiles", (21, 13), [(7, 21), (7, 13)]),
        op="sddmm_tiles",
        ours=_with_pattern(tensor_cores.sddmm_tiles, pattern_of(21, 13, 0.3)),
        dtypes=(torch.float32, torch.float64),
    ),
]

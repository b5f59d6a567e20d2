"""Samples of masked gradients and gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.reference.sparse import gates as reference
from regkern.reference.sparse.masked import write_entries
from regkern.sparse import SparsePattern, gates
from regkern.sparse.masked import write_entries_
from regkern.sparse.meprop import row_top_k
from sample import ListSample, Sample, seed
from torch import Tensor


def _pattern(like: Tensor) -> SparsePattern:
    rows, columns = like.shape
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(rows)) < 0.3
    return SparsePattern.from_mask(mask)


def _write(xs: list[Tensor], *others: list[Tensor]) -> None:
    for x, *rest in zip(xs, *others, strict=True):
        pattern = _pattern(x)
        values, *base = (pattern.gather(v) for v in rest)
        write_entries_(x, values, pattern, *base)


def _written(xs: list[Tensor], *others: list[Tensor]) -> list[Tensor]:
    results = []
    for x, *rest in zip(xs, *others, strict=True):
        pattern = _pattern(x)
        values, *base = (pattern.gather(v) for v in rest)
        results.append(write_entries(x, values, pattern, *base))
    return results


def _drawn(call: Callable[..., Any], *options: Any) -> Callable[..., Any]:
    def bound(*tensors: Tensor) -> Tensor:
        y: Tensor = call(*tensors, *options, seed=seed())
        return y

    return bound


def _channels_last(y: Tensor, mass: float) -> Tensor:
    return gates.mass_gate(y.movedim(1, -1).contiguous().movedim(-1, 1), mass)


SHAPES = ((9, 40), (3, 0), (70, 300))

LISTS: list[ListSample] = [
    ListSample("sparse_write_", "values", _write, _written, SHAPES, lists=2, compiles=False),
    ListSample("sparse_write_", "base", _write, _written, SHAPES, lists=3, compiles=False),
]

SAMPLES: list[Sample] = [
    Sample(
        "score_gate",
        "matrix",
        ((7, 41), (7, 41)),
        {"threshold": 0.2},
        gates.score_gate,
        reference.score_gate,
        straight_through=True,
    ),
    Sample(
        "gradient_dropout",
        "images",
        ((2, 3, 5, 9), (2, 3, 5, 9)),
        {},
        _drawn(gates.gradient_dropout, 0.75, 1e-8),
        _drawn(reference.gradient_dropout, 0.75, 1e-8),
        differentiable=False,
        own_precision=True,
    ),
    Sample("row_top_k", "rows", ((3, 2, 70),), {"k": 9}, row_top_k, reference.row_top_k),
    Sample(
        "mass_gate",
        "volumes",
        ((3, 37, 2, 3, 2),),
        {"mass": 0.8},
        _channels_last,
        reference.mass_gate,
        differentiable=False,
    ),
    Sample(
        "mass_gate",
        "lines",
        ((4, 100, 5),),
        {"mass": 0.3},
        gates.mass_gate,
        reference.mass_gate,
        differentiable=False,
    ),
]

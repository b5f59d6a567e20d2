"""Samples of the gram penalties and of rows by their norms."""

from __future__ import annotations

from typing import Any

import torch
from regkern.reference.spectral import gram as gram_reference
from regkern.reference.spectral import row_norms as rows_reference
from regkern.spectral import gram, row_norms
from sample import Sample
from torch import Tensor


def _fresh(x: Tensor) -> Tensor:
    """The bits of torch's products depend on strides, and on where memory begins."""
    return x.clone(memory_format=torch.contiguous_format)


def _penalty(name: str, shapes: tuple[tuple[int, ...], ...], **options: Any) -> Sample:
    return Sample(
        "orthogonality_penalty",
        name,
        shapes,
        {},
        lambda *ws: gram.orthogonality_penalty([_fresh(w) for w in ws], **options).to(ws[0].dtype),
        lambda *ws: gram_reference.orthogonality_penalty(ws, **options),
        batched=False,
    )


def _project_(x: Tensor) -> Tensor:
    row_norms.oblique_projection_(x)
    return x


def _project(name: str, shape: tuple[int, ...]) -> Sample:
    return Sample(
        "oblique_projection",
        name,
        (shape,),
        {},
        row_norms.row_equilibrate,
        rows_reference.row_project,
        inplace=_project_,
        differentiable=False,
    )


def _equilibrate(side: str, shape: tuple[int, ...]) -> Sample:
    return Sample(
        "row_equilibrate",
        side,
        (shape,),
        {},
        lambda x: row_norms.row_equilibrate(x, side),  # type: ignore[arg-type]
        lambda x: rows_reference.row_equilibrate(x, side),
    )


SAMPLES: list[Sample] = [
    _penalty("auto", ((5, 7), (5, 7), (9, 4))),
    _penalty("masked-norm", ((6, 11),), side="rows", squared=False, diagonal=False),
    Sample(
        "cross_gram_penalty",
        "l1",
        ((3, 6), (5, 6)),
        {},
        lambda a, b: gram.cross_gram_penalty([(_fresh(a), _fresh(b))], "l1").to(a.dtype),
        lambda a, b: gram_reference.cross_gram_penalty([(a, b)], "l1"),
        batched=False,
    ),
    Sample(
        "norm_loss",
        "",
        ((5, 9),),
        {},
        lambda w: row_norms.norm_loss(w).to(w.dtype),
        lambda w: rows_reference.norm_loss([w]),
        batched=False,
    ),
    _project("short", (5, 3, 13)),
    _project("long", (2, 1500)),
    _equilibrate("rows", (4, 3, 2, 5)),
    _equilibrate("both", (5, 8)),
]

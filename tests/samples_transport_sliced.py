"""Samples of optimal transport on lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern._registration import compute_dtype
from regkern.reference.transport import sliced as reference
from regkern.transport import sliced
from sample import Sample
from torch import Tensor

_PRECISE = (torch.float32, torch.float64)


def _slopes(x: Tensor, y: Tensor, p: float) -> tuple[Tensor, Tensor]:
    (u, i), (v, j) = x.sort(-1), y.sort(-1)
    slopes: tuple[Tensor, Tensor] = sliced._slopes(u.new_ones(len(u)), u, v, i, j, None, None, p)
    return slopes


def _lines(op: str, name: str, n: int, m: int, p: float) -> Sample:
    def bind(call: Any) -> Callable[..., Tensor]:
        def both(x: Tensor, y: Tensor) -> Tensor:
            kind = compute_dtype(x)
            y = call(x.to(kind), y.to(kind))
            return (torch.cat(y, 1) if isinstance(y, tuple) else y).to(x.dtype)

        return both

    cost = op == "sliced_cost"
    return Sample(
        op,
        name,
        ((3, n), (3, m)),
        ours=bind(
            lambda x, y: sliced._line_costs(x, y, p, None, None) if cost else _slopes(x, y, p)
        ),
        definition=bind(
            lambda x, y: reference.lines_cost(x, y, p) if cost else reference.lines_slopes(x, y, p)
        ),
        dtypes=_PRECISE,
        # Second derivatives are refused.
        differentiable=False,
    )


SAMPLES: list[Sample] = [
    _lines("sliced_cost", "paired", 300, 300, 2.0),
    _lines("sliced_cost", "merged", 7, 5, 3.0),
    _lines("sliced_slopes", "paired", 6, 6, 2.0),
    _lines("sliced_slopes", "merged", 5, 9, 1.5),
]

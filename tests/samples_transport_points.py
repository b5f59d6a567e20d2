"""Samples of the streamed softmin between clouds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.reference.transport import points as reference
from regkern.transport import points
from sample import Sample
from torch import Tensor

_PRECISE = (torch.float32, torch.float64)


def _softmin(cost_fn: str, columns: bool) -> Sample:
    """Weights and ε of either sign are made positive, one weight is zero."""

    def arguments(x: Tensor, w: Tensor, g: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = w.double().square() + 0.1
        kept = torch.arange(w.shape[-1]) != 1
        return torch.where(kept, weight, 0.0), g.double(), e.double().square() + 0.5

    def ours(x: Tensor, y: Tensor, w: Tensor, g: Tensor, e: Tensor) -> Tensor:
        engine = points.PointCost(y, x, cost_fn) if columns else points.PointCost(x, y, cost_fn)
        return engine.softmin(*arguments(x, w, g, e), columns).to(x.dtype)

    def definition(x: Tensor, y: Tensor, w: Tensor, g: Tensor, e: Tensor) -> Tensor:
        result: Tensor = reference.softmin(x, y, *arguments(x, w, g, e), cost_fn)
        return result.to(x.dtype)

    shapes = ((2, 5, 3), (2, 131, 3), (2, 131), (2, 131), (2,))
    call: Callable[..., Any] = ours
    return Sample(
        "transport_points_softmin",
        f"{cost_fn}{'-columns' if columns else ''}",
        shapes,
        {},
        call,
        definition,
        dtypes=_PRECISE,
        batched=False,
    )


SAMPLES = [_softmin("sqeuclidean", False), _softmin("euclidean", True)]

"""Samples of the streamed softmin between clouds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.reference.transport import dense
from regkern.reference.transport import points as reference
from regkern.transport import points
from regkern.transport.solver import sinkhorn
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
        # Once; and tested beside the other costs in test_transport_points.
        differentiable=False,
    )


def _plan(cost_fn: str) -> Sample:
    """Products with the plan, the costs and the largest elements after two iterations."""

    def ours(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        found = sinkhorn(x=x, y=y, eps=2.0, cost_fn=cost_fn, tol=None, max_iter=2)
        engine, problem = found._engine, found._problem
        assert isinstance(engine, points.PointCost)
        near = engine.apply(*problem, v.double(), False)
        if cost_fn == "euclidean":
            near = near + engine._products(*problem, v.double(), False, -1)[1]
        cost = engine.mean_cost(*problem)[:, None, None].expand(near[..., :1].shape)
        place = engine.argmax(*problem, False)[..., None]
        return torch.cat([near, cost, place], -1).to(v.dtype)

    def definition(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        v, x, y = (t.double() for t in (v, x, y))
        a, b = (torch.full(t.shape[:-1], 1 / t.shape[-2], dtype=v.dtype) for t in (x, y))
        eps = torch.full(x.shape[:1], 2.0, dtype=v.dtype)
        cost = reference.costs(x, y, cost_fn)
        f, g = dense.potentials(cost, a, b, eps, iterations=2)
        plan = dense.plan(cost, a, b, f, g, eps)
        near = plan @ v
        if cost_fn == "euclidean":
            near = near + (plan / cost) @ v
        total = (plan * cost).sum((-2, -1))[:, None, None].expand(near[..., :1].shape)
        return torch.cat([near, total, plan.argmax(-1)[..., None]], -1)

    shapes = ((2, 150, 2), (2, 6, 3), (2, 150, 3))
    return Sample(
        "transport_points_apply",
        cost_fn,
        shapes,
        {},
        ours,
        definition,
        dtypes=_PRECISE,
        differentiable=False,
    )


SAMPLES = [
    _softmin("sqeuclidean", False),
    _softmin("euclidean", True),
    _plan("sqeuclidean"),
    _plan("euclidean"),
]

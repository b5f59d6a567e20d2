"""Samples of sparse plans and exact transport."""

from __future__ import annotations

from typing import Any

import torch
from regkern.reference.transport import exact as exact_reference
from regkern.reference.transport import sparse as sparse_reference
from regkern.transport import exact, sparse
from sample import Sample
from torch import Tensor

_A = torch.tensor([0.1, 0.2, 0.0, 0.3, 0.1, 0.3], dtype=torch.float64)


def _value(
    name: str,
    k: int | None,
    method: str,
    gamma: float,
    a: Tensor | None,
    shape: tuple[int, ...] = (3, 6, 37),
) -> Sample:
    def ours(cost: Tensor) -> Tensor:
        result = sparse.sparse_transport(
            cost, a, gamma=gamma, k=k, method=method, tol=1e-9, max_iter=120
        )
        return result.value.to(cost.dtype)

    def definition(cost: Tensor) -> Tensor:
        return sparse_reference.sparse_transport(cost, a, gamma=gamma)

    return Sample(
        "sparse_transport",
        name,
        (shape,),
        {},
        ours,
        definition,
        differentiable=False,
    )


def _line(m: Any) -> Any:
    def call(x: Tensor, y: Tensor) -> Tensor:
        return m.wasserstein_1d(x, y, p=1.5).to(x.dtype)

    return call


def _assignment(cost: Tensor) -> Tensor:
    return exact.assignment(cost).value.to(cost.dtype)


SAMPLES: list[Any] = [
    Sample(
        "wasserstein_1d",
        "unequal",
        ((3, 7), (3, 5)),
        {},
        _line(exact),
        _line(exact_reference),
        differentiable=False,
    ),
    Sample(
        "assignment",
        "wide",
        ((3, 3, 5),),
        {},
        _assignment,
        exact_reference.assignment,
    ),
    Sample(
        "assignment",
        "tall",
        ((3, 4, 3),),
        {},
        _assignment,
        exact_reference.assignment,
    ),
    _value("quadratic", None, "dual", 3.0, None),
    _value("projected", None, "semi_dual", 8.0, _A),
    _value("entries", 5, "semi_dual", 1.0, _A),
    _value("long_lists", 20, "semi_dual", 20.0, None, (2, 24, 9)),
]

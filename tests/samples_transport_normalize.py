"""Samples of Sinkhorn's normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.reference.transport import normalize as reference
from regkern.transport import normalize
from sample import Sample
from torch import Tensor

# Halves are read as they are, but a step of the result is larger than that of the definition.
_PRECISE = (torch.float32, torch.float64)


def _weighted(m: Any) -> Callable[..., Tensor]:
    """Positive weights of both sides, and the temperature, from normals."""

    def call(x: Tensor, a: Tensor, b: Tensor, t: Tensor, **options: Any) -> Tensor:
        y: Tensor = m.sinkhorn_normalize(
            x, a=a.square() + 0.1, b=b.square() + 0.1, tau=t.square() + 0.5, **options
        )
        return y

    return call


def _masked(m: Any) -> Callable[..., Tensor]:
    columns = torch.tensor([True, False, True, True, True])

    def call(x: Tensor, z: Tensor, **options: Any) -> Tensor:
        y: Tensor = m.sinkhorn_normalize(x, slack=z, columns=columns, **options)
        return y[..., [0, 2, 3, 4, 5]] if options["log_output"] else y

    return call


def _sample(
    name: str,
    shapes: tuple[tuple[int, ...], ...],
    bind: Callable[[Any], Callable[..., Tensor]] | None = None,
    dtypes: tuple[torch.dtype, ...] = _PRECISE,
    **options: Any,
) -> Sample:
    def plain(m: Any) -> Callable[..., Tensor]:
        return lambda x, **o: m.sinkhorn_normalize(x, **o)

    bind = plain if bind is None else bind
    return Sample(
        "sinkhorn_normalize",
        name,
        shapes,
        options,
        bind(normalize),
        bind(reference),
        dtypes=dtypes,
    )


SAMPLES: list[Sample] = [
    _sample("square", ((5, 4, 4),), dtypes=(*_PRECISE, torch.bfloat16, torch.float16), n_iter=5),
    _sample(
        "weights", ((3, 3, 5), (3, 3), (3, 5), (3,)), _weighted, n_iter=4, order="column_first"
    ),
    _sample("slack", ((2, 3, 5), (2,)), _masked, n_iter=3, log_output=True),
    _sample("guarded", ((2, 4, 3),), n_iter=3, eps=1e-2),
    _sample("rows", ((2, 5, 18), (2, 5), (2, 18), (2,)), _weighted, n_iter=3),
]

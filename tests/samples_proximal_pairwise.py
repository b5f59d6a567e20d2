"""Samples of the prox of distances between rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.proximal import pairwise as ours
from regkern.reference.proximal import pairwise as reference
from sample import Sample
from torch import Tensor


def _sample(name: str, shapes: tuple[tuple[int, ...], ...], **options: float) -> Sample:
    def bound(m: Any) -> Callable[..., Tensor]:
        def call(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
            t = t.abs() if isinstance(t, Tensor) else t
            return torch.cat(m.prox_pair_difference(x, y, t))

        return call

    return Sample("prox_pair_difference", name, shapes, options, bound(ours), bound(reference))


SAMPLES: list[Sample] = [
    _sample("rows", ((5, 7), (5, 7)), t=0.7),
    _sample("per-row", ((3, 130), (3, 130), (3,))),
    _sample("long", ((2, 1300), (2, 1300)), t=9.0),
]

"""Samples of the elementwise shrinkage laws and their penalties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.proximal import elementwise as ours
from regkern.reference.proximal import elementwise as reference
from sample import Sample
from torch import Tensor


def _pair(op: str, name: str, shapes: tuple[tuple[int, ...], ...], **kwargs: Any) -> Sample:
    options = kwargs.pop("options", {})
    call: Callable[[Any], Callable[..., Tensor]] = kwargs.pop("call")
    return Sample(op, name, shapes, options, call(ours), call(reference), **kwargs)


def _prox(name: str, dims: tuple[int, ...], law: str, **options: Any) -> Sample:
    return _pair(
        "prox_elementwise",
        name,
        (dims,),
        options=options,
        call=lambda m: lambda x, **o: m.prox_elementwise(x, law, **o),
    )


def _penalty(name: str, shapes: tuple[tuple[int, ...], ...], law: str, **options: Any) -> Sample:
    return _pair(
        "penalty_elementwise",
        name,
        shapes,
        options=options,
        call=lambda m: lambda *xs, **o: m.penalty_elementwise(list(xs), law, **o).to(xs[0].dtype),
    )


SAMPLES: list[Sample] = [
    _prox("soft", (3, 4, 5, 6), "soft", step=0.5, lam=0.6),
    _prox("soft-box", (7, 11), "soft", step=0.3, low=0.0, high=0.9),
    _prox("hard", (5, 9), "hard", step=0.4),
    _prox("elastic-net", (4, 13), "elastic_net", step=0.7, lam=0.5, shape=0.3),
    _prox("scad", (6, 10), "scad", step=0.9, lam=0.4, shape=2.5),
    _prox("scad-beyond", (6, 10), "scad", step=2.9, lam=0.3, shape=2.5),
    _prox("mcp", (6, 11), "mcp", step=0.6, lam=0.5, shape=1.7),
    _prox("mcp-beyond", (6, 11), "mcp", step=2.6, lam=0.3, shape=1.7),
    _prox("log-sum", (6, 12), "log_sum", step=0.5, lam=0.6, shape=0.3),
    _prox("capped", (5, 12), "capped", step=0.7, lam=0.8, shape=0.9),
    _prox("half", (5, 11), "half", step=0.5, lam=0.7),
    _prox("two-thirds", (5, 13), "two_thirds", step=0.5, lam=0.7),
    _prox("cel0", (5, 10), "cel0", step=0.8, lam=0.2, shape=0.7),
    _pair(
        "prox_elementwise",
        "learned",
        ((5, 9), (1,), (1,), (9,)),
        # Threshold, factor and weights are tensors, and positive.
        call=lambda m: (
            lambda x, t, lam, w: m.prox_elementwise(
                x, "mcp", t[0] * t[0] + 0.1, lam[0] * lam[0] + 0.2, shape=2.5, weights=w * w + 0.1
            )
        ),
        batched=False,
        dtypes=(torch.float32, torch.float64),
    ),
    _penalty("soft", ((5, 7), (4, 3, 6)), "soft", lam=0.3),
    _penalty("scad", ((9, 8),), "scad", lam=0.6, shape=2.5),
    _penalty("mcp", ((9, 8), (5, 3)), "mcp", lam=0.6, shape=1.7),
    _penalty("log-sum", ((9, 7),), "log_sum", lam=0.6, shape=0.3),
    _penalty("cel0", ((9, 6),), "cel0", lam=0.6, shape=0.8),
    _penalty("power", ((9, 5),), "power", lam=0.6, shape=1.3),
]

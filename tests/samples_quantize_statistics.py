"""Samples of the statistics: ranges, moments, histograms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.quantize import statistics as ours
from regkern.reference.quantize import statistics as reference
from sample import Sample
from torch import Tensor


def _like(x: Tensor, values: Any) -> Tensor:
    """The results as one vector of x's dtype, as the contract compares them."""
    return torch.cat([v.reshape(-1).to(x.dtype) for v in values])


def _pair(op: str, name: str, shapes: tuple[tuple[int, ...], ...], **kwargs: Any) -> Sample:
    options = kwargs.pop("options", {})
    call: Callable[[Any], Callable[..., Tensor]] = kwargs.pop("call")
    return Sample(op, name, shapes, options, call(ours), call(reference), **kwargs)


def _range(name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    return _pair(
        "value_range",
        name,
        (shape,),
        options=options,
        differentiable=False,
        call=lambda m: lambda x, **o: _like(x, m.value_range(x, **o)),
    )


def _moments(name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    return _pair(
        "moments",
        name,
        (shape,),
        options=options,
        call=lambda m: lambda x, **o: _like(x, m.moments(x, **o)[3:]),
    )


def _image_range(x: Tensor, m: Any) -> Tensor:
    """Keeps x's layout, so that the contract sees channels last."""
    low, high = m.value_range(x, axis=1)
    span = (high - low).to(x.dtype)[:, None, None]
    return (x - low.to(x.dtype)[:, None, None]) / span


SAMPLES: list[Sample] = [
    _range("tensor", (5, 7, 3)),
    _range("channel", (4, 3, 11), axis=1),
    _range("channel-last", (9, 5), axis=-1),
    _range("token", (6, 13), group_size=13),
    _range("group", (4, 37), group_size=8),
    _range("group-first", (19, 6), axis=0, group_size=4),
    _range("group-middle", (2, 9, 5), axis=1, group_size=4),
    _range("block", (3, 7, 9), block=(2, 4)),
    _pair(
        "value_range",
        "channels-last",
        ((3, 4, 5, 6),),
        dtypes=(torch.float32, torch.float64),
        batched=False,
        differentiable=False,
        call=lambda m: lambda x: _image_range(x, m),
    ),
    _moments("tensor", (5, 7, 4)),
    _moments("channel", (6, 3, 5), axis=1),
    _moments("channel-last", (21, 4), axis=-1),
    _moments("channel-first", (3, 29), axis=0),
    _pair(
        "moments",
        "extremes",
        ((4, 3, 9),),
        differentiable=False,
        call=lambda m: lambda x: _like(x, m.moments(x, axis=1)[:3]),
    ),
    _pair(
        "moments_penalty",
        "list",
        ((5, 7), (4, 3, 6)),
        call=lambda m: lambda *w: m.moments_penalty(list(w), 1.8, 0.1).to(w[0].dtype),
    ),
    _pair(
        "moments_penalty",
        "tensor",
        ((9, 6),),
        call=lambda m: lambda w: m.moments_penalty(w).to(w.dtype),
    ),
    _pair(
        "histogram",
        "inside",
        ((9, 16),),
        differentiable=False,
        call=lambda m: lambda x: m.histogram(x, 7, -1.25, 1.75).to(x.dtype),
    ),
    _pair(
        "histogram",
        "clip",
        ((9, 16),),
        differentiable=False,
        call=lambda m: lambda x: m.histogram(x, 5, -0.5, 1.0, True).to(x.dtype),
    ),
    _pair(
        "percentile_range",
        "asymmetric",
        ((10, 15),),
        differentiable=False,
        call=lambda m: lambda x: _like(x, m.percentile_range(x, 95.0, 32)),
    ),
    _pair(
        "percentile_range",
        "symmetric",
        ((10, 15),),
        differentiable=False,
        call=lambda m: lambda x: _like(x, m.percentile_range(x, 90.0, 32, True)),
    ),
]

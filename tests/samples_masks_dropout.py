"""Samples of dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.masks.dropping import dropout, dropout_
from regkern.reference import dropping as reference
from sample import Sample, seed

EACH = torch.linspace(0.0, 1.0, 60).reshape(3, 4, 5)


def _sample(name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, **o: f(x, seed=seed(), **o)

    return Sample(
        "dropout",
        name,
        (shape,),
        options,
        bind(dropout),
        bind(reference.dropout),
        inplace=None if "copies" in options else bind(dropout_),
        # Probabilities of samples, and stacked copies, are of a batch that is there.
        batched="copies" not in options and not isinstance(options.get("p"), torch.Tensor),
    )


SAMPLES: list[Sample] = [
    _sample("elements", (5, 7, 61), p=0.3),
    _sample("unscaled", (3, 130), p=torch.tensor(0.6), scale=False),
    _sample("channels", (2, 5, 9, 7), p=0.4, shared=(2, 3)),
    _sample("path", (6, 3, 5, 5), p=0.5, shared=(1, 2, 3)),
    _sample("locked", (4, 3, 70), p=0.25, shared=0),
    _sample("between", (3, 4, 5, 6), p=0.35, shared=(1, 3)),
    _sample("one", (2, 3, 5), p=1.0),
    _sample("each", (3, 4, 5), p=EACH),
    _sample("each-row", (3, 4, 50), p=EACH[:, :1, 30 // 6 - 1 :], scale=False),
    _sample("each-middle", (3, 4, 50), p=EACH[:1, :, :1]),
    _sample("each-channel", (3, 4, 6, 2), p=EACH[:, :, :1, None], shared=(2, 3)),
    _sample("copies", (5, 30), p=0.3, copies=3),
    _sample("copies-each", (3, 4, 5), p=EACH, copies=2),
    _sample("copies-channels", (2, 5, 6), p=0.3, shared=2, copies=2),
]

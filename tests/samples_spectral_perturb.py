"""Samples of the norms of networks, and of what is measured by them."""

from __future__ import annotations

from collections.abc import Callable

from regkern.reference.spectral import perturb as reference
from regkern.spectral import network as ours
from sample import Sample
from torch import Tensor


def _same_dtype(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """With a result of the dtype of the tensors, as the contract wants it."""
    return lambda *xs: call(*xs).to(xs[0].dtype)


SAMPLES: list[Sample] = [
    Sample(
        "global_norm",
        "",
        ((7, 12), (5,)),
        {},
        _same_dtype(lambda x, y: ours.global_norm([x, y])),
        _same_dtype(lambda x, y: reference.global_norm([x, y])),
        batched=False,
    ),
    Sample(
        "distance_penalty",
        "exponential",
        ((4, 9), (4, 9)),
        {},
        _same_dtype(lambda x, y: ours.distance_penalty([x], [y], "exponential", 0.01)),
        _same_dtype(lambda x, y: reference.distance_penalty([x], [y], "exponential", 0.01)),
        batched=False,
    ),
]

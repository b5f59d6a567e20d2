"""Samples of the reductions over columns of activations."""

from __future__ import annotations

import torch
from regkern.proximal import penalties as ours
from regkern.reference.proximal import penalties as reference
from sample import Sample
from torch import Tensor


def _pool(name: str, shape: tuple[int, ...], pooling: str, masked: bool) -> Sample:
    def mask(x: Tensor) -> Tensor | None:
        if not masked:
            return None
        steps = torch.arange(x.shape[1], device=x.device)
        return ((steps % 3) != 1).expand(x.shape[:2])

    return Sample(
        "splade_pool",
        name,
        (shape,),
        {},
        lambda x: ours.splade_pool(x, mask(x), pooling),  # type: ignore[arg-type]
        lambda x: reference.splade_pool(x, mask(x), pooling),
    )


SAMPLES: list[Sample] = [
    _pool("max", (3, 5, 12), "max", False),
    _pool("max-mask", (2, 7, 9), "max", True),
    _pool("sum-mask", (3, 7, 6), "sum", True),
    Sample(
        "flops_penalty",
        "",
        ((7, 12),),
        {},
        ours.flops_penalty,
        reference.flops_penalty,
        batched=False,
    ),
]

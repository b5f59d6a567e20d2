"""Samples of convolutions with a sparse weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regkern.reference.sparse import convolutions as reference
from regkern.sparse import convolutions as ours
from sample import Sample
from samples_sparse_products import pattern_of
from torch import Tensor


def _sample(
    op: str,
    name: str,
    shape: tuple[int, ...],
    matrix: tuple[int, int],
    bias: bool = False,
    **options: Any,
) -> Sample:
    pattern = pattern_of(*matrix, 0.3)

    def bound(call: Callable[..., Any]) -> Callable[..., Any]:
        def with_pattern(x: Tensor, values: Tensor, *rest: Tensor, **more: Any) -> Tensor:
            y: Tensor = call(x, values, pattern, *rest, **more)
            return y

        return with_pattern

    shapes = (shape, (pattern.nnz,)) + (((matrix[0],),) if bias else ())
    return Sample(
        op,
        name,
        shapes,
        options,
        bound(getattr(ours, op)),
        bound(getattr(reference, op)),
        batched=False,
    )


SAMPLES: list[Sample] = [
    _sample("sparse_conv2d", "same", (5, 3, 6, 5), (7, 27), padding="same", kernel_size=3),
    _sample(
        "sparse_conv2d",
        "strided",
        (18, 4, 7, 9),
        (6, 12),
        bias=True,
        stride=(2, 3),
        dilation=(1, 2),
        padding=(0, 2, 1, 0),
        groups=2,
        kernel_size=(3, 2),
        activation="relu",
    ),
    _sample("sparse_conv1d", "row", (1, 3, 21), (4, 9), padding=1),
]

"""Samples of sums of kernels over clouds of points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern._registration import compute_dtype
from regkern.reference.transport import kernel_distances as reference
from regkern.transport import kernel_distances
from sample import Sample
from torch import Tensor

_PRECISE = (torch.float32, torch.float64)
_CLOUDS = ((2, 5, 3), (2, 70, 3), (2, 70))


def _forces(kernel: str, *scales: float) -> Sample:
    def bind(function: Any) -> Callable[..., Tensor]:
        def call(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
            scale = torch.tensor(scales, dtype=torch.float64)
            kind = compute_dtype(x)
            forces: Tensor = function(x.to(kind), y.to(kind), w.to(kind), scale, kernel)
            return forces.to(x.dtype)

        return call

    return Sample(
        "kernel_forces",
        kernel,
        _CLOUDS if kernel == "imq" else ((1, 4, 18), (1, 9, 18), (1, 9)),
        ours=bind(kernel_distances._forces),
        definition=bind(reference.kernel_forces),
        dtypes=_PRECISE,
        differentiable=False,
    )


def _mmd(kernel: str, *scales: float) -> Sample:
    def bind(m: Any) -> Callable[..., Tensor]:
        return lambda x, y: m.mmd(x, y, kernel, list(scales), unbiased=kernel != "energy").to(
            x.dtype
        )

    # Second derivatives are refused.
    return Sample(
        "kernel_sums",
        kernel,
        ((2, 5, 3), (2, 9, 3)) if kernel != "gaussian" else ((1, 35, 18), (1, 4, 18)),
        ours=bind(kernel_distances),
        definition=bind(reference),
        dtypes=_PRECISE,
        differentiable=False,
    )


SAMPLES: list[Sample] = [
    _mmd("gaussian", 3.0),
    _mmd("energy", 1.0),
    _mmd("rational", 0.5, 2.0),
    _forces("imq", 1.0, 4.0),
    _forces("laplacian", 2.0),
]

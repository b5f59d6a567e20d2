"""Distances by kernels, of Gaussians, and the cost of an entropic plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.reference.transport import bures as bures_reference
from regkern.reference.transport import kernel_distances as kernel_reference
from regkern.reference.transport import topic as topic_reference
from regkern.transport import bures, kernel_distances, topic

SCALES = [1.0, 2.0, 5.0, 10.0]


def _clouds(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x, y = (torch.randn(shape, dtype=torch.float32, device=device).to(dtype) for _ in range(2))
    return {"x": x, "y": y + 0.3}


def _covariances(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    n = shape[-1]
    x, y = (torch.randn(*shape, 2 * n, dtype=dtype, device=device)[..., 0, :, :] for _ in range(2))
    return {"x": x @ x.mT / (2 * n), "y": y @ y.mT / (2 * n)}


def _embeddings(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    words = torch.nn.functional.normalize(torch.randn(shape, dtype=dtype, device=device), dim=1)
    return {"x": words, "topics": words[: max(shape[0] // 100, 2)] + 0.01}


def _eager_mmd(kernel: str, i: Inputs) -> Any:
    """As it is written everywhere: matrices of distances."""

    def mean(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        d = torch.cdist(u, v)
        if kernel == "gaussian":
            return torch.exp(-d.square() / 2).mean()
        if kernel == "energy":
            return -d.mean()
        return torch.stack([(c / (c + d.square())).mean() for c in SCALES]).sum()

    x, y = i["x"], i["y"]
    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def _mmd(function: Callable[..., Any], kernel: str, i: Inputs) -> Any:
    return function(i["x"], i["y"], kernel, SCALES if kernel == "imq" else 1.0)


def _kernel_case(kernel: str, size: int) -> Case:
    return Case(
        op="mmd",
        variant=f"{kernel}_{size}",
        shape=(4096, size),
        small=(70, size),
        make=_clouds,
        ours=partial(_mmd, kernel_distances.mmd, kernel),
        reference=partial(_mmd, kernel_reference.mmd, kernel),
        rivals=(Rival("torch", "torch", lambda: partial(_eager_mmd, kernel), "matrices of pairs"),),
        more_dtypes=(torch.float64,),
        floor="read",
        passes=2.0,
        differentiable=True,
    )


def _bures(function: Callable[..., Any], i: Inputs, **options: Any) -> Any:
    # Half of the sum with the transposed, so that every derivative is symmetric.
    x = 0.5 * (i["x"] + i["x"].mT)
    return function(x, i["y"], 1e-3, **options)


def _bures_case(method: bures.Method) -> Case:
    reference: Run = partial(_bures, bures_reference.bures_wasserstein)
    return Case(
        op="bures_wasserstein",
        variant=method,
        shape=(16, 128, 128),
        small=(3, 6, 6),
        make=_covariances,
        ours=partial(_bures, bures.bures_wasserstein, method=method),
        reference=reference,
        rivals=(Rival("torch", "torch", lambda: reference, "eigenvalues, autograd"),),
        more_dtypes=(torch.float64,),
        differentiable=True,
    )


def _ecrtm(function: Callable[..., Any], i: Inputs, **options: Any) -> Any:
    return function(i["topics"], i["x"], 5.0, **options)


CASES = (
    _kernel_case("gaussian", 3),
    _kernel_case("imq", 3),
    _kernel_case("energy", 3),
    _kernel_case("gaussian", 64),
    _kernel_case("imq", 64),
    _bures_case("eigh"),
    _bures_case("newton_schulz"),
    Case(
        op="ecrtm_loss",
        variant="",
        shape=(5000, 200),
        small=(40, 8),
        make=_embeddings,
        ours=partial(_ecrtm, topic.ecrtm_loss, tol=0.0, max_iter=100),
        reference=partial(_ecrtm, topic_reference.ecrtm_loss, steps=100),
        rivals=(
            Rival(
                "torch",
                "torch",
                lambda: partial(_ecrtm, topic_reference.ecrtm_loss, steps=100),
                "log domain, unrolled",
            ),
        ),
        more_dtypes=(torch.float64,),
        differentiable=True,
    ),
)

"""Sinkhorn's normalisation of many small matrices."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival
from regkern.bench.rivals import pot
from regkern.reference.transport import normalize as reference
from regkern.transport import normalize

_PLAIN = "of the first rival's loop"


def _logits(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape, dtype=torch.float32, device=device).to(dtype)}


def _ours(i: Inputs, **options: Any) -> Tensor:
    return normalize.sinkhorn_normalize(i["x"], **options)


def _reference(i: Inputs, **options: Any) -> Tensor:
    return reference.sinkhorn_normalize(i["x"], **options)


def _scaling(i: Inputs, n_iter: int) -> Any:
    """The scaling form by batched products: fast where it does not overflow."""
    x = i["x"]
    k = (x - x.amax(-1, keepdim=True)).exp()
    v = x.new_ones((x.shape[0], x.shape[2], 1))
    for _ in range(n_iter):
        u = 1.0 / torch.bmm(k, v)
        v = 1.0 / torch.bmm(k.mT, u)
    return u * k * v.mT


def _logarithms(i: Inputs, n_iter: int) -> Any:
    x = i["x"]
    for _ in range(n_iter):
        x = x - x.logsumexp(-1, keepdim=True)
        x = x - x.logsumexp(-2, keepdim=True)
    return x.exp()


def _hyper(i: Inputs, n_iter: int) -> Any:
    """The code of the authors of manifold-constrained hyper-connections."""
    y = i["x"].softmax(-1) + 1e-6
    y = y / (y.sum(-2, keepdim=True) + 1e-6)
    for _ in range(n_iter - 1):
        y = y / (y.sum(-1, keepdim=True) + 1e-6)
        y = y / (y.sum(-2, keepdim=True) + 1e-6)
    return y


def _batched_pot() -> Any:
    solve_batch = pot("ot.batch").solve_batch

    def run(i: Inputs, n_iter: int) -> Any:
        x = i["x"]
        n, m = x.shape[1:]
        a, b = x.new_ones(x.shape[0], n), x.new_full((x.shape[0], m), n / m)
        options = {"max_iter": n_iter, "tol": 0.0, "grad": "autodiff"}
        return solve_batch(-x, 1.0, a, b, method="sinkhorn", reg_type="entropy", **options).plan

    return run


def _case(
    variant: str, shape: tuple[int, ...], small: tuple[int, ...], n_iter: int, **options: Any
) -> Case:
    def bound(run: Any) -> Any:
        return partial(run, n_iter=n_iter)

    rivals = [
        Rival("scaling by bmm", "torch", lambda: bound(_scaling), "overflows for large logits"),
        Rival("log domain", "torch", lambda: bound(_logarithms)),
        Rival("POT batched scaling", "POT", lambda: bound(_batched_pot()), "overflows as well"),
    ]
    if "eps" in options:
        rivals = [Rival("mHC's code", "torch", lambda: bound(_hyper))]
    plain = _hyper if "eps" in options else _scaling
    return Case(
        op="sinkhorn_normalize",
        variant=variant,
        shape=shape,
        small=small,
        make=_logits,
        ours=partial(_ours, n_iter=n_iter, **options),
        reference=partial(_reference, n_iter=n_iter, **options),
        rivals=tuple(rivals),
        compiled=Rival("torch.compile", "torch", lambda: torch.compile(bound(plain)), _PLAIN),
        more_dtypes=(torch.float64, torch.bfloat16),
        passes=2.0,
        differentiable=True,
    )


CASES = (
    _case("4x4", (4096, 4, 4), (9, 4, 4), 20),
    _case("8x8", (4096, 8, 8), (5, 8, 8), 20),
    _case("mhc", (4096, 4, 4), (9, 4, 4), 20, eps=1e-6),
    _case("32x32", (512, 32, 32), (2, 32, 32), 20),
    _case("128x128", (64, 128, 128), (2, 20, 17), 100),
)

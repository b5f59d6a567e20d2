"""Sinkhorn's iteration on many small dense costs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkern._registration import compute_dtype
from regkern.bench.case import Case, Inputs, Rival
from regkern.bench.cases import transport_normalize
from regkern.reference.transport import dense as reference
from regkern.transport.solver import sinkhorn


def _make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape, dtype=torch.float32, device=device).to(dtype)}


def _ours(i: Inputs, n_iter: int) -> Tensor:
    found = sinkhorn(i["x"], eps=1.0, tol=None, max_iter=n_iter)
    return torch.cat([found.f, found.g], -1)


def _eager(i: Inputs, n_iter: int) -> Tensor:
    cost = i["x"].double()
    batch, n, m = cost.shape
    a, b = (cost.new_full((batch, k), 1.0 / k) for k in (n, m))
    f, g = reference.potentials(cost, a, b, cost.new_ones(batch), iterations=n_iter)
    return torch.cat([f, g], -1).to(compute_dtype(i["x"]))


def _ours_gradient(i: Inputs, n_iter: int) -> Tensor:
    with torch.enable_grad():
        cost = i["x"].detach().requires_grad_()
        value = sinkhorn(cost, eps=1.0, tol=None, max_iter=n_iter).value.sum()
        slope: Tensor = torch.autograd.grad(value, cost)[0]
        return slope


def _eager_gradient(i: Inputs, n_iter: int) -> Tensor:
    """By the envelope: the plan."""
    cost = i["x"].double()
    batch, n, m = cost.shape
    a, b = (cost.new_full((batch, k), 1.0 / k) for k in (n, m))
    eps = cost.new_ones(batch)
    f, g = reference.potentials(cost, a, b, eps, iterations=n_iter)
    return reference.plan(cost, a, b, f, g, eps).to(i["x"].dtype)


def _logits(run: Any, i: Inputs, n_iter: int) -> Any:
    return run({"x": -i["x"]}, n_iter=n_iter)


def _moved(cost: Tensor, n_iter: int) -> Tensor:
    """<P, C> by the scaling form."""
    total: Tensor = (transport_normalize._scaling({"x": -cost}, n_iter) * cost).sum()
    return total


def _through_scaling(i: Inputs, n_iter: int, moved: Any = _moved) -> Tensor:
    """Autograd through the scaling form."""
    with torch.enable_grad():
        cost = i["x"].detach().requires_grad_()
        slope: Tensor = torch.autograd.grad(moved(cost, n_iter), cost)[0]
        return slope


def _case(
    variant: str, shape: tuple[int, ...], small: tuple[int, ...], n_iter: int, gradient: bool
) -> Case:
    def bound(run: Any) -> Any:
        return partial(run, n_iter=n_iter)

    scaling = partial(_logits, transport_normalize._scaling)
    rivals: tuple[Rival, ...] = (
        Rival("scaling by bmm", "torch", lambda: bound(scaling), "overflows for large costs"),
        Rival(
            "POT batched scaling",
            "POT",
            lambda: bound(partial(_logits, transport_normalize._batched_pot())),
            "overflows as well",
        ),
    )

    def compiled() -> Any:
        if gradient:
            return bound(partial(_through_scaling, moved=torch.compile(_moved)))
        return torch.compile(bound(scaling))

    if gradient:
        rivals = (Rival("scaling by bmm", "torch", lambda: bound(_through_scaling), "by autograd"),)
    return Case(
        op="sinkhorn",
        variant=variant,
        shape=shape,
        small=small,
        make=_make,
        ours=bound(_ours_gradient if gradient else _ours),
        reference=bound(_eager_gradient if gradient else _eager),
        rivals=rivals,
        compiled=Rival("torch.compile", "torch", compiled, "of the loop that scales by bmm"),
        more_dtypes=(torch.float64, torch.bfloat16),
        floor="read",
        passes=1.0,
    )


CASES = (
    _case("4x4", (4096, 4, 4), (9, 4, 4), 20, False),
    _case("8x8", (4096, 8, 8), (5, 8, 8), 20, False),
    _case("32x32", (512, 32, 32), (2, 20, 17), 20, False),
    _case("128x128", (64, 128, 128), (2, 20, 17), 100, False),
    _case("4x4_gradient", (4096, 4, 4), (9, 4, 4), 20, True),
    _case("8x8_gradient", (4096, 8, 8), (5, 8, 8), 20, True),
)

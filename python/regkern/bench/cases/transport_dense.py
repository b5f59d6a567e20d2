"""Sinkhorn's iteration on dense costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkern._registration import compute_dtype
from regkern.bench import rivals
from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.reference.transport import dense as reference
from regkern.transport.solver import sinkhorn

ONE, ONE_SMALL = (4096, 4096), (33, 45)
SOME, SOME_SMALL = (4, 512, 512), (2, 9, 7)
EPS, ITERATIONS = 0.05, 10
MORE_FLOATS = (torch.bfloat16, torch.float16, torch.float64)


def _make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    n, m = shape[-2:]
    cost = torch.rand(shape, dtype=torch.float32, device=device).to(dtype)
    return {"x": cost, "w": torch.randn((n, m), device=device).to(dtype)}


def _uniform(cost: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor, Tensor]:
    batch, n, m = cost.shape
    a, b = (torch.full((batch, k), 1.0 / k, dtype=cost.dtype, device=cost.device) for k in (n, m))
    return a, b, torch.full((batch,), eps, dtype=cost.dtype, device=cost.device)


def _problems(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    return x.reshape(-1, *x.shape[-2:])


def _iterations(i: Inputs) -> Tensor:
    found = sinkhorn(_problems(i), eps=EPS, tol=None, max_iter=ITERATIONS)
    return torch.cat([found.f, found.g], -1)


def _eager(i: Inputs) -> Tensor:
    cost = _problems(i)
    a, b, eps = _uniform(cost)
    return torch.cat(reference.potentials(cost, a, b, eps, iterations=ITERATIONS), -1)


def _wide(run: Run, i: Inputs) -> Any:
    return run({**i, "x": i["x"].double(), "w": i["w"].double()}).to(compute_dtype(i["x"]))


def _gradient(loss: Callable[[Tensor, Tensor], Tensor], i: Inputs) -> Tensor:
    """The gradient of a loss, as a training step needs it."""
    with torch.enable_grad():
        x = _problems(i).detach().requires_grad_()
        return torch.autograd.grad(loss(x, i["w"]), x)[0].reshape(i["x"].shape)


def _value(gradient: str) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(cost: Tensor, _: Tensor) -> Tensor:
        found = sinkhorn(cost, eps=0.5, tol=None, max_iter=40, gradient=gradient)
        return found.value.sum()

    return loss


def _plan(gradient: str, iterations: int, eps: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(cost: Tensor, w: Tensor) -> Tensor:
        options: dict[str, Any] = {"tol": None, "max_iter": iterations, "gradient": gradient}
        return (sinkhorn(cost, eps=eps, **options).plan() * w).sum()

    return loss


def _eager_loss(of_plan: bool, iterations: int, eps: float, cost: Tensor, w: Tensor) -> Tensor:
    a, b, each = _uniform(cost, eps)
    f, g = reference.potentials(cost, a, b, each, iterations=iterations)
    if of_plan:
        return (reference.plan(cost, a, b, f, g, each) * w).sum()
    return reference.value(cost, a, b, f, g, each).sum()


def _pot() -> Rival:
    def load() -> Run:
        ot = rivals.pot()

        def run(i: Inputs) -> Any:
            a, b, _ = (t[0] for t in _uniform(_problems(i)))
            cost = _problems(i)[0]
            options = {"numItermax": ITERATIONS, "stopThr": 0.0, "warn": False}
            return ot.sinkhorn(a, b, cost, EPS, method="sinkhorn_log", **options)

        return run

    return Rival("POT", "POT", load, "in the log domain, the plan formed")


def _torch(run: Run, note: str = "in the log domain") -> Rival:
    return Rival("torch", "torch", lambda: run, note)


def _gradient_case(variant: str, loss: Any, eager: Any, passes: float, note: str) -> Case:
    return Case(
        op="sinkhorn",
        variant=variant,
        shape=SOME,
        small=SOME_SMALL,
        make=_make,
        ours=partial(_gradient, loss),
        reference=partial(_wide, partial(_gradient, eager)),
        rivals=(_torch(partial(_gradient, eager), note),),
        more_dtypes=(torch.float64,),
        floor="read",
        passes=passes,
    )


CASES = (
    Case(
        op="sinkhorn",
        variant="dense",
        shape=ONE,
        small=ONE_SMALL,
        make=_make,
        ours=_iterations,
        reference=partial(_wide, _eager),
        rivals=(_torch(_eager), _pot()),
        more_dtypes=MORE_FLOATS,
        floor="read",
        # A read for every iteration, and half a one for the error.
        passes=ITERATIONS + 0.5,
        # Four reads an iteration.
        bar=42.0,
    ),
    _gradient_case(
        "value_gradient",
        _value("envelope"),
        partial(_eager_loss, False, 40, 0.5),
        43.0,
        "through the iterations",
    ),
    _gradient_case(
        "plan_implicit",
        _plan("implicit", 40, 0.5),
        partial(_eager_loss, True, 40, 0.5),
        60.0,
        "through the iterations",
    ),
    _gradient_case(
        "plan_unrolled",
        _plan("unroll", 10, EPS),
        partial(_eager_loss, True, 10, EPS),
        60.0,
        "autograd keeps T times n x m",
    ),
)

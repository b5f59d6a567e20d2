"""Sinkhorn on a kernel that is kept, partial transport, and plans with whole groups."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkern._registration import compute_dtype
from regkern.bench import rivals
from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.reference.transport import dense as dense_reference
from regkern.reference.transport import grouped as grouped_reference
from regkern.reference.transport import partial as partial_reference
from regkern.transport.partial import partial_transport
from regkern.transport.solver import sinkhorn
from regkern.transport.sparse import sparse_transport

KEPT_ITERATIONS = 20
# What a plan of these costs takes, and what is enough for any.
PARTIAL_ITERATIONS, MOST_ITERATIONS = 10, 200
EPS, MASS, PARTIAL_TOL, GAMMA, MU = 0.05, 0.5, 1e-6, 10.0, 0.01


def _make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"x": torch.rand(shape, dtype=torch.float32, device=device).to(dtype)}


def _clouds(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Costs of points that are near to some of the others: rows and columns become full. Those of
    independent costs hardly do, and a first half-step is the solution."""
    batch, n, m = shape
    x, y = (torch.rand((batch, k, 2), device=device) for k in (n, m))
    return {"x": torch.cdist(x, y + 0.3).square().to(dtype)}


def _kept(i: Inputs) -> Tensor:
    options: dict[str, Any] = {"eps": EPS, "tol": None, "max_iter": KEPT_ITERATIONS}
    found = sinkhorn(i["x"], storage="kernel", **options)
    return torch.cat([found.f, found.g], -1)


def _log(i: Inputs) -> Tensor:
    cost = i["x"]
    a, b = (cost.new_full((cost.shape[0], k), 1.0 / k) for k in cost.shape[1:])
    eps = cost.new_full((cost.shape[0],), EPS)
    found = dense_reference.potentials(cost, a, b, eps, iterations=KEPT_ITERATIONS)
    return torch.cat(found, -1)


def _partial(i: Inputs) -> Tensor:
    found = partial_transport(i["x"], mass=MASS, eps=EPS, tol=PARTIAL_TOL, max_iter=MOST_ITERATIONS)
    return torch.cat([found.f, found.g], -1)


def _by_sorting(i: Inputs, iterations: int = PARTIAL_ITERATIONS) -> Tensor:
    return torch.cat(partial_reference.partial_transport(i["x"], MASS, EPS, iterations), -1)


def _groups(n: int, device: torch.device) -> Tensor:
    return torch.arange(n, device=device) % 8


def _grouped(i: Inputs) -> Tensor:
    groups = _groups(i["x"].shape[1], i["x"].device)
    return sparse_transport(i["x"], groups=groups, gamma=GAMMA, mu=MU, tol=1e-6, max_iter=300).value


def _by_torch(i: Inputs) -> Tensor:
    cost = i["x"]
    n, m = cost.shape[1:]
    a, b = (torch.full((k,), 1.0 / k, dtype=torch.float64) for k in (n, m))
    values = [
        grouped_reference.grouped_transport(c, a, b, _groups(n, cost.device), GAMMA, MU)
        for c in cost
    ]
    return torch.stack(values).to(compute_dtype(cost))


def _wide(run: Run, i: Inputs) -> Any:
    return run({"x": i["x"].double()}).to(compute_dtype(i["x"]))


def _pot() -> Rival:
    def load() -> Run:
        ot = rivals.pot()

        def run(i: Inputs) -> Any:
            cost = i["x"][0]
            a, b = (cost.new_full((k,), 1.0 / k) for k in cost.shape)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ot.partial.entropic_partial_wasserstein(
                    a, b, cost, EPS, m=MASS, numItermax=MOST_ITERATIONS, stopThr=PARTIAL_TOL
                )

        return run

    return Rival(
        "POT", "POT", load, "to a change of 1e-6 of the plan, which is less near the solution"
    )


CASES = (
    Case(
        op="sinkhorn",
        variant="kept_kernel",
        shape=(1, 4096, 4096),
        small=(2, 33, 45),
        make=_make,
        ours=_kept,
        reference=partial(_wide, _log),
        rivals=(Rival("torch", "torch", lambda: _log, "in the log domain"),),
        floor="read",
        passes=KEPT_ITERATIONS,
        # Two and a half reads an iteration, and the kernel's making.
        bar=2.5 * KEPT_ITERATIONS + 6.0,
    ),
    Case(
        op="partial_transport",
        variant="",
        shape=(1, 1024, 1024),
        small=(2, 17, 9),
        make=_clouds,
        ours=_partial,
        reference=partial(_wide, partial(_by_sorting, iterations=MOST_ITERATIONS)),
        rivals=(Rival("torch", "torch", lambda: _by_sorting, "by sorting"), _pot()),
        floor="read",
        # Of one iteration.
        passes=2.0,
    ),
    Case(
        op="sparse_transport",
        variant="groups",
        shape=(1, 512, 512),
        small=(2, 12, 9),
        make=_make,
        ours=_grouped,
        reference=partial(_wide, _by_torch),
        rivals=(Rival("torch", "torch", lambda: _by_torch, "its own L-BFGS"),),
        floor="read",
        passes=1.0,
    ),
)

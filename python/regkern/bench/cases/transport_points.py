"""Transport between clouds of points, streamed, and the divergence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.bench.rivals import pot
from regkern.reference.transport import points as reference
from regkern.transport.divergence import sinkhorn_divergence
from regkern.transport.solver import sinkhorn

ITERATIONS = 10


def _clouds(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Two clouds in the unit cube, and ε of a twentieth of their mean squared distance."""
    x, y = (torch.rand(shape, device=device) for _ in range(2))
    return {"x": x.to(dtype), "y": y.to(dtype), "eps": 0.05 * shape[-1] / 6}


def _ours(i: Inputs) -> Tensor:
    return sinkhorn(x=i["x"], y=i["y"], eps=i["eps"], tol=None, max_iter=ITERATIONS).value


def _definition(i: Inputs) -> Tensor:
    x, y = (t[None].double() if t.dim() == 2 else t for t in (i["x"], i["y"]))
    a, b = (torch.full(t.shape[:-1], 1 / t.shape[-2], dtype=t.dtype) for t in (x, y))
    value = reference.value(x, y, a.to(x), b.to(x), i["eps"], iterations=ITERATIONS)
    return value[0].to(i["x"].dtype)


def _pot(batch: int) -> Rival:
    def load() -> Run:
        empirical_sinkhorn = pot("ot.bregman").empirical_sinkhorn

        def run(i: Inputs) -> Any:
            return empirical_sinkhorn(
                i["x"],
                i["y"],
                i["eps"],
                isLazy=True,
                batchSize=batch,
                numIterMax=ITERATIONS,
                stopThr=0.0,
                warn=False,
            )

        return run

    return Rival(f"POT lazy {batch}", "POT", load, "the same iterations")


def _divergence(i: Inputs) -> Tensor:
    return sinkhorn_divergence(i["x"], i["y"], eps=i["eps"], tol=None, max_iter=ITERATIONS)


def _divergence_definition(i: Inputs) -> Tensor:
    x, y = (t[None].double() for t in (i["x"], i["y"]))
    a = torch.full(x.shape[:-1], 1 / x.shape[-2], dtype=x.dtype, device=x.device)
    value = reference.sinkhorn_divergence(x, y, a, a, i["eps"], iterations=ITERATIONS)
    return value[0].to(i["x"].dtype)


CASES = (
    Case(
        op="sinkhorn_points",
        variant="d3",
        shape=(4096, 3),
        small=(40, 3),
        make=_clouds,
        ours=_ours,
        reference=_definition,
        rivals=(_pot(256), _pot(1024)),
    ),
    Case(
        op="sinkhorn_points",
        variant="d64",
        shape=(4096, 64),
        small=(40, 64),
        make=_clouds,
        ours=_ours,
        reference=_definition,
        rivals=(_pot(256), _pot(1024)),
    ),
    *(
        Case(
            op="sinkhorn_points",
            variant=f"d{d}_10k",
            shape=(10_000, d),
            small=(40, d),
            make=_clouds,
            ours=_ours,
            reference=_definition,
            rivals=(_pot(256), _pot(1024)),
        )
        for d in (3, 64)
    ),
    Case(
        op="sinkhorn_points",
        variant="divergence",
        shape=(2048, 3),
        small=(40, 3),
        make=_clouds,
        ours=_divergence,
        reference=_divergence_definition,
    ),
)

"""Sliced Wasserstein distances, weights against their initial values."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from regkern.bench import rivals
from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.reference.transport import sliced as reference
from regkern.transport import sliced


def _clouds(
    unequal: bool, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Inputs:
    x, y, theta = (torch.randn(shape, dtype=dtype, device=device) for _ in range(3))
    theta = torch.nn.functional.normalize(theta[:100], dim=1)
    return {"x": x, "y": y[: shape[0] * 3 // 4 if unequal else shape[0]], "theta": theta}


def _ours(i: Inputs) -> Any:
    return sliced.sliced_wasserstein(i["x"], i["y"], projections=i["theta"])


def _reference(i: Inputs) -> Any:
    return reference.sliced_wasserstein(i["x"], i["y"], i["theta"])


def _eager(i: Inputs) -> Any:
    u, v = ((i["theta"] @ z.mT).sort(-1)[0] for z in (i["x"], i["y"]))
    return (u - v).square().mean().sqrt()


def _pot() -> Run:
    ot = rivals.pot()
    return lambda i: ot.sliced_wasserstein_distance(i["x"], i["y"], projections=i["theta"].T)


def _case(unequal: bool) -> Case:
    pot = Rival("POT", "POT", _pot)
    return Case(
        op="sliced_wasserstein",
        variant="unequal" if unequal else "",
        shape=(10_000, 16),
        small=(60, 3),
        make=partial(_clouds, unequal),
        ours=_ours,
        reference=_reference,
        rivals=(pot,) if unequal else (Rival("torch", "torch", lambda: _eager), pot),
        more_dtypes=(torch.float64,),
        differentiable=True,
    )


def _weights(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x, before = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
    return {"x": x, "before": list(before), "kept": sliced.SortedInitials(list(before))}


def _eager_weights(i: Inputs) -> Any:
    pairs = zip(i["x"], i["before"], strict=True)
    terms = [(w.flatten().sort()[0] - w0.flatten().sort()[0]).square().sum() for w, w0 in pairs]
    return torch.stack(terms).sum()


CASES = (
    _case(False),
    _case(True),
    Case(
        op="weights_wasserstein",
        variant="",
        shape=(8, 512, 512),
        small=(2, 7, 5),
        make=_weights,
        ours=lambda i: sliced.weights_wasserstein(list(i["x"]), i["kept"]),
        reference=lambda i: reference.weights_wasserstein(list(i["x"]), i["before"]).to(
            i["x"].dtype
        ),
        rivals=(Rival("torch", "torch", lambda: _eager_weights, "initials sorted every time"),),
        more_dtypes=(torch.float64,),
        differentiable=True,
    ),
)

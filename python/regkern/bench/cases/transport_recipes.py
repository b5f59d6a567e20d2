"""Class-based transport, and dictionaries in Wasserstein distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.bench.rivals import pot
from regkern.transport.class_based import class_based_transport
from regkern.transport.dictionary import wasserstein_cp_dictionary

LAM, ITERATIONS = 0.02, 50
GRID, RANK, EPS, SWEEPS, INNER = (4, 4), 2, 0.1, 2, 20


# ---- class-based transport ----


def _cost(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Two clouds in four classes each, as a cost."""
    x, y = (torch.rand((n, 2), dtype=dtype, device=device) for n in shape)
    classes = [torch.arange(n, device=device) % 4 for n in shape]
    return {"x": torch.cdist(x, y).square(), "rows": classes[0]}


def _class_based(i: Inputs) -> Tensor:
    found = class_based_transport(i["x"], rows=i["rows"], lam=LAM, max_iter=ITERATIONS)
    return found.violation < 0.5


def _feasible(i: Inputs) -> Tensor:
    return torch.ones((), dtype=torch.bool)


def _pot_group_lasso() -> Run:
    """POT's group lasso, whose groups are classes in a column instead of pairs of rows."""
    sinkhorn_l1l2_gl = pot("ot.da").sinkhorn_l1l2_gl

    def run(i: Inputs) -> Any:
        n, m = i["x"].shape
        a, b = (torch.full((k,), 1 / k, dtype=i["x"].dtype) for k in (n, m))
        return sinkhorn_l1l2_gl(a, i["rows"], b, i["x"], 0.05, LAM, numItermax=ITERATIONS // 10)

    return run


# ---- dictionaries ----


def _histograms(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Rows on a grid of 4 x 4 bins, the squared distances of bins, and where to begin."""
    count, bins = shape
    generator = torch.Generator().manual_seed(7)

    def masses(*size: int) -> Tensor:
        t = torch.rand(size, dtype=dtype, generator=generator) + 0.05
        return (t / t.sum(0)).to(device)

    places = torch.cartesian_prod(*(torch.arange(n, dtype=dtype) / n for n in GRID)).to(device)
    return {
        "x": masses(bins, count).mT.contiguous(),
        "cost": torch.cdist(places, places).square(),
        "factors": [masses(n, RANK) for n in GRID],
        "codes": masses(RANK, count),
    }


def _dictionary(i: Inputs, double: bool = False) -> Tensor:
    def typed(t: Tensor) -> Tensor:
        return t.double() if double else t

    found = wasserstein_cp_dictionary(
        typed(i["x"]).mT,
        typed(i["cost"]),
        GRID,
        RANK,
        EPS,
        sweeps=SWEEPS,
        inner=INNER,
        factors=[typed(t) for t in i["factors"]],
        codes=typed(i["codes"]),
    )
    return found.losses


def _dictionary_in_double(i: Inputs) -> Tensor:
    return _dictionary(i, True).to(i["x"].dtype)


CASES = (
    Case(
        op="class_based_transport",
        variant="",
        shape=(200, 200),
        small=(24, 20),
        make=_cost,
        ours=_class_based,
        reference=_feasible,
        rivals=(Rival("POT group lasso", "POT", _pot_group_lasso, "a group norm, 5 outer steps"),),
    ),
    Case(
        op="wasserstein_cp_dictionary",
        variant="",
        shape=(256, 16),
        small=(8, 16),
        make=_histograms,
        ours=_dictionary,
        reference=_dictionary_in_double,
    ),
)

"""Sparse plans, their projections, exact transport on the line and assignments."""

from __future__ import annotations

import contextlib
import importlib
import io
from functools import partial
from typing import Any

import torch

from regkern.bench import rivals
from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.proximal import simplex
from regkern.reference.proximal import simplex as simplex_reference
from regkern.reference.transport import exact as exact_reference
from regkern.reference.transport import sparse as reference
from regkern.transport import exact, sparse

COST, COST_SMALL = (1, 512, 512), (2, 7, 9)
SCORES, SCORES_SMALL = (512, 512), (7, 9)
# The reference tries all permutations.
MANY, MANY_SMALL = (4096, 5, 5), (2, 3, 4)
LINES, LINES_SMALL = (64, 4096), (3, 9)
GAMMA = 10.0


def _points(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Squared distances of two clouds in the plane."""
    x = torch.rand(shape[0], shape[1], 2, dtype=torch.float64)
    y = torch.rand(shape[0], shape[2], 2, dtype=torch.float64) + 0.2
    return {"x": torch.cdist(x, y).square().to(dtype).to(device)}


def _scores(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape, dtype=torch.float32, device=device).to(dtype)}


def _pair(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {**_scores(shape, dtype, device), "y": _scores(shape, dtype, device)["x"]}


def _ours(i: Inputs, k: int | None = None, method: str | None = None, tol: float = 1e-4) -> Any:
    return sparse.sparse_transport(i["x"], gamma=GAMMA, k=k, method=method, tol=tol).value


def _exactly(i: Inputs, k: int | None = None, method: str | None = None) -> Any:
    """What `--check` compares on the small shape, whose plan has fewer than k entries a column."""
    rows = i["x"].shape[1]
    k = None if k is None else max(k, rows) if rows < 64 else k
    return _ours(i, k, method, 1e-4 if rows >= 64 else 1e-7)


def _definition(i: Inputs) -> Any:
    return reference.sparse_transport(i["x"], gamma=GAMMA).to(i["x"].dtype)


def _pot(name: str, k: int | None) -> Rival:
    def load() -> Run:
        function = getattr(rivals.pot().smooth, name)
        kind = "l2" if k is None else "sparsity_constrained"

        def run(i: Inputs) -> Any:
            n, m = i["x"].shape[1:]
            a, b = (
                torch.full((n,), 1 / n).double().numpy(),
                torch.full((m,), 1 / m).double().numpy(),
            )
            # It prints a line for each evaluation.
            with contextlib.redirect_stdout(io.StringIO()):
                return [
                    function(a, b, c, GAMMA, reg_type=kind, max_nz=None if k is None else min(k, n))
                    for c in i["x"].double().cpu().numpy()
                ]

        return run

    return Rival(f"ot.smooth.{name}", "POT", load, "numpy, float64, scipy's L-BFGS")


def _case(variant: str, k: int | None, method: str, rival: str) -> Case:
    return Case(
        op="sparse_transport",
        variant=variant,
        shape=COST,
        small=COST_SMALL,
        make=_points,
        ours=partial(_exactly, k=k, method=method),
        reference=_definition,
        rivals=(_pot(rival, k),),
        more_dtypes=(torch.float64,),
        passes=1.0,
    )


def _entmax(name: str) -> Rival:
    def load() -> Run:
        function = getattr(importlib.import_module("entmax"), name)
        return lambda i: function(i["x"], dim=0)

    return Rival(f"entmax.{name}", "entmax", load, "sorts")


def _columns(op: str) -> Case:
    """The projections of all columns, as plans have them."""
    return Case(
        op=op,
        variant="columns",
        shape=SCORES,
        small=SCORES_SMALL,
        make=_scores,
        ours=lambda i: getattr(simplex, op)(i["x"], 0),
        reference=lambda i: getattr(simplex_reference, op)(i["x"], 0),
        rivals=(_entmax(op),),
    )


def _scipy() -> Rival:
    def load() -> Run:
        solve = importlib.import_module("scipy.optimize").linear_sum_assignment

        def run(i: Inputs) -> Any:
            return [float(c[solve(c)].sum()) for c in i["x"].cpu().numpy()]

        return run

    return Rival("linear_sum_assignment", "scipy", load, "one problem at a time")


def _pot_line() -> Rival:
    def load() -> Run:
        function = rivals.pot().wasserstein_1d
        return lambda i: function(i["x"].mT, i["y"].mT, p=2)

    return Rival("ot.wasserstein_1d", "POT", load)


CASES = (
    _case("entries", 4, "semi_dual", "smooth_ot_semi_dual"),
    _case("entries_dual", 4, "dual", "smooth_ot_dual"),
    _case("quadratic", None, "dual", "smooth_ot_dual"),
    _case("quadratic_semi_dual", None, "semi_dual", "smooth_ot_semi_dual"),
    _columns("sparsemax"),
    _columns("entmax15"),
    Case(
        op="assignment",
        variant="",
        shape=MANY,
        small=MANY_SMALL,
        make=_scores,
        ours=lambda i: exact.assignment(i["x"]).value,
        reference=lambda i: exact_reference.assignment(i["x"]),
        rivals=(_scipy(),),
        more_dtypes=(torch.float64,),
        passes=1.0,
    ),
    Case(
        op="wasserstein_1d",
        variant="",
        shape=LINES,
        small=LINES_SMALL,
        make=_pair,
        ours=lambda i: exact.wasserstein_1d(i["x"], i["y"], p=2.0),
        reference=lambda i: exact_reference.wasserstein_1d(i["x"], i["y"], p=2.0),
        rivals=(_pot_line(),),
        more_dtypes=(torch.float64,),
        passes=2.0,
    ),
)

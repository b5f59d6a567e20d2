"""Projections, sparse simplex maps, N:M patterns, total variation, isotonic regression."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.proximal import isotonic, patterns, projections, simplex, total_variation
from regkern.reference.proximal import isotonic as isotonic_reference
from regkern.reference.proximal import patterns as patterns_reference
from regkern.reference.proximal import projections as projections_reference
from regkern.reference.proximal import simplex as simplex_reference
from regkern.reference.proximal import total_variation as total_variation_reference

WEIGHTS, WEIGHTS_SMALL = (4096, 4096), (12, 40)
SCORES, SCORES_SMALL = (4096, 1024), (9, 33)
LINES, LINES_SMALL = (1024, 1024), (5, 9)
MORE_FLOATS = (torch.bfloat16, torch.float16, torch.float64)
LAMBDA = 100.0


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape, dtype=torch.float32, device=device).to(dtype)}


def _labelled(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    target = torch.randint(0, shape[1], (shape[0],), device=device)
    return {**_tensor(shape, dtype, device), "target": target}


def _call(function: Callable[..., Any], i: Inputs, **options: Any) -> Any:
    return function(i["x"], **options)


def _loss(function: Callable[..., Any], i: Inputs) -> Any:
    """Value and gradient, as a training step needs them."""
    with torch.enable_grad():
        x = i["x"].detach().requires_grad_()
        return torch.autograd.grad(function(x, i["target"]), x)[0]


def _torch(name: str, run: Run, note: str = "") -> Rival:
    return Rival(name, "torch", lambda: run, note)


def _entmax(name: str, loss: bool = False) -> Rival:
    def load() -> Run:
        function = getattr(importlib.import_module("entmax"), name)
        if loss:
            return partial(_loss, lambda x, target: function(x, target).mean())
        return lambda i: function(i["x"], dim=-1)

    return Rival(f"entmax.{name}", "entmax", load, "sorts")


# ---- in place ----


def _prox_linf(i: Inputs) -> Any:
    projections.prox_linf_(i["x"], LAMBDA, 0)
    return i["x"]


def _prox_linf_definition(i: Inputs) -> Any:
    y = projections_reference.prox_linf(i["x"], LAMBDA, 1)
    return i["x"].copy_(y)


def _prox_linf_columns(i: Inputs) -> Any:
    projections.prox_linf_(i["x"], LAMBDA, 1)
    return i["x"]


def _prox_linf_columns_definition(i: Inputs) -> Any:
    y = projections_reference.prox_linf(i["x"], LAMBDA, 0)
    return i["x"].copy_(y)


def _prox_linf_sorted(i: Inputs) -> Any:
    """The usual way in float32: sort, running sums, the last index that fits."""
    x = i["x"]
    u = x.abs().sort(dim=1, descending=True).values
    excess = u.cumsum(1) - LAMBDA
    k = torch.arange(1, x.shape[1] + 1, device=x.device)
    size = (u * k > excess).sum(1, keepdim=True).clamp(min=1)
    theta = (excess.gather(1, size - 1) / size).clamp(min=0)
    return torch.maximum(torch.minimum(x, theta), -theta)


def _pattern(dim: int, i: Inputs) -> Any:
    patterns.n_m_projection_(i["x"], 2, 4, dim)
    return i["x"]


def _pattern_definition(dim: int, i: Inputs) -> Any:
    return i["x"].copy_(patterns_reference.n_m_projection(i["x"], 2, 4, dim))


def _pattern_top_k(i: Inputs) -> Any:
    groups = i["x"].reshape(-1, 4)
    kept = groups.abs().topk(2, dim=1).indices
    mask = torch.zeros_like(groups).scatter_(1, kept, 1.0)
    return i["x"].mul_(mask.view_as(i["x"]))


def _in_place(
    op: str, variant: str, ours: Run, definition: Run, *rivals: Rival, bar: float | None = None
) -> Case:
    return Case(
        op=op,
        variant=variant,
        shape=WEIGHTS,
        small=WEIGHTS_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_tensor,
        ours=ours,
        reference=definition,
        rivals=rivals,
        floor="mul_",
        inplace=True,
        bar=bar,
    )


# ---- functional ----


def _functional(
    op: str,
    ours: Any,
    definition: Any,
    *rivals: Rival,
    variant: str = "",
    shape: tuple[int, ...] = SCORES,
    small: tuple[int, ...] = SCORES_SMALL,
    **options: Any,
) -> Case:
    return Case(
        op=op,
        variant=variant,
        shape=shape,
        small=small,
        more_dtypes=MORE_FLOATS,
        make=_tensor,
        ours=partial(_call, getattr(ours, op), **options),
        reference=partial(_call, getattr(definition, op), **options),
        rivals=rivals,
        differentiable=True,
    )


def _loss_case(op: str, rival: str) -> Case:
    return Case(
        op=op,
        variant="gradient",
        shape=SCORES,
        small=SCORES_SMALL,
        make=_labelled,
        ours=partial(_loss, getattr(simplex, op)),
        reference=partial(_loss, getattr(simplex_reference, op)),
        rivals=(
            _entmax(rival, loss=True),
            _torch("cross_entropy", partial(_loss, torch.nn.functional.cross_entropy), "dense"),
        ),
    )


_SOFTMAX = _torch("torch.softmax", lambda i: torch.softmax(i["x"], -1), "dense")

CASES = (
    _in_place(
        "prox_linf_",
        "rows",
        _prox_linf,
        _prox_linf_definition,
        _torch("sort", _prox_linf_sorted, "not in place"),
        bar=4.0,
    ),
    _in_place("prox_linf_", "columns", _prox_linf_columns, _prox_linf_columns_definition),
    _in_place(
        "n_m_projection_",
        "2:4",
        partial(_pattern, 1),
        partial(_pattern_definition, 1),
        _torch("topk + scatter", _pattern_top_k),
        bar=2.0,
    ),
    _in_place("n_m_projection_", "2:4 down", partial(_pattern, 0), partial(_pattern_definition, 0)),
    _functional("sparsemax", simplex, simplex_reference, _entmax("sparsemax"), _SOFTMAX),
    _functional("entmax15", simplex, simplex_reference, _entmax("entmax15"), _SOFTMAX),
    _functional("l1_ball_projection", projections, projections_reference, radius=10.0),
    _functional("prox_exclusive_lasso", projections, projections_reference, threshold=0.1),
    _functional(
        "capped_simplex_projection", projections, projections_reference, total=8.0, cap=1.0
    ),
    _loss_case("sparsemax_loss", "sparsemax_loss"),
    _loss_case("entmax15_loss", "entmax15_loss"),
    _functional(
        "prox_total_variation",
        total_variation,
        total_variation_reference,
        shape=LINES,
        small=LINES_SMALL,
        lam=1.0,
    ),
    _functional(
        "isotonic_regression",
        isotonic,
        isotonic_reference,
        shape=LINES,
        small=LINES_SMALL,
    ),
    _functional(
        "soft_rank",
        isotonic,
        isotonic_reference,
        _torch("torch.sort", lambda i: torch.sort(i["x"], -1), "ranks without gradients"),
        shape=LINES,
        small=LINES_SMALL,
        regularization=1.0,
    ),
)

"""Samples of projections, sparse simplex maps, patterns, total variation, isotonic regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.proximal import isotonic, patterns, projections, simplex, total_variation
from regkern.reference.proximal import isotonic as isotonic_reference
from regkern.reference.proximal import patterns as patterns_reference
from regkern.reference.proximal import projections as projections_reference
from regkern.reference.proximal import simplex as simplex_reference
from regkern.reference.proximal import total_variation as total_variation_reference
from sample import Sample
from torch import Tensor


def _pair(
    modules: tuple[Any, Any],
    op: str,
    name: str,
    shapes: tuple[tuple[int, ...], ...],
    call: Callable[[Any], Callable[..., Tensor]] | None = None,
    **kwargs: Any,
) -> Sample:
    ours, reference = modules
    bind = call or (lambda m: getattr(m, op))
    return Sample(
        op, name, shapes, kwargs.pop("options", {}), bind(ours), bind(reference), **kwargs
    )


_PROJECTIONS = (projections, projections_reference)
_SIMPLEX = (simplex, simplex_reference)
_PATTERNS = (patterns, patterns_reference)
_LINES = (total_variation, total_variation_reference)
_ISOTONIC = (isotonic, isotonic_reference)


def _weights(n: int) -> Tensor:
    return torch.linspace(0.25, 1.5, n, dtype=torch.float64)


def _with_radius(name: str, op: str) -> Sample:
    """The second tensor, made positive, is a threshold per slice."""
    return _pair(
        _PROJECTIONS,
        op,
        name,
        ((4, 11, 3), (4, 3)),
        call=lambda m: lambda x, t: getattr(m, op)(x, t.double().square() + 0.3, 1),
    )


def _labels(name: str, op: str, reduction: str) -> Sample:
    label = torch.tensor([[1, 0, -100], [10, 4, 2], [3, 3, 3], [0, -100, 9]])

    def bind(m: Any) -> Callable[[Tensor], Tensor]:
        def loss(x: Tensor) -> Tensor:
            # An empty batch has no labels, and nothing to take the mean of.
            kind = "sum" if x.shape[0] == 0 else reduction
            return getattr(m, op)(x, label[: x.shape[0]], 1, reduction=kind).to(x.dtype)

        return loss

    return _pair(_SIMPLEX, op, name, ((4, 11, 3),), call=bind)


def _distribution(op: str) -> Sample:
    def bind(m: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, t: getattr(m, op)(x, t.softmax(-1), -1, reduction="none")

    # Of halves the distribution would be rounded here and not in the definition.
    return _pair(
        _SIMPLEX,
        op,
        "distribution",
        ((5, 12), (5, 12)),
        call=bind,
        dtypes=(torch.float32, torch.float64),
    )


SAMPLES: list[Sample] = [
    _pair(_PROJECTIONS, "simplex_projection", "rows", ((5, 37),)),
    _with_radius("middle", "simplex_projection"),
    _with_radius("middle", "l1_ball_projection"),
    _pair(
        _PROJECTIONS,
        "l1_ball_projection",
        "weights",
        ((4, 23),),
        call=lambda m: lambda x: m.l1_ball_projection(x, 3.0, 1, _weights(23)),
    ),
    _with_radius("middle", "prox_linf"),
    _pair(_PROJECTIONS, "prox_linf", "long", ((2, 1100),), options={"threshold": 90.0}),
    _with_radius("middle", "prox_exclusive_lasso"),
    _pair(
        _PROJECTIONS,
        "prox_exclusive_lasso",
        "weights",
        ((4, 13),),
        call=lambda m: lambda x: m.prox_exclusive_lasso(x, 0.4, 1, _weights(13)),
    ),
    _pair(
        _PROJECTIONS,
        "capped_simplex_projection",
        "rows",
        ((4, 19),),
        options={"total": 6.0, "cap": 0.75},
    ),
    _pair(_PROJECTIONS, "k_sparse_simplex_projection", "columns", ((12, 5),), options={"k": 3}),
    _pair(_SIMPLEX, "sparsemax", "channels-last", ((2, 9, 4, 3),), options={"dim": 1}),
    _pair(_SIMPLEX, "entmax15", "rows", ((4, 41),)),
    _pair(_SIMPLEX, "entmax15", "middle", ((3, 17, 2),), options={"dim": 1}),
    _labels("labels", "sparsemax_loss", "none"),
    _labels("mean", "entmax15_loss", "mean"),
    _distribution("sparsemax_loss"),
    _distribution("entmax15_loss"),
    _pair(_PATTERNS, "n_m_projection", "2-4", ((6, 44),)),
    _pair(_PATTERNS, "n_m_projection", "tail", ((3, 13, 2),), options={"n": 3, "m": 5, "dim": 1}),
    _pair(
        _PATTERNS,
        "n_m_projection",
        "straight-through",
        ((5, 16),),
        options={"n": 1, "m": 8, "straight_through": True},
        straight_through=True,
    ),
    _pair(
        _PATTERNS,
        "n_m_mask",
        "middle",
        ((4, 10, 3),),
        call=lambda m: lambda x: m.n_m_mask(x, 2, 4, 1).to(x.dtype),
        differentiable=False,
    ),
    _pair(
        _LINES,
        "prox_total_variation",
        "lines",
        ((3, 9, 2), (3, 2)),
        call=lambda m: lambda x, t: m.prox_total_variation(x, t.double().square() + 0.2, 1),
    ),
    _pair(
        _LINES,
        "prox_fused_lasso",
        "rows",
        ((4, 8),),
        options={"lam": 0.4, "l1": 0.2},
    ),
    _pair(
        _ISOTONIC,
        "isotonic_regression",
        "weights",
        ((3, 7), (3, 7)),
        call=lambda m: lambda x, w: m.isotonic_regression(x, w.square() + 0.5),
        # Weights are rounded here and not in the definition.
        dtypes=(torch.float32, torch.float64),
    ),
    _pair(_ISOTONIC, "soft_rank", "columns", ((7, 3),), options={"regularization": 0.5, "dim": 0}),
    _pair(
        _ISOTONIC,
        "spectral_risk_weights",
        "kl",
        ((9,),),
        call=lambda m: (
            lambda x: m.spectral_risk_weights(x, isotonic.cvar_spectrum(9, 0.4), "kl", 0.5)
        ),
        batched=False,
        dtypes=(torch.float32, torch.float64),
    ),
]

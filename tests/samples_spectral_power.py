"""Samples of the power iteration and of what divides by spectral norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.reference.spectral import penalties as reference_penalties
from regkern.reference.spectral import power as reference
from regkern.spectral import normalize, power, spectral_penalties
from sample import Sample
from torch import Tensor


def _unit(n: int, salt: float, like: Tensor) -> Tensor:
    """A vector that is the same on every call, without a random generator."""
    i = torch.arange(n, dtype=torch.float64, device=like.device)
    x = torch.cos(salt * (i + 1))
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return (x / x.norm()).to(wide)


def _vectors(ws: tuple[Tensor, ...], dim: int) -> tuple[list[Tensor], list[Tensor]]:
    u = [_unit(w.shape[dim], 0.7, w) for w in ws]
    v = [_unit(power.columns_of(w, dim), 0.9, w) for w in ws]
    return u, v


def _sigmas(*ws: Tensor, n_iter: int, dim: int, update: bool = False) -> Tensor:
    u, v = _vectors(ws, dim)
    found = power.power_iteration(list(ws), u, v, n_iter, dim=dim, update=update)
    return torch.cat([found.sigma, found.frobenius]).to(ws[0].dtype)


def _reference_sigmas(*ws: Tensor, n_iter: int, dim: int, update: bool = False) -> Tensor:
    u, v = _vectors(ws, dim)
    return torch.cat([reference.sigmas(ws, u, v, n_iter, dim), reference.frobenius(ws)])


def _normalized(w: Tensor, n_iter: int, dim: int, cap: float | None = None) -> Tensor:
    (u,), (v,) = _vectors((w,), dim)
    return normalize.spectral_normalize(w, u, v, n_iter=n_iter, cap=cap, dim=dim, update=False)


def _reference_normalized(w: Tensor, n_iter: int, dim: int, cap: float | None = None) -> Tensor:
    (u,), (v,) = _vectors((w,), dim)
    return reference.spectral_normalize(w, u, v, n_iter, cap, dim)


def _penalty(*ws: Tensor, kind: str) -> Tensor:
    u, v = _vectors(ws, 0)
    value = spectral_penalties.spectral_penalty(
        list(ws),
        u,
        v,
        kind,  # type: ignore[arg-type]
        cap=50.0,
        n_iter=0,
    )
    return value.to(ws[0].dtype)


def _reference_penalty(*ws: Tensor, kind: str) -> Tensor:
    u, v = _vectors(ws, 0)
    return reference_penalties.of_sigmas(reference.sigmas(ws, u, v, 0), kind, cap=50.0)


def _normalized_(w: Tensor, n_iter: int, dim: int) -> Tensor:
    """Through all ops that write; what the first two do changes nothing."""
    (u,), (v,) = _vectors((w,), dim)
    power.power_iteration(w, u.clone(), v.clone(), 1, dim=dim)
    spectral_penalties.add_outer_(w, u, v, 0.0, dim=dim)
    return normalize.spectral_normalize_(w, u, v, n_iter=n_iter, dim=dim)


def _sample(
    op: str,
    name: str,
    shapes: tuple[tuple[int, ...], ...],
    ours: Callable[..., Any],
    definition: Callable[..., Any],
    **options: Any,
) -> Sample:
    kwargs = {
        k: options.pop(k) for k in ("differentiable", "straight_through", "inplace") if k in options
    }
    return Sample(op, name, shapes, options, ours, definition, batched=False, **kwargs)


SAMPLES: list[Sample] = [
    # Of two segments, a short one, and more than one span of rows.
    _sample("power_iteration", "evaluate", ((5, 7), (6, 4)), _sigmas, _reference_sigmas,
            n_iter=0, dim=0),
    _sample("power_iteration", "rows", ((19, 530), (300, 21)), _sigmas, _reference_sigmas,
            n_iter=2, dim=0, straight_through=True),
    _sample("spectral_normalize", "cap", ((9, 11),), _normalized, _reference_normalized,
            n_iter=0, dim=1, cap=0.5),
    _sample("spectral_normalize", "convolution", ((4, 3, 3, 2),), _normalized,
            _reference_normalized, n_iter=2, dim=1, straight_through=True),
    _sample("spectral_penalty", "power", ((5, 7), (6, 4)), _penalty, _reference_penalty,
            kind="power"),
    _sample("spectral_normalize", "inplace", ((6, 9),), _normalized, _reference_normalized,
            n_iter=2, dim=0, differentiable=False, inplace=_normalized_),
]  # fmt: skip

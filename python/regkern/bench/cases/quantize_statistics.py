"""Ranges, moments and histograms."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.quantize import statistics
from regkern.reference.quantize import statistics as reference

WEIGHTS, WEIGHTS_SMALL = (2500, 4000), (20, 48)
MORE_FLOATS = (torch.bfloat16, torch.float16, torch.float64)


def _weights(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape, dtype=torch.float32, device=device).to(dtype)}


def _call(module: Any, name: str, i: Inputs, **options: Any) -> Any:
    result = getattr(module, name)(i["x"], **options)
    # Sums over float32 are compared as such.
    return torch.stack(result).float() if name == "moments" else result


def _both(name: str, **options: Any) -> dict[str, Any]:
    return {
        "ours": partial(_call, statistics, name, **options),
        "reference": partial(_call, reference, name, **options),
    }


def _torch(name: str, run: Run, note: str = "") -> Rival:
    return Rival(name, "torch", lambda: run, note)


def _case(
    op: str,
    variant: str,
    passes: float = 1.0,
    differentiable: bool = False,
    bar: float | None = None,
    rivals: tuple[Rival, ...] = (),
    **options: Any,
) -> Case:
    return Case(
        op=op,
        variant=variant,
        shape=WEIGHTS,
        small=WEIGHTS_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weights,
        passes=passes,
        differentiable=differentiable,
        bar=bar,
        rivals=rivals,
        **_both(op, **options),
    )


CASES = (
    _case(
        "value_range",
        "",
        bar=1.0,
        rivals=(_torch("torch.aminmax", lambda i: torch.aminmax(i["x"])),),
    ),
    _case(
        "value_range",
        "channel",
        rivals=(_torch("torch.aminmax", lambda i: torch.aminmax(i["x"], dim=1)),),
        axis=0,
    ),
    _case(
        "value_range",
        "channel_last",
        rivals=(_torch("torch.aminmax", lambda i: torch.aminmax(i["x"], dim=0)),),
        axis=1,
    ),
    _case("value_range", "group32", group_size=32),
    _case("value_range", "block128", block=(128, 128)),
    _case(
        "moments",
        "",
        bar=1.6,
        rivals=(
            _torch("torch.var_mean", lambda i: torch.var_mean(i["x"]), "mean and variance alone"),
        ),
    ),
    _case("moments", "channel", axis=0),
    _case("moments", "channel_last", axis=1),
    _case("moments_penalty", "", differentiable=True),
    _case(
        "histogram",
        "",
        rivals=(_torch("torch.histc", lambda i: torch.histc(i["x"], 2048, -5.0, 5.0)),),
        bins=2048,
        low=-5.0,
        high=5.0,
    ),
    _case("percentile_range", "", passes=2.0),
)

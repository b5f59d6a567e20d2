"""Nearest levels, latent codes, stuck bits and trained bits."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from regkern.bench.case import Case, Inputs
from regkern.quantize.bitwise import bitwise_weights, sign_ste
from regkern.quantize.faults import inject_faults
from regkern.quantize.latent import latent_quantize
from regkern.quantize.levels import nearest_level
from regkern.quantize.penalty import level_penalty
from regkern.random import make_seed
from regkern.reference.quantize import levels as reference

WEIGHTS, WEIGHTS_SMALL = (2500, 4000), (7, 41)
LATENTS, LATENTS_SMALL = (1000000, 10), (37, 10)
PLANES, PLANES_SMALL = (4, 2500, 1000), (4, 5, 23)
MORE_FLOATS = (torch.bfloat16, torch.float16, torch.float64)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _weights(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    levels = torch.linspace(-2.0, 2.0, 16, dtype=_wide(dtype), device=device)
    step = torch.full((1,), 0.03125, dtype=_wide(dtype), device=device)
    return {"x": x, "levels": levels, "step": step, "seed": make_seed(device)}


def _latents(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    z = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    levels = torch.linspace(-0.5, 0.5, 16, dtype=_wide(dtype), device=device)
    return {"x": z, "codebook": levels.repeat(shape[-1], 1)}


def _planes(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    bits = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    sign = torch.randn(shape[1:], dtype=torch.float32, device=device).to(dtype)
    scale = torch.full((), 0.0625, dtype=_wide(dtype), device=device)
    return {"x": bits, "sign": sign, "scale": scale}


def _nearest(function: Any, i: Inputs, **options: Any) -> Any:
    return function(i["x"], i["levels"], **options)[0].to(i["x"].dtype)


def _latent(function: Any, i: Inputs) -> Any:
    return function(i["x"], i["codebook"])[0].to(i["x"].dtype)


def _penalty(function: Any, i: Inputs, name: str) -> Any:
    value = i["levels"] if name == "levels" else i["step"]
    return function(i["x"], **{name: value}).to(i["x"].dtype)


def _faults(function: Any, i: Inputs) -> Any:
    zero = torch.zeros(1, dtype=i["step"].dtype, device=i["x"].device)
    return function(i["x"], i["step"], zero, 8, rate=0.01, seed=i["seed"]).to(i["x"].dtype)


def _bitwise(function: Any, i: Inputs) -> Any:
    return function(i["x"], i["sign"], i["scale"].to(i["x"].dtype))


def _sign(function: Any, i: Inputs) -> Any:
    return function(i["x"], "tanh", 2.0)


def _sign_reference(i: Inputs) -> Any:
    # In float32, as the kernel computes.
    return reference.sign_ste(i["x"].to(_wide(i["x"].dtype)), "tanh", 2.0).to(i["x"].dtype)


CASES = (
    Case(
        op="nearest_level",
        variant="16",
        shape=WEIGHTS,
        small=WEIGHTS_SMALL,
        dtypes=(torch.float32, torch.bfloat16),
        more_dtypes=(torch.float16, torch.float64),
        make=_weights,
        ours=partial(_nearest, nearest_level),
        reference=partial(_nearest, reference.nearest_level),
        passes=2.25,  # the codes are a byte each
        differentiable=True,
    ),
    Case(
        op="latent_quantize",
        variant="",
        shape=LATENTS,
        small=LATENTS_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_latents,
        ours=partial(_latent, latent_quantize),
        reference=partial(_latent, reference.latent_quantize),
        passes=2.25,
        differentiable=True,
    ),
    Case(
        op="level_penalty",
        variant="step",
        shape=WEIGHTS,
        small=WEIGHTS_SMALL,
        more_dtypes=(torch.float64,),
        make=_weights,
        ours=partial(_penalty, level_penalty, name="step"),
        reference=partial(_penalty, reference.level_penalty, name="step"),
        passes=1.0,
        differentiable=True,
    ),
    Case(
        op="level_penalty",
        variant="levels",
        shape=WEIGHTS,
        small=WEIGHTS_SMALL,
        more_dtypes=(torch.float64,),
        make=_weights,
        ours=partial(_penalty, level_penalty, name="levels"),
        reference=partial(_penalty, reference.level_penalty, name="levels"),
        passes=1.0,
        differentiable=True,
    ),
    Case(
        op="inject_faults",
        variant="drawn",
        shape=WEIGHTS,
        small=WEIGHTS_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weights,
        ours=partial(_faults, inject_faults),
        reference=partial(_faults, reference.inject_faults),
        differentiable=True,
    ),
    Case(
        op="bitwise_weights",
        variant="4",
        shape=PLANES,
        small=PLANES_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_planes,
        ours=partial(_bitwise, bitwise_weights),
        reference=partial(_bitwise, reference.bitwise_weights),
        passes=1.5,  # five planes of a quarter each read, one written
        differentiable=True,
    ),
    Case(
        op="sign_ste",
        variant="tanh",
        shape=WEIGHTS,
        small=WEIGHTS_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weights,
        ours=partial(_sign, sign_ste),
        reference=_sign_reference,
        differentiable=True,
    ),
)

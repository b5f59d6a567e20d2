"""Rounding to formats and fake quantization."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import regkern
from regkern import reference
from regkern.bench import rivals
from regkern.bench.case import Case, Inputs, Rival

# Both divide into blocks of 32 and of 40: torchao refuses the rest.
SHAPE, SMALL = (2500, 4000), (4, 160)
HALVES = (torch.bfloat16, torch.float16)


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    return {"x": x, "seed": regkern.make_seed(device)}


def _scaled(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    scale = torch.full((), 0.03, device=device)
    zero = torch.full((), 3.0, device=device)
    return {**_numbers(shape, dtype, device), "scale": scale, "zero_point": zero}


def _learned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    inputs = _scaled(shape, dtype, device)
    learned = {name: inputs[name].reshape(1).requires_grad_() for name in ("scale", "zero_point")}
    return {**inputs, **learned}


def _stochastic(function: Any, i: Inputs, name: str) -> Any:
    return function(i["x"], name, rounding="stochastic", seed=i["seed"])


def _into(i: Inputs, name: str) -> Any:
    return regkern.stochastic_round(i["x"], name, dtype=torch.bfloat16, seed=i["seed"])


def _into_reference(i: Inputs, name: str) -> Any:
    return _stochastic(reference.round_to, i, name).to(torch.bfloat16)


def _nearest(function: Any, i: Inputs, name: str) -> Any:
    return function(i["x"], name)


def _fake(function: Any, i: Inputs, **options: Any) -> Any:
    return function(i["x"], i.get("scale"), i.get("zero_point"), **options)


def _rounded(name: str, variant: str, bar: float | None, *others: Rival) -> Case:
    return Case(
        op="stochastic_round",
        variant=variant,
        shape=SHAPE,
        small=SMALL,
        more_dtypes=HALVES,
        make=_numbers,
        ours=partial(_stochastic, regkern.round_to, name=name),
        reference=partial(_stochastic, reference.round_to, name=name),
        rivals=others,
        bar=bar,
    )


def _mx(name: str, kind: str | None) -> Case:
    return Case(
        op="round_to",
        variant=name,
        shape=SHAPE,
        small=SMALL,
        more_dtypes=HALVES,
        make=_numbers,
        ours=partial(_nearest, regkern.round_to, name=name),
        reference=partial(_nearest, reference.round_to, name=name),
        rivals=() if kind is None else (rivals.torchao_mx(kind),),
        bar=3.0,
    )


CASES = (
    Case(
        op="stochastic_round",
        variant="",
        shape=SHAPE,
        small=SMALL,
        make=_numbers,
        ours=partial(_into, name="bfloat16"),
        reference=partial(_into_reference, name="bfloat16"),
        rivals=(rivals.torchao_bf16(), rivals.qtorch_float(8, 7)),
        passes=1.5,  # bfloat16 is written
        bar=2.0,
    ),
    _rounded("e4m3fn", "e4m3", 4.0, rivals.qtorch_float(4, 3)),
    _rounded("e5m2", "e5m2", 4.0, rivals.qtorch_float(5, 2)),
    _rounded("e2m3fn", "e2m3", 4.0),
    _rounded("e2m1fn", "e2m1", 4.0, rivals.qtorch_float(2, 1)),
    _rounded("mxfp4", "mxfp4", None),
    _mx("mxfp8_e4m3", "float8_e4m3fn"),
    _mx("mxfp6_e3m2", "fp6_e3m2"),
    _mx("mxfp4", "float4_e2m1fn_x2"),
    _mx("mxint8", None),
    _mx("nvfp4", None),
    Case(
        op="fake_quantize",
        variant="",
        shape=SHAPE,
        small=SMALL,
        more_dtypes=HALVES,
        make=_scaled,
        ours=partial(_fake, regkern.fake_quantize),
        reference=partial(_fake, reference.fake_quantize),
        rivals=(rivals.aten_fake_quantize(),),
        differentiable=True,
        bar_backward=4.0,
    ),
    Case(
        op="fake_quantize",
        variant="lsq",
        shape=SHAPE,
        small=SMALL,
        make=_learned,
        ours=partial(_fake, regkern.fake_quantize),
        reference=partial(_fake, reference.fake_quantize),
        rivals=(rivals.aten_fake_quantize(learnable=True),),
        differentiable=True,
        bar_backward=6.0,
    ),
    Case(
        op="fake_quantize",
        variant="int4-groups",
        shape=SHAPE,
        small=SMALL,
        more_dtypes=HALVES,
        make=_numbers,
        ours=partial(
            _fake, regkern.fake_quantize, format="int4", granularity="group", block_size=40
        ),
        reference=partial(
            _fake, reference.fake_quantize, format="int4", granularity="group", block_size=40
        ),
        rivals=(rivals.torchao_int4_groups(),),
        differentiable=True,
        bar=2.0,
    ),
)

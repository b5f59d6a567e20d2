"""Stochastic copies of lists of tensors, and optimizer steps on bfloat16 weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import regkern
from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.optim import SGD, AdamW
from regkern.quantize.lists import copy_stochastic_
from regkern.reference.quantize import optim as reference

#: A list of as many tensors as there are rows.
SHAPE, SMALL = (8, 1 << 20), (3, 50)


def _copies(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    to: torch.dtype = torch.bfloat16,
) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    y = torch.empty(shape, dtype=to, device=device)
    return {"x": x, "y": y, "seed": regkern.make_seed(device)}


def _copy(i: Inputs) -> list[Tensor]:
    dst = list(i["y"])
    copy_stochastic_(dst, list(i["x"]), seed=i["seed"])
    return dst


def _copy_reference(i: Inputs) -> list[Tensor]:
    src = list(i["x"])
    return reference.copy_stochastic(src, [i["y"].dtype] * len(src), i["seed"])


def _foreach_copy() -> Rival:
    def load() -> Run:
        return lambda i: torch._foreach_copy_(list(i["y"]), list(i["x"]))

    return Rival("torch._foreach_copy_", "torch", load, "rounds to nearest")


def _weights(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    state_dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Weights, gradients, and a place for the optimizer of each contender."""
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    return {"x": x, "grad": torch.randn_like(x), "state_dtype": state_dtype, "optimizers": {}}


def _generator(x: Tensor) -> torch.Generator:
    return torch.Generator(x.device).manual_seed(0)


def _step(make: Callable[[list[Tensor]], Any], key: object, i: Inputs) -> Tensor:
    """One step on the rows of x. The optimizer, made for the first call, stays for the next."""
    x: Tensor = i["x"]
    weights, optimizer = i["optimizers"].get(key, (None, None))
    if weights is not x:
        params = list(x)
        for p, g in zip(params, i["grad"], strict=True):
            p.grad = g
        optimizer = make(params)
        i["optimizers"][key] = (x, optimizer)
    optimizer.step()
    return x


def _ours(kind: Any, options: dict[str, Any], i: Inputs) -> Tensor:
    given = {**options, "state_dtype": i["state_dtype"], "generator": _generator(i["x"])}
    return _step(lambda params: kind(params, **given), kind, i)


def _theirs(kind: Any, options: dict[str, Any], i: Inputs) -> Tensor:
    return _step(lambda params: kind(params, **options), (kind, *options.items()), i)


def _first_step(step: Callable[..., tuple[Tensor, ...]], i: Inputs) -> Tensor:
    """The first step by the definition."""
    x: Tensor = i["x"]
    seed = regkern.make_seed(x.device, _generator(x))
    rows = list(x)
    for p, g, number in zip(rows, i["grad"], reference.numbered(rows), strict=True):
        state = torch.zeros_like(p, dtype=i["state_dtype"])
        p.copy_(step(p, g, state, seed, number)[0])
    return x


def _adamw(p: Tensor, g: Tensor, zero: Tensor, seed: Tensor, number: int) -> tuple[Tensor, ...]:
    options: dict[str, Any] = {
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 1e-2,
    }
    return reference.adamw_step(p, g, zero, zero, None, 1, seed, **options, number=number)


def _sgd(p: Tensor, g: Tensor, zero: Tensor, seed: Tensor, number: int) -> tuple[Tensor, ...]:
    options: dict[str, Any] = {**_MOMENTUM, "dampening": 0.0, "weight_decay": 0.0}
    return reference.sgd_step(p, g, zero, seed, **options, fresh=True, number=number)


def _torch(kind: Any, options: dict[str, Any], name: str) -> Rival:
    def load() -> Run:
        return partial(_theirs, kind, options)

    return Rival(name, "torch", load, "rounds to nearest; states of the weights' dtype")


_MOMENTUM = {"lr": 1e-3, "momentum": 0.9}

CASES = (
    Case(
        op="copy_stochastic",
        variant="bfloat16",
        shape=SHAPE,
        small=SMALL,
        dtypes=(torch.float32,),
        more_dtypes=(torch.float64, torch.float16),
        make=_copies,
        ours=_copy,
        reference=_copy_reference,
        rivals=(_foreach_copy(),),
        passes=1.5,  # float32 read, bfloat16 written
        bar=2.0,
    ),
    Case(
        op="copy_stochastic",
        variant="float16",
        shape=SHAPE,
        small=SMALL,
        dtypes=(torch.float32,),
        more_dtypes=(torch.float64, torch.bfloat16),
        make=partial(_copies, to=torch.float16),
        ours=_copy,
        reference=_copy_reference,
        rivals=(_foreach_copy(),),
        passes=1.5,
    ),
    Case(
        op="adamw",
        variant="",
        shape=SHAPE,
        small=SMALL,
        dtypes=(torch.bfloat16,),
        more_dtypes=(torch.float32, torch.float16),
        make=_weights,
        ours=partial(_ours, AdamW, {}),
        reference=partial(_first_step, _adamw),
        rivals=(
            _torch(torch.optim.AdamW, {"foreach": True}, "torch.optim.AdamW foreach"),
            _torch(torch.optim.AdamW, {"fused": True}, "torch.optim.AdamW fused"),
        ),
        passes=11.0,  # 22 bytes: weights, gradients and float32 states, all but gradients twice
        inplace=True,
    ),
    Case(
        op="adamw",
        variant="bfloat16_states",
        shape=SHAPE,
        small=SMALL,
        dtypes=(torch.bfloat16,),
        make=partial(_weights, state_dtype=torch.bfloat16),
        ours=partial(_ours, AdamW, {}),
        reference=partial(_first_step, _adamw),
        rivals=(_torch(torch.optim.AdamW, {"fused": True}, "torch.optim.AdamW fused"),),
        passes=7.0,
        inplace=True,
    ),
    Case(
        op="sgd",
        variant="momentum",
        shape=SHAPE,
        small=SMALL,
        dtypes=(torch.bfloat16,),
        more_dtypes=(torch.float32, torch.float16),
        make=_weights,
        ours=partial(_ours, SGD, _MOMENTUM),
        reference=partial(_first_step, _sgd),
        rivals=(
            _torch(torch.optim.SGD, {**_MOMENTUM, "foreach": True}, "torch.optim.SGD foreach"),
            _torch(torch.optim.SGD, {**_MOMENTUM, "fused": True}, "torch.optim.SGD fused"),
        ),
        passes=7.0,  # 14 bytes
        inplace=True,
    ),
)

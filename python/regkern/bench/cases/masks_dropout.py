"""Dropout of elements, channels and samples, and with a probability each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import regkern
from regkern.bench.case import Case, Inputs, Rival
from regkern.masks.dropping import dropout, dropout_
from regkern.reference import dropping as reference

P = 0.1
FLAT, FLAT_SMALL = (2500, 4000), (6, 50)
MAPS, MAPS_SMALL = (32, 256, 35, 35), (3, 4, 5, 6)


def _inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, each: bool = False
) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    p: Any = torch.full(shape, P, device=device) if each else P
    return {"x": x, "p": p, "seed": regkern.make_seed(device)}


def _run(function: Any, i: Inputs, **options: Any) -> Tensor:
    y: Tensor = function(i["x"], i["p"], seed=i["seed"], **options)
    return y


def _torch(name: str, call: Any, note: str = "") -> Rival:
    return Rival(name, "torch", lambda: lambda i: call(i), note)


def _bernoulli(i: Inputs) -> Tensor:
    y: Tensor = i["x"] * torch.bernoulli(1 - i["p"]) / (1 - i["p"])
    return y


def _path(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    keep = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(1 - P)
    return x * keep.div_(1 - P)


CASES = (
    Case(
        op="dropout",
        variant="",
        shape=FLAT,
        small=FLAT_SMALL,
        make=_inputs,
        ours=partial(_run, dropout),
        reference=partial(_run, reference.dropout),
        rivals=(_torch("F.dropout", lambda i: F.dropout(i["x"], P)),),
        dtypes=(torch.float32, torch.bfloat16),
        more_dtypes=(torch.float16, torch.float64),
        differentiable=True,
        bar=2.0,
    ),
    Case(
        op="dropout",
        variant="inplace",
        shape=FLAT,
        small=FLAT_SMALL,
        make=_inputs,
        ours=partial(_run, dropout_),
        reference=partial(_run, reference.dropout),
        rivals=(_torch("F.dropout", lambda i: F.dropout(i["x"], P, inplace=True)),),
        floor="mul_",
        inplace=True,
    ),
    Case(
        op="dropout",
        variant="each",
        shape=FLAT,
        small=FLAT_SMALL,
        make=partial(_inputs, each=True),
        ours=partial(_run, dropout),
        reference=partial(_run, reference.dropout),
        rivals=(_torch("torch.bernoulli", _bernoulli),),
        passes=3.0,
        differentiable=True,
        # 2.5 times reading both, in times of a copy.
        bar=3.75,
    ),
    Case(
        op="dropout",
        variant="channels",
        shape=MAPS,
        small=MAPS_SMALL,
        make=_inputs,
        ours=partial(_run, dropout, shared=(2, 3)),
        reference=partial(_run, reference.dropout, shared=(2, 3)),
        rivals=(_torch("F.dropout2d", lambda i: F.dropout2d(i["x"], P)),),
        differentiable=True,
    ),
    Case(
        op="dropout",
        variant="path",
        shape=MAPS,
        small=MAPS_SMALL,
        make=_inputs,
        ours=partial(_run, dropout, shared=(1, 2, 3)),
        reference=partial(_run, reference.dropout, shared=(1, 2, 3)),
        rivals=(_torch("x * mask", _path, "as timm and torchvision do"),),
        differentiable=True,
    ),
)

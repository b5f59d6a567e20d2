"""Quant-Noise, analog weight noise and uniform noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import regkern
from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.quantize.analog import additive_uniform_noise, weight_noise
from regkern.quantize.block_noise import quant_noise, quant_noise_
from regkern.reference.quantize import noise as reference

LINEAR, LINEAR_SMALL = (2500, 4000), (9, 48)
CONV, CONV_SMALL = (1000, 1111, 3, 3), (4, 5, 3, 3)
MORE_FLOATS = (torch.bfloat16, torch.float16, torch.float64)


def _weight(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    centroids: int = 0,
    block_size: int = 8,
) -> Inputs:
    w = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    inputs = {"x": w, "p": 0.1, "block_size": block_size, "seed": regkern.make_seed(device)}
    if centroids:
        inputs["codebook"] = torch.randn(centroids, block_size, device=device).to(dtype)
    return inputs


def _select(function: Callable[..., Any], i: Inputs, **options: Any) -> Any:
    return function(i["x"], i["p"], i["block_size"], seed=i["seed"], **options)


def _codebook(function: Callable[..., Any], i: Inputs) -> Any:
    return function(i["x"], i["p"], i["block_size"], i["codebook"], seed=i["seed"])


def _noise(function: Callable[..., Any], i: Inputs, **options: Any) -> Any:
    return function(i["x"], seed=i["seed"], **options)


def _uniform(function: Callable[..., Any], i: Inputs) -> Any:
    return function(i["x"], 0.1, seed=i["seed"])


def _exact(run: Run) -> Run:
    """The definition in float64, rounded once to the dtype of the input."""

    def exact(i: Inputs) -> Any:
        wide = {k: v.double() if k in ("x", "codebook") else v for k, v in i.items()}
        return run(wide).to(i["x"].dtype)

    return exact


def _eager(name: str, run: Run) -> Rival:
    """What a few lines of eager torch do; they draw other numbers."""
    return Rival(f"eager torch: {name}", "torch", lambda: run)


def _eager_zero(i: Inputs) -> Any:
    w, block = i["x"], i["block_size"]
    rows = w.view(w.shape[0], -1, block)
    mask = torch.rand(rows.shape[:2], device=w.device) < i["p"]
    return rows.masked_fill(mask[..., None], 0.0).view(w.shape)


def _eager_kernel(i: Inputs) -> Any:
    w = i["x"]
    mask = torch.rand(w.shape[:2], device=w.device) < i["p"]
    return w.masked_fill(mask[..., None, None], 0.0)


def _eager_codebook(i: Inputs) -> Any:
    w, codebook = i["x"], i["codebook"]
    blocks = w.view(-1, i["block_size"])
    mask = torch.rand(blocks.shape[0], device=w.device) < i["p"]
    nearest = codebook[torch.cdist(blocks, codebook).argmin(1)]
    return torch.where(mask[:, None], nearest, blocks).view(w.shape)


def _eager_normal(i: Inputs) -> Any:
    w = i["x"]
    return w + 0.1 * w.abs().amax() * torch.randn_like(w)


def _eager_discretize(i: Inputs) -> Any:
    w = i["x"]
    step = w.abs().amax() / 128
    return (w / step).round() * step


def _eager_drop_connect(i: Inputs) -> Any:
    return torch.nn.functional.dropout(i["x"], 0.3)


def _eager_uniform(i: Inputs) -> Any:
    return i["x"] + 0.1 * (torch.rand_like(i["x"]) - 0.5)


CASES = (
    Case(
        op="quant_noise",
        variant="zero",
        shape=LINEAR,
        small=LINEAR_SMALL,
        dtypes=(torch.float32, torch.bfloat16),
        more_dtypes=(torch.float16, torch.float64),
        make=_weight,
        ours=partial(_select, quant_noise),
        reference=_exact(partial(_select, reference.quant_noise)),
        rivals=(_eager("rand, masked_fill", _eager_zero),),
        differentiable=True,
        bar=1.3,
    ),
    Case(
        op="quant_noise",
        variant="zero_inplace",
        shape=LINEAR,
        small=LINEAR_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weight,
        ours=partial(_select, quant_noise_),
        reference=_exact(partial(_select, reference.quant_noise)),
        floor="mul_",
        inplace=True,
    ),
    Case(
        op="quant_noise",
        variant="kernels",
        shape=CONV,
        small=CONV_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weight,
        ours=partial(_select, quant_noise),
        reference=_exact(partial(_select, reference.quant_noise)),
        rivals=(_eager("rand, masked_fill", _eager_kernel),),
        differentiable=True,
    ),
    Case(
        op="quant_noise",
        variant="mean",
        shape=LINEAR,
        small=LINEAR_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weight,
        ours=partial(_select, quant_noise, quantizer="mean"),
        reference=_exact(partial(_select, reference.quant_noise, quantizer="mean")),
        passes=3.0,  # w is read for the mean and again for the result
        differentiable=True,
    ),
    Case(
        op="quant_noise",
        variant="codebook",
        shape=(500, 2000),
        small=LINEAR_SMALL,
        more_dtypes=(torch.float64,),
        make=partial(_weight, centroids=256, block_size=4),
        ours=partial(_codebook, quant_noise),
        reference=_exact(partial(_codebook, reference.quant_noise)),
        rivals=(_eager("cdist, argmin, where", _eager_codebook),),
        differentiable=True,
    ),
    Case(
        op="weight_noise",
        variant="add_normal",
        shape=LINEAR,
        small=LINEAR_SMALL,
        dtypes=(torch.float32, torch.bfloat16),
        more_dtypes=(torch.float16, torch.float64),
        make=_weight,
        ours=partial(_noise, weight_noise, kind="add_normal", std_dev=0.1),
        reference=_exact(partial(_noise, reference.weight_noise, kind="add_normal", std_dev=0.1)),
        rivals=(_eager("amax, randn", _eager_normal),),
        passes=3.0,  # w is read for its largest value and again for the result
        differentiable=True,
        bar=4.0,
    ),
    Case(
        op="weight_noise",
        variant="mult_normal",
        shape=LINEAR,
        small=LINEAR_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weight,
        ours=partial(_noise, weight_noise, kind="mult_normal", std_dev=0.1),
        reference=_exact(partial(_noise, reference.weight_noise, kind="mult_normal", std_dev=0.1)),
        differentiable=True,
    ),
    Case(
        op="weight_noise",
        variant="discretize",
        shape=LINEAR,
        small=LINEAR_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weight,
        ours=partial(_noise, weight_noise, kind="discretize", resolution=256),
        reference=_exact(
            partial(_noise, reference.weight_noise, kind="discretize", resolution=256)
        ),
        rivals=(_eager("amax, round", _eager_discretize),),
        passes=3.0,
        differentiable=True,
    ),
    Case(
        op="weight_noise",
        variant="drop_connect",
        shape=LINEAR,
        small=LINEAR_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weight,
        ours=partial(_noise, weight_noise, kind="none", drop_connect=0.3, rescale=True),
        reference=_exact(
            partial(_noise, reference.weight_noise, kind="none", drop_connect=0.3, rescale=True)
        ),
        rivals=(_eager("dropout", _eager_drop_connect),),
        differentiable=True,
    ),
    Case(
        op="additive_uniform_noise",
        variant="",
        shape=LINEAR,
        small=LINEAR_SMALL,
        dtypes=(torch.float32, torch.bfloat16),
        more_dtypes=(torch.float16, torch.float64),
        make=_weight,
        ours=partial(_uniform, additive_uniform_noise),
        reference=_exact(partial(_uniform, reference.additive_uniform_noise)),
        rivals=(_eager("rand", _eager_uniform),),
        differentiable=True,
    ),
)

"""Training a part of a dense weight, and gates: full steps and the kernels by themselves."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival
from regkern.reference.sparse import gates as gates_reference
from regkern.reference.sparse import masked as masked_reference
from regkern.sparse import SparsePattern, gates
from regkern.sparse.masked import masked_linear
from regkern.sparse.masked_conv import masked_conv2d
from regkern.sparse.meprop import row_top_k
from regkern.sparse.selection import random_pattern

BATCH, DENSITY = 128, 0.01
_SEED = (11, 12)


@cache
def _pattern(rows: int, columns: int, device: torch.device) -> SparsePattern:
    generator = torch.Generator().manual_seed(0)
    nnz = max(1, round(DENSITY * rows * columns))
    return random_pattern((rows, columns), nnz, generator=generator).to(device)


def _layer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    pattern = _pattern(shape[1], shape[1], device)
    weight = torch.randn(shape[1], shape[1], device=device).to(dtype)
    return {
        "x": torch.randn(shape, device=device).to(dtype),
        "g": torch.randn(shape, device=device).to(dtype),
        "weight": weight,
        "values": pattern.gather(weight),
        "pattern": pattern,
    }


def _step(i: Inputs, call: Any) -> Any:
    x, values = i["x"].detach().requires_grad_(), i["values"].detach().requires_grad_()
    y = call(x, i["weight"], values, i["pattern"])
    return y.detach(), *torch.autograd.grad(y, (x, values), i["g"])


def _ours(i: Inputs) -> Any:
    return _step(i, masked_linear)


def _definition(i: Inputs) -> Any:
    return _step(i, masked_reference.masked_linear)


def _dense(i: Inputs) -> Any:
    """What SaRA and LT-SFT do: the dense gradient, of which the entries are taken."""
    x, weight = i["x"].detach().requires_grad_(), i["weight"].detach().requires_grad_()
    y = torch.nn.functional.linear(x, weight)
    dx, dw = torch.autograd.grad(y, (x, weight), i["g"])
    return y.detach(), dx, i["pattern"].gather(dw)


def _convolution(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    channels = shape[1]
    pattern = _pattern(channels, 9 * channels, device)
    weight = torch.randn(channels, channels, 3, 3, device=device).to(dtype)
    return {
        "x": torch.randn(shape, device=device).to(dtype),
        "g": torch.randn(shape, device=device).to(dtype),
        "weight": weight,
        "values": pattern.gather(weight.flatten(1)),
        "pattern": pattern,
    }


def _conv(i: Inputs) -> Any:
    return _step(i, partial(masked_conv2d, padding=1))


def _conv_definition(i: Inputs) -> Any:
    return _step(i, partial(masked_reference.masked_conv2d, padding=1))


def _conv_dense(i: Inputs) -> Any:
    x, weight = i["x"].detach().requires_grad_(), i["weight"].detach().requires_grad_()
    y = torch.nn.functional.conv2d(x, weight, padding=1)
    dx, dw = torch.autograd.grad(y, (x, weight), i["g"])
    return y.detach(), dx, i["pattern"].gather(dw.flatten(1))


def _matrices(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {
        "x": torch.randn(shape, device=device).to(dtype),
        "other": torch.randn(shape, device=device).to(dtype),
        "seed": torch.tensor(_SEED, device=device),
    }


def _gate(i: Inputs) -> Tensor:
    return gates.score_gate(i["x"], i["other"], 0.1)


def _gate_definition(i: Inputs) -> Tensor:
    return gates_reference.score_gate(i["x"], i["other"], 0.1)


def _gate_eager(i: Inputs) -> Tensor:
    x, scores = i["x"], i["other"]
    gated: Tensor = x * (scores > 0.1).to(x.dtype)
    return gated


def _dropout(i: Inputs) -> Tensor:
    return gates.gradient_dropout(i["x"], i["other"], 0.5, seed=i["seed"])


def _dropout_definition(i: Inputs) -> Tensor:
    return gates_reference.gradient_dropout(i["x"], i["other"], 0.5, 1e-8, i["seed"])


def _dropout_eager(i: Inputs) -> Tensor:
    g, r = i["x"], i["other"]
    p = 0.5 * (1 + g.sign() * (g + r) / (g.abs() + r.abs() + 1e-8))
    mask = (p > torch.rand_like(p)).to(g.dtype)
    kept: Tensor = 0.5 * g + mask * 0.5 * g
    return kept


def _rows(i: Inputs) -> Tensor:
    return row_top_k(i["x"], i["x"].shape[-1] // 20)


def _rows_definition(i: Inputs) -> Tensor:
    return gates_reference.row_top_k(i["x"], i["x"].shape[-1] // 20)


def _rows_torch(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    places = x.abs().topk(x.shape[-1] // 20, -1).indices
    return torch.zeros_like(x).scatter(-1, places, x.gather(-1, places))


def _mass(i: Inputs) -> Tensor:
    return gates.mass_gate(i["x"], 0.8)


def _mass_definition(i: Inputs) -> Tensor:
    return gates_reference.mass_gate(i["x"], 0.8)


def _mass_torch(i: Inputs) -> Tensor:
    peaks = i["x"].abs().amax((2, 3))
    share, order = (peaks / peaks.sum(1, keepdim=True)).sort(1, descending=True)
    before = share.cumsum(1) - share
    return torch.zeros_like(peaks).scatter(1, order, (before < 0.8).to(peaks.dtype))


def _eager(call: Any, note: str = "") -> tuple[Rival, ...]:
    return (Rival("eager", "torch", lambda: call, note),)


CASES = (
    Case(
        op="masked_linear",
        variant="4096_1percent",
        shape=(BATCH, 4096),
        small=(9, 20),
        make=_layer,
        ours=_ours,
        reference=_definition,
        rivals=_eager(_dense, "dense gradient, and a gather"),
        more_dtypes=(torch.float64, torch.bfloat16),
        floor="read",
        passes=2.0,
    ),
    Case(
        op="masked_conv2d",
        variant="28_1percent",
        shape=(32, 128, 28, 28),
        small=(3, 4, 6, 6),
        make=_convolution,
        ours=_conv,
        reference=_conv_definition,
        rivals=_eager(_conv_dense, "dense gradient, and a gather"),
        more_dtypes=(torch.float64, torch.bfloat16),
        floor="read",
        passes=2.0,
    ),
    Case(
        op="score_gate",
        variant="",
        shape=(2048, 4096),
        small=(9, 20),
        make=_matrices,
        ours=_gate,
        reference=_gate_definition,
        rivals=_eager(_gate_eager),
        more_dtypes=(torch.bfloat16,),
        passes=3.0,
    ),
    Case(
        op="gradient_dropout",
        variant="",
        shape=(2048, 4096),
        small=(9, 20),
        make=_matrices,
        ours=_dropout,
        reference=_dropout_definition,
        rivals=_eager(_dropout_eager),
        more_dtypes=(torch.bfloat16,),
        passes=3.0,
    ),
    Case(
        op="row_top_k",
        variant="5percent",
        shape=(BATCH, 4096),
        small=(9, 40),
        make=_matrices,
        ours=_rows,
        reference=_rows_definition,
        rivals=_eager(_rows_torch, "topk and scatter"),
        more_dtypes=(torch.bfloat16,),
    ),
    Case(
        op="mass_gate",
        variant="",
        shape=(32, 256, 28, 28),
        small=(2, 20, 3, 4),
        make=_matrices,
        ours=_mass,
        reference=_mass_definition,
        rivals=_eager(_mass_torch, "sort and cumulative sum"),
        more_dtypes=(torch.bfloat16,),
        floor="read",
        passes=1.0,
    ),
)

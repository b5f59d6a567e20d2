"""Gram penalties, rows by their norms, convolutions as operators."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.bench.networks import parts, resnet50_weights, size
from regkern.reference.spectral import conv_operator as conv_reference
from regkern.reference.spectral import gram as gram_reference
from regkern.reference.spectral import row_norms as rows_reference
from regkern.spectral import conv_operator, gram, row_norms

WIDE, WIDE_SMALL = (512, 2048), (6, 10)
SQUARE, SQUARE_SMALL = (4096, 4096), (6, 10)
KERNEL, KERNEL_SMALL = (128, 128, 3, 3), (4, 3, 3, 3)
IMAGE, IMAGE_SMALL = 32, 6
NETWORK = resnet50_weights()
ADAPTERS = 64
STEP = 1e-4


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device)
    return {"x": (x / max(shape[-1], 1) ** 0.5).to(dtype)}


def _kernel(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    n = IMAGE if shape == KERNEL else IMAGE_SMALL
    v = torch.randn((shape[1], n, n), dtype=dtype, device=device)
    return {**_tensor(shape, dtype, device), "v": v}


def _torch(name: str, run: Run, note: str = "") -> Rival:
    return Rival(name, "torch", lambda: run, note)


def _gradient(function: Callable[[Tensor], Tensor], i: Inputs) -> Tensor:
    """Value and gradient, as a training step needs them."""
    with torch.enable_grad():
        x = i["x"].detach().requires_grad_()
        (dx,) = torch.autograd.grad(function(x), x)
    gradient: Tensor = dx
    return gradient


def _network(function: Callable[[list[Tensor]], Tensor], i: Inputs) -> tuple[Tensor, ...]:
    """The same for the weights of a network."""
    with torch.enable_grad():
        weights = [w.detach().requires_grad_() for w in parts(i["x"], NETWORK)]
        return torch.autograd.grad(function(weights), weights)


def _pairs(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Adapters of 8 rows (of 1 where there are few), each against the next."""
    rows = 8 if x.shape[0] == 8 * ADAPTERS else 1
    each = x.reshape(-1, rows, x.shape[1]).unbind()
    return list(zip(each, each[1:] + each[:1], strict=True))


def _stepped(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    row_norms.norm_loss_step_(parts(x, NETWORK), STEP)
    return x


def _torch_stepped(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    for w in parts(x, NETWORK):
        norms = torch.linalg.vector_norm(w.flatten(1), dim=1)
        factor = 1 - 2 * STEP * (1 - 1 / norms)
        w.mul_(factor.reshape(-1, *(1,) * (w.dim() - 1)))
    return x


def _weight_norm() -> Run:
    """torch's fused kernel, with a gain of 1."""
    function = importlib.import_module("torch")._weight_norm

    def run(i: Inputs) -> Any:
        return function(i["x"], torch.ones_like(i["x"][:, :1]), 0)

    return run


def _iterated(i: Inputs) -> Tensor:
    return conv_operator.conv_power_iteration(i["x"], i["v"], i["v"].shape[1:], padding=1).sigma


def _two_convolutions(normalised: bool, i: Inputs) -> Tensor:
    u = torch.nn.functional.conv2d(i["v"][None], i["x"], padding=1)
    if normalised:
        u = (u / u.norm()).detach()
    z = torch.nn.functional.conv_transpose2d(u, i["x"], padding=1)
    return z.norm() if normalised else z


def _case(variant: str, ours: Any, theirs: Any, shapes: Sequence[tuple[int, ...]]) -> Case:
    """Value and gradient of a penalty."""
    return Case(
        op="gram",
        variant=variant,
        shape=shapes[0],
        small=shapes[1],
        make=_tensor,
        ours=partial(_gradient, ours),
        reference=partial(_gradient, theirs),
        rivals=(_torch("torch", partial(_gradient, theirs), "autograd"),),
    )


CASES = (
    _case(
        "orthogonality",
        gram.orthogonality_penalty,
        lambda x: gram_reference.orthogonality_penalty([x]),
        (WIDE, WIDE_SMALL),
    ),
    _case(
        "cross",
        lambda x: gram.cross_gram_penalty(_pairs(x)),
        lambda x: gram_reference.cross_gram_penalty(_pairs(x)),
        ((8 * ADAPTERS, 512), WIDE_SMALL),
    ),
    Case(
        op="gram",
        variant="norm_loss",
        shape=(size(NETWORK),),
        small=(300,),
        make=_tensor,
        ours=partial(_network, row_norms.norm_loss),
        reference=partial(_network, rows_reference.norm_loss),
        rivals=(_torch("torch", partial(_network, rows_reference.norm_loss), "autograd"),),
        passes=3.0,
    ),
    _case(
        "conv_orthogonality",
        conv_operator.conv_orthogonality,
        conv_reference.conv_orthogonality,
        (KERNEL, KERNEL_SMALL),
    ),
    Case(
        op="norm_loss_step",
        variant="network",
        shape=(size(NETWORK),),
        small=(300,),
        more_dtypes=(torch.bfloat16,),
        make=_tensor,
        ours=_stepped,
        reference=_torch_stepped,
        rivals=(_torch("torch in place", _torch_stepped),),
        floor="mul_",
        inplace=True,
        bar=1.5,
    ),
    Case(
        op="row_equilibrate",
        variant="",
        shape=SQUARE,
        small=SQUARE_SMALL,
        more_dtypes=(torch.bfloat16,),
        make=_tensor,
        ours=lambda i: row_norms.row_equilibrate(i["x"]),
        reference=lambda i: rows_reference.row_equilibrate(i["x"]),
        rivals=(
            _torch("normalize", lambda i: torch.nn.functional.normalize(i["x"], dim=1)),
            Rival("weight_norm", "torch", _weight_norm, "fused"),
        ),
        differentiable=True,
    ),
    Case(
        op="conv_power_iteration",
        variant="",
        shape=KERNEL,
        small=KERNEL_SMALL,
        make=_kernel,
        ours=_iterated,
        reference=partial(_two_convolutions, True),
        rivals=(_torch("two convolutions", partial(_two_convolutions, False), "no norms"),),
    ),
)

"""Sparse convolutions: a full step through autograd."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival
from regkern.reference.sparse import convolutions as reference
from regkern.sparse import SparsePattern
from regkern.sparse.convolutions import sparse_conv2d


@cache
def _pattern(rows: int, columns: int, density: float, device: torch.device) -> SparsePattern:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(rows, columns, generator=generator) < density
    return SparsePattern.from_mask(mask).to(device)


def _layer(
    ratio: int,
    kernel: int,
    stride: int,
    density: float,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Inputs:
    """x, an output gradient, the entries, and the dense weight that has them."""
    channels, rows = shape[1], shape[1] * ratio
    pattern = _pattern(rows, channels * kernel**2, density, device)
    values = torch.randn(pattern.nnz, device=device)
    weight = pattern.scatter(values).reshape(rows, channels, kernel, kernel)
    height, width = ((size - 1) // stride + 1 for size in shape[2:])
    return {
        "x": torch.randn(shape, device=device).to(dtype),
        "g": torch.randn(shape[0], rows, height, width, device=device).to(dtype),
        "values": values,
        "weight": weight.to(dtype),
        "pattern": pattern,
        "options": {"stride": stride, "padding": kernel // 2},
        "kernel": kernel,
    }


def _step(i: Inputs) -> Any:
    x, values = i["x"].detach().requires_grad_(), i["values"].detach().requires_grad_()
    y = sparse_conv2d(x, values, i["pattern"], kernel_size=i["kernel"], **i["options"])
    return y.detach(), *torch.autograd.grad(y, (x, values), i["g"])


def _definition(i: Inputs) -> Any:
    x, values = i["x"].detach().requires_grad_(), i["values"].detach().requires_grad_()
    y = reference.sparse_conv2d(x, values, i["pattern"], kernel_size=i["kernel"], **i["options"])
    return y.detach(), *torch.autograd.grad(y, (x, values), i["g"])


def _dense(i: Inputs, layout: torch.memory_format = torch.contiguous_format) -> Any:
    x, weight, g = (i[k].contiguous(memory_format=layout) for k in ("x", "weight", "g"))
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y: Tensor = torch.nn.functional.conv2d(x, weight, **i["options"])
    return y.detach(), *torch.autograd.grad(y, (x, weight), g)


def _dense_last() -> Any:
    """The copies are made once for an input, and not measured again."""
    kept: dict[int, Inputs] = {}

    def step(i: Inputs) -> Any:
        if id(i) not in kept:
            kept.clear()
            names = ("x", "weight", "g")
            last = {k: i[k].contiguous(memory_format=torch.channels_last) for k in names}
            kept[id(i)] = {**i, **last}
        return _dense(kept[id(i)], torch.channels_last)

    return step


def _case(name: str, shape: tuple[int, ...], layer: tuple[int, int, int], sparsity: int) -> Case:
    return Case(
        op="sparse_conv2d",
        variant=f"{name}_{sparsity}",
        shape=shape,
        small=(3, 4, 6, 6),
        make=partial(_layer, *layer, 1 - sparsity / 100),
        ours=_step,
        reference=_definition,
        rivals=(
            Rival("torch dense", "torch", lambda: _dense, "forward and both gradients"),
            Rival("torch dense, channels last", "torch", _dense_last, "the same"),
        ),
        more_dtypes=(torch.float64, torch.bfloat16),
        floor="read",
        passes=2.0,
    )


# The channels of the output for one of the input, kernel and stride.
_LAYERS = {
    "56": ((32, 64, 56, 56), (1, 3, 1)),
    "14": ((32, 256, 14, 14), (1, 3, 1)),
    "7": ((32, 512, 7, 7), (1, 3, 1)),
    "56_halved": ((32, 64, 56, 56), (2, 3, 2)),
    "56_point": ((32, 64, 56, 56), (4, 1, 1)),
}

CASES = (
    *(_case("28", (32, 128, 28, 28), (1, 3, 1), sparsity) for sparsity in (80, 90, 95, 98, 99)),
    *(_case(name, *layer, 95) for name, layer in _LAYERS.items()),
)

"""Sparse layers: a full step through autograd, and the gradient of a few of a dense weight."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival
from regkern.reference.sparse import products as reference
from regkern.sparse import SparsePattern, sddmm, sddmm_tiles, sparse_linear

BATCH = 128


@cache
def _pattern(rows: int, columns: int, density: float, device: torch.device) -> SparsePattern:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(rows, columns, generator=generator) < density
    return SparsePattern.from_mask(mask).to(device)


def _layer(
    ratio: int, density: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Inputs:
    """x, an output gradient, the entries, and the dense weight that has them."""
    columns, rows = shape[1], shape[1] * ratio
    pattern = _pattern(rows, columns, density, device)
    values = torch.randn(pattern.nnz, device=device)
    weight = pattern.scatter(values)
    x = torch.randn(shape, device=device)
    return {
        "x": x.to(dtype),
        "g": torch.randn(shape[0], rows, device=device).to(dtype),
        "values": values,
        "weight": weight.to(dtype),
        "csr": pattern.to_torch(values),
        "pattern": pattern,
    }


def _step(i: Inputs) -> Any:
    x, values = i["x"].detach().requires_grad_(), i["values"].detach().requires_grad_()
    y = sparse_linear(x, values, i["pattern"])
    return y.detach(), *torch.autograd.grad(y, (x, values), i["g"])


def _definition(i: Inputs) -> Any:
    x, values = i["x"].detach().requires_grad_(), i["values"].detach().requires_grad_()
    y = reference.sparse_linear(x, values, i["pattern"])
    return y.detach(), *torch.autograd.grad(y, (x, values), i["g"])


def _dense(i: Inputs, dtype: torch.dtype | None = None) -> Any:
    x, weight, g = (i[k] if dtype is None else i[k].to(dtype) for k in ("x", "weight", "g"))
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = torch.nn.functional.linear(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), g)


def _dense_tf32(i: Inputs) -> Any:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return _dense(i)
    finally:
        torch.set_float32_matmul_precision(before)


def _dense_bf16() -> Any:
    """The layer in bfloat16 with inputs in bfloat16: casts are made once, and not measured."""
    kept: dict[int, tuple[Inputs, Inputs]] = {}

    def call(i: Inputs) -> Any:
        if id(i) not in kept:  # with what it is of, so that nothing else has that id
            kept[id(i)] = i, {k: i[k].bfloat16() for k in ("x", "weight", "g")}
        return _dense(kept[id(i)][1])

    return call


# What a GPU has tensor cores for.
_ON_CUDA = (
    Rival("torch dense, TF32", "torch", lambda: _dense_tf32, "forward and both gradients"),
    Rival("torch dense, bf16", "torch", _dense_bf16, "the same"),
)


def _csr(i: Inputs) -> Any:
    x, weight = i["x"].t().detach().requires_grad_(), i["csr"].detach().requires_grad_()
    y = torch.sparse.mm(weight, x)
    return y.detach(), *torch.autograd.grad(y, (x, weight), i["g"].t())


def _gelu_step(i: Inputs) -> Any:
    x, values = i["x"].detach().requires_grad_(), i["values"].detach().requires_grad_()
    y = sparse_linear(x, values, i["pattern"], activation="gelu")
    return y.detach(), *torch.autograd.grad(y, (x, values), i["g"])


def _gelu_definition(i: Inputs) -> Any:
    x, values = i["x"].detach().requires_grad_(), i["values"].detach().requires_grad_()
    y = reference.sparse_linear(x, values, i["pattern"], activation="gelu")
    return y.detach(), *torch.autograd.grad(y, (x, values), i["g"])


def _gelu_apart(i: Inputs) -> Any:
    x, values = i["x"].detach().requires_grad_(), i["values"].detach().requires_grad_()
    y = torch.nn.functional.gelu(sparse_linear(x, values, i["pattern"]))
    return y.detach(), *torch.autograd.grad(y, (x, values), i["g"])


def _gelu_dense(i: Inputs) -> Any:
    x, weight = i["x"].detach().requires_grad_(), i["weight"].detach().requires_grad_()
    y = torch.nn.functional.gelu(torch.nn.functional.linear(x, weight))
    return y.detach(), *torch.autograd.grad(y, (x, weight), i["g"])


def _layer_case(columns: int, ratio: int, sparsity: int) -> Case:
    return Case(
        op="sparse_linear",
        variant=f"{columns}x{columns * ratio}_{sparsity}",
        shape=(BATCH, columns),
        small=(9, 20),
        make=partial(_layer, ratio, 1 - sparsity / 100),
        ours=_step,
        reference=_definition,
        rivals=(
            Rival("torch dense", "torch", lambda: _dense, "forward and both gradients"),
            *(_ON_CUDA if torch.cuda.is_available() else ()),
            Rival("torch CSR", "torch", lambda: _csr, "torch.sparse.mm"),
        ),
        more_dtypes=(torch.float64, torch.bfloat16),
        floor="read",
        passes=2.0,
    )


def _masked_definition(i: Inputs) -> Tensor:
    return reference.sddmm(i["g"], i["x"], i["pattern"])


def _masked_dense(i: Inputs) -> Tensor:
    pattern: SparsePattern = i["pattern"]
    return pattern.gather(i["g"].t() @ i["x"])


def _masked_torch(i: Inputs) -> Tensor:
    found: Tensor = torch.sparse.sampled_addmm(i["csr"], i["g"].t(), i["x"], beta=0.0)
    return found


def _masked_case(op: str, sampled: Callable[[Tensor, Tensor, SparsePattern], Tensor]) -> Case:
    return Case(
        op=op,
        variant="4096_1percent",
        shape=(BATCH, 4096),
        small=(9, 20),
        make=partial(_layer, 1, 0.01),
        ours=lambda i: sampled(i["g"], i["x"], i["pattern"]),
        reference=_masked_definition,
        rivals=(
            Rival("torch dense", "torch", lambda: _masked_dense, "the whole, and a gather"),
            Rival("torch sampled_addmm", "torch", lambda: _masked_torch),
        ),
        more_dtypes=(torch.float64, torch.bfloat16),
        floor="read",
        passes=2.0,
    )


CASES = (
    *(_layer_case(768, 4, sparsity) for sparsity in (80, 90, 95, 98, 99)),
    *(_layer_case(4096, 1, sparsity) for sparsity in (80, 90, 95, 98, 99)),
    Case(
        op="sparse_linear",
        variant="768x3072_95_gelu",
        shape=(BATCH, 768),
        small=(9, 20),
        make=partial(_layer, 4, 0.05),
        ours=_gelu_step,
        reference=_gelu_definition,
        rivals=(
            Rival("torch dense", "torch", lambda: _gelu_dense, "and torch's gelu"),
            Rival("two ops", "torch", lambda: _gelu_apart, "the product, and torch's gelu"),
        ),
        more_dtypes=(torch.float64,),
        floor="read",
        passes=2.0,
    ),
    _masked_case("sddmm", sddmm),
    _masked_case("sddmm_tiles", sddmm_tiles),
)

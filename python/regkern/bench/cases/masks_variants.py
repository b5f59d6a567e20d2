"""Events of elements, mixout, prefixes, and linear heads on dropped features."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import regkern
from regkern.bench.case import Case, Inputs, Rival
from regkern.masks.events import bernoulli, bernoulli_mask, observed_dropout, subnetwork_mask
from regkern.masks.heads import compact_dropout_linear, multi_sample_dropout_linear
from regkern.masks.low_rank import lora_dropout
from regkern.masks.prefixes import nested_dropout, uniform_draws
from regkern.masks.weights import mixout, mixout_
from regkern.reference import variants as reference

P = 0.3
SAMPLES = 8
FLAT, FLAT_SMALL = (2500, 4000), (6, 50)
HEAD, HEAD_SMALL = (256, 2048), (5, 40)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    def normal() -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    each = torch.rand(shape, device=device)
    i = {"x": normal(), "other": normal(), "each": each.to(dtype), "given": each < P}
    return {**i, "seed": regkern.make_seed(device)}


def _head(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    out: int = 10,
    rank: int = 8,
) -> Inputs:
    size = shape[-1]

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device).div(size).to(dtype)

    x = torch.randn(shape, device=device).to(dtype)
    i = {"x": x, "weight": normal(out, size), "a": normal(rank, size), "b": normal(size, rank)}
    return {**i, "seed": regkern.make_seed(device)}


def _call(function: Any, *names: str, **options: Any) -> Any:
    def run(i: Inputs) -> Tensor:
        y: Tensor = function(*(i[name] for name in names), seed=i["seed"], **options)
        return y

    return run


def _torch(name: str, call: Any, note: str = "") -> Rival:
    return Rival(name, "torch", lambda: lambda i: call(i), note)


def _mixout(i: Inputs) -> Tensor:
    """The formula, as the authors' code has it."""
    w, w0 = i["x"], i["other"]
    mask = torch.bernoulli(torch.full_like(w, 1 - P))
    y: Tensor = (mask * w + (1 - mask) * w0 - P * w0) / (1 - P)
    return y


def _mixed_in_place(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    mixout_(x, i["other"], P, seed=i["seed"])
    return x


def _observed(i: Inputs) -> Tensor:
    keep = torch.bernoulli(torch.full_like(i["x"], 1 - P)).bool() & i["given"]
    return torch.where(keep, i["x"], i["other"])


def _subnetwork(i: Inputs) -> Tensor:
    w: Tensor = i["x"]
    return w * torch.bernoulli(torch.where(i["given"], 1.0, P)).to(w.dtype)


def _prefixes(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    k = torch.randint(1, x.shape[1] + 1, (x.shape[0], 1), device=x.device)
    return x * (torch.arange(x.shape[1], device=x.device) < k)


def _heads(i: Inputs) -> Tensor:
    return torch.stack([F.linear(F.dropout(i["x"], P), i["weight"]) for _ in range(SAMPLES)])


def _lora(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    m_a = torch.bernoulli(torch.full_like(x[:1], 1 - P))
    m_b = torch.bernoulli(torch.full_like(x[:1], 1 - P))
    return F.linear(F.linear(x * m_a, i["a"]), i["b"]) * m_b


def _same_subset(i: Inputs) -> Tensor:
    """What `compact_dropout_linear` draws, without compaction."""
    x: Tensor = i["x"]
    size = x.shape[-1]
    kept = max(1, round(0.1 * size))
    among = uniform_draws(i["seed"], size).topk(kept).indices
    mask = torch.zeros(size, dtype=x.dtype, device=x.device).index_fill(0, among, size / kept)
    return F.linear(x * mask, i["weight"])


_flat = partial(Case, variant="", shape=FLAT, small=FLAT_SMALL, make=_inputs)
_two = partial(_flat, differentiable=True, passes=3.0)

CASES = (
    _flat(
        op="bernoulli",
        ours=_call(bernoulli, "each"),
        reference=_call(reference.bernoulli, "each"),
        rivals=(_torch("torch.bernoulli", lambda i: torch.bernoulli(i["each"])),),
    ),
    _two(
        op="bernoulli_mask",
        ours=_call(bernoulli_mask, "x", "each"),
        reference=_call(reference.bernoulli_mask, "x", "each"),
        rivals=(_torch("torch.bernoulli", lambda i: i["x"] * torch.bernoulli(i["each"])),),
        # 2.5 times reading both, in times of a copy.
        bar=3.75,
    ),
    _two(
        op="subnetwork_mask",
        ours=_call(subnetwork_mask, "x", "given", tau=P),
        reference=_call(reference.subnetwork_mask, "x", "given", tau=P),
        rivals=(_torch("torch.bernoulli", _subnetwork),),
        passes=2.25,
    ),
    _two(
        op="observed_dropout",
        ours=_call(observed_dropout, "x", "other", "given", p=P),
        reference=_call(reference.observed_dropout, "x", "other", "given", p=P),
        rivals=(_torch("torch.where", _observed),),
        passes=3.25,
    ),
    _two(
        op="mixout",
        ours=_call(mixout, "x", "other", p=P),
        reference=_call(reference.mixout, "x", "other", p=P),
        rivals=(_torch("formula", _mixout),),
        dtypes=(torch.float32, torch.bfloat16),
        # Twice reading both, in times of a copy.
        bar=3.0,
    ),
    _flat(
        op="mixout_",
        ours=_mixed_in_place,
        reference=_call(reference.mixout, "x", "other", p=P),
        rivals=(_torch("formula", _mixout),),
        floor="mul_",
        inplace=True,
        passes=3.0,
    ),
    _flat(
        op="nested_dropout",
        ours=_call(nested_dropout, "x", per="sample"),
        reference=_call(reference.nested_dropout, "x", per="sample"),
        rivals=(_torch("x * mask", _prefixes),),
        differentiable=True,
    ),
    Case(
        op="lora_dropout",
        variant="",
        shape=HEAD,
        small=HEAD_SMALL,
        make=_head,
        ours=_call(lora_dropout, "x", "a", "b", p=P),
        reference=_call(reference.lora_dropout, "x", "a", "b", p=P),
        rivals=(_torch("masks of x and y", _lora),),
        differentiable=True,
    ),
    Case(
        op="multi_sample_dropout_linear",
        variant="",
        shape=HEAD,
        small=HEAD_SMALL,
        make=_head,
        ours=_call(multi_sample_dropout_linear, "x", "weight", p=P, samples=SAMPLES),
        reference=_call(reference.multi_sample_dropout_linear, "x", "weight", p=P, samples=SAMPLES),
        rivals=(_torch("stack of F.dropout", _heads),),
        passes=1.0,
        floor="read",
        differentiable=True,
    ),
    Case(
        op="compact_dropout_linear",
        variant="",
        shape=HEAD,
        small=HEAD_SMALL,
        make=partial(_head, out=100),
        ours=_call(compact_dropout_linear, "x", "weight", p=0.9),
        reference=_same_subset,
        rivals=(_torch("F.dropout", lambda i: F.linear(F.dropout(i["x"], 0.9), i["weight"])),),
        passes=1.0,
        floor="read",
        differentiable=True,
    ),
)

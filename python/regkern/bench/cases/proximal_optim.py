"""Proximal steps of SGD and AdamW on the parameters of ResNet-50."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.bench.networks import parts, resnet50, size
from regkern.optim.proximal import ProxAdamW, ProxSGD
from regkern.optim.report import sparsity_report
from regkern.proximal.group_penalties import GroupL2
from regkern.proximal.groups import Groups
from regkern.proximal.penalties_elementwise import L1
from regkern.reference.proximal import optim as reference

#: All parameters one behind the other.
NETWORK = resnet50()
SHAPE = (size(NETWORK),)
SMALL = (3000,)

LAM, LR = 1e-2, 1e-3


def _weights(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=dtype, device=device)
    return {"x": x, "grad": torch.randn_like(x), "optimizers": {}}


def _step(make: Callable[[list[Tensor]], Any], key: object, i: Inputs) -> Tensor:
    """One step. The optimizer, made for the first call, stays for the next."""
    x: Tensor = i["x"]
    weights, optimizer = i["optimizers"].get(key, (None, None))
    if weights is not x:
        params = parts(x, NETWORK)
        for p, g in zip(params, parts(i["grad"], NETWORK), strict=True):
            p.grad = g
        optimizer = make(params)
        i["optimizers"][key] = (x, optimizer)
    optimizer.step()
    return x


def _penalty(name: str) -> Any:
    return {"none": lambda: None, "l1": lambda: L1(LAM)}.get(
        name, lambda: GroupL2(LAM, Groups.kept(0))
    )()


def _ours(kind: Any, options: dict[str, Any], penalty: str, i: Inputs) -> Tensor:
    def make(params: list[Tensor]) -> Any:
        return kind(params, lr=LR, penalty=_penalty(penalty), **options)

    return _step(make, (kind, penalty, *options.items()), i)


def _torch(kind: Any, options: dict[str, Any], name: str, note: str) -> Rival:
    def load() -> Run:
        def run(i: Inputs) -> Tensor:
            return _step(lambda params: kind(params, lr=LR, **options), (kind, *options.items()), i)

        return run

    return Rival(name, "torch", load, note)


def _definition(kind: Any, options: dict[str, Any], penalty: str, i: Inputs) -> Tensor:
    """The first step."""
    x: Tensor = i["x"]
    for p, g in zip(parts(x, NETWORK), parts(i["grad"], NETWORK), strict=True):
        z, wide = p.double(), g.double()
        zero = torch.zeros_like(z)
        if kind is ProxAdamW:
            z, *_, d = reference.adamw_step(z, wide, zero, zero, None, 1, lr=LR)
        else:
            z, d = reference.sgd_step(z, wide, None, lr=LR, momentum=0.9)[0], zero
        metric = options.get("metric") == "adam"
        if penalty == "l1":
            z = reference.metric_soft_threshold(z, d if metric else torch.ones_like(z), LR * LAM)
        elif penalty == "groups":
            rows = z.flatten(1) if z.dim() > 1 else z[:, None]
            t = LR * LAM * math.sqrt(rows.shape[1])
            norms = rows.norm(dim=1, keepdim=True)
            z = (rows * (1.0 - t / norms).clamp(min=0.0)).view_as(z)
        p.copy_(z)
    return x


def _zeros(i: Inputs) -> Tensor:
    report = sparsity_report(parts(i["x"], NETWORK))
    return torch.tensor([[t.zeros, t.zero_rows] for t in report.tensors])


def _zeros_eager(i: Inputs) -> Tensor:
    counts = []
    for p in parts(i["x"], NETWORK):
        zero = p == 0
        rows = zero.reshape(p.shape[0], -1).all(1)
        counts.append(torch.stack([zero.sum(), rows.sum()]))
    return torch.stack(counts)


def _case(kind: Any, options: dict[str, Any], penalty: str, variant: str, passes: float) -> Case:
    rival = torch.optim.AdamW if kind is ProxAdamW else torch.optim.SGD
    theirs = {"momentum": 0.9} if kind is ProxSGD else {}
    name = f"torch.optim.{rival.__name__}"
    return Case(
        op="prox_adamw" if kind is ProxAdamW else "prox_sgd",
        variant=variant,
        shape=SHAPE,
        small=SMALL,
        make=_weights,
        ours=partial(_ours, kind, {**theirs, **options}, penalty),
        reference=partial(_definition, kind, options, penalty),
        rivals=(
            _torch(rival, {**theirs, "fused": True}, f"{name} fused", "no prox"),
            _torch(rival, {**theirs, "foreach": True}, f"{name} foreach", "no prox"),
        ),
        floor="mul_",
        passes=passes,
        inplace=True,
    )


CASES = (
    _case(ProxAdamW, {}, "none", "none", 7.0),
    _case(ProxAdamW, {}, "l1", "l1", 7.0),
    _case(ProxAdamW, {}, "groups", "rows", 7.0),
    _case(ProxAdamW, {"metric": "adam"}, "l1", "l1_metric", 7.0),
    _case(ProxSGD, {}, "none", "none", 5.0),
    _case(ProxSGD, {}, "l1", "l1", 5.0),
    _case(ProxSGD, {}, "groups", "rows", 5.0),
    Case(
        op="zero_counts",
        variant="",
        shape=SHAPE,
        small=SMALL,
        make=_weights,
        ours=_zeros,
        reference=_zeros_eager,
        rivals=(Rival("eager", "torch", lambda: _zeros_eager),),
        passes=1.0,
    ),
)

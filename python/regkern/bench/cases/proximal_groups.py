"""Group proximal operators in place: rows, columns, a network's weights, sparse groups."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival
from regkern.bench.networks import parts, resnet50_weights, size
from regkern.proximal.group_penalties import GroupL2, GroupPenalty, SparseGroup
from regkern.proximal.groups import Groups

SQUARE, SMALL = (4096, 4096), (12, 20)
MORE_FLOATS = (torch.bfloat16, torch.float16, torch.float64)

# Small, so that weights that are used again and again keep their size.
LAM, LAM_L1 = 1e-5, 1e-6


NETWORK = resnet50_weights()


def _matrix(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape, dtype=torch.float32, device=device).to(dtype)}


def _ours(penalty: GroupPenalty, i: Inputs) -> Tensor:
    penalty.prox_(i["x"])
    x: Tensor = i["x"]
    return x


def _ours_list(penalty: GroupPenalty, i: Inputs) -> Tensor:
    penalty.prox_(parts(i["x"], NETWORK))
    x: Tensor = i["x"]
    return x


def _shrink_(x: Tensor, dim: int, lam_l1: float = 0.0) -> None:
    """The same in plain torch: norms over all dimensions but one."""
    others = [d for d in range(x.dim()) if d != dim]
    t = LAM * math.sqrt(x.numel() / x.shape[dim])
    if lam_l1 > 0.0:
        x.copy_(torch.nn.functional.softshrink(x, lam_l1))
    norms = torch.linalg.vector_norm(
        x, dim=others, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    x.mul_((1.0 - t / norms).clamp_min_(0.0))


def _theirs(dim: int, lam_l1: float, i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    _shrink_(x, dim, lam_l1)
    return x


def _theirs_list(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    for w in parts(x, NETWORK):
        _shrink_(w, 0)
    return x


def _compiled(dim: int, lam_l1: float) -> Rival:
    def load() -> Any:
        return torch.compile(partial(_theirs, dim, lam_l1))

    return Rival("torch.compile", "torch", load)


def _case(
    variant: str, penalty: GroupPenalty, dim: int, bar: float | None, lam_l1: float = 0.0
) -> Case:
    theirs = partial(_theirs, dim, lam_l1)
    return Case(
        op="group_prox",
        variant=variant,
        shape=SQUARE,
        small=SMALL,
        more_dtypes=MORE_FLOATS,
        make=_matrix,
        ours=partial(_ours, penalty),
        reference=theirs,
        rivals=(Rival("torch in place", "torch", lambda: theirs), _compiled(dim, lam_l1)),
        floor="mul_",
        inplace=True,
        bar=bar,
    )


CASES = (
    _case("rows", GroupL2(LAM, Groups.kept(0)), 0, 1.3),
    _case("columns", GroupL2(LAM, Groups.kept(1)), 1, None),
    _case("sparse", SparseGroup(LAM, LAM_L1, Groups.kept(0)), 0, 1.8, LAM_L1),
    Case(
        op="group_prox",
        variant="network",
        shape=(size(NETWORK),),
        small=(300,),
        more_dtypes=MORE_FLOATS,
        make=_matrix,
        ours=partial(_ours_list, GroupL2(LAM, Groups.kept(0))),
        reference=_theirs_list,
        rivals=(Rival("torch in place", "torch", lambda: _theirs_list),),
        floor="mul_",
        inplace=True,
        bar=1.3,
    ),
)

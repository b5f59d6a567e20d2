"""Competing and overlapping groups, low rank, pairs of rows, penalties of networks."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.bench.networks import resnet50, size
from regkern.proximal import nuclear, penalties
from regkern.proximal.group_norm_penalties import ExclusiveLasso, OverlappingGroupL2
from regkern.proximal.pairwise import PairRounds, prox_pair_difference_
from regkern.reference.proximal import group_norms as norms_reference
from regkern.reference.proximal import nuclear as nuclear_reference
from regkern.reference.proximal import pairwise as pairwise_reference
from regkern.reference.proximal import penalties as penalties_reference

MATRIX, MATRIX_SMALL = (4096, 1024), (9, 33)
TALL, TALL_SMALL = (2048, 512), (12, 7)
ROWS, ROWS_SMALL = (64, 16384), (6, 20)
NETWORK, NETWORK_SMALL = (size(resnet50()),), (3000,)
LINE, LINE_SMALL = (65536,), (40,)

# Small, so that weights that are used again and again keep their size.
LAM = 1e-5
# Of the overlapping windows, which are not shrunk in place.
WINDOW, SWEEPS, LAM_WINDOWS = 8, 10, 0.1


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape, dtype=torch.float32, device=device).to(dtype)}


def _torch(name: str, run: Run, note: str = "") -> Rival:
    return Rival(name, "torch", lambda: run, note)


# ---- competing elements ----


def _exclusive_(i: Inputs) -> Tensor:
    ExclusiveLasso(LAM, -1).prox_(i["x"])
    x: Tensor = i["x"]
    return x


def _exclusive_definition(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    return x.copy_(norms_reference.prox_exclusive_lasso(x, LAM, -1))


def _exclusive_sorted(i: Inputs) -> Tensor:
    """The usual way in float32: sort, running sums, the last index that fits."""
    x: Tensor = i["x"]
    u = x.abs().sort(dim=1, descending=True).values
    k = torch.arange(1, x.shape[1] + 1, device=x.device)
    theta = LAM * u.cumsum(1) / (1 + LAM * k)
    last = (u > theta).sum(1, keepdim=True).clamp(min=1) - 1
    return torch.nn.functional.relu(x.abs() - theta.gather(1, last)) * x.sign()


# ---- windows that overlap by half ----


def _windows(n: int) -> list[list[int]]:
    return [list(range(i, i + WINDOW)) for i in range(0, n - WINDOW + 1, WINDOW // 2)]


@cache
def _overlapping(n: int) -> OverlappingGroupL2:
    return OverlappingGroupL2(LAM_WINDOWS, _windows(n), sweeps=SWEEPS)


def _overlapping_definition(i: Inputs) -> Tensor:
    x = i["x"]
    # In the order of a sweep: every second window, then those between.
    groups = _windows(len(x))[::2] + _windows(len(x))[1::2]
    y = norms_reference.prox_overlapping_group_l2(x.double(), groups, LAM_WINDOWS, SWEEPS)
    return y.to(x.dtype)


def _overlapping_torch(i: Inputs) -> Tensor:
    """Every second window is one view of the line."""
    x: Tensor = i["x"]
    half = WINDOW // 2
    views = [(0, len(x) // WINDOW * WINDOW), (half, half + (len(x) - half) // WINDOW * WINDOW)]
    parts = [torch.zeros_like(x), torch.zeros_like(x)]
    for _ in range(SWEEPS):
        for k, (begin, end) in enumerate(views):
            rest = (x - parts[1 - k])[begin:end].view(-1, WINDOW)
            size = rest.norm(dim=1, keepdim=True)
            shrunk = rest * (1 - LAM_WINDOWS * WINDOW**0.5 / size).clamp(min=0)
            parts[k][begin:end] = shrunk.view(-1)
    return parts[0] + parts[1]


# ---- pairs of rows ----


@cache
def _rounds(rows: int, device: torch.device) -> PairRounds:
    return PairRounds.within(torch.arange(rows, device=device) % 4)


def _pairs_(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    return prox_pair_difference_(x, _rounds(len(x), x.device), LAM)


def _pairs_definition(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    for a, b in _rounds(len(x), x.device).pairs.tolist():
        x[a], x[b] = pairwise_reference.prox_pair_difference(x[a], x[b], LAM)
    return x


def _pairs_by_rounds(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    rounds = _rounds(len(x), x.device)
    begin = 0
    for end in rounds.ends:
        a, b = rounds.pairs[begin:end].unbind(1)
        d = x[a] - x[b]
        move = (LAM / d.norm(dim=1, keepdim=True)).clamp(max=0.5) * d
        x[a] -= move
        x[b] += move
        begin = end
    return x


def _network(op: str, *rivals: Rival, **options: Any) -> Case:
    def definition(i: Inputs) -> Tensor:
        wide = i["x"] if i["x"].dtype == torch.float64 else i["x"].float()
        y: Tensor = getattr(penalties_reference, op)([wide], **options)
        return y

    return Case(
        op=op,
        variant="",
        shape=NETWORK,
        small=NETWORK_SMALL,
        make=_tensor,
        ours=lambda i: getattr(penalties, op)(i["x"], **options),
        reference=definition,
        rivals=(_torch("eager", definition), *rivals),
        passes=1.0,
        differentiable=True,
    )


CASES = (
    Case(
        op="exclusive_lasso",
        variant="inplace",
        shape=MATRIX,
        small=MATRIX_SMALL,
        make=_tensor,
        ours=_exclusive_,
        reference=_exclusive_definition,
        rivals=(_torch("sort", _exclusive_sorted, "not in place"),),
        floor="mul_",
        inplace=True,
    ),
    Case(
        op="overlapping_group_l2",
        variant="windows",
        shape=LINE,
        small=LINE_SMALL,
        make=_tensor,
        ours=lambda i: _overlapping(len(i["x"])).prox(i["x"]),
        reference=_overlapping_definition,
        rivals=(_torch("eager by views", _overlapping_torch, "for these windows alone"),),
    ),
    Case(
        op="singular_value_threshold",
        variant="tall",
        shape=TALL,
        small=TALL_SMALL,
        make=_tensor,
        ours=lambda i: nuclear.singular_value_threshold(i["x"], 1.0),
        reference=lambda i: nuclear_reference.singular_value_threshold(i["x"], 1.0),
        rivals=(_torch("torch.linalg.svd", lambda i: torch.linalg.svd(i["x"], False), "alone"),),
    ),
    Case(
        op="prox_pair_difference",
        variant="inplace",
        shape=ROWS,
        small=ROWS_SMALL,
        make=_tensor,
        ours=_pairs_,
        reference=_pairs_definition,
        rivals=(_torch("eager by rounds", _pairs_by_rounds),),
        floor="mul_",
        inplace=True,
    ),
    _network("polarization", t=1.2),
    _network("hypersparse", fraction=0.5),
)

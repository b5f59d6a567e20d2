"""Where a layer grows: the largest gradients at places without an entry, and whole updates."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from regkern.bench.case import Case, Inputs, Rival
from regkern.reference.sparse import updates as reference
from regkern.sparse import SparsePattern
from regkern.sparse.growing import grow_candidates
from regkern.sparse.places import pattern_at, places_of
from regkern.sparse.updates import entry_map, grow_at, prune, remap

BATCH, DENSITY, SHARE = 128, 0.1, 0.3


@cache
def _pattern(rows: int, columns: int, device: torch.device) -> SparsePattern:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(rows, columns, generator=generator) < DENSITY
    return SparsePattern.from_mask(mask).to(device)


def _layer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Inputs and output gradients of a square layer: whole numbers, whose sums are exact."""
    columns = shape[1]
    pattern = _pattern(columns, columns, device)
    whole = [torch.randint(-8, 9, shape, device=device).to(dtype) for _ in range(2)]
    return {
        "x": whole[0],
        "g": whole[1],
        "pattern": pattern,
        "values": torch.randn(pattern.nnz, device=device),
        "count": int(SHARE * pattern.nnz),
    }


def _ours(i: Inputs) -> Any:
    return grow_candidates(i["g"], i["x"], i["pattern"], i["count"]).places


def _definition(i: Inputs) -> Any:
    pattern: SparsePattern = i["pattern"]
    score = reference.linear_scores(i["g"].double(), i["x"].double())
    mask = pattern.mask()
    return (reference.grow(score, mask, i["count"]) & ~mask).view(-1).nonzero().view(-1)


def _dense(i: Inputs) -> Any:
    """The whole gradient, its magnitudes without the entries, and torch's topk."""
    pattern: SparsePattern = i["pattern"]
    score = (i["g"].t() @ i["x"]).abs_()
    score[pattern.rows(), pattern.index.long()] = -1.0
    return torch.topk(score.view(-1), i["count"], sorted=False).indices


def _product(i: Inputs) -> Any:
    return i["g"].t() @ i["x"]


def _update(i: Inputs) -> Any:
    pattern: SparsePattern = i["pattern"]
    kept = prune(i["values"], pattern, pattern.nnz - i["count"]).pattern
    places = grow_candidates(i["g"], i["x"], kept, i["count"]).places
    new = grow_at(kept, places).pattern
    return places_of(new), remap(i["values"], entry_map(pattern, new))


def _dense_update(i: Inputs) -> Any:
    pattern: SparsePattern = i["pattern"]
    mask, count = pattern.mask(), i["count"]
    weight = pattern.scatter(i["values"])
    kept = reference.prune(weight, mask, pattern.nnz - count)
    new = reference.grow(reference.linear_scores(i["g"].float(), i["x"].float()), kept, count)
    places = new.view(-1).nonzero().view(-1)
    return places, torch.where(mask, weight, 0.0).view(-1)[places]


def _rebuilt(i: Inputs) -> Any:
    pattern: SparsePattern = i["pattern"]
    return pattern_at(places_of(pattern), pattern.shape).tensors()


def _constructed(i: Inputs) -> Any:
    pattern: SparsePattern = i["pattern"]
    return SparsePattern(pattern.offsets, pattern.index, pattern.shape[1]).tensors()


CASES = (
    Case(
        op="grow_candidates",
        variant="90",
        shape=(BATCH, 4096),
        small=(9, 20),
        make=_layer,
        ours=_ours,
        reference=_definition,
        rivals=(
            Rival("torch dense", "torch", lambda: _dense, "the whole gradient and topk"),
            Rival("torch product", "torch", lambda: _product, "the gradient alone"),
        ),
        floor="read",
        passes=2.0,
    ),
    Case(
        op="pattern_update",
        variant="30percent",
        shape=(BATCH, 4096),
        small=(9, 20),
        make=_layer,
        ours=_update,
        reference=_dense_update,
        rivals=(Rival("masks and sorts", "torch", lambda: _dense_update, "of the dense gradient"),),
        floor="read",
        passes=2.0,
    ),
    Case(
        op="pattern_at",
        variant="",
        shape=(BATCH, 4096),
        small=(9, 20),
        make=_layer,
        ours=_rebuilt,
        reference=_constructed,
        floor="read",
        passes=2.0,
    ),
)

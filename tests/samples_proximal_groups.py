"""Samples of the group penalties."""

from __future__ import annotations

from typing import Any

from regkern.proximal.group_penalties import GroupL2, GroupMCP, SparseGroup
from regkern.proximal.group_prox import group_norms
from regkern.proximal.groups import Groups
from regkern.reference.proximal import groups as reference
from sample import Sample
from torch import Tensor


def _prox(name: str, size: tuple[int, ...], penalty: Any, step: float, **definition: Any) -> Sample:
    def expected(x: Tensor) -> Tensor:
        return reference.group_prox(x, penalty.groups, step=step, **definition)

    return Sample("group_prox", name, (size,), {}, lambda x: penalty.prox(x, step), expected)


def _in_place(
    name: str, size: tuple[int, ...], penalty: Any, step: float, **definition: Any
) -> Sample:
    """The functional form and its twin in place."""
    functional = _prox(name, size, penalty, step, **definition)

    def inplace(x: Tensor) -> Tensor:
        penalty.prox_(x, step)
        return x

    return Sample(
        functional.op,
        name,
        (size,),
        {},
        functional.ours,
        functional.definition,
        inplace,
        differentiable=False,
    )


SAMPLES: list[Sample] = [
    _prox("rows", (6, 20), GroupL2(0.5, Groups.kept(0)), 1.5, lam=0.5),
    _prox("long", (2, 1503), GroupL2(0.5, Groups.kept(0)), 0.5, lam=0.5),
    _prox("channels", (3, 4, 5, 6), GroupL2(0.5, Groups.kept(1)), 0.5, lam=0.5),
    _prox(
        "sparse",
        (4, 3, 3, 3),
        SparseGroup(0.1, 0.3, Groups.kept((0, 1))),
        1.0,
        lam=0.1,
        lam_l1=0.3,
    ),
    _in_place("rows-inplace", (5, 37), GroupL2(0.9, Groups.kept(0)), 1.0, lam=0.9),
    _in_place(
        "columns-inplace",
        (70, 9),
        SparseGroup(0.5, 0.3, Groups.kept(1), positive=True),
        1.0,
        lam=0.5,
        lam_l1=0.3,
        positive=True,
    ),
    _in_place(
        "mcp",
        (4, 33),
        GroupMCP(3.0, Groups.kept(0), gamma=2.0, weights="none"),
        1.0,
        lam=3.0,
        law="mcp",
        shape=2.0,
        weights="none",
    ),
    Sample(
        "group_l2",
        "list",
        ((5, 7), (4, 3, 6)),
        {},
        lambda *xs: GroupL2(0.7, Groups.kept(0)).value(xs).to(xs[0].dtype),
        lambda *xs: reference.group_l2(list(xs), Groups.kept(0), 0.7),
    ),
    Sample(
        "group_norms",
        "columns",
        ((5, 7, 3),),
        {},
        lambda x: group_norms(x, Groups.kept(-1)).to(x.dtype),
        lambda x: reference.group_norms(x, Groups.kept(-1)),
    ),
]

"""Samples of the proximal ops that write lists of tensors, optimizers' steps among them."""

from __future__ import annotations

from typing import Any

import torch
from regkern.optim.half_space import half_space_project_
from regkern.optim.proximal import ProxAdamW, ProxSGD
from regkern.proximal.elementwise import prox_elementwise_
from regkern.proximal.envelope import TopKGroups
from regkern.proximal.group_norm_penalties import ExclusiveLasso, GroupLinf, OverlappingGroupL2
from regkern.proximal.group_penalties import GroupL2, SparseGroup
from regkern.proximal.groups import Groups
from regkern.proximal.patterns import n_m_projection_
from regkern.proximal.penalties_elementwise import L1
from regkern.proximal.sensitivity import sensitivity_shrink_
from regkern.proximal.thresholds import magnitude_threshold_
from regkern.reference.proximal import elementwise, groups, optim, patterns, sensitivity, thresholds
from regkern.reference.proximal import group_norms as norms
from sample import ListSample
from torch import Tensor

ROWS, COLUMNS = Groups.kept(0), Groups.kept(-1)
CHAIN = [[0, 1, 2], [2, 3, 4], [4, 5, 0]]


def _elements(
    name: str, law: Any, shape: float | None = None, compiles: bool = True, **interval: float
) -> ListSample:
    def change(xs: list[Tensor]) -> None:
        prox_elementwise_(xs, law, 0.5, 0.8, shape=shape, **interval)

    def definition(xs: list[Tensor]) -> list[Tensor]:
        given = {"shape": shape or 0.0, **interval}
        return [elementwise.prox_elementwise(x, law, 0.5, 0.8, **given) for x in xs]

    return ListSample("prox_elementwise_", name, change, definition, compiles=compiles)


def _penalty(name: str, penalty: Any, definition: Any, **options: Any) -> ListSample:
    return ListSample(
        f"{type(penalty).__name__}.prox_",
        name,
        lambda xs: penalty.prox_(xs, 0.7),
        lambda xs: [definition(x) for x in xs],
        **options,
    )


def _top_groups(xs: list[Tensor]) -> list[Tensor]:
    flat = torch.cat([groups.group_norms(x, ROWS) for x in xs])
    order = torch.where(flat.isnan(), torch.inf, flat).sort(descending=True, stable=True).indices
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[order[:6]] = True
    parts = kept.split([x.shape[0] for x in xs])
    return [
        torch.where(k.reshape(-1, *[1] * (x.dim() - 1)), x, 0.0)
        for k, x in zip(parts, xs, strict=True)
    ]


def _step(name: str, kind: Any, options: dict[str, Any], penalty: Any, after: Any) -> ListSample:
    """Two steps with the same gradients."""

    def change(xs: list[Tensor], gs: list[Tensor]) -> None:
        for x, g in zip(xs, gs, strict=True):
            x.grad = g
        optimizer = kind(xs, lr=0.1, penalty=penalty, **options)
        for _ in range(2):
            optimizer.step()

    def definition(xs: list[Tensor], gs: list[Tensor]) -> list[Tensor]:
        out = []
        for x, g in zip(xs, gs, strict=True):
            if kind is ProxSGD:
                buffer = None
                for _ in range(2):
                    x, buffer = optim.sgd_step(x, g, buffer, lr=0.1, **options)
                    x = after(x)
            else:
                state: Any = (torch.zeros_like(x), torch.zeros_like(x), None)
                for t in (1, 2):
                    x, *state, _ = optim.adamw_step(x, g, *state, t, lr=0.1, **options)
                    x = after(x)
            out.append(x)
        return out

    return ListSample(
        kind.__name__,
        name,
        change,
        definition,
        lists=2,
        dtypes=(torch.float32, torch.float64),
        compiles=False,
    )


LISTS: list[ListSample] = [
    _elements("soft", "soft", low=-0.5),
    _elements("log_sum", "log_sum", 0.3, compiles=False),
    _penalty(
        "rows", GroupL2(0.4, ROWS), lambda x: groups.group_prox(x, ROWS, 0.4, 0.7), mixed=False
    ),
    _penalty(
        "columns",
        SparseGroup(0.3, 0.2, COLUMNS),
        lambda x: groups.group_prox(x, COLUMNS, 0.3, 0.7, lam_l1=0.2),
        mixed=False,
        shapes=((5, 3, 2), (7,), (0, 2), (70, 30)),
        compiles=False,
    ),
    ListSample(
        "TopKGroups.prox_",
        "rows",
        lambda xs: TopKGroups(ROWS, 6).prox_(xs),
        _top_groups,
        mixed=False,
        separate=False,
    ),
    _penalty("rows", GroupLinf(0.6), lambda x: norms.prox_group_linf(x, 0.42)),
    _penalty(
        "last",
        ExclusiveLasso(0.6, -1),
        lambda x: norms.prox_exclusive_lasso(x, 0.42, -1),
        compiles=False,
    ),
    _penalty(
        "chain",
        OverlappingGroupL2(0.3, CHAIN, sweeps=5),
        lambda x: norms.prox_overlapping_group_l2(x, CHAIN, 0.21, 5),
        shapes=((7,), (9,)),
        compiles=False,
    ),
    ListSample(
        "n_m_projection_",
        "2:4",
        lambda xs: n_m_projection_(xs, 2, 4),
        lambda xs: [patterns.n_m_projection(x, 2, 4) for x in xs],
        shapes=((5, 3, 2), (7,), (2, 0), (3, 130)),
    ),
    ListSample(
        "magnitude_threshold_",
        "k",
        lambda xs: magnitude_threshold_(xs, 400),
        lambda xs: thresholds.shrink_smallest(xs, 0.0, sum(x.numel() for x in xs) - 400),
        mixed=False,
        separate=False,
    ),
    ListSample(
        "sensitivity_shrink_",
        "lobster",
        lambda xs, gs: sensitivity_shrink_(xs, gs, 0.3, lr=0.1),
        lambda xs, gs: [
            sensitivity.sensitivity_shrink(x, g, 0.3, lr=0.1) for x, g in zip(xs, gs, strict=True)
        ],
        lists=2,
    ),
    ListSample(
        "half_space_project_",
        "rows",
        lambda xs, ys: half_space_project_(xs, ys, eps=0.05),
        lambda xs, ys: [optim.half_space_project(x, y, 0.05) for x, y in zip(xs, ys, strict=True)],
        lists=2,
        compiles=False,
    ),
    _step(
        "l1",
        ProxSGD,
        {"momentum": 0.9, "nesterov": True},
        L1(0.5),
        lambda x: elementwise.prox_elementwise(x, "soft", 0.1, 0.5),
    ),
    _step(
        "rows", ProxAdamW, {}, GroupL2(0.5, ROWS), lambda x: groups.group_prox(x, ROWS, 0.5, 0.1)
    ),
]

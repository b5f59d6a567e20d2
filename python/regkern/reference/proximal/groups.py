"""Group proximal operators and penalties by their formulas, on labels of single elements."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from regkern.proximal.groups import Groups


def labels_of(shape: torch.Size, groups: Groups) -> tuple[Tensor, int]:
    """The group of every element (−1: none) and the number of groups."""
    numel = math.prod(shape)
    if groups.kind == "kept":
        index = torch.zeros(shape, dtype=torch.int64)
        count = 1
        for d in sorted(d % len(shape) for d in groups.dims):
            place = torch.arange(shape[d]).reshape([-1 if i == d else 1 for i in range(len(shape))])
            index = index * shape[d] + place
            count *= shape[d]
        return index.expand(shape), count
    if groups.kind == "blocks" and not groups.dims:
        return torch.arange(numel).reshape(shape) // groups.size, -(-numel // groups.size)
    if groups.kind == "pointers":
        assert groups.table is not None
        index = torch.full((numel,), -1)
        ends = groups.table.tolist()
        for g, (begin, end) in enumerate(itertools.pairwise(ends)):
            index[begin:end] = g
        return index.reshape(shape), len(ends) - 1
    if groups.kind == "labels" and not groups.dims:
        assert groups.table is not None
        return groups.table, int(groups.table.max()) + 1
    d = groups.dims[0] % len(shape)
    place = torch.arange(shape[d]).reshape([-1 if i == d else 1 for i in range(len(shape))])
    if groups.kind == "labels":
        assert groups.table is not None
        return groups.table[place].expand(shape), int(groups.table.max()) + 1
    if groups.kind == "heads":
        return (place // (shape[d] // groups.size)).expand(shape), groups.size
    blocks = -(-shape[d] // groups.size)
    before, behind = math.prod(shape[:d]), math.prod(shape[d + 1 :])
    index = torch.arange(before).reshape(-1, 1, 1) * blocks
    index = index + torch.arange(shape[d]).reshape(-1, 1) // groups.size
    index = index * behind + torch.arange(behind)
    return index.reshape(shape), before * blocks * behind


def _sums(values: Tensor, labels: Tensor, count: int) -> Tensor:
    covered = labels.reshape(-1) >= 0
    kept = labels.reshape(-1)[covered].to(values.device)
    return values.new_zeros(count).index_add(0, kept, values.reshape(-1)[covered])


def _root(squares: Tensor) -> Tensor:
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def group_norms(x: Tensor, groups: Groups) -> Tensor:
    labels, count = labels_of(x.shape, groups)
    return _root(_sums(x.double().square(), labels, count))


def _weights(x: Tensor, groups: Groups, weights: str | Tensor) -> Tensor:
    labels, count = labels_of(x.shape, groups)
    if isinstance(weights, Tensor):
        return weights.double()
    if weights == "none":
        return torch.ones(count, dtype=torch.float64)
    return _sums(torch.ones(x.shape, dtype=torch.float64), labels, count).sqrt()


def shrunk(s: Tensor, t: Tensor, lam: float, law: str, shape: float) -> Tensor:
    """argmin_r ½ (r − s)² + t φ_λ(r), in the convex domain of MCP."""
    if law == "hard":
        return torch.where(s <= (2 * t * lam).sqrt(), 0.0, s)
    if law == "mcp":
        inner = torch.where(s <= t * lam, 0.0, (s - t * lam) / (1 - t / shape))
        return torch.where(s > shape * lam, s, inner)
    return torch.where(s <= t * lam, 0.0, s - t * lam)


def soft_threshold(x: Tensor, t: float | Tensor) -> Tensor:
    return torch.where(x.abs() <= t, 0.0, x - t * x.detach().sign())


def group_prox(
    x: Tensor,
    groups: Groups,
    lam: float,
    step: float = 1.0,
    weights: str | Tensor = "sqrt",
    law: str = "soft",
    shape: float = 0.0,
    lam_l1: float = 0.0,
    l1_weights: Tensor | None = None,
    positive: bool = False,
) -> Tensor:
    """x_g · r(‖x_g‖)/‖x_g‖, after the soft threshold and the positive part."""
    labels, count = labels_of(x.shape, groups)
    z = x.double()
    if lam_l1 != 0.0:
        z = soft_threshold(z, step * lam_l1 * (1.0 if l1_weights is None else l1_weights.double()))
    if positive:
        z = torch.where(z < 0, 0.0, z)
    s = _root(_sums(z.square(), labels, count))
    r = shrunk(s, step * _weights(x, groups, weights), lam, law, shape)
    same = (r == s) | (step * lam == 0.0)
    factors = torch.where(same, 1.0, r / torch.where(s == 0, 1.0, s))
    spread = factors[labels.clamp_min(0)]
    scaled = torch.where(spread == 0, 0.0, z * spread)
    return torch.where(labels < 0, x.double(), scaled)


def group_l2(
    xs: list[Tensor], groups: Groups, lam: float, weights: str = "sqrt", lam_l1: float = 0.0
) -> Tensor:
    """λ Σ w ‖x_g‖ + λ₁ Σ |x|."""
    total = torch.zeros((), dtype=torch.float64)
    for x in xs:
        total = total + lam * (_weights(x, groups, weights) * group_norms(x, groups)).sum()
        total = total + lam_l1 * (x.double() * x.detach().double().sign()).sum()
    return total

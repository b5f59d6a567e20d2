"""The prox of the latent norm of overlapping groups: the raw ops and their derivative."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern._registration import compute_dtype, register


class LatentGroups(NamedTuple):
    """Groups in the order of their colours, those of one colour disjoint, and their members."""

    members: Tensor  # int64: of group g those from offsets[g] to offsets[g + 1]
    offsets: Tensor
    longest: int  # members of the longest group
    colours: list[int]  # where the groups of each colour end
    places: Tensor  # of index i the places among members from place_offsets[i] on
    place_offsets: Tensor


def latent_groups(
    groups: Sequence[Tensor], colours: Sequence[int], n: int, device: torch.device
) -> tuple[LatentGroups, Tensor]:
    """Lists of indices below n, and the order in which they are taken."""
    order = torch.sort(torch.tensor(colours), stable=True).indices
    chosen = [groups[k] for k in order.tolist()]
    members = torch.cat(chosen)
    sizes = torch.tensor([g.numel() for g in chosen])
    found = LatentGroups(
        members.to(device),
        _offsets(sizes).to(device),
        int(sizes.max()),
        torch.bincount(torch.tensor(colours)).cumsum(0).tolist(),
        torch.sort(members, stable=True).indices.to(device),
        _offsets(torch.bincount(members, minlength=n)).to(device),
    )
    return found, order


def _offsets(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def _fake(x: Tensor, members: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, sweeps, keep = rest
    steps = (sweeps if keep else 0, members.shape[0], x.shape[0], x.shape[2])
    return x.new_empty(x.shape), x.new_empty(steps, dtype=compute_dtype(x))


def _fake_backward(g: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    weights = rest[-2]
    return g.new_empty(g.shape), weights.new_empty(weights.shape)


_prox = register("latent_group_prox", _fake)
_prox_backward = register("latent_group_prox_backward", _fake_backward)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, members, offsets, longest, colours, places, place_offsets, weights, t, sweeps, keep = inputs
    steps = output[1]
    ctx.mark_non_differentiable(steps)
    kept = steps if keep else None
    ctx.save_for_backward(x, members, offsets, places, place_offsets, weights, t, kept)
    ctx.given = longest, colours, sweeps


def _composed(x: Tensor, weights: Tensor, t: Tensor, groups: LatentGroups, sweeps: int) -> Tensor:
    """The same in torch's ops, for derivatives of derivatives."""
    members, offsets = groups.members, groups.offsets
    wide, count = x.double(), len(weights)
    begins = [0, *groups.colours]
    group = torch.arange(count, device=x.device).repeat_interleave(
        offsets.diff(), output_size=len(members)
    )
    rest, threshold = wide, t.double().reshape(()) * weights
    parts = [wide.new_zeros(()) for _ in groups.colours]
    runs = [offsets[[a, b]].tolist() for a, b in itertools.pairwise(begins)]
    for _ in range(sweeps):
        for c, (first, last) in enumerate(runs):
            own, at = group[first:last], members[first:last]
            s = rest[:, at] + parts[c]
            squares = wide.new_zeros(count).index_add(0, own, s.square().sum((0, 2)))
            # Not the root at 0, whose derivative is infinite.
            norm = torch.where(squares > 0, squares, 1.0).sqrt()
            share = torch.where(squares.sqrt() <= threshold, 0.0, 1.0 - threshold / norm)
            parts[c] = share[own][:, None] * s
            rest = rest.index_copy(1, at, s - parts[c])
    places = torch.zeros_like(wide)
    for part, (first, last) in zip(parts, runs, strict=True):
        places = places.index_add(1, members[first:last], part)
    alone = groups.place_offsets.diff() == 0
    y = torch.where(alone[:, None] | (t == 0), wide, places)
    return y.to(x.dtype)


def _backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    x, members, offsets, places, place_offsets, weights, t, steps = ctx.saved_tensors
    longest, colours, sweeps = ctx.given
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        groups = LatentGroups(members, offsets, longest, colours, places, place_offsets)

        def run(x: Tensor, weights: Tensor, t: Tensor) -> Tensor:
            return _composed(x, weights, t, groups, sweeps)

        dx, dw, dt = torch.func.vjp(run, x, weights, t)[1](g)
        return dx, None, None, None, None, None, None, dw, dt, None, None
    if steps is None:  # a raw call without `keep`: they are taken once more
        groups = LatentGroups(members, offsets, longest, colours, places, place_offsets)
        _, steps = _prox(x, *groups, weights, t, sweeps, True)
    dx, slopes = _prox_backward(
        g, steps, members, offsets, longest, colours, places, place_offsets, weights, t
    )
    dw = slopes * t.double() if ctx.needs_input_grad[7] else None
    dt = None
    if ctx.needs_input_grad[8]:
        dt = (slopes * weights).sum().to(t.dtype).reshape(t.shape)
    return dx, None, None, None, None, None, None, dw, dt, None, None


_prox.differentiable(_setup, _backward)


def latent_group_prox(
    x: Tensor, groups: LatentGroups, weights: Tensor, threshold: Tensor, sweeps: int
) -> Tensor:
    """x (outer, n, inner) after so many sweeps over the groups; ``weights`` in their order."""
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weights, threshold))
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    y, _ = _prox(x, *groups, weights, threshold, sweeps, keep or transformed)
    return y  # type: ignore[no-any-return]

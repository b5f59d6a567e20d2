"""Other places for the entries of a sparse weight, and what an optimizer keeps for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.proximal.thresholds import top_k_mask
from regkern.sparse.growing import check_free, largest_free, random_free, where
from regkern.sparse.pattern import SparsePattern, check_pattern
from regkern.sparse.places import pattern_at, places_of


class PatternUpdate(NamedTuple):
    """Another pattern, and where its entries were.

    Attributes
    ----------
    pattern : SparsePattern
    index_map : Tensor
        int64 (nnz,): for each entry of ``pattern`` which one of the old pattern it was, or −1.
    """

    pattern: SparsePattern
    index_map: Tensor


def entry_map(old: SparsePattern, new: SparsePattern) -> Tensor:
    """For each entry of a pattern which one of another of its shape it is, or −1, int64 (nnz,)."""
    op = "entry_map"
    check_pattern(op, old)
    check_pattern(op, new)
    if old.shape != new.shape or old.device != new.device:
        raise ValueError(
            f"regkern.{op}: expected `new` of shape {old.shape} on {old.device}, got {new.shape} "
            f"on {new.device}"
        )
    return _map(places_of(old), places_of(new))


def _map(old: Tensor, new: Tensor) -> Tensor:
    if old.numel() == 0:
        return torch.full_like(new, -1)
    at = torch.searchsorted(old, new).clamp_(max=old.numel() - 1)
    return torch.where(old[at] == new, at, -1)


@torch.no_grad()
def prune(
    values: Tensor,
    pattern: SparsePattern,
    k: int | None = None,
    *,
    fraction: float | None = None,
) -> PatternUpdate:
    r"""The pattern of the k entries of the largest magnitudes.

    Parameters
    ----------
    values : Tensor
        The entries (nnz,).
    pattern : SparsePattern
        Where they are.
    k : int
        How many are kept, from 0 to nnz.
    fraction : float
        Instead of k: the share that is kept, ⌊fraction · nnz⌋ entries.

    Returns
    -------
    PatternUpdate
        Exactly k entries: of equal magnitudes the first ones. NaN counts as the largest.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Values are read 4 times for the threshold; the pattern is made in two sorts of int32.
    """
    op = "prune"
    check_pattern(op, pattern)
    checks.floating(op, "values", values)
    checks.on_device(op, "values", values, pattern.index)
    if tuple(values.shape) != (pattern.nnz,):
        raise ValueError(
            f"regkern.{op}: expected `values` of shape ({pattern.nnz},), got {tuple(values.shape)}"
        )
    kept = where(top_k_mask(values.detach(), k, fraction=fraction)[0])
    return PatternUpdate(pattern_at(places_of(pattern)[kept], pattern.shape), kept)


def grow_at(pattern: SparsePattern, places: Tensor) -> PatternUpdate:
    """The pattern with entries at more places: integers (k,), row times columns plus column.

    Raises
    ------
    TypeError, ValueError
        For places that are out of range, there twice, or have an entry.
    """
    op = "grow_at"
    check_pattern(op, pattern)
    checks.tensor(op, "places", places)
    if places.dim() != 1 or places.is_floating_point() or places.dtype == torch.bool:
        raise TypeError(
            f"regkern.{op}: expected `places` to be integers of one dimension, got "
            f"{places.dtype} {tuple(places.shape)}"
        )
    checks.on_device(op, "places", places, pattern.index)
    size = math.prod(pattern.shape)
    if places.numel() and (int(places.min()) < 0 or int(places.max()) >= size):
        raise ValueError(
            f"regkern.{op}: expected `places` in [0, {size}), got "
            f"{int(places.min())} to {int(places.max())}"
        )
    old = places_of(pattern)
    new = torch.sort(torch.cat([old, places.long()])).values
    twice = new[1:] == new[:-1]
    if bool(twice.any()):
        raise ValueError(
            f"regkern.{op}: expected `places` without an entry, each once, got "
            f"{int(new[1:][twice][0])} twice"
        )
    return PatternUpdate(pattern_at(new, pattern.shape), _map(old, new))


@torch.no_grad()
def grow(
    pattern: SparsePattern,
    count: int,
    scores: Tensor | str = "random",
    generator: torch.Generator | None = None,
) -> PatternUpdate:
    r"""The pattern with ``count`` entries more.

    Parameters
    ----------
    pattern : SparsePattern
        Of shape (R, C).
    count : int
        From 0 to the number of places without an entry.
    scores : Tensor or ``"random"``
        (R, C): entries come where the magnitudes are largest, of equal ones at the first places,
        and NaN is the largest. Or at random, each set of places as likely as any other.
        :func:`grow_candidates` finds the largest gradients without a dense matrix of them; its
        places are for :func:`grow_at`.
    generator : torch.Generator, optional
        Of random places, on the CPU.

    Returns
    -------
    PatternUpdate

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Random places take O((nnz + count) log nnz) operations and no memory of the size of the matrix.

    References
    ----------
    D. C. Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", Nature Communications 2018.
    """
    op = "grow"
    check_free(op, "count", count, pattern)
    if isinstance(scores, str):
        checks.one_of(op, "scores", scores, ("random",))
        return grow_at(pattern, random_free(pattern, count, generator))
    checks.floating(op, "scores", scores)
    checks.on_device(op, "scores", scores, pattern.index)
    if tuple(scores.shape) != pattern.shape:
        raise ValueError(
            f"regkern.{op}: expected `scores` of shape {pattern.shape}, got {tuple(scores.shape)}"
        )

    def panel(first: int, end: int) -> Tensor:
        return scores.detach()[first:end].clone(memory_format=torch.contiguous_format)

    return grow_at(pattern, largest_free(panel, pattern, count).places)


# ---- what goes with the entries ----


def remap(values: Tensor, index_map: Tensor) -> Tensor:
    """What entries had, (old nnz,), as the new ones have it, (nnz,): 0 where there was none."""
    # −1 is the last one.
    return torch.cat([values, values.new_zeros(1)])[index_map]


def _remapped(state: Any, count: int, index_map: Tensor) -> Any:
    if isinstance(state, Tensor):
        return remap(state, index_map) if tuple(state.shape) == (count,) else state
    if isinstance(state, dict):
        return type(state)((k, _remapped(v, count, index_map)) for k, v in state.items())
    if isinstance(state, list | tuple) and not hasattr(state, "_fields"):
        return type(state)(_remapped(v, count, index_map) for v in state)
    return state


@torch.no_grad()
def remap_state(optimizer: torch.optim.Optimizer, parameter: Tensor, index_map: Tensor) -> None:
    """What an optimizer keeps for each entry follows the entries, and is 0 for new ones.

    That is every tensor of its state of the shape (old nnz,) that the parameter has as yet; step
    counts and all else stay. Any optimizer of ``torch.optim``'s make will do.

    Raises
    ------
    TypeError, ValueError
        If the optimizer does not have the parameter, which then would not be trained.
    """
    op = "remap_state"
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"regkern.{op}: expected `optimizer` to be a torch.optim.Optimizer, got "
            f"{type(optimizer)}"
        )
    if not any(p is parameter for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            f"regkern.{op}: expected `parameter` to be one of the optimizer's, got another of "
            f"shape {tuple(parameter.shape)}"
        )
    state = optimizer.state.get(parameter)
    if not state:
        return
    if parameter.numel() == 1:
        # A step count may be of one element, too.
        counters = {k: v for k, v in state.items() if k == "step"}
        state.update(_remapped(dict(state), 1, index_map) | counters)
        return
    state.update(_remapped(dict(state), parameter.numel(), index_map))


def _check_map(op: str, index_map: Tensor, old: int, new: int) -> None:
    checks.tensor(op, "index_map", index_map)
    if tuple(index_map.shape) != (new,) or index_map.dtype != torch.int64:
        raise ValueError(
            f"regkern.{op}: expected `index_map` of int64 ({new},), got {index_map.dtype} "
            f"{tuple(index_map.shape)}"
        )
    if new and (int(index_map.min()) < -1 or int(index_map.max()) >= old):
        raise ValueError(
            f"regkern.{op}: expected `index_map` in [-1, {old}), got "
            f"{int(index_map.min())} to {int(index_map.max())}"
        )


@torch.no_grad()
def update_pattern(
    module: nn.Module,
    pattern: SparsePattern,
    index_map: Tensor | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    also: Iterable[Tensor] = (),
) -> None:
    r"""Gives a sparse layer another pattern: entries that stay keep what they have.

    The Parameter stays the same object, of another size, so parameter groups stay as they are. Its
    gradient is cleared.

    Parameters
    ----------
    module : nn.Module
        ``regkern.nn.SparseLinear`` for instance: it has ``pattern``, ``values`` and
        ``set_pattern``.
    pattern : SparsePattern
        The new one, of the shape of the old one.
    index_map : Tensor, optional
        As :class:`PatternUpdate` has it. Without one, entries at the same places are the same.
    optimizer : torch.optim.Optimizer, optional
        Whose state follows: see :func:`remap_state`.
    also : tensors
        (old nnz,) each, averages of the values for instance: they become (nnz,) in place.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above, before anything is changed.

    Notes
    -----
    New entries are 0, and so is the optimizer's state for them. ``torch.compile`` makes guards on
    sizes: a compiled step goes on as it is where nnz stays, and is compiled again where it does
    not.
    """
    op = "update_pattern"
    values = getattr(module, "values", None)
    if not isinstance(values, nn.Parameter) or not hasattr(module, "set_pattern"):
        raise TypeError(
            f"regkern.{op}: expected `module` to be a layer with a sparse weight, got "
            f"{type(module)}"
        )
    check_pattern(op, pattern)
    pattern = pattern.to(values.device)
    old: Any = module.pattern
    if index_map is None:
        index_map = entry_map(old, pattern)
    _check_map(op, index_map, old.nnz, pattern.nnz)
    others = list(also)
    for i, t in enumerate(others):
        checks.tensor(op, f"also[{i}]", t)
        if tuple(t.shape) != (old.nnz,):
            raise ValueError(
                f"regkern.{op}: expected `also[{i}]` of shape ({old.nnz},), got {tuple(t.shape)}"
            )
    if optimizer is not None:
        remap_state(optimizer, values, index_map)
    new = remap(values.detach(), index_map)
    module.set_pattern(pattern, new)  # type: ignore[operator]
    for t in others:
        t.data = remap(t.data, index_map)

"""Groups of the elements of tensors: what a group penalty is told of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Weights = Literal["sqrt", "none"] | Tensor


@dataclass(frozen=True)
class Layout:
    """How the groups of a list of tensors lie in memory, as the ops take it.

    Attributes
    ----------
    geometry : list of int
        (outer, slices, inner) of each tensor: slice s is all elements (·, s, ·) of that view.
    sizes : list of int
        The elements of a group of each tensor, where they are all the same size; 1 otherwise.
    group_sizes : Tensor or None
        float64, the elements of each group, where they differ.
    map, starts, members : Tensor or None
        Where groups are not slices: the group of every slice of all tensors (−1: none), and the
        slices of every group.
    groups : list of int
        How many groups each tensor has; with a map, one number for all.
    """

    geometry: list[int]
    sizes: list[int]
    group_sizes: Tensor | None
    map: Tensor | None
    starts: Tensor | None
    members: Tensor | None
    groups: list[int]

    @property
    def mapping(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.map, self.starts, self.members


@dataclass(frozen=True)
class _Slices:
    """One tensor: (outer, slices, inner), and the group of each slice where that is not its own."""

    geometry: tuple[int, int, int]
    labels: Tensor | None = None
    groups: int = 0
    ragged: bool = False


def _kept_view(shape: Sequence[int], kept: Sequence[int]) -> _Slices:
    """Groups of all indices of the kept dimensions, the others added up."""
    if not kept:
        return _Slices((1, 1, math.prod(shape)), groups=1)
    first, last = min(kept), max(kept)
    outer, inner = math.prod(shape[:first]), math.prod(shape[last + 1 :])
    middle = list(shape[first : last + 1])
    slices = math.prod(middle)
    if len(kept) == len(middle):
        return _Slices((outer, slices, inner), groups=slices)
    # Dimensions between kept ones are added up: finer slices, each of which has a label.
    sizes = [n if first + i in kept else 1 for i, n in enumerate(middle)]
    labels = torch.arange(math.prod(sizes)).reshape(sizes).expand(middle).reshape(-1)
    return _Slices((outer, slices, inner), labels, math.prod(sizes))


def _axis(op: str, dim: int, shape: Sequence[int]) -> int:
    if not -len(shape) <= dim < len(shape):
        raise ValueError(
            f"regkern.{op}: expected a dimension in [{-len(shape)}, {len(shape)}) of a tensor of "
            f"shape {tuple(shape)}, got {dim}"
        )
    return dim % len(shape)


def _integer(op: str, name: str, value: object, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"regkern.{op}: expected `{name}` to be an int, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"regkern.{op}: expected `{name}` to be at least {least}, got {value}")


def _dims(op: str, dims: object) -> tuple[int, ...]:
    each = (dims,) if isinstance(dims, int) else dims
    if not isinstance(each, list | tuple):
        raise TypeError(f"regkern.{op}: expected `dim` to be an int or several, got {dims!r}")
    for d in each:
        _integer(op, "dim", d)
    return tuple(each)


def _integer_tensor(op: str, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"regkern.{op}: expected `{name}` to hold integers, got {value.dtype}")
    return value.detach().to("cpu", torch.int64)


@dataclass(frozen=True, eq=False)
class Groups:
    r"""Which elements of a tensor, or of several, belong together.

    Made by the functions below, and given to the group penalties, which apply it to each tensor of
    a list; ``union`` describes groups that have parts in several tensors. Elements that no group
    has are not penalised, and a prox keeps their bits.

    Examples
    --------
    >>> Groups.kept(0)              # output channels of a linear or convolution weight
    >>> Groups.kept((0, 1))         # single filters of a convolution
    >>> Groups.heads(8, 1)          # attention heads along the columns
    >>> Groups.union([(0, 0), (1, 0), (2, 0)])  # filter, γ and β of a channel
    """

    kind: str
    dims: tuple[int, ...] = ()
    size: int = 0
    table: Tensor | None = None
    sets: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...] = ()
    _cache: dict[Any, Layout] = field(default_factory=dict, repr=False)

    # ---- constructors ----

    @staticmethod
    def kept(dim: int | Sequence[int]) -> Groups:
        """A group per index of the kept dimensions, as `weight_norm`'s ``dim``: 0 for the output
        channels of a weight, 1 for the input channels, (0, 1) for single filters."""
        return Groups("kept", _dims("Groups.kept", dim))

    @staticmethod
    def whole() -> Groups:
        """The whole tensor is one group."""
        return Groups("kept")

    @staticmethod
    def blocks(size: int, dim: int | None = None) -> Groups:
        """Blocks of ``size`` neighbours of the flattened tensor, or along ``dim`` at each index of
        the other dimensions; the last block may be shorter."""
        _integer("Groups.blocks", "size", size, 1)
        if dim is not None:
            _integer("Groups.blocks", "dim", dim)
        return Groups("blocks", () if dim is None else (dim,), size)

    @staticmethod
    def heads(heads: int, dim: int) -> Groups:
        """``heads`` equal parts of ``dim``, the other dimensions added up."""
        _integer("Groups.heads", "heads", heads, 1)
        _integer("Groups.heads", "dim", dim)
        return Groups("heads", (dim,), heads)

    @staticmethod
    def pointers(pointers: Tensor | Sequence[int]) -> Groups:
        """Group g is elements ``pointers[g]`` to ``pointers[g + 1]`` of the flattened tensor."""
        op = "Groups.pointers"
        table = _integer_tensor(op, "pointers", pointers)
        if table.dim() != 1 or table.numel() == 0:
            raise ValueError(
                f"regkern.{op}: expected `pointers` of one dimension and at least one number, "
                f"got {tuple(table.shape)}"
            )
        if int(table[0]) < 0 or bool((table.diff() < 0).any()):
            raise ValueError(f"regkern.{op}: expected `pointers` that rise from 0 or more")
        return Groups("pointers", table=table)

    @staticmethod
    def labels(labels: Tensor | Sequence[int], dim: int | None = None) -> Groups:
        """The group of every element, or of every index of ``dim``; −1 for none."""
        op = "Groups.labels"
        table = _integer_tensor(op, "labels", labels)
        if table.numel() > 0 and int(table.min()) < -1:
            raise ValueError(
                f"regkern.{op}: expected `labels` of at least -1, got {int(table.min())}"
            )
        if dim is not None:
            _integer(op, "dim", dim)
            if table.dim() != 1:
                raise ValueError(
                    f"regkern.{op}: expected `labels` of one dimension with `dim`, got "
                    f"{tuple(table.shape)}"
                )
        return Groups("labels", () if dim is None else (dim,), table=table)

    @staticmethod
    def union(*sets: Sequence[tuple[int, int | Sequence[int]]]) -> Groups:
        """Groups with parts in several tensors of the list.

        Each set is pairs (place in the list, kept dimensions): index k of all of them is one
        group. ``Groups.union([(0, 0), (1, 0)], [(2, 0), (3, 1)])`` has the channels of tensors 0
        and 1 in common, and those of 2 with the columns of 3; kept dimensions () take all of a
        tensor. Tensors that no set names are left alone.
        """
        op = "Groups.union"
        parsed: list[tuple[tuple[int, tuple[int, ...]], ...]] = []
        for pairs in sets:
            parts = []
            for pair in pairs:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise TypeError(
                        f"regkern.{op}: expected pairs of a place and dimensions, got {pair!r}"
                    )
                _integer(op, "place", pair[0], 0)
                parts.append((pair[0], _dims(op, pair[1])))
            parsed.append(tuple(parts))
        places = [place for pairs in parsed for place, _ in pairs]
        if len(set(places)) != len(places):
            raise ValueError(f"regkern.{op}: expected each place once, got {places}")
        return Groups("union", sets=tuple(parsed))

    # ---- what the ops are told ----

    def layout(self, tensors: Sequence[Tensor]) -> Layout:
        """The layout for these tensors, found once for their shapes and, if it has maps, device."""
        shapes = tuple([t.shape for t in tensors])
        if torch.compiler.is_compiling():
            return self._layout(tensors, shapes)
        try:
            known = self._cache.get(shapes)
        except TypeError:  # symbolic sizes have no hash
            return self._layout(tensors, shapes)
        if known is not None:
            return known
        layout = self._layout(tensors, shapes)
        if layout.map is None:
            self._cache[shapes] = layout
        return layout

    def _layout(self, tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Layout:
        if self.kind == "union":
            parts = self._union(shapes)
        else:
            parts = [self._slices(shape) for shape in shapes]
        if all(p.labels is None for p in parts) and not any(p.ragged for p in parts):
            sizes = [p.geometry[0] * p.geometry[2] for p in parts]
            return Layout(_flat(parts), sizes, None, None, None, None, [p.groups for p in parts])
        key = (tensors[0].device, tuple(tuple(s) for s in shapes))
        if key not in self._cache:
            self._cache[key] = self._mapped(parts, tensors, self.kind == "union")
        return self._cache[key]

    def _slices(self, shape: torch.Size) -> _Slices:
        """The groups of one tensor."""
        op = f"Groups.{self.kind}"
        if self.kind == "kept":
            dims = [_axis(op, d, shape) for d in self.dims]
            if len(set(dims)) != len(dims):
                raise ValueError(f"regkern.{op}: expected each dimension once, got {self.dims}")
            return _kept_view(shape, dims)
        if self.kind == "heads":
            d = _axis(op, self.dims[0], shape)
            if shape[d] % self.size != 0:
                raise ValueError(
                    f"regkern.{op}: expected dimension {d} to be a multiple of {self.size} heads, "
                    f"got {shape[d]}"
                )
            inner = shape[d] // self.size * math.prod(shape[d + 1 :])
            return _Slices((math.prod(shape[:d]), self.size, inner), groups=self.size)
        if self.kind == "blocks":
            return self._block_slices(op, shape)
        assert self.table is not None
        if self.kind == "labels":
            return self._label_slices(op, shape)
        return self._pointer_slices(op, shape)

    def _block_slices(self, op: str, shape: torch.Size) -> _Slices:
        numel, size = math.prod(shape), self.size
        if not self.dims or (len(shape) == 1 and _axis(op, self.dims[0], shape) == 0):
            blocks = -(-numel // size)
            return _Slices((1, blocks, size), groups=blocks, ragged=numel % size != 0)
        d = _axis(op, self.dims[0], shape)
        before, n, after = math.prod(shape[:d]), shape[d], math.prod(shape[d + 1 :])
        if n % size == 0:
            view = [before, n // size, size, after]
            return _kept_view(view, [0, 1, 3] if after != 1 else [0, 1])
        blocks = -(-n // size)
        index = torch.arange(before).reshape(-1, 1, 1) * blocks
        index = (index + torch.arange(n).reshape(-1, 1) // size) * after + torch.arange(after)
        return _Slices((1, numel, 1), index.reshape(-1), before * blocks * after)

    def _label_slices(self, op: str, shape: torch.Size) -> _Slices:
        assert self.table is not None
        groups = int(self.table.max()) + 1 if self.table.numel() > 0 else 0
        if not self.dims:
            if self.table.shape != shape:
                raise ValueError(
                    f"regkern.{op}: expected `labels` of the tensor's shape {tuple(shape)}, got "
                    f"{tuple(self.table.shape)}"
                )
            return _Slices((1, math.prod(shape), 1), self.table.reshape(-1), groups)
        d = _axis(op, self.dims[0], shape)
        if self.table.numel() != shape[d]:
            raise ValueError(
                f"regkern.{op}: expected `labels` for each of {shape[d]} indices of dimension {d}, "
                f"got {self.table.numel()}"
            )
        geometry = (math.prod(shape[:d]), shape[d], math.prod(shape[d + 1 :]))
        return _Slices(geometry, self.table, groups)

    def _pointer_slices(self, op: str, shape: torch.Size) -> _Slices:
        assert self.table is not None
        numel, ends = math.prod(shape), self.table
        if int(ends[-1]) > numel:
            raise ValueError(
                f"regkern.{op}: expected `pointers` up to the tensor's {numel} elements, got "
                f"{int(ends[-1])}"
            )
        # Slices as long as all groups allow.
        step = max(math.gcd(numel, *ends.tolist()), 1)
        starts = torch.arange(0, numel, step)
        labels = torch.searchsorted(ends, starts, right=True) - 1
        labels[labels == ends.numel() - 1] = -1
        return _Slices((1, numel // step, step), labels, ends.numel() - 1)

    def _union(self, shapes: Sequence[torch.Size]) -> list[_Slices]:
        op = "Groups.union"
        parts = [_Slices((1, 1, math.prod(s)), torch.tensor([-1])) for s in shapes]
        first = 0
        for pairs in self.sets:
            counts = []
            for place, dims in pairs:
                if place >= len(shapes):
                    raise ValueError(
                        f"regkern.{op}: expected a list of more than {place} tensors, got "
                        f"{len(shapes)}"
                    )
                kept = [_axis(op, d, shapes[place]) for d in dims]
                view = _kept_view(shapes[place], kept)
                labels = view.labels
                if labels is None:
                    labels = torch.arange(view.groups)
                parts[place] = _Slices(view.geometry, labels + first)
                counts.append(view.groups)
            if len(set(counts)) > 1:
                raise ValueError(
                    f"regkern.{op}: expected tensors of one set to have as many groups, got "
                    f"{counts}"
                )
            first += counts[0] if counts else 0
        return [_Slices(p.geometry, p.labels, first) for p in parts]

    @staticmethod
    def _mapped(parts: Sequence[_Slices], tensors: Sequence[Tensor], shared: bool) -> Layout:
        """A layout with a map, or with sizes that differ."""
        device = tensors[0].device
        if all(p.labels is None for p in parts):
            each = []
            for p, t in zip(parts, tensors, strict=True):
                size = torch.full((p.groups,), p.geometry[0] * p.geometry[2], dtype=torch.float64)
                if p.ragged and p.groups > 0:
                    size[-1] = t.numel() - (p.groups - 1) * p.geometry[2]
                each.append(size)
            sizes = torch.cat(each).to(device)
            counts = [p.groups for p in parts]
            return Layout(_flat(parts), [1] * len(parts), sizes, None, None, None, counts)
        labels, widths, first = [], [], 0
        for p, t in zip(parts, tensors, strict=True):
            outer, slices, inner = p.geometry
            own = p.labels if p.labels is not None else torch.arange(slices)
            labels.append(torch.where(own < 0, -1, own + (0 if shared else first)))
            width = torch.full((slices,), outer * inner, dtype=torch.float64)
            if p.ragged and slices > 0:
                width[-1] = t.numel() - (slices - 1) * inner
            widths.append(width)
            first += p.groups
        groups = first if not shared else parts[0].groups
        label, width = torch.cat(labels), torch.cat(widths)
        order = torch.sort(label, stable=True).indices
        members = order[label[order] >= 0]
        starts = torch.zeros(groups + 1, dtype=torch.int64)
        starts[1:] = torch.bincount(label[label >= 0], minlength=groups).cumsum(0)
        sizes = torch.zeros(groups, dtype=torch.float64)
        sizes.index_add_(0, label[label >= 0], width[label >= 0])
        return Layout(
            _flat(parts),
            [1] * len(parts),
            sizes.to(device),
            label.to(device, torch.int32),
            starts.to(device),
            members.to(device, torch.int32),
            [groups],
        )


def _flat(parts: Sequence[_Slices]) -> list[int]:
    return [n for p in parts for n in p.geometry]

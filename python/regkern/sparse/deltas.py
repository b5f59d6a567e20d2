"""What a sparse fine-tuning has changed: saved, added to a network, taken away again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype

_OP = "SparseDelta"
_FORMAT = "regkern.SparseDelta.1"
_STEP = 2**31 - 1


def _fail(expected: str, got: object) -> None:
    raise ValueError(f"regkern.{_OP}: expected {expected}, got {got}")


class _Entries(NamedTuple):
    """The changes of one tensor: places in row-major order, rising, and what is added there."""

    shape: tuple[int, ...]
    places: Tensor  # int64
    values: Tensor  # of the compute type


def _tensors(source: Any) -> dict[str, Tensor]:
    """Named tensors: those of a mapping, or the parameters and buffers of a module."""
    if isinstance(source, torch.nn.Module):
        return dict(source.state_dict(keep_vars=True))
    if not isinstance(source, Mapping):
        raise TypeError(
            f"regkern.{_OP}: expected a module or a mapping of names to tensors, got {type(source)}"
        )
    return dict(source)


def _steps(index: Tensor) -> tuple[Tensor, Tensor]:
    """Differences as int32, and how many whole steps of 2³¹ − 1 lie before each that is larger."""
    diff = torch.diff(index, prepend=index.new_zeros(1))
    whole = diff // _STEP
    far = torch.nonzero(whole).squeeze(1)
    return (diff - whole * _STEP).int(), torch.stack([far, whole[far]])


def _places(steps: Tensor, far: Tensor) -> Tensor:
    diff = steps.long()
    diff[far[0]] += far[1] * _STEP
    return diff.cumsum(0)


class SparseDelta:
    r"""A sparse change :math:`\delta` of named tensors, :math:`\theta = \theta_0 + \delta`.

    Deltas add up: :math:`\theta_0 + \delta_\text{task} + \delta_\text{language}` is
    ``(task + language).apply(model)``, and ``2 * task``, ``-task`` are deltas too.

    Parameters
    ----------
    entries : mapping
        From names to (shape, index, values): places in row-major order, int64, rising, and what is
        added there. Use :meth:`extract`.

    Notes
    -----
    Values are in float32 (float64 of float64). Adding a delta rounds, and so would subtracting it:
    :meth:`apply_` returns what was there before, with which :meth:`restore_` is exact, bit for bit.
    Memory: 12 bytes an entry; files: 4 for the place (a difference of neighbours), and a value.
    """

    def __init__(self, entries: Mapping[str, tuple[Any, Tensor, Tensor]]) -> None:
        self._entries: dict[str, _Entries] = {}
        for name, (shape, index, values) in entries.items():
            checks.tensor(_OP, f"index of {name}", index)
            checks.floating(_OP, f"values of {name}", values)
            size = torch.Size(shape)
            if index.dtype != torch.int64 or index.dim() != 1 or index.shape != values.shape:
                _fail(
                    f"int64 places of {name}, as many as values",
                    f"{index.dtype} {tuple(index.shape)} and {tuple(values.shape)}",
                )
            if index.numel():
                if int(index[0]) < 0 or int(index[-1]) >= size.numel():
                    _fail(
                        f"places of {name} in [0, {size.numel()})", (int(index[0]), int(index[-1]))
                    )
                if bool((index.diff() <= 0).any()):
                    _fail(f"places of {name} that rise", "ones that do not")
            self._entries[name] = _Entries(tuple(size), index, values.to(compute_dtype(values)))

    # ---- where it comes from ----

    @classmethod
    def extract(
        cls,
        after: Any,
        before: Any,
        masks: Mapping[str, Tensor] | None = None,
    ) -> SparseDelta:
        """The change from one state of a network to another.

        Parameters
        ----------
        after, before : Module or mapping of str to Tensor
            θ and θ₀. Names that only one of them has, and tensors that are not floating, are left
            out.
        masks : mapping of str to Tensor, optional
            Where changes are taken, bool, of the tensors that are looked at. Without it: where the
            two differ, in all of them.

        Returns
        -------
        SparseDelta
            With the difference of the compute type. Adding it to θ₀ gives θ up to a rounding.

        Raises
        ------
        ValueError
            For shapes that differ, and masks without a tensor.
        """
        new, old = _tensors(after), _tensors(before)
        names = [n for n in new if n in old and new[n].is_floating_point()]
        if masks is not None:
            for name in masks:
                if name not in names:
                    _fail(f"a tensor of the name of each mask, {name!r}", "none")
            names = [n for n in names if n in masks]
        entries = {}
        for name in names:
            x, y = new[name].detach(), old[name].detach()
            if x.shape != y.shape:
                _fail(f"one shape of {name}", (tuple(x.shape), tuple(y.shape)))
            mask = x != y if masks is None else masks[name]
            if mask.dtype != torch.bool or mask.shape != x.shape:
                _fail(f"a mask of bools of shape {tuple(x.shape)}", f"{mask.dtype} {mask.shape}")
            index = torch.nonzero(mask.reshape(-1)).squeeze(1)
            if masks is None and not index.numel():
                continue
            wide = compute_dtype(x)
            values = x.reshape(-1)[index].to(wide) - y.reshape(-1)[index].to(wide)
            entries[name] = (x.shape, index, values)
        return cls(entries)

    # ---- what it is ----

    @property
    def names(self) -> list[str]:
        """Of the tensors that change."""
        return list(self._entries)

    @property
    def nnz(self) -> int:
        """How many entries there are."""
        return sum(e.places.numel() for e in self._entries.values())

    def entries(self, name: str) -> tuple[tuple[int, ...], Tensor, Tensor]:
        """Shape, places and values of a tensor."""
        return self._entries[name]

    def __add__(self, other: SparseDelta) -> SparseDelta:
        """The sum; an entry of both has that of their values."""
        if not isinstance(other, SparseDelta):
            return NotImplemented
        merged: dict[str, tuple[Any, Tensor, Tensor]] = dict(self._entries)
        for name, theirs in other._entries.items():
            ours = self._entries.get(name)
            if ours is None:
                merged[name] = theirs
                continue
            if ours.shape != theirs.shape:
                _fail(f"one shape of {name}", (ours.shape, theirs.shape))
            both = torch.cat([ours.places, theirs.places])
            index, inverse = torch.unique(both, return_inverse=True)
            dtype = torch.promote_types(ours.values.dtype, theirs.values.dtype)
            values = torch.zeros(index.numel(), dtype=dtype, device=index.device)
            # One after the other: each has a place at most once.
            count = ours.places.numel()
            values[inverse[:count]] += ours.values
            values[inverse[count:]] += theirs.values
            merged[name] = (ours.shape, index, values)
        return SparseDelta(merged)

    def __mul__(self, scale: float) -> SparseDelta:
        """Each value times a number."""
        return SparseDelta(
            {n: (e.shape, e.places, e.values * scale) for n, e in self._entries.items()}
        )

    __rmul__ = __mul__

    def __neg__(self) -> SparseDelta:
        return self * -1.0

    def __sub__(self, other: SparseDelta) -> SparseDelta:
        return self + -other

    def to(self, device: torch.device | str) -> SparseDelta:
        """The same on another device."""
        return SparseDelta(
            {
                n: (e.shape, e.places.to(device), e.values.to(device))
                for n, e in self._entries.items()
            }
        )

    # ---- adding it to a network ----

    def _targets(self, target: Any) -> list[tuple[str, Tensor]]:
        tensors = _tensors(target)
        for name, entry in self._entries.items():
            if name not in tensors:
                _fail(f"a tensor {name!r}", "none")
            if tuple(tensors[name].shape) != entry.shape:
                _fail(f"{name} of shape {entry.shape}", tuple(tensors[name].shape))
            checks.on_device(_OP, name, tensors[name], entry.places)
        return [(name, tensors[name]) for name in self._entries]

    def apply_(self, target: Any, scale: float = 1.0) -> dict[str, Tensor]:
        """Adds the delta to a module or a mapping of tensors, in place: θ ← θ + scale · δ.

        Returns
        -------
        dict of str to Tensor
            What was there before, one number an entry, for :meth:`restore_`.

        Raises
        ------
        TypeError, ValueError
            For a tensor that is not there, of another shape or on another device; nothing has
            changed then.

        Notes
        -----
        Not recorded by autograd. Sums are taken in the compute type and rounded once.
        """
        before = {}
        with torch.no_grad():
            for name, x in self._targets(target):
                entry = self._entries[name]
                old = x.reshape(-1)[entry.places]
                before[name] = old
                new = old.to(entry.values.dtype) + entry.values * scale
                _put(x, entry.places, new.to(x.dtype))
        return before

    def restore_(self, target: Any, before: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`apply_` returned, bit for bit; of several deltas the last first."""
        with torch.no_grad():
            targets = self._targets(target)
            for name, x in targets:
                checks.tensor(_OP, f"before[{name}]", before.get(name))
                if before[name].shape != self._entries[name].places.shape:
                    _fail(
                        f"{self._entries[name].places.numel()} numbers of {name}", len(before[name])
                    )
                if before[name].dtype != x.dtype:
                    _fail(f"numbers of {name} of dtype {x.dtype}", before[name].dtype)
            for name, x in targets:
                _put(x, self._entries[name].places, before[name])

    # ---- files ----

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Writes a file, values rounded to ``dtype`` where that is given.

        Places are differences of neighbours in int32; larger ones carry how many times 2³¹ − 1 is
        left out.
        """
        tensors: dict[str, Any] = {}
        for name, e in self._entries.items():
            steps, far = _steps(e.places.cpu())
            values = e.values.cpu()
            tensors[name] = {
                "shape": list(e.shape),
                "steps": steps,
                "far": far,
                "values": values if dtype is None else values.to(dtype),
            }
        torch.save({"format": _FORMAT, "tensors": tensors}, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: torch.device | str | None = None
    ) -> SparseDelta:
        """Reads what :meth:`save` wrote. Tensors alone are read, no code.

        Raises
        ------
        ValueError
            For a file that is not one.
        """
        data = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            _fail(f"a file of the format {_FORMAT}", path)
        return cls(
            {
                name: (e["shape"], _places(e["steps"], e["far"]), e["values"])
                for name, e in data["tensors"].items()
            }
        )

    def __repr__(self) -> str:
        return f"SparseDelta(tensors={len(self._entries)}, nnz={self.nnz})"


def _put(x: Tensor, index: Tensor, values: Tensor) -> None:
    """x at places of its row-major order ← values."""
    if x.is_contiguous():
        x.view(-1)[index] = values
    else:
        x[torch.unravel_index(index, x.shape)] = values

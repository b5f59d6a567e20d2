"""What one benchmark case is: inputs, our op, its reference, its rivals and its floor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

#: The arguments of one call. ``"x"`` is the main tensor: the floor copies it, backward goes to it.
Inputs = dict[str, Any]
Run = Callable[[Inputs], Any]
Make = Callable[[tuple[int, ...], torch.dtype, torch.device], Inputs]


@dataclass(frozen=True)
class Rival:
    """A peer's implementation. ``load`` imports it, and may raise: the reason is printed."""

    name: str
    package: str
    load: Callable[[], Run] = field(repr=False)
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One op in one form.

    Parameters
    ----------
    op, variant
        ``drop_block`` and ``inplace`` are listed as ``drop_block:inplace``.
    shape, small
        The default shape of ``x``, and one on which the reference is quick. Both have one rank.
    compiled
        What ``--against compiled`` times in place of the reference under torch.compile.
    make
        Builds the inputs from a shape, a dtype and a device.
    ours, reference
        The two calls that ``--check`` compares, outputs and gradients.
    dtypes, more_dtypes
        What is measured unasked, and what is measured on request as well.
    floor
        ``"copy"`` into an existing tensor, ``"mul_"`` in place, or ``"read"``, a sum.
    passes
        The fewest bytes that the forward must move, in multiples of the bytes of ``x``.
    differentiable, inplace
        Whether gradients reach ``x``; whether the call overwrites ``x``.
    bar, bar_backward
        At most this many times the floor: default shape, first dtype, one CPU thread, warm.
    """

    op: str
    variant: str
    shape: tuple[int, ...]
    small: tuple[int, ...]
    make: Make = field(repr=False)
    ours: Run = field(repr=False)
    reference: Run = field(repr=False)
    rivals: tuple[Rival, ...] = field(default=(), repr=False)
    compiled: Rival | None = field(default=None, repr=False)
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    more_dtypes: tuple[torch.dtype, ...] = ()
    floor: Literal["copy", "mul_", "read"] = "copy"
    passes: float = 2.0
    differentiable: bool = False
    inplace: bool = False
    bar: float | None = None
    bar_backward: float | None = None

    @property
    def name(self) -> str:
        return f"{self.op}:{self.variant}" if self.variant else self.op

    def bytes_moved(self, x: torch.Tensor, backward: bool) -> int:
        """The fewest bytes of a call; a backward moves at least what its forward did."""
        return math.ceil(self.passes * (2 if backward else 1) * x.numel() * x.element_size())

    def bar_of(self, task: Task) -> float | None:
        """The bar of ``task``, or None where none was set for its configuration."""
        bar = self.bar_backward if task.backward else self.bar
        measured = (task.shape, task.dtype, task.device, task.threads)
        return bar if measured == (self.shape, dtype_name(self.dtypes[0]), "cpu", 1) else None


@dataclass(frozen=True)
class Task:
    """One case in one configuration: what is asked of a measuring process, and goes to JSON."""

    case: str
    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    backward: bool = False
    threads: int = 1

    @property
    def title(self) -> str:
        shape = "x".join(map(str, self.shape))
        direction = "forward+backward" if self.backward else "forward"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        where = threads if self.device == "cpu" else self.device
        return f"{self.case}  {shape} {self.dtype}  {direction}  {where}"


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """``torch.float32`` for ``float32``."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype

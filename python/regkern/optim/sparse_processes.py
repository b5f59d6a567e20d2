"""Processes that train one network together, and the patterns that they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from regkern.sparse.pattern import SparsePattern
from regkern.sparse.places import places_of

# 64 bits of the golden ratio and of π, both odd, as signed numbers.
_SPREAD, _MIX = 0x9E3779B97F4A7C15 - 2**64, 0x243F6A8885A308D3


def fingerprint(pattern: SparsePattern) -> Tensor:
    """A number of 64 bits that another pattern is unlikely to have, int64, 0-d."""
    # Products wrap around.
    z = places_of(pattern) * _SPREAD
    z = (z ^ (z >> 29)) * _MIX
    return (z ^ (z >> 32)).sum() + pattern.nnz


class Processes:
    """A group of processes, or one by itself, for which all of this is nothing.

    Parameters
    ----------
    op : str
        For errors.
    group : torch.distributed.ProcessGroup, optional
        Default: all there are, where ``torch.distributed`` is initialized.
    """

    def __init__(self, op: str, group: Any = None) -> None:
        there = dist.is_available() and dist.is_initialized()
        if group is not None and not there:
            raise ValueError(
                f"regkern.{op}: expected torch.distributed to be initialized for `process_group`, "
                "got none"
            )
        self._op, self._group = op, group
        self.size = dist.get_world_size(group) if there else 1
        if self.size < 1:
            raise ValueError(
                f"regkern.{op}: expected `process_group` to have this process, got another"
            )

    def gather(self, t: Tensor) -> list[Tensor]:
        """That of each process, all of one shape."""
        t = t.contiguous()
        if self.size == 1:
            return [t]
        parts = [torch.empty_like(t) for _ in range(self.size)]
        dist.all_gather(parts, t, group=self._group)
        return parts

    def sum(self, t: Tensor) -> Tensor:
        """The sum over the processes, which may be in place."""
        if self.size > 1:
            t = t.contiguous()
            dist.all_reduce(t, group=self._group)
        return t

    def first(self, t: Tensor) -> Tensor:
        """That of the first process, which may be in place."""
        if self.size > 1:
            t = t.contiguous()
            source = 0 if self._group is None else dist.get_global_rank(self._group, 0)
            dist.broadcast(t, source, group=self._group)
        return t

    def check_same(self, patterns: Mapping[str, SparsePattern]) -> None:
        """Raises, in all processes, where one has another pattern."""
        if self.size == 1 or not patterns:
            return
        device = next(iter(patterns.values())).device
        own = torch.stack([fingerprint(p).to(device) for p in patterns.values()])
        all_of_them = torch.stack(self.gather(own))
        differ = (all_of_them != all_of_them[0]).any(0).tolist()
        names = [name for name, wrong in zip(patterns, differ, strict=True) if wrong]
        if names:
            raise RuntimeError(
                f"regkern.{self._op}: expected the {self.size} processes to have the same patterns "
                f"and values, got different patterns of {', '.join(map(repr, names))}"
            )

    def check_all(self, there: Mapping[str, bool], device: torch.device, message: str) -> None:
        """Raises, in all processes, where one lacks something. {} in the message is its name."""
        missing = self.sum(torch.tensor([0 if ok else 1 for ok in there.values()], device=device))
        for name, count in zip(there, missing.tolist(), strict=True):
            if count:
                raise RuntimeError(message.format(repr(name)))

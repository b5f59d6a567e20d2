"""What of a network is zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regkern._registration import register


def _counts_fake(tensors: list[Tensor]) -> Tensor:
    return tensors[0].new_empty((len(tensors), 3), dtype=torch.int64)


_zero_counts = register("zero_counts", _counts_fake)


@dataclass(frozen=True)
class TensorSparsity:
    """The zeros of one tensor: elements, indices of dim 0 (rows) and of dim 1 (columns)."""

    name: str
    shape: tuple[int, ...]
    numel: int
    zeros: int
    zero_rows: int
    zero_columns: int

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1


@dataclass(frozen=True)
class SparsityReport:
    """What :func:`sparsity_report` counts; printed, it is a table.

    Attributes
    ----------
    tensors : tuple of TensorSparsity
    """

    tensors: tuple[TensorSparsity, ...]

    @property
    def numel(self) -> int:
        return sum(t.numel for t in self.tensors)

    @property
    def zeros(self) -> int:
        return sum(t.zeros for t in self.tensors)

    @property
    def rows(self) -> int:
        """Rows of the tensors that have columns: biases are no groups."""
        return sum(t.rows for t in self.tensors if len(t.shape) > 1)

    @property
    def zero_rows(self) -> int:
        return sum(t.zero_rows for t in self.tensors if len(t.shape) > 1)

    @property
    def sparsity(self) -> float:
        """Zeros per element."""
        return self.zeros / self.numel if self.numel else 0.0

    def __str__(self) -> str:
        width = max([len(t.name) for t in self.tensors] + [len("in all")])
        head = f"{'':<{width}}  {'shape':<18}{'zeros':>22}{'zero rows':>16}{'zero columns':>16}"
        lines = [head]
        for t in self.tensors:
            columns = f"{t.zero_columns}/{t.columns}" if len(t.shape) > 1 else ""
            lines.append(
                f"{t.name:<{width}}  {'x'.join(map(str, t.shape)) or 'number':<18}"
                f"{_share(t.zeros, t.numel):>22}{f'{t.zero_rows}/{t.rows}':>16}{columns:>16}"
            )
        lines.append(
            f"{'in all':<{width}}  {'':<18}{_share(self.zeros, self.numel):>22}"
            f"{f'{self.zero_rows}/{self.rows}':>16}"
        )
        return "\n".join(lines)


def _share(zeros: int, numel: int) -> str:
    return f"{zeros}/{numel} {zeros / numel if numel else 0.0:6.1%}"


def sparsity_report(what: nn.Module | Iterable[Tensor]) -> SparsityReport:
    r"""Counts zeros, zero rows and zero columns of the parameters of a network.

    A row is an index of the first dimension (an output channel, a neuron), a column one of the
    second (an input channel); it is zero if all of it is. NaN is not zero.

    Parameters
    ----------
    what : torch.nn.Module or tensors
        A module's parameters have their names, others their place.

    Returns
    -------
    SparsityReport

    Raises
    ------
    TypeError
        If it is neither, or a tensor is not floating-point.

    Notes
    -----
    One call for all tensors of a device, which reads each element once; the numbers are then copied
    to the host.
    """
    if isinstance(what, nn.Module):
        named = [(name, p.detach()) for name, p in what.named_parameters()]
    elif isinstance(what, Tensor) or not isinstance(what, Iterable):
        raise TypeError(
            f"regkern.optim.sparsity_report: expected a module or tensors, got {type(what)}"
        )
    else:
        named = [(str(i), t) for i, t in enumerate(what)]
    by_device: dict[torch.device, list[int]] = {}
    for i, (name, t) in enumerate(named):
        if not isinstance(t, Tensor) or not t.is_floating_point():
            got = t.dtype if isinstance(t, Tensor) else type(t)
            raise TypeError(
                "regkern.optim.sparsity_report: expected floating-point tensors, got "
                f"{got} at {name}"
            )
        by_device.setdefault(t.device, []).append(i)
    counts: dict[int, list[int]] = {}
    for places in by_device.values():
        numbers = _zero_counts([named[i][1].detach() for i in places]).tolist()
        counts.update(zip(places, numbers, strict=True))
    return SparsityReport(
        tuple(
            TensorSparsity(name, tuple(t.shape), t.numel(), *counts[i])
            for i, (name, t) in enumerate(named)
        )
    )

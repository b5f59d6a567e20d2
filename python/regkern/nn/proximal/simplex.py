"""Sparse simplex maps and their losses as modules."""

from __future__ import annotations

from torch import Tensor, nn

from regkern import _checks as checks
from regkern.proximal.simplex import (
    Reduction,
    entmax15,
    entmax15_loss,
    sparsemax,
    sparsemax_loss,
)


class Sparsemax(nn.Module):
    """`sparsemax` as a module.

    Parameters
    ----------
    dim : int
        The dimension that adds up to 1.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return sparsemax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Entmax15(nn.Module):
    """`entmax15` as a module.

    Parameters
    ----------
    dim : int
        The dimension that adds up to 1.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return entmax15(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class _Loss(nn.Module):
    def __init__(
        self, dim: int = -1, ignore_index: int = -100, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        checks.one_of(type(self).__name__, "reduction", reduction, ("none", "mean", "sum"))
        self.dim = dim
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction

    def extra_repr(self) -> str:
        return f"dim={self.dim}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"


class SparsemaxLoss(_Loss):
    """`sparsemax_loss` as a module.

    Parameters
    ----------
    dim : int
        The dimension of the classes.
    ignore_index : int
        The class index that is not counted.
    reduction : {"mean", "sum", "none"}
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return sparsemax_loss(x, target, self.dim, self.ignore_index, self.reduction)


class Entmax15Loss(_Loss):
    """`entmax15_loss` as a module.

    Parameters
    ----------
    dim : int
        The dimension of the classes.
    ignore_index : int
        The class index that is not counted.
    reduction : {"mean", "sum", "none"}
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return entmax15_loss(x, target, self.dim, self.ignore_index, self.reduction)

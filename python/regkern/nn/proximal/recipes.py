"""Stablemax, its loss, ASH and the weight compander as modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.proximal.activations import (
    ash,
    compand,
    compand_inverse,
    stablemax,
    stablemax_cross_entropy,
)
from regkern.proximal.simplex import Reduction


class Stablemax(nn.Module):
    """`stablemax` as a module.

    Parameters
    ----------
    dim : int
        The dimension that adds up to 1.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return stablemax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class StablemaxCrossEntropyLoss(nn.Module):
    """`stablemax_cross_entropy` as a module.

    Parameters
    ----------
    dim : int
        The dimension of the classes.
    ignore_index : int
        The class index that is not counted.
    reduction : {"mean", "sum", "none"}
    """

    def __init__(
        self, dim: int = -1, ignore_index: int = -100, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        checks.one_of(type(self).__name__, "reduction", reduction, ("none", "mean", "sum"))
        self.dim = dim
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return stablemax_cross_entropy(x, target, self.dim, self.ignore_index, self.reduction)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, ignore_index={self.ignore_index}, reduction={self.reduction!r}"


class ASH(nn.Module):
    """`ash` as a module.

    Parameters
    ----------
    k : float
        The share of activations above the threshold.
    alpha : float
        The steepness.
    dim : int or sequence of int
        The dimensions over which mean and standard deviation are taken.
    hard : bool
        Hard ASH: zeros below the threshold.
    """

    def __init__(
        self,
        k: float,
        alpha: float = 1.0,
        dim: int | Sequence[int] = -1,
        hard: bool = False,
    ) -> None:
        super().__init__()
        self.k = k
        self.alpha = alpha
        self.dim = dim
        self.hard = hard

    def forward(self, x: Tensor) -> Tensor:
        return ash(x, self.k, self.alpha, self.dim, self.hard)

    def extra_repr(self) -> str:
        return f"k={self.k}, alpha={self.alpha}, dim={self.dim}, hard={self.hard}"


class WeightCompander(nn.Module):
    r"""The parametrization of a weight by `compand`.

    .. math:: w = a \arctan(v / b) + c\, v

    The weight decay of an optimizer then acts on v.

    Parameters
    ----------
    a, b, c : float
        a and b above 0, c at least 0.
    learn : bool
        a, b and c are parameters of the layer, which start at these values. They are not kept in
        their ranges.

    Notes
    -----
    A weight that is assigned, or there when the parametrization is registered, is inverted. For
    c = 0 the largest weight is :math:`a \pi / 2`; larger ones are clipped to it.

    Examples
    --------
    >>> layer = torch.nn.Linear(8, 8)
    >>> compander = WeightCompander(a=1.0, b=0.5)
    >>> torch.nn.utils.parametrize.register_parametrization(layer, "weight", compander)
    """

    def __init__(self, a: float, b: float, c: float = 0.0, learn: bool = False) -> None:
        super().__init__()
        op = type(self).__name__
        for name, value in (("a", a), ("b", b), ("c", c)):
            checks.scale(op, name, value)
            if name != "c" and value == 0:
                raise ValueError(f"regkern.{op}: expected `{name}` above 0, got {value}")
        self.a: float | Tensor = a
        self.b: float | Tensor = b
        self.c: float | Tensor = c
        if learn:
            for name, value in (("a", a), ("b", b), ("c", c)):
                delattr(self, name)
                self.register_parameter(name, nn.Parameter(torch.full((), float(value))))

    def forward(self, v: Tensor) -> Tensor:
        return compand(v, self.a, self.b, self.c)

    def right_inverse(self, w: Tensor) -> Tensor:
        return compand_inverse(w, self.a, self.b, self.c)

    def extra_repr(self) -> str:
        if isinstance(self.a, Tensor):
            return "learned"
        return f"a={self.a}, b={self.b}, c={self.c}"

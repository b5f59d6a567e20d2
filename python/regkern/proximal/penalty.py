"""What every penalty can do."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks


class ProxReport(NamedTuple):
    """What a prox in place left behind. On the device: nothing waits for it.

    Attributes
    ----------
    norms : tuple of Tensor
        The norms of the groups of each tensor, after the prox: zero for a group that is zero.
        Empty where groups are single elements.
    zeros : Tensor
        int64, 0-d: how many groups (elements, where groups are those) are zero, in all tensors
        together.
    """

    norms: tuple[Tensor, ...]
    zeros: Tensor


class Penalty(abc.ABC):
    r"""A regularizer :math:`r`, its value and its proximal operator

    .. math::
        \operatorname{prox}_{\tau r}(x) =
            \arg\min_z \tfrac{1}{2} \lVert z - x \rVert^2 + \tau\, r(z)

    with step :math:`\tau`. ``lam`` is the factor in front of the regularizer: a number or a 0-d
    tensor, which schedules may change.
    """

    lam: float | Tensor

    def __init__(self, lam: float | Tensor) -> None:
        checks.scale(type(self).__name__, "lam", lam)
        self.lam = lam

    @abc.abstractmethod
    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """r(x), 0-d and differentiable; for several tensors the sum over them."""

    @abc.abstractmethod
    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The proximal operator, differentiable in x, ``step`` and ``lam``."""

    @abc.abstractmethod
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        """The proximal operator in place, of all tensors in one call. Not recorded by autograd."""


def threshold(like: Tensor, *factors: float | Tensor | None) -> Tensor:
    """The product of the factors as a 0-d tensor in the compute type, on the device of ``like``.

    Differentiable in the factors that are tensors; Python numbers are multiplied first, and become
    a tensor without a copy from the host.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    number = 1.0
    product: Tensor | None = None
    for factor in factors:
        if isinstance(factor, Tensor):
            factor = factor.to(device=like.device, dtype=dtype)
            product = factor if product is None else product * factor
        elif factor is not None:
            number = number * factor
    if product is None:
        return torch.full((), number, dtype=dtype, device=like.device)
    return product if number == 1.0 else product * number

"""Convolutions whose weight is sparse, trained at the cost of its entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.nn.sparse.base import SparseLayer, entries_of
from regkern.sparse.convolutions import sparse_conv1d, sparse_conv2d
from regkern.sparse.pattern import SparsePattern

_Numbers = int | Sequence[int]
_Self = TypeVar("_Self", bound="_SparseConv")


class _SparseConv(SparseLayer):
    """What both share: the arguments of torch's layers, and the way from and to these."""

    _dense: Any  # torch's layer

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        padding_mode: str,
        activation: str,
        density: float,
        pattern: SparsePattern | None,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        op = type(self).__name__
        checks.one_of(op, "activation", activation, ("none", "relu"))
        modes = ("zeros", "reflect", "replicate", "circular")
        checks.one_of(op, "padding_mode", padding_mode, modes)
        checks.at_least(op, "groups", groups, 1)
        checks.at_least(op, "kernel_size", min(kernel_size), 1)
        if in_channels % groups != 0 or out_channels % groups != 0:
            raise ValueError(
                f"regkern.{op}: expected `groups` that divide {in_channels} and {out_channels} "
                f"channels, got {groups}"
            )
        shape = (out_channels, in_channels // groups, *kernel_size)
        super().__init__(shape, density, pattern, bias, generator, device, dtype)
        self.in_channels, self.out_channels, self.kernel_size = (
            in_channels,
            out_channels,
            kernel_size,
        )
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.padding_mode, self.activation = groups, padding_mode, activation

    @classmethod
    def _from(
        cls: type[_Self], conv: Any, density: float | None, pattern: SparsePattern | None
    ) -> _Self:
        layer: Any = cls
        made: _Self = layer(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            pattern=entries_of(cls.__name__, conv.weight, density, pattern),
            dtype=conv.weight.dtype,
        )
        made._take(conv.weight, conv.bias)
        made.train(conv.training)
        return made

    def _to(self) -> Any:
        made = self._dense(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            self.values.device,
            self.values.dtype,
        )
        self._give(made.weight, made.bias)
        return made

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, "
            f"groups={self.groups}, padding_mode={self.padding_mode!r}, "
            f"{self._describe_weight()}, activation={self.activation!r}"
        )


class SparseConv2d(_SparseConv):
    r"""A convolution with a sparse weight: :func:`regkern.sparse.sparse_conv2d` as a module.

    .. math:: y = \sigma(W * x + b)

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As of ``torch.nn.Conv2d``; ``padding`` may also be four numbers: left, right, top and
        bottom.
    density : float
        The share of the entries of W there are, at random places; not used with ``pattern``.
    pattern : SparsePattern, optional
        Where the entries are, of shape (O, I / groups · KH · KW).
    activation : str
        :math:`\sigma`: ``"none"`` or ``"relu"``.
    generator : torch.Generator, optional
        Of the random places.

    Attributes
    ----------
    values : Parameter
        The entries (nnz,), a parameter for any optimizer, drawn from
        :math:`U(-k_o^{-1/2}, k_o^{-1/2})` with :math:`k_o` entries of the output.
    pattern : SparsePattern
        Where they are. It is saved with the state, and loading one of another pattern takes that.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    16 bytes an entry with the pattern, and none for what is no entry.
    """

    _dense = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Numbers,
        stride: _Numbers = 1,
        padding: _Numbers | str = 0,
        dilation: _Numbers = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        activation: str = "none",
        density: float = 0.1,
        pattern: SparsePattern | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        size = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        super().__init__(
            in_channels,
            out_channels,
            size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            activation,
            density,
            pattern,
            generator,
            device,
            dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        return sparse_conv2d(
            x,
            self.values,
            self._pattern,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.kernel_size,
            self.padding_mode,
            self.activation,
        )

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, density: float | None = None, pattern: SparsePattern | None = None
    ) -> SparseConv2d:
        """The entries of a dense layer: those of a pattern, the largest ones, or without either
        all that are not 0."""
        return cls._from(conv, density, pattern)

    def to_conv(self) -> nn.Conv2d:
        """The dense layer with the same weight. An activation is not part of it, and four paddings
        it does not have."""
        if not isinstance(self.padding, int | str) and len(self.padding) == 4:
            raise ValueError(
                "regkern.SparseConv2d: expected `padding` of one or two numbers, which torch's "
                f"layer has, got {self.padding}"
            )
        made: nn.Conv2d = self._to()
        return made


class SparseConv1d(_SparseConv):
    r"""A convolution of rows with a sparse weight: :func:`regkern.sparse.sparse_conv1d` as a
    module.

    .. math:: y = \sigma(W * x + b)

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As of ``torch.nn.Conv1d``.
    activation, density, pattern, generator
        As of :class:`SparseConv2d`; the pattern is of shape (O, I / groups · K).

    Attributes
    ----------
    values, pattern
        As of :class:`SparseConv2d`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    """

    _dense = nn.Conv1d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Numbers,
        stride: _Numbers = 1,
        padding: _Numbers | str = 0,
        dilation: _Numbers = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        activation: str = "none",
        density: float = 0.1,
        pattern: SparsePattern | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            (_one(kernel_size),),
            _one(stride),
            padding,
            _one(dilation),
            groups,
            bias,
            padding_mode,
            activation,
            density,
            pattern,
            generator,
            device,
            dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        return sparse_conv1d(
            x,
            self.values,
            self._pattern,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
            self.activation,
        )

    @classmethod
    def from_conv(
        cls, conv: nn.Conv1d, density: float | None = None, pattern: SparsePattern | None = None
    ) -> SparseConv1d:
        """The entries of a dense layer: those of a pattern, the largest ones, or without either
        all that are not 0."""
        return cls._from(conv, density, pattern)

    def to_conv(self) -> nn.Conv1d:
        """The dense layer with the same weight. An activation is not part of it, and two paddings
        it does not have."""
        if not isinstance(self.padding, int | str) and len(self.padding) == 2:
            raise ValueError(
                "regkern.SparseConv1d: expected `padding` of one number, which torch's layer has, "
                f"got {self.padding}"
            )
        made: nn.Conv1d = self._to()
        return made


def _one(value: _Numbers) -> int:
    """torch's layers keep a tuple of one."""
    return value if isinstance(value, int) else value[0]

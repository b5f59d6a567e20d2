"""Dense convolutions of which some entries of the weight are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regkern.nn.sparse.masked import MaskedLayer
from regkern.sparse.masked_conv import masked_conv1d, masked_conv2d
from regkern.sparse.pattern import SparsePattern


class _MaskedConv(MaskedLayer):
    """What both share."""

    _arguments = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    def __init__(
        self,
        conv: Any,
        pattern: SparsePattern,
        form: str = "entries",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__("conv", conv, pattern, form, dtype)


class MaskedConv2d(_MaskedConv):
    r"""A dense convolution of which the entries of a pattern are trained (SaRA, SHiRA, LT-SFT).

    .. math:: y = W * x + b, \qquad W_e = v_e \ \text{or}\ w_e + v_e \ \text{at the entries } e

    :class:`MaskedLinear` for convolutions: the dense weight holds the entries at all times. See
    :func:`regkern.sparse.masked_conv2d` for the gradients.

    Parameters
    ----------
    conv : torch.nn.Conv2d
        The layer. Its weight is taken over, not copied unless its channels are last: entries are
        written into it. Its bias remains what it is, trained or not.
    pattern : SparsePattern
        Which entries are trained, of shape (O, I / groups · KH · KW).
    form, dtype
        As of :class:`MaskedLinear`.

    Attributes
    ----------
    values, weight, base, pattern
        As of :class:`MaskedLinear`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    See :class:`MaskedLinear`. The weight stays row-major where a module is moved to channels last;
    images may be either, and results are as of torch's layer.
    """

    _dense = nn.Conv2d

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        density: float | None = None,
        pattern: SparsePattern | None = None,
        form: str = "entries",
    ) -> MaskedConv2d:
        """Trains the entries of a pattern, or the share of the largest magnitude."""
        return cls(conv, cls._pattern_of(conv, density, pattern), form)

    def forward(self, x: Tensor) -> Tensor:
        self._ready()
        return masked_conv2d(
            x,
            self.weight,
            self.values,
            self._pattern,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.padding_mode,
        )

    def to_conv(self) -> nn.Conv2d:
        """The dense layer with its weight, which is not copied."""
        made: nn.Conv2d = self._to_dense()
        return made

    def remove(self) -> nn.Conv2d:
        """The dense layer as it was, bit for bit. With ``form="delta"``; this layer is at its
        beginning again, with values of 0."""
        made: nn.Conv2d = self._removed()
        return made


class MaskedConv1d(_MaskedConv):
    r"""A dense convolution of rows of which the entries of a pattern are trained:
    :class:`MaskedConv2d` for ``torch.nn.Conv1d``.

    Parameters
    ----------
    conv : torch.nn.Conv1d
        The layer. Its weight is taken over, not copied: entries are written into it.
    pattern : SparsePattern
        Which entries are trained, of shape (O, I / groups · K).
    form, dtype
        As of :class:`MaskedLinear`.

    Attributes
    ----------
    values, weight, base, pattern
        As of :class:`MaskedLinear`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    """

    _dense = nn.Conv1d

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv1d,
        density: float | None = None,
        pattern: SparsePattern | None = None,
        form: str = "entries",
    ) -> MaskedConv1d:
        """Trains the entries of a pattern, or the share of the largest magnitude."""
        return cls(conv, cls._pattern_of(conv, density, pattern), form)

    def forward(self, x: Tensor) -> Tensor:
        self._ready()
        return masked_conv1d(
            x,
            self.weight,
            self.values,
            self._pattern,
            self.bias,
            self.stride[0],
            self.padding,
            self.dilation[0],
            self.groups,
            self.padding_mode,
        )

    def to_conv(self) -> nn.Conv1d:
        """The dense layer with its weight, which is not copied."""
        made: nn.Conv1d = self._to_dense()
        return made

    def remove(self) -> nn.Conv1d:
        """The dense layer as it was, bit for bit. With ``form="delta"``; this layer is at its
        beginning again, with values of 0."""
        made: nn.Conv1d = self._removed()
        return made

"""Dropout as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.masks.dropping import dropout, dropout_


class _Dropout(nn.Module):
    """What the layers share: p, and which dimensions of an input share their fate."""

    def __init__(
        self,
        p: float | Tensor = 0.5,
        *,
        scale: bool = True,
        always: bool = False,
        copies: int | None = None,
        inplace: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(p, Tensor):
            checks.probability(type(self).__name__, "p", p)
        if inplace and copies is not None:
            raise ValueError(
                f"regkern.{type(self).__name__}: expected `inplace` or `copies`, got both"
            )
        self.p = p
        self.scale = scale
        self.always = always
        self.copies = copies
        self.inplace = inplace
        self.generator = generator

    @property
    def drop_prob(self) -> float | Tensor:
        """`p` under the name that timm, and schedules written for it, use."""
        return self.p

    @drop_prob.setter
    def drop_prob(self, value: float | Tensor) -> None:
        self.p = value

    def _shared(self, x: Tensor) -> Sequence[int]:
        return ()

    def forward(self, x: Tensor) -> Tensor:
        options: dict[str, Any] = {"shared": self._shared(x), "scale": self.scale}
        training = self.training or self.always
        if self.inplace:
            return dropout_(x, self.p, training, generator=self.generator, **options)
        return dropout(x, self.p, training, copies=self.copies, generator=self.generator, **options)

    def extra_repr(self) -> str:
        one = not isinstance(self.p, Tensor) or self.p.numel() == 1
        shown = [f"p={float(self.p):g}" if one else "p=..."]
        plain = {"scale": True, "always": False, "copies": None, "inplace": False}
        shown += [f"{k}={getattr(self, k)}" for k, v in plain.items() if getattr(self, k) != v]
        return ", ".join(shown)


class Dropout(_Dropout):
    r"""Dropout of elements, or of what dimensions share, as a layer.

    .. math:: y = x \odot M \cdot \frac{1}{1 - p}, \qquad M \sim \mathrm{Bernoulli}(1 - p)

    Parameters
    ----------
    p : float or Tensor
        As of :func:`regkern.dropout`; may be set at any time, and filling a tensor in place does
        not recompile. Also called ``drop_prob``.
    shared : int or sequence of int
        Dimensions that share one draw: 0 of (T, B, D) is locked dropout.
    scale : bool
        Whether what is kept is multiplied by :math:`1/(1-p)`.
    always : bool
        Drop in eval mode as well (Monte-Carlo dropout).
    copies : int, optional
        That many results of independent masks, stacked in front.
    inplace : bool
        Write over x.
    generator : torch.Generator, optional
        Of x's device; default: torch's own.

    Notes
    -----
    The layer has no parameters and no buffers. Bytes moved: those of :func:`regkern.dropout`.
    """

    def __init__(
        self, p: float | Tensor = 0.5, shared: int | Sequence[int] = (), **options: Any
    ) -> None:
        super().__init__(p, **options)
        self.shared = (shared,) if isinstance(shared, int) else tuple(shared)

    def _shared(self, x: Tensor) -> Sequence[int]:
        return self.shared

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return f"{text}, shared={self.shared}" if self.shared else text


class _ChannelDropout(_Dropout):
    ndim: int

    def _shared(self, x: Tensor) -> Sequence[int]:
        if x.dim() not in (self.ndim + 1, self.ndim + 2):
            raise ValueError(
                f"regkern.{type(self).__name__}: expected an input of rank {self.ndim + 1} or "
                f"{self.ndim + 2}, got {x.dim()}"
            )
        return tuple(range(-self.ndim, 0))


class Dropout1d(_ChannelDropout):
    """`Dropout2d` of (N, C, L) or (C, L)."""

    ndim = 1


class Dropout2d(_ChannelDropout):
    """Dropout of whole channels of (N, C, H, W) or (C, H, W); parameters as of `Dropout`.

    References
    ----------
    Tompson, Goroshin, Jain, LeCun and Bregler, "Efficient object localization using convolutional
    networks", CVPR 2015.
    """

    ndim = 2


class Dropout3d(_ChannelDropout):
    """`Dropout2d` of (N, C, D, H, W) or (C, D, H, W)."""

    ndim = 3


class DropPath(_Dropout):
    """Stochastic depth: dropout of whole samples, of what a residual branch adds.

    Parameters
    ----------
    p : float or Tensor
        Probability that a sample loses the branch.
    per : {"sample", "batch"}
        What has a draw of its own.
    scale, always, copies, inplace, generator
        As of `Dropout`.

    References
    ----------
    Huang, Sun, Liu, Sedra and Weinberger, "Deep networks with stochastic depth", ECCV 2016.
    """

    def __init__(self, p: float | Tensor = 0.0, per: str = "sample", **options: Any) -> None:
        super().__init__(p, **options)
        checks.one_of("DropPath", "per", per, ("sample", "batch"))
        self.per = per

    def _shared(self, x: Tensor) -> Sequence[int]:
        return range(0 if self.per == "batch" else 1, x.dim())

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.per == "sample" else f"{text}, per={self.per!r}"

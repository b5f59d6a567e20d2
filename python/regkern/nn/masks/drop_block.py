"""DropBlock as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regkern.masks import drop_block, drop_block_
from regkern.masks.drop_block import Border, Normalize, Per

# ---- DropBlock ----

#: What `extra_repr` shows only where it differs from the default.
_DROP_BLOCK_DEFAULTS: dict[str, Any] = {
    "border": "valid",
    "per": "channel",
    "normalize": "count",
    "gamma": "exact",
    "gamma_scale": 1.0,
    "activation": None,
    "noise": 0.0,
    "inplace": False,
    "save": "mask",
    "generator": None,
}


class _DropBlock(nn.Module):
    ndim: int

    def __init__(
        self,
        p: float | Tensor = 0.1,
        block_size: int | Sequence[int] = 7,
        *,
        border: Border = "valid",
        per: Per = "channel",
        normalize: Normalize = "count",
        gamma: Literal["exact", "paper"] = "exact",
        gamma_scale: float = 1.0,
        activation: Literal["relu"] | None = None,
        noise: float = 0.0,
        inplace: bool = False,
        save: Literal["mask", "seed"] = "mask",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = list(block_size) if isinstance(block_size, Sequence) else [block_size]
        # The function checks its own arguments, here on nothing.
        drop_block(
            torch.empty((0,) * (self.ndim + 2)),
            p,
            sizes if len(sizes) != 1 else sizes * self.ndim,
            ndim=self.ndim,
            training=False,
            border=border,
            per=per,
            normalize=normalize,
            gamma=gamma,
            gamma_scale=gamma_scale,
            activation=activation,
            noise=noise,
            save=save,
        )
        self.p = p
        self.block_size = tuple(sizes) if len(sizes) == self.ndim else (sizes[0],) * self.ndim
        self.border: Border = border
        self.per: Per = per
        self.normalize: Normalize = normalize
        self.gamma: Literal["exact", "paper"] = gamma
        self.gamma_scale = gamma_scale
        self.activation: Literal["relu"] | None = activation
        self.noise = noise
        self.inplace = inplace
        self.save: Literal["mask", "seed"] = save
        self.generator = generator

    @property
    def drop_prob(self) -> float | Tensor:
        """`p` under the name that timm and dropblock, and schedules written for them, use."""
        return self.p

    @drop_prob.setter
    def drop_prob(self, value: float | Tensor) -> None:
        self.p = value

    def _law(self, x: Tensor) -> tuple[Sequence[int], float]:
        """The block and the factor on the seed rate for an input."""
        return self.block_size, self.gamma_scale

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        block_size, gamma_scale = self._law(x)
        return (drop_block_ if self.inplace else drop_block)(
            x,
            self.p,
            block_size,
            training=self.training,
            border=self.border,
            per=self.per,
            normalize=self.normalize,
            gamma=self.gamma,
            gamma_scale=gamma_scale,
            activation=self.activation,
            residual=residual,
            noise=self.noise,
            save=self.save,
            generator=self.generator,
        )

    def extra_repr(self) -> str:
        p = float(self.p) if isinstance(self.p, Tensor) else self.p
        block: object = self.block_size
        if len(set(self.block_size)) == 1:
            block = self.block_size[0]
        shown = [f"p={p:g}", f"block_size={block}"]
        for name, default in _DROP_BLOCK_DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                shown.append(f"{name}=..." if name == "generator" else f"{name}={value!r}")
        return ", ".join(shown)


class DropBlock1d(_DropBlock):
    """`DropBlock2d` of (N, C, L) or (C, L)."""

    ndim = 1


class DropBlock2d(_DropBlock):
    r"""DropBlock as a layer.

    .. math::
        S \sim \mathrm{Bernoulli}(\gamma), \qquad M = 1 - \mathrm{dilate}(S, k), \qquad
        y = \mathrm{act}(x \odot M \cdot s + \varepsilon \odot (1 - M) + r)

    In eval mode, and with p = 0, :math:`y = \mathrm{act}(x + r)`: x itself where there is neither
    activation nor residual. Called as ``layer(x)`` or ``layer(x, residual)``.

    Parameters
    ----------
    p : float or 0-d Tensor
        Share of the elements to drop. May be set at any time; filling a tensor in place does not
        recompile. Also called ``drop_prob``.
    block_size : int or tuple of int
        Extent of a block, per dimension.
    inplace : bool
        Writes over x.
    border, per, normalize, gamma, gamma_scale, activation, noise, save
        As of `regkern.drop_block`.
    generator : torch.Generator, optional
        Of x's device; default: torch's own.

    Notes
    -----
    x is (N, C, H, W) or (C, H, W). The layer has no parameters and no buffers. Bytes moved: those
    of `regkern.drop_block`.

    References
    ----------
    Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks", NeurIPS
    2018.
    """

    ndim = 2


class DropBlock3d(_DropBlock):
    """`DropBlock2d` of (N, C, D, H, W) or (C, D, H, W)."""

    ndim = 3

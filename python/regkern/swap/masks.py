"""Swap rules of the mask family: torchvision's, timm's and miguelvr's DropBlock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regkern.nn.masks.drop_block import DropBlock2d, DropBlock3d, _DropBlock
from regkern.swap import NoCounterpart, register_swap


class _SmallestSide(_DropBlock):
    """torchvision's rule for a block larger than the map: the smallest side, in all dimensions."""

    def _law(self, x: Tensor) -> tuple[Sequence[int], float]:
        smallest = min(x.shape[-self.ndim :])
        return [min(k, smallest) for k in self.block_size], self.gamma_scale


class TorchvisionDropBlock2d(_SmallestSide, DropBlock2d):
    """In the place of ``torchvision.ops.DropBlock2d``."""


class TorchvisionDropBlock3d(_SmallestSide, DropBlock3d):
    """In the place of ``torchvision.ops.DropBlock3d``."""


def _torchvision(old: Any, new: type[_DropBlock]) -> nn.Module:
    if old.block_size % 2 == 0:
        raise NoCounterpart(f"torchvision refuses an even block size, and it has {old.block_size}")
    # The kept count plus eps; a share of 1e-6 of one element is below float32's resolution.
    if not 0.0 < old.eps <= 1e-6:
        raise NoCounterpart(f"eps={old.eps} changes the scale; only up to 1e-6 has a counterpart")
    return new(old.p, old.block_size, inplace=old.inplace, gamma="paper")


@register_swap("torchvision.ops.drop_block.DropBlock2d")
def _torchvision_2d(old: Any) -> nn.Module:
    return _torchvision(old, TorchvisionDropBlock2d)


@register_swap("torchvision.ops.drop_block.DropBlock3d")
def _torchvision_3d(old: Any) -> nn.Module:
    return _torchvision(old, TorchvisionDropBlock3d)


@register_swap("timm.layers.drop.DropBlock2d")
def _timm(old: Any) -> nn.Module:
    if not hasattr(old, "couple_channels"):
        raise NoCounterpart("timm before 1.0.23 has another law")
    if old.with_noise and old.couple_channels:
        raise NoCounterpart(
            "with_noise and couple_channels put the same noise in all channels; ours is drawn per "
            "element"
        )
    # Noise takes the place of the scale there.
    scaled = old.scale_by_keep and not old.with_noise
    return DropBlock2d(
        0.0 if old.drop_prob is None else old.drop_prob,
        old.block_size,
        border="same",
        gamma="paper",
        gamma_scale=old.gamma_scale,
        per="sample" if old.couple_channels else "channel",
        normalize="count" if scaled else "none",
        noise=1.0 if old.with_noise else 0.0,
        inplace=old.inplace,
    )


class _Area(_DropBlock):
    """Seed rate γ = p / kᵈ, at any map size, around any element of the map."""

    def _law(self, x: Tensor) -> tuple[Sequence[int], float]:
        # The paper's rate is p / kᵈ · Π n / (n − k + 1).
        sizes = x.shape[-self.ndim :]
        places = math.prod(n - k + 1 for n, k in zip(sizes, self.block_size, strict=True))
        return self.block_size, self.gamma_scale * places / math.prod(sizes)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        sizes = x.shape[-self.ndim :]
        if self.training and any(k > n for n, k in zip(sizes, self.block_size, strict=True)):
            # Our blocks shrink to the map; there they do not, and reach over its far side.
            x = self._larger_than_the_map(x)
            return x if residual is None else x + residual
        return super().forward(x, residual)

    def _larger_than_the_map(self, x: Tensor) -> Tensor:
        k = self.block_size[0]
        seeds = torch.rand((x.shape[0], 1, *x.shape[2:]), device=x.device) < self.p / k**self.ndim
        pool = F.max_pool2d if self.ndim == 2 else F.max_pool3d
        mask = 1.0 - pool(seeds.float(), k, 1, k // 2)
        scale = mask.numel() / mask.sum().clamp(min=1.0)
        return x * (mask * scale).to(x.dtype)


class AreaDropBlock2d(_Area, DropBlock2d):
    """In the place of ``dropblock.DropBlock2D``."""


class AreaDropBlock3d(_Area, DropBlock3d):
    """In the place of ``dropblock.DropBlock3D``."""


def _dropblock(old: Any, new: type[_DropBlock]) -> nn.Module:
    if old.block_size % 2 == 0:
        raise NoCounterpart(
            f"an even block ({old.block_size}) reaches further to the far side there, to the near "
            f"side here"
        )
    return new(old.drop_prob, old.block_size, border="same", gamma="paper", per="sample")


@register_swap("dropblock.dropblock.DropBlock2D")
def _dropblock_2d(old: Any) -> nn.Module:
    return _dropblock(old, AreaDropBlock2d)


@register_swap("dropblock.dropblock.DropBlock3D")
def _dropblock_3d(old: Any) -> nn.Module:
    return _dropblock(old, AreaDropBlock3d)

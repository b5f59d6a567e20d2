"""Swap rules of dropout: torch's layers, torchvision's and timm's stochastic depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from regkern.nn.masks.dropout import Dropout, Dropout1d, Dropout2d, Dropout3d, DropPath
from regkern.swap import register_swap


class TorchDropout2d(Dropout2d):
    """In the place of ``torch.nn.Dropout2d``, which takes (A, B, C) for (N, C, L)."""

    def _shared(self, x: Tensor) -> Sequence[int]:
        return (-1,) if x.dim() == 3 else super()._shared(x)


@register_swap("torch.nn.modules.dropout.Dropout")
def _dropout(old: Any) -> nn.Module:
    return Dropout(old.p, inplace=old.inplace)


@register_swap("torch.nn.modules.dropout.Dropout1d")
def _dropout_1d(old: Any) -> nn.Module:
    return Dropout1d(old.p, inplace=old.inplace)


@register_swap("torch.nn.modules.dropout.Dropout2d")
def _dropout_2d(old: Any) -> nn.Module:
    return TorchDropout2d(old.p, inplace=old.inplace)


@register_swap("torch.nn.modules.dropout.Dropout3d")
def _dropout_3d(old: Any) -> nn.Module:
    return Dropout3d(old.p, inplace=old.inplace)


@register_swap("torchvision.ops.stochastic_depth.StochasticDepth")
def _stochastic_depth(old: Any) -> nn.Module:
    return DropPath(old.p, "batch" if old.mode == "batch" else "sample")


@register_swap("timm.layers.drop.DropPath")
def _drop_path(old: Any) -> nn.Module:
    return DropPath(0.0 if old.drop_prob is None else old.drop_prob, scale=old.scale_by_keep)

"""Swap rules of patch dropout: timm's layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from regkern.nn.masks.patches import PatchDropout
from regkern.swap import register_swap

# Ours keeps tokens in their order, which is one of the orders that timm's may give: what is kept
# has the same law.


@register_swap("timm.layers.patch_dropout.PatchDropout")
def _patch_dropout(old: Any) -> nn.Module:
    return PatchDropout(old.prob, old.num_prefix_tokens)


@register_swap("timm.layers.patch_dropout.PatchDropoutWithIndices")
def _patch_dropout_with_indices(old: Any) -> nn.Module:
    return PatchDropout(old.prob, old.num_prefix_tokens, return_indices=True)

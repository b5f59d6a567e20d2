"""Swaps the slow layers of a model for those of regkern, and says what it swapped.

A rule stands under the qualified name of the class that it replaces, so no rival is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regkern.nn.masks.drop_block import DropBlock2d, DropBlock3d, _DropBlock

Rule = Callable[[Any], nn.Module]

_RULES: dict[str, Rule] = {}


class NoCounterpart(Exception):
    """Raised by a rule: this layer has settings that no layer of ours has. The text says which."""


def register_swap(qualified_name: str) -> Callable[[Rule], Rule]:
    """Registers the rule that replaces a class of layers.

    Parameters
    ----------
    qualified_name : str
        Module, where the class is defined, and name: ``"torchvision.ops.drop_block.DropBlock2d"``.

    Returns
    -------
    decorator
        Of a function from the old layer to the new one. The new one computes the same, or draws
        from the same law; it holds the very parameters and buffers of the old one, under the same
        names. The rule raises `NoCounterpart` where there is no such layer, and changes nothing.
        Training flag and bookkeeping are `swap`'s.

    Examples
    --------
    >>> @register_swap("my_package.layers.DropBlock2d")
    ... def _(old):
    ...     return regkern.nn.DropBlock2d(old.p, old.block_size, gamma="paper")
    """

    def decorate(rule: Rule) -> Rule:
        _RULES[qualified_name] = rule
        return rule

    return decorate


class Swapped(NamedTuple):
    """A layer that was replaced: where, its class, and what stands there now."""

    name: str
    old: str
    new: str


class Left(NamedTuple):
    """A layer that was recognised and left as it was."""

    name: str
    layer: str
    reason: str


class SwapReport:
    """What `swap` did.

    Attributes
    ----------
    swapped : list of (name, old, new)
    left : list of (name, class, reason)
        Layers that `swap` knows, or that derive from one it knows, and did not touch.
    model : nn.Module
        The model to go on with: the one given, except where the model itself is such a layer.
        Nothing holds that one which could be told, so it cannot be replaced in place.
    dry_run : bool
    """

    def __init__(self, model: nn.Module, dry_run: bool) -> None:
        self.model = model
        self.dry_run = dry_run
        self.swapped: list[Swapped] = []
        self.left: list[Left] = []

    def __repr__(self) -> str:
        return f"SwapReport(swapped={self.swapped!r}, left={self.left!r})"

    def __str__(self) -> str:
        if not self.swapped and not self.left:
            return "regkern.swap: found no layer that it knows"
        verb = "would swap" if self.dry_run else "swapped"
        lines = [f"regkern.swap: {verb} {len(self.swapped)}, left {len(self.left)}"]
        rows = [(name, f"{old} → {new}") for name, old, new in self.swapped]
        rows += [(name, f"{layer} left: {reason}") for name, layer, reason in self.left]
        width = max(len(_where(name)) for name, _ in rows)
        lines += [f"  {_where(name):<{width}}  {text}" for name, text in rows]
        if any(not name for name, _, _ in self.swapped):
            lines.append(
                "  The model itself is such a layer and cannot be replaced in place: go on with "
                "`report.model`."
            )
        return "\n".join(lines)


def _where(name: str) -> str:
    return name or "(the model)"


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def _obstacle(layer: nn.Module) -> str | None:
    """Why a layer of a known class must stay, or None."""
    # A parametrized layer is of a class made on the spot, derived from its own.
    if "parametrizations" in layer._modules:
        return "it is parametrized"
    if _qualified(type(layer)) not in _RULES:
        return "it is a subclass and may do something else"
    hooks = [name for name in _HOOKS if getattr(layer, name, None)]
    if hooks:
        return f"it carries hooks ({', '.join(name.strip('_') for name in hooks)})"
    if "forward" in vars(layer):
        return "its forward has been replaced on the instance"
    if layer._compiled_call_impl is not None:
        return "it is compiled: swap first, then compile"
    return None


def _known(layer: nn.Module) -> bool:
    return any(_qualified(cls) in _RULES for cls in type(layer).__mro__)


def _tensors(layer: nn.Module) -> dict[str, int]:
    named = [*layer.named_parameters(), *layer.named_buffers()]
    return {name: id(tensor) for name, tensor in named}


def _replacement(layer: nn.Module) -> nn.Module | str:
    """The new layer, or why there is none."""
    reason = _obstacle(layer)
    if reason is not None:
        return reason
    try:
        new = _RULES[_qualified(type(layer))](layer)
    except (NoCounterpart, TypeError, ValueError) as error:
        return str(error)
    if _tensors(new) != _tensors(layer):
        return f"it holds {sorted(_tensors(layer))}, the replacement {sorted(_tensors(new))}"
    return new.train(layer.training)


def swap(model: nn.Module, *, dry_run: bool = False) -> SwapReport:
    """Replaces, in place, the layers of a model that regkern has a faster form of.

    The new layers draw from the same law as the old ones, in training and in eval mode. Parameters,
    buffers and so the ``state_dict`` stay, training flags too, and a layer that stands in several
    places still does. A layer is left, and the reason given, where that cannot be had: a subclass,
    hooks, a parametrization, a setting without a counterpart.

    Known: ``torchvision.ops.DropBlock2d`` and ``DropBlock3d``; ``timm.layers.DropBlock2d``
    (1.0.23 and newer); ``dropblock.DropBlock2D`` and ``DropBlock3D``, under its
    ``LinearScheduler`` too. `register_swap` adds others.

    Parameters
    ----------
    model : nn.Module
        Before ``torch.compile`` and before distributed wrappers.
    dry_run : bool
        Only report.

    Returns
    -------
    SwapReport
        Print it. ``report.model`` is the model to go on with.

    Notes
    -----
    Only registered modules are found, no functions (``torchvision.ops.drop_block2d``) and nothing
    in plain lists. Where the old layer gives NaN or zeros (everything dropped; more than 65504
    elements kept in float16), the new one gives the result of the definition; and it keeps the
    input's dtype.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"regkern.swap: expected `model` to be a module, got {type(model)}")
    report = SwapReport(model, dry_run)
    # By identity: a layer that stands in several places becomes one layer in the same places.
    results: dict[int, nn.Module | str] = {}

    def look_at(name: str, layer: nn.Module) -> nn.Module | None:
        if not _known(layer):
            return None
        if id(layer) not in results:
            results[id(layer)] = _replacement(layer)
        result = results[id(layer)]
        if isinstance(result, str):
            report.left.append(Left(name, _qualified(type(layer)), result))
            return None
        report.swapped.append(Swapped(name, _qualified(type(layer)), repr(result)))
        return None if dry_run else result

    new_root = look_at("", model)
    if new_root is not None:
        report.model = new_root
    # A snapshot, as the tree changes on the way.
    for parent_name, parent in list(model.named_modules()):
        if isinstance(results.get(id(parent)), nn.Module):
            continue
        for child_name, child in parent._modules.items():
            if child is None:
                continue
            new = look_at(f"{parent_name}.{child_name}".lstrip("."), child)
            if new is not None:
                parent._modules[child_name] = new
    return report


# ---- masks ----


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

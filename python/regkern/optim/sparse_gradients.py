"""The largest gradients of sparse layers where they have no entries, from what went through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from regkern.nn.sparse.base import SparseLayer
from regkern.optim.sparse_processes import Processes
from regkern.proximal.thresholds import top_k_mask
from regkern.sparse.convolutions import sample_conv2d
from regkern.sparse.growing import (
    Candidates,
    Pairs,
    conv_candidates,
    linear_candidates,
    where,
)
from regkern.sparse.pattern import SparsePattern
from regkern.sparse.places import pattern_at
from regkern.sparse.products import sddmm

_OP = "optim.SparseTraining"


class Gradients:
    """Keeps inputs and gradients of outputs of layers while they are wanted."""

    def __init__(self, layers: Mapping[str, SparseLayer], wanted: Callable[[], bool]) -> None:
        self._layers, self._wanted = layers, wanted
        self._pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
        self._hooks = [
            layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()
        ]

    def _hook(self, name: str) -> Callable[..., None]:
        def after(layer: Any, args: tuple[Any, ...], y: Tensor) -> None:
            if not (self._wanted() and torch.is_grad_enabled() and y.requires_grad):
                return
            x, out = args[0].detach(), y.detach()
            relu = getattr(layer, "activation", "none") == "relu"

            def keep(g: Tensor) -> None:
                g = g.detach()
                self._pairs[name].append((torch.where(out <= 0, 0.0, g) if relu else g, x))

            y.register_hook(keep)  # type: ignore[no-untyped-call]

        return after

    def check(self, processes: Processes) -> None:
        """Raises, in all processes, where one has no gradients of a layer."""
        device = next(iter(self._layers.values())).pattern.device
        processes.check_all(
            {name: bool(pairs) for name, pairs in self._pairs.items()},
            device,
            "regkern.optim.SparseTraining: expected a backward through {} in this step, got none; "
            "a compiled model calls no hooks, so call the original where `due` is true",
        )

    def largest_free(
        self, name: str, pattern: SparsePattern, k: int, processes: Processes, exchange: str
    ) -> Tensor:
        """Places, rising: where the gradients are largest, summed over processes."""
        layer, pairs = self._layers[name], self._pairs[name]
        if processes.size == 1:
            return _candidates(layer, pairs, pattern, k).places
        if exchange == "panels":
            return processes.first(_candidates(layer, pairs, pattern, k, processes.sum).places)
        own = _candidates(layer, pairs, pattern, k).places
        if k == 0:
            return own
        places: Tensor = torch.unique(torch.cat(processes.gather(own)))
        scores = processes.sum(_scores_at(layer, pairs, pattern_at(places, pattern.shape)))
        return processes.first(places[where(top_k_mask(scores.abs(), k)[0])])

    def clear(self) -> None:
        for pairs in self._pairs.values():
            pairs.clear()

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _candidates(
    layer: Any,
    pairs: Pairs,
    pattern: SparsePattern,
    k: int,
    of_all: Callable[[Tensor], Tensor] | None = None,
) -> Candidates:
    if len(layer.weight_shape) == 2:
        return linear_candidates(_OP, pairs, pattern, k, layer.feature_major, of_all)
    pairs, options = _as_images(layer, pairs)
    return conv_candidates(_OP, pairs, pattern, k, **options, of_all=of_all)


def _scores_at(layer: Any, pairs: Pairs, pattern: SparsePattern) -> Tensor:
    """The gradient at the entries of a pattern, (nnz,)."""
    if len(layer.weight_shape) == 2:
        return _sum([sddmm(g, x, pattern, layer.feature_major) for g, x in pairs])
    pairs, options = _as_images(layer, pairs)
    return _sum([sample_conv2d(_OP, g, x, pattern, **options) for g, x in pairs])


def _sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def _as_images(layer: Any, pairs: Pairs) -> tuple[Pairs, dict[str, Any]]:
    """What goes through a convolution, as images of a batch, and the options of one of those."""
    # One image may come without a batch.
    rank = len(layer.weight_shape)
    pairs = [(g, x) if x.dim() == rank else (g.unsqueeze(0), x.unsqueeze(0)) for g, x in pairs]
    names = ("kernel_size", "stride", "padding", "dilation")
    options = {name: getattr(layer, name) for name in names}
    if rank == 3:
        # One row of pixels.
        pairs = [(g.unsqueeze(2), x.unsqueeze(2)) for g, x in pairs]
        options = {name: _of_a_row(name, value) for name, value in options.items()}
    return pairs, {**options, "groups": layer.groups, "padding_mode": layer.padding_mode}


def _of_a_row(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    *_, size = (value,) if isinstance(value, int) else value
    if name == "padding" and not isinstance(value, int) and len(value) == 2:
        return (*value, 0, 0)
    return (0 if name == "padding" else 1, size)

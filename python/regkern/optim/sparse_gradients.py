"""The largest gradients of sparse layers where they have no entries, from what went through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from regkern.nn.sparse.base import SparseLayer
from regkern.sparse.growing import Candidates, conv_candidates, linear_candidates
from regkern.sparse.pattern import SparsePattern


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

    def largest_free(self, name: str, pattern: SparsePattern, k: int) -> Tensor:
        """Places, rising."""
        pairs = self._pairs[name]
        if not pairs:
            raise RuntimeError(
                f"regkern.optim.SparseTraining: expected a backward through {name!r} in this step, "
                "got none; a compiled model calls no hooks, so call the original where `due` is "
                "true"
            )
        return _candidates(self._layers[name], pairs, pattern, k).places

    def clear(self) -> None:
        for pairs in self._pairs.values():
            pairs.clear()

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _candidates(
    layer: Any, pairs: list[tuple[Tensor, Tensor]], pattern: SparsePattern, k: int
) -> Candidates:
    op = "optim.SparseTraining"
    if len(layer.weight_shape) == 2:
        return linear_candidates(op, pairs, pattern, k, layer.feature_major)
    # One image may come without a batch.
    rank = len(layer.weight_shape)
    pairs = [(g, x) if x.dim() == rank else (g.unsqueeze(0), x.unsqueeze(0)) for g, x in pairs]
    names = ("kernel_size", "stride", "padding", "dilation")
    options = {name: getattr(layer, name) for name in names}
    if rank == 3:
        # One row of pixels.
        pairs = [(g.unsqueeze(2), x.unsqueeze(2)) for g, x in pairs]
        options = {name: _of_a_row(name, value) for name, value in options.items()}
    return conv_candidates(
        op,
        pairs,
        pattern,
        k,
        groups=layer.groups,
        padding_mode=layer.padding_mode,
        **options,
    )


def _of_a_row(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    *_, size = (value,) if isinstance(value, int) else value
    if name == "padding" and not isinstance(value, int) and len(value) == 2:
        return (*value, 0, 0)
    return (0 if name == "padding" else 1, size)

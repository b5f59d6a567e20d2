"""Layers whose weight becomes sparse where that pays, and the way back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.nn.sparse.conv import SparseConv1d, SparseConv2d
from regkern.nn.sparse.linear import SparseLinear
from regkern.sparse.cost import KINDS, CostModel, Decision, pays

Sparsify = bool | float | Mapping[str, float]

#: Batch and size by the number of dimensions, where nothing is known of the inputs: rows are as
#: long as images have pixels.
_GUESSES = {0: (128, ()), 1: (32, (784,)), 2: (32, (28, 28))}


class Form(NamedTuple):
    """The sparse class of a dense layer, and the ways there and back."""

    sparse: type[nn.Module]
    there: Callable[[Any, float | None], nn.Module]
    back: Callable[[Any], nn.Module]


FORMS: dict[type[nn.Module], Form] = {
    nn.Linear: Form(
        SparseLinear,
        lambda layer, density: SparseLinear.from_linear(layer, density=density),
        lambda layer: layer.to_linear(),
    ),
    nn.Conv2d: Form(
        SparseConv2d,
        lambda layer, density: SparseConv2d.from_conv(layer, density=density),
        lambda layer: layer.to_conv(),
    ),
    nn.Conv1d: Form(
        SparseConv1d,
        lambda layer, density: SparseConv1d.from_conv(layer, density=density),
        lambda layer: layer.to_conv(),
    ),
}


def check_sparsify(sparsify: object, model: nn.Module) -> None:
    if isinstance(sparsify, bool):
        return
    if isinstance(sparsify, Mapping):
        known = {n for n, m in model.named_modules(remove_duplicate=False) if type(m) in FORMS}
        for name, density in sparsify.items():
            if name not in known:
                raise ValueError(
                    "regkern.swap: expected names of `sparsify` to be those of "
                    f"{', '.join(cls.__name__ for cls in FORMS)} layers, got {name!r}"
                )
            checks.probability("swap", f"sparsify[{name!r}]", density)
        return
    checks.probability("swap", "sparsify", sparsify)  # type: ignore[arg-type]


def input_sizes(model: nn.Module, example: Any) -> dict[int, tuple[int, tuple[int, ...]]]:
    """Batch and size of images that layers get in a call of the model, by their identities."""
    sizes: dict[int, tuple[int, tuple[int, ...]]] = {}

    def look(layer: nn.Module, args: tuple[Any, ...]) -> None:
        x, rank = args[0], layer.weight.dim()  # type: ignore[operator]
        images = tuple(x.shape[2 - rank :]) if rank > 2 else ()
        # One image may come without a batch.
        batch = x.numel() // max(1, math.prod(x.shape[1 - rank :]))
        sizes.setdefault(id(layer), (max(1, batch), images))

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if type(m) in FORMS]
    modes = [(m, m.training) for m in model.modules()]
    try:
        with torch.no_grad():
            # In eval mode, so that no running statistics move.
            model.eval()
            model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for module, mode in modes:
            module.training = mode
        for hook in hooks:
            hook.remove()
    return sizes


def shared(model: nn.Module) -> set[int]:
    """Weights that stand in more than one layer."""
    layers = {id(m): m for m in model.modules()}.values()
    counts = Counter(id(p) for m in layers for p in m._parameters.values() if p is not None)
    return {key for key, count in counts.items() if count > 1}


class Sparsifier:
    """Decides, layer by layer, and makes the sparse ones."""

    def __init__(
        self, model: nn.Module, sparsify: Sparsify, example: Any, costs: CostModel | None
    ) -> None:
        check_sparsify(sparsify, model)
        self.sparsify, self.costs = sparsify, costs
        self._called = example is not None and sparsify is not False
        self._sizes = input_sizes(model, example) if self._called else {}
        self._shared = shared(model)
        self._shares: dict[int, float] = {}
        if isinstance(sparsify, Mapping):
            # By identity: a layer may stand in several places.
            self._shares = {id(model.get_submodule(n)): float(d) for n, d in sparsify.items()}

    def wants(self, layer: nn.Module) -> bool:
        if self.sparsify is False or type(layer) not in FORMS:
            return False
        return not isinstance(self.sparsify, Mapping) or id(layer) in self._shares

    def form_of(self, layer: Any) -> tuple[nn.Module | None, str]:
        """The sparse layer if there is to be one, and what there is to say."""
        weight: Tensor = layer.weight
        if id(weight) in self._shared:
            return None, "its weight is another layer's, too"
        if self._called and id(layer) not in self._sizes:
            return None, "the example did not go through it"
        density: float | None = None
        if self.sparsify is True:
            share = float(weight.detach().count_nonzero()) / max(1, weight.numel())
            if share == 1.0:
                return None, "its weight has no zeros"
        else:
            given = self.sparsify
            share = density = self._shares[id(layer)] if isinstance(given, Mapping) else given
        decision = self._decide(layer, share)
        if not decision.pays:
            return None, decision.reason
        return FORMS[type(layer)].there(layer, density), decision.reason

    def _decide(self, layer: Any, density: float) -> Decision:
        images = layer.weight.dim() - 2
        batch, size = self._sizes.get(id(layer), _GUESSES[images])
        decision = pays(layer, batch, density, size, self.costs)
        if self._called:
            return decision
        where = f"a batch of {batch}"
        if images:
            what = "rows" if images == 1 else "images"
            where = f"{batch} {what} of {' x '.join(map(str, size))}"
        return decision._replace(reason=f"{decision.reason} (at {where}: no example was given)")


def dense_forms(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module | str]]:
    """Sparse layers, and the dense ones with the same weights, or why there is none."""
    made: dict[int, nn.Module | str] = {}
    by_class = {form.sparse: form for form in FORMS.values()}
    for name, layer in model.named_modules(remove_duplicate=False):
        form = by_class.get(type(layer))
        if form is None:
            continue
        if id(layer) not in made:
            made[id(layer)] = _dense(layer, form)
        yield name, layer, made[id(layer)]


def _dense(layer: Any, form: Form) -> nn.Module | str:
    if getattr(layer, "activation", "none") != "none":
        return f"its activation is {layer.activation!r}, which no dense layer has"
    if getattr(layer, "feature_major", False):
        return "its features come first"
    try:
        return form.back(layer).train(layer.training)
    except ValueError as error:  # paddings that torch's layer does not have
        return str(error)


assert KINDS.keys() >= FORMS.keys()

"""Swaps the slow layers of a model for those of regkern, and says what it swapped.

A rule stands under the qualified name of the class that it replaces, so no rival is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import nn

from regkern.sparse.cost import CostModel
from regkern.swap.sparse import Sparsifier, Sparsify, dense_forms

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


class Change(NamedTuple):
    """Something that a layer carries: its name there, what it is, and what takes its place."""

    name: str
    old: str
    new: str
    make: Callable[[], None]


Carried = Callable[[nn.Module], Iterable[Change]]

_CARRIED: list[Carried] = []


def register_carried(rule: Carried) -> Carried:
    """Registers a rule for what layers of any class carry, hooks for instance.

    Parameters
    ----------
    rule : callable
        From a layer to the changes that it is due; ``make`` is what makes them.
    """
    _CARRIED.append(rule)
    return rule


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
    return _tampered(layer)


def _tampered(layer: nn.Module) -> str | None:
    """What makes one instance do more than its class does, or None."""
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


def swap(
    model: nn.Module,
    *,
    dry_run: bool = False,
    sparsify: Sparsify = False,
    example: Any = None,
    costs: CostModel | None = None,
) -> SwapReport:
    """Replaces, in place, the layers of a model that regkern has a faster form of.

    The new layers draw from the same law as the old ones, in training and in eval mode. Parameters,
    buffers and so the ``state_dict`` stay, training flags too, and a layer that stands in several
    places still does. A layer is left, and the reason given, where that cannot be had: a subclass,
    hooks, a parametrization, a setting without a counterpart.

    Known: torch's dropout layers, ``torchvision.ops.StochasticDepth``, ``timm.layers.DropPath`` and
    timm's ``PatchDropout``;
    ``torchvision.ops.DropBlock2d`` and ``DropBlock3d``; ``timm.layers.DropBlock2d`` (1.0.23 and
    newer); ``dropblock.DropBlock2D`` and ``DropBlock3D``, under its ``LinearScheduler`` too;
    ``torch.ao.quantization.FakeQuantize`` with integer zero points; torchao's
    ``IntxFakeQuantizer`` with dynamic ranges; qtorch's ``Quantizer`` of fixed-point numbers;
    entmax's ``Sparsemax``, ``Entmax15`` and their losses; geomloss's ``SamplesLoss``; torch's
    ``spectral_norm``, the parametrization and the older hook. `register_swap` and
    `register_carried` add others.

    With ``sparsify``, linear layers and convolutions whose weights are sparse, or are to be, become
    :class:`regkern.nn.SparseLinear` and its like, where a training step takes less time so on this
    machine: see :func:`regkern.sparse.pays`. The others stay dense, and the report has the numbers.
    These layers have parameters of their own: make the optimizer afterwards. `densify` is the way
    back.

    Parameters
    ----------
    model : nn.Module
        Before ``torch.compile`` and before distributed wrappers.
    dry_run : bool
        Only report.
    sparsify : bool, float or mapping
        True: weights that have zeros keep what is not zero. A number: that share of each weight,
        the largest magnitudes. A mapping from the names of layers: their shares, and no other
        layer.
    example : Tensor or tuple
        An input of the model, or several, of the batch that it is to train with: it is called once,
        in eval mode, for the sizes of what comes to each layer. Without one a batch of 128 is
        assumed, for convolutions of 32 images of 28 x 28, or 32 rows of 784.
    costs : regkern.sparse.CostModel, optional
        What was measured already, and which of torch's ways of a dense layer count: ``allow`` adds
        oneDNN and bfloat16. Default: one for the process, with the layer's own way.

    Returns
    -------
    SwapReport
        Print it. ``report.model`` is the model to go on with.

    Notes
    -----
    Only registered modules are found, no functions (``torchvision.ops.drop_block2d``) and nothing
    in plain lists. Where the old layer gives NaN or zeros (everything dropped; more than 65504
    elements kept in float16), the new one gives the result of the definition; and it keeps the
    input's dtype. NaN stays NaN in quantizers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"regkern.swap: expected `model` to be a module, got {type(model)}")
    report = SwapReport(model, dry_run)
    sparsifier = Sparsifier(model, sparsify, example, costs)
    # By identity: a layer that stands in several places becomes one layer in the same places.
    results: dict[int, nn.Module | str] = {}
    forms: dict[int, tuple[nn.Module | None, str]] = {}

    def look_at(name: str, layer: nn.Module) -> nn.Module | None:
        if sparsifier.wants(layer):
            return sparsified(name, layer)
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

    def sparsified(name: str, layer: nn.Module) -> nn.Module | None:
        if id(layer) not in forms:
            obstacle = "it is parametrized" if "parametrizations" in layer._modules else None
            obstacle = obstacle or _tampered(layer)
            form = (None, obstacle) if obstacle else sparsifier.form_of(layer)
            forms[id(layer)] = form
        new, reason = forms[id(layer)]
        old = _qualified(type(layer))
        if new is None:
            report.left.append(Left(name, old, reason))
            return None
        report.swapped.append(Swapped(name, old, f"{new!r}: {reason}"))
        results[id(layer)] = new
        return None if dry_run else new

    for name, layer in model.named_modules():
        for change in [change for rule in _CARRIED for change in rule(layer)]:
            report.swapped.append(
                Swapped(f"{name}.{change.name}".lstrip("."), change.old, change.new)
            )
            if not dry_run:
                change.make()
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


def densify(model: nn.Module, *, dry_run: bool = False) -> SwapReport:
    """Replaces, in place, layers with a sparse weight by dense ones with the same weight.

    Parameters
    ----------
    model : nn.Module
    dry_run : bool
        Only report.

    Returns
    -------
    SwapReport
        Layers that no dense one computes the same as are left: those with an activation of their
        own, or with features first.

    Notes
    -----
    Places without an entry become zeros, which ``swap(model, sparsify=True)`` finds again unless
    they are trained. Parameters are new ones: make the optimizer afterwards.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"regkern.swap.densify: expected `model` to be a module, got {type(model)}")
    report = SwapReport(model, dry_run)
    for name, layer, new in list(dense_forms(model)):
        old = _qualified(type(layer))
        if isinstance(new, str):
            report.left.append(Left(name, old, new))
            continue
        report.swapped.append(Swapped(name, old, repr(new)))
        if dry_run:
            continue
        if name == "":
            report.model = new
        else:
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent)._modules[child] = new
    return report


# For those who have the function in the place of the module, as `regkern.swap` is.
swap.densify = densify  # type: ignore[attr-defined]

# The rules register themselves, a file per family.
from regkern.swap import dropout as dropout  # noqa: E402
from regkern.swap import masks as masks  # noqa: E402
from regkern.swap import patches as patches  # noqa: E402
from regkern.swap import proximal as proximal  # noqa: E402
from regkern.swap import quantize as quantize  # noqa: E402
from regkern.swap import spectral as spectral  # noqa: E402
from regkern.swap import transport as transport  # noqa: E402

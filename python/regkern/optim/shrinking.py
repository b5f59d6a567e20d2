"""Networks without their zero channels."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrize

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NOTHING = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)  # fmt: skip
_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Softplus,
    nn.Softsign, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
_MAX_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_AVERAGES = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_AVG_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ELEMENTWISE_FUNCTIONS: frozenset[Any] = frozenset({
    F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.hardswish,
    F.hardtanh, F.hardsigmoid, F.hardshrink, F.softshrink, F.softplus, F.softsign, F.sigmoid,
    F.logsigmoid, F.tanh, F.threshold, F.relu_, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d,
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.neg, operator.neg, torch.abs,
    torch.clamp, torch.exp, torch.square,
})  # fmt: skip
_ELEMENTWISE_METHODS = frozenset({
    "relu", "relu_", "sigmoid", "tanh", "neg", "abs", "clamp", "clamp_", "exp", "square",
    "contiguous", "clone", "float",
})  # fmt: skip
_MAX_POOL_FUNCTIONS: frozenset[Any] = frozenset({
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.max_pool1d, F.max_pool2d, F.max_pool3d,
    torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
})  # fmt: skip
_SUMS: frozenset[Any] = frozenset({operator.add, torch.add, operator.sub, torch.sub})
_SUMS_IN_PLACE: frozenset[Any] = frozenset({operator.iadd, operator.isub})
_PRODUCTS: frozenset[Any] = frozenset({operator.mul, torch.mul})
_PAIR_METHODS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul,
                 "add_": operator.add, "sub_": operator.sub, "mul_": operator.mul}  # fmt: skip


@dataclass(frozen=True)
class Shrunk:
    """A layer that has become smaller: ``(out, in)`` channels or features before and after."""

    layer: str
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class ShrinkReport:
    """What :func:`shrink` removed, and which zero channels stay, with the reason.

    Attributes
    ----------
    shrunk : tuple of Shrunk
    kept : tuple of (str, int, str)
        Layer, how many of its channels are constant and stay nevertheless, and why.
    parameters : (int, int)
        Before and after.
    """

    shrunk: tuple[Shrunk, ...]
    kept: tuple[tuple[str, int, str], ...]
    parameters: tuple[int, int]

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [f"{before} parameters -> {after} ({after / before if before else 1.0:.1%})"]
        lines += [f"  {s.layer}: {s.before} -> {s.after}" for s in self.shrunk]
        lines += [f"  {layer}: {n} constant channels stay: {why}" for layer, n, why in self.kept]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Channels:
    """The channels of an activation: who they are, and what they hold.

    Channels with one id are there or not there together. ``const`` is the value of a channel that
    holds the same number everywhere whatever the input is, else NaN.
    """

    ids: Tensor
    const: Tensor
    axis: int

    def holding(self, const: Tensor) -> _Channels:
        return _Channels(self.ids, const, self.axis)


@dataclass(frozen=True)
class _Layer:
    """A layer with parameters and the channels that it reads and writes."""

    name: str
    module: nn.Module
    read: _Channels | None
    written: _Channels | None


@dataclass
class _Analysis:
    """Which channels are constant, which belong together, and who reads them."""

    traced: fx.GraphModule
    values: dict[fx.Node, _Channels | None] = field(default_factory=dict)
    layers: list[_Layer] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    pinned: dict[int, str] = field(default_factory=dict)

    # ---- who belongs together ----

    def new_ids(self, n: int) -> Tensor:
        first = len(self.parents)
        self.parents += range(first, first + n)
        return torch.arange(first, first + n)

    def find(self, i: int) -> int:
        while self.parents[i] != i:
            self.parents[i] = self.parents[self.parents[i]]
            i = self.parents[i]
        return i

    def tie(self, a: Tensor, b: Tensor) -> None:
        for i, j in zip(a.tolist(), b.tolist(), strict=True):
            self.parents[self.find(j)] = self.find(i)

    def pin(self, value: _Channels | None, why: str) -> None:
        if value is not None:
            for i in value.ids.tolist():
                self.pinned.setdefault(i, why)

    def roots(self, ids: Tensor) -> list[int]:
        return [self.find(i) for i in ids.tolist()]

    # ---- nodes ----

    def run(self) -> None:
        modules = dict(self.traced.named_modules())
        calls: dict[int, int] = {}
        owners: dict[int, set[int]] = {}
        for node in self.traced.graph.nodes:
            if node.op == "call_module":
                module = modules[str(node.target)]
                calls[id(module)] = calls.get(id(module), 0) + 1
        for module in modules.values():
            for p in module.parameters(recurse=False):
                owners.setdefault(id(p), set()).add(id(module))
        for node in self.traced.graph.nodes:
            value: _Channels | None = None
            why = ""
            if node.op == "placeholder":
                value = self.unknown(node, 1)
                self.pin(value, "they are the network's input")
            elif node.op == "output":
                self.refuse(node, "they are the network's output")
            elif node.op == "call_module":
                module = modules[str(node.target)]
                value = self.module(node, module)
                why = self.shared(module, calls, owners, str(node.target))
                if why:
                    for pinned in (value, *map(self.of, node.all_input_nodes)):
                        self.pin(pinned, why)
            elif node.op in ("call_function", "call_method"):
                value = self.function(node)
            if value is None and node.op not in ("output", "get_attr"):
                self.refuse(node, why or f"`{_title(node)}` is not known to keep channels apart")
            self.values[node] = value

    @staticmethod
    def shared(
        module: nn.Module, calls: dict[int, int], owners: dict[int, set[int]], name: str
    ) -> str:
        """Why a module cannot be cut, whatever it computes."""
        own = list(module.parameters(recurse=False))
        if own and (calls[id(module)] > 1 or any(len(owners[id(p)]) > 1 for p in own)):
            return f"`{name}` is used more than once"
        return f"`{name}` is parametrized" if parametrize.is_parametrized(module) else ""

    def refuse(self, node: fx.Node, why: str) -> None:
        if _looks_at_other_sizes(node):
            return
        for argument in node.all_input_nodes:
            self.pin(self.values.get(argument), why)

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        meta = node.meta.get("tensor_meta")
        return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else None

    def unknown(self, node: fx.Node, axis: int) -> _Channels | None:
        """New channels, of which nothing is known."""
        shape = self.shape(node)
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        n = shape[axis]
        return _Channels(self.new_ids(n), torch.full((n,), math.nan).double(), axis % len(shape))

    def unread(self, n: int, axis: int) -> _Channels:
        """Inputs of a layer that are not known to be channels: none of them may go."""
        value = _Channels(self.new_ids(n), torch.full((n,), math.nan).double(), axis)
        self.pin(value, "they are not known to be channels")
        return value

    def of(self, argument: object) -> _Channels | None:
        return self.values.get(argument) if isinstance(argument, fx.Node) else None

    def module(self, node: fx.Node, module: nn.Module) -> _Channels | None:
        x = self.of(node.args[0]) if node.args else None
        if x is None and not isinstance(module, (*_CONV, nn.Linear)):
            return None
        if isinstance(module, _CONV):
            return self.convolution(node, module, x)
        if isinstance(module, nn.Linear):
            return self.linear(node, module, x)
        assert x is not None
        if isinstance(module, _NORM):
            return self.norm(node, module, x)
        if isinstance(module, _NOTHING):
            return x
        if isinstance(module, nn.PReLU):
            return self.prelu(node, module, x)
        if isinstance(module, _ACTIVATIONS):
            if getattr(module, "inplace", False) and not _sole(node.args[0]):
                return None
            return x.holding(_mapped(module, x.const))
        if isinstance(module, nn.Flatten):
            return self.flatten(node, x, module.start_dim, module.end_dim)
        if x.axis != 1 or len(self.shape(node) or ()) < 3:
            return None
        if isinstance(module, (*_MAX_POOLS, *_AVERAGES, nn.Upsample)):
            return None if getattr(module, "return_indices", False) else x
        if isinstance(module, _AVG_POOLS):
            # Means of a constant that are not the constant.
            padded = _any_nonzero(module.padding) and module.count_include_pad
            divided = getattr(module, "divisor_override", None) is not None
            return x.holding(_zero_stays(x.const)) if padded or divided else x
        if isinstance(module, nn.ZeroPad1d | nn.ZeroPad2d | nn.ZeroPad3d):
            return x.holding(_zero_stays(x.const))
        return None

    def convolution(self, node: fx.Node, module: Conv, x: _Channels | None) -> _Channels | None:
        out = self.unknown(node, 1)
        shape = self.shape(node)
        if out is None or shape is None or len(shape) != module.weight.dim():
            return None  # without a batch
        name = str(node.target)
        if x is None or x.axis != 1:
            x = self.unread(module.in_channels, 1)
        weight = module.weight.detach().double()
        taps = weight.flatten(2)
        if module.groups == 1:
            const = _affine(taps, module.bias, x.const, _pads_zeros(module))
            out = out.holding(const)
        elif module.groups == module.in_channels:
            repeats = module.out_channels // module.in_channels
            source = x.const.repeat_interleave(repeats)
            dead = (taps == 0).all(-1).all(1)
            through = _zero_stays(source) if _pads_zeros(module) else source
            const = torch.where(dead, 0.0, through * taps.sum((1, 2)))
            if module.bias is not None:
                const = const + module.bias.detach().double()
            out = _Channels(x.ids.repeat_interleave(repeats), const, 1)
        else:
            self.pin(x, f"`{name}` has groups of several channels")
            self.pin(out, f"`{name}` has groups of several channels")
            return out
        self.layers.append(_Layer(name, module, x, out))
        return out

    def linear(self, node: fx.Node, module: nn.Linear, x: _Channels | None) -> _Channels | None:
        out = self.unknown(node, -1)
        if out is None:
            return None
        name = str(node.target)
        if x is None or x.axis != out.axis:
            self.pin(x, f"`{name}` mixes another dimension")
            x = self.unread(module.in_features, out.axis)
        weight = module.weight.detach().double()[:, :, None]
        out = out.holding(_affine(weight, module.bias, x.const, False))
        self.layers.append(_Layer(name, module, x, out))
        return out

    def norm(
        self, node: fx.Node, module: nn.modules.batchnorm._BatchNorm, x: _Channels
    ) -> _Channels | None:
        if x.axis != 1 or module.running_mean is None or module.running_var is None:
            return None  # statistics of the batch
        scale = (module.running_var.double() + module.eps).rsqrt()
        shift = torch.zeros_like(scale)
        if module.weight is not None:
            scale = scale * module.weight.detach().double()
        if module.bias is not None:
            shift = module.bias.detach().double()
        const = (x.const - module.running_mean.double()) * scale + shift
        out = x.holding(torch.where(scale == 0, shift, const))
        self.layers.append(_Layer(str(node.target), module, None, out))
        return out

    def prelu(self, node: fx.Node, module: nn.PReLU, x: _Channels) -> _Channels | None:
        slope = module.weight.detach().double()
        if slope.numel() > 1:
            if x.axis != 1:
                return None
            self.layers.append(_Layer(str(node.target), module, None, x))
        return x.holding(torch.where(x.const >= 0, x.const, slope * x.const))

    def flatten(self, node: fx.Node, x: _Channels, start: int, end: int) -> _Channels | None:
        before, after = self.shape(node.args[0]), self.shape(node)  # type: ignore[arg-type]
        if before is None or after is None:
            return None
        start, end = start % len(before), end % len(before)
        if x.axis < start:
            return x
        if x.axis != start:
            return None
        inner = math.prod(before[start + 1 : end + 1])
        return _Channels(x.ids.repeat_interleave(inner), x.const.repeat_interleave(inner), start)

    def function(self, node: fx.Node) -> _Channels | None:
        target = node.target
        args = node.args
        method = node.op == "call_method"
        if target in (torch.cat, torch.concat, torch.concatenate):
            return self.concatenation(node)
        x = self.of(args[0]) if args else None
        pair = _PAIR_METHODS.get(str(target)) if method else target
        in_place = target in _SUMS_IN_PLACE or (method and str(target).endswith("_"))
        in_place = in_place or target in (F.relu_, torch.relu_) or bool(node.kwargs.get("inplace"))
        if in_place and not _sole(args[0]):
            return None
        if len(args) == 2 and (pair in _SUMS or pair in _SUMS_IN_PLACE or pair in _PRODUCTS):
            return self.pair(node, pair, args[0], args[1])
        if x is None:
            return None
        if target in _ELEMENTWISE_FUNCTIONS or (method and target in _ELEMENTWISE_METHODS):
            if any(isinstance(a, fx.Node) for a in (*args[1:], *node.kwargs.values())):
                return None
            kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
            if method:
                return x.holding(
                    _mapped(lambda c: getattr(c, str(target))(*args[1:], **kwargs), x.const)
                )
            return x.holding(_mapped(lambda c: target(c, *args[1:], **kwargs), x.const))  # type: ignore[operator]
        if target is torch.flatten or (method and target == "flatten"):
            start = node.kwargs.get("start_dim", args[1] if len(args) > 1 else 0)
            end = node.kwargs.get("end_dim", args[2] if len(args) > 2 else -1)
            assert isinstance(start, int)
            assert isinstance(end, int)
            return self.flatten(node, x, start, end)
        if method and target in ("view", "reshape"):
            # x.view(x.size(0), -1); other sizes may count channels.
            shape = self.shape(node)
            if shape is not None and len(shape) == 2 and len(args) == 3 and args[2] == -1:
                first = args[1]
                if isinstance(first, fx.Node) and _first_size_of(first) is not None:
                    return self.flatten(node, x, 1, -1)
            return None
        if target in _MAX_POOL_FUNCTIONS and x.axis == 1:
            return None if node.kwargs.get("return_indices") else x
        if target in (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d) and x.axis == 1:
            return x.holding(_zero_stays(x.const))
        if target is torch.mean or (method and target == "mean"):
            return self.mean(node, x)
        return None

    def mean(self, node: fx.Node, x: _Channels) -> _Channels | None:
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        before, after = self.shape(node.args[0]), self.shape(node)  # type: ignore[arg-type]
        if dims is None or before is None or after is None:
            return None
        some = dims if isinstance(dims, list | tuple) else [dims]
        where = sorted(int(d) % len(before) for d in some)  # type: ignore[arg-type]
        return x if where and where[0] > x.axis else None

    def concatenation(self, node: fx.Node) -> _Channels | None:
        parts, dim = node.args[0], node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        shape = self.shape(node)
        if not isinstance(parts, list | tuple) or not isinstance(dim, int) or shape is None:
            return None
        values = [self.of(p) for p in parts]
        if any(v is None or v.axis != dim % len(shape) for v in values):
            return None
        known = [v for v in values if v is not None]
        return _Channels(
            torch.cat([v.ids for v in known]),
            torch.cat([v.const for v in known]),
            dim % len(shape),
        )

    def pair(self, node: fx.Node, op: Any, a: object, b: object) -> _Channels | None:
        x, y = self.of(a), self.of(b)
        if not isinstance(b, fx.Node) and x is not None and isinstance(b, int | float):
            return x.holding(_mapped(lambda c: op(c, b), x.const))
        if not isinstance(a, fx.Node) and y is not None and isinstance(a, int | float):
            return y.holding(_mapped(lambda c: op(a, c), y.const))
        if x is None or y is None or x.axis != y.axis or len(x.ids) != len(y.ids):
            return None
        shapes = [self.shape(n) for n in (a, b)]  # type: ignore[arg-type]
        if None in shapes or len(shapes[0] or ()) != len(shapes[1] or ()):
            return None
        self.tie(x.ids, y.ids)
        const = op(x.const.clone(), y.const)
        if op in _PRODUCTS:
            # Nothing times any number.
            const = torch.where((x.const == 0) | (y.const == 0), 0.0, const)
        return x.holding(const)

    # ---- what goes ----

    def removed(self) -> tuple[set[int], dict[int, str]]:
        """The classes of channels that nobody misses, and why others stay."""
        stays: dict[int, str] = {}
        for i, why in self.pinned.items():
            stays.setdefault(self.find(i), why)
        every: set[int] = set()
        for layer in self.layers:
            if layer.written is not None:
                every.update(self.roots(layer.written.ids))
            if layer.read is None or _is_depthwise(layer.module):
                continue
            x = layer.read
            weight = layer.module.weight.detach()  # type: ignore[operator]
            used = (weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]) != 0
            used = used.any(-1).any(0)
            padded = isinstance(layer.module, _CONV) and _pads_zeros(layer.module)
            rows = zip(self.roots(x.ids), used.tolist(), x.const.tolist(), strict=True)
            for root, is_used, const in rows:
                if not is_used or const == 0.0:
                    continue
                if math.isnan(const):
                    stays.setdefault(root, f"what `{layer.name}` reads of them is not constant")
                elif padded:
                    stays.setdefault(
                        root, f"`{layer.name}` pads a constant other than 0 with zeros"
                    )
        gone = every - stays.keys()
        for layer in self.layers:
            for value in (layer.written, layer.read):
                if value is not None and len(value.ids) > 0:
                    roots = self.roots(value.ids)
                    if all(r in gone for r in roots):
                        gone.discard(roots[0])
                        stays[roots[0]] = f"`{layer.name}` would have none left"
        return gone, stays


def _title(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _affine(taps: Tensor, bias: Tensor | None, const: Tensor, padded: bool) -> Tensor:
    """What W x + b holds where all that W does not multiply with zero is constant.

    ``taps`` is (out, in, positions). A constant other than zero is not one next to zero padding.
    """
    known = _zero_stays(const) if padded else const
    dead = (taps == 0).all(-1)
    terms = torch.where(dead | (known == 0), 0.0, known * taps.sum(-1))
    total = terms.sum(1)
    return total if bias is None else total + bias.detach().double()


def _zero_stays(const: Tensor) -> Tensor:
    return torch.where(const == 0, 0.0, math.nan)


def _mapped(f: Callable[[Tensor], Tensor], const: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.where(const.isnan(), math.nan, f(const.clone()).double())


def _any_nonzero(value: int | tuple[int, ...]) -> bool:
    return any(v != 0 for v in value) if isinstance(value, tuple) else value != 0


def _pads_zeros(module: Conv) -> bool:
    if module.padding_mode != "zeros" or module.padding == "valid":
        return False
    if module.padding == "same":
        return any(k > 1 for k in module.kernel_size)
    return _any_nonzero(module.padding)  # type: ignore[arg-type]


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _CONV) and module.groups > 1


def _sole(node: object) -> bool:
    """Whether nobody else sees a change of this value in place, through an alias neither."""
    while isinstance(node, fx.Node):
        if len(node.users) > 1 or node.op in ("placeholder", "get_attr"):
            return False
        inputs = node.all_input_nodes
        if node.op == "call_module" or len(inputs) != 1:
            module = (
                node.graph.owning_module.get_submodule(str(node.target))
                if node.op == "call_module" and node.graph.owning_module is not None
                else None
            )
            if not isinstance(module, (*_NOTHING, nn.Flatten)) and not getattr(
                module, "inplace", False
            ):
                return True
        node = inputs[0] if inputs else None
    return True


def _first_size_of(node: fx.Node) -> fx.Node | None:
    """The activation whose batch size this is."""
    if node.op == "call_method" and node.target == "size" and node.args[1:] == (0,):
        source = node.args[0]
    elif node.target is operator.getitem and node.args[1] == 0:
        inner = node.args[0]
        if not isinstance(inner, fx.Node) or not _is_shape(inner):
            return None
        source = inner.args[0]
    else:
        return None
    return source if isinstance(source, fx.Node) else None


def _is_shape(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target == "size":
        return len(node.args) == 1
    return node.target is getattr and node.args[1] == "shape"


def _looks_at_other_sizes(node: fx.Node) -> bool:
    """A size of the batch, which does not depend on channels, or arithmetic on it."""
    if _first_size_of(node) is not None:
        return True
    return _is_shape(node) and all(_first_size_of(user) is not None for user in node.users)


def _slice(parameter: Tensor, *keeps: Tensor | None) -> Tensor:
    out = parameter.detach()
    for dim, keep in enumerate(keeps):
        if keep is not None:
            out = out.index_select(dim, keep.to(out.device))
    return out.clone()


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(module, name)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        setattr(module, name, value)


def _cut(module: nn.Module, layer: _Layer, keep_of: Callable[[_Channels], Tensor]) -> None:
    """Takes the channels that go out of a layer; constants that it read go into its bias."""
    written = None if layer.written is None else keep_of(layer.written)
    read = None if layer.read is None else keep_of(layer.read)
    keep_out = None if written is None else written.nonzero().flatten()
    if isinstance(module, (*_CONV, nn.Linear)):
        weight = module.weight.detach()
        bias = None if module.bias is None else module.bias.detach().double()
        keep_in = None if read is None or _is_depthwise(module) else read.nonzero().flatten()
        if keep_in is not None and read is not None and layer.read is not None:
            sums = weight.double().flatten(2).sum(-1) if weight.dim() > 2 else weight.double()
            gone = ~read.to(weight.device)
            constants = layer.read.const.to(weight.device)[gone].nan_to_num(0.0)
            used = (weight != 0).flatten(2).any(-1) if weight.dim() > 2 else weight != 0
            if bool(((constants != 0) & used[:, gone]).any()):
                folded = sums[:, gone] @ constants
                bias = folded if bias is None else bias + folded
        if bias is not None:
            value = _slice(bias, keep_out).to(weight.dtype)
            if module.bias is None:
                module.bias = nn.Parameter(value, requires_grad=module.weight.requires_grad)
            else:
                _replace(module, "bias", value)
        _replace(module, "weight", _slice(weight, keep_out, keep_in))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        else:
            module.out_channels = module.weight.shape[0]
            if _is_depthwise(module) and read is not None:
                module.groups = module.in_channels = int(read.sum())
            else:
                module.in_channels = module.weight.shape[1]
        return
    assert keep_out is not None
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, name, None) is not None:
            _replace(module, name, _slice(getattr(module, name), keep_out))
    if isinstance(module, nn.PReLU):
        module.num_parameters = len(keep_out)
    else:
        module.num_features = len(keep_out)  # type: ignore[assignment]


def _width(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    if isinstance(module, _CONV):
        return (module.out_channels, module.in_channels)
    if isinstance(module, nn.PReLU):
        return (module.num_parameters,)
    return (int(module.num_features),)  # type: ignore[arg-type]


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def shrink(model: nn.Module, example_input: Any) -> tuple[nn.Module, ShrinkReport]:
    r"""A smaller network that computes the same, without channels that hold nothing.

    A filter that is zero makes a channel that is constant, :math:`b_c`; a BatchNorm with
    :math:`γ_c = 0` makes :math:`β_c`. Constants are followed through the graph of the network
    (activations, pooling, sums, concatenation, convolutions), and a channel goes where all that
    read it multiply it with zero or read a constant, which goes into their bias:

    .. math::
        b'_o = b_o + \sum_{c \text{ gone}} v_c \sum_k W_{o c k}.

    With it go the filter, the entries of BatchNorm, and the columns of those that read it.
    Channels that a sum adds belong together: one goes only where all do.

    Parameters
    ----------
    model : torch.nn.Module
        A network that ``torch.fx`` can trace. It is not changed.
    example_input : Tensor or tuple of Tensor
        What the network is called with: for the shapes.

    Returns
    -------
    (torch.nn.Module, ShrinkReport)
        A copy of the network, of the same class, with smaller layers. What was removed, and which
        constant channels stay, with the reason: what cannot be shown to be safe stays.

    Raises
    ------
    TypeError
        If ``model`` is no module.
    ValueError
        If the network cannot be traced.

    Notes
    -----
    The same as ``model.eval()`` computes, up to the rounding of the folded constants, for finite
    activations; in training mode BatchNorm would normalise a constant to 0. Known are Linear,
    Conv1d to Conv3d (of one group, or depthwise), BatchNorm with running statistics, elementwise
    activations, max and average pooling, flatten, dropout, sums, products and concatenation of
    activations. A constant other than zero is not folded into a convolution that pads with zeros.
    Every layer keeps at least one channel. Layers that are called twice, share parameters or are
    parametrized stay as they are.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"regkern.optim.shrink: expected `model` to be a torch.nn.Module, got {type(model)}"
        )
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    twin = copy.deepcopy(model).eval()
    try:
        traced = fx.symbolic_trace(twin)
    except Exception as error:
        raise ValueError(
            "regkern.optim.shrink: expected `model` to be a network that torch.fx can trace, "
            f"got {type(error).__name__}: {error}"
        ) from error
    with torch.no_grad():
        ShapeProp(traced).propagate(*inputs)
    analysis = _Analysis(traced)
    with torch.no_grad():
        analysis.run()
    gone, stays = analysis.removed()

    def keep_of(value: _Channels) -> Tensor:
        return torch.tensor([r not in gone for r in analysis.roots(value.ids)], dtype=torch.bool)

    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    shrunk, kept = [], []
    for layer in analysis.layers:
        module = modules[layer.name]
        before = _width(module)
        values = [v for v in (layer.read, layer.written) if v is not None]
        if not all(bool(keep_of(v).all()) for v in values):
            _cut(module, layer, keep_of)
        if _width(module) != before:
            shrunk.append(Shrunk(layer.name, before, _width(module)))
        if layer.written is not None and isinstance(module, (*_CONV, nn.Linear)):
            reasons: dict[str, int] = {}
            roots = analysis.roots(layer.written.ids)
            for root, const in zip(roots, layer.written.const.tolist(), strict=True):
                if not math.isnan(const) and root not in gone:
                    reasons[stays[root]] = reasons.get(stays[root], 0) + 1
            kept += [(layer.name, n, why) for why, n in reasons.items()]
    report = ShrinkReport(
        tuple(shrunk), tuple(kept), (_count(model.parameters()), _count(small.parameters()))
    )
    return small, report

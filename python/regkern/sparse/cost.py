"""Whether a layer trains faster with a sparse weight, from what was measured on this machine."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern._registration import function_apply
from regkern.sparse.convolutions import sparse_conv1d, sparse_conv2d
from regkern.sparse.growing import random_free
from regkern.sparse.pattern import SparsePattern
from regkern.sparse.places import pattern_at
from regkern.sparse.products import sparse_linear

#: Densities that are measured: a line goes through the two.
_DENSITIES = (0.02, 0.1)
#: Runs of a step, and the seconds after which no other one begins.
_RUNS, _SECONDS = 5, 0.2
#: What batches are measured at, at most; above, time is taken to grow with the batch.
_LARGEST_BATCH = 1024

#: The ways a dense layer may take: as it stands, by oneDNN's product, and in bfloat16.
PATHS = ("own", "onednn", "bf16")
_IN_WORDS = {"own": "", "onednn": " by oneDNN", "bf16": " in bfloat16"}


class Cost(NamedTuple):
    """Seconds of a training step: forward and both gradients.

    Attributes
    ----------
    dense : float
        Of the dense layer as it stands, in the faster of its layouts.
    fixed, per_entry : float
        a and b of the sparse one, which takes a + b nnz.
    onednn : float
        Of a float32 linear layer on the CPU whose products are oneDNN's, where torch has MKL's
        otherwise. Infinite where there is no such way.
    bf16 : float
        Of a float32 layer in bfloat16, as autocast has it: images and products in bfloat16, and a
        float32 weight that is cast in each step. Infinite where the machine has no bfloat16 of its
        own.
    """

    dense: float
    fixed: float
    per_entry: float
    onednn: float = math.inf
    bf16: float = math.inf

    def sparse(self, nnz: float) -> float:
        return self.fixed + self.per_entry * nnz

    def ways(self) -> dict[str, float]:
        """What the dense layer takes, by the names of :data:`PATHS`."""
        return {"own": self.dense, "onednn": self.onednn, "bf16": self.bf16}


class Decision(NamedTuple):
    """Whether a sparse weight pays.

    Attributes
    ----------
    pays : bool
    sparse, dense : float
        Seconds of a training step, measured or by the model; dense in the fastest way allowed.
    reason : str
        The same in words, and whether a way that is not allowed would be faster than both.
    path : str
        Which way the dense layer takes: one of :data:`PATHS`.
    """

    pays: bool
    sparse: float
    dense: float
    reason: str
    path: str = "own"


DenseCall = Callable[[Any, Tensor, Tensor], Tensor]


class Kind(NamedTuple):
    """A class of layers: a step of it, dense and sparse, on an input."""

    dense: DenseCall
    sparse: Callable[[Any, Tensor, Tensor, SparsePattern], Tensor]
    layouts: tuple[torch.memory_format, ...]
    options: tuple[str, ...]


def _dense_linear(layer: nn.Linear, x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight, layer.bias)


def _sparse_linear(layer: nn.Linear, x: Tensor, values: Tensor, pattern: SparsePattern) -> Tensor:
    return sparse_linear(x, values, pattern, layer.bias)


class _OneDnn(torch.autograd.Function):
    """x Wᵀ + b and its gradients, by oneDNN's product."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _onednn_product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        return _onednn_product(g, weight.t()), _onednn_product(g.t(), x.t()), None


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _onednn_linear(layer: nn.Linear, x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = function_apply(_OneDnn, x, weight, layer.bias)
    return y


def _dense_conv(layer: nn.Conv1d | nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = layer._conv_forward(x, weight, layer.bias)
    return y


def _sparse_conv(layer: nn.Conv2d, x: Tensor, values: Tensor, pattern: SparsePattern) -> Tensor:
    return sparse_conv2d(
        x,
        values,
        pattern,
        layer.bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.kernel_size,
        layer.padding_mode,
    )


def _sparse_row(layer: nn.Conv1d, x: Tensor, values: Tensor, pattern: SparsePattern) -> Tensor:
    return sparse_conv1d(
        x,
        values,
        pattern,
        layer.bias,
        layer.stride[0],
        layer.padding,
        layer.dilation[0],
        layer.groups,
        layer.padding_mode,
    )


_CONV_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")

#: By the class of the dense layer.
KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind(_dense_linear, _sparse_linear, (torch.contiguous_format,), ()),
    nn.Conv2d: Kind(
        _dense_conv,
        _sparse_conv,
        (torch.contiguous_format, torch.channels_last),
        _CONV_OPTIONS,
    ),
    nn.Conv1d: Kind(_dense_conv, _sparse_row, (torch.contiguous_format,), _CONV_OPTIONS),
}


def _has_onednn(layer: nn.Module, weight: Tensor) -> bool:
    # Convolutions are oneDNN's as they stand.
    return (
        type(layer) is nn.Linear
        and weight.is_cpu
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _has_bf16(weight: Tensor) -> bool:
    if weight.dtype != torch.float32:
        return False
    if weight.is_cuda:
        return bool(torch.cuda.is_bf16_supported())
    # Elsewhere it is made of float32, and never faster.
    return weight.is_cpu and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _in_bf16(dense: DenseCall) -> DenseCall:
    def call(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
        # A weight changes from step to step, so its cast is not kept.
        with torch.autocast(weight.device.type, torch.bfloat16, cache_enabled=False):
            return dense(layer, x, weight)

    return call


def _seconds(step: Callable[[], Any], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    best, start = math.inf, time.perf_counter()
    for _ in range(_RUNS):
        wait()
        begin = time.perf_counter()
        step()
        wait()
        now = time.perf_counter()
        best = min(best, now - begin)
        if now - start > _SECONDS:
            break
    return best


def _machine() -> str:
    from regkern import __version__

    return (
        f"{platform.machine()} {_processor()}, torch {torch.__version__.partition('+')[0]}, "
        f"regkern {__version__}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def cache_path() -> Path:
    """Where measurements are saved if nothing else is said: in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "regkern" / "sparse_costs.json"


class CostModel:
    r"""The time of a training step of a layer with a sparse weight, and of the dense layer.

    .. math:: t(nnz) = a + b\, nnz

    with a and b from two densities, each shape of a layer measured when it is first asked for and
    kept in memory. A batch counts as the next power of two, and is measured up to 1024.

    Parameters
    ----------
    allow : sequence of str
        The ways of the dense layer that a sparse one has to be faster than: ``"own"``, the layer as
        it stands, ``"onednn"`` and ``"bf16"`` (see :class:`Cost`). All are measured, and
        :meth:`decide` says where one that is not allowed would be faster.

    Raises
    ------
    TypeError, ValueError
        For other names, or none.

    Notes
    -----
    A measurement takes up to two seconds or so for each class of shapes, by random weights of the
    layer's shape. The sparse layer is measured in the layer's dtype. Files are read and written by
    :meth:`load` and :meth:`save` alone; what other machines measured, or other versions of torch or
    regkern, is kept there and not used. Numbers of threads and torch's precision of float32
    products are told apart.
    """

    def __init__(self, allow: Sequence[str] = ("own",)) -> None:
        self.allow = _checked(allow)
        self._costs: dict[str, Cost] = {}

    def cost(self, layer: nn.Module, batch: int, size: Sequence[int] = ()) -> Cost:
        """What steps of a layer take.

        Parameters
        ----------
        layer : nn.Linear, nn.Conv2d or nn.Conv1d
        batch : int
            Elements of the batch; of linear layers all that stands before the features.
        size : sequence of int
            Height and width of the images of a convolution, or the length of its rows.

        Raises
        ------
        TypeError, ValueError
            For another layer, or a batch below 1.
        """
        op = "sparse.CostModel"
        kind = KINDS.get(type(layer))
        if kind is None:
            known = ", ".join(cls.__name__ for cls in KINDS)
            raise TypeError(f"regkern.{op}: expected `layer` to be {known}, got {type(layer)}")
        checks.at_least(op, "batch", batch, 1)
        images = len(_weight(layer).shape) - 2
        if len(size) != images:
            raise ValueError(
                f"regkern.{op}: expected `size` of {images} numbers for {type(layer).__name__}, "
                f"got {tuple(size)}"
            )
        rounded = min(2 ** (batch - 1).bit_length(), _LARGEST_BATCH)
        key = self._key(layer, kind, rounded, size)
        if key not in self._costs:
            self._costs[key] = _measure(layer, kind, rounded, size)
        grown = max(1.0, batch / rounded)
        return Cost(*(grown * t for t in self._costs[key]))

    def decide(
        self,
        layer: nn.Module,
        batch: int,
        density: float,
        size: Sequence[int] = (),
        allow: Sequence[str] | None = None,
    ) -> Decision:
        """Whether a layer with that share of its entries trains faster. See :meth:`cost`.

        ``allow`` is for this layer what it is for the model.
        """
        checks.probability("sparse.CostModel", "density", density)
        allowed = self.allow if allow is None else _checked(allow)
        cost = self.cost(layer, batch, size)
        ways = cost.ways()
        path = min(allowed, key=ways.__getitem__)
        dense = ways[path]
        if dense == math.inf:
            raise ValueError(
                "regkern.sparse.CostModel: expected `allow` to have a way that this layer has "
                f"here, got {', '.join(allowed)}"
            )
        numel = _weight(layer).numel()
        sparse = cost.sparse(density * numel)
        reason = (
            f"{1e3 * sparse:.3g} ms a step at a density of {density:.3g} instead of "
            f"{1e3 * dense:.3g} ms{_IN_WORDS[path]}"
        )
        if sparse >= dense:
            # The density at which the two are even.
            even = (dense - cost.fixed) / max(cost.per_entry * numel, 1e-30)
            edge = "would not pay at any" if even <= 0 else f"would pay below {min(even, 1.0):.2g}"
            reason += f"; it {edge}"
        other = min(ways, key=ways.__getitem__)
        if ways[other] < min(sparse, dense):
            reason += f"; dense{_IN_WORDS[other]} would take {1e3 * ways[other]:.3g} ms"
        return Decision(sparse < dense, sparse, dense, reason, path)

    def _key(self, layer: Any, kind: Kind, batch: int, size: Sequence[int]) -> str:
        weight = _weight(layer)
        options = {name: getattr(layer, name) for name in kind.options}
        return json.dumps(
            [
                type(layer).__name__,
                list(weight.shape),
                options,
                batch,
                list(size),
                str(weight.dtype),
                layer.bias is not None,
                _name(weight.device),
                torch.get_num_threads(),
                torch.get_float32_matmul_precision(),
            ]
        )

    def save(self, path: str | Path | None = None) -> Path:
        """Adds what was measured to a file: without a path one in the user's cache directory."""
        path = cache_path() if path is None else Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        there = json.loads(path.read_text()) if path.exists() else {}
        # What there is not is null, as JSON has no infinity.
        mine = {k: [t if t < math.inf else None for t in c] for k, c in self._costs.items()}
        there.setdefault(_machine(), {}).update(mine)
        # Another process may read meanwhile.
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_text(json.dumps(there, indent=1) + "\n")
        part.replace(path)
        return path

    def load(self, path: str | Path | None = None) -> int:
        """Takes what this machine has measured from a file, if there is one. How much it was."""
        path = cache_path() if path is None else Path(path)
        if not path.exists():
            return 0
        mine = json.loads(path.read_text()).get(_machine(), {})
        for key, numbers in mine.items():
            self._costs[key] = Cost(*(math.inf if t is None else t for t in numbers))
        return len(mine)

    def __len__(self) -> int:
        return len(self._costs)


def _checked(allow: Sequence[str]) -> tuple[str, ...]:
    op = "sparse.CostModel"
    if isinstance(allow, str) or not isinstance(allow, Sequence):
        raise TypeError(f"regkern.{op}: expected `allow` to be several names, got {allow!r}")
    if not allow:
        raise ValueError(f"regkern.{op}: expected a name in `allow`, got none")
    for name in allow:
        checks.one_of(op, "allow", name, PATHS)
    return tuple(allow)


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return weight


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _random_pattern(shape: tuple[int, int], density: float) -> SparsePattern:
    none = pattern_at(torch.empty(0, dtype=torch.int64), shape)
    count = max(1, round(density * math.prod(shape)))
    return pattern_at(random_free(none, count, torch.Generator().manual_seed(0)), shape)


def _measure(layer: Any, kind: Kind, batch: int, size: Sequence[int]) -> Cost:
    weight = _weight(layer).detach()
    like: Any = {"dtype": weight.dtype, "device": weight.device}
    channels = weight.shape[1] * getattr(layer, "groups", 1)
    x = torch.randn((batch, channels, *size), **like).requires_grad_()
    w = torch.randn(weight.shape, **like).requires_grad_()

    def step(of: Tensor, call: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Any]:
        with torch.enable_grad():
            g = torch.ones_like(call(x))

        def run() -> None:
            with torch.enable_grad():
                torch.autograd.grad(call(x), (x, of), g)

        return run

    def dense(call: DenseCall, dtype: torch.dtype) -> float:
        best = math.inf
        for layout in kind.layouts:
            of = w.detach().to(memory_format=layout).requires_grad_()
            at = x.detach().to(dtype, memory_format=layout).requires_grad_()
            run = step(of, lambda t, of=of: call(layer, t, of), at)  # type: ignore[misc]
            best = min(best, _seconds(run, weight.device))
        return best

    own, onednn, bf16 = dense(kind.dense, weight.dtype), math.inf, math.inf
    if _has_onednn(layer, weight):
        onednn = dense(_onednn_linear, weight.dtype)
    if _has_bf16(weight):
        bf16 = dense(_in_bf16(kind.dense), torch.bfloat16)
    matrix = (weight.shape[0], weight[0].numel())
    points = []
    for density in _DENSITIES:
        pattern = _random_pattern(matrix, density).to(weight.device)
        values = torch.randn(pattern.nnz, **like).requires_grad_()
        run = step(
            values,
            lambda t, v=values, p=pattern: kind.sparse(layer, t, v, p),  # type: ignore[misc]
            x,
        )
        points.append((pattern.nnz, _seconds(run, weight.device)))
    (n0, t0), (n1, t1) = points
    slope = max(0.0, (t1 - t0) / max(1, n1 - n0))
    return Cost(own, max(0.0, t0 - slope * n0), slope, onednn, bf16)


#: What the functions below, and `regkern.swap`, ask.
DEFAULT = CostModel()


def pays(
    layer: nn.Module,
    batch: int,
    density: float,
    size: Sequence[int] = (),
    model: CostModel | None = None,
    allow: Sequence[str] | None = None,
) -> Decision:
    r"""Whether a layer trains faster with a sparse weight, by :math:`a + b\, nnz` as measured here.

    Parameters
    ----------
    layer : nn.Linear, nn.Conv2d or nn.Conv1d
        The dense one, in the dtype and on the device that it is to train in.
    batch : int
        Elements of the batch; of linear layers all that stands before the features.
    density : float
        The share of the weight's entries that there are to be.
    size : sequence of int
        Height and width of the images of a convolution, or the length of its rows.
    model : CostModel, optional
        Where measurements are kept. Default: one for the process.
    allow : sequence of str, optional
        The ways of the dense layer that it has to be faster than, of ``"own"``, ``"onednn"`` and
        ``"bf16"``: see :class:`CostModel`. Default: the model's, which is ``("own",)`` unless it
        was told otherwise.

    Returns
    -------
    Decision
        Against the fastest of the ways allowed, in the faster of the layouts that the dense layer
        has.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Examples
    --------
    >>> pays(nn.Linear(768, 3072), 128, 0.1).reason
    '1.2 ms a step at a density of 0.1 instead of 9.8 ms; dense in bfloat16 would take 1 ms'
    """
    return (DEFAULT if model is None else model).decide(layer, batch, density, size, allow)

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
from regkern.sparse.convolutions import sparse_conv2d
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


class Cost(NamedTuple):
    """Seconds of a training step: forward and both gradients.

    Attributes
    ----------
    dense : float
        Of the dense layer, in the faster of its layouts.
    fixed, per_entry : float
        a and b of the sparse one, which takes a + b nnz.
    """

    dense: float
    fixed: float
    per_entry: float

    def sparse(self, nnz: float) -> float:
        return self.fixed + self.per_entry * nnz


class Decision(NamedTuple):
    """Whether a sparse weight pays.

    Attributes
    ----------
    pays : bool
    sparse, dense : float
        Seconds of a training step, measured or by the model.
    reason : str
        The same in words.
    """

    pays: bool
    sparse: float
    dense: float
    reason: str


class Kind(NamedTuple):
    """A class of layers: a step of it, dense and sparse, on an input."""

    dense: Callable[[Any, Tensor, Tensor], Tensor]
    sparse: Callable[[Any, Tensor, Tensor, SparsePattern], Tensor]
    layouts: tuple[torch.memory_format, ...]
    options: tuple[str, ...]


def _dense_linear(layer: nn.Linear, x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight, layer.bias)


def _sparse_linear(layer: nn.Linear, x: Tensor, values: Tensor, pattern: SparsePattern) -> Tensor:
    return sparse_linear(x, values, pattern, layer.bias)


def _dense_conv(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
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
}


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
    return f"{platform.machine()} {_processor()}, torch {torch.__version__.partition('+')[0]}"


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

    Notes
    -----
    A measurement takes up to a second or so for each class of shapes, by random weights of the
    layer's shape. Files are read and written by :meth:`load` and :meth:`save` alone; what other
    machines measured, or other versions of torch, is kept there and not used.
    """

    def __init__(self) -> None:
        self._costs: dict[str, Cost] = {}

    def cost(self, layer: nn.Module, batch: int, size: Sequence[int] = ()) -> Cost:
        """What steps of a layer take.

        Parameters
        ----------
        layer : nn.Linear or nn.Conv2d
        batch : int
            Elements of the batch; of linear layers all that stands before the features.
        size : sequence of int
            Height and width of the images of a convolution.

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
        self, layer: nn.Module, batch: int, density: float, size: Sequence[int] = ()
    ) -> Decision:
        """Whether a layer with that share of its entries trains faster. See :meth:`cost`."""
        checks.probability("sparse.CostModel", "density", density)
        cost = self.cost(layer, batch, size)
        numel = _weight(layer).numel()
        sparse = cost.sparse(density * numel)
        # The density at which the two are even.
        even = (cost.dense - cost.fixed) / max(cost.per_entry * numel, 1e-30)
        what = (
            f"{1e3 * sparse:.3g} ms a step at a density of {density:.3g} instead of "
            f"{1e3 * cost.dense:.3g} ms"
        )
        if sparse < cost.dense:
            return Decision(True, sparse, cost.dense, what)
        edge = "would not pay at any" if even <= 0 else f"would pay below {min(even, 1.0):.2g}"
        return Decision(False, sparse, cost.dense, f"{what}; it {edge}")

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
            ]
        )

    def save(self, path: str | Path | None = None) -> Path:
        """Adds what was measured to a file: without a path one in the user's cache directory."""
        path = cache_path() if path is None else Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        there = json.loads(path.read_text()) if path.exists() else {}
        there.setdefault(_machine(), {}).update({k: list(c) for k, c in self._costs.items()})
        path.write_text(json.dumps(there, indent=1) + "\n")
        return path

    def load(self, path: str | Path | None = None) -> int:
        """Takes what this machine has measured from a file, if there is one. How much it was."""
        path = cache_path() if path is None else Path(path)
        if not path.exists():
            return 0
        mine = json.loads(path.read_text()).get(_machine(), {})
        self._costs.update({key: Cost(*numbers) for key, numbers in mine.items()})
        return len(mine)

    def __len__(self) -> int:
        return len(self._costs)


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

    dense = math.inf
    for layout in kind.layouts:
        of = w.detach().to(memory_format=layout).requires_grad_()
        at = x.detach().to(memory_format=layout).requires_grad_()
        run = step(of, lambda t, of=of: kind.dense(layer, t, of), at)  # type: ignore[misc]
        dense = min(dense, _seconds(run, weight.device))
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
    return Cost(dense, max(0.0, t0 - slope * n0), slope)


#: What the functions below, and `regkern.swap`, ask.
DEFAULT = CostModel()


def pays(
    layer: nn.Module,
    batch: int,
    density: float,
    size: Sequence[int] = (),
    model: CostModel | None = None,
) -> Decision:
    r"""Whether a layer trains faster with a sparse weight, by :math:`a + b\, nnz` as measured here.

    Parameters
    ----------
    layer : nn.Linear or nn.Conv2d
        The dense one, in the dtype and on the device that it is to train in.
    batch : int
        Elements of the batch; of linear layers all that stands before the features.
    density : float
        The share of the weight's entries that there are to be.
    size : sequence of int
        Height and width of the images of a convolution.
    model : CostModel, optional
        Where measurements are kept. Default: one for the process.

    Returns
    -------
    Decision
        Against the faster of the layouts that the dense layer has, in its dtype.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Examples
    --------
    >>> pays(nn.Linear(768, 3072), 128, 0.1).reason
    '1.2 ms a step at a density of 0.1 instead of 9.8 ms'
    """
    return (DEFAULT if model is None else model).decide(layer, batch, density, size)

"""Observers: modules that return their input and remember its range."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.quantize.observers import range_qparams
from regkern.quantize.statistics import percentile_range, value_range


class _Observer(nn.Module):
    """The buffers ``min_val`` and ``max_val``: 0-d, or one per channel once there is a batch."""

    min_val: Tensor
    max_val: Tensor

    def __init__(self, axis: int | None, training_only: bool) -> None:
        super().__init__()
        self.axis = axis
        self.training_only = training_only
        self.enabled = True
        shape = () if axis is None else (0,)
        self.register_buffer("min_val", torch.full(shape, math.inf))
        self.register_buffer("max_val", torch.full(shape, -math.inf))

    def _current(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return value_range(x, self.axis)

    def _update(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Remembers the range of x and returns x itself."""
        if not self.enabled or (self.training_only and not self.training) or x.numel() == 0:
            return x
        low, high = self._current(x)
        if self.axis is not None and self.min_val.shape != low.shape:
            if self.min_val.numel() != 0:
                raise ValueError(
                    f"regkern.{type(self).__name__}: expected {self.min_val.numel()} channels as "
                    f"before, got {low.numel()}"
                )
            self.min_val = self.min_val.new_full(low.shape, math.inf)
            self.max_val = self.max_val.new_full(low.shape, -math.inf)
        dtype = self.min_val.dtype
        low, high = self._update(low.to(dtype), high.to(dtype))
        self.min_val.copy_(low)
        self.max_val.copy_(high)
        return x

    def calculate_qparams(
        self, quant_min: int, quant_max: int, symmetric: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Scale and zero point of what was observed; see `range_qparams`."""
        return range_qparams(self.min_val, self.max_val, quant_min, quant_max, symmetric)

    def reset(self) -> None:
        """Forgets all that was observed."""
        self.min_val.fill_(math.inf)
        self.max_val.fill_(-math.inf)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Buffers of a module that has seen no batch take the number of channels of the saved ones.
        for name in ("min_val", "max_val"):
            saved = state_dict.get(prefix + name)
            own: Tensor = getattr(self, name)
            if self.axis is not None and saved is not None and own.shape != saved.shape:
                setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"axis={self.axis}, training_only={self.training_only}"


class MinMaxObserver(_Observer):
    r"""The extremes of all batches.

    .. math::
        x_{\min} \leftarrow \min(x_{\min}, \min x), \qquad
        x_{\max} \leftarrow \max(x_{\max}, \max x)

    Parameters
    ----------
    axis : int, optional
        The channel axis; None for one range.
    training_only : bool
        Observes in training mode alone. ``enabled = False`` stops it in any mode.

    Notes
    -----
    Bytes moved: x read once. Float32 buffers ``min_val`` and ``max_val``; a NaN stays in them until
    `reset`. Nothing waits for a GPU.
    """

    def __init__(self, axis: int | None = None, training_only: bool = False) -> None:
        super().__init__(axis, training_only)

    def _update(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return torch.minimum(self.min_val, low), torch.maximum(self.max_val, high)


class MovingAverageObserver(_Observer):
    r"""The moving average of the extremes of the batches.

    .. math::
        x_{\min} \leftarrow x_{\min} + c \, (\min x - x_{\min}), \qquad
        x_{\max} \leftarrow x_{\max} + c \, (\max x - x_{\max})

    The first batch sets them. c is ``momentum``, torch.ao's ``averaging_constant``.

    Parameters
    ----------
    momentum : float
        In (0, 1].
    axis, training_only
        See `MinMaxObserver`.
    """

    def __init__(
        self, momentum: float = 0.01, axis: int | None = None, training_only: bool = False
    ) -> None:
        super().__init__(axis, training_only)
        self.momentum = _check_momentum(type(self).__name__, momentum)

    def _update(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        first = (self.min_val == math.inf) & (self.max_val == -math.inf)
        c = self.momentum
        return (
            torch.where(first, low, self.min_val + c * (low - self.min_val)),
            torch.where(first, high, self.max_val + c * (high - self.max_val)),
        )

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, {super().extra_repr()}"


class PercentileObserver(MovingAverageObserver):
    """The moving average of the range that a share of the elements lies in.

    See `percentile_range` for the range of a batch and `MovingAverageObserver` for the average.

    Parameters
    ----------
    percentile, bins, symmetric
        See `percentile_range`.
    momentum, training_only
        See `MovingAverageObserver`.
    """

    def __init__(
        self,
        percentile: float = 99.9,
        bins: int = 2048,
        symmetric: bool = False,
        momentum: float = 0.01,
        training_only: bool = False,
    ) -> None:
        super().__init__(momentum, None, training_only)
        percentile_range(torch.zeros(0), percentile, bins, symmetric)  # checks them
        self.percentile, self.bins, self.symmetric = percentile, bins, symmetric

    def _current(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return percentile_range(x, self.percentile, self.bins, self.symmetric)

    def extra_repr(self) -> str:
        return (
            f"percentile={self.percentile}, bins={self.bins}, symmetric={self.symmetric}, "
            f"{super().extra_repr()}"
        )


def _check_momentum(op: str, momentum: float) -> float:
    checks.probability(op, "momentum", momentum)
    if momentum == 0:
        raise ValueError(f"regkern.{op}: expected `momentum` in (0, 1], got {momentum}")
    return momentum

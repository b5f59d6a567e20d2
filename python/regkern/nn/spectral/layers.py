"""Layers that divide their output by the spectral norm of their weight."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from regkern.nn.spectral.norm import FIRST_ITERATIONS
from regkern.spectral.normalize import _resolve_cap, spectral_conv, spectral_linear
from regkern.spectral.power import check_iterations, iterate, random_vectors


def _set_up(layer: Any, n_power_iterations: int, cap: float | None) -> None:
    op = type(layer).__name__
    check_iterations(op, "n_power_iterations", n_power_iterations, 1)
    _resolve_cap(op, cap)
    layer.n_power_iterations = n_power_iterations
    layer.cap = cap
    weight = layer.weight.detach()
    (u,), (v,) = random_vectors(weight)
    layer.register_buffer("weight_u", u)
    layer.register_buffer("weight_v", v)
    iterate([weight], [u], [v], [0], FIRST_ITERATIONS, None, 0.0, True, False)


def _settings(layer: Any) -> dict[str, Any]:
    return {
        "n_iter": layer.n_power_iterations if layer.training else 0,
        "cap": layer.cap,
    }


class SpectralLinear(nn.Linear):
    """A linear layer with a normalised weight: x Wᵀ / σ + b, without writing W / σ.

    Parameters
    ----------
    *args, **kwargs
        Of ``torch.nn.Linear``.
    n_power_iterations : int
        Iterations at every call in training mode.
    cap : float, optional
        Divide by max(1, σ / cap) instead.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(
        self, *args: Any, n_power_iterations: int = 1, cap: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _set_up(self, n_power_iterations, cap)

    def forward(self, x: Tensor) -> Tensor:
        return spectral_linear(
            x, self.weight, self.bias, self.weight_u, self.weight_v, **_settings(self)
        )


class _SpectralConv:
    """What the convolutions share; torch's class stands after it."""

    def __init__(
        self, *args: Any, n_power_iterations: int = 1, cap: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _set_up(self, n_power_iterations, cap)

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        padding = layer.padding
        if isinstance(padding, str) or layer.padding_mode != "zeros":
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
            padding = 0
        return spectral_conv(
            x,
            layer.weight,
            layer.bias,
            layer.weight_u,
            layer.weight_v,
            stride=layer.stride,
            padding=padding,
            dilation=layer.dilation,
            groups=layer.groups,
            **_settings(layer),
        )


class SpectralConv1d(_SpectralConv, nn.Conv1d):
    """``torch.nn.Conv1d`` with a normalised weight, which is never written.

    Parameters
    ----------
    *args, **kwargs
        Of ``torch.nn.Conv1d``.
    n_power_iterations, cap
        As in :class:`SpectralLinear`.
    """


class SpectralConv2d(_SpectralConv, nn.Conv2d):
    """``torch.nn.Conv2d`` with a normalised weight, which is never written.

    Parameters
    ----------
    *args, **kwargs
        Of ``torch.nn.Conv2d``.
    n_power_iterations, cap
        As in :class:`SpectralLinear`.
    """


class SpectralConv3d(_SpectralConv, nn.Conv3d):
    """``torch.nn.Conv3d`` with a normalised weight, which is never written.

    Parameters
    ----------
    *args, **kwargs
        Of ``torch.nn.Conv3d``.
    n_power_iterations, cap
        As in :class:`SpectralLinear`.
    """

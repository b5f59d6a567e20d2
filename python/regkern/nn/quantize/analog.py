"""Analog noise on the weight of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regkern.nn.quantize.quant_noise import WeightNoise, WeightNoiseWrapper
from regkern.quantize.analog import PCM_COEFFICIENTS, Kind, Scale, check_options, weight_noise
from regkern.random import make_seed


class _AnalogNoise(WeightNoise):
    devices: Tensor

    def __init__(
        self,
        kind: Kind,
        std_dev: float,
        options: dict[str, Any],
        enable_during_test: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.std_dev = std_dev
        self.options = options
        self.enable_during_test = enable_during_test
        self.generator = generator
        if kind == "device_variability":
            # The devices: drawn once, and saved with the layer.
            self.register_buffer("devices", make_seed(generator=generator))

    def forward(self, w: Tensor) -> Tensor:
        if not self.training and not self.enable_during_test:
            return w
        if self.kind == "device_variability":
            return weight_noise(w, self.kind, self.std_dev, seed=self.devices, **self.options)
        return weight_noise(w, self.kind, self.std_dev, generator=self.generator, **self.options)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, std_dev={self.std_dev:g}"


class AnalogWeights(WeightNoiseWrapper):
    r"""A layer whose weight carries the noise of analog hardware while training.

    .. math:: y = \mathrm{layer}(x; \tilde w), \qquad \tilde w = \mathrm{weight\_noise}(w)

    Drawn anew at every forward; but of "device_variability", whose devices are drawn once and are
    part of the state dict. The layer's own weight is not changed.

    Parameters
    ----------
    module : nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d or nn.Embedding
        Is parametrized (`torch.nn.utils.parametrize`), and stays in `module`.
    kind, std_dev, scale, resolution, stochastic, coefficients, truncate, drop_connect, rescale
        As of `regkern.quantize.analog.weight_noise`. ``std_dev`` may be set at any time.
    exempt_last_column, gradient
        Likewise.
    enable_during_test : bool
        Noise in eval mode, too.
    generator : torch.Generator, optional
        Of the weight's device; default: torch's own.

    Notes
    -----
    State dicts and `unwrap` as of `QuantNoise`. Bytes moved: those of
    `regkern.quantize.analog.weight_noise`.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: Kind,
        std_dev: float = 0.0,
        *,
        scale: Scale = "absmax",
        resolution: float = 0.0,
        stochastic: bool = False,
        coefficients: Sequence[float] = PCM_COEFFICIENTS,
        truncate: bool = False,
        drop_connect: float = 0.0,
        rescale: bool = False,
        exempt_last_column: bool = False,
        gradient: Literal["exact", "identity"] = "exact",
        enable_during_test: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        op = "nn.AnalogWeights"
        check_options(op, kind, std_dev, resolution, coefficients, drop_connect, gradient)
        options = {
            "scale": scale,
            "resolution": resolution,
            "stochastic": stochastic,
            "coefficients": tuple(coefficients),
            "truncate": truncate,
            "drop_connect": drop_connect,
            "rescale": rescale,
            "exempt_last_column": exempt_last_column,
            "gradient": gradient,
        }
        noise = _AnalogNoise(kind, std_dev, options, enable_during_test, generator)
        super().__init__(op, module, noise)
        if kind == "device_variability":
            weight: Tensor = module.parametrizations.weight.original  # type: ignore[union-attr, assignment]
            noise.to(weight.device)

    @property
    def std_dev(self) -> float:
        """The noise level σ."""
        noise: Any = self.noise
        return noise.std_dev  # type: ignore[no-any-return]

    @std_dev.setter
    def std_dev(self, value: float) -> None:
        noise: Any = self.noise
        options = noise.options
        check_options(
            "nn.AnalogWeights", noise.kind, value, options["resolution"],
            options["coefficients"], options["drop_connect"], options["gradient"],
        )  # fmt: skip
        noise.std_dev = value

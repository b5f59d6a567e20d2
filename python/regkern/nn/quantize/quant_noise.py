"""Quant-Noise on the weight of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regkern import _checks as checks
from regkern.quantize.block_noise import (
    Gradient,
    Quantizer,
    check_quantizer,
    quant_noise,
)

#: The layers whose weight is (out, in, …), as `regkern.quantize.block_noise.blocks_of` reads it.
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


class WeightNoise(nn.Module):
    """A parametrization that is the identity to whoever sets the weight."""

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


class WeightNoiseWrapper(nn.Module):
    """A layer whose weight is seen through noise that is drawn anew at every forward.

    The layer is `module`; what is not found here is looked up there, so that the wrapper can stand
    where the layer stood. Checkpoints of the bare layer can be loaded.
    """

    module: nn.Module

    def __init__(self, op: str, module: nn.Module, noise: WeightNoise) -> None:
        super().__init__()
        if not isinstance(module, LAYERS):
            names = ", ".join(layer.__name__ for layer in LAYERS)
            raise TypeError(
                f"regkern.{op}: expected `module` to be one of {names}, got {type(module).__name__}"
            )
        if parametrize.is_parametrized(module, "weight"):
            raise ValueError(
                f"regkern.{op}: expected the weight of `module` without a parametrization, got "
                f"{module.parametrizations.weight}"  # type: ignore[union-attr]
            )
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            # The renormalisation writes to the weight, of which the forward sees a copy.
            raise ValueError(
                f"regkern.{op}: expected an Embedding without `max_norm`, got {module.max_norm}"
            )
        # Unsafe means: not called now, which would draw from the generator.
        parametrize.register_parametrization(module, "weight", noise, unsafe=True)
        self.module = module
        self.register_load_state_dict_pre_hook(_take_bare_layer)  # type: ignore[no-untyped-call]

    @property
    def noise(self) -> WeightNoise:
        """The parametrization."""
        parametrized = self.module.parametrizations.weight  # type: ignore[union-attr]
        return parametrized[0]  # type: ignore[index, return-value]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Not what copying and pickling look for: that of the layer would be taken for ours.
            if name == "module" or name.startswith("__"):
                raise
            return getattr(super().__getattr__("module"), name)

    def unwrap(self) -> nn.Module:
        """Takes the noise off and returns the bare layer with its own weight."""
        module: nn.Module = parametrize.remove_parametrizations(
            self.module, "weight", leave_parametrized=False
        )
        return module


def _take_bare_layer(
    wrapper: WeightNoiseWrapper, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Renames the entries of a bare layer; what belongs to the noise stays as it is."""
    if prefix + "weight" not in state:
        return
    parametrized = prefix + "module.parametrizations.weight."
    state[parametrized + "original"] = state.pop(prefix + "weight")
    if prefix + "bias" in state:
        state[prefix + "module.bias"] = state.pop(prefix + "bias")
    for name, value in wrapper.noise.state_dict().items():
        state.setdefault(f"{parametrized}0.{name}", value)


# ---- Quant-Noise ----


class _QuantNoise(WeightNoise):
    def __init__(
        self,
        p: float | Tensor,
        block_size: int,
        quantizer: Quantizer,
        gradient: Gradient,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.p = p
        self.block_size = block_size
        self.gradient: Gradient = gradient
        self.generator = generator
        if isinstance(quantizer, nn.Parameter | nn.Module):
            # Registered, so that they move, train and are saved with the layer.
            self.quantizer: Quantizer = quantizer
        elif isinstance(quantizer, Tensor):
            self.register_buffer("quantizer", quantizer)
        else:
            self.quantizer = quantizer

    def forward(self, w: Tensor) -> Tensor:
        # Where nothing is random, no generator is asked for.
        certain = not self.training
        return quant_noise(
            w,
            self.p,
            self.block_size,
            self.quantizer,
            gradient=self.gradient,
            training=self.training,
            generator=None if certain else self.generator,
        )

    def extra_repr(self) -> str:
        p = float(self.p) if isinstance(self.p, Tensor) else self.p
        q = self.quantizer
        shown = repr(q) if isinstance(q, str) else "codebook" if isinstance(q, Tensor) else "..."
        return f"p={p:g}, block_size={self.block_size}, quantizer={shown}"


class QuantNoise(WeightNoiseWrapper):
    r"""A layer with Quant-Noise on its weight.

    .. math::
        \hat w_b = \begin{cases} q(w)_b & \text{with probability } p \\ w_b & \text{else}
        \end{cases}, \qquad y = \mathrm{layer}(x; \hat w)

    Drawn anew at every forward while training; in eval mode everything is quantized, and nothing
    with "zero". The layer's own weight is not changed.

    Parameters
    ----------
    module : nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d or nn.Embedding
        Is parametrized (`torch.nn.utils.parametrize`), and stays in `module`.
    p : float or 0-d Tensor
        Share of the blocks to quantize. May be set at any time, by a schedule say; filling a tensor
        in place does not recompile.
    block_size : int
        Consecutive inputs of an output. Kernels larger than 1 x 1 are a block each.
    quantizer, gradient
        As of `regkern.quantize.block_noise`. A codebook becomes a buffer, or a parameter if it is
        one; modules and parameters are trained with the layer.
    generator : torch.Generator, optional
        Of the weight's device; default: torch's own.

    Notes
    -----
    The state dict has the weight as ``module.parametrizations.weight.original``; one of the bare
    layer can be loaded as well. `unwrap` gives the bare layer back. Every access to ``weight``
    draws; inside ``torch.nn.utils.parametrize.cached()`` the first one does. Bytes moved: those of
    `regkern.quantize.block_noise`.

    References
    ----------
    Fan et al., "Training with quantization noise for extreme model compression", ICLR 2021.
    """

    def __init__(
        self,
        module: nn.Module,
        p: float | Tensor,
        block_size: int = 8,
        quantizer: Quantizer = "zero",
        *,
        gradient: Gradient = "identity",
        generator: torch.Generator | None = None,
    ) -> None:
        op = "nn.QuantNoise"
        checks.probability(op, "p", p)
        checks.at_least(op, "block_size", block_size, 1)
        checks.one_of(op, "gradient", gradient, ("identity", "masked", "quantizer"))
        check_quantizer(op, quantizer)
        super().__init__(op, module, _QuantNoise(p, block_size, quantizer, gradient, generator))

    @property
    def p(self) -> float | Tensor:
        """The share of the blocks to quantize."""
        noise: Any = self.noise
        return noise.p  # type: ignore[no-any-return]

    @p.setter
    def p(self, value: float | Tensor) -> None:
        checks.probability("nn.QuantNoise", "p", value)
        noise: Any = self.noise
        noise.p = value

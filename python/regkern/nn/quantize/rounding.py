"""Stochastic rounding as a module."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.quantize.fake import round_gradient
from regkern.quantize.formats import Format, format_of
from regkern.quantize.rounding import (
    ROUNDINGS,
    SCALE_MODES,
    Rounding,
    ScaleMode,
    check_rounding,
    round_to,
)


def option_repr(module: nn.Module, defaults: dict[str, object]) -> str:
    """Those options of a module that differ from their default, for `extra_repr`."""
    options = ((name, getattr(module, name)) for name in defaults)
    return "".join(f", {name}={value!r}" for name, value in options if value != defaults[name])


class StochasticRound(nn.Module):
    r"""Rounds to a format: at random in training, to nearest in eval mode.

    .. math::
        \text{training: } \mathbb{E}\, y = x, \qquad \text{eval: } y = \operatorname{round}(x)

    `regkern.round_to` as a module. The gradient is straight-through, rounded to `gradient_format`
    where there is one. The bits come from torch's generator at every call, so no two modules and no
    two calls share noise; the module has no state of its own.

    Parameters
    ----------
    format : str or torch.dtype
        See `round_to`.
    eval_rounding : {"nearest_even", "nearest_away", "toward_zero", "floor", "stochastic"}, optional
        In eval mode; None returns x as it is.
    gradient_format : str, optional
        Of dy, in training and in eval mode. See `round_gradient`.
    gradient_rounding : str
        Of dy.
    overflow : {"saturate", "infinity"}, optional
        Saturates by default, in both modes; None leaves it to the rounding (see `round_to`).
    axis, block_size, scale_mode, random_bits, generator
        See `round_to`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    """

    def __init__(
        self,
        format: str | torch.dtype | Format,
        *,
        eval_rounding: Rounding | None = "nearest_even",
        gradient_format: str | torch.dtype | Format | None = None,
        gradient_rounding: Rounding = "stochastic",
        overflow: Literal["saturate", "infinity"] | None = "saturate",
        axis: int = -1,
        block_size: int | None = None,
        scale_mode: ScaleMode | None = None,
        random_bits: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        op = "StochasticRound"
        form = format_of(op, format)
        check_rounding(op, "stochastic", random_bits)
        if eval_rounding is not None:
            checks.one_of(op, "eval_rounding", eval_rounding, ROUNDINGS)
        if gradient_format is not None:
            format_of(op, gradient_format)
        checks.one_of(op, "gradient_rounding", gradient_rounding, ROUNDINGS)
        if overflow is not None:
            checks.one_of(op, "overflow", overflow, ("saturate", "infinity"))
        if scale_mode is not None:
            checks.one_of(op, "scale_mode", scale_mode, SCALE_MODES)
        if form.rule is None and (block_size is not None or scale_mode is not None):
            raise ValueError(
                f"regkern.{op}: expected no `block_size` or `scale_mode` with format "
                f"{form.name!r}, which has no scale per block"
            )
        self.format = format
        self.eval_rounding: Rounding | None = eval_rounding
        self.gradient_format = gradient_format
        self.gradient_rounding: Rounding = gradient_rounding
        self.overflow: Literal["saturate", "infinity"] | None = overflow
        self.axis = axis
        self.block_size = block_size
        self.scale_mode: ScaleMode | None = scale_mode
        self.random_bits = random_bits
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        rounding = "stochastic" if self.training else self.eval_rounding
        if rounding is not None:
            x = round_to(
                x,
                self.format,
                rounding=rounding,
                overflow=self.overflow,
                axis=self.axis,
                block_size=self.block_size,
                scale_mode=self.scale_mode,
                random_bits=self.random_bits,
                generator=self.generator if rounding == "stochastic" else None,
            )
        if self.gradient_format is not None:
            random = self.gradient_rounding == "stochastic"
            x = round_gradient(
                x,
                self.gradient_format,
                rounding=self.gradient_rounding,
                generator=self.generator if random else None,
            )
        return x

    def extra_repr(self) -> str:
        defaults: dict[str, object] = {
            "eval_rounding": "nearest_even",
            "gradient_format": None,
            "gradient_rounding": "stochastic",
            "overflow": "saturate",
            "axis": -1,
            "block_size": None,
            "scale_mode": None,
            "random_bits": 16,
        }
        return f"{self.format!r}{option_repr(self, defaults)}"

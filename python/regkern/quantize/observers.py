"""Scale and zero point of a range: what observers turn theirs into."""

from __future__ import annotations

import torch
from torch import Tensor

from regkern import _checks as checks

#: The least scale, as in `torch.ao.quantization`.
EPSILON = torch.finfo(torch.float32).eps


def range_qparams(
    minimum: Tensor,
    maximum: Tensor,
    quant_min: int,
    quant_max: int,
    symmetric: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Scale and zero point of the integers that cover a range.

    .. math::
        s = \frac{\max(x_{\max}, 0) - \min(x_{\min}, 0)}{q_{\max} - q_{\min}}, \quad
        z = \mathrm{clamp}\!\left(q_{\min} - \mathrm{round}\!\left(
            \frac{\min(x_{\min}, 0)}{s}\right), q_{\min}, q_{\max}\right); \qquad
        \text{symmetric} \quad s = \frac{\max(-x_{\min}, x_{\max}, 0)}{(q_{\max} - q_{\min}) / 2}

    Parameters
    ----------
    minimum, maximum : Tensor
        The range, of any shape.
    quant_min, quant_max : int
        The least and the largest integer, the first below the second.
    symmetric : bool
        Zero point 0 where ``quant_min`` is negative, else the middle, rounded up: 128 of [0, 255].

    Returns
    -------
    scale, zero_point : Tensor
        Of the dtype of the range, and int64; of its shape. The scale is at least float32's epsilon.
        NaN gives NaN and a zero point of 0. An observed nothing (+inf, −inf) gives 1 and 0, the
        same as `torch.ao.quantization`, whose formulas these are.

    Raises
    ------
    TypeError, ValueError
        For ranges that are not floating tensors of one shape, and quant_min ≥ quant_max.

    Notes
    -----
    A dozen operations on as many numbers as there are ranges; nothing waits for a GPU.
    """
    op = "range_qparams"
    checks.floating(op, "minimum", minimum)
    checks.same(op, "maximum", maximum, minimum, "minimum")
    check_quant_range(op, quant_min, quant_max)
    nothing = (minimum == torch.inf) & (maximum == -torch.inf)
    low, high = minimum.clamp(max=0.0), maximum.clamp(min=0.0)
    steps = float(quant_max - quant_min)
    if symmetric:
        scale = (torch.maximum(-low, high) / (steps / 2)).clamp(min=EPSILON)
        middle = 0 if quant_min < 0 else (quant_min + quant_max + 1) // 2
        zero_point = torch.full_like(scale, middle, dtype=torch.int64)
    else:
        scale = ((high - low) / steps).clamp(min=EPSILON)
        exact = quant_min - torch.round(low / scale)
        zero_point = exact.nan_to_num(0.0).clamp(quant_min, quant_max).to(torch.int64)
    return (
        torch.where(nothing, 1.0, scale),
        torch.where(nothing | scale.isnan(), 0, zero_point),
    )


def check_quant_range(op: str, quant_min: int, quant_max: int) -> None:
    if not quant_min < quant_max:
        raise ValueError(
            f"regkern.{op}: expected `quant_min` below `quant_max`, got {quant_min} and {quant_max}"
        )

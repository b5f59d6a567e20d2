"""Sensitivity shrinkage: the definition in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def sensitivity_shrink(
    w: Tensor,
    g: Tensor,
    lr_lambda: float,
    kind: str = "lobster",
    lr: float | None = None,
    sensitivity: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """w − lr g − lr_lambda w φ, 0 where it is not kept."""
    if kind == "lobster":
        phi = torch.relu(1 - g.abs())
    elif kind == "rescaled":
        most = g.abs().max()
        phi = 1 - (torch.zeros_like(g) if most == 0 else g.abs() / most)
    elif kind == "rows":
        assert sensitivity is not None
        across = [-1] + [1] * (w.dim() - 1) if w.dim() > 0 else []
        phi = torch.relu(1 - sensitivity).reshape(across).expand_as(w)
    elif kind == "irrelevance":
        phi = torch.exp(-g.abs())
    else:
        raise ValueError(kind)
    out = w - lr_lambda * w * phi
    out = out if lr is None else out - lr * g
    return out if keep is None else torch.where(keep, out, 0.0)

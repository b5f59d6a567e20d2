"""Clipping the gradients of a network."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern.spectral.network import clip_norm_


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float | Tensor, norm_type: float = 2.0
) -> Tensor:
    """Clips the global norm of the gradients of parameters, in place.

    Called like :func:`torch.nn.utils.clip_grad_norm_`.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those without gradients are left out.
    max_norm : float or Tensor
        The largest norm, one element.
    norm_type : float, default 2
        The order of the norm: at least 1, ``math.inf`` included.

    Returns
    -------
    Tensor
        The norm that the gradients had: 0-d, on the device; 0 where there is no gradient.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    See :func:`regkern.spectral.clip_norm_`: gradients within the ball keep their bits. All
    gradients are on one device.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for i, p in enumerate(params):
        checks.tensor("optim.clip_grad_norm_", f"parameters[{i}]", p)
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return torch.zeros(())
    return clip_norm_(grads, max_norm, norm_type)

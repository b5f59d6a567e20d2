"""Sinkhorn's iteration on many small dense costs, all iterations of a problem in one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regkern._registration import register

if TYPE_CHECKING:
    from regkern.transport.dense import Settings

#: Points on either side, at most.
SMALL_SIDE = 128


def _fake_solve(cost: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, n, m = cost.shape
    return (
        cost.new_empty((batch, n), dtype=torch.float64),
        cost.new_empty((batch, m), dtype=torch.float64),
        cost.new_empty((batch,), dtype=torch.float64),
        cost.new_empty((batch,), dtype=torch.int32),
        cost.new_empty((batch,), dtype=torch.int8),
    )


_solve = register("transport_small_solve", _fake_solve)


def is_small(cost: Tensor, settings: Settings, eps_start: Tensor | None) -> bool:
    """Whether :func:`solve_small` solves these problems."""
    plain = settings.acceleration == "none" or settings.acceleration == "relaxed"
    n, m = cost.shape[-2:]
    return plain and eps_start is None and n <= SMALL_SIDE and m <= SMALL_SIDE


def solve_small(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    eps: Tensor,
    rho: Tensor,
    settings: Settings,
    f: Tensor | None = None,
    g: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    r"""Potentials f and g, errors, iterations and status of B problems, without gradients.

    .. math::
        s_i = \sum_j K_{ij} x_j, \quad y_i = a_i / s_i, \qquad
        t_j = \sum_i K_{ij} y_i, \quad x_j = b_j / t_j, \qquad
        K_{ij} = e^{(\varphi_i + \psi_j - C_{ij})/\varepsilon}

    with :math:`\varphi` and :math:`\psi` close to the potentials, so that it holds at any
    :math:`\varepsilon`. What is returned is what the engine of large costs returns,
    :func:`regkern.transport.dense.solve_dense`, up to rounding: the same potentials after the same
    iterations, errors and stops.

    Parameters
    ----------
    cost : Tensor
        (B, n, m) with n and m of at most ``SMALL_SIDE``.
    a, b, eps, rho : Tensor
        Weights (B, n) and (B, m), eps (B), rho (2, B): float64 and dense.
    settings : Settings
        With ``acceleration`` "none" or "relaxed".
    f, g : Tensor, optional
        Potentials to begin with, float64 and dense.

    Notes
    -----
    The cost is read once; a problem's matrix stays in registers, cache or shared memory for all
    iterations. On the CPU problems of at most 16 points on either side are solved one in each lane
    of a vector.

    References
    ----------
    B. Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport problems",
    SIAM Journal on Scientific Computing 41, 2019.
    """
    with torch.no_grad():
        found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _solve(
            cost, a, b, eps, rho, None, f, g, *settings
        )
        return found

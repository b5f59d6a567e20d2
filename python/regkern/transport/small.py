"""Sinkhorn's iteration on many small dense costs, all iterations of a problem in one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from regkern._registration import once_only, register
from regkern.transport.calls import Quick

if TYPE_CHECKING:
    from regkern.transport.dense import Settings

#: Points on either side, at most.
SMALL_SIDE = 128
#: Points on either side of plans that are made with their sums in one pass.
_SHORT_SIDE = 16


class SmallSolution(NamedTuple):
    """What the solver returns, for B problems."""

    f: Tensor
    g: Tensor
    value: Tensor
    error: Tensor
    iterations: Tensor
    status: Tensor


def _fake_solve(cost: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    batch, n, m = cost.shape
    return (
        cost.new_empty((batch, n), dtype=torch.float64),
        cost.new_empty((batch, m), dtype=torch.float64),
        cost.new_empty((batch,), dtype=torch.float64),
        cost.new_empty((batch,), dtype=torch.float64),
        cost.new_empty((batch,), dtype=torch.int32),
        cost.new_empty((batch,), dtype=torch.int8),
    )


def _fake_slopes(cost: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    batch, n, m = cost.shape
    some = batch if rest[-1] else 0
    return (
        torch.empty_like(cost),
        cost.new_empty((some, n), dtype=torch.float64),
        cost.new_empty((some, m), dtype=torch.float64),
        cost.new_empty((some,), dtype=torch.float64),
    )


_solve = register("transport_small_solve", _fake_solve)
_slopes = register("transport_small_slopes", _fake_slopes)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    cost, a, b, eps, rho = inputs[:5]
    f, g, _, *rest = output
    ctx.mark_non_differentiable(f, g, *rest)
    ctx.save_for_backward(cost, a, b, eps, rho, f, g)


@once_only("sinkhorn")
def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """By the envelope: the plan by the cost, potentials by the weights."""
    cost, a, b, eps, rho, f, g = ctx.saved_tensors
    grad, needs = grads[2], ctx.needs_input_grad
    sums = needs[1] or needs[2] or needs[3]
    slope, rows, columns, exponents = value_slopes(cost, a, b, f, g, eps, grad, sums)
    d_a = d_b = d_eps = d_rho = None
    if sums:
        ours = a.sum(-1) if a is not None else torch.ones_like(eps)
        theirs = b.sum(-1) if b is not None else torch.ones_like(eps)
        of_f, of_g = (f, g) if rho is None else (conjugate(f, rho[0]), conjugate(g, rho[1]))
        if needs[1]:
            d_a = _weight_slope(a, of_f, rows, eps, theirs, grad)
        if needs[2]:
            d_b = _weight_slope(b, of_g, columns, eps, ours, grad)
        if needs[3]:
            d_eps = grad * (exponents / eps - rows.sum(-1) + ours * theirs)
    if needs[4]:
        d_rho = torch.stack([_reach_slope(a, f, rho[0], grad), _reach_slope(b, g, rho[1], grad)])
    d_cost = slope if needs[0] else None
    return d_cost, d_a, d_b, d_eps, d_rho, None, None, None, None, None, None, None


_call = Quick(_solve, _setup, _backward)


def conjugate(potential: Tensor, rho: Tensor) -> Tensor:
    """What a unit of mass at the potential adds to the dual: f, or ρ (1 − e^(−f/ρ))."""
    soft = rho.isfinite()[:, None]
    safe = torch.where(soft, rho[:, None], 1.0)
    return torch.where(soft, safe * -torch.expm1(-potential / safe), potential)


def _weight_slope(
    weight: Tensor, own: Tensor, sums: Tensor, eps: Tensor, other: Tensor, grad: Tensor
) -> Tensor:
    """φ(f) − ε (P 1) / a + ε Σb; what takes no part has no gradient."""
    there = weight > 0
    share = sums / torch.where(there, weight, 1.0)
    slope = own + eps[:, None] * (other[:, None] - share)
    return torch.where(there, grad[:, None] * slope, 0.0)


def _reach_slope(weight: Tensor | None, potential: Tensor, rho: Tensor, grad: Tensor) -> Tensor:
    """Σ a (1 − (1 + f/ρ) e^(−f/ρ))."""
    soft = rho.isfinite()
    ratio = torch.where(soft[:, None], potential / torch.where(soft, rho, 1.0)[:, None], 0.0)
    term = 1 - (1 + ratio) * (-ratio).exp()
    if weight is None:
        return grad * term.mean(-1)
    return grad * torch.where(weight > 0, weight * term, 0.0).sum(-1)


def value_slopes(
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    f: Tensor,
    g: Tensor,
    eps: Tensor,
    scale: Tensor | None,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""The plans of B problems times a number of each, their sums, and what they are made of.

    .. math::
        s\,P, \quad P 1, \quad P^T 1, \quad \sum_{ij} P_{ij} (f_i + g_j - C_{ij})

    Parameters
    ----------
    cost : Tensor
        (B, n, m) with n and m of at most ``SMALL_SIDE``.
    a, b : Tensor, optional
        Weights (B, n) and (B, m); 1/n and 1/m.
    f, g, eps : Tensor
        (B, n), (B, m) and (B), float64 and dense.
    scale : Tensor, optional
        s (B); 1.
    sums : bool
        Whether the sums are wanted; else they are empty.

    Notes
    -----
    Up to 16 points on either side it is one kernel, which reads the cost once.
    """
    n, m = cost.shape[1:]
    if scale is not None:
        scale = scale.contiguous()
    if n <= _SHORT_SIDE and m <= _SHORT_SIDE:
        found: tuple[Tensor, Tensor, Tensor, Tensor] = _slopes(cost, a, b, f, g, eps, scale, sums)
        return found
    plan_of = torch.ops.regkern.transport_dense_plan
    a, b = weights_or_uniform(a, f), weights_or_uniform(b, g)
    ones = torch.ones_like(f)
    scaled = ones if scale is None else scale[:, None].expand_as(f).contiguous()
    slope: Tensor = plan_of(cost, a, b, f, g, eps, scaled, None)
    if not sums:
        return slope, f.new_empty(0, n), f.new_empty(0, m), f.new_empty(0)
    plan = slope if scale is None else plan_of(cost, a, b, f, g, eps, ones, None)
    apart = f[..., :, None] + g[..., None, :] - cost
    exponents = torch.where(plan == 0, 0.0, plan * apart).sum((-2, -1))
    rows, columns = (plan.sum(d, dtype=torch.float64) for d in (-1, -2))
    return slope, rows, columns, exponents


def weights_or_uniform(weight: Tensor | None, like: Tensor) -> Tensor:
    """Weights (B, n), 1/n where there are none."""
    return torch.full_like(like, 1.0 / like.shape[-1]) if weight is None else weight


def is_small(cost: Tensor, settings: Settings, eps_start: Tensor | None) -> bool:
    """Whether :func:`solve_small` solves these problems."""
    plain = settings.acceleration == "none" or settings.acceleration == "relaxed"
    n, m = cost.shape[-2:]
    return plain and eps_start is None and n <= SMALL_SIDE and m <= SMALL_SIDE


def solve_small(
    cost: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    eps: Tensor,
    rho: Tensor | None,
    settings: Settings,
    f: Tensor | None = None,
    g: Tensor | None = None,
) -> SmallSolution:
    r"""Potentials f and g, values, errors, iterations and status of B problems.

    .. math::
        s_i = \sum_j K_{ij} x_j, \quad y_i = a_i / s_i, \qquad
        t_j = \sum_i K_{ij} y_i, \quad x_j = b_j / t_j, \qquad
        K_{ij} = e^{(\varphi_i + \psi_j - C_{ij})/\varepsilon}

    with :math:`\varphi` and :math:`\psi` close to the potentials, so that it holds at any
    :math:`\varepsilon`. What is returned is what the engine of large costs returns,
    :func:`regkern.transport.dense.solve_dense`, up to rounding: the same potentials after the same
    iterations, errors and stops. The value is differentiable once, by the envelope theorem:

    .. math::
        dC = P, \quad da_i = \varphi_a(f_i) - \varepsilon \frac{(P 1)_i}{a_i} + \varepsilon
        \textstyle\sum b, \quad d\varepsilon = \sum_{ij} P_{ij} \frac{f_i + g_j - C_{ij}}
        {\varepsilon} - \sum P + \sum a \sum b

    with :math:`\varphi_a(f) = f`, or :math:`\rho (1 - e^{-f/\rho})` of a soft side.

    Parameters
    ----------
    cost : Tensor
        (B, n, m) with n and m of at most ``SMALL_SIDE``.
    a, b, rho : Tensor, optional
        Weights (B, n) and (B, m), which are 1/n and 1/m, and rho (2, B), which is infinite:
        float64 and dense.
    eps : Tensor
        (B), float64 and dense.
    settings : Settings
        With ``acceleration`` "none" or "relaxed".
    f, g : Tensor, optional
        Potentials to begin with, float64 and dense.

    Notes
    -----
    The cost is read once; a problem's matrix stays in registers, cache or shared memory for all
    iterations. On the CPU problems of at most 16 points on either side are solved one in each lane
    of a vector. The backward reads the cost once and writes its gradient.

    References
    ----------
    B. Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport problems",
    SIAM Journal on Scientific Computing 41, 2019.
    """
    return SmallSolution(*_call(cost, a, b, eps, rho, f, g, *settings[:5]))

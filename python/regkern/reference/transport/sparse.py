"""Quadratic and cardinality-constrained transport, by Newton's method and by sorting."""

from __future__ import annotations

import torch
from torch import Tensor


def _newton(cost: Tensor, a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """The plan of one problem whose weights are positive: the dual's semismooth Newton method."""
    n, m = cost.shape
    finite = cost[torch.isfinite(cost)]
    z = torch.zeros(n + m, dtype=torch.float64)
    z[:n] = finite.max() + gamma  # every pair is active
    target = torch.cat([a, b])

    def excess(z: Tensor) -> Tensor:
        return (z[:n, None] + z[n:] - cost).clamp(min=0.0)

    def dual(z: Tensor) -> Tensor:
        return z @ target - excess(z).square().sum() / (2 * gamma)

    for _ in range(300):
        plan = excess(z) / gamma
        rest = target - torch.cat([plan.sum(1), plan.sum(0)])
        if rest.abs().sum() < 1e-14:
            break
        active = (plan > 0).double()
        hessian = torch.zeros(n + m, n + m, dtype=torch.float64)
        hessian[:n, n:], hessian[n:, :n] = active, active.T
        hessian += torch.diag(torch.cat([active.sum(1), active.sum(0)]))
        damped = hessian / gamma + 1e-11 / gamma * torch.eye(n + m, dtype=torch.float64)
        step, length, before = torch.linalg.solve(damped, rest), 1.0, dual(z)
        while dual(z + length * step) < before and length > 1e-13:
            length /= 2
        if length <= 1e-13:  # rounding is all that is left
            break
        z = z + length * step
    return excess(z) / gamma


def quadratic_transport(cost: Tensor, a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """P (..., n, m) with the least ⟨P, C⟩ + γ/2 |P|²; NaN where a cost is NaN or −inf."""
    n, m = cost.shape[-2:]
    batch = cost.shape[:-2]
    plans = []
    for c, x, y in zip(
        cost.reshape(-1, n, m),
        a.expand(*batch, n).reshape(-1, n),
        b.expand(*batch, m).reshape(-1, m),
        strict=True,
    ):
        plan = torch.zeros(n, m, dtype=torch.float64)
        rows, columns = x > 0, y > 0
        if c.isnan().any() or (c == -torch.inf).any():
            plan += torch.nan
        else:
            plan[rows.nonzero(), columns.nonzero().T] = _newton(
                c.double()[rows][:, columns], x[rows].double(), y[columns].double(), gamma
            )
        plans.append(plan)
    return torch.stack(plans).reshape(cost.shape) if plans else cost.new_zeros(cost.shape).double()


def objective(plan: Tensor, cost: Tensor, gamma: float) -> Tensor:
    """⟨P, C⟩ + γ/2 |P|²."""
    linear = torch.where(plan == 0, 0.0, plan * cost).sum((-1, -2))
    return linear + gamma / 2 * plan.square().sum((-1, -2))


def sparse_transport(
    cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, gamma: float = 1.0
) -> Tensor:
    """The value, of any k that the quadratic plan satisfies."""
    n, m = cost.shape[-2:]
    a = torch.full((n,), 1 / n, dtype=torch.float64) if a is None else a
    b = torch.full((m,), 1 / m, dtype=torch.float64) if b is None else b
    return objective(quadratic_transport(cost, a, b, gamma), cost.double(), gamma)


def semi_dual(
    alpha: Tensor, cost: Tensor, a: Tensor, b: Tensor, gamma: float, k: int
) -> tuple[Tensor, Tensor]:
    """Value and plan of the semi-dual at α, of one problem."""
    n, m = cost.shape
    plan = torch.zeros(n, m, dtype=torch.float64)
    value = alpha @ a
    for j in range(m):
        x = (alpha - cost[:, j]).double()
        order = torch.sort(x, descending=True, stable=True).indices[:k]
        top, total = x[order], gamma * b[j]
        roots = (top.cumsum(0) - total) / torch.arange(1, len(top) + 1)
        size = int((top > roots).sum().clamp(min=1))
        p = (top - roots[size - 1]).clamp(min=0.0) / gamma
        plan[order, j] = p
        value = value - (p @ top - gamma / 2 * p.square().sum())
    return value, plan

"""Group-lasso transport by its dual, with torch's own quasi-Newton method."""

from __future__ import annotations

import torch
from torch import Tensor


def conjugate(x: Tensor, groups: Tensor, gamma: float, mu: float) -> Tensor:
    r"""max ⟨x, p⟩ − γ/2 |p|² − μ Σ |p_G| over p ≥ 0, of each column of x (n, m), summed."""
    positive = x.clamp(min=0.0)
    total = x.new_zeros(())
    for label in set(groups.tolist()):
        norm = positive[groups == label].norm(dim=0)
        total = total + ((norm - mu).clamp(min=0.0).square() / (2 * gamma)).sum()
    return total


def grouped_transport(
    cost: Tensor, a: Tensor, b: Tensor, groups: Tensor, gamma: float, mu: float
) -> Tensor:
    """The optimal value of one problem (n, m); NaN where a cost is NaN or −inf."""
    if bool(cost.isnan().any()) or bool((cost == -torch.inf).any()):
        return torch.full((), torch.nan, dtype=torch.float64)
    z = torch.zeros(sum(cost.shape), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [z],
        max_iter=2000,
        tolerance_grad=1e-11,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def negative() -> Tensor:
        f, g = z[: cost.shape[0]], z[cost.shape[0] :]
        x = f[:, None] + g - cost.double()
        return conjugate(x, groups, gamma, mu) - f @ a - g @ b

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = negative()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return -negative().detach()

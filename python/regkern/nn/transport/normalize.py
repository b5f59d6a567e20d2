"""Doubly stochastic matrices as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regkern.transport.normalize import Gradient, Order, sinkhorn_normalize


class SinkhornNormalize(nn.Module):
    """:func:`regkern.sinkhorn_normalize` of logits (..., n, m).

    Parameters
    ----------
    n_iter, tau, eps, order, log_input, log_output, gradient
        As there.
    slack : float, optional
        Logit of the dustbins, where there are any.
    learn_slack : bool
        Whether ``slack`` is a parameter.
    """

    slack: Tensor | None

    def __init__(
        self,
        n_iter: int = 20,
        *,
        tau: float = 1.0,
        eps: float = 0.0,
        order: Order = "row_first",
        slack: float | None = None,
        learn_slack: bool = False,
        log_input: bool = True,
        log_output: bool = False,
        gradient: Gradient = "unroll",
    ) -> None:
        super().__init__()
        self.n_iter, self.tau, self.eps = n_iter, tau, eps
        self.order, self.gradient = order, gradient
        self.log_input, self.log_output = log_input, log_output
        if learn_slack and slack is None:
            raise ValueError("regkern.SinkhornNormalize: expected `slack` to learn, got None")
        value = None if slack is None else torch.tensor(float(slack))
        if learn_slack and value is not None:
            self.slack = nn.Parameter(value)
        else:
            self.register_buffer("slack", value)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """``options`` are a, b, rows and columns."""
        return sinkhorn_normalize(
            x,
            self.n_iter,
            slack=self.slack,
            tau=self.tau,
            eps=self.eps,
            order=self.order,
            log_input=self.log_input,
            log_output=self.log_output,
            gradient=self.gradient,
            **options,
        )

    def extra_repr(self) -> str:
        return f"n_iter={self.n_iter}, tau={self.tau}, eps={self.eps}, order={self.order!r}"

"""A router for mixtures of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.transport.router import Routing, sparse_route


class SparseRouter(nn.Module):
    r"""Scores of tokens, and their routes to at most k experts under balanced load.

    While training, potentials of the experts are improved on every batch, from where the last one
    left them; in evaluation they stay, and tokens do not depend on each other. See
    `regkern.transport.router.sparse_route`.

    Parameters
    ----------
    features, experts : int
        Sizes of a token and of the mixture.
    k : int
        At most so many experts a token.
    gamma : float
        γ > 0, in units of the scores: small ones choose, large ones mix.
    capacity : Tensor, optional
        (experts,): shares of the load; equal by default.
    max_iter, tol
        Of the solver, per batch.
    bias : bool
        Of the scores.

    Attributes
    ----------
    potentials : Tensor
        (experts,) float32, a buffer: what is added to the scores.

    Notes
    -----
    Input (..., features): all tokens of a call are one problem.
    """

    potentials: Tensor
    capacity: Tensor | None

    def __init__(
        self,
        features: int,
        experts: int,
        k: int = 2,
        gamma: float = 1.0,
        capacity: Tensor | None = None,
        max_iter: int = 50,
        tol: float = 1e-2,
        bias: bool = False,
    ) -> None:
        super().__init__()
        checks.at_least("SparseRouter", "features", features, 1)
        checks.at_least("SparseRouter", "experts", experts, 1)
        checks.at_least("SparseRouter", "k", k, 1)
        checks.at_least("SparseRouter", "experts", experts, k)
        self.scores = nn.Linear(features, experts, bias=bias)
        self.k, self.gamma, self.max_iter, self.tol = k, gamma, max_iter, tol
        self.register_buffer("capacity", capacity)
        self.register_buffer("potentials", torch.zeros(experts))

    def forward(self, x: Tensor) -> Routing:
        """Routing of (..., features), with indices and weights (..., k)."""
        scores = self.scores(x)
        flat = scores.reshape(-1, scores.shape[-1])
        routing = sparse_route(
            flat,
            self.k,
            self.gamma,
            self.capacity,
            self.max_iter if self.training else 0,
            self.tol,
            self.potentials,
        )
        if self.training:
            with torch.no_grad():
                self.potentials.copy_(routing.potentials)
        shape = (*x.shape[:-1], self.k)
        return routing._replace(
            indices=routing.indices.reshape(shape), weights=routing.weights.reshape(shape)
        )

    def extra_repr(self) -> str:
        return f"k={self.k}, gamma={self.gamma}, max_iter={self.max_iter}, tol={self.tol}"

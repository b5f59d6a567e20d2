"""Losses on features and logits as modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from regkern.spectral.adversarial import virtual_adversarial_loss
from regkern.spectral.features import (
    Group,
    barlow_twins_loss,
    isotropy_penalty,
    vicreg_loss,
    whitening_penalty,
)


class VICRegLoss(nn.Module):
    """:func:`regkern.vicreg_loss` of two views, (N, D) each."""

    def __init__(
        self,
        sim: float = 25.0,
        std: float = 25.0,
        cov: float = 1.0,
        *,
        gamma: float = 1.0,
        eps: float = 1e-4,
        group: Group | None = None,
    ) -> None:
        super().__init__()
        self.sim, self.std, self.cov = sim, std, cov
        self.gamma, self.eps, self.group = gamma, eps, group

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return vicreg_loss(
            x, y, self.sim, self.std, self.cov, gamma=self.gamma, eps=self.eps, group=self.group
        )

    def extra_repr(self) -> str:
        return f"sim={self.sim}, std={self.std}, cov={self.cov}, gamma={self.gamma}"


class BarlowTwinsLoss(nn.Module):
    """:func:`regkern.barlow_twins_loss` of two views, (N, D) each."""

    def __init__(self, lam: float = 5e-3, eps: float = 1e-5) -> None:
        super().__init__()
        self.lam, self.eps = lam, eps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return barlow_twins_loss(x, y, self.lam, self.eps)

    def extra_repr(self) -> str:
        return f"lam={self.lam}, eps={self.eps}"


class WhiteningPenalty(nn.Module):
    """λ times :func:`regkern.whitening_penalty` of (N, D) features."""

    def __init__(self, lam: float = 1.0) -> None:
        super().__init__()
        self.lam = lam

    def forward(self, x: Tensor) -> Tensor:
        return self.lam * whitening_penalty(x)

    def extra_repr(self) -> str:
        return f"lam={self.lam}"


class IsotropyPenalty(nn.Module):
    """:func:`regkern.isotropy_penalty` of (N, D) features.

    Parameters
    ----------
    lam : float
        λ; negative for less isotropy.
    zeta : float
        How much of ``covariance``, a buffer of (D, D), stabilises the batch's own.
    covariance : Tensor, optional
        What the buffer begins as; `update` replaces it by that of many samples.
    """

    covariance: Tensor | None

    def __init__(
        self, lam: float = 1.0, zeta: float = 0.0, covariance: Tensor | None = None
    ) -> None:
        super().__init__()
        self.lam, self.zeta = lam, zeta
        self.register_buffer("covariance", covariance)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Takes the covariance of these (N, D) features."""
        self.covariance = torch.cov(x.mT).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return isotropy_penalty(x, self.lam, self.zeta, self.covariance)

    def extra_repr(self) -> str:
        return f"lam={self.lam}, zeta={self.zeta}"


class VirtualAdversarialLoss(nn.Module):
    """:func:`regkern.virtual_adversarial_loss` of a model at inputs."""

    def __init__(self, xi: float = 1e-2, eps: float = 1.0, n_iter: int = 1) -> None:
        super().__init__()
        self.xi, self.eps, self.n_iter = xi, eps, n_iter

    def forward(
        self, model: Callable[[Tensor], Tensor], x: Tensor, logits: Tensor | None = None
    ) -> Tensor:
        return virtual_adversarial_loss(
            model, x, xi=self.xi, eps=self.eps, n_iter=self.n_iter, logits=logits
        )

    def extra_repr(self) -> str:
        return f"xi={self.xi}, eps={self.eps}, n_iter={self.n_iter}"

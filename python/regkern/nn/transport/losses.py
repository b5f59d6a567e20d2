"""Distances and plans that regularize, as layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from regkern import _checks as checks
from regkern.transport.class_based import ClassBasedPlan, class_based_transport
from regkern.transport.sliced import sliced_wasserstein
from regkern.transport.topic import ecrtm_loss


def _named(options: dict[str, Any]) -> str:
    return "".join(f", {k}={v!r}" for k, v in options.items())


class SlicedWasserstein(nn.Module):
    r""":func:`regkern.sliced_wasserstein` of two clouds, with new directions in every call.

    .. math:: \Bigl(\frac{1}{L} \sum_l W_p^p(\theta_l^\top x, \theta_l^\top y)\Bigr)^{1/p}

    Parameters
    ----------
    n_projections, p, root
        As there.
    """

    def __init__(self, n_projections: int = 50, p: float = 2.0, *, root: bool = True) -> None:
        super().__init__()
        checks.at_least("SlicedWasserstein", "n_projections", n_projections, 1)
        checks.at_least("SlicedWasserstein", "p", p, 1.0)
        self.n_projections, self.p, self.root = n_projections, p, root

    def forward(self, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        """``options`` are a, b, projections, seed and generator."""
        return sliced_wasserstein(x, y, self.n_projections, self.p, root=self.root, **options)

    def extra_repr(self) -> str:
        return f"n_projections={self.n_projections}, p={self.p}, root={self.root}"


class ECRTMLoss(nn.Module):
    r""":func:`regkern.ecrtm_loss` of the embeddings of topics and words, times its weight.

    .. math:: \text{weight} \cdot \langle P, M \rangle

    Parameters
    ----------
    weight : float
        Of the loss; the authors' is 100 to 250.
    alpha : float
        1/ε.
    **options
        Of the function: ``max_iter``, ``tol``, ``check_every``.
    """

    def __init__(self, weight: float = 250.0, alpha: float = 20.0, **options: Any) -> None:
        super().__init__()
        checks.scale("ECRTMLoss", "weight", weight)
        self.weight, self.alpha, self.options = weight, alpha, options

    def forward(
        self, topics: Tensor, words: Tensor, a: Tensor | None = None, b: Tensor | None = None
    ) -> Tensor:
        return self.weight * ecrtm_loss(topics, words, self.alpha, a=a, b=b, **self.options)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, alpha={self.alpha}{_named(self.options)}"


class ClassBasedTransport(nn.Module):
    r""":func:`regkern.class_based_transport` of a cost and the classes of its rows and columns.

    Parameters
    ----------
    lam : float or (float, float)
        Weights of the sums of norms, of rows and of columns.
    **options
        Of the function: ``max_iter``, ``tol``, ``step``.
    """

    def __init__(self, lam: float | tuple[float, float] = 0.1, **options: Any) -> None:
        super().__init__()
        for number in lam if isinstance(lam, tuple) else (lam,):
            checks.scale("ClassBasedTransport", "lam", number)
        self.lam, self.options = lam, options

    def forward(
        self,
        cost: Tensor,
        rows: Any = None,
        columns: Any = None,
        a: Tensor | None = None,
        b: Tensor | None = None,
    ) -> ClassBasedPlan:
        return class_based_transport(cost, a, b, rows, columns, self.lam, **self.options)

    def extra_repr(self) -> str:
        return f"lam={self.lam}{_named(self.options)}"

"""Losses between clouds of points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.transport.divergence import cloud_weights, sinkhorn_divergence, three_problems
from regkern.transport.kernel_distances import kernel_loss
from regkern.transport.solver import sinkhorn

_KERNELS = ("gaussian", "laplacian", "energy")


class SinkhornDivergence(nn.Module):
    r""":func:`regkern.transport.divergence.sinkhorn_divergence` as a layer.

    .. math:: S(a, b) = T(a, b) - \tfrac{1}{2} T(a, a) - \tfrac{1}{2} T(b, b)

    Parameters
    ----------
    eps : float
        The entropy's :math:`\varepsilon`.
    reduction : str
        ``"mean"``, ``"sum"`` or ``"none"``, over the batch.
    **options
        Of the function: ``cost_fn``, ``rho``, ``tol``, ``max_iter``, ``acceleration``, ``scaling``.
    """

    def __init__(self, eps: float, reduction: str = "mean", **options: Any) -> None:
        super().__init__()
        checks.one_of("SinkhornDivergence", "reduction", reduction, ("mean", "sum", "none"))
        self.eps, self.reduction, self.options = eps, reduction, options

    def forward(
        self, x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None
    ) -> Tensor:
        values = sinkhorn_divergence(x, y, a, b, eps=self.eps, **self.options)
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    def extra_repr(self) -> str:
        named = "".join(f", {k}={v!r}" for k, v in self.options.items())
        return f"eps={self.eps}, reduction={self.reduction!r}{named}"


class SamplesLoss(nn.Module):
    r"""GeomLoss's loss between weighted samples, with its signature and conventions.

    ``"sinkhorn"`` has the cost :math:`|x - y|^p / p`, :math:`\varepsilon = \text{blur}^p` and, if
    there is a reach, :math:`\rho = \text{reach}^p`; ``"energy"``, ``"gaussian"`` and
    ``"laplacian"`` are kernel norms.

    Parameters
    ----------
    loss : str
        ``"sinkhorn"``, ``"energy"``, ``"gaussian"`` or ``"laplacian"``.
    p : int
        1 or 2.
    blur, reach : float
        As above.
    diameter : float, optional
        Accepted; where :math:`\varepsilon` begins is found from the points.
    scaling : float
        In (0, 1): :math:`\varepsilon` is multiplied by :math:`\text{scaling}^p` after each
        iteration, down to :math:`\text{blur}^p`. From there on the loss iterates until it has
        converged, which GeomLoss does not: it is as accurate for any ``scaling``.
    debias : bool
        Takes half of what each cloud is from itself off.
    potentials : bool
        Returns the potentials (of the debiased problem, if it is that) instead of the loss.
    tol, max_iter
        Of :func:`regkern.transport.solver.sinkhorn`.
    truncate, cost, kernel, cluster_scale, verbose, backend
        Accepted at their defaults; ``backend`` and ``verbose`` make no difference.

    Notes
    -----
    Called with (x, y) or (weights of x, x, weights of y, y): points (n, d) or (batch, n, d). The
    result is a number, or (batch,).

    References
    ----------
    Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn divergences",
    AISTATS 2019.
    """

    def __init__(
        self,
        loss: str = "sinkhorn",
        p: int = 2,
        blur: float = 0.05,
        reach: float | None = None,
        diameter: float | None = None,
        scaling: float = 0.5,
        truncate: float = 5,
        cost: Callable[..., Any] | str | None = None,
        kernel: Callable[..., Any] | None = None,
        cluster_scale: float | None = None,
        debias: bool = True,
        potentials: bool = False,
        verbose: bool = False,
        backend: str = "auto",
        *,
        tol: float = 1e-4,
        max_iter: int = 1000,
    ) -> None:
        super().__init__()
        op = "SamplesLoss"
        checks.one_of(op, "loss", loss, ("sinkhorn", *_KERNELS))
        checks.one_of(op, "p", p, (1, 2))  # type: ignore[arg-type]
        checks.one_of(op, "backend", backend, ("auto", "tensorized", "online", "multiscale"))
        for name, value in (("cost", cost), ("kernel", kernel)):
            if value is not None:
                raise ValueError(f"regkern.{op}: expected `{name}` to be None, got {value!r}")
        if not 0 < scaling < 1:
            raise ValueError(f"regkern.{op}: expected `scaling` in (0, 1), got {scaling}")
        if potentials and loss != "sinkhorn":
            raise ValueError(f"regkern.{op}: expected `potentials` of sinkhorn alone, got {loss!r}")
        self.loss, self.p, self.blur, self.reach = loss, p, blur, reach
        self.diameter, self.scaling, self.truncate = diameter, scaling, truncate
        self.cost, self.kernel, self.cluster_scale = cost, kernel, cluster_scale
        self.debias, self.potentials = debias, potentials
        self.verbose, self.backend = verbose, backend
        self.tol, self.max_iter = tol, max_iter

    def forward(self, *args: Tensor) -> Any:
        if len(args) == 2:
            (x, y), a, b = args, None, None
        elif len(args) == 4:
            a, x, b, y = args
        else:
            raise ValueError(
                "regkern.SamplesLoss: expected (x, y) or (weights, x, weights, y), "
                f"got {len(args)} arguments"
            )
        if x.dim() not in (2, 3):
            raise ValueError(
                "regkern.SamplesLoss: expected points (n, d) or (batch, n, d), "
                f"got {tuple(x.shape)}"
            )
        if self.loss != "sinkhorn":
            return kernel_loss(x, y, a, b, self.loss, self.blur)  # type: ignore[arg-type]
        eps = self.blur**self.p
        options: dict[str, Any] = {
            "cost_fn": "euclidean" if self.p == 1 else "half_sqeuclidean",
            "rho": None if self.reach is None else self.reach**self.p,
            "tol": self.tol,
            "max_iter": self.max_iter,
            "scaling": self.scaling**self.p,
        }
        if not self.potentials and self.debias:
            return sinkhorn_divergence(x, y, a, b, eps=eps, **options)
        if not self.debias:
            found = sinkhorn(x=x, y=y, a=a, b=b, eps=eps, **options)
            return (found.f, found.g) if self.potentials else found.value
        op = "SamplesLoss"
        with torch.no_grad():
            u, v = cloud_weights(op, "a", a, x), cloud_weights(op, "b", b, y)
            (_, f, g), (_, of_x, _), (_, of_y, _) = three_problems(x, y, u, v, eps, options)
        return f - of_x, g - of_y

    def extra_repr(self) -> str:
        return (
            f"{self.loss!r}, p={self.p}, blur={self.blur}, reach={self.reach}, "
            f"scaling={self.scaling}, debias={self.debias}"
        )

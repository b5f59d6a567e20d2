"""What transport is a regularizer or a loss by: the debiased divergence, and the Monge gap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern.transport.arguments import weights_of
from regkern.transport.points import COSTS, cost_of
from regkern.transport.solver import sinkhorn


def _clouds(op: str, x: object, y: object, names: tuple[str, str] = ("x", "y")) -> None:
    for name, t in zip(names, (x, y), strict=True):
        checks.floating(op, name, t)
        assert isinstance(t, Tensor)
        if t.dim() < 2 or t.shape[-2] == 0:
            raise ValueError(
                f"regkern.{op}: expected `{name}` of shape (..., points, dimensions), "
                f"got {tuple(t.shape)}"
            )
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1] or x.dtype != y.dtype:
        raise ValueError(
            f"regkern.{op}: expected `{names[1]}` of shape (..., m, d) and dtype like "
            f"`{names[0]}` ({tuple(x.shape)}, {x.dtype}), got {tuple(y.shape)}, {y.dtype}"
        )
    checks.on_device(op, names[1], y, x)


def cloud_weights(op: str, name: str, given: Tensor | None, cloud: Tensor) -> Tensor:
    """Weights (..., n), double."""
    return weights_of(op, name, given, cloud.shape[-2], cloud).expand(cloud.shape[:-1])


def three_problems(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, eps: Any, options: dict[str, Any]
) -> list[Any]:
    """The solutions between x and y, x and x, y and y: in one call where the clouds are as large as
    each other, as (values, f, g) of each."""
    pairs = [(x, y, a, b), (x, x, a, a), (y, y, b, b)]
    if x.shape[-2] != y.shape[-2]:
        found = [sinkhorn(x=p, y=q, a=u, b=v, eps=eps, **options) for p, q, u, v in pairs]
        return [(t.value, t.f, t.g) for t in found]
    xs, ys, us, vs = (torch.stack(t) for t in zip(*pairs, strict=True))
    each = {
        k: v.expand((3, *x.shape[:-2])) if isinstance(v, Tensor) and v.dim() > 0 else v
        for k, v in (("eps", eps), ("rho", options.get("rho")))
    }
    all_three = sinkhorn(x=xs, y=ys, a=us, b=vs, **{**options, **each})
    return list(zip(all_three.value, all_three.f, all_three.g, strict=True))


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    eps: float | Tensor,
    cost_fn: str = "sqeuclidean",
    rho: float | Tensor | None = None,
    tol: float | None = 1e-4,
    max_iter: int = 1000,
    check_every: int = 10,
    acceleration: str | float | None = None,
    scaling: float | None = None,
) -> Tensor:
    r"""Debiased entropic transport between two weighted clouds of points.

    .. math::
        S(a, b) = T(a, b) - \tfrac{1}{2} T(a, a) - \tfrac{1}{2} T(b, b)
            + \tfrac{\varepsilon}{2} \Bigl(\sum a - \sum b\Bigr)^2

    where T is the value of :func:`sinkhorn`, in which the entropy is
    :math:`\varepsilon\,\mathrm{KL}(P \mid a \otimes b)`. It is 0 for equal clouds, positive
    otherwise where :math:`e^{-c/\varepsilon}` is a positive kernel, and between the transport cost
    (:math:`\varepsilon \to 0`) and a kernel norm (:math:`\varepsilon \to \infty`).

    Parameters
    ----------
    x, y : Tensor
        Points (..., n, d) and (..., m, d).
    a, b : Tensor, optional
        Weights (..., n) and (..., m); 1/n and 1/m if none are given.
    eps : float or Tensor
        :math:`\varepsilon`, a number or one for each problem.
    cost_fn : str
        As of :func:`sinkhorn`.
    rho : float or Tensor, optional
        Both marginals are soft, and cost :math:`\rho\,\mathrm{KL}`; None is balanced.
    tol, max_iter, check_every, acceleration, scaling
        As of :func:`sinkhorn`, for each of the three problems. With too coarse a ``tol`` the
        difference of three values may be negative.

    Returns
    -------
    Tensor
        (...), float32, or float64 where x is. Differentiable once by points, weights, eps and rho.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Memory O((n + m) d). Clouds of the same size are three problems of one batch.

    References
    ----------
    J. Feydy, T. Séjourné, F.-X. Vialard, S. Amari, A. Trouvé and G. Peyré, "Interpolating between
    optimal transport and MMD using Sinkhorn divergences", AISTATS 2019. T. Séjourné, J. Feydy,
    F.-X. Vialard, A. Trouvé and G. Peyré, "Sinkhorn divergences for unbalanced optimal transport",
    2019.
    """
    op = "sinkhorn_divergence"
    _clouds(op, x, y)
    checks.one_of(op, "cost_fn", cost_fn, COSTS)
    u, v = cloud_weights(op, "a", a, x), cloud_weights(op, "b", b, y)
    options = {
        "cost_fn": cost_fn,
        "rho": rho,
        "tol": tol,
        "max_iter": max_iter,
        "check_every": check_every,
        "acceleration": acceleration,
        "scaling": scaling,
    }
    (between, *_), (of_x, *_), (of_y, *_) = three_problems(x, y, u, v, eps, options)
    result: Tensor = between - 0.5 * of_x - 0.5 * of_y
    if rho is None:
        return result
    apart = (u.sum(-1) - v.sum(-1)).square()
    return (result + 0.5 * eps * apart).to(result.dtype)


def monge_gap(
    x: Tensor,
    mapped: Tensor,
    *,
    eps: float | Tensor,
    cost_fn: str = "sqeuclidean",
    a: Tensor | None = None,
    entropy: str = "plain",
    tol: float | None = 1e-3,
    max_iter: int = 1000,
    check_every: int = 10,
    acceleration: str | float | None = None,
    scaling: float | None = None,
) -> Tensor:
    r"""How far a map T is from transporting its own source best.

    .. math::
        M(T) = \sum_i a_i\, c(x_i, T(x_i)) - W_\varepsilon(x, T(x))

    With the ``"plain"`` entropy, :math:`W_\varepsilon = \min \langle P, C\rangle + \varepsilon
    \sum P \log P`, the pairing of each point with its own image is a candidate, so that
    :math:`M \ge -\varepsilon \sum a \log a`, which is :math:`\varepsilon \log n` of uniform
    weights, whatever T is. With ``"kl"``, :math:`\varepsilon\,\mathrm{KL}(P \mid a \otimes a)`, the
    same bound is :math:`M \ge \varepsilon \sum a \log a`: it may be negative.

    Parameters
    ----------
    x, mapped : Tensor
        Points (..., n, d), and their images under T.
    eps : float or Tensor
        :math:`\varepsilon`, a number or one for each problem.
    cost_fn : str
        As of :func:`sinkhorn`.
    a : Tensor, optional
        Weights (..., n) of both; 1/n if none are given.
    entropy : str
        ``"plain"`` or ``"kl"``, which differ by a number that does not depend on T.
    tol, max_iter, check_every, acceleration, scaling
        As of :func:`sinkhorn`.

    Returns
    -------
    Tensor
        (...), float32, or float64 where x is. Differentiable once by both clouds, a and eps.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    T. Uscidda and M. Cuturi, "The Monge gap: a regularizer to learn all transport maps", ICML 2023.
    """
    op = "monge_gap"
    _clouds(op, x, mapped, ("x", "mapped"))
    checks.one_of(op, "cost_fn", cost_fn, COSTS)
    checks.one_of(op, "entropy", entropy, ("plain", "kl"))
    if x.shape != mapped.shape:
        raise ValueError(
            f"regkern.{op}: expected `mapped` of shape {tuple(x.shape)}, got {tuple(mapped.shape)}"
        )
    weight = cloud_weights(op, "a", a, x)
    least = sinkhorn(
        x=x,
        y=mapped,
        a=weight,
        b=weight,
        eps=eps,
        cost_fn=cost_fn,
        entropy=entropy,
        tol=tol,
        max_iter=max_iter,
        check_every=check_every,
        acceleration=acceleration,
        scaling=scaling,
    ).value
    wide = x.double(), mapped.double()
    own = (weight * cost_of(*wide, cost_fn)).sum(-1)
    return own.to(least.dtype) - least

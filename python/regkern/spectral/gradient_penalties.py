"""Penalties of gradients by the parameters, without a second backward pass through the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern.spectral.network import clip_norm_, global_norm, linear_combination
from regkern.spectral.perturb import displace_, restore_

#: Returns a loss, or the gradients by the parameters.
Gradient = Callable[[], Tensor | Sequence[Tensor]]

SCHEMES = ("forward", "backward", "central")


def gradients_of(op: str, gradient: Gradient, params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients by the parameters where they stand; 0 where the loss does not reach."""
    with torch.enable_grad():
        result = gradient()
        if isinstance(result, Tensor):
            found = torch.autograd.grad(result, list(params), allow_unused=True)
            return [
                torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)
            ]
    grads = checks.tensor_list(op, "gradient()", result)
    if len(grads) != len(params):
        raise ValueError(
            f"regkern.{op}: expected {len(params)} tensors from `gradient()`, got {len(grads)}"
        )
    # What a closure returns may be .grad itself, which the next call changes.
    return [
        g.detach().clone() if g is p.grad else g.detach()
        for g, p in zip(grads, params, strict=True)
    ]


def _check_eps(op: str, eps: float | Tensor) -> None:
    checks.scale(op, "eps", eps)
    if not isinstance(eps, Tensor) and eps == 0:
        raise ValueError(f"regkern.{op}: expected `eps` above 0, got {eps}")


def _inverse(eps: float | Tensor, factor: float | Tensor = 1.0) -> float | Tensor:
    return factor / eps


def finite_difference_hvp(
    gradient: Gradient,
    params: Tensor | Sequence[Tensor],
    vectors: Tensor | Sequence[Tensor],
    eps: float | Tensor = 1e-3,
    *,
    scheme: Literal["forward", "backward", "central"] = "forward",
    base: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    r"""The product of a loss's Hessian with vectors, from differences of gradients.

    .. math::
        H v \approx \frac{\nabla L(θ + ε v) - \nabla L(θ)}{ε}, \quad
        \frac{\nabla L(θ) - \nabla L(θ - ε v)}{ε} \;\text{ or }\;
        \frac{\nabla L(θ + ε v) - \nabla L(θ - ε v)}{2 ε}

    Parameters
    ----------
    gradient : callable
        Without arguments: the loss, or its gradients by ``params``, where these stand.
    params : Tensor or sequence of Tensor
        θ, moved in place and restored bit for bit.
    vectors : Tensor or sequence of Tensor
        v, of the shapes and dtypes of ``params``.
    eps : float or Tensor
        ε > 0, one element: in units of ``vectors``, which are not normalised here.
    scheme : {"forward", "backward", "central"}
        See above. The error is of first, first and second order in ε; rounding adds that of the
        gradients divided by ε.
    base : sequence of Tensor, optional
        :math:`\nabla L(θ)`, where it is known already.

    Returns
    -------
    list of Tensor
        H v, like ``params``. Without a graph.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Two gradients; one where ``base`` is given, three passes over the parameters beside them.
    """
    op = "finite_difference_hvp"
    ps = checks.tensor_list(op, "params", params)
    vs = checks.tensor_list(op, "vectors", vectors)
    checks.one_of(op, "scheme", scheme, SCHEMES)
    _check_eps(op, eps)
    if len(vs) != len(ps):
        raise ValueError(
            f"regkern.{op}: expected as many `vectors` as `params`, {len(ps)}, got {len(vs)}"
        )
    for i, (v, p) in enumerate(zip(vs, ps, strict=True)):
        checks.same(op, f"vectors[{i}]", v, p, f"params[{i}]")

    def at(step: float | Tensor) -> list[Tensor]:
        moved = displace_(ps, [v.detach() for v in vs], step)
        try:
            return gradients_of(op, gradient, ps)
        finally:
            restore_(moved)

    if scheme == "central":
        half = _inverse(eps, 0.5)
        return linear_combination(at(eps), half, at(-eps), -half)
    here = gradients_of(op, gradient, ps) if base is None else list(base)
    if scheme == "forward":
        return linear_combination(at(eps), _inverse(eps), here, -_inverse(eps))
    return linear_combination(here, _inverse(eps), at(-eps), -_inverse(eps))


def penalized_gradient(
    gradient: Gradient,
    params: Tensor | Sequence[Tensor],
    weight: float | Tensor,
    eps: float | Tensor = 1e-2,
    *,
    squared: bool = True,
    scheme: Literal["forward", "backward", "central"] = "forward",
    base: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    r"""The gradient of a loss and a penalty of its gradient's norm.

    .. math::
        \nabla \bigl( L + \tfrac γ2 \lVert \nabla L \rVert^2 \bigr) = g + γ H g
        \qquad\text{or}\qquad
        \nabla \bigl( L + γ \lVert \nabla L \rVert \bigr) = g + γ H \frac{g}{\lVert g \rVert}

    with the product by :func:`finite_difference_hvp`. Forward, the second is the gradient of SAM
    where γ = ε.

    Parameters
    ----------
    gradient : callable
        The loss, or its gradients by ``params``.
    params : Tensor or sequence of Tensor
        Moved in place and restored bit for bit.
    weight : float or Tensor
        γ, one element.
    eps : float or Tensor
        ε > 0: the step in units of g, or of g/‖g‖.
    squared : bool, default True
        The penalty of the squared norm, or of the norm.
    scheme : {"forward", "backward", "central"}
        Of the difference; "forward" is what generalises best in the paper.
    base : sequence of Tensor, optional
        g, where it is known already.

    Returns
    -------
    list of Tensor
        Like ``params``, without a graph. Where g is 0, so is this.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Karakida, Takase, Hayase and Osawa, "Understanding gradient regularization in deep learning:
    efficient finite-difference computation and implicit bias", ICML 2023; Zhao, Zhang and Hu,
    "Penalizing gradient norm for efficiently improving generalization in deep learning", ICML
    2022.
    """
    op = "penalized_gradient"
    ps = checks.tensor_list(op, "params", params)
    g = gradients_of(op, gradient, ps) if base is None else list(base)
    direction = g
    if not squared:
        norm = global_norm([t.detach() for t in g]).double()
        inverse = torch.where(norm == 0, 0.0, 1 / norm)
        direction = linear_combination(g, inverse, g, 0.0)
    curvature = finite_difference_hvp(gradient, ps, direction, eps, scheme=scheme, base=g)
    return linear_combination(g, 1.0, curvature, weight)


def full_batch_gradient(
    losses: Iterable[Gradient],
    params: Tensor | Sequence[Tensor],
    alpha: float = 0.0,
    eps: float = 1e-2,
    max_norm: float | None = None,
) -> list[Tensor]:
    r"""The gradient of a whole data set with the implicit penalty of stochastic training.

    .. math:: \nabla \frac1n \sum_b \Bigl( L_b + \frac α4 \lVert \nabla L_b \rVert^2 \Bigr)

    batch by batch, by finite differences, and its norm clipped at the end.

    Parameters
    ----------
    losses : iterable of callable
        One for each batch: its mean loss, or the gradients by ``params``.
    params : Tensor or sequence of Tensor
        Moved in place and restored bit for bit.
    alpha : float
        α: the learning rate that the penalty imitates. 0: no penalty.
    eps : float
        ε of the differences, in units of the batch's normalised gradient.
    max_norm : float, optional
        The largest norm of the result.

    Returns
    -------
    list of Tensor
        Like ``params``, for their ``.grad``.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above, or there is no batch.

    References
    ----------
    Geiping, Goldblum, Pope, Moeller and Goldstein, "Stochastic training is not necessary for
    generalization", ICLR 2022.
    """
    op = "full_batch_gradient"
    ps = checks.tensor_list(op, "params", params)
    checks.scale(op, "alpha", alpha)
    total: list[Tensor] | None = None
    batches = 0
    for loss in losses:
        g = gradients_of(op, loss, ps)
        if alpha > 0:
            # ε relative to the length of the step: |g| of a batch may be of any size.
            norm = global_norm(g).double()
            step = torch.where(norm == 0, 1.0, eps / norm)
            g = penalized_gradient(loss, ps, alpha / 2, step, base=g)
        total = g if total is None else linear_combination(total, 1.0, g, 1.0)
        batches += 1
    if total is None:
        raise ValueError(f"regkern.{op}: expected a batch in `losses`, got none")
    total = linear_combination(total, 1 / batches, total, 0.0)
    if max_norm is not None:
        clip_norm_(total, max_norm)
    return total


def booster_gradient(
    loss: Gradient,
    harmful: Gradient,
    params: Tensor | Sequence[Tensor],
    lam: float | Tensor,
    alpha: float | Tensor,
) -> list[Tensor]:
    r"""The gradient of Booster, which makes a step of harmful fine-tuning gain little.

    .. math::
        f(w) + λ \Bigl( h(w) - h\bigl(w - α \tfrac{\nabla h(w)}{\lVert \nabla h(w) \rVert}\bigr)
        \Bigr), \qquad \nabla f(w) + λ \bigl( \nabla h(w) - \nabla h(w') \bigr)

    to first order: the step itself is held fixed.

    Parameters
    ----------
    loss, harmful : callable
        f and h: the losses, or their gradients by ``params``.
    params : Tensor or sequence of Tensor
        w, moved in place and restored bit for bit.
    lam, alpha : float or Tensor
        λ, and the length α of the harmful step.

    Returns
    -------
    list of Tensor
        Like ``params``, for their ``.grad``. Three gradients.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Huang, Hu, Ilhan, Tekin and Liu, "Booster: tackling harmful fine-tuning for large language
    models via attenuating harmful perturbation", ICLR 2025.
    """
    op = "booster_gradient"
    ps = checks.tensor_list(op, "params", params)
    checks.scale(op, "alpha", alpha)
    f, h = gradients_of(op, loss, ps), gradients_of(op, harmful, ps)
    norm = global_norm(h).double()
    moved = displace_(ps, h, torch.where(norm == 0, 0.0, -alpha / norm))
    try:
        after = gradients_of(op, harmful, ps)
    finally:
        restore_(moved)
    difference = linear_combination(h, 1.0, after, -1.0)
    return linear_combination(f, 1.0, difference, lam)


def vanishing_gradient_penalty(
    cell: Callable[[Tensor, int], Tensor],
    states: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> Tensor:
    r"""The regularizer against vanishing gradients of recurrent networks.

    .. math::
        Ω = \sum_k \Biggl( \frac{\bigl\lVert \frac{\partial E}{\partial x_{k+1}}
        \frac{\partial x_{k+1}}{\partial x_k} \bigr\rVert}
        {\bigl\lVert \frac{\partial E}{\partial x_{k+1}} \bigr\rVert} - 1 \Biggr)^2

    for each sequence, averaged over the batch. As in the paper the derivative is the immediate one:
    the states and the gradients of the loss by them are held fixed.

    Parameters
    ----------
    cell : callable
        (x_k, k) to x_{k+1}, with the parameters of the network inside.
    states : sequence of Tensor
        x_0 to x_T, of shape (batch, size).
    gradients : sequence of Tensor
        ∂E/∂x_1 to ∂E/∂x_T, from :func:`torch.autograd.grad` of the loss by the states. A
        sequence whose gradient is 0 at a step adds nothing there.

    Returns
    -------
    Tensor
        0-d, differentiable by what ``cell`` depends on.

    Raises
    ------
    ValueError
        Where there is not one gradient for each state after the first.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
    ICML 2013.
    """
    if len(gradients) != len(states) - 1:
        raise ValueError(
            "regkern.vanishing_gradient_penalty: expected a gradient for each of "
            f"{len(states) - 1} states after the first, got {len(gradients)}"
        )
    total: Any = 0.0
    for k, g in enumerate(gradients):
        x = states[k].detach().requires_grad_()
        v = g.detach()
        (back,) = torch.autograd.grad(cell(x, k), x, v, create_graph=True)
        square = v.square().sum(-1)
        reached = square != 0
        # √ has no slope at 0: what arrives as 0 is at the bottom already.
        ratio = back.square().sum(-1) / torch.where(reached, square, 1.0)
        gone = ratio == 0
        length = torch.where(gone, 1.0, ratio).sqrt()
        term = torch.where(gone, 1.0, (length - 1).square())
        total = total + torch.where(reached, term, 0.0).mean()
    value: Tensor = total if isinstance(total, Tensor) else states[0].new_zeros(())
    return value

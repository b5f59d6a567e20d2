"""Statistics of a batch of features: variances, covariances and cross-correlations as penalties."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply, register
from regkern.spectral.samples import difference_penalty, inner_products, squared_norms

Group = dist.ProcessGroup

# ---- raw ops: fake kernels and autograd ----


def _fake_standardize(
    x: Tensor, standardize: bool, correction: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    numbers = x.new_empty((x.shape[1],), dtype=compute_dtype(x))
    return x.new_empty(x.shape), numbers, torch.empty_like(numbers)


_standardize = register("standardize_columns", _fake_standardize)
_products = register(
    "column_products", lambda a, b: a.new_empty((2, a.shape[1]), dtype=compute_dtype(a))
)
_combine = register("column_combine", lambda a, b, numbers: a.new_empty(a.shape))


def _standardize_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, ctx.standardize, ctx.correction, ctx.eps = inputs
    ctx.save_for_backward(output[0], output[2])


def _standardize_gradient(ctx: Any, g: Tensor, g_mean: Tensor, g_variance: Tensor) -> Any:
    """With y = f (x − μ) and f = 1 / √(var + ε), or 1, of each column:

    dx = f (g − mean g) − f ⟨g, y⟩ y / (n − c) + g_mean / n + 2 g_variance (y / f) / (n − c)
    """
    y, variance = ctx.saved_tensors
    n, left = y.shape[0], y.shape[0] - ctx.correction
    sums = _products(g, y)
    factor = torch.ones_like(variance)
    along = 2.0 * g_variance
    if ctx.standardize:
        wide = variance + ctx.eps
        still = wide == 0
        root = torch.where(still, 1.0, wide).sqrt()
        factor = torch.where(still, 0.0, 1.0 / root)
        along = along * root - factor * sums[1]
    constant = (g_mean - factor * sums[0]) / max(n, 1)
    return _combine(g, y, torch.stack([factor, along / max(left, 1), constant])), None, None, None


def _products_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _products_gradient(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
    a, b = ctx.saved_tensors
    none = torch.zeros_like(g[0])
    return (
        _combine(b, b, torch.stack([g[1], none, g[0]])),
        _combine(a, a, torch.stack([g[1], none, none])),
    )


def _combine_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _combine_gradient(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
    a, b, numbers = ctx.saved_tensors
    p, q, _ = numbers.unbind()
    none = torch.zeros_like(p)
    by_a, by_b = _products(g, a), _products(g, b)
    return (
        _combine(g, g, torch.stack([p, none, none])),
        _combine(g, g, torch.stack([q, none, none])),
        torch.stack([by_a[1], by_b[1], by_a[0]]),
    )


_standardize.differentiable(_standardize_setup, _standardize_gradient)
_products.differentiable(_products_setup, _products_gradient)
_combine.differentiable(_combine_setup, _combine_gradient)


# ---- covariances and cross-correlations from the smaller of two grams ----


def _off_diagonal_square(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of squares off the diagonal, in float64, and the gram with zeros on it."""
    if torch.is_grad_enabled():
        gram = gram - torch.diag(gram.diagonal())
    else:
        gram.fill_diagonal_(0.0)
    return squared_norms(gram).sum(dtype=torch.float64), gram


def _precise(x: Tensor) -> Any:
    return torch.autocast(x.device.type, enabled=False)


def _covariances(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Variances, Σ_{i≠j} C_ij², what is centred and the gram; autograd takes any derivative."""
    n, size = x.shape
    with _precise(x):
        centred, _, variance = _standardize(x, False, 1, 0.0)
        if n < size:
            gram = centred @ centred.mT
            total = squared_norms(gram).sum(dtype=torch.float64) / (n - 1) ** 2
            off = total - variance.double().square().sum()
        else:
            off, gram = _off_diagonal_square(centred.mT @ centred)
            off = off / (n - 1) ** 2
    return variance, off.to(x.dtype), centred, gram


class _Covariances(torch.autograd.Function):
    """As `_covariances`, with a gradient that takes one product with the gram."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        variance, off, centred, gram = _covariances(x)
        ctx.save_for_backward(x, centred, gram, variance)
        return variance, off

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        g_variance, g_off = grads
        x, centred, gram, variance = ctx.saved_tensors
        n, size = x.shape
        if torch.is_grad_enabled():
            # A second derivative may follow: the same again, from differentiable ops.
            twin = x if x.requires_grad else x.detach().requires_grad_()
            outputs = _covariances(twin)[:2]
            dx: Tensor = torch.autograd.grad(outputs, twin, grads, create_graph=True)[0]
            return dx
        with _precise(x):
            along = 2.0 * g_variance / (n - 1)
            pull = 4.0 * g_off / (n - 1) ** 2
            if n < size:
                own = along - pull * (n - 1) * variance
                dx = torch.addmm(centred * own, gram * pull, centred)
            else:
                dx = centred @ (gram * pull + torch.diag(along))
            return dx


def _correlations(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_j = Σ x_j y_j / n, Σ_{i≠j} C_ij² of C = xᵀy / n, and the grams; with any derivative."""
    n, size = x.shape
    with _precise(x):
        if 2 * n < size:
            # ⟨x xᵀ, y yᵀ⟩ = ‖xᵀy‖²
            diagonal = _products(x, y)[1] / n
            first, second = x @ x.mT, y @ y.mT
            total = inner_products(first, second)[1].sum(dtype=torch.float64) / n**2
            off = total - diagonal.double().square().sum()
        else:
            cross = x.mT @ y
            diagonal = cross.diagonal() / n
            off, first = _off_diagonal_square(cross)
            off, second = off / n**2, first
    return diagonal, off.to(x.dtype), first, second


class _Correlations(torch.autograd.Function):
    """As `_correlations`, with gradients that take one product each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        diagonal, off, first, second = _correlations(x, y)
        ctx.save_for_backward(x, y, first, second, diagonal)
        return diagonal, off

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        g_diagonal, g_off = grads
        x, y, first, second, diagonal = ctx.saved_tensors
        n, size = x.shape
        if torch.is_grad_enabled():
            twins = [t if t.requires_grad else t.detach().requires_grad_() for t in (x, y)]
            outputs = _correlations(*twins)[:2]
            both = torch.autograd.grad(outputs, twins, grads, create_graph=True)
            return both[0], both[1]
        with _precise(x):
            pull = 2.0 * g_off / n**2
            needs = ctx.needs_input_grad
            dx: Tensor | None
            dy: Tensor | None
            if 2 * n < size:
                own = g_diagonal / n - pull * n * diagonal
                dx = torch.addmm(y * own, second * pull, x) if needs[0] else None
                dy = torch.addmm(x * own, first * pull, y) if needs[1] else None
            else:
                m = first * pull + torch.diag(g_diagonal / n)
                dx = y @ m.mT if needs[0] else None
                dy = x @ m if needs[1] else None
            return dx, dy


class _Gather(torch.autograd.Function):
    """The batches of all processes; the gradient of a batch is the sum of what they all found."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.size = group, x.shape[0]
        batches = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(batches, x.contiguous(), group=group)
        return torch.cat(batches)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(grads[0], ctx.group, ctx.size), None  # type: ignore[no-untyped-call]


class _Scatter(torch.autograd.Function):
    """This process's rows of the sum over all processes: the adjoint of `_Gather`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, size: int) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        first = dist.get_rank(group) * size
        return total[first : first + size].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(grads[0], ctx.group), None, None  # type: ignore[no-untyped-call]


# ---- what the public functions share ----


def _features(op: str, name: str, value: Tensor, least: int = 2) -> Tensor:
    """(batch, features), in what is computed in."""
    checks.floating(op, name, value)
    if value.dim() != 2 or value.shape[0] < least:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of shape (batch, features) with a batch of at least "
            f"{least}, got {tuple(value.shape)}"
        )
    return value.to(compute_dtype(value))


def _traced() -> bool:
    """Whether compilation or a functorch transform takes the derivatives."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    if _traced():
        return _covariances(x)[:2]
    variance, off = function_apply(_Covariances, x)
    return variance, off


def _hinge(variance: Tensor, gamma: float | Tensor, eps: float) -> Tensor:
    """mean (γ − √(var + ε))₊, with gradient 0 where the root is 0."""
    wide = variance + eps
    still = wide == 0
    deviation = torch.where(still, 0.0, torch.where(still, 1.0, wide).sqrt())
    return torch.relu(gamma - deviation).mean()


# ---- public functions ----


def variance_penalty(x: Tensor, gamma: float | Tensor = 1.0, eps: float = 1e-4) -> Tensor:
    r"""How far standard deviations of features are below γ.

    .. math:: \frac{1}{D} \sum_j \bigl(\gamma - \sqrt{\operatorname{Var} x_j + \varepsilon}\bigr)_+

    Parameters
    ----------
    x : Tensor
        (batch, D), a batch of at least 2.
    gamma : float or Tensor
        γ.
    eps : float
        ε.

    Returns
    -------
    Tensor
        0-d, float32, or float64 where x is. A feature that does not vary has gradient 0, where
        VICReg's own ε is 0 as well.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: x read twice at most. Any number of derivatives.

    References
    ----------
    Bardes, Ponce and LeCun, "VICReg", ICLR 2022.
    """
    wide = _features("variance_penalty", "x", x)
    checks.at_least("variance_penalty", "eps", eps, 0.0)
    return _hinge(_standardize(wide, False, 1, 0.0)[2], gamma, eps)


def covariance_penalty(x: Tensor) -> Tensor:
    r"""Squared covariances of different features.

    .. math:: \frac{1}{D} \sum_{i \neq j} C_{ij}^2, \qquad C = \frac{X_c^\top X_c}{N - 1}

    Parameters
    ----------
    x : Tensor
        (N, D), N at least 2.

    Returns
    -------
    Tensor
        0-d, float32, or float64 where x is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    From the smaller of two grams: with N < D,
    :math:`\sum_{ij} C_{ij}^2 = \lVert X_c X_c^\top \rVert_F^2 / (N - 1)^2`. The backward is one
    product with that gram. Any number of derivatives.

    References
    ----------
    Bardes, Ponce and LeCun, "VICReg", ICLR 2022.
    """
    wide = _features("covariance_penalty", "x", x)
    return _statistics(wide)[1] / max(wide.shape[1], 1)


def vicreg_loss(
    x: Tensor,
    y: Tensor,
    sim: float | Tensor = 25.0,
    std: float | Tensor = 25.0,
    cov: float | Tensor = 1.0,
    *,
    gamma: float | Tensor = 1.0,
    eps: float = 1e-4,
    group: Group | None = None,
) -> Tensor:
    r"""Variance, invariance and covariance regularization of two views.

    .. math::
        sim \cdot \frac{1}{ND} \lVert X - Y \rVert_F^2
        + std \cdot \frac{1}{2} \sum_{Z \in \{X, Y\}} \frac{1}{D} \sum_j
            \bigl(\gamma - \sqrt{\operatorname{Var} z_j + \varepsilon}\bigr)_+
        + cov \cdot \sum_{Z \in \{X, Y\}} \frac{1}{D} \sum_{i \neq j} C(Z)_{ij}^2

    Parameters
    ----------
    x, y : Tensor
        (N, D): the embeddings of two views, N at least 2.
    sim, std, cov : float or Tensor
        The weights of the three terms; tensors are 0-d and may be differentiated.
    gamma, eps : float
        γ and ε.
    group : torch.distributed.ProcessGroup, optional
        Variances and covariances are those of the batches of all its processes together, each of
        the same size (``torch.distributed.group.WORLD`` for all there are). Invariance is local, as
        in the authors' code: average losses and gradients over the processes, as DDP does, after
        multiplying with their number where the one-process value is wanted.

    Returns
    -------
    Tensor
        0-d, float32, or float64 where x is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Each view is read twice and centred once; the gram is the smaller of N x N and D x D, and the
    backward a single product with it, which carries the gradients of variances on its diagonal. Any
    number of derivatives; only the gram and the centred views are saved.

    References
    ----------
    Bardes, Ponce and LeCun, "VICReg: variance-invariance-covariance regularization for
    self-supervised learning", ICLR 2022.
    """
    op = "vicreg_loss"
    wide = [_features(op, "x", x, 1), _features(op, "y", y, 1)]
    checks.same(op, "y", y, x)
    checks.at_least(op, "eps", eps, 0.0)
    batch, size = x.shape
    loss = sim * (difference_penalty(*wide).sum() / max(batch * size, 1))
    if group is not None:
        wide = [function_apply(_Gather, z, group) for z in wide]
    for view in wide:
        variance, off = _statistics(_features(op, "x", view))
        loss = loss + std * 0.5 * _hinge(variance, gamma, eps) + cov * (off / max(size, 1))
    return loss


def whitening_penalty(x: Tensor) -> Tensor:
    r"""The distance of a covariance from the identity.

    .. math:: \lVert C - I \rVert_F^2, \qquad C = \frac{X_c^\top X_c}{N - 1}

    Parameters
    ----------
    x : Tensor
        (N, D), N at least 2.

    Returns
    -------
    Tensor
        0-d, float32, or float64 where x is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    From the smaller gram, as :func:`covariance_penalty`.

    References
    ----------
    "Fréchet cumulative covariance net for deep nonlinear sufficient dimension reduction with random
    objects", 2025, which adds it to its dependence measure.
    """
    variance, off = _statistics(_features("whitening_penalty", "x", x))
    return off + (variance - 1.0).square().sum()


def iso_score(x: Tensor, zeta: float | Tensor = 0.0, covariance: Tensor | None = None) -> Tensor:
    r"""IsoScore*: 1 for an isotropic cloud of points, 0 for points on a line.

    .. math::
        \frac{(\operatorname{tr} \Sigma)^2 / \lVert \Sigma \rVert_F^2 - 1}{D - 1}, \qquad
        \Sigma = (1 - \zeta)\, C(X) + \zeta\, C_0

    It is what the authors' singular values give, without any: for a positive semidefinite Σ these
    enter by their sum and by the sum of their squares alone.

    Parameters
    ----------
    x : Tensor
        (N, D), N and D at least 2.
    zeta : float or Tensor
        ζ in [0, 1]: how much of ``covariance`` stabilises the batch's own.
    covariance : Tensor, optional
        C₀, (D, D), positive semidefinite: of many samples, once an epoch. A constant.

    Returns
    -------
    Tensor
        0-d, float32, or float64 where x is. 0 for points that are all the same, with gradient 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Without ``covariance`` from the smaller of two grams.

    References
    ----------
    Rudman and Eickhoff, "Stable anisotropic regularization", ICLR 2024.
    """
    op = "iso_score"
    wide = _features(op, "x", x)
    size = wide.shape[1]
    if size < 2:
        raise ValueError(f"regkern.{op}: expected `x` of at least 2 features, got {size}")
    checks.probability(op, "zeta", zeta)
    if covariance is None:
        if isinstance(zeta, Tensor) or zeta != 0:
            raise ValueError(f"regkern.{op}: expected `covariance` with `zeta`, got none")
        variance, off = _statistics(wide)
        trace, square = variance.sum(), off + variance.square().sum()
    else:
        checks.on_device(op, "covariance", covariance, x)
        if tuple(covariance.shape) != (size, size):
            raise ValueError(
                f"regkern.{op}: expected `covariance` of shape ({size}, {size}), got "
                f"{tuple(covariance.shape)}"
            )
        with _precise(wide):
            centred = _standardize(wide, False, 1, 0.0)[0]
            own = centred.mT @ centred / (wide.shape[0] - 1)
            mixed = (1.0 - zeta) * own + zeta * covariance.detach().to(own.dtype)
        trace, square = mixed.trace(), mixed.square().sum()
    still = square == 0
    ratio = torch.where(still, 1.0, trace.square() / torch.where(still, 1.0, square))
    return (ratio - 1.0) / (size - 1)


def isotropy_penalty(
    x: Tensor,
    lam: float | Tensor = 1.0,
    zeta: float | Tensor = 0.0,
    covariance: Tensor | None = None,
) -> Tensor:
    r""":math:`\lambda (1 - \text{IsoScore}^*)` of :func:`iso_score`: λ > 0 for more isotropy, and
    λ < 0 for less, which I-STAR found to help."""
    return lam * (1.0 - iso_score(x, zeta, covariance))


def barlow_twins_loss(
    x: Tensor, y: Tensor, lam: float | Tensor = 5e-3, eps: float = 1e-5
) -> Tensor:
    r"""Redundancy reduction of two views.

    .. math::
        \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \neq j} C_{ij}^2, \qquad
        C = \frac{\hat{X}^\top \hat{Y}}{N}

    with features standardised over the batch, :math:`\hat{x} = (x - \mu) / \sqrt{\sigma^2 +
    \varepsilon}` of the biased variance.

    Parameters
    ----------
    x, y : Tensor
        (N, D), N at least 2.
    lam : float or Tensor
        λ.
    eps : float
        ε, that of batch normalisation.

    Returns
    -------
    Tensor
        0-d, float32, or float64 where x is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The cross-correlation is formed where D ≤ 2 N; else :math:`\lVert C \rVert_F^2 = \langle
    \hat{X} \hat{X}^\top, \hat{Y} \hat{Y}^\top \rangle / N^2` from two grams of N x N. Any number of
    derivatives.

    References
    ----------
    Zbontar, Jing, Misra, LeCun and Deny, "Barlow twins: self-supervised learning via redundancy
    reduction", ICML 2021.
    """
    op = "barlow_twins_loss"
    wide = _features(op, "x", x), _features(op, "y", y)
    checks.same(op, "y", y, x)
    checks.at_least(op, "eps", eps, 0.0)
    views = [_standardize(z, True, 0, eps)[0] for z in wide]
    if _traced():
        diagonal, off = _correlations(*views)[:2]
    else:
        diagonal, off = function_apply(_Correlations, *views)
    return (1.0 - diagonal).square().sum() + lam * off

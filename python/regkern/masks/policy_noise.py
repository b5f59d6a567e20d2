"""Noise masks that a policy draws: Beta noise on a coarse grid, its density, its application."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, once_only, register
from regkern.random import resolve_seed

# ---- raw op: fake kernel and autograd ----

_beta = register(
    "beta_noise",
    lambda alpha, beta, seed: torch.empty_like(alpha, memory_format=torch.contiguous_format),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    alpha, beta, _ = inputs
    ctx.save_for_backward(alpha, beta, output)


# Of torch, which has no fake kernel of it: without one a traced backward stops there.
@torch.library.custom_op(
    "regkern_torch::dirichlet_grad",
    mutates_args=(),
    schema="(Tensor x, Tensor alpha, Tensor total) -> Tensor",
)
def _dirichlet_grad(x: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
    return torch._dirichlet_grad(x, alpha, total)


@_dirichlet_grad.register_fake
def _(x: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
    return torch.empty_like(x)


@once_only("beta_noise")
def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    # (ε, 1 − ε) is a Dirichlet variate: the distribution function held fixed, its derivatives by
    # the two concentrations.
    alpha, beta, eps = ctx.saved_tensors
    pair, both = torch.stack([eps, 1.0 - eps], -1), torch.stack([alpha, beta], -1)
    total = (alpha + beta).unsqueeze(-1).expand_as(both).contiguous()
    slopes: Tensor = _dirichlet_grad(pair, both, total)
    incoming = torch.stack([g, torch.zeros_like(g)], -1)
    both_grads = slopes * (incoming - (pair * incoming).sum(-1, keepdim=True))
    return both_grads[..., 0], both_grads[..., 1], None


_beta.differentiable(_setup, _backward)


# ---- public functions ----


def _parameters(op: str, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    checks.floating(op, "alpha", alpha)
    checks.floating(op, "beta", beta)
    checks.on_device(op, "beta", beta, alpha)
    try:
        a, b = torch.broadcast_tensors(alpha, beta)  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(
            f"regkern.{op}: expected `alpha` and `beta` that broadcast together, got "
            f"{tuple(alpha.shape)} and {tuple(beta.shape)}"
        ) from None
    return a, b


def beta_noise(
    alpha: Tensor,
    beta: Tensor,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Beta variates, differentiable in their parameters.

    .. math:: \varepsilon = \frac{A}{A + B}, \qquad A \sim \Gamma(\alpha), \; B \sim \Gamma(\beta)

    Parameters
    ----------
    alpha, beta : Tensor
        Concentrations, positive, that broadcast together; float32, float64, bfloat16 or float16.
        (B, 1, h, w) is a coarse grid for each image.
    seed, generator
        See `make_seed`.

    Returns
    -------
    Tensor
        Of the parameters' shape and promoted dtype, in [0, 1]; NaN where a parameter is not
        positive and finite. Differentiable once in both, by implicit reparametrisation:
        :math:`\partial \varepsilon / \partial \alpha = -\partial_\alpha F(\varepsilon) /
        p(\varepsilon)`.

    Notes
    -----
    Meant for coarse grids: an element takes about a microsecond, drawn in float64 from numbers of
    its own, so it does not depend on the others.

    References
    ----------
    Marsaglia and Tsang, "A simple method for generating gamma variables", 2000. Figurnov, Mohamed
    and Mnih, "Implicit reparameterization gradients", NeurIPS 2018.
    """
    op = "beta_noise"
    a, b = _parameters(op, alpha, beta)
    given = resolve_seed(op, alpha, seed, generator)
    eps: Tensor = _beta(a.double().contiguous(), b.double().contiguous(), given)
    return eps.to(torch.promote_types(alpha.dtype, beta.dtype))


def beta_log_prob(eps: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    r"""Logarithm of the Beta density, for the score function of a policy.

    .. math::
        \ln p(\varepsilon) = (\alpha - 1) \ln \varepsilon + (\beta - 1) \ln(1 - \varepsilon)
        - \ln B(\alpha, \beta)

    Parameters
    ----------
    eps : Tensor
        In (0, 1). What lies at an end, by rounding, is taken for the nearest number inside.
    alpha, beta : Tensor
        Concentrations that broadcast with eps.

    Returns
    -------
    Tensor
        Of the shape and dtype of eps, computed in float64. Its derivatives by the parameters are
        :math:`\ln \varepsilon - \psi(\alpha) + \psi(\alpha + \beta)` and the like. Any number of
        derivatives.
    """
    op = "beta_log_prob"
    checks.floating(op, "eps", eps)
    a, b = (t.double() for t in _parameters(op, alpha, beta))
    info = torch.finfo(eps.dtype)
    inside = eps.double().clamp(info.tiny, 1.0 - info.eps / 2)
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    density = (a - 1.0) * inside.log() + (b - 1.0) * torch.log1p(-inside) - log_beta
    return density.to(eps.dtype)


def _weights(coarse: int, fine: int, mode: str, like: Tensor) -> Tensor:
    """(fine, coarse): the shares that the cells of a grid have in the pixels of a side."""
    place = (torch.arange(fine, device=like.device, dtype=torch.float64) + 0.5) * (coarse / fine)
    cells = torch.arange(coarse, device=like.device, dtype=torch.float64)
    if mode == "nearest":
        return (place.floor()[:, None] == cells).to(like.dtype)
    centre = (place - 0.5).clamp(0.0, coarse - 1.0)
    return (1.0 - (centre[:, None] - cells).abs()).clamp(min=0.0).to(like.dtype)


def noise_mask_apply(
    x: Tensor,
    mask: Tensor,
    scale: float | Tensor = 1.0,
    *,
    mode: Literal["add", "multiply"] = "add",
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
    clamp: tuple[float, float] | None = None,
) -> Tensor:
    r"""Adds a coarse mask to an image, or multiplies by it, at the image's resolution.

    .. math::
        y = x + s\, U m \quad\text{or}\quad y = x \odot (1 + s\, U m), \qquad
        U m = U_h m U_w^\top

    with the matrices of bilinear (corners not aligned) or nearest interpolation.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W); float32, float64, bfloat16 or float16.
    mask : Tensor
        m, (N, 1, h, w) or (N, C, h, w), floating point.
    scale : float or Tensor
        s; a tensor broadcasts to x.
    mode : {"add", "multiply"}
        How x and the mask meet.
    interpolation : {"bilinear", "nearest"}
        How the mask is enlarged.
    clamp : (float, float), optional
        Range that y is clamped to; the gradient is 0 outside.

    Returns
    -------
    Tensor
        Like x. Differentiable any number of times in x, mask and scale.

    Notes
    -----
    Enlarging is two products with banded matrices, whose adjoints are products too: no atomics, and
    no dependence on the order of threads. Bytes moved: the large mask written and read (one channel
    of it where the mask has one), x read and y written, both again with ``clamp``.
    """
    op = "noise_mask_apply"
    checks.floating(op, "x", x)
    checks.floating(op, "mask", mask)
    checks.on_device(op, "mask", mask, x)
    checks.one_of(op, "mode", mode, ("add", "multiply"))
    checks.one_of(op, "interpolation", interpolation, ("bilinear", "nearest"))
    fits = x.dim() == 4 and mask.dim() == 4 and mask.shape[0] == x.shape[0]
    if not fits or (mask.shape[1] != 1 and mask.shape[1] != x.shape[1]):
        raise ValueError(
            f"regkern.{op}: expected `x` of shape (N, C, H, W) and `mask` of (N, 1, h, w) or "
            f"(N, C, h, w), got {tuple(x.shape)} and {tuple(mask.shape)}"
        )
    if mask.shape[2] == 0 or mask.shape[3] == 0:
        raise ValueError(f"regkern.{op}: expected a `mask` with cells, got {tuple(mask.shape)}")
    if clamp is not None and not clamp[0] <= clamp[1]:
        raise ValueError(f"regkern.{op}: expected `clamp` with low <= high, got {clamp}")
    small = mask.to(compute_dtype(x))
    rows = _weights(mask.shape[2], x.shape[2], interpolation, small)
    columns = _weights(mask.shape[3], x.shape[3], interpolation, small)
    large = scale * (rows @ small @ columns.T)
    y = (x * (1.0 + large) if mode == "multiply" else x + large).to(x.dtype)
    return y if clamp is None else y.clamp(*clamp)

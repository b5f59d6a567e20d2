"""Penalties on Jacobians: random projections, finite differences, gradients of critics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply, once_only
from regkern.random import resolve_seed
from regkern.spectral.directions import add_noise, random_directions, sphere_directions
from regkern.spectral.samples import (
    check_samples,
    difference_penalty,
    inner_products,
    squared_norms,
)

Network = Callable[[Tensor], Tensor]


def _listed(inputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [inputs] if isinstance(inputs, Tensor) else list(inputs)


def _pulled(outputs: Tensor, inputs: list[Tensor], v: Tensor) -> list[Tensor]:
    """vᵀJ for each of the inputs, differentiable; zeros for what the outputs do not depend on."""
    found = torch.autograd.grad(outputs, inputs, v, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def _next_seed(seed: Tensor, step: int) -> Tensor:
    """A seed of its own for each of several draws of one call."""
    return seed if step == 0 else torch.stack([seed[0], seed[1] + step])


def jacobian_frobenius(
    outputs: Tensor,
    inputs: Tensor | Sequence[Tensor],
    n_projections: int = 1,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Half the squared Frobenius norm of the input-output Jacobian, averaged over the batch.

    .. math::
        \frac{1}{2B} \sum_b \lVert J_b \rVert_F^2 \approx
        \frac{C}{2nB} \sum_{\mu=1}^{n} \sum_b \left\lVert
            \frac{\partial (v_{\mu b} \cdot z_b)}{\partial x_b} \right\rVert^2

    with v uniform on the unit sphere of the C outputs: the mean is exact, for any n.

    Parameters
    ----------
    outputs : Tensor
        z, (B, ...), of one sample each.
    inputs : Tensor or sequence of Tensor
        x, (B, ...), in the graph of ``outputs``; several add up.
    n_projections : int
        n, or −1 for all basis vectors: C backward passes, and no estimate.
    seed : Tensor, optional
        int64 ``(key, offset)``, see :func:`regkern.make_seed`. Default: drawn from torch's
        generator. Projection μ draws from ``offset`` + μ.
    generator : torch.Generator, optional
        Where the seed is drawn from.

    Returns
    -------
    Tensor
        0-d, with a gradient by double backward.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Hoffman, Roberts and Yaida, "Robust learning with Jacobian regularization", 2019.
    """
    op = "jacobian_frobenius"
    check_samples(op, "outputs", outputs)
    xs = _listed(inputs)
    for i, x in enumerate(xs):
        check_samples(op, f"inputs[{i}]", x)
    if n_projections != -1 and n_projections < 1:
        raise ValueError(
            f"regkern.{op}: expected `n_projections` to be at least 1, or −1, got {n_projections}"
        )
    batch = outputs.shape[0]
    flat = outputs.reshape(batch, -1)
    size = flat.shape[1]
    total = outputs.new_zeros((), dtype=compute_dtype(outputs))
    if n_projections == -1:
        for c in range(size):
            v = torch.zeros_like(flat)
            v[:, c] = 1.0
            for g in _pulled(flat, xs, v):
                total = total + squared_norms(g).sum()
        return total / (2 * max(batch, 1))
    base = resolve_seed(op, outputs, seed, generator)
    for n in range(n_projections):
        v = sphere_directions(flat.detach(), seed=_next_seed(base, n))
        for g in _pulled(flat, xs, v):
            total = total + squared_norms(g).sum()
    return total * (size / (2 * n_projections * max(batch, 1)))


def jacobian_noise_penalty(
    network: Network,
    x: Tensor,
    std: float | Tensor,
    *,
    outputs: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Half the squared Frobenius norm of the Jacobian by a finite difference.

    .. math::
        \frac{1}{2 \sigma^2} \operatorname{mean}_b \lVert f(x_b + \epsilon_b) - f(x_b) \rVert^2,
        \qquad \epsilon \sim N(0, \sigma^2 I)

    Two forward passes, no double backward; the gradient goes through both.

    Parameters
    ----------
    network : callable
        f.
    x : Tensor
        (batch, ...).
    std : float or Tensor
        σ, positive.
    outputs : Tensor, optional
        f(x), where it is known, with its graph.
    seed, generator
        As of :func:`random_directions`.

    Returns
    -------
    Tensor
        0-d.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    "Nuclear norm regularization for deep learning", 2024.
    """
    op = "jacobian_noise_penalty"
    check_samples(op, "x", x)
    checks.scale(op, "std", std)
    known = network(x) if outputs is None else outputs
    moved = network(add_noise(x, std, seed=seed, generator=generator))
    return difference_penalty(moved, known).mean() / (2 * std**2)


def nuclear_jacobian_penalty(
    inner: Network,
    outer: Network,
    x: Tensor,
    std: float | Tensor,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The nuclear norm of the Jacobian of :math:`f = g \circ h`, without a singular value.

    .. math::
        \frac{1}{2 \sigma^2} \operatorname{mean}_b \bigl( \lVert h(x + \epsilon) - h(x) \rVert^2
        + \lVert g(h(x) + \epsilon') - g(h(x)) \rVert^2 \bigr), \qquad
        \epsilon, \epsilon' \sim N(0, \sigma^2 I)

    For σ → 0 its mean is :math:`\tfrac{1}{2} (\lVert J_h \rVert_F^2 + \lVert J_g \rVert_F^2) \ge
    \lVert J_f \rVert_*`, with equality at the minimum over factorisations.

    Parameters
    ----------
    inner, outer : callable
        h and g.
    x : Tensor
        (batch, ...).
    std : float or Tensor
        σ, positive.
    seed, generator
        As of :func:`random_directions`; ε' draws from the next offset.

    Returns
    -------
    Tensor
        0-d; gradients go into both branches of each difference.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    "Nuclear norm regularization for deep learning", 2024.
    """
    op = "nuclear_jacobian_penalty"
    check_samples(op, "x", x)
    base = resolve_seed(op, x, seed, generator)
    hidden = inner(x)
    first = jacobian_noise_penalty(inner, x, std, outputs=hidden, seed=base)
    return first + jacobian_noise_penalty(outer, hidden, std, seed=_next_seed(base, 1))


def rcae_loss(
    network: Network,
    x: Tensor,
    std: float,
    *,
    form: Literal["projection", "noise"] = "projection",
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The reconstruction contractive auto-encoder.

    .. math::
        \operatorname{mean}_b \bigl( \lVert r(x) - x \rVert^2
        + \sigma^2 \lVert \partial r / \partial x \rVert_F^2 \bigr)

    whose minimum has :math:`r(x) - x \approx \sigma^2 \nabla \ln p(x)`.

    Parameters
    ----------
    network : callable
        r, of the shape of x.
    x : Tensor
        (batch, ...).
    std : float
        σ, positive.
    form : {"projection", "noise"}
        Whether the norm is that of a random projection (unbiased, double backward) or of
        :math:`r(x + \sigma n) - r(x)`.
    seed, generator
        As of :func:`random_directions`.

    Returns
    -------
    Tensor
        0-d. One sigmoid layer has the norm in closed form: :func:`sigmoid_contraction`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Alain and Bengio, "What regularized auto-encoders learn from the data-generating distribution",
    JMLR 2014.
    """
    op = "rcae_loss"
    check_samples(op, "x", x)
    checks.one_of(op, "form", form, ("projection", "noise"))
    if form == "projection" and not x.requires_grad:
        x = x.detach().requires_grad_()
    r = network(x)
    if form == "projection":
        norm = jacobian_frobenius(r, x, seed=seed, generator=generator)
    else:
        norm = jacobian_noise_penalty(network, x, std, outputs=r, seed=seed, generator=generator)
    return difference_penalty(r, x.detach()).mean() + 2 * std**2 * norm


def sigmoid_contraction(hidden: Tensor, weight: Tensor) -> Tensor:
    r"""The squared Jacobian norm of a sigmoid layer, averaged over the batch.

    .. math::
        \operatorname{mean}_b \sum_j \bigl(h_{bj} (1 - h_{bj})\bigr)^2 \lVert W_j \rVert^2,
        \qquad h = \operatorname{sigmoid}(x W^\top + c)

    Parameters
    ----------
    hidden : Tensor
        h, (batch, units).
    weight : Tensor
        W, (units, inputs).

    Returns
    -------
    Tensor
        0-d.

    References
    ----------
    Rifai, Vincent, Muller, Glorot and Bengio, "Contractive auto-encoders", ICML 2011.
    """
    op = "sigmoid_contraction"
    check_samples(op, "hidden", hidden)
    check_samples(op, "weight", weight)
    if hidden.dim() != 2 or hidden.shape[1] != weight.shape[0]:
        raise ValueError(
            f"regkern.{op}: expected `hidden` of shape (batch, {weight.shape[0]}), got "
            f"{tuple(hidden.shape)}"
        )
    rows = squared_norms(weight)
    slopes = (hidden * (1 - hidden)).to(rows.dtype).square()
    return (slopes @ rows).mean()


def sure_loss(
    denoiser: Network,
    y: Tensor,
    sigma: float | Tensor,
    *,
    eps: float | None = None,
    form: Literal["difference", "projection"] = "difference",
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Stein's unbiased estimate of a denoiser's squared error, from noisy data alone.

    .. math::
        \operatorname{mean}_b \bigl( \lVert h(y) - y \rVert^2 - n \sigma^2
        + 2 \sigma^2 \nabla \cdot h(y) \bigr), \qquad
        \nabla \cdot h \approx \frac{b^\top (h(y + \varepsilon b) - h(y))}{\varepsilon}, \;
        b \sim N(0, I)

    Parameters
    ----------
    denoiser : callable
        h, of the shape of y.
    y : Tensor
        (batch, ...): n numbers a sample, with noise of variance σ².
    sigma : float or Tensor
        σ.
    eps : float, optional
        ε. Default: a thousandth of the largest magnitude in y.
    form : {"difference", "projection"}
        ``projection`` takes :math:`b^\top (\partial h / \partial y)\, b` by a backward pass, exact
        for the b that is drawn.
    seed, generator
        As of :func:`random_directions`.

    Returns
    -------
    Tensor
        0-d.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Ramani, Blu and Unser, "Monte-Carlo SURE", TIP 2008. Aali, Arvinte, Kumar and Tamir, "Solving
    inverse problems with score-based generative priors learned from noisy data", 2023.
    """
    op = "sure_loss"
    check_samples(op, "y", y)
    checks.scale(op, "sigma", sigma)
    checks.one_of(op, "form", form, ("difference", "projection"))
    base = resolve_seed(op, y, seed, generator)
    if form == "projection" and not y.requires_grad:
        y = y.detach().requires_grad_()
    known = denoiser(y)
    b = random_directions(y, "normal", seed=base)
    if form == "projection":
        (pulled,) = _pulled(known, [y], b)
        divergence = inner_products(b, pulled)[1]
    else:
        step: float | Tensor
        if eps is None:
            largest = y.detach().abs().amax().to(compute_dtype(y))
            step = torch.where(largest > 0, 1e-3 * largest, 1e-3)
        else:
            step = eps
        moved = denoiser(add_noise(y, step, seed=base))
        divergence = inner_products(b, moved - known)[1] / step
    n = y[0].numel() if y.shape[0] else 0
    fit = difference_penalty(known, y.detach())
    return (fit + 2 * sigma**2 * divergence).mean() - n * sigma**2


def smoothness_similarity(
    source: Tensor,
    source_input: Tensor,
    target: Tensor,
    target_input: Tensor,
    *,
    form: Literal["distance", "cosine"] = "distance",
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""How differently two networks react to their inputs.

    .. math::
        \operatorname{mean}_b \lVert J_s^\top v - J_t^\top v \rVert^2 \quad\text{or}\quad
        1 - \operatorname{mean}_b \cos(J_s^\top v, J_t^\top v)

    for one v on the unit sphere of the outputs a sample; the source is a constant.

    Parameters
    ----------
    source, target : Tensor
        Outputs (batch, ...) of one shape.
    source_input, target_input : Tensor
        What they were computed from, (batch, ...) of one shape, in their graphs.
    form : {"distance", "cosine"}
        See above.
    seed, generator
        As of :func:`random_directions`.

    Returns
    -------
    Tensor
        0-d; the target's network is differentiated twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Sushko, Wang and Gall, "Smoothness similarity regularization for few-shot GAN adaptation", ICCV
    2023. Which of the forms the paper means was not confirmed.
    """
    op = "smoothness_similarity"
    check_samples(op, "source", source)
    checks.same(op, "target", target, source, "source")
    checks.same(op, "target_input", target_input, source_input, "source_input")
    checks.one_of(op, "form", form, ("distance", "cosine"))
    v = sphere_directions(source.detach(), seed=seed, generator=generator)
    (fixed,) = torch.autograd.grad(source, source_input, v, retain_graph=True)
    (moving,) = _pulled(target, [target_input], v)
    if form == "distance":
        return difference_penalty(moving, fixed.detach()).mean()
    own, along, other = inner_products(moving, fixed.detach())
    zero = (own == 0) | (other == 0)
    root = torch.where(zero, 1.0, own).rsqrt() * torch.where(zero, 1.0, other).rsqrt()
    return 1.0 - torch.where(zero, 0.0, along * root).mean()


def functional_fisher_information(values: Tensor, inputs: Tensor | Sequence[Tensor]) -> Tensor:
    r"""The bound on functional entropy that multi-modal classifiers maximise.

    .. math::
        \sum_{\text{modalities}} \operatorname{mean}_b
        \frac{\lVert \nabla_{z_b} f_b \rVert^2}{f_b}

    Parameters
    ----------
    values : Tensor
        f, (batch), not negative: the divergence between outputs at the inputs and at noisy ones,
        say. A sample with f = 0 adds 0.
    inputs : Tensor or sequence of Tensor
        The modalities z, (batch, ...) each, in the graph of ``values``.

    Returns
    -------
    Tensor
        0-d, differentiable by double backward. By the log-Sobolev inequality half of it bounds the
        entropy of f from above, for noise of variance one.

    References
    ----------
    Gat, Schwartz, Schwing and Hazan, "Removing bias in multi-modal classifiers: regularization by
    maximizing functional entropies", NeurIPS 2020.
    """
    check_samples("functional_fisher_information", "values", values)
    gradients = _pulled(values, _listed(inputs), torch.ones_like(values))
    zero = values == 0
    safe = torch.where(zero, 1.0, values)
    total = torch.stack([squared_norms(g) for g in gradients]).sum(0)
    return torch.where(zero, 0.0, total.to(safe.dtype) / safe).mean()


# ---- critics ----


def _slopes(critic: Network, x: Tensor) -> Tensor:
    """‖∇D‖² of each sample, differentiable in the critic."""
    x = x.detach().requires_grad_()
    scores = critic(x)
    return squared_norms(_pulled(scores, [x], torch.ones_like(scores))[0])


def gradient_penalty(
    critic: Network,
    real: Tensor,
    fake: Tensor | None = None,
    kind: Literal["wgan-gp", "r1", "r2", "dragan"] = "wgan-gp",
    *,
    target: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Penalties on the gradient of a critic.

    ============  ==================================================================
    ``kind``      value
    ============  ==================================================================
    ``wgan-gp``   mean (‖∇D(x̃)‖ − 1)², x̃ uniform between ``real`` and ``fake``
    ``r1``        ½ mean ‖∇D(real)‖²
    ``r2``        ½ mean ‖∇D(fake)‖²
    ``dragan``    mean (‖∇D(x̃)‖ − 1)², x̃ = real + ½ std(real) U, U uniform in [0, 1)
    ============  ==================================================================

    Parameters
    ----------
    critic : callable
        D: (batch, ...) to one score a sample (or several, which add up).
    real, fake : Tensor
        (batch, ...). ``fake`` is needed for ``wgan-gp`` and ``r2``; both are constants.
    kind : str
        One of the table.
    target : float
        What stands for 1 in the table.
    generator : torch.Generator, optional
        Where x̃ is drawn from.

    Returns
    -------
    Tensor
        0-d, to be multiplied by λ (or γ) and differentiated: double backward. A sample whose
        gradient is zero has a second derivative of 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Gulrajani et al., "Improved training of Wasserstein GANs", NeurIPS 2017. Mescheder, Geiger and
    Nowozin, "Which training methods for GANs do actually converge?", ICML 2018. Kodali, Abernethy,
    Hays and Kira, "On convergence and stability of GANs", 2017. Kang, Shin and Park, "StudioGAN",
    TPAMI 2023.
    """
    op = "gradient_penalty"
    check_samples(op, "real", real)
    checks.one_of(op, "kind", kind, ("wgan-gp", "r1", "r2", "dragan"))
    if kind in ("wgan-gp", "r2"):
        if fake is None:
            raise ValueError(f"regkern.{op}: expected `fake` with kind {kind}, got none")
        checks.same(op, "fake", fake, real, "real")
    if kind == "r1":
        return 0.5 * _slopes(critic, real).mean()
    if kind == "r2":
        assert fake is not None
        return 0.5 * _slopes(critic, fake).mean()
    real = real.detach()
    if kind == "wgan-gp":
        assert fake is not None
        share = torch.rand(
            (real.shape[0], *[1] * (real.dim() - 1)),
            dtype=real.dtype,
            device=real.device,
            generator=generator,
        )
        between = torch.lerp(fake.detach(), real, share)
    else:
        noise = torch.rand(real.shape, dtype=real.dtype, device=real.device, generator=generator)
        between = real + 0.5 * real.std() * noise
    squares = _slopes(critic, between)
    zero = squares == 0
    norms = torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())
    return (norms - target).square().mean()


def r3gan_losses(
    critic: Network, real: Tensor, fake: Tensor, gamma: float | Tensor
) -> tuple[Tensor, Tensor]:
    r"""The relativistic losses of R3GAN, for the discriminator and for the generator.

    .. math::
        L_D = \operatorname{mean} \operatorname{softplus}(D(fake) - D(real))
            + \frac{\gamma}{2} \operatorname{mean} \lVert \nabla D(real) \rVert^2
            + \frac{\gamma}{2} \operatorname{mean} \lVert \nabla D(fake) \rVert^2, \qquad
        L_G = \operatorname{mean} \operatorname{softplus}(D(real) - D(fake))

    Parameters
    ----------
    critic : callable
        D: (batch, ...) to (batch).
    real, fake : Tensor
        (batch, ...); ``fake`` carries the generator's graph, of which the discriminator's loss
        takes none.
    gamma : float or Tensor
        γ.

    Returns
    -------
    tuple of Tensor
        :math:`L_D` and :math:`L_G`, 0-d.

    References
    ----------
    Huang, Gokaslan, Kuleshov and Tompkin, "The GAN is dead; long live the GAN!", NeurIPS 2024.
    """
    checks.same("r3gan_losses", "fake", fake, real, "real")
    on_real = critic(real)
    apart = critic(fake.detach()) - on_real
    penalty = gradient_penalty(critic, real, kind="r1")
    penalty = penalty + gradient_penalty(critic, real, fake, kind="r2")
    discriminator = torch.nn.functional.softplus(apart).mean() + gamma * penalty
    return discriminator, torch.nn.functional.softplus(on_real - critic(fake)).mean()


# ---- smooth functions on manifolds ----

_TILE = 512  # rows of the weights that exist at a time


def _affinities(x: Tensor, squares: Tensor, first: int, t: float) -> Tensor:
    """w_ij = exp(−‖x_i − x_j‖² / 4t) of a tile of rows."""
    rows = x[first : first + _TILE]
    apart = torch.addmm(squares[None, :], rows, x.mT, alpha=-2.0)
    apart = (apart + squares[first : first + _TILE, None]).clamp_(min=0.0)
    return apart.mul_(-0.25 / t).exp_()


class _Laplacian(torch.autograd.Function):
    """e_i = Σ_j w_ij ‖f_i − f_j‖², a tile of rows at a time."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, x: Tensor, t: float) -> Tensor:
        ctx.t = t
        x = x - x.mean(0)
        f_squares, squares = squared_norms(f), squared_norms(x)
        energies = torch.empty_like(f_squares)
        for first in range(0, len(f), _TILE):
            mine = slice(first, first + _TILE)
            apart = torch.addmm(f_squares[None, :], f[mine], f.mT, alpha=-2.0)
            apart = (apart + f_squares[mine, None]).clamp_(min=0.0)
            energies[mine] = (_affinities(x, squares, first, t) * apart).sum(1)
        ctx.save_for_backward(f, x, squares)
        return energies

    @staticmethod
    @once_only("laplacian_energies")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (g,) = grads
        f, x, squares = ctx.saved_tensors
        df = torch.empty_like(f)
        # Σ_j (g_i + g_j) w_ij (f_i − f_j), from one product of the weights with four things.
        columns = torch.cat([f, g[:, None] * f, torch.ones_like(g)[:, None], g[:, None]], 1)
        size = f.shape[1]
        for first in range(0, len(f), _TILE):
            mine = slice(first, first + _TILE)
            sums = _affinities(x, squares, first, ctx.t) @ columns
            own = g[mine, None] * sums[:, 2 * size, None] + sums[:, 2 * size + 1, None]
            pull = g[mine, None] * sums[:, :size] + sums[:, size : 2 * size]
            df[mine] = 2.0 * (own * f[mine] - pull)
        return df, None, None


def laplacian_energies(f: Tensor, x: Tensor, t: float) -> Tensor:
    r"""How much a function varies near each of its points.

    .. math::
        e_i = \sum_j w_{ij} \lVert f(x_i) - f(x_j) \rVert^2, \qquad
        w_{ij} = e^{-\lVert x_i - x_j \rVert^2 / 4t}

    Parameters
    ----------
    f : Tensor
        (N, K): the values.
    x : Tensor
        (N, ...): the points. Constants.
    t : float
        The time of the heat kernel, positive.

    Returns
    -------
    Tensor
        (N), differentiable in f, once.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The N x N weights exist 512 rows at a time, and are made again in the backward. All of it is
    matrix products; distances are those of centred points, in the dtype of the computation.

    References
    ----------
    Cervino, Chamon, Haeffele, Vidal and Ribeiro, "Learning globally smooth functions on manifolds",
    ICML 2023.
    """
    op = "laplacian_energies"
    check_samples(op, "f", f)
    check_samples(op, "x", x)
    if f.dim() != 2 or f.shape[0] != x.shape[0]:
        raise ValueError(
            f"regkern.{op}: expected `f` of shape ({x.shape[0]}, values), got {tuple(f.shape)}"
        )
    if not t > 0.0:
        raise ValueError(f"regkern.{op}: expected `t` to be positive, got {t}")
    wide = f.to(compute_dtype(f))
    points = x.detach().reshape(len(x), -1).to(wide.dtype)
    with torch.autocast(f.device.type, enabled=False):
        energies: Tensor = function_apply(_Laplacian, wide, points, t)
    return energies


def laplacian_penalty(f: Tensor, x: Tensor, t: float, multipliers: Tensor | None = None) -> Tensor:
    r""":math:`\sum_i \lambda_i e_i` of :func:`laplacian_energies`; λ = 1 where no ``multipliers``,
    (N), are given. They are constants: :func:`dual_ascent` moves them."""
    energies = laplacian_energies(f, x, t)
    return energies.sum() if multipliers is None else multipliers.detach() @ energies


@torch.no_grad()
def dual_ascent(multipliers: Tensor, energies: Tensor, bound: float, lr: float) -> Tensor:
    r""":math:`\lambda_i \leftarrow [\lambda_i + \eta (e_i - \rho)]_+`: the multipliers grow where a
    function varies more than the bound ρ. The largest energy estimates its Lipschitz constant."""
    checks.same("dual_ascent", "energies", energies, multipliers, "multipliers")
    return torch.relu(multipliers + lr * (energies - bound))

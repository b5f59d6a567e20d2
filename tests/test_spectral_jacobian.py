"""Jacobian penalties, denoising estimates, critics and manifold Laplacians."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from regkern.spectral import adversarial, jacobian, samples
from torch import Tensor, nn

DOUBLE = torch.float64


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(200 + salt)
    return torch.randn(shape, dtype=DOUBLE, generator=generator).to(dtype)


def seed(offset: int = 0) -> Tensor:
    return torch.tensor([5, 1000 * offset])


def close(a: Tensor, b: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=rtol)


def mlp(*sizes: int) -> nn.Sequential:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, dtype=DOUBLE), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def jacobians(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(batch, outputs, inputs), one sample at a time."""
    rows = [torch.autograd.functional.jacobian(lambda t: network(t[None])[0], row) for row in x]
    return torch.stack(rows)


# ---- Frobenius norms ----


def test_jacobian_frobenius_of_all_projections_is_exact() -> None:
    network, x = mlp(4, 6, 3), draw(5, 4).requires_grad_()
    expected = jacobians(network, x.detach()).square().sum() / 10
    close(jacobian.jacobian_frobenius(network(x), x, -1), expected)
    weight = network[0].weight
    assert torch.autograd.gradcheck(
        lambda w: jacobian.jacobian_frobenius(
            torch.func.functional_call(network, {"0.weight": w}, (x,)), x, -1
        ),
        weight.detach().clone().requires_grad_(),
        fast_mode=True,
    )


def test_jacobian_frobenius_by_projections_is_unbiased() -> None:
    network, x = mlp(4, 6, 3), draw(5, 4).requires_grad_()
    z = network(x)
    exact = float(jacobian.jacobian_frobenius(z, x, -1).detach())
    many = float(jacobian.jacobian_frobenius(z, x, 400, seed=seed()).detach())
    assert many == pytest.approx(exact, rel=0.05)
    one = jacobian.jacobian_frobenius(z, x, 1, seed=seed())
    assert torch.equal(one, jacobian.jacobian_frobenius(z, [x], 1, seed=seed()))
    assert not torch.equal(one, jacobian.jacobian_frobenius(z, x, 1, seed=seed(1)))


def test_noise_penalty_approaches_the_frobenius_norm() -> None:
    network, x = mlp(4, 6, 3), draw(2000, 4)
    exact = float(jacobians(network, x[:50]).square().sum() / 100)
    x = x[:50].repeat(40, 1)
    noise = jacobian.jacobian_noise_penalty(network, x, 1e-3, seed=seed())
    assert float(noise.detach()) == pytest.approx(exact, rel=0.05)


def test_nuclear_penalty_bounds_the_nuclear_norm() -> None:
    x = draw(8, 4)
    w1, w2 = draw(5, 4), draw(3, 5, salt=1)
    u, s, v = torch.linalg.svd(w2 @ w1, full_matrices=False)
    balanced = [
        (s.sqrt()[:, None] * v, u * s.sqrt()),  # the minimum over factorisations
        (w1, w2),
    ]
    values = []
    for first, second in balanced:
        # Linear maps: the mean over many noise samples is exact for any σ.
        value = jacobian.nuclear_jacobian_penalty(
            lambda t, m=first: t @ m.mT,
            lambda t, m=second: t @ m.mT,
            x.repeat(400, 1),
            0.1,
            seed=seed(),
        )
        values.append(float(value))
    assert values[0] == pytest.approx(float(s.sum()), rel=0.05)
    assert values[1] > values[0]


def test_nuclear_penalty_has_gradients_in_both_branches() -> None:
    x = draw(4, 3)

    def penalty(a: Tensor, b: Tensor) -> Tensor:
        return jacobian.nuclear_jacobian_penalty(
            lambda t: torch.tanh(t @ a), lambda t: torch.tanh(t @ b), x, 0.3, seed=seed()
        )

    weights = (draw(3, 5).requires_grad_(), draw(5, 2, salt=1).requires_grad_())
    assert torch.autograd.gradcheck(penalty, weights, fast_mode=True)


# ---- auto-encoders and denoisers ----


@pytest.mark.parametrize("form", ["projection", "noise"])
def test_rcae_loss_of_a_linear_network(form: str) -> None:
    m, x = draw(4, 4), draw(6, 4)
    loss = jacobian.rcae_loss(lambda t: t @ m.mT, x.repeat(300, 1), 0.5, form=form, seed=seed())
    expected = (x @ m.mT - x).square().sum(1).mean() + 0.25 * m.square().sum()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=0.05)


def test_sigmoid_contraction() -> None:
    w, c, x = draw(5, 3), draw(5, salt=1), draw(4, 3, salt=2)
    h = torch.sigmoid(x @ w.mT + c)
    expected = jacobians(lambda t: torch.sigmoid(t @ w.mT + c), x).square().sum() / 4
    close(jacobian.sigmoid_contraction(h, w), expected)


@pytest.mark.parametrize("form", ["difference", "projection"])
def test_sure_estimates_the_error_without_the_truth(form: str) -> None:
    clean, sigma = draw(3000, 6).round(), 0.3
    noisy = clean + sigma * draw(3000, 6, salt=1)
    denoiser = lambda y: 0.8 * y + 0.05 * torch.sin(3 * y)  # noqa: E731
    error = (denoiser(noisy) - clean).square().sum(1).mean()
    estimate = jacobian.sure_loss(denoiser, noisy, sigma, form=form, seed=seed())
    assert float(estimate.detach()) == pytest.approx(float(error), rel=0.05)


def test_smoothness_similarity() -> None:
    a, b = draw(4, 3), draw(4, 3, salt=1)
    zs, zt = draw(5, 3, salt=2).requires_grad_(), draw(5, 3, salt=3).requires_grad_()
    same = jacobian.smoothness_similarity(zs @ a.mT, zs, zt @ a.mT, zt, seed=seed())
    assert float(same) == pytest.approx(0.0, abs=1e-12)
    weight = b.clone().requires_grad_()
    for form in ("distance", "cosine"):
        value = jacobian.smoothness_similarity(
            zs @ a.mT, zs, zt @ weight.mT, zt, form=form, seed=seed()
        )
        assert float(value.detach()) > 0
        assert bool((torch.autograd.grad(value, weight)[0] != 0).any())


def test_functional_fisher_information() -> None:
    x, y = draw(4, 3).requires_grad_(), draw(4, 2, salt=1).requires_grad_()
    f = x.square().sum(1) + 2 * y.square().sum(1)
    with torch.no_grad():
        expected = ((4 * x.square().sum(1) + 16 * y.square().sum(1)) / f).mean()
    value = jacobian.functional_fisher_information(f, (x, y))
    close(value, expected)
    assert value.requires_grad
    zero = torch.zeros(2, 3, requires_grad=True)
    none = jacobian.functional_fisher_information(zero.square().sum(1), zero)
    assert none == 0


# ---- critics ----


@pytest.mark.parametrize("kind", ["wgan-gp", "r1", "r2", "dragan"])
def test_gradient_penalties(kind: str) -> None:
    real, fake = draw(6, 4), draw(6, 4, salt=1)
    w = draw(4, salt=2).requires_grad_()
    value = jacobian.gradient_penalty(lambda t: t @ w, real, fake, kind)
    norm = w.detach().square().sum()
    expected = norm / 2 if kind in ("r1", "r2") else (norm.sqrt() - 1) ** 2
    close(value, expected)
    (g,) = torch.autograd.grad(value, w)
    slope = w if kind in ("r1", "r2") else 2 * (norm.sqrt() - 1) * w / norm.sqrt()
    close(g, slope)
    flat = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    (h,) = torch.autograd.grad(
        jacobian.gradient_penalty(lambda t: t @ flat, real, fake, kind), flat
    )
    assert bool((h == 0).all())


def test_gradient_penalty_training_through_our_ops() -> None:
    """Double backward of a critic that is made of the library's ops."""
    torch.manual_seed(0)
    inner = nn.Linear(4, 6, dtype=DOUBLE)
    outer = nn.Linear(6, 3, dtype=DOUBLE)

    def critic(x: Tensor) -> Tensor:
        hidden = samples.normalize_samples(torch.tanh(inner(x)), 2.0)
        uniform = torch.zeros(len(x), 3, dtype=DOUBLE)
        return adversarial.softmax_kl(uniform, outer(hidden))

    real = draw(8, 4)

    def penalty(weight: Tensor) -> Tensor:
        saved = inner.weight.data
        try:
            inner.weight.data = weight
            return jacobian.gradient_penalty(critic, real, kind="r1")
        finally:
            inner.weight.data = saved

    value = jacobian.gradient_penalty(critic, real, kind="r1")
    (g,) = torch.autograd.grad(value, inner.weight)
    step, base = draw(6, 4, salt=3), inner.weight.data.clone()
    numeric = (penalty(base + 1e-5 * step) - penalty(base - 1e-5 * step)) / 2e-5
    close((g * step).sum(), numeric, 1e-5)


def test_r3gan_losses() -> None:
    w, real = draw(4).requires_grad_(), draw(6, 4, salt=1)
    fake = draw(6, 4, salt=2).requires_grad_()
    discriminator, generator = jacobian.r3gan_losses(lambda t: t @ w, real, fake, 0.5)
    apart = (fake - real) @ w
    close(discriminator, nn.functional.softplus(apart).mean() + 0.5 * w.detach().square().sum())
    close(generator, nn.functional.softplus(-apart).mean())
    assert torch.autograd.grad(discriminator, fake, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(generator, fake)[0] is not None


# ---- manifolds ----


def test_laplacian_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several tiles, the last one short.
    monkeypatch.setattr(jacobian, "_TILE", 4)
    f, x = draw(10, 3).requires_grad_(), draw(10, 2, 2, salt=1) + 100
    weights = torch.exp(-torch.cdist(x.flatten(1), x.flatten(1)).square() / (4 * 0.7))
    apart = (f[:, None] - f[None]).square().sum(2)
    lam = draw(10, salt=2).square()
    close(jacobian.laplacian_energies(f, x, 0.7), (weights * apart).sum(1))
    value = jacobian.laplacian_penalty(f, x, 0.7, lam)
    expected = (lam[:, None] * weights * apart).sum()
    close(value, expected)
    close(torch.autograd.grad(value, f)[0], torch.autograd.grad(expected, f)[0])
    (g,) = torch.autograd.grad(jacobian.laplacian_penalty(f, x, 0.7), f, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        g.sum().backward()
    moved = jacobian.dual_ascent(lam, lam * 2, 1.0, 0.5)
    close(moved, (lam + 0.5 * (2 * lam - 1)).clamp(min=0))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: jacobian.jacobian_frobenius(draw(2, 3), draw(2, 3), 0), ValueError, "−1"),
        (lambda: jacobian.jacobian_frobenius(torch.tensor(1.0), draw(2)), ValueError, "dimension"),
        (lambda: jacobian.gradient_penalty(torch.sin, draw(2, 3)), ValueError, "`fake`"),
        (lambda: jacobian.gradient_penalty(torch.sin, draw(2), None, "r3"), ValueError, "one of"),
        (lambda: jacobian.laplacian_energies(draw(3), draw(3), 1.0), ValueError, "`f` of shape"),
        (lambda: jacobian.laplacian_energies(draw(3, 1), draw(3), 0.0), ValueError, "`t`"),
        (lambda: jacobian.rcae_loss(torch.sin, draw(2), 1.0, form="x"), ValueError, "one of"),
        (lambda: jacobian.sure_loss(torch.sin, draw(2), -1.0), ValueError, "at least 0"),
        (lambda: jacobian.sigmoid_contraction(draw(2, 3), draw(4, 3)), ValueError, "`hidden`"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()

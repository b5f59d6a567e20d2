"""Injected noise: its law, scales, diffusions, triplets, Beta noise; modules and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recording import Call, Recorder
from regkern.masks.noise import (
    diffusion_perturb,
    feature_jitter,
    noise_inject,
    noise_inject_,
    noise_triplet,
)
from regkern.masks.policy_noise import beta_log_prob, beta_noise, noise_mask_apply
from regkern.nn.masks.noise import DiffusionPerturb, FeatureJitter, NoiseInject
from regkern.reference import noise as reference
from regkern.reference import policy_noise as policy_reference
from sample import seed
from torch import Tensor

N = 1 << 20
ZEROS = torch.zeros(N)


def drawn(kind: str = "gaussian", salt: int = 0) -> Tensor:
    return noise_inject(ZEROS, 1.0, kind, seed=seed() + salt).double()  # type: ignore[arg-type]


def record() -> list[Call]:
    """Calls that no sample makes: many blocks, every pattern of scales, the jitter."""
    with Recorder() as recorder:
        noise_inject(torch.randn(70000), 0.5, seed=seed())
        for scale in ((1, 4, 1), (3, 1, 5), (1, 4, 5), (3, 4, 5)):
            noise_inject(torch.randn(3, 4, 5), torch.rand(scale), seed=seed())
        feature_jitter(torch.randn(6, 50).bfloat16(), seed=seed())
        diffusion_perturb(torch.randn(2, 300).half(), torch.tensor([0.1, 0.9]), seed=seed())
    return recorder.calls


# ---- the law ----


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_moments_and_distribution(kind: str) -> None:
    n = drawn(kind)
    variance, fourth = (1.0, 3.0) if kind == "gaussian" else (1 / 3, 1 / 5)
    assert abs(float(n.mean())) < 5 * math.sqrt(variance / N)
    assert abs(float(n.square().mean()) - variance) < 5 * math.sqrt((fourth - variance**2) / N)
    assert float(n.pow(4).mean()) == pytest.approx(fourth, rel=0.02)
    # Kolmogorov and Smirnov, at a level of 1e-6.
    ordered = n.sort().values
    cdf = torch.special.ndtr(ordered) if kind == "gaussian" else (ordered + 1) / 2
    distance = (cdf - torch.arange(1, N + 1) / N).abs().max()
    assert float(distance) < 2.7 / math.sqrt(N)


def test_tails() -> None:
    """Beyond the 4 deviations at which a radius takes more bits."""
    n = torch.cat([drawn(salt=k) for k in range(4)]).abs()
    for bound in (3.5, 4.0, 4.5):
        expected = n.numel() * 2 * float(torch.special.ndtr(torch.tensor(-bound).double()))
        assert abs(int((n > bound).sum()) - expected) < 5 * math.sqrt(expected) + 1
    assert n[n > 4].unique().numel() > 0.9 * int((n > 4).sum())


def test_neighbours_and_seeds_are_independent() -> None:
    for kind in ("gaussian", "uniform"):
        a, b = drawn(kind), drawn(kind, 1)
        variance = float(a.var())
        for other in (b, a.roll(1), a.roll(16), a.roll(32), a.roll(64), a.roll(128)):
            assert abs(float((a * other).mean())) < 5 * variance / math.sqrt(N)
            # Also the squares, which share a radius where a pair were one.
            if kind == "uniform":
                squares = (a.square() - variance) * (other.square() - variance)
                assert abs(float(squares.mean())) < 5 * variance**2 / math.sqrt(N)
    a = drawn()
    pairs = (a.square() - 1) * (a.roll(16).square() - 1)
    assert abs(float(pairs.mean())) < 5 * 2 / math.sqrt(N)


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_numbers_of_the_definition(kind: str) -> None:
    """Over many blocks, with pairs that take more bits."""
    n = 16000
    element = torch.arange(n)
    torch.testing.assert_close(
        drawn(kind)[:n], reference.numbers(seed(), element, kind), rtol=0, atol=2e-6
    )
    assert kind == "uniform" or int((reference.radii(seed(), element) > 4.08).sum()) > 0


# ---- forms ----


@pytest.mark.parametrize("shared", [0, (1, 2), (-1,), (0, 1, 2)])
@pytest.mark.parametrize("multiply", [False, True])
def test_shared_dimensions(shared: int | tuple[int, ...], multiply: bool) -> None:
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    scale = torch.rand(4, 1, 1, dtype=torch.float64)
    options: dict[str, Any] = {"multiply": multiply, "shared": shared, "seed": seed()}
    y = noise_inject(x, scale, **options)
    torch.testing.assert_close(y, reference.noise_inject(x, scale, **options), rtol=1e-6, atol=2e-6)
    assert torch.equal(noise_inject_(x.clone(), scale, **options), y)


@pytest.mark.parametrize("sizes", [(1, 4, 1), (3, 1, 5), (1, 4, 5), (3, 4, 5), (4, 1), (5,), (1,)])
def test_scales_and_their_gradients(sizes: tuple[int, ...]) -> None:
    for multiply in (False, True):
        x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
        scale = torch.rand(sizes, dtype=torch.float64, requires_grad=True)
        y = noise_inject(x, scale, multiply=multiply, seed=seed())
        expected = reference.noise_inject(x, scale, multiply=multiply, seed=seed())
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
        g = torch.randn_like(y)
        for a, b in zip(
            torch.autograd.grad(y, (x, scale), g),
            torch.autograd.grad(expected, (x, scale), g, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        z = noise_inject_(x * 1.0, scale, multiply=multiply, seed=seed())
        assert torch.equal(z, y)
        for a, b in zip(
            torch.autograd.grad(z, (x, scale), g),
            torch.autograd.grad(expected, (x, scale), g),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_diffusion() -> None:
    x, share = torch.randn(5, 3, 70), torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0])
    y, eps = diffusion_perturb(x, share, 0.1, seed=seed())
    expected, noise = reference.diffusion_perturb(x.double(), share, 0.1, seed=seed())
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(eps.double(), noise, rtol=0, atol=1e-5)
    assert torch.equal(y[4], x[4])
    plain, same = diffusion_perturb(x, share, 0.0, seed=seed())
    assert torch.equal(same, eps)
    torch.testing.assert_close(plain[0], eps[0])
    y = diffusion_perturb(torch.zeros(1 << 18, 1), 0.0, 0.5).x
    assert float(y.double().var()) == pytest.approx(1.25, rel=0.03)


def test_triplet_is_on_the_line() -> None:
    x = torch.randn(400, 9, dtype=torch.float64)
    y, alpha = noise_triplet(x, 0.5, seed=seed())
    a, b, c = y.chunk(3)
    torch.testing.assert_close(c, a + alpha[:, None] * (b - a))
    assert float((a - x).abs().max()) < 0.5
    assert abs(float(((a - x) * (b - x)).mean())) < 5 * 0.25 / 3 / math.sqrt(3600)
    assert abs(float(alpha.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / 400)


def test_feature_jitter() -> None:
    f = torch.randn(40, 7, dtype=torch.float64) * torch.arange(1, 8) + 3
    f.requires_grad_()
    y = feature_jitter(f, 0.5, seed=seed())
    expected = reference.feature_jitter(f, 0.5, seed=seed())
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)
    g = torch.randn_like(y)
    for a, b in zip(torch.autograd.grad(y, f, g), torch.autograd.grad(expected, f, g), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert feature_jitter(f, training=False) is f


# ---- Beta noise ----


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 0.5), (2.0, 5.0), (0.1, 3.0), (60.0, 40.0)])
def test_beta_moments(a: float, b: float) -> None:
    n = 20000
    eps = beta_noise(torch.full((n,), a), torch.tensor(b), seed=seed()).double()
    mean = a / (a + b)
    variance = mean * (1 - mean) / (a + b + 1)
    assert abs(float(eps.mean()) - mean) < 5 * math.sqrt(variance / n)
    assert float(eps.var()) == pytest.approx(variance, rel=0.06)


def test_beta_gradients() -> None:
    """Of E ε = α / (α + β) and E ε², by reparametrisation and by the score function."""
    n = 40000
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    b = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    eps = beta_noise(a.expand(n), b.expand(n), seed=seed())
    exact = torch.autograd.grad(a / (a + b), (a, b))
    ours = torch.autograd.grad(eps.mean(), (a, b))
    density = beta_log_prob(eps.detach(), a, b)
    score = torch.autograd.grad((density * eps.detach()).mean(), (a, b))
    for e, o, s in zip(exact, ours, score, strict=True):
        assert float(o) == pytest.approx(float(e), abs=0.002)
        assert float(s) == pytest.approx(float(e), abs=0.01)
    theirs = torch.distributions.Beta(a, b).log_prob(eps.detach())
    torch.testing.assert_close(density, theirs)
    assert not beta_log_prob(torch.tensor([0.0, 1.0]), a, b).isinf().any()


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("mode", ["add", "multiply"])
def test_noise_mask(mode: str, interpolation: str) -> None:
    options: dict[str, Any] = {"mode": mode, "interpolation": interpolation, "clamp": (-1.0, 1.5)}
    for channels in (1, 3):
        x = torch.randn(2, 3, 9, 12, dtype=torch.float64, requires_grad=True)
        mask = torch.rand(2, channels, 3, 4, dtype=torch.float64, requires_grad=True)
        y = noise_mask_apply(x, mask, 0.7, **options)
        expected = policy_reference.noise_mask_apply(x, mask, 0.7, **options)
        torch.testing.assert_close(y, expected)
        g = torch.randn_like(y)
        for a, b in zip(
            torch.autograd.grad(y, (x, mask), g),
            torch.autograd.grad(expected, (x, mask), g),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


# ---- modules ----


def test_modules() -> None:
    x = torch.randn(6, 4, 5, 5)
    layer = NoiseInject(0.5, shared=(2, 3))
    y = layer(x) - x
    torch.testing.assert_close(y, y[..., :1, :1].expand_as(y), rtol=0, atol=1e-5)
    assert layer.eval()(x) is x
    learned = NoiseInject(torch.full((4, 1, 1), 0.1), learn=True)
    learned(x).square().sum().backward()
    assert learned.scale.grad is not None
    assert learned.scale.grad.shape == (4, 1, 1)
    assert FeatureJitter(0.5).eval()(x) is x
    assert FeatureJitter(0.5)(x).shape == x.shape
    assert DiffusionPerturb(0.1)(x, torch.rand(6)).noise.shape == x.shape
    assert str(NoiseInject(0.5, "uniform", multiply=True)) == (
        "NoiseInject(scale=0.5, kind='uniform', multiply=True)"
    )


# ---- errors ----

X = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: noise_inject(X.int()), TypeError, "expected `x` of dtype"),
        (lambda: noise_inject(X, "big"), TypeError, "expected `scale` to be a number"),
        (lambda: noise_inject(X, torch.ones(5)), ValueError, "broadcastable to the shape of `x`"),
        (lambda: noise_inject(X, 0.1, "beta"), ValueError, "expected `kind` to be one of"),
        (lambda: noise_inject(X, shared=3), ValueError, "expected `shared` to be dimensions"),
        (lambda: diffusion_perturb(X, 1.5), ValueError, r"expected `alpha_bar` in \[0, 1\]"),
        (lambda: diffusion_perturb(X, torch.ones(3)), ValueError, "of 1 or 2 elements"),
        (lambda: noise_triplet(X, -1.0), ValueError, "expected `eps` to be at least 0"),
        (lambda: feature_jitter(torch.tensor(1.0)), ValueError, "expected `f` of shape"),
        (lambda: beta_noise(X, torch.ones(5)), ValueError, "that broadcast together"),
        (lambda: noise_mask_apply(X, X), ValueError, "expected `x` of shape"),
        (
            lambda: torch.ops.regkern.noise_inject(X, seed(), "gaussian", [5, 1, 1], *[None] * 5),
            RuntimeError,
            "whose product divides",
        ),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()

"""The Bures-Wasserstein distance: laws, singular matrices, errors."""

from __future__ import annotations

import math

import pytest
import torch
from regkern.reference.transport import bures as reference
from regkern.transport import bures
from torch import Tensor

DOUBLE = torch.float64
every_method = pytest.mark.parametrize("method", bures.METHODS)


def draw(*shape: int, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 + salt)
    return torch.randn(shape, dtype=DOUBLE, generator=generator)


def covariance(*shape: int, salt: int = 0) -> Tensor:
    x = draw(*shape, 3 * shape[-1], salt=salt)
    return x @ x.mT / x.shape[-1]


def symmetric(g: Tensor) -> Tensor:
    return 0.5 * (g + g.mT)


@every_method
def test_value_and_gradients(method: bures.Method) -> None:
    a, b = covariance(3, 5).requires_grad_(), covariance(3, 5, salt=1).requires_grad_()
    ours = bures.bures_wasserstein(a, b, 0.01, method=method)
    theirs = reference.bures_wasserstein(a, b, 0.01)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for u, v in zip(
        torch.autograd.grad(ours.sum(), (a, b)),
        torch.autograd.grad(theirs.sum(), (a, b)),
        strict=True,
    ):
        torch.testing.assert_close(symmetric(u), symmetric(v), rtol=1e-9, atol=1e-9)
    factors = draw(2, 4, 9).requires_grad_(), draw(2, 4, 9, salt=1).requires_grad_()

    def loss(u: Tensor, v: Tensor) -> Tensor:
        return bures.bures_wasserstein(u @ u.mT, v @ v.mT, 0.1, method=method, steps=30)

    assert torch.autograd.gradcheck(loss, factors, fast_mode=True)
    (g,) = torch.autograd.grad(loss(*factors).sum(), factors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        g.square().sum().backward()


@every_method
def test_laws(method: bures.Method) -> None:
    a, b = covariance(5), covariance(5, salt=1)
    value = bures.bures_wasserstein(a, b, method=method)
    torch.testing.assert_close(bures.bures_wasserstein(b, a, method=method), value)
    assert abs(float(bures.bures_wasserstein(a, a, method=method))) < 1e-12
    turn = torch.linalg.qr(draw(5, 5))[0]
    turned = bures.bures_wasserstein(turn @ a @ turn.mT, turn @ b @ turn.mT, method=method)
    torch.testing.assert_close(turned, value)
    # Of matrices that commute it is that of the roots of the eigenvalues.
    d, e = draw(2, 5, salt=2).abs().unbind()
    diagonal = bures.bures_wasserstein(torch.diag(d), torch.diag(e), method=method, steps=40)
    torch.testing.assert_close(diagonal, (d.sqrt() - e.sqrt()).square().sum())
    torch.testing.assert_close(
        torch.func.vmap(lambda u: bures.bures_wasserstein(u, b, method=method))(a[None]),
        value[None],
    )


def test_agrees_with_pot() -> None:
    gaussian = pytest.importorskip("ot.gaussian")
    a, b = covariance(5), covariance(5, salt=1)
    m, n = draw(5), draw(5, salt=1)
    theirs = gaussian.bures_wasserstein_distance(m, n, a, b)
    ours = bures.gaussian_wasserstein(m, a, n, b)
    torch.testing.assert_close(ours, theirs.reshape(()) ** 2, rtol=1e-9, atol=1e-9)


@every_method
def test_singular_matrices(method: bures.Method) -> None:
    zero = torch.zeros(4, 4, dtype=DOUBLE, requires_grad=True)
    one = torch.eye(4, dtype=DOUBLE)
    for other, expected in ((zero.detach(), 0.0), (one, 4.0)):
        value = bures.bures_wasserstein(zero, other, method=method)
        assert float(value.detach()) == pytest.approx(expected)
        assert torch.autograd.grad(value, zero)[0].isfinite().all()
    bad = one.clone()
    bad[0, 0] = math.nan
    value = bures.bures_wasserstein(torch.stack([bad, 2.0 * one]), one, method=method)
    assert value.isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    a, b = covariance(6).to(dtype), covariance(6, salt=1).to(dtype)
    expected = reference.bures_wasserstein(a.double(), b.double())
    for method in bures.METHODS:
        value = bures.bures_wasserstein(a, b, method=method)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)


def test_deep_linear_generator_learns_its_target() -> None:
    target = covariance(4, salt=3)
    weights = [0.5 * draw(3, 4), 0.5 * draw(4, 3, salt=1)]
    for w in weights:
        w.requires_grad_()
    losses = []
    for _ in range(60):
        loss = bures.deep_linear_bures_loss(weights, target, 1e-3)
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for w, g in zip(weights, gradients, strict=True):
                w -= 0.1 * g
    # What remains is at least the smallest eigenvalue: the rank is 3 of 4.
    least = float(torch.linalg.eigvalsh(target)[0])
    assert least * 0.8 < losses[-1] < 0.2 * losses[0]


def test_errors() -> None:
    a = covariance(3)
    with pytest.raises(ValueError, match=r"expected `a` of shape \(..., n, n\), got \(3, 2\)"):
        bures.bures_wasserstein(a[:, :2], a)
    with pytest.raises(ValueError, match=r"expected `b` of shape \(..., 3, 3\), got \(2, 2\)"):
        bures.bures_wasserstein(a, a[:2, :2])
    with pytest.raises(ValueError, match=r"expected `tau` to be at least 0, got -1"):
        bures.bures_wasserstein(a, a, -1)
    with pytest.raises(ValueError, match=r"expected `method` to be one of eigh, newton_schulz"):
        bures.bures_wasserstein(a, a, method="svd")
    with pytest.raises(ValueError, match=r"expected `mean_a` of shape \(..., 3\), got \(2,\)"):
        bures.gaussian_wasserstein(draw(2), a, draw(3), a)
    with pytest.raises(ValueError, match=r"expected `weights\[1\]` of two dimensions with 3"):
        bures.deep_linear_bures_loss([a, a[:, :2]], a)

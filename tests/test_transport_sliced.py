"""Sliced Wasserstein distances, weights against their initial values: laws, corners, errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regkern.reference.transport import sliced as reference
from regkern.transport import sliced
from torch import Tensor

DOUBLE = torch.float64


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(100 + salt)
    return torch.randn(shape, dtype=DOUBLE, generator=generator).to(dtype)


def seed() -> Tensor:
    return torch.tensor([3, 4])


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize(
    ("n", "m", "weighted"),
    [(7, 7, False), (7, 5, False), (300, 211, False), (6, 9, True), (1, 3, False)],
)
def test_value_and_gradients(n: int, m: int, weighted: bool, p: float) -> None:
    inputs = [draw(n, 3), draw(m, 3, salt=1), draw(4, 3, salt=2)]
    for t in inputs:
        t.requires_grad_()
    x, y, theta = inputs
    a = b = None
    if weighted:
        a, b = draw(n, salt=3).abs(), draw(m, salt=4).abs()
        a[1] = 0
    ours = sliced.sliced_wasserstein(x, y, p=p, projections=theta, a=a, b=b)
    theirs = reference.sliced_wasserstein(x, y, theta, p, a, b)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(ours, inputs)
    for u, v in zip(gradients, torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(u, v, rtol=1e-10, atol=1e-12)
    if weighted:
        assert torch.equal(gradients[0][1], torch.zeros(3, dtype=DOUBLE))


def test_gradcheck_and_the_refusal_of_a_second_derivative() -> None:
    x, y = draw(6, 3).requires_grad_(), draw(5, 3, salt=1).requires_grad_()
    theta = draw(4, 3, salt=2)

    def loss(u: Tensor, v: Tensor) -> Tensor:
        return sliced.sliced_wasserstein(u, v, p=3.0, projections=theta)

    assert torch.autograd.gradcheck(loss, (x, y), fast_mode=True)
    (g,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        g.square().sum().backward()
    torch.testing.assert_close(torch.func.grad(loss)(x.detach(), y.detach()), g)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x, y), x)[0], g.detach())


def test_agrees_with_pot() -> None:
    ot = pytest.importorskip("ot")
    x, y = draw(50, 5), draw(40, 5, salt=1) + 0.5
    theta = torch.nn.functional.normalize(draw(20, 5, salt=2), dim=1)
    a, b = draw(50, salt=3).abs(), draw(40, salt=4).abs()
    a, b = a / a.sum(), b / b.sum()
    ours = sliced.sliced_wasserstein(x, y, projections=theta, a=a, b=b)
    theirs = ot.sliced_wasserstein_distance(x, y, a, b, projections=theta.T)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    p=st.sampled_from([1.0, 2.0, 2.5]),
    salt=st.integers(0, 1000),
)
def test_metric_laws(n: int, m: int, p: float, salt: int) -> None:
    x, y = draw(n, 3, salt=salt), draw(m, 3, salt=salt + 1)
    theta = draw(5, 3, salt=salt + 2)

    def distance(u: Tensor, v: Tensor, **options: Tensor) -> Tensor:
        return sliced.sliced_wasserstein(u, v, p=p, projections=theta, **options)

    value = distance(x, y)
    torch.testing.assert_close(distance(y, x), value, rtol=1e-9, atol=1e-12)
    shuffled = x[torch.randperm(n, generator=torch.Generator().manual_seed(salt))]
    torch.testing.assert_close(distance(shuffled, y), value, rtol=1e-9, atol=1e-12)
    assert float(distance(x, shuffled)) < 1e-12
    # Each point twice is the same measure, and so are equal weights.
    torch.testing.assert_close(distance(x.repeat(2, 1), y), value, rtol=1e-9, atol=1e-9)
    equal = distance(x, y, a=torch.full((n,), 0.3), b=torch.ones(m))
    torch.testing.assert_close(equal, value, rtol=1e-6, atol=1e-6)


def test_no_nan_gradient_where_clouds_are_the_same() -> None:
    x = draw(5, 3).repeat(2, 1).requires_grad_()
    for p in (1.0, 1.5, 2.0):
        (g,) = torch.autograd.grad(sliced.sliced_wasserstein(x, x.detach(), p=p), x)
        assert torch.equal(g, torch.zeros_like(g))
    (g,) = torch.autograd.grad(
        sliced.generalized_sliced_wasserstein(x, x.detach(), 7, seed=seed()), x
    )
    assert torch.equal(g, torch.zeros_like(g))


def test_directions_are_those_of_the_seed() -> None:
    x, y = draw(20, 3, dtype=torch.float32), draw(20, 3, salt=1, dtype=torch.float32)
    first = sliced.sliced_wasserstein(x, y, seed=seed())
    assert torch.equal(first, sliced.sliced_wasserstein(x, y, seed=seed()))
    assert not torch.equal(first, sliced.sliced_wasserstein(x, y, seed=seed() + 1))
    # A translation by t costs |t|² / d on average over directions.
    moved = sliced.sliced_wasserstein(x, x + 2.0, 4000, root=False, seed=seed())
    torch.testing.assert_close(moved, torch.tensor(4.0), rtol=0.06, atol=0.0)


def test_max_sliced_finds_the_direction() -> None:
    x, t = draw(30, 6), draw(6, salt=1)
    y = (x + t).requires_grad_()
    value = sliced.max_sliced_wasserstein(x, y, steps=25, seed=seed())
    torch.testing.assert_close(value, t.norm(), rtol=1e-3, atol=0.0)
    (g,) = torch.autograd.grad(value, y)
    torch.testing.assert_close(g, (t / t.norm()).expand(30, 6) / 30, rtol=0.0, atol=3e-3)
    mean = sliced.sliced_wasserstein(x, y, seed=seed())
    assert float(mean.detach()) < float(value.detach())


def test_generalized_forms() -> None:
    x, y = draw(9, 3), draw(9, 3, salt=1)
    theta = draw(4, 3, salt=2)
    linear = sliced.generalized_sliced_wasserstein(x, y, defining="linear", projections=theta)
    torch.testing.assert_close(linear, sliced.sliced_wasserstein(x, y, projections=theta))
    radii = [torch.stack([(z - 2.0 * t).norm(dim=1) for t in theta]) for z in (x, y)]
    circular = sliced.generalized_sliced_wasserstein(
        x, y, defining="circular", radius=2.0, projections=theta
    )
    expected = reference.lines_cost(*radii, 2.0).mean().sqrt()
    torch.testing.assert_close(circular, expected)
    assert len(sliced._powers(3, 3)) == 10
    theta = draw(4, 6, salt=3)

    def quadratic(z: Tensor) -> Tensor:
        return theta @ torch.stack(
            [math.prod((z[:, k] ** e for k, e in enumerate(es)), start=torch.ones(9, dtype=DOUBLE))
             for es in sliced._powers(3, 2)]
        )  # fmt: skip

    polynomial = sliced.generalized_sliced_wasserstein(
        x, y, defining="polynomial", degree=2, projections=theta
    )
    expected = reference.lines_cost(quadratic(x), quadratic(y), 2.0).mean().sqrt()
    torch.testing.assert_close(polynomial, expected)


def test_weights_and_their_initial_values() -> None:
    now = [draw(5, 3), draw(7, salt=1), draw(4, 2, salt=2).float().mT]
    before = [draw(5, 3, salt=3), draw(7, salt=4), draw(4, 2, salt=5).float().mT]
    for t in now:
        t.requires_grad_()
    kept = sliced.SortedInitials(before)
    value = sliced.weights_wasserstein(now, kept)
    torch.testing.assert_close(value, reference.weights_wasserstein(now, before))
    for u, v in zip(
        torch.autograd.grad(value, now),
        torch.autograd.grad(reference.weights_wasserstein(now, before), now),
        strict=True,
    ):
        torch.testing.assert_close(u, v)
    # Weights may change places.
    moved = [t.detach().flatten().flip(0).reshape(t.shape) for t in now]
    assert float(sliced.weights_wasserstein([t.detach() for t in now], moved)) == 0.0
    twice = [t.detach().requires_grad_() for t in now[:2]]
    assert torch.autograd.gradgradcheck(
        lambda *ts: sliced.weights_wasserstein(list(ts), before[:2]), twice
    )
    with pytest.raises(ValueError, match=r"expected `initials` of shapes .*\(5, 3\).*got"):
        sliced.weights_wasserstein(now, before[:2])


def test_errors() -> None:
    x, y = draw(4, 3), draw(5, 3)
    with pytest.raises(ValueError, match=r"expected `x` of shape \(n, d\) and `y` of shape"):
        sliced.sliced_wasserstein(x, y[:, :2])
    with pytest.raises(ValueError, match=r"expected `p` to be at least 1.0, got 0.5"):
        sliced.sliced_wasserstein(x, y, p=0.5)
    with pytest.raises(ValueError, match=r"expected at least one point in `x` and `y`, got 0"):
        sliced.sliced_wasserstein(x[:0], y)
    with pytest.raises(ValueError, match=r"expected `a` of shape \(4,\), got \(5,\)"):
        sliced.sliced_wasserstein(x, y, a=torch.ones(5))
    with pytest.raises(ValueError, match=r"expected `a` without a gradient"):
        sliced.sliced_wasserstein(x, y, a=torch.ones(4, requires_grad=True))
    with pytest.raises(ValueError, match=r"expected `projections` of shape \(L, 3\), got \(2, 2\)"):
        sliced.sliced_wasserstein(x, y, projections=torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"expected `defining` to be one of linear, .*'cubic'"):
        sliced.generalized_sliced_wasserstein(x, y, defining="cubic")
    order = torch.tensor([[0, 9]])
    with pytest.raises(RuntimeError, match=r"sliced_slopes: expected places from 0 to 1, got 9"):
        torch.ops.regkern.sliced_slopes(
            torch.ones(1), torch.ones(1, 2), torch.ones(1, 2), order, order, None, None, 2.0
        )

"""Maximum mean discrepancy and energy distance: laws, corners, errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regkern.reference.transport import kernel_distances as reference
from regkern.transport import kernel_distances as kernels
from torch import Tensor

DOUBLE = torch.float64
every_kernel = pytest.mark.parametrize("kernel", kernels.KERNELS)


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(100 + salt)
    return torch.randn(shape, dtype=DOUBLE, generator=generator).to(dtype)


def weights(n: int, salt: int = 0) -> Tensor:
    w = draw(n, salt=salt).abs()
    return w / w.sum()


@every_kernel
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize(("n", "m", "d"), [(70, 33, 3), (5, 9, 40), (2, 1100, 1)])
def test_value_and_gradients(kernel: str, unbiased: bool, n: int, m: int, d: int) -> None:
    x, y = draw(n, d), draw(m, d, salt=1) + 0.3
    x[1], y[0] = x[0], x[0]  # no NaN where points are the same
    inputs = [x, y, weights(n), weights(m, 1)]
    for t in inputs:
        t.requires_grad_()
    x, y, a, b = inputs
    ours = kernels.mmd(x, y, kernel, [0.7, 1.5], a=a, b=b, unbiased=unbiased)
    theirs = reference.mmd(x, y, kernel, [0.7, 1.5], a, b, unbiased)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for u, v in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        torch.testing.assert_close(u, v, rtol=1e-10, atol=1e-11)


def test_gradcheck_and_the_refusal_of_a_second_derivative() -> None:
    x, y = draw(2, 5, 3).requires_grad_(), draw(2, 4, 3, salt=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, v: kernels.mmd(u, v, "imq", 2.0), (x, y))
    (g,) = torch.autograd.grad(kernels.energy_distance(x, y).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        g.square().sum().backward()
    mapped = torch.func.vmap(torch.func.grad(lambda u, v: kernels.mmd(u, v)))(x, y)
    (whole,) = torch.autograd.grad(kernels.mmd(x, y).sum(), x)
    torch.testing.assert_close(mapped, whole)


def test_compiles_with_its_gradient() -> None:
    x, y = draw(6, 3).requires_grad_(), draw(5, 3, salt=1)

    def loss(u: Tensor, v: Tensor) -> Tensor:
        return kernels.mmd(u, v, "laplacian", unbiased=True)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (ours,) = torch.autograd.grad(compiled(x, y), x)
    (plain,) = torch.autograd.grad(loss(x, y), x)
    torch.testing.assert_close(ours, plain)


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 70),
    d=st.integers(1, 20),
    kernel=st.sampled_from(kernels.KERNELS),
    salt=st.integers(0, 1000),
)
def test_symmetry_positivity_and_order(n: int, m: int, d: int, kernel: str, salt: int) -> None:
    x, y = draw(n, d, salt=salt), draw(m, d, salt=salt + 1)
    value = kernels.mmd(x, y, kernel)
    assert float(value) >= -1e-12
    torch.testing.assert_close(kernels.mmd(y, x, kernel), value, rtol=1e-9, atol=1e-12)
    shuffled = x[torch.randperm(n, generator=torch.Generator().manual_seed(salt))]
    torch.testing.assert_close(kernels.mmd(shuffled, y, kernel), value, rtol=1e-9, atol=1e-12)
    assert abs(float(kernels.mmd(x, shuffled, kernel))) < 1e-12
    # Whole numbers, so that the offset itself rounds nothing away.
    whole = (x * 8).round(), (y * 8).round()
    far = kernels.mmd(whole[0] + 1024, whole[1] + 1024, kernel)
    torch.testing.assert_close(far, kernels.mmd(*whole, kernel), rtol=0, atol=0)


@every_kernel
def test_points_without_weight_are_not_there(kernel: str) -> None:
    x, y = draw(6, 3), draw(5, 3, salt=1)
    a = weights(6)
    a[2] = 0
    held = [0, 1, 3, 4, 5]
    expected = kernels.mmd(x[held], y, kernel, a=a[held])
    for odd in (x[2], torch.full((3,), math.nan), torch.full((3,), math.inf)):
        z = x.clone()
        z[2] = odd
        z.requires_grad_()
        value = kernels.mmd(z, y, kernel, a=a)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
        (g,) = torch.autograd.grad(value, z)
        assert torch.equal(g[2], torch.zeros(3, dtype=DOUBLE))
        assert g.isfinite().all()


@every_kernel
def test_gradient_at_equal_points(kernel: str) -> None:
    x = draw(1, 4).expand(7, 4).clone().requires_grad_()
    (g,) = torch.autograd.grad(kernels.mmd(x, x.detach() + 0.0, kernel), x)
    assert torch.equal(g, torch.zeros_like(g))


def test_nan_stays_visible() -> None:
    x = draw(5, 3)
    x[1, 1] = math.nan
    assert kernels.mmd(x, draw(4, 3)).isnan()
    assert kernels.energy_distance(x, draw(4, 3)).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float(dtype: torch.dtype) -> None:
    x, y = draw(9, 3, dtype=dtype).requires_grad_(), draw(8, 3, salt=1, dtype=dtype)
    value = kernels.mmd(x, y, "rational", 1.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value.double(), reference.mmd(x.double(), y.double(), "rational", 1.0), rtol=1e-5, atol=1e-6
    )
    (g,) = torch.autograd.grad(value, x)
    assert g.dtype == dtype


def test_unbiased_estimates_have_no_diagonal() -> None:
    """Székely and Rizzo by loops, and WAE's own formula."""
    x, y = draw(6, 2), draw(5, 2, salt=1)

    def mean(u: Tensor, v: Tensor, distinct: bool) -> Tensor:
        values = [
            (p - q).norm()
            for i, p in enumerate(u)
            for j, q in enumerate(v)
            if not (distinct and i == j)
        ]
        return torch.stack(values).mean()

    expected = 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)
    torch.testing.assert_close(kernels.energy_distance(x, y, unbiased=True), expected)
    total = torch.zeros((), dtype=DOUBLE)
    for s in kernels.WAE_SCALES:
        c = 2 * 2 * s * 1.5**2

        def k(u: Tensor, v: Tensor, c: float = c) -> Tensor:
            return c / (c + (u[:, None] - v[None]).square().sum(-1))

        own = [(k(u, u).sum() - len(u)) / (len(u) * (len(u) - 1)) for u in (x, y)]
        total = total + own[0] + own[1] - 2 * k(x, y).mean()
    torch.testing.assert_close(kernels.wae_mmd(x, y, 1.5), total)


def test_kernel_loss_is_geomloss_form() -> None:
    x, y = draw(6, 2), draw(5, 2, salt=1)
    a, b = weights(6), weights(5, 1)
    z, c = torch.cat([x, y]), torch.cat([a, -b])
    distance = (z[:, None] - z[None]).square().sum(-1)
    for kernel, matrix in (
        ("gaussian", torch.exp(-distance / (2 * 0.3**2))),
        ("laplacian", torch.exp(-distance.sqrt() / 0.3)),
        ("energy", -distance.sqrt()),
    ):
        torch.testing.assert_close(
            kernels.kernel_loss(x, y, a, b, kernel, 0.3), 0.5 * c @ matrix @ c
        )


def test_errors() -> None:
    x, y = draw(4, 3), draw(5, 3)
    with pytest.raises(TypeError, match=r"regkern.mmd: expected `x` to be a tensor, got"):
        kernels.mmd([1.0], y)
    with pytest.raises(ValueError, match=r"regkern.mmd: expected `y` of shape \('m', 3\)"):
        kernels.mmd(x, y[:, :2])
    with pytest.raises(TypeError, match=r"expected `y` of x's dtype torch.float64"):
        kernels.mmd(x, y.float())
    with pytest.raises(ValueError, match=r"expected `kernel` to be one of gaussian, .*'linear'"):
        kernels.mmd(x, y, "linear")
    with pytest.raises(ValueError, match=r"expected `bandwidth` above 0, got 0"):
        kernels.mmd(x, y, bandwidth=0.0)
    with pytest.raises(ValueError, match=r"expected 1 to 32 numbers in `bandwidth`, got 0"):
        kernels.mmd(x, y, bandwidth=[])
    with pytest.raises(ValueError, match=r"expected `bandwidth` without a gradient"):
        kernels.mmd(x, y, bandwidth=torch.ones(1, requires_grad=True))
    with pytest.raises(ValueError, match=r"expected `a` of shape \(4,\), got \(5,\)"):
        kernels.mmd(x, y, a=weights(5))
    with pytest.raises(RuntimeError, match=r"regkern::kernel_sums: expected `kernel` to be one of"):
        torch.ops.regkern.kernel_sums(
            x[None], y[None], weights(5)[None], torch.ones(1, dtype=DOUBLE), "linear", False
        )
    with pytest.raises(RuntimeError, match=r"regkern::kernel_forces: expected `w` of shape"):
        torch.ops.regkern.kernel_forces(
            x[None], y[None], weights(4)[None], torch.ones(1, dtype=DOUBLE), "imq"
        )

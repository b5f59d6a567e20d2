"""Several singular values at a time: against a full decomposition, corners, errors."""

from __future__ import annotations

import pytest
import torch
from regkern.spectral import power_iteration, random_vectors, subspace_iteration
from torch import Tensor

F64 = torch.float64


def normal(*shape: int, dtype: torch.dtype = F64) -> Tensor:
    drawn = torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(3))
    return drawn.to(dtype)


def spectrum(values: list[float], columns: int) -> Tensor:
    left = torch.linalg.qr(normal(len(values) + 3, len(values)))[0]
    right = torch.linalg.qr(normal(columns, len(values)) + 1)[0]
    return left @ torch.diag(torch.tensor(values, dtype=F64)) @ right.T


@pytest.mark.parametrize(
    "values",
    [[5.0, 4.0, 1.0, 0.5], [3.0, 3.0, 3.0, 1.0], [2.0, 1 - 1e-9, 1.0, 0.2], [1.0, 1e-9, 0.0, 0.0]],
)
def test_largest_singular_values(values: list[float]) -> None:
    w = spectrum(values, 11)
    found = subspace_iteration(w, normal(11, 3), 60)
    torch.testing.assert_close(found.sigma, torch.linalg.svdvals(w)[:3], rtol=1e-9, atol=1e-14)
    for vectors in (found.u, found.v):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(3, dtype=F64))


def test_the_first_is_that_of_the_power_iteration() -> None:
    w = normal(6, 4, 3)
    u, v = random_vectors(w, dim=1)
    one = power_iteration(w, u, v, 200, dim=1).sigma[0]
    torch.testing.assert_close(subspace_iteration(w, normal(18, 2), 200, dim=1).sigma[0], one)


def test_warm_start() -> None:
    w, v = normal(20, 12), normal(12, 3)
    for _ in range(120):
        found = subspace_iteration(w, v)
    torch.testing.assert_close(found.sigma, torch.linalg.svdvals(w)[:3])
    kept = v.clone()
    subspace_iteration(w, v, update=False)
    assert v.equal(kept)


def test_gradients() -> None:
    w = spectrum([4.0, 2.5, 1.0, 0.3], 6).requires_grad_()
    v = subspace_iteration(w, normal(6, 2), 80).v.detach()

    def values(x: Tensor) -> Tensor:
        return subspace_iteration(x, v, 0, update=False).sigma

    def exact(x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)[:2]

    (ours,) = torch.autograd.grad((values(w) ** 2).sum(), w)
    (theirs,) = torch.autograd.grad((exact(w) ** 2).sum(), w)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_dtypes(dtype: torch.dtype, scale: float) -> None:
    w = (normal(9, 7) * scale).to(dtype)
    found = subspace_iteration(w, normal(7, 2, dtype=torch.float32), 100)
    assert found.sigma.dtype == torch.float32
    expected = torch.linalg.svdvals(w.double())[:2].float()
    torch.testing.assert_close(found.sigma, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_weights_whose_squares_leave_the_range(scale: float) -> None:
    w = normal(5, 4).float() * scale
    found = subspace_iteration(w, normal(4, 2, dtype=torch.float32), 100)
    expected = torch.linalg.svdvals(w.double())[:2].float()
    torch.testing.assert_close(found.sigma, expected, rtol=1e-4, atol=0)


def test_zero_matrix() -> None:
    w = torch.zeros(4, 3, dtype=F64, requires_grad=True)
    found = subspace_iteration(w, normal(3, 2))
    assert found.sigma.equal(torch.zeros(2, dtype=F64))
    assert found.v.isfinite().all()
    found.sigma.sum().backward()
    assert w.grad is not None
    assert w.grad.isfinite().all()


def test_errors() -> None:
    w = normal(4, 3)
    with pytest.raises(ValueError, match=r"subspace_iteration: expected `v` of shape \(3, k\)"):
        subspace_iteration(w, normal(4, 2))
    with pytest.raises(ValueError, match="k from 1 to 3, got"):
        subspace_iteration(w, normal(3, 4))
    with pytest.raises(TypeError, match=r"`v` of dtype torch\.float64, got torch\.float32"):
        subspace_iteration(w, normal(3, 2).float())
    with pytest.raises(ValueError, match="`n_iter`"):
        subspace_iteration(w, normal(3, 2), -1)

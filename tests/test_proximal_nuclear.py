"""Nuclear norm and singular value thresholding."""

from __future__ import annotations

import math

import pytest
import torch
from regkern.proximal.nuclear import NuclearNorm, nuclear_norm, singular_value_threshold
from regkern.reference.proximal import nuclear as reference
from torch import Tensor

SHAPES = ((6, 6), (9, 4), (4, 9), (1, 5), (5, 1), (3, 7, 5), (2, 3, 4, 4))


def _matrix(*shape: int, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(salt)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_against_a_full_svd(shape: tuple[int, ...]) -> None:
    x = _matrix(*shape)
    torch.testing.assert_close(nuclear_norm(x), reference.nuclear_norm(x))
    for t in (0.0, 0.3, 1.5, 100.0):
        y = singular_value_threshold(x, t)
        torch.testing.assert_close(y, reference.singular_value_threshold(x, t))
        torch.testing.assert_close(
            singular_value_threshold(x.float(), t).double(), y, rtol=1e-5, atol=1e-6
        )
    thresholds = torch.rand(shape[:-2], dtype=torch.float64)
    torch.testing.assert_close(
        singular_value_threshold(x, thresholds),
        reference.singular_value_threshold(x, thresholds),
    )


def test_minimises_the_objective() -> None:
    x, t = _matrix(5, 4), 0.8
    y = singular_value_threshold(x, t)

    def objective(z: Tensor) -> Tensor:
        return (z - x).square().sum() / 2 + t * reference.nuclear_norm(z)

    least = objective(y)
    for salt in range(200):
        d = _matrix(5, 4, salt=1 + salt)
        for size in (1e-4, 1e-2, 1.0):
            assert objective(y + size * d) > least


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape: tuple[int, ...]) -> None:
    x = _matrix(*shape, salt=3).requires_grad_()
    t = torch.full(shape[:-2], 0.9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(singular_value_threshold, (x, t))
    assert torch.autograd.gradcheck(nuclear_norm, (x,))


def test_gradient_at_equal_singular_values() -> None:
    """Where torch's SVD gives NaN: U (Σ - t)₊ Vᵀ is smooth there."""
    x = (2 * torch.eye(4, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: singular_value_threshold(x, 0.5), (x,))
    low = torch.outer(torch.ones(5), torch.arange(1.0, 4.0)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: singular_value_threshold(x, 0.5), (low,))


def test_corners() -> None:
    x = _matrix(6, 4).float()
    assert torch.equal(singular_value_threshold(x, 0.0), x)
    assert (singular_value_threshold(x, math.inf) == 0).all()
    zero = torch.zeros(4, 3, requires_grad=True)
    assert torch.equal(singular_value_threshold(zero, 1.0), zero)
    (g,) = torch.autograd.grad(nuclear_norm(zero), zero)
    assert (g == 0).all()
    (g,) = torch.autograd.grad(singular_value_threshold(zero, 1.0).sum(), zero)
    assert (g == 0).all()
    batch = _matrix(3, 4, 3)
    batch[1, 2, 0] = math.nan
    y = singular_value_threshold(batch, 0.1)
    assert y[1].isnan().all()
    assert not y[[0, 2]].isnan().any()
    assert nuclear_norm(batch).isnan().tolist() == [False, True, False]
    for shape in ((0, 3), (3, 0), (0, 2, 2)):
        assert singular_value_threshold(torch.zeros(shape), 1.0).shape == shape
    half = _matrix(8, 5).to(torch.bfloat16)
    assert singular_value_threshold(half, 0.5).dtype == torch.bfloat16
    # 1e30 squared is beyond float32.
    large = singular_value_threshold(x * 1e30, 1e30)
    torch.testing.assert_close(large / 1e30, singular_value_threshold(x, 1.0))


def test_transforms() -> None:
    x = _matrix(3, 5, 4)
    per = torch.func.vmap(torch.func.grad(lambda m: singular_value_threshold(m, 0.5).sum()))(x)
    y = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(singular_value_threshold(y, 0.5).sum(), y)
    torch.testing.assert_close(per, g)
    compiled = torch.compile(
        lambda m: singular_value_threshold(m, 0.5), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), singular_value_threshold(x, 0.5))
    (g,) = torch.autograd.grad(singular_value_threshold(y, 0.5).sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        g.sum().backward()


def test_penalty() -> None:
    penalty = NuclearNorm(0.5)
    weights = [_matrix(6, 4), _matrix(5, 3, 2, 2), _matrix(7)]
    expected = 0.5 * sum(
        float(torch.linalg.svdvals(w.reshape(w.shape[0], -1) if w.dim() > 1 else w[None]).sum())
        for w in weights
    )
    assert penalty.value(weights).item() == pytest.approx(expected)
    moved = [w.clone() for w in weights]
    report = penalty.prox_(moved, 3.0)
    for w, m in zip(weights, moved, strict=True):
        assert torch.equal(m, penalty.prox(w, 3.0))
    assert report.zeros == sum(int((n == 0).sum()) for n in report.norms)
    assert report.zeros > 0
    assert torch.linalg.matrix_rank(moved[0]) == int((report.norms[0] > 0).sum())


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        singular_value_threshold(torch.zeros(3), 1.0)
    with pytest.raises(TypeError, match="dtype"):
        nuclear_norm(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="`threshold` to be at least 0"):
        singular_value_threshold(torch.zeros(2, 2), -1.0)
    with pytest.raises(ValueError, match="`threshold` of shape"):
        singular_value_threshold(torch.zeros(3, 2, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="expected a tensor in `x`, got none"):
        NuclearNorm(1.0).value([])

"""Hessian traces, diagonals, eigenvalues; gradients and Hessians of classifiers by environment."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from regkern.spectral import curvature, invariance
from torch import Tensor

DOUBLE = torch.float64


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(300 + salt)
    return torch.randn(shape, dtype=DOUBLE, generator=generator).to(dtype)


def seed() -> Tensor:
    return torch.tensor([7, 0])


def close(a: Tensor, b: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=rtol)


def quadratic(values: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """½ pᵀ H p with these eigenvalues, over two parameters; H."""
    basis = torch.linalg.qr(draw(len(values), len(values)))[0]
    h = basis @ torch.diag(values) @ basis.mT
    a, b = draw(2, 2, salt=1).requires_grad_(), draw(len(values) - 4, salt=2).requires_grad_()
    p = torch.cat([a.flatten(), b])
    return 0.5 * p @ h @ p, [a, b], h


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


VALUES = torch.tensor([3.0, 1.0, 0.5, -0.2, 0.1, -4.0], dtype=DOUBLE)


def test_hutchinson_estimates() -> None:
    loss, params, h = quadratic(VALUES)
    trace = curvature.hutchinson_trace(loss, params, 600, seed=seed())
    assert float(trace) == pytest.approx(float(h.trace()), abs=0.4)
    normal = curvature.hutchinson_trace(loss, params, 600, kind="normal", seed=seed())
    assert float(normal) == pytest.approx(float(h.trace()), abs=0.8)
    diagonal = curvature.hutchinson_diagonal(loss, params, 600, seed=seed())
    assert [d.shape for d in diagonal] == [p.shape for p in params]
    torch.testing.assert_close(flat(diagonal), h.diagonal(), rtol=0, atol=0.3)
    norm = curvature.hessian_frobenius(loss, params, 300, seed=seed())
    assert float(norm) == pytest.approx(float(h.norm()), rel=0.05)


def test_signs_are_exact_for_a_diagonal_hessian() -> None:
    p = draw(5).requires_grad_()
    loss = (p**4).sum()
    close(curvature.hutchinson_trace(loss, p, seed=seed()), (12 * p**2).sum())
    close(curvature.hutchinson_diagonal(loss, p, seed=seed())[0], 12 * p**2)


def test_trace_as_a_penalty() -> None:
    p = draw(5).requires_grad_()
    trace = curvature.hutchinson_trace((p**4).sum(), p, create_graph=True, seed=seed())
    close(torch.autograd.grad(trace, p)[0], 24 * p)


def test_hessian_vector_product() -> None:
    loss, params, h = quadratic(VALUES)
    v = [draw(2, 2, salt=3), draw(2, salt=4)]
    close(flat(curvature.hessian_vector_product(loss, params, v)), h @ flat(v))
    unused = torch.zeros(3, requires_grad=True)
    products = curvature.hessian_vector_product(
        loss + unused.sum(), [*params, unused], [*v, torch.ones(3)]
    )
    assert bool((products[2] == 0).all())


@pytest.mark.parametrize(
    ("values", "which", "expected"),
    [
        (VALUES, "magnitude", -4.0),
        (VALUES, "algebraic", 3.0),
        (-VALUES, "magnitude", 4.0),
        (-VALUES, "algebraic", 4.0),
        (-VALUES.abs(), "algebraic", -0.1),
        (VALUES * 0, "magnitude", 0.0),
        (VALUES * 0, "algebraic", 0.0),
    ],
)
def test_largest_eigenvalue(values: Tensor, which: str, expected: float) -> None:
    loss, params, h = quadratic(values)
    pair = curvature.hessian_max_eigenvalue(loss, params, n_iter=400, which=which, seed=seed())
    assert float(pair.value) == pytest.approx(expected, abs=1e-3)
    v = flat(pair.vector)
    assert float(v.norm()) == pytest.approx(1.0)
    torch.testing.assert_close(h @ v, expected * v, rtol=0, atol=0.05)


def test_a_warm_start_needs_one_iteration() -> None:
    loss, params, _ = quadratic(VALUES)
    far = curvature.hessian_max_eigenvalue(loss, params, n_iter=200, seed=seed())
    warm = curvature.hessian_max_eigenvalue(loss, params, far.vector, n_iter=1, seed=seed())
    close(warm.value, far.value, 1e-6)


# ---- classifiers ----

BATCH, CLASSES, SIZE, ENVIRONMENTS = 9, 3, 4, 3
PLACES = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1])  # nobody in the last one
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])


def head(weight: Tensor, z: Tensor, e: int) -> Tensor:
    mine = e == PLACES
    return torch.nn.functional.cross_entropy((z @ weight.mT)[mine], LABELS[mine])


def test_head_gradients_and_products() -> None:
    z, w, v = draw(BATCH, SIZE), draw(CLASSES, SIZE, salt=1), draw(3, CLASSES, SIZE, salt=2)
    batch = (z @ w.mT, LABELS, z, PLACES, ENVIRONMENTS)
    g = invariance.head_gradients(*batch)
    hv = invariance.head_hessian_products(*batch, v)
    for e in range(2):
        close(g[e], torch.func.grad(head)(w, z, e))
        _, expected = torch.func.jvp(lambda t, e=e: torch.func.grad(head)(t, z, e), (w,), (v[e],))
        close(hv[e], expected)
    assert bool((g[2] == 0).all())
    assert bool((hv[2] == 0).all())


def test_alignment_penalties() -> None:
    z, w = draw(BATCH, SIZE), draw(CLASSES, SIZE, salt=1)
    batch = (z @ w.mT, LABELS, z, PLACES, ENVIRONMENTS)
    gradient = torch.func.grad(head)
    g = [gradient(w, z, e) for e in range(2)]
    hg = [torch.func.jvp(lambda t, e=e: gradient(t, z, e), (w,), (g[e],))[1] for e in range(2)]
    hessians = [torch.func.hessian(head)(w, z, e).reshape(12, 12) for e in range(2)]
    diagonals = [h.diagonal() for h in hessians]

    def spread(pair: list[Tensor]) -> Tensor:
        mean = (pair[0] + pair[1]) / 2
        return sum(((t - mean) ** 2).sum() for t in pair) / 2

    close(invariance.hessian_gradient_penalty(*batch, 2.0, 3.0), 2 * spread(hg) + 3 * spread(g))
    close(
        invariance.hessian_diagonal_penalty(*batch, 2.0, 3.0, n=0),
        2 * spread(diagonals) + 3 * spread(g),
    )
    many = invariance.hessian_diagonal_penalty(*batch, 1.0, 0.0, n=1500, seed=seed())
    assert float(many) == pytest.approx(float(spread(diagonals)), rel=0.1)
    own = [
        torch.stack([gradient_of(w, z, b) for b in range(BATCH) if PLACES[b] == e])
        for e in range(2)
    ]
    close(invariance.fishr_penalty(*batch), spread([t.var(0, correction=0) for t in own]))


def gradient_of(w: Tensor, z: Tensor, b: int) -> Tensor:
    def one(t: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(z[b] @ t.mT, LABELS[b])

    return torch.func.grad(one)(w)


def test_alignment_penalties_are_differentiable() -> None:
    z = draw(BATCH, SIZE).requires_grad_()
    logits = draw(BATCH, CLASSES, salt=1).requires_grad_()
    rest = (PLACES, ENVIRONMENTS)
    for penalty in (
        invariance.hessian_gradient_penalty,
        invariance.fishr_penalty,
        lambda *a: invariance.hessian_diagonal_penalty(*a, n=2, seed=seed()),
    ):
        assert torch.autograd.gradcheck(
            lambda a, b, p=penalty: p(a, LABELS, b, *rest), (logits, z), fast_mode=True
        )


def test_irm_penalty() -> None:
    logits = draw(BATCH, CLASSES).requires_grad_()
    w = torch.ones((), dtype=DOUBLE, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(w * logits, LABELS)
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    close(invariance.irm_penalty(logits, LABELS), g.square())
    close(
        torch.autograd.grad(invariance.irm_penalty(logits, LABELS), logits)[0],
        torch.autograd.grad(g.square(), logits)[0],
    )
    halves = [
        torch.autograd.grad(torch.nn.functional.cross_entropy(w * logits[i::2], LABELS[i::2]), w)[0]
        for i in range(2)
    ]
    close(invariance.irm_penalty(logits, LABELS, split=True), halves[0] * halves[1])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda p: curvature.hutchinson_trace(p.sum(), p, 0), "`n` to be at least 1"),
        (lambda p: curvature.hutchinson_trace(p * 2, p), "`loss` of one element"),
        (lambda p: curvature.hutchinson_trace(p.sum(), []), "a tensor in `params`"),
        (lambda p: curvature.hessian_vector_product(p.sum(), p, [p, p]), "as many `vectors`"),
        (lambda p: curvature.hessian_max_eigenvalue(p.sum(), p, which="x"), "one of"),
        (lambda p: curvature.hessian_max_eigenvalue(p.sum(), p, [p, p]), "in `v0`"),
        (lambda p: invariance.irm_penalty(p, LABELS), "`logits` of shape"),
        (
            lambda p: invariance.head_gradients(draw(9, 3), LABELS, draw(8, 2), PLACES, 2),
            "`features`",
        ),
        (
            lambda p: invariance.head_gradients(draw(9, 3), LABELS, draw(9, 2), PLACES, 0),
            "`n_environments`",
        ),
        (
            lambda p: invariance.head_hessian_products(
                draw(9, 3), LABELS, draw(9, 2), PLACES, 2, draw(2, 3)
            ),
            "`vectors` of shape",
        ),
    ],
)
def test_errors(call: Callable[[Tensor], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(draw(5).requires_grad_())

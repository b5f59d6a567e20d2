"""Gram penalties and norms of rows: formulas, corners, errors, and the kernels in the emulator."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recording import Recorder, replay
from regkern.reference.spectral import gram as gram_reference
from regkern.reference.spectral import row_norms as rows_reference
from regkern.spectral import gram as G
from regkern.spectral import row_norms as N
from torch import Tensor

D = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=D, generator=generator).to(dtype)


def compare(ours: Callable[..., Tensor], definition: Callable[..., Tensor], *xs: Tensor) -> None:
    """Values, gradients and second derivatives."""
    a = [x.clone().requires_grad_() for x in xs]
    b = [x.clone().requires_grad_() for x in xs]
    y, z = ours(*a), definition(*b)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(torch.autograd.grad(y, a), torch.autograd.grad(z, b))
    assert torch.autograd.gradgradcheck(ours, a, fast_mode=True)


@pytest.mark.parametrize("side", ["auto", "rows", "columns"])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("diagonal", [True, False])
def test_orthogonality(side: Any, squared: bool, diagonal: bool) -> None:
    # Two of one shape go through one batch.
    ws = [normal(5, 7), normal(8, 3, 2, seed=1), normal(5, 7, seed=2)]
    compare(
        lambda *w: G.orthogonality_penalty(w, side=side, squared=squared, diagonal=diagonal),
        lambda *w: gram_reference.orthogonality_penalty(w, side, squared, diagonal),
        *ws,
    )


def test_orthogonality_gradient_is_the_formula() -> None:
    w = normal(4, 9).requires_grad_()
    (dw,) = torch.autograd.grad(G.orthogonality_penalty(w), w)
    torch.testing.assert_close(dw, 4 * (w @ w.mT - torch.eye(4, dtype=D)) @ w)


def test_orthonormal_weights_cost_nothing() -> None:
    q = torch.linalg.qr(normal(12, 5))[0].requires_grad_()
    assert G.orthogonality_penalty(q) < 1e-28
    # The norm has gradient 0 at 0, also where the residual is exactly zero.
    eye = torch.eye(4, dtype=D).requires_grad_()
    for value in (
        G.orthogonality_penalty(eye, squared=False),
        G.sorsa_penalty([eye], [eye]),
        G.srip_penalty(eye),
    ):
        assert value == 0
        assert torch.autograd.grad(value, eye)[0].eq(0).all()
    # In bfloat16 products the residual would be 2⁻⁸ an element.
    half = torch.eye(64, dtype=torch.bfloat16)
    assert G.orthogonality_penalty(half) == 0


def test_norm_and_square_are_two_things() -> None:
    w = normal(3, 6)
    square, norm = G.orthogonality_penalty(w), G.orthogonality_penalty(w, squared=False)
    torch.testing.assert_close(norm * norm, square)


def test_the_mask_leaves_norms_alone() -> None:
    w = torch.diag(torch.tensor([3.0, 0.5, 2.0]))
    assert G.orthogonality_penalty(w, diagonal=False) == 0
    assert G.orthogonality_penalty(w) > 0


def test_sorsa() -> None:
    us, vs = [normal(9, 3, seed=i) for i in range(2)], [normal(3, 8, seed=i) for i in (5, 6)]
    compare(
        lambda a, b, c, d: G.sorsa_penalty([a, b], [c, d]),
        lambda a, b, c, d: gram_reference.sorsa_penalty([a, b], [c, d]),
        *us,
        *vs,
    )


def test_mixed_dtypes_in_one_list() -> None:
    ws = [normal(3, 5, dtype=torch.float32), normal(4, 4), normal(6, 2, dtype=torch.bfloat16)]
    expected = gram_reference.orthogonality_penalty([w.double() for w in ws])
    value = G.orthogonality_penalty(ws)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    expected = rows_reference.norm_loss([w.double() for w in ws])
    torch.testing.assert_close(N.norm_loss(ws), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", ["auto", "columns"])
def test_srip(side: Any) -> None:
    # Spectra on both sides of 1, and of equal distance from it: ±λ are both the largest.
    tied = torch.diag(torch.tensor([2.0, 0.0], dtype=D).sqrt())
    ws = [0.4 * normal(7, 12), normal(6, 3, 2, seed=3), tied]
    sizes = [7, 6, 2] if side == "auto" else [12, 6, 2]
    vectors = [normal(n, seed=9) for n in sizes]
    for w, v in zip(ws, vectors, strict=True):
        expected = gram_reference.srip_penalty([w], side)
        value = G.srip_penalty([w], side=side, n_iter=400, vectors=[v])
        torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
        # Warm: one iteration is enough, and the gradient is that of the singular value.
        a, b = w.clone().requires_grad_(), w.clone().requires_grad_()
        again = G.srip_penalty([a], side=side, n_iter=1, vectors=[v])
        torch.testing.assert_close(again.detach(), expected, rtol=1e-7, atol=0)
        if w.shape[0] > 2:
            (dw,) = torch.autograd.grad(again, a)
            (expected_dw,) = torch.autograd.grad(gram_reference.srip_penalty([b], side), b)
            torch.testing.assert_close(dw, expected_dw, rtol=1e-5, atol=1e-6)
    cold = G.srip_penalty(ws, side=side, generator=torch.Generator().manual_seed(1))
    assert cold <= gram_reference.srip_penalty(ws, side) + 1e-9


@pytest.mark.parametrize(("norm", "squared"), [("fro", False), ("fro", True), ("l1", False)])
def test_cross_gram(norm: Any, squared: bool) -> None:
    xs = [normal(n, 6, seed=n + i) for i, n in enumerate((3, 3, 4, 7))]

    def pairs(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(a, b), (c, d), *itertools.combinations((a, c, d), 2)]

    compare(
        lambda *x: G.cross_gram_penalty(pairs(*x), norm, squared=squared),
        lambda *x: gram_reference.cross_gram_penalty(pairs(*x), norm, squared),
        *xs,
    )


def test_cross_gram_of_orthogonal_rows() -> None:
    q = torch.eye(6, dtype=D)
    a, b = q[:2].clone().requires_grad_(), q[2:].clone().requires_grad_()
    value = G.cross_gram_penalty([(a, b)])
    assert value == 0
    assert all(g.eq(0).all() for g in torch.autograd.grad(value, (a, b)))


def test_log_det() -> None:
    delta = torch.tensor(0.3, dtype=D)
    compare(G.log_det_penalty, gram_reference.log_det_penalty, normal(9, 4), delta)
    f = normal(9, 4).requires_grad_()
    (df,) = torch.autograd.grad(G.log_det_penalty(f), f)
    torch.testing.assert_close(df, -2 * f @ torch.linalg.inv(f.mT @ f))
    for shape in ((9, 4), (4, 9)):
        z = normal(*shape)
        compare(lambda z: G.coding_rate(z, 0.4), lambda z: gram_reference.coding_rate(z, 0.4), z)
    assert G.log_det_penalty(torch.zeros(5, 3)) == torch.inf
    assert G.log_det_penalty(torch.full((5, 3), torch.nan)).isnan()
    assert G.log_det_penalty(normal(5, 2).bfloat16()).dtype == torch.float32


def test_invariance() -> None:
    delta = torch.tensor(0.2, dtype=D)
    compare(G.invariance_penalty, gram_reference.invariance_penalty, normal(4), normal(9, 4), delta)
    # It does not change with the scale of the features, whose gradient g grows with them.
    g, phi = normal(4), normal(9, 4)
    torch.testing.assert_close(G.invariance_penalty(5 * g, 5 * phi), G.invariance_penalty(g, phi))
    assert G.invariance_penalty(g, torch.zeros(9, 4, dtype=D)).isnan()


def test_nuclear_norm() -> None:
    def polar(w: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(w, full_matrices=False)
        return u @ vh

    w = normal(4, 3, 2).requires_grad_()
    value = G.nuclear_norm_penalty([w], polar)
    torch.testing.assert_close(value, torch.linalg.svdvals(w.flatten(1)).sum())
    (dw,) = torch.autograd.grad(value, w, create_graph=True)
    torch.testing.assert_close(dw.detach(), polar(w.detach().flatten(1)).reshape(w.shape))
    with pytest.raises(RuntimeError, match="no second derivative"):
        dw.square().sum().backward()


# ---- rows ----


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2), (3, 1500), (2, 70000)])
def test_rows(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    x[1] = 0
    for side in ("rows", "columns", "both") if x.numel() < 5000 else ("rows",):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = N.row_equilibrate(a, side), rows_reference.row_equilibrate(b, side)
        torch.testing.assert_close(y, z)
        g = torch.randn_like(y)
        (da,), (db,) = torch.autograd.grad(y, a, g), torch.autograd.grad(z, b, g)
        torch.testing.assert_close(da, db)
        assert side != "rows" or da[1].eq(0).all()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, D):
        w = x.to(dtype, copy=True)
        expected = rows_reference.norm_loss_step(w.double(), 0.1).to(dtype)
        norms = N.norm_loss_step_([w, w[:1].clone()], 0.1)
        torch.testing.assert_close(w, expected)
        torch.testing.assert_close(norms[0], rows_reference.row_norms(x.to(dtype).double()))
        assert norms[1].shape == (1,)


def test_norm_loss() -> None:
    ws = [normal(5, 7), normal(4, 3, 2)]
    compare(lambda *w: N.norm_loss(w), lambda *w: rows_reference.norm_loss(w), *ws)
    zero = torch.zeros(2, 3, requires_grad=True)
    value = N.norm_loss(zero)
    assert value == 2
    assert torch.autograd.grad(value, zero)[0].eq(0).all()


def test_steps() -> None:
    w = normal(4, 6, dtype=torch.float32)
    same = w.clone()
    N.norm_loss_step_(same, 0.0)
    assert torch.equal(same, w)
    half, projected = w.clone(), w.clone()
    N.norm_loss_step_(half, torch.tensor(0.5))
    N.oblique_projection_(projected)
    torch.testing.assert_close(half, projected)
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(4))
    # A step is one of gradient descent.
    leaf = w.clone().requires_grad_()
    N.norm_loss(leaf).backward()
    stepped = w.clone()
    N.norm_loss_step_([stepped], 0.05)
    assert leaf.grad is not None
    torch.testing.assert_close(stepped, w - 0.05 * leaf.grad)
    # A view that is not row-major.
    view = normal(6, 4, dtype=torch.float32).mT
    expected = N.row_equilibrate(view)
    N.oblique_projection_(view)
    torch.testing.assert_close(view, expected)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30, 3e38])
def test_norms_neither_overflow_nor_underflow(scale: float) -> None:
    x = torch.tensor([[0.6, 0.8, 0.0], [1.0, -1.0, 1.0]]) * scale
    y = N.row_equilibrate(x)
    torch.testing.assert_close(
        y.double(), rows_reference.row_project(x.double()), rtol=1e-6, atol=0
    )
    x.requires_grad_()
    assert N.row_equilibrate(x).sum().isfinite()
    if scale > 1e-38:
        assert torch.autograd.grad(N.row_equilibrate(x)[:, 0].sum(), x)[0].isfinite().all()


def test_columns_of_tiny_weights() -> None:
    x = normal(5, 4, dtype=torch.float32) * 1e-35
    torch.testing.assert_close(N.row_equilibrate(x, "columns").norm(dim=0), torch.ones(4))


def test_nan_stays_in_its_row() -> None:
    w = normal(4, 5, dtype=torch.float32)
    w[1, 2], w[2, 0] = torch.nan, torch.inf
    N.norm_loss_step_(w, 0.1)
    assert w[1].isnan().all()
    assert not w[2].isfinite().all()
    assert w[[0, 3]].isfinite().all()


# ---- raw ops ----


def _grams() -> list[Tensor]:
    return [normal(6, 6), normal(3, 5, 5), normal(150, 150)]


def test_same_bits_in_the_emulator(emulator: Any) -> None:
    torch.ops.load_library(str(emulator))
    with Recorder() as recorder:
        for target in ("identity", "off_diagonal", "zero"):
            for norm in ("squares", "magnitudes"):
                for dtype in (torch.float32, D):
                    grams = [g.to(dtype) for g in _grams()]
                    torch.ops.regkern.gram_residual_(grams, target, norm)
        for dtype in (torch.float32, torch.bfloat16):
            rows = [normal(5, 9, dtype=dtype), normal(2, 67000, dtype=dtype) * 1e-25]
            N.norm_loss_step_(rows, 0.2)
            x = (normal(3, 1100) * 1e20).to(dtype).requires_grad_()
            N.row_equilibrate(x).square().sum().backward()
    expected = replay(recorder.calls, "regkern")
    emulated = replay(recorder.calls, "regkern_emulator")
    torch.testing.assert_close(expected, emulated, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("gram_residual_", lambda: (_grams(), "identity", "squares")),
        (
            "row_rescale_",
            lambda: ([normal(3, 4), normal(2, 5)], torch.ones((), dtype=D), "norm_loss"),
        ),
    ],
)
def test_schemas_and_fake_kernels(name: str, make: Any) -> None:
    op = getattr(torch.ops.regkern, name).default
    torch.library.opcheck(op, make(), test_utils=("test_schema", "test_faketensor"))


def test_residuals_of_a_batch_are_those_of_its_matrices() -> None:
    batch = normal(3, 20, 20)
    each = [batch[i].clone() for i in range(3)]
    together = torch.ops.regkern.gram_residual_([batch], "identity", "squares")
    assert torch.equal(torch.ops.regkern.gram_residual_(each, "identity", "squares"), together)
    assert torch.equal(torch.stack(each), batch)


def test_compiled() -> None:
    torch._dynamo.reset()

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return G.orthogonality_penalty([a, b], squared=False) + N.norm_loss([a, b])

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    leaves = [normal(5, 4, seed=i, dtype=torch.float32).requires_grad_() for i in range(2)]
    expected, actual = loss(*leaves), compiled(*leaves)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves)
    )


def test_compiled_in_place() -> None:
    torch._dynamo.reset()

    def change(a: Tensor, b: Tensor) -> None:
        N.norm_loss_step_([a, b], 0.3)
        N.oblique_projection_(a)

    expected = [normal(5, 4, dtype=torch.float32), normal(3, 6, dtype=torch.float32)]
    actual = [x.clone() for x in expected]
    change(*expected)
    torch.compile(change, fullgraph=True, dynamic=True, backend="aot_eager")(*actual)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: G.orthogonality_penalty([]), ValueError, "a tensor in `weights`, got none"),
        (lambda: G.orthogonality_penalty(torch.ones(3)), ValueError, r"two dimensions, got \(3,\)"),
        (lambda: G.orthogonality_penalty(torch.ones(2, 2).long()), TypeError, "float32"),
        (lambda: G.orthogonality_penalty(normal(2, 2), side="left"), ValueError, "got 'left'"),
        (
            lambda: G.sorsa_penalty([normal(2, 2)], [normal(2, 2)] * 2),
            ValueError,
            "1 tensors, got 2",
        ),
        (lambda: G.srip_penalty(normal(2, 2), n_iter=0), ValueError, "at least 1, got 0"),
        (lambda: G.srip_penalty(normal(2, 3), vectors=[normal(3)]), ValueError, r"got \(3,\)"),
        (lambda: G.cross_gram_penalty([]), ValueError, "a pair in `pairs`, got none"),
        (
            lambda: G.cross_gram_penalty([(normal(2, 3), normal(3, 2))]),
            ValueError,
            r"`pairs\[0\]\[1\]` to be a matrix",
        ),
        (
            lambda: G.cross_gram_penalty([(normal(2, 3), normal(2, 3))], "l1", squared=True),
            ValueError,
            "'fro' with `squared`",
        ),
        (lambda: G.log_det_penalty(normal(3, 2), -1.0), ValueError, "at least 0, got -1.0"),
        (lambda: G.coding_rate(normal(3, 2), 0.0), ValueError, "above 0, got 0.0"),
        (lambda: G.invariance_penalty(normal(3), normal(9, 4)), ValueError, r"\(4,\), got \(3,\)"),
        (lambda: G.nuclear_norm_penalty(normal(3, 2), "svd"), TypeError, "a function"),
        (lambda: N.norm_loss(torch.ones(3)), ValueError, "two dimensions"),
        (lambda: N.norm_loss_step_(normal(3, 2), -0.1), ValueError, "at least 0, got -0.1"),
        (lambda: N.row_equilibrate(normal(3, 2), "all"), ValueError, "got 'all'"),
        (
            lambda: torch.ops.regkern.gram_residual_([normal(2, 3)], "identity", "squares"),
            RuntimeError,
            r"`grams\[0\]` of square matrices, got \(2, 3\)",
        ),
        (
            lambda: torch.ops.regkern.gram_residual_([normal(2, 2).half()], "zero", "squares"),
            RuntimeError,
            "float32 or float64",
        ),
        (
            lambda: torch.ops.regkern.row_rescale_([normal(2, 2)], None, "norm_loss"),
            RuntimeError,
            "`step` with law norm_loss alone, got none",
        ),
    ],
)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()

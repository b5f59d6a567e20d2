"""The power iteration and the division by spectral norms: singular values, corners, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import Recorder, replay
from regkern.reference.spectral import power as reference
from regkern.spectral.normalize import (
    spectral_conv,
    spectral_linear,
    spectral_normalize,
    spectral_normalize_,
)
from regkern.spectral.power import power_iteration, random_vectors, stable_rank
from regkern.spectral.spectral_penalties import add_outer_
from test_contract import equal
from torch import Tensor

INF, NAN = float("inf"), float("nan")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator()).to(dtype)


def vectors(*ws: Tensor, dim: int | list[int] = 0) -> tuple[list[Tensor], list[Tensor]]:
    return random_vectors([w.detach() for w in ws], dim=dim, generator=generator())


def spectrum(*values: float, columns: int = 9) -> Tensor:
    """A matrix of these singular values."""
    n = len(values)
    left = torch.linalg.qr(normal(n + 2, n))[0]
    right = torch.linalg.qr(normal(columns, n) + 1)[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


# ---- right singular values ----


@pytest.mark.parametrize(
    "values",
    [(3.0, 2.0, 1.0), (2.0, 2.0, 2.0), (1.0, 1 - 1e-9, 0.5), (1e-9, 1e-12, 0.0), (5.0, 0.0, 0.0)],
)
def test_largest_singular_value(values: tuple[float, ...]) -> None:
    w = spectrum(*values)
    found = power_iteration(w, *vectors(w), 200)
    torch.testing.assert_close(found.sigma[0], torch.linalg.svdvals(w)[0], rtol=1e-8, atol=0)
    torch.testing.assert_close(found.frobenius[0], torch.linalg.vector_norm(w))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((1, 1), 0), ((1, 9), 0), ((9, 1), 0), ((33, 700), 0), ((513, 40), 0), ((3, 5000), 0),
        ((300, 8), 1), ((6, 5, 3, 3), 0), ((6, 5, 3, 3), 1), ((6, 5, 3, 3), 3),
        ((4, 3, 2, 2, 2), 1),
    ],
)  # fmt: skip
def test_steps_are_those_of_the_definition(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype
) -> None:
    w = normal(*shape, dtype=dtype)
    (u,), (v,) = vectors(w, dim=dim)
    layouts = [w, w.movedim(0, -1).contiguous().movedim(-1, 0), torch.stack([w, w], -1)[..., 0]]
    if w.dim() in (4, 5):
        last = torch.channels_last if w.dim() == 4 else torch.channels_last_3d
        layouts.append(w.contiguous(memory_format=last))
    expected = reference.singular_triple(w.double(), u.double(), v.double(), 2, dim)
    tight = (
        {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 3e-6}
    )
    for x in layouts:
        a, b = u.clone(), v.clone()
        sigma = power_iteration(x, a, b, 2, dim=dim).sigma[0]
        for ours, theirs in zip((a, b, sigma), expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, **tight)


def test_a_list_is_its_members() -> None:
    ws = [normal(*s, dtype=torch.float32) for s in ((300, 9), (4, 3, 3, 3), (2, 5), (70, 600))]
    dims = [0, 1, 0, 1]
    us, vs = vectors(*ws, dim=dims)
    one = [
        power_iteration(w, u.clone(), v.clone(), 3, dim=d).sigma[0]
        for w, u, v, d in zip(ws, us, vs, dims, strict=True)
    ]
    assert torch.equal(power_iteration(ws, us, vs, 3, dim=dims).sigma, torch.stack(one))


def test_no_iteration_evaluates() -> None:
    w = normal(5, 8)
    (u,), (v,) = vectors(w)
    before = u.clone(), v.clone()
    found = power_iteration(w, u, v, 0)
    torch.testing.assert_close(found.sigma[0], u @ w @ v)
    assert torch.equal(u, before[0])
    assert torch.equal(v, before[1])


def test_buffers_may_be_strided_or_half() -> None:
    w = normal(6, 9, dtype=torch.bfloat16)
    (u,), (v,) = vectors(w)
    strided = torch.zeros(6, 2), torch.zeros(9, 2)
    strided[0][:, 1], strided[1][:, 1] = u, v
    halves = u.bfloat16(), v.bfloat16()
    half = power_iteration(w, *halves, 3).sigma
    expected = power_iteration(w, u, v, 3).sigma
    assert torch.equal(power_iteration(w, strided[0][:, 1], strided[1][:, 1], 3).sigma, expected)
    assert torch.equal(strided[0][:, 1], u)
    assert not strided[1][:, 0].any()
    torch.testing.assert_close(half, expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(halves[1].float(), v, rtol=0.02, atol=0.01)


# ---- corners ----


@pytest.mark.parametrize("scale", [1e-33, 1e-25, 1e-10, 1e10, 1e25, 1e33])
def test_weights_of_any_size(scale: float) -> None:
    """Squares of these are no floats."""
    w = (normal(70, 130) * scale).float()
    w[40:] *= 1e-4
    found = power_iteration(w, *vectors(w), 100)
    wide = w.double()
    torch.testing.assert_close(
        found.sigma.double()[0] / scale, torch.linalg.svdvals(wide)[0] / scale, rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        found.frobenius.double()[0] / scale, wide.norm() / scale, rtol=1e-6, atol=0
    )
    y = spectral_normalize(w, *(x[0] for x in vectors(w)), n_iter=60)
    torch.testing.assert_close(torch.linalg.svdvals(y.double())[0].item(), 1.0, rtol=1e-2, atol=0)


def test_rows_of_mixed_size() -> None:
    """The scale of sums follows rows up, in the middle of a block and of a span."""
    w = normal(600, 7)
    w *= (10.0 ** torch.linspace(-30, 30, 600, dtype=torch.float64))[:, None]
    (u,), (v,) = vectors(w.float())
    expected = reference.singular_triple(w.float().double(), u.double(), v.double(), 2)
    sigma = power_iteration(w.float(), u, v, 2).sigma[0]
    torch.testing.assert_close(sigma.double(), expected[2], rtol=1e-5, atol=0)
    torch.testing.assert_close(v.double(), expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_zero_matrix(dtype: torch.dtype) -> None:
    """torch divides by zero, and an eps of 1e-12 is zero in float16."""
    w = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    us, vs = vectors(w)
    before = us[0].clone(), vs[0].clone()
    found = power_iteration(w, us, vs, 3)
    assert found.sigma.item() == 0
    assert torch.equal(us[0], before[0])
    assert torch.equal(vs[0], before[1])
    y = spectral_normalize(w, us[0], vs[0])
    assert not y.any()
    total = found.sigma.sum() + found.frobenius.sum() + y.float().sum() + stable_rank(w, us, vs)
    (grad,) = torch.autograd.grad(total.sum(), w, create_graph=True)
    assert not grad.any()
    for cap in (None, 0.5):
        (grad,) = torch.autograd.grad(spectral_normalize(w, us[0], vs[0], cap=cap).float().sum(), w)
        assert not grad.any() if cap is None else bool((grad == 1).all())


def test_nan_stays() -> None:
    w = normal(20, 30, dtype=torch.float32)
    w[3, 4] = NAN
    assert power_iteration(w, *vectors(w)).sigma.isnan().all()
    assert spectral_normalize(w, *(x[0] for x in vectors(w)), cap=2.0).isnan().all()


def test_empty() -> None:
    for shape in ((0, 4), (4, 0)):
        w = torch.zeros(shape, requires_grad=True)
        us, vs = vectors(w)
        found = power_iteration(w, us, vs, 2)
        assert found.sigma.item() == 0
        found.sigma.sum().backward()
        assert spectral_normalize(w, us[0], vs[0]).shape == shape


def test_tolerance_stops_each_matrix() -> None:
    fast, slow = spectrum(4.0, 0.1, 0.1), spectrum(1.0, 0.95, 0.9)
    found = power_iteration([fast, slow], *vectors(fast, slow), 60, tol=1e-6)
    assert 2 <= found.iterations[0] < 10 < found.iterations[1] <= 60
    torch.testing.assert_close(found.sigma[0].item(), 4.0, rtol=1e-5, atol=0)
    every = power_iteration([fast, slow], *vectors(fast, slow), 60)
    assert every.iterations.tolist() == [60, 60]


def test_eps_makes_zero() -> None:
    w = spectrum(1e-8, 1e-9)
    assert power_iteration(w, *vectors(w), eps=1e-6).sigma.item() == 0
    assert power_iteration(w, *vectors(w), eps=1e-12).sigma.item() > 0


# ---- gradients ----


def test_two_forwards_before_a_backward() -> None:
    """The second forward changes the buffers that the first one's gradient is made of."""
    w = normal(6, 8).requires_grad_()
    us, vs = vectors(w)
    first = power_iteration(w, us, vs)
    outer = torch.outer(us[0], vs[0]).clone()
    y = spectral_normalize(w, us[0], vs[0], n_iter=3)
    (grad,) = torch.autograd.grad(first.sigma.sum(), w)
    torch.testing.assert_close(grad, outer)
    u, v = us[0].clone(), vs[0].clone()
    spectral_normalize(w, us[0], vs[0], n_iter=3)
    g = normal(6, 8).flip(0)
    (grad,) = torch.autograd.grad(y, w, g)
    sigma = u @ w @ v
    expected = (g - (g * w / sigma).sum() * torch.outer(u, v)) / sigma
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("cap", [None, 0.5, 50.0])
@pytest.mark.parametrize(("shape", "dim"), [((5, 7), 0), ((3, 4, 2, 2), 1)])
def test_gradients_of_the_quotient(shape: tuple[int, ...], dim: int, cap: float | None) -> None:
    w = normal(*shape).requires_grad_()
    (u,), (v,) = vectors(w, dim=dim)

    def divided(w: Tensor) -> Tensor:
        return spectral_normalize(w, u, v, n_iter=0, cap=cap, dim=dim)

    assert torch.autograd.gradcheck(divided, w, fast_mode=True)
    assert torch.autograd.gradgradcheck(divided, w, fast_mode=True)


def test_converged_gradient_is_the_derivative() -> None:
    w = spectrum(3.0, 1.0, 0.5).requires_grad_()
    us, vs = vectors(w)

    def both(w: Tensor) -> tuple[Tensor, Tensor]:
        found = power_iteration(w, us, vs, 60, update=False)
        return found.sigma, found.frobenius

    assert torch.autograd.gradcheck(both, w)
    found = stable_rank(w, us, vs, 60)
    torch.testing.assert_close(found.item(), (9 + 1 + 0.25) / 9)
    assert torch.autograd.gradcheck(lambda w: stable_rank(w, us, vs, 60, update=False), w)


FOLDED: dict[str, tuple[tuple[int, ...], tuple[int, ...], Callable[..., Tensor], Any]] = {
    "linear": (
        (2, 4, 7), (5, 7), spectral_linear,
        lambda x, w, b: torch.nn.functional.linear(x, w, b),
    ),
    "conv": (
        (2, 4, 6, 5), (6, 2, 3, 3),
        lambda *a, **k: spectral_conv(*a, stride=2, padding=1, groups=2, **k),
        lambda x, w, b: torch.nn.functional.conv2d(x, w, b, 2, 1, 1, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("name", FOLDED)
def test_folded_layers(name: str, cap: float | None, bias: bool) -> None:
    x_shape, w_shape, ours, plain = FOLDED[name]
    x, w = normal(*x_shape).requires_grad_(), normal(*w_shape).requires_grad_()
    inputs = (x, w, normal(w_shape[0]).requires_grad_()) if bias else (x, w)
    (u,), (v,) = vectors(w)

    def folded(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return ours(x, w, b, u, v, n_iter=0, cap=cap)

    def divided(x: Tensor, w: Tensor, b: Tensor | None = None) -> Any:
        return plain(x, spectral_normalize(w, u, v, n_iter=0, cap=cap), b)

    y, z = folded(*inputs), divided(*inputs)
    torch.testing.assert_close(y, z)
    g = torch.cos(y.detach())
    for a, b in zip(
        torch.autograd.grad(y, inputs, g), torch.autograd.grad(z, inputs, g), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradgradcheck(folded, inputs, fast_mode=True)
    # Without a gradient for the input, as of a first layer.
    x.requires_grad_(False)
    torch.testing.assert_close(
        torch.autograd.grad(folded(*inputs), w, g)[0],
        torch.autograd.grad(divided(*inputs), w, g)[0],
    )


def test_gradient_penalty_trains() -> None:
    w = normal(8, 6).requires_grad_()
    (u,), (v,) = vectors(w)
    x = normal(4, 6).flip(0).requires_grad_()
    values = []
    for _ in range(30):
        y = torch.tanh(x @ spectral_normalize(w, u, v).T).sum()
        (gx,) = torch.autograd.grad(y, x, create_graph=True)
        penalty = (gx.norm(dim=1) - 1).square().mean()
        (gw,) = torch.autograd.grad(penalty, w)
        with torch.no_grad():
            w -= 0.5 * gw
        values.append(penalty.item())
    assert values[-1] < 0.2 * values[0]


# ---- in place ----


def test_in_place_projection() -> None:
    for cap in (None, 2.0):
        w = normal(4, 3, 3, 3, dtype=torch.float32)
        for x in (w.clone(), w.contiguous(memory_format=torch.channels_last), w.mT.clone().mT):
            (u,), (v,) = vectors(w)
            expected = spectral_normalize(w, u.clone(), v.clone(), n_iter=4, cap=cap)
            assert spectral_normalize_(x, u, v, n_iter=4, cap=cap) is x
            assert torch.equal(x, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_add_outer(dim: int, dtype: torch.dtype) -> None:
    gs = [normal(5, 70, 3, dtype=dtype), normal(2, 3, 4, dtype=dtype)]
    us, vs = vectors(*gs, dim=dim)
    scale = torch.tensor([0.5, -2.0])
    expected = []
    for g, u, v, s in zip(gs, us, vs, scale, strict=True):
        others = [n for d, n in enumerate(g.shape) if d != dim]
        outer = (s * torch.outer(u, v)).reshape(g.shape[dim], *others).movedim(0, dim)
        expected.append((g.float() + outer).to(dtype))
    strided = [torch.stack([g, g], -1)[..., 0] for g in gs]
    add_outer_(gs, us, vs, scale, dim=dim)
    add_outer_(strided, us, vs, scale, dim=dim)
    for g, s, e in zip(gs, strided, expected, strict=True):
        torch.testing.assert_close(g, e)
        assert torch.equal(s, g)


def test_buffers_move_under_compile() -> None:
    torch._dynamo.reset()
    w = normal(6, 5).requires_grad_()
    us, vs = vectors(w)
    eager_u, eager_v = us[0].clone(), vs[0].clone()

    def loss(w: Tensor) -> Tensor:
        return spectral_normalize(w, us[0], vs[0]).square().sum()

    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(w)
    (grad,) = torch.autograd.grad(value, w)
    expected = spectral_normalize(w, eager_u, eager_v).square().sum()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, w)[0])
    assert torch.equal(us[0], eager_u)
    assert torch.equal(vs[0], eager_v)


# ---- the same bits elsewhere ----


def _calls() -> list[Any]:
    with Recorder() as recorder:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            wide = normal(21, 4200, dtype=dtype)
            ws = [wide, wide[:, :1100].clone(), wide[:, :90].T.contiguous(), torch.zeros_like(wide)]
            if dtype == torch.float32:
                ws = [*ws, wide * 1e-25, ws[1] * 1e25, wide[:9].mT]
                rows = 10.0 ** torch.linspace(-20, 20, 90)[:, None]
                ws.append(ws[2] * rows)
                ws.append(wide[:8, :72].reshape(8, 8, 3, 3).to(memory_format=torch.channels_last))
            us, vs = vectors(*ws)
            power_iteration(ws, us, vs, 2, tol=1e-3)
            us, vs = vectors(*ws, dim=1)
            power_iteration(ws, us, vs, 1, dim=1)
            power_iteration(ws, us, vs, 0, dim=1)
            add_outer_(ws, us, vs, 0.3, dim=1)
        x = wide.float().requires_grad_()
        (u,), (v,) = vectors(x)
        spectral_normalize(x, u, v).square().sum().backward()
    return recorder.calls


@pytest.fixture(scope="module")
def calls() -> list[Any]:
    return _calls()


def test_same_bits_in_the_emulator(calls: list[Any], emulator: Path) -> None:
    torch.ops.load_library(str(emulator))
    expected, actual = replay(calls, "regkern"), replay(calls, "regkern_emulator")
    for call, x, y in zip(calls, expected, actual, strict=True):
        assert equal(x, y), call[0]


def test_same_bits_for_any_number_of_threads(calls: list[Any]) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = replay(calls, "regkern")
        torch.set_num_threads(3)
        assert equal(replay(calls, "regkern"), expected)
    finally:
        torch.set_num_threads(threads)


# ---- errors ----

W, U, V = torch.ones(3, 4), torch.ones(3), torch.ones(4)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: power_iteration([], U, V), ValueError, "a tensor in `weights`, got none|none"),
        (lambda: power_iteration(3, U, V), TypeError, "`weights`"),
        (lambda: power_iteration(W.int(), U, V), TypeError, "float32"),
        (lambda: power_iteration([W, W.double()], [U, U], [V, V]), TypeError, r"weights\[1\]"),
        (lambda: power_iteration(U, U, V), ValueError, "two dimensions"),
        (lambda: power_iteration(W, V, V), ValueError, r"`u\[0\]` of shape \(3,\), got \(4,\)"),
        (lambda: power_iteration(W, U, U), ValueError, r"`v\[0\]` of shape \(4,\), got \(3,\)"),
        (lambda: power_iteration(W, [U, U], V), ValueError, "as many `u`"),
        (lambda: power_iteration(W, U.half(), V), TypeError, "float16"),
        (lambda: power_iteration(W, U, V, -1), ValueError, "`n_iter` to be at least 0, got -1"),
        (lambda: power_iteration(W, U, V, 1.5), TypeError, "`n_iter`"),
        (lambda: power_iteration(W, U, V, dim=2), ValueError, "`dim`"),
        (lambda: power_iteration(W, U, V, dim=[0, 0]), ValueError, "got 2"),
        (lambda: power_iteration(W, U, V, tol=-1.0), ValueError, "`tol`"),
        (lambda: power_iteration(W, U, V, eps=NAN), ValueError, "`eps`"),
        (lambda: spectral_normalize(W, U, V, cap=0.0), ValueError, "`cap` above 0, got 0.0"),
        (lambda: spectral_normalize(W, U, V, cap="1"), TypeError, "`cap`"),
        (lambda: spectral_linear(U, W, None, U, V), ValueError, "inputs"),
        (lambda: spectral_conv(W, W, None, U, V), ValueError, "rank"),
        (lambda: add_outer_(W, U, V, torch.ones(2)), ValueError, "`scale`"),
    ],
)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_errors_of_raw_ops() -> None:
    raw = torch.ops.regkern.power_iteration
    for args, text in (
        (([W], [V], [V], [0], 1, -1.0, 0.0, True), r"u\[0\]` of shape \(3\), got \(4\)"),
        (([W], [U], [V], [2], 1, -1.0, 0.0, True), "`dims`"),
        (([W], [U], [V], [], 1, -1.0, 0.0, True), "`dims`"),
        (([W], [U], [V], [0], -1, -1.0, 0.0, True), "n_iter"),
        (([U], [U], [V], [0], 1, -1.0, 0.0, True), "two dimensions"),
    ):
        with pytest.raises(RuntimeError, match=text):
            raw(*args)
    with pytest.raises(RuntimeError, match="`sigma` of shape"):
        torch.ops.regkern.spectral_divide([W], torch.ones(2), 0.0)
    with pytest.raises(RuntimeError, match="`scale` of dtype float32"):
        torch.ops.regkern.add_outer_([W], [U], [V], torch.ones(1).double(), [0])

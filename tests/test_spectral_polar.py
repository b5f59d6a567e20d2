"""Polar factors by products, singular value clipping and Muon, against the SVD."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from regkern.optim.muon import Muon
from regkern.reference.spectral import polar as reference
from regkern.spectral import polar as P
from torch import Tensor


def matrix(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def with_spectrum(rows: int, columns: int, values: Tensor) -> Tensor:
    u, _, vt = torch.linalg.svd(matrix(rows, columns), full_matrices=False)
    return (u * values) @ vt


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
@pytest.mark.parametrize("gram", [False, True, "auto"])
def test_orthogonalize(dtype: torch.dtype, tolerance: float, method: Any, gram: Any) -> None:
    xs = [matrix(*s, dtype=dtype) for s in ((16, 40), (40, 16), (3, 16, 40), (20, 20), (0, 5))]
    for steps in (2, 5):
        quintics = (
            [P.STEEP] * steps if method == "newton_schulz" else P.polar_express_coefficients(steps)
        )
        for x, y in zip(xs, P.orthogonalize(xs, steps, method=method, gram=gram), strict=True):
            assert (y.dtype, y.shape) == (x.dtype, x.shape)
            expected = reference.orthogonalized(x.double(), quintics)
            torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance)
    half = xs[0].half()
    torch.testing.assert_close(
        P.orthogonalize(half), P.orthogonalize(half.float()).half(), rtol=0, atol=0
    )


def test_a_batch_has_the_values_of_its_matrices() -> None:
    xs = [matrix(8, 20), matrix(20, 8).mT.contiguous().mT, 3 * matrix(8, 20)]
    for x, y in zip(xs, P.orthogonalize(xs), strict=True):
        torch.testing.assert_close(P.orthogonalize(x), y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("gram", [False, True])
def test_corners(gram: bool) -> None:
    zero, good = torch.zeros(4, 9), matrix(4, 9, dtype=torch.float32)
    bad = good.clone()
    bad[1, 2] = math.nan
    endless = good.clone()
    endless[0, 0] = math.inf
    a, b, c, d = P.orthogonalize([zero, good, bad, endless], gram=gram)
    assert a.eq(0).all()
    assert c.isnan().any()
    assert d.isnan().any()
    assert not b.isnan().any()
    for size in (1e-30, 1e30):
        torch.testing.assert_close(P.orthogonalize(good * size, gram=gram), b, rtol=0, atol=1e-5)
        torch.testing.assert_close(P.polar_factor(good * size), P.polar_factor(good))
    assert P.polar_factor(zero).eq(0).all()
    assert P.singular_value_clip(zero, 1.0).eq(0).all()
    assert P.polar_nuclear_norm(zero) == 0
    assert P.singular_value_clip(bad, 1.0).isnan().any()


def test_the_gram_norm_is_the_tighter_one() -> None:
    """Equal singular values end where one step of each polynomial takes 1 / √(√m)."""
    x = with_spectrum(16, 40, torch.ones(16, dtype=torch.float64))
    a, b, c = P.STEEP
    for gram in (False, True):
        s = torch.linalg.svdvals(P.orthogonalize(x, 1, gram=gram, scale="gram"))
        v = 16**-0.25
        torch.testing.assert_close(s, torch.full_like(s, a * v + b * v**3 + c * v**5))


def test_polar_express_is_the_best_quintic() -> None:
    """The error has equal extremes of turning sign at four points, so no quintic does better."""
    low = 0.1
    (a, b, c), error = P._minimax(low, 1.0)
    x = torch.linspace(low, 1, 20001, dtype=torch.float64)
    off = 1 - (a * x + b * x**3 + c * x**5)
    assert float(off.abs().max()) == pytest.approx(error, rel=1e-6)
    peaks = off[(off.abs() > error * (1 - 1e-5))]
    signs = peaks.sign()
    assert int((signs[1:] != signs[:-1]).sum()) == 3
    # Five steps take [1e-3, 1] near to 1, without a value near 0 in between.
    y = torch.logspace(-3, 0, 3001, dtype=torch.float64)
    for a, b, c in P.polar_express_coefficients(5):
        y = a * y + b * y**3 + c * y**5
        assert float(y.min()) > 0
    assert 0.8 < float(y.min()) < float(y.max()) < 1.2
    assert P.polar_express_coefficients(12)[-1] == pytest.approx(P.NEWTON_SCHULZ)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (12, 12)])
def test_polar_factor(dtype: torch.dtype, tolerance: float, shape: tuple[int, int]) -> None:
    x = with_spectrum(*shape, torch.logspace(0, -3, 12, dtype=torch.float64)).to(dtype)
    y = P.polar_factor(x)
    torch.testing.assert_close(
        y.double(), reference.polar_factor(x.double()), rtol=0, atol=tolerance
    )
    s = torch.linalg.svdvals(y.double())
    torch.testing.assert_close(s, torch.ones_like(s), rtol=0, atol=tolerance * 1e-2)
    torch.testing.assert_close(
        P.polar_nuclear_norm(x).double(),
        torch.linalg.svdvals(x.double()).sum(),
        rtol=tolerance * 1e-1,
        atol=0,
    )


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
@pytest.mark.parametrize("cap", [0.0, 1e-3, 0.5, 3.0, math.inf])
def test_singular_value_clip(shape: tuple[int, int], cap: float) -> None:
    """Values at and around the cap, tiny ones and zeros."""
    values = torch.tensor([2, 1, 0.5, 0.5, 0.5 + 1e-6, 0.5 - 1e-6, 0.1, 1e-3, 1e-7, 1e-9, 0, 0])
    x = with_spectrum(*shape, values.double())
    expected = reference.singular_value_clip(x, cap)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        for number in (cap, torch.tensor(cap, dtype=dtype)):
            y = P.singular_value_clip(x.to(dtype), number)
            torch.testing.assert_close(y.double(), expected, rtol=0, atol=tolerance)


def test_gradients() -> None:
    x = matrix(3, 5).requires_grad_()
    check = torch.autograd.gradcheck
    for gram in (False, True):
        for scale in ("frobenius", "gram"):
            options: Any = {"gram": gram, "scale": scale}
            assert check(lambda t, o=options: P.orthogonalize(t, 3, **o), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: P.orthogonalize(t, 2), x, fast_mode=True)
    assert check(P.polar_factor, x, fast_mode=True)
    assert check(P.polar_nuclear_norm, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(P.polar_nuclear_norm, x, fast_mode=True)
    cap = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    assert check(P.singular_value_clip, (x, cap), fast_mode=True)
    (slope,) = torch.autograd.grad(P.polar_nuclear_norm(x), x)
    torch.testing.assert_close(slope, P.polar_factor(x.detach()))
    (zero,) = torch.autograd.grad(
        P.polar_nuclear_norm(z := torch.zeros(2, 3, requires_grad=True)), z
    )
    assert zero.eq(0).all()
    mapped = torch.func.vmap(torch.func.grad(P.polar_nuclear_norm))(torch.stack([x.detach()] * 2))
    torch.testing.assert_close(mapped[1], slope)


# ---- Muon ----


def network(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    shapes = ((6, 10), (10, 6), (6, 10), (4, 4))
    return [torch.nn.Parameter(matrix(*s).to(dtype) * 0.3) for s in shapes]


def set_gradients(params: list[torch.nn.Parameter], step: int) -> None:
    g = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw"])
def test_muon_against_its_formula_and_against_torch(nesterov: bool, adjust: Any) -> None:
    options: dict[str, Any] = {
        "lr": 0.02,
        "weight_decay": 0.1,
        "momentum": 0.9,
        "nesterov": nesterov,
        "adjust_lr_fn": adjust,
    }
    exact, ours, theirs = (network(torch.float64) for _ in range(3))
    optimizers = [
        Muon(exact, dtype=torch.float64, **options),
        Muon(ours, **options),
        torch.optim.Muon(theirs, **options),
    ]
    expected = [p.detach().clone() for p in exact]
    momenta = [torch.zeros_like(p) for p in expected]
    for step in range(3):
        for params, optimizer in zip((exact, ours, theirs), optimizers, strict=True):
            set_gradients(params, step)
            optimizer.step()
        for i, p in enumerate(exact):
            assert p.grad is not None
            momenta[i] = 0.9 * momenta[i] + 0.1 * p.grad
            update = 0.1 * p.grad + 0.9 * momenta[i] if nesterov else momenta[i]
            rows, columns = p.shape
            ratio = (
                0.2 * math.sqrt(max(rows, columns))
                if adjust == "match_rms_adamw"
                else math.sqrt(max(1, rows / columns))
            )
            update = reference.orthogonalized(update, [P.STEEP] * 5)
            expected[i] = (1 - 0.002) * expected[i] - 0.02 * ratio * update
        for a, b, c, d in zip(exact, expected, ours, theirs, strict=True):
            torch.testing.assert_close(a.detach(), b, rtol=0, atol=1e-12)
            # bfloat16 orthogonalization, twice.
            torch.testing.assert_close(c, d, rtol=0, atol=0.02 * (step + 1) * 0.1)
            torch.testing.assert_close(
                optimizers[1].state[c]["momentum_buffer"],
                optimizers[2].state[d]["momentum_buffer"],
            )


def test_muon_takes_the_state_of_torch() -> None:
    ours, theirs = network(torch.float32), network(torch.float32)
    a, b = Muon(ours, lr=0.1), torch.optim.Muon(theirs, lr=0.02, momentum=0.8)
    set_gradients(theirs, 1)
    b.step()
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            p.copy_(q)
    a.load_state_dict(copy.deepcopy(b.state_dict()))
    assert a.param_groups[0]["momentum"] == 0.8
    set_gradients(ours, 2)
    set_gradients(theirs, 2)
    a.step()
    b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-3)
    torch.optim.Muon(theirs).load_state_dict(a.state_dict())


def test_muon_with_a_tensor_for_a_learning_rate() -> None:
    results = []
    for lr in (0.02, torch.tensor(0.02)):
        params = network(torch.float32)
        params[3].grad = None
        optimizer = Muon(params, lr=lr, method="polar_express", dtype=torch.float32)
        set_gradients(params[:3], 1)
        optimizer.step()
        results.append(params)
    for p, q, start in zip(*results, network(torch.float32), strict=True):
        torch.testing.assert_close(p, q)
        assert torch.equal(p, start) == (p.grad is None)
    zero = torch.nn.Parameter(torch.ones(2, 3))
    zero.grad = torch.zeros(2, 3)
    Muon([zero], weight_decay=0.0).step()
    assert zero.eq(1).all()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: P.orthogonalize(x[0]), ValueError, r"`matrices\[0\]` of at least 2 dimensions"),
        (lambda x: P.orthogonalize(x, 0), ValueError, "`steps` to be at least 1, got 0"),
        (lambda x: P.orthogonalize(x, method="svd"), ValueError, "`method` to be one of"),
        (lambda x: P.orthogonalize(x, gram="always"), ValueError, "`gram` to be a bool or 'auto'"),
        (lambda x: P.orthogonalize(x, dtype=torch.float16), ValueError, "`dtype` bfloat16"),
        (lambda x: P.orthogonalize(x, coefficients=[(1.0, 2.0)]), ValueError, "`coefficients` of"),
        (lambda x: P.polar_express_coefficients(3, 2.0), ValueError, r"`lower` in \(0, 1\)"),
        (lambda x: P.polar_factor(x.int()), TypeError, "`matrix` of dtype float32"),
        (lambda x: P.singular_value_clip(x, -1.0), ValueError, "`cap` to be at least 0"),
        (lambda x: Muon([x[0]]), ValueError, r"`params` to be matrices, got \(3,\)"),
        (lambda x: Muon([x], lr=-1.0), ValueError, "`lr` to be at least 0"),
        (lambda x: Muon([x], adjust_lr_fn="rms"), ValueError, "`adjust_lr_fn` to be original or"),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(torch.ones(2, 3))

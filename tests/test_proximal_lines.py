"""Total variation, isotonic regression, soft ranks and spectral risks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regkern.proximal import isotonic, total_variation
from regkern.reference.proximal import total_variation as reference
from torch import Tensor

INF, NAN = math.inf, math.nan


# ---- total variation ----


def test_four_numbers() -> None:
    """Others give [1, 1, 4, 4]."""
    x = torch.tensor([1.0, 1, 5, 5])
    assert torch.equal(
        total_variation.prox_total_variation(x, 1.0), torch.tensor([1.5, 1.5, 4.5, 4.5])
    )
    y = total_variation.prox_fused_lasso(x, 1.0, 2.0)
    assert torch.equal(y, torch.tensor([0, 0, 2.5, 2.5]))


def _optimal(x: Tensor, y: Tensor, lam: float) -> bool:
    """The dual variable, the running sum of y − x, is in [−λ, λ], and at its end where y jumps."""
    u = (y - x).cumsum(-1)
    jump = y.diff().sign()
    inside = float(u[..., :-1].abs().max()) <= lam + 1e-9 if x.shape[-1] > 1 else True
    ends = (u[..., :-1] - lam * jump).abs()[y.diff().abs() > 1e-9]
    return inside and float(u[..., -1].abs().max()) < 1e-9 and bool((ends < 1e-8).all())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    st.floats(0, 30, width=32, exclude_min=True, allow_subnormal=False),
)
def test_total_variation_is_optimal(values: list[float], lam: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    assert _optimal(x, total_variation.prox_total_variation(x, lam), lam)


@pytest.mark.parametrize("lam", [0.1, 1.0, 7.0])
def test_long_lines_and_ties(lam: float) -> None:
    torch.manual_seed(0)
    for x in (torch.randn(3, 3000).double(), torch.randint(-2, 3, (30, 50)).double()):
        assert _optimal(x, total_variation.prox_total_variation(x, lam), lam)
    x = torch.randint(-2, 3, (6, 12)).double()
    torch.testing.assert_close(
        total_variation.prox_total_variation(x, lam), reference.prox_total_variation(x, lam)
    )


def test_total_variation_corners() -> None:
    x = torch.randn(5, 7)
    x[1, 2], x[3, 0] = NAN, INF
    y = total_variation.prox_total_variation(x, 0.5)
    assert torch.equal(y.isnan().all(1), torch.tensor([False, True, False, True, False]))
    assert not y[::2].isnan().any()
    same = total_variation.prox_total_variation(x, 0.0)
    torch.testing.assert_close(same, x, rtol=0, atol=0, equal_nan=True)
    mean = total_variation.prox_total_variation(x[::2], INF)
    torch.testing.assert_close(mean, x[::2].mean(1, keepdim=True).expand(3, 7))
    for shape in ((0, 4), (4, 0), (3, 1)):
        e = torch.randn(shape)
        assert torch.equal(total_variation.prox_total_variation(e, 1.0), e)
    bad = total_variation.prox_total_variation(x[::2], torch.tensor([1.0, -1.0, NAN]))
    assert torch.equal(bad.isnan().all(1), torch.tensor([False, True, True]))
    x = torch.randn(2, 6, requires_grad=True)
    (g,) = torch.autograd.grad(total_variation.prox_total_variation(x, 0.0)[:, 2].sum(), x)
    assert torch.equal(g, torch.eye(6)[2].expand(2, 6))


def test_total_variation_along_dimensions_and_dtypes() -> None:
    x = torch.randn(4, 9, 3)
    lam = torch.rand(4, 3)
    y = total_variation.prox_total_variation(x, lam, 1)
    for i, j in itertools.product(range(4), range(3)):
        line = x[i, :, j].contiguous()
        assert torch.equal(y[i, :, j], total_variation.prox_total_variation(line, lam[i, j]))
    for dtype in (torch.bfloat16, torch.float16):
        h = x.to(dtype)
        wide = total_variation.prox_total_variation(h.float(), 0.4)
        assert torch.equal(total_variation.prox_total_variation(h, 0.4), wide.to(dtype))
    huge = torch.tensor([1e30, 1e30, -1e30])
    assert torch.equal(total_variation.prox_total_variation(huge, 1.0), huge)


def test_gradient_of_lambda_is_signed_by_the_jumps() -> None:
    lam = torch.tensor(1.0, requires_grad=True)
    y = total_variation.prox_total_variation(torch.tensor([1.0, 1, 5, 5]), lam)
    (g,) = torch.autograd.grad(y @ torch.tensor([1.0, 0, 0, 0]), lam)
    assert float(g) == 0.5
    with pytest.raises(ValueError, match="`lam` to be at least 0, got -1"):
        total_variation.prox_total_variation(torch.ones(3), -1.0)


# ---- isotonic regression ----


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30), st.booleans())
def test_isotonic_is_optimal(values: list[float], weighted: bool) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    w = torch.linspace(0.5, 2.0, len(values)).double() if weighted else torch.ones_like(x)
    y = isotonic.isotonic_regression(x, w if weighted else None)
    assert (y.diff() >= 0).all()
    # The running sum of w (x − y) is at least 0, ends at 0, and is 0 where y grows.
    u = (w * (x - y)).cumsum(0)
    assert float(u.min()) >= -1e-9
    assert abs(float(u[-1])) < 1e-9
    assert bool((u[:-1][y.diff() > 1e-9].abs() < 1e-9).all())
    down = isotonic.isotonic_regression(x, w if weighted else None, increasing=False)
    torch.testing.assert_close(down, -isotonic.isotonic_regression(-x, w if weighted else None))


def test_isotonic_corners() -> None:
    x = torch.randn(3, 6)
    x[1, 2] = NAN
    y = isotonic.isotonic_regression(x)
    assert torch.equal(y.isnan().all(1), torch.tensor([False, True, False]))
    assert torch.equal(isotonic.isotonic_regression(torch.arange(5.0)), torch.arange(5.0))
    assert isotonic.isotonic_regression(torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match="`weights` like `x`"):
        isotonic.isotonic_regression(torch.ones(3), torch.ones(4))


def test_permutahedron() -> None:
    torch.manual_seed(3)
    for n in (1, 2, 4):
        x, w = torch.randn(n).double(), torch.randn(n).double()
        y = isotonic.permutahedron_projection(x, w)
        # Majorised by w, and no vertex is in the direction of x.
        a, b = y.sort(descending=True).values.cumsum(0), w.sort(descending=True).values.cumsum(0)
        assert (a <= b + 1e-12).all()
        assert abs(float(a[-1] - b[-1])) < 1e-12
        for order in itertools.permutations(range(n)):
            assert float((x - y) @ (w[list(order)] - y)) <= 1e-10


def test_soft_ranks_and_sorts() -> None:
    x = torch.tensor([[3.0, 1, 2], [0, 5, 4]])
    assert torch.equal(isotonic.soft_rank(x, 0.1), torch.tensor([[3.0, 1, 2], [1, 3, 2]]))
    assert torch.equal(isotonic.soft_sort(x, 0.1), x.sort(-1).values)
    down = isotonic.soft_sort(x, 0.1, descending=True)
    assert torch.equal(down, x.sort(-1, descending=True).values)
    mean = isotonic.soft_rank(x, 1e6)
    torch.testing.assert_close(mean, torch.full((2, 3), 2.0), rtol=0, atol=1e-4)
    assert torch.equal(isotonic.soft_rank(x.t(), 0.1, 0), isotonic.soft_rank(x, 0.1).t())
    for f in (isotonic.soft_rank, isotonic.soft_sort):
        z = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda v, f=f: f(v, 0.7), z)
        with pytest.raises(ValueError, match="`regularization` to be positive"):
            f(x, 0.0)


# ---- spectral risks ----

SPECTRA = {
    "cvar": isotonic.cvar_spectrum(8, 0.35),
    "extremile": isotonic.extremile_spectrum(8, 2.5),
    "exponential": isotonic.exponential_spectrum(8, 1.5),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_spectra(name: str) -> None:
    s = SPECTRA[name]
    assert float(s.sum()) == pytest.approx(1.0)
    assert (s.diff() >= -1e-15).all()
    losses = torch.randn(8, dtype=torch.float64)
    plain = isotonic.spectral_risk(losses, s, nu=0.0)
    torch.testing.assert_close(plain, (s * losses.sort().values).sum())


def test_average_of_the_largest() -> None:
    losses = torch.tensor([1.0, 9, 3, 7])
    s = isotonic.cvar_spectrum(4, 0.5)
    assert float(isotonic.spectral_risk(losses, s, nu=0.0)) == pytest.approx(8.0)
    for penalty in ("chi2", "kl"):
        # Strongly penalised it is the mean.
        risk = isotonic.spectral_risk(losses, s, penalty, 1e4)  # type: ignore[arg-type]
        assert float(risk) == pytest.approx(5.0, abs=1e-2)


@pytest.mark.parametrize("penalty", ["chi2", "kl"])
@pytest.mark.parametrize("nu", [0.02, 0.5, 5.0])
@pytest.mark.parametrize("name", SPECTRA)
def test_spectral_risk_is_the_maximum(name: str, nu: float, penalty: str) -> None:
    torch.manual_seed(4)
    s = SPECTRA[name]
    losses = torch.randn(8, dtype=torch.float64, requires_grad=True)

    def value(q: Tensor) -> Tensor:
        if penalty == "chi2":
            d = 8 * ((q - 1 / 8) ** 2).sum(-1)
        else:
            d = torch.special.xlogy(q, 8 * q).sum(-1)
        return q @ losses.detach() - nu * d

    q = isotonic.spectral_risk_weights(losses, s, penalty, nu)  # type: ignore[arg-type]
    risk = isotonic.spectral_risk(losses, s, penalty, nu)  # type: ignore[arg-type]
    assert float(risk.detach()) == pytest.approx(float(value(q.detach())), abs=1e-12)
    corners = torch.stack([s[torch.randperm(8)] for _ in range(300)])
    for share in (1.0, 0.3, 0.01):
        assert (
            float(value(q.detach() + share * (corners - q.detach())).max())
            <= float(risk.detach()) + 1e-9
        )
    (gradient,) = torch.autograd.grad(risk, losses)
    torch.testing.assert_close(gradient, q.detach(), rtol=0, atol=1e-9)  # Danskin
    assert torch.autograd.gradcheck(
        lambda v: isotonic.spectral_risk_weights(v, s, penalty, nu),  # type: ignore[arg-type]
        losses,
    )


def test_spectral_risk_errors() -> None:
    s = isotonic.cvar_spectrum(4)
    with pytest.raises(ValueError, match="one dimension"):
        isotonic.spectral_risk(torch.ones(2, 2), s)
    with pytest.raises(ValueError, match="`spectrum` of shape"):
        isotonic.spectral_risk(torch.ones(3), s)
    with pytest.raises(ValueError, match="`penalty` to be one of"):
        isotonic.spectral_risk(torch.ones(4), s, "tv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`alpha`"):
        isotonic.cvar_spectrum(4, 0.0)
    with pytest.raises(ValueError, match="`r`"):
        isotonic.extremile_spectrum(4, 0.5)

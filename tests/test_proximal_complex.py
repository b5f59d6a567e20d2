"""Shrinkage of complex magnitudes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from recording import Call, Recorder
from regkern.proximal import complex_magnitude as C
from regkern.proximal.elementwise import prox_elementwise
from regkern.reference.proximal import elementwise as reference

LAWS: list[tuple[Any, float | None]] = [
    ("soft", None), ("hard", None), ("elastic_net", 0.3), ("squared", None), ("scad", 3.7),
    ("mcp", 2.5), ("log_sum", 0.3), ("capped", 0.7), ("half", None), ("two_thirds", None),
    ("cel0", 0.8),
]  # fmt: skip


@pytest.mark.parametrize(("law", "shape"), LAWS)
def test_against_the_definition(law: Any, shape: float | None) -> None:
    for dtype in (torch.complex64, torch.complex128):
        g = torch.Generator().manual_seed(5)
        z = torch.randn(30, 50, dtype=dtype, generator=g)
        z[0, :3] = 0
        y = C.prox_complex(z, law, 0.6, 0.7, shape=shape)
        pairs = torch.view_as_real(z.to(torch.complex128))
        expected = reference.prox_pairs(pairs, law, 0.6, 0.7, shape=shape or 0.0)
        torch.testing.assert_close(torch.view_as_real(y).double(), expected, rtol=1e-5, atol=2e-6)
        r = prox_elementwise(z.abs(), law, 0.6, 0.7, shape=shape)
        torch.testing.assert_close(y.abs(), r, rtol=1e-5, atol=2e-6)
        w = z.clone()
        report = C.prox_complex_([w, w[:0]], law, 0.6, 0.7, shape=shape)
        assert torch.equal(torch.view_as_real(w), torch.view_as_real(y))
        assert int(report.zeros) == int((y == 0).sum())


@pytest.mark.parametrize(("law", "shape"), LAWS)
def test_gradients(law: Any, shape: float | None) -> None:
    g = torch.Generator().manual_seed(6)
    z = torch.randn(4, 5, dtype=torch.complex128, generator=g).requires_grad_()
    t, lam = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.6, 0.7))

    def call(z: torch.Tensor, t: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        return C.prox_complex(z, law, t, lam, shape=shape)

    assert torch.autograd.gradcheck(call, (z, t, lam))
    assert torch.autograd.gradgradcheck(call, (z, t, lam), fast_mode=True)


def test_corners() -> None:
    z = torch.tensor([0, 3 + 4j, complex(math.inf, 1), complex(math.nan, 1), 3e30 + 4e30j])
    assert torch.equal(C.prox_complex(z[:3], "soft", 0.0), z[:3])
    assert C.prox_complex(z, "soft", math.inf)[[0, 1, 2, 4]].eq(0).all()
    y = C.prox_complex(z, "soft", 1.0)
    torch.testing.assert_close(y[1], torch.tensor(2.4 + 3.2j))
    assert y[0] == 0
    assert y[3].isnan()
    torch.testing.assert_close(y[4], z[4])  # no overflow
    x = torch.zeros(3, dtype=torch.complex64, requires_grad=True)
    (dx,) = torch.autograd.grad(C.prox_complex(x, "soft", 0.5).abs().sum(), x)
    assert dx.eq(0).all()


def record() -> list[Call]:
    """For test_contract: the same bits elsewhere."""
    torch.manual_seed(0)
    with Recorder() as recorder:
        for dtype in (torch.complex64, torch.complex128):
            for law, shape in LAWS:
                z = torch.randn(70, 300, dtype=dtype, requires_grad=True)
                C.prox_complex(z, law, 0.6, shape=shape).abs().sum().backward()
                C.prox_complex_([z.detach().clone()], law, 0.6, shape=shape)
    return recorder.calls


def test_errors() -> None:
    with pytest.raises(TypeError, match="complex64 or complex128"):
        C.prox_complex(torch.ones(3), "soft")
    with pytest.raises(ValueError, match="one of soft"):
        C.prox_complex(torch.ones(3, dtype=torch.complex64), "lasso")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a tensor in `tensors`"):
        C.prox_complex_([], "soft")

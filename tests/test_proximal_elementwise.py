"""The elementwise shrinkage laws: global minimisers, corners, errors, the defects of others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from regkern.nn.proximal.elementwise import Shrink
from regkern.proximal import elementwise as E
from regkern.proximal import penalties_elementwise as P
from regkern.reference.proximal import elementwise as reference
from torch import Tensor

SHAPED: list[tuple[str, float | None]] = [
    ("soft", None), ("hard", None), ("elastic_net", 0.0), ("elastic_net", 0.4), ("squared", None),
    ("scad", 1.2), ("scad", 2.5), ("scad", 6.0), ("mcp", 0.5), ("mcp", 3.0), ("log_sum", 0.05),
    ("log_sum", 1.0), ("capped", 0.5), ("capped", 3.0), ("half", None), ("two_thirds", None),
    ("cel0", 0.0), ("cel0", 0.5), ("cel0", 2.0),
]  # fmt: skip
laws = pytest.mark.parametrize(("law", "shape"), SHAPED)


@laws
def test_is_the_global_minimiser(law: str, shape: float | None) -> None:
    """Against a search on a grid, in the domain where the problem is not convex, too."""
    s = torch.arange(1, 60, dtype=torch.float64) * 0.127
    grid = torch.linspace(0, 1, 3001, dtype=torch.float64)[:, None] * s
    a = 0.0 if shape is None else shape
    for lam in (0.3, 1.0, 2.0):
        for step in (0.05, 0.5, 1.0, 1.6, 4.0, 9.0):

            def cost(r: Tensor, lam: float = lam, step: float = step) -> Tensor:
                value = reference.law_value(law, r, torch.tensor(lam, dtype=r.dtype), a)
                return 0.5 * (r - s) ** 2 + step * value

            best = cost(grid).min(0).values
            for dtype, slack in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
                for sign in (1, -1):
                    y = E.prox_elementwise(sign * s.to(dtype), law, step, lam, shape=shape)
                    assert (sign * y >= 0).all()
                    assert (cost(y.abs().double()) <= best + slack).all(), (lam, step, dtype)


def test_mcp_beyond_its_convex_domain() -> None:
    # skglm 0.4 has 0 here.
    y = E.prox_elementwise(torch.tensor([1.9, 1.7]), "mcp", 4.0, 0.5, shape=3.0)
    assert y.tolist() == [pytest.approx(1.9), 0.0]


def test_ties_at_jumps_go_to_the_smaller() -> None:
    x = torch.tensor([2.0, math.nextafter(2.0, 3.0)], dtype=torch.float64)
    assert E.prox_elementwise(x, "hard", 2.0).tolist() == [0.0, x[1].item()]
    one = torch.tensor([1.5], dtype=torch.float64)  # 3/2 τ^(2/3)
    assert E.prox_elementwise(one * (1 - 1e-12), "half").item() == 0.0
    assert E.prox_elementwise(one * (1 + 1e-12), "half").item() == pytest.approx(1.0)


@laws
def test_corners(law: str, shape: float | None) -> None:
    x = torch.tensor([-0.0, 0.0, 1e-40, -1e-20, 0.3, -7.0, 1e30, math.inf, -math.inf, math.nan])
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        v = x.to(dtype)
        call: Any = lambda *a, v=v, **k: E.prox_elementwise(v, law, *a, shape=shape, **k)  # noqa: E731
        for y in (call(0.0), call(1.0, 0.0), call(weights=torch.zeros(10)), call(0.0, math.inf)):
            same = y.view(torch.uint8) == v.view(torch.uint8)
            assert same[: -v.element_size()].all()
            assert y[-1].isnan()
        for y in (call(math.inf), call(1.0, math.inf), call(weights=torch.full((10,), math.inf))):
            assert (y[:-1] == 0).all()
            assert y[-1].isnan()
        y = call(0.5)
        assert y[-1].isnan()
        assert y[:2].eq(0).all()
        infinite = v.isinf()
        assert torch.equal(y[infinite], v[infinite])
        assert call(torch.tensor(math.nan)).isnan().all()


def test_gradient_at_zero_and_at_identity() -> None:
    x = torch.tensor([0.0, 1.0, -2.0], requires_grad=True)
    step = torch.tensor(0.0, requires_grad=True)
    for law, shape in SHAPED:
        dx, dt = torch.autograd.grad(E.prox_elementwise(x, law, step, shape=shape).sum(), (x, step))
        assert torch.equal(dx, torch.ones(3)), law
        assert dt.isfinite(), law


def test_weights_broadcast() -> None:
    x, w = torch.randn(6, 5, 4), torch.rand(5, 1)
    expected = torch.stack(
        [E.prox_elementwise(x[:, i], "soft", 0.7 * w[i, 0]) for i in range(5)], 1
    )
    torch.testing.assert_close(E.prox_elementwise(x, "soft", 0.7, weights=w), expected)
    w.requires_grad_()
    E.prox_elementwise(x, "soft", 0.7, weights=w).sum().backward()
    y = torch.nn.functional.softshrink(x, 0.0) * 0 + x.sign() * (x.abs() - 0.7 * w).clamp_min(0)
    torch.testing.assert_close(w.grad, torch.autograd.grad(y.sum(), w)[0])


def test_list_in_place() -> None:
    tensors = [torch.randn(3, 5), torch.randn(0), torch.randn(70, 33), torch.randn(4).bfloat16()]
    tensors += [torch.randn(6, 8).t(), torch.randn(5).double().requires_grad_()]
    expected = [
        E.prox_elementwise(x.detach().clone(), "scad", 0.5, 0.7, shape=3.7) for x in tensors
    ]
    versions = [x._version for x in tensors]
    report = E.prox_elementwise_(tensors, "scad", torch.tensor(0.5), 0.7, shape=3.7)
    for a, b in zip(tensors, expected, strict=True):
        assert torch.equal(a.detach(), b)
    assert report.norms == ()
    assert int(report.zeros) == sum(int((y == 0).sum()) for y in expected)
    assert all(x._version > v for x, v in zip(tensors, versions, strict=True))
    w = [torch.rand(x.shape) for x in tensors]
    a = torch.rand(())
    before = [x.detach().clone() for x in tensors]
    E.prox_elementwise_(tensors, "cel0", 0.5, shape=[a] * len(tensors), weights=w)
    for x, b, v in zip(tensors, before, w, strict=True):
        assert torch.equal(x.detach(), E.prox_elementwise(b, "cel0", 0.5, shape=a, weights=v))


def test_penalty_forms_agree() -> None:
    xs = [torch.randn(300, 70), torch.randn(11), torch.randn(5, 4).double()]
    for law, shape in [*SHAPED, ("power", 0.5), ("power", 2.0)]:
        leaves = [x.clone().requires_grad_() for x in xs]
        value = E.penalty_elementwise(leaves, law, 0.7, shape=shape)
        definition = sum(
            reference.penalty_elementwise([x.double()], law, 0.7, shape=shape or 0.0) for x in xs
        )
        torch.testing.assert_close(value.detach(), definition, rtol=2e-6, atol=1e-6)
        value.backward()
        again, gradients = E.penalty_value_and_gradients(xs, law, 0.7, shape=shape)
        assert torch.equal(value.detach(), again)
        sums = [torch.ones_like(x) for x in xs]
        added = E.penalty_add_gradients_(xs, sums, law, 0.7, shape=shape, scale=2.0)
        assert torch.equal(added, again)
        for leaf, gradient, total in zip(leaves, gradients, sums, strict=True):
            assert leaf.grad is not None
            assert torch.equal(leaf.grad, gradient)
            torch.testing.assert_close(total, 1 + 2 * gradient)


def test_power_gradient_is_guarded_at_zero() -> None:
    x = torch.tensor([0.0, 0.25, -4.0], requires_grad=True)
    E.penalty_elementwise(x, "power", 2.0, shape=0.5).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 2.0, -0.5]))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: E.prox_elementwise(x, "lasso"), "one of soft"),
        (lambda x: E.prox_elementwise(x, "power", shape=0.5), "one of soft"),
        (lambda x: E.prox_elementwise(x, "soft", -1.0), "`step` to be at least 0, got -1"),
        (lambda x: E.prox_elementwise(x, "soft", 1.0, math.nan), "`lam` to be at least 0"),
        (lambda x: E.prox_elementwise(x, "mcp"), "`shape` to be a number above 0 for mcp"),
        (lambda x: E.prox_elementwise(x, "scad", shape=1.0), "above 1 for scad, got 1.0"),
        (lambda x: E.prox_elementwise(x, "soft", shape=1.0), "no `shape` for soft"),
        (lambda x: E.prox_elementwise(x.int(), "soft"), "dtype"),
        (lambda x: E.prox_elementwise(x, "soft", low=0.5), "`low` <= 0 <= `high`"),
        (lambda x: E.prox_elementwise(x, "soft", weights=torch.ones(3)), "broadcast to"),
        (lambda x: E.prox_elementwise_([], "soft"), "a tensor in `tensors`"),
        (lambda x: E.prox_elementwise_([x, 3], "soft"), "tensors\\[1\\]"),
        (lambda x: E.penalty_add_gradients_([x], [x[0]], "soft"), "grads\\[0\\]"),
        (lambda x: E.penalty_elementwise([x], "soft", weights=[x, x]), "as many tensors"),
    ],
)
def test_errors(call: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call(torch.randn(4, 5))


def test_raw_errors() -> None:
    x, one = torch.randn(4), torch.ones(())
    ops = torch.ops.regkern
    with pytest.raises(RuntimeError, match="prox_elementwise: expected `law` to be one of soft"):
        ops.prox_elementwise(x, one, one, None, None, "power", 0.0, -1.0, 1.0)
    with pytest.raises(RuntimeError, match="expected `t` of dtype float32"):
        ops.prox_elementwise(x, one.double(), one, None, None, "soft", 0.0, -1.0, 1.0)
    with pytest.raises(RuntimeError, match="expected `weights` of shape"):
        ops.prox_elementwise(x, one, one, x[:3], None, "soft", 0.0, -1.0, 1.0)
    with pytest.raises(RuntimeError, match="of the dtype of"):
        ops.prox_elementwise_([x, x.double()], one, one, [], [], "soft", 0.0, -1.0, 1.0)


# ---- penalties as objects ----

PENALTIES = [
    P.L1(0.7), P.L1(0.7, nonnegative=True), P.L0(0.7), P.ElasticNet(0.7, 0.3), P.SquaredL2(0.7),
    P.SCAD(0.7), P.MCP(0.7), P.LogSum(0.7, 0.2), P.CappedL1(0.7, 0.5), P.LHalf(0.7),
    P.LTwoThirds(0.7), P.CEL0(0.7, 0.6), P.Power(0.7, 1.0), P.Power(0.7, 2.0), P.Power(0.7, 0.5),
    P.NonNegative(), P.Box(-0.4, 0.9),
]  # fmt: skip


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda p: type(p).__name__)
def test_prox_minimises_the_value(penalty: P.ElementwisePenalty) -> None:
    """By the objects alone: value and operator belong together."""
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)
    for step in (0.3, 2.0):
        y = penalty.prox(x, step)
        z = x.clone()
        report = penalty.prox_(z, step)
        assert torch.equal(y, z)
        assert int(report.zeros) == int((y == 0).sum())
        for v, at in zip(x, y, strict=True):
            grid = torch.cat([torch.linspace(-3, 3, 121, dtype=torch.float64), at[None]])
            if penalty.low == 0:
                grid = grid[grid >= 0]
            cost = [0.5 * (g - v) ** 2 + step * penalty.value(g) for g in grid]
            assert cost[-1] <= min(cost) + 1e-12


def test_penalty_objects() -> None:
    x = [torch.randn(5, 4), torch.randn(3)]
    penalty = P.MCP(torch.tensor(0.5), 2.0, weights=[torch.rand(4), torch.rand(3)])
    value, gradients = penalty.value_and_gradients(x)
    leaves = [t.clone().requires_grad_() for t in x]
    penalty.value(leaves).backward()
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, gradient)
    sums = [torch.zeros_like(t) for t in x]
    assert torch.equal(penalty.add_gradients_(x, sums), value)
    with pytest.raises(ValueError, match="no closed form"):
        P.Power(1.0, 1.3).prox(x[0])
    with pytest.raises(ValueError, match=r"`weights` of one tensor"):
        penalty.prox(x[0])
    with pytest.raises(ValueError, match=r"above 1 for scad, got 0\.5"):
        P.SCAD(1.0, 0.5)
    with pytest.raises(ValueError, match="`lam` to be at least 0"):
        P.L1(-1.0)


def test_power_from_moments() -> None:
    assert P.expected_power(1.0, math.sqrt(2 / math.pi)) == pytest.approx(2.0)  # Gaussian
    assert P.expected_power(2.0, 1.0) == pytest.approx(1.0)  # Laplace


def test_shrink_module() -> None:
    x = torch.randn(4, 5)
    layer = Shrink("soft", 0.5)
    torch.testing.assert_close(layer(x), torch.nn.Softshrink(0.5)(x))
    assert list(layer.parameters()) == []
    assert "threshold" in layer.state_dict()
    learned = Shrink("mcp", 0.3, 0.7, shape=2.0, learned=True)
    learned(x).sum().backward()
    assert learned.threshold.grad is not None
    assert learned.threshold.grad != 0
    assert "mcp" in repr(learned)
    with pytest.raises(TypeError, match="`shape` to be a number above 0 for mcp"):
        Shrink("mcp")


@pytest.mark.parametrize("law", ["soft", "half", "hard"])
def test_an_infinite_step_has_no_gradient(law: Any) -> None:
    """With weights, and a length that fills no block."""
    x, w = torch.linspace(-2, 2, 37).requires_grad_(), torch.linspace(0.5, 1, 37)
    step, lam = torch.tensor(math.inf, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    y = E.prox_elementwise(x, law, step, lam, weights=w)
    for gradient in torch.autograd.grad(y.sum(), (x, step, lam)):
        assert gradient.eq(0).all()

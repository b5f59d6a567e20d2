"""Optimizers that look for flat minima, and gradients of gradient penalties."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from regkern.optim import sharpness as S
from regkern.optim.clipping import clip_grad_norm_
from regkern.spectral import gradient_penalties as G
from torch import Tensor

LR = 0.1
Loss = Callable[[list[Tensor]], Tensor]


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    g = torch.Generator().manual_seed(5)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=g, dtype=dtype))
        for shape in ((4, 3), (4,), (1, 4))
    ]


def loss_of(w: list[Any]) -> Tensor:
    x = torch.linspace(-1, 1, 15, dtype=w[0].dtype).view(5, 3)
    return ((torch.tanh(x @ w[0].T + w[1]) @ w[2].T - x.sum(1, True).cos()) ** 2).mean()


def gradient(w: list[Any], loss: Loss = loss_of) -> list[Tensor]:
    leaves = [p.detach().clone().requires_grad_() for p in w]
    return list(torch.autograd.grad(loss(leaves), leaves))


def norm(xs: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in xs]).norm()


def plus(xs: list[Any], a: Any, ys: list[Any]) -> list[Tensor]:
    return [x.detach() + a * y for x, y in zip(xs, ys, strict=True)]


def closure_of(optimizer: torch.optim.Optimizer, w: list[Any]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(w)
        loss.backward()
        return loss

    return closure


def stepped(make: Callable[..., torch.optim.Optimizer], **options: Any) -> list[Tensor]:
    """What one step of an optimizer around SGD leaves; its loss is the one from before."""
    w = parameters()
    before = float(loss_of(w).detach())
    optimizer = make(torch.optim.SGD(w, lr=LR), **options)
    assert float(optimizer.step(closure_of(optimizer, w)).detach()) == before  # type: ignore[arg-type]
    return [p.detach() for p in w]


def expect(actual: list[Tensor], g: list[Tensor], rtol: float = 1e-10) -> None:
    """That the step was one of SGD with these gradients."""
    for a, b in zip(actual, plus(parameters(), -LR, g), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("storage", ["kept", "swapped"])
def test_sam(storage: Any) -> None:
    w = parameters()
    g = gradient(w)
    there = plus(w, 0.3 / norm(g), g)
    expect(stepped(S.SAM, rho=0.3, storage=storage), gradient(there))
    t = [p.detach().abs() + 0.02 for p in w]
    tg = [a * b for a, b in zip(t, g, strict=True)]
    there = plus(w, 0.3 / norm(tg), [a * b for a, b in zip(t, tg, strict=True)])
    expect(stepped(S.SAM, rho=0.3, adaptive=True, eta=0.02), gradient(there))


def test_sam_in_two_calls_and_for_some_parameters() -> None:
    w = parameters()
    optimizer = S.SAM(torch.optim.SGD(w, lr=LR), rho=0.3, params=w[:1])
    w[1].requires_grad_(False)
    home = w[1].detach().clone()
    loss_of(w).backward()
    optimizer.first_step(zero_grad=True)
    g = gradient(parameters())
    there = [plus(parameters(), 0.3 / g[0].norm(), g)[0], *(p.detach() for p in parameters()[1:])]
    torch.testing.assert_close(w[0].detach(), there[0])
    loss_of(w).backward()
    with pytest.raises(RuntimeError, match="to be restored before it is saved"):
        optimizer.state_dict()
    with pytest.raises(RuntimeError, match="to be restored before it is perturbed again"):
        optimizer.first_step()
    optimizer.second_step()
    expected = gradient(there)
    expected[1].zero_()
    expect([p.detach() for p in w], expected)
    assert torch.equal(w[1], home)


def test_smooth_domain_adversarial_training() -> None:
    """The task's gradient there, the adversary's here."""

    def adversary(v: list[Any]) -> Tensor:
        return sum(((p**3).sum() for p in v), v[0].new_zeros(()))

    w = parameters()
    optimizer = S.SAM(torch.optim.SGD(w, lr=LR), rho=0.3)
    loss_of(w).backward()
    optimizer.first_step(zero_grad=True)
    loss_of(w).backward()
    optimizer.restore()
    adversary(w).backward()
    optimizer.second_step()
    g = gradient(parameters())
    task = gradient(plus(parameters(), 0.3 / norm(g), g))
    expect([p.detach() for p in w], plus(task, 1.0, gradient(parameters(), adversary)))


def test_awp() -> None:
    w, g = parameters(), gradient(parameters())
    # The bias is left alone.
    there = [
        p.detach() + (0.01 * p.detach().norm() / d.norm() * d if p.dim() > 1 else 0.0)
        for p, d in zip(w, g, strict=True)
    ]
    expect(stepped(S.AWP, gamma=0.01), gradient(there))
    with S.weight_perturbation(w, g, 0.01, kind="tensor"):
        torch.testing.assert_close(w[0].detach(), there[0])
    assert all(torch.equal(a, b) for a, b in zip(w, parameters(), strict=True))


@pytest.mark.parametrize("per", ["tensor", "all"])
def test_amp(per: Any) -> None:
    w = parameters()
    deltas = [torch.zeros_like(p) for p in w]
    for _ in range(3):
        deltas = plus(deltas, 0.5, gradient(plus(w, 1.0, deltas)))
        lengths = [norm(deltas)] * 3 if per == "all" else [d.norm() for d in deltas]
        deltas = [d * min(1.0, 0.2 / float(n)) for d, n in zip(deltas, lengths, strict=True)]
    expected = gradient(plus(w, 1.0, deltas))
    expect(stepped(S.AMP, epsilon=0.2, zeta=0.5, inner_steps=3, per=per), expected)


def test_gam_is_the_gradient_of_the_largest_gradient_norm_nearby() -> None:
    """Against exact products with Hessians."""
    w = [p.detach().requires_grad_() for p in parameters()]

    def of_norm(v: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        g = torch.autograd.grad(loss_of(v), v, create_graph=True)
        length = torch.cat([x.flatten() for x in g]).norm()
        return [x.detach() for x in g], list(torch.autograd.grad(length, v))

    here, rise = of_norm(w)
    there = [x.requires_grad_() for x in plus(w, 0.05 / norm(rise), rise)]
    expected = plus(here, 0.7 * 0.05, of_norm(there)[1])
    for a, b in zip(
        stepped(S.GAM, rho=0.05, alpha=0.7, r=1e-5), plus(w, -LR, expected), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scheme", ["forward", "backward", "central"])
def test_products_with_the_hessian(scheme: Any) -> None:
    w = parameters()
    vs = [torch.randn_like(p) for p in w]
    _, exact = torch.autograd.functional.hvp(lambda *v: loss_of(list(v)), tuple(w), tuple(vs))
    for call in (lambda: loss_of(w), lambda: gradient(w)):
        ours = G.finite_difference_hvp(call, w, vs, 1e-6, scheme=scheme)
        for a, b in zip(ours, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(w, parameters(), strict=True))


@pytest.mark.parametrize("squared", [False, True])
def test_gradient_norm_penalty(squared: bool) -> None:
    w = [p.detach().requires_grad_() for p in parameters()]
    g = torch.autograd.grad(loss_of(w), w, create_graph=True)
    length = torch.cat([x.flatten() for x in g]).norm()
    penalty = torch.autograd.grad(length**2 / 2 if squared else length, w)
    expected = plus([x.detach() for x in g], 0.2, list(penalty))
    options = {"weight": 0.2, "eps": 1e-5, "squared": squared, "scheme": "central"}
    actual = stepped(S.GradientNormPenalty, **options)
    for a, b in zip(actual, plus(w, -LR, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_the_forward_penalty_is_sam_and_ignite_is_one() -> None:
    sam = stepped(S.SAM, rho=0.3)
    forward = stepped(S.GradientNormPenalty, weight=0.3, eps=0.3, squared=False)
    ignite = stepped(S.IGNITE, lam=1.0, rho=0.3)
    for a, b, c in zip(sam, forward, ignite, strict=True):
        torch.testing.assert_close(a, b)
        assert torch.equal(b, c)


@pytest.mark.parametrize("rescale", [False, True])
def test_orthogonal_gradients(rescale: bool) -> None:
    w, g = parameters(), gradient(parameters())
    expected = []
    for p, d in zip(w, g, strict=True):
        v = p.detach()
        left = d - (d * v).sum() / (v * v).sum() * v
        expected.append(left * (d.norm() / left.norm()) if rescale else left)
    expect(stepped(S.OrthogonalGrad, rescale=rescale), expected)


def test_full_batch_and_booster() -> None:
    w = parameters()
    losses = [lambda: loss_of(w), lambda: 2 * loss_of(w)]
    ours = G.full_batch_gradient(losses, w, alpha=0.4, eps=1e-5)

    def total(v: list[Any]) -> Tensor:
        g = torch.autograd.grad(loss_of(v), v, create_graph=True)
        square = sum((x**2).sum() for x in g)
        return (3 * loss_of(v) + 0.1 * 5 * square) / 2

    expected = gradient(w, total)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    clipped = G.full_batch_gradient(losses, w, max_norm=1e-3)
    assert float(norm(clipped)) == pytest.approx(1e-3)
    h = gradient(w, lambda v: (v[0] ** 4).sum() + v[1].sum() + v[2].sum())
    harmful = lambda: (w[0] ** 4).sum() + w[1].sum() + w[2].sum()  # noqa: E731
    away = plus(w, -0.3 / norm(h), h)
    there = gradient(away, lambda v: (v[0] ** 4).sum() + v[1].sum() + v[2].sum())
    for a, b in zip(
        G.booster_gradient(lambda: loss_of(w), harmful, w, 2.0, 0.3),
        plus(gradient(w), 2.0, plus(h, -1.0, there)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_vanishing_gradients() -> None:
    """Orthogonal recurrent weights and no nonlinearity: nothing vanishes."""
    size, steps = 4, 3
    x = [torch.randn(2, size, dtype=torch.float64)]
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    weight = q.clone().requires_grad_()
    for _ in range(steps):
        x.append(x[-1] @ weight.T)
    grads = torch.autograd.grad(x[-1].square().sum(), x[1:])
    kept = G.vanishing_gradient_penalty(lambda h, k: h @ weight.T, x, grads)
    assert float(kept.detach()) < 1e-20
    # Half the weights: each factor is a half, and the slope is that of Σ (c − 1)² in c.
    half = (0.5 * q).requires_grad_()
    value = G.vanishing_gradient_penalty(lambda h, k: h @ half.T, x, grads)
    assert float(value.detach()) == pytest.approx(steps * 0.25)
    (slope,) = torch.autograd.grad(value, half)
    assert float((slope * half.detach()).sum()) == pytest.approx(steps * -0.5)
    zero = [torch.zeros_like(g) for g in grads]
    assert G.vanishing_gradient_penalty(lambda h, k: h @ half.T, x, zero) == 0


def test_states_and_copies() -> None:
    w = parameters()
    optimizer = S.SAM(torch.optim.AdamW(w, lr=LR), rho=0.3)
    optimizer.step(closure_of(optimizer, w))
    state = optimizer.state_dict()
    twins = parameters()
    other = S.SAM(torch.optim.AdamW(twins, lr=0.5), rho=0.3)
    other.load_state_dict(copy.deepcopy(state))
    with torch.no_grad():
        for a, b in zip(twins, w, strict=True):
            a.copy_(b)
    optimizer.step(closure_of(optimizer, w))
    other.step(closure_of(other, twins))
    assert all(torch.equal(a, b) for a, b in zip(w, twins, strict=True))
    for kind, options in (
        (S.SAM, {"rho": 0.2}),
        (S.AWP, {"gamma": 0.1, "rows": True}),
        (S.AMP, {"epsilon": 0.1}),
        (S.IGNITE, {"lam": 0.1}),
        (S.OrthogonalGrad, {"rescale": False}),
    ):
        made = kind(torch.optim.SGD(parameters(), lr=LR), **options)
        again = copy.deepcopy(made)
        for name, value in options.items():
            assert getattr(again, name) == value


def test_a_failing_closure_leaves_the_parameters_at_home() -> None:
    w = parameters()
    optimizer = S.SAM(torch.optim.SGD(w, lr=LR), rho=0.3)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("data")
        return closure_of(optimizer, w)()

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(w, parameters(), strict=True))


def test_clipping_of_gradients() -> None:
    w = parameters(torch.float32)
    loss_of(w).backward()
    twins = copy.deepcopy(w)
    for a, b in zip(twins, w, strict=True):
        a.grad = None if b.grad is None else b.grad.clone()
    ours, theirs = clip_grad_norm_(w, 0.1), torch.nn.utils.clip_grad_norm_(twins, 0.1)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(w, twins, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7)
    assert clip_grad_norm_([], 1.0) == 0


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda o: S.SAM(o, rho=-1.0), ValueError, "optim.SAM: expected `rho` to be at least 0"),
        (lambda o: S.SAM(o, p=1.0), ValueError, "`p` to be above 1"),
        (lambda o: S.SAM(o).step(), ValueError, "`closure`, which clears gradients"),
        (lambda o: S.SAM(1), TypeError, "`optimizer` to be a torch.optim.Optimizer"),
        (lambda o: S.AMP(o, 0.1, inner_steps=0), ValueError, "`inner_steps` to be at least 1"),
        (lambda o: S.GAM(o, r=0.0), ValueError, "`r` above 0"),
        (lambda o: S.GradientNormPenalty(o, 1.0, 0.0), ValueError, "`eps` above 0"),
        (
            lambda o: G.finite_difference_hvp(list, [torch.ones(2)], [torch.ones(3)]),
            ValueError,
            r"`vectors\[0\]` like `params\[0\]`",
        ),
        (
            lambda o: G.finite_difference_hvp(
                lambda: [torch.ones(2)] * 2, [torch.ones(2)], [torch.ones(2)]
            ),
            ValueError,
            r"1 tensors from `gradient\(\)`, got 2",
        ),
        (lambda o: G.full_batch_gradient([], torch.ones(2)), ValueError, "a batch in `losses`"),
        (lambda o: clip_grad_norm_([1], 1.0), TypeError, r"`parameters\[0\]` to be a tensor"),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(torch.optim.SGD(parameters(), lr=LR))

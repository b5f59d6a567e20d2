"""Unfolded ISTA and IHT."""

from __future__ import annotations

import math

import pytest
import torch
from regkern.nn.proximal.unfolded import UnfoldedISTA
from torch import Tensor


def _problem(salt: int = 0, batch: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(salt)
    a = torch.randn(20, 40, generator=generator) / math.sqrt(20)
    x = torch.randn(batch, 40, generator=generator)
    x = x * (torch.rand(batch, 40, generator=generator) < 0.08)
    return a, x, x @ a.t()


@pytest.mark.parametrize("law", ["soft", "hard"])
def test_starts_as_the_algorithm(law: str) -> None:
    a, _, y = _problem()
    net = UnfoldedISTA(a, 7, 0.05, law=law)
    gamma = 1 / float(torch.linalg.matrix_norm(a, 2)) ** 2
    x = torch.zeros(64, 40)
    for _ in range(7):
        v = x - gamma * (x @ a.t() - y) @ a
        if law == "soft":
            x = v.sign() * (v.abs() - gamma * 0.05).clamp(min=0)
        else:
            x = v * (v.abs() > math.sqrt(2 * gamma * 0.05))
    torch.testing.assert_close(net(y), x, rtol=1e-4, atol=1e-5)


def test_converges_to_the_minimiser() -> None:
    """The optimality condition of the lasso."""
    a, _, y = _problem()
    a, y = a[:, :10].double(), y[:4].double()
    with torch.no_grad():
        x = UnfoldedISTA(a, 500, 0.05)(y)
    assert (x == 0).any()
    slope = (x @ a.t() - y) @ a
    assert (slope.abs() <= 0.05 + 1e-6).all()
    torch.testing.assert_close(slope[x != 0], -0.05 * x[x != 0].sign(), rtol=1e-4, atol=1e-6)


def test_k_largest() -> None:
    a, _, y = _problem()
    net = UnfoldedISTA(a, 5, law="hard", k=3)
    signal = y.abs().sum(-1) > 0
    assert ((net(y) != 0).sum(-1) == 3 * signal).all()
    assert [name for name, _ in net.named_parameters()] == ["log_steps"]
    net(y).sum().backward()
    assert net.log_steps.grad is not None


def test_learning_helps() -> None:
    a, x, y = _problem(batch=400)
    _, fresh, measured = _problem(batch=200)
    torch.manual_seed(0)
    net = UnfoldedISTA(a, 8, 0.05)
    before = float((net(measured).detach() - fresh).square().mean())
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(50):
        optimizer.zero_grad()
        (net(y) - x).square().mean().backward()
        optimizer.step()
    after = float((net(measured).detach() - fresh).square().mean())
    assert after < 0.7 * before
    assert net.log_thresholds.grad is not None
    assert (net.thresholds > 0).all()


def test_state_and_errors() -> None:
    a, _, y = _problem()
    net, other = UnfoldedISTA(a, 3, learn_dictionary=True), UnfoldedISTA(a * 2, 3)
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(y), other(y))
    assert len(list(net.parameters())) == 3
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y), net(y))
    with pytest.raises(ValueError, match="`k` from 1 to 40"):
        UnfoldedISTA(a, 3, k=2)
    with pytest.raises(ValueError, match="two dimensions"):
        UnfoldedISTA(y[0], 3)
    with pytest.raises(ValueError, match="`lam` above 0"):
        UnfoldedISTA(a, 3, 0.0)
    with pytest.raises(ValueError, match=r"`y` of \(\.\.\., 20\)"):
        net(y[:, :3])

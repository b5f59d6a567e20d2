"""LAWN: an optimizer that holds the norms of the weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from regkern.optim.lawn import LAWN
from torch import Tensor, nn


def _model() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(6, 8), nn.Linear(8, 3)


def _loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model[1](model[0](x).tanh()), y)


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 6, generator=generator), torch.randint(0, 3, (32,), generator=generator)


def _optimizer(model: Any, kind: Any = torch.optim.SGD) -> LAWN:
    params = [p for layer in model for p in layer.parameters()]
    return LAWN(kind(params, lr=0.5 if kind is torch.optim.SGD else 0.01), 3)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_norms_stay_from_then_on(kind: Any) -> None:
    model, (x, y) = _model(), _data()
    optimizer = _optimizer(model, kind)
    norms = []
    for _ in range(10):
        optimizer.zero_grad()
        _loss(model, x, y).backward()
        optimizer.step()
        norms.append([float(layer.weight.detach().norm()) for layer in model])
    assert norms[0] != norms[2]
    for later in norms[3:]:
        assert later == pytest.approx(norms[2], rel=1e-6)


def test_a_step_by_hand() -> None:
    model, (x, y) = _model(), _data()
    optimizer = LAWN(torch.optim.SGD([p for m in model for p in m.parameters()], lr=0.3), 0)
    _loss(model, x, y).backward()
    w, b = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    g, gb = model[0].weight.grad.clone(), model[0].bias.grad.clone()
    optimizer.step()
    tangent = g - (g * w).sum() / (w * w).sum() * w
    moved = w - 0.3 * tangent
    torch.testing.assert_close(model[0].weight.detach(), moved * w.norm() / moved.norm())
    torch.testing.assert_close(model[0].bias.detach(), b - 0.3 * gb)
    torch.testing.assert_close(model[0].weight.grad, tangent)


def test_closure_state_and_schedulers() -> None:
    model, (x, y) = _model(), _data()
    optimizer = _optimizer(model, torch.optim.AdamW)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(model, x, y)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(5)]
    scheduler.step()
    assert losses[-1] < losses[0]
    twin = copy.deepcopy(model)
    other = _optimizer(twin, torch.optim.AdamW)
    # torch's optimizers share what is loaded.
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    third = pickle.loads(pickle.dumps(optimizer))
    assert third.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    for each, m in ((optimizer, model), (other, twin)):
        each.zero_grad()
        _loss(m, x, y).backward()
        each.step()
    for a, b in zip(model, twin, strict=True):
        assert torch.equal(a.weight, b.weight)


def test_corners() -> None:
    w = nn.Parameter(torch.zeros(3, 4))
    v = nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer = LAWN(torch.optim.SGD([w, v], lr=1.0), 0, params=[w, v])
    w.grad, v.grad = torch.ones_like(w), torch.arange(4.0).double()
    optimizer.step()
    assert torch.equal(w.detach(), torch.zeros(3, 4))
    assert float(v.detach().norm()) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="of the optimizer"):
        LAWN(torch.optim.SGD([w], lr=1.0), 0, params=[v])
    with pytest.raises(TypeError, match="`free_steps` to be an int"):
        LAWN(torch.optim.SGD([w], lr=1.0), 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 0"):
        LAWN(torch.optim.SGD([w], lr=1.0), -1)
    with pytest.raises(TypeError, match="`optimizer`"):
        LAWN(w, 1)  # type: ignore[arg-type]

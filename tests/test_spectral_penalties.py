"""Penalties of spectral norms: values, gradients both ways, corners."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from regkern.reference.spectral import penalties as reference
from regkern.reference.spectral import power as reference_power
from regkern.spectral.power import random_vectors
from regkern.spectral.spectral_penalties import KINDS, SpectralPenalty, spectral_penalty
from torch import Tensor, nn


def weights(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(4)
    return [
        (0.4 * torch.randn(s, dtype=torch.float64, generator=g)).to(dtype).requires_grad_()
        for s in ((5, 7), (4, 3, 2, 2), (6, 3))
    ]


def vectors(ws: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return random_vectors([w.detach() for w in ws], generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients(kind: Any, k: int) -> None:
    ws = weights()
    us, vs = vectors(ws)
    vector_terms = kind == "power"
    b, g = torch.randn(5).double().requires_grad_(), torch.randn(4).double().requires_grad_()
    extra: dict[str, Any] = {"biases": [b], "gains": [g]} if vector_terms else {}
    value = spectral_penalty(ws, us, vs, kind, k=k, cap=5.0, n_iter=3, **extra)
    sigmas = reference_power.sigmas(ws, us, vs, 0)
    expected = reference.of_sigmas(sigmas, kind, k, 5.0)
    inputs = list(ws)
    if vector_terms:
        expected = expected + reference.of_vectors([b], [g], k)
        inputs += [b, g]
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(
        torch.autograd.grad(value, inputs),
        torch.autograd.grad(expected, inputs, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)

    def at_rest(*ws: Tensor) -> Tensor:
        return spectral_penalty(list(ws), us, vs, kind, k=k, cap=5.0, n_iter=0)

    assert torch.autograd.gradgradcheck(at_rest, ws, fast_mode=True)


def test_barrier_is_infinite_outside() -> None:
    ws = weights()
    us, vs = vectors(ws)
    value = spectral_penalty(ws, us, vs, "barrier", cap=0.1, n_iter=20)
    assert value.item() == float("inf")
    assert all(not g.any() for g in torch.autograd.grad(value, ws))


def test_zero_weight_and_bias() -> None:
    w = torch.zeros(3, 4, requires_grad=True)
    b = torch.zeros(3, requires_grad=True)
    value = spectral_penalty(w, *vectors([w]), biases=[b])
    assert value.item() == 1.0
    for grad in torch.autograd.grad(value, (w, b)):
        assert not grad.any()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.up = nn.ConvTranspose1d(4, 5, 3)
        self.norm = nn.GroupNorm(1, 5)
        self.out = nn.Linear(5, 3)
        self.tied = self.out


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_added_in_place(kind: Any) -> None:
    torch.manual_seed(0)
    net = Net().double()
    penalty = SpectralPenalty(net, kind, cap=9.0, generator=torch.Generator().manual_seed(1))
    assert penalty.dims == [1, 0]
    names = {id(p): name for name, p in net.named_parameters()}
    held = [[names[id(p)] for p in group] for group in penalty._targets]
    assert held[0] == ["up.weight", "out.weight"]
    if kind == "power":
        assert held[1:] == [["up.bias", "norm.bias", "out.bias"], ["norm.weight"]]
    state = copy.deepcopy(penalty.state_dict())
    value = penalty()
    value.backward()
    expected = {n: None if p.grad is None else p.grad for n, p in net.named_parameters()}
    penalty.load_state_dict(state)
    net.zero_grad()
    net.out.weight.grad = torch.ones_like(net.out.weight)
    penalty.add_gradients_(0.5)
    net.out.weight.grad -= 1
    for name, p in net.named_parameters():
        grad = expected[name]
        if grad is None:
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, 0.5 * grad)
    assert penalty.sigma.shape == (2,)
    assert len(list(penalty.parameters())) == 0


def test_state_and_eval() -> None:
    net = Net()
    penalty = SpectralPenalty(net)
    assert sorted(penalty.state_dict()) == ["u0", "u1", "v0", "v1"]
    penalty()
    penalty.eval()
    before = copy.deepcopy(penalty.state_dict())
    penalty()
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.values(), penalty.state_dict().values(), strict=True)
    )


def test_singular_values_go_to_one() -> None:
    ws = weights(torch.float32)
    penalty = SpectralPenalty(ws)
    optimizer = torch.optim.SGD(ws, 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        penalty.add_gradients_()
        optimizer.step()
    for w in ws:
        sigma = torch.linalg.svdvals(w.detach().flatten(1))[0]
        torch.testing.assert_close(sigma.item(), 1.0, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda w, u, v: spectral_penalty(w, u, v, "spectral"), ValueError, "`kind`"),
        (lambda w, u, v: spectral_penalty(w, u, v, k=0), ValueError, "`k`"),
        (lambda w, u, v: spectral_penalty(w, u, v, "barrier"), ValueError, "`cap`"),
        (lambda w, u, v: spectral_penalty(w, u, v, "barrier", cap=-1.0), ValueError, "`cap`"),
        (lambda w, u, v: spectral_penalty(w, u, v, "sum", biases=[u[0]]), ValueError, "`biases`"),
        (lambda w, u, v: spectral_penalty(w, u, v, gains=[3]), TypeError, r"`gains\[0\]`"),
        (lambda w, u, v: SpectralPenalty(nn.ReLU()), ValueError, "none"),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    ws = weights()
    with pytest.raises(error, match=text):
        call(ws, *vectors(ws))

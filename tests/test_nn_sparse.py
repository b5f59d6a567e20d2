"""Sparse layers: the dense ones they come from, training, states."""

from __future__ import annotations

import copy

import pytest
import torch
from regkern.nn import SparseLinear
from regkern.sparse import SparsePattern
from torch import nn


def _x(*shape: int, salt: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(salt))


def test_from_linear_and_back() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(12, 7)
    with torch.no_grad():
        dense.weight[dense.weight.abs() < 0.15] = 0
    sparse = SparseLinear.from_linear(dense)
    x = _x(3, 5, 12)
    torch.testing.assert_close(sparse(x), dense(x))
    assert torch.equal(sparse.to_linear().weight, dense.weight)
    few = SparseLinear.from_linear(dense, density=0.25)
    assert few.pattern.nnz == 21
    kept = dense.weight.detach().abs()[few.pattern.mask()]
    assert kept.min() >= dense.weight.detach().abs()[~few.pattern.mask()].max()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_trains_like_a_masked_layer(optimizer: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(1)
    dense = nn.Linear(20, 9)
    sparse = SparseLinear.from_linear(dense, density=0.3)
    mask = sparse.pattern.mask()
    with torch.no_grad():
        dense.weight.mul_(mask)
    a = optimizer(dense.parameters(), lr=0.05)  # type: ignore[call-arg]
    b = optimizer(sparse.parameters(), lr=0.05)  # type: ignore[call-arg]
    for step in range(5):
        x = _x(17, 20, salt=step)
        for model, steps in ((dense, a), (sparse, b)):
            steps.zero_grad()
            model(x).square().mean().backward()
            if model is dense:
                assert dense.weight.grad is not None
                dense.weight.grad.mul_(mask)
            steps.step()
            with torch.no_grad():
                dense.weight.mul_(mask)
    torch.testing.assert_close(sparse.to_linear().weight, dense.weight, rtol=1e-4, atol=1e-5)
    assert sparse.bias is not None
    torch.testing.assert_close(sparse.bias, dense.bias, rtol=1e-4, atol=1e-5)


def test_state_carries_the_pattern() -> None:
    first = SparseLinear(15, 8, density=0.2, generator=torch.Generator().manual_seed(1))
    other = SparseLinear(15, 8, density=0.5, generator=torch.Generator().manual_seed(2))
    parameter = other.values
    state = first.state_dict()
    assert set(state) == {"values", "bias", "offsets", "index"}
    other.load_state_dict(state)
    assert other.values is parameter
    assert torch.equal(other.pattern.mask(), first.pattern.mask())
    x = _x(4, 15)
    assert torch.equal(other(x), first(x))
    other(x).sum().backward()
    wrong = dict(state, index=state["index"] + 15)
    with pytest.raises(ValueError, match=r"\[0, 15\)"):
        other.load_state_dict(wrong)


def test_moves_and_copies() -> None:
    layer = SparseLinear(6, 5, density=0.5)
    twin = copy.deepcopy(layer).double()
    assert twin.values.dtype == torch.float64
    assert twin.pattern.index.dtype == torch.int32
    x = _x(3, 6)
    torch.testing.assert_close(twin(x.double()).float(), layer(x))
    meta = copy.deepcopy(layer).to("meta")
    assert meta.pattern.index.device.type == "meta"


def test_features_first_through_a_stack() -> None:
    torch.manual_seed(2)
    plain = nn.Sequential(SparseLinear(10, 16, 0.4, activation="relu"), SparseLinear(16, 4, 0.4))
    stack = copy.deepcopy(plain)
    for layer in stack:
        layer.feature_major = True
    x = _x(64, 10)
    torch.testing.assert_close(stack(x.t()).t(), plain(x))


def test_compiled() -> None:
    layer = SparseLinear(10, 6, density=0.4, activation="relu")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = _x(7, 10).requires_grad_()
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    y.sum().backward()
    assert layer.values.grad is not None


def test_empty_and_wrong() -> None:
    empty = SparseLinear(4, 3, density=0.0)
    assert torch.equal(empty(_x(2, 4)), empty.bias.expand(2, 3))  # type: ignore[union-attr]
    pattern = SparsePattern.from_mask(torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="`pattern` of shape"):
        SparseLinear(3, 4, pattern=pattern)
    with pytest.raises(ValueError, match="density"):
        SparseLinear(3, 4, density=1.5)
    with pytest.raises(ValueError, match="3 features"):
        SparseLinear(3, 4)(_x(2, 4))


def test_another_pattern_in_the_same_parameter() -> None:
    """Also while a graph of the old one is alive, which keeps the accumulator of its gradient."""
    layer = SparseLinear(12, 6, density=0.5)
    parameter, x = layer.values, _x(4, 12)
    loss = layer(x).sum()
    loss.backward()
    pattern = SparsePattern.from_mask(_x(6, 12, salt=3) > 0.8)
    values = _x(pattern.nnz)
    layer.set_pattern(pattern, values)
    assert layer.values is parameter
    assert parameter.grad is None
    assert torch.equal(layer.dense_weight(), pattern.scatter(values))
    again = layer(x).sum()
    again.backward()
    assert parameter.grad is not None
    assert parameter.grad.shape == (pattern.nnz,)
    assert set(layer.state_dict()) == {"values", "bias", "offsets", "index"}
    assert loss.grad_fn is not None
    with pytest.raises(ValueError, match="`values` of shape"):
        layer.set_pattern(pattern, values[1:])
    with pytest.raises(ValueError, match="`pattern` of shape"):
        layer.set_pattern(pattern.transposed(), values)
    with pytest.raises(TypeError, match="SparsePattern"):
        layer.set_pattern(pattern.mask(), values)  # type: ignore[arg-type]

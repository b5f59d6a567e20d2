"""Sparse convolutions as layers: the dense ones they come from, training, states."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from regkern.nn.sparse.conv import SparseConv1d, SparseConv2d
from regkern.sparse import SparsePattern
from torch import nn


def _x(*shape: int, salt: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(salt))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2, "bias": False},
        {"groups": 2, "padding": (1, 0), "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "circular", "stride": (1, 3)},
    ],
)
def test_from_conv_and_back(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 6, (3, 2), **options)
    with torch.no_grad():
        dense.weight[dense.weight.abs() < 0.1] = 0
    sparse = SparseConv2d.from_conv(dense)
    x = _x(3, 4, 9, 8)
    torch.testing.assert_close(sparse(x), dense(x))
    torch.testing.assert_close(sparse(x[0]), dense(x[0]))
    back = sparse.to_conv()
    assert torch.equal(back.weight, dense.weight)
    assert torch.equal(sparse.dense_weight(), dense.weight)
    torch.testing.assert_close(back(x), dense(x))
    few = SparseConv2d.from_conv(dense, density=0.25)
    assert few.pattern.nnz == round(0.25 * dense.weight.numel())


def test_rows() -> None:
    torch.manual_seed(0)
    for options in ({"padding": 2, "stride": 2}, {"padding": 1, "padding_mode": "circular"}):
        dense = nn.Conv1d(6, 4, 3, groups=2, **options)  # type: ignore[arg-type]
        sparse = SparseConv1d.from_conv(dense)
        x = _x(3, 6, 17)
        torch.testing.assert_close(sparse(x), dense(x))
        torch.testing.assert_close(sparse(x[1]), dense(x[1]))
        torch.testing.assert_close(sparse.to_conv()(x), dense(x))


def test_trains_like_a_masked_layer() -> None:
    torch.manual_seed(1)
    dense = nn.Conv2d(3, 5, 3, padding=1)
    sparse = SparseConv2d.from_conv(dense, density=0.3)
    mask = sparse.pattern.mask().reshape(dense.weight.shape)
    with torch.no_grad():
        dense.weight.mul_(mask)
    a = torch.optim.AdamW(dense.parameters(), lr=0.05)
    b = torch.optim.AdamW(sparse.parameters(), lr=0.05)
    for step in range(4):
        x = _x(5, 3, 6, 6, salt=step)
        for model, steps in ((dense, a), (sparse, b)):
            steps.zero_grad()
            model(x).square().mean().backward()
            if model is dense:
                assert dense.weight.grad is not None
                dense.weight.grad.mul_(mask)
            steps.step()
            with torch.no_grad():
                dense.weight.mul_(mask)
    torch.testing.assert_close(sparse.to_conv().weight, dense.weight, rtol=1e-4, atol=1e-5)


def test_states_and_patterns() -> None:
    first = SparseConv2d(4, 6, 3, density=0.2, generator=torch.Generator().manual_seed(1))
    other = SparseConv2d(4, 6, 3, density=0.5, generator=torch.Generator().manual_seed(2))
    parameter = other.values
    other.load_state_dict(first.state_dict())
    assert other.values is parameter
    x = _x(2, 4, 5, 5)
    assert torch.equal(other(x), first(x))
    other(x).sum().backward()
    pattern = SparsePattern.from_mask(_x(6, 36) > 1)
    other.set_pattern(pattern, torch.zeros(pattern.nnz))
    other(x).square().sum().backward()  # grown entries are 0 and trained
    assert parameter.grad is not None
    assert parameter.grad.shape == (pattern.nnz,)
    twin = copy.deepcopy(first).double()
    torch.testing.assert_close(twin(x.double()).float(), first(x))


def test_compiled() -> None:
    layer = SparseConv2d(3, 4, 3, padding=1, density=0.4, activation="relu")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = _x(2, 3, 6, 6).requires_grad_()
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    y.sum().backward()
    assert layer.values.grad is not None


def test_wrong() -> None:
    with pytest.raises(ValueError, match="`groups`"):
        SparseConv2d(4, 6, 3, groups=4)
    with pytest.raises(ValueError, match="`pattern` of shape"):
        SparseConv2d(4, 6, 3, pattern=SparsePattern.from_mask(torch.ones(6, 4).bool()))
    with pytest.raises(ValueError, match="`padding_mode`"):
        SparseConv2d(4, 6, 3, padding_mode="mirror")
    with pytest.raises(ValueError, match="`padding`"):
        SparseConv2d(4, 6, 3, padding=(1, 0, 0, 1)).to_conv()
    with pytest.raises(ValueError, match="54 columns"):
        SparseConv2d(4, 6, 3)(_x(1, 6, 5, 5))
    assert "nnz=22" in repr(SparseConv2d(4, 6, 3))

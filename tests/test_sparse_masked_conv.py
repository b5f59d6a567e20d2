"""Masked gradients of convolutions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from regkern.nn.sparse.masked_conv import MaskedConv1d, MaskedConv2d
from regkern.reference.sparse import masked as reference
from regkern.sparse import SparsePattern
from regkern.sparse.masked import write_entries_
from regkern.sparse.masked_conv import masked_conv1d, masked_conv2d
from torch import Tensor, nn


def _normal(*shape: int, salt: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(300 + salt)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _pattern(rows: int, columns: int, share: float = 0.3, salt: int = 0) -> SparsePattern:
    generator = torch.Generator().manual_seed(salt)
    return SparsePattern.from_mask(torch.rand(rows, columns, generator=generator) < share)


CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((3, 4, 7, 8), (6, 4, 3, 3), {"padding": 1}),
    ((18, 4, 7, 9), (6, 2, 3, 2), {"stride": (2, 3), "padding": (0, 2, 1, 0), "groups": 2}),
    ((2, 4, 6, 5), (6, 4, 2, 3), {"padding": "same", "dilation": 2}),
    ((2, 4, 6, 5), (6, 4, 3, 3), {"padding": (1, 2), "padding_mode": "reflect"}),
    ((4, 6, 5), (3, 4, 1, 1), {"stride": 2}),
    ((0, 4, 6, 5), (6, 4, 3, 3), {}),
]
ROWS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((3, 4, 11), (6, 2, 3), {"stride": 2, "padding": (2, 1), "groups": 2}),
    ((3, 4, 11), (6, 4, 3), {"padding": 2, "dilation": 2, "padding_mode": "circular"}),
    ((4, 9), (6, 4, 4), {"padding": "same"}),
]


@pytest.mark.parametrize(("shape", "kernel", "options"), CASES + ROWS)
def test_the_dense_convolution(
    shape: tuple[int, ...], kernel: tuple[int, ...], options: dict[str, Any]
) -> None:
    """And its gradients, of the weight at the entries alone."""
    two = len(kernel) == 4
    weight, bias = _normal(*kernel), _normal(kernel[0]).requires_grad_()
    pattern = _pattern(kernel[0], weight[0].numel())
    values = pattern.gather(weight.flatten(1)).requires_grad_()
    x = _normal(*shape).requires_grad_()
    y = (masked_conv2d if two else masked_conv1d)(x, weight, values, pattern, bias, **options)
    z = (reference.masked_conv2d if two else reference.masked_conv1d)(
        x, weight, values, pattern, bias, **options
    )
    torch.testing.assert_close(y, z)
    g = _normal(*y.shape, salt=1)
    inputs = (x, values, bias)
    ours = torch.autograd.grad(y, inputs, g)
    for a, b in zip(ours, torch.autograd.grad(z, inputs, g), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("which", [1, 2])
def test_differentiable_as_often_as_wanted(which: int) -> None:
    weight = _normal(4, 2, 3, 2)
    pattern = _pattern(4, 12)
    options = {1: {"groups": 2, "stride": 2, "padding": (0, 1, 1, 2)}, 2: {"padding": 1}}[which]
    x = _normal(2, 4 if which == 1 else 2, 5, 4).requires_grad_()

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        # What finite differences change is written.
        own = write_entries_(weight.clone(), values, pattern)
        return masked_conv2d(x, own, values, pattern, bias, **options)  # type: ignore[arg-type]

    inputs = (x, pattern.gather(weight.flatten(1)).requires_grad_(), _normal(4).requires_grad_())
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_transforms() -> None:
    weight, x = _normal(4, 2, 3, 3), _normal(3, 2, 2, 5, 4)
    pattern = _pattern(4, 18)
    values = pattern.gather(weight.flatten(1))

    def loss(x: Tensor, values: Tensor) -> Tensor:
        return masked_conv2d(x, weight, values, pattern, padding=1).square().sum()

    each = torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None))(x, values)
    for i in range(3):
        inputs = x[i].clone().requires_grad_(), values.clone().requires_grad_()
        expected = torch.autograd.grad(loss(*inputs), inputs)
        for a, e in zip(each, expected, strict=True):
            torch.testing.assert_close(a[i], e)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_and_layouts(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    pattern = _pattern(4, 27)
    layer = MaskedConv2d(copy.deepcopy(conv).to(dtype), pattern, dtype=torch.float32)
    x = _normal(2, 3, 6, 6, dtype=dtype).to(memory_format=torch.channels_last)
    y = layer(x)
    assert y.dtype == dtype
    y.float().square().sum().backward()
    twin = conv.to(dtype).float()
    twin(x.float()).square().sum().backward()
    assert layer.values.grad is not None
    assert twin.weight.grad is not None
    assert layer.values.grad.dtype == torch.float32
    expected = pattern.gather(twin.weight.grad.flatten(1))
    torch.testing.assert_close(layer.values.grad, expected, rtol=3e-2, atol=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        z = MaskedConv2d(nn.Conv2d(3, 4, 3), pattern)(x.float())
    assert z.dtype == torch.bfloat16


def test_nothing_of_the_weights_size_is_allocated() -> None:
    weight = _normal(128, 128, 3, 3, dtype=torch.float32)
    pattern = _pattern(128, 128 * 9, 0.002)
    values = pattern.gather(weight.flatten(1)).requires_grad_()
    x = _normal(2, 128, 4, 4, dtype=torch.float32)
    y = masked_conv2d(x, weight, values, pattern, padding=1)
    with torch.profiler.profile(profile_memory=True) as profile:
        y.backward(torch.ones_like(y))
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < weight.numel() * 4 // 2


@pytest.mark.parametrize("form", ["entries", "delta"])
def test_trains_like_a_dense_layer_with_masked_gradients(form: str) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(4, 6, 3, 2, padding="valid", groups=2, padding_mode="replicate")
    start, pattern = dense.weight.detach().clone(), _pattern(6, 18)
    layer = MaskedConv2d(copy.deepcopy(dense), pattern, form)
    mask = pattern.mask().view_as(start)
    a = torch.optim.SGD(dense.parameters(), lr=0.05, momentum=0.9)
    b = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
    for step in range(3):
        x = _normal(5, 4, 7, 7, salt=step, dtype=torch.float32)
        for model, optimizer in ((dense, a), (layer, b)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if model is dense:
                assert dense.weight.grad is not None
                dense.weight.grad.mul_(mask)
            optimizer.step()
    torch.testing.assert_close(layer.dense_weight(), dense.weight.detach(), rtol=1e-4, atol=1e-5)
    back = layer.to_conv()
    torch.testing.assert_close(back(x), dense(x), rtol=1e-4, atol=1e-5)
    assert repr(back) == repr(dense)
    assert torch.equal(layer.weight[~mask], start[~mask])
    if form == "delta":
        assert torch.equal(layer.remove().weight, start)


def test_layers() -> None:
    """Other entries, states, copies, layouts: as of the linear layer."""
    conv = nn.Conv2d(3, 4, (3, 2), bias=False).to(memory_format=torch.channels_last)
    layer = MaskedConv2d.from_conv(conv, density=0.25)
    assert layer.pattern.nnz == 18
    x = _normal(2, 3, 5, 6, dtype=torch.float32).to(memory_format=torch.channels_last)
    with torch.no_grad():
        layer.values.add_(0.5)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    other = MaskedConv2d(nn.Conv2d(3, 4, (3, 2), bias=False), _pattern(4, 18, 0.5))
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), y)
    twin = copy.deepcopy(layer).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(twin(x.double()).float(), y)
    places = layer.select(_pattern(4, 18, 0.4, salt=3))
    assert places.shape == (layer.pattern.nnz,)
    torch.testing.assert_close(layer(x), y)
    assert "padding_mode='zeros'" in repr(layer)
    rows = MaskedConv1d.from_conv(nn.Conv1d(3, 4, 3, 2, 1, groups=1), density=0.5, form="delta")
    row = x[0, :, 0]
    before = rows(row).detach()
    rows(row).sum().backward()
    assert rows.values.grad is not None
    assert rows.values.grad.shape == (18,)
    torch.testing.assert_close(rows.to_conv()(row), before)
    torch.testing.assert_close(rows.remove()(row), before)


def test_compiled() -> None:
    layer = MaskedConv2d.from_conv(nn.Conv2d(3, 4, 3, padding=1), density=0.3, form="delta")
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = _normal(2, 3, 6, 6, dtype=torch.float32).requires_grad_()
    with torch.no_grad():
        layer.values.add_(1.0)
    compiled(x).square().sum().backward()
    twin, z = copy.deepcopy(layer), x.detach().clone().requires_grad_()
    twin.zero_grad()
    twin.merge()
    twin(z).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, twin.values.grad)
    torch.testing.assert_close(x.grad, z.grad)


def test_wrong() -> None:
    weight, pattern, x = _normal(6, 4, 3, 3), _pattern(6, 36), _normal(2, 4, 5, 5)
    values = pattern.gather(weight.flatten(1))
    with pytest.raises(ValueError, match="`x` of 3 or 4 dimensions"):
        masked_conv2d(x[0, 0], weight, values, pattern)
    with pytest.raises(ValueError, match="`weight` of 3 dimensions"):
        masked_conv1d(x[0], weight, values, pattern)
    with pytest.raises(ValueError, match="`pattern` of 27 columns"):
        masked_conv2d(x[:, :3], weight, values, pattern)
    with pytest.raises(ValueError, match="`groups` that divide"):
        masked_conv2d(x, weight, values, pattern, groups=3)
    with pytest.raises(ValueError, match="fits into"):
        masked_conv2d(x, weight, values, pattern, dilation=3)
    with pytest.raises(ValueError, match="`padding_mode`"):
        masked_conv2d(x, weight, values, pattern, padding_mode="mirror")
    with pytest.raises(TypeError, match="`x` of dtype"):
        masked_conv2d(x.float(), weight, values, pattern)
    with pytest.raises(ValueError, match="without a gradient"):
        masked_conv2d(x, weight.clone().requires_grad_(), values, pattern)
    with pytest.raises(ValueError, match="`bias` of shape"):
        masked_conv2d(x, weight, values, pattern, _normal(5))
    with pytest.raises(TypeError, match=r"`conv` to be a torch\.nn\.Conv2d"):
        MaskedConv2d(nn.Conv1d(4, 6, 3), pattern)
    with pytest.raises(ValueError, match="neither"):
        MaskedConv1d.from_conv(nn.Conv1d(4, 6, 3))

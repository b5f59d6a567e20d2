"""Convolutions with a sparse weight beyond the contract: every shape, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import Call, Recorder
from regkern.sparse import SparsePattern
from regkern.sparse.convolutions import sparse_conv1d, sparse_conv2d
from torch import Tensor

OPS = torch.ops.regkern
F = torch.nn.functional


def _normal(*shape: int, salt: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 + salt))


def _pattern(outputs: int, columns: int, share: float = 0.3, salt: int = 0) -> SparsePattern:
    generator = torch.Generator().manual_seed(salt)
    return SparsePattern.from_mask(torch.rand(outputs, columns, generator=generator) < share)


def record() -> list[Call]:
    """One derivative at a time, which the samples, that want both, do not ask for."""
    pattern = _pattern(6, 18)
    shapes = {"x": (18, 4, 7, 9), "values": (pattern.nnz,)}
    with Recorder() as recorder:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for wanted in shapes:
                given = {
                    name: _normal(*shape).to(dtype).requires_grad_(name == wanted)
                    for name, shape in shapes.items()
                }
                for stride, padding in ((1, "same"), ((2, 3), (0, 2, 1, 0))):
                    y = sparse_conv2d(
                        **given, pattern=pattern, stride=stride, padding=padding, groups=2
                    )
                    y.square().sum().backward()
    return recorder.calls


def _agree(
    x: Tensor, pattern: SparsePattern, kernel: tuple[int, int], groups: int = 1, **options: Any
) -> None:
    """Results and gradients, fused and apart, against torch's dense convolution."""
    values = _normal(pattern.nnz).to(x.dtype if x.dtype == torch.float64 else torch.float32)
    weight = pattern.scatter(values.double())
    weight = weight.reshape(pattern.shape[0], x.shape[1] // groups, *kernel).requires_grad_()
    twin = x.detach().double().requires_grad_()
    padding = options.pop("padding", 0)
    padded = twin
    if isinstance(padding, tuple) and len(padding) == 4:
        padded = F.pad(twin, padding)
        expected = F.conv2d(padded, weight, None, groups=groups, **options)
    else:
        expected = F.conv2d(twin, weight, None, padding=padding, groups=groups, **options)
    x, values = x.detach().requires_grad_(), values.requires_grad_()
    y = sparse_conv2d(
        x, values, pattern, padding=padding, groups=groups, kernel_size=kernel, **options
    )
    g = _normal(*expected.shape, salt=1).to(x.dtype)
    of_x, of_weight = torch.autograd.grad(expected, (twin, weight), g.double())
    of_values = pattern.gather(of_weight.reshape(pattern.shape))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if x.dtype == torch.float32 else {}
    torch.testing.assert_close(y.double(), expected, **tolerance)
    for wanted in ((x, values), (x,), (values,)):
        found = torch.autograd.grad(y, wanted, g, retain_graph=True)
        for t, gradient in zip(wanted, found, strict=True):
            other = of_x if t is x else of_values
            torch.testing.assert_close(gradient.double(), other, **tolerance)


@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 18),
    groups=st.integers(1, 3),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 3),
    size=st.tuples(st.integers(1, 12), st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    last=st.booleans(),
)
def test_any_shape(
    batch: int,
    groups: int,
    channels: int,
    outputs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int, int, int],
    share: float,
    last: bool,
) -> None:
    if size[0] + padding[2] + padding[3] < dilation[0] * (kernel[0] - 1) + 1:
        return
    if size[1] + padding[0] + padding[1] < dilation[1] * (kernel[1] - 1) + 1:
        return
    x = _normal(batch, groups * channels, *size).double()
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    pattern = _pattern(groups * outputs, channels * kernel[0] * kernel[1], share)
    _agree(x, pattern, kernel, groups, stride=stride, dilation=dilation, padding=padding)


@pytest.mark.parametrize(
    ("shape", "outputs", "kernel", "options"),
    [
        ((17, 3, 14, 14), 130, (3, 3), {"padding": 1}),  # more planes than are written at once
        ((16, 20, 7, 7), 18, (3, 3), {"padding": 1}),  # whole squares of channels
        ((1, 4, 9, 70), 5, (3, 3), {"padding": 1}),  # rows longer than a tile, one image
        ((16, 4, 1, 40), 5, (1, 5), {"padding": (0, 2)}),  # whole squares of columns
        ((32, 4, 11, 12), 17, (1, 1), {"stride": 2}),
        ((3, 6, 8, 8), 6, (3, 3), {"padding": 1, "groups": 6}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles(
    shape: tuple[int, ...],
    outputs: int,
    kernel: tuple[int, int],
    options: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    groups = options.get("groups", 1)
    pattern = _pattern(outputs, shape[1] // groups * kernel[0] * kernel[1])
    for layout in (torch.contiguous_format, torch.channels_last):
        _agree(_normal(*shape).to(dtype, memory_format=layout), pattern, kernel, **options)


def test_images_stay_as_they_lie() -> None:
    pattern = _pattern(6, 36)
    values = _normal(pattern.nnz).requires_grad_()
    x = _normal(5, 4, 6, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = sparse_conv2d(x, values, pattern, padding=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    row_major = sparse_conv2d(x.detach().contiguous(), values, pattern, padding=1)
    assert row_major.is_contiguous()
    assert torch.equal(y, row_major)
    g = _normal(5, 6, 6, 7, salt=3)
    # A gradient in another layout, one of strides 0, and one that is every other element.
    for gradient in (g, g[:1].expand(5, -1, -1, -1), g.repeat_interleave(2, 3)[..., ::2]):
        found = torch.autograd.grad(y, (x, values), gradient, retain_graph=True)
        dense = gradient.contiguous(memory_format=torch.channels_last)
        expected = torch.autograd.grad(y, (x, values), dense, retain_graph=True)
        assert found[0].is_contiguous(memory_format=torch.channels_last)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
def test_padding_modes(padding_mode: str) -> None:
    pattern = _pattern(3, 2 * 15)
    values, x = _normal(pattern.nnz), _normal(2, 2, 7, 8)
    weight = pattern.scatter(values).reshape(3, 2, 3, 5)
    for padding, ends in ((1, (1, 1, 1, 1)), ("same", (2, 2, 1, 1)), ((0, 2, 1, 0), (0, 2, 1, 0))):
        expected = F.conv2d(F.pad(x, ends, padding_mode), weight)
        y = sparse_conv2d(
            x, values, pattern, padding=padding, kernel_size=(3, 5), padding_mode=padding_mode
        )
        torch.testing.assert_close(y, expected)


def test_same_and_valid() -> None:
    """An even kernel has one more on the right, as torch's."""
    pattern = _pattern(3, 2 * 8)
    values, x = _normal(pattern.nnz), _normal(2, 2, 9, 8)
    weight = pattern.scatter(values).reshape(3, 2, 4, 2)
    for padding in ("same", "valid"):
        y = sparse_conv2d(x, values, pattern, padding=padding, dilation=(1, 3), kernel_size=(4, 2))
        # torch's own "same" warns of even kernels.
        ends = (1, 2, 1, 2) if padding == "same" else (0, 0, 0, 0)
        expected = F.conv2d(F.pad(x, ends), weight, dilation=(1, 3))
        torch.testing.assert_close(y, expected)
    rows = sparse_conv1d(x[:, :, 0], values, pattern, padding="same")
    line = pattern.scatter(values).reshape(3, 2, 8)
    torch.testing.assert_close(rows, F.conv1d(F.pad(x[:, :, 0], (3, 4)), line))


def test_empty_pattern_gives_the_bias() -> None:
    pattern = SparsePattern.from_mask(torch.zeros(3, 18, dtype=torch.bool))
    bias = torch.tensor([1.0, -2.0, 3.0])
    x = _normal(4, 2, 5, 5).requires_grad_()
    values = torch.zeros(0, requires_grad=True)
    y = sparse_conv2d(x, values, pattern, bias, padding=1, activation="relu")
    expected = torch.tensor([1.0, 0.0, 3.0])[:, None, None].expand(4, 3, 5, 5)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


def test_empty_batch() -> None:
    pattern = _pattern(3, 18)
    values = _normal(pattern.nnz).requires_grad_()
    x = torch.zeros(0, 2, 5, 5, requires_grad=True)
    y = sparse_conv2d(x, values, pattern)
    assert y.shape == (0, 3, 3, 3)
    y.sum().backward()
    assert values.grad is not None
    assert not values.grad.any()


def test_explicit_zeros_are_entries() -> None:
    pattern = SparsePattern.from_mask(torch.ones(2, 9, dtype=torch.bool))
    values = torch.zeros(18, requires_grad=True)
    sparse_conv2d(_normal(4, 1, 6, 6), values, pattern).sum().backward()
    assert values.grad is not None
    assert (values.grad != 0).all()


def test_only_what_is_needed() -> None:
    pattern = _pattern(3, 18)
    values, x = _normal(pattern.nnz), _normal(4, 2, 5, 5)
    for wanted, name in (
        ((x, None), "sparse_conv2d_t"),
        ((None, values), "sparse_conv2d_sample"),
        ((x, values), "sparse_conv2d_backward"),
    ):
        given = [
            t.clone().requires_grad_(of is not None)
            for t, of in zip((x, values), wanted, strict=True)
        ]
        y = sparse_conv2d(given[0], given[1], pattern)
        with torch.profiler.profile() as profile:
            y.sum().backward()
        names = {event.key for event in profile.key_averages()}
        assert {n for n in names if n.startswith("regkern::")} == {f"regkern::{name}"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_with_values_in_float32(dtype: torch.dtype) -> None:
    pattern = _pattern(5, 27)
    values = _normal(pattern.nnz).requires_grad_()
    x = _normal(3, 3, 8, 8).to(dtype)
    y = sparse_conv2d(x, values, pattern, padding=1)
    assert y.dtype == dtype
    weight = pattern.scatter(values.detach().double()).reshape(5, 3, 3, 3)
    expected = F.conv2d(x.double(), weight, padding=1)
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=2e-2)
    (gradient,) = torch.autograd.grad(y.sum(), values)
    assert gradient.dtype == torch.float32


def test_weights_of_many_batches_are_added_in_order() -> None:
    """Tiles of the batch that are packed one after the other."""
    pattern = _pattern(2, 9 * 64, 0.02)
    values = _normal(pattern.nnz).requires_grad_()
    x = _normal(48, 64, 40, 40).requires_grad_()  # 19.6 MB, of which 8 are packed at once
    y = sparse_conv2d(x, values, pattern, padding=1)
    g = _normal(*y.shape, salt=2)
    found = torch.autograd.grad(y, (x, values), g)
    weight = pattern.scatter(values.detach()).reshape(2, 64, 3, 3).requires_grad_()
    dense = torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), g)
    torch.testing.assert_close(found[0], dense[0], rtol=1e-4, atol=1e-4)
    expected = pattern.gather(dense[1].reshape(2, -1))
    torch.testing.assert_close(found[1], expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": 2}, ValueError, "`groups`"),
        ({"groups": 0}, ValueError, "`groups`"),
        ({"stride": 0}, ValueError, "`stride`"),
        ({"stride": (1, 2, 3)}, ValueError, "`stride`"),
        ({"dilation": 1.5}, TypeError, "`dilation`"),
        ({"dilation": 9}, ValueError, "fits into"),
        ({"padding": -1}, ValueError, "`padding`"),
        ({"padding": (1, 2, 3)}, ValueError, "`padding`"),
        ({"padding": "full"}, ValueError, "`padding`"),
        ({"padding": "same", "stride": 2}, ValueError, "`stride` of 1"),
        ({"padding_mode": "mirror", "padding": 1}, ValueError, "`padding_mode`"),
        ({"kernel_size": (3, 2)}, ValueError, "18 columns"),
        ({"kernel_size": 0}, ValueError, "`kernel_size`"),
        ({"activation": "gelu"}, ValueError, "`activation`"),
        ({"bias": torch.zeros(3)}, ValueError, "`bias` of shape"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    pattern = _pattern(4, 27)
    with pytest.raises(error, match=message):
        sparse_conv2d(_normal(2, 3, 8, 8), _normal(pattern.nnz), pattern, **options)


def test_wrong_tensors() -> None:
    pattern = _pattern(4, 27)
    values, x = _normal(pattern.nnz), _normal(2, 3, 8, 8)
    with pytest.raises(ValueError, match="`values` of shape"):
        sparse_conv2d(x, values[1:], pattern)
    with pytest.raises(TypeError, match="`values` of dtype"):
        sparse_conv2d(x, values.double(), pattern)
    with pytest.raises(ValueError, match="3 or 4 dimensions"):
        sparse_conv2d(x[0, 0], values, pattern)
    with pytest.raises(ValueError, match="are no square"):
        sparse_conv2d(_normal(2, 5, 8, 8), values, pattern)
    with pytest.raises(ValueError, match="columns"):
        sparse_conv2d(_normal(2, 5, 8, 8), values, pattern, kernel_size=3)
    with pytest.raises(TypeError, match="SparsePattern"):
        sparse_conv2d(x, values, torch.ones(4, 27))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on meta"):
        sparse_conv2d(x.to("meta"), values, pattern)
    with pytest.raises(ValueError, match="columns"):
        sparse_conv1d(_normal(2, 5, 40), values, pattern)


def test_raw_ops_do_not_read_out_of_bounds() -> None:
    pattern = _pattern(4, 27)
    values, x, g = _normal(pattern.nnz), _normal(2, 3, 8, 8), _normal(2, 4, 6, 6)
    good = list(pattern.tensors())
    geometry: list[Any] = [[3, 3], [1, 1], [0, 0, 0, 0], [1, 1], 1]
    for place, wrong in (
        (0, good[0] + 1),
        (1, good[1] + 27),
        (1, -good[1] - 1),
        (2, good[2].flip(0)),
        (3, good[3] + 100),
        (4, good[4] + 1),
    ):
        tensors = [*good[:place], wrong, *good[place + 1 :]]
        with pytest.raises(RuntimeError, match="sparse_conv2d: expected"):
            OPS.sparse_conv2d(x, values, None, "none", *tensors, *geometry)
        with pytest.raises(RuntimeError, match="sparse_conv2d_backward: expected"):
            OPS.sparse_conv2d_backward(g, x, values, *tensors, *geometry)
    for place, bad in (
        (0, [3, 2]),
        (0, [3]),
        (0, [9, 9]),
        (1, [0, 1]),
        (2, [-1, 0, 0, 0]),
        (2, [0, 0]),
        (3, [4, 4]),
        (4, 2),
        (4, 0),
    ):
        wrong_geometry = [*geometry[:place], bad, *geometry[place + 1 :]]
        with pytest.raises(RuntimeError, match="sparse_conv2d: expected"):
            OPS.sparse_conv2d(x, values, None, "none", *good, *wrong_geometry)
        with pytest.raises(RuntimeError, match="sparse_conv2d_sample: expected"):
            OPS.sparse_conv2d_sample(g, x, *good, *wrong_geometry)
    with pytest.raises(RuntimeError, match="`g` of shape"):
        OPS.sparse_conv2d_t(g, values, 9, 8, *good, *geometry)
    with pytest.raises(RuntimeError, match="`g` of shape"):
        OPS.sparse_conv2d_sample(g[:1], x, *good, *geometry)
    with pytest.raises(RuntimeError, match="`values`"):
        OPS.sparse_conv2d(x, values[1:], None, "none", *good, *geometry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [5, 16, 33])
def test_stride_of_two_by_pairs_of_columns(dtype: torch.dtype, batch: int) -> None:
    """Columns that take turns are written together: the bits are those of one derivative at a
    time, where they are not."""
    generator = torch.Generator().manual_seed(batch)
    for width, padding in ((14, 1), (72, 1), (8, 0), (9, 1)):
        pattern = SparsePattern.from_mask(torch.rand(6, 130 * 9, generator=generator) < 0.02)
        x = torch.randn(batch, 130, 6, width, generator=generator).to(dtype)
        out = (width + 2 * padding - 3) // 2 + 1
        g = torch.randn(batch, 6, 2 + padding, out, generator=generator).to(dtype)
        values = torch.randn(pattern.nnz, generator=generator)
        values = values.double() if dtype == torch.float64 else values
        options = ([3, 3], [2, 2], [padding] * 4, [1, 1], 1)
        ops = torch.ops.regkern
        dx, dvalues = ops.sparse_conv2d_backward(g, x, values, *pattern.tensors(), *options)
        alone = ops.sparse_conv2d_t(g, values, 6, width, *pattern.tensors(), *options)
        assert torch.equal(dx, alone)
        alone = ops.sparse_conv2d_sample(g, x, *pattern.tensors(), *options)
        assert torch.equal(dvalues, alone)

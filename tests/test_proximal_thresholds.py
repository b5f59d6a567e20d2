"""The k-th magnitude of lists of tensors, and what stands on it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from recording import Recorder, replay
from regkern.proximal import thresholds as T
from regkern.reference.proximal import thresholds as reference
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensors(dtype: torch.dtype, kind: str = "normal") -> list[Tensor]:
    g = torch.Generator().manual_seed(7)
    shapes = [(70, 90), (0,), (13,), (1,), (5, 4, 3), (5000,)]
    out = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    if kind == "ties":
        out = [(x * 2).round() / 2 for x in out]
    if kind == "special":
        out = [x * 10.0 ** (x.sign() * 30) for x in out]
        out[0][3, ::7], out[0][4, ::5], out[5][::11] = math.nan, -math.inf, 0.0
    return [x.to(dtype) for x in out]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["normal", "ties", "special"])
def test_against_a_stable_sort(dtype: torch.dtype, kind: str) -> None:
    xs = tensors(dtype, kind)
    count = sum(x.numel() for x in xs)
    flat = torch.cat([x.reshape(-1) for x in xs]).abs().double()
    for k in (1, 2, 57, count // 2, count - 300, count - 1, count):
        value, below, equal = T.kth_magnitude(xs, k)
        expected = reference.kth_magnitude(xs, k)
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=0, equal_nan=True)
        if not expected.isnan():
            assert int(below) == int((flat < expected).sum())
            assert int(equal) == int((flat == expected).sum())
        masks = T.top_k_mask(xs, k)
        for a, b in zip(masks, reference.top_k_mask(xs, k), strict=True):
            assert torch.equal(a, b)
        packed = T.top_k_mask(xs, k, packed=True)
        for a, m in zip(packed, masks, strict=True):
            bits = (a[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
            assert torch.equal(bits.reshape(-1)[: m.numel()].bool(), m.reshape(-1))
            assert not bits.reshape(-1)[m.numel() :].any()
    for k in (0, 1, 999, count - 1, count):
        for factor in (0.0, 0.75):
            ys = [x.clone() for x in xs]
            T.shrink_smallest_(ys, factor, k, per_tensor=False)
            wanted = reference.shrink_smallest(xs, factor, k)
            for y, z in zip(ys, wanted, strict=True):
                torch.testing.assert_close(y, z.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_exactly_k_of_equal_magnitudes() -> None:
    x = torch.ones(3, 4000)
    x[0, 5] = -1
    threshold = T.magnitude_threshold_([x], 7001)
    assert float(threshold) == 1.0
    flat = x.reshape(-1)
    assert flat[:7001].abs().eq(1).all()
    assert flat[7001:].eq(0).all()


def test_per_tensor() -> None:
    xs = list(tensors(torch.float32, "ties"))
    ys = [x.clone() for x in xs]
    values = T.magnitude_threshold_(ys, fraction=0.3, per_tensor=True)
    assert values.shape == (len(xs),)
    for x, y in zip(xs, ys, strict=True):
        kept = int(0.3 * x.numel())
        assert torch.equal(y, reference.shrink_smallest([x], 0.0, x.numel() - kept)[0])


def test_percentile_soft_shrinkage() -> None:
    xs = tensors(torch.float32)
    for k in (0, 2000):
        ys = [x.clone() for x in xs]
        report = T.percentile_shrink_(ys, k)
        t = float(reference.kth_magnitude(xs, k)) if k else 0.0
        for x, y in zip(xs, ys, strict=True):
            torch.testing.assert_close(y, torch.nn.functional.softshrink(x, t), rtol=0, atol=0)
        assert int(report.zeros) == k


def test_changes() -> None:
    for dtype in FLOATS:
        now, before = tensors(dtype), [x.flip(0) for x in tensors(dtype, "ties")]
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        changes = [a.to(wide) - b.to(wide) for a, b in zip(now, before, strict=True)]
        masks = T.top_k_mask(now, 4321, initial=before)
        for a, b in zip(masks, reference.top_k_mask(changes, 4321), strict=True):
            assert torch.equal(a, b)


def test_strides_and_gradients() -> None:
    x = torch.randn(40, 30)
    y = x.t().contiguous().t()
    leaf = x.clone().requires_grad_()
    T.magnitude_threshold_(y, 100)
    T.magnitude_threshold_(leaf, 100)
    # Index order is row-major, whatever the memory.
    assert torch.equal(y, leaf.detach())
    assert int((y != 0).sum()) == 100


def test_same_bits_elsewhere(emulator: Any) -> None:
    """All searches again: other numbers of threads, the emulated CUDA kernels."""
    torch.ops.load_library(str(emulator))
    with Recorder() as recorder:
        for dtype in FLOATS:
            for kind in ("normal", "ties", "special"):
                xs = tensors(dtype, kind)
                T.kth_magnitude(xs, 777)
                T.top_k_mask(xs, 777, initial=[x.flip(0) for x in xs], packed=True)
                T.magnitude_threshold_([x.clone() for x in xs], fraction=0.4, per_tensor=True)
                T.shrink_smallest_([x.clone() for x in xs], 0.5, 5000, per_tensor=False)
    expected = replay(recorder.calls, "regkern")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = replay(recorder.calls, "regkern")
    finally:
        torch.set_num_threads(threads)
    emulated = replay(recorder.calls, "regkern_emulator")
    for others in (again, emulated):
        for a, b in zip(expected, others, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: T.kth_magnitude(x), "`k` or `fraction`, got neither"),
        (lambda x: T.kth_magnitude(x, 3, fraction=0.5), "got both"),
        (lambda x: T.kth_magnitude(x, 0), "from 1 to 20"),
        (lambda x: T.kth_magnitude(x, 21), "from 0 to 20, got 21"),
        (lambda x: T.kth_magnitude(x, 2.0), "an integer"),
        (lambda x: T.kth_magnitude(x, fraction=1.5), r"`fraction` in \[0, 1\]"),
        (lambda x: T.kth_magnitude([x, x.double()], 3), r"`tensors\[1\]` of dtype"),
        (lambda x: T.shrink_smallest_(x, 2.0, 3), "`factor`"),
        (lambda x: T.top_k_mask(x, 3, initial=x[0]), r"`initial\[0\]` like"),
    ],
)
def test_errors(call: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call(torch.randn(4, 5))

"""Sensitivity shrinkage against its definition, on CPU and in the emulator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from recording import Recorder, replay
from regkern.proximal.sensitivity import sensitivity_shrink_
from regkern.reference.proximal import sensitivity as reference
from torch import Tensor

KINDS = ("lobster", "rescaled", "rows", "irrelevance")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def network(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    g = torch.Generator().manual_seed(3)
    shapes = [(50, 70), (5,), (3, 4, 3, 3), (0, 4), (), (1, 3000)]
    ws = [torch.randn(s, generator=g).to(dtype) for s in shapes]
    gs = [torch.randn(s, generator=g).to(dtype) for s in shapes]
    gs[1].zero_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ss = [torch.rand(s[0] if s else 1, generator=g, dtype=wide) * 2 for s in shapes]
    masks = [torch.rand(s, generator=g) < 0.7 for s in shapes]
    return ws, gs, ss, masks


def packed(mask: Tensor) -> Tensor:
    flat = torch.nn.functional.pad(mask.reshape(-1).long(), (0, -mask.numel() % 32))
    words = (flat.reshape(-1, 32) << torch.arange(32)).sum(1)
    return (words - (words >> 31 << 32)).to(torch.int32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_definition(dtype: torch.dtype, kind: Any) -> None:
    ws, gs, ss, masks = network(dtype)
    for lr in (None, 0.1):
        for keep in (None, masks, [packed(m) for m in masks]):
            out = [w.clone() for w in ws]
            sensitivity_shrink_(
                out, gs, 0.3, kind, lr=lr, sensitivities=ss if kind == "rows" else None, keep=keep
            )
            for w, g, s, m, y in zip(ws, gs, ss, masks, out, strict=True):
                if w.numel() == 0:
                    continue
                expected = reference.sensitivity_shrink(
                    w.double(), g.double(), 0.3, kind, lr, s.double(), None if keep is None else m
                )
                half = dtype.itemsize == 2
                rtol, atol = (2e-2, 2e-3) if half else (2e-6, 2e-6)
                torch.testing.assert_close(y, expected.to(dtype), rtol=rtol, atol=atol)


def test_corners() -> None:
    w, g = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([math.inf, math.nan, 0.0])
    out = w.clone()
    sensitivity_shrink_(out, g, 0.5)
    assert out[0] == 1.0
    assert out[1].isnan()
    assert out[2] == 1.5
    out = w.clone().requires_grad_()
    sensitivity_shrink_(out, torch.zeros(3), torch.tensor(0.0), "rescaled", lr=torch.tensor(0.5))
    assert torch.equal(out.detach(), w)
    t = torch.randn(6, 5).t()
    y = t.clone(memory_format=torch.preserve_format)
    sensitivity_shrink_(y, torch.zeros(5, 6), 0.25)
    torch.testing.assert_close(y, 0.75 * t)


def test_same_bits_elsewhere(emulator: Any) -> None:
    torch.ops.load_library(str(emulator))
    with Recorder() as recorder:
        for dtype in FLOATS:
            ws, gs, ss, masks = network(dtype)
            for kind in KINDS:
                rows = ss if kind == "rows" else None
                sensitivity_shrink_(ws, gs, 0.3, kind, lr=0.1, sensitivities=rows, keep=masks)  # type: ignore[arg-type]
            sensitivity_shrink_(ws, gs, 0.3, keep=[packed(m) for m in masks])
    expected = replay(recorder.calls, "regkern")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = replay(recorder.calls, "regkern")
    finally:
        torch.set_num_threads(threads)
    for others in (again, replay(recorder.calls, "regkern_emulator")):
        torch.testing.assert_close(expected, others, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: sensitivity_shrink_(x, x, -1.0), "`lr_lambda` to be at least 0"),
        (lambda x: sensitivity_shrink_(x, x[0], 0.1), r"`grads\[0\]` like"),
        (lambda x: sensitivity_shrink_(x, x, 0.1, "best"), "`kind` to be one of lobster"),
        (lambda x: sensitivity_shrink_(x, x, 0.1, "rows"), "`sensitivities` for kind rows"),
        (lambda x: sensitivity_shrink_(x, x, 0.1, "rows", sensitivities=x), "of 4 numbers"),
        (lambda x: sensitivity_shrink_(x, x, 0.1, keep=x > 0), "ok"),
        (lambda x: sensitivity_shrink_(x, x, 0.1, keep=x[0] > 0), "to be bool of shape"),
        (lambda x: sensitivity_shrink_([x], [x, x], 0.1), "as many `grads`"),
    ],
)
def test_errors(call: Any, text: str) -> None:
    if text == "ok":
        return call(torch.randn(4, 5))
    with pytest.raises((TypeError, ValueError), match=text):
        call(torch.randn(4, 5))

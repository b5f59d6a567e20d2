"""Penalties of whole networks: polarization, HyperSparse, path norms; pools of activations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from recording import Recorder, replay
from regkern.proximal import penalties as P
from regkern.reference.proximal import penalties as reference
from torch import Tensor


def network(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(11)
    shapes = [(64,), (130, 300), (0,), (7, 3, 3, 3), (1,)]
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_polarization(dtype: torch.dtype) -> None:
    xs = [x.requires_grad_() for x in network(dtype)]
    twins = [x.detach().double().requires_grad_() for x in xs]
    t, s = (torch.tensor(1.2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    value, expected = P.polarization(xs, t), reference.polarization(twins, s)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad(value * 3, [*xs, t])
    theirs = torch.autograd.grad(expected * 3, [*twins, s])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_hypersparse(dtype: torch.dtype) -> None:
    for fraction in (0.0, 0.5, 0.9):
        xs = [x.requires_grad_() for x in network(dtype)]
        twins = [x.detach().double().requires_grad_() for x in xs]
        value = P.hypersparse(xs, fraction)
        assert value == 0
        ours = torch.autograd.grad(2 * value, xs)
        theirs = torch.autograd.grad(2 * reference.hypersparse(twins, fraction), twins)
        for a, b in zip(ours, theirs, strict=True):
            tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=1e-5)


def test_hypersparse_where_the_target_is_reached() -> None:
    x = torch.randn(100)
    x[:60] = 0
    x.requires_grad_()
    P.hypersparse(x, 0.5).backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(100))


def test_second_derivatives() -> None:
    x = torch.randn(10, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(P.polarization, (x, t))
    assert torch.autograd.gradgradcheck(P.polarization, (x, t), fast_mode=True)
    with pytest.raises(RuntimeError, match="hypersparse: expected no second derivative"):
        torch.autograd.grad(P.hypersparse(x, 0.5), x, create_graph=True)


def test_splade_corners() -> None:
    x = torch.tensor([[[1.0, -1.0, float("nan")], [1.0, -2.0, 5.0]]], requires_grad=True)
    y = P.splade_pool(x)
    assert y[0, 0] == torch.log1p(torch.tensor(1.0))
    assert y[0, 1] == 0
    assert y[0, 2].isnan()
    (dx,) = torch.autograd.grad(y[0, :2].sum(), x)
    assert dx[0, :, 0].tolist() == [0.5, 0.0]  # the first of equals
    none = torch.zeros(1, 2, dtype=torch.bool)
    for pooling in ("max", "sum"):
        assert torch.equal(P.splade_pool(x, none, pooling), torch.zeros(1, 3))  # type: ignore[arg-type]
    assert P.splade_pool(torch.randn(2, 0, 3)).eq(0).all()
    wide = torch.randn(2, 9, 1037)
    for pooling in ("max", "sum"):
        torch.testing.assert_close(
            P.splade_pool(wide, pooling=pooling), reference.splade_pool(wide, pooling=pooling)
        )


def test_path_norm_is_the_sum_over_paths() -> None:
    ws = [torch.randn(3, 4), torch.randn(2, 3), torch.randn(5, 2)]
    total = sum(
        abs(float(ws[0][b, a] * ws[1][c, b] * ws[2][d, c]))
        for a, b, c, d in itertools.product(range(4), range(3), range(2), range(5))
    )
    assert float(P.path_norm(ws)) == pytest.approx(total, rel=1e-5)


def test_same_bits_elsewhere(emulator: Any) -> None:
    torch.ops.load_library(str(emulator))
    with Recorder() as recorder:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            xs = [x.requires_grad_() for x in network(dtype)]
            P.polarization(xs).backward()
            P.hypersparse(xs, 0.7).backward()
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
        (lambda x: P.polarization([x], torch.ones(2)), "`t` of one element"),
        (lambda x: P.hypersparse(x, 1.5), r"`fraction` in \[0, 1\]"),
        (lambda x: P.flops_penalty(x[0]), r"of shape \(n, p\)"),
        (lambda x: P.splade_pool(x), r"\(batch, tokens, vocabulary\)"),
        (lambda x: P.splade_pool(x[None], x > 0, "mean"), "`pooling` to be one of max, sum"),
        (lambda x: P.splade_pool(x[None], x > 0), r"`mask` of shape \(1, 4\)"),
        (lambda x: P.path_norm([x, x]), r"`weights\[1\]` of shape \(outputs, 4\)"),
    ],
)
def test_errors(call: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call(torch.randn(4, 5))

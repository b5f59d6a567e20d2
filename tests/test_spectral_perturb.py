"""Norms, perturbations and projections of whole networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from recording import Recorder, replay
from regkern.reference.spectral import perturb as reference
from regkern.spectral import network as N
from regkern.spectral import perturb as P
from torch import Tensor

SHAPES = [(64,), (30, 130), (0,), (7, 3, 3, 3), (), (17000,)]


def network(salt: int, *dtypes: torch.dtype) -> list[Tensor]:
    """Tensors of the dtypes in turn, every other one with odd strides."""
    g = torch.Generator().manual_seed(salt)
    out = []
    for i, shape in enumerate(SHAPES):
        x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtypes[i % len(dtypes)])
        if i % 2 == 1:
            x = x.new_empty((*shape, 2)).select(-1, 0).copy_(x)
        out.append(x)
    return out


def wide(tensors: list[Tensor]) -> list[Tensor]:
    return [x.double() for x in tensors]


def close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(a.dtype, 2**-8)
        torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=tolerance)


MIXED = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
dtypes = pytest.mark.parametrize("kinds", [(torch.float32,), (torch.float64,), MIXED], ids=str)


@dtypes
@pytest.mark.parametrize("order", [1, 2, 3.5, math.inf])
def test_global_norm(kinds: tuple[torch.dtype, ...], order: float) -> None:
    xs = [x.requires_grad_() for x in network(1, *kinds)]
    twins = [x.detach().double().requires_grad_() for x in xs]
    value, expected = N.global_norm(xs, order), reference.global_norm(twins, order)
    assert value.dtype == (torch.float32 if torch.float64 not in kinds else torch.float64)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    ours = torch.autograd.grad(3 * value, xs)
    close(list(ours), list(torch.autograd.grad(3 * expected, twins)))


def test_squares_do_not_overflow_or_vanish() -> None:
    for dtype, size in ((torch.float16, 6e4), (torch.float32, 3e37), (torch.float32, 1e-40)):
        x = torch.full((100,), size, dtype=dtype)
        assert float(N.global_norm(x)) == pytest.approx(10 * float(x[0]), rel=1e-6)


def test_norm_of_nothing() -> None:
    for order in (1, 2, 3, math.inf):
        x = torch.zeros(3, 4, requires_grad=True)
        value = N.global_norm([x, torch.zeros(0)], order)
        assert value == 0
        assert torch.equal(torch.autograd.grad(value, x)[0], torch.zeros(3, 4))
    assert N.global_norm(torch.zeros(0)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    for order in (1, 2, 3, math.inf):
        x = torch.tensor([1.0, bad, 2.0])
        assert str(float(N.global_norm([x, torch.ones(2)], order))) == str(bad)
    grads = [torch.tensor([1.0, bad]), torch.ones(2)]
    assert str(float(N.clip_norm_(grads, 1.0))) == str(bad)
    assert grads[0].isnan().any()
    for kind in ("sam", "asam", "tensor", "row"):
        w = [torch.ones(2), torch.ones(2, 2)]
        saved = P.perturb_(w, [torch.tensor([1.0, bad]), torch.ones(2, 2)], 0.1, kind=kind)  # type: ignore[arg-type]
        assert w[0].isnan().any()
        P.restore_(saved)
        assert w[0].eq(1).all()


def test_second_derivatives() -> None:
    x, y = (torch.randn(n, dtype=torch.float64, requires_grad=True) for n in (5, 3))
    for order in (1, 2, 2.5, math.inf):
        call = lambda a, b, o=order: N.global_norm([a, b], o)  # noqa: E731
        assert torch.autograd.gradcheck(call, (x, y))
        assert torch.autograd.gradgradcheck(call, (x, y))
    for form in ("squared", "negative", "inverse", "exponential"):
        call = lambda a, b, f=form: N.distance_penalty([a], [b], f, 0.3)  # noqa: E731
        a, b = x, (2 * x).detach().requires_grad_()
        assert torch.autograd.gradcheck(call, (a, b))
        assert torch.autograd.gradgradcheck(call, (a, b))


@dtypes
def test_clipping(kinds: tuple[torch.dtype, ...]) -> None:
    for order, most in ((2.0, 1.0), (2.0, 1e9), (1.0, 7.0), (math.inf, torch.tensor(0.5))):
        xs = network(2, *kinds)
        before = [x.clone() for x in xs]
        norm = N.clip_norm_(xs, most, order)
        expected = reference.clip_norm(wide(before), float(most), order)
        close(xs, expected)
        torch.testing.assert_close(
            norm.double(), reference.global_norm(wide(before), order), rtol=1e-6, atol=0
        )
        if float(most) == 1e9:
            assert all(torch.equal(a, b) for a, b in zip(xs, before, strict=True))


def test_clipping_agrees_with_torch() -> None:
    params = [torch.nn.Parameter(torch.randn(20, 30)), torch.nn.Parameter(torch.randn(5))]
    for p in params:
        p.grad = torch.randn_like(p)
    ours = [p.grad.clone() for p in params if p.grad is not None]
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    N.clip_norm_(ours, 1.0)
    for p, g in zip(params, ours, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-5, atol=1e-7)


CASES: list[dict[str, Any]] = [
    {},
    {"p": 3.0},
    {"p": math.inf},
    {"kind": "asam", "eta": 0.1},
    {"kind": "asam", "p": 1.5},
    {"kind": "tensor"},
    {"kind": "row"},
]


@dtypes
@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("storage", ["kept", "swapped"])
def test_perturb_and_restore(
    kinds: tuple[torch.dtype, ...], options: dict[str, Any], storage: Any
) -> None:
    params, grads = network(3, *kinds), network(4, *kinds)
    params = [torch.nn.Parameter(p) for p in params]
    before = [p.detach().clone() for p in params]
    places = [p.data_ptr() for p in params]
    expected = reference.perturbed(wide(before), wide(grads), 0.7, **options)
    saved = None
    for rho in (0.7, torch.tensor(0.7, dtype=torch.float64)):
        saved = P.perturb_(params, grads, rho, storage=storage, reuse=saved, **options)
        close([p.detach() for p in params], expected)
        assert (storage == "kept") == ([p.data_ptr() for p in params] == places)
        P.restore_(saved)
        assert [p.data_ptr() for p in params] == places
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_large_lists_that_go_past_the_cache() -> None:
    """25 MB, with what is left of blocks at odd places."""
    params = [torch.randn(1600001, dtype=torch.float64), torch.randn(1600003, dtype=torch.float64)]
    grads = [torch.randn_like(p) for p in params]
    before = [p.clone() for p in params]
    factor = 0.1 / torch.cat(grads).norm()
    for storage in ("kept", "swapped"):
        saved = P.perturb_(params, grads, 0.1, storage=storage)  # type: ignore[arg-type]
        for p, b, g in zip(params, before, grads, strict=True):
            torch.testing.assert_close(p, b + factor * g, rtol=1e-12, atol=1e-14)
        P.restore_(saved)
        assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    N.clip_norm_(params, 1.0)
    assert float(N.global_norm(params)) == pytest.approx(1.0)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_zero_gradients_and_zero_radii_leave_every_bit(options: dict[str, Any]) -> None:
    w = [torch.tensor([-0.0, 0.0, 1.0]), torch.randn(3, 4)]
    before = [x.clone() for x in w]
    for grads, rho in (([torch.zeros(3), torch.zeros(3, 4)], 1.0), ([torch.ones(3), w[1]], 0.0)):
        P.perturb_(w, grads, rho, **options)
        for x, b in zip(w, before, strict=True):
            assert torch.equal(x.view(torch.int32), b.view(torch.int32))


def test_a_perturbation_is_seen_by_autograd() -> None:
    w = torch.ones(3, requires_grad=True)
    for storage in ("kept", "swapped"):
        loss = (w * w).sum()
        saved = P.perturb_(w, torch.ones(3), 0.1, storage=storage)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        P.restore_(saved)


@dtypes
@pytest.mark.parametrize("per", ["tensor", "all"])
def test_projection(kinds: tuple[torch.dtype, ...], per: Any) -> None:
    for radius, grads in ((1.0, None), (torch.tensor(2.0), network(6, *kinds)), (1e6, None)):
        xs = network(5, *kinds)
        before = [x.clone() for x in xs]
        P.project_(xs, radius, grads=grads, step=0.3, per=per)
        slopes = None if grads is None else wide(grads)
        close(xs, reference.projected(wide(before), float(radius), slopes, 0.3, per))
        if float(radius) == 1e6:
            assert all(torch.equal(a, b) for a, b in zip(xs, before, strict=True))
    zeros = [torch.zeros(3)]
    P.project_(zeros, 0.0)
    assert zeros[0].eq(0).all()


@dtypes
@pytest.mark.parametrize("rescale", [False, True])
def test_component_along_a_direction(kinds: tuple[torch.dtype, ...], rescale: bool) -> None:
    gs, ws = network(7, *kinds), network(8, *kinds)
    ws[3].zero_()
    before = [g.clone() for g in gs]
    P.remove_component_(gs, ws, rescale=rescale)
    expected = reference.without_component(wide(before), wide(ws), rescale)
    # What is left of one number along another is rounding.
    close([*gs[:4], gs[5]], [*expected[:4], expected[5]])
    assert abs(float(gs[4])) <= 2**-7 * abs(float(before[4]))


@dtypes
@pytest.mark.parametrize("vectors", ["zero", "keep"])
def test_filter_normalization(kinds: tuple[torch.dtype, ...], vectors: Any) -> None:
    ds, ws = network(9, *kinds), network(10, *kinds)
    ds[3][2] = 0
    expected = reference.filter_normalized(wide(ds), wide(ws), vectors)
    P.filter_normalize_(ds, ws, vectors)
    close(ds, expected)
    lengths = [
        x[1].double().flatten(1).norm(dim=1) for x in zip(ds, ws, strict=True) if x[1].dim() == 4
    ]
    torch.testing.assert_close(
        ds[3].double().flatten(1).norm(dim=1)[3:], lengths[0][3:], rtol=1e-2, atol=0
    )


@dtypes
@pytest.mark.parametrize("form", ["squared", "negative", "inverse", "exponential"])
def test_distance(kinds: tuple[torch.dtype, ...], form: Any) -> None:
    xs = [x.requires_grad_() for x in network(11, *kinds)]
    anchors = network(12, *kinds)
    twins = [x.detach().double().requires_grad_() for x in xs]
    value = N.distance_penalty(xs, anchors, form, 1e-5)
    expected = reference.distance_penalty(twins, wide(anchors), form, 1e-5)
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=1e-12)
    close(list(torch.autograd.grad(value, xs)), list(torch.autograd.grad(expected, twins)))


def test_same_bits_elsewhere(emulator: Any) -> None:
    torch.ops.load_library(str(emulator))
    with Recorder() as recorder:
        for dtype in MIXED:
            xs, gs = network(1, dtype), network(2, dtype)
            for order in (1, 2, 3.5, math.inf):
                N.clip_norm_([x.clone() for x in xs], 3.0, order)
                # What float32 squares cannot hold.
                N.clip_norm_([1e-4 * x if dtype == torch.float16 else 1e-30 * x for x in xs], 1.0)
            for options in CASES:
                for storage in ("kept", "swapped"):
                    saved = P.perturb_(xs, gs, 0.3, storage=storage, **options)  # type: ignore[arg-type]
                    P.restore_(saved)
            P.project_(xs, 1.0, grads=gs, step=0.3)
            P.remove_component_(gs, xs, rescale=True)
            P.filter_normalize_(gs, xs)
            leaves = [x.requires_grad_() for x in xs]
            N.distance_penalty(leaves, gs, "exponential").backward()
            N.global_norm(leaves).backward()
    expected = replay(recorder.calls, "regkern")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = replay(recorder.calls, "regkern")
    finally:
        torch.set_num_threads(threads)
    for others in (again, replay(recorder.calls, "regkern_emulator")):
        torch.testing.assert_close(expected, others, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: N.global_norm([]), ValueError, "a tensor in `tensors`, got none"),
        (lambda x: N.global_norm(x.int()), TypeError, r"`tensors\[0\]` of dtype float32"),
        (lambda x: N.global_norm(x, 0.5), ValueError, "`ord` to be at least 1, got 0.5"),
        (lambda x: N.global_norm(x, "2"), TypeError, "`ord` to be a number"),
        (lambda x: N.clip_norm_(x, -1.0), ValueError, "`max_norm` to be at least 0"),
        (lambda x: P.perturb_(x, x, -1.0), ValueError, "`rho` to be at least 0"),
        (lambda x: P.perturb_(x, x, 1.0, p=1.0), ValueError, "`p` to be above 1, got 1.0"),
        (lambda x: P.perturb_(x, [x, x], 1.0), ValueError, "as in `params`, 1, got 2"),
        (lambda x: P.perturb_(x, x.double(), 1.0), ValueError, r"`grads\[0\]` like `params\[0\]`"),
        (lambda x: P.perturb_(x, x, 1.0, kind="max"), ValueError, "`kind` to be one of sam, asam"),
        (lambda x: P.perturb_(x, x, 1.0, reuse=x), TypeError, "`reuse` to be a Perturbation"),
        (lambda x: P.restore_(x), TypeError, "`perturbation` to be a Perturbation"),
        (lambda x: P.project_(x, 1.0, per="row"), ValueError, "`per` to be one of tensor, all"),
        (lambda x: P.remove_component_(x, x[0]), ValueError, r"`directions\[0\]` like"),
        (lambda x: P.filter_normalize_(x, x, "drop"), ValueError, "`vectors` to be one of"),
        (lambda x: N.distance_penalty(x, x, "far"), ValueError, "`form` to be one of squared"),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(torch.ones(2, 3))


def test_errors_of_raw_calls() -> None:
    ops, x = torch.ops.regkern, torch.ones(6)
    numbers = torch.ones(1, 2, dtype=torch.float64)
    for call, text in (
        (lambda: ops.network_norms([x[:0]], [], "square", False, 0.0, 0.0, None), "with elements"),
        (lambda: ops.network_norms([x], [], "l2", False, 0.0, 0.0, None), "`norms` to be one of"),
        (lambda: ops.network_norms([x], [x[:3]], "pair", False, 0.0, 0.0, None), r"`ws\[0\]`"),
        (lambda: ops.network_norms([x], [], "power", False, 0.0, 0.0, None), "`most`, got none"),
        (
            lambda: ops.network_combine([x], [], numbers, [4], "plain", 0.0, 0.0, None),
            r"`runs\[0\]` a divisor",
        ),
        (
            lambda: ops.network_combine([x], [], numbers, [3], "plain", 0.0, 0.0, None),
            r"`numbers` of shape \(2, 2\)",
        ),
        (lambda: ops.network_copy_([x], [x.double()]), "`sources` of the dtype of `targets`"),
    ):
        with pytest.raises(RuntimeError, match=text):
            call()

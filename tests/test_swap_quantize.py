"""Swap rules of the quantize family: the same numbers as the layers they replace."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import regkern
import torch
import torch.ao.quantization as ao
from regkern.swap.quantize import FixedPointQuantizer, IntxFakeQuantize
from regkern.swap.torch_ao import AoFakeQuantize
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def same(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype
    assert torch.equal(a, b), (a - b).abs().max()


# ---- torch.ao ----

AO: dict[str, Any] = {
    "activations": ao.FakeQuantize.with_args(
        observer=ao.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    ),
    "reduced": ao.default_fake_quant,
    "weights": ao.default_weight_fake_quant,
    "unsigned symmetric": ao.FakeQuantize.with_args(
        observer=ao.MinMaxObserver, dtype=torch.quint8, qscheme=torch.per_tensor_symmetric
    ),
    "channels": ao.default_per_channel_weight_fake_quant,
    "channels affine": ao.FakeQuantize.with_args(
        observer=ao.MovingAveragePerChannelMinMaxObserver,
        quant_min=-8,
        quant_max=7,
        dtype=torch.qint8,
        qscheme=torch.per_channel_affine,
        ch_axis=1,
    ),
    "histogram": ao.FakeQuantize.with_args(
        observer=ao.HistogramObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", AO)
def test_ao_numbers(name: str, dtype: torch.dtype) -> None:
    theirs = AO[name]()
    ours = regkern.swap(copy.deepcopy(theirs)).model
    assert isinstance(ours, AoFakeQuantize)
    for step in range(5):
        x = (torch.randn(6, 5, 7) * (1 + step * (step == 3) * 9)).to(dtype)
        if step == 3:
            theirs.disable_observer()
            ours.apply(ao.disable_observer)
        if step == 4:
            theirs.disable_fake_quant()
            ours.apply(ao.disable_fake_quant)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = theirs(a), ours(b)
        same(y.detach(), z.detach())
        g = torch.randn_like(x)
        y.backward(g)
        z.backward(g)
        assert a.grad is not None
        assert b.grad is not None
        same(a.grad, b.grad)
        assert step != 3 or bool((a.grad == 0).any())
        state = ours.state_dict()
        assert list(state) == list(theirs.state_dict())
        for key, value in theirs.state_dict().items():
            same(value, state[key])


def test_ao_in_a_model_under_training() -> None:
    def build() -> nn.Module:
        torch.manual_seed(1)
        qconfig = ao.QConfig(activation=AO["activations"], weight=AO["channels"])
        net: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
        net.qconfig = qconfig
        return ao.prepare_qat(net.train())

    theirs, ours = build(), build()
    report = regkern.swap(ours)
    assert len(report.swapped) == len([m for m in theirs.modules() if type(m) is ao.FakeQuantize])
    assert len(report.swapped) >= 4
    assert not report.left
    optimizers = [torch.optim.SGD(net.parameters(), 0.05) for net in (theirs, ours)]
    for _ in range(3):
        x = torch.randn(4, 3, 6, 6)
        outputs = []
        for net, optimizer in zip((theirs, ours), optimizers, strict=True):
            optimizer.zero_grad()
            y = net(x)
            y.square().sum().backward()
            optimizer.step()
            outputs.append(y.detach())
        same(*outputs)
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            same(p.grad, q.grad)
    state = theirs.state_dict()
    assert list(state) == list(ours.state_dict())
    for key, value in ours.state_dict().items():
        same(value, state[key])
    # A fresh one, whose scales have one element, takes the trained state, and both go on alike.
    fresh = build()
    regkern.swap(fresh)
    fresh.load_state_dict(state)
    for net in (theirs, fresh):
        net.eval().apply(ao.disable_observer)
    same(theirs(x).detach(), fresh(x).detach())


def test_ao_keeps_nan_and_copies() -> None:
    old = AO["activations"]()
    old(torch.randn(50))
    old.disable_observer()
    new = regkern.swap(old).model
    x = torch.tensor([1.0, float("nan"), -1.0])
    assert not old(x).isnan().any()
    assert new(x).isnan().tolist() == [False, True, False]
    # One set of buffers; a copy has its own.
    assert new.scale is old.scale
    for other in (
        copy.deepcopy(new),
        pickle.loads(pickle.dumps(regkern.swap(ao.FakeQuantize()).model)),
    ):
        assert isinstance(other, AoFakeQuantize)
        assert other.scale is not old.scale
        other(x[:1])
    old.scale.mul_(2)
    same(new(x[:1]), old(x[:1]))
    new.register_buffer("more", torch.zeros(1))
    assert "more" not in old.state_dict()


def test_ao_left() -> None:
    float_points = ao.default_embedding_fake_quant()
    fused = ao.default_fused_act_fake_quant()
    fixed = ao.default_fixed_qparams_range_0to1_fake_quant()
    report = regkern.swap(nn.ModuleList([float_points, fused, fixed]))
    assert not report.swapped
    reasons = [left.reason for left in report.left]
    assert "no integers" in reasons[0]
    assert "double" in reasons[1]
    assert "subclass" in reasons[2]


def test_ao_fused_differs_from_its_parts() -> None:
    # The reason it is left for is true: another scale, from the same range.
    kwargs = {"observer": ao.MovingAverageMinMaxObserver, "quant_min": 0, "quant_max": 255}
    different = 0
    for _ in range(50):
        parts, fused = ao.FakeQuantize(**kwargs), ao.FusedMovingAvgObsFakeQuantize(**kwargs)
        x = torch.randn(100)
        parts(x)
        fused(x)
        different += not torch.equal(parts.scale, fused.scale)
        torch.testing.assert_close(parts.scale, fused.scale)
    assert different > 0


# ---- torchao ----


def intx(*args: Any, **kwargs: Any) -> nn.Module:
    pytest.importorskip("torchao")
    qat = pytest.importorskip("torchao.quantization.qat")
    layer: nn.Module = qat.IntxFakeQuantizer(qat.IntxFakeQuantizeConfig(*args, **kwargs))
    return layer


INTX: dict[str, tuple[Any, dict[str, Any]]] = {
    "token": (torch.int8, {"granularity": "per_token", "is_symmetric": False}),
    "token uint4": (torch.uint4, {"granularity": "per_token", "is_symmetric": False}),
    "group": (torch.int4, {"group_size": 8}),
    "group int2": (torch.int2, {"group_size": 16}),
    "channel": (torch.int8, {"granularity": "per_channel"}),
    "eps": (torch.int4, {"group_size": 8, "eps": 0.3}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", INTX)
def test_torchao_numbers(name: str, dtype: torch.dtype) -> None:
    kind, options = INTX[name]
    theirs = intx(kind, **options)
    ours = regkern.swap(copy.deepcopy(theirs)).model
    assert isinstance(ours, IntxFakeQuantize)
    for scale in (1.0, 100.0, 0.0):
        x = (torch.randn(12, 32) * scale).to(dtype)
        x[3] = x[3].abs()
        x[4] = 0.0
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = theirs(a), ours(b)
        same(y.detach(), z.detach())
        same(theirs.scale.detach().reshape(-1), ours.scale.detach().reshape(-1))
        assert torch.equal(theirs.zero_point.reshape(-1), ours.zero_point.reshape(-1))
        # dy s (1 / s) there, rounded twice; dy here.
        g = torch.randn_like(x)
        y.backward(g)
        z.backward(g)
        zeros = x.eq(0).all(1)
        rest = ~zeros
        torch.testing.assert_close(
            a.grad[rest], b.grad[rest], rtol=2 * torch.finfo(dtype).eps, atol=0.0
        )
        # Of a row of zeros dy s is subnormal there, and loses digits.
        assert torch.equal(b.grad[zeros], g[zeros])
    ours.enabled = False
    assert ours(x) is x


def test_torchao_tokens_of_more_dimensions_and_nan() -> None:
    theirs = intx(torch.int8, granularity="per_token", is_symmetric=False)
    ours = regkern.swap(theirs).model
    x = torch.randn(2, 3, 16)
    same(theirs(x), ours(x))
    x[0, 1, 4] = float("nan")
    x[1, 2, 3] = float("inf")
    y, z = theirs(x), ours(x)
    assert torch.equal(y.isnan(), z.isnan())
    assert y.isnan().sum() == 32
    same(y.nan_to_num(), z.nan_to_num())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"group_size": 8, "is_dynamic": False, "range_learning": True}, "learns its range"),
        ({"group_size": 8, "is_dynamic": False}, "first input"),
        ({"group_size": 8, "is_symmetric": False}, "tinygemm"),
        ({"granularity": "per_token"}, "refuses"),
        ({"group_size": 8, "scale_precision": torch.bfloat16}, "bfloat16"),
        ({"group_size": 8, "zero_point_domain": "FLOAT"}, "FLOAT"),
    ],
)
def test_torchao_left(options: dict[str, Any], reason: str) -> None:
    if "zero_point_domain" in options:
        primitives = pytest.importorskip("torchao.quantization.quant_primitives")
        options = {**options, "zero_point_domain": primitives.ZeroPointDomain.FLOAT}
    layer = intx(torch.int4, **options)
    report = regkern.swap(layer)
    assert report.model is layer
    assert reason in report.left[0].reason


def test_torchao_errors() -> None:
    ours = regkern.swap(intx(torch.int4, group_size=8)).model
    with pytest.raises(ValueError, match="multiple of the group"):
        ours(torch.randn(3, 12))
    with pytest.raises(ValueError, match="float64"):
        ours(torch.randn(3, 16, dtype=torch.float64))


# ---- qtorch: one test, as its import compiles C++ ----


def test_qtorch() -> None:
    pytest.importorskip("qtorch")
    try:
        from qtorch import BlockFloatingPoint, FixedPoint, FloatingPoint
        from qtorch.quant import Quantizer, float_quantize, quantizer
    except Exception as error:
        pytest.skip(f"qtorch cannot be built here: {error}")

    def replaced(*args: Any) -> tuple[nn.Module, nn.Module]:
        old = Quantizer(*args)
        new = regkern.swap(old).model
        assert isinstance(new, FixedPointQuantizer)
        return old, new

    # Nearest: the same numbers, forward and backward.
    x = torch.cat([torch.randn(5000) * 2, torch.arange(-80, 80) / 32.0, torch.tensor([1e9, -1e9])])
    for symmetric in (False, True):
        numbers = FixedPoint(6, 3, symmetric=symmetric), FixedPoint(8, 6, symmetric=symmetric)
        for args in (numbers, (numbers[0], None), (None, numbers[1])):
            old, new = replaced(*args, "nearest", "nearest")
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            y, z = old(a), new(b)
            same(y.detach(), z.detach())
            g = torch.randn_like(x)
            y.backward(g)
            z.backward(g)
            assert a.grad is not None
            assert b.grad is not None
            same(a.grad, b.grad)
    assert new(torch.tensor([float("nan")])).isnan().all()
    # The one number that it rounds to the wrong side.
    old, new = replaced(FixedPoint(6, 3), None, "nearest", "nearest")
    odd = torch.tensor([(0.5 + 2.0**-24) / 8])
    assert old(odd).item() == 0.0
    assert new(odd).item() == 0.125
    # Stochastic: the same law, forward and backward.
    old, new = replaced(FixedPoint(6, 3), FixedPoint(6, 2))
    x = torch.full((40000,), 0.3, requires_grad=True)
    for layer in (old, new):
        x.grad = None
        y = layer(x)
        assert set(y.detach().tolist()) == {0.25, 0.375}
        assert abs(y.mean().item() - 0.3) < 4 * 0.0625 / 200
        y.backward(torch.full_like(x, 0.1))
        assert x.grad is not None
        assert set(x.grad.tolist()) == {0.0, 0.25}
        assert abs(x.grad.mean().item() - 0.1) < 4 * 0.125 / 200
    assert not torch.equal(new(x), new(x))
    # Left, with reasons that hold.
    layer = Quantizer(FixedPoint(6, 3))
    layer.quantize = quantizer(FixedPoint(6, 3), clamping_grad_zero=True)
    for old, reason in [
        (Quantizer(FloatingPoint(4, 3)), "infinity and NaN"),
        (Quantizer(None, BlockFloatingPoint(8)), "block"),
        (Quantizer(FixedPoint(6, 3, clamp=False)), "clamping"),
        (Quantizer(FixedPoint(20, 3)), "20 bits"),
        (layer, "zeroes gradients"),
    ]:
        report = regkern.swap(old)
        assert report.model is old
        assert reason in report.left[0].reason
    special = torch.tensor([float("inf"), float("nan"), 1.0625])
    rounded = float_quantize(special, 4, 3, rounding="nearest")
    assert rounded.isfinite().all()
    assert rounded[2] == 1.125

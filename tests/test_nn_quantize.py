"""Modules of the quantize family: rounding and fake quantization."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.ao.quantization as ao
from regkern.nn.quantize.fake_quantize import ElasticFakeQuantize, FakeQuantize
from regkern.nn.quantize.rounding import StochasticRound
from regkern.quantize.fake import fake_quantize
from regkern.quantize.rounding import round_to
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def compiled(module: nn.Module) -> Any:
    torch._dynamo.reset()
    return torch.compile(module, backend="aot_eager", fullgraph=True)


# ---- StochasticRound ----


def test_stochastic_round_in_training_and_eval() -> None:
    layer = StochasticRound("e2m1fn")
    x = torch.full((20000,), 1.1)
    y = layer(x)
    assert set(y.tolist()) == {1.0, 1.5}
    assert abs(y.mean().item() - 1.1) < 4 * 0.2 / math.sqrt(20000)
    assert torch.equal(layer.eval()(x), round_to(x, "e2m1fn"))
    assert torch.equal(StochasticRound("e2m1fn", eval_rounding="floor").eval()(-x), x * 0 - 1.5)
    assert StochasticRound("e2m1fn", eval_rounding=None).eval()(x) is x
    # In eval as in training, too much becomes the largest.
    big = torch.tensor([1e9])
    for mode in (True, False):
        assert StochasticRound("e5m2").train(mode)(big).item() == 57344.0
        assert StochasticRound("mxfp4", scale_mode="ceil").train(mode)(big).isfinite().all()
    assert StochasticRound("e5m2", overflow=None).eval()(big).isinf().all()


def test_stochastic_round_shares_no_noise() -> None:
    x = torch.rand(1000)
    layers = [StochasticRound("int4"), StochasticRound("int4")]
    layers.append(copy.deepcopy(layers[0]))
    outputs = [layer(x) for layer in layers] + [layers[0](x)]
    for i, y in enumerate(outputs):
        assert not any(torch.equal(y, z) for z in outputs[:i])
    assert not layers[0].state_dict()
    torch.manual_seed(3)
    y = layers[0](x)
    torch.manual_seed(3)
    assert torch.equal(y, layers[1](x))
    drawn = [StochasticRound("int4", generator=torch.Generator().manual_seed(5))(x) for _ in "ab"]
    assert torch.equal(*drawn)


def test_stochastic_round_gradient() -> None:
    layer = StochasticRound("bfloat16", gradient_format="int4")
    x = torch.randn(5000, requires_grad=True)
    layer(x).backward(torch.full((5000,), 0.25))
    assert x.grad is not None
    assert set(x.grad.tolist()) == {0.0, 1.0}
    assert abs(x.grad.mean().item() - 0.25) < 4 * 0.44 / math.sqrt(5000)
    x.grad = None
    layer = StochasticRound("bfloat16", gradient_format="int4", gradient_rounding="toward_zero")
    layer(x).backward(torch.full((5000,), 1.75))
    assert bool((x.grad == 1.0).all())
    x.grad = None
    StochasticRound("int4")(x).sum().backward()
    assert bool((x.grad == 1.0).all())


def test_stochastic_round_compiled() -> None:
    layer = StochasticRound("e4m3fn", gradient_format="e5m2")
    f = compiled(layer)
    x = torch.randn(64, requires_grad=True)
    y, z = f(x), f(x)
    assert not torch.equal(y, z)
    y.sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 1.0).all())
    layer.eval()
    assert torch.equal(f(x), round_to(x, "e4m3fn", overflow="saturate"))


def test_stochastic_round_repr_and_errors() -> None:
    assert repr(StochasticRound("mxfp4")) == "StochasticRound('mxfp4')"
    text = repr(StochasticRound("mxfp4", axis=1, gradient_format="e5m2"))
    assert text == "StochasticRound('mxfp4', gradient_format='e5m2', axis=1)"
    for options, message in [
        ({"format": "e99"}, "`format`"),
        ({"format": "int8", "eval_rounding": "up"}, "`eval_rounding`"),
        ({"format": "int8", "gradient_format": "x"}, "`format`"),
        ({"format": "int8", "overflow": "wrap"}, "`overflow`"),
        ({"format": "int8", "random_bits": 7}, "`random_bits`"),
        ({"format": "int8", "block_size": 8}, "no scale per block"),
    ]:
        with pytest.raises(ValueError, match=message):
            StochasticRound(**options)  # type: ignore[arg-type]


# ---- FakeQuantize: from each input ----


def test_dynamic_is_the_function() -> None:
    x = torch.randn(6, 40)
    for options in (
        {},
        {"format": "int4", "granularity": "group", "block_size": 16},
        {"granularity": "token", "symmetric": False},
        {"format": "e4m3fn", "granularity": "channel", "axis": 1},
        {"format": "int4", "quant_min": -7, "granularity": "block", "block_size": (4, 16)},
    ):
        layer = FakeQuantize(**options)  # type: ignore[arg-type]
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = layer(a), fake_quantize(b, **options)  # type: ignore[arg-type]
        assert torch.equal(y, z)
        y.square().sum().backward()
        z.square().sum().backward()
        assert a.grad is not None
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]
        assert not layer.state_dict()


def test_rounding_of_training_and_of_eval() -> None:
    x = torch.randn(1000)
    layer = FakeQuantize("int4", rounding="stochastic")
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), fake_quantize(x, format="int4"))
    noise = FakeQuantize("int4", rounding="noise")
    assert len(noise(x).unique()) > 900
    assert len(noise.eval()(x).unique()) <= 16
    assert FakeQuantize(eval_rounding=None).eval()(x) is x
    layer.enable_fake_quant(False)
    assert layer(x) is x


def test_weights_as_in_aqt() -> None:
    w = torch.randn(5, 3, 3, 3)
    layer = FakeQuantize("int4", granularity="channel", axis=0, quant_min=-7)
    bound = w.abs().amax((1, 2, 3), keepdim=True)
    scale = bound / 7
    torch.testing.assert_close(layer(w), (w / scale).round() * scale)
    # The scale of a fit: what lies beyond is clipped, and has no gradient.
    c1, c2 = 3.2, -2.1
    layer = FakeQuantize("int2", granularity="channel", axis=0, quant_min=-1, fit=(c1, c2))
    spread = w.square().mean((1, 2, 3), keepdim=True).sqrt()
    scale = c1 * spread + c2 * w.abs().mean((1, 2, 3), keepdim=True)
    w.requires_grad_()
    y = layer(w)
    torch.testing.assert_close(y, (w / scale).round().clamp(-1, 1) * scale)
    y.sum().backward()
    assert w.grad is not None
    assert torch.equal(w.grad, (w.abs() < 1.5 * scale).float())
    # No fit to nothing, and none to what is not finite.
    assert bool((layer(torch.zeros(2, 4)) == 0).all())
    bad = torch.tensor([[1.0, -1.0, math.nan, 0.5]])
    assert layer(bad).isnan().tolist() == [[False, False, True, False]]
    assert layer(torch.empty(0, 3)).shape == (0, 3)


# ---- learned ----


@pytest.mark.parametrize(
    ("options", "reduce"),
    [
        ({}, lambda t: t.mean()),
        ({"granularity": "channel", "axis": 1, "shape": 6}, lambda t: t.mean((0, 2))),
        (
            {"granularity": "group", "axis": 1, "block_size": 4, "shape": (4, 2, 5)},
            lambda t: torch.stack([t[:, :4].mean(1), t[:, 4:].mean(1)], 1),
        ),
        (
            {"granularity": "block", "block_size": (4, 3), "shape": (4, 2, 2)},
            lambda t: torch.stack(
                [
                    torch.stack([b.mean((1, 2)) for b in rows.split(3, 2)], 1)
                    for rows in t.split(4, 1)
                ],
                1,
            ),
        ),
    ],
)
@pytest.mark.parametrize("log_scale", [False, True])
def test_learned_starts_from_the_first_input(options: Any, reduce: Any, log_scale: bool) -> None:
    layer = FakeQuantize("int4", range="learned", log_scale=log_scale, **options)
    scale = layer.scale
    assert isinstance(scale, nn.Parameter)
    x = torch.randn(4, 6, 5, requires_grad=True)
    y = layer(x)
    wanted = 2 * reduce(x.detach().abs()) / math.sqrt(7)
    assert layer.scale is scale
    found = scale.detach().exp() if log_scale else scale.detach()
    torch.testing.assert_close(found, wanted)
    assert bool(layer.initialized.all())
    y.square().sum().backward()
    assert scale.grad is not None
    assert bool((scale.grad != 0).all())
    options = {name: value for name, value in options.items() if name != "shape"}
    given = scale.detach().clone().requires_grad_()
    z = fake_quantize(
        x, given, format="int4", gradient_factor="lsq", log_scale=log_scale, **options
    )
    assert torch.equal(y, z)
    z.square().sum().backward()
    assert torch.equal(given.grad, scale.grad)  # type: ignore[arg-type]
    # Once and for all, in any mode; a loaded state counts.
    before = scale.detach().clone()
    layer(x * 100)
    layer.eval()(x * 100)
    other = FakeQuantize("int4", range="learned", log_scale=log_scale, shape=layer.shape, **options)
    other.load_state_dict(layer.state_dict())
    other(x * 100)
    assert torch.equal(before, scale.detach())
    assert torch.equal(before, other.scale.detach())


def test_learned_zero_point() -> None:
    layer = FakeQuantize("uint4", range="learned", symmetric=False)
    x = torch.rand(500) * 3 - 1
    layer(x)
    assert layer.zero_point is not None
    s = (x.max() - x.min()) / 15
    torch.testing.assert_close(layer.scale.detach(), s)
    torch.testing.assert_close(layer.zero_point.detach(), -x.min() / s)
    # Beyond the codes it counts as the last one, and keeps its gradient.
    with torch.no_grad():
        layer.zero_point.fill_(40.0)
    layer(x).sum().backward()
    assert layer.zero_point.grad is not None
    assert layer.zero_point.grad.item() != 0


def test_learned_learns_from_the_first_step() -> None:
    layer = FakeQuantize("int3", range="learned", symmetric=False)
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    x = torch.randn(4000) + 0.3
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        error = (layer(x) - x).square().mean()
        # The error itself, not its gradient by way of x.
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.9 * errors[0]


def test_a_scale_below_zero_comes_back() -> None:
    layer = FakeQuantize("int4", range="learned")
    x = torch.randn(100)
    layer(x)
    with torch.no_grad():
        layer.scale.fill_(-0.01)
    y = layer(x)
    assert y.abs().max() < 1e-7
    (y - x).square().sum().backward()
    assert layer.scale.grad is not None
    assert layer.scale.grad.item() < 0  # so that descent makes it larger


def test_first_input_without_numbers() -> None:
    layer = FakeQuantize("int4", range="learned", granularity="channel", axis=0, shape=3)
    x = torch.tensor([[1.0, math.nan, 3.0], [0.0, 0.0, 0.0], [math.inf, 2.0, -2.0]])
    y = layer(x)
    torch.testing.assert_close(
        layer.scale.detach(), torch.tensor([4.0, math.sqrt(7), 4.0]) / math.sqrt(7)
    )
    assert layer.initialized.tolist() == [True, False, True]
    assert y.isnan().tolist() == [[False, True, False], [False] * 3, [False] * 3]
    layer = FakeQuantize(range="learned")
    layer(torch.empty(0, 3))
    assert not layer.initialized


# ---- observed ----


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("format", ["int8", "uint8", "int4"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_observed_is_torch_ao(format: Any, symmetric: bool, granularity: Any) -> None:
    low, high = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7)}[format]
    kind = "per_" + granularity + ("_symmetric" if symmetric else "_affine")
    observer: Any = ao.MovingAverageMinMaxObserver
    options: dict[str, Any] = {}
    if granularity == "channel":
        observer, options["ch_axis"] = ao.MovingAveragePerChannelMinMaxObserver, 1
    # Unsigned symmetric codes have another middle where the range is given.
    given = {} if format == "uint8" else {"quant_min": low, "quant_max": high}
    theirs = ao.FakeQuantize(
        observer=observer,
        dtype=torch.quint8 if low == 0 else torch.qint8,
        qscheme=getattr(torch, kind),
        **given,
        **options,
    )
    ours = FakeQuantize(
        format,
        granularity=granularity,
        axis=1,
        symmetric=symmetric,
        range="observed",
        shape=(5,) if granularity == "channel" else (),
    )
    for step in range(6):
        x = torch.randn(4, 5, 6) * (1 + step)
        if step == 4:
            theirs.disable_observer()
            ours.enable_observer(False)
            ours.eval()
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = theirs(a), ours(b)
        assert torch.equal(y, z)
        y.square().sum().backward()
        z.square().sum().backward()
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]
    assert torch.equal(theirs.activation_post_process.min_val, ours.min_val)
    scale, zero_point = ours.calculate_qparams()
    assert torch.equal(scale.reshape(-1), theirs.scale)
    assert torch.equal(zero_point.reshape(-1).int(), theirs.zero_point)
    # The range is state.
    other = copy.deepcopy(ours)
    other.min_val.zero_()
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other(x), ours(x))


def test_observed_and_what_is_no_number() -> None:
    layer = FakeQuantize("int8", range="observed")
    assert layer.calculate_qparams()[0].item() == 1.0
    x = torch.tensor([1.0, -2.0, 0.5])
    layer(x)
    for bad in (math.nan, math.inf):
        y = layer(torch.tensor([1.0, bad, 0.5]))
        assert (layer.min_val.item(), layer.max_val.item()) == (-2.0, 1.0)
        assert y.isnan().tolist() == [False, math.isnan(bad), False]
    layer(torch.empty(0))
    assert (layer.min_val.item(), layer.max_val.item()) == (-2.0, 1.0)
    # Of floating formats too.
    layer = FakeQuantize("e4m3fn", range="observed")
    assert torch.equal(layer(x), fake_quantize(x, format="e4m3fn"))


@pytest.mark.parametrize("range", ["dynamic", "learned", "observed"])
def test_fake_quantize_compiled(range: Any) -> None:
    layer = FakeQuantize("int4", range=range)
    twin = copy.deepcopy(layer)
    f = compiled(layer)
    for _ in "abc":
        x = torch.randn(32, 8)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, z = f(a), twin(b)
        torch.testing.assert_close(y, z)
        y.square().sum().backward()
        z.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    for p, q in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"range": "static"}, "`range`"),
        ({"granularity": "row"}, "`granularity`"),
        ({"range": "learned", "granularity": "token"}, "token"),
        ({"range": "observed", "granularity": "group"}, "'tensor' or 'channel'"),
        ({"range": "learned", "granularity": "channel"}, "`shape` of 1"),
        ({"range": "learned", "shape": 3}, "`shape` of 0"),
        ({"shape": 3}, "no `shape`"),
        ({"log_scale": True}, "'learned'"),
        ({"fit": (1.0, 2.0), "range": "learned"}, "`fit`"),
        ({"fit": (1.0, math.nan)}, "`fit`"),
        ({"averaging_constant": 0.0}, "`averaging_constant`"),
        ({"rounding": "up"}, "`rounding`"),
        ({"eval_rounding": "noise"}, "`eval_rounding`"),
        ({"format": "mxfp4"}, "`format`"),
        ({"format": "e4m3fn", "symmetric": False}, "symmetric"),
        ({"gradient": "none"}, "`gradient`"),
    ],
)
def test_fake_quantize_errors(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FakeQuantize(**options)


@pytest.mark.parametrize("range", ["learned", "observed"])
def test_another_number_of_blocks(range: Any) -> None:
    layer = FakeQuantize(range=range, granularity="channel", shape=3)
    with pytest.raises(ValueError, match=r"blocks \(3,\), got \(4,\)"):
        layer(torch.randn(4, 5))
    layer(torch.randn(3, 5))
    layer.enable_observer(False)
    with pytest.raises(ValueError, match="`scale` of 4 elements"):
        layer(torch.randn(4, 5))


def test_fake_quantize_repr() -> None:
    assert repr(FakeQuantize()) == "FakeQuantize('int8')"
    text = repr(FakeQuantize("int4", quant_min=-7, granularity="channel"))
    assert text == "FakeQuantize('int4', codes=-7…7, granularity='channel')"


# ---- ElasticFakeQuantize ----


def elastic(x: Tensor, s: Tensor, beta: Tensor, low: int, high: int, c: float) -> Tensor:
    """The paper's formula; gradients by the detach trick."""
    s = s.detach() + (s - s.detach()) * c
    beta = beta.detach() + (beta - beta.detach()) * c
    t = (x - beta) / s
    return (t + (t.round() - t).detach()).clamp(low, high) * s + beta


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_elastic_is_the_papers_formula(granularity: Any, symmetric: bool) -> None:
    layer = ElasticFakeQuantize((2, 4), granularities=("tensor", "channel"), channels=6)
    layer.set_bits(4, granularity=granularity, symmetric=symmetric)
    x = torch.randn(6, 10, 3) + 0.2
    layer(x)
    name = f"{granularity}_{'symmetric' if symmetric else 'asymmetric'}_4"
    # Into the range: so that both sides clip.
    with torch.no_grad():
        layer.scale[name].mul_(0.5)
        if not symmetric:
            layer.offset[name].mul_(0.5)
    low, high = (-8, 7) if symmetric else (0, 15)
    c = 2 / math.sqrt(high * 180 / 10) if granularity == "channel" else 1 / math.sqrt(high * 180)
    shape = (-1, 1, 1) if granularity == "channel" else ()
    s = layer.scale[name].detach().clone().requires_grad_()
    beta = torch.zeros_like(s)
    if not symmetric:
        beta = layer.offset[name].detach().clone().requires_grad_()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = layer(a)
    z = elastic(b, s.reshape(shape), beta.reshape(shape), low, high, c)
    torch.testing.assert_close(y, z)
    g = torch.randn_like(x)
    y.backward(g)
    z.backward(g)
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(layer.scale[name].grad, s.grad, rtol=1e-4, atol=1e-5)
    if symmetric:
        return
    torch.testing.assert_close(layer.offset[name].grad, beta.grad, rtol=1e-4, atol=1e-5)
    # dβ = c Σ g over what was clipped.
    t = (x - beta.detach().reshape(shape)) / s.detach().reshape(shape)
    clipped = g * ((t < low - 0.5) | (t > high + 0.5))
    wanted = c * (clipped.sum((1, 2)) if granularity == "channel" else clipped.sum())
    assert clipped.count_nonzero() > 5
    torch.testing.assert_close(layer.offset[name].grad, wanted, rtol=1e-4, atol=1e-5)


def test_elastic_settings_are_their_own() -> None:
    layer = ElasticFakeQuantize((2, 8))
    assert layer.bits == 8
    assert len(layer.scale) == 4
    assert len(layer.offset) == 2
    x = torch.rand(1000) + 5
    layer(x)
    assert layer.initialized.tolist() == [False, True, False, False]
    layer.set_bits(2, symmetric=False)
    y = layer(x)
    assert len(y.unique()) == 4
    torch.testing.assert_close(y.min(), x.min())
    torch.testing.assert_close(layer.offset["tensor_asymmetric_2"].detach(), x.min())
    torch.testing.assert_close(layer.scale["tensor_asymmetric_2"].detach(), (x.max() - x.min()) / 3)
    y.sum().backward()
    assert [name for name, p in layer.scale.items() if p.grad is not None] == [
        "tensor_asymmetric_2"
    ]
    other = ElasticFakeQuantize((2, 8))
    other.load_state_dict(layer.state_dict())
    other.set_bits(2, symmetric=False)
    assert torch.equal(other(x), y)
    assert torch.equal(other(x * 9), layer(x * 9))
    torch.testing.assert_close(compiled(layer)(x), y)
    with pytest.raises(ValueError, match="setting"):
        layer.set_bits(3)
    with pytest.raises(ValueError, match="setting"):
        layer.set_bits(2, granularity="channel")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": ()}, "`bits`"),
        ({"bits": (1, 2)}, "`bits`"),
        ({"granularities": ("token",)}, "`granularities`"),
        ({"granularities": ("channel",)}, "`channels`"),
        ({"symmetries": ()}, "`symmetries`"),
        ({"axis": 2}, "`axis`"),
    ],
)
def test_elastic_errors(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticFakeQuantize(**options)

"""Quantization noise on weights: laws, corners, errors, and the defects of others."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import regkern
import torch
from regkern.nn.quantize.analog import AnalogWeights
from regkern.nn.quantize.quant_noise import QuantNoise
from regkern.quantize.analog import (
    KINDS,
    PCM_COEFFICIENTS,
    additive_uniform_noise,
    drop_connect,
    weight_noise,
    weight_noise_,
)
from regkern.quantize.block_noise import (
    blocks_of,
    nearest_centroid,
    quant_noise,
    quant_noise_,
    subvector_mean,
)
from regkern.reference.quantize import noise as reference
from torch import Tensor, nn
from torch.nn.utils import parametrize

SEED = torch.tensor([17, 23])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def within(observed: float, p: float, n: int) -> bool:
    return abs(observed - p) < 5 * math.sqrt(p * (1 - p) / n)


# ---- Quant-Noise: laws ----


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.97])
def test_share_of_the_blocks(p: float) -> None:
    """A word of 32 bits per block: 16 bits would miss p = 0.001 by one part in 65."""
    w = torch.ones(2000, 800)
    dropped = quant_noise(w, p, 8, seed=SEED).view(2000, 100, 8) == 0
    assert torch.equal(dropped.any(-1), dropped.all(-1))
    assert within(float(dropped[..., 0].double().mean()), p, 200_000)


def test_blocks_are_independent() -> None:
    dropped = (quant_noise(torch.ones(4000, 40), 0.3, 8, seed=SEED)[:, ::8] == 0).double()
    correlation = torch.corrcoef(dropped.T) - torch.eye(5)
    assert correlation.abs().max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize(
    ("shape", "block_size", "expected"),
    [
        ((6, 20), 8, (6, 20, 8)),
        ((6, 20, 1, 1), 8, (6, 20, 8)),
        ((6, 20, 3, 3), 8, (1, 1080, 9)),
        ((6, 20, 5), 4, (1, 600, 5)),
        ((12,), 5, (1, 12, 5)),
    ],
)
def test_how_weights_are_cut(shape: Any, block_size: int, expected: Any) -> None:
    assert blocks_of(shape, block_size) == expected


def test_a_kernel_is_dropped_as_a_whole() -> None:
    w = quant_noise(torch.ones(30, 20, 3, 3), 0.4, seed=SEED)
    zero = (w == 0).flatten(2)
    assert torch.equal(zero.any(-1), zero.all(-1))
    assert 0.2 < zero.double().mean() < 0.6


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_layout_does_not_change_what_is_drawn(memory: torch.memory_format) -> None:
    w = torch.randn(8, 6, 3, 3)
    given = w.contiguous(memory_format=memory)
    y = quant_noise(given, 0.5, seed=SEED)
    assert torch.equal(y, quant_noise(w, 0.5, seed=SEED))
    assert y.is_contiguous(memory_format=memory)


def test_p_zero_is_the_weight_itself() -> None:
    w = torch.randn(6, 20)
    assert quant_noise(w, 0.0, 8) is w
    assert torch.equal(quant_noise(w, torch.tensor(0.0), 8), w)
    assert quant_noise(w, 1.0, 8).count_nonzero() == 0


def test_eval_quantizes_everything_but_zeroes_nothing() -> None:
    w = torch.randn(6, 20)
    assert quant_noise(w, 0.3, 8, training=False) is w
    y = quant_noise(w, 0.0, 8, torch.round, training=False)
    assert torch.equal(y, w.round())
    mean = w.view(-1, 4).mean(0)
    torch.testing.assert_close(
        quant_noise(w, 0.3, 4, "mean", training=False), mean.repeat(30).view(6, 20)
    )


def test_nothing_is_drawn_where_nothing_is_random() -> None:
    w, state = torch.randn(6, 20), torch.get_rng_state()
    quant_noise(w, 0.5, 4, "mean", training=False)
    quant_noise(w, 1.0, 4)
    weight_noise(w, "discretize", resolution=16)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_probability_may_change_under_compile() -> None:
    w, p = torch.randn(64, 64), torch.tensor(0.1)
    frames = 0

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal frames
        frames += 1
        return graph.forward

    compiled = torch.compile(lambda w, p: quant_noise(w, p, 8, seed=SEED), backend=counting)
    for value in (0.1, 0.5, 1.0):
        p.fill_(value)
        assert torch.equal(compiled(w, p), quant_noise(w, value, 8, seed=SEED))
    assert frames == 1


# ---- Quant-Noise: gradients ----


def test_gradients_of_the_weight() -> None:
    w = torch.randn(6, 20, requires_grad=True)
    g = torch.randn(6, 20)
    y = quant_noise(w, 0.5, 4, seed=SEED)
    (full,) = torch.autograd.grad(y, w, g)
    assert torch.equal(full, g)
    y = quant_noise(w, 0.5, 4, gradient="masked", seed=SEED)
    (masked,) = torch.autograd.grad(y, w, g)
    assert torch.equal(masked, g * (y != 0))
    # Learned quantizers get what flows through the blocks that they made.
    step = torch.tensor(0.5, requires_grad=True)
    y = quant_noise(w, 0.5, 4, lambda v: v * step, gradient="quantizer", seed=SEED)
    dw, dstep = torch.autograd.grad(y, (w, step), g)
    drawn = y != w
    assert torch.equal(dw, torch.where(drawn, g * 0.5, g))
    torch.testing.assert_close(dstep, (g * w * drawn).sum())


def test_the_quantizer_is_constant_unless_asked_for() -> None:
    w = torch.randn(6, 20, requires_grad=True)
    y = quant_noise(w, 0.5, 4, lambda v: v * 3, seed=SEED)
    (dw,) = torch.autograd.grad(y.sum(), w)
    assert torch.equal(dw, torch.ones_like(dw))


def test_codebook_gradient_is_the_sum_over_its_blocks() -> None:
    w, codebook = torch.randn(200, 24), torch.randn(9, 4, requires_grad=True)
    g = torch.randn(200, 24)
    y = quant_noise(w, 0.6, 4, codebook, seed=SEED)
    (dc,) = torch.autograd.grad(y, codebook, g)
    drawn = (y != w).view(-1, 4).any(1)
    index = nearest_centroid(w, codebook).view(-1).long()
    expected = torch.zeros(9, 4, dtype=torch.float64)
    expected.index_add_(0, index[drawn], g.view(-1, 4)[drawn].double())
    torch.testing.assert_close(dc.double(), expected, rtol=1e-6, atol=1e-6)


def test_codebook_gradient_twice() -> None:
    w = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def through(c: Tensor, scale: Tensor) -> Tensor:
        return (quant_noise(w.detach(), 0.5, 4, c, seed=SEED) * scale).tanh()

    scale = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(through, (codebook, scale), fast_mode=True)
    assert torch.autograd.gradgradcheck(through, (codebook, scale), fast_mode=True)


def test_raw_select_has_the_exact_derivative() -> None:
    w = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    for shape in ((5, 11), (4,)):
        q = torch.randn(shape, dtype=torch.float64, requires_grad=True)

        def select(w: Tensor, q: Tensor) -> Tensor:
            return torch.ops.regkern.block_select(w, q, SEED, 0.5, 5, 11, 4)

        assert torch.autograd.gradcheck(select, (w, q), fast_mode=True)
        assert torch.autograd.gradgradcheck(select, (w, q), fast_mode=True)


# ---- centroids and means ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nearest_centroid_against_all_distances(dtype: torch.dtype) -> None:
    w, codebook = torch.randn(50, 32, dtype=dtype), torch.randn(300, 8, dtype=dtype)
    index = nearest_centroid(w, codebook)
    assert index.shape == (50, 4)
    distance = (w.double().view(-1, 1, 8) - codebook.double()).square().sum(-1)
    chosen = distance.gather(1, index.view(-1, 1).long())[:, 0]
    torch.testing.assert_close(chosen, distance.min(1).values, rtol=1e-6, atol=0)


def test_ties_go_to_the_lowest() -> None:
    codebook = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).repeat(20, 1)
    index = nearest_centroid(torch.tensor([[0.0, 0.0, 1.0, 0.0]]), codebook)
    assert index.tolist() == [[1, 1]]


def test_blocks_that_have_no_nearest() -> None:
    codebook = torch.tensor([[torch.nan, 0.0], [2.0, 2.0], [1.0, 1.0]])
    w = torch.tensor([[torch.nan, 0.0, 0.0, 0.0, torch.inf, 1.0, 1e30, 1e30]])
    # An infinity and what overflows are as far from all that can be compared.
    assert nearest_centroid(w, codebook).tolist() == [[-2, 2, 1, 1]]
    y = quant_noise(w, 1.0, 2, codebook)
    assert y.isnan().tolist() == [[True, True] + [False] * 6]


def test_large_codebook() -> None:
    codebook = torch.randn(65536, 2)
    w = codebook[[65535, 0, 40000]].reshape(1, 6)
    found = codebook[nearest_centroid(w, codebook).view(-1).long()].view(1, 6)
    assert torch.equal(found, w)
    with pytest.raises(ValueError, match="65536"):
        nearest_centroid(w, torch.randn(65537, 2))


def test_mean_of_short_blocks() -> None:
    w = torch.randn(2100, 11)
    mean = subvector_mean(w, 4)
    for j in range(4):
        torch.testing.assert_close(mean[j], w[:, j::4].double().mean().float())
    assert subvector_mean(torch.empty(0, 4), 4).tolist() == [0, 0, 0, 0]


# ---- Quant-Noise: the module, and what fairseq's gets wrong ----


def _layers() -> list[tuple[nn.Module, Tensor]]:
    return [
        (nn.Linear(20, 7), torch.randn(3, 20)),
        (nn.Conv1d(6, 5, 3), torch.randn(2, 6, 11)),
        (nn.Conv2d(6, 5, 3), torch.randn(2, 6, 7, 7)),
        (nn.Conv2d(12, 5, 1), torch.randn(2, 12, 7, 7)),
        (nn.Embedding(30, 16), torch.randint(30, (4, 5))),
    ]


@pytest.mark.parametrize("which", range(5))
def test_weights_survive(which: int) -> None:
    """fairseq overwrites the weight at every forward; what is dropped once is lost for good."""
    layer, x = _layers()[which]
    before = copy.deepcopy(layer.weight)
    noisy = QuantNoise(layer, 0.5, 4)
    outputs = {noisy(x).sum().item() for _ in range(20)}
    weight = layer.parametrizations.weight.original
    assert torch.equal(weight, before)
    assert len(outputs) > 10
    noisy(x).sum().backward()
    assert weight.grad is not None
    assert noisy.unwrap() is layer
    assert torch.equal(layer.weight, before)
    assert not parametrize.is_parametrized(layer)


def test_module_is_the_function() -> None:
    layer = nn.Linear(20, 7)
    noisy, x = QuantNoise(layer, 0.4, 8, "mean"), torch.randn(3, 20)
    weight = layer.parametrizations.weight.original
    torch.manual_seed(5)
    y = noisy(x)
    torch.manual_seed(5)
    expected = nn.functional.linear(x, quant_noise(weight, 0.4, 8, "mean"), layer.bias)
    assert torch.equal(y, expected)
    noisy.eval()
    everything = quant_noise(weight, 1.0, 8, "mean")
    assert torch.equal(noisy(x), nn.functional.linear(x, everything, layer.bias))


def test_eval_ignores_p() -> None:
    """fairseq's hook does nothing in eval mode, whatever the quantizer."""
    noisy = QuantNoise(nn.Linear(16, 4, bias=False), 0.1, 4, torch.round).eval()
    assert torch.equal(noisy.weight, noisy.module.parametrizations.weight.original.round())
    zero = QuantNoise(nn.Linear(16, 4), 0.9, 4).eval()
    assert torch.equal(zero.weight, zero.module.parametrizations.weight.original)


def test_no_two_modules_share_noise() -> None:
    first = QuantNoise(nn.Linear(64, 64, bias=False), 0.5, 1)
    second = QuantNoise(nn.Linear(64, 64, bias=False), 0.5, 1)
    assert not torch.equal(first.weight == 0, second.weight == 0)
    assert not torch.equal(first.weight == 0, first.weight == 0)
    with parametrize.cached():
        assert first.weight is first.weight


def test_generator_and_registration_draw_nothing_else() -> None:
    state = torch.get_rng_state()
    layer = nn.Linear(16, 4)
    torch.set_rng_state(state)
    generator = torch.Generator().manual_seed(3)
    noisy = QuantNoise(layer, 0.5, 4, generator=generator)
    first = noisy.weight
    assert torch.equal(torch.get_rng_state(), state)
    generator.manual_seed(3)
    assert torch.equal(noisy.weight, first)


def test_nothing_is_read_back() -> None:
    """fairseq asks for two .item() and .cuda(): fake tensors would refuse both."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for layer in (nn.Linear(20, 7), nn.Conv2d(6, 5, 3)):
            noisy = QuantNoise(layer, torch.empty(()), 4, "mean")
            assert noisy.weight.shape == layer.parametrizations.weight.original.shape


def test_sizes_that_do_not_divide() -> None:
    """fairseq asserts that the block divides the inputs; here the last block is shorter."""
    w = quant_noise(torch.ones(3000, 11), 0.3, 4, seed=SEED) == 0
    assert torch.equal(w[:, 8:].any(1), w[:, 8:].all(1))
    assert within(float(w[:, 10].double().mean()), 0.3, 3000)


def test_schedule_of_p() -> None:
    noisy = QuantNoise(nn.Linear(64, 64), 0.0, 1)
    assert noisy.weight is noisy.module.parametrizations.weight.original
    noisy.p = 1.0
    assert noisy.weight.count_nonzero() == 0
    noisy.p = torch.tensor(0.5)
    assert 0.4 < (noisy.weight == 0).double().mean() < 0.6
    with pytest.raises(ValueError, match="`p` in"):
        noisy.p = 1.5


@pytest.mark.parametrize("kind", ["quant_noise", "codebook", "analog"])
def test_state_copies_and_checkpoints(kind: str) -> None:
    def build() -> Any:
        layer = nn.Linear(16, 4)
        if kind == "analog":
            return AnalogWeights(layer, "device_variability", 0.3)
        codebook = torch.randn(6, 4) if kind == "codebook" else "zero"
        return QuantNoise(layer, 0.5, 4, codebook)

    model = nn.Sequential(build())
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = nn.Sequential(build())
    other.load_state_dict(torch.load(buffer))
    twin = copy.deepcopy(other)
    x = torch.randn(3, 16)
    for m in (other, twin):
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        assert torch.equal(m(x), expected)
    # A checkpoint of the bare layer fits as well.
    bare = nn.Sequential(nn.Linear(16, 4))
    other.load_state_dict(bare.state_dict())
    assert torch.equal(other[0].module.parametrizations.weight.original, bare[0].weight)
    assert torch.equal(other[0].bias, bare[0].bias)
    assert other[0].in_features == 16


def test_module_compiles_in_one_graph() -> None:
    for wrapped in (
        QuantNoise(nn.Linear(16, 4), 0.5, 4),
        AnalogWeights(nn.Linear(16, 4), "add_normal", 0.1),
    ):
        compiled = torch.compile(wrapped, fullgraph=True, backend="aot_eager")
        x = torch.randn(3, 16)
        y, z = compiled(x), compiled(x)
        assert not torch.equal(y, z)
        y.sum().backward()
        wrapped.eval()
        assert torch.equal(compiled(x), wrapped(x))


def test_codebook_as_a_parameter_is_trained() -> None:
    codebook = nn.Parameter(torch.randn(6, 4))
    noisy = QuantNoise(nn.Linear(16, 4), 0.5, 4, codebook)
    assert any(p is codebook for p in noisy.parameters())
    noisy(torch.randn(3, 16)).sum().backward()
    assert codebook.grad is not None
    assert codebook.grad.abs().sum() > 0


def test_sparse_embedding_gradients() -> None:
    noisy = QuantNoise(nn.Embedding(30, 16, sparse=True), 0.5, 8)
    noisy(torch.tensor([1, 2])).sum().backward()
    assert noisy.module.parametrizations.weight.original.grad.is_sparse


def test_module_errors() -> None:
    with pytest.raises(TypeError, match="Linear"):
        QuantNoise(nn.ReLU(), 0.1)
    with pytest.raises(ValueError, match="parametrization"):
        QuantNoise(QuantNoise(nn.Linear(4, 4), 0.1).module, 0.1)
    with pytest.raises(ValueError, match="max_norm"):
        QuantNoise(nn.Embedding(4, 4, max_norm=1.0), 0.1)
    with pytest.raises(ValueError, match="`p` in"):
        QuantNoise(nn.Linear(4, 4), -0.1)
    with pytest.raises(TypeError, match="`quantizer`"):
        QuantNoise(nn.Linear(4, 4), 0.1, 4, 3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`kind` to be one of"):
        AnalogWeights(nn.Linear(4, 4), "pink")  # type: ignore[arg-type]
    noisy = AnalogWeights(nn.Linear(4, 4), "add_normal", 0.1)
    with pytest.raises(ValueError, match="`std_dev`"):
        noisy.std_dev = -1.0


# ---- analog noise: laws ----

_W = torch.tensor([[-2.0, -0.5, 0.0, 0.25, 1.0]])


def _many(kind: Any, std_dev: float = 0.0, n: int = 40_000, **options: Any) -> Tensor:
    """(n, 5) results for the weights of _W."""
    return weight_noise(_W, kind, std_dev, per_sample=n, seed=SEED, **options)[:, 0].double()


@pytest.mark.parametrize("kind", ["add_normal", "mult_normal", "poly", "device_variability"])
def test_mean_and_deviation(kind: Any) -> None:
    y = _many(kind, 0.1)
    u = (_W[0] / 2).abs()
    c0, c1, c2 = PCM_COEFFICIENTS
    deviation = {
        "add_normal": torch.full((5,), 0.2),
        "mult_normal": 0.1 * _W[0].abs(),
        "device_variability": 0.1 * _W[0].abs(),
        "poly": 0.2 * (c0 + c1 * u + c2 * u * u),
    }[kind].double()
    n = len(y)
    assert bool(((y.mean(0) - _W[0]).abs() <= 5 * deviation / math.sqrt(n) + 1e-7).all())
    torch.testing.assert_close(y.std(0), deviation, rtol=5 / math.sqrt(2 * n), atol=1e-8)
    # Skewness and excess of a normal.
    z = (y - y.mean(0))[:, 0] / y.std(0)[0]
    assert abs(float((z**3).mean())) < 5 * math.sqrt(6 / n)
    assert abs(float((z**4).mean()) - 3) < 5 * math.sqrt(24 / n)


def test_programming_noise_keeps_the_sign() -> None:
    y = _many("prog_noise", 1.0, coefficients=(0.5, 0.0, 0.0))
    assert bool((y[:, :2] < 0).all())
    assert bool((y[:, 2] == 0).all())
    assert bool((y[:, 3:] > 0).all())
    mirrored = _many("poly", 1.0, coefficients=(0.5, 0.0, 0.0))
    assert bool((mirrored[:, 3] < 0).any())
    assert torch.equal(y[:, 3], mirrored[:, 3].abs())


def test_truncated_devices_do_not_cross_zero() -> None:
    y = _many("device_variability", 1.0, truncate=True)
    assert bool((y[:, 4] >= 0).all())
    assert bool((y[:, 4] == 0).any())


def test_rounding() -> None:
    w = torch.tensor([0.25, 0.75, -0.25, -0.75, 0.2499, 1.25, 0.49999997])
    y = weight_noise(w, "discretize", scale=1.0, resolution=4)
    assert y.tolist() == [0.5, 1.0, -0.5, -1.0, 0.0, 1.5, 0.5]
    # The largest float below ½ is not a tie.
    below = weight_noise(torch.tensor([0.49999997]), "discretize", scale=0.5, resolution=1)
    assert below.tolist() == [0.0]
    large = torch.tensor([8388609.0, 4194304.5, 2.0**40])
    assert weight_noise(large, "discretize", scale=0.5, resolution=1).tolist() == [
        8388609.0,
        4194305.0,
        2.0**40,
    ]


def test_stochastic_rounding_is_unbiased() -> None:
    y = _many("discretize", stochastic=True, resolution=3, n=100_000)
    step = 4 / 3
    distance = (y / step - (y / step).round()).abs()
    assert distance.max() < 1e-6
    for i, w in enumerate(_W[0].double() / step):
        up = float((y[:, i].abs() / step > w.abs() + 1e-6).double().mean())
        fraction = float(w.abs() - w.abs().floor())
        assert fraction == up if fraction == 0 else within(up, fraction, 100_000)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_dorefa_is_the_papers(bits: int) -> None:
    w = torch.randn(40, 30, dtype=torch.float64)
    k = 2**bits - 1
    unit = torch.tanh(w) / (2 * torch.tanh(w).abs().max()) + 0.5
    paper = 2 * (unit * k).round() / k - 1
    y = weight_noise(w, "dorefa", resolution=k)
    torch.testing.assert_close(y / w.abs().max(), paper)
    assert len(y.unique()) <= 2**bits


def test_drop_connect() -> None:
    w = torch.full((500, 400), 3.0)
    y = drop_connect(w, 0.3, seed=SEED)
    assert within(float((y == 0).double().mean()), 0.3, w.numel())
    assert y.unique().tolist() == [0.0, 3.0]
    assert drop_connect(w, 0.25, rescale=True, seed=SEED).max() == 4.0
    assert drop_connect(w, 1.0, rescale=True).count_nonzero() == 0
    x = w.clone().requires_grad_()
    (g,) = torch.autograd.grad(drop_connect(x, 0.3, seed=SEED).sum(), x)
    assert torch.equal(g, (y != 0).float())
    nan = torch.full((100,), torch.nan)
    assert bool(drop_connect(nan, 0.5, seed=SEED).isnan().all())


@pytest.mark.parametrize("kind", KINDS)
def test_zero_weights_stay_zero(kind: Any) -> None:
    w = torch.zeros(3, 4)
    y = weight_noise(w, kind, 0.5, resolution=4, seed=SEED)
    assert torch.equal(y, w)
    assert weight_noise(torch.empty(0, 4), kind, 0.5, resolution=4, seed=SEED).shape == (0, 4)
    assert weight_noise(torch.empty(3, 0), kind, 0.5, resolution=4, seed=SEED).shape == (3, 0)


def test_channels_have_their_own_scale() -> None:
    w = torch.randn(6, 5000) * torch.tensor([0.0, 1e-3, 0.1, 1.0, 10.0, 1e3])[:, None]
    y = weight_noise(w, "add_normal", 0.1, scale="channel", seed=SEED)
    deviation = (y - w).double().std(1)
    expected = 0.1 * w.abs().amax(1).double()
    torch.testing.assert_close(deviation, expected, rtol=0.05, atol=0)
    given = weight_noise(w, "add_normal", 0.1, scale=w.abs().amax(1), seed=SEED)
    assert torch.equal(given, y)
    whole = weight_noise(w, "add_normal", 0.1, seed=SEED)
    assert torch.equal(whole, weight_noise(w, "add_normal", 0.1, scale=w.abs().amax(), seed=SEED))


def test_last_column_is_exempt() -> None:
    w = torch.randn(6, 20)
    w[:, -1] = 100.0
    y = weight_noise(w, "add_normal", 0.1, drop_connect=0.5, exempt_last_column=True, seed=SEED)
    assert torch.equal(y[:, -1], w[:, -1])
    assert (y - w)[:, :-1].abs().max() < 10  # s does not see the 100
    x = w.clone().requires_grad_()
    y = weight_noise(x, "none", drop_connect=1.0, exempt_last_column=True)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(g, (torch.arange(20) == 19).float().expand(6, 20))


def test_samples_have_noise_of_their_own() -> None:
    w = torch.randn(6, 20, requires_grad=True)
    y = weight_noise(w, "mult_normal", 0.3, per_sample=4, seed=SEED)
    assert y.shape == (4, 6, 20)
    assert torch.equal(y[0], weight_noise(w, "mult_normal", 0.3, seed=SEED))
    assert not torch.equal(y[0], y[1])
    (g,) = torch.autograd.grad(y.sum(), w)
    torch.testing.assert_close(g, (y / w).sum(0).detach())


def test_devices_do_not_change() -> None:
    layer = AnalogWeights(nn.Linear(16, 4), "device_variability", 0.3)
    assert torch.equal(layer.weight, layer.weight)
    other = AnalogWeights(nn.Linear(16, 4), "add_normal", 0.3)
    assert not torch.equal(other.weight, other.weight)
    other.eval()
    assert other.weight is other.module.parametrizations.weight.original
    test = AnalogWeights(nn.Linear(16, 4), "add_normal", 0.3, enable_during_test=True).eval()
    assert not torch.equal(test.weight, test.weight)
    test.std_dev = 0.0
    assert torch.equal(test.weight, test.module.parametrizations.weight.original)


def test_analog_weights_survive() -> None:
    layer = nn.Linear(16, 4)
    before = layer.weight.detach().clone()
    noisy = AnalogWeights(layer, "prog_noise", 1.0, drop_connect=0.5)
    for _ in range(20):
        noisy(torch.randn(2, 16))
    assert torch.equal(layer.parametrizations.weight.original, before)


def test_nothing_is_saved_for_the_backward() -> None:
    w = torch.randn(300, 200, requires_grad=True)
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        weight_noise(w, "mult_normal", 0.1, drop_connect=0.1, seed=SEED)
        quant_noise(w, 0.1, 8, "mean", seed=SEED)
        additive_uniform_noise(w, torch.tensor(0.1, requires_grad=True), seed=SEED)
    assert saved
    assert max(saved) <= 2


# ---- uniform noise ----


def test_uniform_noise_is_uniform_and_centred() -> None:
    y = additive_uniform_noise(torch.zeros(400_000, dtype=torch.float64), 1.0, seed=SEED)
    assert y.min() > -0.5
    assert y.max() < 0.5
    n = y.numel()
    assert abs(float(y.mean())) < 5 * math.sqrt(1 / 12 / n)
    assert abs(float((y * y).mean()) - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    counts = torch.histc(y, 64, -0.5, 0.5)
    chi2 = float(((counts - n / 64) ** 2 / (n / 64)).sum())
    assert chi2 < 63 + 5 * math.sqrt(2 * 63)


@pytest.mark.parametrize(
    ("shape", "axis"), [((7, 20_000), 0), ((3, 5, 64, 64), 1), ((5000, 7), 1), ((100, 3, 50), 1)]
)
def test_gradient_of_the_steps(shape: tuple[int, ...], axis: int) -> None:
    channels = shape[axis]
    x, g = torch.randn(shape), torch.randn(shape)
    steps = torch.rand(channels, requires_grad=True)
    y = additive_uniform_noise(x, steps, axis=axis, seed=SEED)
    (d,) = torch.autograd.grad(y, steps, g)
    noise = additive_uniform_noise(torch.zeros(shape, dtype=torch.float64), 1.0, seed=SEED)
    others = [i for i in range(len(shape)) if i != axis]
    torch.testing.assert_close(d.double(), (g * noise).sum(others), rtol=1e-6, atol=1e-5)


# ---- errors ----


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda w: quant_noise(w, 1.5), ValueError, "`p` in"),
        (lambda w: quant_noise(w, "0.5"), TypeError, "`p` to be a number"),
        (lambda w: quant_noise(w, torch.rand(2)), ValueError, "`p` to have one element"),
        (lambda w: quant_noise(w, 0.5, 0), ValueError, "`block_size` to be at least 1"),
        (lambda w: quant_noise(w, 0.5, 2.0), TypeError, "`block_size` to be an int"),
        (lambda w: quant_noise(w, 0.5, 4, 7), TypeError, "`quantizer`"),
        (lambda w: quant_noise(w, 0.5, 4, torch.rand(3, 5)), ValueError, r"\(centroids, 4\)"),
        (lambda w: quant_noise(w, 0.5, 4, torch.rand(0, 4)), ValueError, "1 to 65536"),
        (lambda w: quant_noise(w, 0.5, 4, torch.rand(3, 4).half()), ValueError, "codebook like"),
        (lambda w: quant_noise(w, 0.5, 4, lambda v: v[:1]), ValueError, r"quantizer\(w\)"),
        (lambda w: quant_noise(w, 0.5, gradient="half"), ValueError, "`gradient` to be one of"),
        (lambda w: quant_noise(w.int(), 0.5), TypeError, "`w` of dtype"),
        (lambda w: quant_noise(w, 0.5, seed=SEED[:1]), ValueError, "`seed`"),
        (lambda w: weight_noise(w, "pink"), ValueError, "`kind` to be one of"),
        (lambda w: weight_noise(w, "add_normal", -0.1), ValueError, "`std_dev` to be at least"),
        (lambda w: weight_noise(w, "add_normal", math.nan), ValueError, "`std_dev` to be at least"),
        (lambda w: weight_noise(w, "add_normal", math.inf), ValueError, "`std_dev` to be finite"),
        (lambda w: weight_noise(w, "discretize"), ValueError, "`resolution` above 0"),
        (lambda w: weight_noise(w, "poly", coefficients=(1.0,)), ValueError, "3 `coefficients`"),
        (lambda w: weight_noise(w, "none", drop_connect=2), ValueError, "`drop_connect` in"),
        (lambda w: weight_noise(w, "add_normal", scale="max"), ValueError, "`scale` to be one"),
        (lambda w: weight_noise(w, "add_normal", scale=-1.0), ValueError, "`scale` to be at least"),
        (lambda w: weight_noise(w, "poly", scale=torch.rand(5)), ValueError, "1 or 6 elements"),
        (lambda w: weight_noise(w, "device_variability", 0.1), ValueError, "`seed` with kind"),
        (lambda w: weight_noise(w, "none", per_sample=0), ValueError, "`per_sample` to be at"),
        (lambda w: weight_noise(w, "none", per_sample=1.5), TypeError, "`per_sample` to be an"),
        (lambda w: drop_connect(w, -1), ValueError, "`p` in"),
        (lambda w: additive_uniform_noise(w, "1"), TypeError, "`step` to be a number"),
        (lambda w: additive_uniform_noise(w, torch.rand(5)), ValueError, "`step` of 1 element"),
        (lambda w: additive_uniform_noise(w, torch.rand(6), axis=2), ValueError, "`axis`"),
        (lambda w: additive_uniform_noise(w, torch.ones(6).int()), TypeError, "`step` of dtype"),
    ],
)  # fmt: skip
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    w = torch.randn(6, 20)
    before = w.clone()
    with pytest.raises(error, match=text):
        call(w)
    assert torch.equal(w, before)


_RAW = torch.ops.regkern


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda w: _RAW.block_select(w, None, SEED, 2.0, 6, 20, 4), "`p` in"),
        (lambda w: _RAW.block_select(w, None, SEED, 0.5, 6, 19, 4), "120 elements"),
        (lambda w: _RAW.block_select(w, None, SEED, 0.5, 6, 20, 0), "`block` to be at least 1"),
        (lambda w: _RAW.block_select(w, w[:3], SEED, 0.5, 6, 20, 4), "`q` of shape"),
        (lambda w: _RAW.block_select(w, w.double(), SEED, 0.5, 6, 20, 4), "`q` of the dtype"),
        (lambda w: _RAW.block_select(w, None, SEED[:1], 0.5, 6, 20, 4), "`seed`"),
        (lambda w: _RAW.block_select(w, None, SEED, 0.5, 6, 20, 4, SEED[0]), "`p_tensor`"),
        (lambda w: _RAW.nearest_centroid(w, w.double(), 6, 20), "`codebook` of the dtype"),
        (lambda w: _RAW.nearest_centroid(w, w[0], 6, 20), r"\(centroids, block\)"),
        (lambda w: _RAW.centroid_select(w, w[:, :4], SEED, 6, 20), "`index` of dtype int32"),
        (lambda w: _RAW.centroid_sum(w, SEED, SEED, 6, 20, 4), "`order` of shape"),
        (
            lambda w: _RAW.centroid_sum(w, torch.arange(30), torch.tensor([0, 31]), 6, 20, 4),
            "`offsets` to rise",
        ),
        (
            lambda w: _RAW.centroid_sum(w, torch.arange(30) + 1, torch.tensor([0, 30]), 6, 20, 4),
            "`order` to hold",
        ),
        (lambda w: _RAW.weight_noise(w, SEED, None, "add_normal", 0.1, 6, 20), "`scale` with kind"),
        (lambda w: _RAW.weight_noise(w, None, None, "mult_normal", 0.1, 6, 20), "`seed` with"),
        (lambda w: _RAW.weight_noise(w, SEED, w[0, :1].double(), "poly", 0.1, 6, 20), "float32"),
        (lambda w: _RAW.weight_noise(w, SEED, None, "pink", 0.1, 6, 20), "`kind` to be one of"),
        (lambda w: _RAW.uniform_noise(w, w[0], SEED, 6, 20), "`step` of shape"),
        (lambda w: _RAW.uniform_noise(w, w[0, :7], SEED, 7, 5), "to divide"),
    ],
)  # fmt: skip
def test_errors_of_the_raw_ops(call: Any, text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        call(torch.randn(6, 20))


@pytest.mark.parametrize("f", [quant_noise_, weight_noise_])
def test_in_place_refuses_a_leaf(f: Any) -> None:
    w = torch.randn(6, 20, requires_grad=True)
    arguments = (0.5,) if f is quant_noise_ else ("add_normal", 0.1)
    with pytest.raises(RuntimeError, match="leaf"):
        f(w, *arguments)


def test_in_place_writes_nothing_but_the_drawn_blocks() -> None:
    w = torch.randn(30, 40)
    expected = quant_noise(w, 0.3, 8, "mean", seed=SEED)
    before = w.clone()
    assert quant_noise_(w, 0.3, 8, "mean", seed=SEED) is w
    assert torch.equal(w, expected)
    assert 0.5 < (w == before).double().mean() < 0.9


def test_reference_numbers_blocks_as_the_kernel_does() -> None:
    """A word per block, four to a counter: known from outside of both."""
    words = reference.draws.words(SEED, "mask", torch.arange(8)).reshape(-1)
    kept = (words >= 2**31).float()
    assert torch.equal(quant_noise(torch.ones(4, 24), 0.5, 3, seed=SEED)[:, ::3].reshape(-1), kept)


@pytest.mark.parametrize("name", ["int4", "int8", "e4m3", "mxfp4", "nvfp4", "fixed8.6"])
def test_every_format_is_a_quantizer(name: str) -> None:
    """By name: the chosen blocks are exactly those of the format, the others do not move."""
    w = torch.randn(24, 64, generator=torch.Generator().manual_seed(3))
    q = regkern.quantize.quantize_weights(w, name)
    assert torch.equal(regkern.quant_noise(w, 1.0, 8, name), q)
    assert torch.equal(regkern.quant_noise(w, 0.3, 8, name, training=False), q)
    y = regkern.quant_noise(w, 0.3, 8, name, seed=regkern.make_seed())
    chosen = (y != w).view(24, 8, 8).any(-1)
    mask = chosen.repeat_interleave(8, 1)
    assert torch.equal(y, torch.where(mask, q, w))
    assert 0 < chosen.double().mean() < 0.6
    with pytest.raises(ValueError, match="one of bfloat16, float16"):
        regkern.quant_noise(w, 0.3, 8, "int17")

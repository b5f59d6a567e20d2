"""Dropout: its law, its masks in every shape and layout, modules and errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import regkern
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from regkern.masks.dropping import dropout, dropout_
from regkern.nn.masks.dropout import Dropout, Dropout2d, DropPath
from rivals_shim import rival
from sample import seed
from torch import Tensor, nn

ONES = torch.ones(1 << 20)


def kept(p: float | Tensor, salt: int = 0, x: Tensor = ONES) -> Tensor:
    return dropout(x, p, seed=seed() + salt, scale=False) != 0


@pytest.mark.parametrize("p", [0.5, 0.1, 0.9, 1 / 65536, 1.5 / 65536, 0.3 / 65536, 1 - 2**-20])
def test_rate(p: float) -> None:
    """Also where p lies between two multiples of what 16 bits tell apart."""
    n = 8 * ONES.numel()
    dropped = sum(int((~kept(p, k)).sum()) for k in range(8))
    deviation = math.sqrt(n * p * (1 - p))
    assert abs(dropped - n * p) < 5 * deviation + 1


def test_neighbours_samples_and_seeds_are_independent() -> None:
    a, b = kept(0.3).double() - 0.7, kept(0.3, 1).double() - 0.7
    n = a.numel()
    for other in (b, a.roll(1), a.roll(16), a.roll(32), a.roll(128), a.roll(n // 2)):
        assert abs(float((a * other).mean())) < 5 * 0.21 / math.sqrt(n)
    # The variance of the count in groups of 128, that of a binomial.
    counts = a.reshape(-1, 128).sum(1)
    variance = float(counts.var())
    assert variance == pytest.approx(128 * 0.21, rel=5 * math.sqrt(2 / (n / 128)))


def test_the_same_law_as_torch() -> None:
    x = torch.randn(1 << 18)
    ours, theirs = dropout(x, 0.2), F.dropout(x, 0.2)
    torch.testing.assert_close(ours[ours != 0], x[ours != 0] / 0.8)
    assert abs(int((ours == 0).sum()) - int((theirs == 0).sum())) < 6 * math.sqrt(2**18 * 0.32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shared", [(), 0, (1,), (2, 3), (1, 2, 3), (0, 2), (1, 3), (-1,), (0, 1, 2, 3)]
)
def test_the_mask_is_of_the_seed_and_not_of_strides(
    shared: tuple[int, ...] | int, dtype: torch.dtype
) -> None:
    x = torch.randn(6, 5, 7, 9).to(dtype) + 5
    expected = dropout(x, 0.4, shared=shared, seed=seed())
    mask = expected != 0
    for d in (shared,) if isinstance(shared, int) else shared:
        assert torch.equal(mask, mask.select(d, 0).unsqueeze(d).expand_as(mask))
    for y in (
        x.to(memory_format=torch.channels_last),
        x.transpose(0, 3).contiguous().transpose(0, 3),
        x.repeat_interleave(2, 3)[..., ::2],
    ):
        assert torch.equal(dropout(y, 0.4, shared=shared, seed=seed()), expected)
        assert torch.equal(dropout_(y.clone(), 0.4, shared=shared, seed=seed()), expected)


def test_monte_carlo_copies_are_independent_and_have_one_gradient() -> None:
    x = torch.randn(3, 50, dtype=torch.float64, requires_grad=True)
    for shared in ((), 1):
        ys = dropout(x, 0.5, copies=8, shared=shared, seed=seed())
        assert ys.shape == (8, 3, 50)
        assert len({tuple((y != 0).flatten().tolist()) for y in ys}) == 8 if shared == () else True
        (dx,) = torch.autograd.grad(ys.sum(), x)
        torch.testing.assert_close(dx, 2.0 * (ys != 0).sum(0).double())


def test_probabilities_of_elements_samples_and_channels() -> None:
    x = torch.ones(4, 3, 2000)
    p = torch.tensor([0.0, 0.25, 0.5, 1.0])[:, None, None]
    y = dropout(x, p, seed=seed())
    assert torch.equal(y[0], x[0])
    assert not y[3].any()
    assert float(y[1].max()) == pytest.approx(4 / 3)
    assert abs(float((y[2] == 0).double().mean()) - 0.5) < 0.05
    assert (
        dropout(x, torch.tensor([[2.0], [0.1], [0.1]]), seed=seed())
        .isnan()
        .any(2)
        .equal(torch.tensor([[True, False, False]]).expand(4, 3))
    )


def test_p_may_change_under_compile() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    layer = torch.compile(Dropout(torch.tensor(0.5)), backend=counter, fullgraph=True)
    for p in (0.5, 0.25, 0.75):
        layer.p.fill_(p)
        y = layer(torch.ones(100))
        assert float(y.max()) == pytest.approx(1 / (1 - p))
    assert counter.frame_count == 1


def test_in_place_keeps_the_graph() -> None:
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    y = x * 2
    out = dropout_(y, 0.5, seed=seed())
    assert out is y
    (dx,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(dx, 4.0 * (out != 0).double())


def test_nothing_to_do() -> None:
    x = torch.randn(4, 5)
    assert dropout(x, 0.7, training=False) is x
    assert dropout(x, 0.0) is x
    assert dropout(x, 0.0, copies=2).shape == (2, 4, 5)
    assert dropout(torch.randn(0, 5), 0.5).shape == (0, 5)


# ---- modules and what they stand in for ----


def test_modules() -> None:
    x = torch.ones(8, 6, 5, 7)
    torch.manual_seed(0)
    by_channel = Dropout2d(0.5)(x)
    assert torch.equal(by_channel, by_channel[..., :1, :1].expand_as(x))
    assert torch.equal(Dropout2d(1.0)(x), torch.zeros_like(x))
    path = DropPath(0.5, scale=False)(x)
    assert torch.equal(path, path[:, :1, :1, :1].expand_as(x))
    assert len(DropPath(0.5, "batch")(x).unique()) == 1
    locked = Dropout(0.5, shared=0)(x)
    assert torch.equal(locked, locked[:1].expand_as(x))
    layer = Dropout(0.5)
    assert layer.eval()(x) is x
    always = Dropout(0.5, always=True, copies=3).eval()(x)
    assert always.shape == (3, *x.shape)
    assert bool((always == 0).any())
    y = x.clone()
    assert Dropout(0.5, inplace=True)(y) is y
    assert str(Dropout(0.2, (0,))) == "Dropout(p=0.2, shared=(0,))"
    assert str(DropPath(0.2, "batch", scale=False)) == "DropPath(p=0.2, scale=False, per='batch')"
    schedule = regkern.nn.linear_schedule(nn.Sequential(layer, DropPath(0.0)), 0.0, 0.4, 2)
    schedule.step()
    assert layer.p == pytest.approx(0.2)
    with pytest.raises(ValueError, match="expected an input of rank 3 or 4, got 2"):
        Dropout2d()(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"expected `p` in \[0, 1\], got 2"):
        Dropout(2)


def test_swap_of_torch() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Dropout(0.3), nn.Dropout1d(0.4), nn.Dropout2d(0.5, inplace=True), nn.Dropout3d(0.6)
    )
    report = regkern.swap(net)
    assert [str(layer) for layer in net] == [
        "Dropout(p=0.3)",
        "Dropout1d(p=0.4)",
        "TorchDropout2d(p=0.5, inplace=True)",
        "Dropout3d(p=0.6)",
    ]
    assert not report.left
    y = net[2](torch.ones(4, 5, 6))  # torch takes this for (N, C, L)
    assert torch.equal(y, y[..., :1].expand_as(y))
    assert len(y[..., 0].unique()) == 2


def test_swap_of_stochastic_depth() -> None:
    x = torch.ones(4096, 2, 3)
    depth = rival("torchvision.ops").StochasticDepth(0.3, "row")
    path = rival("timm.layers").DropPath(0.3, scale_by_keep=False)
    net = nn.Sequential(depth, path)
    regkern.swap(net)
    assert [str(layer) for layer in net] == ["DropPath(p=0.3)", "DropPath(p=0.3, scale=False)"]
    for old, new in ((depth, net[0]), (path, net[1])):
        a, b = old(x), new(x)
        assert float(a.max()) == pytest.approx(float(b.max()))
        assert abs(float((a == 0).double().mean()) - float((b == 0).double().mean())) < 0.05


# ---- errors ----

X = torch.ones(2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: dropout([1.0]), TypeError, "expected `x` to be a tensor"),
        (lambda: dropout(X.int()), TypeError, "expected `x` of dtype"),
        (lambda: dropout(X, 1.5), ValueError, r"expected `p` in \[0, 1\], got 1.5"),
        (lambda: dropout(X, torch.tensor(-0.5)), RuntimeError, r"expected `p` in \[0, 1\]"),
        (lambda: dropout(X, "half"), TypeError, "expected `p` to be a number"),
        (lambda: dropout(X, torch.ones(3, 3)), ValueError, "broadcastable to the mask's shape"),
        (lambda: dropout(X, torch.ones(7, dtype=torch.int32)), TypeError, "floating point"),
        (lambda: dropout(X, torch.rand(7, requires_grad=True)), ValueError, "without a gradient"),
        (lambda: dropout(X, 0.5, shared=6), ValueError, "expected `shared` to be dimensions"),
        (lambda: dropout(X, 0.5, shared=(1, 3, 5)), RuntimeError, "two runs of dimensions"),
        (lambda: dropout(X, 0.5, copies=0), ValueError, "expected `copies` to be at least 1"),
        (lambda: dropout(X, 0.5, seed=torch.zeros(2)), ValueError, "expected `seed`"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()

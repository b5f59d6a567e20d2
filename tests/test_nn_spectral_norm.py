"""`regkern.nn.spectral_norm`: torch's semantics and names, and what goes wrong there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import regkern
import torch
from regkern.nn.spectral.layers import (
    SpectralConv1d,
    SpectralConv2d,
    SpectralConv3d,
    SpectralLinear,
)
from regkern.nn.spectral.norm import SpectralNorm, spectral_norm
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "conv": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), (2, 3, 4, 4)),
    "depthwise": (lambda: nn.Conv1d(4, 4, 3, groups=4), (2, 4, 7)),
}


def pair(name: str, **options: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    """The same layer with torch's spectral norm and with ours, and an input."""
    torch.manual_seed(1)
    make, shape = LAYERS[name]
    theirs = make().double()
    ours = copy.deepcopy(theirs)
    torch.manual_seed(2)
    parametrizations.spectral_norm(theirs, **options)
    torch.manual_seed(2)
    spectral_norm(ours, **options)
    return theirs, ours, torch.randn(shape, dtype=torch.float64)


def original(layer: Any) -> Any:
    return layer.parametrizations.weight.original


@pytest.mark.parametrize("options", [{}, {"n_power_iterations": 3}, {"dim": 1}])
@pytest.mark.parametrize("name", LAYERS)
def test_same_as_torch(name: str, options: dict[str, Any]) -> None:
    theirs, ours, x = pair(name, **options)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for _ in range(3):
        y, z = theirs(x), ours(x)
        torch.testing.assert_close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    torch.testing.assert_close(original(ours).grad, original(theirs).grad)
    for a, b in zip(theirs.state_dict().values(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(theirs.eval()(x), ours.eval()(x))


def test_state_dicts_load_both_ways() -> None:
    theirs, ours, x = pair("conv")
    with torch.no_grad():
        original(theirs).mul_(2).add_(0.1)
    theirs(x)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    ours.train()(x)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_updates_in_training_alone() -> None:
    _, layer, x = pair("linear")
    rule = layer.parametrizations.weight[0]  # type: ignore[index, union-attr]
    for training, moves in ((True, True), (False, False)):
        layer.train(training)
        with torch.no_grad():
            original(layer).add_(torch.randn_like(original(layer)))
        before = rule._v.clone()
        pointer = rule._v.data_ptr()
        layer(x)
        assert bool((rule._v != before).any()) == moves
        assert rule._v.data_ptr() == pointer


def test_iterates_once_where_cached() -> None:
    _, layer, x = pair("linear")
    rule = layer.parametrizations.weight[0]  # type: ignore[index, union-attr]
    with torch.no_grad():
        original(layer).copy_(torch.randn_like(original(layer)))
    with parametrize.cached():
        first = layer.weight
        v = rule._v.clone()
        assert layer.weight is first
        layer(x)
        assert torch.equal(rule._v, v)


def test_two_forwards_before_a_backward() -> None:
    """loss = D(real) − D(fake)."""
    theirs, ours, x = pair("linear")
    for layer in (theirs, ours):
        (layer(x).sigmoid().sum() - layer(x.flip(0) * 2).sigmoid().sum()).backward()
    torch.testing.assert_close(original(ours).grad, original(theirs).grad)


def test_removal_and_assignment() -> None:
    _, layer, x = pair("conv")
    layer.eval()
    expected = layer(x)
    parametrize.remove_parametrizations(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)
    torch.testing.assert_close(layer(x), expected)
    spectral_norm(layer)
    new = torch.randn_like(layer.weight)
    layer.weight = new
    assert torch.equal(original(layer), new)


def test_vectors_are_normalized() -> None:
    norm = nn.LayerNorm(5)
    spectral_norm(norm)
    torch.testing.assert_close(norm.weight, torch.full((5,), 5**-0.5))
    assert not list(norm.parametrizations.weight[0].buffers())  # type: ignore[index, union-attr]
    capped = spectral_norm(nn.LayerNorm(4), cap=3.0)
    assert torch.equal(capped.weight, torch.ones(4))


def test_cap_leaves_small_weights() -> None:
    layer = nn.Linear(6, 5)
    before = layer.weight.detach().clone()
    spectral_norm(layer, n_power_iterations=5, cap=100.0)
    assert torch.equal(layer.weight, before)
    parametrize.remove_parametrizations(layer, "weight")
    spectral_norm(layer, n_power_iterations=50, cap=0.1)
    torch.testing.assert_close(
        torch.linalg.svdvals(layer.weight.detach())[0].item(), 0.1, rtol=1e-4, atol=0
    )


def test_zero_weight() -> None:
    """torch's is NaN."""
    layer = nn.Linear(3, 4)
    nn.init.zeros_(layer.weight)
    spectral_norm(layer)
    y = layer(torch.ones(2, 3))
    y.sum().backward()
    assert not y.isnan().any()
    assert not original(layer).grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(dtype: torch.dtype) -> None:
    """An eps of 1e-12 underflows there."""
    layer = nn.Linear(8, 6, dtype=dtype)
    wide = torch.linalg.svdvals(layer.weight.detach().float())[0]
    spectral_norm(layer, n_power_iterations=20)
    sigma = torch.linalg.svdvals(layer.weight.detach().float())[0]
    torch.testing.assert_close(sigma.item(), 1.0, rtol=2e-2, atol=0)
    assert wide > 0
    vector = nn.LayerNorm(3, dtype=dtype)
    nn.init.zeros_(vector.weight)
    assert not spectral_norm(vector).weight.isnan().any()


def test_autocast_and_compile() -> None:
    torch._dynamo.reset()
    theirs, ours, x = pair("linear")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x), theirs(x))
    single = spectral_norm(nn.Linear(4, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = single(torch.ones(2, 4))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert original(single).grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: spectral_norm(3), TypeError),  # type: ignore[type-var]
        (lambda: spectral_norm(nn.Linear(2, 2), "no"), ValueError),
        (lambda: spectral_norm(nn.Linear(2, 2), n_power_iterations=0), ValueError),
        (lambda: spectral_norm(nn.Linear(2, 2), dim=2), IndexError),
        (lambda: spectral_norm(nn.Linear(2, 2), cap=-1.0), ValueError),
        (lambda: SpectralLinear(2, 2, cap=0.0), ValueError),
    ],
)
def test_errors(call: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


# ---- folded layers ----


@pytest.mark.parametrize(
    ("folded", "plain", "shape"),
    [
        (lambda: SpectralLinear(6, 5), nn.Linear(6, 5), (4, 6)),
        (
            lambda: SpectralConv1d(4, 6, 3, groups=2, padding=1),
            nn.Conv1d(4, 6, 3, groups=2, padding=1),
            (2, 4, 8),
        ),
        (
            lambda: SpectralConv2d(3, 4, 3, stride=2, padding="valid"),
            nn.Conv2d(3, 4, 3, stride=2),
            (2, 3, 7, 7),
        ),
        (
            lambda: SpectralConv2d(3, 4, 3, padding=1, padding_mode="circular", bias=False),
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", bias=False),
            (2, 3, 5, 5),
        ),
        (
            lambda: SpectralConv3d(2, 3, 2, dilation=2),
            nn.Conv3d(2, 3, 2, dilation=2),
            (1, 2, 4, 4, 4),
        ),
    ],
)
def test_folded_layers(folded: Any, plain: nn.Module, shape: tuple[int, ...]) -> None:
    layer = folded().double()
    plain = copy.deepcopy(plain).double()
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k in ("weight", "bias")})
    spectral_norm(plain)
    rule: Any = plain.parametrizations.weight[0]  # type: ignore[index, union-attr]
    rule._u, rule._v = layer.weight_u.clone(), layer.weight_v.clone()
    x = torch.randn(shape, dtype=torch.float64)
    for _ in range(2):
        y, z = layer(x), plain(x)
        torch.testing.assert_close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, original(plain).grad)
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x))


# ---- swap ----


@pytest.mark.parametrize("name", LAYERS)
def test_swap_of_the_parametrization(name: str) -> None:
    theirs, _, x = pair(name)
    net = nn.Sequential(copy.deepcopy(theirs))
    buffers = {k: t.data_ptr() for k, t in net.state_dict().items()}
    report = regkern.swap(net)
    assert [row.name for row in report.swapped] == ["0.parametrizations.weight.0"]
    assert isinstance(net[0].parametrizations.weight[0], SpectralNorm)  # type: ignore[index, union-attr]
    assert {k: t.data_ptr() for k, t in net.state_dict().items()} == buffers
    for _ in range(2):
        torch.testing.assert_close(net(x), theirs(x))
    torch.testing.assert_close(net.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("name", LAYERS)
def test_swap_of_the_hook(name: str) -> None:
    torch.manual_seed(3)
    make, shape = LAYERS[name]
    theirs = torch.nn.utils.spectral_norm(make().double())
    net = nn.Sequential(copy.deepcopy(theirs))
    buffers = {k: t.data_ptr() for k, t in net.state_dict().items()}
    assert regkern.swap(net, dry_run=True).swapped == regkern.swap(net).swapped
    assert not regkern.swap(net).swapped
    assert {k: t.data_ptr() for k, t in net.state_dict().items()} == buffers
    x = torch.randn(shape, dtype=torch.float64)
    for _ in range(3):
        y, z = theirs(x), net(x)
        torch.testing.assert_close(y, z)
    y.square().sum().backward()
    z.square().sum().backward()
    layer: Any = net[0]
    torch.testing.assert_close(layer.weight_orig.grad, theirs.weight_orig.grad)
    torch.testing.assert_close(net.eval()(x), theirs.eval()(x))
    layer.load_state_dict(theirs.state_dict())
    torch.nn.utils.remove_spectral_norm(layer)
    assert isinstance(layer.weight, nn.Parameter)


def test_swap_names_the_hooked_weight() -> None:
    report = regkern.swap(torch.nn.utils.spectral_norm(nn.Linear(3, 2)))
    assert report.swapped[0].name == "weight"
    assert "cannot be replaced" not in str(report)

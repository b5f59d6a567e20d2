"""`regkern.swap`: the same law as the layers it replaces, and nothing else changed."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import regkern
import torch
from regkern.nn import DropBlock2d
from regkern.swap import NoCounterpart, register_swap
from rivals_shim import rival
from torch import Tensor, nn

Make = Callable[[], nn.Module]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def torchvision(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    layer: nn.Module = getattr(rival("torchvision.ops"), name)(*args, **kwargs)
    return layer


def timm(*args: Any, **kwargs: Any) -> nn.Module:
    layer: nn.Module = rival("timm.layers").DropBlock2d(*args, **kwargs)
    return layer


def dropblock(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    layer: nn.Module = getattr(rival("dropblock"), name)(*args, **kwargs)
    return layer


# ---- a layer of our own in the place of a rival ----


class SlowDrop(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, self.p, self.training)


@register_swap(f"{__name__}.SlowDrop")
def _fast_drop(old: SlowDrop) -> nn.Module:
    return DropBlock2d(old.p, 1)


class SlowScale(nn.Module):
    def __init__(self, shared: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.shared = shared


class FastScale(nn.Module):
    weight: nn.Parameter


@register_swap(f"{__name__}.SlowScale")
def _fast_scale(old: SlowScale) -> nn.Module:
    new = FastScale()
    new.weight = old.weight if old.shared else nn.Parameter(old.weight.detach().clone())
    return new


@register_swap(f"{__name__}.Odd")
def _never(old: nn.Module) -> nn.Module:
    raise NoCounterpart("it is odd")


class Odd(nn.Module):
    pass


class Derived(SlowDrop):
    pass


def model() -> nn.Sequential:
    shared = SlowDrop(0.2)
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), shared)
    return nn.Sequential(nn.Conv2d(3, 3, 3), SlowDrop(0.1), inner, shared, Derived(0.3), Odd())


def test_swaps_in_place() -> None:
    net = model()
    net[1].eval()
    keys, before = list(net.state_dict()), copy.deepcopy(net)
    report = regkern.swap(net)
    assert report.model is net
    assert [row.name for row in report.swapped] == ["1", "3", "2.1"]
    assert report.swapped[0] == ("1", f"{__name__}.SlowDrop", "DropBlock2d(p=0.1, block_size=1)")
    assert isinstance(net[1], DropBlock2d)
    assert not net[1].training
    assert net[3].training
    assert net[2][1] is net[3]
    assert report.left == [
        ("4", f"{__name__}.Derived", "it is a subclass and may do something else"),
        ("5", f"{__name__}.Odd", "it is odd"),
    ]
    assert list(net.state_dict()) == keys
    net.load_state_dict(before.state_dict())
    before.load_state_dict(net.state_dict())
    text = str(report)
    assert "swapped 3, left 2" in text
    assert "2.1" in text
    assert "it is odd" in text
    # Nothing of ours is known to be slow.
    assert not regkern.swap(net).swapped


def test_dry_run_changes_nothing() -> None:
    net = model()
    modules = list(net.modules())
    report = regkern.swap(net, dry_run=True)
    assert list(map(id, net.modules())) == list(map(id, modules))
    assert "would swap 3" in str(report)
    assert report.swapped == regkern.swap(net).swapped


def test_the_model_itself() -> None:
    layer = SlowDrop(0.3).eval()
    report = regkern.swap(layer)
    assert isinstance(report.model, DropBlock2d)
    assert not report.model.training
    assert "report.model" in str(report)
    assert regkern.swap(layer, dry_run=True).model is layer
    assert "no layer" in str(regkern.swap(nn.Linear(1, 1)))
    with pytest.raises(TypeError, match="module"):
        regkern.swap([layer])  # type: ignore[arg-type]


def test_parameters_are_the_very_same() -> None:
    net = nn.Sequential(SlowScale(), SlowScale(shared=False))
    weight = net[0].weight
    report = regkern.swap(net)
    assert isinstance(net[0], FastScale)
    assert net[0].weight is weight
    assert report.left[0].name == "1"
    assert isinstance(net[1], SlowScale)


def _hooked(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda *_: None)


def _own_forward(layer: nn.Module) -> None:
    layer.forward = lambda x: x  # type: ignore[method-assign]


def _out_of_range(layer: nn.Module) -> None:
    layer.p = 2.0  # type: ignore[assignment]


def _child(layer: nn.Module) -> None:
    layer.extra = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_hooked, "hooks"),
        (_own_forward, "forward"),
        (_out_of_range, r"\[0, 1\]"),
        (_child, "extra"),
        (lambda layer: layer.compile(), "compiled"),
    ],
)
def test_left_with_the_reason(change: Callable[[nn.Module], None], reason: str) -> None:
    net = nn.Sequential(SlowDrop(0.1))
    layer = net[0]
    change(layer)
    report = regkern.swap(net)
    assert net[0] is layer
    assert not report.swapped
    assert len(report.left) == 1
    assert re.search(reason, report.left[0].reason)


def test_parametrized_is_left() -> None:
    net = nn.Sequential(SlowScale())
    torch.nn.utils.parametrize.register_parametrization(net[0], "weight", nn.Identity())
    report = regkern.swap(net)
    assert "parametrized" in report.left[0].reason


# ---- the rivals' laws ----

#: Layer, and shapes of maps, among them ones smaller than the block.
LAWS: dict[str, tuple[Make, list[tuple[int, ...]]]] = {
    "torchvision-2d": (lambda: torchvision("DropBlock2d", 0.2, 3), [(7, 6)]),
    "torchvision-2d-small": (lambda: torchvision("DropBlock2d", 0.3, 7), [(5, 9), (3, 3)]),
    "torchvision-3d": (lambda: torchvision("DropBlock3d", 0.2, 3), [(4, 5, 6), (3, 4, 5)]),
    "timm": (lambda: timm(0.2, 3), [(7, 6)]),
    "timm-channels": (lambda: timm(0.2, 5, couple_channels=False), [(8, 9)]),
    "timm-even": (lambda: timm(0.2, 4, couple_channels=False), [(8, 9)]),
    "timm-small": (lambda: timm(0.05, 7, couple_channels=False), [(4, 9), (5, 3)]),
    "timm-scale": (lambda: timm(0.2, 3, gamma_scale=0.25, couple_channels=False), [(7, 6)]),
    "timm-unscaled": (lambda: timm(0.2, 3, scale_by_keep=False), [(7, 6)]),
    "timm-noise": (lambda: timm(0.2, 3, with_noise=True, couple_channels=False), [(7, 6)]),
    "dropblock-2d": (lambda: dropblock("DropBlock2D", 0.2, 3), [(7, 6)]),
    "dropblock-2d-small": (lambda: dropblock("DropBlock2D", 0.3, 7), [(4, 6), (9, 5)]),
    "dropblock-3d": (lambda: dropblock("DropBlock3D", 0.2, 3), [(4, 5, 6), (2, 5, 6)]),
}
PLANES, DRAWS = 2000, 10


def drop_maps(layer: nn.Module, size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Drop rate of every place, of every place with the middle, and of whole maps (mean square)."""
    single = torch.zeros(size, dtype=torch.float64)
    pair = torch.zeros_like(single)
    share = torch.zeros((), dtype=torch.float64)
    middle = tuple(n // 2 for n in size)
    for _ in range(DRAWS):
        # Noise is put where a one was; a scaled one is at least one.
        y = layer(torch.full((PLANES, 1, *size), 100.0))
        dropped = (y.abs() < 50).double()[:, 0]
        single += dropped.mean(0) / DRAWS
        pair += (dropped * dropped[(slice(None), *middle)].reshape(-1, *[1] * len(size))).mean(
            0
        ) / DRAWS
        share += dropped.flatten(1).mean(1).square().mean() / DRAWS
    return single, pair, share


@pytest.mark.parametrize("name", LAWS)
def test_same_law(name: str) -> None:
    make, sizes = LAWS[name]
    old = make()
    report = regkern.swap(old)
    assert report.swapped, report
    for size in sizes:
        theirs, ours = drop_maps(old, size), drop_maps(report.model, size)
        for a, b in zip(theirs, ours, strict=True):
            # Of counts out of this many; the mean square of a share varies less than a count does.
            error = ((a * (1 - a) + b * (1 - b)) / (PLANES * DRAWS)).sqrt() + 1e-12
            assert float(((a - b) / error).abs().max()) < 4.5


@pytest.mark.parametrize("name", LAWS)
def test_same_scale_and_channels(name: str) -> None:
    make, sizes = LAWS[name]
    old = make()
    new = regkern.swap(old).model
    x = torch.ones(6, 4, *[2 * n for n in sizes[0]])
    for layer in (old, new):
        y = layer(x)
        noisy = getattr(old, "with_noise", False)
        scale = y.max()
        if noisy or not getattr(old, "scale_by_keep", True):
            kept = y == 1.0
        else:
            kept = y != 0
            torch.testing.assert_close(scale, kept.numel() / kept.float().sum())
        alike = bool((kept == kept[:, :1]).all())
        per_channel = getattr(old, "couple_channels", None) is False or "torchvision" in name
        assert alike != per_channel
    for layer in (old.eval(), new.eval()):
        assert layer(x) is x


def test_noise_of_timm() -> None:
    old = timm(0.2, 3, with_noise=True, couple_channels=False)
    for layer in (old, regkern.swap(old).model):
        y = layer(torch.full((64, 8, 16, 16), 100.0))
        noise = y[y != 100.0]
        assert abs(noise.mean()) < 0.02
        assert abs(noise.std() - 1) < 0.02


@pytest.mark.parametrize("inplace", [True, False])
def test_in_place_and_gradient(inplace: bool) -> None:
    for old in (torchvision("DropBlock2d", 0.3, 3, inplace=inplace), timm(0.3, 3, inplace=inplace)):
        for layer in (old, regkern.swap(old).model):
            leaf = torch.randn(2, 3, 8, 8, requires_grad=True)
            x = leaf * 1
            y = layer(x)
            assert (y is x) == inplace
            y.sum().backward()
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad * leaf, y)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torchvision("DropBlock2d", 0.1, 4), "even"),
        (lambda: torchvision("DropBlock2d", 0.1, 3, eps=0.1), "eps"),
        (lambda: timm(0.1, 3, with_noise=True), "same noise"),
        (lambda: dropblock("DropBlock2D", 0.1, 4), "even"),
    ],
)
def test_rivals_left(make: Make, reason: str) -> None:
    layer = make()
    report = regkern.swap(nn.Sequential(layer))
    assert not report.swapped
    assert reason in report.left[0].reason


def test_old_timm_is_left() -> None:
    layer = timm(0.1, 3)
    del layer.couple_channels
    assert "1.0.23" in regkern.swap(nn.Sequential(layer)).left[0].reason


def test_schedule_of_dropblock() -> None:
    layer = dropblock("DropBlock2D", 0.0, 3)
    schedule = rival("dropblock").LinearScheduler(layer, 0.0, 0.4, 5)
    report = regkern.swap(schedule)
    assert report.swapped[0].name == "dropblock"
    x = torch.ones(64, 2, 16, 16)
    assert schedule(x) is x
    for _ in range(5):
        schedule.step()
    assert schedule.dropblock.p == 0.4
    assert (schedule(x) == 0).any()


# ---- whole models ----


def test_timm_resnet() -> None:
    timm_module = rival("timm")
    net = timm_module.create_model("resnet18", drop_block_rate=0.1, num_classes=4)
    old = copy.deepcopy(net)
    report = regkern.swap(net)
    assert [row.name.rpartition(".")[2] for row in report.swapped] == ["drop_block"] * 4
    assert not report.left
    _same_model(old, net)


def test_torchvision_resnet() -> None:
    models = rival("torchvision.models")
    net = models.resnet18(num_classes=4)
    drop = torchvision("DropBlock2d", 0.1, 3)
    net.layer3.append(drop)
    net.layer4.append(drop)
    old = copy.deepcopy(net)
    report = regkern.swap(net)
    assert [row.name for row in report.swapped] == ["layer3.2", "layer4.2"]
    assert net.layer3[2] is net.layer4[2]
    _same_model(old, net)


def _same_model(old: nn.Module, new: nn.Module) -> None:
    assert list(old.state_dict()) == list(new.state_dict())
    x = torch.randn(2, 3, 64, 64)
    new(x).sum().backward()
    assert all(p.grad is not None for p in new.parameters())
    for other in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        other.load_state_dict(old.state_dict())
        old.load_state_dict(other.state_dict())
        assert not regkern.swap(other).swapped
        torch.testing.assert_close(other.eval()(x), old.eval()(x), rtol=0, atol=0)

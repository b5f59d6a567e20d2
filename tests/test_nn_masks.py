"""DropBlock layers, their schedule, and the transforms."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import regkern
import torch
import torch._dynamo.testing
from regkern.nn import (
    CutMix,
    DropBlock1d,
    DropBlock2d,
    DropBlock3d,
    MixUp,
    RandomErasing,
    linear_schedule,
)
from rivals_shim import rival
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

LAYERS = {1: DropBlock1d, 2: DropBlock2d, 3: DropBlock3d}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ---- DropBlock ----


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_layer_is_the_function(ndim: int, batched: bool, inplace: bool) -> None:
    x = torch.randn(*([2] if batched else []), 3, *([9] * ndim))
    layer = LAYERS[ndim](0.3, 3, border="clip", per="sample", noise=0.5, inplace=inplace)
    torch.manual_seed(7)
    expected = regkern.drop_block(x, 0.3, 3, ndim=ndim, border="clip", per="sample", noise=0.5)
    torch.manual_seed(7)
    given = x.clone()
    y = layer(given)
    assert (y is given) == inplace
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("how", ["eval", "p=0"])
def test_identity(inplace: bool, how: str) -> None:
    layer = DropBlock2d(0.5 if how == "eval" else 0.0, 3, inplace=inplace)
    layer.train(how != "eval")
    x = torch.randn(2, 3, 8, 8)
    assert layer(x) is x
    residual = torch.randn_like(x)
    expected = torch.relu(x + residual)
    layer.activation = "relu"
    torch.testing.assert_close(layer(x, residual), expected)


def test_residual_activation_and_gradient() -> None:
    layer = DropBlock2d(0.3, 3, activation="relu")
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    residual = torch.randn(2, 3, 8, 8, requires_grad=True)
    torch.manual_seed(3)
    y = layer(x, residual)
    y.sum().backward()
    torch.manual_seed(3)
    scaled = DropBlock2d(0.3, 3)(torch.ones_like(x))
    torch.testing.assert_close(y, torch.relu(x * scaled + residual))
    torch.testing.assert_close(x.grad, scaled * (y > 0))
    torch.testing.assert_close(residual.grad, (y > 0).float())


def test_p_can_be_set_at_any_time() -> None:
    x = torch.ones(64, 8, 16, 16)
    layer = DropBlock2d(0.0, 3)
    assert layer(x) is x
    for p in (0.25, torch.tensor(0.4), torch.tensor(0.1, dtype=torch.float64)):
        layer.p = p
        assert abs(float((layer(x) == 0).double().mean()) - float(p)) < 0.02
    layer.drop_prob = 0.5
    assert layer.p == 0.5
    assert layer.drop_prob == 0.5


def test_generator_rules() -> None:
    x = torch.ones(2, 3, 8, 8)
    layer = DropBlock2d(0.3, 3, generator=torch.Generator().manual_seed(1))
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.generator.manual_seed(1)
    torch.testing.assert_close(layer(x), first)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(copied: Any) -> None:
    layer = DropBlock3d(torch.tensor(0.3), (1, 3, 5), border="same", save="seed").eval()
    other = copied(layer)
    assert repr(other) == repr(layer)
    assert not other.training
    assert other.p is not layer.p
    assert not layer.state_dict()
    x = torch.randn(2, 3, 6, 6, 6)
    layer.train()
    other.train()
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    torch.testing.assert_close(other(x), y)


def test_repr() -> None:
    assert repr(DropBlock2d()) == "DropBlock2d(p=0.1, block_size=7)"
    text = "DropBlock3d(p=0.2, block_size=(1, 3, 3), gamma='paper', inplace=True)"
    assert repr(DropBlock3d(0.2, (1, 3, 3), gamma="paper", inplace=True)) == text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"p": 1.5}, ValueError),
        ({"p": "0.1"}, TypeError),
        ({"block_size": 0}, ValueError),
        ({"block_size": (3, 3, 3)}, ValueError),
        ({"block_size": 2.5}, TypeError),
        ({"border": "same?"}, ValueError),
        ({"gamma_scale": -1.0}, ValueError),
        ({"activation": "gelu"}, ValueError),
    ],
)
def test_layer_refuses(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"regkern\.drop_block: expected"):
        DropBlock2d(**arguments)


def test_layer_refuses_inputs() -> None:
    with pytest.raises(ValueError, match="shape"):
        DropBlock2d()(torch.ones(4, 4))
    with pytest.raises(ValueError, match="residual"):
        DropBlock2d()(torch.ones(1, 2, 8, 8), torch.ones(1, 2, 8, 7))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_in_one_graph(inplace: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.drop = DropBlock2d(0.2, 3, inplace=inplace, activation="relu")

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.conv(x), x)

    block = Block()
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    for p in (0.2, 0.35, torch.tensor(0.5)):
        block.drop.p = p
        x = torch.randn(4, 3, 12, 12)
        torch.manual_seed(5)
        expected = block(x)
        torch.manual_seed(5)
        y = compiled(x)
        torch.testing.assert_close(y, expected)
        y.sum().backward()
    block.eval()
    torch.testing.assert_close(compiled(x), block(x))


def test_a_tensor_schedule_does_not_recompile() -> None:
    layer = DropBlock2d(torch.tensor(0.0), 3)
    schedule = linear_schedule(layer, 0.0, 0.5, 5)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    x = torch.ones(32, 8, 16, 16)
    for _ in range(5):
        compiled(x)
        schedule.step()
    assert abs(float((compiled(x) == 0).double().mean()) - 0.5) < 0.03
    assert graphs.frame_count == 1


# ---- schedule ----


def test_linear_schedule() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), DropBlock2d(0.7, 3), DropBlock2d(0.7, 5))
    keys = list(model.state_dict())
    schedule = linear_schedule(model, 0.0, 0.3, 4)
    seen = []
    for _ in range(6):
        seen.append(model[1].p)
        assert model[1].p == model[2].p == schedule.p
        schedule.step()
    assert seen == pytest.approx([0.0, 0.075, 0.15, 0.225, 0.3, 0.3])
    assert seen[4] == 0.3
    assert list(model.state_dict()) == keys

    other = linear_schedule(model, 0.0, 0.3, 4)
    assert model[1].p == 0.0
    other.load_state_dict({"count": 2})
    assert model[2].p == pytest.approx(0.15)
    assert other.state_dict() == {"count": 2}


def test_schedule_refuses() -> None:
    with pytest.raises(ValueError, match="none"):
        linear_schedule(nn.Linear(2, 2), 0.0, 0.1, 10)
    with pytest.raises(ValueError, match="steps"):
        linear_schedule(DropBlock2d(), 0.0, 0.1, 0)
    with pytest.raises(ValueError, match="stop"):
        linear_schedule(DropBlock2d(), 0.0, 1.1, 5)


# ---- CutMix and MixUp ----


def flat_images(batch: int = 8, size: int = 16) -> tuple[Tensor, Tensor]:
    """Image i is filled with i: its pixels say where they come from. Its label is i."""
    labels = torch.arange(batch)
    return labels.float().reshape(-1, 1, 1, 1).expand(batch, 3, size, size).clone(), labels


@pytest.mark.parametrize("cls", [CutMix, MixUp])
@pytest.mark.parametrize("per", ["sample", "batch"])
def test_labels_say_what_the_pixels_are(cls: Any, per: str) -> None:
    x, labels = flat_images()
    transform = cls(num_classes=8, per=per).eval()
    y, soft = transform(x, labels)
    assert y.shape == x.shape
    assert soft.shape == (8, 8)
    torch.testing.assert_close(soft.sum(1), torch.ones(8))
    torch.testing.assert_close(soft @ labels.float(), y.mean((1, 2, 3)))
    assert not torch.equal(x, y)
    own = soft.diagonal()
    assert (own.unique().numel() == 1) == (per == "batch")


@pytest.mark.parametrize("cls", [CutMix, MixUp])
def test_structures(cls: Any) -> None:
    x, labels = flat_images()
    transform = cls(num_classes=8)
    extra = torch.randn(8)
    out = transform((x, labels))
    assert isinstance(out, tuple)
    assert isinstance(transform([x, labels]), list)
    out = transform({"image": x, "my_label": labels, "path": ["a"] * 8})
    assert out["my_label"].shape == (8, 8)
    assert out["path"] == ["a"] * 8
    y, target, same, text = transform(x, {"labels": labels, "boxes": 3}, extra, "text")
    assert target["labels"].shape == (8, 8)
    assert target["boxes"] == 3
    assert same is extra
    assert text == "text"
    y, wrapped = cls(num_classes=8, labels_getter=lambda inputs: inputs[1]["deep"][0])(
        x, {"deep": [labels]}
    )
    assert wrapped["deep"][0].shape == (8, 8)
    (y,) = cls(labels_getter=None)([x])
    assert y.shape == x.shape
    soft = torch.eye(8, dtype=torch.int64)
    assert cls()(x, soft)[1].dtype == torch.float32


@pytest.mark.parametrize("cls", [CutMix, MixUp])
def test_p_zero_mixes_nothing(cls: Any) -> None:
    x, labels = flat_images()
    y, soft = cls(num_classes=8, p=0.0)(x, labels)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(soft, torch.eye(8))


def test_uint8() -> None:
    x, labels = flat_images()
    y, _ = CutMix(num_classes=8)(x.byte(), labels)
    assert y.dtype == torch.uint8
    y, soft = MixUp(num_classes=8)(x.byte(), labels)
    assert y.dtype == torch.uint8
    assert float((soft @ labels.float() - y.float().mean((1, 2, 3))).abs().max()) <= 0.5


@pytest.mark.parametrize("cls", [CutMix, MixUp])
def test_mix_refuses(cls: Any) -> None:
    x, labels = flat_images()
    with pytest.raises(ValueError, match="num_classes"):
        cls()(x, labels)
    with pytest.raises(ValueError, match="labels"):
        cls(num_classes=8)(x)
    with pytest.raises(ValueError, match="classes"):
        cls(num_classes=7)(x, torch.eye(8))
    with pytest.raises(ValueError, match="batch"):
        cls(num_classes=8)(x[:, 0, 0], labels)
    with pytest.raises(ValueError, match="entries"):
        cls(num_classes=8)(x, labels[:4])
    with pytest.raises(ValueError, match="alpha"):
        cls(alpha=0.0)
    with pytest.raises(ValueError, match="labels_getter"):
        cls(labels_getter="second")


@pytest.mark.parametrize("cls", [CutMix, MixUp, RandomErasing])
def test_transforms_copy(cls: Any) -> None:
    transform = cls(p=0.5)
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert repr(other) == repr(transform)
    assert not transform.state_dict()


def _collate(batch: Any) -> Any:
    return CutMix(num_classes=8)(*default_collate(batch))


def test_in_the_workers_of_a_data_loader() -> None:
    x, labels = flat_images()
    data = TensorDataset(x.repeat(4, 1, 1, 1), labels.repeat(4))

    def epoch() -> list[Tensor]:
        torch.manual_seed(11)
        return [y for y, _ in DataLoader(data, batch_size=8, num_workers=2, collate_fn=_collate)]

    first, second = epoch(), epoch()
    # The four batches are alike before they are mixed.
    assert len({y.numpy().tobytes() for y in first}) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["CutMix", "MixUp", "RandomErasing"])
def test_signature_of_torchvision(name: str) -> None:
    theirs = inspect.signature(getattr(rival("torchvision.transforms.v2"), name)).parameters
    ours = inspect.signature({"CutMix": CutMix, "MixUp": MixUp}.get(name, RandomErasing)).parameters
    assert [k for k in ours if k in theirs] == list(theirs)
    for key, parameter in theirs.items():
        assert ours[key].kind == parameter.kind
        assert ours[key].default == parameter.default


@pytest.mark.parametrize("name", ["CutMix", "MixUp"])
def test_law_of_torchvision(name: str) -> None:
    v2 = rival("torchvision.transforms.v2")
    x, labels = flat_images(2, 12)
    theirs = getattr(v2, name)(num_classes=2)
    drawn = torch.stack([theirs(x, labels)[1][0, 0] for _ in range(1500)])
    x, labels = flat_images(4000, 12)
    # One sample's own share each; partners are others throughout.
    soft = {"CutMix": CutMix, "MixUp": MixUp}[name](num_classes=4000)(x[:, :1], labels)[1]
    ours = soft.diagonal()
    for power in (1, 2):
        a, b = drawn**power, ours**power
        error = (a.var() / len(a) + b.var() / len(b)).sqrt()
        assert abs(a.mean() - b.mean()) < 4.5 * error


@pytest.mark.parametrize("cls", [CutMix, MixUp])
def test_torchvision_tensors(cls: Any) -> None:
    tv = rival("torchvision.tv_tensors")
    x, labels = flat_images()
    plain = torch.zeros(8, 2, 2, 2)
    transform = cls(num_classes=8)
    getter = cls(num_classes=8, labels_getter=lambda inputs: inputs[1])
    y, soft, video, other = getter(tv.Image(x), labels, tv.Video(x[:, None]), plain)
    assert type(y) is tv.Image
    assert type(video) is tv.Video
    assert type(soft) is Tensor
    assert other is plain
    # One draw for all images of a call.
    assert torch.equal(torch.Tensor(y), torch.Tensor(video[:, 0]))
    box = tv.BoundingBoxes(torch.zeros(8, 4), format="XYXY", canvas_size=(16, 16))
    with pytest.raises(ValueError, match="bounding"):
        transform(tv.Image(x), labels, box)
    mask = tv.Mask(x[:, 0].long())
    if cls is CutMix:
        y, _, cut = getter(tv.Image(x), labels, mask)
        assert type(cut) is tv.Mask
        assert torch.equal(torch.Tensor(y)[:, 0].long(), cut.as_subclass(Tensor))
    else:
        with pytest.raises(ValueError, match="mask"):
            transform(tv.Image(x), labels, mask)


# ---- RandomErasing ----


def test_erases_one_image_or_a_batch() -> None:
    erase = RandomErasing(p=1.0, value=(5.0, 6.0, 7.0)).eval()
    image = torch.zeros(3, 32, 32)
    y = erase(image)
    assert y.shape == image.shape
    assert not image.any()
    for channel, value in enumerate((5.0, 6.0, 7.0)):
        assert set(y[channel].unique().tolist()) == {0.0, value}
    batch = torch.zeros(16, 3, 32, 32)
    y = erase(batch)
    assert len({(sample > 0).numpy().tobytes() for sample in y}) > 10
    shared = RandomErasing(p=1.0, value=1.0, per="batch")(batch)
    assert all(torch.equal(shared[0], sample) for sample in shared)
    assert torch.equal(RandomErasing(p=0.0)(image), image)


def test_erasing_passes_the_rest_through() -> None:
    erase = RandomErasing(p=1.0, value=1.0)
    label = torch.tensor(3)
    y, same, text = erase(torch.zeros(3, 16, 16), label, "a")
    assert y.any()
    assert same is label
    assert text == "a"
    out = erase({"image": torch.zeros(3, 16, 16), "label": label})
    assert out["image"].any()


@pytest.mark.parametrize("shape", [(3, 16, 16), (4, 3, 16, 16), (2, 5, 3, 16, 16)])
def test_erasing_in_place(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    y = RandomErasing(p=1.0, value=1.0, inplace=True)(x)
    assert y is x
    assert x.any()


def test_erasing_values() -> None:
    x = torch.full((200, 2, 16, 16), -9.0)
    y = RandomErasing(p=1.0, value="random")(x)
    noise = y[y != -9.0]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert noise.unique().numel() > 0.95 * noise.numel()
    per_channel = RandomErasing(p=1.0, value="channel")(x)
    assert all(plane[plane != -9.0].unique().numel() <= 1 for plane in per_channel.flatten(0, 1))


def test_erasing_videos() -> None:
    clips = RandomErasing(p=1.0, value=1.0)(torch.zeros(4, 6, 3, 16, 16))
    assert all(torch.equal(frame, clip[0]) for clip in clips for frame in clip)
    assert not torch.equal(clips[0], clips[1])
    tv = rival("torchvision.tv_tensors")
    clip = RandomErasing(p=1.0, value=1.0)(tv.Video(torch.zeros(6, 3, 16, 16)))
    assert type(clip) is tv.Video
    assert all(torch.equal(torch.Tensor(clip[0]), torch.Tensor(frame)) for frame in clip)


def test_erasing_law_of_torchvision() -> None:
    theirs = rival("torchvision.transforms.v2").RandomErasing(p=0.7, value=1.0)
    image = torch.zeros(1, 24, 32)
    drawn = torch.stack([theirs(image).mean() for _ in range(3000)]).double()
    ours = RandomErasing(p=0.7, value=1.0)(image.expand(8000, 1, 24, 32)).mean((1, 2, 3)).double()
    for power in (0, 1, 2):
        a, b = (v**power if power else (v > 0).double() for v in (drawn, ours))
        error = (a.var() / len(a) + b.var() / len(b)).sqrt()
        assert abs(a.mean() - b.mean()) < 4.5 * error


def test_erasing_refuses() -> None:
    with pytest.raises(TypeError, match="value"):
        RandomErasing(value=None)
    with pytest.raises(ValueError, match="value"):
        RandomErasing(value="noise")
    with pytest.raises(ValueError, match="scale"):
        RandomErasing(scale=(0.5, 0.1))
    with pytest.raises(ValueError, match="shape"):
        RandomErasing()(torch.zeros(16, 16))
    with pytest.raises(TypeError, match="tensor"):
        RandomErasing()("image")

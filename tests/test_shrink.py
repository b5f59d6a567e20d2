"""Networks without their zero channels: the same outputs, smaller layers, and what has to stay."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from regkern.optim.shrinking import ShrinkReport, shrink
from torch import Tensor, nn


def prune(layer: Any, channels: Sequence[int], bias: float = 0.0) -> None:
    with torch.no_grad():
        layer.weight[list(channels)] = 0.0
        if layer.bias is not None:
            layer.bias[list(channels)] = bias


def lively(model: nn.Module) -> nn.Module:
    """BatchNorm as after training."""
    torch.manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            assert m.running_mean is not None
            assert m.running_var is not None
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
    return model


def shrunk(model: nn.Module, x: Tensor, *, smaller: bool = True) -> tuple[nn.Module, ShrinkReport]:
    """Shrinks in double, and compares outputs."""
    model, x = model.double().eval(), x.double()
    before = copy.deepcopy(model.state_dict())
    small, report = shrink(model, x)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert type(small) is type(model)
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
    assert report.parameters == tuple(counts)
    assert (counts[1] < counts[0]) is smaller, str(report)
    return small, report


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, bias=False)
        self.fc1 = nn.Linear(6 * 9, 10)
        self.fc2 = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.avg_pool2d(torch.tanh(self.conv2(x)), 2)
        x = F.dropout(x.flatten(1), 0.5, self.training)
        return self.fc2(F.gelu(self.fc1(x)))


IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_linear_layers() -> None:
    model = nn.Sequential(
        nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Sigmoid(), nn.Linear(6, 3)
    )
    prune(model[0], [1, 2, 6])
    prune(model[2], [0, 5], bias=0.3)  # σ(0.3) goes into the next bias
    small, report = shrunk(model, torch.randn(4, 5))
    assert [tuple(small[i].weight.shape) for i in (0, 2, 4)] == [(4, 5), (4, 4), (3, 4)]  # type: ignore[index,union-attr]
    assert small[2].in_features == 4  # type: ignore[index]
    assert [s.layer for s in report.shrunk] == ["0", "2", "4"]
    assert "5 channels" not in str(report)
    assert not report.kept


def test_plain_network() -> None:
    model = lively(Plain())
    prune(model.conv1, [0, 3, 4])
    with torch.no_grad():  # channels of BatchNorm that ReLU silences
        model.norm1.weight[[0, 3, 4]] = 0.0
        model.norm1.bias[[0, 3, 4]] = torch.tensor([-1.0, 0.0, -0.1])
    prune(model.conv2, [5])
    prune(model.fc1, [2, 3])
    small, report = shrunk(model, IMAGE)
    assert small.conv1.weight.shape == (5, 3, 3, 3)  # type: ignore[union-attr]
    assert small.norm1.num_features == 5
    assert small.conv2.weight.shape == (5, 5, 3, 3)  # type: ignore[union-attr]
    assert small.fc1.weight.shape == (8, 45)  # type: ignore[union-attr]
    assert small.fc2.weight.shape == (4, 8)  # type: ignore[union-attr]
    assert not report.kept


def test_a_constant_is_folded_where_nothing_is_padded() -> None:
    """A zero filter with a BatchNorm that makes a constant of it; conv2 does not pad."""
    model = lively(Plain())
    prune(model.conv1, [0, 3])
    with torch.no_grad():
        model.norm1.bias[[0, 3]] += 3.0
    small, report = shrunk(model, IMAGE)
    assert small.conv1.out_channels == 6
    assert small.conv2.bias is not None  # it had none
    assert not report.kept


def test_a_constant_stays_before_zero_padding() -> None:
    model = lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1)
        )
    )
    prune(model[0], [1, 2])
    _, report = shrunk(model, IMAGE, smaller=False)
    assert report.kept == (("0", 2, "`2` pads a constant other than 0 with zeros"),)
    # Other paddings repeat what is there.
    model[2] = nn.Conv2d(8, 4, 3, padding=1, padding_mode="replicate")
    small, _ = shrunk(model, IMAGE)
    assert small[0].out_channels == 6  # type: ignore[index]


def test_channels_that_nobody_reads_go() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    with torch.no_grad():
        model[2].weight[:, [0, 4]] = 0.0
    small, report = shrunk(model, torch.randn(4, 5))
    assert small[0].out_features == 5  # type: ignore[index]
    assert not report.kept


class Residual(nn.Module):
    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x
        return self.head(self.relu(y).mean((2, 3)))


@pytest.mark.parametrize("inplace", [False, True])
def test_residual_sums_go_where_all_branches_do(inplace: bool) -> None:
    model = lively(Residual(inplace))
    prune(model.stem, [0, 1, 2])
    prune(model.conv2, [1, 2, 5])
    prune(model.conv1, [7])
    with torch.no_grad():
        model.norm1.bias[7] = -1.0
        model.norm2.bias[[1, 2, 5]] = -0.5
    small, report = shrunk(model, IMAGE)
    # 1 and 2 are constant in both branches; 0 and 5 in one alone.
    assert small.stem.out_channels == 6
    assert small.conv2.weight.shape == (6, 7, 3, 3)  # type: ignore[union-attr]
    assert small.head.in_features == 6
    assert [(layer, n) for layer, n, _ in report.kept] == [("stem", 1), ("conv2", 1)]


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Conv2d(3, 6, 1)
        self.prelu = nn.PReLU(10)
        self.depth = nn.Conv2d(10, 20, 3, padding=1, groups=10)
        self.point = nn.Conv2d(20, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(torch.cat([self.a(x), self.b(x)], 1))
        return self.point(F.hardswish(self.depth(x)))


def test_concatenation_and_depthwise_convolution() -> None:
    model = Concatenated()
    prune(model.a, [3])
    prune(model.b, [0, 4])
    prune(model.depth, [6, 7, 8, 9])  # both of channels 3 and 4
    with torch.no_grad():
        model.depth.bias.mul_(2.0)
    small, report = shrunk(model, IMAGE)
    assert small.a.out_channels == 3
    assert small.b.out_channels == 4
    assert small.prelu.num_parameters == 7
    assert (small.depth.groups, small.depth.in_channels, small.depth.out_channels) == (7, 7, 14)
    assert small.point.in_channels == 14
    assert not report.kept


def test_a_scaled_gate_of_zero() -> None:
    """Squeeze and excitation: nothing times a gate is nothing."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 1)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.gate = nn.Conv2d(6, 6, 1)
            self.out = nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            return self.out(x * torch.sigmoid(self.gate(self.pool(x))))

    model = Gated()
    prune(model.conv, [2, 3], bias=-1.0)
    small, _ = shrunk(model, IMAGE)
    assert small.gate.weight.shape == (4, 4, 1, 1)  # type: ignore[union-attr]


def test_one_channel_stays() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    prune(model[0], range(7))
    small, report = shrunk(model, torch.randn(4, 5))
    assert small[0].out_features == 1  # type: ignore[index]
    assert report.kept[0] == ("0", 1, "`0` would have none left")


def test_one_dimension_and_three() -> None:
    one = lively(
        nn.Sequential(
            nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 6, 3),
        )
    )  # fmt: skip
    prune(one[0], [0, 1])
    prune(one[4], [2])
    small, _ = shrunk(one, torch.randn(2, 2, 16))
    assert small[4].weight.shape[1] <= 6  # type: ignore[index,union-attr]
    assert small[6].in_features == 18  # type: ignore[index]
    three = nn.Sequential(nn.Conv3d(2, 6, 3), nn.ELU(), nn.Conv3d(6, 2, 1))
    prune(three[0], [4])
    small, _ = shrunk(three, torch.randn(1, 2, 5, 5, 5))
    assert small[0].out_channels == 5  # type: ignore[index]


def test_sequences_of_tokens() -> None:
    """Linear over the last of three dimensions."""
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Dropout(0.1), nn.Linear(7, 5))
    prune(model[0], [0, 6])
    small, _ = shrunk(model, torch.randn(2, 4, 5))
    assert small[0].out_features == 5  # type: ignore[index]


# ---- what has to stay ----


class Refused(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Linear(6, 6)
        self.shared = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.grouped = nn.Conv1d(6, 6, 1, groups=2)
        self.last = nn.Linear(6, 6)
        if how == "tied":
            self.last.weight = self.first.weight
        if how == "parametrized":
            nn.utils.parametrizations.weight_norm(self.first)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "twice":
            x = self.shared(F.relu(self.shared(x)))
        if self.how == "softmax":
            x = x.softmax(-1)
        if self.how == "layer norm":
            x = self.norm(x)
        if self.how == "grouped":
            x = self.grouped(x[:, :, None])[:, :, 0]
        if self.how == "written over":
            y = x + 1.0
            x = x.relu_() + y + x
        if self.how == "fixed view":
            x = x.view(-1, 6)
        if self.how == "output":
            return x
        return self.last(x)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("twice", "used more than once"),
        ("tied", "used more than once"),
        ("parametrized", None),
        ("softmax", "softmax"),
        ("layer norm", "norm"),
        ("grouped", None),
        ("written over", "relu_"),
        ("fixed view", "view"),
        ("output", "output"),
    ],
)
def test_what_is_not_known_to_be_safe_stays(how: str, reason: str | None) -> None:
    model = Refused(how)
    if how == "parametrized":
        with torch.no_grad():
            model.first.parametrizations.weight.original0[0] = 0.0  # type: ignore[union-attr,index]
            model.first.bias[0] = 0.0
    else:
        prune(model.first, [0, 2])
    if how == "twice":
        prune(model.shared, [1])
    _, report = shrunk(model, torch.randn(4, 6), smaller=False)
    if reason is not None:
        assert any(reason in why for _, _, why in report.kept), str(report)


def test_grouped_convolution_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1))
    prune(model[0], [0, 1])
    _, report = shrunk(model, IMAGE, smaller=False)
    assert any("groups of several" in why for _, _, why in report.kept)


def test_nan_is_no_constant() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    prune(model[0], [1])
    with torch.no_grad():
        model[0].weight[1, 0] = float("nan")
    small, _ = shrink(model, torch.randn(4, 5).double())
    assert small[0].out_features == 7  # type: ignore[index]


def test_training_mode_and_gradients_are_kept() -> None:
    model = lively(Plain()).train()
    prune(model.conv2, [1])
    model.conv2.weight.requires_grad_(False)
    small, _ = shrink(model, IMAGE)
    assert small.training
    assert model.training
    assert not small.conv2.weight.requires_grad  # type: ignore[union-attr]
    small(IMAGE).sum().backward()
    assert small.conv1.weight.grad is not None  # type: ignore[union-attr]


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"expected `model` to be a torch\.nn\.Module"):
        shrink(lambda x: x, IMAGE)  # type: ignore[arg-type]

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"that torch\.fx can trace, got"):
        shrink(Branching(), IMAGE)

"""Layers become sparse where that pays, say what it costs where not, and come back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import regkern
import torch
from regkern.nn.sparse.conv import SparseConv1d, SparseConv2d
from regkern.nn.sparse.linear import SparseLinear
from regkern.sparse import cost as cost_module
from regkern.sparse.cost import Cost, CostModel, cache_path, pays
from torch import nn


class Even(CostModel):
    """Sparse and dense take the same time at a density of 0.5, whatever the layer."""

    asked: list[tuple[int, tuple[int, ...]]]

    def __init__(self) -> None:
        super().__init__()
        self.asked = []

    def cost(self, layer: nn.Module, batch: int, size: Sequence[int] = ()) -> Cost:
        self.asked.append((batch, tuple(size)))
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        return Cost(dense=1e-3, fixed=0.0, per_entry=2e-3 / weight.numel())


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 20), nn.Linear(20, 5))


def _sparse(layer: nn.Linear, share: float) -> nn.Linear:
    with torch.no_grad():
        layer.weight[torch.rand(layer.weight.shape) >= share] = 0.0
    return layer


def test_zeros_that_are_there() -> None:
    net = _network()
    _sparse(net[0], 0.2)  # type: ignore[arg-type]
    _sparse(net[2], 0.8)  # type: ignore[arg-type]
    net.eval()
    net[0].weight.requires_grad_(False)
    x = torch.randn(6, 10)
    before, weights = net(x), [m.weight.clone() for m in net if isinstance(m, nn.Linear)]
    dry = regkern.swap(net, sparsify=True, costs=Even(), dry_run=True)
    assert all(type(m) is not SparseLinear for m in net)
    costs = Even()
    report = regkern.swap(net, sparsify=True, costs=costs, example=x)
    assert [row.name for row in report.swapped] == [row.name for row in dry.swapped] == ["0"]
    assert costs.asked == [(6, ()), (6, ())]
    assert "1 ms" in report.swapped[0].new
    reasons = {row.name: row.reason for row in report.left}
    assert "would pay below 0.5" in reasons["2"]
    assert reasons["3"] == "its weight has no zeros"
    assert "no example was given" in next(r.reason for r in dry.left if r.name == "2")
    layer = net[0]
    assert type(layer) is SparseLinear
    assert not layer.training
    assert not layer.values.requires_grad
    torch.testing.assert_close(net(x), before)
    back = regkern.swap.densify(net)
    assert [row.name for row in back.swapped] == ["0"]
    for m, weight in zip([m for m in net if isinstance(m, nn.Linear)], weights, strict=True):
        assert torch.equal(m.weight, weight)
    assert not net[0].training
    assert not regkern.swap.densify(net).swapped


def test_shares_by_number_and_by_name() -> None:
    net = _network()
    report = regkern.swap(net, sparsify=0.3, costs=Even())
    assert [row.name for row in report.swapped] == ["0", "2", "3"]
    assert [m.pattern.nnz for m in net if isinstance(m, SparseLinear)] == [60, 120, 30]
    net = _network()
    report = regkern.swap(net, sparsify={"2": 0.1, "3": 0.9}, costs=Even())
    assert [row.name for row in report.swapped] == ["2"]
    assert [row.name for row in report.left] == ["3"]
    assert isinstance(net[0], nn.Linear)
    assert isinstance(net[2], SparseLinear)
    for wrong in ({"1": 0.1}, {"4": 0.1}):
        with pytest.raises(ValueError, match="names of `sparsify`"):
            regkern.swap(net, sparsify=wrong)
    with pytest.raises(ValueError, match=r"`sparsify` in \[0, 1\]"):
        regkern.swap(net, sparsify=1.5)
    with pytest.raises(TypeError, match="`sparsify` to be a number"):
        regkern.swap(net, sparsify="all")  # type: ignore[arg-type]


def test_convolutions() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=2)
    )
    x = torch.randn(2, 3, 12, 14)
    costs = Even()
    report = regkern.swap(net, sparsify={"0": 0.8, "2": 0.25}, costs=costs, example=x)
    assert costs.asked == [(2, (12, 14)), (2, (6, 7))]
    assert [row.name for row in report.swapped] == ["2"]
    assert isinstance(net[2], SparseConv2d)
    assert net[2].pattern.nnz == 72
    # The example moves no statistics.
    assert torch.equal(net[1].running_mean, torch.zeros(8))  # type: ignore[arg-type]
    y, weight = net(x), net[2].dense_weight().detach()
    regkern.swap.densify(net)
    assert torch.equal(net[2].weight, weight)  # type: ignore[arg-type]
    torch.testing.assert_close(net(x), y)
    regkern.swap(net, sparsify=True, costs=costs)
    assert isinstance(net[2], SparseConv2d)
    assert costs.asked[-1] == (32, (28, 28))
    cost = CostModel().cost(nn.Conv2d(4, 4, 3, padding=1), 2, (5, 6))
    assert cost.dense > 0


def test_rows() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(3, 8, 5, 2, 1, bias=False), nn.ReLU(), nn.Conv1d(8, 8, 3, dilation=2, groups=2)
    )
    costs, x = Even(), torch.randn(2, 3, 19)
    report = regkern.swap(net, sparsify={"0": 0.2, "2": 0.25}, costs=costs, example=x)
    assert costs.asked == [(2, (19,)), (2, (9,))]
    assert len(report.swapped) == 2
    assert isinstance(net[2], SparseConv1d)
    assert net[2].pattern.nnz == 24
    y = net(x)
    back = regkern.swap.densify(net)
    assert [row.name for row in back.swapped] == ["0", "2"]
    assert type(net[0]) is nn.Conv1d
    torch.testing.assert_close(net(x), y)
    report = regkern.swap(net, sparsify=True, costs=costs, dry_run=True)
    assert costs.asked[-1] == (32, (784,))
    assert "32 rows of 784" in report.swapped[0].new
    for padding in (2, "same"):
        layer = nn.Conv1d(4, 4, 3, padding=padding, padding_mode="circular")
        assert CostModel().cost(layer, 2, (9,)).dense > 0
    alone = SparseConv1d(3, 4, 3, padding=(1, 2))
    assert "`padding` of one number" in regkern.swap.densify(alone).left[0].reason
    # One row without a batch.
    regkern.swap(net, sparsify=True, costs=costs, dry_run=True, example=x[0])
    assert costs.asked[-1] == (1, (9,))


def test_layers_that_stay() -> None:
    class Own(nn.Linear):
        pass

    net = nn.ModuleDict(
        {
            "hook": nn.Linear(4, 4),
            "parametrized": nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
            "own": Own(4, 4),
            "tied": nn.Linear(4, 4),
            "other": nn.Linear(4, 4),
            "unused": nn.Linear(4, 4),
        }
    )
    net["hook"].register_forward_hook(lambda *args: None)
    net["tied"].weight = net["other"].weight  # type: ignore[assignment]
    net.forward = lambda x: net["other"](net["tied"](x))  # type: ignore[method-assign]
    report = regkern.swap(net, sparsify=0.1, costs=Even(), example=torch.randn(2, 4))
    assert not report.swapped
    reasons = {row.name: row.reason for row in report.left}
    assert "hooks" in reasons["hook"]
    assert "another layer's" in reasons["tied"]
    assert "another layer's" in reasons["other"]
    assert "did not go through" in reasons["unused"]
    assert "own" not in reasons


def test_a_layer_in_two_places_and_the_root() -> None:
    layer = nn.Linear(4, 4)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    report = regkern.swap(net, sparsify={"2": 0.1}, costs=Even())
    assert [row.name for row in report.swapped] == ["0", "2"]
    assert net[0] is net[2]
    assert isinstance(net[0], SparseLinear)
    back = regkern.swap.densify(net)
    assert len(back.swapped) == 2
    assert net[0] is net[2]
    alone = regkern.swap(nn.Linear(4, 4), sparsify=0.2, costs=Even()).model
    assert isinstance(alone, SparseLinear)
    assert isinstance(regkern.swap.densify(alone).model, nn.Linear)


def test_what_no_dense_layer_does() -> None:
    net = nn.Sequential(
        SparseLinear(4, 4, 0.5, activation="relu"), SparseLinear(4, 4, 0.5, feature_major=True)
    )
    report = regkern.swap.densify(net)
    assert not report.swapped
    assert "activation" in report.left[0].reason
    assert "features" in report.left[1].reason
    with pytest.raises(TypeError, match="`model` to be a module"):
        regkern.swap.densify(3)


def test_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shapes are measured when they are first asked for, and files written when they are told."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    measure = regkern.sparse.cost._measure
    monkeypatch.setattr(
        "regkern.sparse.cost._measure", lambda *a: calls.append(a[2]) or measure(*a)
    )
    model = CostModel()
    layer = nn.Linear(64, 64)
    first = pays(layer, 5, 0.1, model=model)
    assert pays(layer, 8, 0.1, model=model) == first
    assert calls == [8]
    assert first.sparse > 0
    assert first.dense > 0
    assert "instead of" in first.reason
    assert first.pays == (first.sparse < first.dense)
    # What takes longer than the largest batch that is measured.
    once, twice = (model.cost(layer, n) for n in (1024, 2048))
    assert twice.dense == pytest.approx(2 * once.dense)
    assert calls == [8, 1024]
    assert not cache_path().exists()
    path = model.save()
    assert path == tmp_path / "regkern" / "sparse_costs.json"
    other = CostModel()
    assert other.load(tmp_path / "nothing.json") == 0
    assert other.load() == 2
    assert pays(layer, 7, 0.1, model=other) == first
    assert calls == [8, 1024]
    assert model.save() == path
    with pytest.raises(TypeError, match="`layer` to be Linear, Conv2d, Conv1d"):
        pays(nn.ReLU(), 8, 0.1)
    with pytest.raises(ValueError, match="`size` of 0 numbers"):
        pays(layer, 8, 0.1, (3, 3))
    with pytest.raises(ValueError, match="`batch` to be at least 1"):
        pays(layer, 0, 0.1)
    with pytest.raises(ValueError, match="density"):
        pays(layer, 8, 1.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_measured_in_other_dtypes(dtype: torch.dtype) -> None:
    cost = CostModel().cost(nn.Linear(32, 16, bias=False, dtype=dtype), 4)
    assert cost.dense > 0
    assert cost.sparse(16) >= cost.fixed >= 0


def test_ways_of_the_dense_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All are measured; those allowed decide, and of the others the reason tells."""

    class Ways(CostModel):
        def cost(self, layer: nn.Module, batch: int, size: Sequence[int] = ()) -> Cost:
            return Cost(dense=4e-3, fixed=0.0, per_entry=2e-3 / 16, onednn=3e-3, bf16=1e-3)

    layer = nn.Linear(4, 4)
    own = pays(layer, 8, 1.0, model=Ways())
    assert own == (True, 2e-3, 4e-3, own.reason, "own")
    assert own.reason.endswith("instead of 4 ms; dense in bfloat16 would take 1 ms")
    both = pays(layer, 8, 1.0, model=Ways(), allow=("own", "onednn"))
    assert (both.pays, both.dense, both.path) == (True, 3e-3, "onednn")
    assert "instead of 3 ms by oneDNN; dense in" in both.reason
    half = pays(layer, 8, 1.0, model=Ways(allow=("own", "bf16")))
    assert (half.pays, half.path) == (False, "bf16")
    assert half.reason.endswith("1 ms in bfloat16; it would pay below 0.5")
    report = regkern.swap(nn.Linear(4, 4), sparsify=0.9, costs=Ways(("own", "bf16")))
    assert "bfloat16" in report.left[0].reason
    with pytest.raises(ValueError, match="`allow` to be one of own, onednn, bf16, got 'fp32'"):
        CostModel(("fp32",))
    with pytest.raises(ValueError, match="a name in `allow`"):
        CostModel(())
    with pytest.raises(TypeError, match="`allow` to be several names"):
        pays(layer, 8, 0.5, allow="own")
    # bfloat16 is measured where the machine has it, in every class of layers.
    monkeypatch.setattr(
        "regkern.sparse.cost._has_bf16", lambda weight: weight.dtype == torch.float32
    )
    model = CostModel()
    conv = model.cost(nn.Conv2d(4, 4, 3, padding=1), 2, (5, 6))
    assert conv.bf16 < float("inf")
    assert conv.onednn == float("inf")
    linear = model.cost(nn.Linear(16, 8), 4)
    assert linear.bf16 < float("inf")
    assert model.cost(nn.Linear(16, 8).double(), 4)[3:] == (float("inf"), float("inf"))
    model.save(tmp_path / "costs.json")
    other = CostModel()
    assert other.load(tmp_path / "costs.json") == 3
    assert other.cost(nn.Conv2d(4, 4, 3, padding=1), 2, (5, 6)) == conv
    assert [p.name for p in tmp_path.iterdir()] == ["costs.json"]
    with pytest.raises(ValueError, match="a way that this layer has"):
        pays(nn.Conv2d(4, 4, 3, padding=1), 2, 0.1, (5, 6), other, allow=("onednn",))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_the_product_of_onednn() -> None:
    layer = nn.Linear(12, 7)
    g, cost = torch.randn(5, 7), CostModel().cost(layer, 5)
    assert cost.onednn < float("inf")
    results = []
    for call in (cost_module._dense_linear, cost_module._onednn_linear):
        x = torch.arange(60.0).view(5, 12).sin().requires_grad_()
        y = call(layer, x, layer.weight)
        results.append((y, *torch.autograd.grad(y, (x, layer.weight), g)))
    torch.testing.assert_close(*results)


def test_reasons() -> None:
    class Slow(CostModel):
        def cost(self, layer: nn.Module, batch: int, size: Sequence[int] = ()) -> Cost:
            return Cost(1e-3, 2e-3, 1e-9)

    decision = pays(nn.Linear(4, 4), 8, 0.0, model=Slow())
    assert not decision.pays
    assert decision.reason.endswith("it would not pay at any")

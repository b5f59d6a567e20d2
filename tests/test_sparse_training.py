"""RigL, SET and gradual pruning: which entries go and come when, and that runs can be resumed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from regkern.bench.memory import peak_bytes
from regkern.nn.sparse.conv import SparseConv1d, SparseConv2d
from regkern.nn.sparse.linear import SparseLinear
from regkern.optim.sparse_schedules import CosineDecay
from regkern.optim.sparse_training import SparseTraining
from regkern.reference.sparse import updates as reference
from torch import Tensor, nn


def _normal(*shape: int, salt: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(salt))


def _network(salt: int = 0, activation: str = "relu") -> nn.Sequential:
    torch.manual_seed(salt)
    random = torch.Generator().manual_seed(salt)
    return nn.Sequential(
        SparseLinear(12, 20, 0.3, activation=activation, generator=random),
        SparseLinear(20, 5, 0.5, bias=False, generator=random),
    )


def _adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 0.05)


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, training: SparseTraining, salt: int
) -> bool:
    optimizer.zero_grad()
    for part in _normal(8, 12, salt=salt).chunk(2):
        model(part).square().sum().backward()
    optimizer.step()
    return training.step()


def _masks(training: SparseTraining) -> dict[str, Tensor]:
    return {name: layer.pattern.mask() for name, layer in training.layers.items()}


def test_cosine() -> None:
    f = CosineDecay(100, 0.4)
    assert f(0) == pytest.approx(0.4)
    assert f(50) == pytest.approx(0.2)
    assert f(100) == f(200) == 0.0
    with pytest.raises(ValueError, match="`end` of at least 1"):
        CosineDecay(0)


@pytest.mark.parametrize("features_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_rigl_is_the_dense_one(activation: str, features_first: bool) -> None:
    """Drop by magnitude after the step, grow by the dense gradient of that step."""
    model = _network(activation=activation)
    for layer in model:
        layer.feature_major = features_first
    dense = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    training = SparseTraining(model, optimizer, "rigl", end=100, every=1, fraction=lambda _: 0.4)
    x = _normal(8, 12)
    # The dense gradients, by layers that have all entries.
    weights = []
    for layer in dense:
        weight = layer.dense_weight().detach().requires_grad_()
        weights.append(weight)
    hidden = x @ weights[0].t() + dense[0].bias
    hidden = torch.relu(hidden) if activation == "relu" else hidden
    (hidden @ weights[1].t()).square().sum().backward()

    assert training.due
    for part in x.chunk(2):
        y = model(part.t() if features_first else part)
        y.square().sum().backward()
    optimizer.step()
    before = [(m.pattern.mask(), m.dense_weight().detach()) for m in model]
    momenta = [
        m.pattern.scatter(optimizer.state[m.values]["momentum_buffer"]).detach() for m in model
    ]
    assert training.step()
    for layer, weight, momentum, (mask, was) in zip(model, weights, momenta, before, strict=True):
        moving = round(0.4 * int(mask.sum()))
        kept = reference.prune(was, mask, int(mask.sum()) - moving)
        assert weight.grad is not None
        grown = reference.grow(weight.grad, kept, moving)
        assert torch.equal(layer.pattern.mask(), grown)
        # What was there before stays as it was, come back or not; the rest is 0.
        assert torch.equal(layer.dense_weight(), torch.where(grown & mask, was, 0.0))
        state = optimizer.state[layer.values]["momentum_buffer"]
        assert torch.equal(layer.pattern.scatter(state), torch.where(grown & mask, momentum, 0.0))


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_rigl_of_convolutions(activation: str) -> None:
    """In both layouts, of one dimension and of two, with a single image as well."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"stride": 2, "padding": (1, 0), "groups": 2}
    dense = nn.Conv2d(4, 6, (3, 2), bias=False, **options)
    layer = SparseConv2d.from_conv(dense, density=0.3)
    layer.activation = activation
    line = nn.Conv1d(4, 6, 3, padding="same", dilation=2, bias=False)
    thin = SparseConv1d.from_conv(line, density=0.3)
    model = nn.ModuleList([layer, thin])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    training = SparseTraining(model, optimizer, "rigl", end=9, every=1, fraction=lambda _: 0.5)
    images = [_normal(2, 4, 7, 8), _normal(3, 4, 7, 8, salt=1), _normal(4, 7, 8, salt=2)]
    images[1] = images[1].to(memory_format=torch.channels_last)
    sequence = _normal(2, 4, 9)

    def loss(conv: Any, other: Any) -> Tensor:
        total = other(sequence).square().sum()
        for x in images:
            total = total + conv(x).square().sum()
        return total

    full, full_line = layer.to_conv(), thin.to_conv()
    act = torch.relu if activation == "relu" else torch.nn.Identity()
    loss(lambda x: act(full(x)), full_line).backward()
    loss(layer, thin).backward()
    optimizer.step()
    before = [(m.pattern.mask(), m.dense_weight().detach().view(6, -1)) for m in (layer, thin)]
    training.step()
    for sparse, twin, (mask, was) in zip((layer, thin), (full, full_line), before, strict=True):
        count = int(mask.sum())
        kept = reference.prune(was, mask, count - round(0.5 * count))
        assert twin.weight.grad is not None
        grown = reference.grow(twin.weight.grad.view(6, -1), kept, round(0.5 * count))
        assert torch.equal(sparse.pattern.mask(), grown)


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_when_patterns_change(method: str) -> None:
    model = _network()
    optimizer = _adam(model)
    average = copy.deepcopy(model)
    training = SparseTraining(
        model, optimizer, method, end=9, every=2, begin=2, averages=[average], fraction=0.5
    )
    changed = []
    for step in range(1, 12):
        before = _masks(training)
        due = training.due
        assert _step(model, optimizer, training, step) == due
        now = _masks(training)
        if any(not torch.equal(before[n], now[n]) for n in now):
            changed.append(step)
        assert all(before[n].sum() == now[n].sum() for n in now)
        for name, layer in training.layers.items():
            follower = average.get_submodule(name)
            assert torch.equal(follower.pattern.mask(), layer.pattern.mask())  # type: ignore[union-attr, operator]
        assert due == (step in (4, 6, 8))
    assert changed == [4, 6, 8]
    assert torch.isfinite(model(_normal(3, 12))).all()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_gradual_pruning(scope: str) -> None:
    model = _network()
    optimizer = _adam(model)
    size = 12 * 20 + 20 * 5
    training = SparseTraining(
        model, optimizer, "gradual", end=10, every=3, density=0.1, scope=scope
    )
    counts = []
    for step in range(1, 13):
        before = _masks(training)
        changed = _step(model, optimizer, training, step)
        now = _masks(training)
        assert changed == (step in (3, 6, 9, 10))
        assert all(not (now[n] & ~before[n]).any() for n in now)
        counts.append(sum(int(m.sum()) for m in now.values()))
    assert counts[0] == 72 + 50
    assert counts[-1] == pytest.approx(0.1 * size, abs=1)
    # Zhu and Gupta: a third, two thirds of the way.
    final = 0.1 * size
    assert counts[2] == pytest.approx(final + (122 - final) * 0.7**3, abs=1)
    assert counts[5] == pytest.approx(final + (122 - final) * 0.4**3, abs=1)
    shares = [int(m.sum()) for m in _masks(training).values()]
    if scope == "layer":
        assert shares[0] / sum(shares) == pytest.approx(72 / 122, abs=0.03)


def test_global_pruning_keeps_the_largest() -> None:
    model = _network()
    with torch.no_grad():
        model[0].values.mul_(100.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    training = SparseTraining(model, optimizer, "gradual", end=1, density=72 / 340, scope="global")
    _step(model, optimizer, training, 0)
    assert [layer.pattern.nnz for layer in model] == [72, 0]


@pytest.mark.parametrize("method", ["rigl", "set", "gradual"])
def test_resumed(method: str) -> None:
    """From the states of model, optimizer and training, in fresh ones: bit by bit the same."""

    def make(salt: int) -> tuple[Any, Any, SparseTraining]:
        model = _network(salt)
        optimizer = _adam(model)
        options: dict[str, Any] = {"density": 0.2} if method == "gradual" else {}
        random = torch.Generator().manual_seed(salt)
        training = SparseTraining(
            model, optimizer, method, end=20, every=2, generator=random, **options
        )
        return model, optimizer, training

    first = make(0)
    for step in range(5):
        _step(*first, step)
    second = make(1)
    # The optimizer's states have the sizes of the model's, which comes first.
    second[0].load_state_dict(copy.deepcopy(first[0].state_dict()))
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    for step in range(5, 11):
        for run in (first, second):
            _step(*run, step)
    for a, b in zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_wrong_training() -> None:
    model = _network()
    optimizer = _adam(model)
    with pytest.raises(ValueError, match="`method` to be one of"):
        SparseTraining(model, optimizer, "snip", end=5)
    with pytest.raises(ValueError, match="`density` with the method"):
        SparseTraining(model, optimizer, "gradual", end=5)
    with pytest.raises(ValueError, match="`density` with the method"):
        SparseTraining(model, optimizer, "set", end=5, density=0.1)
    with pytest.raises(ValueError, match=r"at most 0\.3588"):
        SparseTraining(model, optimizer, "gradual", end=5, density=0.5)
    with pytest.raises(ValueError, match="sparse layers, got none"):
        SparseTraining(nn.Linear(3, 3), optimizer, "set", end=5)
    with pytest.raises(ValueError, match="without those of '1'"):
        SparseTraining(model, _adam(model[0]), "set", end=5)
    with pytest.raises(TypeError, match="`optimizer`"):
        SparseTraining(model, None, "set", end=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`every` to be at least 1"):
        SparseTraining(model, optimizer, "set", end=5, every=0)
    training = SparseTraining(model, optimizer, "rigl", end=5, every=1)
    with pytest.raises(RuntimeError, match="a backward through '0'"):
        training.step()
    training.remove()
    assert not model[0]._forward_hooks


def test_memory_grows_with_the_entries() -> None:
    """Gradients and the optimizer's state, and nothing of the size of the weight."""
    peaks = []
    for density in (0.05, 0.1, 0.2):
        model = SparseLinear(256, 256, density, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        training = SparseTraining(model, optimizer, "set", end=9, every=9)
        x = _normal(1, 256)

        def step(
            model: nn.Module = model,
            optimizer: torch.optim.Optimizer = optimizer,
            training: SparseTraining = training,
            x: Tensor = x,
        ) -> None:
            model(x).sum().backward()
            optimizer.step()
            training.step()

        peaks.append(peak_bytes(step))
    weight = 4 * 256 * 256
    first, second, third = peaks
    assert first < second < third < weight
    # A gradient an entry, while the tiles of the batch are there.
    assert (third - second) == pytest.approx(2 * (second - first), rel=0.2)
    assert third - second >= 0.99 * 0.1 * weight


def test_nothing_is_kept_between_updates() -> None:
    model = _network()
    optimizer = _adam(model)
    training = SparseTraining(model, optimizer, "rigl", end=9, every=3)
    gradients = training._gradients
    assert gradients is not None
    for step in range(1, 6):
        model(_normal(4, 12)).sum().backward()
        assert any(gradients._pairs.values()) == (step == 3)
        optimizer.step()
        training.step()
        assert not any(gradients._pairs.values())

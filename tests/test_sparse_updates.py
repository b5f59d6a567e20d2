"""Pattern updates: what is pruned and grown, and what optimizers keep for the entries that stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import regkern.optim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regkern.nn.sparse.linear import SparseLinear
from regkern.reference.sparse import updates as reference
from regkern.sparse import growing
from regkern.sparse.densities import global_densities, layer_densities
from regkern.sparse.growing import (
    conv_candidates,
    grow_candidates,
    grow_candidates_conv2d,
    random_free,
)
from regkern.sparse.pattern import SparsePattern
from regkern.sparse.places import pattern_at, places_of
from regkern.sparse.updates import (
    entry_map,
    grow,
    grow_at,
    prune,
    remap,
    remap_state,
    update_pattern,
)
from torch import Tensor


def _generator(salt: int) -> torch.Generator:
    return torch.Generator().manual_seed(salt)


def _mask(rows: int, columns: int, share: float = 0.3, salt: int = 0) -> Tensor:
    return torch.rand(rows, columns, generator=_generator(salt)) < share


def _normal(*shape: int, salt: int = 0) -> Tensor:
    return torch.randn(shape, generator=_generator(100 + salt))


def _whole(*shape: int, salt: int = 0) -> Tensor:
    """Small whole numbers: sums are exact in any order, and many are equal."""
    return torch.randint(-3, 4, shape, generator=_generator(200 + salt)).float()


def _same(a: SparsePattern, b: SparsePattern) -> None:
    assert a.shape == b.shape
    for mine, other in zip(a.tensors(), b.tensors(), strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)


# ---- patterns ----


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.sampled_from([0.0, 0.2, 1.0]))
def test_patterns_of_places(rows: int, columns: int, share: float) -> None:
    pattern = SparsePattern.from_mask(_mask(rows, columns, share))
    _same(pattern_at(places_of(pattern), pattern.shape), pattern)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 99))
def test_prune_and_grow(rows: int, columns: int, share: float, salt: int) -> None:
    mask, weight = _mask(rows, columns, share, salt), _whole(rows, columns, salt=salt)
    pattern = SparsePattern.from_mask(mask)
    k = pattern.nnz // 2
    less, origin = prune(pattern.gather(weight), pattern, k)
    expected = reference.prune(weight, mask, k)
    _same(less, SparsePattern.from_mask(expected))
    values = _normal(pattern.nnz)
    assert torch.equal(remap(values, origin), reference.remap(values, mask, expected))
    assert torch.equal(origin, entry_map(pattern, less))
    count = (rows * columns - pattern.nnz) // 3
    more, origin = grow(pattern, count, weight)
    expected = reference.grow(weight, mask, count)
    _same(more, SparsePattern.from_mask(expected))
    assert torch.equal(remap(values, origin), reference.remap(values, mask, expected))
    assert torch.equal(origin, entry_map(pattern, more))
    assert int((origin < 0).sum()) == count


def test_prune_by_share_and_nan() -> None:
    pattern = SparsePattern.from_mask(torch.ones(2, 3, dtype=torch.bool))
    values = torch.tensor([0.5, -2.0, float("nan"), 1.0, 0.0, -1.0])
    kept, origin = prune(values, pattern, fraction=0.5)
    assert origin.tolist() == [1, 2, 3]
    assert kept.nnz == 3
    with pytest.raises(ValueError, match="`k` or `fraction`"):
        prune(values, pattern)
    with pytest.raises(ValueError, match=r"`values` of shape \(6,\)"):
        prune(values[1:], pattern, 2)
    with pytest.raises(TypeError, match="SparsePattern"):
        prune(values, pattern.mask(), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_random_places(share: float) -> None:
    """Free ones, each once, and each as often as any other."""
    pattern = SparsePattern.from_mask(_mask(7, 9, share))
    free = 63 - pattern.nnz
    counts = torch.zeros(63)
    draws, generator = 100, _generator(3)
    for count in (max(1, free // 8), free // 2):
        for _ in range(draws):
            places = random_free(pattern, count, generator)
            assert (places.diff() > 0).all()
            counts[places] += 1
    assert counts[pattern.mask().view(-1)].sum() == 0
    drawn = counts[~pattern.mask().view(-1)]
    mean = draws * (max(1, free // 8) + free // 2) / free
    assert (drawn - mean).abs().max() < 5 * mean**0.5
    assert grow(pattern, free, "random").pattern.nnz == 63


def test_random_places_repeat() -> None:
    pattern = SparsePattern.from_mask(_mask(40, 50, 0.02))
    first, again = (grow(pattern, 30, "random", _generator(1)).pattern for _ in range(2))
    _same(first, again)


def test_few_random_places_of_many() -> None:
    """No memory of the size of the matrix: it would be 4 GB of bools."""
    pattern = pattern_at(torch.arange(0, 2**32, 2**22), (2**16, 2**16))
    more, origin = grow(pattern, 1000)
    assert more.nnz == 2024
    assert int((origin >= 0).sum()) == 1024


def test_wrong_growth() -> None:
    pattern = SparsePattern.from_mask(_mask(4, 5))
    free = 20 - pattern.nnz
    with pytest.raises(ValueError, match=f"from 0 to the {free} places"):
        grow(pattern, free + 1)
    with pytest.raises(TypeError, match="`count` to be an integer"):
        grow(pattern, 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of random"):
        grow(pattern, 1, "best")
    with pytest.raises(ValueError, match=r"`scores` of shape \(4, 5\)"):
        grow(pattern, 1, torch.ones(5, 4))
    taken = places_of(pattern)[:1]
    for places in (taken, torch.tensor([1, 1]), torch.tensor([20]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="`places`"):
            grow_at(pattern, places)
    with pytest.raises(TypeError, match="`places` to be integers"):
        grow_at(pattern, torch.ones(1))
    with pytest.raises(ValueError, match="`new` of shape"):
        entry_map(pattern, pattern.transposed())


# ---- the largest gradients ----


def _expected(score: Tensor, pattern: SparsePattern, k: int) -> Tensor:
    grown = reference.grow(score.view(pattern.shape), pattern.mask(), k)
    return (grown & ~pattern.mask()).view(-1).nonzero().view(-1)


@pytest.mark.parametrize("panel", [2**18, 16 * 24, 1])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_candidates(monkeypatch: pytest.MonkeyPatch, panel: int, share: float) -> None:
    """Equal to the dense computation, ties included, in any number of panels."""
    monkeypatch.setattr(growing, "_PANEL", panel)
    rows, columns = 61, 24
    pattern = SparsePattern.from_mask(_mask(rows, columns, share))
    g, x = _whole(5, 6, rows), _whole(5, 6, columns, salt=1)
    score = reference.linear_scores(g, x)
    free = rows * columns - pattern.nnz
    for k in (0, 1, free // 9, free):
        places, scores = grow_candidates(g, x, pattern, k)
        assert torch.equal(places, _expected(score, pattern, k))
        assert torch.equal(scores, score.view(-1)[places].abs())
    major = grow_candidates(
        g.flatten(0, 1).t(), x.flatten(0, 1).t(), pattern, free // 9, feature_major=True
    )
    assert torch.equal(major.places, _expected(score, pattern, free // 9))
    assert grow_at(pattern, major.places).pattern.nnz == pattern.nnz + free // 9


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_candidates_of_other_dtypes(dtype: torch.dtype) -> None:
    pattern = SparsePattern.from_mask(_mask(9, 8))
    g, x = _whole(4, 9).to(dtype), _whole(4, 8).to(dtype)
    places, scores = grow_candidates(g, x, pattern, 10)
    assert torch.equal(places, _expected(reference.linear_scores(g, x).float(), pattern, 10))
    assert scores.dtype == (dtype if dtype == torch.float64 else torch.float32)


def test_nan_is_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "_PANEL", 1)
    pattern = SparsePattern.from_mask(torch.zeros(40, 3, dtype=torch.bool))
    g, x = torch.ones(1, 40), torch.ones(1, 3)
    g[0, 30] = torch.inf
    g[0, 35] = torch.nan
    assert grow_candidates(g, x, pattern, 3).places.tolist() == [105, 106, 107]
    assert grow_candidates(g, x, pattern, 7).places.tolist() == [0, 90, 91, 92, 105, 106, 107]


def test_wrong_candidates() -> None:
    pattern = SparsePattern.from_mask(_mask(4, 5))
    with pytest.raises(ValueError, match="`g` of 4 features"):
        grow_candidates(torch.ones(2, 5), torch.ones(2, 5), pattern, 1)
    with pytest.raises(ValueError, match="batch and dtype"):
        grow_candidates(torch.ones(3, 4), torch.ones(2, 5), pattern, 1)
    with pytest.raises(ValueError, match="places without an entry"):
        grow_candidates(torch.ones(2, 4), torch.ones(2, 5), pattern, 21)
    with pytest.raises(TypeError, match="`x` of dtype"):
        grow_candidates(torch.ones(2, 4), torch.ones(2, 5).int(), pattern, 1)
    image = torch.ones(1, 5, 4, 4)
    with pytest.raises(ValueError, match="`g` of shape"):
        grow_candidates_conv2d(torch.ones(1, 4, 3, 4), image, pattern, 1, 1)
    with pytest.raises(ValueError, match="3 groups"):
        grow_candidates_conv2d(torch.ones(1, 4, 4, 4), image, pattern, 1, 1, groups=3)


_CONVS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 1), "dilation": (1, 2), "groups": 2},
    {"kernel_size": (2, 3), "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular", "groups": 2},
]


@pytest.mark.parametrize("options", _CONVS, ids=str)
def test_candidates_of_convolutions(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(growing, "_PANEL", 1)
    monkeypatch.setattr(growing, "_ROWS", 3)
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 10, bias=False, **options)
    x = _whole(2, 4, 7, 8)
    y = conv(x)
    g = _whole(*y.shape, salt=1)
    score = torch.autograd.grad(y, conv.weight, g)[0].view(10, -1)
    pattern = SparsePattern.from_mask(_mask(*score.shape, 0.3))
    found = grow_candidates_conv2d(g, x, pattern, 20, **options)
    assert torch.equal(found.places, _expected(score, pattern, 20))
    # What two halves of the batch add up to.
    pairs = [(g[:1], x[:1]), (g[1:], x[1:])]
    found = conv_candidates("test", pairs, pattern, 20, **options)
    assert torch.equal(found.places, _expected(score, pattern, 20))


# ---- what goes with the entries ----

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.1, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "regkern AdamW": lambda p: regkern.optim.AdamW(p, 0.1, amsgrad=True),
    "regkern SGD": lambda p: regkern.optim.SGD(p, 0.1, momentum=0.9),
    "ProxAdamW": lambda p: regkern.optim.ProxAdamW(p, 0.1, penalty=None),
    "LAWN": lambda p: regkern.optim.LAWN(torch.optim.Adam(p, 0.1), 2),
    "Proximal": lambda p: regkern.optim.Proximal(torch.optim.Adam(p, 0.1), None),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_go_on(name: str) -> None:
    """As one of all weights does, of which those without an entry are held at 0."""
    torch.manual_seed(0)
    old, new = _mask(6, 8, 0.4), _mask(6, 8, 0.5, salt=1)
    layer = SparseLinear(8, 6, pattern=SparsePattern.from_mask(old), bias=False)
    parameter = layer.values
    optimizer = OPTIMIZERS[name]([parameter])

    def steps(salt: int) -> None:
        for i in range(3):
            optimizer.zero_grad()
            layer(_normal(5, 8, salt=salt + i)).square().sum().backward()
            optimizer.step()

    steps(0)
    shapes = {k: v for k, v in optimizer.state[parameter].items() if isinstance(v, Tensor)}
    before = {k: v.clone() for k, v in shapes.items()}
    values = parameter.detach().clone()
    update_pattern(layer, SparsePattern.from_mask(new), optimizer=optimizer)
    assert layer.values is parameter
    assert optimizer.param_groups[0]["params"][0] is parameter
    assert parameter.grad is None
    assert torch.equal(parameter.detach(), reference.remap(values, old, new))
    moved = 0
    for key, was in before.items():
        now = optimizer.state[parameter][key]
        entry = was.shape == values.shape
        assert torch.equal(now, reference.remap(was, old, new) if entry else was)
        moved += entry
    assert moved > 0
    steps(10)
    assert torch.isfinite(parameter).all()
    assert not torch.equal(parameter.detach(), reference.remap(values, old, new))


def test_wrapped_and_nested_states() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], 0.1)
    entry, other = torch.tensor([1.0, 2.0, 3.0]), torch.ones(4)
    optimizer.state[parameter] = {
        "a": [entry, 5],
        "b": {"c": (entry, other)},
        "step": torch.ones(()),
    }
    remap_state(optimizer, parameter, torch.tensor([2, -1, 0, 1]))
    state = optimizer.state[parameter]
    expected = torch.tensor([3.0, 0.0, 1.0, 2.0])
    assert torch.equal(state["a"][0], expected)
    assert state["a"][1] == 5
    assert torch.equal(state["b"]["c"][0], expected)
    assert state["b"]["c"][1] is other
    assert state["step"] == 1
    with pytest.raises(ValueError, match="one of the optimizer's"):
        remap_state(optimizer, torch.zeros(3), torch.tensor([0]))
    with pytest.raises(TypeError, match="`optimizer`"):
        remap_state(None, parameter, torch.tensor([0]))  # type: ignore[arg-type]


def test_one_entry_has_a_step_count() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.1)
    optimizer.state[parameter] = {"step": torch.ones(1), "m": torch.ones(1)}
    remap_state(optimizer, parameter, torch.tensor([-1, 0]))
    assert optimizer.state[parameter]["step"].tolist() == [1.0]
    assert optimizer.state[parameter]["m"].tolist() == [0.0, 1.0]


def test_averages_and_wrong_updates() -> None:
    layer = SparseLinear(8, 6, density=0.5)
    old = layer.pattern
    average = layer.values.detach().clone()
    pattern, index_map = prune(layer.values, old, 10)
    expected = average[index_map]
    with pytest.raises(ValueError, match=r"`index_map` of int64 \(10,\)"):
        update_pattern(layer, pattern, index_map[1:])
    with pytest.raises(ValueError, match=r"`index_map` in \[-1, 24\)"):
        update_pattern(layer, pattern, index_map + 24)
    with pytest.raises(ValueError, match=r"`also\[0\]` of shape \(24,\)"):
        update_pattern(layer, pattern, index_map, also=[average[1:]])
    with pytest.raises(ValueError, match="one of the optimizer's"):
        update_pattern(layer, pattern, optimizer=torch.optim.SGD([average], 0.1))
    with pytest.raises(TypeError, match="layer with a sparse weight"):
        update_pattern(torch.nn.Linear(3, 3), pattern)
    assert layer.pattern is old
    update_pattern(layer, pattern, index_map, also=[average])
    assert torch.equal(average, expected)
    assert torch.equal(layer.values.detach(), expected)


def test_compiled_step_goes_on_where_nnz_stays() -> None:
    """Other places of as many entries are no reason to compile again."""
    layer = SparseLinear(8, 6, density=0.5)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    x = _normal(4, 8)

    def step() -> None:
        compiled(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    kept = prune(layer.values, layer.pattern, 14).pattern
    update_pattern(layer, grow(kept, 10, "random").pattern, optimizer=optimizer)
    step()
    torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) == 1
    update_pattern(layer, kept, optimizer=optimizer)
    step()
    torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) == 2


# ---- densities ----


def test_layer_densities() -> None:
    shapes = {"a": (64, 3, 3, 3), "b": (64, 64, 3, 3), "c": (128, 64, 1, 1), "d": (10, 128)}
    sizes = {name: torch.Size(s).numel() for name, s in shapes.items()}
    for distribution in ("uniform", "erdos_renyi", "erdos_renyi_kernel"):
        found = layer_densities(shapes, 0.2, distribution)
        total = sum(found[n] * sizes[n] for n in shapes)
        assert total == pytest.approx(0.2 * sum(sizes.values()))
        assert all(0 < d <= 1 for d in found.values())
    uniform = layer_densities(shapes, 0.2, "uniform", dense=["a"])
    assert uniform["a"] == 1.0
    assert uniform["b"] == uniform["c"] < 0.2
    kernel = layer_densities(shapes, 0.05)
    # (64 + 64 + 3 + 3) / (64 64 3 3) to (128 + 64 + 1 + 1) / (128 64)
    assert kernel["b"] / kernel["c"] == pytest.approx((134 / 36864) / (194 / 8192))
    assert layer_densities(shapes, 1.0) == dict.fromkeys(shapes, 1.0)
    assert layer_densities(shapes, 0.0) == dict.fromkeys(shapes, 0.0)
    with pytest.raises(ValueError, match="layers that stay dense"):
        layer_densities(shapes, 0.2, dense=["b"])
    with pytest.raises(ValueError, match="two dimensions"):
        layer_densities({"a": (3,)}, 0.2)
    with pytest.raises(ValueError, match="`distribution` to be one of"):
        layer_densities(shapes, 0.2, "even")


def test_global_densities() -> None:
    weights = {"small": torch.full((4, 5), 0.1), "large": torch.ones(5, 4)}
    assert global_densities(weights, 0.5) == {"small": 0.0, "large": 1.0}
    assert global_densities(weights, 0.25) == {"small": 0.0, "large": 0.5}


def test_followers_are_copies() -> None:
    """A copy of a module follows by the same map."""
    layer = SparseLinear(8, 6, density=0.5)
    average = copy.deepcopy(layer)
    pattern = grow(layer.pattern, 4).pattern
    for module in (layer, average):
        update_pattern(module, pattern)
    assert torch.equal(layer.values, average.values)

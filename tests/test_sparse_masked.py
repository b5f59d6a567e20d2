"""Masked gradients, selections, deltas, meProp and gates beyond the contract."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from regkern.nn.sparse.gates import ChannelGate, MaskTunedLinear
from regkern.nn.sparse.masked import MaskedLinear
from regkern.reference.sparse import masked as reference
from regkern.sparse import SparsePattern
from regkern.sparse.deltas import SparseDelta, _places, _steps
from regkern.sparse.gates import (
    binary_gate,
    gradient_dropout,
    mask_tuned_linear,
    mass_gate,
    mass_gate_loss,
    score_gate,
)
from regkern.sparse.masked import masked_linear, masked_weight, write_entries_
from regkern.sparse.meprop import meprop_linear, row_top_k, topk_gradient
from regkern.sparse.selection import (
    GradientSquares,
    adapter_density,
    random_pattern,
    small_weight_mask,
    snip_mask,
    structured_pattern,
)
from regkern.sparse.updates import entry_map
from torch import Tensor, nn
from torch.nn import functional as F

OPS = torch.ops.regkern


def _normal(*shape: int, salt: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(200 + salt)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _mask(rows: int, columns: int, share: float = 0.2, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(salt)
    return torch.rand(rows, columns, generator=generator) < share


def _linear(salt: int = 0) -> nn.Linear:
    linear = nn.Linear(20, 9)
    with torch.no_grad():
        linear.weight.copy_(_normal(9, 20, salt=salt))
    return linear


PATTERN = SparsePattern.from_mask(_mask(9, 20))


# ---- masked_linear ----


@pytest.mark.parametrize("shape", [(20,), (6, 20), (2, 3, 20), (0, 20)])
def test_masked_linear_is_the_dense_layer(shape: tuple[int, ...]) -> None:
    weight = _normal(9, 20, dtype=torch.float64)
    values = PATTERN.gather(weight).requires_grad_()
    bias = _normal(9, dtype=torch.float64).requires_grad_()
    x = _normal(*shape, dtype=torch.float64).requires_grad_()
    y = masked_linear(x, weight, values, PATTERN, bias)
    z = reference.masked_linear(x, weight, values, PATTERN, bias)
    torch.testing.assert_close(y, z)
    g = _normal(*y.shape, salt=1, dtype=torch.float64)
    ours = torch.autograd.grad(y, (x, values, bias), g)
    for a, b in zip(ours, torch.autograd.grad(z, (x, values, bias), g), strict=True):
        torch.testing.assert_close(a, b)


def test_masked_linear_is_differentiable_as_often_as_wanted() -> None:
    weight = _normal(9, 20, dtype=torch.float64)

    def call(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        # What finite differences change is written.
        own = write_entries_(weight.clone(), values, PATTERN)
        return masked_linear(x, own, values, PATTERN, bias)

    values = PATTERN.gather(weight).requires_grad_()
    x = _normal(3, 20, dtype=torch.float64).requires_grad_()
    bias = _normal(9, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, values, bias), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (x, values, bias), fast_mode=True)


def test_transforms() -> None:
    weight, x = _normal(9, 20), _normal(4, 20)
    values = PATTERN.gather(weight)

    def loss(x: Tensor, values: Tensor) -> Tensor:
        return masked_linear(x, weight, values, PATTERN).square().sum()

    inputs = (x.clone().requires_grad_(), values.clone().requires_grad_())
    expected = torch.autograd.grad(loss(*inputs), inputs)
    for a, e in zip(torch.func.grad(loss, (0, 1))(x, values), expected, strict=True):
        torch.testing.assert_close(a, e)
    each = torch.func.vmap(torch.func.grad(loss, 1), (0, None))(x, values)
    assert each.shape == (4, PATTERN.nnz)
    torch.testing.assert_close(each.sum(0), expected[1])


def test_no_entries() -> None:
    linear = _linear()
    empty = SparsePattern.from_mask(torch.zeros(9, 20, dtype=torch.bool))
    layer = MaskedLinear(copy.deepcopy(linear), empty)
    x = _normal(3, 20)
    y = layer(x)
    assert torch.equal(y, linear(x))
    y.sum().backward()
    assert layer.values.grad is not None
    assert layer.values.grad.shape == (0,)


def test_nothing_of_the_weights_size_is_allocated() -> None:
    rows, columns = 256, 300
    pattern = random_pattern((rows, columns), 500, generator=torch.Generator().manual_seed(1))
    weight = _normal(rows, columns)
    values = pattern.gather(weight).requires_grad_()
    x = _normal(8, columns).requires_grad_()
    y = masked_linear(x, weight, values, pattern)
    with torch.profiler.profile(profile_memory=True) as profile:
        y.backward(torch.ones_like(y))
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < rows * columns * 4 // 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_with_values_in_float32(dtype: torch.dtype) -> None:
    layer = MaskedLinear(_linear().to(dtype), PATTERN, dtype=torch.float32)
    x = _normal(5, 20).to(dtype)
    layer(x).float().sum().backward()
    assert layer.values.grad is not None
    assert layer.values.grad.dtype == torch.float32
    ones = torch.ones(5, 9)
    expected = PATTERN.gather(ones.t() @ x.float())
    torch.testing.assert_close(layer.values.grad, expected, rtol=1e-2, atol=1e-2)


def test_autocast() -> None:
    layer = MaskedLinear(_linear(), PATTERN)
    x = _normal(5, 20)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        z = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(y, z)
    y.float().square().sum().backward()
    assert layer.values.grad is not None
    assert layer.values.grad.dtype == torch.float32


def test_masked_weight_in_any_function() -> None:
    weight = _normal(6, 4, 3, 3)
    pattern = SparsePattern.from_mask(_mask(6, 36))
    values = pattern.gather(weight.flatten(1)).requires_grad_()
    x = _normal(2, 4, 8, 8)
    F.conv2d(x, masked_weight(weight, values, pattern)).square().sum().backward()
    twin = weight.clone().requires_grad_()
    F.conv2d(x, twin).square().sum().backward()
    assert twin.grad is not None
    torch.testing.assert_close(values.grad, pattern.gather(twin.grad.flatten(1)))


def test_wrong_arguments() -> None:
    weight, x = _normal(9, 20), _normal(3, 20)
    values = PATTERN.gather(weight)
    with pytest.raises(ValueError, match="20 features"):
        masked_linear(_normal(3, 19), weight, values, PATTERN)
    with pytest.raises(ValueError, match="without a gradient"):
        masked_linear(x, weight.clone().requires_grad_(), values, PATTERN)
    with pytest.raises(ValueError, match="`values` of shape"):
        masked_linear(x, weight, values[1:], PATTERN)
    with pytest.raises(TypeError, match="`values` of dtype"):
        masked_linear(x, weight, values.double(), PATTERN)
    with pytest.raises(TypeError, match="`x` of dtype"):
        masked_linear(x.double(), weight, values, PATTERN)
    with pytest.raises(ValueError, match="`weight` of shape"):
        write_entries_(weight.t(), values, PATTERN)
    with pytest.raises(ValueError, match="`base` like"):
        write_entries_(weight, values, PATTERN, values[1:])
    with pytest.raises(TypeError, match="SparsePattern"):
        masked_weight(weight, values, _mask(9, 20))  # type: ignore[arg-type]
    for wrong in (PATTERN.index + 20, -PATTERN.index - 1):
        with pytest.raises(RuntimeError, match=r"`index` in \[0, 20\)"):
            OPS.sparse_write_(weight, values, None, PATTERN.offsets, wrong)


# ---- MaskedLinear ----


@pytest.mark.parametrize("form", ["entries", "delta"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_trains_like_a_dense_layer_with_masked_gradients(form: str, decay: float) -> None:
    dense, start = _linear(), _linear().weight.detach().clone()
    layer = MaskedLinear(copy.deepcopy(dense), PATTERN, form)
    mask = PATTERN.mask()
    a = torch.optim.SGD(dense.parameters(), lr=0.05, momentum=0.9)
    b = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)
    for step in range(4):
        x = _normal(17, 20, salt=step)
        for model, optimizer in ((dense, a), (layer, b)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            if model is dense:
                assert dense.weight.grad is not None
                # The decay of a delta pulls towards the start.
                origin = start if form == "delta" else 0.0
                dense.weight.grad.add_(dense.weight.detach() - origin, alpha=decay).mul_(mask)
                if dense.bias.grad is not None:
                    dense.bias.grad.add_(dense.bias.detach(), alpha=decay)
            optimizer.step()
    torch.testing.assert_close(layer.dense_weight(), dense.weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.to_linear()(x), dense(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.weight[~mask], start[~mask])
    assert layer.weight.grad is None


def test_the_weight_is_written_when_values_change() -> None:
    layer = MaskedLinear(_linear(), PATTERN)
    x = _normal(3, 20)
    first = layer(x).detach()
    version = layer.weight._version
    layer(x)
    assert layer.weight._version == version
    with torch.no_grad():
        layer.values.add_(1.0)
    assert not torch.equal(layer(x), first)
    assert torch.equal(PATTERN.gather(layer.weight), layer.values)
    # A backward that needs the weight as it was does not get another.
    loss = layer(x.requires_grad_()).sum()
    with torch.no_grad():
        layer.values.mul_(2.0)
    layer.merge()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x)


def test_removed_bit_for_bit() -> None:
    linear = _linear()
    with torch.no_grad():
        linear.weight[:, ::3] = -0.0
        linear.weight[:, 1] = 1e-8
    start = linear.weight.detach().clone()
    layer = MaskedLinear(linear, PATTERN, "delta")
    with torch.no_grad():
        layer.values.copy_(_normal(PATTERN.nnz, salt=3) * 100)
    layer(_normal(2, 20))
    assert not torch.equal(layer.weight, start)
    back = layer.remove()
    assert torch.equal(back.weight.view(torch.int32), start.view(torch.int32))
    with pytest.raises(ValueError, match="delta"):
        MaskedLinear(_linear(), PATTERN).remove()


@pytest.mark.parametrize("form", ["entries", "delta"])
def test_other_entries_in_the_same_parameter(form: str) -> None:
    start = _linear().weight.detach().clone()
    layer = MaskedLinear(_linear(), PATTERN, form)
    parameter = layer.values
    with torch.no_grad():
        layer.values.add_(1.0)
    other = SparsePattern.from_mask(_mask(9, 20, 0.3, salt=5))
    old = PATTERN.scatter(layer.values.detach())
    places = layer.select(other)
    assert layer.values is parameter
    assert places.shape == (other.nnz,)
    both = PATTERN.mask() & other.mask()
    expected = torch.where(PATTERN.mask(), start + 1.0, start)
    if form == "delta":
        expected = torch.where(PATTERN.mask() & ~both, start, expected)
    torch.testing.assert_close(layer.dense_weight(), expected)
    kept = places >= 0
    assert int(kept.sum()) == int(both.sum())
    torch.testing.assert_close(layer.values[kept], other.gather(old)[kept])
    assert torch.equal(entry_map(other, other), torch.arange(other.nnz))
    nothing = SparsePattern.from_mask(torch.zeros(9, 20, dtype=torch.bool))
    assert torch.equal(entry_map(nothing, other), torch.full((other.nnz,), -1))
    layer(_normal(2, 20)).sum().backward()


@pytest.mark.parametrize("form", ["entries", "delta"])
def test_states(form: str) -> None:
    first = MaskedLinear(_linear(), PATTERN, form)
    with torch.no_grad():
        first.values.add_(0.5)
    x = _normal(4, 20)
    y = first(x)
    other = MaskedLinear(_linear(1), SparsePattern.from_mask(_mask(9, 20, 0.4, salt=7)), form)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(x), y)
    twin = copy.deepcopy(first).double()
    torch.testing.assert_close(twin(x.double()).float(), y)
    with torch.no_grad():
        twin.values.zero_()
    twin(x.double())
    assert torch.equal(first(x), y)
    assert len(list(first.parameters())) == 3
    assert [p.dim() for p in first.parameters() if p.requires_grad] == [1, 1]


def test_compiled() -> None:
    layer = MaskedLinear(_linear(), PATTERN, "delta")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = _normal(7, 20)
    for followed in (False, True):
        if followed:
            layer.follow(optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            compiled(x).square().sum().backward()
            twin = copy.deepcopy(layer)
            twin.zero_grad()
            twin.merge()
            twin(x).square().sum().backward()
            torch.testing.assert_close(layer.values.grad, twin.values.grad)
            optimizer.step()
    assert torch.equal(compiled(x), layer.to_linear()(x))


def test_wrong_layers() -> None:
    with pytest.raises(ValueError, match="`form`"):
        MaskedLinear(_linear(), PATTERN, "values")
    with pytest.raises(ValueError, match="`pattern` of shape"):
        MaskedLinear(nn.Linear(9, 20), PATTERN)
    with pytest.raises(TypeError, match="`dtype`"):
        MaskedLinear(_linear(), PATTERN, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"torch\.nn\.Linear"):
        MaskedLinear(nn.Bilinear(2, 2, 2), PATTERN)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="neither"):
        MaskedLinear.from_linear(_linear())
    assert MaskedLinear.from_linear(_linear(), density=0.1).pattern.nnz == 18


# ---- selections ----


def test_small_weights() -> None:
    xs = [_normal(7, 9), _normal(30, salt=1)]
    by_threshold = small_weight_mask(xs, 0.4)
    for x, mask in zip(xs, by_threshold, strict=True):
        assert torch.equal(mask, x.abs() < 0.4)
    masks = small_weight_mask(xs, fraction=0.25)
    flat = torch.cat([x.reshape(-1) for x in xs]).abs()
    chosen = torch.cat([m.reshape(-1) for m in masks])
    assert int(chosen.sum()) == 93 // 4
    assert flat[chosen].max() < flat[~chosen].min()
    assert [int(m.sum()) for m in small_weight_mask(xs, fraction=1 / 3, per_tensor=True)] == [
        21,
        10,
    ]
    with pytest.raises(ValueError, match="both"):
        small_weight_mask(xs, 0.1, fraction=0.1)


def test_gradients_choose() -> None:
    ws, gs = [_normal(6, 5), _normal(8)], [_normal(6, 5, salt=2), _normal(8, salt=3)]
    masks = snip_mask(ws, gs, 10)
    scores = torch.cat([(w * g).abs().reshape(-1) for w, g in zip(ws, gs, strict=True)])
    chosen = torch.cat([m.reshape(-1) for m in masks])
    assert int(chosen.sum()) == 10
    assert scores[chosen].min() > scores[~chosen].max()
    p = nn.Parameter(_normal(4, 5).to(torch.bfloat16))
    squares = GradientSquares([p])
    for salt in (1, 2):
        p.grad = _normal(4, 5, salt=salt).to(torch.bfloat16)
        squares.add()
    expected = (_normal(4, 5, salt=1).bfloat16().float() ** 2 + p.grad.float() ** 2) / 2
    torch.testing.assert_close(squares.means()[0], expected)
    (mask,) = squares.mask(fraction=0.3)
    assert int(mask.sum()) == 6
    assert expected[mask].min() > expected[~mask].max()


def test_patterns_of_adapters() -> None:
    generator = torch.Generator().manual_seed(0)
    few = random_pattern((30, 50), rank=2, generator=generator)
    assert few.nnz == 160
    assert random_pattern((30, 50), 1200, generator=generator).nnz == 1200
    assert random_pattern((4, 5), rank=9).nnz == 20
    assert random_pattern((0, 5), 0).nnz == 0
    for nnz in (2500, 7500):
        mask = random_pattern((100, 100), nnz, generator=generator).mask()
        for counts in (mask.sum(0), mask.sum(1)):  # 25 or 75, within 4.6 deviations of 4.3
            assert nnz // 100 - 20 < int(counts.min()) <= int(counts.max()) < nnz // 100 + 20
    with pytest.raises(ValueError, match="`nnz` from 0 to 20"):
        random_pattern((4, 5), 21)
    mask = structured_pattern((4, 6), rows=[1], columns=[5], diagonals=[0, -2]).mask()
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[1], expected[:, 5] = True, True
    for r, c in ((0, 0), (1, 1), (2, 2), (3, 3), (2, 0), (3, 1)):
        expected[r, c] = True
    assert torch.equal(mask, expected)
    with pytest.raises(ValueError, match="`rows`"):
        structured_pattern((4, 6), rows=[4])
    with pytest.raises(ValueError, match="`diagonals`"):
        structured_pattern((4, 6), diagonals=[6])
    assert adapter_density((30, 50), 2) == 160 / 1500


# ---- deltas ----


def _network(salt: int) -> nn.Sequential:
    torch.manual_seed(salt)
    return nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 3))


def test_deltas_compose_and_are_removed_exactly(tmp_path: Path) -> None:
    start = _network(0)
    task, language = copy.deepcopy(start), copy.deepcopy(start)
    with torch.no_grad():
        task[0].weight[2, 3] += 1e-3
        task[0].bias[5] = 77.0
        language[0].weight[2] += 0.5
        language[2].weight[0, 0] = -0.0
    a, b = SparseDelta.extract(task, start), SparseDelta.extract(language, start)
    assert a.nnz == 2
    assert b.names == ["0.weight", "2.weight"]
    a.save(tmp_path / "a.pt")
    again = SparseDelta.load(tmp_path / "a.pt")
    assert again.names == a.names
    model = copy.deepcopy(start)
    before = (again + b).apply_(model)
    torch.testing.assert_close(model[0].weight[2, 3], start[0].weight[2, 3] + 0.501)
    torch.testing.assert_close(model[0].bias, task[0].bias)
    (again + b).restore_(model, before)
    for x, y in zip(model.parameters(), start.parameters(), strict=True):
        assert torch.equal(x.view(torch.int32), y.view(torch.int32))
    twice = copy.deepcopy(start)
    (3 * a - a).apply_(twice, scale=0.5)
    torch.testing.assert_close(twice.state_dict(), task.state_dict())


def test_deltas_of_masks_and_halves() -> None:
    x, y = _normal(5, 8), _normal(5, 8, salt=1)
    mask = _mask(5, 8)
    delta = SparseDelta.extract({"w": y}, {"w": x}, {"w": mask})
    assert delta.nnz == int(mask.sum())
    strided = x.t().contiguous().t().bfloat16()
    start = strided.clone()
    before = delta.apply_({"w": strided})
    torch.testing.assert_close(strided.float(), torch.where(mask, y, x), rtol=1e-2, atol=2e-2)
    delta.restore_({"w": strided}, before)
    assert torch.equal(strided, start)


def test_places_beyond_32_bits(tmp_path: Path) -> None:
    index = torch.tensor([0, 1, 2**31 - 2, 2**31, 7 * 2**31, 2**40, 2**40 + 1])
    assert torch.equal(_places(*_steps(index)), index)
    assert _steps(index)[0].dtype == torch.int32
    assert torch.equal(_places(*_steps(index[:0])), index[:0])
    delta = SparseDelta({"w": ((2**21, 2**21), index, torch.ones(7))})
    delta.save(tmp_path / "far.pt")
    assert torch.equal(SparseDelta.load(tmp_path / "far.pt").entries("w")[1], index)


def test_wrong_deltas(tmp_path: Path) -> None:
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="rise"):
        SparseDelta({"w": ((4,), torch.tensor([1, 1]), ones)})
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        SparseDelta({"w": ((4,), torch.tensor([1, 4]), ones)})
    delta = SparseDelta({"w": ((4,), torch.tensor([1, 3]), ones)})
    tensors = {"w": torch.zeros(5)}
    with pytest.raises(ValueError, match=r"of shape \(4,\)"):
        delta.apply_(tensors)
    with pytest.raises(ValueError, match="'w'"):
        delta.apply_({})
    with pytest.raises(TypeError, match="mapping"):
        delta.apply_([1])
    with pytest.raises(ValueError, match="one shape"):
        delta + SparseDelta({"w": ((5,), torch.tensor([1]), ones[:1])})
    torch.save({"w": ones}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="format"):
        SparseDelta.load(tmp_path / "w.pt")


# ---- meProp ----


def test_rows_keep_exactly_k() -> None:
    x = torch.tensor([[1.0, -2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert row_top_k(x, 2).tolist() == [[0.0, -2.0, 2.0, 0.0, 0.0], [0.0] * 5]
    assert torch.equal(row_top_k(x, 7), x)
    assert torch.equal(row_top_k(x, 0), torch.zeros(2, 5))
    wide = _normal(3, 5000)
    kept = row_top_k(wide, 250)
    assert (kept != 0).sum(1).tolist() == [250] * 3
    for row, full in zip(kept, wide, strict=True):
        assert torch.equal(
            torch.sort(row.abs()).values[-250:], torch.sort(full.abs()).values[-250:]
        )
    with pytest.raises(ValueError, match="`k`"):
        row_top_k(x, -1)
    with pytest.raises(RuntimeError, match="`k` between 0 and 5"):
        OPS.row_select(x, x, 5)


def test_gradients_of_meprop() -> None:
    x, w, b = (t.requires_grad_() for t in (_normal(6, 5), _normal(9, 5, salt=1), _normal(9)))
    g = _normal(6, 9, salt=2)
    inner = row_top_k(g, 4)
    columns = g.abs().sum(0).topk(4).indices
    shared = torch.zeros_like(g)
    shared[:, columns] = g[:, columns]
    for unified, cut in ((False, inner), (True, shared)):
        expected = torch.autograd.grad(F.linear(x, w, b), (x, w, b), cut)
        for y in (
            meprop_linear(x, w, b, 4, unified),
            topk_gradient(F.linear(x, w, b), 4, unified),
        ):
            torch.testing.assert_close(y, F.linear(x, w, b))
            for a, e in zip(torch.autograd.grad(y, (x, w, b), g), expected, strict=True):
                torch.testing.assert_close(a, e)
    # Columns that are alike: the first.
    (flat,) = torch.autograd.grad(topk_gradient(x, 2, True), x, torch.ones(6, 5))
    assert flat[0].tolist() == [1, 1, 0, 0, 0]
    batch = meprop_linear(x.reshape(2, 3, 5), w, b, 4)
    assert batch.shape == (2, 3, 9)
    with pytest.raises(ValueError, match="C features"):
        meprop_linear(x, w.t())


# ---- gates ----


def test_mask_tuning() -> None:
    w, s, x, b = (
        t.double().requires_grad_()
        for t in (_normal(7, 5), _normal(7, 5, salt=1), _normal(2, 3, 5), _normal(7, salt=2))
    )
    y = mask_tuned_linear(x, w, s, 0.1, b)
    z = F.linear(x, score_gate(w, s, 0.1), b)
    torch.testing.assert_close(y, z)
    g = _normal(*y.shape, salt=3, dtype=torch.float64)
    expected = torch.autograd.grad(z, (x, w, s, b), g)
    for a, e in zip(torch.autograd.grad(y, (x, w, s, b), g), expected, strict=True):
        torch.testing.assert_close(a, e)
    torch.testing.assert_close(expected[2], (g.flatten(0, 1).t() @ x.flatten(0, 1)) * w)
    only = mask_tuned_linear(x.detach(), w.detach(), s, 0.1)
    torch.testing.assert_close(torch.autograd.grad(only, s, g)[0], expected[2])
    # Second derivatives are those of the same layer out of parts.
    seconds = []
    for layer in (mask_tuned_linear(x, w, s, 0.1), F.linear(x, score_gate(w, s, 0.1))):
        (ds,) = torch.autograd.grad(layer, s, g, create_graph=True)
        seconds.append(torch.autograd.grad(ds.square().sum(), (x, w)))
    torch.testing.assert_close(seconds[0], seconds[1])
    with pytest.raises(ValueError, match="`scores` like"):
        score_gate(w, s[:, :4])
    with pytest.raises(ValueError, match="NaN"):
        score_gate(w, s, float("nan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_that_no_cache_holds(dtype: torch.dtype) -> None:
    """They are written past it."""
    n = (24 << 20) // dtype.itemsize + 4097
    w = _normal(1000).to(dtype).repeat(n // 1000 + 1)[:n]
    s = _normal(1001, salt=1).to(dtype).repeat(n // 1001 + 1)[:n]
    assert torch.equal(score_gate(w, s, 0.1), w * (s > 0.1).to(dtype))


def test_mask_tuned_layer() -> None:
    dense = _linear()
    layer = MaskTunedLinear(copy.deepcopy(dense))
    x = _normal(4, 20)
    torch.testing.assert_close(layer(x), dense(x))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    target = F.linear(x, dense.weight * _mask(9, 20, 0.7), dense.bias).detach()
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) < losses[3]
    assert 0 < float(layer.density()) < 1
    torch.testing.assert_close(layer.to_linear()(x), layer(x))


def test_gradient_dropout_is_by_agreement() -> None:
    n = 20000
    seed = torch.tensor([1, 2])
    g = torch.ones(n)
    assert torch.equal(gradient_dropout(g, 3 * g, seed=seed), g)
    half = gradient_dropout(g, -g, seed=seed)
    assert abs(float(half.mean()) - 0.5) < 0.02
    quarter = gradient_dropout(g, torch.full((n,), -3.0), 0.6, seed=seed)
    kept = float((quarter == 1).float().mean())
    assert abs(kept - 0.25) < 0.02
    torch.testing.assert_close(quarter[quarter != 1], torch.full((int((quarter != 1).sum()),), 0.4))
    assert torch.equal(gradient_dropout(g, -g, 0.0, seed=seed), g)
    nan = gradient_dropout(g[:3], torch.tensor([1.0, float("nan"), 1.0]), seed=seed)
    assert nan.isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match="`strength`"):
        gradient_dropout(g, g, 1.5)
    with pytest.raises(ValueError, match="`reference` like"):
        gradient_dropout(g, g[1:])


def test_binary_gates() -> None:
    z = torch.tensor([-2.0, -0.1, 0.0, 0.3, 5.0]).requires_grad_()
    gates = binary_gate(z)
    assert gates.tolist() == [0, 0, 0, 1, 1]
    g = torch.arange(1.0, 6.0)
    assert torch.equal(torch.autograd.grad(gates, z, g)[0], g)
    clipped = binary_gate(z, 1.0)
    assert torch.equal(clipped, gates)
    assert torch.autograd.grad(clipped, z, g)[0].tolist() == [0, 2, 3, 4, 0]
    with pytest.raises(ValueError, match="`clip`"):
        binary_gate(z, -1.0)


def test_gates_by_mass() -> None:
    peaks = torch.tensor([[1.0, 4.0, 2.0, 1.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    y = torch.zeros(3, 4, 2, 2)
    y[:, :, 1, 0] = -peaks
    assert mass_gate(y, 0.5).tolist() == [[0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert mass_gate(y, 0.51).tolist() == [[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert mass_gate(y, 0.8).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert mass_gate(y, 1.0).sum(1).tolist() == [4, 4, 0]
    assert mass_gate(y, 0.0).sum() == 0
    assert mass_gate(y[:, :, :0], 0.5).sum() == 0
    # As small and as large as floats are.
    for scale in (1e-44, 1e-30, 1e38 / 4):
        tiny = peaks * scale
        assert torch.equal(mass_gate(tiny, 0.51), (mass_gate(y, 0.51)))
    with pytest.raises(ValueError, match="`mass`"):
        mass_gate(y, 1.1)
    with pytest.raises(ValueError, match="two dimensions"):
        mass_gate(y[0, 0, 0], 0.5)
    with pytest.raises(RuntimeError, match="`mass` in"):
        OPS.mass_gate(y, 2.0)


@pytest.mark.parametrize("decoupled", [True, False])
def test_channel_gates(decoupled: bool) -> None:
    torch.manual_seed(0)
    conv, gate = nn.Conv2d(3, 8, 3), ChannelGate(3, 8, 0.7, decoupled)
    x = _normal(5, 3, 6, 6).requires_grad_()
    y, loss = gate(x, conv(x))
    gates = gate.gates(x)
    assert torch.equal(y, conv(x) * gates[:, :, None, None])
    assert torch.equal(loss, mass_gate_loss(gate.logits(x), conv(x), 0.7))
    loss.backward()
    assert gate.predictor.weight.grad is not None
    assert conv.weight.grad is None
    assert (x.grad is None) == decoupled
    gate.eval()
    assert float(gate(x, conv(x))[1]) == 0.0
    with pytest.raises(ValueError, match="3 channels"):
        gate(_normal(5, 4, 6, 6), conv(x))
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    gate.train()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        _, loss = gate(x.detach(), conv(x).detach())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]

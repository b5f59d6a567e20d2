"""Sparse patterns and products beyond the contract: where they come from, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regkern.reference.sparse import products as reference
from regkern.sparse import SparsePattern, sddmm, sparse_linear, spmm, spmm_t
from regkern.sparse.pattern import longest_first
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OPS = torch.ops.regkern


def _mask(rows: int, columns: int, share: float = 0.3, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(salt)
    return torch.rand(rows, columns, generator=generator) < share


def _normal(*shape: int, salt: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 + salt))


# ---- patterns ----


def test_pattern_views_agree() -> None:
    mask = _mask(9, 7)
    pattern = SparsePattern.from_mask(mask)
    weight = _normal(9, 7) * mask
    values = pattern.gather(weight)
    assert pattern.shape == (9, 7)
    assert pattern.nnz == int(mask.sum())
    assert torch.equal(pattern.mask(), mask)
    assert torch.equal(pattern.scatter(values), weight)
    other = pattern.transposed()
    assert torch.equal(other.mask(), mask.t())
    assert torch.equal(other.scatter(values[pattern.t_order.long()]), weight.t())
    again = SparsePattern.from_mask(mask.t().contiguous())
    for a, b in zip(other.tensors(), again.tensors(), strict=True):
        assert torch.equal(a, b)


def test_longest_rows_first() -> None:
    lengths = torch.zeros(70, dtype=torch.int64)
    lengths[[3, 40, 69]] = torch.tensor([5, 9, 7])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    assert longest_first(offsets).tolist() == [1, 2, 0]
    assert longest_first(offsets[:1]).tolist() == []
    assert SparsePattern(offsets[:2], torch.zeros(0).long(), 3).operands()[5:] == (None, None)


def test_pattern_from_what_torch_has() -> None:
    mask = _mask(6, 8)
    weight = _normal(6, 8) * mask
    pattern = SparsePattern.from_mask(mask)
    for matrix in (weight.to_sparse_csr(), weight.to_sparse_csc(), weight.to_sparse()):
        found, values = SparsePattern.from_torch(matrix)
        assert torch.equal(found.scatter(values), weight)
        for a, b in zip(found.tensors(), pattern.tensors(), strict=True):
            assert torch.equal(a, b)
    back = pattern.to_torch(pattern.gather(weight))
    assert torch.equal(back.to_dense(), weight)
    rows, columns = mask.nonzero(as_tuple=True)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    shuffled = SparsePattern.from_coo(rows[order], columns[order], (6, 8))
    assert torch.equal(shuffled.mask(), mask)


def test_pattern_kinds() -> None:
    index = torch.tensor([[0, 3], [1, 2], [0, 4]])
    fan = SparsePattern.constant_fan_in(index, 5)
    assert fan.mask().sum(1).tolist() == [2, 2, 2]
    assert torch.equal(fan.index.reshape(3, 2).long(), index)
    blocks = SparsePattern.blocks(torch.tensor([[True, False], [False, True]]), (16, 4))
    assert blocks.shape == (32, 8)
    assert blocks.nnz == 128
    pairs = SparsePattern.n_m(_normal(5, 12))
    assert (pairs.mask().reshape(5, 3, 4).sum(2) == 2).all()


def test_semi_structured_wants_two_of_four() -> None:
    """torch has its products on CUDA alone; what is not 2:4 is refused anywhere."""
    weight = _normal(4, 8)
    with pytest.raises(ValueError, match="CUDA"):
        SparsePattern.n_m(weight).to_semi_structured(torch.ones(16))
    with pytest.raises(ValueError, match="among 4 neighbours"):
        SparsePattern.from_mask(_mask(4, 8, 1.0)).to_semi_structured(torch.ones(32))
    with pytest.raises(ValueError, match="multiple of 4"):
        SparsePattern.from_mask(_mask(4, 6)).to_semi_structured(torch.ones(1))


def test_explicit_zeros_are_entries() -> None:
    """Weights that are 0, as after they were grown, are trained."""
    pattern = SparsePattern.from_mask(torch.ones(3, 2, dtype=torch.bool))
    values = torch.zeros(6, requires_grad=True)
    x = _normal(4, 2)
    sparse_linear(x, values, pattern).square().sum().backward()
    sparse_linear(x, values, pattern).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad.reshape(3, 2), x.sum(0).expand(3, 2))


@pytest.mark.parametrize(
    ("offsets", "index", "columns", "message"),
    [
        ([0, 2, 1, 3], [0, 1, 0], 2, "do not fall"),
        ([1, 2], [0, 1], 2, "do not fall"),
        ([0, 2], [0, 1, 1], 2, "do not fall"),
        ([0, 2], [0, 2], 2, r"\[0, 2\)"),
        ([0, 2], [-1, 0], 2, r"\[0, 2\)"),
        ([0, 2], [1, 0], 2, "rises"),
        ([0, 2], [1, 1], 2, "rises"),
        ([], [], 2, "at least one"),
    ],
)
def test_wrong_patterns(offsets: list[int], index: list[int], columns: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparsePattern(
            torch.tensor(offsets, dtype=torch.int64),
            torch.tensor(index, dtype=torch.int64),
            columns,
        )


def test_wrong_patterns_of_other_kinds() -> None:
    with pytest.raises(TypeError, match="integers"):
        SparsePattern(torch.zeros(2), torch.zeros(0, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match="bools"):
        SparsePattern.from_mask(torch.ones(3, 3))
    with pytest.raises(ValueError, match="`rows` in"):
        SparsePattern.from_coo(torch.tensor([3]), torch.tensor([0]), (3, 3))
    with pytest.raises(ValueError, match="rises"):  # the same entry twice
        SparsePattern.from_coo(torch.tensor([1, 1]), torch.tensor([0, 0]), (3, 3))
    with pytest.raises(ValueError, match="CSR"):
        SparsePattern.from_torch(torch.ones(2, 2))
    with pytest.raises(ValueError, match="shape"):
        SparsePattern.from_mask(_mask(3, 4)).gather(torch.ones(4, 3))


# ---- products ----


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 140),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_shape(
    rows: int, columns: int, batch: int, share: float, major: bool, salt: int
) -> None:
    pattern = SparsePattern.from_mask(_mask(rows, columns, share, salt))
    values = _normal(pattern.nnz, salt=salt)
    x, g = _normal(batch, columns, salt=1), _normal(batch, rows, salt=2)
    if major:
        x, g = x.t().contiguous(), g.t().contiguous()
    wide = values.double()
    for got, wanted in (
        (spmm(x, values, pattern, major), reference.sparse_linear),
        (spmm_t(g, values, pattern, major), reference.spmm_t),
    ):
        dense = x if wanted is reference.sparse_linear else g
        expected = wanted(dense.double(), wide, pattern, feature_major=major)  # type: ignore[operator]
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
    expected = reference.sddmm(g.double(), x.double(), pattern, major)
    found = sddmm(g, x, pattern, major)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    dx, dv = OPS.sparse_linear_backward(g, x, values, *pattern.operands(), major)
    assert torch.equal(dx, spmm_t(g, values, pattern, major))
    assert torch.equal(dv, found)


def test_tiles_of_many_features() -> None:
    """More than 8192 features: tiles are half as wide, and there are three."""
    pattern = SparsePattern.from_mask(_mask(6, 8200, 0.005))
    values = _normal(pattern.nnz).requires_grad_()
    x = _normal(70, 8200).requires_grad_()
    y = sparse_linear(x, values, pattern)
    expected = reference.sparse_linear(x, values, pattern)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    h = _normal(70, 6, salt=5)
    for a, b in zip(
        torch.autograd.grad(y, (x, values), h),
        torch.autograd.grad(expected, (x, values), h),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def _in_order(x: Tensor, values: Tensor, pattern: SparsePattern) -> Tensor:
    """x Wᵀ, a product rounded and added after another in the order of the entries."""
    y = torch.zeros(x.shape[0], pattern.shape[0])
    columns = x.t().contiguous()
    for e, (row, column) in enumerate(
        zip(pattern.rows().tolist(), pattern.index.tolist(), strict=True)
    ):
        y[:, row] += columns[column] * values[e]
    return y


@pytest.mark.parametrize("rows", [5, 35])
def test_panels_do_not_change_the_order(rows: int) -> None:
    """Rows with many entries of many features are gone through in panels; the sums are the same."""
    pattern = SparsePattern.from_mask(_mask(rows, 2500, 0.04))
    values, x = _normal(pattern.nnz), _normal(3, 2500)
    assert torch.equal(spmm(x, values, pattern), _in_order(x, values, pattern))
    # The same of a gradient, whose sums go over the rows of a tall pattern.
    tall = pattern.transposed()
    dx, dv = OPS.sparse_linear_backward(
        x, _normal(3, rows), values[pattern.t_order.long()], *tall.operands(), False
    )
    assert torch.equal(dx, _in_order(x, values, pattern))
    expected = reference.sddmm(x.double(), _normal(3, rows).double(), tall)
    torch.testing.assert_close(dv.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 16, 31, 32, 33, 64, 65])
def test_batches_around_a_tile(batch: int) -> None:
    """A sum over the batch has one order, however wide its tiles are."""
    pattern = SparsePattern.from_mask(_mask(9, 7))
    g, x = _normal(batch, 9), _normal(batch, 7, salt=1)
    more = torch.nn.functional.pad
    for major in (False, True):
        a, b = (g.t(), x.t()) if major else (g, x)
        found = sddmm(a, b, pattern, major)
        torch.testing.assert_close(found, pattern.gather(g.t() @ x), rtol=1e-5, atol=1e-5)
        padded = sddmm(more(g, (0, 0, 0, 64)), more(x, (0, 0, 0, 64)), pattern)
        assert torch.equal(found, padded)


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("major", [False, True])
def test_activations(activation: str, major: bool) -> None:
    pattern = SparsePattern.from_mask(_mask(18, 9))
    shapes = (9, 40) if major else (40, 9)
    x, values = _normal(*shapes).double(), 3 * _normal(pattern.nnz).double()
    bias = _normal(18, salt=2).double()
    known = {
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
        "silu": torch.nn.functional.silu,
    }[activation]
    z = sparse_linear(x, values, pattern, bias, feature_major=major)
    y = sparse_linear(x, values, pattern, bias, activation, major)
    torch.testing.assert_close(y, known(z), rtol=1e-13, atol=1e-13)
    # With a gradient to come the results are the same, and so are its bits by either op.
    inputs = [t.clone().requires_grad_() for t in (x, values, bias)]
    trained = sparse_linear(inputs[0], inputs[1], pattern, inputs[2], activation, major)
    assert torch.equal(trained, y)
    g = _normal(*y.shape, salt=4).double()
    found = torch.autograd.grad(trained, inputs, g)
    again = OPS.sparse_linear(*inputs, activation, *pattern.operands(), major)
    definition = reference.sparse_linear(
        inputs[0], inputs[1], pattern, inputs[2], activation, major
    )
    for a, b, c in zip(
        found,
        torch.autograd.grad(again, inputs, g),
        torch.autograd.grad(definition, inputs, g),
        strict=True,
    ):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-10)


def test_activations_far_out() -> None:
    """With ones on the diagonal, results are activations of what comes in."""
    pattern = SparsePattern.from_mask(torch.eye(7, dtype=torch.bool))
    x = torch.tensor([[-90.0, -20.0, -0.0, 1e-30, 90.0, float("nan"), float("inf")]])
    ones = torch.ones(7)
    for activation, known in (
        ("gelu", torch.nn.functional.gelu),
        ("gelu_tanh", lambda z: torch.nn.functional.gelu(z, approximate="tanh")),
        ("silu", torch.nn.functional.silu),
    ):
        y = sparse_linear(x, ones, pattern, None, activation)
        torch.testing.assert_close(y, known(x), rtol=1e-5, atol=1e-9, equal_nan=True)


class _Largest(TorchDispatchMode):
    """The most elements that a tensor has which an op makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.itemsize)
        return result


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_nothing_of_the_size_of_the_weight(activation: str) -> None:
    rows, columns, batch = 300, 200, 8
    pattern = SparsePattern.from_mask(_mask(rows, columns, 0.01))
    values = _normal(pattern.nnz).requires_grad_()
    bias, x = torch.zeros(rows, requires_grad=True), _normal(batch, columns).requires_grad_()
    optimizer = torch.optim.AdamW([values, bias])
    with _Largest() as seen:
        sparse_linear(x, values, pattern, bias, activation).square().mean().backward()
        optimizer.step()
    assert 0 < seen.elements <= max(pattern.nnz, batch * rows, batch * columns)


def test_empty_pattern_gives_the_bias() -> None:
    pattern = SparsePattern.from_mask(torch.zeros(3, 5, dtype=torch.bool))
    bias = torch.tensor([1.0, -2.0, 3.0])
    y = sparse_linear(_normal(4, 5), torch.zeros(0), pattern, bias, activation="relu")
    assert torch.equal(y, torch.tensor([1.0, 0.0, 3.0]).expand(4, 3))


def test_expanded_and_strided_gradients() -> None:
    """`sum().backward()` gives a gradient of strides 0."""
    pattern = SparsePattern.from_mask(_mask(8, 6))
    values = _normal(pattern.nnz).requires_grad_()
    x = _normal(6, 10).t().requires_grad_()
    sparse_linear(x, values, pattern).sum().backward()
    ones = torch.ones(10, 8)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, reference.sddmm(ones, x.detach(), pattern))


def test_only_what_is_needed() -> None:
    pattern = SparsePattern.from_mask(_mask(8, 6))
    values, x = _normal(pattern.nnz), _normal(5, 6)
    y = sparse_linear(x, values.clone().requires_grad_(), pattern)
    assert y.requires_grad
    with torch.profiler.profile() as profile:
        y.sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert "regkern::sddmm" in names
    assert "regkern::sparse_linear_backward" not in names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_with_values_in_float32(dtype: torch.dtype) -> None:
    pattern = SparsePattern.from_mask(_mask(40, 30))
    values = _normal(pattern.nnz).requires_grad_()
    x = _normal(33, 30).to(dtype)
    y = sparse_linear(x, values, pattern)
    assert y.dtype == dtype
    expected = reference.sparse_linear(x.double(), values.double(), pattern)
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-2)
    (gradient,) = torch.autograd.grad(y.sum(), values)
    assert gradient.dtype == torch.float32
    ones = torch.ones(33, 40, dtype=torch.float64)
    torch.testing.assert_close(gradient.double(), reference.sddmm(ones, x.double(), pattern))


def test_wrong_arguments() -> None:
    pattern = SparsePattern.from_mask(_mask(8, 6))
    values, x = _normal(pattern.nnz), _normal(5, 6)
    with pytest.raises(ValueError, match="6 features"):
        sparse_linear(_normal(5, 7), values, pattern)
    with pytest.raises(ValueError, match="`values` of shape"):
        sparse_linear(x, values[:-1], pattern)
    with pytest.raises(TypeError, match="`values` of dtype"):
        sparse_linear(x, values.double(), pattern)
    with pytest.raises(ValueError, match="`bias` of shape"):
        sparse_linear(x, values, pattern, torch.zeros(6))
    with pytest.raises(ValueError, match="`activation`"):
        sparse_linear(x, values, pattern, activation="leaky")
    with pytest.raises(TypeError, match="SparsePattern"):
        sparse_linear(x, values, torch.ones(8, 6))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on meta"):
        sparse_linear(x.to("meta"), values, pattern)
    with pytest.raises(ValueError, match="batch and dtype"):
        sddmm(_normal(4, 8), x, pattern)


def test_raw_ops_do_not_read_out_of_bounds() -> None:
    pattern = SparsePattern.from_mask(_mask(8, 6))
    values, x = _normal(pattern.nnz), _normal(5, 6)
    good = list(pattern.operands())
    for place, wrong in (
        (0, good[0] + 1),
        (1, good[1] + 6),
        (1, -good[1] - 1),
        (2, good[2].flip(0)),
        (3, good[3] + 100),
        (4, good[4] + 1),
    ):
        tensors = [*good[:place], wrong, *good[place + 1 :]]
        # An op looks at the places that it follows, and at all offsets.
        if place > 2:
            with pytest.raises(RuntimeError, match="sparse_linear_t: expected"):
                OPS.sparse_linear_t(_normal(5, 8), values, *tensors, False)
            continue
        with pytest.raises(RuntimeError, match="sparse_linear: expected"):
            OPS.sparse_linear(x, values, None, "none", *tensors, False)
    with pytest.raises(RuntimeError, match="6 features"):
        OPS.sparse_linear(_normal(5, 5), values, None, "none", *good, False)
    with pytest.raises(RuntimeError, match="t_index"):
        OPS.sddmm(_normal(5, 8), x, *good[:3], good[3][:-1], *good[4:], False)
    for blocks in (torch.tensor([1], dtype=torch.int32), torch.tensor([0])):
        with pytest.raises(RuntimeError, match="row_blocks"):
            OPS.sddmm(_normal(5, 8), x, *good[:5], None, blocks, False)

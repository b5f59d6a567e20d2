"""The contract of ops that write lists of tensors, over every list sample of the registry.

The same bits for threads, instruction sets and on the GPU are shown in test_contract, by `record`.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from recording import Call, Recorder, equal
from sample import ListSample
from samples import LISTS
from test_contract import TOLERANCE
from torch import Tensor

every = pytest.mark.parametrize("sample", LISTS, ids=lambda s: s.id)


def changed(sample: ListSample, lists: list[list[Tensor]]) -> list[Tensor]:
    """What the first list is after the call, which leaves the others as they are."""
    xs, *others = (list(tensors) for tensors in lists)
    before = copy.deepcopy(others)
    sample.change(xs, *others)
    assert equal(others, before)
    return xs


def record() -> list[Call]:
    with Recorder() as recorder:
        for sample in LISTS:
            for dtype in sample.dtypes:
                changed(sample, sample.tensors(dtype))
    return recorder.calls


@every
def test_list_matches_definition(sample: ListSample) -> None:
    for dtype in sample.dtypes:
        lists = sample.tensors(dtype)
        expected = sample.definition(*([x.double() for x in xs] for xs in lists))
        assert any(not torch.equal(x.double(), y) for x, y in zip(lists[0], expected, strict=True))
        for x, y in zip(changed(sample, lists), expected, strict=True):
            assert x.dtype == dtype
            torch.testing.assert_close(x.double(), y.double(), **TOLERANCE[dtype])


@every
def test_list_is_each_tensor(sample: ListSample) -> None:
    """In one call what many calls give, of several dtypes where a call takes them."""
    if not sample.separate:
        return
    for dtypes in (sample.dtypes[:1], sample.dtypes) if sample.mixed else (sample.dtypes[:1],):
        lists = [
            [x.to(dtypes[i % len(dtypes)]) for i, x in enumerate(xs)] for xs in sample.tensors()
        ]
        alone = [
            changed(sample, [[xs[i].clone()] for xs in lists])[0] for i in range(len(sample.shapes))
        ]
        assert equal(changed(sample, lists), alone)


@every
def test_list_layouts(sample: ListSample) -> None:
    expected = changed(sample, sample.tensors())
    for layout in (_strided, _offset, _transposed):
        lists = [[layout(x) for x in xs] for xs in sample.tensors()]
        for x, y in zip(changed(sample, lists), expected, strict=True):
            assert torch.equal(x, y)


def _strided(t: Tensor) -> Tensor:
    return t.new_empty((*t.shape, 2)).select(-1, 1).copy_(t)


def _offset(t: Tensor) -> Tensor:
    return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t)


def _transposed(t: Tensor) -> Tensor:
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


@every
def test_list_nan_and_infinity(sample: ListSample) -> None:
    for dtype in sample.dtypes:
        lists = sample.tensors(dtype)
        for x in lists[0]:
            flat = x.view(-1)
            flat[2::170], flat[3::290], flat[4::310] = torch.nan, torch.inf, -torch.inf
        expected = sample.definition(*([x.double() for x in xs] for xs in lists))
        for x, y in zip(changed(sample, lists), expected, strict=True):
            assert torch.equal(x.isnan(), y.isnan())
            assert torch.equal(x.isinf(), y.isinf())


@every
def test_list_of_parameters(sample: ListSample) -> None:
    """Leaves that require gradients are written, autograd hears of it, and nothing is recorded."""
    lists = sample.tensors()
    expected = changed(sample, copy.deepcopy(lists))
    params = [torch.nn.Parameter(x) for x in lists[0]]
    versions = [p._version for p in params]
    changed(sample, [params, *lists[1:]])  # type: ignore[list-item]
    assert equal([p.detach() for p in params], expected)
    assert all(p._version > v for p, v in zip(params, versions, strict=True) if p.numel() > 0)
    assert all(p.requires_grad and p.grad_fn is None for p in params)


@every
def test_list_compiles(sample: ListSample) -> None:
    if not sample.compiles:
        return
    torch._dynamo.reset()
    lists = sample.tensors()
    expected = changed(sample, copy.deepcopy(lists))

    def call(*lists: Any) -> None:
        sample.change(*lists)

    torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")(*lists)
    assert equal(lists[0], expected)

"""The search for the largest gradients at places without an entry: thresholds, guesses, lists."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from regkern.reference.sparse import updates as reference
from regkern.sparse import growing
from regkern.sparse.growing import grow_candidates
from regkern.sparse.pattern import SparsePattern
from torch import Tensor

OPS = torch.ops.regkern
PATTERN = SparsePattern.from_mask(torch.tensor([[0, 0, 0], [0, 1, 0], [1, 0, 0]]).bool())


def _list(room: int, found: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    return (
        torch.full((room,), -7, dtype=torch.int64),
        torch.full((room,), -7.0, dtype=dtype),
        torch.tensor([found]),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_list_goes_on_in_order(dtype: torch.dtype) -> None:
    """Behind what there is, without entries, NaN above everything, equal ones not."""
    scores = torch.tensor([[-2.0, 9.0, 1.0], [5.0, torch.nan, -torch.inf]], dtype=dtype)
    places, magnitudes, found = into = _list(6, 2, dtype)
    p = PATTERN
    threshold = torch.tensor([1.0], dtype=dtype)
    OPS.sparse_grow_scan_(*into, scores, p.offsets, p.index, 1, threshold)
    assert places.tolist() == [-7, -7, 3, 7, 8, -7]
    assert magnitudes[2] == 2.0
    assert magnitudes[3].isnan()
    assert magnitudes[4] == torch.inf
    assert found.item() == 5
    everything = torch.tensor([-1.0], dtype=dtype)
    OPS.sparse_grow_scan_(*into, scores[:1], p.offsets, p.index, 0, everything)
    # One had room, three were found.
    assert places[-1] == 0
    assert magnitudes[-1] == 2.0
    assert found.item() == 8
    OPS.sparse_grow_scan_(*into, scores[:0], p.offsets, p.index, 3, everything)
    assert found.item() == 8


def test_long_rows() -> None:
    """Words that are full, empty and cut off."""
    scores = torch.zeros(3, 200)
    scores[0, :130], scores[1, 199], scores[2, 63:66] = 1.0, 2.0, 3.0
    p = SparsePattern.from_mask(torch.zeros(3, 200, dtype=torch.bool))
    places, magnitudes, found = into = _list(600)
    OPS.sparse_grow_scan_(*into, scores, p.offsets, p.index, 0, torch.tensor([0.0]))
    expected = scores.view(-1).nonzero().view(-1)
    assert found.item() == expected.numel()
    assert torch.equal(places[: expected.numel()], expected)
    assert torch.equal(magnitudes[: expected.numel()], scores.view(-1)[expected])
    assert (places[expected.numel() :] == -7).all()


def test_wrong_lists() -> None:
    p, scores, threshold = PATTERN, torch.ones(2, 3), torch.tensor([0.0])

    def refused(message: str, **other: Any) -> None:
        names = ("places", "magnitudes", "found", "scores", "offsets", "index", "first")
        given = dict(zip(names, (*_list(6), scores, p.offsets, p.index, 0), strict=True))
        with pytest.raises(RuntimeError, match=f"regkern::sparse_grow_scan_: expected {message}"):
            OPS.sparse_grow_scan_(**{**given, "threshold": threshold, **other})

    refused("`scores` of dtype float32 or float64", scores=scores.half())
    refused("`scores` of two dimensions", scores=scores[0])
    refused("`magnitudes` of dtype float32", magnitudes=torch.ones(6).double())
    refused("`magnitudes` as long as `places`", magnitudes=torch.ones(5))
    refused("`places` of dtype int64", places=torch.ones(6).int())
    refused("a contiguous `places`", places=torch.ones(12).long()[::2])
    refused("`found` of one element", found=torch.zeros(2).long())
    refused("`found` of at least 0", found=torch.tensor([-1]))
    refused("`threshold` of one element", threshold=torch.ones(2))
    refused("`first` and the rows", first=2)
    refused("`first` and the rows", first=-1)
    refused(r"`index` in \[0, 3\)", index=p.index + 5)
    refused(r"`index` in \[0, 3\)", index=p.index - 2, first=1)
    refused("`offsets` that do not fall", offsets=p.offsets.flip(0).contiguous())
    refused("`offsets` that do not fall, up to 2", offsets=p.offsets * 5, first=1)


def _layer(spread: float, salt: int = 0) -> tuple[Tensor, Tensor, SparsePattern]:
    """g and x whose features are of very different sizes."""
    generator = torch.Generator().manual_seed(salt)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    g = normal(16, 300) * (spread * normal(300)).exp()
    x = normal(16, 70) * (spread * normal(70)).exp()
    mask = torch.rand(300, 70, generator=generator) < 0.2
    return g, x, SparsePattern.from_mask(mask)


def _expected(g: Tensor, x: Tensor, pattern: SparsePattern, k: int) -> Tensor:
    mask = pattern.mask()
    grown = reference.grow(reference.linear_scores(g, x), mask, k)
    return (grown & ~mask).view(-1).nonzero().view(-1)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_guess_is_a_threshold(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    """One that spares most of the list, and a result that does not depend on it."""
    monkeypatch.setattr(growing, "_PANEL", 20 * 70)
    monkeypatch.setattr(growing, "_STEP", 8)
    monkeypatch.setattr(growing, "_LEAST", 100)
    g, x, pattern = _layer(spread)
    k = 1500
    guessed = growing._guess([(g, x)], pattern, k)
    assert guessed is not None
    free = (g.t() @ x).abs()[~pattern.mask()]
    assert k <= int((free > guessed).sum()) < 2 * k
    found = grow_candidates(g, x, pattern, k)
    assert torch.equal(found.places, _expected(g, x, pattern, k))
    monkeypatch.setattr(growing, "_LEAST", 10**9)
    assert growing._guess([(g, x)], pattern, k) is None
    plain = grow_candidates(g, x, pattern, k)
    assert torch.equal(found.places, plain.places)
    assert torch.equal(found.scores, plain.scores)


@pytest.mark.parametrize("guess", [1e9, torch.inf, 0.5])
def test_guess_that_is_wrong(monkeypatch: pytest.MonkeyPatch, guess: float) -> None:
    """Too high: all is done again. Too low: the threshold rises."""
    g, x, pattern = _layer(0.5)
    monkeypatch.setattr(growing, "_PANEL", 20 * 70)
    monkeypatch.setattr(growing, "_guess", lambda *args: torch.full((1,), guess))
    found = grow_candidates(g, x, pattern, 400)
    assert torch.equal(found.places, _expected(g, x, pattern, 400))


def test_guess_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where less than k differ from zero, no threshold is a good one."""
    monkeypatch.setattr(growing, "_STEP", 8)
    monkeypatch.setattr(growing, "_LEAST", 10)
    g, x, pattern = _layer(0.0)
    g[:, 20:], x[:, 50:] = 0.0, 0.0
    found = grow_candidates(g, x, pattern, 5000)
    assert torch.equal(found.places, _expected(g, x, pattern, 5000))
    g[0, 7] = torch.nan
    found = grow_candidates(g, x, pattern, 30)
    assert torch.equal(found.places, _expected(g, x, pattern, 30))

"""Masks in shapes, spectrogram bands, mosaic, patch mix: their laws, areas, modules and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from regkern.masks.collage import mosaic, patch_mix
from regkern.masks.erasing import random_erasing
from regkern.masks.shapes import (
    box_mask,
    grid_mask,
    hide_and_seek,
    polygon_boxes,
    spec_augment,
)
from regkern.nn.masks.shapes import GridMask, HideAndSeek, Mosaic, PatchMix, SpecAugment
from regkern.reference import shapes as reference
from sample import seed
from torch import Tensor

ONES = torch.ones(200, 1, 48, 48)


# ---- GridMask ----


@pytest.mark.parametrize("rotate", [0.0, 45.0, 360.0])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_grid_share(ratio: float, rotate: float) -> None:
    """1 − (1 − r)², of a period that r divides."""
    y = grid_mask(ONES, (10, 10), ratio, rotate=rotate, seed=seed())
    assert float(y.mean()) == pytest.approx(1 - (1 - ratio) ** 2, abs=0.02)
    inverse = grid_mask(ONES, (10, 10), ratio, rotate=rotate, invert=True, seed=seed())
    assert torch.equal(inverse, 1 - y)


def test_grid_has_squares_of_its_period() -> None:
    y = grid_mask(torch.ones(1, 1, 24, 24), (6, 6), 0.5, seed=seed())[0, 0]
    assert torch.equal(y[6:], y[:-6])
    assert torch.equal(y[:, 6:], y[:, :-6])
    assert int((y[:6, :6] == 0).sum()) == 9


def test_grids_differ_and_may_be_missing() -> None:
    y = grid_mask(ONES, (4, 9), p=0.7, seed=seed())
    whole = (y == 1).flatten(1).all(1)
    assert abs(int(whole.sum()) - 60) < 5 * math.sqrt(200 * 0.21)
    assert len(y.flatten(1).unique(dim=0)) > 100
    # The same samples go without where it is the squares that stay.
    inverse = grid_mask(ONES, (4, 9), p=0.7, invert=True, seed=seed())
    assert torch.equal((inverse == 1).flatten(1).all(1), whole)


# ---- Hide-and-Seek and patch mix ----


def test_cells_are_independent() -> None:
    y = hide_and_seek(ONES, (4, 6), 0.3, seed=seed())
    cells = y[:, 0, ::4, ::6]
    assert torch.equal(y[:, 0], cells.repeat_interleave(4, 1).repeat_interleave(6, 2))
    n = cells.numel()
    assert abs(float((cells == 0).sum()) - 0.3 * n) < 5 * math.sqrt(n * 0.21)
    centred = cells - 0.7
    for other in (centred.roll(1, 0), centred.roll(1, 1), centred.roll(1, 2)):
        assert abs(float((centred * other).mean())) < 5 * 0.21 / math.sqrt(n)
    assert torch.equal(hide_and_seek(ONES, 5, 0.0), ONES)
    assert not hide_and_seek(ONES, 5, 1.0).any()


def test_patch_mix_and_its_share() -> None:
    x = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, 8, 8)
    y, partner, lam = patch_mix(x, 2, 0.4, pairing="derange", seed=seed())
    own = y == x
    assert torch.equal(y, torch.where(own, x, x[partner]))
    torch.testing.assert_close(own.float().mean((1, 2, 3)), lam)


def test_patch_mix_gradient_of_partners_that_repeat() -> None:
    x = torch.randn(4, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    partner = torch.tensor([2, 2, 0, 2])
    y = patch_mix(x, 2, 0.5, partner=partner, seed=seed()).x
    z, _, _ = reference.patch_mix(x, 2, 0.5, partner=partner, seed=seed())
    assert torch.equal(y, z)
    g = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, g), torch.autograd.grad(z, x, g))


# ---- boxes ----


def test_boxes_are_those_of_erasing() -> None:
    x = torch.randn(3, 2, 9, 11)
    boxes = torch.tensor([[1, 4, 2, 9], [0, 9, 0, 1], [5, 5, 0, 11]], dtype=torch.int32)
    y = box_mask(x, boxes, (1.0, 2.0))
    assert torch.equal(y, random_erasing(x, box=boxes, value=(1.0, 2.0)))
    z = box_mask(x, boxes, 0.0, invert=True)
    assert torch.equal(z + box_mask(x, boxes), x)
    assert torch.equal(box_mask(x.clone(), boxes, inplace=True), box_mask(x, boxes))
    assert torch.equal(box_mask((x > 0).to(torch.uint8), boxes)[2], (x[2] > 0).to(torch.uint8))


def test_boxes_of_polygons() -> None:
    polygons = torch.tensor([[[2.5, 1.0], [6.0, 3.2], [4.0, 0.5]], [[1.0, 1.0]] * 3])
    assert polygon_boxes(polygons).tolist() == [[0, 4, 2, 6], [1, 1, 1, 1]]
    lengths = torch.tensor([2, 0])
    assert polygon_boxes(polygons, lengths).tolist() == [[1, 4, 2, 6], [0, 0, 0, 0]]
    assert polygon_boxes(torch.full((1, 2, 2), math.nan)).tolist() == [[0, 0, 0, 0]]


# ---- spectrograms ----


def test_bands() -> None:
    """Widths are uniform, and within what is there."""
    x = torch.ones(2000, 20, 30)
    y = spec_augment(x, 1, 5, 0, 0, seed=seed())
    rows = (y == 0).all(2).sum(1)
    assert torch.equal((y == 0).any(2).sum(1), rows)
    counts = torch.bincount(rows, minlength=6)
    assert len(counts) == 6
    assert float(((counts - 2000 / 6).square() / (2000 / 6)).sum()) < 30
    lengths = torch.arange(2000) % 31
    y = spec_augment(x, 1, 20, 2, 25, lengths=lengths, max_fraction=0.4, seed=seed())
    place = torch.arange(30)
    beyond = (place >= lengths[:, None])[:, None].expand_as(y)
    assert bool((y[beyond] == 1).all())
    y = spec_augment(x, 0, 0, 1, 25, lengths=lengths, max_fraction=0.4, seed=seed())
    assert bool(((y == 0).all(1).sum(1) <= 0.4 * lengths).all())


def test_mean_of_a_spectrogram() -> None:
    x = torch.randn(3, 2, 10, 12) + 4
    y = spec_augment(x, 2, 5, 2, 5, value="mean", seed=seed())
    changed = y != x
    assert bool(changed.any())
    torch.testing.assert_close(y[changed], x.mean().expand_as(y[changed]))
    z = x.clone()
    assert spec_augment(z, 2, 5, 2, 5, value=0.5, inplace=True, seed=seed()) is z
    assert torch.equal(z[changed], torch.full_like(z[changed], 0.5))


# ---- mosaic ----


@pytest.mark.parametrize("place", ["same", "corner"])
def test_mosaic(place: str) -> None:
    x = torch.randn(5, 2, 9, 7, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"place": place, "centre_range": (0.0, 1.0), "seed": seed()}
    y, partner, weight, centre = mosaic(x, **options)
    z, partners, weights = reference.mosaic(x, **options)
    assert torch.equal(y, z)
    assert torch.equal(partner, partners)
    torch.testing.assert_close(weight, weights)
    g = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, g), torch.autograd.grad(z, x, g))
    torch.testing.assert_close(weight.sum(1), torch.ones(5))
    again = mosaic(x, place=place, partner=partner, centre=centre)  # type: ignore[arg-type]
    assert torch.equal(again.x, y)


def test_mosaic_corner_meets_the_centre() -> None:
    x = torch.zeros(4, 1, 6, 8)
    x[:, :, -1, -1], x[:, :, 0, 0] = 1.0, 2.0
    centre = torch.tensor([[2, 3]] * 4, dtype=torch.int32)
    y = mosaic(x, centre=centre).x[0, 0]
    assert y[1, 2] == 1.0
    assert y[2, 3] == 2.0


# ---- modules ----


def test_modules() -> None:
    x = torch.randn(4, 3, 12, 12)
    for layer in (GridMask((3, 6)), HideAndSeek(4, value=0.5), SpecAugment(1, 4, 1, 4)):
        y = layer(x)
        assert y.shape == x.shape
        assert bool((y != x).any())
        assert layer.eval()(x) is x
    assert SpecAugment(1, 4, 1, 4)(x[:, 0], torch.tensor([12, 5, 7, 0])).shape == (4, 12, 12)
    for mixer in (Mosaic(), PatchMix(4)):
        assert mixer(x).x.shape == x.shape
        assert mixer.eval()(x).x is x
    assert str(GridMask((3, 6), rotate=30.0)) == "GridMask(d_range=(3, 6), ratio=0.5, rotate=30.0)"


# ---- errors ----

X = torch.ones(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: grid_mask(X[0], (2, 3)), ValueError, "expected `x` of shape"),
        (lambda: grid_mask(X, (1, 3)), ValueError, "expected `d_range` with 2 <= low"),
        (lambda: grid_mask(X, (2, 3), 1.5), ValueError, r"expected `ratio` in \[0, 1\]"),
        (lambda: grid_mask(X, (2, 3), value=(1.0, 2.0)), ValueError, "to be 1 or 3 numbers"),
        (lambda: hide_and_seek(X, 0), ValueError, "expected `cell` of at least one pixel"),
        (lambda: box_mask(X, torch.ones(3, 4).int()), ValueError, "expected `boxes` of shape"),
        (lambda: box_mask(X, torch.ones(2, 4)), TypeError, "of an integer dtype"),
        (lambda: polygon_boxes(X), ValueError, "expected `polygons` of shape"),
        (lambda: spec_augment(X[0, 0]), ValueError, "expected `x` of shape"),
        (lambda: spec_augment(X, -1), ValueError, "expected `freq_masks` to be at least 0"),
        (lambda: spec_augment(X, lengths=torch.ones(3).long()), ValueError, "expected `lengths`"),
        (lambda: spec_augment(X, value="median"), ValueError, "expected `value` to be one of"),
        (lambda: mosaic(X, centre_range=(0.5, 0.2)), ValueError, "expected `centre_range`"),
        (lambda: mosaic(X, partner=torch.full((2, 4), 7)), RuntimeError, r"in \[0, 2\), got 7"),
        (lambda: patch_mix(X, 2, partner=torch.ones(3).long()), ValueError, "expected `partner`"),
    ],
)
def test_errors(call: Callable[[], Tensor], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()

"""The prox of distances between rows."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from regkern.proximal.pairwise import PairRounds, prox_pair_difference, prox_pair_difference_
from regkern.reference.proximal import pairwise as reference
from torch import Tensor


def _rows(*shape: int, salt: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(salt)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("t", [0.1, 0.9, 5.0])
def test_minimises_the_objective(t: float) -> None:
    x, y = _rows(4), _rows(4, salt=1)
    a, b = prox_pair_difference(x, y, t)

    def objective(u: Tensor, v: Tensor) -> float:
        near = ((u - x).square().sum() + (v - y).square().sum()) / 2
        return float(near + t * (u - v).norm())

    least = objective(a, b)
    for salt in range(300):
        du, dv = _rows(4, salt=2 + salt), _rows(4, salt=999 + salt)
        for size in (1e-4, 1e-2, 1.0):
            assert objective(a + size * du, b + size * dv) > least
            assert objective(a + size * du, b + size * du) >= least


def test_rows_that_meet_are_equal() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x, y = _rows(50, 33).to(dtype), _rows(50, 33, salt=1).to(dtype)
        a, b = prox_pair_difference(x, y, math.inf)
        assert torch.equal(a, b)
        torch.testing.assert_close(a, ((x.double() + y.double()) / 2).to(dtype))
        assert torch.equal(torch.stack(prox_pair_difference(x, y, 0.0)), torch.stack((x, y)))


def test_corners() -> None:
    same = _rows(3, 5).requires_grad_()
    a, b = prox_pair_difference(same, same.detach().clone(), 0.3)
    assert torch.equal(a, same)
    (g,) = torch.autograd.grad((a * 2 + b).sum(), same)
    assert torch.equal(g, torch.full_like(g, 1.5))
    x, y = _rows(3, 5), _rows(3, 5, salt=1)
    x[1, 2] = math.nan
    a, b = prox_pair_difference(x, y, 0.3)
    assert a[1].isnan().all()
    assert b[1].isnan().all()
    assert not a[[0, 2]].isnan().any()
    for scale in (1e30, 1e-30):
        large = [v * scale for v in (_rows(4, 9).float(), _rows(4, 9, salt=1).float())]
        expected = reference.prox_pair_difference(large[0].double(), large[1].double(), scale)
        for actual, wanted in zip(prox_pair_difference(*large, scale), expected, strict=True):
            torch.testing.assert_close(actual.double() / scale, wanted / scale)
    for shape in ((0, 4), (3, 0), (0,)):
        assert prox_pair_difference(torch.zeros(shape), torch.zeros(shape), 1.0)[0].shape == shape


@pytest.mark.parametrize("n", [1, 3, 16, 128, 200, 256, 1024, 1100, 70_000])
def test_rows_of_every_length(n: int) -> None:
    x, y = _rows(3, n), _rows(3, n, salt=1)
    t = 0.2 * math.sqrt(n)
    for actual, wanted in zip(
        prox_pair_difference(x.float(), y.float(), t),
        reference.prox_pair_difference(x.float().double(), y.float().double(), t),
        strict=True,
    ):
        torch.testing.assert_close(actual.double(), wanted, rtol=2e-6, atol=2e-6)


def test_rounds_hold_every_pair_once() -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 0, -1, 1, 0])
    rounds = PairRounds.within(labels)
    expected = {
        (i, j)
        for i, j in itertools.combinations(range(10), 2)
        if labels[i] == labels[j] and labels[i] >= 0
    }
    found = [tuple(pair) for pair in rounds.pairs.tolist()]
    assert len(found) == len(expected)
    assert set(found) == expected
    assert len(rounds.ends) == 5
    assert len(PairRounds.within(torch.tensor([0, 1, 2]))) == 0


def test_a_sweep_is_its_pairs_in_turn() -> None:
    q = _rows(7, 20)
    rounds = PairRounds.within(torch.tensor([0, 0, 1, 0, 1, 1, 0]))
    for thresholds in (torch.full((len(rounds),), 0.4).double(), torch.rand(len(rounds)).double()):
        expected = q.clone()
        for (i, j), t in zip(rounds.pairs.tolist(), thresholds, strict=True):
            expected[i], expected[j] = prox_pair_difference(expected[i], expected[j], t)
        actual = prox_pair_difference_(q.clone(), rounds, thresholds)
        assert torch.equal(actual, expected)
        strided = q.t().contiguous().t()
        assert torch.equal(prox_pair_difference_(strided.clone(), rounds, thresholds), expected)
    version = q._version
    prox_pair_difference_(q, rounds, 100.0)
    assert q._version > version


def test_sweeps_join_classes() -> None:
    """Incremental proximal steps on ½ |q - x|² + Σ |q_i - q_j|: rows of a class come together."""
    labels = torch.tensor([0] * 4 + [1] * 3)
    x = _rows(7, 3) + 5.0 * labels[:, None]
    rounds, q = PairRounds.within(labels), x.clone()
    for k in range(2000):
        step = 1.0 / (k + 1)
        q = (q + step * x) / (1 + step)
        prox_pair_difference_(q, rounds, step * 5.0)
    for label in (0, 1):
        mine = q[labels == label]
        centre = x[labels == label].mean(0)
        torch.testing.assert_close(mine, centre.expand_as(mine), rtol=0, atol=2e-2)


def test_errors() -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="`y` like `x`"):
        prox_pair_difference(x, torch.zeros(4, 4), 1.0)
    with pytest.raises(ValueError, match="`threshold` of one element or of shape"):
        prox_pair_difference(x, x, torch.ones(4))
    with pytest.raises(ValueError, match="at least 0"):
        prox_pair_difference(x, x, -1.0)
    with pytest.raises(ValueError, match="no row occurs twice"):
        PairRounds(torch.tensor([[0, 1], [1, 2]]), [2])
    with pytest.raises(ValueError, match="rows from 0 on"):
        PairRounds(torch.tensor([[0, -1]]), [1])
    with pytest.raises(ValueError, match="at least 5 rows"):
        prox_pair_difference_(x, PairRounds(torch.tensor([[0, 4]]), [1]), 1.0)
    with pytest.raises(RuntimeError, match="`rounds` that do not fall"):
        torch.ops.regkern.pair_prox_(x, torch.tensor([[0, 1]]), [2], torch.ones(()))
    with pytest.raises(RuntimeError, match="`threshold` of 1 or 3 elements"):
        torch.ops.regkern.pair_prox(x, x, torch.ones(2))

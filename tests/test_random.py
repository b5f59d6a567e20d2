"""Philox, seeds and the draws made from them."""

from __future__ import annotations

import math

import pytest
import regkern
import torch
from regkern import _native
from regkern.reference import random as draws

# Random123's published known answers for Philox4x32-10: counter, key, output.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_the_definition(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    words = draws.philox4x32([torch.tensor(c) for c in counter], (key[0], key[1]))
    assert [int(w) for w in words] == expected


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_of_the_kernels_generator(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    assert _native.philox4x32(counter, key) == expected


@pytest.mark.parametrize("seed", [(0, 0), (-1, -1), (5, 2**40 + 3)])
def test_kernels_number_their_draws_as_the_definition_does(seed: tuple[int, int]) -> None:
    """Through an op: a random permutation sorts by two words of every sample's counter."""
    tensor, batch = torch.tensor(seed), 257
    partner = torch.ops.regkern.mix_params(tensor, batch, 4, 4, pairing="perm", mixup_alpha=1.0)[0]
    words = draws.words(tensor, "pairing", torch.arange(batch)).tolist()
    keys = [w[0] | w[1] << 32 for w in words]
    assert partner.tolist() == sorted(range(batch), key=keys.__getitem__)


def test_normals_are_normal() -> None:
    x = torch.zeros(4, 4, 256, 256)
    box = torch.tensor([[0, 256, 0, 256]] * 4, dtype=torch.int32)
    n = (
        regkern.random_erasing(x, value="pixel", box=box, seed=regkern.make_seed())
        .flatten()
        .double()
    )
    count = n.numel()
    assert abs(n.mean()) < 5 / math.sqrt(count)
    assert abs(n.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((n**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert abs((n[:-1] * n[1:]).mean()) < 5 / math.sqrt(count)
    # Kolmogorov–Smirnov against the normal distribution function; 1.95 is its 0.1 % point.
    ordered = n.sort().values
    cdf = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    steps = torch.arange(1, count + 1).double() / count
    assert (cdf - steps).abs().max() * math.sqrt(count) < 1.95


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.7, 1.0, 1.5, 8.0])
def test_mixup_draws_from_the_beta_distribution(alpha: float) -> None:
    batch = 40000
    seed = torch.tensor([11, 12])
    lam = torch.ops.regkern.mix_params(seed, batch, 4, 4, mixup_alpha=alpha)[3].double()
    assert bool(((lam >= 0) & (lam <= 1)).all())
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(lam.mean() - 0.5) < 5 * math.sqrt(variance / batch)
    assert abs(lam.var() - variance) < 6 * variance / math.sqrt(batch) * 2


def test_seeds_follow_torch_generators() -> None:
    torch.manual_seed(5)
    a = regkern.make_seed()
    torch.manual_seed(5)
    assert torch.equal(regkern.make_seed(), a)
    assert not torch.equal(regkern.make_seed(), a)
    g, h = torch.Generator().manual_seed(9), torch.Generator().manual_seed(9)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(
        regkern.drop_block(x, 0.3, 3, generator=g), regkern.drop_block(x, 0.3, 3, generator=h)
    )
    assert not torch.equal(
        regkern.drop_block(x, 0.3, 3, generator=g), regkern.drop_block(x, 0.3, 3, generator=g)
    )


@pytest.mark.parametrize("word", [0, 1])
def test_key_and_offset_both_matter(word: int) -> None:
    x = torch.ones(4, 4, 32, 32)
    seed = torch.tensor([3, 4])
    other = seed.clone()
    for bit in (0, 31, 32, 62):
        other[word] = seed[word] ^ (1 << bit)
        assert not torch.equal(
            regkern.drop_block(x, 0.2, 3, seed=seed), regkern.drop_block(x, 0.2, 3, seed=other)
        )


def test_seed_errors() -> None:
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(
        ValueError, match=r"drop_block: expected `seed` to be an int64 tensor \(2,\)"
    ):
        regkern.drop_block(x, seed=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="`seed` or `generator`, got both"):
        regkern.drop_block(x, seed=regkern.make_seed(), generator=torch.Generator())
    with pytest.raises(ValueError, match="expected `seed` on cpu, got meta"):
        regkern.drop_block(x, seed=torch.empty(2, dtype=torch.int64, device="meta"))

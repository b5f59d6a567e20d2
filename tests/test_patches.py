"""Masks over patches: their law, their counts, tokens gathered and restored, the ranking loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import regkern
import regkern.swap.patches
import torch
from recording import Call, Recorder
from regkern.masks.patches import MaskedPatches, patch_gather, patch_mask, patch_restore
from regkern.masks.ranking import pairwise_ranking_loss
from regkern.masks.subsets import (
    correlated_feature_mask,
    mask_fields,
    patch_partition,
    subset_masks,
)
from regkern.nn.masks.patches import PatchDropout, PatchMask
from regkern.nn.masks.schedule import HardnessSchedule
from regkern.reference import patches as reference
from rivals_shim import rival
from sample import seed
from torch import Tensor, nn

DRAWS = 20_000
SCORES = torch.rand(5, 37, generator=torch.Generator().manual_seed(2))
# Ties in every digit of a key, an infinity of each sign, NaN and both zeros.
TIES = torch.tensor([[0.0, -0.0, 1.0, 1.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 1e-40]])


def record() -> list[Call]:
    """Rows longer than a block of threads, and the corners of counts and scores."""
    with Recorder() as recorder:
        for n, keep in ((1000, 300), (300, 0), (300, 300), (1, 1)):
            m = patch_mask(2, n, keep=keep, seed=seed())
            patch_restore(patch_gather(torch.ones(2, n, 2), m.ids_keep), m.ids_restore)
        patch_mask(2, 0, seed=seed())
        patch_mask(3, 300, kind="hard", scores=torch.zeros(3, 300), alpha=0.7, seed=seed())
        patch_mask(1, 10, 0.6, kind="hard", scores=TIES, alpha=torch.tensor(0.8), seed=seed())
        patch_mask(2, (4, 9, 11), 0.4, kind="block", blocks=40, seed=seed())
        patch_partition(2, 500, 7, seed=seed())
        for disjoint in (True, False):
            subset_masks(2, 90, [(0.1, 0.4), (0.2, 0.3)], disjoint=disjoint, seed=seed())
        for dtype in (torch.float32, torch.float64):
            p, t = torch.randn(2, 70, dtype=dtype), torch.randn(2, 70, dtype=dtype)
            pairwise_ranking_loss(p, t)
            torch.ops.regkern.pair_ranking_curve(p * t, p, t)
        patch_restore(torch.randn(3, 40, 300), torch.randperm(400).expand(3, 400).contiguous())
        torch.ops.regkern.patch_fill_sum(torch.ones(3, 300, 5), torch.ones(3, 300).long(), 1)
    return recorder.calls


def chi_square(counts: Tensor) -> float:
    """The statistic of equal probabilities, in standard deviations from its mean."""
    expected = counts.sum() / len(counts)
    cells = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - cells) / math.sqrt(2 * cells))


def subset_counts(mask: Tensor, size: int) -> Tensor:
    """How often each subset of that size occurs."""
    n = mask.shape[-1]
    code = (mask.long() << torch.arange(n)).sum(-1).flatten()
    codes = [sum(1 << i for i in c) for c in itertools.combinations(range(n), size)]
    counts = torch.bincount(code, minlength=2**n)
    assert int(counts[codes].sum()) == code.numel()
    return counts[codes].double()


def check_lists(m: MaskedPatches, keep: int) -> None:
    n = m.mask.shape[1]
    assert bool((m.mask.sum(1) == n - keep).all())
    assert torch.equal(m.ids_keep, m.mask.long().argsort(dim=1, stable=True)[:, :keep])
    order = torch.cat([m.ids_keep, m.mask.nonzero()[:, 1].view(m.mask.shape[0], -1)], 1)
    assert torch.equal(order.gather(1, m.ids_restore), torch.arange(n).expand_as(order))


# ---- the law ----


@pytest.mark.parametrize("keep", [2, 3])
def test_every_subset_is_as_likely(keep: int) -> None:
    counts = subset_counts(~patch_mask(DRAWS, 5, keep=keep, seed=seed()).mask, keep)
    assert abs(chi_square(counts)) < 5


def test_samples_and_calls_are_independent() -> None:
    a = patch_mask(DRAWS, 5, keep=2, seed=seed()).mask
    b = patch_mask(DRAWS, 5, keep=2, seed=seed() + 1).mask
    for one, other in ((a, b), (a[1:], a[:-1]), (a[DRAWS // 2 :], a[: DRAWS // 2])):
        both = (one[:, :, None] & other[:, None, :]).double().mean(0)
        # P(masked)² for every pair of places; 25 of them, and samples of n.
        assert float((both - 0.36).abs().max()) < 5 * math.sqrt(0.36 * 0.64 / len(one))
    torch.manual_seed(0)
    assert not torch.equal(patch_mask(9, 50).mask, patch_mask(9, 50).mask)
    assert torch.equal(
        patch_mask(9, 50, generator=torch.Generator().manual_seed(3)).mask,
        patch_mask(9, 50, generator=torch.Generator().manual_seed(3)).mask,
    )


def test_rows_do_not_depend_on_the_batch() -> None:
    a, b = patch_mask(7, 131, seed=seed()), patch_mask(3, 131, seed=seed())
    assert torch.equal(a.mask[:3], b.mask)


def test_hard_without_and_with_all_scores() -> None:
    random = patch_mask(5, 37, 0.6, seed=seed())
    easy = patch_mask(5, 37, 0.6, kind="hard", scores=SCORES, alpha=0.0, seed=seed())
    assert torch.equal(easy.mask, random.mask)
    hard = patch_mask(5, 37, 0.6, kind="hard", scores=SCORES, alpha=1.0, seed=seed())
    masked = 37 - random.ids_keep.shape[1]
    top = torch.zeros(5, 37, dtype=torch.bool).scatter(1, SCORES.topk(masked).indices, True)
    assert torch.equal(hard.mask, top)


def test_hard_masks_the_top_and_the_rest_at_random() -> None:
    scores = torch.arange(7.0).expand(DRAWS, 7)
    m = patch_mask(DRAWS, 7, keep=3, kind="hard", scores=scores, alpha=0.5, seed=seed())
    check_lists(m, 3)
    assert bool(m.mask[:, 5:].all())
    assert abs(chi_square(subset_counts(m.mask[:, :5], 2))) < 5


def test_hard_with_ties_and_nan() -> None:
    """NaN, infinity, and then the first of equal ones."""
    for top, expected in (
        (1, [6]),
        (3, [2, 4, 6]),
        (5, [2, 3, 4, 6, 7]),
        (8, [0, 1, 2, 3, 4, 6, 7, 9]),
    ):
        m = patch_mask(1, 10, keep=10 - top, kind="hard", scores=TIES, alpha=1.0, seed=seed())
        assert m.mask[0].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("grid", [(14, 14), (3, 6, 7)])
def test_blocks(grid: tuple[int, ...]) -> None:
    n = math.prod(grid)
    for ratio in (0.0, 0.4, 0.9, 1.0):
        m = patch_mask(6, grid, ratio, kind="block", seed=seed())
        check_lists(m, math.floor(n * (1 - ratio) + 1e-9))
    # One rectangle as large as the count is masked as it is.
    m = patch_mask(50, (8, 8), keep=48, kind="block", area=(0.25, 0.25), aspect=(1, 1), seed=seed())
    square = m.mask.view(50, 8, 8)
    assert bool((square.any(1).sum(1) == 4).all())
    assert bool((square.any(2).sum(1) == 4).all())
    # Neighbours share their fate far more often than at random.
    a = patch_mask(50, (14, 14), 0.4, kind="block", seed=seed()).mask.view(50, 14, 14).double()
    assert float((a[:, :, 1:] == a[:, :, :-1]).double().mean()) > 0.8


@pytest.mark.parametrize("kind", ["random", "block", "hard"])
def test_tubes(kind: str) -> None:
    scores = torch.rand(4, 30) if kind == "hard" else None
    m = patch_mask(4, (3, 5, 6), 0.5, kind=kind, scores=scores, tube=True, seed=seed())
    check_lists(m, 45)
    flat = patch_mask(4, (5, 6), 0.5, kind=kind, scores=scores, seed=seed())
    assert torch.equal(m.mask.view(4, 3, 30), flat.mask[:, None].expand(4, 3, 30))


def test_counts() -> None:
    assert patch_mask(2, 196, 0.75).ids_keep.shape == (2, 49)
    assert patch_mask(2, 10, 0.9).ids_keep.shape == (2, 1)  # 10 · (1 − 0.9) = 0.9999…
    for n, keep in ((9, 0), (9, 9), (0, 0), (300, 300), (70_000, 12_345)):
        check_lists(patch_mask(2, n, keep=keep, seed=seed()), keep)
    assert patch_mask(0, 9).mask.shape == (0, 9)


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (70, {"keep": 11}),
        (10, {"ratio": 0.6, "kind": "hard", "scores": TIES.expand(3, 10), "alpha": 0.8}),
        ((4, 9), {"ratio": 0.5, "kind": "block", "blocks": 20}),
        ((2, 4, 6), {"keep": 21, "kind": "block", "blocks": 3}),
        ((2, 4, 6), {"ratio": 0.8, "tube": True}),
    ],
)
def test_masks_are_those_of_the_definition(n: Any, options: dict[str, Any]) -> None:
    ours = patch_mask(3, n, seed=seed(), **options)
    for a, b in zip(ours, reference.patch_mask(3, n, seed=seed(), **options), strict=True):
        assert torch.equal(a, b)


# ---- parts and subsets ----


def test_partition() -> None:
    ids, restore = patch_partition(DRAWS, 5, 2, seed=seed())
    assert [i.shape[1] for i in ids] == [3, 2]
    everything = torch.cat(ids, 1)
    assert torch.equal(everything.sort(1).values, torch.arange(5).expand(DRAWS, 5))
    assert torch.equal(everything.gather(1, restore), torch.arange(5).expand(DRAWS, 5))
    mask = torch.zeros(DRAWS, 5, dtype=torch.bool).scatter(1, ids[1], True)
    assert abs(chi_square(subset_counts(mask, 2))) < 5
    x = torch.randn(6, 11, 4)
    ids, restore = patch_partition(6, 11, 3, seed=seed())
    merged = torch.cat([patch_gather(x, i) for i in ids], 1)
    assert torch.equal(patch_restore(merged, restore), x)


def test_subsets_are_those_of_the_definition() -> None:
    for disjoint in (True, False):
        ours = subset_masks(4, 20, [(0.1, 0.4), (0.2, 0.3)], disjoint=disjoint, seed=seed())
        theirs = reference.patch_subsets(4, 20, [2, 4], [8, 6], disjoint, seed=seed())
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("disjoint", [True, False])
def test_subsets(disjoint: bool) -> None:
    ranges = [(0.2, 0.5), (0.1, 0.3), (0.2, 0.2)]
    mask, ids, sizes = subset_masks(DRAWS, 10, ranges, disjoint=disjoint, seed=seed())
    assert torch.equal(mask.sum(2), sizes)
    assert torch.equal((ids >= 0).sum(2), sizes)
    back = torch.zeros(DRAWS, 3, 11, dtype=torch.bool).scatter(2, ids.where(ids >= 0, 10), True)
    assert torch.equal(back[..., :10], mask)
    assert bool((mask.sum(1) <= 1).all()) is disjoint
    assert abs(chi_square(torch.bincount(sizes[:, 0])[2:].double())) < 5
    assert sizes[:, 1].unique().tolist() == [1, 2, 3]
    assert sizes[:, 2].unique().tolist() == [2]
    shares = mask.double().mean(0)
    for j, mean in enumerate((0.35, 0.2, 0.2)):
        assert float((shares[j] - mean).abs().max()) < 5 * 0.5 / math.sqrt(DRAWS)


def test_correlated_features() -> None:
    ranking = torch.stack([torch.arange(6).roll(-s) for s in range(6)])
    mask = correlated_feature_mask(DRAWS, ranking, 0.5, seed=seed())
    windows = torch.zeros(6, 6, dtype=torch.bool).scatter(1, ranking[:, :3], True)
    hits = (mask[:, None] == windows).all(2)
    assert bool((hits.sum(1) == 1).all())
    assert abs(chi_square(hits.sum(0).double())) < 5
    x = torch.randn(DRAWS, 6, 2, requires_grad=True)
    default = torch.randn(6, 2, requires_grad=True)
    one, two = mask_fields(x, mask, default), mask_fields(x, ~mask, default)
    torch.testing.assert_close(one + two, x + default)
    (de,) = torch.autograd.grad(one.sum(), default)
    torch.testing.assert_close(de, mask.sum(0).float().unsqueeze(1).expand(6, 2))


# ---- tokens ----


def test_gather_is_torch_gather_in_any_layout() -> None:
    x = torch.randn(3, 9, 4, 5)
    ids = patch_mask(3, 9, 0.5, seed=seed()).ids_keep
    expected = x.gather(1, ids[:, :, None, None].expand(-1, -1, 4, 5))
    wide = torch.randn(3, 12, 4, 5)
    wide[:, 3:] = x
    for y in (x, wide[:, 3:], x.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT):
        assert torch.equal(patch_gather(y, ids), expected)
        assert torch.equal(patch_gather(y, ids.mT.contiguous().mT), expected)


def test_restore_is_what_a_concatenation_gathers() -> None:
    x, token = torch.randn(4, 20, 6, requires_grad=True), torch.randn(1, 1, 6, requires_grad=True)
    m = patch_mask(4, 20, 0.7, seed=seed())
    y = patch_restore(patch_gather(x, m.ids_keep), m.ids_restore, token)
    expected = torch.where(m.mask.unsqueeze(2), token, x)
    assert torch.equal(y, expected)
    g = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad(z, (x, token), g) for z in (y, expected))
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


def test_the_token_gradient_has_many_chunks() -> None:
    """More rows than are added up at once, in halves too: the sums are wider."""
    restore = patch_mask(3, 400, keep=40, seed=seed()).ids_restore
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 2**-8)):
        g = torch.randn(3, 400, 70).to(dtype)
        kept = torch.zeros(3, 40, 70, dtype=dtype)
        token = torch.zeros(70, dtype=dtype, requires_grad=True)
        (dt,) = torch.autograd.grad(patch_restore(kept, restore, token), token, g)
        expected = (g.double() * (restore >= 40).unsqueeze(2)).sum((0, 1))
        torch.testing.assert_close(dt.double(), expected, rtol=tolerance, atol=tolerance)


def test_repeated_ids_have_no_silent_gradient() -> None:
    ids = torch.tensor([[0, 2, 0]])
    assert torch.equal(patch_gather(torch.arange(3.0).view(1, 3, 1), ids).flatten(), ids[0].float())
    y = patch_gather(torch.randn(1, 3, 1, requires_grad=True), ids)
    with pytest.raises(RuntimeError, match="no `ids` twice in a sample where gradients are wanted"):
        y.sum().backward()


# ---- the ranking loss ----


def test_ranking_loss_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(5)
    p = torch.randn(4, 70, generator=generator, dtype=torch.float64)
    t = torch.randint(0, 9, (4, 70), generator=generator).double()
    for mask in (None, torch.rand(4, 70, generator=generator) > 0.3):
        a, b = p.clone().requires_grad_(), p.clone().requires_grad_()
        ours = pairwise_ranking_loss(a, t, mask)
        theirs = reference.pairwise_ranking_loss(b, t, mask)
        torch.testing.assert_close(ours, theirs)
        (da,), (db,) = torch.autograd.grad(ours, a), torch.autograd.grad(theirs, b)
        torch.testing.assert_close(da, db)
        float32 = pairwise_ranking_loss(p.float(), t.float(), mask)
        torch.testing.assert_close(float32.double(), theirs, rtol=1e-6, atol=0)


def test_ranking_loss_far_out_and_without_pairs() -> None:
    p = torch.tensor([[-1e4, 0.0, 1e4]], requires_grad=True)
    right, wrong = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    assert float(pairwise_ranking_loss(p, right).detach()) < 1e-30
    loss = pairwise_ranking_loss(p, wrong)
    torch.testing.assert_close(loss, torch.tensor(4e4 / 3))
    (dp,) = torch.autograd.grad(loss, p)
    torch.testing.assert_close(dp, torch.tensor([[-2.0, 0.0, 2.0]]) / 3)
    # Small losses are not rounded away.
    near = torch.tensor([[0.0, 20.0]])
    assert float(pairwise_ranking_loss(near, near)) == pytest.approx(math.log1p(math.exp(-20)))
    for q, t, mask in (
        (p, torch.zeros(1, 3), None),
        (p, right, torch.tensor([[True, False, False]])),
        (p[:, :0], right[:, :0], None),
    ):
        loss = pairwise_ranking_loss(q, t, mask)
        assert float(loss.detach()) == 0.0
        assert not torch.autograd.grad(loss, p)[0].any()
    assert pairwise_ranking_loss(p, torch.tensor([[0.0, math.nan, 1.0]])).isnan()


def test_ranking_loss_has_no_third_derivative() -> None:
    q = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    t = torch.rand(2, 5, dtype=torch.float64)
    (dq,) = torch.autograd.grad(pairwise_ranking_loss(q, t), q, create_graph=True)
    (ddq,) = torch.autograd.grad((dq**2).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(ddq.sum(), q)


# ---- modules and what they stand in for ----


def test_patch_mask_module() -> None:
    x = torch.randn(6, 2 + 20, 3)
    kept, m = PatchMask(0.75, grid=(4, 5), kind="block", prefix=2, blocks=9)(x)
    check_lists(m, 5)
    assert torch.equal(kept[:, :2], x[:, :2])
    assert torch.equal(kept[:, 2:], patch_gather(x[:, 2:], m.ids_keep))
    layer = PatchMask(0.5, "hard", alpha=torch.tensor(0.0))
    schedule = HardnessSchedule(nn.Sequential(layer, PatchMask()), 0.0, 1.0, 2)
    for alpha, most in ((0.0, 10), (0.5, 10), (1.0, 10)):
        assert float(layer.alpha) == alpha
        scores = torch.arange(20.0).expand(6, 20)
        top = layer(x[:, 2:], scores)[1].mask[:, 20 - int(alpha * most) :]
        assert bool(top.all())
        schedule.step()
    schedule.load_state_dict({"count": 1})
    assert float(layer.alpha) == 0.5
    assert str(PatchMask(0.6, prefix=1)) == "PatchMask(ratio=0.6, kind='random', prefix=1)"
    with pytest.raises(ValueError, match="expected 20 patches in `x`, as the grid has, got 22"):
        PatchMask(grid=(4, 5))(x)


def test_patch_dropout_stands_in_for_timm() -> None:
    layers = rival("timm.layers")
    with_ids = rival("timm.layers.patch_dropout").PatchDropoutWithIndices(0.6, 1)
    net = nn.Sequential(layers.PatchDropout(0.7, 2), with_ids)
    old = list(net)
    assert not regkern.swap(net).left
    assert str(net[0]) == "PatchDropout(p=0.7, prefix=2)"
    x = torch.randn(4, 15, 3)
    for p in (0.7, 0.99):
        old[0].prob = net[0].p = p
        a, b = old[0](x), net[0](x)
        assert a.shape == b.shape
        assert torch.equal(a[:, :2], b[:, :2])
    y, ids = net[1](x)
    assert y.shape == old[1](x)[0].shape
    assert torch.equal(y[:, 1:], patch_gather(x[:, 1:], ids))
    assert net[0].eval()(x) is x
    assert net[1].eval()(x) == (x, None)


def test_patch_dropout_compiles_with_any_number_of_patches() -> None:
    torch._dynamo.reset()
    layer = torch.compile(PatchDropout(0.5), fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (12, 33):
        x = torch.randn(3, 1 + n, 4, requires_grad=True)
        y = layer(x)
        assert y.shape == (3, 1 + n // 2, 4)
        y.sum().backward()
        assert int((x.grad != 0).sum()) == y.numel()


# ---- errors ----

X = torch.ones(2, 4, 3)
IDS = torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: patch_mask(2, 4.0), TypeError, "expected `n` to be an int, got 4.0"),
        (lambda: patch_mask(-1, 4), ValueError, "expected `batch` to be at least 0, got -1"),
        (lambda: patch_mask(2, (4,)), ValueError, "expected `n` to be a number of patches"),
        (lambda: patch_mask(2, 4, 1.5), ValueError, r"expected `ratio` in \[0, 1\], got 1.5"),
        (lambda: patch_mask(2, 4, keep=5), ValueError, "expected `keep` to be at most 4, got 5"),
        (lambda: patch_mask(2, 4, kind="tree"), ValueError, "expected `kind` to be one of random"),
        (lambda: patch_mask(2, 4, kind="hard"), TypeError, "expected `scores` to be a tensor"),
        (
            lambda: patch_mask(2, 4, kind="hard", scores=torch.ones(2, 5)),
            ValueError,
            r"expected `scores` of shape \(2, 4\), got \(2, 5\)",
        ),
        (lambda: patch_mask(2, 4, scores=torch.ones(2, 4)), ValueError, "with kind 'hard' alone"),
        (lambda: patch_mask(2, 4, kind="block"), ValueError, "with kind 'block', got 4"),
        (
            lambda: patch_mask(2, (4, 4), kind="block", area=(0.5, 2)),
            ValueError,
            "expected `area` to be",
        ),
        (lambda: patch_mask(2, (4, 4), tube=True), ValueError, r"expected `n` to be \(depth"),
        (lambda: patch_mask(2, (2, 4, 4), keep=3, tube=True), ValueError, "a multiple of 2"),
        (lambda: patch_mask(2, 4, seed=torch.zeros(2)), ValueError, "expected `seed`"),
        (lambda: patch_partition(2, 4, 0), ValueError, "expected `parts` to be at least 1, got 0"),
        (lambda: subset_masks(2, 4, [(0.5, 1.5)]), ValueError, "expected every one of `ranges`"),
        (lambda: subset_masks(2, 4, [(0.5, 1), (0.5, 1)]), ValueError, "no more than 4 features"),
        (lambda: subset_masks(2, 4, [(0.3, 0.4)]), ValueError, "expected a whole number"),
        (lambda: correlated_feature_mask(2, IDS), ValueError, r"of shape \(n, n\), got \(2, 3\)"),
        (lambda: mask_fields(X, IDS), TypeError, "expected `mask` of dtype bool"),
        (lambda: patch_gather(X.int(), IDS), TypeError, "expected `x` of dtype"),
        (lambda: patch_gather(X, IDS.int()), TypeError, "expected `ids` of dtype int64"),
        (lambda: patch_gather(X, IDS[:1]), ValueError, r"got \(2, 4, 3\) and \(1, 3\)"),
        (lambda: patch_gather(X, IDS + 4), RuntimeError, r"every one of `ids` in \[-1, 4\), got 4"),
        (
            lambda: patch_gather(X, IDS - 2),
            RuntimeError,
            r"every one of `ids` in \[-1, 4\), got -2",
        ),
        (lambda: patch_restore(X, IDS, X), ValueError, "expected `mask_token` of 3 elements"),
        (
            lambda: patch_restore(X, IDS, X[0, 0].half()),
            TypeError,
            "expected `mask_token` of dtype",
        ),
        (lambda: pairwise_ranking_loss(X, X), ValueError, r"of one shape \(batch, n\)"),
        (
            lambda: pairwise_ranking_loss(X[0], X[0], IDS[0]),
            TypeError,
            "expected `mask` of dtype bool",
        ),
        (
            lambda: torch.ops.regkern.patch_mask(seed(), 2, 4, 5),
            RuntimeError,
            r"regkern::patch_mask: expected `keep` in \[0, 4\], got 5",
        ),
        (
            lambda: torch.ops.regkern.patch_subsets(seed(), 2, 4, [3, 2], [3, 2]),
            RuntimeError,
            "disjoint subsets to be no more than `n` together, got 5",
        ),
        (lambda: PatchDropout(1.0), ValueError, r"expected `p` in \[0, 1\), got 1.0"),
        (
            lambda: HardnessSchedule([PatchMask()], 0.0, 0.5, 9),
            ValueError,
            "of kind 'hard', got none",
        ),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()

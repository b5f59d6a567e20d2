"""Samples of patch masks, tokens gathered and restored, and the pairwise ranking loss."""

from __future__ import annotations

from typing import Any

import torch
from regkern.masks.patches import patch_gather, patch_mask, patch_restore
from regkern.masks.ranking import pairwise_ranking_loss
from regkern.masks.subsets import patch_partition, subset_masks
from regkern.reference import patches as reference
from sample import Sample, normal, seed
from torch import Tensor


def _gathered(x: Tensor, **options: Any) -> Tensor:
    """What a mask leaves of x, and how much of each sample is masked."""
    mask, keep, restore = patch_mask(x.shape[0], seed=seed(), **options)
    token = x.detach()[:1, 0].sum(0) * 0.0 + 1.5
    y = patch_restore(patch_gather(x, keep), restore, token)
    return y * (1 + mask.unsqueeze(2).to(x.dtype))


def _gathered_definition(x: Tensor, **options: Any) -> Tensor:
    mask, keep, restore = reference.patch_mask(x.shape[0], seed=seed(), **options)
    token = x.detach()[:1, 0].sum(0) * 0.0 + 1.5
    y = reference.patch_restore(reference.patch_gather(x, keep), restore, token)
    return y * (1 + mask.unsqueeze(2).to(x.dtype))


RANGES = [(0.2, 0.4), (0.1, 0.2), (0.3, 0.3)]


def _subset(x: Tensor) -> Tensor:
    """The tokens of three subsets, padded, one after the other: a token may be in several."""
    subsets = subset_masks(x.shape[0], x.shape[1], RANGES, disjoint=False, seed=seed())
    y = torch.cat([patch_gather(x, subsets.ids[:, s]) for s in range(3)], 1)
    return y * (1 + subsets.sizes.sum(1)).view(-1, 1, 1).to(x.dtype)


def _subset_definition(x: Tensor) -> Tensor:
    n = x.shape[1]
    assert n == 10
    _, ids, sizes = reference.patch_subsets(x.shape[0], n, [2, 1, 3], [4, 2, 3], False, seed=seed())
    y = reference.patch_gather(x, ids.flatten(1))
    return y * (1 + sizes.sum(1)).view(-1, 1, 1).to(x.dtype)


def _merged(x: Tensor, token: Tensor) -> Tensor:
    """Three parts, of which the last is lost."""
    part = patch_partition(x.shape[0], x.shape[1], 3, seed=seed())
    kept = torch.cat([patch_gather(x, ids) for ids in part.ids[:2]], 1)
    return patch_restore(kept, part.ids_restore, token)


def _merged_definition(x: Tensor, token: Tensor) -> Tensor:
    n = x.shape[1]
    sizes = [n // 3 + (j < n % 3) for j in range(3)]
    mask, _, _ = reference.patch_subsets(x.shape[0], n, sizes, sizes, seed=seed())
    return torch.where(mask[:, 2].unsqueeze(2), token, x)


N = 35
TARGET = normal((3, N), torch.float64, 7).mul(4).round().div(4)
THERE = normal((3, N), torch.float64, 8) > -0.7
SCORES = normal((3, 10), torch.float32, 9).mul(2).round()


def _ranked(p: Tensor, function: Any) -> Tensor:
    rows = slice(0, p.shape[0])
    y: Tensor = function(p, TARGET[rows].to(p.dtype), THERE[rows])
    return y


def _sample(name: str, shapes: tuple[tuple[int, ...], ...], **options: Any) -> Sample:
    forms = {
        "subset": (_subset, _subset_definition),
        "partition": (_merged, _merged_definition),
    }
    ours, definition = forms.get(name.partition("-")[0], (_gathered, _gathered_definition))
    # A token is of no sample: an empty batch leaves it as it is.
    return Sample(
        "patch",
        name,
        shapes,
        options,
        ours,
        definition,
        batched="scores" not in options and len(shapes) == 1,
    )


SAMPLES: list[Sample] = [
    _sample("random", ((4, 67, 3),), n=67, ratio=0.6),
    _sample("hard", ((3, 10, 16),), n=10, kind="hard", scores=SCORES, alpha=0.5, ratio=0.6),
    _sample("subset", ((2, 10, 2),)),
    _sample("partition", ((3, 20, 8), (8,))),
    Sample(
        "pairwise_ranking_loss",
        "masked",
        ((3, N),),
        {},
        lambda p: _ranked(p, pairwise_ranking_loss),
        lambda p: _ranked(p, reference.pairwise_ranking_loss),
        batched=False,
    ),
]

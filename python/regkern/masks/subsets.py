"""Subsets of tokens or features: disjoint parts, context and targets, correlated features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import register
from regkern.masks.patches import count_of, seed_of, share_of

_MOST = 63


def _fake(
    seed: Tensor,
    batch: int,
    n: int,
    least: Sequence[int],
    most: Sequence[int],
    disjoint: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, width = len(most), most[0]
    for size in most[1:]:
        width = max(width, size)
    return (
        seed.new_empty((batch, count, n), dtype=torch.bool),
        seed.new_empty((batch, count, width)),
        seed.new_empty((batch, count)),
        seed.new_empty((batch if disjoint else 0, n)),
    )


_patch_subsets = register("patch_subsets", _fake)


class Partition(NamedTuple):
    """What `patch_partition` returns.

    Attributes
    ----------
    ids : tuple of Tensor
        For each part int64 (batch, size), ascending.
    ids_restore : Tensor
        int64 (batch, n): where a token stands in the parts, one after the other; `patch_restore`
        takes it with the parts concatenated.
    """

    ids: tuple[Tensor, ...]
    ids_restore: Tensor


class Subsets(NamedTuple):
    """What `subset_masks` returns.

    Attributes
    ----------
    mask : Tensor
        bool (batch, subsets, n), True where a subset has the feature.
    ids : Tensor
        int64 (batch, subsets, largest possible size): the features of a subset, ascending, and −1
        behind them, which `patch_gather` makes zeros of.
    sizes : Tensor
        int64 (batch, subsets).
    """

    mask: Tensor
    ids: Tensor
    sizes: Tensor


def patch_partition(
    batch: int,
    n: int,
    parts: int,
    *,
    device: torch.device | str | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Partition:
    r"""Random partitions of n tokens into disjoint parts of sizes that differ by one at most.

    .. math::
        \{1, \dots, n\} = P_1 \sqcup \dots \sqcup P_K, \qquad
        |P_j| \in \{\lfloor n / K \rfloor, \lceil n / K \rceil\}

    Parameters
    ----------
    batch, n : int
        Samples, and tokens of each.
    parts : int
        K, from 1 to 63. The first n mod K parts have one token more.
    device, seed, generator
        As of `patch_mask`.

    Returns
    -------
    Partition
        ``(ids, ids_restore)``.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Uniform over all such partitions. Time is that of K selections over n tokens.

    References
    ----------
    Baek et al., "MaskingDepth: masked consistency regularization for semi-supervised monocular
    depth estimation", 2022.
    """
    op = "patch_partition"
    for name, value, least in (("batch", batch, 0), ("n", n, 0), ("parts", parts, 1)):
        count_of(op, name, value, least)
    if parts > _MOST:
        raise ValueError(f"regkern.{op}: expected `parts` of at most {_MOST}, got {parts}")
    sizes = [n // parts + (1 if j < n % parts else 0) for j in range(parts)]
    own = seed_of(op, device, seed, generator)
    _, ids, _, restore = _patch_subsets(own, batch, n, sizes, sizes, True)
    return Partition(tuple(ids[:, j, :size] for j, size in enumerate(sizes)), restore)


def subset_masks(
    batch: int,
    n: int,
    ranges: Sequence[tuple[float, float]],
    *,
    disjoint: bool = True,
    device: torch.device | str | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Subsets:
    r"""Random subsets of n features, a context and its targets say, of random sizes.

    .. math::
        |S_j| \sim \mathcal{U}\{\lceil r_j^{\min} n \rceil, \dots, \lfloor r_j^{\max} n \rfloor\},
        \qquad S_j \sim \mathcal{U}\{S : |S| = |S_j|\}

    Parameters
    ----------
    batch, n : int
        Samples, and features of each.
    ranges : sequence of (float, float)
        :math:`(r^{\min}_j, r^{\max}_j)` for each subset, 63 at most.
    disjoint : bool
        No feature in two subsets of a sample: the largest sizes may be n together at most. False:
        subsets are independent.
    device, seed, generator
        As of `patch_mask`.

    Returns
    -------
    Subsets
        ``(mask, ids, sizes)``. Sizes are drawn for each sample and subset.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Thimonier et al., "T-JEPA: augmentation-free self-supervised learning for tabular data", 2024.
    """
    op = "subset_masks"
    count_of(op, "batch", batch)
    count_of(op, "n", n)
    least, most = [], []
    for r in ranges:
        if not isinstance(r, Sequence) or len(r) != 2 or not 0.0 <= r[0] <= r[1] <= 1.0:
            raise ValueError(
                f"regkern.{op}: expected every one of `ranges` to be (low, high), 0 <= low <= high "
                f"<= 1, got {r!r}"
            )
        least.append(math.ceil(r[0] * n - 1e-9))
        most.append(math.floor(r[1] * n + 1e-9))
        if least[-1] > most[-1]:
            raise ValueError(
                f"regkern.{op}: expected a whole number in each of `ranges` times {n}, got {r!r}"
            )
    if not 1 <= len(least) <= _MOST:
        raise ValueError(f"regkern.{op}: expected 1 to {_MOST} `ranges`, got {len(least)}")
    if disjoint and sum(most) > n:
        raise ValueError(
            f"regkern.{op}: expected `ranges` of disjoint subsets to be no more than {n} features "
            f"together, got {sum(most)}"
        )
    own = seed_of(op, device, seed, generator)
    mask, ids, sizes, _ = _patch_subsets(own, batch, n, least, most, disjoint)
    return Subsets(mask, ids, sizes)


def correlated_feature_mask(
    batch: int,
    ranking: Tensor,
    fraction: float = 0.5,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Masks of a random feature and those most related to it.

    .. math::
        m_i = 1[i \in \{\rho_{s1}, \dots, \rho_{sk}\}], \qquad s \sim \mathcal{U}\{1, \dots, n\},
        \quad k = \lfloor \mathrm{fraction} \cdot n \rfloor

    The complement ``~mask`` is the second view.

    Parameters
    ----------
    batch : int
        Samples.
    ranking : Tensor
        int64 (n, n): row s has the features by their relation to s (mutual information, say), the
        most related first, s itself before all; a permutation. Made once, by ``argsort``.
    fraction : float
        Share of the features that is masked, in [0, 1].
    seed, generator
        As of `patch_mask`.

    Returns
    -------
    Tensor
        bool (batch, n), True where a feature is masked; see `mask_fields`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Yao et al., "Self-supervised learning for large-scale item recommendations", CIKM 2021.
    """
    op = "correlated_feature_mask"
    count_of(op, "batch", batch)
    checks.tensor(op, "ranking", ranking)
    if ranking.dtype != torch.int64:
        raise TypeError(f"regkern.{op}: expected `ranking` of dtype int64, got {ranking.dtype}")
    if ranking.dim() != 2 or ranking.shape[0] != ranking.shape[1] or ranking.shape[0] == 0:
        raise ValueError(
            f"regkern.{op}: expected `ranking` of shape (n, n), got {tuple(ranking.shape)}"
        )
    n = ranking.shape[0]
    k = math.floor(share_of(op, "fraction", fraction) * n + 1e-9)
    own = seed_of(op, ranking.device, seed, generator)
    _, first, _, _ = _patch_subsets(own, batch, n, [1], [1], True)
    related = ranking[first.reshape(batch), :k]
    return torch.zeros((batch, n), dtype=torch.bool, device=ranking.device).scatter(
        1, related, True
    )


def mask_fields(x: Tensor, mask: Tensor, default: Tensor | float = 0.0) -> Tensor:
    r"""Fields of embeddings replaced by a default where they are masked.

    .. math:: y_{bf} = m_{bf} \, e_f + (1 - m_{bf}) \, x_{bf}

    Parameters
    ----------
    x : Tensor
        (batch, fields, features).
    mask : Tensor
        bool (batch, fields).
    default : Tensor or float
        What broadcasts to (fields, features): one embedding, or one for each field. It has a
        gradient.

    Returns
    -------
    Tensor
        Like x.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    """
    op = "mask_fields"
    checks.floating(op, "x", x)
    checks.on_device(op, "mask", mask, x)
    if mask.dtype != torch.bool:
        raise TypeError(f"regkern.{op}: expected `mask` of dtype bool, got {mask.dtype}")
    if x.dim() != 3 or mask.shape != x.shape[:2]:
        raise ValueError(
            f"regkern.{op}: expected `x` (batch, fields, features) and `mask` (batch, fields), got "
            f"{tuple(x.shape)} and {tuple(mask.shape)}"
        )
    filled: Any = default
    if isinstance(default, Tensor):
        checks.on_device(op, "default", default, x)
        if default.dtype != x.dtype:
            raise TypeError(
                f"regkern.{op}: expected `default` of dtype {x.dtype}, got {default.dtype}"
            )
    return torch.where(mask.unsqueeze(2), filled, x)

"""Masked and dropped patches as modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.masks.patches import KINDS, MaskedPatches, patch_gather, patch_mask


class PatchMask(nn.Module):
    r"""Masks patches and keeps the others, in training and in eval mode.

    .. math:: y_{bj} = x_{b,\,\mathrm{ids\_keep}_{bj}}

    Parameters
    ----------
    ratio : float
        Share of the patches that is masked, in [0, 1].
    kind : {"random", "block", "hard"}
        As of :func:`regkern.patch_mask`.
    grid : sequence of int, optional
        (height, width) or (depth, height, width) of the patches; for blocks and tubes.
    alpha : float or Tensor
        For ``hard``: share of the masked patches that scores choose. See `HardnessSchedule`.
    prefix : int
        Tokens in front, class tokens say, that are kept and that masks and ids do not count.
    generator : torch.Generator, optional
        Of x's device; default: torch's own.
    **options
        ``area``, ``aspect``, ``blocks`` and ``tube`` of :func:`regkern.patch_mask`.

    Notes
    -----
    ``forward(x, scores=None)`` of tokens (batch, prefix + n, features) returns ``(kept, patches)``:
    the prefix and the tokens that are kept, and the `MaskedPatches`. The layer has no parameters.

    References
    ----------
    He et al., "Masked autoencoders are scalable vision learners", CVPR 2022; Wang et al., "Hard
    patches mining for masked image modeling", CVPR 2023.
    """

    def __init__(
        self,
        ratio: float = 0.75,
        kind: str = "random",
        *,
        grid: Sequence[int] | None = None,
        alpha: float | Tensor = 0.5,
        prefix: int = 0,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        checks.probability("PatchMask", "ratio", ratio)
        checks.one_of("PatchMask", "kind", kind, KINDS)
        checks.at_least("PatchMask", "prefix", prefix, 0)
        self.ratio = ratio
        self.kind = kind
        self.grid = None if grid is None else tuple(grid)
        self.alpha = alpha
        self.prefix = prefix
        self.generator = generator
        self.options = options

    def forward(self, x: Tensor, scores: Tensor | None = None) -> tuple[Tensor, MaskedPatches]:
        checks.floating("PatchMask", "x", x)
        options = dict(self.options)
        if self.kind == "hard":
            options.update(scores=scores, alpha=self.alpha)
        elif scores is not None:
            raise ValueError(
                f"regkern.PatchMask: expected `scores` with kind 'hard' alone, got {self.kind!r}"
            )
        n = x.shape[1] - self.prefix
        patches = patch_mask(
            x.shape[0],
            n if self.grid is None else self.grid,
            self.ratio,
            kind=self.kind,
            device=x.device,
            generator=self.generator,
            **options,
        )
        if patches.mask.shape[1] != n:
            raise ValueError(
                f"regkern.PatchMask: expected {patches.mask.shape[1]} patches in `x`, as the grid "
                f"has, got {n}"
            )
        return patch_gather(x, _behind(self.prefix, patches.ids_keep)), patches

    def extra_repr(self) -> str:
        shown = [f"ratio={self.ratio:g}", f"kind={self.kind!r}"]
        shown += [f"grid={self.grid}"] if self.grid is not None else []
        shown += [f"prefix={self.prefix}"] if self.prefix else []
        shown += [f"{name}={value!r}" for name, value in self.options.items()]
        return ", ".join(shown)


def _behind(prefix: int, ids: Tensor) -> Tensor:
    """The ids of tokens behind a prefix, which is kept: one gather instead of a concatenation."""
    if prefix == 0:
        return ids
    first = torch.arange(prefix, device=ids.device).expand(ids.shape[0], prefix)
    return torch.cat([first, ids + prefix], 1)


class PatchDropout(nn.Module):
    r"""Keeps a random part of the tokens in training, all of them in eval mode.

    .. math:: n_\text{keep} = \max(1, \lfloor n (1 - p) \rfloor)

    Parameters
    ----------
    p : float
        Share of the tokens that is dropped, in [0, 1). Also called ``prob``.
    prefix : int
        Tokens in front that are always kept and not counted.
    return_indices : bool
        Return ``(y, ids_keep)``, with None where nothing was dropped; ids do not count the prefix.
    generator : torch.Generator, optional
        Of x's device; default: torch's own.

    Notes
    -----
    Tokens stay in their order. Bytes moved: what is kept, read and written.

    References
    ----------
    Liu et al., "PatchDropout: economizing vision transformers using patch dropout", WACV 2023.
    """

    def __init__(
        self,
        p: float = 0.5,
        prefix: int = 1,
        *,
        return_indices: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        checks.probability("PatchDropout", "p", p)
        if p == 1.0:
            raise ValueError("regkern.PatchDropout: expected `p` in [0, 1), got 1.0")
        checks.at_least("PatchDropout", "prefix", prefix, 0)
        self.p = p
        self.prefix = prefix
        self.return_indices = return_indices
        self.generator = generator

    @property
    def prob(self) -> float:
        """`p` under timm's name."""
        return self.p

    @prob.setter
    def prob(self, value: float) -> None:
        self.p = value

    def forward(self, x: Tensor) -> Any:
        checks.floating("PatchDropout", "x", x)
        if not self.training or self.p == 0.0:
            return (x, None) if self.return_indices else x
        n = x.shape[1] - self.prefix
        keep = max(1, math.floor(n * (1.0 - self.p)))
        ids = patch_mask(
            x.shape[0], n, keep=keep, device=x.device, generator=self.generator
        ).ids_keep
        y = patch_gather(x, _behind(self.prefix, ids))
        return (y, ids) if self.return_indices else y

    def extra_repr(self) -> str:
        text = f"p={self.p:g}, prefix={self.prefix}"
        return text + (", return_indices=True" if self.return_indices else "")

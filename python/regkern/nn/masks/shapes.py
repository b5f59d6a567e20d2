"""Masks in shapes, mosaic and patch mix as modules: nothing happens in eval mode."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from regkern.masks import collage
from regkern.masks.mixing import Pairing
from regkern.masks.shapes import Value, grid_mask, hide_and_seek, spec_augment


class _Transform(nn.Module):
    """What the transforms share: options that are shown, and a generator."""

    shown: tuple[str, ...] = ()
    plain: dict[str, Any]

    def __init__(self, generator: torch.Generator | None) -> None:
        super().__init__()
        self.generator = generator

    def extra_repr(self) -> str:
        plain = type(self).plain
        names = [k for k in self.shown if k not in plain or getattr(self, k) != plain[k]]
        return ", ".join(f"{k}={getattr(self, k)!r}" for k in names)


class GridMask(_Transform):
    """GridMask of a batch; parameters as of :func:`regkern.masks.shapes.grid_mask`.

    References
    ----------
    Chen, Liu, Zhao and Jia, "GridMask data augmentation", 2020.
    """

    shown = ("d_range", "ratio", "rotate", "p", "invert", "value", "inplace")
    plain = {"rotate": 0.0, "p": 1.0, "invert": False, "value": 0.0, "inplace": False}  # noqa: RUF012

    def __init__(
        self,
        d_range: tuple[int, int],
        ratio: float = 0.5,
        *,
        rotate: float = 0.0,
        p: float = 1.0,
        invert: bool = False,
        value: Value = 0.0,
        inplace: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        self.d_range = d_range
        self.ratio = ratio
        self.rotate = rotate
        self.p = p
        self.invert = invert
        self.value = value
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return grid_mask(
            x, self.d_range, self.ratio, rotate=self.rotate, p=self.p, invert=self.invert,
            value=self.value, inplace=self.inplace, generator=self.generator,
        )  # fmt: skip


class HideAndSeek(_Transform):
    """Hide-and-Seek of a batch; parameters as of :func:`regkern.masks.shapes.hide_and_seek`.

    References
    ----------
    Singh and Lee, "Hide-and-Seek", ICCV 2017.
    """

    shown = ("cell", "p", "value", "inplace")
    plain = {"value": 0.0, "inplace": False}  # noqa: RUF012

    def __init__(
        self,
        cell: int | tuple[int, int],
        p: float = 0.5,
        *,
        value: Value = 0.0,
        inplace: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        self.cell = cell
        self.p = p
        self.value = value
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return hide_and_seek(
            x, self.cell, self.p, value=self.value, inplace=self.inplace, generator=self.generator
        )


class SpecAugment(_Transform):
    """SpecAugment without time warp: ``layer(x, lengths)``; parameters as of
    :func:`regkern.masks.shapes.spec_augment`.

    References
    ----------
    Park et al., "SpecAugment", Interspeech 2019.
    """

    shown = (
        "freq_masks", "freq_width", "time_masks", "time_width", "max_fraction", "value", "inplace"
    )  # fmt: skip
    plain = {"max_fraction": 1.0, "value": 0.0, "inplace": False}  # noqa: RUF012

    def __init__(
        self,
        freq_masks: int = 2,
        freq_width: int = 27,
        time_masks: int = 2,
        time_width: int = 100,
        *,
        max_fraction: float = 1.0,
        value: float | str = 0.0,
        inplace: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        self.freq_masks = freq_masks
        self.freq_width = freq_width
        self.time_masks = time_masks
        self.time_width = time_width
        self.max_fraction = max_fraction
        self.value = value
        self.inplace = inplace

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if not self.training:
            return x
        return spec_augment(
            x, self.freq_masks, self.freq_width, self.time_masks, self.time_width,
            lengths=lengths, max_fraction=self.max_fraction, value=self.value,
            inplace=self.inplace, generator=self.generator,
        )  # fmt: skip


class Mosaic(_Transform):
    """Mosaic of a batch; parameters as of :func:`regkern.masks.collage.mosaic`.

    In eval mode every quadrant is the sample's own.
    """

    shown = ("centre_range", "place")
    plain = {"centre_range": (0.25, 0.75), "place": "corner"}  # noqa: RUF012

    def __init__(
        self,
        centre_range: tuple[float, float] = (0.25, 0.75),
        place: Literal["same", "corner"] = "corner",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        self.centre_range = centre_range
        self.place: Literal["same", "corner"] = place

    def forward(self, x: Tensor) -> collage.Mosaic:
        if self.training:
            return collage.mosaic(
                x, centre_range=self.centre_range, place=self.place, generator=self.generator
            )
        batch = x.shape[0]
        own = torch.arange(batch, device=x.device)[:, None].expand(batch, 4)
        weight = torch.zeros(batch, 4, device=x.device)
        weight[:, 0] = 1.0
        centre = torch.zeros(batch, 2, dtype=torch.int32, device=x.device)
        centre[:, 0], centre[:, 1] = x.shape[-2], x.shape[-1]
        return collage.Mosaic(x, own, weight, centre)


class PatchMix(_Transform):
    """Patch mix of a batch; parameters as of :func:`regkern.masks.collage.patch_mix`.

    In eval mode every sample is its own partner.
    """

    shown = ("cell", "p", "pairing")
    plain = {"p": 0.5, "pairing": "perm"}  # noqa: RUF012

    def __init__(
        self,
        cell: int | tuple[int, int],
        p: float = 0.5,
        pairing: Pairing = "perm",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        self.cell = cell
        self.p = p
        self.pairing: Pairing = pairing

    def forward(self, x: Tensor) -> collage.PatchMixed:
        if self.training:
            return collage.patch_mix(
                x, self.cell, self.p, pairing=self.pairing, generator=self.generator
            )
        own = torch.arange(x.shape[0], device=x.device)
        return collage.PatchMixed(x, own, torch.ones(x.shape[0], device=x.device))

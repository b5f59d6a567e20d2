"""GridMask, Hide-and-Seek, SpecAugment, mosaic and patch mix."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from torch import Tensor

import regkern
from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.masks import collage, shapes
from regkern.reference import shapes as reference

IMAGES, IMAGES_SMALL = (64, 3, 224, 224), (3, 3, 12, 13)
SPECTROGRAMS, SPECTROGRAMS_SMALL = (64, 80, 1500), (3, 16, 40)
CELL, PERIOD = 32, (96, 224)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    return {"x": x, "seed": regkern.make_seed(device)}


def _run(function: Any, i: Inputs, *args: Any, **options: Any) -> Tensor:
    y: Tensor = function(i["x"], *args, seed=i["seed"], **options)
    return y


def _first(function: Any, i: Inputs, **options: Any) -> Tensor:
    y: Tensor = function(i["x"], seed=i["seed"], **options)[0]
    return y


def _cells(x: Tensor) -> Tensor:
    """A Bernoulli mask of cells at the size of x."""
    rows, columns = -(-x.shape[-2] // CELL), -(-x.shape[-1] // CELL)
    small = torch.rand(x.shape[0], 1, rows, columns, device=x.device) < 0.5
    large = small.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
    return large[..., : x.shape[-2], : x.shape[-1]]


def _eager_grid(i: Inputs) -> Tensor:
    x = i["x"]
    d = torch.randint(*PERIOD, (x.shape[0], 1), device=x.device)
    rows, columns = (
        (torch.arange(n, device=x.device) + torch.randint(0, 96, d.shape, device=x.device)) % d
        >= d // 2
        for n in x.shape[-2:]
    )
    y: Tensor = x.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 0.0)
    return y


def _eager_bands(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    for dim, width in ((1, 27), (1, 27), (2, 100), (2, 100)):
        n = x.shape[dim]
        size = torch.rand(x.shape[0], 1, device=x.device) * width
        start = torch.rand(x.shape[0], 1, device=x.device) * (n - size)
        place = torch.arange(n, device=x.device)
        band = (place >= start.long()) & (place < (start + size).long())
        x = x.masked_fill(band.unsqueeze(3 - dim), 0.0)
    return x


def _kornia_mosaic() -> Rival:
    def load() -> Run:
        augmentation = importlib.import_module("kornia.augmentation")
        made: dict[tuple[int, ...], Any] = {}

        def run(i: Inputs) -> Any:
            size = tuple(i["x"].shape[-2:])
            if size not in made:
                made[size] = augmentation.RandomMosaic(size, p=1.0, data_keys=["input"])
            return made[size](i["x"])

        return run

    return Rival("kornia RandomMosaic", "kornia", load, "makes the large canvas, then cuts")


def _torch(name: str, call: Any, note: str = "") -> Rival:
    return Rival(name, "torch", lambda: lambda i: call(i), note)


_MIXED: dict[str, Any] = {"cell": CELL}
_BANDS: dict[str, Any] = {"freq_masks": 2, "freq_width": 27, "time_masks": 2, "time_width": 100}

CASES = (
    Case(
        op="grid_mask",
        variant="",
        shape=IMAGES,
        small=IMAGES_SMALL,
        make=_inputs,
        ours=partial(_run, shapes.grid_mask, d_range=PERIOD),
        reference=partial(_run, reference.grid_mask, d_range=PERIOD),
        rivals=(_torch("masked_fill", _eager_grid),),
        differentiable=True,
    ),
    Case(
        op="hide_and_seek",
        variant="",
        shape=IMAGES,
        small=IMAGES_SMALL,
        make=_inputs,
        ours=partial(_run, shapes.hide_and_seek, cell=CELL),
        reference=partial(_run, reference.hide_and_seek, cell=CELL),
        rivals=(_torch("masked_fill", lambda i: i["x"].masked_fill(_cells(i["x"]), 0.0)),),
        differentiable=True,
    ),
    Case(
        op="spec_augment",
        variant="",
        shape=SPECTROGRAMS,
        small=SPECTROGRAMS_SMALL,
        make=_inputs,
        ours=partial(_run, shapes.spec_augment, **_BANDS),
        reference=partial(_run, reference.spec_augment, **_BANDS),
        rivals=(_torch("masked_fill", _eager_bands, "a pass for each band, as torchaudio"),),
        differentiable=True,
    ),
    Case(
        op="mosaic",
        variant="",
        shape=IMAGES,
        small=IMAGES_SMALL,
        make=_inputs,
        ours=partial(_first, collage.mosaic),
        reference=partial(_first, reference.mosaic),
        rivals=(_kornia_mosaic(),),
        differentiable=True,
    ),
    Case(
        op="patch_mix",
        variant="",
        shape=IMAGES,
        small=IMAGES_SMALL,
        make=_inputs,
        ours=partial(_first, collage.patch_mix, **_MIXED),
        reference=partial(_first, reference.patch_mix, **_MIXED),
        rivals=(
            _torch(
                "torch.where",
                lambda i: torch.where(
                    _cells(i["x"]), i["x"], i["x"][torch.randperm(i["x"].shape[0])]
                ),
            ),
        ),
        differentiable=True,
    ),
)

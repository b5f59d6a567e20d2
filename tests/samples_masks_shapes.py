"""Samples of masks in shapes, Beta noise masks, mosaic and patch mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.masks import collage, policy_noise, shapes
from regkern.reference import policy_noise as policy_reference
from regkern.reference import shapes as reference
from sample import Sample, seed
from torch import Tensor


def _seeded(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *tensors, **o: f(*tensors, seed=seed(), **o)


def _first(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *tensors, **o: f(*tensors, seed=seed(), **o)[0]


def _in_place(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *tensors, **o: f(*tensors, seed=seed(), inplace=True, **o)


def _positive(f: Callable[..., Any]) -> Callable[..., Any]:
    """Beta noise with parameters made of any number."""
    return lambda x: f(x.square() + 0.5, (x + 1).square() + 0.5, seed=seed())


def _boxes(f: Callable[..., Any]) -> Callable[..., Any]:
    box = torch.tensor([[-3, 4, 2, 5], [1, 9, 6, 20]], dtype=torch.int32)
    return lambda x, **o: f(x, box.repeat(x.shape[0], 1, 1), **o)


def _lengths(f: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Tensor, **o: Any) -> Any:
        lengths = torch.tensor([40, 7, 29])[: x.shape[0]]
        return f(x, lengths=lengths, seed=seed(), **o)

    return call


SAMPLES: list[Sample] = [
    Sample(
        "grid_mask",
        "turned",
        ((2, 3, 9, 13),),
        {"d_range": (3, 6), "ratio": 0.4, "rotate": 90.0, "value": (0.5, -1.0, 2.0)},
        _seeded(shapes.grid_mask),
        _seeded(reference.grid_mask),
        inplace=_in_place(shapes.grid_mask),
    ),
    Sample(
        "hide_and_seek",
        "",
        ((3, 2, 2, 9, 11),),
        {"cell": (2, 3), "p": 0.4},
        _seeded(shapes.hide_and_seek),
        _seeded(reference.hide_and_seek),
        dtypes=(torch.float32, torch.uint8),
    ),
    Sample(
        "box_mask",
        "inverse",
        ((2, 3, 9, 11),),
        {"invert": True, "value": 0.25},
        _boxes(shapes.box_mask),
        _boxes(reference.box_mask),
        dtypes=(torch.float32,),
    ),
    Sample(
        "spec_augment",
        "lengths",
        ((3, 16, 40),),
        {"freq_width": 6, "time_width": 30, "max_fraction": 0.5},
        _lengths(shapes.spec_augment),
        _lengths(reference.spec_augment),
        inplace=_lengths(lambda x, **o: shapes.spec_augment(x, inplace=True, **o)),
    ),
    Sample(
        "mosaic",
        "corner",
        ((4, 2, 9, 7),),
        {},
        _first(collage.mosaic),
        _first(reference.mosaic),
    ),
    Sample(
        "patch_mix",
        "perm",
        ((5, 2, 9, 11),),
        {"cell": (2, 4)},
        _first(collage.patch_mix),
        _first(reference.patch_mix),
    ),
    Sample(
        "beta_noise",
        "",
        ((3, 4, 5),),
        {},
        _positive(policy_noise.beta_noise),
        _positive(policy_reference.beta_noise),
        differentiable=False,
    ),
]

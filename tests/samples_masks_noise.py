"""Samples of injected noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.masks import noise
from regkern.reference import noise as reference
from sample import Sample, seed


def _seeded(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *tensors, **o: f(*tensors, seed=seed(), **o)


def _first(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *tensors, **o: f(*tensors, seed=seed(), **o)[0]


SAMPLES: list[Sample] = [
    Sample(
        "noise_inject",
        "add",
        ((3, 5, 4, 9), (3, 1, 1, 1)),
        {},
        _seeded(noise.noise_inject),
        _seeded(reference.noise_inject),
        inplace=_seeded(noise.noise_inject_),
    ),
    Sample(
        "noise_inject",
        "multiply",
        ((2, 5, 31), (2, 1, 31)),
        {"kind": "uniform", "multiply": True},
        _seeded(noise.noise_inject),
        _seeded(reference.noise_inject),
    ),
    Sample(
        "diffusion_perturb",
        "",
        ((3, 5, 13),),
        {"alpha_bar": torch.tensor([0.9])},
        _first(noise.diffusion_perturb),
        _first(reference.diffusion_perturb),
    ),
    Sample(
        "noise_triplet",
        "",
        ((3, 7, 11),),
        {"eps": 0.25},
        _first(noise.noise_triplet),
        _first(reference.noise_triplet),
        dtypes=(torch.float32, torch.float64, torch.bfloat16),
    ),
]

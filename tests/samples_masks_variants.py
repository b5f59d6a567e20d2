"""Samples of the variants of dropout."""

from __future__ import annotations

from typing import Any

import torch
from regkern.masks import events, prefixes, weights
from regkern.reference import variants as reference
from sample import ListSample, Sample, seed
from torch import Tensor

TARGET = torch.arange(3 * 5 * 30).reshape(3, 5, 30) % 7 < 3
LEVELS = torch.linspace(0.0, 1.0, 30)


def _sample(name: str, shapes: Any, ours: Any, definition: Any, **options: Any) -> Sample:
    return Sample("bernoulli_blend", name, shapes, {}, ours, definition, **options)


def _sampled(function: Any) -> Any:
    return lambda x: function(x.sigmoid(), seed=seed())


def _masked(function: Any) -> Any:
    return lambda x, z: function(x, z.sigmoid(), seed=seed())


def _annealed(function: Any) -> Any:
    tau = torch.tensor(0.7)
    return lambda x: function(x, TARGET, tau, LEVELS, seed=seed())


def _cooled(function: Any) -> Any:
    return lambda x: function(x, TARGET, 0.3, seed=seed())


def _observed(function: Any) -> Any:
    return lambda x, z: function(x, z, TARGET, 0.4, seed=seed())


def _mixed(function: Any) -> Any:
    return lambda x, z: function(x, z, 0.3, seed=seed())


def _mix_list(ws: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    # Each tensor begins at a multiple of 128 of one long one.
    starts = [0]
    for w in ws:
        starts.append(starts[-1] + (w.numel() + 127) // 128 * 128)
    flat = [torch.zeros(starts[-1], dtype=ws[0].dtype) for _ in range(2)]
    for to, tensors in zip(flat, (ws, old), strict=True):
        for start, t in zip(starts, tensors, strict=False):
            to[start : start + t.numel()] = t.flatten()
    y = reference.mixout(*flat, 0.7, seed=seed())
    return [
        y[start : start + w.numel()].reshape(w.shape) for start, w in zip(starts, ws, strict=False)
    ]


def _prefix(function: Any) -> Any:
    law = prefixes.prefix_weights(6, sigma=4.0)
    return lambda x: function(x, law, per="sample", seed=seed())


SHAPE = ((3, 5, 30),)

SAMPLES: list[Sample] = [
    _sample(
        "sample",
        ((7, 61),),
        _sampled(events.bernoulli),
        _sampled(reference.bernoulli),
        straight_through=True,
        own_precision=True,
    ),
    _sample(
        "mask",
        ((3, 5, 30), (3, 5, 30)),
        _masked(events.bernoulli_mask),
        _masked(reference.bernoulli_mask),
        straight_through=True,
        own_precision=True,
    ),
    _sample(
        "random-annealing",
        SHAPE,
        _annealed(events.subnetwork_mask),
        _annealed(reference.subnetwork_mask),
        batched=False,
    ),
    _sample(
        "observed",
        SHAPE * 2,
        _observed(events.observed_dropout),
        _observed(reference.observed_dropout),
        batched=False,
    ),
    _sample("mixout", ((2, 5, 6, 7),) * 2, _mixed(weights.mixout), _mixed(reference.mixout)),
    Sample(
        "prefix_mask",
        "samples",
        ((4, 6, 5, 3),),
        {},
        _prefix(prefixes.nested_dropout),
        _prefix(reference.nested_dropout),
    ),
]

LISTS: list[ListSample] = [
    ListSample(
        "mixout_",
        "list",
        lambda xs, old: weights.mixout_(xs, old, 0.7, seed=seed()),
        _mix_list,
        lists=2,
        separate=False,
    ),
]

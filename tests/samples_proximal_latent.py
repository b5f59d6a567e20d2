"""Samples of the prox of the latent norm of overlapping groups."""

from __future__ import annotations

import torch
from regkern._registration import compute_dtype
from regkern.proximal.latent_groups import latent_group_prox, latent_groups
from regkern.reference.proximal.group_norms import prox_overlapping_group_l2
from sample import Sample
from torch import Tensor

SWEEPS, THRESHOLD = 3, 0.3


def _windows(n: int, size: int) -> list[list[int]]:
    """In the order of a sweep: every second window, then those between. The last index is free."""
    ranges = [list(range(i, i + size)) for i in range(0, n - size, size // 2)]
    return ranges[::2] + ranges[1::2]


def _sample(
    name: str, shape: tuple[int, ...], lists: list[list[int]], colours: list[int]
) -> Sample:
    indices = [torch.tensor(g) for g in lists]
    groups, order = latent_groups(indices, colours, shape[1], torch.device("cpu"))
    assert order.tolist() == list(range(len(lists)))
    sizes = torch.tensor([len(g) for g in lists], dtype=torch.float64)

    def ours(x: Tensor) -> Tensor:
        t = torch.full((), THRESHOLD, dtype=compute_dtype(x), device=x.device)
        weights = (sizes.to(x.device) * (x.shape[0] * x.shape[2])).sqrt()
        return latent_group_prox(x, groups, weights, t, SWEEPS)

    def reference(x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x
        places = torch.arange(x.numel()).reshape(x.shape)
        flat = [places[:, g].reshape(-1).tolist() for g in indices]
        return prox_overlapping_group_l2(x.reshape(-1), flat, THRESHOLD, SWEEPS).reshape(x.shape)

    return Sample("latent_group_prox", name, (shape,), {}, ours, reference)


CHAIN = [[0, 1, 2, 3, 4], [7, 8, 9], [3, 4, 5], [9, 10, 7, 11], [4]]

SAMPLES: list[Sample] = [
    _sample("windows", (1, 33, 1), _windows(33, 8), [0, 0, 0, 0, 1, 1, 1]),
    _sample("uneven", (1, 13, 1), CHAIN, [0, 0, 1, 1, 2]),
    _sample("middle", (3, 9, 5), _windows(9, 4), [0, 0, 1]),
    _sample("long", (2, 6, 60), [[0, 1, 2], [1, 2, 3, 4]], [0, 1]),
]

"""Swap rules of the transport family: GeomLoss's loss between samples."""

from __future__ import annotations

from typing import Any

from torch import nn

from regkern.nn.transport.divergence import SamplesLoss
from regkern.swap import NoCounterpart, register_swap


@register_swap("geomloss.samples_loss.SamplesLoss")
def _samples_loss(old: Any) -> nn.Module:
    if old.loss not in ("sinkhorn", "energy", "gaussian", "laplacian"):
        raise NoCounterpart(f"loss={old.loss!r} has no counterpart")
    if old.cost is not None or old.kernel is not None:
        raise NoCounterpart("costs and kernels of one's own have no counterpart")
    if old.p not in (1, 2):
        raise NoCounterpart(f"p={old.p}; only 1 and 2 have a counterpart")
    return SamplesLoss(
        old.loss,
        p=old.p,
        blur=old.blur,
        reach=old.reach,
        diameter=old.diameter,
        scaling=old.scaling,
        truncate=old.truncate,
        cluster_scale=old.cluster_scale,
        debias=old.debias,
        potentials=old.potentials,
        verbose=old.verbose,
        backend=old.backend,
    )

"""Samples of the spectral ops that write lists of tensors."""

from __future__ import annotations

from typing import Any

from regkern.reference.spectral import perturb as reference
from regkern.reference.spectral import row_norms
from regkern.spectral.network import clip_norm_
from regkern.spectral.perturb import filter_normalize_, perturb_, project_, remove_component_
from regkern.spectral.row_norms import norm_loss_step_, oblique_projection_
from sample import ListSample
from torch import Tensor


def _perturbed(name: str, separate: bool = False, **options: Any) -> ListSample:
    return ListSample(
        "perturb_",
        name,
        lambda xs, gs: perturb_(xs, gs, 0.3, **options),
        lambda xs, gs: reference.perturbed(xs, gs, 0.3, **options),
        lists=2,
        mixed=False,
        separate=separate,
        compiles=name == "sam",
    )


def _on_rows(name: str, change: Any, definition: Any) -> ListSample:
    return ListSample(
        name,
        "",
        change,
        lambda xs: [definition(x) for x in xs],
        shapes=((5, 3, 2), (1, 7), (2, 0), (3, 700)),
        mixed=False,
        compiles=False,
    )


def _without(xs: list[Tensor], ws: list[Tensor]) -> list[Tensor]:
    return reference.without_component(xs, ws, rescale=True)


LISTS: list[ListSample] = [
    _perturbed("sam"),
    _perturbed("sam_power", p=4.0),
    _perturbed("asam", kind="asam", eta=0.1),
    _perturbed("tensor", kind="tensor", separate=True),
    _perturbed("row", kind="row", separate=True),
    ListSample(
        "project_",
        "all",
        lambda xs, gs: project_(xs, 1.5, grads=gs, step=0.4, per="all"),
        lambda xs, gs: reference.projected(xs, 1.5, gs, 0.4, "all"),
        lists=2,
        mixed=False,
        separate=False,
        compiles=False,
    ),
    ListSample(
        "project_",
        "tensor",
        lambda xs: project_(xs, 1.5),
        lambda xs: reference.projected(xs, 1.5),
        mixed=False,
        compiles=False,
    ),
    ListSample(
        "remove_component_",
        "rescale",
        lambda xs, ws: remove_component_(xs, ws, rescale=True),
        _without,
        lists=2,
        mixed=False,
        compiles=False,
    ),
    ListSample(
        "filter_normalize_",
        "",
        lambda ds, ws: filter_normalize_(ds, ws),
        lambda ds, ws: reference.filter_normalized(ds, ws),
        lists=2,
        mixed=False,
        compiles=False,
    ),
    ListSample(
        "clip_norm_",
        "",
        lambda xs: clip_norm_(xs, 1.5),
        lambda xs: reference.clip_norm(xs, 1.5),
        mixed=False,
        separate=False,
    ),
    _on_rows(
        "norm_loss_step_",
        lambda xs: norm_loss_step_(xs, 0.1),
        lambda x: row_norms.norm_loss_step(x, 0.1),
    ),
    _on_rows("oblique_projection_", oblique_projection_, row_norms.row_project),
]

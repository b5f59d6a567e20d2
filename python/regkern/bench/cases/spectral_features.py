"""Statistics of features, differences and divergences of samples, noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.reference.spectral import adversarial as adversarial_reference
from regkern.reference.spectral import features as features_reference
from regkern.spectral import adversarial, directions, features, samples

IMAGES, IMAGES_SMALL = (64, 3, 224, 224), (3, 2, 5, 7)
LOGITS, LOGITS_SMALL = (4096, 1000), (5, 13)
# Both views in one tensor.
WIDE, WIDE_SMALL = (2, 256, 2048), (2, 5, 12)
TALL, TALL_SMALL = (2, 2048, 512), (2, 12, 5)
MORE_FLOATS = (torch.bfloat16, torch.float16, torch.float64)


def _pair(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x, y = (torch.randn(shape, dtype=torch.float32, device=device).to(dtype) for _ in range(2))
    return {"x": x, "y": y, "seed": torch.tensor([3, 4], device=device)}


def _torch(run: Run, note: str = "") -> Rival:
    return Rival("torch", "torch", lambda: run, note)


def _case(
    op: str,
    variant: str,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    ours: Run,
    reference: Run,
    rival: Run,
    passes: float,
    note: str = "",
    more_dtypes: tuple[torch.dtype, ...] = MORE_FLOATS,
    differentiable: bool = False,
) -> Case:
    return Case(
        op=op,
        variant=variant,
        shape=shapes[0],
        small=shapes[1],
        make=_pair,
        ours=ours,
        reference=reference,
        rivals=(_torch(rival, note),),
        more_dtypes=more_dtypes,
        passes=passes,
        differentiable=differentiable,
    )


def _two(function: Callable[..., Any], i: Inputs, **options: Any) -> Any:
    return function(i["x"], i["y"], **options)


def _views_of(function: Callable[..., Any], i: Inputs) -> Any:
    return function(*i["x"].unbind())


def _kl(i: Inputs) -> Any:
    p, q = i["y"].log_softmax(-1), i["x"].log_softmax(-1)
    return functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def _gradient(run: Run, i: Inputs) -> Any:
    """The gradient of the sum, as a training step needs it."""
    with torch.enable_grad():
        x = i["x"].detach().requires_grad_()
        return torch.autograd.grad(run({**i, "x": x}).sum(), x)[0]


def _noise(function: Callable[..., Any], i: Inputs) -> Any:
    return function(i["x"], 0.1, seed=i["seed"])


def _loss(
    op: str,
    variant: str,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    ours: Run,
    reference: Run,
    rival: Run,
    passes: float,
    note: str = "",
    more_dtypes: tuple[torch.dtype, ...] = MORE_FLOATS,
) -> tuple[Case, Case]:
    """The value alone, and with the gradient."""
    name = f"{variant}_gradient" if variant else "gradient"
    return (
        _case(op, variant, shapes, ours, reference, rival, passes, note, more_dtypes),
        _case(
            op,
            name,
            shapes,
            partial(_gradient, ours),
            partial(_gradient, reference),
            partial(_gradient, rival),
            2 * passes,
            note,
            more_dtypes,
        ),
    )


def _views(op: str, variant: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Any:
    reference = partial(_views_of, getattr(features_reference, op))
    return _loss(
        op,
        variant,
        shapes,
        partial(_views_of, getattr(features, op)),
        reference,
        reference,
        3.0,
        "products of D x D, as the authors' code",
        (torch.float64,),
    )


CASES = (
    *_views("vicreg_loss", "wide", (WIDE, WIDE_SMALL)),
    *_views("vicreg_loss", "tall", (TALL, TALL_SMALL)),
    *_views("barlow_twins_loss", "wide", (WIDE, WIDE_SMALL)),
    *_views("barlow_twins_loss", "tall", (TALL, TALL_SMALL)),
    *_loss(
        "softmax_kl",
        "",
        (LOGITS, LOGITS_SMALL),
        lambda i: adversarial.softmax_kl(i["y"], i["x"]),
        lambda i: adversarial_reference.softmax_kl(i["y"], i["x"]),
        _kl,
        2.0,
    ),
    *_loss(
        "difference_penalty",
        "",
        (IMAGES, IMAGES_SMALL),
        partial(_two, samples.difference_penalty),
        partial(_two, adversarial_reference.difference_penalty),
        lambda i: (i["x"] - i["y"]).square().flatten(1).sum(1),
        2.0,
    ),
    _case(
        "normalize_samples",
        "",
        (IMAGES, IMAGES_SMALL),
        lambda i: samples.normalize_samples(i["x"], 2.0),
        lambda i: adversarial_reference.normalize_samples(i["x"], 2.0),
        lambda i: 2.0 * functional.normalize(i["x"].flatten(1)).view(i["x"].shape),
        2.0,
        differentiable=True,
    ),
    _case(
        "add_noise",
        "",
        (IMAGES, IMAGES_SMALL),
        partial(_noise, directions.add_noise),
        partial(_noise, adversarial_reference.add_noise),
        lambda i: i["x"] + 0.1 * torch.randn_like(i["x"]),
        2.0,
        differentiable=True,
    ),
)

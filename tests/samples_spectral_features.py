"""Samples of statistics of features, differences and divergences of samples, random directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.reference.spectral import adversarial as adversarial_reference
from regkern.reference.spectral import features as features_reference
from regkern.spectral import adversarial, directions, features, samples
from sample import Sample, normal, seed
from torch import Tensor

_PRECISE = (torch.float32, torch.float64)
_LOGITS = normal((2, 600), torch.bfloat16, 7)
Shapes = tuple[tuple[int, ...], ...]


def _pair(
    ours: Any,
    reference: Any,
    op: str,
    name: str,
    shapes: Shapes,
    call: Callable[[Any], Callable[..., Tensor]] | None = None,
    **kwargs: Any,
) -> Sample:
    """Results are numbers of the compute type: here of the dtype of the first tensor."""

    def bind(m: Any) -> Callable[..., Tensor]:
        function = call(m) if call is not None else getattr(m, op)
        return lambda x, *rest, **options: function(x, *rest, **options).to(x.dtype)

    return Sample(
        op, name, shapes, kwargs.pop("options", {}), bind(ours), bind(reference), **kwargs
    )


def _sequences(m: Any) -> Callable[[Tensor, Tensor], Tensor]:
    lengths = torch.tensor([2, 4, 0])

    def call(x: Tensor, s: Tensor) -> Tensor:
        scale = s.square() + 0.5
        y: Tensor = m.normalize_samples(x, scale, lengths=lengths[: x.shape[0]])
        return y

    return call


def _columns(standardize: bool) -> Callable[[Any], Callable[[Tensor], Tensor]]:
    """y, means and variances as one vector."""

    def bind(m: Any) -> Callable[[Tensor], Tensor]:
        def ours(x: Tensor) -> Tensor:
            return torch.cat([t.reshape(-1) for t in m._standardize(x, standardize, 0, 1e-3)])

        def definition(x: Tensor) -> Tensor:
            mean = x.mean(0)
            variance = (x - mean).square().mean(0)
            y = (x - mean) * ((variance + 1e-3).rsqrt() if standardize else 1.0)
            return torch.cat([y.reshape(-1), mean, variance])

        return ours if m is features else definition

    return bind


def _features(op: str, name: str, shapes: Shapes, **options: Any) -> Sample:
    return _pair(
        features,
        features_reference,
        op,
        name,
        shapes,
        options=options,
        batched=False,
        # Sums of squares of halves are rounded once, at the end, and not where the definition is.
        dtypes=_PRECISE,
    )


def _noise(kind: str) -> Sample:
    return _pair(
        directions,
        adversarial_reference,
        "add_noise",
        kind,
        ((3, 70),),
        call=lambda m: lambda x: m.add_noise(x, 0.5, kind, seed=seed()),
    )


SAMPLES: list[Sample] = [
    _pair(
        samples,
        adversarial_reference,
        "normalize_samples",
        "lengths",
        ((3, 4, 9), (3,)),
        call=_sequences,
        dtypes=_PRECISE,
    ),
    _pair(
        samples,
        adversarial_reference,
        "normalize_samples",
        "long",
        ((2, 1100),),
        options={"scale": 3.0},
    ),
    _pair(samples, adversarial_reference, "difference_penalty", "long", ((3, 604), (3, 604))),
    _pair(
        adversarial,
        adversarial_reference,
        "softmax_kl",
        "middle",
        ((3, 7, 2), (3, 7, 2)),
        call=lambda m: (
            (lambda p, q: m.softmax_kl(p, q, 1, both=True))
            if m is adversarial
            else (lambda p, q: m.softmax_kl(p, q, 1))
        ),
        dtypes=_PRECISE,
    ),
    _pair(
        adversarial,
        adversarial_reference,
        "softmax_kl",
        "long",
        ((2, 600),),
        call=lambda m: lambda q: m.softmax_kl(_LOGITS.to(q.dtype)[: q.shape[0]], q),
    ),
    _noise("normal"),
    _noise("rademacher"),
    _pair(
        features,
        features_reference,
        "standardize_columns",
        "centred",
        ((66, 5),),
        call=_columns(False),
        dtypes=_PRECISE,
    ),
    _pair(
        features,
        features_reference,
        "standardize_columns",
        "standardized",
        ((5, 132),),
        call=_columns(True),
        dtypes=_PRECISE,
    ),
    _features("vicreg_loss", "tall", ((9, 4), (9, 4)), sim=2.0, std=1.5, gamma=1.2),
    _features("barlow_twins_loss", "tall", ((9, 4), (9, 4)), lam=0.3),
    _features("iso_score", "tall", ((9, 4),)),
]

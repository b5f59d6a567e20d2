"""Samples of quantization noise on weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.quantize import analog
from regkern.quantize import block_noise as noise
from regkern.reference.quantize import noise as reference
from sample import Sample, seed
from torch import Tensor


def _quarters(w: Tensor) -> Tensor:
    return (w * 4).floor() / 4


def _quant_noise(name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda w, **o: f(w, seed=seed(), **o)

    zeros = options.get("quantizer", "zero") == "zero"
    gradient = options.get("gradient")
    return Sample(
        "quant_noise",
        name,
        (shape,),
        options,
        bind(noise.quant_noise),
        bind(reference.quant_noise),
        inplace=bind(noise.quant_noise_),
        # With a constant for quantizer the masked gradient is the derivative.
        straight_through=not (gradient == "quantizer" or (gradient == "masked" and zeros)),
        batched=len(shape) > 1,
    )


def _codebook(
    name: str, shape: tuple[int, ...], codebook: tuple[int, int], **options: Any
) -> Sample:
    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda w, c, **o: f(w, quantizer=c, block_size=codebook[1], seed=seed(), **o)

    return Sample(
        "quant_noise",
        name,
        (shape, codebook),
        options,
        bind(noise.quant_noise),
        bind(reference.quant_noise),
        straight_through=True,
        batched=False,
    )


def _weight_noise(name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda w, **o: f(w, seed=seed(), **o)

    linear = options["kind"] in ("none", "mult_normal", "device_variability")
    stacked = "per_sample" in options
    return Sample(
        "weight_noise",
        name,
        (shape,),
        options,
        bind(analog.weight_noise),
        bind(reference.weight_noise),
        inplace=None if stacked else bind(analog.weight_noise_),
        straight_through=not linear or options.get("gradient") == "identity",
        batched=not isinstance(options.get("scale"), Tensor),
    )


def _uniform(name: str, shape: tuple[int, ...], steps: int | None, **options: Any) -> Sample:
    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *rest: Tensor, **o: Any) -> Any:
            if not rest:
                return f(x, 0.7, seed=seed(), **o)
            # Steps keep 24 bits, whatever x has.
            step = rest[0] if x.dtype == torch.float64 else rest[0].float()
            return f(x, step, seed=seed(), **o)

        return call

    return Sample(
        "additive_uniform_noise",
        name,
        (shape,) if steps is None else (shape, (steps,)),
        options,
        bind(analog.additive_uniform_noise),
        bind(reference.additive_uniform_noise),
        inplace=bind(analog.additive_uniform_noise_),
        batched=steps is None,
    )


SAMPLES: list[Sample] = [
    _quant_noise("zero", (7, 20), p=0.4, block_size=8),
    _quant_noise("zero-even", (6, 24), p=0.3, block_size=4),
    _quant_noise("zero-masked", (7, 20), p=0.4, block_size=3, gradient="masked"),
    _quant_noise("kernel", (4, 3, 3, 3), p=0.5),
    _quant_noise("pointwise", (9, 14, 1, 1), p=0.5, block_size=4),
    _quant_noise("mean", (7, 19), p=0.4, block_size=4, quantizer="mean"),
    _quant_noise("mean-kernel", (4, 3, 3, 3), p=0.5, quantizer="mean", gradient="masked"),
    _quant_noise("mean-eval", (6, 20), p=0.4, block_size=5, quantizer="mean", training=False),
    _quant_noise("function", (7, 20), p=0.4, block_size=8, quantizer=_quarters),
    _quant_noise("p-tensor", (5, 3, 2, 3), p=torch.tensor(0.6), quantizer=_quarters),
    _quant_noise("vector", (131,), p=0.5, block_size=1),
    _quant_noise("long-blocks", (3, 50), p=0.5, block_size=40),
    _quant_noise("many-blocks", (30, 70), p=0.25, block_size=9),
    _quant_noise("learned", (6, 20), p=0.5, quantizer=torch.tanh, gradient="quantizer"),
    _codebook("codebook", (7, 20), (11, 4), p=0.5),
    _codebook("codebook-short", (5, 19), (35, 8), p=0.7),
    _codebook("codebook-eval", (4, 3, 3, 3), (17, 9), p=0.1, training=False),
    _codebook("codebook-masked", (6, 20), (5, 2), p=0.5, gradient="masked"),
    _weight_noise("add", (7, 20), kind="add_normal", std_dev=0.1),
    _weight_noise("add-channel", (5, 3, 3, 3), kind="add_normal", std_dev=0.1, scale="channel"),
    _weight_noise("add-large", (40, 53), kind="add_normal", std_dev=0.2, scale=1.5),
    _weight_noise("mult", (7, 19), kind="mult_normal", std_dev=0.3),
    _weight_noise(
        "mult-drop", (7, 20), kind="mult_normal", std_dev=0.3, drop_connect=0.3, rescale=True,
        exempt_last_column=True,
    ),
    _weight_noise("mult-identity", (7, 20), kind="mult_normal", std_dev=0.3, gradient="identity"),
    _weight_noise(
        "samples", (6, 9), kind="mult_normal", std_dev=0.3, per_sample=3, drop_connect=0.2
    ),
    _weight_noise("samples-add", (4, 32), kind="add_normal", std_dev=0.3, per_sample=2),
    _weight_noise("discretize", (7, 20), kind="discretize", resolution=1 / 16),
    _weight_noise(
        "discretize-stochastic", (6, 23), kind="discretize", resolution=20, stochastic=True,
        scale="channel",
    ),
    _weight_noise(
        "discretize-add", (7, 20), kind="discretize_add_normal", resolution=15, std_dev=0.02,
        scale=2.0, exempt_last_column=True,
    ),
    _weight_noise("dorefa", (7, 20), kind="dorefa", resolution=15, drop_connect=0.2),
    _weight_noise(
        "dorefa-channel", (6, 22), kind="dorefa", resolution=7, std_dev=0.05, stochastic=True,
        scale="channel",
    ),
    _weight_noise("poly", (7, 20), kind="poly", std_dev=1.5),
    _weight_noise(
        "prog", (5, 3, 3, 3), kind="prog_noise", std_dev=3.0, scale=torch.tensor(2.5),
        coefficients=(0.1, 0.2, -0.05),
    ),
    _weight_noise("device", (7, 20), kind="device_variability", std_dev=0.7, truncate=True),
    _weight_noise("drop-connect", (7, 20), kind="none", drop_connect=0.4, rescale=True),
    _uniform("number", (7, 20), None),
    _uniform("step", (7, 20), 1),
    _uniform("channel", (5, 3, 3, 3), 5),
    _uniform("axis-1", (3, 4, 2, 5), 4, axis=1),
    _uniform("last-axis", (41, 3), 3, axis=-1),
    _uniform("long", (3, 3, 37, 41), 3, axis=1),
]  # fmt: skip

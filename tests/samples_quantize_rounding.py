"""Samples of rounding and fake quantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.quantize.fake import fake_quantize
from regkern.quantize.rounding import round_to, round_to_
from regkern.reference.quantize import rounding as reference
from sample import Sample, seed
from torch import Tensor


def _round(name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    random = options.get("rounding") == "stochastic"

    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, **o: f(x, **o, **({"seed": seed()} if random else {}))

    return Sample(
        "round_to",
        name,
        shape if isinstance(shape[0], tuple) else (shape,),
        options,
        bind(round_to),
        bind(reference.round_to),
        inplace=bind(round_to_),
        straight_through=True,
        own_precision=True,
    )


def _fake(name: str, shape: tuple[int, ...], scales: int | None = None, **options: Any) -> Sample:
    """`scales`: the number of given scales (of zero points, too, with zero_point=True)."""
    random = options.get("rounding") in ("stochastic", "noise")
    with_zero = options.pop("zero_point", False)
    single = options.get("granularity", "tensor") == "tensor"

    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *rest: Tensor, **o: Any) -> Any:
            given: dict[str, Any] = {"seed": seed()} if random else {}
            if rest:
                # Normals, made positive; the zero points are small numbers.
                wide = torch.float64 if x.dtype == torch.float64 else torch.float32
                s = rest[0].to(wide).abs() * 0.25 + 0.125
                given["scale"] = s.reshape(()) if single else s
            if with_zero:
                given["zero_point"] = rest[1].to(wide).clamp(-2, 2).reshape(s.shape)
            return f(x, **given, **o)

        return call

    shapes = [shape] + ([] if scales is None else [(scales,)] * (2 if with_zero else 1))
    return Sample(
        "fake_quantize",
        name,
        tuple(shapes),
        options,
        bind(fake_quantize),
        bind(reference.fake_quantize),
        straight_through=True,
        own_precision=True,
        batched=scales is None,
    )


SAMPLES: list[Sample] = [
    _round("bfloat16", (5, 29), format="bfloat16"),
    _round("bfloat16-stochastic", (5, 29), format="bfloat16", rounding="stochastic"),
    _round("tf32-23-bits", (3, 41), format="tf32", rounding="stochastic", random_bits=23),
    _round("float16-away", (5, 29), format="float16", rounding="nearest_away"),
    _round("e4m3-last", (2, 3, 4, 6), format="e4m3", rounding="stochastic", random_bits=8),
    _round("e5m2-zero", (2, 3, 4, 6), format="e5m2", rounding="toward_zero"),
    _round("e3m2-floor", (5, 29), format="e3m2", rounding="floor"),
    _round("fnuz", (5, 29), format="e4m3fnuz"),
    _round("fixed", (5, 29), format="fixed8.4", rounding="stochastic"),
    _round("mxfp4", (4, 35), format="mxfp4"),
    _round("mxfp8-axis", (3, 40, 2), format="mxfp8_e5m2", axis=1, rounding="stochastic"),
    _round("mxint8", (2, 64), format="mxint8", scale_mode="even"),
    _round("bfp4", (2, 3, 4, 6), format="bfp4", block_size=8),
    _round("nvfp4", (4, 32), format="nvfp4"),
    _round("large", (3, 1400), format="mxfp6_e3m2", scale_mode="midpoint"),
    _fake("tensor", (2, 3, 4, 6), 1, format="int4"),
    _fake("tensor-zero-point", (5, 29), 1, format="int8", zero_point=True),
    _fake("channel", (2, 3, 4, 6), 3, format="int4", granularity="channel", axis=1),
    _fake(
        "channel-last-axis", (5, 7), 7, format="int4", granularity="channel", axis=1,
        zero_point=True, rounding="stochastic",
    ),
    _fake("group", (2, 19), 6, format="int3", granularity="group", block_size=8),
    _fake("block", (5, 7), 9, format="e2m1", granularity="block", block_size=(2, 3)),
    _fake("long-rows", (2, 2100), 2, format="int5", granularity="channel", zero_point=True),
    _fake("noise", (3, 40), 3, format="int4", granularity="token", rounding="noise"),
    _fake("dynamic", (2, 3, 4, 6), format="int8"),
    _fake("dynamic-asymmetric", (5, 29), format="uint4", symmetric=False),
    _fake("dynamic-token", (3, 48), format="int8", granularity="token", symmetric=False),
    _fake("dynamic-group", (2, 80), format="int4", granularity="group", block_size=40),
    _fake("dynamic-group-32", (2, 64), format="e2m1", granularity="group", block_size=32),
    _fake("group-axis", (2, 9, 4), format="int4", granularity="group", block_size=4, axis=1),
    _fake("dynamic-block", (2, 5, 7), format="int4", granularity="block", block_size=(2, 3)),
    _fake("identity", (5, 29), format="int2", gradient="identity", rounding="stochastic"),
]  # fmt: skip

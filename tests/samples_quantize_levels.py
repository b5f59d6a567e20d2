"""Samples of nearest levels, latent codes, stuck bits and trained bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from regkern.quantize.bitwise import bitwise_weights, pack_bits, sign_ste, unpack_bits
from regkern.quantize.faults import inject_faults, stuck_at, stuck_at_masks
from regkern.quantize.latent import latent_quantize
from regkern.quantize.levels import nearest_level
from regkern.quantize.penalty import level_penalty
from regkern.reference.quantize import levels as reference
from sample import Sample, seed
from torch import Tensor


def _pattern(x: Tensor, values: int) -> Tensor:
    """int64 in [0, values), by element, as large as x."""
    return (torch.arange(x.numel(), device=x.device) * 2654435761 % 2**31 % values).reshape(x.shape)


def _nearest(
    name: str, shape: tuple[int, ...], levels: tuple[int, ...], bits: int = 0, **options: Any
) -> Sample:
    """With `bits`, masks of allowed levels: never without one."""

    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, v: Tensor, **o: Any) -> Tensor:
            allowed = None
            if bits:
                allowed = _pattern(x, 2 ** levels[-1] - 1) + 1
                allowed = allowed.to(torch.int32 if bits == 32 else torch.int64)
            y, code = f(x, v, allowed, **o)
            return y + 0.125 * (code % 16).to(x.dtype)

        return call

    return Sample(
        "nearest_level", name, (shape, levels), options, bind(nearest_level),
        bind(reference.nearest_level), batched=False, straight_through=True,
    )  # fmt: skip


def _latent(name: str, shape: tuple[int, ...], n: int, dim: int = -1, **options: Any) -> Sample:
    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(z: Tensor, v: Tensor, **o: Any) -> Tensor:
            zhat, indices, quantization, commitment = f(z, v, dim, **o)
            wide = zhat.to(quantization.dtype) + 0.5 * quantization + 0.25 * commitment
            return (wide + 0.125 * (indices % 16)).to(z.dtype)

        return call

    return Sample(
        "latent_quantize", name, (shape, (shape[dim], n)), options, bind(latent_quantize),
        bind(reference.latent_quantize), batched=False, straight_through=True,
    )  # fmt: skip


def _penalty(name: str, shape: tuple[int, ...], values: tuple[int, ...], **options: Any) -> Sample:
    stuck, bits = options.pop("stuck", False), options.pop("bits", 0)

    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(w: Tensor, v: Tensor, **o: Any) -> Tensor:
            if stuck:
                o["sa0"] = (_pattern(w, 1009) % 256).to(torch.uint8)
                o["sa1"] = (_pattern(w, 1013) % 256).to(torch.uint8)
            if bits:
                allowed = _pattern(w, 2 ** values[0] - 1) + 1
                o["allowed"] = allowed.to(torch.int32 if bits == 32 else torch.int64)
            if values:
                value = f(w, levels=v, seed=seed(), **o)
            else:
                wide = v.to(torch.promote_types(v.dtype, torch.float32))
                value = f(w, step=wide.abs() * 0.125 + 0.25, seed=seed(), **o)
            # Rounded once, to the dtype of w.
            return (0.5 * w.to(value.dtype) + value).to(w.dtype)

        return call

    return Sample(
        "level_penalty", name, (shape, values), options, bind(level_penalty),
        bind(reference.level_penalty), batched=False, straight_through=True,
    )  # fmt: skip


def _inject(name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    masks, channels = options.pop("masks", 0), options.pop("channels", 0)

    def bind(f: Callable[..., Any], numbers: bool) -> Callable[..., Any]:
        def call(w: Tensor, **o: Any) -> Tensor:
            scale, zero = torch.tensor([0.03125]), torch.tensor([3])
            if channels:
                scale = 2.0 ** -(3.0 + torch.arange(channels) % 3)
                zero = torch.arange(channels) - 2
            if masks:
                o["sa0"] = (_pattern(w, 1009) % masks).to(torch.int32)
                o["sa1"] = (_pattern(w, 1013) % masks).to(torch.int32)
            else:
                o["seed"] = seed()
            if numbers and not channels:
                return f(w, 0.03125, 3, **o)
            return f(w, scale, zero, **o)

        return call

    return Sample(
        "inject_faults", name, (shape,), options, bind(inject_faults, True),
        bind(reference.inject_faults, False), batched=channels == 0, straight_through=True,
    )  # fmt: skip


def _codes(x: Tensor) -> Tensor:
    """7 bits of each element: the same for every dtype."""
    bounds = (0.0, 0.5, -0.5, 1.0, -1.0, 0.25, -0.25)
    return torch.stack([(x > b).to(torch.int64) << i for i, b in enumerate(bounds)]).sum(0)


def _stuck(name: str, shape: tuple[int, ...], dtype: torch.dtype, drawn: bool) -> Sample:
    """Codes of 7 bits, so that every result is a number of any dtype."""

    def bind(at: Callable[..., Any], masks: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor) -> Tensor:
            code = _codes(x).to(dtype)
            if drawn:
                zero, one = masks(tuple(x.shape))
            else:
                zero, one = _pattern(x, 1009) % 128, _pattern(x, 1013) % 128
            return at(code, zero.to(dtype), one.to(dtype)).to(x.dtype)

        return call

    ours = bind(stuck_at, lambda s: stuck_at_masks(s, 7, 0.2, 0.3, dtype=dtype, seed=seed()))
    theirs = bind(reference.stuck_at, lambda s: reference.stuck_at_masks(s, 7, 0.2, 0.3, seed()))
    op = "stuck_at_masks" if drawn else "stuck_at"
    return Sample(op, name, (shape,), {}, ours, theirs, differentiable=False)


def _bitwise(name: str, shape: tuple[int, ...], sign: bool, **options: Any) -> Sample:
    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(bits: Tensor, *rest: Tensor, **o: Any) -> Tensor:
            return f(bits, rest[0] if sign else None, rest[-1], **o)

        return call

    shapes = (shape, shape[1:], ()) if sign else (shape, ())
    return Sample(
        "bitwise_weights", name, shapes, options, bind(bitwise_weights),
        bind(reference.bitwise_weights), batched=False, straight_through=True,
    )  # fmt: skip


def _packing(name: str, shape: tuple[int, ...], latent: bool) -> Sample:
    b = shape[0]

    def bind(pack: Callable[..., Any], unpack: Callable[..., Any]) -> Callable[..., Any]:
        def call(bits: Tensor, sign: Tensor) -> Tensor:
            codes = pack(bits, sign)
            planes, signs = unpack(codes, b, latent=latent)
            return ((planes * (1 + torch.arange(b)).reshape(b, 1)).sum(0) * signs).to(bits.dtype)

        return call

    return Sample(
        "pack_bits", name, (shape, shape[1:]), {}, bind(pack_bits, unpack_bits),
        bind(reference.pack_bits, reference.unpack_bits), batched=False, differentiable=False,
    )  # fmt: skip


def _sign(name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    return Sample(
        "sign_ste", name, (shape,), options, sign_ste, reference.sign_ste, straight_through=True
    )


SAMPLES: list[Sample] = [
    _nearest("shared", (3, 5, 9), (5,)),
    _nearest("channel", (2, 3, 4, 5), (3, 4), dim=1),
    _nearest("last", (11, 6), (6, 3), dim=-1),
    _nearest("clip", (5, 29), (4,), gradient="clip"),
    _nearest("clip-channel", (2, 3, 4, 5), (3, 5), dim=1, gradient="clip"),
    _nearest("allowed", (4, 33), (6,), 32),
    _nearest("allowed-64", (3, 2, 19), (3, 7), 64, dim=0),
    _nearest("many", (7, 21), (300,)),
    _nearest("large", (3, 97, 65), (9,)),
    _latent("last", (13, 10), 5),
    _latent("channels", (2, 3, 4, 6), 4, 1, reduction="sum"),
    _latent("one", (3, 4, 5), 1, 0),
    _latent("rows", (700, 6), 7),
    _latent("planes", (3, 4, 33, 41), 6, 1),
    _penalty("step", (9, 16), (), quant_min=-8, quant_max=7),
    _penalty("step-mean-varies", (5, 29), (), reduction="mean", variability=0.1),
    _penalty("stuck", (3, 5, 9), (), stuck=True, quant_min=-8, quant_max=7),
    _penalty(
        "stuck-unsigned", (7, 20), (), stuck=True, quant_max=255, quant_min=0, reduction="mean"
    ),
    _penalty("levels", (6, 22), (5,), reduction="mean"),
    _penalty("levels-varies", (3, 4, 11), (4,), variability=0.2),
    _penalty("levels-allowed", (7, 20), (6,), bits=32),
    _penalty("levels-allowed-varies", (70, 71), (7,), bits=64, variability=0.1, reduction="mean"),
    _inject("drawn", (3, 5, 9), bits=8, rate=0.05),
    _inject("drawn-4", (7, 19), bits=4, rate=0.2, p_sa1=0.9),
    _inject("drawn-channel", (2, 3, 4, 6), bits=11, rate=0.1, channels=3, dim=1),
    _inject("masks", (3, 4, 3, 4), masks=256, bits=8),
    _inject("masks-channel", (2, 5, 14), masks=65536, bits=16, channels=14, dim=-1),
    _inject("large", (5, 33, 65), bits=6, rate=0.02),
    _stuck("int8", (3, 5, 9), torch.int8, False),
    _stuck("int64", (4, 17), torch.int64, False),
    _stuck("drawn-uint8", (3, 5, 9), torch.uint8, True),
    _stuck("drawn-int32", (70, 9), torch.int32, True),
    _bitwise("signed", (3, 5, 9), True),
    _bitwise("unsigned", (7, 4, 5), False),
    _bitwise("frozen", (4, 2, 15), True, trainable_bits=0b0101),
    _bitwise("large", (5, 67, 71), True),
    _packing("bits", (3, 47), False),
    _packing("latents", (9, 15), True),
    _sign("identity", (3, 5, 9)),
    _sign("hardtanh", (2, 3, 4, 5), surrogate="hardtanh"),
    _sign("tanh", (7, 21), surrogate="tanh", beta=1.5),
]

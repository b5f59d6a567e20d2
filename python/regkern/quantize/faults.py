"""Memory cells that are stuck: masks, codes and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, register
from regkern.quantize.levels import axis
from regkern.random import resolve_seed

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


# ---- raw ops: fake kernels and autograd ----


def _fake_masks(
    seed: Tensor, shape: Sequence[int], bits: int, rate: float, p_sa1: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return seed.new_empty(shape, dtype=dtype), seed.new_empty(shape, dtype=dtype)


_stuck_at = register("stuck_at", lambda code, sa0, sa1: dense_like(code))
_masks = register("stuck_at_masks", _fake_masks)
_inject = register("inject_faults", lambda w, *args, **kwargs: dense_like(w))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    return g, *([None] * 9)


_inject.differentiable(_setup, _backward)


# ---- public functions ----


def _integer(op: str, name: str, value: object) -> None:
    checks.tensor(op, name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in INTEGERS:
        raise TypeError(
            f"regkern.{op}: expected `{name}` of dtype uint8, int8, int16, int32 or int64, got "
            f"{value.dtype}"
        )


def stuck_at(code: Tensor, sa0: Tensor, sa1: Tensor) -> Tensor:
    r"""What is read from memory cells of which some are stuck.

    .. math:: \mathrm{faulty} = (\mathrm{code} \mid \mathrm{sa1}) \mathbin{\&} {\sim}\mathrm{sa0}

    Parameters
    ----------
    code : Tensor
        uint8, int8, int16, int32 or int64, any shape and strides; channels last is kept.
    sa0, sa1 : Tensor
        Like code: bits that always read 0, and 1. A bit in both reads 0.

    Returns
    -------
    Tensor
        Like code.

    Notes
    -----
    Bytes moved: three tensors read, one written. Codes of fewer bits than the dtype has keep their
    upper bits: sign-extend after it, or see `inject_faults`.
    """
    op = "stuck_at"
    _integer(op, "code", code)
    checks.same(op, "sa0", sa0, code, "code")
    checks.same(op, "sa1", sa1, code, "code")
    out: Tensor = _stuck_at(code, sa0, sa1)
    return out


def stuck_at_masks(
    shape: Sequence[int],
    bits: int,
    rate: float,
    p_sa1: float = 0.5,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws the stuck bits of memory cells.

    Every bit of every element is stuck with probability ``rate``, independently, and then at 1 with
    probability ``p_sa1``. Exactly: a uniform U of 48 bits per bit, stuck at 1 if
    ``U < round(rate · p_sa1 · 2^48)`` and else at 0 if ``U < round(rate · 2^48)``.

    Parameters
    ----------
    shape : sequence of int
        Of the codes.
    bits : int
        Bits per code; the masks' upper bits are 0.
    rate, p_sa1 : float
        In [0, 1].
    dtype : torch.dtype, optional
        uint8, int8, int16, int32 or int64, of at least ``bits`` bits. Default: the narrowest signed
        one.
    device : torch.device, optional
        Of the masks, if no seed is given.
    seed, generator
        See `make_seed`. `inject_faults` draws the same masks from the same seed.

    Returns
    -------
    (Tensor, Tensor)
        ``sa0`` and ``sa1``, which never share a bit.

    Notes
    -----
    Bytes moved: the two masks written.
    """
    op = "stuck_at_masks"
    checks.probability(op, "rate", rate)
    checks.probability(op, "p_sa1", p_sa1)
    if dtype is None:
        dtype = next((d for d in INTEGERS[1:] if bits <= 8 * d.itemsize), torch.int64)
    if dtype not in INTEGERS:
        raise TypeError(
            f"regkern.{op}: expected `dtype` to be uint8, int8, int16, int32 or int64, got {dtype}"
        )
    if not 1 <= bits <= 8 * dtype.itemsize:
        raise ValueError(
            f"regkern.{op}: expected `bits` from 1 to {8 * dtype.itemsize}, got {bits}"
        )
    where = torch.empty(0, device=device if seed is None else seed.device)
    seed = resolve_seed(op, where, seed, generator)
    sa0, sa1 = _masks(seed, list(shape), bits, float(rate), float(p_sa1), dtype)
    return sa0, sa1


def _per_channel(op: str, name: str, value: float | Tensor, w: Tensor) -> Tensor:
    """One number, or one per channel, in what is computed with."""
    dtype = compute_dtype(w)
    if not isinstance(value, Tensor):
        return torch.full((1,), value, dtype=dtype, device=w.device)
    checks.on_device(op, name, value, w)
    if value.dim() > 1:
        raise ValueError(
            f"regkern.{op}: expected `{name}` to be a number or of shape (C), got "
            f"{tuple(value.shape)}"
        )
    return value.detach().reshape(-1).to(dtype)


def inject_faults(
    w: Tensor,
    scale: float | Tensor,
    zero_point: int | Tensor = 0,
    bits: int = 8,
    *,
    sa0: Tensor | None = None,
    sa1: Tensor | None = None,
    rate: float | None = None,
    p_sa1: float = 0.5,
    dim: int = 0,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Weights as they are read back from faulty memory.

    .. math::
        q = \mathrm{clamp}(\mathrm{round}(w / s) + z, -2^{b-1}, 2^{b-1} - 1), \qquad
        y = \bigl(\mathrm{faulty}(q) - z\bigr) s; \qquad dw = g

    Parameters
    ----------
    w : Tensor
        Any shape; float32, float64, bfloat16 or float16. Any strides; channels last is kept.
    scale, zero_point : number or Tensor
        s and z, for all or (C) for each index of axis ``dim``. They get no gradient. A scale of 0
        gives 0.
    bits : int
        b, from 2 to 16. Codes are two's complement of that width, before and after the fault: a
        stuck bit b − 1 changes the sign.
    sa0, sa1 : Tensor, optional
        Integer masks of the shape of w, of which the low ``bits`` count; see `stuck_at`.
    rate, p_sa1 : float
        Instead of masks: drawn by the law of `stuck_at_masks`, from the seed and never stored.
    dim : int
        The axis of a scale per channel.
    seed, generator
        See `make_seed`; for ``rate``.

    Returns
    -------
    Tensor
        Like w; the gradient passes straight through.

    Notes
    -----
    Bytes moved: w and the given masks read, y written; no backward. Rounds to nearest, ties to
    even, w / s being w · (1/s). NaN stays NaN. The sequence of draws is that of the logical
    elements, so it does not depend on strides.

    References
    ----------
    Stutz et al., "Bit error robustness for energy-efficient DNN accelerators", MLSys 2021.
    """
    op = "inject_faults"
    checks.floating(op, "w", w)
    if not 2 <= bits <= 16:
        raise ValueError(f"regkern.{op}: expected `bits` from 2 to 16, got {bits}")
    checks.probability(op, "p_sa1", p_sa1)
    masks = sa0 is not None or sa1 is not None
    if masks == (rate is not None):
        got = "both" if masks else "neither"
        raise ValueError(f"regkern.{op}: expected `rate`, or `sa0` and `sa1`, got {got}")
    scales = _per_channel(op, "scale", scale, w)
    zeros = _per_channel(op, "zero_point", zero_point, w)
    # Not `max` and `in`: under torch.compile sizes may be symbolic.
    if scales.shape[0] != zeros.shape[0]:
        count = scales.shape[0] if zeros.shape[0] == 1 else zeros.shape[0]
        scales, zeros = scales.expand(count), zeros.expand(count)
    if scales.shape[0] != 1:
        dim = axis(op, w, dim)
        if scales.shape[0] != w.shape[dim]:
            raise ValueError(
                f"regkern.{op}: expected `scale` and `zero_point` of 1 or {w.shape[dim]} elements, "
                f"got {scales.shape[0]}"
            )
    given: list[Tensor | None] = [None, None]
    for i, (name, mask) in enumerate((("sa0", sa0), ("sa1", sa1))):
        if mask is None:
            continue
        _integer(op, name, mask)
        checks.on_device(op, name, mask, w)
        if mask.shape != w.shape:
            raise ValueError(
                f"regkern.{op}: expected `{name}` of the shape of `w`, {tuple(w.shape)}, got "
                f"{tuple(mask.shape)}"
            )
        given[i] = mask.to(torch.uint8 if bits <= 8 else torch.int32)
    drawn = None
    if rate is not None:
        checks.probability(op, "rate", rate)
        drawn = resolve_seed(op, w, seed, generator)
    out: Tensor = _inject(
        w, scales, zeros, bits, given[0], given[1], drawn, float(rate or 0.0), float(p_sa1), dim
    )
    return out

"""Masks of whole pixels in shapes: lattices, cells of a grid, boxes; bands of spectrograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, register
from regkern.masks.erasing import check_images, numbers_of, random_erasing, random_erasing_
from regkern.random import resolve_seed

Value = float | Sequence[float] | Tensor

# ---- raw ops: fake kernels and autograd ----


def _fake_bits(
    seed: Tensor, shape: str, batch: int, height: int, width: int, *args: Any
) -> tuple[Tensor, Tensor]:
    words = (height * width + 31) // 32
    return (
        seed.new_empty((batch, words), dtype=torch.int32),
        seed.new_empty((batch,), dtype=torch.int32),
    )


shape_bits = register("shape_bits", _fake_bits)
_bands = register(
    "bands",
    lambda seed, batch, height, width, rows, row_width, columns, *args: seed.new_empty(
        (batch, rows + columns, 4), dtype=torch.int32
    ),
)
mask_mix = register("mask_mix", lambda x, bits, partner, value: dense_like(x))
_mask_mix_ = register("mask_mix_", lambda x, bits, value: None)
_adjoint = register("mask_mix_adjoint", lambda g, bits, partner: dense_like(g))


def _zero(like: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.float64, device=like.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bits, partner, _ = inputs
    ctx.save_for_backward(bits, partner)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    bits, partner = ctx.saved_tensors
    # What a fill replaced has no gradient; what a partner gave goes back to it.
    dx = mask_mix(g, bits, None, _zero(g)) if partner is None else _adjoint(g, bits, partner)
    return dx, None, None, None


mask_mix.differentiable(_setup, _backward)


def _setup_adjoint(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward_adjoint(ctx: Any, u: Tensor) -> tuple[Any, ...]:
    bits, partner = ctx.saved_tensors
    return mask_mix(u, bits, partner, None), None, None


_adjoint.differentiable(_setup_adjoint, _backward_adjoint)


class _InPlace(torch.autograd.Function):
    """The in-place call for autograd, which cannot see through a mutable custom op."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: Tensor, value: Tensor) -> Tensor:
        _mask_mix_.raw(x, bits, value)
        ctx.mark_dirty(x)
        ctx.save_for_backward(bits)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (bits,) = ctx.saved_tensors
        return mask_mix(g, bits, None, _zero(g)), None, None


# ---- public functions ----


def _values(op: str, value: Value, x: Tensor) -> Tensor:
    """One number, or one for each channel, in float64."""
    values = numbers_of(value, x)
    count = values.numel()
    # Not `in`: under torch.compile membership does not compare symbolic sizes.
    if count != 1 and count != x.shape[1]:
        raise ValueError(
            f"regkern.{op}: expected `value` to be 1 or {x.shape[1]} numbers, got {count}"
        )
    return values


def _fill(op: str, x: Tensor, bits: Tensor, value: Value, inplace: bool) -> Tensor:
    values = _values(op, value, x)
    if not inplace or torch.compiler.is_compiling():
        y: Tensor = mask_mix(x, bits, None, values)
        return x.copy_(y) if inplace else y
    if torch.is_grad_enabled() and x.requires_grad:
        function_apply(_InPlace, x, bits, values)
        return x
    _mask_mix_.raw(x, bits, values)
    return x


def grid_mask(
    x: Tensor,
    d_range: tuple[int, int],
    ratio: float = 0.5,
    *,
    rotate: float = 0.0,
    p: float = 1.0,
    invert: bool = False,
    value: Value = 0.0,
    inplace: bool = False,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""GridMask: hides the squares of a lattice in every image.

    With a period :math:`d` uniform in ``d_range``, shifts :math:`\delta` uniform in a period and an
    angle uniform in [0, ``rotate``), the pixel at :math:`(v, u)` of the turned image is hidden if

    .. math:: (v + \delta_v) \bmod d \ge l \;\wedge\; (u + \delta_u) \bmod d \ge l,
        \qquad l = \min(\max(\lfloor r d + \tfrac12 \rfloor, 1), d - 1)

    so that a share of :math:`1 - (1 - r)^2` stays.

    Parameters
    ----------
    x : Tensor
        (N, C, H, W) or (N, C, T, H, W); float32, float64, bfloat16, float16 or uint8. Any strides;
        channels last is kept.
    d_range : (int, int)
        Range of the period in pixels, both included, from 2.
    ratio : float
        r, the share of each side of a period that is kept.
    rotate : float
        Largest angle in degrees, 0 to 360.
    p : float
        Probability that a sample has a grid.
    invert : bool
        Hides what else stays: the bars between the squares.
    value : float, sequence or Tensor
        What is put into hidden pixels, one number or one per channel; no gradient.
    inplace : bool
        Write over x; only hidden pixels are touched.
    seed, generator
        See `make_seed`.

    Returns
    -------
    Tensor
        Like x. Differentiable any number of times in x.

    Notes
    -----
    Each sample has its own lattice. Bytes moved: x read and y written, and a bit per pixel of a
    sample, which is all that the backward keeps. What is hidden is replaced: a NaN there is gone.

    References
    ----------
    Chen, Liu, Zhao and Jia, "GridMask data augmentation", 2020.
    """
    op = "grid_mask"
    check_images(op, x)
    low, high = d_range
    if not 2 <= low <= high:
        raise ValueError(f"regkern.{op}: expected `d_range` with 2 <= low <= high, got {d_range}")
    checks.probability(op, "ratio", ratio)
    checks.probability(op, "p", p)
    if not 0.0 <= rotate <= 360.0:
        raise ValueError(f"regkern.{op}: expected `rotate` in [0, 360], got {rotate}")
    bits, _ = shape_bits(
        resolve_seed(op, x, seed, generator), "grid", x.shape[0], x.shape[-2], x.shape[-1],
        p, low, high, ratio, rotate / 360.0, [1, 1], invert, None,
    )  # fmt: skip
    return _fill(op, x, bits, value, inplace)


def hide_and_seek(
    x: Tensor,
    cell: int | tuple[int, int],
    p: float = 0.5,
    *,
    value: Value = 0.0,
    inplace: bool = False,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Hide-and-Seek: hides each cell of a grid with a probability of its own.

    .. math:: y = x \text{ where the cell's } U \ge p, \qquad y = v \text{ elsewhere}

    Parameters
    ----------
    x : Tensor
        As in `grid_mask`.
    cell : int or (int, int)
        Height and width of a cell in pixels; those at the far borders may be smaller.
    p : float
        Probability that a cell is hidden.
    value : float, sequence or Tensor
        v, one number or one per channel. The paper takes the data's mean, so that what a unit sees
        has the same expectation in training as in testing.
    inplace, seed, generator
        As in `grid_mask`.

    Returns
    -------
    Tensor
        Like x. Differentiable any number of times in x.

    Notes
    -----
    As of `grid_mask`.

    References
    ----------
    Singh and Lee, "Hide-and-Seek: forcing a network to be meticulous for weakly-supervised object
    and action localization", ICCV 2017.
    """
    op = "hide_and_seek"
    check_images(op, x)
    checks.probability(op, "p", p)
    bits, _ = cell_bits(op, x, cell, p, resolve_seed(op, x, seed, generator))
    return _fill(op, x, bits, value, inplace)


def cell_bits(
    op: str, x: Tensor, cell: int | tuple[int, int], p: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    """Bits of x's pixels, whole cells at a time, and how many of each sample are kept."""
    height, width = (cell, cell) if isinstance(cell, int) else cell
    if not (height >= 1 and width >= 1):
        raise ValueError(f"regkern.{op}: expected `cell` of at least one pixel, got {cell}")
    bits, kept = shape_bits(
        seed, "patches", x.shape[0], x.shape[-2], x.shape[-1],
        p, 2, 2, 0.5, 0.0, [height, width], False, None,
    )  # fmt: skip
    return bits, kept


def box_mask(
    x: Tensor,
    boxes: Tensor,
    value: Value = 0.0,
    *,
    invert: bool = False,
    inplace: bool = False,
) -> Tensor:
    r"""Replaces given boxes, or all but these.

    .. math:: y = v \text{ inside any box of the sample}, \qquad y = x \text{ outside}

    Parameters
    ----------
    x : Tensor
        As in `grid_mask`.
    boxes : Tensor
        int32 (N, boxes, 4) or (N, 4), (y0, y1, x0, x1), half open; an empty box is none. What lies
        outside of the image is not looked at. See `polygon_boxes`.
    value : float, sequence or Tensor
        v, one number or one per channel; no gradient.
    invert : bool
        Keep the boxes alone.
    inplace : bool
        Write over x.

    Returns
    -------
    Tensor
        Like x. Differentiable any number of times in x.

    Notes
    -----
    As of `grid_mask`. `random_erasing` with ``box=`` erases boxes one after the other and needs no
    bits, but has no inverse.
    """
    op = "box_mask"
    check_images(op, x)
    checks.on_device(op, "boxes", boxes, x)
    if boxes.dim() == 2:
        boxes = boxes[:, None]
    if boxes.dim() != 3 or boxes.shape[0] != x.shape[0] or boxes.shape[2] != 4:
        raise ValueError(
            f"regkern.{op}: expected `boxes` of shape ({x.shape[0]}, 4) or ({x.shape[0]}, boxes, "
            f"4), got {tuple(boxes.shape)}"
        )
    if boxes.is_floating_point():
        raise TypeError(f"regkern.{op}: expected `boxes` of an integer dtype, got {boxes.dtype}")
    seed = torch.zeros(2, dtype=torch.int64, device=x.device)
    bits, _ = shape_bits(
        seed, "boxes", x.shape[0], x.shape[-2], x.shape[-1],
        1.0, 2, 2, 0.5, 0.0, [1, 1], invert, boxes.to(torch.int32),
    )  # fmt: skip
    return _fill(op, x, bits, value, inplace)


def polygon_boxes(polygons: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The smallest boxes of whole pixels around polygons.

    Parameters
    ----------
    polygons : Tensor
        (..., vertices, 2), (x, y) in pixels, where pixel i covers [i, i + 1]; NaN vertices are
        none.
    lengths : Tensor, optional
        (...), how many vertices each polygon has; the others are not looked at.

    Returns
    -------
    Tensor
        int32 (..., 4), (y0, y1, x0, x1), half open; (0, 0, 0, 0) for a polygon without vertices.
    """
    op = "polygon_boxes"
    checks.floating(op, "polygons", polygons)
    if polygons.dim() < 2 or polygons.shape[-1] != 2 or polygons.shape[-2] == 0:
        raise ValueError(
            f"regkern.{op}: expected `polygons` of shape (..., vertices, 2), got "
            f"{tuple(polygons.shape)}"
        )
    there = ~polygons.isnan().any(-1)
    if lengths is not None:
        checks.on_device(op, "lengths", lengths, polygons)
        place = torch.arange(polygons.shape[-2], device=polygons.device)
        there = there & (place < lengths.unsqueeze(-1))
    wide = polygons.double().clamp(-(2.0**30), 2.0**30)
    low = torch.where(there.unsqueeze(-1), wide, 2.0**30).amin(-2).floor()
    high = torch.where(there.unsqueeze(-1), wide, -(2.0**30)).amax(-2).ceil()
    box = torch.stack([low[..., 1], high[..., 1], low[..., 0], high[..., 0]], -1)
    some = there.any(-1, keepdim=True)
    return torch.where(some, box, 0.0).to(torch.int32)


def spec_augment(
    x: Tensor,
    freq_masks: int = 2,
    freq_width: int = 27,
    time_masks: int = 2,
    time_width: int = 100,
    *,
    lengths: Tensor | None = None,
    max_fraction: float = 1.0,
    value: float | Tensor | str = 0.0,
    inplace: bool = False,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""SpecAugment: hides bands of frequencies and of frames in every spectrogram.

    Of a spectrogram of :math:`\nu` channels and :math:`\tau` frames,

    .. math::
        f \sim U\{0, …, F\},\; f_0 \sim U\{0, …, \nu - f\}; \qquad
        t \sim U\{0, …, \min(T, \lfloor p \tau \rfloor)\},\; t_0 \sim U\{0, …, \tau - t\}

    and what lies in a band :math:`[f_0, f_0 + f)` or :math:`[t_0, t_0 + t)` is replaced.

    Parameters
    ----------
    x : Tensor
        (B, frequencies, frames) or (B, C, frequencies, frames); float32, float64, bfloat16 or
        float16. The channels of a sample have the same bands.
    freq_masks, freq_width : int
        Number of frequency bands, and F.
    time_masks, time_width : int
        Number of time bands, and T.
    lengths : Tensor, optional
        int64 (B), :math:`\tau` of each sample; frames beyond are left alone. Default: all frames.
    max_fraction : float
        p, the largest share of its length that one time band takes.
    value : float, Tensor of one element, or "mean"
        What is put into the bands; "mean" is that of the whole batch, frames beyond the lengths
        included, as a constant for the gradient. Spectrograms of zero mean take 0.
    inplace : bool
        Write over x; only the bands are touched.
    seed, generator
        See `make_seed`.

    Returns
    -------
    Tensor
        Like x. Differentiable any number of times in x; the gradient is 0 in the bands.

    Notes
    -----
    Without the paper's time warp. Each sample has its own bands. Bytes moved: x read, y written and
    the bands written once more; in place, the bands alone. No synchronisation.

    References
    ----------
    Park, Chan, Zhang, Chiu, Zoph, Cubuk and Le, "SpecAugment: a simple data augmentation method for
    automatic speech recognition", Interspeech 2019.
    """
    op = "spec_augment"
    checks.floating(op, "x", x)
    if x.dim() not in (3, 4):
        raise ValueError(
            f"regkern.{op}: expected `x` of shape (B, frequencies, frames) or (B, C, frequencies, "
            f"frames), got {tuple(x.shape)}"
        )
    for name, number in (
        ("freq_masks", freq_masks), ("freq_width", freq_width),
        ("time_masks", time_masks), ("time_width", time_width),
    ):  # fmt: skip
        checks.at_least(op, name, number, 0)
    checks.probability(op, "max_fraction", max_fraction)
    if lengths is not None:
        checks.on_device(op, "lengths", lengths, x)
        if lengths.shape != (x.shape[0],) or lengths.is_floating_point():
            raise ValueError(
                f"regkern.{op}: expected `lengths` to be integers of shape ({x.shape[0]},), got "
                f"{lengths.dtype} {tuple(lengths.shape)}"
            )
        lengths = lengths.long()
    if isinstance(value, str):
        checks.one_of(op, "value", value, ("mean",))
        value = x.detach().mean(dtype=torch.float64)
    boxes = _bands(
        resolve_seed(op, x, seed, generator), x.shape[0], x.shape[-2], x.shape[-1],
        freq_masks, freq_width, time_masks, time_width, max_fraction, lengths,
    )  # fmt: skip
    image = x.unsqueeze(1) if x.dim() == 3 else x
    if inplace:
        random_erasing_(image, value=value, box=boxes)
        return x
    y = random_erasing(image, value=value, box=boxes)
    return y.squeeze(1) if x.dim() == 3 else y

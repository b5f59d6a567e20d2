"""Images made of several images of a batch: mosaic and patch mix."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, register
from regkern.masks.erasing import check_images
from regkern.masks.mixing import PAIRINGS, Pairing
from regkern.masks.mixing import _params as _mix_params
from regkern.masks.shapes import cell_bits, mask_mix
from regkern.random import resolve_seed

# ---- raw ops: fake kernels and autograd ----

_mosaic = register("mosaic", lambda x, partner, centre, corner: dense_like(x))
_adjoint = register("mosaic_adjoint", lambda g, partner, centre, corner: dense_like(g))
_params = register(
    "mosaic_params",
    lambda seed, batch, height, width, low, high: (
        seed.new_empty((batch, 4)),
        seed.new_empty((batch, 2), dtype=torch.int32),
    ),
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, partner, centre, ctx.corner = inputs
    ctx.save_for_backward(partner, centre)


# Each is the other's transpose.


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    return _adjoint(g, *ctx.saved_tensors, ctx.corner), None, None, None


def _backward_adjoint(ctx: Any, u: Tensor) -> tuple[Any, ...]:
    return _mosaic(u, *ctx.saved_tensors, ctx.corner), None, None, None


_mosaic.differentiable(_setup, _backward)
_adjoint.differentiable(_setup, _backward_adjoint)


# ---- public functions ----


class Mosaic(NamedTuple):
    """``x``, like the batch; ``partner``, int64 (N, 4), whose images the quadrants show (above
    left, above right, below left, below right); ``weight``, float32 (N, 4), their shares of the
    area; ``centre``, int32 (N, 2), row and column."""

    x: Tensor
    partner: Tensor
    weight: Tensor
    centre: Tensor


def mosaic(
    x: Tensor,
    *,
    centre_range: tuple[float, float] = (0.25, 0.75),
    place: Literal["same", "corner"] = "corner",
    partner: Tensor | None = None,
    centre: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mosaic:
    r"""Mosaic: four images of the batch around a random centre.

    Sample b shows itself above and left of :math:`(c_y, c_x)`, and three random samples of the
    batch in the other quadrants:

    .. math:: y_b(v, u) = x_{\pi(b, q)}(v + \delta_v, u + \delta_u), \qquad q = q_b(v, u)

    Parameters
    ----------
    x : Tensor
        (N, C, H, W) or (N, C, T, H, W); float32, float64, bfloat16, float16 or uint8. Any strides;
        channels last is kept.
    centre_range : (float, float)
        Where the centre lies, in shares of height and width.
    place : {"same", "corner"}
        What part of an image a quadrant shows: that of the same place (:math:`\delta = 0`), or the
        one whose corner lies in the centre, as in a canvas of twice the size cut around it.
    partner, centre : Tensor, optional
        int64 (N, 4) and int32 (N, 2): given instead of drawn.
    seed, generator
        See `make_seed`.

    Returns
    -------
    Mosaic
        Labels are mixed by ``weight``: :math:`\sum_q w_{bq} \ell(y_{\pi(b, q)})`. x is
        differentiable any number of times: gradients of an image's places are added in the order of
        the samples that show them.

    Notes
    -----
    Images are not resized. Bytes moved: x read and y written.

    References
    ----------
    Bochkovskiy, Wang and Liao, "YOLOv4: optimal speed and accuracy of object detection", 2020
    (corner). Takahashi, Matsubara and Uehara, "Data augmentation using random image cropping and
    patching for deep CNNs", 2019 (labels by area).
    """
    op = "mosaic"
    check_images(op, x)
    checks.one_of(op, "place", place, ("same", "corner"))
    low, high = centre_range
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(
            f"regkern.{op}: expected `centre_range` with 0 <= low <= high <= 1, got {centre_range}"
        )
    batch, height, width = x.shape[0], x.shape[-2], x.shape[-1]
    for name, given, size in (("partner", partner, 4), ("centre", centre, 2)):
        if given is not None:
            checks.on_device(op, name, given, x)
            if given.shape != (batch, size) or given.is_floating_point():
                raise ValueError(
                    f"regkern.{op}: expected `{name}` to be integers of shape ({batch}, {size}), "
                    f"got {given.dtype} {tuple(given.shape)}"
                )
    if partner is None or centre is None:
        drawn = _params(resolve_seed(op, x, seed, generator), batch, height, width, low, high)
        partner = drawn[0] if partner is None else partner
        centre = drawn[1] if centre is None else centre
    partner, centre = partner.long(), centre.to(torch.int32)
    y = _mosaic(x, partner, centre, place == "corner")
    above = (centre[:, 0].clamp(0, height) / max(height, 1))[:, None]
    left = (centre[:, 1].clamp(0, width) / max(width, 1))[:, None]
    rows = torch.cat([above, above, 1 - above, 1 - above], 1)
    columns = torch.cat([left, 1 - left, left, 1 - left], 1)
    return Mosaic(y, partner, rows * columns, centre)


class PatchMixed(NamedTuple):
    """``x``, like the batch; ``partner``, int64 (N); ``lam``, float32 (N), the share of the own
    pixels."""

    x: Tensor
    partner: Tensor
    lam: Tensor


def patch_mix(
    x: Tensor,
    cell: int | tuple[int, int],
    p: float = 0.5,
    *,
    pairing: Pairing = "perm",
    partner: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> PatchMixed:
    r"""Takes cells of a grid from a partner.

    .. math::
        y_i = M_i \odot x_i + (1 - M_i) \odot x_{\pi(i)}, \qquad
        M_i \text{ is 0 on a cell with probability } p

    Parameters
    ----------
    x : Tensor
        As in `mosaic`: images or feature maps.
    cell : int or (int, int)
        Height and width of a cell in pixels; those at the far borders may be smaller.
    p : float
        Probability that a cell is the partner's.
    pairing : {"perm", "roll", "flip", "derange", "identity"}
        How partners are drawn, as in `cutmix`.
    partner : Tensor, optional
        int64 (N): given instead of drawn; need not be a permutation.
    seed, generator
        See `make_seed`.

    Returns
    -------
    PatchMixed
        Labels are mixed by ``lam``. x is differentiable any number of times: a pixel's gradient is
        its own and that of the samples that took it, in their order.

    Notes
    -----
    Bytes moved: x read and y written, and a bit per pixel of a sample, which is all that the
    backward keeps with π. Nothing is multiplied, so the NaN of a pixel that is not shown is gone.

    References
    ----------
    Yun et al., "CutMix", ICCV 2019, by cells instead of a box.
    """
    op = "patch_mix"
    check_images(op, x)
    checks.probability(op, "p", p)
    checks.one_of(op, "pairing", pairing, PAIRINGS)
    batch = x.shape[0]
    given = resolve_seed(op, x, seed, generator)
    if partner is None:
        partner = _mix_params(given, batch, x.shape[-2], x.shape[-1], pairing=pairing)[0]
    checks.on_device(op, "partner", partner, x)
    if partner.shape != (batch,) or partner.dtype != torch.int64:
        raise ValueError(
            f"regkern.{op}: expected `partner` to be int64 ({batch},), got {partner.dtype} "
            f"{tuple(partner.shape)}"
        )
    bits, kept = cell_bits(op, x, cell, p, given)
    return PatchMixed(
        mask_mix(x, bits, partner, None), partner, kept / max(x.shape[-2] * x.shape[-1], 1)
    )

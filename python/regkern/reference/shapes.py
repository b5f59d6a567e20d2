"""Masks in shapes, mosaic and patch mix in plain torch, a sample at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern.reference.masks import mix_params
from regkern.reference.random import Draws, words

Value = float | Sequence[float] | Tensor


def _filled(x: Tensor, keep: Tensor, value: Value) -> Tensor:
    """x where `keep` (N, H, W) is, and the value of the channel elsewhere."""
    values = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
    values = values.expand(x.shape[1]).to(x.dtype).reshape(1, -1, *([1] * (x.dim() - 2)))
    return torch.where(_over(keep, x), x, values)


def _over(keep: Tensor, x: Tensor) -> Tensor:
    return keep.reshape(keep.shape[0], *([1] * (x.dim() - 3)), *keep.shape[1:])


def grid_keep(
    seed: Tensor,
    size: tuple[int, int, int],
    d_range: tuple[int, int],
    ratio: float,
    rotate: float,
    p: float,
    invert: bool,
) -> Tensor:
    """What the lattices of (N, H, W) keep."""
    batch, height, width = size
    keep = torch.ones(size, dtype=torch.bool)
    for b in range(batch):
        draws = Draws(seed, "box", b)
        applied = draws.uniform() < p
        d = d_range[0] + draws.below(d_range[1] - d_range[0] + 1)
        length = min(max(int(d * ratio + 0.5), 1), d - 1)
        dv, du = draws.below(d), draws.below(d)
        if not applied:
            continue
        v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        if rotate > 0:
            angle = 2 * math.pi * rotate / 360 * draws.uniform()
            y, x = v - (height - 1) / 2, u - (width - 1) / 2
            v = torch.floor(math.cos(angle) * y - math.sin(angle) * x + 0.5).long()
            u = torch.floor(math.sin(angle) * y + math.cos(angle) * x + 0.5).long()
        hidden = ((v + dv) % d >= length) & ((u + du) % d >= length)
        keep[b] = hidden if invert else ~hidden
    return keep


def grid_mask(
    x: Tensor,
    d_range: tuple[int, int],
    ratio: float = 0.5,
    *,
    rotate: float = 0.0,
    p: float = 1.0,
    invert: bool = False,
    value: Value = 0.0,
    seed: Tensor,
) -> Tensor:
    """GridMask."""
    size = (x.shape[0], x.shape[-2], x.shape[-1])
    return _filled(x, grid_keep(seed, size, d_range, ratio, rotate, p, invert), value)


def cell_keep(seed: Tensor, size: tuple[int, int, int], cell: int | Sequence[int], p: float) -> Any:
    """Which pixels of (N, H, W) are kept, a draw for each cell."""
    batch, height, width = size
    h, w = (cell, cell) if isinstance(cell, int) else cell
    rows, columns = math.ceil(height / h), math.ceil(width / w)
    drawn = words(seed, "mask", torch.arange(batch * rows * columns))[:, 0]
    kept = ((drawn.double() + 0.5) / 2.0**32 >= p).reshape(batch, rows, columns)
    return kept.repeat_interleave(h, 1).repeat_interleave(w, 2)[:, :height, :width]


def hide_and_seek(
    x: Tensor, cell: int | tuple[int, int], p: float = 0.5, *, value: Value = 0.0, seed: Tensor
) -> Tensor:
    """Hide-and-Seek."""
    return _filled(x, cell_keep(seed, (x.shape[0], *x.shape[-2:]), cell, p), value)


def box_mask(x: Tensor, boxes: Tensor, value: Value = 0.0, *, invert: bool = False) -> Tensor:
    """Boxes replaced, or what is around them."""
    inside = torch.zeros(x.shape[0], *x.shape[-2:], dtype=torch.bool)
    for b, of in enumerate(boxes.tolist()):
        for y0, y1, x0, x1 in of:
            inside[b, max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return _filled(x, inside if invert else ~inside, value)


def spec_augment(
    x: Tensor,
    freq_masks: int = 2,
    freq_width: int = 27,
    time_masks: int = 2,
    time_width: int = 100,
    *,
    lengths: Tensor | None = None,
    max_fraction: float = 1.0,
    value: float | str = 0.0,
    seed: Tensor,
) -> Tensor:
    """Bands of frequencies and frames replaced."""
    keep = torch.ones(x.shape[0], *x.shape[-2:], dtype=torch.bool)
    for b in range(x.shape[0]):
        draws = Draws(seed, "box", b)
        nu, tau = x.shape[-2], x.shape[-1] if lengths is None else int(lengths[b])
        for _ in range(freq_masks):
            f = draws.below(min(freq_width, nu) + 1)
            f0 = draws.below(nu - f + 1)
            keep[b, f0 : f0 + f, :tau] = False
        for _ in range(time_masks):
            t = draws.below(min(time_width, int(max_fraction * tau)) + 1)
            t0 = draws.below(tau - t + 1)
            keep[b, :, t0 : t0 + t] = False
    fill = x.detach().mean() if value == "mean" else torch.as_tensor(value, dtype=x.dtype)
    return torch.where(_over(keep, x), x, fill.to(x.dtype))


def mosaic(
    x: Tensor,
    *,
    centre_range: tuple[float, float] = (0.25, 0.75),
    place: str = "corner",
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Four images around a centre, partners and shares of the area."""
    batch, height, width = x.shape[0], x.shape[-2], x.shape[-1]
    low, high = centre_range
    images, partners, weights = [], [], []
    for b in range(batch):
        box, pairing = Draws(seed, "box", b), Draws(seed, "pairing", b)
        cy = int(height * (low + (high - low) * box.uniform()))
        cx = int(width * (low + (high - low) * box.uniform()))
        partner = [b, *(pairing.below(batch) for _ in range(3))]
        rows = []
        for below in (False, True):
            row = []
            for right in (False, True):
                image = x[partner[2 * below + right]]
                y0, y1 = (cy, height) if below else (0, cy)
                x0, x1 = (cx, width) if right else (0, cx)
                if place == "corner":
                    dy, dx = -cy if below else height - cy, -cx if right else width - cx
                    y0, y1, x0, x1 = y0 + dy, y1 + dy, x0 + dx, x1 + dx
                row.append(image[..., y0:y1, x0:x1])
                weights.append((y1 - y0) * (x1 - x0) / (height * width))
            rows.append(torch.cat(row, -1))
        images.append(torch.cat(rows, -2))
        partners.append(partner)
    y = torch.stack(images) if images else x
    return y, torch.tensor(partners).reshape(-1, 4), torch.tensor(weights).reshape(-1, 4)


def patch_mix(
    x: Tensor,
    cell: int | tuple[int, int],
    p: float = 0.5,
    *,
    pairing: str = "perm",
    partner: Tensor | None = None,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells of a partner, the partners and the shares of the own pixels."""
    if partner is None:
        partner = mix_params(seed, x.shape[0], x.shape[-2], x.shape[-1], pairing=pairing)[0]
    keep = cell_keep(seed, (x.shape[0], *x.shape[-2:]), cell, p)
    y = torch.where(_over(keep, x), x, x[partner])
    return y, partner, keep.double().mean((1, 2))

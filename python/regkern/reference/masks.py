"""Masks and mixing, by their formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern.masks.mixing import Mixed, MixParams
from regkern.reference import random as draws

# ---- DropBlock ----

_CHUNK = 4096


def _anchors(n: int, k: int, border: str) -> range:
    """Where a block may start."""
    if border == "valid":
        return range(0, n - k + 1)
    if border == "clip":
        return range(1 - k, n)
    if border == "same":
        return range(-(k // 2), n - k // 2)
    return range(0, n)


def _covered(n: int, k: int, border: str) -> Tensor:
    """anchors × positions: whether a block that starts at the anchor covers the position."""
    table = torch.zeros(len(_anchors(n, k, border)), n, dtype=torch.bool)
    for row, start in enumerate(_anchors(n, k, border)):
        for i in range(start, start + k):
            if border == "wrap":
                table[row, i % n] = True
            elif 0 <= i < n:
                table[row, i] = True
    return table


def seed_rate(
    size: Sequence[int], block: Sequence[int], p: float, border: str, gamma: str, scale: float
) -> tuple[float, float]:
    """γ and the expected kept fraction, mean over positions of (1 − γ)^(anchors that cover it)."""
    cover = torch.ones((), dtype=torch.float64)
    for n, k in zip(size, block, strict=True):
        cover = cover[..., None] * _covered(n, k, border).sum(0).double()

    def kept(rate: float) -> float:
        return float(((1 - rate) ** cover).mean())

    if p == 0:
        rate = 0.0
    elif gamma == "paper":
        rate = p * math.prod(size) / math.prod(block)
        rate /= math.prod(n - k + 1 for n, k in zip(size, block, strict=True))
    elif p >= 1:
        rate = 1.0
    else:
        low, high = 0.0, 1.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if kept(middle) > 1 - p else (low, middle)
        rate = (low + high) / 2
    rate = min(rate * scale, 1.0)
    return rate, kept(rate)


def _binomial_thresholds(n: int, rate: float) -> list[float]:
    """P(count <= k) for k = 0 … n."""
    log_pmf = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + (k * math.log(rate) if k else 0.0)
        + ((n - k) * math.log1p(-rate) if n - k else 0.0)
        for k in range(n + 1)
    ] if 0 < rate < 1 else [0.0 if k == n * rate else -math.inf for k in range(n + 1)]  # fmt: skip
    total = 0.0
    out = []
    for value in log_pmf:
        total += math.exp(value)
        out.append(total)
    return out


def _draw_anchors(seed: Tensor, planes: int, total: int, rate: float) -> Tensor:
    """planes × anchors, i.i.d. Bernoulli(rate): a binomial count per chunk, then its places."""
    chunks = math.ceil(total / _CHUNK)
    inverted = rate > 0.5
    rate = 1 - rate if inverted else rate
    out = torch.zeros(planes, chunks * _CHUNK, dtype=torch.bool)
    for chunk in range(chunks):
        n = min(_CHUNK, total - chunk * _CHUNK)
        thresholds = torch.tensor(_binomial_thresholds(n, rate), dtype=torch.float64)
        item = torch.arange(planes) * chunks + chunk
        first = draws.words(seed, "mask", item * draws.DRAWS_PER_ITEM)
        uniform = (first[:, 0].double() + first[:, 1].double() * 2.0**32) / 2.0**64
        wanted = torch.searchsorted(thresholds, uniform, right=True).clamp(max=n)
        taken = torch.zeros(planes, n, dtype=torch.bool)
        step = 2
        while bool((missing := taken.sum(1) < wanted).any()):
            word = draws.words(seed, "mask", item * draws.DRAWS_PER_ITEM + step // 4)[:, step % 4]
            place = word * n >> 32
            rows = missing.nonzero()[:, 0]
            taken[rows, place[rows]] = True
            step += 1
        out[:, chunk * _CHUNK : chunk * _CHUNK + n] = ~taken if inverted else taken
    return out[:, :total]


def drop_block_mask(
    size: Sequence[int],
    p: float,
    block_size: int | Sequence[int],
    *,
    ndim: int | None = None,
    border: str = "valid",
    per: str = "channel",
    normalize: str = "count",
    gamma: str = "exact",
    gamma_scale: float = 1.0,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """M as bool, of shape (N, C, …), (N, 1, …) or (1, 1, …), and its scale."""
    if isinstance(block_size, int):
        block_size = [block_size] * (len(size) - 2 if ndim is None else ndim)
    ndim = len(block_size)
    shape = list(size) if len(size) == ndim + 2 else [1, *size]
    batch, channels, spatial = shape[0], shape[1], shape[2:]
    block = [min(k, n) for k, n in zip(block_size, spatial, strict=True)]
    rate, keep = seed_rate(spatial, block, float(p), border, gamma, gamma_scale)
    lead = {"channel": [batch, channels], "sample": [batch, 1], "batch": [1, 1]}[per]
    counts = [len(_anchors(n, k, border)) for n, k in zip(spatial, block, strict=True)]
    dropped = _draw_anchors(seed, math.prod(lead), math.prod(counts), rate)
    # Dilate one dimension after the other: a block is a product of intervals.
    dropped = dropped.reshape(-1, *counts).double()
    for d, (n, k) in enumerate(zip(spatial, block, strict=True)):
        table = _covered(n, k, border).double()
        dropped = torch.tensordot(dropped, table, dims=([d + 1], [0])).movedim(-1, d + 1)
    mask = (dropped == 0).reshape(*lead, *spatial)
    if normalize == "none":
        scale = torch.ones(1, dtype=torch.float64)
    elif normalize == "expected":
        scale = torch.tensor([1 / keep if keep > 0 else 0.0], dtype=torch.float64)
    else:
        groups = lead[0] if normalize == "sample" else 1
        rows = mask.reshape(groups, mask.numel() // max(groups, 1))
        kept = rows.sum(1).double()
        scale = torch.where(kept > 0, rows.shape[1] / kept, 0.0)
    return mask.to(seed.device), scale.to(seed.device)


def mask_apply(x: Tensor, mask: Tensor, scale: Tensor, ndim: int | None = None) -> Tensor:
    """x ⊙ M · scale for a bool mask that broadcasts to x."""
    ndim = x.dim() - 2 if ndim is None else ndim
    batched = x if x.dim() == ndim + 2 else x[None]
    factor = scale.reshape(-1, *([1] * (ndim + 1)))
    return (batched * (mask * factor).to(x.dtype)).reshape(x.shape)


def drop_block(
    x: Tensor,
    p: float | Tensor = 0.1,
    block_size: int | Sequence[int] = 7,
    *,
    ndim: int | None = None,
    training: bool = True,
    border: str = "valid",
    per: str = "channel",
    normalize: str = "count",
    gamma: str = "exact",
    gamma_scale: float = 1.0,
    activation: str | None = None,
    residual: Tensor | None = None,
    noise: float = 0.0,
    save: str = "mask",
    seed: Tensor,
) -> Tensor:
    """act(x ⊙ M · scale + noise ⊙ (1 − M) + residual)."""
    y = x
    if training and float(p) > 0:
        if isinstance(block_size, int):
            block_size = [block_size] * (x.dim() - 2 if ndim is None else ndim)
        ndim = len(block_size)
        mask, scale = drop_block_mask(
            x.shape, float(p), block_size, border=border, per=per, normalize=normalize,
            gamma=gamma, gamma_scale=gamma_scale, seed=seed,
        )  # fmt: skip
        y = mask_apply(x, mask, scale, ndim)
        if noise:
            element = torch.arange(x.numel()).reshape(x.shape)
            fill = noise * draws.normal(seed, element).to(x.device, x.dtype)
            y = y + fill * (~mask).expand(*mask.shape[:0], *_batched_shape(x, ndim)).reshape(
                x.shape
            )
    if residual is not None:
        y = y + residual
    return torch.relu(y) if activation == "relu" else y


def _batched_shape(x: Tensor, ndim: int) -> tuple[int, ...]:
    return tuple(x.shape) if x.dim() == ndim + 2 else (1, *x.shape)


# ---- mixing ----


def _inside(box: Tensor, x: Tensor) -> Tensor:
    """Bool of shape (B, 1 …, H, W)."""
    y0, y1, x0, x1 = (box[:, i].reshape(-1, 1, 1) for i in range(4))
    rows = torch.arange(x.shape[-2], device=x.device).reshape(1, -1, 1)
    cols = torch.arange(x.shape[-1], device=x.device).reshape(1, 1, -1)
    hit = (rows >= y0) & (rows < y1) & (cols >= x0) & (cols < x1)
    return hit.reshape(x.shape[0], *([1] * (x.dim() - 3)), *hit.shape[1:])


def mix(
    x: Tensor,
    partner: Tensor,
    *,
    box: Tensor | None = None,
    weight: Tensor | None = None,
    other: Tensor | None = None,
) -> Tensor:
    """a x + (1 − a) o_π inside the box, x outside."""
    theirs = (x if other is None else other).index_select(0, partner)
    if weight is None:
        inside = theirs
    else:
        wide = x if x.is_floating_point() else x.double()
        a = weight.to(wide.dtype).reshape(-1, *([1] * (x.dim() - 1)))
        mixed = a * wide + (1 - a) * theirs
        mixed = torch.where(a == 1, wide, torch.where(a == 0, theirs.to(wide.dtype), mixed))
        inside = mixed if x.is_floating_point() else mixed.round().clamp(0, 255).to(x.dtype)
    return inside if box is None else torch.where(_inside(box, x), inside, x)


def _partners(seed: Tensor, batch: int, pairing: str) -> Tensor:
    if pairing == "roll":
        return torch.arange(batch).roll(1)
    if pairing == "flip":
        return torch.arange(batch).flip(0)
    if pairing == "identity":
        return torch.arange(batch)
    pairs = draws.words(seed, "pairing", torch.arange(batch)).tolist()
    order = sorted(range(batch), key=lambda b: (pairs[b][0] | pairs[b][1] << 32, b))
    if pairing == "perm":
        return torch.tensor(order, dtype=torch.int64)
    partner = [0] * batch
    for rank, b in enumerate(order):
        partner[b] = order[(rank + 1) % batch]
    return torch.tensor(partner, dtype=torch.int64)


def mix_params(
    seed: Tensor,
    batch: int,
    height: int,
    width: int,
    *,
    pairing: str = "roll",
    per: str = "sample",
    cutmix_alpha: float = 0.0,
    mixup_alpha: float = 0.0,
    switch_prob: float = 0.5,
    p: float = 1.0,
    border: str = "clip",
    minmax: tuple[float, float] | None = None,
    correct_lam: bool = True,
) -> MixParams:
    """The parameters of every sample, drawn one sample at a time."""
    boxes, weights, lams = [], [], []
    for b in range(batch):
        item = 0 if per == "batch" else b
        choice = draws.Draws(seed, "choice", item)
        apply = choice.uniform() < p
        cut = cutmix_alpha > 0 and (mixup_alpha <= 0 or choice.uniform() < switch_prob)
        alpha = cutmix_alpha if cut else mixup_alpha
        lam = draws.Draws(seed, "weight", item).beta(alpha, alpha) if alpha > 0 else 1.0
        box, weight = (0, height, 0, width), lam
        if not apply or alpha <= 0:
            box, weight, lam = (0, 0, 0, 0), 1.0, 1.0
        elif cut:
            draw = draws.Draws(seed, "box", item)
            if minmax is not None:
                h = int(height * (minmax[0] + (minmax[1] - minmax[0]) * draw.uniform()))
                w = int(width * (minmax[0] + (minmax[1] - minmax[0]) * draw.uniform()))
            else:
                h, w = int(height * math.sqrt(1 - lam)), int(width * math.sqrt(1 - lam))
            if border == "inside" or minmax is not None:
                y0, x0 = draw.below(height - h + 1), draw.below(width - w + 1)
                box = (y0, y0 + h, x0, x0 + w)
            else:
                cy, cx = draw.below(height), draw.below(width)
                box = (
                    max(cy - h // 2, 0), min(cy + h // 2, height),
                    max(cx - w // 2, 0), min(cx + w // 2, width),
                )  # fmt: skip
            if correct_lam or minmax is not None:
                lam = 1 - (box[1] - box[0]) * (box[3] - box[2]) / max(height * width, 1)
            weight = 0.0
        boxes.append(box)
        weights.append(weight)
        lams.append(lam)
    return MixParams(
        _partners(seed, batch, pairing).to(seed.device),
        torch.tensor(boxes, dtype=torch.int32, device=seed.device).reshape(-1, 4),
        torch.tensor(weights, dtype=torch.float32, device=seed.device),
        torch.tensor(lams, dtype=torch.float32, device=seed.device),
    )


def mix_labels(
    labels: Tensor,
    partner: Tensor,
    lam: Tensor,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
    smoothing: float = 0.0,
    other_labels: Tensor | None = None,
) -> Tensor:
    """λ one_hot(t_i) + (1 − λ) one_hot(t_π(i)), smoothed."""
    theirs = (labels if other_labels is None else other_labels).index_select(0, partner)

    def one_hot(t: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(t, num_classes).double()

    share = lam.double()[:, None]
    hard = share * one_hot(labels) + (1 - share) * one_hot(theirs)
    return (hard * (1 - smoothing) + smoothing / num_classes).to(dtype)


def _mixed(
    x: Tensor,
    target: Tensor | None,
    params: MixParams,
    box: Tensor | None,
    weight: Tensor | None,
    *,
    masks: Sequence[Tensor] = (),
    other: Tensor | None = None,
    other_target: Tensor | None = None,
    other_masks: Sequence[Tensor] | None = None,
    num_classes: int | None = None,
    smoothing: float = 0.0,
    target_dtype: torch.dtype | None = None,
) -> Mixed:
    def one(m: Tensor, o: Tensor | None) -> Tensor:
        return mix(m, params.partner, box=box, weight=weight, other=o)

    theirs: Sequence[Tensor | None] = [None] * len(masks) if other_masks is None else other_masks
    mixed_target: Any = None
    if target is not None and target.is_floating_point():
        soft = target * (1 - smoothing) + smoothing / target.shape[-1] if smoothing else target
        theirs_soft = other_target
        if other_target is not None and smoothing:
            theirs_soft = other_target * (1 - smoothing) + smoothing / other_target.shape[-1]
        mixed_target = mix(soft, params.partner, weight=params.lam, other=theirs_soft)
        mixed_target = mixed_target if target_dtype is None else mixed_target.to(target_dtype)
    elif target is not None and num_classes is not None:
        mixed_target = mix_labels(
            target, params.partner, params.lam, num_classes, target_dtype or torch.float32,
            smoothing, other_target,
        )  # fmt: skip
    elif target is not None:
        source = target if other_target is None else other_target
        mixed_target = (target, source.index_select(0, params.partner), params.lam)
    return Mixed(
        one(x, other),
        mixed_target,
        tuple(one(m, o) for m, o in zip(masks, theirs, strict=True)),
        params,
    )


_TARGET_OPTIONS = (
    "masks", "other", "other_target", "other_masks", "num_classes", "smoothing", "target_dtype",
)  # fmt: skip


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the drawing and of the mixing."""
    how = {k: options.pop(k) for k in _TARGET_OPTIONS if k in options}
    return options, how


def _draw(x: Tensor, options: dict[str, Any]) -> MixParams:
    partner = options.pop("partner", None)
    given: MixParams | None = options.pop("params", None)
    options.pop("out", None)
    if given is not None:
        return given
    params = mix_params(options.pop("seed"), x.shape[0], x.shape[-2], x.shape[-1], **options)
    return params if partner is None else params._replace(partner=partner)


def cutmix(x: Tensor, target: Tensor | None = None, alpha: float = 1.0, **options: Any) -> Mixed:
    """(1 − B) ⊙ x + B ⊙ x_π, labels by area."""
    draw, how = _split(options)
    params = _draw(x, {"cutmix_alpha": alpha, **draw})
    return _mixed(x, target, params, params.box, None, **how)


def mixup(
    x: Tensor,
    target: Tensor | None = None,
    alpha: float = 1.0,
    lam: Tensor | None = None,
    **options: Any,
) -> Mixed:
    """λ x + (1 − λ) x_π, labels alike."""
    draw, how = _split(options)
    params = _draw(x, {"mixup_alpha": alpha, **draw})
    if lam is not None:
        params = params._replace(weight=lam, lam=lam)
    return _mixed(x, target, params, None, params.weight, **how)


def cutmix_or_mixup(
    x: Tensor,
    target: Tensor | None = None,
    cutmix_alpha: float = 1.0,
    mixup_alpha: float = 1.0,
    **options: Any,
) -> Mixed:
    """One or the other."""
    draw, how = _split({"pairing": "flip", **options})
    params = _draw(x, {"cutmix_alpha": cutmix_alpha, "mixup_alpha": mixup_alpha, **draw})
    return _mixed(x, target, params, params.box, params.weight, **how)


# ---- random erasing ----


def erase_boxes(
    size: Sequence[int],
    *,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    count: int | tuple[int, int] = 1,
    sampler: str = "retry",
    per: str = "sample",
    side: int = 0,
    seed: Tensor,
) -> Tensor:
    """(y0, y1, x0, x1) of every box, drawn one at a time; ``sampler="square"`` is Cutout's."""
    batch, height, width = size[0], size[-2], size[-1]
    least, most = (count, count) if isinstance(count, int) else count
    out = torch.zeros(batch, most, 4, dtype=torch.int32)
    for b in range(batch):
        item = 0 if per == "batch" else b
        choice = draws.Draws(seed, "choice", item)
        apply = choice.uniform() < p
        n = least + choice.below(most - least + 1)
        for k in range(n if apply else 0):
            draw = draws.Draws(seed, "box", item * most + k)
            if sampler == "square":
                half = side // 2
                cy, cx = draw.below(height), draw.below(width)
                out[b, k] = torch.tensor(
                    [max(cy - half, 0), min(cy + half, height),
                     max(cx - half, 0), min(cx + half, width)]
                )  # fmt: skip
                continue
            for _ in range(10 if sampler == "retry" else 1):
                area = (scale[0] + (scale[1] - scale[0]) * draw.uniform()) * height * width / n
                low, high = math.log(ratio[0]), math.log(ratio[1])
                if sampler == "fit":
                    lowest = math.log(area) - 2 * math.log(max(width - 1, 0.5))
                    highest = 2 * math.log(max(height - 1, 0.5)) - math.log(area)
                    low, high = max(low, lowest), min(high, highest)
                    if low > high:
                        low = high = (lowest + highest) / 2
                aspect = math.exp(low + (high - low) * draw.uniform())
                h = int(math.sqrt(area * aspect) + 0.5)
                w = int(math.sqrt(area / aspect) + 0.5)
                if sampler == "fit":
                    h, w = min(h, height - 1), min(w, width - 1)
                if not (0 < h < height and 0 < w < width):
                    continue
                y0, x0 = draw.below(height - h + 1), draw.below(width - w + 1)
                out[b, k] = torch.tensor([y0, y0 + h, x0, x0 + w])
                break
    return out.to(seed.device)


def _erase(x: Tensor, box: Tensor, value: Any, seed: Tensor | None) -> Tensor:
    batch, channels, boxes = x.shape[0], x.shape[1], box.shape[1]
    y = x.clone(memory_format=torch.contiguous_format)
    spread = [1] * (x.dim() - 2)
    for k in range(boxes):
        if isinstance(value, str):
            assert seed is not None
            if value == "pixel":
                element = torch.arange(x.numel()).reshape(x.shape)
                fill = draws.normal(seed, element)
            else:
                item = (torch.arange(batch)[:, None] * boxes + k) * channels
                fill = draws.normal(seed, item + torch.arange(channels))
                fill = fill.reshape(batch, channels, *spread)
        else:
            fill = torch.as_tensor(value, dtype=torch.float64).reshape(1, -1, *spread)
        y = torch.where(_inside(box[:, k], x), fill.to(x.device, x.dtype).expand_as(x), y)
    return y


def random_erasing(
    x: Tensor,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: Any = 0.0,
    *,
    box: Tensor | None = None,
    seed: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The fill inside the boxes, x outside."""
    if box is None:
        assert seed is not None
        box = erase_boxes(x.shape, p=p, scale=scale, ratio=ratio, seed=seed, **options)
    return _erase(x, box if box.dim() == 3 else box[:, None], value, seed)


def cutout(
    x: Tensor, size: int, *, holes: int = 1, p: float = 1.0, value: Any = 0.0, seed: Tensor
) -> Tensor:
    """Squares of side ``size`` around uniform centres, clipped."""
    box = erase_boxes(x.shape, p=p, count=holes, sampler="square", side=size, seed=seed)
    return _erase(x, box, value, seed)

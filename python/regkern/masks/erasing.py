"""Random erasing and Cutout of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, register
from regkern.random import resolve_seed

Fill = float | Sequence[float] | Tensor | Literal["channel", "pixel"]


# ---- raw ops: fake kernels and autograd ----


def _fake_params(
    seed: Tensor,
    batch: int,
    height: int,
    width: int,
    min_count: int = 1,
    max_count: int = 1,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    return seed.new_empty((batch, max_count, 4), dtype=torch.int32)


_params = register("erase_params", _fake_params)
_erase = register(
    "random_erasing", lambda x, box, value=None, fill="value", seed=None: dense_like(x)
)
_erase_ = register("random_erasing_", lambda x, box, value=None, fill="value", seed=None: None)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    # What was replaced has no gradient: the map is its own transpose, with a fill of zero.
    (box,) = ctx.saved_tensors
    return _erase(g, box, torch.zeros(1, dtype=torch.float64, device=g.device)), *([None] * 4)


_erase.differentiable(_setup, _backward)


class _InPlace(torch.autograd.Function):
    """The in-place call for autograd, which cannot see through a mutable custom op."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, box: Tensor, value: Tensor | None, fill: str, seed: Tensor | None
    ) -> Tensor:
        _erase_.raw(x, box, value, fill, seed)
        ctx.mark_dirty(x)
        ctx.save_for_backward(box)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _backward(ctx, g)


# ---- public functions ----


def _fill(op: str, value: Fill, x: Tensor) -> tuple[str, Tensor | None]:
    if isinstance(value, str):
        checks.one_of(op, "value", value, ("channel", "pixel"))
        checks.floating(op, "x", x)
        return value, None
    values = numbers_of(value, x)
    count = values.numel()
    # Not `in`: under torch.compile membership does not compare symbolic sizes.
    if count != 1 and count != x.shape[1]:
        raise ValueError(
            f"regkern.{op}: expected `value` to be 1 or {x.shape[1]} numbers, got {count}"
        )
    return "value", values


def numbers_of(value: float | Sequence[float] | Tensor, x: Tensor) -> Tensor:
    """float64 on x's device. Filled there: a copy from the host would wait for the GPU."""
    if isinstance(value, Tensor):
        return value.detach().reshape(-1).to(x.device, torch.float64)
    numbers = [value] if isinstance(value, int | float) else list(value)
    filled = [torch.full((1,), v, dtype=torch.float64, device=x.device) for v in numbers]
    return filled[0] if len(filled) == 1 else torch.cat(filled)


def check_images(op: str, x: Tensor) -> None:
    """Images, (N, C, H, W) or (N, C, T, H, W), of a floating dtype or bytes."""
    checks.tensor(op, "x", x)
    if x.dtype != torch.uint8:
        checks.floating(op, "x", x)
    if x.dim() not in (4, 5):
        raise ValueError(
            f"regkern.{op}: expected `x` of shape (N, C, H, W) or (N, C, T, H, W), got "
            f"{tuple(x.shape)}"
        )


def _given_box(op: str, box: Tensor, x: Tensor) -> Tensor:
    checks.tensor(op, "box", box)
    if box.dim() == 2:
        box = box[:, None]
    if box.dim() != 3 or box.shape[0] != x.shape[0] or box.shape[2] != 4:
        raise ValueError(
            f"regkern.{op}: expected `box` of shape ({x.shape[0]}, 4) or ({x.shape[0]}, boxes, 4), "
            f"got {tuple(box.shape)}"
        )
    if box.device != x.device:
        raise ValueError(f"regkern.{op}: expected `box` on {x.device}, got {box.device}")
    return box.to(torch.int32)


def check_options(
    op: str,
    p: float,
    scale: Sequence[float],
    ratio: Sequence[float],
    count: int | tuple[int, int],
    sampler: str,
    per: str,
) -> tuple[int, int]:
    """Checks how boxes are drawn and returns the least and the largest number of them."""
    checks.probability(op, "p", p)
    checks.one_of(op, "sampler", sampler, ("retry", "fit"))
    checks.one_of(op, "per", per, ("sample", "batch"))
    least, most = (count, count) if isinstance(count, int) else count
    if not 1 <= least <= most:
        raise ValueError(
            f"regkern.{op}: expected `count` from 1, as an int or (least, most), got {count}"
        )
    if not 0.0 < scale[0] <= scale[1] <= 1.0:
        raise ValueError(
            f"regkern.{op}: expected `scale` with 0 < low <= high <= 1, got {tuple(scale)}"
        )
    if not 0.0 < ratio[0] <= ratio[1]:
        raise ValueError(f"regkern.{op}: expected `ratio` with 0 < low <= high, got {tuple(ratio)}")
    return least, most


def erase_boxes(
    size: Sequence[int],
    *,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    count: int | tuple[int, int] = 1,
    sampler: Literal["retry", "fit"] = "retry",
    per: Literal["sample", "batch"] = "sample",
    seed: Tensor,
) -> Tensor:
    """The boxes that `random_erasing` draws for images of shape ``size`` (N, …, H, W).

    Returns
    -------
    Tensor
        int32 (N, boxes, 4), (y0, y1, x0, x1), half open; empty where nothing is erased.
    """
    least, most = check_options("erase_boxes", p, scale, ratio, count, sampler, per)
    boxes: Tensor = _params(
        seed, size[0], size[-2], size[-1], least, most, per == "batch", p, *scale, *ratio, sampler
    )
    return boxes


def _erase_into(
    x: Tensor, box: Tensor, fill: str, values: Tensor | None, seed: Tensor | None, inplace: bool
) -> Tensor:
    noise = None if fill == "value" else seed
    if not inplace:
        y: Tensor = _erase(x, box, values, fill, noise)
        return y
    if torch.compiler.is_compiling():
        return x.copy_(_erase(x, box, values, fill, noise))
    if torch.is_grad_enabled() and x.requires_grad:
        function_apply(_InPlace, x, box, values, fill, noise)
        return x
    _erase_.raw(x, box, values, fill, noise)
    return x


def _random_erasing(
    op: str,
    x: Tensor,
    inplace: bool,
    value: Fill,
    box: Tensor | None,
    seed: Tensor | None,
    generator: torch.Generator | None,
    **options: Any,
) -> Tensor:
    check_images(op, x)
    fill, values = _fill(op, value, x)
    if box is None or fill != "value":
        seed = resolve_seed(op, x, seed, generator)
    if box is None:
        assert seed is not None
        box = erase_boxes(x.shape, seed=seed, **options)
    else:
        box = _given_box(op, box, x)
    return _erase_into(x, box, fill, values, seed, inplace)


def random_erasing(
    x: Tensor,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: Fill = 0.0,
    *,
    count: int | tuple[int, int] = 1,
    sampler: Literal["retry", "fit"] = "retry",
    per: Literal["sample", "batch"] = "sample",
    box: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Random erasing: replaces random boxes of every image.

    .. math::
        y = x \text{ outside the boxes}, \qquad y = v \text{ inside};
        \qquad h = \sqrt{s H W r}, \; w = \sqrt{s H W / r}, \;
        s \sim U(\mathrm{scale}), \; \ln r \sim U(\ln \mathrm{ratio})

    Parameters
    ----------
    x : Tensor
        (N, C, H, W) or (N, C, T, H, W); float32, float64, bfloat16, float16, or uint8 with a
        constant value. Any strides; channels last is kept.
    p : float
        Probability of erasing, per sample or batch.
    scale, ratio : (float, float)
        Range of the erased share of the image, all boxes together, and of height / width.
    value : float, sequence, Tensor, "channel" or "pixel"
        A number, one per channel, a standard normal per box and channel, or one per element (the
        paper's RE-R).
    count : int or (int, int)
        Number of boxes, or its range.
    sampler : {"retry", "fit"}
        Draws area and ratio until the box fits, ten times at most, and else erases nothing (what
        torchvision and timm do); or clamps the ratio so that the box fits.
    per : {"sample", "batch"}
        What has boxes of its own.
    box : Tensor, optional
        int32 (N, 4) or (N, boxes, 4), (y0, y1, x0, x1), half open: boxes given instead of drawn.
    seed, generator
        See `make_seed`.

    Returns
    -------
    Tensor
        Like x. Differentiable any number of times in x; the gradient is 0 in the boxes.

    Notes
    -----
    Bytes moved: x read, y written, the boxes written. In place only the boxes are touched. What is
    erased is replaced, so a NaN in a box is gone. Boxes are drawn on x's device without a
    synchronisation.

    References
    ----------
    Zhong et al., "Random erasing data augmentation", AAAI 2020.
    """
    return _random_erasing(
        "random_erasing", x, False, value, box, seed, generator,
        p=p, scale=scale, ratio=ratio, count=count, sampler=sampler, per=per,
    )  # fmt: skip


def random_erasing_(
    x: Tensor,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
    value: Fill = 0.0,
    *,
    count: int | tuple[int, int] = 1,
    sampler: Literal["retry", "fit"] = "retry",
    per: Literal["sample", "batch"] = "sample",
    box: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """In-place `random_erasing`: writes the boxes of x and touches nothing else.

    Returns
    -------
    Tensor
        x.
    """
    return _random_erasing(
        "random_erasing_", x, True, value, box, seed, generator,
        p=p, scale=scale, ratio=ratio, count=count, sampler=sampler, per=per,
    )  # fmt: skip


def cutout(
    x: Tensor,
    size: int,
    *,
    holes: int = 1,
    p: float = 1.0,
    value: Fill = 0.0,
    inplace: bool = False,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cutout: erases squares around uniform centres, clipped at the border.

    Rows [c − L // 2, c + L // 2) of a side L = ``size``, so an odd L acts as L − 1; holes may
    overlap.
    Arguments and result as in `random_erasing`.

    References
    ----------
    DeVries and Taylor, "Improved regularization of convolutional neural networks with Cutout",
    2017.
    """
    op = "cutout"
    check_images(op, x)
    checks.at_least(op, "size", size, 1)
    checks.at_least(op, "holes", holes, 1)
    checks.probability(op, "p", p)
    fill, values = _fill(op, value, x)
    seed = resolve_seed(op, x, seed, generator)
    box = _params(
        seed, x.shape[0], x.shape[-2], x.shape[-1], holes, holes, p=p, shape="square", side=size
    )
    return _erase_into(x, box, fill, values, seed, inplace)

"""Samples of the masks family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import regkern
import torch
from regkern import reference
from sample import FLOATS, Sample, normal, seed
from torch import Tensor


def _drop_block(name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    residual = options.pop("with_residual", False)

    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        if residual:
            return lambda x, r, **o: f(x, residual=r, seed=seed(), **o)
        return lambda x, **o: f(x, seed=seed(), **o)

    return Sample(
        "drop_block",
        name,
        (shape, shape) if residual else (shape,),
        options,
        bind(regkern.drop_block),
        bind(reference.drop_block),
        inplace=bind(regkern.drop_block_),
        batched=len(shape) == options.get("ndim", len(shape) - 2) + 2,
    )


def _mixer(op: str, name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    ours, definition = getattr(regkern, op), getattr(reference, op)
    return Sample(
        op,
        name,
        (shape,),
        options,
        lambda x, **o: ours(x, seed=seed(), **o).x,
        lambda x, **o: definition(x, seed=seed(), **o).x,
        dtypes=(*FLOATS, torch.uint8),
    )


def _soft_targets(op: str, name: str, **options: Any) -> Sample:
    """Gradients with respect to soft targets."""
    ours, definition = getattr(regkern, op), getattr(reference, op)
    images = normal((5, 2, 8, 9), torch.float32, 7)

    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        # As many images as targets: the contract varies the batch.
        return lambda t, **o: f(images[: t.shape[0]], t, seed=seed(), **o).target

    return Sample(op, name, ((5, 4),), options, bind(ours), bind(definition))


_PARTNER = torch.tensor([2, 2, 0, 2])
_BOX = torch.tensor([[0, 3, 1, 7], [4, 4, 0, 7], [0, 6, 0, 7], [2, 5, 3, 4]], dtype=torch.int32)


def _mix(name: str, box: bool, weight: bool, other: bool) -> Sample:
    def bind(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *rest: Tensor) -> Any:
            given = list(rest)
            n = x.shape[0]
            o = given.pop(0) if other else None
            # Weights of exactly 0 and 1 take the paths that do not read the other image.
            w = given.pop(0) if weight else None
            if w is not None:
                w = w if w.dtype == torch.float64 else w.float()
            partner = _PARTNER[:n].clamp(max=max(n - 1, 0))
            return f(x, partner, box=_BOX[:n] if box else None, weight=w, other=o)

        return call

    shapes = [(4, 3, 6, 7)] + [(4, 3, 6, 7)] * other + [(4,)] * weight
    return Sample("mix", name, tuple(shapes), {}, bind(regkern.mix), bind(reference.mix))


def _erase(op: str, name: str, shape: tuple[int, ...], **options: Any) -> Sample:
    ours, definition = getattr(regkern, op), getattr(reference, op)
    random_fill = isinstance(options.get("value"), str)
    inplace = {
        "random_erasing": lambda x, **o: regkern.random_erasing_(x, seed=seed(), **o),
        "cutout": lambda x, **o: regkern.cutout(x, inplace=True, seed=seed(), **o),
    }[op]
    return Sample(
        op,
        name,
        (shape,),
        options,
        lambda x, **o: ours(x, seed=seed(), **o),
        lambda x, **o: definition(x, seed=seed(), **o),
        inplace=inplace,
        dtypes=FLOATS if random_fill else (*FLOATS, torch.uint8),
    )


def _mask_apply(name: str, shape: tuple[int, ...], per: str, normalize: str) -> Sample:
    options = {"p": 0.3, "block_size": 2, "per": per, "normalize": normalize}

    def ours(x: Tensor) -> Tensor:
        mask, scale = regkern.drop_block_mask(x.shape, seed=seed(), **options)
        return regkern.mask_apply(x, mask, scale, per=per)

    def definition(x: Tensor) -> Tensor:
        mask, scale = reference.drop_block_mask(x.shape, seed=seed(), **options)
        return reference.mask_apply(x, mask, scale)

    return Sample("mask_apply", name, (shape,), {}, ours, definition)


SAMPLES: list[Sample] = [
    _drop_block("1d", (3, 2, 37), p=0.2, block_size=5),
    _drop_block("2d", (2, 3, 9, 11), p=0.25, block_size=3),
    _drop_block("3d", (2, 3, 4, 5, 6), p=0.3, block_size=(2, 3, 2)),
    _drop_block("unbatched", (3, 8, 9), p=0.25, block_size=3, ndim=2),
    _drop_block("even-clip", (2, 2, 8, 8), p=0.3, block_size=4, border="clip"),
    _drop_block("wrap", (2, 2, 8, 8), p=0.3, block_size=(3, 5), border="wrap"),
    _drop_block("same-paper", (2, 2, 9, 8), p=0.2, block_size=3, border="same", gamma="paper"),
    _drop_block("block-above-map", (2, 4, 5, 6), p=0.4, block_size=50),
    _drop_block("per-sample", (3, 4, 7, 7), p=0.3, block_size=3, per="sample"),
    _drop_block("per-batch", (3, 4, 7, 7), p=0.3, block_size=3, per="batch"),
    _drop_block("scale-sample", (3, 4, 7, 7), p=0.3, block_size=3, normalize="sample"),
    _drop_block("scale-expected", (2, 4, 7, 7), p=0.3, block_size=3, normalize="expected"),
    _drop_block("scale-none", (2, 4, 7, 7), p=0.3, block_size=3, normalize="none"),
    _drop_block("p-high", (2, 4, 9, 9), p=0.9, block_size=2),
    _drop_block("p-tensor", (2, 3, 9, 9), p=torch.tensor(0.3), block_size=3, save="seed"),
    _drop_block("p-one", (2, 4, 9, 9), p=1.0, block_size=3),
    _drop_block("dense-seeds", (1, 2, 70, 70), p=0.6, block_size=1),
    _drop_block("gamma-scale", (2, 3, 9, 9), p=0.3, block_size=3, gamma="paper", gamma_scale=40.0),
    _drop_block("relu", (2, 3, 9, 11), p=0.25, block_size=3, activation="relu"),
    _drop_block(
        "relu-residual", (2, 3, 9, 7), p=0.2, block_size=3, activation="relu", with_residual=True
    ),
    _drop_block("residual", (2, 3, 9, 7), p=0.2, block_size=3, with_residual=True),
    _drop_block("noise", (2, 3, 9, 11), p=0.25, block_size=3, noise=0.7, normalize="none"),
    _drop_block("save-seed", (2, 3, 9, 11), p=0.25, block_size=3, save="seed"),
    _drop_block(
        "save-seed-relu", (2, 3, 9, 8), p=0.2, block_size=3, save="seed", activation="relu"
    ),
    _drop_block("large", (4, 5, 40, 33), p=0.1, block_size=7),
    _mask_apply("channel", (2, 3, 7, 9), "channel", "count"),
    _mask_apply("sample", (3, 4, 7, 9), "sample", "sample"),
    _mask_apply("batch", (3, 4, 7, 9), "batch", "count"),
    _mixer("cutmix", "sample", (5, 3, 12, 10)),
    _mixer("cutmix", "batch-perm", (5, 3, 12, 10), per="batch", pairing="perm"),
    _mixer("cutmix", "derange-inside", (6, 2, 12, 10), pairing="derange", border="inside"),
    _mixer("cutmix", "video", (4, 2, 3, 8, 9), minmax=(0.2, 0.8), pairing="flip"),
    _mixer("cutmix", "sometimes", (5, 3, 12, 10), p=0.5, alpha=0.4),
    _soft_targets("cutmix", "soft-targets", smoothing=0.1),
    _mixer("mixup", "sample", (5, 3, 12, 10), alpha=0.3),
    _mixer("mixup", "batch", (5, 3, 12, 10), per="batch", alpha=2.0),
    _mixer("mixup", "large", (3, 3, 65, 67), pairing="perm"),
    _soft_targets("mixup", "soft-targets"),
    _mixer("cutmix_or_mixup", "sample", (7, 3, 9, 10), p=0.8),
    _mixer("cutmix_or_mixup", "batch", (5, 3, 9, 10), per="batch"),
    _mix("paste", True, False, False),
    _mix("paste-other", True, False, True),
    _mix("blend", False, True, False),
    _mix("blend-box", True, True, False),
    _mix("blend-box-other", True, True, True),
    _erase("random_erasing", "value", (5, 3, 12, 10), p=0.8, value=1.5),
    _erase("random_erasing", "per-channel", (5, 3, 12, 10), p=1.0, value=(1.0, 2.0, 3.0)),
    _erase("random_erasing", "channel", (4, 3, 12, 10), p=1.0, value="channel", count=(1, 3)),
    _erase("random_erasing", "pixel", (4, 3, 12, 10), p=1.0, value="pixel", per="batch"),
    _erase("random_erasing", "fit", (4, 3, 12, 10), p=1.0, scale=(0.5, 1.0), sampler="fit"),
    _erase("random_erasing", "video", (3, 2, 3, 12, 10), p=1.0, value="channel"),
    _erase("cutout", "holes", (4, 3, 12, 10), size=5, holes=2),
]

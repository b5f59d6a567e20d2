"""DropBlock, CutMix, MixUp and random erasing."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import regkern
from regkern import reference
from regkern.bench import rivals
from regkern.bench.case import Case, Inputs

FEATURES, FEATURES_SMALL = (32, 256, 56, 56), (2, 8, 14, 14)
IMAGES, IMAGES_SMALL = (64, 3, 224, 224), (4, 3, 20, 24)
MORE_FLOATS = (torch.bfloat16, torch.float16, torch.float64)


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    return torch.randint(256, shape, device=device).to(dtype)


def _features(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    block_size: int = 7,
    channels_last: bool = False,
    residual: bool = False,
) -> Inputs:
    x = _tensor(shape, dtype, device)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    inputs = {"x": x, "p": 0.1, "block_size": block_size, "seed": regkern.make_seed(device)}
    return {**inputs, "residual": _tensor(shape, dtype, device)} if residual else inputs


def _images(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x, classes = _tensor(shape, dtype, device), 1000
    labels = torch.randint(classes, shape[:1], device=device)
    seed = regkern.make_seed(device)
    return {"x": x, "labels": labels, "num_classes": classes, "seed": seed}


def _erasing(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    arguments = {"p": 1.0, "scale": (0.02, 0.33), "ratio": (0.3, 3.3)}
    return {"x": _tensor(shape, dtype, device), "seed": regkern.make_seed(device), **arguments}


def _drop_block(function: Any, i: Inputs, **options: Any) -> Any:
    return function(i["x"], i["p"], i["block_size"], seed=i["seed"], **options)


def _fused(function: Any, i: Inputs) -> Any:
    return _drop_block(function, i, activation="relu", residual=i["residual"])


def _mix(function: Any, i: Inputs) -> Any:
    return function(i["x"], seed=i["seed"])


def _mix_labels(function: Any, i: Inputs) -> Any:
    return function(i["x"], i["labels"], num_classes=i["num_classes"], seed=i["seed"])


def _erase(function: Any, i: Inputs, **options: Any) -> Any:
    return function(i["x"], i["p"], i["scale"], i["ratio"], seed=i["seed"], **options)


CASES = (
    Case(
        op="drop_block",
        variant="",
        shape=FEATURES,
        small=FEATURES_SMALL,
        dtypes=(torch.float32, torch.bfloat16),
        more_dtypes=(torch.float16, torch.float64),
        make=_features,
        ours=partial(_drop_block, regkern.drop_block),
        reference=partial(_drop_block, reference.drop_block),
        rivals=(
            rivals.torchvision_drop_block(),
            rivals.timm_drop_block(couple_channels=False),
            rivals.timm_drop_block(couple_channels=True),
            rivals.dropblock_package(),
            rivals.torch_dropout(),
        ),
        differentiable=True,
        bar=1.8,
        bar_backward=3.2,
    ),
    Case(
        op="drop_block",
        variant="inplace",
        shape=FEATURES,
        small=FEATURES_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_features,
        ours=partial(_drop_block, regkern.drop_block_),
        reference=partial(_drop_block, reference.drop_block),
        rivals=(
            rivals.torchvision_drop_block(inplace=True),
            rivals.timm_drop_block(couple_channels=False, inplace=True),
            rivals.timm_drop_block(couple_channels=True, inplace=True),
        ),
        floor="mul_",
        inplace=True,
        bar=2.2,
    ),
    Case(
        op="drop_block",
        variant="channels_last",
        shape=FEATURES,
        small=FEATURES_SMALL,
        more_dtypes=MORE_FLOATS,
        make=partial(_features, channels_last=True),
        ours=partial(_drop_block, regkern.drop_block),
        reference=partial(_drop_block, reference.drop_block),
        rivals=(rivals.torchvision_drop_block(), rivals.timm_drop_block(couple_channels=True)),
        differentiable=True,
    ),
    Case(
        op="drop_block",
        variant="relu_residual",
        shape=FEATURES,
        small=FEATURES_SMALL,
        more_dtypes=MORE_FLOATS,
        make=partial(_features, residual=True),
        ours=partial(_fused, regkern.drop_block),
        reference=partial(_fused, reference.drop_block),
        rivals=(rivals.torchvision_drop_block(relu_residual=True),),
        passes=3.0,  # x and the residual are read, the output is written
        differentiable=True,
    ),
    Case(
        op="drop_block",
        variant="3d",
        shape=(2, 32, 32, 64, 64),
        small=(2, 3, 8, 9, 10),
        more_dtypes=MORE_FLOATS,
        make=partial(_features, block_size=5),
        ours=partial(_drop_block, regkern.drop_block),
        reference=partial(_drop_block, reference.drop_block),
        rivals=(rivals.torchvision_drop_block(),),
        differentiable=True,
    ),
    Case(
        op="cutmix",
        variant="",
        shape=IMAGES,
        small=IMAGES_SMALL,
        more_dtypes=(*MORE_FLOATS, torch.uint8),
        make=_images,
        ours=partial(_mix, regkern.cutmix),
        reference=partial(_mix, reference.cutmix),
        rivals=(
            rivals.torchvision_mix("CutMix"),
            rivals.timm_mix("cutmix"),
            rivals.kornia_mix("RandomCutMixV2"),
        ),
        differentiable=True,
        bar=1.6,
    ),
    Case(
        op="cutmix",
        variant="labels",
        shape=IMAGES,
        small=IMAGES_SMALL,
        more_dtypes=(*MORE_FLOATS, torch.uint8),
        make=_images,
        ours=partial(_mix_labels, regkern.cutmix),
        reference=partial(_mix_labels, reference.cutmix),
        rivals=(rivals.torchvision_mix("CutMix"), rivals.timm_mix("cutmix")),
        differentiable=True,
    ),
    Case(
        op="mixup",
        variant="",
        shape=IMAGES,
        small=IMAGES_SMALL,
        dtypes=(torch.float32, torch.uint8),
        more_dtypes=MORE_FLOATS,
        make=_images,
        ours=partial(_mix, regkern.mixup),
        reference=partial(_mix, reference.mixup),
        rivals=(
            rivals.torchvision_mix("MixUp"),
            rivals.timm_mix("mixup"),
            rivals.kornia_mix("RandomMixUpV2"),
        ),
        differentiable=True,
        bar=2.0,
    ),
    Case(
        op="random_erasing",
        variant="inplace",
        shape=IMAGES,
        small=IMAGES_SMALL,
        more_dtypes=(*MORE_FLOATS, torch.uint8),
        make=_erasing,
        ours=partial(_erase, regkern.random_erasing_),
        reference=partial(_erase, reference.random_erasing),
        rivals=(
            rivals.torchvision_random_erasing(),
            rivals.timm_random_erasing(),
            rivals.kornia_random_erasing(),
        ),
        passes=0.175,  # the mean of scale: only the boxes are written
        inplace=True,
        bar=0.7,
    ),
    Case(
        op="random_erasing",
        variant="pixel",
        shape=IMAGES,
        small=IMAGES_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_erasing,
        ours=partial(_erase, regkern.random_erasing_, value="pixel"),
        reference=partial(_erase, reference.random_erasing, value="pixel"),
        rivals=(
            rivals.timm_random_erasing("pixel"),
            rivals.torchvision_random_erasing("random"),
        ),
        passes=0.175,
        inplace=True,
    ),
)

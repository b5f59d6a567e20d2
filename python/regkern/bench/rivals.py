"""The peers: one adapter each, imported when it is measured, through its public API only.

An adapter returns the call to time. Whatever differs from our op is said in its note.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from regkern.bench.case import Inputs, Rival, Run

#: A library lives as long as this list: its operators vanish with it.
_torchvision_library: list[Any] = []


def torchvision(module: str = "torchvision") -> Any:
    """Import ``module`` of torchvision, or of what imports torchvision.

    A CUDA wheel beside a CPU torch cannot load torchvision's own operators, and then its import
    fails on the missing ``nms`` that no transform here needs: two declarations stand in for them.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is not None and spec.origin is not None and not _torchvision_library:
        loaded = any(map(_loads, Path(spec.origin).parent.glob("_C*")))
        if not loaded:
            new_library: Any = torch.library.Library
            library = new_library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
            _torchvision_library.append(library)
    return importlib.import_module(module)


def _loads(path: Path) -> bool:
    load_library: Any = torch.ops.load_library
    try:
        load_library(path)
    except (OSError, RuntimeError):
        return False
    return True


def pot(module: str = "ot") -> Any:
    """A module of POT, which is not called like its package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"POT: {error}") from error


def version(package: str) -> str | None:
    """The installed version of ``package``, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# Dropout and DropBlock: inputs `x`, `p`, `block_size`.


def torch_dropout() -> Rival:
    def load() -> Run:
        return lambda i: F.dropout(i["x"], i["p"])

    return Rival("F.dropout", "torch", load, "a yardstick: drops elements, not blocks")


def torchvision_drop_block(*, inplace: bool = False, relu_residual: bool = False) -> Rival:
    def load() -> Run:
        ops = torchvision().ops

        def run(i: Inputs) -> Any:
            drop = ops.drop_block2d if i["x"].ndim == 4 else ops.drop_block3d
            return drop(i["x"], i["p"], i["block_size"], inplace=inplace)

        return (lambda i: F.relu(run(i)) + i["residual"]) if relu_residual else run

    name = "drop_block, relu, add" if relu_residual else "drop_block"
    return Rival(f"torchvision {name}", "torchvision", load)


def timm_drop_block(*, couple_channels: bool, inplace: bool = False) -> Rival:
    def load() -> Run:
        drop = torchvision("timm.layers").drop_block_2d
        kwargs = {"couple_channels": couple_channels, "inplace": inplace}
        return lambda i: drop(i["x"], i["p"], i["block_size"], **kwargs)

    note = "one mask for all channels" if couple_channels else ""
    return Rival(f"timm drop_block_2d couple={couple_channels}", "timm", load, note)


def dropblock_package() -> Rival:
    def load() -> Run:
        module = importlib.import_module("dropblock")
        return lambda i: module.DropBlock2D(i["p"], i["block_size"])(i["x"])

    return Rival("dropblock DropBlock2D", "dropblock", load, "one mask for all channels")


# Mixing: inputs `x`, `labels`, `num_classes`.


def torchvision_mix(name: str) -> Rival:
    def load() -> Run:
        transform = getattr(torchvision("torchvision.transforms.v2"), name)
        return lambda i: transform(num_classes=i["num_classes"])(i["x"], i["labels"])

    note = "one box per batch" if name == "CutMix" else "one weight per batch"
    return Rival(f"torchvision v2.{name}", "torchvision", load, f"{note}, with labels")


def timm_mix(kind: str) -> Rival:
    def load() -> Run:
        mixup = torchvision("timm.data").Mixup
        alphas = {"mixup_alpha": float(kind == "mixup"), "cutmix_alpha": float(kind == "cutmix")}

        def run(i: Inputs) -> Any:
            mix = mixup(**alphas, mode="elem", label_smoothing=0.0, num_classes=i["num_classes"])
            return mix(i["x"], i["labels"])

        return run

    return Rival(f"timm Mixup {kind} elem", "timm", load, "in place, with labels")


def kornia_mix(name: str) -> Rival:
    def load() -> Run:
        augmentation = importlib.import_module("kornia.augmentation")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            mix = getattr(augmentation, name)(p=1.0, data_keys=["input", "class"])
        return lambda i: mix(i["x"], i["labels"])

    return Rival(f"kornia {name}", "kornia", load, "with labels")


# Erasing: inputs `x`, `p`, `scale`, `ratio`.


def torchvision_random_erasing(value: float | str = 0.0) -> Rival:
    def load() -> Run:
        random_erasing = torchvision("torchvision.transforms.v2").RandomErasing

        def run(i: Inputs) -> None:
            erase = random_erasing(i["p"], i["scale"], i["ratio"], value, inplace=True)
            for image in i["x"]:
                erase(image)

        return run

    note = "a loop over the images" + ("" if value == 0.0 else ", one value per box and channel")
    return Rival("torchvision v2.RandomErasing", "torchvision", load, note)


def timm_random_erasing(mode: str = "const") -> Rival:
    def load() -> Run:
        random_erasing = torchvision("timm.data.random_erasing").RandomErasing

        def run(i: Inputs) -> Any:
            areas = {"min_area": i["scale"][0], "max_area": i["scale"][1]}
            return random_erasing(i["p"], **areas, mode=mode, device=i["x"].device)(i["x"])

        return run

    return Rival(f"timm RandomErasing {mode}", "timm", load)


def kornia_random_erasing() -> Rival:
    def load() -> Run:
        random_erasing = importlib.import_module("kornia.augmentation").RandomErasing
        return lambda i: random_erasing(i["scale"], i["ratio"], p=i["p"])(i["x"])

    return Rival("kornia RandomErasing", "kornia", load, "out of place")


# Rounding and fake quantization: inputs `x`, `scale`, `zero_point`.


def torchao_bf16() -> Rival:
    def load() -> Run:
        rounded = importlib.import_module("torchao.optim.quant_utils")._fp32_to_bf16_sr
        return lambda i: rounded(i["x"])

    return Rival("torchao _fp32_to_bf16_sr", "torchao", load)


def torchao_mx(kind: str) -> Rival:
    """To MX and back."""

    def load() -> Run:
        mx = importlib.import_module("torchao.prototype.mx_formats.mx_tensor")
        element = getattr(torch, kind, kind)

        def run(i: Inputs) -> Any:
            scale, data = mx.to_mx(i["x"].detach(), element, 32)
            return mx.to_dtype(data, scale, element, 32, i["x"].dtype)

        return run

    return Rival("torchao to_mx, to_dtype", "torchao", load)


def torchao_int4_groups() -> Rival:
    def load() -> Run:
        qat = importlib.import_module("torchao.quantization.qat")
        int4: Any = getattr(torch, "int4")  # noqa: B009  (torch does not declare it)
        config = qat.IntxFakeQuantizeConfig(int4, group_size=40)
        quantizer = qat.fake_quantizer.IntxFakeQuantizer(config)
        return lambda i: quantizer(i["x"])

    return Rival("torchao IntxFakeQuantizer", "torchao", load)


def qtorch_float(exponent: int, mantissa: int) -> Rival:
    def load() -> Run:
        quant = importlib.import_module("qtorch.quant")
        return lambda i: quant.float_quantize(i["x"], exponent, mantissa, "stochastic")

    return Rival("QPyTorch float_quantize", "qtorch", load, "no seed, no infinity, no NaN")


def aten_fake_quantize(learnable: bool = False) -> Rival:
    def load() -> Run:
        if learnable:
            return lambda i: torch._fake_quantize_learnable_per_tensor_affine(
                i["x"], i["scale"], i["zero_point"], -128, 127, 1.0
            )
        return lambda i: torch.fake_quantize_per_tensor_affine(
            i["x"], i["scale"].detach(), i["zero_point"].detach().int(), -128, 127
        )

    name = "_fake_quantize_learnable_per_tensor" if learnable else "fake_quantize_per_tensor_affine"
    return Rival(f"ATen {name}", "torch", load)

"""Injected noise: Gaussian, uniform, of diffusions, of ELLE's triplet, Beta masks."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import regkern
from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.masks import noise
from regkern.masks.policy_noise import noise_mask_apply
from regkern.reference import noise as reference
from regkern.reference import policy_noise as policy_reference

S, EPS = 0.1, 0.05
FLAT, FLAT_SMALL = (2500, 4000), (6, 50)
IMAGES, IMAGES_SMALL = (64, 3, 224, 224), (3, 3, 8, 9)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    share = torch.rand(shape[0], device=device)
    return {"x": x, "share": share, "seed": regkern.make_seed(device)}


def _masked(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    return {"x": x, "mask": torch.rand(shape[0], 1, 4, 4, device=device).to(dtype)}


def _run(function: Any, i: Inputs, **options: Any) -> Tensor:
    y: Tensor = function(i["x"], S, seed=i["seed"], **options)
    return y


def _perturb(function: Any, i: Inputs) -> Tensor:
    y: Tensor = function(i["x"], i["share"], 0.1, seed=i["seed"])[0]
    return y


def _triplet(function: Any, i: Inputs) -> Tensor:
    y: Tensor = function(i["x"], EPS, seed=i["seed"])[0]
    return y


def _torch(name: str, call: Any, note: str = "") -> Rival:
    return Rival(name, "torch", lambda: lambda i: call(i), note)


def _kornia() -> Rival:
    def load() -> Run:
        layer = importlib.import_module("kornia.augmentation").RandomGaussianNoise(0.0, S, p=1.0)
        return lambda i: layer(i["x"])

    return Rival("kornia RandomGaussianNoise", "kornia", load, "on (N, C, H, W)")


def _eager_perturb(i: Inputs) -> Tensor:
    x = i["x"]
    share = i["share"][:, None]
    eps, xi = torch.randn_like(x), torch.randn_like(x)
    y: Tensor = share.sqrt() * x + (1 - share).sqrt() * (eps + 0.1 * xi)
    return y


def _eager_triplet(i: Inputs) -> Tensor:
    x = i["x"]
    a = x + EPS * (2 * torch.rand_like(x) - 1)
    b = x + EPS * (2 * torch.rand_like(x) - 1)
    alpha = torch.rand(x.shape[0], 1, dtype=x.dtype, device=x.device)
    return torch.cat([a, b, (1 - alpha) * a + alpha * b])


def _eager_mask(i: Inputs) -> Tensor:
    large = F.interpolate(i["mask"], i["x"].shape[-2:], mode="bilinear", align_corners=False)
    y: Tensor = i["x"] + S * large
    return y


CASES = (
    Case(
        op="noise_inject",
        variant="",
        shape=FLAT,
        small=FLAT_SMALL,
        make=_inputs,
        ours=partial(_run, noise.noise_inject),
        reference=partial(_run, reference.noise_inject),
        rivals=(_torch("x + randn_like(x) * s", lambda i: i["x"] + torch.randn_like(i["x"]) * S),),
        dtypes=(torch.float32, torch.bfloat16),
        more_dtypes=(torch.float16, torch.float64),
        differentiable=True,
        bar=5.0,
    ),
    Case(
        op="noise_inject",
        variant="uniform",
        shape=FLAT,
        small=FLAT_SMALL,
        make=_inputs,
        ours=partial(_run, noise.noise_inject, kind="uniform", multiply=True),
        reference=partial(_run, reference.noise_inject, kind="uniform", multiply=True),
        rivals=(
            _torch(
                "x * (1 + s (2 rand_like(x) - 1))",
                lambda i: i["x"] * (1 + S * (2 * torch.rand_like(i["x"]) - 1)),
            ),
        ),
        differentiable=True,
    ),
    Case(
        op="noise_inject",
        variant="images",
        shape=IMAGES,
        small=IMAGES_SMALL,
        make=_inputs,
        ours=partial(_run, noise.noise_inject_),
        reference=partial(_run, reference.noise_inject),
        rivals=(_kornia(),),
        floor="mul_",
        inplace=True,
    ),
    Case(
        op="diffusion_perturb",
        variant="",
        shape=FLAT,
        small=FLAT_SMALL,
        make=_inputs,
        ours=partial(_perturb, noise.diffusion_perturb),
        reference=partial(_perturb, reference.diffusion_perturb),
        rivals=(_torch("eager", _eager_perturb),),
        passes=3.0,
        differentiable=True,
    ),
    Case(
        op="noise_triplet",
        variant="",
        shape=FLAT,
        small=FLAT_SMALL,
        make=_inputs,
        ours=partial(_triplet, noise.noise_triplet),
        reference=partial(_triplet, reference.noise_triplet),
        rivals=(_torch("eager", _eager_triplet),),
        passes=4.0,
        differentiable=True,
    ),
    Case(
        op="noise_mask_apply",
        variant="",
        shape=IMAGES,
        small=IMAGES_SMALL,
        make=_masked,
        ours=lambda i: noise_mask_apply(i["x"], i["mask"], S),
        reference=lambda i: policy_reference.noise_mask_apply(i["x"], i["mask"], S),
        rivals=(_torch("F.interpolate", _eager_mask),),
        differentiable=True,
    ),
)

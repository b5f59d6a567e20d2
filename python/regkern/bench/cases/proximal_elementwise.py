"""Elementwise proximal operators, thresholds of networks, sensitivity shrinkage, pools."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.bench.networks import resnet50, size
from regkern.proximal import elementwise, penalties, sensitivity, thresholds
from regkern.reference.proximal import elementwise as reference
from regkern.reference.proximal import penalties as reference_penalties
from regkern.reference.proximal import sensitivity as reference_sensitivity
from regkern.reference.proximal import thresholds as reference_thresholds

MATRIX, MATRIX_SMALL = (4096, 4096), (24, 40)
# As many as ResNet-50 has.
NETWORK, NETWORK_SMALL = (size(resnet50()),), (3000,)
LOGITS, LOGITS_SMALL = (8, 128, 30522), (2, 5, 33)
MORE_FLOATS = (torch.bfloat16, torch.float16, torch.float64)
STEP = 0.01


def _weights(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    return {"x": x, "g": torch.randn(shape, dtype=torch.float32, device=device).to(dtype)}


def _torch(name: str, run: Run, note: str = "") -> Rival:
    return Rival(name, "torch", lambda: run, note)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """In the compute type, for definitions that compute in what they are given."""
    return x if x.dtype == torch.float64 else x.float()


# ---- shrinkage ----


def _shrink_(i: Inputs, law: Any, **options: Any) -> torch.Tensor:
    elementwise.prox_elementwise_(i["x"], law, STEP, **options)
    x: torch.Tensor = i["x"]
    return x


def _softshrink_(i: Inputs) -> torch.Tensor:
    return torch.nn.functional.softshrink(i["x"], STEP)


def _sign_relu_(i: Inputs) -> torch.Tensor:
    x: torch.Tensor = i["x"]
    return x.copy_(x.sign() * (x.abs() - STEP).clamp_min_(0.0))


def _foreach_soft_(i: Inputs) -> torch.Tensor:
    """x − clamp(x, −t, t), in place but for one tensor."""
    x: torch.Tensor = i["x"]
    return x.sub_(x.clamp(-STEP, STEP))


def _shrinkage(law: str, bar: float | None, rivals: tuple[Rival, ...] = (), **options: Any) -> Case:
    return Case(
        op="prox_elementwise",
        variant=f"{law}_inplace",
        shape=MATRIX,
        small=MATRIX_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weights,
        floor="mul_",
        inplace=True,
        bar=bar,
        rivals=rivals,
        ours=partial(_shrink_, law=law, **options),
        reference=lambda i: reference.prox_elementwise(_wide(i["x"]), law, STEP, **options).to(
            i["x"].dtype
        ),
    )


# ---- thresholds ----


def _kth(i: Inputs) -> torch.Tensor:
    return thresholds.kth_magnitude(i["x"], fraction=0.9).value


def _kth_reference(i: Inputs) -> torch.Tensor:
    k = int(0.9 * i["x"].numel() + 1e-9)
    return reference_thresholds.kth_magnitude([i["x"]], k).to(_kth(i).dtype)


def _hard_(i: Inputs) -> torch.Tensor:
    thresholds.magnitude_threshold_(i["x"], fraction=0.25)
    x: torch.Tensor = i["x"]
    return x


def _hard_reference(i: Inputs) -> torch.Tensor:
    count = i["x"].numel()
    return reference_thresholds.shrink_smallest([i["x"]], 0.0, count - count // 4)[0]


def _topk_(i: Inputs) -> torch.Tensor:
    x: torch.Tensor = i["x"]
    kept = x.abs().topk(x.numel() // 4).indices
    mask = torch.zeros_like(x)
    mask[kept] = 1
    return x.mul_(mask)


# ---- sensitivity ----


def _lobster_(i: Inputs) -> torch.Tensor:
    sensitivity.sensitivity_shrink_(i["x"], i["g"], 1e-4, lr=0.1)
    x: torch.Tensor = i["x"]
    return x


def _lobster_torch_(i: Inputs) -> torch.Tensor:
    x, g = i["x"], i["g"]
    return x.sub_(0.1 * g + 1e-4 * x * torch.relu(1 - g.abs()))  # type: ignore[no-any-return]


# ---- pools ----


def _logits(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape, dtype=torch.float32, device=device).to(dtype)}


def _splade_torch(i: Inputs) -> torch.Tensor:
    return torch.log1p(torch.relu(i["x"])).amax(1)


CASES = (
    _shrinkage(
        "soft",
        1.1,
        (
            _torch("torch.softshrink", _softshrink_, "out of place"),
            _torch("eager sign * relu", _sign_relu_),
            _torch("x -= clamp(x)", _foreach_soft_),
        ),
    ),
    _shrinkage(
        "hard",
        1.1,
        (
            _torch(
                "torch.hardshrink",
                lambda i: torch.nn.functional.hardshrink(i["x"], (2 * STEP) ** 0.5),
                "out of place",
            ),
        ),
    ),
    _shrinkage("mcp", 1.2, shape=3.0),
    _shrinkage("scad", 1.2, shape=3.7),
    _shrinkage("log_sum", None, shape=0.1),
    _shrinkage("half", None),
    Case(
        op="penalty_elementwise",
        variant="soft",
        shape=MATRIX,
        small=MATRIX_SMALL,
        more_dtypes=(torch.bfloat16,),
        make=_weights,
        passes=1.0,
        differentiable=True,
        rivals=(_torch("x.abs().sum()", lambda i: i["x"].abs().sum()),),
        ours=lambda i: elementwise.penalty_elementwise(i["x"], "soft"),
        reference=lambda i: reference.penalty_elementwise(_wide(i["x"]), "soft"),
    ),
    Case(
        op="kth_magnitude",
        variant="",
        shape=NETWORK,
        small=NETWORK_SMALL,
        more_dtypes=(torch.bfloat16,),
        make=_weights,
        passes=1.0,
        rivals=(
            _torch("abs, kthvalue", lambda i: i["x"].abs().kthvalue(int(0.9 * i["x"].numel()))),
            _torch("abs, topk", lambda i: i["x"].abs().topk(i["x"].numel() // 10)),
        ),
        ours=_kth,
        reference=_kth_reference,
    ),
    Case(
        op="magnitude_threshold",
        variant="inplace",
        shape=NETWORK,
        small=NETWORK_SMALL,
        more_dtypes=(torch.bfloat16,),
        make=_weights,
        floor="mul_",
        inplace=True,
        rivals=(_torch("abs, topk, mask", _topk_),),
        ours=_hard_,
        reference=_hard_reference,
    ),
    Case(
        op="sensitivity_shrink",
        variant="inplace",
        shape=MATRIX,
        small=MATRIX_SMALL,
        more_dtypes=MORE_FLOATS,
        make=_weights,
        floor="mul_",
        passes=3.0,
        inplace=True,
        rivals=(_torch("eager", _lobster_torch_),),
        ours=_lobster_,
        reference=lambda i: reference_sensitivity.sensitivity_shrink(
            _wide(i["x"]), _wide(i["g"]), 1e-4, lr=0.1
        ).to(i["x"].dtype),
    ),
    Case(
        op="splade_pool",
        variant="max",
        shape=LOGITS,
        small=LOGITS_SMALL,
        more_dtypes=(torch.bfloat16,),
        make=_logits,
        passes=1.0,
        differentiable=True,
        rivals=(_torch("log1p(relu).amax", _splade_torch),),
        ours=lambda i: penalties.splade_pool(i["x"]),
        reference=lambda i: reference_penalties.splade_pool(i["x"]),
    ),
)

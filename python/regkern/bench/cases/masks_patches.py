"""Patch masks with the tokens that they keep, tokens put back, and the pairwise ranking loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import regkern
from regkern.bench import rivals
from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.masks.patches import patch_gather, patch_mask, patch_restore
from regkern.masks.ranking import pairwise_ranking_loss
from regkern.reference import patches as reference

RATIO = 0.75
TOKENS, TOKENS_SMALL = (256, 196, 768), (3, 20, 8)
KEPT, KEPT_SMALL = (256, 49, 768), (3, 5, 8)
MASKED, MASKED_SMALL = (256, 147), (3, 15)


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    scores = torch.rand(shape[:2], device=device)
    return {"x": x, "scores": scores, "seed": regkern.make_seed(device)}


def _kept(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    """What a quarter of four times as many tokens has."""
    inputs = _inputs(shape, dtype, device)
    patches = patch_mask(shape[0], 4 * shape[1], keep=shape[1], seed=inputs["seed"])
    token = torch.randn(shape[2:], device=device).to(dtype)
    return {**inputs, "restore": patches.ids_restore, "token": token}


def _hard(i: Inputs) -> dict[str, Any]:
    return {"kind": "hard", "scores": i["scores"]}


def _mask(i: Inputs, **options: Any) -> tuple[Tensor, ...]:
    x = i["x"]
    mask, ids, restore = patch_mask(x.shape[0], x.shape[1], RATIO, seed=i["seed"], **options)
    return patch_gather(x, ids), mask, restore


def _mask_reference(i: Inputs, **options: Any) -> tuple[Tensor, ...]:
    x = i["x"]
    mask, ids, restore = reference.patch_mask(
        x.shape[0], x.shape[1], RATIO, seed=i["seed"], **options
    )
    return reference.patch_gather(x, ids), mask, restore


def _sorted(i: Inputs, noise: Tensor) -> tuple[Tensor, ...]:
    """Masks by sorting the noise: the tokens of lowest are kept."""
    x = i["x"]
    keep = x.shape[1] - int(RATIO * x.shape[1])
    order = noise.argsort(1)
    restore = order.argsort(1)
    ids = order[:, :keep]
    y = x.gather(1, ids.unsqueeze(2).expand(-1, -1, x.shape[2]))
    return y, restore >= keep, restore


def _argsort(i: Inputs) -> tuple[Tensor, ...]:
    return _sorted(i, torch.rand(i["x"].shape[:2], device=i["x"].device))


def _argsort_hard(i: Inputs) -> tuple[Tensor, ...]:
    scores = i["scores"]
    top = int(0.5 * int(RATIO * scores.shape[1]))
    noise = torch.rand_like(scores).scatter_(1, scores.topk(top).indices, 2.0)
    return _sorted(i, noise)


def _timm() -> Run:
    layer = rivals.torchvision("timm.layers").PatchDropout(RATIO, 0)
    return lambda i: layer(i["x"])


def _concatenated(i: Inputs) -> Tensor:
    x, restore = i["x"], i["restore"]
    copies = i["token"].expand(x.shape[0], restore.shape[1] - x.shape[1], -1)
    index = restore.unsqueeze(2).expand(-1, -1, x.shape[2])
    y: Tensor = torch.cat([x, copies], 1).gather(1, index)
    return y


def _pairs(i: Inputs) -> Tensor:
    p, t = i["x"], i["scores"]
    gap = p.unsqueeze(2) - p.unsqueeze(1)
    label = t.unsqueeze(2) > t.unsqueeze(1)
    valid = t.unsqueeze(2) != t.unsqueeze(1)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        gap, label.to(gap.dtype), reduction="none"
    )
    mean: Tensor = (losses * valid).sum() / valid.sum()
    return mean


def _gradients(run: Run) -> Run:
    """Forward and backward by what `run` returns first, whose shape is not that of x."""

    def both(i: Inputs) -> tuple[Tensor, ...]:
        names = [name for name in ("x", "token") if name in i]
        leaves: Inputs = {name: i[name].detach().requires_grad_() for name in names}
        y = run({**i, **leaves})
        first: Tensor = y[0] if isinstance(y, tuple) else y
        return torch.autograd.grad(first, list(leaves.values()), torch.ones_like(first))

    return both


def _with_backward(case: Case, passes: float) -> Case:
    return replace(
        case,
        variant="backward",
        ours=_gradients(case.ours),
        reference=_gradients(case.reference),
        rivals=tuple(replace(r, load=_loading(r.load)) for r in case.rivals),
        dtypes=case.dtypes[:1],
        passes=passes,
        bar=None,
    )


def _loading(load: Callable[[], Run]) -> Callable[[], Run]:
    return lambda: _gradients(load())


_FORWARD = (
    Case(
        op="patch_mask",
        variant="gather",
        shape=TOKENS,
        small=TOKENS_SMALL,
        make=_inputs,
        ours=_mask,
        reference=_mask_reference,
        rivals=(
            Rival("argsort, gather", "torch", lambda: _argsort),
            Rival("timm PatchDropout", "timm", _timm, "no mask, no ids"),
        ),
        dtypes=(torch.float32, torch.bfloat16),
        more_dtypes=(torch.float16, torch.float64),
        passes=2 * (1 - RATIO),
        # 1.5 times copying what is kept, in times of a copy of all.
        bar=1.5 * (1 - RATIO),
    ),
    Case(
        op="patch_mask",
        variant="hard",
        shape=TOKENS,
        small=TOKENS_SMALL,
        make=_inputs,
        ours=lambda i: _mask(i, **_hard(i)),
        reference=lambda i: _mask_reference(i, **_hard(i)),
        rivals=(Rival("topk, argsort, gather", "torch", lambda: _argsort_hard),),
        passes=2 * (1 - RATIO),
    ),
    Case(
        op="patch_restore",
        variant="",
        shape=KEPT,
        small=KEPT_SMALL,
        make=_kept,
        ours=lambda i: patch_restore(i["x"], i["restore"], i["token"]),
        reference=lambda i: reference.patch_restore(i["x"], i["restore"], i["token"]),
        rivals=(Rival("cat, gather", "torch", lambda: _concatenated),),
        passes=5.0,
    ),
    Case(
        op="pairwise_ranking_loss",
        variant="",
        shape=MASKED,
        small=MASKED_SMALL,
        make=_inputs,
        ours=lambda i: pairwise_ranking_loss(i["x"], i["scores"]),
        reference=lambda i: reference.pairwise_ranking_loss(i["x"], i["scores"]),
        rivals=(Rival("bce of all pairs", "torch", lambda: _pairs),),
        passes=2.0,
    ),
)

# With what a backward moves: what is kept and the whole.
_PASSES = {"patch_mask": 1.75, "patch_restore": 10.0, "pairwise_ranking_loss": 4.0}

CASES = _FORWARD + tuple(
    _with_backward(case, _PASSES[case.op]) for case in _FORWARD if case.variant != "hard"
)

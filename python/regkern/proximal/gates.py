"""Gates that are 0 or 1, and penalties of gates, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply
from regkern.proximal.activations import number


class _StraightThrough(torch.autograd.Function):
    """The value of the one with the gradient of the other."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, slope: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor]:
        return None, g


def gate(logits: Tensor, threshold: float | Tensor = 0.0) -> Tensor:
    r"""Gates that are open where a logit exceeds the threshold, with a straight-through gradient.

    .. math:: g = 1[x > t], \qquad \frac{\partial g}{\partial x} := 1, \quad
        \frac{\partial g}{\partial t} := -1

    Parameters
    ----------
    logits : Tensor
        x: float32, float64, bfloat16 or float16. Probabilities, with the threshold 0.5, as well.
    threshold : float or Tensor
        t; broadcast, differentiable.

    Returns
    -------
    Tensor
        0 and 1, like ``logits``; NaN where a logit is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Plain torch: the logits are read and written by every step.

    References
    ----------
    Bengio, Léonard and Courville, "Estimating or propagating gradients through stochastic neurons
    for conditional computation", 2013.
    """
    op = "gate"
    checks.floating(op, "logits", logits)
    if isinstance(threshold, Tensor):
        checks.floating(op, "threshold", threshold)
        threshold = threshold.to(device=logits.device)
        fits = threshold.dim() <= logits.dim() and all(
            n in (1, m)
            for n, m in zip(reversed(threshold.shape), reversed(logits.shape), strict=False)
        )
        if not fits:
            raise ValueError(
                f"regkern.{op}: expected `threshold` that broadcasts to {tuple(logits.shape)}, got "
                f"{tuple(threshold.shape)}"
            )
    else:
        checks.number(op, "threshold", threshold)
    with torch.no_grad():
        value = (logits > threshold).to(logits.dtype)
        value = torch.where(logits.isnan(), logits, value)
    slope = (logits - threshold).to(logits.dtype)
    gates: Tensor = function_apply(_StraightThrough, value, slope)
    return gates


def gate_penalty(
    gates: Tensor | Sequence[Tensor],
    rho: float | Tensor,
    lam_s: float | Tensor = 1.0,
    lam_p: float | Tensor = 1.0,
) -> Tensor:
    r"""The penalty by which gates that depend on the input agree on a sub-network.

    .. math:: R = \lambda_s \Bigl( \frac{1}{n} \sum_j \bar g_j - \rho \Bigr)^2
        + \lambda_p \sum_j \bar g_j (1 - \bar g_j), \qquad
        \bar g_j = \operatorname{mean}_b\, g_{bj}

    The first term is for the share of open gates, the second is 0 where every gate is the same for
    the whole batch.

    Parameters
    ----------
    gates : Tensor or sequence of Tensor
        The gates of a layer, or of each, with the batch in front: float32, float64, bfloat16 or
        float16.
    rho : float or Tensor
        The share ρ of open gates, in [0, 1]; one element.
    lam_s, lam_p : float or Tensor
        The factors of the terms, at least 0; one element, differentiable.

    Returns
    -------
    Tensor
        0-d, float32 (float64 where the first tensor is). The means of no gates are 0.
        Differentiable as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Plain torch: gates are read once; in the backward their gradients written.

    References
    ----------
    Zhi et al., "Learning a consensus sub-network with polarization regularization and one pass
    training", 2023.
    """
    op = "gate_penalty"
    xs = checks.tensor_list(op, "gates", gates)
    checks.probability(op, "rho", rho)
    like = xs[0]
    share = number(op, "rho", rho, like)
    sparsity, agreement = number(op, "lam_s", lam_s, like), number(op, "lam_p", lam_p, like)
    for i, x in enumerate(xs):
        if x.dim() == 0:
            raise ValueError(f"regkern.{op}: expected `gates[{i}]` with a batch in front, got 0-d")
    dtype = compute_dtype(like)
    means = [x.sum(0, dtype=dtype).reshape(-1) / max(x.shape[0], 1) for x in xs]
    mean = torch.cat(means)
    miss = mean.sum() / max(mean.numel(), 1) - share
    return sparsity * miss * miss + agreement * (mean * (1 - mean)).sum()


def _masked(op: str, z: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The gates in the compute type, 0 where they do not count."""
    checks.floating(op, "z", z)
    if z.dim() == 0:
        raise ValueError(f"regkern.{op}: expected `z` of shape (..., length), got a 0-d tensor")
    wide = z.to(compute_dtype(z))
    if mask is None:
        return wide, None
    checks.on_device(op, "mask", mask, z)
    if mask.shape != z.shape:
        raise ValueError(
            f"regkern.{op}: expected `mask` of shape {tuple(z.shape)}, got {tuple(mask.shape)}"
        )
    mask = mask != 0
    return wide.masked_fill(~mask, 0.0), mask


def rationale_sparsity(
    z: Tensor, target: float | Tensor, hinge: bool = False, mask: Tensor | None = None
) -> Tensor:
    r"""The distance of the share of a text that a rationale selects from the wanted share.

    .. math:: R = |\operatorname{mean}_i z_i - T| \;\text{ or }\;
        \max(0, \operatorname{mean}_i z_i - T)

    Parameters
    ----------
    z : Tensor
        Gates in [0, 1] of shape (..., length): float32, float64, bfloat16 or float16.
    target : float or Tensor
        T in [0, 1]; one element.
    hinge : bool
        The second form, which does not ask for more than a rationale has.
    mask : Tensor, optional
        Like z: what is not 0 counts. The mean of nothing is 0.

    Returns
    -------
    Tensor
        0-d, the mean over the texts (0 of none), float32 (float64 for float64). Differentiable as
        often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Plain torch: z is read once; in the backward its gradient written.

    References
    ----------
    Chalkidis et al., "Paragraph-level rationale extraction through regularization: a case study on
    European Court of Human Rights cases", NAACL 2021.
    """
    op = "rationale_sparsity"
    wide, mask = _masked(op, z, mask)
    checks.probability(op, "target", target)
    wanted = number(op, "target", target, z)
    count = max(z.shape[-1], 1) if mask is None else mask.sum(-1).clamp(min=1)
    miss = wide.sum(-1) / count - wanted
    distance = miss.relu() if hinge else miss.abs()
    return distance.sum() / max(distance.numel(), 1)


def rationale_continuity(z: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""How often a rationale begins and ends: the total variation of its gates.

    .. math:: R = \sum_{i \ge 2} |z_i - z_{i - 1}|

    Parameters
    ----------
    z : Tensor
        Gates of shape (..., length): float32, float64, bfloat16 or float16.
    mask : Tensor, optional
        Like z: neighbours of which one is 0 do not count.

    Returns
    -------
    Tensor
        0-d, the mean over the texts (0 of none), float32 (float64 for float64). Differentiable as
        often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    `prox_total_variation` is the proximal operator. Plain torch: z is read and written by every
    step.

    References
    ----------
    Chalkidis et al., "Paragraph-level rationale extraction through regularization: a case study on
    European Court of Human Rights cases", NAACL 2021.
    """
    wide, mask = _masked("rationale_continuity", z, mask)
    steps = wide.diff(dim=-1)
    if mask is not None:
        steps = steps.masked_fill(~(mask[..., 1:] & mask[..., :-1]), 0.0)
    return steps.abs().sum() / max(z.shape[:-1].numel(), 1)

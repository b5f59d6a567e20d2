"""The pairwise ranking loss of predicted scores, without a tensor of pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register


def _fake(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    batch = predicted.shape[0]
    return (
        predicted.new_empty((batch,), dtype=torch.float64),
        predicted.new_empty((batch,), dtype=torch.int64),
        predicted.new_empty(predicted.shape),
    )


_pair_ranking = register("pair_ranking", _fake)
_curve = register(
    "pair_ranking_curve", lambda v, predicted, target, mask=None: v.new_empty(v.shape)
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    # The slopes are an output with a derivative of their own: the second one of the loss.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[2])


def _backward(ctx: Any, g: Tensor | None, _: Any, g_slopes: Tensor | None) -> tuple[Any, ...]:
    predicted, target, mask, slopes = ctx.saved_tensors
    dp = None
    if g is not None:
        dp = (2.0 * g).to(slopes.dtype).unsqueeze(1) * slopes
    if g_slopes is not None:
        second = _curve(g_slopes, predicted, target, mask)
        dp = second if dp is None else dp + second
    return dp, None, None


def _setup_curve(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward_curve(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    if ctx.needs_input_grad[1]:
        raise RuntimeError(
            "regkern.pairwise_ranking_loss: expected no third derivative, which it has not"
        )
    return _curve(g, *ctx.saved_tensors), None, None, None


_pair_ranking.differentiable(_setup, _backward)
_curve.differentiable(_setup_curve, _backward_curve)


def pairwise_ranking_loss(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Pairwise logistic loss: predictions in the order of the targets.

    .. math::
        L = \frac{1}{|V|} \sum_{(i, j) \in V} \ln\left(1 + e^{-(p_i - p_j)}\right), \qquad
        V = \{(i, j) : t_i > t_j\}

    over the pairs of tokens of one sample, all samples together. It is the mean of the binary cross
    entropy of :math:`\sigma(p_i - p_j)` with the label :math:`1[t_i > t_j]` over ordered pairs,
    without ties.

    Parameters
    ----------
    predicted : Tensor
        (batch, n); float32, float64, bfloat16 or float16 (the last two computed in float32).
    target : Tensor
        (batch, n), floating point: the order. It is a label and gets no gradient.
    mask : Tensor, optional
        bool (batch, n): the tokens that count, those that are masked out of an image say. Default:
        all.

    Returns
    -------
    Tensor
        A scalar of predicted's dtype; 0 where there is no pair. NaN in a target or a prediction of
        a pair makes it NaN.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    One pass over the pairs, batch · n² of them, makes value and gradient,

    .. math::
        \frac{\partial L}{\partial p_i} =
        \frac{1}{|V|} \sum_{j : t_j \ne t_i} \sigma(p_i - p_j) - 1[t_i > t_j]

    with n numbers in memory instead of n². Sums have a fixed order. Twice differentiable.

    References
    ----------
    Wang et al., "Hard patches mining for masked image modeling", CVPR 2023.
    """
    op = "pairwise_ranking_loss"
    checks.floating(op, "predicted", predicted)
    checks.floating(op, "target", target)
    checks.on_device(op, "target", target, predicted)
    if predicted.dim() != 2 or target.shape != predicted.shape:
        raise ValueError(
            f"regkern.{op}: expected `predicted` and `target` of one shape (batch, n), got "
            f"{tuple(predicted.shape)} and {tuple(target.shape)}"
        )
    if mask is not None:
        checks.on_device(op, "mask", mask, predicted)
        if mask.dtype != torch.bool:
            raise TypeError(f"regkern.{op}: expected `mask` of dtype bool, got {mask.dtype}")
        if mask.shape != predicted.shape:
            raise ValueError(
                f"regkern.{op}: expected `mask` of shape {tuple(predicted.shape)}, got "
                f"{tuple(mask.shape)}"
            )
    wide = torch.promote_types(compute_dtype(predicted), compute_dtype(target))
    losses, pairs, _ = _pair_ranking(predicted.to(wide), target.detach().to(wide), mask)
    mean: Tensor = losses.sum() / pairs.sum().clamp(min=1)
    return mean.to(predicted.dtype)

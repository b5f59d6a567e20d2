"""Gates of weights, gradients and channels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, once_only, register
from regkern.proximal.gates import gate
from regkern.random import resolve_seed

_gate = register("score_gate", lambda w, scores, threshold: dense_like(w))
_dropout = register("gradient_dropout", lambda g, *args: dense_like(g))
_mass = register("mass_gate", lambda y, mass: y.new_empty(y.shape[:2]))


def _gate_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    w, scores, ctx.threshold = inputs
    ctx.save_for_backward(w, scores)


def _gate_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    w, scores = ctx.saved_tensors
    dw = _gate(g, scores, ctx.threshold) if ctx.needs_input_grad[0] else None
    ds = g * w if ctx.needs_input_grad[1] else None
    return dw, ds, None


_gate.differentiable(_gate_setup, _gate_backward)


def _check_scores(op: str, weight: object, scores: object, threshold: float) -> None:
    checks.floating(op, "weight", weight)
    checks.tensor(op, "scores", scores)
    assert isinstance(weight, Tensor)
    assert isinstance(scores, Tensor)
    checks.same(op, "scores", scores, weight, "weight")
    checks.number(op, "threshold", threshold)
    if threshold != threshold:
        raise ValueError(f"regkern.{op}: expected `threshold` to be a number, got NaN")


def score_gate(weight: Tensor, scores: Tensor, threshold: float = 0.0) -> Tensor:
    r"""A weight of which the elements with a high score are used, scores trained straight through.

    .. math:: \tilde W = W \odot 1[s > \tau], \qquad
        \frac{\partial L}{\partial s} := \frac{\partial L}{\partial \tilde W} \odot W, \qquad
        \frac{\partial L}{\partial W} = \frac{\partial L}{\partial \tilde W} \odot 1[s > \tau]

    Parameters
    ----------
    weight : Tensor
        W, of any shape: float32, float64, bfloat16 or float16.
    scores : Tensor
        s, like ``weight``.
    threshold : float
        τ.

    Returns
    -------
    Tensor
        Like ``weight``. NaN where a score is. Differentiable as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    One pass: W and s read, the product written. Nothing else is kept for the backward.

    References
    ----------
    K. Zheng et al., "Regularized mask tuning: uncovering hidden knowledge in pre-trained
    vision-language models" (R-AMT), ICCV 2023.
    """
    _check_scores("score_gate", weight, scores, threshold)
    y: Tensor = _gate(weight, scores, threshold)
    return y


class _MaskTuned(torch.autograd.Function):
    """x W̃ᵀ + b, with W̃ made again in the backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None, threshold: float
    ) -> Tensor:
        return torch.nn.functional.linear(x, _gate(weight, scores, threshold), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scores, _, ctx.threshold = inputs
        ctx.save_for_backward(x, weight, scores)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight, scores = ctx.saved_tensors
        dx = dw = ds = db = None
        if ctx.needs_input_grad[0]:
            dx = g @ _gate(weight, scores, ctx.threshold)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            of_gated = g.t() @ x
            if ctx.needs_input_grad[1]:
                dw = _gate(of_gated, scores, ctx.threshold)
            if ctx.needs_input_grad[2]:
                alone = dw is None and not torch.is_grad_enabled()
                ds = of_gated.mul_(weight) if alone else of_gated * weight
        if ctx.needs_input_grad[3]:
            db = g.sum(0)
        return dx, dw, ds, db, None


def mask_tuned_linear(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    r"""A linear layer whose weight stays and whose mask is trained (R-AMT).

    .. math:: y = x (W \odot 1[s > \tau])^T + b

    with the gradient of s that `score_gate` has.

    Parameters
    ----------
    x : Tensor
        (..., C): float32, float64, bfloat16 or float16.
    weight, scores : Tensor
        W and s (R, C), of the dtype of x.
    threshold : float
        τ.
    bias : Tensor, optional
        b (R,).

    Returns
    -------
    Tensor
        (..., R). Differentiable in x, weight, scores and bias, as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The masked weight is made twice, in a pass each, and not kept between forward and backward; the
    gradient of the scores is the dense one times W in its own memory. So a step allocates one
    tensor of the weight's size at a time, besides that gradient.

    References
    ----------
    K. Zheng et al., "Regularized mask tuning: uncovering hidden knowledge in pre-trained
    vision-language models" (R-AMT), ICCV 2023.
    """
    op = "mask_tuned_linear"
    checks.floating(op, "x", x)
    _check_scores(op, weight, scores, threshold)
    checks.on_device(op, "weight", weight, x)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"regkern.{op}: expected `weight` (R, C) of the C features of `x` {tuple(x.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y: Tensor = function_apply(_MaskTuned, flat, weight, scores, bias, threshold)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def gradient_dropout(
    g: Tensor,
    reference: Tensor,
    strength: float = 1.0,
    epsilon: float = 1e-8,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Keeps the elements of a gradient that agree with another one, by chance.

    .. math::
        P = \tfrac12 \Bigl( 1 + \operatorname{sgn}(g) \frac{g + r}{|g| + |r| + \varepsilon} \Bigr),
        \qquad
        y = \begin{cases} g & \text{where } P > u, \quad u \sim U(0, 1) \\
            (1 - \lambda)\, g & \text{otherwise} \end{cases}

    P is 1 where both have one sign, ½ where they cancel, and goes to 0 where r is of the other sign
    and outweighs g.

    Parameters
    ----------
    g : Tensor
        The gradient of a task: float32, float64, bfloat16 or float16.
    reference : Tensor
        r, like ``g``: the gradient of what is to be kept, as the divergence from the predictions
        before tuning.
    strength : float
        λ in [0, 1]: 1 drops what is not kept.
    epsilon : float
        ε, at least 0. Gradients that are small against it are kept with ½.
    seed : Tensor, optional
        See :func:`regkern.make_seed`.
    generator : torch.Generator, optional
        Instead of ``seed``.

    Returns
    -------
    Tensor
        Like ``g``. NaN where P is no number. Not differentiable.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    One pass: both gradients read, the result written. 24 random bits an element.

    References
    ----------
    K. Zheng et al., "Regularized mask tuning: uncovering hidden knowledge in pre-trained
    vision-language models" (R-AMT), ICCV 2023. Z. Chen et al., "Just pick a sign: optimizing deep
    multitask models with gradient sign dropout", NeurIPS 2020.
    """
    op = "gradient_dropout"
    checks.floating(op, "g", g)
    checks.same(op, "reference", reference, g, "g")
    checks.probability(op, "strength", strength)
    checks.number(op, "epsilon", epsilon)
    checks.at_least(op, "epsilon", epsilon, 0.0)
    seed = resolve_seed(op, g, seed, generator)
    y: Tensor = _dropout(g.detach(), reference.detach(), seed, strength, epsilon)
    return y


class _Clipped(torch.autograd.Function):
    """The identity, whose gradient passes where |x| is at most a bound."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, clip: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.clip = inputs
        ctx.save_for_backward(x)

    @staticmethod
    @once_only("binary_gate")
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() > ctx.clip, 0.0, g), None


def binary_gate(logits: Tensor, clip: float | None = None) -> Tensor:
    r"""Gates that are open at a probability above a half, with a straight-through gradient.

    .. math:: b = 1[\sigma(z) > \tfrac12] = 1[z > 0], \qquad
        \frac{\partial b}{\partial z} := 1 \ \text{ or } \ 1[|z| \le c]

    Parameters
    ----------
    logits : Tensor
        z: float32, float64, bfloat16 or float16.
    clip : float, optional
        c, at least 0: no gradient for logits beyond it.

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
    Plain torch, for the few numbers that gates are: `regkern.proximal.gate` with the threshold 0.

    References
    ----------
    Bengio, Léonard and Courville, "Estimating or propagating gradients through stochastic neurons
    for conditional computation", 2013.
    """
    op = "binary_gate"
    checks.floating(op, "logits", logits)
    if clip is None:
        return gate(logits)
    checks.number(op, "clip", clip)
    checks.at_least(op, "clip", clip, 0.0)
    return gate(function_apply(_Clipped, logits, clip))


def mass_gate(y: Tensor, mass: float) -> Tensor:
    r"""Which channels of a sample are to be computed: the fewest that have a share of its mass.

    .. math::
        a_c = \max_s |y_{cs}|, \qquad
        b_c = 1[c \in K], \quad K = \text{the fewest largest with }
            \sum_{c \in K} a_c \ge r \sum_c a_c

    for each sample by itself, so that their number is its own.

    Parameters
    ----------
    y : Tensor
        (B, C, ...), a layer's output: float32, float64, bfloat16 or float16; any strides.
    mass : float
        r in [0, 1].

    Returns
    -------
    Tensor
        0 and 1, (B, C), of the dtype of y. Of channels with equal mass the first are taken. A
        sample of zeros has none; of one with a NaN or an infinity all are NaN. Not differentiable.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Without a sort: the mass of the last channel is found bit by bit. Masses count in steps of 2⁻³⁰
    of a power of two that is not below the largest of the sample, so that their sums are the same
    in any order. Bytes moved: y read once.

    References
    ----------
    S. Elkerdawy, M. Elhoushi, H. Zhang and N. Ray, "Fire together wire together: a dynamic pruning
    approach with self-supervised mask prediction", CVPR 2022.
    """
    op = "mass_gate"
    checks.floating(op, "y", y)
    checks.number(op, "mass", mass)
    checks.probability(op, "mass", mass)
    if y.dim() < 2:
        raise ValueError(
            f"regkern.{op}: expected `y` of two dimensions or more, got {tuple(y.shape)}"
        )
    gates: Tensor = _mass(y.detach(), mass)
    return gates


def mass_gate_loss(logits: Tensor, y: Tensor, mass: float) -> Tensor:
    r"""How well logits predict the gates of a layer's output.

    .. math:: L = \frac{1}{B C} \sum_{b c} \operatorname{BCE}(\sigma(z_{bc}), b_{bc})

    with the gates b of :func:`mass_gate`.

    Parameters
    ----------
    logits : Tensor
        z (B, C).
    y : Tensor
        (B, C, ...), of which no gradient is taken.
    mass : float
        r in [0, 1].

    Returns
    -------
    Tensor
        0-d. Differentiable in ``logits``, as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    S. Elkerdawy, M. Elhoushi, H. Zhang and N. Ray, "Fire together wire together: a dynamic pruning
    approach with self-supervised mask prediction", CVPR 2022.
    """
    op = "mass_gate_loss"
    checks.floating(op, "logits", logits)
    target = mass_gate(y, mass)
    if logits.shape != target.shape:
        raise ValueError(
            f"regkern.{op}: expected `logits` of shape {tuple(target.shape)}, got "
            f"{tuple(logits.shape)}"
        )
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))

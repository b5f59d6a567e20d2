"""Losses and penalties of a few lines each, in plain torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.proximal.activations import number, positive
from regkern.proximal.group_prox import group_norms
from regkern.proximal.groups import Groups
from regkern.proximal.simplex import Reduction


def prox_matching_loss(
    f_y: Tensor, x: Tensor, gamma: float | Tensor, reduction: Reduction = "mean"
) -> Tensor:
    r"""The loss under which a network becomes the proximal operator of the log-prior.

    .. math:: m_\gamma = 1 - \exp\Bigl( -\frac{\lVert f(y) - x \rVert_2^2}{\gamma^2} \Bigr)

    for every sample; γ is lowered towards 0 in stages, after a start with the ℓ1 loss.

    Parameters
    ----------
    f_y, x : Tensor
        The network's output and the clean samples, of shape (samples, ...), one dtype: float32,
        float64, bfloat16 or float16.
    gamma : float or Tensor
        The width γ, above 0; one element, differentiable.
    reduction : {"mean", "sum", "none"}
        Over samples. ``"mean"`` of none is NaN, as torch's.

    Returns
    -------
    Tensor
        0-d, or (samples,); float32 (float64 for float64). Differentiable as often as wanted. Far
        from x, also where the square overflows, the loss is 1 and its gradient 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Near x the loss is exact (expm1), where 1 − exp rounds to 0. Plain torch: both read, their
    difference, its quotient and its square written.

    References
    ----------
    Fang, Buchanan and Sulam, "What's in a prior? Learned proximal networks for inverse problems",
    ICLR 2024.
    """
    op = "prox_matching_loss"
    checks.floating(op, "f_y", f_y)
    checks.same(op, "x", x, f_y, "f_y")
    checks.one_of(op, "reduction", reduction, ("none", "mean", "sum"))
    if f_y.dim() == 0:
        raise ValueError(f"regkern.{op}: expected `f_y` of shape (samples, ...), got a 0-d tensor")
    width = positive(op, "gamma", gamma, f_y)
    dtype = compute_dtype(f_y)
    away = (f_y.to(dtype) - x.to(dtype)).unsqueeze(-1).flatten(1)
    # Divided before it is squared: γ² may underflow.
    away = away / width
    loss = -(-(away * away).sum(1)).expm1()
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def feature_flow(
    features: Sequence[Tensor], k1: float | Tensor = 1.0, k2: float | Tensor = 1.0
) -> Tensor:
    r"""The length and the curvature of the path of features through the layers.

    .. math:: R = k_1 \sum_l \lVert x_{l+1} - x_l \rVert_1
        + k_2 \sum_l \lVert x_{l+1} - 2 x_l + x_{l-1} \rVert_1

    Parameters
    ----------
    features : sequence of Tensor
        The features after each layer, of one shape and dtype: float32, float64, bfloat16 or
        float16.
    k1, k2 : float or Tensor
        The factors, at least 0; one element, differentiable.

    Returns
    -------
    Tensor
        0-d, float32 (float64 for float64). Differentiable as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Plain torch: each feature is read twice, the differences written and read.

    References
    ----------
    Wu, Lan, Zhang and Xiang, "Feature flow regularization: improving structured sparsity in deep
    neural networks", Neural Networks 161, 2023.
    """
    op = "feature_flow"
    xs = checks.tensor_list(op, "features", features)
    for i, x in enumerate(xs):
        checks.same(op, f"features[{i}]", x, xs[0], "features[0]")
    first, second = number(op, "k1", k1, xs[0]), number(op, "k2", k2, xs[0])
    wide = [x.to(compute_dtype(x)) for x in xs]
    steps = [b - a for a, b in itertools.pairwise(wide)]
    turns = [b - a for a, b in itertools.pairwise(steps)]
    length = sum((s.abs().sum() for s in steps), start=wide[0].new_zeros(()))
    curvature = sum((t.abs().sum() for t in turns), start=wide[0].new_zeros(()))
    return first * length + second * curvature


def l2_path_norm(v: Tensor, w: Tensor) -> Tensor:
    r"""The path norm of a layer of ReLU units, to which weight decay is equivalent.

    .. math:: R = \sum_k |v_k|\, \lVert w_k \rVert_2 \qquad\text{or}\qquad
        \sum_k \lVert v_k \rVert_2\, \lVert w_k \rVert_2

    with the input weights :math:`w_k` and the output weights :math:`v_k` of unit k.

    Parameters
    ----------
    v : Tensor
        (units,), or (outputs, units): float32, float64, bfloat16 or float16.
    w : Tensor
        (units, ...), of the dtype of ``v``.

    Returns
    -------
    Tensor
        0-d, float32 (float64 for float64). Differentiable as often as wanted; the gradient of a
        norm that is 0 is 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    :func:`path_norm` is that with ℓ1 norms. Bytes moved: weights read once; in the backward once
    more, and gradients written.

    References
    ----------
    Parhi and Nowak, "Deep learning meets sparse regularization: a signal processing perspective",
    IEEE Signal Processing Magazine 40(6), 2023.
    """
    op = "l2_path_norm"
    checks.floating(op, "v", v)
    checks.floating(op, "w", w)
    checks.on_device(op, "w", w, v)
    if v.dim() not in (1, 2):
        raise ValueError(
            f"regkern.{op}: expected `v` of shape (units,) or (outputs, units), got "
            f"{tuple(v.shape)}"
        )
    if w.dtype != v.dtype or w.dim() == 0 or w.shape[0] != v.shape[-1]:
        raise ValueError(
            f"regkern.{op}: expected `w` of shape ({v.shape[-1]}, ...) and dtype {v.dtype}, got "
            f"{tuple(w.shape)}, {w.dtype}"
        )
    outputs = v.double().abs() if v.dim() == 1 else group_norms(v, Groups.kept(1))
    return (outputs * group_norms(w, Groups.kept(0))).sum().to(compute_dtype(v))


def mask_sparsity(
    gamma: Tensor | Sequence[Tensor],
    mask: Tensor | Sequence[Tensor],
    s: float | Tensor,
    lr: float | Tensor = 0.0,
) -> Tensor:
    r"""The ℓ1 penalty of the scaling factors to be pruned, smooth where a step would overshoot.

    .. math:: R = s \sum_i m_i\, h(\gamma_i), \qquad
        h(\gamma) = \begin{cases} \tfrac{1}{2} \gamma^2 & |\gamma| < \delta \\
        |\gamma| - \delta + \tfrac{1}{2} \delta^2 & |\gamma| \ge \delta \end{cases},
        \qquad \delta = \eta s

    with the learning rate η. The gradient is :math:`s\, \operatorname{sgn} \gamma`, and
    :math:`s \gamma` for factors that a step of SGD with the former would take across 0.

    Parameters
    ----------
    gamma : Tensor or sequence of Tensor
        Scaling factors: float32, float64, bfloat16 or float16.
    mask : Tensor or sequence of Tensor
        One for each of ``gamma``, of its shape: what is not 0 is penalised.
    s : float or Tensor
        The factor, at least 0; one element, differentiable, with δ held fixed.
    lr : float or Tensor
        η, at least 0; one element, not differentiated. With 0 the penalty is that of
        ``L1(s, weights=mask)``.

    Returns
    -------
    Tensor
        0-d, float32 (float64 where the first tensor is). Differentiable as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    `L1` with the mask as weights has a proximal operator, after which masked factors are zeros.
    Plain torch: factors are read and written by every step.

    References
    ----------
    Jiang et al., "Pruning-aware sparse regularization for network pruning", Machine
    Intelligence Research 20, 2023.
    """
    op = "mask_sparsity"
    xs = checks.tensor_list(op, "gamma", gamma)
    masks = checks.tensor_list(op, "mask", mask, checks.tensor)
    if len(masks) != len(xs):
        raise ValueError(f"regkern.{op}: expected {len(xs)} tensors in `mask`, got {len(masks)}")
    dtype = compute_dtype(xs[0])
    factor, rate = number(op, "s", s, xs[0]), number(op, "lr", lr, xs[0])
    with torch.no_grad():
        delta = rate * factor
    total = torch.zeros((), dtype=dtype, device=xs[0].device)
    for i, (x, m) in enumerate(zip(xs, masks, strict=True)):
        checks.on_device(op, f"mask[{i}]", m, x)
        if m.shape != x.shape:
            raise ValueError(
                f"regkern.{op}: expected `mask[{i}]` of shape {tuple(x.shape)}, got "
                f"{tuple(m.shape)}"
            )
        penalised = x.to(dtype).masked_fill(m == 0, 0.0)
        size = penalised.abs()
        near = size < delta
        small = torch.where(near, penalised, 0.0)
        bent = torch.where(near, 0.5 * small * small, size - delta + 0.5 * delta * delta)
        total = total + bent.sum()
    return factor * total

"""Sparse maps onto the simplex in the place of softmax, and their losses."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register
from regkern.proximal.projections import Lines, check_dim, row_law

Reduction = Literal["none", "mean", "sum"]

_LAWS = {"simplex": "sparsemax", "entmax15": "entmax15"}


# ---- raw op: fake kernel and autograd ----


def _fake_loss(
    x: Tensor,
    slices: list[int],
    law: str,
    label: Tensor | None = None,
    target: Tensor | None = None,
    ignore: int = -100,
) -> tuple[Tensor, Tensor]:
    loss = x.new_empty((slices[0] * slices[2],), dtype=compute_dtype(x))
    return loss, x.new_empty(x.shape)


_loss = register("fenchel_young_loss", _fake_loss)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.slices, ctx.law, label, target, ctx.ignore = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, label, target, output[1])


def _spread(v: Tensor, slices: list[int], like: Tensor) -> Tensor:
    batch, _, count, _ = slices
    spread: Tensor = v.reshape(batch, 1, count, 1).expand(slices).reshape(like.shape)
    return spread


def _backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    x, label, target, grad = ctx.saved_tensors
    scale = _spread(g, ctx.slices, x)
    if torch.is_grad_enabled():
        # A second derivative may follow: p and q again, differentiable.
        grad = _residual(ctx, x, label, target)
    dx = (scale * grad).to(x.dtype)
    if target is None:
        return dx, None, None, None, None, None
    # ∂L/∂q = ∇Ω(q) − z; z up to its maximum, as the loss has it.
    shape = list(ctx.slices)
    z, q = (t.to(compute_dtype(x)).reshape(shape) for t in (x, target))
    z = z - z.amax((1, 3), keepdim=True)
    slope = q if ctx.law == "simplex" else 2.0 * q.clamp(min=0).sqrt()
    dq = (scale.reshape(shape) * (slope - z)).reshape(x.shape).to(x.dtype)
    return dx, None, None, None, dq, None


def _residual(ctx: Any, x: Tensor, label: Tensor | None, target: Tensor | None) -> Tensor:
    batch, size, count, _ = ctx.slices
    p = row_law(_LAWS[ctx.law], ctx.law, x.reshape(batch, size, count), "total", 1.0, 1)
    if target is not None:
        return p.reshape(x.shape) - target
    assert label is not None
    index = label.reshape(batch, 1, count)
    known = index != ctx.ignore
    ones = torch.arange(size, device=x.device).reshape(1, size, 1) == index
    residual: Tensor = ((p - ones.to(p.dtype)) * known).reshape(x.shape)
    return residual


_loss.differentiable(_setup, _backward)


# ---- public functions ----


def sparsemax(x: Tensor, dim: int = -1) -> Tensor:
    r"""The projection onto the probability simplex: a softmax with exact zeros.

    .. math::
        p = \arg\min_{p \in \Delta} \lVert p - x \rVert^2 = [x - \tau]_+

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    dim : int
        The dimension that adds up to 1.

    Returns
    -------
    Tensor
        Like x. −inf, a masked element, has p = 0. A slice is NaN where an element is NaN or +inf,
        and, as of `torch.softmax`, where all are −inf.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these and a dimension that x does not have.

    Notes
    -----
    `simplex_projection` with total 1: exact, without a sort, x read and p written once. Backward:
    :math:`dx = g - \bar g_A` on the support A; twice differentiable.

    References
    ----------
    A. Martins and R. Astudillo, "From softmax to sparsemax: a sparse model of attention and
    multi-label classification", ICML 2016.
    """
    return row_law("sparsemax", "simplex", x, "total", 1.0, dim)


def entmax15(x: Tensor, dim: int = -1) -> Tensor:
    r"""1.5-entmax, half way between softmax and sparsemax.

    .. math::
        p = \left[ \frac{x}{2} - \tau \right]_+^2, \qquad \sum_i p_i = 1

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    dim : int
        The dimension that adds up to 1.

    Returns
    -------
    Tensor
        Like x. −inf, a masked element, has p = 0. A slice is NaN where an element is NaN or +inf,
        and, as of `torch.softmax`, where all are −inf.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these and a dimension that x does not have.

    Notes
    -----
    Newton's iteration on a convex function, in double, until nothing moves: no sort. x is read and
    p written once. Backward: :math:`dx = s (g - \langle s, g \rangle / \sum s)` with
    :math:`s = \sqrt p`; twice differentiable.

    References
    ----------
    B. Peters, V. Niculae and A. Martins, "Sparse sequence-to-sequence models", ACL 2019.
    """
    return row_law("entmax15", "entmax15", x, "total", 1.0, dim)


def _fenchel_young(
    op: str,
    law: str,
    x: Tensor,
    target: Tensor,
    dim: int,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    dim = check_dim(op, x, dim)
    checks.one_of(op, "reduction", reduction, ("none", "mean", "sum"))
    checks.on_device(op, "target", target, x)
    lines = Lines(x, dim)
    if target.is_floating_point():
        if target.shape != x.shape:
            raise ValueError(
                f"regkern.{op}: expected `target` of the shape of `x`, {tuple(x.shape)}, got "
                f"{tuple(target.shape)}"
            )
        distribution = lines.like(target.to(x.dtype))
        loss = _loss(lines.x, lines.slices, law, None, distribution, ignore_index)[0]
        count: Tensor | None = None
    else:
        wanted = [n for d, n in enumerate(x.shape) if d != dim]
        if target.dtype != torch.int64:
            raise TypeError(
                f"regkern.{op}: expected `target` of dtype int64 or a floating one, got "
                f"{target.dtype}"
            )
        if list(target.shape) != wanted:
            raise ValueError(
                f"regkern.{op}: expected `target` of shape {tuple(wanted)}, got "
                f"{tuple(target.shape)}"
            )
        label = lines.like(target.unsqueeze(dim)).reshape(-1).contiguous()
        loss = _loss(lines.x, lines.slices, law, label, None, ignore_index)[0]
        count = (target != ignore_index).sum()
    if reduction == "none":
        return lines.from_slices(loss).to(x.dtype)
    total: Tensor = loss.sum()
    if reduction == "mean":
        total = total / (max(loss.numel(), 1) if count is None else count)
    return total.to(x.dtype)


def sparsemax_loss(
    x: Tensor,
    target: Tensor,
    dim: int = -1,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""The loss whose gradient is sparsemax minus the target.

    .. math::
        L(x; q) = \tfrac{1}{2} \lVert q \rVert^2 - \tfrac{1}{2} \lVert p \rVert^2
            + \langle p - q, x \rangle, \qquad p = \operatorname{sparsemax}(x), \qquad
        \nabla_x L = p - q

    Zero if and only if p = q: unlike the cross-entropy it is reached, with a margin of 1.

    Parameters
    ----------
    x : Tensor
        Scores: float32, float64, bfloat16 or float16; any strides.
    target : Tensor
        int64 class indices of x's shape without ``dim``; or distributions, like x, which are to add
        up to 1.
    dim : int
        The dimension of the classes.
    ignore_index : int
        Slices of this class index have loss and gradient 0 and are not counted in the mean.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` of no slices is NaN, as torch's.

    Returns
    -------
    Tensor
        0-d, or of x's shape without ``dim``; of x's dtype. NaN where sparsemax is, and for a class
        index that does not exist. Differentiable twice in x, once in a distribution.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Value and gradient come out of one pass: x read once, p − q written once; the backward
    multiplies it. The loss is summed in double.

    References
    ----------
    A. Martins and R. Astudillo, "From softmax to sparsemax", ICML 2016. M. Blondel, A. Martins and
    V. Niculae, "Learning with Fenchel-Young losses", JMLR 21, 2020.
    """
    return _fenchel_young("sparsemax_loss", "simplex", x, target, dim, ignore_index, reduction)


def entmax15_loss(
    x: Tensor,
    target: Tensor,
    dim: int = -1,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""The loss whose gradient is 1.5-entmax minus the target.

    .. math::
        L(x; q) = \Omega(q) - \Omega(p) + \langle p - q, x \rangle, \qquad
        \Omega(p) = \tfrac{4}{3} \Big( \sum_i p_i^{3/2} - 1 \Big), \qquad
        p = \operatorname{entmax}_{1.5}(x), \qquad \nabla_x L = p - q

    Parameters
    ----------
    x : Tensor
        Scores: float32, float64, bfloat16 or float16; any strides.
    target : Tensor
        int64 class indices of x's shape without ``dim``; or distributions, like x, which are to add
        up to 1.
    dim : int
        The dimension of the classes.
    ignore_index : int
        Slices of this class index have loss and gradient 0 and are not counted in the mean.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` of no slices is NaN, as torch's.

    Returns
    -------
    Tensor
        0-d, or of x's shape without ``dim``; of x's dtype. See `sparsemax_loss`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    See `sparsemax_loss`.

    References
    ----------
    B. Peters, V. Niculae and A. Martins, "Sparse sequence-to-sequence models", ACL 2019.
    """
    return _fenchel_young("entmax15_loss", "entmax15", x, target, dim, ignore_index, reduction)

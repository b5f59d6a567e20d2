"""The half-space projection of HSPG."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import register
from regkern.proximal.groups import Groups

_project_ = register("half_space_project_", lambda *args, **kwargs: None)


def half_space_project_(
    new: Tensor | Sequence[Tensor],
    old: Tensor | Sequence[Tensor],
    groups: Groups | None = None,
    eps: float = 0.0,
) -> None:
    r"""Zeroes, in place, the groups of an iterate that have left the half-space of the one before.

    .. math::
        x_g ← 0 \quad\text{if}\quad \langle x_g, y_g \rangle < ε \lVert y_g \rVert^2
        \quad\text{or}\quad y_g = 0

    for x in ``new`` and y in ``old``. A group that was zero stays zero; NaN does not make a group
    zero.

    Parameters
    ----------
    new : Tensor or list of Tensor
        What a step of (sub)gradient descent has left: float32, float64, bfloat16 or float16.
    old : Tensor or list of Tensor
        What it was before, of the same shapes and dtypes.
    groups : Groups, optional
        One geometry for each tensor. Default: the rows, ``Groups.kept(0)``.
    eps : float, default 0
        ε in [0, 1): the larger, the more groups go.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above, or groups overlap tensors or are given by labels.

    Notes
    -----
    Products are added in double. Bytes moved: both tensors twice, and the zeros. Groups that are no
    runs of neighbours in memory (columns) go through a copy of both tensors.

    References
    ----------
    Chen, Ding, Zhu, Zhang, Tu, Ji and others, "Orthant based proximal stochastic gradient method",
    ECML 2020; Chen, Ji, Ding et al., "Only train once: a one-shot neural network training and
    pruning framework", NeurIPS 2021.
    """
    op = "optim.half_space_project_"
    xs, ys = checks.tensor_list(op, "new", new), checks.tensor_list(op, "old", old)
    if len(xs) != len(ys):
        raise ValueError(
            f"regkern.{op}: expected as many tensors in `old`, {len(xs)}, got {len(ys)}"
        )
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        checks.same(op, f"old[{i}]", y, x, f"new[{i}]")
    checks.number(op, "eps", eps)
    if not 0.0 <= eps < 1.0:
        raise ValueError(f"regkern.{op}: expected `eps` in [0, 1), got {eps}")
    if groups is None:
        groups = Groups.kept(0)
    elif not isinstance(groups, Groups):
        raise TypeError(f"regkern.{op}: expected `groups` to be a Groups, got {type(groups)}")
    with torch.no_grad():
        batches: dict[torch.dtype, list[tuple[Tensor, Tensor, int]]] = {}
        copies: list[tuple[Tensor, Tensor]] = []
        for x, y in zip(xs, ys, strict=True):
            if x.numel() == 0:
                continue
            x, y = x.detach(), y.detach()
            layout = groups.layout([x])
            if layout.map is not None or layout.group_sizes is not None:
                raise ValueError(
                    f"regkern.{op}: expected `groups` of one size that are slices of a tensor, got "
                    f"{groups}"
                )
            outer, slices, inner = layout.geometry
            if outer != 1:
                view = (outer, slices, inner)
                whole, y = x, y.reshape(view).transpose(0, 1).contiguous()
                x = x.reshape(view).transpose(0, 1).contiguous()
                copies.append((whole, x))
            batches.setdefault(x.dtype, []).append((x, y, outer * inner))
        for batch in batches.values():
            each, before, runs = zip(*batch, strict=True)
            _project_(list(each), list(before), list(runs), float(eps))
        for whole, x in copies:
            whole.copy_(x.transpose(0, 1).reshape(whole.shape))

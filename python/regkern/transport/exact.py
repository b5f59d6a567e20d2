"""Transport without regularisation, where it is cheap: on the line, and small assignments."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply, once_only, register
from regkern.transport.arguments import check_mass, weights_of
from regkern.transport.sparse import _batch_of

# ---- raw ops: fake kernels and autograd ----


def _fake_assignment(cost: Tensor) -> tuple[Tensor, ...]:
    batch, n, m = cost.shape
    real = cost.new_empty((batch,), dtype=torch.float64)
    return (
        real,
        cost.new_empty((batch, n), dtype=torch.int32),
        real.new_empty((batch, n)),
        real.new_empty((batch, m)),
        cost.new_empty((batch,), dtype=torch.int8),
    )


def _fake_quantile_cost(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape)


_assignment = register("assignment", _fake_assignment)
_quantile_cost = register("quantile_cost", _fake_quantile_cost)


def _assignment_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, column, u, v, status = output
    ctx.mark_non_differentiable(column, u, v, status)
    ctx.save_for_backward(column)
    ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype


def _assignment_gradient(ctx: Any, *grads: Tensor) -> Tensor:
    """The permutation matrix: constant wherever there is a derivative."""
    (column,) = ctx.saved_tensors
    up = torch.where(column < 0, 0.0, grads[0].unsqueeze(-1))
    empty = up.new_zeros(ctx.shape)
    placed = empty.scatter_add(-1, column.clamp(min=0).long().unsqueeze(-1), up.unsqueeze(-1))
    return placed.to(ctx.dtype)


_assignment.differentiable(_assignment_setup, _assignment_gradient)


class _Line(torch.autograd.Function):
    """The cost (rows,) of sorted values and cumulated weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, a: Tensor, b: Tensor, p: float) -> Tensor:
        cost: Tensor = _quantile_cost(x, y, a, b, p, False)[0]
        return cost.sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.p = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_only("wasserstein_1d")
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor | None, ...]:
        x, y, a, b = ctx.saved_tensors
        along = up.unsqueeze(-1)
        dx = dy = da = db = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            _, slope, cut = _quantile_cost(x, y, a, b, ctx.p, False)
            dx, da = along * slope, along * cut
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            _, slope, cut = _quantile_cost(y, x, b, a, ctx.p, True)
            dy, db = along * slope, along * cut
        return dx, dy, da, db, None


# ---- public ----


def _sorted(
    op: str, name: str, x: Tensor, weights: Tensor | None, batch: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Values (rows, n) in float64 in their order, cumulated weights, and the order."""
    n = x.shape[-1]
    values, order = torch.sort(x.expand(*batch, n).reshape(-1, n), dim=-1, stable=True)
    if weights is None:
        # Exact where both sides have the same number of points.
        steps = torch.arange(1, n + 1, dtype=torch.float64, device=x.device) / n
        cumulated = steps.expand(values.shape)
    else:
        every = weights.expand(*batch, n).reshape(-1, n)
        cumulated = every.gather(-1, order).cumsum(-1)
    return values.double(), cumulated.contiguous(), order


def _line(
    op: str, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None
) -> tuple[tuple[int, ...], tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    checks.floating(op, "x", x)
    checks.floating(op, "y", y)
    checks.on_device(op, "y", y, x)
    for name, t in (("x", x), ("y", y)):
        if t.dim() == 0 or t.shape[-1] == 0:
            raise ValueError(
                f"regkern.{op}: expected `{name}` of shape (..., n) with n > 0, got "
                f"{tuple(t.shape)}"
            )
    wa = None if a is None else weights_of(op, "a", a, x.shape[-1], x)
    wb = None if b is None else weights_of(op, "b", b, y.shape[-1], x)
    one = torch.ones((1,), dtype=torch.float64, device=x.device)
    check_mass(op, one if wa is None else wa, one if wb is None else wb)
    shapes = [t.shape[:-1] for t in (x, y, wa, wb) if t is not None]
    batch = _batch_of(op, shapes)
    return batch, _sorted(op, "x", x, wa, batch), _sorted(op, "y", y, wb, batch)


def wasserstein_1d(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    p: float = 1.0,
) -> Tensor:
    r"""Exact transport on the line, between numbers with weights.

    .. math::
        W_p^p = \int_0^1 |F_x^{-1}(q) - F_y^{-1}(q)|^p \, dq

    Parameters
    ----------
    x, y : Tensor
        (..., n) and (..., m): float32, float64, bfloat16 or float16. Differentiable.
    a, b : Tensor, optional
        Weights (..., n) and (..., m) of equal totals; uniform by default. Differentiable.
    p : float
        At least 1.

    Returns
    -------
    Tensor
        (...,): the cost, without the p-th root, float32 (float64 for float64). NaN where a value
        or a weight is.

    Raises
    ------
    TypeError, ValueError
        For other dtypes, shapes that do not fit, p < 1, weights below zero or of other totals.

    Notes
    -----
    Two sorts and one merge of the cumulated weights, in float64. Backward: a merge from either
    side; the derivatives in the weights are dual potentials, :math:`\langle a, f \rangle + \langle
    b, g \rangle = W_p^p`. Where values or quantiles are tied they are one subgradient. Once
    differentiable.

    References
    ----------
    F. Santambrogio, "Optimal Transport for Applied Mathematicians", chapter 2, 2015.
    """
    op = "wasserstein_1d"
    checks.at_least(op, "p", p, 1.0)
    if not p < math.inf:
        raise ValueError(f"regkern.{op}: expected `p` to be finite, got {p}")
    batch, (xs, ca, _), (ys, cb, _) = _line(op, x, y, a, b)
    value = function_apply(_Line, xs, ys, ca, cb, float(p))
    kind = torch.promote_types(compute_dtype(x), compute_dtype(y))
    result: Tensor = value.to(kind).reshape(batch)
    return result


class LinePlan(NamedTuple):
    """Entries of a plan: rows and columns (..., n + m − 1) int64, and their masses, some of them
    0."""

    rows: Tensor
    columns: Tensor
    mass: Tensor


def transport_1d(
    x: Tensor, y: Tensor, a: Tensor | None = None, b: Tensor | None = None
) -> LinePlan:
    r"""The plan of `wasserstein_1d`, the same for every p: the monotone rearrangement.

    Parameters
    ----------
    x, y, a, b
        As for `wasserstein_1d`. No gradients reach them.

    Returns
    -------
    LinePlan
        n + m − 1 entries.

    Raises
    ------
    TypeError, ValueError
        As `wasserstein_1d`.

    Notes
    -----
    Plain torch: a sort of all cumulated weights.
    """
    with torch.no_grad():
        batch, (_, ca, order_x), (_, cb, order_y) = _line("transport_1d", x, y, a, b)
        n, m = ca.shape[-1], cb.shape[-1]
        cuts = torch.sort(torch.cat([ca[:, :-1], cb], dim=-1), dim=-1).values
        starts = torch.cat([torch.zeros_like(cuts[:, :1]), cuts[:, :-1]], dim=-1)
        i = torch.searchsorted(ca, starts, right=True).clamp(max=n - 1)
        j = torch.searchsorted(cb, starts, right=True).clamp(max=m - 1)
        shape = (*batch, n + m - 1)
        kind = torch.promote_types(compute_dtype(x), compute_dtype(y))
        return LinePlan(
            order_x.gather(-1, i).reshape(shape),
            order_y.gather(-1, j).reshape(shape),
            (cuts - starts).to(kind).reshape(shape),
        )


class Assignment(NamedTuple):
    """What `assignment` returns.

    ``columns`` (..., n) int64: the column of each row, −1 for rows without one. ``value`` (...,):
    the total cost. ``u``, ``v``: dual potentials, :math:`u_i + v_j \\le C_{ij}` with equality at
    the pairs and 0 for what has no partner. ``status`` (...,) int8: 0, or 2 where there is no
    assignment (the value is +inf then) or a cost is NaN or −inf (the value is NaN).
    """

    columns: Tensor
    value: Tensor
    u: Tensor
    v: Tensor
    status: Tensor


def assignment(cost: Tensor) -> Assignment:
    r"""The cheapest pairing of rows with columns, each in one pair at most.

    .. math::
        \min_\sigma \sum_i C_{i \sigma(i)}

    Parameters
    ----------
    cost : Tensor
        (..., n, m): float32, float64, bfloat16 or float16; +inf forbids a pair. min(n, m) pairs
        are made.

    Returns
    -------
    Assignment

    Raises
    ------
    TypeError, ValueError
        For other dtypes and tensors of less than two dimensions.

    Notes
    -----
    Shortest augmenting paths in float64, O(min(n, m)² max(n, m)): for problems of up to a few
    hundred, many at a time, a thread or (on a GPU) a block each. The derivative of the value is
    the permutation matrix.

    References
    ----------
    R. Jonker and A. Volgenant, "A shortest augmenting path algorithm for dense and sparse linear
    assignment problems", Computing 38, 1987.
    """
    op = "assignment"
    checks.floating(op, "cost", cost)
    if cost.dim() < 2:
        raise ValueError(
            f"regkern.{op}: expected `cost` of shape (..., n, m), got {tuple(cost.shape)}"
        )
    batch, (n, m) = cost.shape[:-2], cost.shape[-2:]
    turned = n > m
    flat = cost.reshape(math.prod(batch), n, m)
    value, column, u, v, status = _assignment(flat.mT.contiguous() if turned else flat)
    kind = compute_dtype(cost)
    columns = column.long()
    if turned:
        # −1 goes to a place of its own, behind the last row.
        rows = torch.where(columns < 0, n, columns)
        empty = columns.new_full((flat.shape[0], n + 1), -1)
        numbers = torch.arange(m, device=cost.device).expand(rows.shape)
        columns, u, v = empty.scatter(-1, rows, numbers)[:, :n], v, u
    return Assignment(
        columns.reshape(*batch, n),
        value.to(kind).reshape(batch),
        u.to(kind).reshape(*batch, n),
        v.to(kind).reshape(*batch, m),
        status.reshape(batch),
    )

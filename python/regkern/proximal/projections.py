"""Projections onto balls and simplices, and the proximal operators that are their complements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register
from regkern.proximal.penalty import ProxReport

# ---- raw ops: fake kernels and autograd ----


def _fake_row_threshold(
    x: Tensor,
    t: Tensor,
    slices: Sequence[int],
    law: str,
    weights: Tensor | None = None,
    cap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((slices[0] * slices[2],), dtype=compute_dtype(x))


def _fake_gradient(
    g: Tensor,
    reference: Tensor,
    theta: Tensor,
    t: Tensor,
    slices: Sequence[int],
    law: str,
    weights: Tensor | None = None,
    cap: float = 0.0,
    gt: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return g.new_empty(g.shape), g.new_empty((slices[0] * slices[2],), dtype=torch.float64)


def _fake_in_place(
    xs: Sequence[Tensor],
    thetas: Sequence[Tensor],
    ts: Sequence[Tensor],
    slices: Sequence[int],
    law: str,
) -> Tensor:
    return xs[0].new_empty((), dtype=torch.int64)


_row_threshold = register("row_threshold", _fake_row_threshold)
_row_gradient = register("row_threshold_backward", _fake_gradient)
_row_threshold_ = register("row_threshold_", _fake_in_place)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, t, ctx.slices, ctx.law, weights, ctx.cap = inputs
    y, theta = output
    ctx.mark_non_differentiable(theta)
    ctx.save_for_backward(x if ctx.law == "linf" else y, theta, t, weights)


def _backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    reference, theta, t, weights = ctx.saved_tensors
    dx, dt = _row_gradient(g, reference, theta, t, ctx.slices, ctx.law, weights, ctx.cap)
    return dx, _for_threshold(dt, t), None, None, None, None


def _for_threshold(dt: Tensor, t: Tensor) -> Tensor:
    return (dt.sum() if t.numel() == 1 else dt).reshape(t.shape)


def _gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, reference, theta, t, ctx.slices, ctx.law, weights, ctx.cap, gt = inputs
    ctx.save_for_backward(g, reference, theta, t, weights, gt)


def _gradient_backward(ctx: Any, u: Tensor, v: Tensor) -> tuple[Any, ...]:
    """The Jacobian is symmetric, and constant but for two laws."""
    g, reference, theta, t, weights, gt = ctx.saved_tensors
    options = (theta, t, ctx.slices, ctx.law, weights, ctx.cap)
    dg, along = _row_gradient(u, reference, *options, v.contiguous())
    d_reference, dt = _second(ctx, u, v, g, reference, t, weights)
    dt = None if dt is None else _for_threshold(dt, t)
    none = (None,) * 4
    # `along` is of u alone: what v adds goes to dg.
    return dg, d_reference, None, dt, *none, None if gt is None else along


def _second(
    ctx: Any, u: Tensor, v: Tensor, g: Tensor, y: Tensor, t: Tensor, weights: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """How the Jacobian changes with y = √p² (entmax) and with t (exclusive), in plain torch."""
    if ctx.law not in ("entmax15", "exclusive"):
        return None, None
    shape = list(ctx.slices)

    def whole(a: Tensor) -> Tensor:
        return a.reshape(shape).double()

    def total(a: Tensor) -> Tensor:
        return a.sum((1, 3), keepdim=True)

    u4, g4, y4 = whole(u), whole(g), whole(y)
    if ctx.law == "entmax15":
        s = y4.clamp(min=0).sqrt()
        size = total(s)
        m = total(s * g4) / torch.where(size > 0, size, 1.0)
        slope = (u4 - total(u4 * s) / torch.where(size > 0, size, 1.0)) * (g4 - m)
        d = torch.where(s > 0, slope / (2.0 * torch.where(s > 0, s, 1.0)), 0.0)
        return d.reshape(y.shape).to(y.dtype), None
    w = 1.0 if weights is None else weights.double().reshape(1, shape[1], 1, shape[3])
    s = y4.sign() * w
    t4 = t.reshape(-1, 1, 1, 1) if t.numel() == 1 else t.reshape(shape[0], 1, shape[2], 1)
    v4 = v.reshape(shape[0], 1, shape[2], 1)
    squares = total(s * s)
    d = 1.0 + t4 * squares
    m = total(g4 * s) / d
    size = total(s * y4)
    dy = -v4 * m * s
    dt = (-m * total(u4 * s) + v4 * size * m * squares) / d
    return dy.reshape(y.shape).to(y.dtype), dt.reshape(-1)


_row_threshold.differentiable(_setup, _backward)
_row_gradient.differentiable(_gradient_setup, _gradient_backward)


# ---- arguments ----


def check_dim(op: str, x: Tensor, dim: int) -> int:
    """The dimension counted from the front."""
    checks.floating(op, "x", x)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"regkern.{op}: expected `dim` to be an int, got {dim!r}")
    if x.dim() == 0:
        raise ValueError(f"regkern.{op}: expected `x` of at least one dimension, got a 0-d tensor")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"regkern.{op}: expected `dim` in [{-x.dim()}, {x.dim()}), got {dim}")
    return dim % x.dim()


def memory_order(x: Tensor) -> list[int]:
    """The dimensions as they lie in memory where x is channels last, else as they are.

    By strides: under `torch.func.vmap` a tensor cannot be asked for its memory format.
    """
    plain = list(range(x.dim()))
    if x.dim() not in (4, 5) or x.is_contiguous():
        return plain
    order = [0, *range(2, x.dim()), 1]
    expected = 1
    for d in reversed(order):
        if x.shape[d] != 1 and x.stride(d) != expected:
            return plain
        expected *= x.shape[d]
    return order


def along(shape: Sequence[int], dim: int) -> list[int]:
    """(batch, outer, count, inner) of the slices along a dimension of a row-major tensor."""
    return [math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :]), 1]


class Lines:
    """The slices of x along a dimension, in the order of memory, and the way back."""

    def __init__(self, x: Tensor, dim: int) -> None:
        self.order = memory_order(x)
        self.dim = self.order.index(dim)
        self.x = x.permute(self.order)
        self.slices = along(self.x.shape, self.dim)
        self.plain = self.order == list(range(x.dim()))
        self.rank = x.dim()

    def like(self, t: Tensor) -> Tensor:
        """Another tensor of x's shape, in the same order."""
        return t.permute(self.order)

    def back(self, y: Tensor) -> Tensor:
        if self.plain:
            return y
        return y.permute([self.order.index(d) for d in range(self.rank)])

    def per_slice(self, t: Tensor) -> Tensor:
        """Of x's shape with size 1 along the dimension, or one element, as a float64 vector."""
        if t.numel() != 1:
            t = t.permute(self.order)
        return t.reshape(-1).to(torch.float64)

    def from_slices(self, v: Tensor) -> Tensor:
        """A vector with an element per slice, in x's shape without the dimension."""
        shape = list(self.x.shape)
        shape[self.dim] = 1
        dim = self.order[self.dim]
        return self.back(v.reshape(shape)).squeeze(dim)


def number_per_slice(op: str, name: str, value: float | Tensor, x: Tensor, dim: int) -> Tensor:
    """A number, 0-d tensor or tensor per slice; keeps the dimension with size 1.

    Python numbers become a tensor by filling: a copy from the host would wait for the GPU.
    """
    if not isinstance(value, Tensor):
        checks.scale(op, name, value)
        return torch.full((), value, dtype=torch.float64, device=x.device)
    if value.numel() == 1:
        return value.to(device=x.device, dtype=torch.float64).reshape(())
    checks.on_device(op, name, value, x)
    kept = [1 if d == dim else n for d, n in enumerate(x.shape)]
    without = [n for d, n in enumerate(x.shape) if d != dim]
    if list(value.shape) == without:
        return value.unsqueeze(dim)
    if list(value.shape) != kept:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of one element or of shape {tuple(without)}, got "
            f"{tuple(value.shape)}"
        )
    return value


def check_weights(op: str, weights: Tensor | None, x: Tensor, dim: int) -> Tensor | None:
    if weights is None:
        return None
    checks.on_device(op, "weights", weights, x)
    if weights.requires_grad:
        raise ValueError(
            f"regkern.{op}: expected `weights` without gradients, got a tensor that requires them"
        )
    if list(weights.shape) != [x.shape[dim]]:
        raise ValueError(
            f"regkern.{op}: expected `weights` of shape ({x.shape[dim]},), got "
            f"{tuple(weights.shape)}"
        )
    return weights.to(compute_dtype(x)).contiguous()


def row_law(
    op: str,
    law: str,
    x: Tensor,
    name: str,
    t: float | Tensor,
    dim: int,
    weights: Tensor | None = None,
    cap: float = 0.0,
) -> Tensor:
    """A law of the raw op `row_threshold` along a dimension."""
    dim = check_dim(op, x, dim)
    lines = Lines(x, dim)
    w = check_weights(op, weights, x, dim)
    right = lines.per_slice(number_per_slice(op, name, t, x, dim))
    y: Tensor = _row_threshold(lines.x, right, lines.slices, law, w, cap)[0]
    return lines.back(y)


# ---- public functions ----


def simplex_projection(x: Tensor, total: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    r"""The nearest point of the simplex of a given total.

    .. math::
        y = \arg\min_{y \ge 0,\, \sum_i y_i = t} \lVert y - x \rVert^2 = [x - \tau]_+

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    total : float or Tensor
        :math:`t \ge 0`: a number, a 0-d tensor, or a tensor of x's shape without ``dim``.
        Differentiable. 0 gives zeros.
    dim : int
        The slices are along this dimension.

    Returns
    -------
    Tensor
        Like x. −inf is a point with y = 0. A slice is NaN where an element is NaN or +inf, where
        all are −inf, and where its total is negative or NaN.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, a total below zero.

    Notes
    -----
    Michelot's active sets: exact, in linear time in practice, without a sort. Bytes moved: x read
    once, y written once. Where the total is small against the largest element, differences from it
    are exact: 10³⁰ is as good an offset as 0. Backward: :math:`dx = g - \bar g_A` on the support A,
    whose mean of g is the derivative in the total. Twice differentiable.

    References
    ----------
    C. Michelot, "A finite algorithm for finding the projection of a point onto the canonical
    simplex of Rⁿ", JOTA 50, 1986. L. Condat, "Fast projection onto the simplex and the l1 ball",
    Mathematical Programming 158, 2016.
    """
    return row_law("simplex_projection", "simplex", x, "total", total, dim)


def capped_simplex_projection(
    x: Tensor, total: float | Tensor, cap: float = 1.0, dim: int = -1
) -> Tensor:
    r"""The nearest point of a simplex whose elements are capped.

    .. math::
        y = \arg\min_{0 \le y \le c,\, \sum_i y_i = t} \lVert y - x \rVert^2
          = \min([x - \tau]_+,\, c)

    With ``total=k`` and ``cap=1`` a relaxation of "choose k": soft top-k.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    total : float or Tensor
        :math:`t \ge 0`: a number, a 0-d tensor, or a tensor of x's shape without ``dim``.
        Differentiable.
    cap : float
        :math:`c > 0`.
    dim : int
        The slices are along this dimension.

    Returns
    -------
    Tensor
        Like x. A slice is NaN where an element is not finite, and where there is no such point:
        a total below 0 or above n c.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, and numbers out of range.

    Notes
    -----
    Bitran and Hax: what exceeds a bound in the direction of the larger excess is fixed, until
    nothing does. Bytes moved: x read once, y written once. Backward as of `simplex_projection`,
    over the elements strictly between the bounds.

    References
    ----------
    G. R. Bitran and A. C. Hax, "Disaggregation and resource allocation using convex knapsack
    problems with bounded variables", Management Science 27, 1981.
    """
    op = "capped_simplex_projection"
    if isinstance(cap, bool) or not isinstance(cap, int | float):
        raise TypeError(f"regkern.{op}: expected `cap` to be a number, got {cap!r}")
    if not 0.0 < cap < math.inf:
        raise ValueError(f"regkern.{op}: expected `cap` to be positive and finite, got {cap}")
    axis = check_dim(op, x, dim)
    if not isinstance(total, Tensor):
        checks.scale(op, "total", total)
        if total > cap * x.shape[axis] and x.numel() > 0:
            raise ValueError(
                f"regkern.{op}: expected `total` to be at most {x.shape[axis]} * cap, got {total}"
            )
    return row_law(op, "capped", x, "total", total, dim, cap=float(cap))


def k_sparse_simplex_projection(
    x: Tensor, k: int, total: float | Tensor = 1.0, dim: int = -1
) -> Tensor:
    r"""The nearest point of the simplex with at most k elements that are not zero.

    .. math::
        y = \arg\min_{y \ge 0,\, \sum_i y_i = t,\, \lVert y \rVert_0 \le k} \lVert y - x \rVert^2

    The projection onto the simplex of the k largest elements; of equal ones, those of the lowest
    index.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    k : int
        At least 1; from the size of ``dim`` on this is `simplex_projection`.
    total : float or Tensor
        See `simplex_projection`.
    dim : int
        The slices are along this dimension.

    Returns
    -------
    Tensor
        Like x. Not finite: see `simplex_projection`.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, a k below 1.

    Notes
    -----
    The k largest are found by torch's stable sort. Gradients flow to the support alone.

    References
    ----------
    A. Kyrillidis, S. Becker, V. Cevher and C. Koch, "Sparse projections onto the simplex", ICML
    2013.
    """
    op = "k_sparse_simplex_projection"
    dim = check_dim(op, x, dim)
    checks.at_least(op, "k", k, 1)
    if k >= x.shape[dim]:
        return row_law(op, "simplex", x, "total", total, dim)
    order = torch.sort(x.detach(), dim=dim, descending=True, stable=True).indices
    dropped = order.narrow(dim, k, x.shape[dim] - k)
    # NaN sorts first and stays.
    kept = torch.zeros_like(x, dtype=torch.bool).scatter(dim, dropped, True)
    return row_law(op, "simplex", x.masked_fill(kept, -math.inf), "total", total, dim)


def l1_ball_projection(
    x: Tensor, radius: float | Tensor = 1.0, dim: int = -1, weights: Tensor | None = None
) -> Tensor:
    r"""The nearest point of the (weighted) l1 ball.

    .. math::
        y = \arg\min_{\sum_i w_i |y_i| \le r} \lVert y - x \rVert^2
          = \operatorname{sign}(x) [|x| - w \theta]_+

    with :math:`\theta = 0` inside of the ball.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    radius : float or Tensor
        :math:`r \ge 0`: a number, a 0-d tensor, or a tensor of x's shape without ``dim``.
        Differentiable. 0 gives zeros, infinity x bit for bit.
    dim : int
        The slices are along this dimension.
    weights : Tensor, optional
        :math:`w \ge 0`, one per index of ``dim``. Without gradients.

    Returns
    -------
    Tensor
        Like x. A slice is NaN where an element is not finite, or its radius is negative or NaN.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, a radius below zero.

    Notes
    -----
    See `simplex_projection`. Backward: :math:`dx = g - s w\, \frac{\langle s w, g\rangle_A}
    {\sum_A w^2}` on the support A with signs s; g inside of the ball. Twice differentiable.

    References
    ----------
    J. Duchi, S. Shalev-Shwartz, Y. Singer and T. Chandra, "Efficient projections onto the l1-ball
    for learning in high dimensions", ICML 2008.
    """
    return row_law("l1_ball_projection", "l1_ball", x, "radius", radius, dim, weights)


def l2_ball_projection(x: Tensor, radius: float | Tensor = 1.0, dim: int = -1) -> Tensor:
    r"""The nearest point of the l2 ball.

    .. math::
        y = x \min\left(1, \frac{r}{\lVert x \rVert_2}\right)

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    radius : float or Tensor
        :math:`r \ge 0`: a number, a 0-d tensor, or a tensor of x's shape without ``dim``.
        Differentiable.
    dim : int
        The slices are along this dimension.

    Returns
    -------
    Tensor
        Like x; inside of the ball x bit for bit. A slice is NaN where an element is not finite and
        the radius is, or where the radius is negative or NaN.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, a radius below zero.

    Notes
    -----
    Plain torch ops. Norms in float32 (float64 for double), of x over its largest magnitude:
    nothing overflows.
    """
    op = "l2_ball_projection"
    dim = check_dim(op, x, dim)
    r = number_per_slice(op, "radius", radius, x, dim).to(compute_dtype(x))
    if x.numel() == 0:
        return x.clone()
    wide = x.to(compute_dtype(x))
    top = wide.detach().abs().amax(dim, keepdim=True)
    unit = torch.where((top > 0) & torch.isfinite(top), top, 1.0)
    scaled = wide / unit
    squares = (scaled * scaled).sum(dim, keepdim=True)
    norm = torch.where(squares > 0, squares, 1.0).sqrt()
    limit = r / unit
    outside = (squares > limit * limit) | ~(r >= 0) | ~torch.isfinite(top)
    outside = outside & ~(r == math.inf)
    bad = torch.where(torch.isfinite(top) & (r >= 0), 0.0, math.nan).to(wide.dtype)
    y = torch.where(outside, scaled * (r / norm) + bad, wide)
    return y.to(x.dtype)


def linf_ball_projection(x: Tensor, radius: float | Tensor = 1.0) -> Tensor:
    r"""The nearest point of the linf ball.

    .. math::
        y = \min(\max(x, -r), r)

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    radius : float or Tensor
        :math:`r \ge 0`: a number or a tensor that broadcasts to x. Differentiable.

    Returns
    -------
    Tensor
        Like x; NaN stays NaN.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these and a radius below zero.

    Notes
    -----
    `torch.clamp`: one read and one write.
    """
    op = "linf_ball_projection"
    checks.floating(op, "x", x)
    if not isinstance(radius, Tensor):
        checks.scale(op, "radius", radius)
        return x.clamp(-radius, radius)
    checks.on_device(op, "radius", radius, x)
    radius = radius.to(x.dtype)
    return torch.clamp(x, -radius, radius)


def prox_linf(x: Tensor, threshold: float | Tensor, dim: int = -1) -> Tensor:
    r"""The proximal operator of the largest magnitude.

    .. math::
        \operatorname{prox}_{t \lVert \cdot \rVert_\infty}(x)
            = x - P_{\lVert \cdot \rVert_1 \le t}(x)
            = \min(\max(x, -\theta), \theta), \qquad \sum_i [|x_i| - \theta]_+ = t

    and zero where :math:`\lVert x \rVert_1 \le t`.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    threshold : float or Tensor
        :math:`t \ge 0`: a number, a 0-d tensor, or a tensor of x's shape without ``dim``.
        Differentiable. 0 gives x bit for bit, infinity zeros.
    dim : int
        The slices are along this dimension.

    Returns
    -------
    Tensor
        Like x. A slice is NaN where an element is not finite or its threshold is negative or NaN.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, a threshold below zero.

    Notes
    -----
    See `simplex_projection`. Backward: :math:`dx = s \bar{(s g)}_A` on the clamped elements A with
    signs s, g elsewhere, 0 where the slice is zero. Twice differentiable.

    References
    ----------
    N. Parikh and S. Boyd, "Proximal algorithms", Foundations and Trends in Optimization 1, 2014,
    section 6.5.
    """
    return row_law("prox_linf", "linf", x, "threshold", threshold, dim)


def prox_linf_(
    tensors: Tensor | Sequence[Tensor],
    thresholds: float | Tensor | Sequence[Tensor],
    dim: int = 0,
) -> ProxReport:
    r"""`prox_linf` in place, of the groups of a whole list of tensors in one call.

    A group has the elements of one index of ``dim``: with 0, the weights of one output channel.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        What is written; dtypes mixed as they come, any strides.
    thresholds : float, Tensor or sequence of Tensor
        :math:`t \ge 0` of all groups; or a tensor for each of ``tensors``, of one element or with
        an element per group.
    dim : int
        The dimension whose indices number the groups.

    Returns
    -------
    ProxReport
        ``norms``: θ, the largest magnitude of each group afterwards; ``zeros``: groups that are
        zero.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd. Bytes moved: every element read and written once. Rows (``dim=0``) are
    read as they lie; groups that are columns are gathered sixteen at a time.
    """
    op = "prox_linf_"
    xs = checks.tensor_list(op, "tensors", tensors)
    slices: list[int] = []
    for x in xs:
        d = check_dim(op, x, dim)
        shape = x.shape
        slices += [1, math.prod(shape[:d]), shape[d], math.prod(shape[d + 1 :])]
    if isinstance(thresholds, Tensor) or not isinstance(thresholds, Sequence):
        given: Sequence[Any] = [thresholds]
    else:
        given = thresholds
    if len(given) != 1 and len(given) != len(xs):
        raise ValueError(
            f"regkern.{op}: expected `thresholds` to be one or {len(xs)}, got {len(given)}"
        )
    ts = []
    for i, value in enumerate(given):
        if not isinstance(value, Tensor):
            checks.scale(op, "thresholds", value)
            ts.append(torch.full((1,), value, dtype=torch.float64, device=xs[0].device))
            continue
        groups = slices[4 * i + 2]
        if value.numel() != 1 and (value.numel() != groups or len(given) != len(xs)):
            raise ValueError(
                f"regkern.{op}: expected `thresholds` of one element or one per group, got "
                f"{tuple(value.shape)}"
            )
        ts.append(value.detach().reshape(-1).to(device=xs[0].device, dtype=torch.float64))
    thetas = [
        x.new_empty((count,), dtype=compute_dtype(x))
        for x, count in zip(xs, slices[2::4], strict=True)
    ]
    with torch.no_grad():
        zeros = _row_threshold_(xs, thetas, ts, slices, "linf")
    return ProxReport(tuple(thetas), zeros)


def prox_exclusive_lasso(
    x: Tensor, threshold: float | Tensor, dim: int = -1, weights: Tensor | None = None
) -> Tensor:
    r"""The proximal operator of the squared l1 norm, which lets the elements of a group compete.

    .. math::
        \operatorname{prox}_{\frac{t}{2} (\sum_i w_i |\cdot|)^2}(x)
            = \operatorname{sign}(x) [|x| - t S w]_+, \qquad
        S = \sum_i w_i |y_i| = \frac{\sum_A w_i |x_i|}{1 + t \sum_A w_i^2}

    over the support A of y.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    threshold : float or Tensor
        :math:`t \ge 0`: a number, a 0-d tensor, or a tensor of x's shape without ``dim``.
        Differentiable. 0 gives x bit for bit, infinity zeros.
    dim : int
        The groups are along this dimension.
    weights : Tensor, optional
        :math:`w \ge 0`, one per index of ``dim``. Without gradients.

    Returns
    -------
    Tensor
        Like x. A slice is NaN where an element is not finite or its threshold is negative or NaN.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, a threshold below zero.

    Notes
    -----
    See `simplex_projection`. Twice differentiable.

    References
    ----------
    Y. Zhou, R. Jin and S. Hoi, "Exclusive lasso for multi-task feature selection", AISTATS 2010.
    A. Martins et al., "Online learning of structured predictors with multiple kernels", AISTATS
    2011.
    """
    return row_law("prox_exclusive_lasso", "exclusive", x, "threshold", threshold, dim, weights)

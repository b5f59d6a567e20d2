"""Sliced Wasserstein distances, and sorted weights against their initial values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, once_only, register
from regkern.spectral.directions import sphere_directions
from regkern.spectral.network import distance_penalty

# ---- raw ops: fake kernels and autograd ----


def _fake_cost(
    x: Tensor,
    y: Tensor,
    sorted_x: Tensor,
    sorted_y: Tensor,
    order_x: Tensor,
    order_y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    power: float,
) -> Tensor:
    return sorted_x.new_empty(sorted_x.shape[:1])


def _fake_slopes(
    g: Tensor,
    sorted_x: Tensor,
    sorted_y: Tensor,
    order_x: Tensor,
    order_y: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    power: float,
) -> tuple[Tensor, Tensor]:
    return sorted_x.new_empty(sorted_x.shape), sorted_y.new_empty(sorted_y.shape)


_cost = register("sliced_cost", _fake_cost)
_slopes = register("sliced_slopes", _fake_slopes)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    # x and y themselves as well: that they have gradients says that a second one is refused.
    *tensors, ctx.power = inputs
    ctx.save_for_backward(*tensors)


@once_only("sliced_cost")
def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    _, _, *lines = ctx.saved_tensors
    return *_slopes(g, *lines, ctx.power), *(None,) * 7


_cost.differentiable(_setup, _backward)


# ---- lines ----


def _cumulative(weights: Tensor, order: Tensor) -> Tensor:
    """Normalised weights up to and with each number of every slice, in float64."""
    taken = weights.double()[order].cumsum(-1)
    ends: Tensor = taken / taken[:, -1:]
    return ends


def _line_costs(x: Tensor, y: Tensor, p: float, a: Tensor | None, b: Tensor | None) -> Tensor:
    """The cost of every slice of (slices, n) and (slices, m)."""
    sorted_x, order_x = x.detach().sort(-1)
    sorted_y, order_y = y.detach().sort(-1)
    ends = (None, None)
    if a is not None and b is not None:
        ends = _cumulative(a, order_x), _cumulative(b, order_y)
    cost: Tensor = _cost(x, y, sorted_x, sorted_y, order_x, order_y, *ends, p)
    return cost


# ---- arguments ----


def _clouds(
    op: str, x: object, y: object, a: Tensor | None, b: Tensor | None, p: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Points of the compute type, and weights on both sides or on none."""
    checks.floating(op, "x", x)
    checks.floating(op, "y", y)
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    checks.on_device(op, "y", y, x)
    if y.dtype != x.dtype:
        raise TypeError(f"regkern.{op}: expected `y` of x's dtype {x.dtype}, got {y.dtype}")
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"regkern.{op}: expected `x` of shape (n, d) and `y` of shape (m, d), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.shape[0] == 0 or y.shape[0] == 0:
        raise ValueError(
            f"regkern.{op}: expected at least one point in `x` and `y`, got {x.shape[0]} and "
            f"{y.shape[0]}"
        )
    if isinstance(p, bool) or not isinstance(p, int | float | torch.SymFloat):
        raise TypeError(f"regkern.{op}: expected `p` to be a number, got {p!r}")
    checks.at_least(op, "p", p, 1.0)
    if not p < math.inf:
        raise ValueError(f"regkern.{op}: expected `p` to be finite, got {p}")
    for name, weights, points in (("a", a, x), ("b", b, y)):
        if weights is None:
            continue
        checks.floating(op, name, weights)
        checks.on_device(op, name, weights, x)
        if weights.shape != points.shape[:1]:
            raise ValueError(
                f"regkern.{op}: expected `{name}` of shape ({points.shape[0]},), got "
                f"{tuple(weights.shape)}"
            )
        if weights.requires_grad:
            raise ValueError(
                f"regkern.{op}: expected `{name}` without a gradient, got one that requires it"
            )
    if a is None and b is not None:
        a = x.new_ones(x.shape[0], dtype=torch.float64)
    if b is None and a is not None:
        b = y.new_ones(y.shape[0], dtype=torch.float64)
    return x.to(compute_dtype(x)), y.to(compute_dtype(y)), a, b


def _directions(
    op: str,
    x: Tensor,
    size: int,
    n_projections: int,
    projections: Tensor | None,
    seed: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """(L, size): those given, or uniform on the sphere."""
    if projections is None:
        checks.at_least(op, "n_projections", n_projections, 1)
        like = x.new_empty((n_projections, size))
        return sphere_directions(like, seed=seed, generator=generator)
    checks.floating(op, "projections", projections)
    checks.on_device(op, "projections", projections, x)
    if projections.dim() != 2 or projections.shape[1] != size or projections.shape[0] < 1:
        raise ValueError(
            f"regkern.{op}: expected `projections` of shape (L, {size}), got "
            f"{tuple(projections.shape)}"
        )
    return projections.to(x.dtype)


def _projected(x: Tensor, directions: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return directions @ x.mT


def _root(mean: Tensor, p: float) -> Tensor:
    """mean^(1/p), with slope 0 at 0."""
    if p == 1:
        return mean
    still = mean == 0
    return torch.where(still, 0.0, torch.where(still, 1.0, mean) ** (1.0 / p))


# ---- public functions ----


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    n_projections: int = 50,
    p: float = 2.0,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    projections: Tensor | None = None,
    root: bool = True,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The sliced Wasserstein distance of two clouds of points.

    .. math::
        \Bigl(\frac{1}{L} \sum_l W_p^p(\theta_l^\top x, \theta_l^\top y)\Bigr)^{1/p}, \qquad
        W_p^p(u, v) = \int_0^1 |F_u^{-1}(q) - F_v^{-1}(q)|^p \, dq

    Parameters
    ----------
    x, y : Tensor
        (n, d) and (m, d), float32, float64, bfloat16 or float16.
    n_projections : int
        L, directions drawn uniformly on the sphere.
    p : float
        At least 1.
    a, b : Tensor, optional
        Weights (n,) and (m,), which are normalised; not differentiated. Default: all the same. A
        point of weight zero has gradient 0.
    projections : Tensor, optional
        (L, d): the directions instead of drawn ones, as they are (not normalised).
        Differentiable.
    root : bool
        Whether the p-th root is taken. It has slope 0 at 0.
    seed, generator
        Where directions are drawn from, as of :func:`regkern.random_directions`.

    Returns
    -------
    Tensor
        0-d, float32, or float64 where x is. Differentiable in points and directions, once.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A product with the directions, a sort of each slice, and a pass that merges quantiles and adds
    up; the backward is one pass that writes slopes to where points stood before the sort. Memory
    O((n + m) L). Unequal sizes are merged exactly, in integers.

    References
    ----------
    Bonneel, Rabin, Peyré and Pfister, "Sliced and Radon Wasserstein barycenters of measures", 2015;
    Le, Nguyen, Ho, et al., "Integrating efficient optimal transport and functional maps for
    unsupervised shape correspondence learning", CVPR 2024.
    """
    op = "sliced_wasserstein"
    xs, ys, a, b = _clouds(op, x, y, a, b, p)
    theta = _directions(op, xs, xs.shape[1], n_projections, projections, seed, generator)
    mean = _line_costs(_projected(xs, theta), _projected(ys, theta), p, a, b).mean()
    return _root(mean, p) if root else mean


def max_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    p: float = 2.0,
    *,
    steps: int = 10,
    lr: float = 0.5,
    n_starts: int = 8,
    a: Tensor | None = None,
    b: Tensor | None = None,
    root: bool = True,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The distance along the direction in which it is largest.

    .. math:: \max_{|\theta| = 1} W_p(\theta^\top x, \theta^\top y)

    by projected gradient ascent, :math:`\theta \leftarrow (\theta + \eta\, g / |g|)` normalised,
    from several directions at once.

    Parameters
    ----------
    x, y, p, a, b, root, seed, generator
        As of :func:`sliced_wasserstein`.
    steps : int
        Steps of the ascent.
    lr : float
        η, as a share of the unit direction; it falls to η / steps.
    n_starts : int
        Directions that ascend; the best of all that were met counts.

    Returns
    -------
    Tensor
        0-d. Differentiable in the points, once, at the direction found (envelope theorem).

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A lower bound of the maximum. Each step is a sliced distance with its gradient over ``n_starts``
    slices; nothing waits for the device.

    References
    ----------
    Deshpande et al., "Max-sliced Wasserstein distance and its use for GANs", CVPR 2019.
    """
    op = "max_sliced_wasserstein"
    xs, ys, a, b = _clouds(op, x, y, a, b, p)
    checks.at_least(op, "steps", steps, 0)
    checks.at_least(op, "lr", lr, 0.0)
    theta = _directions(op, xs, xs.shape[1], n_starts, None, seed, generator)
    fixed = xs.detach(), ys.detach()
    best, most = theta, theta.new_full((theta.shape[0],), -math.inf)
    for step in range(steps + 1):
        theta = theta.detach().requires_grad_(step < steps)
        with torch.enable_grad():
            u, v = (_projected(z, theta) for z in fixed)
            costs = _line_costs(u, v, p, a, b)
            if step < steps:
                (slope,) = torch.autograd.grad(costs.sum(), theta)
        better = costs.detach() > most
        most = torch.where(better, costs.detach(), most)
        best = torch.where(better[:, None], theta.detach(), best)
        if step < steps:
            rate = lr * (1.0 - step / steps)
            moved = theta.detach() + rate * torch.nn.functional.normalize(slope, dim=-1)
            theta = torch.nn.functional.normalize(moved, dim=-1)
    # Not a place to be read: the row is taken on the device.
    direction = best.index_select(0, most.argmax().reshape(1))
    cost = _line_costs(_projected(xs, direction), _projected(ys, direction), p, a, b).sum()
    return _root(cost, p) if root else cost


Defining = Literal["linear", "polynomial", "circular"]


def _powers(size: int, degree: int) -> list[tuple[int, ...]]:
    """The exponents of all monomials of one degree."""
    if size == 1:
        return [(degree,)]
    return [
        (first, *rest)
        for first in range(degree + 1)
        for rest in _powers(size - 1, degree - first)
    ]


def _monomials(x: Tensor, degree: int) -> Tensor:
    table = _powers(x.shape[1], degree)
    columns = []
    for exponents in table:
        column = torch.ones_like(x[:, 0])
        for k, e in enumerate(exponents):
            if e:
                column = column * x[:, k] ** e
        columns.append(column)
    return torch.stack(columns, 1)


def generalized_sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    n_projections: int = 50,
    p: float = 2.0,
    *,
    defining: Defining = "circular",
    degree: int = 3,
    radius: float = 1.0,
    a: Tensor | None = None,
    b: Tensor | None = None,
    projections: Tensor | None = None,
    root: bool = True,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A sliced Wasserstein distance along curves.

    Points are mapped to :math:`g(x, \theta)` instead of to :math:`\theta^\top x`:

    ============== ======================================================
    defining       g
    ============== ======================================================
    ``linear``     :math:`\theta^\top x`
    ``polynomial`` :math:`\sum_{|α| = m} \theta_α x^α`, θ on the sphere
    ``circular``   :math:`|x - r \theta|`, θ on the sphere
    ============== ======================================================

    Parameters
    ----------
    x, y, n_projections, p, a, b, projections, root, seed, generator
        As of :func:`sliced_wasserstein`; of polynomials ``projections`` has a column for each
        monomial.
    defining : {"linear", "polynomial", "circular"}
        g.
    degree : int
        m, odd where the result has to be a metric.
    radius : float
        r.

    Returns
    -------
    Tensor
        0-d, as of :func:`sliced_wasserstein`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Kolouri, Nadjahi, Simsekli, Badeau and Rohde, "Generalized sliced Wasserstein distances",
    NeurIPS 2019.
    """
    op = "generalized_sliced_wasserstein"
    xs, ys, a, b = _clouds(op, x, y, a, b, p)
    checks.one_of(op, "defining", defining, ("linear", "polynomial", "circular"))
    features: Callable[[Tensor], Tensor] = lambda z: z  # noqa: E731
    if defining == "polynomial":
        checks.at_least(op, "degree", degree, 1)
        features = lambda z: _monomials(z, degree)  # noqa: E731
    fx, fy = features(xs), features(ys)
    theta = _directions(op, fx, fx.shape[1], n_projections, projections, seed, generator)
    if defining == "circular":
        u, v = (_radii(z, radius * theta) for z in (fx, fy))
    else:
        u, v = _projected(fx, theta), _projected(fy, theta)
    mean = _line_costs(u, v, p, a, b).mean()
    return _root(mean, p) if root else mean


def _radii(x: Tensor, centres: Tensor) -> Tensor:
    """|x_i − c_l| as (L, n), with slope 0 where it is 0."""
    return torch.cdist(centres, x, compute_mode="donot_use_mm_for_euclid_dist")


# ---- weights and their initial values ----


class SortedInitials:
    """The initial values of a list of tensors, sorted once.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        The parameters as they were initialised.
    """

    def __init__(self, tensors: Tensor | Sequence[Tensor]) -> None:
        listed = checks.tensor_list("SortedInitials", "tensors", tensors)
        with torch.no_grad():
            self.sorted = [t.detach().flatten().sort()[0] for t in listed]
        self.shapes = [t.shape for t in listed]


def weights_wasserstein(
    tensors: Tensor | Sequence[Tensor],
    initials: SortedInitials | Tensor | Sequence[Tensor],
) -> Tensor:
    r"""How far the distributions of weights are from those they were initialised with.

    .. math:: \sum_l \sum_i \bigl(\theta^l_{(i)} - \theta^{l,0}_{(i)}\bigr)^2

    over the sorted entries of each tensor: n W₂² of their empirical distributions. Weights may
    change places freely, unlike with :math:`\lVert \theta - \theta^0 \rVert^2`.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        θ, of any shapes, strides and floating dtypes, on one device.
    initials : SortedInitials, Tensor or sequence of Tensor
        θ⁰, of the same shapes and dtypes: best as :class:`SortedInitials`, sorted once and kept.

    Returns
    -------
    Tensor
        0-d, float32 (float64 if any tensor is that). Differentiable, as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A sort of each tensor, and one pass over all of them; the gradient is :math:`2(\theta_{(i)} -
    \theta^0_{(i)})` where the weight stood before the sort.

    References
    ----------
    Lewandowski et al., "Learning continually by spectral regularization", 2024 (first version),
    there with one-dimensional Wasserstein distances.
    """
    op = "weights_wasserstein"
    listed = checks.tensor_list(op, "tensors", tensors)
    kept = initials if isinstance(initials, SortedInitials) else SortedInitials(initials)
    shapes = [t.shape for t in listed]
    if shapes != kept.shapes:
        raise ValueError(
            f"regkern.{op}: expected `initials` of shapes {[tuple(s) for s in shapes]}, got "
            f"{[tuple(s) for s in kept.shapes]}"
        )
    return distance_penalty([t.flatten().sort()[0] for t in listed], kept.sorted)

"""Partial transport: some of the mass goes somewhere, the rest stays where it is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register
from regkern.transport.arguments import (
    number_of,
    once,
    pair_of,
    problem_of,
    readable,
    taking_part,
    weights_of,
)
from regkern.transport.dense import DenseCost
from regkern.transport.implicit import Engine, at_optimum
from regkern.transport.partial_implicit import caps, implicit
from regkern.transport.points import COSTS, PointCost
from regkern.transport.result import Transport

_OP = "partial_transport"


def _fake(like: Tensor, batch: int, n: int, m: int) -> tuple[Tensor, ...]:
    double = torch.float64
    return (
        like.new_empty((batch, n), dtype=double),
        like.new_empty((batch, m), dtype=double),
        like.new_empty((batch,), dtype=double),
        like.new_empty((batch,), dtype=double),
        like.new_empty((batch,), dtype=torch.int32),
        like.new_empty((batch,), dtype=torch.int8),
    )


_dense = register("transport_dense_partial", lambda cost, *rest: _fake(cost, *cost.shape))
_points = register(
    "transport_points_partial",
    lambda x, y, *rest: _fake(x, x.shape[0], x.shape[1], y.shape[1]),
)


def _solve(engine: DenseCost | PointCost, *problem: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        result: tuple[Tensor, ...]
        if isinstance(engine, DenseCost):
            result = _dense(engine.cost.detach(), *problem)
        else:
            (x, xs, r), (y, ys, s) = engine.sides
            result = _points(x, y, xs, ys, r, s, engine.kernel, engine.factor, *problem)
        return result


def _value(
    engine: Engine,
    entropy: str,
    below_a: Tensor,
    below_b: Tensor,
    level: Tensor,
    a: Tensor,
    b: Tensor,
    mass: Tensor,
    eps: Tensor,
) -> Tensor:
    """The dual at potentials that are so far below their caps."""
    f, g = caps(a, eps, entropy) - below_a, caps(b, eps, entropy) - below_b
    raw = engine.softmin(b, g, eps, False)
    met = (a > 0) & raw.isfinite()
    apart = f + level[:, None] - torch.where(met, raw, 0.0)
    moved = torch.where(met, a * (torch.where(met, apart, 0.0) / eps[:, None]).exp(), 0.0).sum(-1)
    if entropy == "plain":
        # Of Σ P ln P, whose caps are 0.
        gains = [-(w * gap).sum(-1) for w, gap in ((a, below_a), (b, below_b))]
        return gains[0] + gains[1] + mass * level + eps * (mass - moved)
    gains = [(w * h).sum(-1) for w, h in zip((a, b), (f, g), strict=True)]
    return gains[0] + gains[1] + mass * level + eps * (a.sum(-1) * b.sum(-1) - moved)


def partial_transport(
    cost: Tensor | None = None,
    *,
    x: Tensor | None = None,
    y: Tensor | None = None,
    cost_fn: str = "sqeuclidean",
    a: Tensor | None = None,
    b: Tensor | None = None,
    mass: float | Tensor,
    eps: float | Tensor = 0.05,
    tol: float | None = 1e-3,
    max_iter: int = 1000,
    check_every: int = 1,
    init: Transport | tuple[Tensor | None, Tensor] | None = None,
    mask: tuple[Tensor | None, Tensor | None] | None = None,
    lengths: tuple[Tensor | None, Tensor | None] | None = None,
    gradient: str = "envelope",
    entropy: str = "kl",
) -> Transport:
    r"""Entropic transport of a part of the mass.

    .. math::
        \min_{P \ge 0} \langle P, C\rangle + \varepsilon\, \mathrm{KL}(P \mid a \otimes b)
        \quad\text{with}\quad P 1 \le a,\; P^T 1 \le b,\; 1^T P 1 = m

    .. math::
        P_{ij} = a_i b_j \exp\left(\frac{f_i + g_j + h - C_{ij}}{\varepsilon}\right), \qquad
        f, g \le 0

    where :math:`f_i < 0` only where all of :math:`a_i` is moved.

    Parameters
    ----------
    cost : Tensor
        C (..., n, m): float32, float64, bfloat16 or float16. :math:`C = \infty` forbids a pair.
    x, y : Tensor
        Instead of a cost, points (..., n, d) and (..., m, d), whose costs are never stored.
    cost_fn : str
        Of points, as in :func:`sinkhorn`.
    a, b : Tensor, optional
        Weights (..., n) and (..., m), of any totals; 1/n and 1/m if none are given.
    mass : float or Tensor
        m, at most the smaller total; a number or one for each problem.
    eps : float or Tensor
        :math:`\varepsilon > 0`, likewise. Partial transport without entropy as it goes to 0.
    tol : float, optional
        Stops a problem whose error is below. None: exactly ``max_iter`` iterations.
    max_iter, check_every : int
        At most so many iterations; the error is looked at, on the device, so often, which takes
        O(n) of the time of an iteration.
    init : Transport or pair of Tensor, optional
        Potentials to begin with, of this or a similar problem. ``g``, up to a constant, decides;
        f may be None.
    mask, lengths : pair of Tensor, optional
        Which points take part: bools (..., n) and (..., m), or how many of the first ones.
        Either of a pair may be None. Without weights those that do have equal ones.
    gradient : str
        How the result is differentiated by costs or points, weights, mass and eps.
        ``"envelope"``: the value alone, once. ``"implicit"``: also f, g, the plan and products with
        it, by the implicit function theorem; the value of costs twice. Not
        under ``torch.compile(fullgraph=True)``.
    entropy : str
        ``"kl"``: as above. ``"plain"``: :math:`\varepsilon \sum P \log P`, whose plan is another
        where weights are not uniform; that of POT's ``entropic_partial_wasserstein``.

    Returns
    -------
    Transport
        With f + h for f, so that the plan is that of its formula; ``value`` is the objective at the
        optimum, ``error`` what the rows' marginals miss of what is optimal for the columns'
        potentials, over m.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, weights below 0, and a mass beyond either total of what takes
        part (looked at on the CPU).

    Notes
    -----
    Each half-step finds f and h (g and h) that are optimal for the other side at once, so every
    half-step moves m; there is no dummy point. Two reads of the cost an iteration, and nothing of
    its size is allocated. No call waits for the device.

    Gradients of the value by what it is at the optimum: dC = P, dm = h, and of the KL form
    :math:`da = f + \varepsilon (1^T b - P 1 / a)`. Those of potentials and plan are a system in
    the potentials that are below their caps, and h, with the plan in it as a product, by at most
    200 conjugate gradients of two products each. They are right to what the plan is, and hold the
    full points full: where a point is full that would be so at its cap as well, another change of
    the problem would leave it not full, and has another derivative.

    References
    ----------
    J.-D. Benamou, G. Carlier, M. Cuturi, L. Nenna and G. Peyré, "Iterative Bregman projections for
    regularized transportation problems", SIAM J. Sci. Comput. 37, 2015. L. Chapel, M. Z. Alaya and
    G. Gasso, "Partial optimal transport with applications on positive-unlabeled learning", 2020.
    """
    checks.one_of(_OP, "gradient", gradient, ("envelope", "implicit"))
    checks.one_of(_OP, "entropy", entropy, ("kl", "plain"))
    checks.one_of(_OP, "cost_fn", cost_fn, COSTS)
    checks.at_least(_OP, "max_iter", max_iter, 1)
    checks.at_least(_OP, "check_every", check_every, 1)
    batch, n, m, like = problem_of(_OP, cost, x, y)
    if tol is not None:
        if not tol > 0:
            _fail("`tol` to be positive or None", tol)
        tol = max(float(tol), 10 * torch.finfo(compute_dtype(like)).eps)
    count = math.prod(batch)
    (mask_a, mask_b), (many_a, many_b) = (
        pair_of(_OP, name, pair) for name, pair in (("mask", mask), ("lengths", lengths))
    )
    a = _weights("a", a, taking_part(_OP, mask_a, many_a, (*batch, n), like), batch, n, like)
    b = _weights("b", b, taking_part(_OP, mask_b, many_b, (*batch, m), like), batch, m, like)
    moved = _whole("mass", number_of(_OP, "mass", mass, like), batch)
    e = _whole("eps", number_of(_OP, "eps", eps, like), batch)
    if readable(moved) and count > 0:
        most = torch.minimum(a.sum(-1), b.sum(-1)).detach()
        if bool((moved.detach() > most * (1.0 + 1e-6)).any()):
            _fail(f"`mass` of at most {most.min().item()}", moved.detach().max().item())
    engine: DenseCost | PointCost
    if cost is not None:
        engine = DenseCost(cost.reshape(count, n, m).contiguous())
    else:
        assert x is not None
        assert y is not None
        engine = PointCost(x.reshape(count, n, -1), y.reshape(count, m, -1), cost_fn)

    inputs = (a, b, moved, e, *engine.tensors)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    alone = engine.replaced(*(t.detach() for t in engine.tensors))
    fixed = [t.detach() for t in (a, b, moved, e)]
    own = tuple(caps(w, fixed[3], entropy) for w in fixed[:2])
    f, g, level, error, iterations, status = _solve(
        alone,
        *fixed[:2],
        *own,
        *fixed[2:],
        _start(init, fixed[1], own[1], (*batch, n), (*batch, m)),
        tol,
        max_iter,
        check_every,
    )
    below = (own[0] - f, own[1] - g)
    full = ((below[0] > 0) & (fixed[0] > 0), (below[1] > 0) & (fixed[1] > 0))
    f = f + level[:, None]
    envelope = gradient == "envelope"
    if wanted:
        a, b, moved, e = (torch.where(t == 0, t.detach(), t) for t in (a, b, moved, e))
    if wanted and envelope:
        a, b, moved, e = (once(_OP, t) for t in (a, b, moved, e))
        engine = engine.replaced(*(once(_OP, t) for t in engine.tensors))
    if wanted and not envelope:
        f, g, level = implicit(engine, entropy, (f, g, level), full, (a, b, moved, e))
        at_a, at_b = caps(a, e, entropy) + level[:, None] - f, caps(b, e, entropy) - g
        below = (torch.where(full[0], at_a, 0.0), torch.where(full[1], at_b, 0.0))

        def dual(*given: Tensor) -> Tensor:
            return _value(engine.replaced(*given[7:]), entropy, *given[:7])

        value = at_optimum(dual, (*below, level), (a, b, moved, e, *engine.tensors))
    else:
        value = _value(engine, entropy, *below, level, a, b, moved, e)
    wide = compute_dtype(like)

    def back(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return t.reshape((*batch, *t.shape[1:])).to(dtype or t.dtype)

    return Transport(
        f=back(f, wide),
        g=back(g, wide),
        value=back(value, wide),
        error=back(error, wide),
        iterations=back(iterations),
        status=back(status),
        _engine=alone if envelope else engine,
        _given=(fixed[0], fixed[1], f, g, fixed[3]) if envelope else (a, b, f, g, e),
        _batch=batch,
    )


def _fail(expected: str, got: object) -> None:
    raise ValueError(f"regkern.{_OP}: expected {expected}, got {got}")


def _weights(
    name: str,
    given: Tensor | None,
    there: Tensor | None,
    batch: tuple[int, ...],
    size: int,
    like: Tensor,
) -> Tensor:
    """Weights (B, size): 0 of what takes no part, uniform over the rest if none are given."""
    if there is not None and given is None:
        count = there.sum(-1, keepdim=True).clamp(min=1)
        return _whole(name, there.double() / count, batch, size)
    weight = _whole(name, weights_of(_OP, name, given, size, like), batch, size)
    return weight if there is None else torch.where(there.reshape(weight.shape), weight, 0.0)


def _start(
    init: Any, weight: Tensor, cap: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]
) -> Tensor | None:
    """g to begin with, moved by a constant, which h takes up, until it reaches its caps."""
    if init is None:
        return None
    f, g = (init.f, init.g) if isinstance(init, Transport) else pair_of(_OP, "init", init)
    for name, t, shape in (("f", f, rows), ("g", g, columns)):
        if t is None and name == "f":
            continue
        checks.floating(_OP, f"init's {name}", t)
        checks.on_device(_OP, f"init's {name}", t, weight)
        if tuple(t.shape) != shape:
            _fail(f"`init` with {name} of shape {shape}", tuple(t.shape))
    g = g.detach().double().reshape(weight.shape)
    gap = torch.where((weight > 0) & (g < math.inf), g - cap, -math.inf)
    most = gap.amax(-1, keepdim=True)
    return torch.minimum(g - torch.where(most.isfinite(), most, 0.0), cap).contiguous()


def _whole(name: str, t: Tensor, batch: tuple[int, ...], *size: int) -> Tensor:
    """t for each problem of the batch, which becomes one dimension."""
    lead = t.shape[: t.dim() - len(size)]
    if len(lead) > len(batch) or any(
        s != 1 and s != d for s, d in zip(reversed(lead), reversed(batch), strict=False)
    ):
        _fail(f"`{name}` of shape {(*batch, *size)} or one for all problems", tuple(t.shape))
    return t.expand((*batch, *size)).reshape(math.prod(batch), *size).contiguous()

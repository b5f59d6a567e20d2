"""The front door: `sinkhorn`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.transport.arguments import (
    is_eager,
    once,
    pair_of,
    problem_of,
    readable,
    taking_part,
)
from regkern.transport.dense import DenseCost, Potentials, Settings
from regkern.transport.implicit import STEPS, Engine, at_optimum, implicit, target, unrolled
from regkern.transport.result import Given, Transport
from regkern.transport.small import (
    SmallSolution,
    conjugate,
    is_small,
    solve_small,
    weights_or_uniform,
)

_OP = "sinkhorn"
COSTS = ("sqeuclidean", "half_sqeuclidean", "euclidean", "cosine", "dot")

Number = float | Tensor
Init = tuple[Tensor | None, Tensor | None] | Transport


def _fail(expected: str, got: object) -> None:
    raise ValueError(f"regkern.{_OP}: expected {expected}, got {got}")


def _number(name: str, value: Number, batch: tuple[int, ...], like: Tensor) -> Tensor:
    """A positive number per problem, double (B)."""
    count = math.prod(batch)
    if isinstance(value, Tensor):
        checks.on_device(_OP, name, value, like)
        if value.dim() > 0 and tuple(value.shape) != batch:
            _fail(f"`{name}` to be a number or of shape {batch}", tuple(value.shape))
        return value.double().expand(batch).reshape(count).contiguous()
    if isinstance(value, bool) or not isinstance(value, int | float | torch.SymFloat):
        raise TypeError(f"regkern.{_OP}: expected `{name}` to be a number, got {value!r}")
    if not value > 0:
        _fail(f"`{name}` to be positive", value)
    return torch.full((count,), float(value), dtype=torch.float64, device=like.device)


def _reach(rho: Any, batch: tuple[int, ...], like: Tensor) -> Tensor:
    """ρ of both sides, (2, B): ∞ is hard."""
    pair = rho if isinstance(rho, tuple | list) else (rho, rho)
    if len(pair) != 2:
        _fail("`rho` to be a number or two", f"{len(pair)} of them")
    return torch.stack([_number("rho", math.inf if r is None else r, batch, like) for r in pair])


def _weights(
    name: str,
    given: Tensor | None,
    mask: Tensor | None,
    length: Tensor | None,
    shape: tuple[int, ...],
    like: Tensor,
    normalize: bool,
) -> Tensor:
    """Weights (B, n), double: uniform over what is there if none are given."""
    size = shape[-1]
    kept = taking_part(_OP, mask, length, shape, like)
    if given is None:
        if kept is None:
            weight = torch.full(shape, 1.0 / max(1, size), dtype=torch.float64, device=like.device)
        else:
            weight = kept.double() / kept.sum(-1, keepdim=True).clamp(min=1)
    else:
        checks.floating(_OP, name, given)
        checks.on_device(_OP, name, given, like)
        if given.shape[-1:] != (size,) or given.dim() > len(shape):
            _fail(f"`{name}` of shape (..., {size})", tuple(given.shape))
        weight = given.double().expand(shape)
        if kept is not None:
            weight = torch.where(kept, weight, 0.0)
    if normalize:
        weight = weight / weight.sum(-1, keepdim=True)
    # What takes no part has no gradient.
    if weight.requires_grad:
        weight = torch.where(weight == 0, weight.detach(), weight)
    return weight.reshape(-1, size).contiguous()


def _settings(
    tol: float | None,
    max_iter: int,
    check_every: int,
    acceleration: str | float | None,
    scaling: float | None,
    like: Tensor,
) -> Settings:
    checks.at_least(_OP, "max_iter", max_iter, 1)
    checks.at_least(_OP, "check_every", check_every, 1)
    if tol is not None:
        if not tol > 0:
            _fail("`tol` to be positive or None", tol)
        # No marginal comes closer.
        tol = max(float(tol), 10 * torch.finfo(compute_dtype(like)).eps)
    omega, kind = 1.0, "none"
    if isinstance(acceleration, str):
        checks.one_of(_OP, "acceleration", acceleration, ("anderson", "adaptive"))
        kind = acceleration
    elif acceleration is not None:
        omega, kind = float(acceleration), "relaxed"
        if not 0.0 < omega < 2.0:
            _fail("`acceleration` to be anderson, adaptive or in (0, 2)", acceleration)
    if scaling is not None and not 0.0 < scaling < 1.0:
        _fail("`scaling` in (0, 1)", scaling)
    return Settings(tol, max_iter, check_every, kind, omega, 1.0 if scaling is None else scaling)


def _start(init: Init | None, shape: tuple[int, int, int]) -> tuple[Tensor | None, Tensor | None]:
    if init is None:
        return None, None
    batch, n, m = shape
    f, g = (init.f, init.g) if isinstance(init, Transport) else pair_of(_OP, "init", init)
    for name, t, size in (("f", f, n), ("g", g, m)):
        if t is not None and (t.shape[-1:] != (size,) or t.numel() != batch * size):
            _fail(f"`init` with {name} of {batch} x {size} elements", tuple(t.shape))
    return tuple(  # type: ignore[return-value]
        None if t is None else t.detach().double().reshape(batch, size).contiguous()
        for t, size in ((f, n), (g, m))
    )


def _check_values(
    a: Tensor | None,
    b: Tensor | None,
    eps: Tensor,
    rho: Tensor | None,
    cost: Tensor | None,
    thoroughly: bool,
) -> None:
    """What cannot be seen without looking: on the CPU, and elsewhere where asked for."""
    if not (readable(eps) or (thoroughly and is_eager())):
        return
    for name, weight in (("a", a), ("b", b)):
        if weight is None:
            continue
        if bool((weight < 0).any()) or not bool(weight.isfinite().all()):
            _fail(f"finite weights `{name}` of at least 0", float(weight.min()))
    if not bool((eps > 0).all()):
        _fail("`eps` to be positive", float(eps.min()))
    if rho is not None and not bool((rho > 0).all()):
        _fail("`rho` to be positive", float(rho.min()))
    ours, theirs = (torch.ones_like(eps) if w is None else w.sum(-1) for w in (a, b))
    wrong = (ours - theirs).abs() > 1e-3 * torch.maximum(ours, theirs)
    if rho is not None:
        wrong = wrong & rho.isinf().all(0)
    if bool(wrong.any()):
        masses = (float(ours[wrong][0]), float(theirs[wrong][0]))
        _fail("`a` and `b` of the same mass (or normalize=True, or a finite rho)", masses)
    if thoroughly and cost is not None and bool(cost.isnan().any()):
        _fail("costs that are numbers", "NaN")


def _value(
    engine: Engine,
    a: Tensor,
    b: Tensor,
    f: Tensor,
    g: Tensor,
    eps: Tensor,
    rho: Tensor,
    differentiable: bool,
    hard: bool,
) -> Tensor:
    r"""⟨a, φ(f)⟩ + ⟨b, φ(g)⟩ − ε (ΣP − Σa Σb), where both sides are known to be `hard` without φ.
    The plan's mass is that of its column marginals, which are exact; as a function of the costs it
    is Σ a e^((f − f̂)/ε)."""
    here, there = a > 0, b > 0
    # An infinite potential of no weight is not to be seen.
    of_a, of_b = torch.where(here, f, 0.0), torch.where(there, g, 0.0)
    if not hard:
        of_a, of_b = conjugate(of_a, rho[0]), conjugate(of_b, rho[1])
    dual = (a * of_a).sum(-1) + (b * of_b).sum(-1)
    if differentiable:
        raw = engine.softmin(b, g, eps, False)
        met = here & raw.isfinite()
        ratio = (torch.where(met, f, 0.0) - torch.where(met, raw, 0.0)) / eps[:, None]
        mass = torch.where(met, a * ratio.exp(), 0.0).sum(-1)
    else:
        mass = (b if hard else target(b, g, rho[1])).sum(-1)
    return dual - eps * (mass - a.sum(-1) * b.sum(-1))


def _points(x: Tensor, y: Tensor, cost_fn: str, batch: int, name: str | None) -> Engine:
    from regkern.transport import points, points_triton

    kind = points.PointCost if name is None else points_triton.TritonPoints
    engine: Engine = kind(x.reshape(batch, *x.shape[-2:]), y.reshape(batch, *y.shape[-2:]), cost_fn)
    return engine


def sinkhorn(
    cost: Tensor | None = None,
    *,
    x: Tensor | None = None,
    y: Tensor | None = None,
    cost_fn: str = "sqeuclidean",
    a: Tensor | None = None,
    b: Tensor | None = None,
    eps: Number,
    eps_rel: str | None = None,
    rho: Number | Sequence[Number | None] | None = None,
    tol: float | None = 1e-3,
    max_iter: int = 1000,
    check_every: int = 10,
    acceleration: str | float | None = None,
    scaling: float | None = None,
    init: Init | None = None,
    storage: str | None = None,
    engine: str | None = None,
    gradient: str = "envelope",
    entropy: str = "kl",
    mask: tuple[Tensor | None, Tensor | None] | None = None,
    lengths: tuple[Tensor | None, Tensor | None] | None = None,
    normalize: bool = False,
    check: bool = False,
) -> Transport:
    r"""Entropic optimal transport.

    .. math::
        \min_{P \ge 0} \langle P, C\rangle + \varepsilon\, \mathrm{KL}(P \mid a \otimes b)
            + \rho_a\, \mathrm{KL}(P 1 \mid a) + \rho_b\, \mathrm{KL}(P^T 1 \mid b),
        \qquad
        P_{ij} = a_i b_j \exp\left(\frac{f_i + g_j - C_{ij}}{\varepsilon}\right)

    with :math:`\mathrm{KL}(p \mid q) = \sum p \log\frac{p}{q} - p + q`. Where :math:`\rho` is None
    or infinite the marginal is a (b) itself.

    Parameters
    ----------
    cost : Tensor
        C (..., n, m): float32, float64, bfloat16 or float16. :math:`C = \infty` forbids a pair.
    x, y : Tensor
        Instead of a cost, points (..., n, d) and (..., m, d), whose costs are never stored.
    cost_fn : str
        Of points: ``"sqeuclidean"`` :math:`|x - y|^2`, ``"half_sqeuclidean"``, ``"euclidean"``,
        ``"cosine"`` (one minus it) or ``"dot"`` (:math:`-\langle x, y\rangle`).
    a, b : Tensor, optional
        Weights (..., n) and (..., m), of the same mass where both sides are hard; 1/n and 1/m if
        none are given. A point of weight 0 takes no part.
    eps : float or Tensor
        :math:`\varepsilon > 0`, a number or one for each problem; with ``eps_rel`` a multiple of
        the ``"mean"`` or the ``"max"`` of the (finite) costs of the problem, without gradients of
        that.
    rho : float, Tensor or a pair of them, optional
        Of both sides, or of rows and columns; None is a hard marginal: (None, 1.0) is semi-relaxed.
    tol : float, optional
        Stops a problem whose error (:class:`Transport`) is below. None: exactly ``max_iter``
        iterations.
    max_iter, check_every : int
        At most so many iterations; the error is looked at, on the device, so often.
    acceleration : str or float, optional
        ``"anderson"``: extrapolation from the last five iterations; ``"adaptive"``: over-relaxation
        by the measured rate; or an over-relaxation in (0, 2).
    scaling : float, optional
        :math:`\varepsilon` begins at the largest cost and is multiplied by this in (0, 1) after
        every iteration, down to ``eps``.
    init : Transport or pair of Tensor, optional
        Potentials to begin with; either of a pair may be None. ``g`` decides.
    storage : str, optional
        ``"kernel"``, of a cost: :math:`e^{(f + g - C)/\varepsilon}` is kept in float32 (float64 of
        float64), which takes as much memory as such a cost, and iterations are two products with it
        in one read instead of a read and an exponential an element. Rows are made again where their
        scalings leave the range, and all of it where a column's does or ``eps`` changes. The
        results are those of the log domain to rounding.
    engine : str, optional
        ``"triton"``, of points: soft c-transforms by matrix products of tiles in Triton, in float32
        without TF32. It needs the package triton, CUDA tensors (or ``TRITON_INTERPRET=1`` in the
        environment) of float32 or less and a ``cost_fn`` other than ``"euclidean"``; without
        ``scaling`` and with no acceleration but a number. Gradients are those of the compiled
        engine.
    gradient : str
        How ``value`` and the potentials are differentiated by costs or points, weights, eps and
        rho. ``"envelope"``: the value alone, once, by what it is at the optimum
        (:math:`dC = P`, :math:`da = f`). ``"implicit"``: also f, g and the plan, by the implicit
        function theorem; the value twice. ``"unroll"``: the exact derivative of ``max_iter``
        iterations; needs ``tol=None`` and no acceleration.
    entropy : str
        ``"kl"``: the value as above. ``"plain"``: :math:`\langle P, C\rangle + \varepsilon \sum P
        \log P`, of hard marginals alone; the plan is the same.
    mask, lengths : pair of Tensor, optional
        Which points take part: bools (..., n) and (..., m), or how many of the first ones.
        Either of a pair may be None.
    normalize : bool
        Divides the weights by their sums.
    check : bool
        Looks also at what cannot be seen for free, waiting for the device: NaN in the costs, the
        weights on a GPU, and problems that are infeasible.

    Returns
    -------
    Transport
        Potentials, value, error, iterations, status; the plan, products with it, the largest
        elements and the barycentric map, none of which are computed before they are asked for.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit; negative or infinite weights and different masses of hard
        marginals (looked at on the CPU, or with ``check``).

    Notes
    -----
    In the log domain, in float32 (float64 of float64 costs) with potentials in double; halves are
    read as they are. A potential has the rounding error of float32 relative to ``eps`` as well as
    to the costs, which counts where ``eps`` is far above them. Problems of at most 128 points on
    either side, without Anderson's or the adaptive acceleration and without ``scaling``, are solved
    by one kernel from their first iteration to their last, in the scaling form around shifts that
    move where it would leave the range of float. Others read the cost in every full iteration: on
    the CPU once, with one exponential an element, on a GPU twice; without ``storage`` nothing of
    the size of the cost is allocated. Problems that have converged are skipped. No call waits for
    the device, and results have the same bits for any number of threads.

    References
    ----------
    M. Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", NeurIPS 2013.
    T. Séjourné, J. Feydy, F.-X. Vialard, A. Trouvé and G. Peyré, "Sinkhorn divergences for
    unbalanced optimal transport", 2019. T. Lehmann, M.-K. von Renesse, A. Sambale and A. Uschmajew,
    "A note on overrelaxation in the Sinkhorn algorithm", Optimization Letters 16, 2022.
    """
    checks.one_of(_OP, "gradient", gradient, ("envelope", "implicit", "unroll"))
    checks.one_of(_OP, "entropy", entropy, ("kl", "plain"))
    checks.one_of(_OP, "cost_fn", cost_fn, COSTS)
    if eps_rel is not None:
        checks.one_of(_OP, "eps_rel", eps_rel, ("mean", "max"))
    if storage is not None:
        checks.one_of(_OP, "storage", storage, ("kernel",))
        if cost is None:
            _fail("`storage` None of points, whose kernel is never stored", repr(storage))
    if engine is not None:
        checks.one_of(_OP, "engine", engine, ("triton",))
        if cost is not None:
            _fail("`engine` None of costs", repr(engine))
    batch, n, m, like = problem_of(_OP, cost, x, y)
    count = math.prod(batch)
    settings = _settings(tol, max_iter, check_every, acceleration, scaling, like)
    if gradient == "unroll" and (tol is not None or settings.acceleration != "none" or scaling):
        _fail("`gradient` unroll with tol=None, without acceleration and scaling", "them")

    envelope = gradient == "envelope"
    # All of it in one kernel, which does not need what is the same for all.
    small = envelope and cost is not None and storage is None and scaling is None
    small = small and is_small(like, settings, None)
    (mask_a, mask_b), (many_a, many_b) = (
        pair_of(_OP, name, pair) for name, pair in (("mask", mask), ("lengths", lengths))
    )
    chosen = any(t is not None for t in (a, b, mask, lengths, rho)) or isinstance(eps, Tensor)
    given_a = any(t is not None for t in (a, mask_a, many_a))
    given_b = any(t is not None for t in (b, mask_b, many_b))
    if given_a or not small:
        a = _weights("a", a, mask_a, many_a, (*batch, n), like, normalize)
    if given_b or not small:
        b = _weights("b", b, mask_b, many_b, (*batch, m), like, normalize)
    e = _number("eps", eps, batch, like)
    reach = None if small and rho is None else _reach(rho, batch, like)
    if chosen or check:
        _check_values(a, b, e, reach, cost, check)
    if entropy == "plain" and rho is not None:
        _fail("`entropy` plain with hard marginals", f"rho {rho}")

    costs: Engine
    if cost is not None:
        costs = DenseCost(cost.reshape(count, n, m).contiguous(), storage == "kernel")
    else:
        assert x is not None
        assert y is not None
        costs = _points(x, y, cost_fn, count, engine)
    e_start = None
    if eps_rel is not None:
        e = e * costs.scale(eps_rel)
    if scaling is not None:
        e_start = torch.maximum(costs.scale("max"), e.detach())

    f0, g0 = _start(init, (count, n, m))
    alone = costs.replaced(*(t.detach() for t in costs.tensors))
    found: Potentials | SmallSolution
    if small:
        found = solve_small(costs.tensors[0], a, b, e, reach, settings, f0, g0)
        f, g, value = found.f, found.g, found.value
        fixed_a, fixed_b = (None if w is None else w.detach() for w in (a, b))
        problem: Given = (fixed_a, fixed_b, f, g, e.detach())
    else:
        assert a is not None
        assert b is not None
        assert reach is not None
        inputs = (a, b, e, reach, *costs.tensors)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        fixed = (a.detach(), b.detach(), e.detach(), reach.detach())
        if gradient == "unroll" and wanted:
            found = unrolled(costs, a, b, e, reach, max_iter, f0, g0)
        else:
            found = alone.solve(*fixed, settings, e_start, f0, g0)
            if gradient == "implicit" and wanted:
                found = implicit(costs, found, a, b, e, reach, STEPS)
        f, g = found.f, found.g
        problem = (*fixed[:2], f, g, fixed[2]) if envelope else (a, b, f, g, e)
        if envelope and wanted:
            a, b, e, reach = (once(_OP, t) for t in (a, b, e, reach))
            costs = costs.replaced(*(once(_OP, t) for t in costs.tensors))
        if gradient == "implicit" and wanted:

            def dual(f: Tensor, g: Tensor, *given: Tensor) -> Tensor:
                a, b, e, reach, *tensors = given
                return _value(costs.replaced(*tensors), a, b, f, g, e, reach, True, False)

            value = at_optimum(dual, (f, g), (a, b, e, reach, *costs.tensors))
        else:
            value = _value(costs, a, b, f, g, e, reach, wanted, rho is None)
    if entropy == "plain":
        a, b = weights_or_uniform(a, f), weights_or_uniform(b, g)
        mass, own = a.sum(-1), torch.special.xlogy(a, a).sum(-1)
        own = own + torch.special.xlogy(b, b).sum(-1)
        value = value + e * (own + mass - mass * b.sum(-1))
    if check and is_eager() and bool((found.status == 2).any()):
        bad = (found.status == 2).nonzero()[:, 0].tolist()
        _fail("problems with a finite plan", f"infeasible or not a number: {bad}")

    wide = compute_dtype(like)

    def back(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        t = t if dtype is None else t.to(dtype)
        return t if len(batch) == 1 else t.reshape((*batch, *t.shape[1:]))

    return Transport(
        f=back(f, wide),
        g=back(g, wide),
        value=back(value, wide),
        error=back(found.error, wide),
        iterations=back(found.iterations),
        status=back(found.status),
        _engine=alone if envelope else costs,
        _given=problem,
        _batch=batch,
    )

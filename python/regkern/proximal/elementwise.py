"""Shrinkage laws on single elements: proximal operators, penalties and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, register
from regkern.proximal.penalty import ProxReport, threshold
from regkern.reference.proximal import elementwise as definition

Law = Literal[
    "soft", "hard", "elastic_net", "squared", "scad", "mcp", "log_sum", "capped", "half",
    "two_thirds", "cel0", "power",
]  # fmt: skip
LAWS: tuple[str, ...] = get_args(Law)

#: The shape of the laws that have one: its name, and what it has to be above (at least, where 1).
SHAPES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "elastic_net": ("the share of ℓ1, in [0, 1]", lambda a: 0 <= a <= 1),
    "scad": ("a number above 1", lambda a: a > 1),
    "mcp": ("a number above 0", lambda a: a > 0),
    "log_sum": ("a number above 0", lambda a: a > 0),
    "capped": ("a number of at least 0", lambda a: a >= 0),
    "cel0": ("a number of at least 0", lambda a: a >= 0),
    "power": ("a number above 0", lambda a: a > 0),
}

# ---- raw ops: fake kernels and autograd ----


def _fake_prox(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return dense_like(x)


def _fake_prox_backward(
    g: Tensor,
    x: Tensor,
    t: Tensor,
    lam: Tensor,
    weights: Tensor | None,
    shapes: Tensor | None,
    law: str,
    shape: float,
    low: float,
    high: float,
    weights_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x)
    dweights = x.new_empty(x.shape if weights_gradient else (0,), dtype=dtype)
    return dense_like(x), x.new_empty((2,), dtype=dtype), dweights


def _fake_sums(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x.new_empty((2,), dtype=compute_dtype(x))


def _fake_list_sums(xs: Sequence[Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return xs[0].new_empty((2,), dtype=compute_dtype(xs[0]))


_prox = register("prox_elementwise", _fake_prox)
_prox_backward = register("prox_elementwise_backward", _fake_prox_backward)
_prox_ = register("prox_elementwise_", lambda xs, *a, **k: xs[0].new_empty((), dtype=torch.int64))
_penalty = register("penalty_elementwise", _fake_sums)
_penalty_backward = register(
    "penalty_elementwise_backward", lambda scale, x, *a, **k: dense_like(x)
)
_penalty_list = register("penalty_list", _fake_list_sums)
_penalty_list_backward = register(
    "penalty_list_backward", lambda scale, xs, *a, **k: [dense_like(x) for x in xs]
)
_penalty_gradients = register(
    "penalty_list_gradients",
    lambda xs, *a, **k: (_fake_list_sums(xs), [dense_like(x) for x in xs]),
)
_penalty_add_ = register("penalty_list_add_", _fake_list_sums)


def _prox_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, t, lam, weights, shapes, ctx.law, ctx.shape, ctx.low, ctx.high = inputs
    ctx.save_for_backward(x, t, lam, weights, shapes)


def _prox_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, t, lam, weights, shapes = ctx.saved_tensors
    needed = weights is not None and bool(ctx.needs_input_grad[3])
    dx, sums, dweights = _prox_backward(
        g, x, t, lam, weights, shapes, ctx.law, ctx.shape, ctx.low, ctx.high, needed
    )
    dt, dlam = sums[0].reshape(t.shape), sums[1].reshape(lam.shape)
    return dx, dt, dlam, dweights if needed else None, *([None] * 5)


def _prox_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, x, t, lam, weights, shapes, ctx.law, ctx.shape, ctx.low, ctx.high, ctx.needed = inputs
    ctx.save_for_backward(g, x, t, lam, weights, shapes)


def _prox_second(ctx: Any, gdx: Tensor, gsums: Tensor, gdweights: Tensor) -> tuple[Any, ...]:
    """The derivative of the derivative, in plain torch: that of the definition's."""
    g, x, t, lam, weights, shapes = ctx.saved_tensors
    dtype = compute_dtype(x)
    shape = ctx.shape if shapes is None else shapes

    def first(*args: Tensor) -> tuple[Tensor, ...]:
        def prox(x: Tensor, t: Tensor, lam: Tensor, *w: Tensor) -> Tensor:
            return definition.prox_elementwise(
                x, ctx.law, t, lam, shape=shape, weights=w[0] if w else None,
                low=ctx.low, high=ctx.high,
            )  # fmt: skip

        pulled: tuple[Tensor, ...] = torch.func.vjp(prox, *args[1:])[1](args[0])
        return pulled

    at = [g.to(dtype), x.to(dtype), t.reshape(()), lam.reshape(())]
    seeds = [gdx.to(dtype), gsums[0], gsums[1]]
    if weights is not None:
        at.append(weights)
        seeds.append(gdweights if ctx.needed else torch.zeros_like(weights))
    back = torch.func.vjp(first, *at)[1](tuple(seeds))
    return (
        back[0].to(g.dtype),
        back[1].to(x.dtype),
        back[2].reshape(t.shape),
        back[3].reshape(lam.shape),
        back[4] if weights is not None else None,
        *([None] * 6),
    )


def _penalty_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, lam, weights, ctx.law, ctx.shape = inputs
    ctx.save_for_backward(x, lam, weights, output)


def _penalty_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    """Of the value, the first of the two sums; the other is there for this alone."""
    x, lam, weights, sums = ctx.saved_tensors
    by_lam = sums[1]
    if torch.is_grad_enabled():  # the derivative by λ is to be differentiable too
        by_lam = _by_lam(x, lam, weights, ctx.law, ctx.shape)
    dx = _penalty_backward(g[0], x, lam, weights, ctx.law, ctx.shape)
    return dx, (g[0] * by_lam).reshape(lam.shape), None, None, None


def _by_lam(x: Tensor, lam: Tensor, weights: Tensor | None, law: str, shape: float) -> Tensor:
    wide = x.to(compute_dtype(x))
    pull: Any = torch.func.vjp(
        lambda lam: _defined(wide, lam, weights, law, shape), lam.reshape(())
    )[1]
    by_lam: Tensor = pull(torch.ones_like(lam.reshape(())))[0]
    return by_lam


def _defined(x: Tensor, lam: Tensor, weights: Tensor | None, law: str, shape: float) -> Tensor:
    return definition.penalty_elementwise(
        [x], law, lam, shape=shape, weights=None if weights is None else [weights]
    )


def _penalty_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    scale, x, lam, weights, ctx.law, ctx.shape = inputs
    ctx.save_for_backward(scale, x, lam, weights)


def _penalty_second(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    """As `_prox_second`."""
    scale, x, lam, weights = ctx.saved_tensors
    dtype = compute_dtype(x)

    def first(scale: Tensor, x: Tensor, lam: Tensor) -> Tensor:
        value = torch.func.vjp(lambda x: _defined(x, lam, weights, ctx.law, ctx.shape), x)[1]
        pulled: Tensor = value(scale)[0]
        return pulled

    at = (scale.reshape(()), x.to(dtype), lam.reshape(()))
    dscale, dx, dlam = torch.func.vjp(first, *at)[1](g.to(dtype))
    return (
        dscale.reshape(scale.shape), dx.to(x.dtype), dlam.reshape(lam.shape), None, None, None,
    )  # fmt: skip


def _penalty_list_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    xs, lam, weights, ctx.law, ctx.shape = inputs
    ctx.count = len(xs)
    ctx.save_for_backward(*xs, lam, *weights, output)


def _penalty_list_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    *xs, sums = ctx.saved_tensors
    xs, (lam, *weights) = xs[: ctx.count], xs[ctx.count :]
    if not torch.is_grad_enabled():
        dxs = _penalty_list_backward(g[0], xs, lam, weights, ctx.law, ctx.shape)
        by_lam = sums[1]
    else:  # a second derivative may follow, and that is the single op's
        each = weights if weights else [None] * len(xs)
        rest = (ctx.law, ctx.shape)
        dxs = [_penalty_backward(g[0], x, lam, w, *rest) for x, w in zip(xs, each, strict=True)]
        by_lam = sum(_by_lam(x, lam, w, *rest) for x, w in zip(xs, each, strict=True))
    return dxs, (g[0] * by_lam).reshape(lam.shape), [None] * len(weights), None, None


_prox.differentiable(_prox_setup, _prox_gradient)
_prox_backward.differentiable(_prox_backward_setup, _prox_second)
_penalty.differentiable(_penalty_setup, _penalty_gradient)
_penalty_backward.differentiable(_penalty_backward_setup, _penalty_second)
_penalty_list.differentiable(_penalty_list_setup, _penalty_list_gradient)


# ---- checks ----


def check_law(op: str, law: str, shape: float | None, proximal: bool) -> float:
    """The shape of the law, checked."""
    checks.one_of(op, "law", law, LAWS[:-1] if proximal else LAWS)
    if law not in SHAPES:
        if shape is not None:
            raise ValueError(f"regkern.{op}: expected no `shape` for {law}, got {shape}")
        return 0.0
    expected, valid = SHAPES[law]
    if shape is None or isinstance(shape, bool) or not isinstance(shape, int | float):
        raise TypeError(f"regkern.{op}: expected `shape` to be {expected} for {law}, got {shape!r}")
    if not valid(shape):
        raise ValueError(f"regkern.{op}: expected `shape` to be {expected} for {law}, got {shape}")
    return float(shape)


def _check_interval(op: str, low: float, high: float) -> None:
    if not low <= 0 <= high:
        raise ValueError(f"regkern.{op}: expected `low` <= 0 <= `high`, got {low} and {high}")


def spread(op: str, name: str, value: Tensor, x: Tensor) -> Tensor:
    """A tensor that broadcasts to x, in the compute type."""
    checks.on_device(op, name, value, x)
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"regkern.{op}: expected `{name}` of real numbers, got {value.dtype}")
    try:
        value = value.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"regkern.{op}: expected `{name}` to broadcast to {tuple(x.shape)}, got "
            f"{tuple(value.shape)}"
        ) from None
    return value.to(compute_dtype(x)).contiguous()


def _spread_all(op: str, name: str, values: Any, xs: Sequence[Tensor]) -> list[Tensor]:
    if values is None:
        return []
    if isinstance(values, Tensor):
        values = [values] * len(xs)
    values = checks.tensor_list(op, name, values, checks.tensor)
    if len(values) != len(xs):
        raise ValueError(
            f"regkern.{op}: expected `{name}` of as many tensors as `tensors`, {len(xs)}, got "
            f"{len(values)}"
        )
    pairs = zip(values, xs, strict=True)
    return [spread(op, f"{name}[{i}]", v, x) for i, (v, x) in enumerate(pairs)]


# ---- public functions ----


def prox_elementwise(
    x: Tensor,
    law: Law,
    step: float | Tensor = 1.0,
    lam: float | Tensor = 1.0,
    *,
    shape: float | Tensor | None = None,
    weights: Tensor | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Tensor:
    r"""The proximal operator of a penalty of single elements.

    .. math::
        y_i = \operatorname{sgn}(x_i)\, \arg\min_{r \ge 0}
            \tfrac{1}{2} (r - |x_i|)^2 + \tau_i\, \varphi_\lambda(r),
        \qquad \tau_i = step \cdot w_i

    ================  ====================================================================
    ``law``           :math:`\varphi_\lambda(r)`
    ================  ====================================================================
    ``soft``          :math:`\lambda r`
    ``hard``          :math:`\lambda 1[r \ne 0]`
    ``elastic_net``   :math:`\lambda (\rho r + (1 - \rho) r^2 / 2)`, shape :math:`\rho`
    ``squared``       :math:`\lambda r^2 / 2`
    ``scad``          :math:`\lambda r` up to :math:`\lambda`, then concave up to
                      :math:`a \lambda`, constant beyond; shape :math:`a > 1`
    ``mcp``           :math:`\lambda r - r^2 / (2 a)` up to :math:`a \lambda`, constant
                      beyond; shape :math:`a > 0`
    ``log_sum``       :math:`\lambda \ln(1 + r / \varepsilon)`, shape :math:`\varepsilon`
    ``capped``        :math:`\lambda \min(r, \theta)`, shape :math:`\theta`
    ``half``          :math:`\lambda r^{1/2}`
    ``two_thirds``    :math:`\lambda r^{2/3}`
    ``cel0``          :math:`\lambda - \frac{a^2}{2} (r - \sqrt{2 \lambda}/a)^2` up to
                      :math:`\sqrt{2 \lambda}/a`, :math:`\lambda` beyond; shape :math:`a`
    ================  ====================================================================

    Parameters
    ----------
    x : Tensor
        Any shape; float32, float64, bfloat16 or float16. Any strides.
    law : str
        One of the table.
    step, lam : float or Tensor
        At least 0; a tensor has one element, and the result is differentiable in it.
    shape : float or Tensor, optional
        Of the laws that have one. A tensor (that broadcasts to x, not differentiated) gives every
        element its own: the column norms of CEL0.
    weights : Tensor, optional
        Broadcasts to x; the result is differentiable in it.
    low, high : float
        With the constraint :math:`low \le y \le high`, an interval around 0. `low=0` keeps the
        positive part.

    Returns
    -------
    Tensor
        Like x. Differentiable in x, ``step``, ``lam`` and ``weights``, twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The result is the global minimiser everywhere: MCP with ``step`` of at least ``a``, where the
    problem is no longer convex, is hard thresholding at :math:`\lambda \sqrt{a\, step}`, SCAD from
    ``a - 1`` on is soft thresholding up to a jump, and so on. Of two minimisers, at a jump, it is
    the smaller. A step, weight or ``lam`` of 0 is the identity bit for bit, infinity gives zeros,
    NaN stays NaN. Bytes moved: x read, y written.

    References
    ----------
    Fan and Li, "Variable selection via nonconcave penalized likelihood and its oracle properties",
    JASA 2001. Zhang, "Nearly unbiased variable selection under minimax concave penalty", Annals of
    Statistics 2010. Xu, Chang, Xu and Zhang, "L1/2 regularization", TNNLS 2012. Soubies,
    Blanc-Féraud and Aubert, "A continuous exact l0 penalty (CEL0)", SIAM J. Imaging Sciences 2015.
    """
    op = "prox_elementwise"
    checks.floating(op, "x", x)
    checks.scale(op, "step", step)
    checks.scale(op, "lam", lam)
    _check_interval(op, low, high)
    shapes = None
    if isinstance(shape, Tensor):
        checks.one_of(op, "law", law, tuple(name for name in SHAPES if name != "power"))
        shapes, number = spread(op, "shape", shape, x).detach(), 0.0
    else:
        number = check_law(op, law, shape, proximal=True)
    spread_weights = None if weights is None else spread(op, "weights", weights, x)
    y: Tensor = _prox(
        x, threshold(x, step).reshape(()), threshold(x, lam).reshape(()), spread_weights, shapes,
        law, number, low, high,
    )  # fmt: skip
    return y


def prox_elementwise_(
    tensors: Tensor | Sequence[Tensor],
    law: Law,
    step: float | Tensor = 1.0,
    lam: float | Tensor = 1.0,
    *,
    shape: float | Tensor | Sequence[Tensor] | None = None,
    weights: Tensor | Sequence[Tensor] | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> ProxReport:
    r"""`prox_elementwise` in place, of all tensors in one call.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        What is overwritten: the parameters of a network. Dtypes may differ; any strides.
    law, step, lam, low, high
        As in `prox_elementwise`.
    shape, weights
        As in `prox_elementwise`, one tensor for each of ``tensors``, or one that broadcasts to all.

    Returns
    -------
    ProxReport
        ``zeros``: how many elements are 0 now. ``norms`` is empty.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd, as an optimizer's step is not; leaves that require gradients may be
    written. Bytes moved: every element read and written once, in one launch for a dtype.
    """
    op = "prox_elementwise_"
    xs = checks.tensor_list(op, "tensors", tensors)
    checks.scale(op, "step", step)
    checks.scale(op, "lam", lam)
    _check_interval(op, low, high)
    each = shape is not None and not isinstance(shape, int | float)
    if each:
        checks.one_of(op, "law", law, tuple(name for name in SHAPES if name != "power"))
        number = 0.0
    else:
        number = check_law(op, law, shape, proximal=True)  # type: ignore[arg-type]
    shapes = _spread_all(op, "shape", shape, xs) if each else []
    ws = _spread_all(op, "weights", weights, xs)
    zeros = None
    with torch.no_grad():
        for group in checks.by_dtype(xs):
            like = xs[group[0]]
            count = _prox_(
                [xs[i] for i in group], threshold(like, step).reshape(()),
                threshold(like, lam).reshape(()), [ws[i] for i in group] if ws else [],
                [shapes[i] for i in group] if shapes else [], law, number, low, high,
            )  # fmt: skip
            zeros = count if zeros is None else zeros + count
    assert zeros is not None
    return ProxReport((), zeros)


def penalty_elementwise(
    tensors: Tensor | Sequence[Tensor],
    law: Law,
    lam: float | Tensor = 1.0,
    *,
    shape: float | None = None,
    weights: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    r"""The penalty whose proximal operator `prox_elementwise` is, summed over all elements.

    .. math:: R = \sum_i w_i\, \varphi_\lambda(|x_i|)

    with the laws of `prox_elementwise`, and ``power``, :math:`\lambda r^\nu` with shape
    :math:`\nu > 0`. The derivative at 0 is 0.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        float32, float64, bfloat16 or float16; dtypes may differ. Any strides.
    law : str
        A law, or ``power``.
    lam : float or Tensor
        λ, at least 0; one element.
    shape : float, optional
        Of the laws that have one.
    weights : Tensor or sequence of Tensor, optional
        One for each of ``tensors``, or one for all; broadcast. Not differentiated.

    Returns
    -------
    Tensor
        0-d, float32 (float64 where a tensor is). Differentiable in the tensors and ``lam``, twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: every element read once; in the backward read once more, and its gradient written.
    `penalty_value_and_gradients` and `penalty_add_gradients_` read once for both. Sums are added in
    double, in an order that does not depend on threads or device.
    """
    op = "penalty_elementwise"
    xs, number, ws = _check_penalty(op, tensors, law, lam, shape, weights)
    transformed = (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is not None
    )
    total: Tensor | None = None
    for group in checks.by_dtype(xs):
        like = threshold(xs[group[0]], lam).reshape(())
        if transformed or len(group) == 1:  # transforms do not look into lists
            values = [_penalty(xs[i], like, ws[i] if ws else None, law, number)[0] for i in group]
        else:
            some = [ws[i] for i in group] if ws else []
            values = [_penalty_list([xs[i] for i in group], like, some, law, number)[0]]
        for value in values:
            total = value if total is None else total + value
    assert total is not None
    return total


def penalty_value_and_gradients(
    tensors: Tensor | Sequence[Tensor],
    law: Law,
    lam: float | Tensor = 1.0,
    *,
    shape: float | None = None,
    weights: Tensor | Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """`penalty_elementwise` and its gradients by the tensors, from one read of them.

    Parameters
    ----------
    tensors, law, lam, shape, weights
        As in `penalty_elementwise`.

    Returns
    -------
    value : Tensor
        0-d.
    gradients : list of Tensor
        Like ``tensors``.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said there.

    Notes
    -----
    Not recorded by autograd. Bytes moved: every element read once and its gradient written once.
    """
    op = "penalty_value_and_gradients"
    xs, number, ws = _check_penalty(op, tensors, law, lam, shape, weights)
    total: Tensor | None = None
    out: list[Tensor] = list(xs)
    with torch.no_grad():
        for group in checks.by_dtype(xs):
            like = threshold(xs[group[0]], lam).reshape(())
            some = [ws[i] for i in group] if ws else []
            sums, gradients = _penalty_gradients([xs[i] for i in group], like, some, law, number)
            for i, gradient in zip(group, gradients, strict=True):
                out[i] = gradient
            total = sums[0] if total is None else total + sums[0]
    assert total is not None
    return total, out


def penalty_add_gradients_(
    tensors: Tensor | Sequence[Tensor],
    grads: Tensor | Sequence[Tensor],
    law: Law,
    lam: float | Tensor = 1.0,
    *,
    scale: float | Tensor = 1.0,
    shape: float | None = None,
    weights: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    """Adds ``scale`` times the gradients of `penalty_elementwise` to ``grads``; returns the value.

    Parameters
    ----------
    tensors, law, lam, shape, weights
        As in `penalty_elementwise`.
    grads : Tensor or sequence of Tensor
        Of the shapes and dtypes of ``tensors``: their ``.grad``, say.
    scale : float or Tensor
        The factor of the penalty in the loss: a loss scale, say.

    Returns
    -------
    Tensor
        The value, 0-d, without the scale.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd. Bytes moved: tensors and gradients read, gradients written, in one
    pass; an autograd graph with the penalty in the loss moves twice as many.
    """
    op = "penalty_add_gradients_"
    xs, number, ws = _check_penalty(op, tensors, law, lam, shape, weights)
    gs = checks.tensor_list(op, "grads", grads)
    if len(gs) != len(xs):
        raise ValueError(
            f"regkern.{op}: expected as many `grads` as `tensors`, {len(xs)}, got {len(gs)}"
        )
    for i, (g, x) in enumerate(zip(gs, xs, strict=True)):
        checks.same(op, f"grads[{i}]", g, x, f"tensors[{i}]")
    total: Tensor | None = None
    with torch.no_grad():
        for group in checks.by_dtype(xs):
            like = xs[group[0]]
            sums = _penalty_add_(
                [xs[i] for i in group], [gs[i] for i in group], threshold(like, scale).reshape(()),
                threshold(like, lam).reshape(()), [ws[i] for i in group] if ws else [], law, number,
            )  # fmt: skip
            total = sums[0] if total is None else total + sums[0]
    assert total is not None
    return total


def _check_penalty(
    op: str, tensors: Any, law: str, lam: Any, shape: Any, weights: Any
) -> tuple[list[Tensor], float, list[Tensor]]:
    xs = checks.tensor_list(op, "tensors", tensors)
    checks.scale(op, "lam", lam)
    number = check_law(op, law, shape, proximal=False)
    return xs, number, [w.detach() for w in _spread_all(op, "weights", weights, xs)]

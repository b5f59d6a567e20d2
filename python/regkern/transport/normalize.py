"""Doubly stochastic matrices: T steps of Sinkhorn's normalisation of batches of small matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register
from regkern.reference.transport import normalize as definition
from regkern.transport.calls import Quick

Order = Literal["row_first", "column_first"]
Gradient = Literal["unroll", "implicit"]

# ---- raw ops: fake kernels and autograd ----


def _fake(
    x: Tensor, a: Tensor | None, b: Tensor | None, slack: Tensor | None, *rest: Any
) -> Tensor:
    s = 0 if slack is None else 1
    return x.new_empty((x.shape[0], x.shape[1] + s, x.shape[2] + s))


def _fake_backward(
    g: Tensor, x: Tensor, a: Tensor | None, b: Tensor | None, slack: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = compute_dtype(x)
    count = x.shape[0]
    return (
        x.new_empty(x.shape),
        x.new_empty((0 if a is None else count, g.shape[1]), dtype=wide),
        x.new_empty((0 if b is None else count, g.shape[2]), dtype=wide),
        x.new_empty((0 if slack is None else count,), dtype=wide),
    )


_normalize = register("sinkhorn_normalize", _fake)
_normalize_backward = register("sinkhorn_normalize_backward", _fake_backward)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, a, b, slack, scale = ctx.saved_tensors
    dx, da, db, dslack = _call_backward(g, x, a, b, slack, scale, *ctx.options)
    dscale = None
    if scale is not None and ctx.needs_input_grad[4]:
        finite = torch.where(x.isinf(), 0.0, x)
        dscale = (dx.to(scale.dtype) * finite.to(scale.dtype)).sum((1, 2))
        if slack is not None:
            dscale = dscale + dslack * slack
        dscale = _as(dscale / scale, scale)
    da = None if a is None else _as(da, a)
    db = None if b is None else _as(db, b)
    dslack = None if slack is None else _as(dslack, slack)
    return dx, da, db, dslack, dscale, *(None,) * len(ctx.options)


def _as(by_problem: Tensor, like: Tensor) -> Tensor:
    """The sum over problems where they share a number."""
    return by_problem.sum(0) if by_problem.dim() > like.dim() else by_problem


def _second_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _second_backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
    """The derivative of the gradient: of the definition, unrolled by torch."""
    g, *tensors = ctx.saved_tensors
    x = tensors[0]
    n_iter, eps, order, logits, log_output = ctx.options
    wide = compute_dtype(x)
    # By problem, as the op returns its gradients.
    full = [
        None if t is None else (t.to(wide) if i == 0 else _by_problem(t, i, x.shape[0]))
        for i, t in enumerate(tensors)
    ]
    given = [i for i, t in enumerate(full) if t is not None]

    def forward(*values: Tensor) -> Tensor:
        v: list[Tensor | None] = [None] * 5
        for i, value in zip(given, values, strict=True):
            v[i] = value
        assert v[0] is not None
        return definition.sinkhorn_normalize(
            v[0],
            n_iter,
            a=v[1],
            b=v[2],
            slack=v[3],
            tau=1.0 if v[4] is None else 1.0 / v[4],
            eps=eps,
            order=order,
            log_input=logits,
            log_output=log_output,
        )

    def gradient(g: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        slopes: tuple[Tensor, ...] = torch.func.vjp(forward, *values)[1](g)
        return tuple(s for i, s in zip(given, slopes, strict=True) if i < 4)

    values = [t for t in full if t is not None]
    incoming = tuple(cotangents[i].to(wide) for i in given if i < 4)
    dg, *second = torch.func.vjp(gradient, g.to(wide), *values)[1](incoming)
    results: list[Tensor | None] = [None] * 5
    for i, value in zip(given, second, strict=True):
        like = tensors[i]
        results[i] = value.to(x.dtype) if i == 0 else _as(value, like)
    return dg.to(g.dtype), *results, *(None,) * len(ctx.options)


def _by_problem(t: Tensor, which: int, count: int) -> Tensor:
    return t.expand(count, t.shape[-1]) if which < 3 else t.expand(count)


_call = Quick(_normalize, _setup, _backward)
_call_backward = Quick(_normalize_backward, _second_setup, _second_backward)


# ---- the implicit gradient ----


class _Implicit(torch.autograd.Function):
    """The gradient at the fixed point: of P = diag(u) K diag(v) with given marginals."""

    @staticmethod
    def forward(x: Tensor, plan: Tensor) -> Tensor:
        return plan.view_as(plan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (plan,) = ctx.saved_tensors
        return implicit_gradient(plan, g), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, plan: Tensor) -> Any:
        return plan.view_as(plan), in_dims[1]


def implicit_gradient(plan: Tensor, g: Tensor) -> Tensor:
    r"""The gradient by the logits through converged scalings of a plan.

    .. math::
        P \odot (G - \alpha 1^\top - 1 \beta^\top), \qquad
        \begin{pmatrix} \operatorname{diag} P 1 & P \\ P^\top & \operatorname{diag} P^\top 1
        \end{pmatrix} \begin{pmatrix} \alpha \\ \beta \end{pmatrix} =
        \begin{pmatrix} (G \odot P) 1 \\ (G \odot P)^\top 1 \end{pmatrix}

    in float64. The null vector (1, −1) of the system is added to it, and rows and columns without
    mass have the equation α = 0.
    """
    p, slope = plan.double(), g.double()
    n = p.shape[-2]
    along = torch.where(p == 0, 0.0, slope * p)
    rows, columns = p.sum(-1), p.sum(-2)
    right = torch.cat([along.sum(-1), along.sum(-2)], -1)
    mass = torch.cat([rows, columns], -1)
    system = torch.diag_embed(torch.where(mass == 0, 1.0, mass))
    upper = torch.nn.functional.pad(p, (n, 0, 0, p.shape[-1]))
    null = torch.cat([rows.sign(), -columns.sign()], -1)
    # Of the size of the masses, so that the system stays well scaled.
    size = mass.mean(-1)[..., None, None]
    system = system + upper + upper.mT + size * null.unsqueeze(-1) * null.unsqueeze(-2)
    solution = torch.linalg.solve(system, right)
    alpha, beta = solution[..., :n].unsqueeze(-1), solution[..., n:].unsqueeze(-2)
    return torch.where(p == 0, 0.0, p * (slope - alpha - beta)).to(g.dtype)


# ---- arguments ----


def _readable(t: Tensor) -> bool:
    """Whether values may be looked at: on the CPU, in eager mode, outside of transforms."""
    return (
        t.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
    )


def _check_weights(op: str, name: str, t: Tensor | None, x: Tensor, n: int) -> None:
    if t is None:
        return
    checks.floating(op, name, t)
    checks.on_device(op, name, t, x)
    if t.dim() == 0 or t.shape[-1] != n:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of {n} numbers in its last dimension, got "
            f"{tuple(t.shape)}"
        )
    if t.numel() > 0 and _readable(t) and bool((t < 0).any()):
        raise ValueError(f"regkern.{op}: expected `{name}` of at least 0, got {float(t.min())}")


def _check_side(op: str, name: str, t: Tensor | None, x: Tensor, n: int) -> None:
    if t is None:
        return
    checks.tensor(op, name, t)
    checks.on_device(op, name, t, x)
    if t.dtype == torch.bool:
        if t.dim() == 0 or t.shape[-1] != n:
            raise ValueError(
                f"regkern.{op}: expected the mask `{name}` of {n} elements in its last dimension, "
                f"got {tuple(t.shape)}"
            )
    elif t.is_floating_point() or t.is_complex():
        raise TypeError(
            f"regkern.{op}: expected `{name}` to be a bool mask or integer lengths, got {t.dtype}"
        )


def _per_problem(op: str, name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """A number, or one by problem, as the op takes it."""
    wide = compute_dtype(x)
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float | torch.SymFloat):
            raise TypeError(f"regkern.{op}: expected `{name}` to be a number, got {value!r}")
        return torch.full((), value, dtype=wide, device=x.device)
    checks.on_device(op, name, value, x)
    if value.dim() == 0:
        return value.to(wide)
    if value.dim() > x.dim() - 2:
        raise ValueError(
            f"regkern.{op}: expected `{name}` to be a number or one by problem, "
            f"{tuple(x.shape[:-2])}, got {tuple(value.shape)}"
        )
    return value.to(wide).expand(x.shape[:-2]).reshape(-1)


def _flat(t: Tensor | None, x: Tensor) -> Tensor | None:
    """Weights as the op takes them: (n), or (count, n)."""
    if t is None:
        return None
    t = t.to(compute_dtype(x))
    if t.dim() == 1:
        return t
    t = t.expand(*x.shape[:-2], t.shape[-1])
    return t.unsqueeze(0) if t.dim() == 1 else t.flatten(0, -2)


# ---- public functions ----


def sinkhorn_normalize(
    x: Tensor,
    n_iter: int = 20,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
    slack: float | Tensor | None = None,
    tau: float | Tensor = 1.0,
    eps: float = 0.0,
    order: Order = "row_first",
    log_input: bool = True,
    log_output: bool = False,
    gradient: Gradient = "unroll",
) -> Tensor:
    r"""Rows and columns of a matrix are normalised in turns, ``n_iter`` times.

    .. math::
        K = e^{x / \tau}, \qquad u_t = a / (K v_{t-1}), \quad v_t = b / (K^\top u_t), \qquad
        P = \operatorname{diag}(u_T) \, K \, \operatorname{diag}(v_T)

    With ``a = b = 1`` this tends to the doubly stochastic matrix that is nearest to K in relative
    entropy: a relaxed permutation. Logits of any size are right: what leaves the range of this form
    in float32 is done over in the log domain.

    Parameters
    ----------
    x : Tensor
        (..., n, m) logits, or a matrix of numbers of at least 0 (``log_input=False``). −∞, or 0, is
        a pair that is ruled out.
    n_iter : int
        Steps on rows, and as many on columns.
    a, b : Tensor, optional
        Sums of rows and of columns, (n), (m) or with the batch in front. What weighs 0 takes no
        part, has zeros in the result and gradients 0. Default: rows weigh 1, and columns n / m.
    rows, columns : Tensor, optional
        Which rows and columns there are: bool masks (..., n), (..., m), or integer lengths (...).
    slack : float or Tensor, optional
        A row and a column of this logit beside the others, for what has no partner; one number, or
        one by problem. The result is (..., n + 1, m + 1). Unless weights are given, rows and
        columns weigh 1, and each slack as much as the whole other side.
    tau : float or Tensor
        Temperature of the logits; one number, or one by problem.
    eps : float
        Added to each sum that is divided by, and to the softmax that takes the place of the first
        step on rows, as in the code of manifold-constrained hyper-connections. This is no guard: it
        changes the result, for logits of standard deviation 5 by up to 0.4.
    order : {"row_first", "column_first"}
        What comes last has its sums exactly.
    log_input : bool
        Whether x is logits.
    log_output : bool
        Return ln P.
    gradient : {"unroll", "implicit"}
        The exact gradient of these T steps, or that of their limit, which is good where they have
        converged and goes to ``x`` and ``tau`` alone.

    Returns
    -------
    Tensor
        Like x.

    Raises
    ------
    TypeError, ValueError
        For wrong shapes and types, weights below 0, and options that exclude one another.

    Notes
    -----
    One kernel does all iterations, and moves x in and P out: problems of up to 16 x 16 lie side by
    side in vector registers, larger ones stay in a core's cache, or in shared memory. It is made
    for many problems of up to a few hundred rows. The backward keeps x alone, computes the u_t and
    v_t again, and takes 2T products with K and one of rank 2T. Second derivatives are those of the
    definition in plain torch, which stores all steps.

    References
    ----------
    R. Sinkhorn, "A relationship between arbitrary positive matrices and doubly stochastic
    matrices", 1964. G. Mena et al., "Learning latent permutations with Gumbel-Sinkhorn networks",
    2018. Z. Xie et al., "mHC: manifold-constrained hyper-connections", 2025.
    """
    op = "sinkhorn_normalize"
    checks.floating(op, "x", x)
    if x.dim() < 2:
        raise ValueError(
            f"regkern.{op}: expected `x` of at least two dimensions, got {tuple(x.shape)}"
        )
    if isinstance(n_iter, bool) or not isinstance(n_iter, int | torch.SymInt):
        raise TypeError(f"regkern.{op}: expected `n_iter` to be an int, got {n_iter!r}")
    checks.at_least(op, "n_iter", n_iter, 1)
    checks.at_least(op, "eps", eps, 0.0)
    checks.one_of(op, "order", order, ("row_first", "column_first"))
    checks.one_of(op, "gradient", gradient, ("unroll", "implicit"))
    n, m = x.shape[-2:]
    s = 0 if slack is None else 1
    _check_weights(op, "a", a, x, n + s)
    _check_weights(op, "b", b, x, m + s)
    _check_side(op, "rows", rows, x, n)
    _check_side(op, "columns", columns, x, m)
    scale = None
    if isinstance(tau, Tensor) or tau != 1.0:
        if not log_input:
            raise ValueError(f"regkern.{op}: expected no `tau` of a matrix that is not of logits")
        temperature = _per_problem(op, "tau", tau, x)
        if temperature.numel() > 0 and _readable(temperature) and not bool((temperature > 0).all()):
            raise ValueError(
                f"regkern.{op}: expected `tau` greater than 0, got {float(temperature.min())}"
            )
        scale = temperature.reciprocal()
    z = None if slack is None else _per_problem(op, "slack", slack, x)
    if rows is not None or columns is not None:
        wide = torch.empty((n + s, m + s), dtype=compute_dtype(x), device=x.device)
        a, b = definition.weights_of(wide, a, b, rows, columns, slack is not None)
    flat = x
    if x.dim() != 3:
        flat = x.unsqueeze(0) if x.dim() == 2 else x.flatten(0, -3)
    arguments = (_flat(a, x), _flat(b, x), z, scale, n_iter, eps, order, log_input, log_output)
    if gradient == "implicit":
        if slack is not None or not log_input or log_output or eps != 0.0:
            raise ValueError(
                f"regkern.{op}: expected the implicit gradient of plans from logits, with neither "
                "slack nor eps"
            )
        with torch.no_grad():
            plan = _call(flat.detach(), *arguments)
        logits = flat if scale is None else flat * scale.to(x.dtype).reshape(-1, 1, 1)
        y = _apply_implicit(logits, plan)
    else:
        y = _call(flat, *arguments)
    return y if x.dim() == 3 else y.reshape(*x.shape[:-2], n + s, m + s)


_apply_implicit: Callable[[Tensor, Tensor], Tensor] = _Implicit.apply

"""Norms of whole networks, in one call and without waiting for them.

Every function takes the tensors of a network at once; norms stay on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, register

# ---- raw ops ----


def _fake_norms(
    xs: list[Tensor],
    ws: list[Tensor],
    norms: str,
    adaptive: bool,
    eta: float,
    p: float,
    most: Tensor | None,
) -> tuple[Tensor, Tensor]:
    sums, wide = (3 if norms == "pair" else 1), torch.float64
    return xs[0].new_empty((len(xs), sums), dtype=wide), xs[0].new_empty((sums,), dtype=wide)


_norms = register("network_norms", _fake_norms)
_combine = register("network_combine", lambda xs, *_: [dense_like(x) for x in xs])
_combine_ = register("network_combine_", lambda *_: None)
_copy_ = register("network_copy_", lambda *_: None)


# ---- sums over lists of mixed dtypes ----


def _listed(op: str, name: str, tensors: object) -> list[Tensor]:
    """The tensors, checked. A network has many: texts are made for what fails alone."""
    if isinstance(tensors, list | tuple) and len(tensors) > 0 and isinstance(tensors[0], Tensor):
        device = tensors[0].device
        if all(
            isinstance(x, Tensor) and x.dtype in checks.FLOATING and x.device == device
            for x in tensors
        ):
            return list(tensors)
    return checks.tensor_list(op, name, tensors)


def _like(
    op: str, name: str, tensors: object, like: Sequence[Tensor], like_name: str
) -> list[Tensor]:
    """Tensors of the shapes and dtypes of a list."""
    found = _listed(op, name, tensors)
    if len(found) != len(like):
        raise ValueError(
            f"regkern.{op}: expected as many tensors in `{name}` as in `{like_name}`, "
            f"{len(like)}, got {len(found)}"
        )
    pairs = list(zip(found, like, strict=True))
    if found[0].device != like[0].device or not all(
        t.shape == x.shape and t.dtype == x.dtype for t, x in pairs
    ):
        for i, (t, x) in enumerate(pairs):
            checks.same(op, f"{name}[{i}]", t, x, f"{like_name}[{i}]")
    return found


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The indices of each dtype, without tensors that have no elements."""
    groups = ([i for i in g if tensors[i].numel() > 0] for g in checks.by_dtype(tensors))
    return [g for g in groups if g]


def _pick(tensors: Sequence[Tensor], indices: list[int]) -> list[Tensor]:
    return [tensors[i] for i in indices]


def _total(
    xs: Sequence[Tensor],
    norms: str,
    ws: Sequence[Tensor] = (),
    eta: float | None = None,
    p: float = 0.0,
    most: Tensor | None = None,
) -> Tensor:
    """The sums of all tensors, float64; of (|w| + η) x where there is an η."""
    total: Tensor | None = None
    for group in _by_dtype(xs):
        others = _pick(ws, group) if len(ws) > 0 else []
        part: Tensor = _norms(
            _pick(xs, group), others, norms, eta is not None, eta or 0.0, p, most
        )[1]
        if total is None:
            total = part
        else:
            total = torch.maximum(total, part) if norms == "largest" else total + part
    if total is None:
        total = xs[0].new_zeros((3 if norms == "pair" else 1,), dtype=torch.float64)
    return total


def _norm_of(
    xs: Sequence[Tensor], order: float, ws: Sequence[Tensor] = (), eta: float | None = None
) -> Tensor:
    """The norm of all elements, 0-d float64."""
    if order == 2:
        return _total(xs, "square", ws, eta)[0].sqrt()
    if order == 1:
        return _total(xs, "absolute", ws, eta)[0]
    most = _total(xs, "largest", ws, eta)[0]
    if order == math.inf:
        return most
    power = _total(xs, "power", ws, eta, order, most)[0]
    return torch.where(most.isinf(), most, most * power ** (1 / order))


def _dtype_of(xs: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in xs) else torch.float32


def _ratio(a: Tensor, b: Tensor, otherwise: float = 0.0) -> Tensor:
    """a / b, and ``otherwise`` where b is 0."""
    return torch.where(b == 0, otherwise, a / b)


def _number(value: float | Tensor, like: Tensor) -> Tensor:
    """0-d float64 on the device of ``like``."""
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(like.device, torch.float64)
    return torch.full((), value, dtype=torch.float64, device=like.device)


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    """(α, β) of every group."""
    return torch.stack([a, b], -1).reshape(-1, 2)


def _step_(
    xs: Sequence[Tensor],
    zs: Sequence[Tensor],
    a: Tensor,
    b: Tensor,
    *,
    saved: Sequence[Tensor] = (),
    into: Sequence[Tensor] = (),
    direction: str = "plain",
    eta: float = -1.0,
    q: float = 0.0,
    most: Tensor | None = None,
) -> None:
    """x ← a x + b d(z), one pair of numbers for all; to ``into`` where there is one."""
    numbers = _pairs(a, b)
    for group in _by_dtype(xs):
        _combine_(
            _pick(into or xs, group),
            _pick(saved, group) if saved else [],
            _pick(xs, group) if into else [],
            _pick(zs, group) if zs else [],
            numbers,
            [],
            direction,
            eta,
            q,
            most,
        )


# ---- norms ----


class _GlobalNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(order: float, *xs: Tensor) -> Tensor:
        return _norm_of(xs, order).to(_dtype_of(xs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.order, *xs = inputs
        ctx.save_for_backward(output, *xs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        norm, *xs = ctx.saved_tensors
        if torch.is_grad_enabled():
            norm = global_norm(xs, ctx.order)
        elif ctx.order == 2:
            numbers = _pairs(_ratio(g.double(), norm.double()), torch.zeros_like(g).double())
            out: list[Any] = [torch.zeros_like(x) for x in xs]
            for group in _by_dtype(xs):
                scaled = _combine(_pick(xs, group), [], numbers, [], "plain", -1.0, 0.0, None)
                for i, dx in zip(group, scaled, strict=True):
                    out[i] = dx
            return None, *out
        return None, *_norm_gradients(xs, norm, g, ctx.order)


def _recorded(xs: Sequence[Tensor]) -> bool:
    """Whether autograd, a transform or a compiler looks at what becomes of tensors."""
    return (
        (torch.is_grad_enabled() and any(x.requires_grad for x in xs))
        or torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _norm_gradients(xs: Sequence[Tensor], norm: Tensor, g: Tensor, order: float) -> list[Tensor]:
    """In plain torch, differentiable; 0 where the norm is."""
    wide = [x.to(norm.dtype) for x in xs]
    safe = torch.where(norm == 0, 1.0, norm)
    if order == 1:
        slopes = [x.sign() for x in wide]
    elif order == 2:
        slopes = [x / safe for x in wide]
    elif order == math.inf:
        # Equal largest elements share it.
        at = [(x.abs() == norm) & (x != 0) for x in wide]
        count = torch.stack([a.sum() for a in at]).sum().clamp(min=1)
        slopes = [torch.where(a, x.sign(), 0.0) / count for a, x in zip(at, wide, strict=True)]
    else:
        # The slope of |x| is infinite at 0 once more for orders below 2.
        shares = [torch.where(x == 0, 1.0, x.abs()) / safe for x in wide]
        slopes = [
            torch.where(x == 0, 0.0, x.sign() * s ** (order - 1))
            for x, s in zip(wide, shares, strict=True)
        ]
    return [(g * s).to(x.dtype) for s, x in zip(slopes, xs, strict=True)]


def _check_order(op: str, name: str, value: object, above: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"regkern.{op}: expected `{name}` to be a number, got {value!r}")
    if not (value > 1 if above else value >= 1):
        least = "above 1" if above else "at least 1"
        raise ValueError(f"regkern.{op}: expected `{name}` to be {least}, got {value}")
    return float(value)


def global_norm(tensors: Tensor | Sequence[Tensor], ord: float = 2.0) -> Tensor:
    r"""The norm of all elements of a list of tensors, as of one vector.

    .. math:: \lVert x \rVert_p = \Bigl( \sum_i |x_i|^p \Bigr)^{1/p}, \qquad
        \lVert x \rVert_\infty = \max_i |x_i|

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        Of any shapes, strides and floating dtypes, on one device.
    ord : float, default 2
        p >= 1; ``math.inf`` for the largest magnitude.

    Returns
    -------
    Tensor
        0-d, float32 (float64 if any tensor is that), on the device. Differentiable as often as
        wanted; where the norm is 0, so is its gradient. Equal largest magnitudes share the
        gradient of the maximum.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Sums are added in an order that is fixed, so that no thread changes a bit, and in double where
    float32 squares would overflow or vanish. NaN and infinity stay. Bytes moved: every tensor read
    once, twice for orders other than 1, 2 and infinity; the gradient reads once more and writes.
    """
    xs = _listed("global_norm", "tensors", tensors)
    order = _check_order("global_norm", "ord", ord)
    if not _recorded(xs):
        return _norm_of(xs, order).to(_dtype_of(xs))
    value: Tensor = function_apply(_GlobalNorm, order, *xs)
    return value


@torch.no_grad()
def clip_norm_(
    tensors: Tensor | Sequence[Tensor], max_norm: float | Tensor, ord: float = 2.0
) -> Tensor:
    r"""Scales tensors, in place, so that their global norm is at most ``max_norm``.

    .. math:: g ← g \min(1, c / \lVert g \rVert)

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        Gradients, say: any shapes, strides and floating dtypes, on one device.
    max_norm : float or Tensor
        c >= 0, one element.
    ord : float, default 2
        The order of the norm.

    Returns
    -------
    Tensor
        The norm that they had: 0-d, on the device.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Without the 1e-6 that :func:`torch.nn.utils.clip_grad_norm_` adds to the norm: tensors within
    the ball keep their bits, and are then read once and not written. NaN and infinity make the
    factor NaN or 0, and are seen afterwards. Bytes moved: tensors read once; twice, and written,
    where they are clipped.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
    ICML 2013.
    """
    op = "clip_norm_"
    xs = _listed(op, "tensors", tensors)
    checks.scale(op, "max_norm", max_norm)
    norm = _norm_of(xs, _check_order(op, "ord", ord))
    factor = _ratio(_number(max_norm, norm), norm, 1.0).clamp(max=1.0)
    _step_(xs, [], factor, torch.zeros_like(factor))
    return norm.to(_dtype_of(xs))


@torch.no_grad()
def linear_combination(
    xs: Sequence[Tensor], a: float | Tensor, zs: Sequence[Tensor], b: float | Tensor
) -> list[Tensor]:
    """a x + b z of every pair of tensors."""
    numbers = _pairs(_number(a, xs[0]), _number(b, xs[0]))
    out = [torch.zeros_like(x) if x.numel() == 0 else x for x in xs]
    for group in _by_dtype(xs):
        pairs = (_pick(xs, group), _pick(zs, group))
        results = _combine(*pairs, numbers, [], "plain", -1.0, 0.0, None)
        for i, y in zip(group, results, strict=True):
            out[i] = y
    return out


# ---- distances ----


class _Distance(torch.autograd.Function):
    """Σ |x − a|² of all pairs: gradient 2 (x − a), and its opposite."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> Tensor:
        xs, anchors = tensors[:count], tensors[count:]
        return _total(xs, "distance", anchors)[0].to(_dtype_of(xs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        xs, anchors = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        moving = any(ctx.needs_input_grad[1 + ctx.count :])
        if torch.is_grad_enabled():
            dxs = [
                (2 * g * (x.to(g.dtype) - a.to(g.dtype))).to(x.dtype)
                for x, a in zip(xs, anchors, strict=True)
            ]
        else:
            dxs = linear_combination(xs, 2 * g, anchors, -2 * g)
        return None, *dxs, *([-dx for dx in dxs] if moving else [None] * len(anchors))


def distance_penalty(
    tensors: Tensor | Sequence[Tensor],
    anchors: Tensor | Sequence[Tensor],
    form: Literal["squared", "negative", "inverse", "exponential"] = "squared",
    alpha: float = 1.0,
) -> Tensor:
    r"""A penalty of how far, or how near, the parameters of a network are from others.

    With :math:`d^2 = \sum_l \lVert θ_l - a_l \rVert^2`: ``"squared"`` is d² (stay near, as L2-SP),
    and three forms drive away: ``"negative"`` is :math:`-d^2`, ``"inverse"`` is
    :math:`1/d^2`, ``"exponential"`` is :math:`e^{-α d^2}`.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        θ: any shapes, strides and floating dtypes, on one device.
    anchors : Tensor or sequence of Tensor
        a, of the same shapes and dtypes.
    form : {"squared", "negative", "inverse", "exponential"}
        See above. At d = 0 the inverse is infinite, and its gradient NaN.
    alpha : float
        α >= 0.

    Returns
    -------
    Tensor
        0-d, float32 (float64 if any tensor is that). Differentiable as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: both lists read once; in the backward once more, and gradients written.

    References
    ----------
    Tiwary, Guha, Panda and Prathosh, "Adapt then unlearn: exploring parameter space semantics for
    unlearning in generative adversarial networks", TMLR 2025. Its repulsion is one of the three
    forms; which of them serves in which experiment has not been confirmed.
    """
    op = "distance_penalty"
    xs = _listed(op, "tensors", tensors)
    others = _like(op, "anchors", anchors, xs, "tensors")
    checks.one_of(op, "form", form, ("squared", "negative", "inverse", "exponential"))
    checks.scale(op, "alpha", alpha)
    square: Tensor = function_apply(_Distance, len(xs), *xs, *others)
    forms: dict[str, Callable[[], Tensor]] = {
        "squared": lambda: square,
        "negative": lambda: -square,
        "inverse": lambda: 1 / square,
        "exponential": lambda: torch.exp(-alpha * square),
    }
    return forms[form]()

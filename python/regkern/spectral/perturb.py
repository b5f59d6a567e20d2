"""Norms of whole networks, and what is done with them: clipping, perturbing, projecting.

Every function takes the tensors of a network at once and waits for nothing: norms stay on the
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, function_apply, register
from regkern.proximal.group_prox import group_squares
from regkern.proximal.groups import Groups

Kind = Literal["sam", "asam", "tensor", "row"]

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


def _rows_of(x: Tensor) -> int:
    """Filters of a weight; a vector is one."""
    return x.shape[0] if x.dim() > 1 else 1


def _as_rows(x: Tensor) -> Tensor:
    return x if x.dim() > 1 else x.reshape(1, -1)


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


# ---- perturbations ----


@dataclass(frozen=True)
class Perturbation:
    """What :func:`restore_` needs, and :func:`perturb_` can use again.

    Attributes
    ----------
    params : list of Tensor
        What was perturbed.
    buffers : list of Tensor
        Their values from before; with ``storage="swapped"`` their storage from before.
    norm : Tensor
        The dual norm of the gradients that the step was divided by, 0-d float64; for kinds
        "tensor" and "row" one number for each tensor or row.
    storage : str
        "kept" or "swapped".
    """

    params: list[Tensor]
    buffers: list[Tensor]
    norm: Tensor
    storage: str


def _buffers_of(
    op: str, params: list[Tensor], reuse: Perturbation | None, storage: str
) -> list[Tensor]:
    if reuse is None:
        return [torch.empty_like(p, memory_format=torch.contiguous_format) for p in params]
    if not isinstance(reuse, Perturbation):
        raise TypeError(f"regkern.{op}: expected `reuse` to be a Perturbation, got {type(reuse)}")
    if reuse.storage != storage or len(reuse.buffers) != len(params):
        raise ValueError(
            f"regkern.{op}: expected `reuse` with {len(params)} buffers and storage {storage}, got "
            f"{len(reuse.buffers)} and {reuse.storage}"
        )
    return _like(op, "reuse.buffers", reuse.buffers, params, "params")


@torch.no_grad()
def perturb_(
    params: Tensor | Sequence[Tensor],
    grads: Tensor | Sequence[Tensor],
    rho: float | Tensor,
    *,
    kind: Kind = "sam",
    p: float = 2.0,
    eta: float = 0.01,
    storage: Literal["kept", "swapped"] = "kept",
    reuse: Perturbation | None = None,
) -> Perturbation:
    r"""Moves parameters, in place, to where the loss is largest nearby, and remembers the way back.

    ``"sam"``: the whole network by ρ in the p-norm, with 1/p + 1/q = 1,

    .. math:: w ← w + ρ\, \operatorname{sgn}(g)\, |g|^{q-1} / \lVert g \rVert_q^{q-1}
        \qquad (p = 2:\; w + ρ\, g / \lVert g \rVert_2)

    ``"asam"``: the same for :math:`w/T` with :math:`T = |w| + η`, so that rescaled weights get
    rescaled steps (p = 2: :math:`w + ρ\, T^2 g / \lVert T g \rVert_2`).

    ``"tensor"``, ``"row"``: every tensor, or every filter (slice of the first dimension; a vector
    is one filter), relative to its own size, as adversarial weight perturbation does:

    .. math:: w_l ← w_l + ρ\, \frac{\lVert w_l \rVert}{\lVert g_l \rVert}\, g_l

    Parameters
    ----------
    params : Tensor or sequence of Tensor
        Any shapes, strides and floating dtypes, on one device.
    grads : Tensor or sequence of Tensor
        A gradient for each of them, of its shape and dtype.
    rho : float or Tensor
        ρ >= 0, one element. 0 leaves every bit.
    kind : {"sam", "asam", "tensor", "row"}
        See above.
    p : float, default 2
        Above 1; ``math.inf`` steps by ±ρ everywhere. Kinds "sam" and "asam".
    eta : float, default 0.01
        η >= 0. Kind "asam".
    storage : {"kept", "swapped"}
        "kept": the perturbed values are written into the parameters, the old ones into a buffer
        and back. "swapped": they are written into the buffer, which is the parameters' storage
        until they are restored; half of the traffic, but views of the old storage and captured
        CUDA graphs do not see it.
    reuse : Perturbation, optional
        An earlier result whose buffers are used again: on the CPU a fresh buffer of the size of a
        network costs more than the step.

    Returns
    -------
    Perturbation
        For :func:`restore_`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Gradients that are all 0 move nothing; NaN and infinity in them reach the parameters. Bytes
    moved: gradients read twice, parameters read and written, and the buffer written ("swapped":
    parameters read, buffer written); kinds other than "sam" read parameters once more.

    References
    ----------
    Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-aware minimization for efficiently improving
    generalization", ICLR 2021; Kwon, Kim, Park and Choi, "ASAM: adaptive sharpness-aware
    minimization for scale-invariant learning of deep neural networks", ICML 2021; Wu, Xia and
    Wang, "Adversarial weight perturbation helps robust generalization", NeurIPS 2020.
    """
    op = "perturb_"
    ws = _listed(op, "params", params)
    gs = _like(op, "grads", grads, ws, "params")
    checks.scale(op, "rho", rho)
    checks.one_of(op, "kind", kind, ("sam", "asam", "tensor", "row"))
    checks.one_of(op, "storage", storage, ("kept", "swapped"))
    checks.scale(op, "eta", eta)
    order = _check_order(op, "p", p, above=True)
    buffers = _buffers_of(op, ws, reuse, storage)
    swapped = storage == "swapped"
    room: dict[str, Any] = {"into": buffers} if swapped else {"saved": buffers}
    radius = _number(rho, ws[0])
    if kind == "sam" or kind == "asam":
        q = 1.0 if order == math.inf else order / (order - 1)
        shift = float(eta) if kind == "asam" else None
        norm = _norm_of(gs, q, ws if kind == "asam" else (), shift)
        one = torch.ones_like(norm)
        if order == 2:
            direction = "plain" if shift is None else "adaptive"
            step = _ratio(radius, norm)
            _step_(ws, gs, one, step, direction=direction, eta=shift or 0.0, **room)
        else:
            # η < 0: no T.
            shift = -1.0 if shift is None else shift
            _step_(
                ws,
                gs,
                one,
                radius,
                direction="powered",
                eta=shift,
                q=q - 1,
                most=norm,
                **room,
            )
    else:
        norm = _relative_step_(ws, gs, radius, kind, buffers, swapped)
    if swapped:
        buffers = _swap(ws, buffers)
    return Perturbation(ws, buffers, norm, storage)


def _swap(params: list[Tensor], buffers: list[Tensor]) -> list[Tensor]:
    """Gives parameters other storage; what they had."""
    old = [p.data for p in params]
    for p, b in zip(params, buffers, strict=True):
        p.data = b
    torch.autograd.graph.increment_version(params)
    return old


def _relative_step_(
    ws: list[Tensor],
    gs: list[Tensor],
    radius: Tensor,
    kind: str,
    buffers: list[Tensor],
    swapped: bool,
) -> Tensor:
    """w + ρ |w|/|g| g for every tensor or row; the norms of the gradients."""
    norms = []
    for group in _by_dtype(ws):
        w, g, b = (_pick(each, group) for each in (ws, gs, buffers))
        if kind == "tensor":
            g_norm, w_norm = (
                _norms(x, [], "square", False, 0.0, 0.0, None)[0][:, 0].sqrt() for x in (g, w)
            )
            runs = [x.numel() for x in w]
        else:
            g_norm, w_norm = (_row_norms(x) for x in (g, w))
            runs = [x.numel() // _rows_of(x) for x in w]
        numbers = _pairs(torch.ones_like(g_norm), _ratio(radius * w_norm, g_norm))
        into, saved, source = (b, [], w) if swapped else (w, b, [])
        _combine_(into, saved, source, g, numbers, runs, "plain", -1.0, 0.0, None)
        norms.append(g_norm)
    return torch.cat(norms) if norms else radius.new_zeros(0)


def _row_norms(xs: list[Tensor]) -> Tensor:
    rows = [_as_rows(x) for x in xs]
    return group_squares(rows, Groups.kept(0).layout(rows)).sqrt()


@torch.no_grad()
def displace_(
    params: Sequence[Tensor],
    vectors: Sequence[Tensor],
    step: float | Tensor,
    reuse: Perturbation | None = None,
) -> Perturbation:
    """w ← w + step · v, in place, for :func:`restore_`."""
    ws = list(params)
    buffers = _buffers_of("displace_", ws, reuse, "kept")
    length = _number(step, ws[0])
    _step_(ws, vectors, torch.ones_like(length), length, saved=buffers)
    return Perturbation(ws, buffers, length, "kept")


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


@torch.no_grad()
def restore_(perturbation: Perturbation) -> None:
    """Gives parameters back, bit for bit, what they were before :func:`perturb_`.

    Parameters
    ----------
    perturbation : Perturbation
        What :func:`perturb_` returned.

    Notes
    -----
    Bytes moved: the buffer read, parameters written; nothing where the storage was swapped. The
    buffers can be used again.
    """
    if not isinstance(perturbation, Perturbation):
        raise TypeError(
            "regkern.restore_: expected `perturbation` to be a Perturbation, got "
            f"{type(perturbation)}"
        )
    params, buffers = perturbation.params, perturbation.buffers
    if perturbation.storage == "swapped":
        buffers[:] = _swap(params, buffers)
        return
    for group in _by_dtype(params):
        _copy_(_pick(params, group), _pick(buffers, group))


# ---- projections ----


@torch.no_grad()
def project_(
    tensors: Tensor | Sequence[Tensor],
    radius: float | Tensor,
    *,
    grads: Tensor | Sequence[Tensor] | None = None,
    step: float | Tensor = 1.0,
    per: Literal["tensor", "all"] = "tensor",
) -> None:
    r"""Projects, in place, onto l2 balls around 0, after a step along gradients if there are any.

    .. math:: δ ← δ + ζ g, \qquad δ ← δ \min(1, ε / \lVert δ \rVert_2)

    for each tensor, or for all as one vector: the ascent of adversarial model perturbation.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        δ: any shapes, strides and floating dtypes, on one device.
    radius : float or Tensor
        ε >= 0, one element.
    grads : Tensor or sequence of Tensor, optional
        g, of the same shapes and dtypes.
    step : float or Tensor
        ζ, one element.
    per : {"tensor", "all"}
        A ball for each tensor, or one for all.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Tensors within the ball keep their bits where there are no gradients. Bytes moved: δ (and g)
    read twice, δ written once: the norm after the step comes from ⟨δ, δ⟩, ⟨δ, g⟩ and ⟨g, g⟩.

    References
    ----------
    Zheng, Zhang and Mao, "Regularizing neural networks via adversarial model perturbation",
    CVPR 2021.
    """
    op = "project_"
    xs = _listed(op, "tensors", tensors)
    checks.scale(op, "radius", radius)
    checks.one_of(op, "per", per, ("tensor", "all"))
    gs = [] if grads is None else _like(op, "grads", grads, xs, "tensors")
    ball, zeta = _number(radius, xs[0]), _number(step, xs[0])

    def numbers_of(sums: Tensor) -> Tensor:
        squares = sums[..., 0]
        if gs:
            squares = squares + 2 * zeta * sums[..., 1] + zeta * zeta * sums[..., 2]
        factor = _ratio(ball, squares.clamp(min=0.0).sqrt(), 1.0).clamp(max=1.0)
        return _pairs(factor, factor * zeta if gs else torch.zeros_like(factor))

    norms = "pair" if gs else "square"
    whole = numbers_of(_total(xs, norms, gs)) if per == "all" else None
    for group in _by_dtype(xs):
        x, g = _pick(xs, group), _pick(gs, group) if gs else []
        numbers, runs = whole, []
        if numbers is None:
            numbers = numbers_of(_norms(x, g, norms, False, 0.0, 0.0, None)[0])
            runs = [t.numel() for t in x]
        _combine_(x, [], [], g, numbers, runs, "plain", -1.0, 0.0, None)


@torch.no_grad()
def remove_component_(
    tensors: Tensor | Sequence[Tensor],
    directions: Tensor | Sequence[Tensor],
    *,
    rescale: bool = False,
) -> None:
    r"""Removes from each tensor, in place, its component along another.

    .. math:: g ← g - \frac{\langle g, w \rangle}{\langle w, w \rangle}\, w

    With the weights as directions these are the gradients of ⟂Grad, which leave the length of
    the weights as it is to first order.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        g: any shapes, strides and floating dtypes, on one device.
    directions : Tensor or sequence of Tensor
        w, of the same shapes and dtypes. A zero direction removes nothing.
    rescale : bool, default False
        Gives each tensor the length back that it had, as ⟂Grad does; not where rounding is all
        that is left of it.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: both lists read twice, the tensors written once.

    References
    ----------
    Prieto, Barsbey, Mediano and Birdal, "Grokking at the edge of numerical stability", ICLR 2025.
    """
    op = "remove_component_"
    gs = _listed(op, "tensors", tensors)
    ws = _like(op, "directions", directions, gs, "tensors")
    for group in _by_dtype(gs):
        g, w = _pick(gs, group), _pick(ws, group)
        square, product, length = _norms(g, w, "pair", False, 0.0, 0.0, None)[0].unbind(-1)
        share = _ratio(product, length)
        scale = torch.ones_like(share)
        if rescale:
            left = (square - share * product).clamp(min=0.0)
            # What is shorter than the rounding of the tensor is nothing else.
            noise = torch.finfo(compute_dtype(g[0])).eps ** 2 * square
            scale = torch.where(left <= 16 * noise, 1.0, (square / left).sqrt())
        numbers = _pairs(scale, -scale * share)
        runs = [x.numel() for x in g]
        _combine_(g, [], [], w, numbers, runs, "plain", -1.0, 0.0, None)


@torch.no_grad()
def filter_normalize_(
    directions: Tensor | Sequence[Tensor],
    params: Tensor | Sequence[Tensor],
    vectors: Literal["zero", "keep"] = "zero",
) -> None:
    r"""Gives each filter of a random direction, in place, the length of the filter of the weights.

    .. math:: d_i ← d_i\, \lVert θ_i \rVert / \lVert d_i \rVert

    for the slices i of the first dimension; then :math:`L(θ + a d + b e)` over (a, b) shows a loss
    landscape in which the scale of the weights does not matter.

    Parameters
    ----------
    directions : Tensor or sequence of Tensor
        d: any shapes, strides and floating dtypes, on one device.
    params : Tensor or sequence of Tensor
        θ, of the same shapes and dtypes.
    vectors : {"zero", "keep"}
        What becomes of directions of biases and normalizations, which have at most one dimension:
        0 as in the paper, or what they are.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A filter of zeros stays one. Bytes moved: directions read twice and written, weights read.

    References
    ----------
    Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets",
    NeurIPS 2018.
    """
    op = "filter_normalize_"
    ds = _listed(op, "directions", directions)
    ws = _like(op, "params", params, ds, "directions")
    checks.one_of(op, "vectors", vectors, ("zero", "keep"))
    if vectors == "zero":
        for d in ds:
            if d.dim() < 2:
                d.zero_()
    matrices = [i for i, d in enumerate(ds) if d.dim() > 1]
    for places in _by_dtype(_pick(ds, matrices)):
        rows, weights = (_pick(_pick(each, matrices), places) for each in (ds, ws))
        factor = _ratio(_row_norms(weights), _row_norms(rows))
        runs = [x.numel() // x.shape[0] for x in rows]
        numbers = _pairs(factor, torch.zeros_like(factor))
        _combine_(rows, [], [], [], numbers, runs, "plain", -1.0, 0.0, None)


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

"""Perturbing and projecting whole networks, in one call each.

Every function takes the tensors of a network at once and waits for nothing: norms stay on the
device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.proximal.group_prox import group_squares
from regkern.proximal.groups import Groups
from regkern.spectral.network import (
    _by_dtype,
    _check_order,
    _combine_,
    _copy_,
    _like,
    _listed,
    _norm_of,
    _norms,
    _number,
    _pairs,
    _pick,
    _ratio,
    _step_,
    _total,
)

Kind = Literal["sam", "asam", "tensor", "row"]


def _rows_of(x: Tensor) -> int:
    """Filters of a weight; a vector is one."""
    return x.shape[0] if x.dim() > 1 else 1


def _as_rows(x: Tensor) -> Tensor:
    return x if x.dim() > 1 else x.reshape(1, -1)


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

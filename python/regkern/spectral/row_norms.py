"""Norms of rows: the penalty that pulls them to 1, its steps, and rows that have norm 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, register
from regkern.proximal.group_prox import group_scaled, group_squares, root, weighted_sum
from regkern.proximal.groups import Groups

# ---- raw ops: fake kernels and autograd ----

_rescale_ = register(
    "row_rescale_",
    lambda ys, step, law: ys[0].new_empty((sum(y.shape[0] for y in ys),), dtype=torch.float64),
)
_project = register(
    "row_project",
    lambda x: (dense_like(x), x.new_empty((x.shape[0],), dtype=torch.float64)),
)
_project_backward = register("row_project_backward", lambda g, x, norms: dense_like(x))


def _per_row(numbers: Tensor, like: Tensor) -> Tensor:
    return numbers.reshape(-1, *(1,) * (like.dim() - 1))


def _row_dots(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(1)


def _gradient(g: Tensor, x: Tensor, norms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ŵ, ⟨g, ŵ⟩ and 1/s in differentiable torch, with 0 for a row of norm 0."""
    zero = norms == 0
    inverse = torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, norms))
    unit = x.to(norms.dtype) * _per_row(inverse, x)
    return unit, _row_dots(g, unit), inverse


def _project_setup(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def _project_gradient(ctx: Any, g: Tensor, _: Any) -> Tensor:
    x, norms = ctx.saved_tensors
    dx: Tensor = _project_backward(g, x, norms)
    return dx


def _backward_setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_gradient(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor, None]:
    """Of dx = (g − ŵ ⟨g, ŵ⟩) / s: by g the same with h, and by x (s depends on it as well)

        −(P h ⟨g, ŵ⟩ + P g ⟨h, ŵ⟩ + ŵ ⟨h, P g⟩) / s²,  P = I − ŵ ŵᵀ.

    The first two come from ŵ, the last from 1/s.
    """
    g, x, _ = ctx.saved_tensors
    norms = root(x.double().flatten(1).square().sum(1))
    unit, along_g, inverse = _gradient(g, x, norms)
    along_h = _row_dots(h, unit)
    pg = g.double() - unit * _per_row(along_g, x)
    ph = h.double() - unit * _per_row(along_h, x)
    inside = ph * _per_row(along_g, x) + pg * _per_row(along_h, x)
    inside = inside + unit * _per_row(_row_dots(h, pg), x)
    dx = -inside * _per_row(inverse * inverse, x)
    dg = ph * _per_row(inverse, x)
    return dg.to(g.dtype), dx.to(x.dtype), None


_project.differentiable(_project_setup, _project_gradient)
_project_backward.differentiable(_backward_setup, _backward_gradient)


# ---- what the public functions share ----


def _matrix(op: str, name: str, w: Tensor) -> None:
    if w.dim() < 2:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of at least two dimensions, got {tuple(w.shape)}"
        )


def _weights(op: str, weights: object) -> list[Tensor]:
    tensors = checks.tensor_list(op, "weights", weights)
    for i, w in enumerate(tensors):
        _matrix(op, f"weights[{i}]", w)
    return tensors


def _rescale(ws: Sequence[Tensor], step: float | Tensor | None, law: str) -> tuple[Tensor, ...]:
    """Norms before it, of each tensor."""
    norms: list[Tensor] = [ws[0]] * len(ws)
    for group in checks.by_dtype(ws):
        each = [ws[i] for i in group]
        number = None
        if step is not None:
            options: Any = {"dtype": compute_dtype(each[0]), "device": each[0].device}
            if isinstance(step, Tensor):
                number = step.detach().reshape(()).to(**options)
            else:
                number = torch.full((), step, **options)
        with torch.no_grad():
            all_norms = _rescale_(each, number, law)
        for i, part in zip(group, all_norms.split([w.shape[0] for w in each]), strict=True):
            norms[i] = part
    return tuple(norms)


# ---- public functions ----


def norm_loss(weights: Tensor | Sequence[Tensor]) -> Tensor:
    r"""Pulls the norm of every output channel to 1: a soft oblique manifold.

    .. math:: R = \sum_l \sum_o (1 - \lVert w_{l,o} \rVert_2)^2, \qquad
        \frac{\partial R}{\partial w_o} = 2 \Bigl(1 - \frac{1}{\lVert w_o \rVert}\Bigr) w_o

    Parameters
    ----------
    weights : Tensor or sequence of Tensor
        Weights of at least two dimensions, one output channel per index of the first; float32,
        float64, bfloat16 or float16, on one device.

    Returns
    -------
    Tensor
        0-d, float32 (float64 where a weight is). Differentiable any number of times; the gradient
        of a zero row is 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: weights read once for the value; read and a gradient written in the backward. Norms
    are in float64, added in an order that is the same everywhere.

    References
    ----------
    Georgiou, Schmitt, Bäck, Chen and Lew, "Norm loss: an efficient yet effective regularization
    method for deep neural networks", ICPR 2020.
    """
    ws = _weights("norm_loss", weights)
    total = None
    for group in checks.by_dtype(ws):
        each = [ws[i] for i in group]
        squares = group_squares(each, Groups.kept(0).layout(each))
        away = 1 - root(squares)
        part = weighted_sum(away, away)
        total = part if total is None else total + part
    assert total is not None
    double = any(w.dtype == torch.float64 for w in ws)
    return total if double else total.float()


def norm_loss_step_(weights: Tensor | Sequence[Tensor], step: float | Tensor) -> tuple[Tensor, ...]:
    r"""A step down the gradient of :func:`norm_loss`, in place: the decoupled form, after an
    optimizer's step and in place of weight decay.

    .. math:: w_o \leftarrow w_o - 2\, a \Bigl(1 - \frac{1}{\lVert w_o \rVert}\Bigr) w_o

    Parameters
    ----------
    weights : Tensor or sequence of Tensor
        As :func:`norm_loss` takes them; changed in place, not recorded by autograd.
    step : float or Tensor
        a: learning rate times λ; a tensor of one element is not looked at. ½ is the projection onto
        norm 1, 0 the identity bit for bit.

    Returns
    -------
    tuple of Tensor
        The norms of every weight's rows before the step, float64.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Zero rows stay zero. Bytes moved: every weight read and written once, in one call: a row is
    scaled while it is in the cache.

    References
    ----------
    As :func:`norm_loss`.
    """
    op = "norm_loss_step_"
    ws = _weights(op, weights)
    checks.scale(op, "step", step)
    return _rescale(ws, step, "norm_loss")


def oblique_projection_(weights: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    r"""Rows of norm 1, in place: the projection onto the oblique manifold

    .. math:: w_o \leftarrow w_o / \lVert w_o \rVert_2

    Parameters
    ----------
    weights : Tensor or sequence of Tensor
        As :func:`norm_loss` takes them; changed in place, not recorded by autograd.

    Returns
    -------
    tuple of Tensor
        The norms of every weight's rows before it, float64.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Zero rows stay zero. Bytes moved: every weight read and written once, in one call.
    """
    return _rescale(_weights("oblique_projection_", weights), None, "project")


def row_equilibrate(weight: Tensor, side: Literal["rows", "columns", "both"] = "rows") -> Tensor:
    r"""Weight conditioning: the weight with rows (or columns) of norm 1.

    .. math:: \hat W = E W, \quad E = \operatorname{diag}(1 / \lVert W_{i:} \rVert_2), \qquad
        dW_i = \frac{g_i - \hat W_i \langle g_i, \hat W_i \rangle}{\lVert W_i \rVert}

    Row equilibration is, up to a factor :math:`\sqrt{m}`, the diagonal scaling from the left that
    gives the least condition number (van der Sluis).

    Parameters
    ----------
    weight : Tensor
        At least two dimensions, as a matrix of its first dimension by all others; float32, float64,
        bfloat16 or float16.
    side : {"rows", "columns", "both"}
        What has norm 1. "both" scales rows, and then columns.

    Returns
    -------
    Tensor
        Like ``weight``. Differentiable twice. Zero rows stay zero, with gradient 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved for rows: one read and one write forward, two reads and one write backward. Columns
    are read twice forward.

    References
    ----------
    Saratchandran, Wang and Lucey, "Weight conditioning for smooth optimization of neural
    networks", ECCV 2024.
    """
    op = "row_equilibrate"
    checks.floating(op, "weight", weight)
    checks.one_of(op, "side", side, ("rows", "columns", "both"))
    _matrix(op, "weight", weight)
    out = weight
    if side != "columns":
        out = _project(out)[0]
    if side != "rows":
        flat = out.flatten(1)
        layout = Groups.kept(1).layout([flat])
        norms = root(group_squares([flat], layout))
        zero = norms == 0
        factors = torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, norms))
        out = group_scaled(flat, factors, layout).reshape(weight.shape)
    return out

"""Derivatives of partial transport's potentials by the implicit function theorem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regkern._registration import function_apply, once_only
from regkern.transport.implicit import STEPS, Engine, conjugate_gradients, pulled_back


def caps(weight: Tensor, eps: Tensor, entropy: str) -> Tensor:
    """The largest potential of a point: 0, and −ε ln a relative to the plain entropy."""
    if entropy == "kl":
        return torch.zeros_like(weight)
    there = weight > 0
    return torch.where(there, -eps[:, None] * torch.where(there, weight, 1.0).log(), 0.0)


def _mass(weight: Tensor, potential: Tensor, raw: Tensor, eps: Tensor) -> Tensor:
    """The plan's marginal by its potential and the soft c-transform of the other side."""
    met = (weight > 0) & raw.isfinite()
    apart = torch.where(met, potential, 0.0) - torch.where(met, raw, 0.0)
    return torch.where(met, weight * (apart / eps[:, None]).exp(), 0.0)


class _Implicit(torch.autograd.Function):
    """f + h, g and h, as functions of what they were solved for."""

    @staticmethod
    def forward(
        engine: Engine,
        entropy: str,
        f: Tensor,
        g: Tensor,
        level: Tensor,
        full_a: Tensor,
        full_b: Tensor,
        a: Tensor,
        b: Tensor,
        mass: Tensor,
        eps: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return f.clone(), g.clone(), level.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.engine, ctx.entropy = inputs[:2]
        # The value's first derivative has no business here, and its second must not be refused.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    @once_only("partial_transport")
    def backward(
        ctx: Any, df: Tensor | None, dg: Tensor | None, dh: Tensor | None
    ) -> tuple[Any, ...]:
        if df is None and dg is None and dh is None:
            return (None,) * len(ctx.needs_input_grad)
        f, g, level, full_a, full_b, *given = ctx.saved_tensors
        a, b, _, eps, *tensors = given
        df = torch.zeros_like(f) if df is None else torch.where(a > 0, df, 0.0)
        dg = torch.zeros_like(g) if dg is None else torch.where(b > 0, dg, 0.0)
        dh = torch.zeros_like(level) if dh is None else dh
        engine = ctx.engine.replaced(*(t.detach() for t in tensors))
        u, v, s = _adjoint(engine, a, b, f, g, eps, full_a, full_b, df, dg, dh)
        inputs = [
            t.detach().requires_grad_(need)
            for t, need in zip(given, ctx.needs_input_grad[7:], strict=True)
        ]
        e = eps[:, None]
        with torch.enable_grad():
            a, b, mass, eps, *tensors = inputs
            engine = ctx.engine.replaced(*tensors)
            # What is not full has its cap.
            f = torch.where(full_a, f, caps(a, eps, ctx.entropy) + level[:, None])
            g = torch.where(full_b, g, caps(b, eps, ctx.entropy))
            rows = _mass(a, f, engine.softmin(b, g, eps, False), eps)
            columns = _mass(b, g, engine.softmin(a, f, eps, True), eps)
            grads = pulled_back(
                (rows, columns, a, b, mass, f, g),
                (-e * u, -e * v, e * torch.where(full_a, u - s, 0.0), e * v, (e * s)[:, 0], df, dg),
                inputs,
            )
        return (*(None for _ in range(7)), *grads)


def _adjoint(
    engine: Engine,
    a: Tensor,
    b: Tensor,
    f: Tensor,
    g: Tensor,
    eps: Tensor,
    full_a: Tensor,
    full_b: Tensor,
    df: Tensor,
    dg: Tensor,
    dh: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Cotangents of the masses of rows (of all and, by u, of the full ones) and of full columns.

    The masses of full rows F, of full columns G and of all of the plan determine :math:`f_F, g_G`
    and h. With u, which is any number at full rows and one number s at the others, and v, which is
    0 at columns that are not full,

    .. math::
        \begin{pmatrix} D_r & P \\ P^T & D_c \end{pmatrix}
        \begin{pmatrix} u \\ v \end{pmatrix} = \begin{pmatrix} df \\ dg \end{pmatrix}

    at full columns and full rows and, in sum, at the rows that are not full, which also have dh.
    Without v it is a Laplacian of rows, those that are not full a single one, by conjugate
    gradients. It has no null vector unless a set of full points trades with nobody else.
    """

    def times(x: Tensor, of_columns: bool) -> Tensor:
        return engine.apply(a, b, f, g, eps, x[..., None], of_columns)[..., 0]

    def gathered(x: Tensor) -> Tensor:
        of_others = torch.where(full_a, 0.0, x).sum(-1, keepdim=True)
        return torch.cat([torch.where(full_a, x, 0.0), of_others], -1)

    def spread(x: Tensor) -> Tensor:
        return torch.where(full_a, x[:, :-1], x[:, -1:])

    rows, columns = times(torch.ones_like(b), False), times(torch.ones_like(a), True)
    columns = torch.where(full_b & (columns > 0), columns, torch.inf)
    weight = gathered(rows)
    weight = torch.where(weight > 0, weight, torch.inf)

    def image(x: Tensor) -> Tensor:
        u = spread(x)
        return gathered(rows * u - times(times(u, True) / columns, False))

    right = gathered(df - times(dg / columns, False))
    right = torch.cat([right[:, :-1], right[:, -1:] + dh[:, None]], -1)
    x = conjugate_gradients(image, right, lambda r: r / weight, STEPS)
    u = spread(x)
    return u, (dg - times(u, True)) / columns, x[:, -1:]


def implicit(
    engine: Engine,
    entropy: str,
    found: tuple[Tensor, Tensor, Tensor],
    full: tuple[Tensor, Tensor],
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """f + h, g and h of these full points, as functions of a, b, the mass, ε and the costs."""
    result: tuple[Tensor, Tensor, Tensor] = function_apply(
        _Implicit, engine, entropy, *found, *full, *inputs, *engine.tensors
    )
    return result

"""Shrinkage of the magnitudes of complex numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import register
from regkern.proximal.elementwise import Law, check_law
from regkern.proximal.penalty import ProxReport, threshold
from regkern.reference.proximal import elementwise as definition

_prox = register("prox_complex", lambda z, *a, **k: z.new_empty(z.shape))
_prox_backward = register(
    "prox_complex_backward", lambda g, z, *a, **k: (z.new_empty(z.shape), z.new_empty((2,)))
)
_prox_ = register("prox_complex_", lambda zs, *a, **k: zs[0].new_empty((2,)))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, t, lam, ctx.law, ctx.shape = inputs
    ctx.save_for_backward(z, t, lam)


def _gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    z, t, lam = ctx.saved_tensors
    dz, sums = _prox_backward(g, z, t, lam, ctx.law, ctx.shape)
    return dz, sums[0].reshape(t.shape), sums[1].reshape(lam.shape), None, None


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    g, z, t, lam, ctx.law, ctx.shape = inputs
    ctx.save_for_backward(g, z, t, lam)


def _second(ctx: Any, gdz: Tensor, gsums: Tensor) -> tuple[Any, ...]:
    """The derivative of the derivative, in plain torch: that of the definition's."""
    g, z, t, lam = ctx.saved_tensors

    def prox(z: Tensor, t: Tensor, lam: Tensor) -> Tensor:
        return definition.prox_pairs(z, ctx.law, t, lam, shape=ctx.shape)

    def first(g: Tensor, *at: Tensor) -> Any:
        return torch.func.vjp(prox, *at)[1](g)

    pull: Any = torch.func.vjp(first, g, z, t.reshape(()), lam.reshape(()))[1]
    dg, dz, dt, dlam = pull((gdz, gsums[0], gsums[1]))
    return dg, dz, dt.reshape(t.shape), dlam.reshape(lam.shape), None, None


_prox.differentiable(_setup, _gradient)
_prox_backward.differentiable(_backward_setup, _second)


def _complex(op: str, name: str, value: Any) -> None:
    checks.tensor(op, name, value)
    if value.dtype not in (torch.complex64, torch.complex128):
        raise TypeError(
            f"regkern.{op}: expected `{name}` of dtype complex64 or complex128, got {value.dtype}"
        )


def prox_complex(
    z: Tensor,
    law: Law,
    step: float | Tensor = 1.0,
    lam: float | Tensor = 1.0,
    *,
    shape: float | None = None,
) -> Tensor:
    r"""The proximal operator of a penalty of complex magnitudes, :math:`\sum \varphi(|z_i|)`.

    .. math:: y_i = z_i\, r(|z_i|) / |z_i|

    with the laws :math:`r` of `prox_elementwise`: angles stay, magnitudes shrink. 0 stays 0.

    Parameters
    ----------
    z : Tensor
        complex64 or complex128. Any shape and strides.
    law, step, lam, shape
        As in `prox_elementwise`; ``shape`` is a number.

    Returns
    -------
    Tensor
        Like z, row-major. Differentiable in z, ``step`` and ``lam``, twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: z read, y written.

    References
    ----------
    "Plug-and-play regularization on magnitude with deep priors for 3D near-field MIMO imaging".
    """
    op = "prox_complex"
    _complex(op, "z", z)
    checks.scale(op, "step", step)
    checks.scale(op, "lam", lam)
    number = check_law(op, law, shape, proximal=True)
    pairs = torch.view_as_real(z.resolve_conj())
    t, factor = threshold(pairs, step).reshape(()), threshold(pairs, lam).reshape(())
    y: Tensor = torch.view_as_complex(_prox(pairs, t, factor, law, number))
    return y


def prox_complex_(
    tensors: Tensor | Sequence[Tensor],
    law: Law,
    step: float | Tensor = 1.0,
    lam: float | Tensor = 1.0,
    *,
    shape: float | None = None,
) -> ProxReport:
    """`prox_complex` in place, of all tensors in one call.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        What is overwritten; complex64 and complex128.
    law, step, lam, shape
        As in `prox_complex`.

    Returns
    -------
    ProxReport
        ``zeros``: how many numbers are 0 now. ``norms`` is empty.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd.
    """
    op = "prox_complex_"
    zs = checks.tensor_list(op, "tensors", tensors, _complex)
    for i, z in enumerate(zs):
        if z.is_conj():
            raise ValueError(f"regkern.{op}: expected `tensors[{i}]` not to be a conjugate view")
    checks.scale(op, "step", step)
    checks.scale(op, "lam", lam)
    number = check_law(op, law, shape, proximal=True)
    zeros = None
    with torch.no_grad():
        for group in checks.by_dtype(zs):
            pairs = [torch.view_as_real(zs[i]) for i in group]
            t, factor = (threshold(pairs[0], v).reshape(()) for v in (step, lam))
            count = _prox_(pairs, t, factor, law, number)[0].to(torch.int64)
            zeros = count if zeros is None else zeros + count
    assert zeros is not None
    return ProxReport((), zeros)

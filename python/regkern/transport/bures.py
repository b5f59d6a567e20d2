"""The Bures-Wasserstein distance of covariances, and the Wasserstein distance of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply, once_only

Method = Literal["eigh", "newton_schulz"]
METHODS = ("eigh", "newton_schulz")


def _trace(a: Tensor) -> Tensor:
    return a.diagonal(dim1=-2, dim2=-1).sum(-1)


def _eigen_roots(a: Tensor) -> tuple[Tensor, Tensor]:
    """A^½ and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(a)
    least = values[..., -1:].clamp(min=0) * a.shape[-1] * torch.finfo(a.dtype).eps
    kept = values > least
    root = torch.where(kept, values.clamp(min=0), 0.0).sqrt()
    inverse = torch.where(kept, 1.0 / torch.where(kept, root, 1.0), 0.0)
    # NaN is neither kept nor left out.
    root = torch.where(values.isnan(), values, root)
    return (
        (vectors * root.unsqueeze(-2)) @ vectors.mT,
        (vectors * inverse.unsqueeze(-2)) @ vectors.mT,
    )


def _iterated_roots(a: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """A^½ and A^-½ by the coupled iteration Y ← Y T, Z ← T Z, T = (3 − Z Y) / 2."""
    norm = torch.linalg.matrix_norm(a, keepdim=True)
    safe = torch.where(norm == 0, 1.0, norm)
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
    y, z = a / safe, eye
    for _ in range(steps):
        t = 1.5 * eye - 0.5 * (z @ y)
        y, z = y @ t, t @ z
    # What rounding leaves of asymmetry grows with further steps.
    y, z = 0.5 * (y + y.mT), 0.5 * (z + z.mT)
    zero = norm == 0
    return y * safe.sqrt(), torch.where(zero, 0.0, z / safe.sqrt())


class _Bures(torch.autograd.Function):
    """tr (B^½ A B^½)^½, whose gradients are half the maps between the two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, method: str, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        def roots(c: Tensor) -> tuple[Tensor, Tensor]:
            return _eigen_roots(c) if method == "eigh" else _iterated_roots(c, steps)

        root, inverse = roots(b)
        inner = root @ a @ root
        middle, middle_inverse = roots(0.5 * (inner + inner.mT))
        return _trace(middle), root @ middle_inverse @ root, inverse @ middle @ inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, to_b, to_a = output
        ctx.mark_non_differentiable(to_b, to_a)
        ctx.save_for_backward(*inputs[:2], to_b, to_a)

    @staticmethod
    @once_only("bures_wasserstein")
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Any, ...]:
        _, _, to_b, to_a = ctx.saved_tensors
        half = 0.5 * g[..., None, None]
        return half * to_b, half * to_a, None, None


def _check_pair(op: str, a: object, b: object) -> None:
    for name, value in (("a", a), ("b", b)):
        checks.floating(op, name, value)
        assert isinstance(value, Tensor)
        if value.dim() < 2 or value.shape[-1] != value.shape[-2]:
            raise ValueError(
                f"regkern.{op}: expected `{name}` of shape (..., n, n), got {tuple(value.shape)}"
            )
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    checks.on_device(op, "b", b, a)
    if a.dtype != b.dtype:
        raise TypeError(f"regkern.{op}: expected `b` of a's dtype {a.dtype}, got {b.dtype}")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"regkern.{op}: expected `b` of shape (..., {a.shape[-1]}, {a.shape[-1]}), got "
            f"{tuple(b.shape)}"
        )


def bures_wasserstein(
    a: Tensor,
    b: Tensor,
    tau: float | Tensor = 0.0,
    *,
    method: Method = "eigh",
    steps: int = 20,
) -> Tensor:
    r"""The squared Bures-Wasserstein distance of two covariances.

    .. math::
        \operatorname{tr} A_τ + \operatorname{tr} B_τ - 2 \operatorname{tr} \bigl(B_τ^{1/2} A_τ
        B_τ^{1/2}\bigr)^{1/2}, \qquad A_τ = A + τ I

    with the gradient :math:`I - B_τ^{1/2} (B_τ^{1/2} A_τ B_τ^{1/2})^{-1/2} B_τ^{1/2}` by A, and the
    same with the roles changed by B.

    Parameters
    ----------
    a, b : Tensor
        (..., n, n), symmetric and positive semidefinite; leading dimensions broadcast.
    tau : float or Tensor
        τ ≥ 0. Without it the gradient grows without bounds as a matrix becomes singular; of what is
        singular to rounding the pseudo-inverse is taken.
    method : {"eigh", "newton_schulz"}
        By eigenvalues, or by products of matrices alone.
    steps : int
        Of the iteration of Newton and Schulz. It takes about :math:`\log_{1.5} \sqrt κ + 5` for a
        condition number κ of the inner product.

    Returns
    -------
    Tensor
        (...), float32, or float64 where a is. Differentiable once.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Two square roots of n x n; the backward none.

    References
    ----------
    Bréchet, Papagiannouli, An and Montúfar, "Critical points and convergence analysis of generative
    deep linear networks trained with Bures-Wasserstein loss", ICML 2023.
    """
    op = "bures_wasserstein"
    _check_pair(op, a, b)
    checks.scale(op, "tau", tau)
    checks.one_of(op, "method", method, METHODS)
    checks.at_least(op, "steps", steps, 1)
    wide_a, wide_b = a.to(compute_dtype(a)), b.to(compute_dtype(b))
    with torch.autocast(a.device.type, enabled=False):
        eye = torch.eye(a.shape[-1], dtype=wide_a.dtype, device=a.device)
        shift = tau * eye if isinstance(tau, Tensor) else float(tau) * eye
        wide_a, wide_b = wide_a + shift, wide_b + shift
        batch = torch.broadcast_shapes(a.shape, b.shape)
        inner = function_apply(_Bures, wide_a.expand(batch), wide_b.expand(batch), method, steps)[0]
        distance: Tensor = _trace(wide_a) + _trace(wide_b) - 2.0 * inner
    return distance


def gaussian_wasserstein(
    mean_a: Tensor,
    a: Tensor,
    mean_b: Tensor,
    b: Tensor,
    tau: float | Tensor = 0.0,
    *,
    method: Method = "eigh",
    steps: int = 20,
) -> Tensor:
    r"""The squared 2-Wasserstein distance of two Gaussians.

    .. math:: |m_A - m_B|^2 + BW_τ^2(A, B)

    Parameters
    ----------
    mean_a, mean_b : Tensor
        (..., n).
    a, b, tau, method, steps
        As of :func:`bures_wasserstein`.

    Returns
    -------
    Tensor
        (...), as of :func:`bures_wasserstein`. Of the features of a network it is the Fréchet
        inception distance.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    """
    op = "gaussian_wasserstein"
    _check_pair(op, a, b)
    for name, mean, of in (("mean_a", mean_a, a), ("mean_b", mean_b, b)):
        checks.floating(op, name, mean)
        checks.on_device(op, name, mean, a)
        if mean.dim() < 1 or mean.shape[-1] != of.shape[-1]:
            raise ValueError(
                f"regkern.{op}: expected `{name}` of shape (..., {of.shape[-1]}), got "
                f"{tuple(mean.shape)}"
            )
    kind = compute_dtype(a)
    between = (mean_a.to(kind) - mean_b.to(kind)).square().sum(-1)
    return between + bures_wasserstein(a, b, tau, method=method, steps=steps)


def deep_linear_bures_loss(
    weights: Sequence[Tensor],
    target: Tensor,
    tau: float | Tensor = 0.0,
    *,
    method: Method = "eigh",
    steps: int = 20,
) -> Tensor:
    r"""The loss of a deep linear generator.

    .. math:: BW_τ^2(W W^\top, Σ_0), \qquad W = W_N \cdots W_1

    Parameters
    ----------
    weights : sequence of Tensor
        W_1, …, W_N, each of as many columns as the one before has rows. The rank of W is at most
        the smallest width: τ > 0 keeps the gradient finite where that is below n.
    target : Tensor
        Σ₀, (n, n).
    tau, method, steps
        As of :func:`bures_wasserstein`.

    Returns
    -------
    Tensor
        0-d.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    As of :func:`bures_wasserstein`.
    """
    op = "deep_linear_bures_loss"
    listed = checks.tensor_list(op, "weights", weights)
    product = listed[0]
    for i, w in enumerate(listed):
        if w.dim() != 2 or (i > 0 and w.shape[1] != product.shape[0]):
            rows = product.shape[0] if i > 0 else "any"
            raise ValueError(
                f"regkern.{op}: expected `weights[{i}]` of two dimensions with {rows} columns, got "
                f"{tuple(w.shape)}"
            )
        if i > 0:
            product = w @ product
    return bures_wasserstein(product @ product.mT, target, tau, method=method, steps=steps)

"""The nuclear norm and its prox, through the smaller Gram matrix instead of a full SVD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import function_apply, once_only
from regkern.proximal.penalty import Penalty, ProxReport, threshold


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values, right singular vectors, and which matrices are finite.

    Of X, m x n with m >= n, by XᵀX = V Σ² Vᵀ in float64: the products of float32 numbers are exact
    there, so singular values down to 1e-8 of the largest are right.
    """
    gram = x.mT @ x
    finite = gram.isfinite().all(-1).all(-1)
    # LAPACK raises where it meets a NaN; the answer is NaN.
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    square, v = torch.linalg.eigh(torch.where(finite[..., None, None], gram, eye))
    return square.clamp(min=0.0).sqrt(), v, finite


def _shrunken(sigma: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(σ - t)₊ / σ, and which σ stay."""
    active = ~(sigma <= t[..., None])
    ratio = torch.where(active, 1.0 - t[..., None] / torch.where(active, sigma, 1.0), 0.0)
    return ratio, active


class _Threshold(torch.autograd.Function):
    """Y = U f(Σ) Vᵀ with f(σ) = (σ - t)₊, and its derivative by divided differences of f.

    With M = Uᵀ G V, E⁻ = (f_i - f_j) / (σ_i - σ_j) and E⁺ = (f_i + f_j) / (σ_i + σ_j),

        dX = U (E⁻ ∘ (M + Mᵀ) / 2 + E⁺ ∘ (M - Mᵀ) / 2) Vᵀ + (G V - U M) diag(f / σ) Vᵀ,
        dt = -⟨G, U₊ V₊ᵀ⟩  over the σ that stay.

    Equal singular values have no 0/0 here: E⁻ is 1 between two that stay.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma, v, finite = _spectrum(x)
        ratio, _ = _shrunken(sigma, t)
        y = ((x @ v) * ratio[..., None, :]) @ v.mT
        y = torch.where(finite[..., None, None], y, torch.nan)
        # The identity, bit for bit.
        y = torch.where((t == 0)[..., None, None], x, y)
        return y, sigma, v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, t = inputs
        _, sigma, v = output
        ctx.mark_non_differentiable(sigma, v)
        ctx.save_for_backward(x, t, sigma, v)

    @staticmethod
    @once_only("singular_value_threshold")
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        x, t, sigma, v = ctx.saved_tensors
        ratio, active = _shrunken(sigma, t)
        f = ratio * sigma
        # A σ that is nothing but rounding has no left vector; it does not stay, and what it would
        # couple to goes through the last term.
        least = 1e-14 * x.shape[-2] * sigma[..., -1:]
        inverse = torch.where(sigma > least, 1.0 / sigma, 0.0)
        u = (x @ v) * inverse[..., None, :]
        gv = g @ v
        m = u.mT @ gv
        si, sj = sigma[..., :, None], sigma[..., None, :]
        ai, aj = active[..., :, None], active[..., None, :]
        fi, fj = f[..., :, None], f[..., None, :]
        both, one = ai & aj, ai ^ aj
        minus = torch.where(one, (fi - fj) / torch.where(one, si - sj, 1.0), both.to(x.dtype))
        some = both | one
        plus = torch.where(some, (fi + fj) / torch.where(some, si + sj, 1.0), 0.0)
        core = (minus * (m + m.mT) + plus * (m - m.mT)) / 2
        dx = (u @ core + (gv - u @ m) * ratio[..., None, :]) @ v.mT
        dx = torch.where((t == 0)[..., None, None], g, dx)
        dt = -(m.diagonal(dim1=-2, dim2=-1) * active).sum(-1)
        return dx, dt


class _NuclearNorm(torch.autograd.Function):
    """Σ σ, with gradient U Vᵀ over the σ above rounding: 0 for a zero matrix."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma, v, finite = _spectrum(x)
        return torch.where(finite, sigma.sum(-1), torch.nan), sigma, v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output[1:])

    @staticmethod
    @once_only("nuclear_norm")
    def backward(ctx: Any, g: Tensor, *_: Any) -> Tensor:
        x, sigma, v = ctx.saved_tensors
        inverse = torch.where(sigma > 1e-7 * sigma[..., -1:], 1.0 / sigma, 0.0)
        polar: Tensor = ((x @ v) * inverse[..., None, :]) @ v.mT
        return g[..., None, None] * polar


def _matrix(op: str, x: Tensor) -> Tensor:
    checks.floating(op, "x", x)
    if x.dim() < 2:
        raise ValueError(
            f"regkern.{op}: expected `x` of at least 2 dimensions, got {tuple(x.shape)}"
        )
    return x.double()


def nuclear_norm(x: Tensor) -> Tensor:
    r"""The sum of singular values.

    .. math::
        \lVert X \rVert_* = \sum_i \sigma_i(X)

    Parameters
    ----------
    x : Tensor
        (..., m, n), float32, float64, bfloat16 or float16.

    Returns
    -------
    Tensor
        (...), of x's dtype. Its gradient is U Vᵀ over the singular values above 1e-7 of the
        largest; a zero matrix has gradient 0.

    Raises
    ------
    TypeError, ValueError
        Where x is not as said above. A second derivative is refused.

    Notes
    -----
    Through the eigenvalues of the smaller Gram matrix, in float64. With k = min(m, n): 2 m n k
    operations for the Gram matrix, and an eigendecomposition of k x k.
    """
    wide = _matrix("nuclear_norm", x)
    if x.numel() == 0:
        return x.sum((-2, -1))
    value: Tensor = function_apply(_NuclearNorm, wide.mT if x.shape[-2] < x.shape[-1] else wide)[0]
    return value.to(x.dtype)


def singular_value_threshold(x: Tensor, threshold: float | Tensor) -> Tensor:
    r"""Soft thresholding of singular values: the prox of the nuclear norm.

    .. math::
        \operatorname{prox}_{t \lVert\cdot\rVert_*}(X) = U (\Sigma - t)_+ V^\top

    Parameters
    ----------
    x : Tensor
        (..., m, n), float32, float64, bfloat16 or float16.
    threshold : float or Tensor
        t >= 0: a number, or a tensor of shape (...). 0 is the identity bit for bit.

    Returns
    -------
    Tensor
        Like x. Differentiable in x and the threshold, ties of singular values included; a second
        derivative is refused. A matrix with a NaN or an infinity becomes NaN.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    No SVD: X V diag((σ - t)₊ / σ) Vᵀ with V and σ² from the smaller Gram matrix, in float64. With
    k = min(m, n), 6 m n k operations and an eigendecomposition of k x k.

    References
    ----------
    Cai, Candès and Shen, "A singular value thresholding algorithm for matrix completion", SIAM
    Journal on Optimization, 2010.
    """
    return _threshold("singular_value_threshold", x, threshold)[0]


def _threshold(op: str, x: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """The matrix, and its singular values after thresholding."""
    wide = _matrix(op, x)
    if isinstance(threshold, Tensor):
        if threshold.shape != x.shape[:-2] and threshold.dim() > 0:
            raise ValueError(
                f"regkern.{op}: expected `threshold` of shape {tuple(x.shape[:-2])}, got "
                f"{tuple(threshold.shape)}"
            )
        t = threshold.to(device=x.device, dtype=torch.float64).expand(x.shape[:-2])
    else:
        checks.scale(op, "threshold", threshold)
        t = torch.full(x.shape[:-2], threshold, dtype=torch.float64, device=x.device)
    if x.numel() == 0:
        return x.clone(), wide.new_zeros((*x.shape[:-2], 0))
    if x.shape[-2] < x.shape[-1]:
        y, sigma, _ = function_apply(_Threshold, wide.mT, t)
        y = y.mT
    else:
        y, sigma, _ = function_apply(_Threshold, wide, t)
    return y.to(x.dtype), (sigma - t[..., None]).clamp(min=0.0)


class NuclearNorm(Penalty):
    r"""Low rank: :math:`\lambda \sum_i \sigma_i(W)` for every matrix.

    Tensors of more than two dimensions count as matrices of their first dimension by all others, as
    convolution kernels do; vectors have their l2 norm as the only singular value.

    Parameters
    ----------
    lam : float or Tensor
        λ.

    Notes
    -----
    `prox_` reports the singular values that are left as norms, and how many are zero.
    """

    def _matrices(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1) if x.dim() != 1 else x.reshape(1, -1)

    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        tensors = checks.tensor_list("NuclearNorm", "x", x)
        total = sum(nuclear_norm(self._matrices(t)) for t in tensors)
        assert isinstance(total, Tensor)
        return total * self.lam

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        t = threshold(x, step, self.lam)
        return singular_value_threshold(self._matrices(x), t).reshape(x.shape)

    @torch.no_grad()
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        listed = checks.tensor_list("NuclearNorm", "tensors", tensors)
        checks.scale("NuclearNorm", "step", step)
        norms = []
        for x in listed:
            t = threshold(x, step, self.lam)
            y, left = _threshold("NuclearNorm", self._matrices(x), t)
            x.copy_(y.reshape(x.shape))
            norms.append(left.to(x.dtype))
        zeros = torch.zeros((), dtype=torch.int64, device=listed[0].device)
        for left in norms:
            zeros = zeros + (left == 0).sum()
        return ProxReport(tuple(norms), zeros)

"""Isotonic regression, projections onto the permutahedron, and spectral risk measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register
from regkern.proximal.projections import Lines, along, check_dim
from regkern.proximal.total_variation import segment_mean_op

# ---- raw op: fake kernel and autograd ----


def _fake_isotonic(
    x: Tensor,
    slices: Sequence[int],
    weights: Tensor | None = None,
    increasing: bool = True,
    entropic: bool = False,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape, dtype=torch.int8)


_isotonic = register("isotonic", _fake_isotonic)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.slices, weights, _, ctx.entropic = inputs
    y, jump = output
    ctx.mark_non_differentiable(jump)
    ctx.save_for_backward(x, y, jump, weights)


def _backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    x, y, jump, weights = ctx.saved_tensors
    wide = compute_dtype(x)

    def mean(a: Tensor) -> Tensor:
        pooled: Tensor = segment_mean_op(a.to(wide), jump, ctx.slices)
        return pooled

    dx, dw = mean(g), None
    if ctx.entropic:
        # A pool has the value log Σ eˣ − log Σ w: shares of it belong to its elements.
        pooled, share = dx, (x.to(wide) - y.to(wide)).exp()
        dx = pooled * share / mean(share)
        if weights is not None:
            batch, size, count, _ = ctx.slices
            logs = weights.to(wide).reshape(batch, size, count)
            share = (logs - logs.detach().amax(1, keepdim=True)).exp().reshape(x.shape)
            total = mean(share)
            dw = (-pooled * share / torch.where(total > 0, total, 1.0)).to(weights.dtype)
    elif weights is not None:
        w = weights.to(wide)
        pooled = dx / mean(w)
        dx, dw = w * pooled, ((x.to(wide) - y.to(wide)) * pooled).to(weights.dtype)
    return dx.to(x.dtype), None, dw, None, None


_isotonic.differentiable(_setup, _backward)


# ---- isotonic regression ----


def isotonic_regression(
    x: Tensor, weights: Tensor | None = None, dim: int = -1, increasing: bool = True
) -> Tensor:
    r"""The nearest monotone line.

    .. math::
        y = \arg\min_{y_1 \le y_2 \le \dots \le y_n} \sum_i w_i (y_i - x_i)^2

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    weights : Tensor, optional
        :math:`w > 0`, like x. Differentiable.
    dim : int
        The lines are along this dimension.
    increasing : bool
        False: non-increasing.

    Returns
    -------
    Tensor
        Like x. A line is NaN where an element or a weight is not finite.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, weights of another shape.

    Notes
    -----
    Pools of adjacent violators, in linear time and in double. A thread has a line. Backward: means
    of g over the pools; twice differentiable.

    References
    ----------
    M. Best and N. Chakravarti, "Active set algorithms for isotonic regression", Mathematical
    Programming 47, 1990.
    """
    op = "isotonic_regression"
    dim = check_dim(op, x, dim)
    if weights is not None:
        checks.same(op, "weights", weights, x)
    lines = Lines(x, dim)
    w = None if weights is None else lines.like(weights)
    y: Tensor = _isotonic(lines.x, lines.slices, w, increasing)[0]
    return lines.back(y)


def permutahedron_projection(x: Tensor, w: Tensor, dim: int = -1) -> Tensor:
    r"""The nearest point of the permutahedron: of the convex hull of the permutations of w.

    .. math::
        y = \arg\min_{y \in \operatorname{conv}\{(w_{\pi_1}, …, w_{\pi_n})\}} \lVert y - x \rVert^2

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    w : Tensor
        The vertex, in any order: like x, or of one dimension, the size of ``dim``.
    dim : int
        The lines are along this dimension.

    Returns
    -------
    Tensor
        Like x. Differentiable in x and w, twice.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, a w of another shape.

    Notes
    -----
    `torch.sort` of x and of w, and an isotonic regression of their difference.

    References
    ----------
    M. Blondel, O. Teboul, Q. Berthet and J. Djolonga, "Fast differentiable sorting and ranking",
    ICML 2020.
    """
    op = "permutahedron_projection"
    dim = check_dim(op, x, dim)
    checks.on_device(op, "w", w, x)
    if w.dim() == 1 and w.shape[0] == x.shape[dim]:
        shape = [1] * x.dim()
        shape[dim] = -1
        w = w.reshape(shape).expand(x.shape)
    if w.shape != x.shape:
        raise ValueError(
            f"regkern.{op}: expected `w` of shape {tuple(x.shape)} or ({x.shape[dim]},), got "
            f"{tuple(w.shape)}"
        )
    wide = compute_dtype(x)
    ordered, order = torch.sort(x.to(wide), dim=dim, descending=True)
    vertex = torch.sort(w.to(wide), dim=dim, descending=True).values
    lines = Lines(ordered - vertex, dim)
    dual = lines.back(_isotonic(lines.x, lines.slices, None, False)[0])
    return torch.zeros_like(ordered).scatter(dim, order, ordered - dual).to(x.dtype)


def _regularization(op: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"regkern.{op}: expected `regularization` to be a number, got {value!r}")
    if not 0.0 < value < math.inf:
        raise ValueError(
            f"regkern.{op}: expected `regularization` to be positive and finite, got {value}"
        )


def soft_rank(x: Tensor, regularization: float = 1.0, dim: int = -1) -> Tensor:
    r"""Differentiable ranks, 1 for the smallest element.

    .. math::
        r = P_{\text{permutahedron}(1, …, n)}(x / \varepsilon)

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    regularization : float
        :math:`\varepsilon > 0`. Small ones give the ranks themselves, large ones their mean.
    dim : int
        Ranks are along this dimension.

    Returns
    -------
    Tensor
        Like x.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, an ε out of range.

    Notes
    -----
    See `permutahedron_projection`.

    References
    ----------
    M. Blondel, O. Teboul, Q. Berthet and J. Djolonga, "Fast differentiable sorting and ranking",
    ICML 2020.
    """
    op = "soft_rank"
    axis = check_dim(op, x, dim)
    _regularization(op, regularization)
    wide = compute_dtype(x)
    ranks = torch.arange(1, x.shape[axis] + 1, dtype=wide, device=x.device)
    return permutahedron_projection(x.to(wide) / regularization, ranks, axis).to(x.dtype)


def soft_sort(
    x: Tensor, regularization: float = 1.0, dim: int = -1, descending: bool = False
) -> Tensor:
    r"""Differentiable sorting: the elements in order, smoothed.

    .. math::
        y = P_{\text{permutahedron}(x)}\big((1, …, n) / \varepsilon\big)

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    regularization : float
        :math:`\varepsilon > 0`. Small ones give `torch.sort`, large ones the mean.
    dim : int
        The lines are along this dimension.
    descending : bool
        The largest first.

    Returns
    -------
    Tensor
        Like x.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, a dimension that x does not have, an ε out of range.

    Notes
    -----
    See `permutahedron_projection`.

    References
    ----------
    M. Blondel, O. Teboul, Q. Berthet and J. Djolonga, "Fast differentiable sorting and ranking",
    ICML 2020.
    """
    op = "soft_sort"
    axis = check_dim(op, x, dim)
    _regularization(op, regularization)
    wide = compute_dtype(x)
    n = x.shape[axis]
    places = torch.arange(1, n + 1, dtype=wide, device=x.device)
    places = places.flip(0) if descending else places
    shape = [1] * x.dim()
    shape[axis] = -1
    target = (places / regularization).reshape(shape).expand(x.shape)
    return permutahedron_projection(target, x.to(wide), axis).to(x.dtype)


# ---- spectral risk measures ----

RiskPenalty = Literal["chi2", "kl"]


def _unit(op: str, n: int, name: str, value: float, low: float, high: float) -> None:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"regkern.{op}: expected `n` to be an int, got {n!r}")
    checks.at_least(op, "n", n, 1)
    if not low < value <= high:
        raise ValueError(f"regkern.{op}: expected `{name}` in ({low:g}, {high:g}], got {value}")


def cvar_spectrum(n: int, alpha: float = 0.5) -> Tensor:
    r"""The spectrum of the conditional value at risk (superquantile, average top-k).

    .. math::
        \sigma_i = \int_{(i-1)/n}^{i/n} \frac{1}{\alpha} [u > 1 - \alpha] \, du

    Parameters
    ----------
    n : int
        Number of losses.
    alpha : float
        The share of the largest losses that counts, in (0, 1].

    Returns
    -------
    Tensor
        float64 (n,), non-decreasing, of sum 1.

    Raises
    ------
    TypeError, ValueError
        For an n or an alpha out of range.

    Notes
    -----
    ``alpha = k / n`` is the average of the k largest.
    """
    _unit("cvar_spectrum", n, "alpha", alpha, 0.0, 1.0)
    edges = torch.arange(n + 1, dtype=torch.float64) / n
    return ((edges - (1.0 - alpha)).clamp(min=0) / alpha).diff()


def extremile_spectrum(n: int, r: float = 2.0) -> Tensor:
    r"""The spectrum of the extremile: the expected maximum of r losses.

    .. math::
        \sigma_i = (i / n)^r - ((i - 1) / n)^r

    Parameters
    ----------
    n : int
        Number of losses.
    r : float
        At least 1; 1 is the mean.

    Returns
    -------
    Tensor
        float64 (n,), non-decreasing, of sum 1.

    Raises
    ------
    TypeError, ValueError
        For an n or an r out of range.

    Notes
    -----
    Daouia, Gijbels and Stupfler, "Extremiles", JASA 2019.
    """
    _unit("extremile_spectrum", n, "r", 1.0 / r if r >= 1 else 0.0, 0.0, 1.0)
    return (torch.arange(n + 1, dtype=torch.float64) / n).pow(r).diff()


def exponential_spectrum(n: int, r: float = 1.0) -> Tensor:
    r"""The spectrum of the exponential spectral risk measure.

    .. math::
        \sigma_i = \frac{e^{r i / n} - e^{r (i - 1) / n}}{e^r - 1}

    Parameters
    ----------
    n : int
        Number of losses.
    r : float
        Positive.

    Returns
    -------
    Tensor
        float64 (n,), non-decreasing, of sum 1.

    Raises
    ------
    TypeError, ValueError
        For an n or an r out of range.

    Notes
    -----
    Acerbi, "Spectral measures of risk", Journal of Banking and Finance 2002.
    """
    _unit("exponential_spectrum", n, "r", r, 0.0, 700.0)
    edges = torch.arange(n + 1, dtype=torch.float64) / n
    return torch.expm1(edges * r).diff() / math.expm1(r)


def spectral_risk_weights(
    losses: Tensor, spectrum: Tensor, penalty: RiskPenalty = "chi2", nu: float = 1.0
) -> Tensor:
    r"""The weights of the losses in a spectral risk measure, smoothed by a divergence.

    .. math::
        q = \arg\max_{q \in P(\sigma)} \langle q, \ell \rangle - \nu D(q), \qquad
        D_{\chi^2}(q) = n \lVert q - \tfrac{1}{n} \rVert^2, \quad
        D_{KL}(q) = \sum_i q_i \log(n q_i)

    over the permutahedron of the spectrum σ.

    Parameters
    ----------
    losses : Tensor
        (n,), float32, float64, bfloat16 or float16.
    spectrum : Tensor
        (n,), non-decreasing, of sum 1; see `cvar_spectrum` and others.
    penalty : {"chi2", "kl"}
    nu : float
        At least 0; 0 gives the spectrum itself, in the order of the losses.

    Returns
    -------
    Tensor
        (n,) in the compute type. Differentiable in the losses: the Jacobian of chi2 is
        :math:`(I - M) / (2 n \nu)` with M the means over pools.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A sort and a pooling of adjacent violators: O(n log n).

    References
    ----------
    R. Mehta, V. Roulet, K. Pillutla and Z. Harchaoui, "Distributionally robust optimization with
    bias and variance reduction", ICLR 2024.
    """
    op = "spectral_risk_weights"
    checks.floating(op, "losses", losses)
    checks.one_of(op, "penalty", penalty, ("chi2", "kl"))
    checks.at_least(op, "nu", nu, 0.0)
    if losses.dim() != 1:
        raise ValueError(
            f"regkern.{op}: expected `losses` of one dimension, got {tuple(losses.shape)}"
        )
    checks.on_device(op, "spectrum", spectrum, losses)
    if spectrum.shape != losses.shape:
        raise ValueError(
            f"regkern.{op}: expected `spectrum` of shape {tuple(losses.shape)}, got "
            f"{tuple(spectrum.shape)}"
        )
    wide = compute_dtype(losses)
    n = losses.shape[0]
    sigma = spectrum.to(wide)
    ordered, order = torch.sort(losses.to(wide))
    if nu == 0:
        sorted_weights = sigma
    elif penalty == "chi2":
        z = ordered / (2.0 * n * nu) + 1.0 / n
        dual = _isotonic(z - sigma, along(z.shape, 0), None, True)[0]
        sorted_weights = z - dual
    else:
        z = ordered / nu
        dual = _isotonic(z, along(z.shape, 0), sigma.log(), True, True)[0]
        sorted_weights = (z - dual).exp()
    return torch.zeros_like(ordered).scatter(0, order, sorted_weights)


def spectral_risk(
    losses: Tensor, spectrum: Tensor, penalty: RiskPenalty = "chi2", nu: float = 1.0
) -> Tensor:
    r"""A spectral risk measure of a batch of losses: the mean with more weight on the large ones.

    .. math::
        R(\ell) = \max_{q \in P(\sigma)} \langle q, \ell \rangle - \nu D(q), \qquad
        \nabla R = q

    Parameters
    ----------
    losses : Tensor
        (n,), float32, float64, bfloat16 or float16.
    spectrum : Tensor
        (n,), non-decreasing, of sum 1; see `cvar_spectrum`, `extremile_spectrum` and
        `exponential_spectrum`.
    penalty : {"chi2", "kl"}
        The divergence from equal weights, see `spectral_risk_weights`.
    nu : float
        At least 0; 0 is the risk measure itself, which is not smooth.

    Returns
    -------
    Tensor
        0-d, of the losses' dtype. Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    O(n log n) in the number of losses.

    References
    ----------
    R. Mehta, V. Roulet, K. Pillutla and Z. Harchaoui, "Distributionally robust optimization with
    bias and variance reduction", ICLR 2024.
    """
    q = spectral_risk_weights(losses, spectrum, penalty, nu)
    n = losses.shape[0]
    value = (q * losses.to(q.dtype)).sum()
    if nu != 0 and penalty == "chi2":
        value = value - nu * n * ((q - 1.0 / n) ** 2).sum()
    elif nu != 0:
        positive = torch.where(q > 0, q, 1.0)
        value = value - nu * (q * (n * positive).log()).sum()
    return value.to(losses.dtype)

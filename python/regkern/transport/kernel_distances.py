"""Distances of measures by kernels: maximum mean discrepancy, energy distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, once_only, register

Kernel = Literal["gaussian", "laplacian", "energy", "imq", "rational"]
KERNELS = ("gaussian", "laplacian", "energy", "imq", "rational")
MOST_SCALES = 32

# ---- raw ops: fake kernels and autograd ----


def _fake_sums(
    x: Tensor, y: Tensor, w: Tensor, scale: Tensor, kernel: str, skip_diagonal: bool
) -> Tensor:
    return x.new_empty(x.shape[:2])


_sums = register("kernel_sums", _fake_sums)
_forces = register("kernel_forces", lambda x, y, w, scale, kernel: x.new_empty(x.shape))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, w, scale, ctx.kernel, ctx.skip_diagonal = inputs
    ctx.save_for_backward(x, y, w, scale)


def _scaled(forces: Tensor, weights: Tensor) -> Tensor:
    """A point that has no weight has gradient 0, wherever it is."""
    weights = weights.unsqueeze(-1)
    return torch.where(weights == 0, 0.0, weights * forces)


@once_only("kernel_sums")
def _backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, y, w, scale = ctx.saved_tensors
    dx = dy = dw = None
    if ctx.needs_input_grad[0]:
        dx = _scaled(_forces(x, y, w, scale, ctx.kernel), g)
    if ctx.needs_input_grad[1]:
        dy = _scaled(_forces(y, x, g, scale, ctx.kernel), w)
    if ctx.needs_input_grad[2]:
        dw = _sums(y, x, g, scale, ctx.kernel, ctx.skip_diagonal)
    return dx, dy, dw, None, None, None


_sums.differentiable(_setup, _backward)


# ---- arguments ----


def _points(op: str, name: str, value: object) -> Tensor:
    checks.floating(op, name, value)
    assert isinstance(value, Tensor)
    if value.dim() < 2:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of shape (..., points, size), got "
            f"{tuple(value.shape)}"
        )
    return value


def _weights(op: str, name: str, value: Tensor | None, points: Tensor) -> Tensor:
    if value is None:
        n = points.shape[-2]
        return points.new_full(points.shape[:-1], 1.0 / max(n, 1), dtype=compute_dtype(points))
    checks.floating(op, name, value)
    checks.on_device(op, name, value, points)
    if value.shape != points.shape[:-1]:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of shape {tuple(points.shape[:-1])}, got "
            f"{tuple(value.shape)}"
        )
    return value.to(compute_dtype(points))


def _scale(op: str, name: str, value: float | Tensor | Sequence[float], like: Tensor) -> Tensor:
    """Numbers above zero as a float64 vector on the device."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(
                f"regkern.{op}: expected `{name}` without a gradient, got one that requires it"
            )
        scale = value.to(device=like.device, dtype=torch.float64).reshape(-1)
    else:
        numbers = list(value) if isinstance(value, Sequence) else [value]
        for number in numbers:
            checks.scale(op, name, number)
            if not number > 0:
                raise ValueError(f"regkern.{op}: expected `{name}` above 0, got {value}")
        filled = [torch.full((1,), s, dtype=torch.float64, device=like.device) for s in numbers]
        scale = torch.cat(filled) if filled else like.new_empty((0,), dtype=torch.float64)
    if not 1 <= scale.numel() <= MOST_SCALES:
        raise ValueError(
            f"regkern.{op}: expected 1 to {MOST_SCALES} numbers in `{name}`, got {scale.numel()}"
        )
    return scale


class _Clouds:
    """Two weighted clouds of points as what the ops take: (batch, points, size), computed."""

    def __init__(
        self, op: str, x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None
    ) -> None:
        _points(op, "x", x)
        _points(op, "y", y)
        checks.on_device(op, "y", y, x)
        if y.dtype != x.dtype:
            raise TypeError(f"regkern.{op}: expected `y` of x's dtype {x.dtype}, got {y.dtype}")
        if y.shape[:-2] != x.shape[:-2] or y.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"regkern.{op}: expected `y` of shape {(*x.shape[:-2], 'm', x.shape[-1])}, got "
                f"{tuple(y.shape)}"
            )
        self.batch = x.shape[:-2]
        self.a = self._flat(_weights(op, "a", a, x), 1)
        self.b = self._flat(_weights(op, "b", b, y), 1)
        self.x = self._flat(x.to(compute_dtype(x)), 2)
        self.y = self._flat(y.to(compute_dtype(y)), 2)

    @staticmethod
    def _flat(t: Tensor, kept: int) -> Tensor:
        if t.dim() == kept:
            return t.unsqueeze(0)
        return t.flatten(0, -kept - 1) if t.dim() > kept + 1 else t

    def of_batch(self, value: Tensor) -> Tensor:
        return value.reshape(self.batch)


def _total(p: Tensor, sums: Tensor) -> Tensor:
    """Σ p S in float64; a weight of zero counts nothing, whatever stands beside it."""
    return torch.where(p == 0, 0.0, p * sums).sum(-1, dtype=torch.float64)


def _own(x: Tensor, a: Tensor, scale: Tensor, kernel: str, skip_diagonal: bool) -> Tensor:
    """Σ_ij a_i a_j k(x_i, x_j). It is symmetric: half of it, differentiated on one side alone, has
    the whole gradient in one pass instead of two."""
    sums = _sums(x, x.detach(), a.detach(), scale, kernel, skip_diagonal)
    half = _total(a, sums)
    return 2.0 * half - half.detach()


def _between(clouds: _Clouds, scale: Tensor, kernel: str) -> Tensor:
    sums = _sums(clouds.x, clouds.y, clouds.b, scale, kernel, False)
    return _total(clouds.a, sums)


def _distance(clouds: _Clouds, scale: Tensor, kernel: str, unbiased: bool) -> Tensor:
    a, b = clouds.a, clouds.b
    own_x = _own(clouds.x, a, scale, kernel, unbiased)
    own_y = _own(clouds.y, b, scale, kernel, unbiased)
    between = _between(clouds, scale, kernel)
    if unbiased:
        p, q = a.double(), b.double()
        own_x = own_x / (p.sum(-1).square() - p.square().sum(-1))
        own_y = own_y / (q.sum(-1).square() - q.square().sum(-1))
        between = between / (p.sum(-1) * q.sum(-1))
    return clouds.of_batch((own_x + own_y - 2.0 * between).to(clouds.x.dtype))


# ---- public functions ----


def mmd(
    x: Tensor,
    y: Tensor,
    kernel: Kernel = "gaussian",
    bandwidth: float | Tensor | Sequence[float] = 1.0,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    unbiased: bool = False,
) -> Tensor:
    r"""The squared maximum mean discrepancy of two clouds of points.

    .. math::
        \sum_{ij} a_i a_j k(x_i, x_j) + \sum_{ij} b_i b_j k(y_i, y_j) - 2 \sum_{ij} a_i b_j k(x_i,
        y_j), \qquad k = \sum_s k_s

    ============== ================================================
    kernel         :math:`k_s`
    ============== ================================================
    ``gaussian``   :math:`\exp(-|x - y|^2 / 2 s^2)`
    ``laplacian``  :math:`\exp(-|x - y| / s)`
    ``energy``     :math:`-|x - y|`, whatever s
    ``imq``        :math:`s / (s + |x - y|^2)`
    ``rational``   :math:`(1 + |x - y|^2 / 2 s)^{-s}`
    ============== ================================================

    Parameters
    ----------
    x, y : Tensor
        (..., n, d) and (..., m, d): float32, float64, bfloat16 or float16.
    kernel : str
        As above.
    bandwidth : float, Tensor or sequence of float
        s, or up to 32 of them, whose kernels are added in the same pass. Not differentiated.
    a, b : Tensor, optional
        Weights, (..., n) and (..., m). Default: 1/n and 1/m. A point of weight zero is not there,
        whatever it is, and has gradient 0.
    unbiased : bool
        The U-statistic: no pair of a point with itself, sums of x and of y divided by
        :math:`(\sum a)^2 - \sum a^2`, which is 1 − 1/n without weights, and the mixed one by
        :math:`\sum a \sum b`. It may be negative.

    Returns
    -------
    Tensor
        (...), float32, or float64 where x is. Differentiable in points and weights, once. At
        x = y the kernels with a kink there have slope 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    O((n + m) d) memory: no matrix of pairs, forward or backward; three passes over pairs forward
    and four backward. Distances are sums of squared differences: equal points are at 0, and an
    offset of all points changes nothing but their own rounding.

    References
    ----------
    Gretton et al., "A kernel two-sample test", JMLR 2012.
    """
    op = "mmd"
    checks.one_of(op, "kernel", kernel, KERNELS)
    clouds = _Clouds(op, x, y, a, b)
    return _distance(clouds, _scale(op, "bandwidth", bandwidth, x), kernel, unbiased)


def energy_distance(
    x: Tensor,
    y: Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    unbiased: bool = False,
) -> Tensor:
    r"""Székely and Rizzo's energy distance, :math:`2 E|X - Y| - E|X - X'| - E|Y - Y'|`.

    It is :func:`mmd` with the ``energy`` kernel, which see for the arguments.

    References
    ----------
    Székely and Rizzo, "Energy statistics: a class of statistics based on distances", 2013.
    """
    clouds = _Clouds("energy_distance", x, y, a, b)
    return _distance(clouds, _scale("energy_distance", "", 1.0, x), "energy", unbiased)


def kernel_loss(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    kernel: Literal["gaussian", "laplacian", "energy"] = "gaussian",
    blur: float | Tensor = 0.05,
) -> Tensor:
    r"""GeomLoss's kernel norms.

    .. math:: \tfrac{1}{2} \sum_{ij} (a - b)_i \, k(z_i, z_j) \, (a - b)_j

    over the points z of both clouds: half of :func:`mmd`. ``gaussian`` and ``laplacian`` have
    ``blur`` as their length, ``energy`` has none.

    Parameters
    ----------
    x, y, a, b
        As of :func:`mmd`.
    kernel : {"gaussian", "laplacian", "energy"}
        As of :func:`mmd`.
    blur : float or Tensor
        The length.

    Returns
    -------
    Tensor
        (...), float32, or float64 where x is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn divergences",
    AISTATS 2019.
    """
    op = "kernel_loss"
    checks.one_of(op, "kernel", kernel, KERNELS[:3])
    clouds = _Clouds(op, x, y, a, b)
    return 0.5 * _distance(clouds, _scale(op, "blur", blur, x), kernel, False)


#: The multiples of 2 d σ² that WAE-MMD's inverse multiquadratics are summed over.
WAE_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def wae_mmd(
    codes: Tensor,
    prior: Tensor,
    std: float = 1.0,
    scales: Sequence[float] = WAE_SCALES,
) -> Tensor:
    r"""The latent penalty of a Wasserstein auto-encoder: unbiased :func:`mmd` with inverse
    multiquadratics.

    .. math:: k(z, z') = \sum_s \frac{C_s}{C_s + |z - z'|^2}, \qquad C_s = 2 s d \sigma^2

    Parameters
    ----------
    codes, prior : Tensor
        (..., n, d) and (..., m, d): what the encoder gives, and samples of the prior; at least two
        of each.
    std : float
        σ of the prior.
    scales : sequence of float
        s.

    Returns
    -------
    Tensor
        (...), to be multiplied with the penalty's weight (10 for MNIST, 100 for CelebA).

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Tolstikhin, Bousquet, Gelly and Schölkopf, "Wasserstein auto-encoders", ICLR 2018.
    """
    op = "wae_mmd"
    checks.scale(op, "std", std)
    clouds = _Clouds(op, codes, prior, None, None)
    size = codes.shape[-1]
    constants = [2.0 * s * size * std * std for s in scales]
    return _distance(clouds, _scale(op, "scales", constants, codes), "imq", True)

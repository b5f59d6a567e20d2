"""Spectral normalization as a parametrization, in the place of torch's."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regkern.spectral.normalize import _resolve_cap, spectral_normalize
from regkern.spectral.power import check_iterations, columns_of, iterate

M = TypeVar("M", bound=nn.Module)

#: Power iterations on a new weight.
FIRST_ITERATIONS = 15

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class SpectralNorm(nn.Module):
    """The parametrization that :func:`spectral_norm` registers: W ↦ W / σ.

    Parameters
    ----------
    weight : Tensor
        The weight to begin with.
    n_power_iterations : int
        Iterations at every access in training mode.
    dim : int
        The dimension of rows.
    eps : float
        The least norm that a vector is divided by.
    cap : float, optional
        Divide by max(1, σ / cap) instead.
    """

    _u: Tensor
    _v: Tensor

    def __init__(
        self,
        weight: Tensor,
        n_power_iterations: int = 1,
        dim: int = 0,
        eps: float = 1e-12,
        cap: float | None = None,
    ) -> None:
        super().__init__()
        ndim = weight.dim()
        if not -ndim <= dim < ndim:
            raise IndexError(
                f"regkern.spectral_norm: expected `dim` in [{-ndim}, {ndim - 1}], got {dim}"
            )
        check_iterations("spectral_norm", "n_power_iterations", n_power_iterations, 1)
        _resolve_cap("spectral_norm", cap)
        self.dim = dim % ndim
        self.n_power_iterations = n_power_iterations
        self.eps = eps
        self.cap = cap
        if ndim > 1:
            u = weight.detach().new_empty(weight.shape[self.dim]).normal_(0, 1)
            v = weight.detach().new_empty(columns_of(weight, self.dim)).normal_(0, 1)
            self.register_buffer("_u", F.normalize(u, dim=0, eps=_floor(u, eps)))
            self.register_buffer("_v", F.normalize(v, dim=0, eps=_floor(v, eps)))
            iterate(
                [weight], [self._u], [self._v], [self.dim], FIRST_ITERATIONS, None, 0.0, True, False
            )

    def forward(self, weight: Tensor) -> Tensor:
        if weight.dim() == 1:
            # σ of a vector is its norm.
            if self.cap is None:
                return F.normalize(weight, dim=0, eps=_floor(weight, self.eps))
            norm = torch.linalg.vector_norm(weight)
            capped: Tensor = weight / (norm / self.cap).clamp_min(1.0)
            return capped
        return spectral_normalize(
            weight,
            self._u,
            self._v,
            n_iter=self.n_power_iterations if self.training else 0,
            cap=self.cap,
            dim=self.dim,
        )

    def right_inverse(self, value: Tensor) -> Tensor:
        return value

    def extra_repr(self) -> str:
        cap = "" if self.cap is None else f", cap={self.cap}"
        return f"n_power_iterations={self.n_power_iterations}, dim={self.dim}{cap}"


def _floor(x: Tensor, eps: float) -> float:
    """eps, or the least number of x's dtype that is not zero: float16 has no 1e-12."""
    return max(eps, torch.finfo(x.dtype).smallest_normal)


def spectral_norm(
    module: M,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    cap: float | None = None,
) -> M:
    r"""Divides a weight of a module by its spectral norm wherever it is used.

    .. math:: \hat W = \frac{W}{\sigma(W)} \quad\text{or}\quad
        \hat W = \frac{W}{\max(1, \sigma(W) / c)}

    In the place of :func:`torch.nn.utils.parametrizations.spectral_norm`, with its arguments and
    its names in the ``state_dict``, which either loads from the other.

    Parameters
    ----------
    module : nn.Module
        What holds the weight.
    name : str
        The weight's name. A vector is divided by its norm.
    n_power_iterations : int
        Iterations at every access in training mode; in eval mode there are none.
    eps : float
        The least norm that a vector is divided by.
    dim : int, optional
        The dimension of rows. Default: 1 for transposed convolutions, else 0.
    cap : float, optional
        c. Default: divide in any case.

    Returns
    -------
    nn.Module
        ``module``, with the parametrization registered.

    Raises
    ------
    TypeError, ValueError, IndexError
        Where an argument is not as said above.

    Notes
    -----
    One iteration reads the weight once. A zero weight stays zero. Where a module uses its weight
    several times in a step, ``torch.nn.utils.parametrize.cached()`` iterates once.

    References
    ----------
    Miyato, Kataoka, Koyama and Yoshida, "Spectral normalization for generative adversarial
    networks", ICLR 2018.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"regkern.spectral_norm: expected `module`, got {type(module)}")
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(
            f"regkern.spectral_norm: expected `name` of a parameter or buffer of {module}, got "
            f"{name!r}"
        )
    if dim is None:
        dim = 1 if isinstance(module, _TRANSPOSED) else 0
    rule = SpectralNorm(weight, n_power_iterations, dim, eps, cap)
    parametrize.register_parametrization(module, name, rule)
    return module

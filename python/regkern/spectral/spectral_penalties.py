"""Penalties of spectral norms, over all weights of a network at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.spectral.power import (
    _add_outer_,
    _outer,
    check_iterations,
    check_pair,
    check_weights,
    columns_of,
    differentiable_sigma,
    iterate,
    random_vectors,
    resolve_dims,
    vectors,
)

Kind = Literal["power", "sum", "max", "barrier"]
KINDS = ("power", "sum", "max", "barrier")

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.RMSNorm,
)


def _value(sigma: Tensor, kind: str, k: int, cap: float) -> Tensor:
    if kind == "power":
        return (sigma**k - 1).square().sum()
    if kind == "sum":
        return sigma.sum()
    if kind == "max":
        return sigma.max()
    inside = ~(sigma >= cap)
    part = -torch.log1p(-torch.where(inside, sigma, torch.zeros_like(sigma)) / cap)
    return torch.where(inside, part, torch.full_like(part, torch.inf)).sum()


def _slopes(sigma: Tensor, kind: str, k: int, cap: float) -> Tensor:
    """The derivative of `_value` by each σ."""
    if kind == "power":
        return 2 * k * (sigma**k - 1) * sigma ** (k - 1)
    if kind == "sum":
        return torch.ones_like(sigma)
    if kind == "max":
        return torch.zeros_like(sigma).index_fill(0, sigma.argmax(), 1.0)
    inside = ~(sigma >= cap)
    gap = cap - torch.where(inside, sigma, torch.zeros_like(sigma))
    return torch.where(inside, 1 / gap, torch.zeros_like(sigma))


def _vector_terms(biases: Sequence[Tensor], gains: Sequence[Tensor], k: int) -> list[Tensor]:
    """Σ |b|^2k of each dtype and Σ (γ^k − 1)²."""
    terms = []
    for group in checks.by_dtype(biases):
        norms = torch.stack(torch._foreach_norm([biases[i] for i in group]))
        terms.append((norms.to(compute_dtype(norms)) ** (2 * k)).sum())
    for group in checks.by_dtype(gains):
        flat = torch.cat([gains[i].reshape(-1) for i in group])
        terms.append((flat.to(compute_dtype(flat)) ** k - 1).square().sum())
    return terms


def _check_kind(op: str, kind: str, k: int, cap: float | None) -> float:
    checks.one_of(op, "kind", kind, KINDS)
    check_iterations(op, "k", k, 1)
    if kind == "barrier" and cap is None:
        raise ValueError(f"regkern.{op}: expected a `cap` for the barrier, got None")
    if cap is not None and not cap > 0:
        raise ValueError(f"regkern.{op}: expected `cap` above 0, got {cap}")
    return 0.0 if cap is None else float(cap)


def _check_vector_lists(
    op: str, kind: str, biases: Sequence[Tensor], gains: Sequence[Tensor], like: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    lists = []
    for name, value in (("biases", biases), ("gains", gains)):
        found = list(value)
        for i, x in enumerate(found):
            checks.floating(op, f"{name}[{i}]", x)
            checks.on_device(op, f"{name}[{i}]", x, like)
        if found and kind != "power":
            raise ValueError(
                f"regkern.{op}: expected no `{name}` but for kind power, got {len(found)}"
            )
        lists.append(found)
    return lists[0], lists[1]


def spectral_penalty(
    weights: Tensor | Sequence[Tensor],
    u: Tensor | Sequence[Tensor],
    v: Tensor | Sequence[Tensor],
    kind: Kind = "power",
    *,
    k: int = 2,
    cap: float | None = None,
    biases: Sequence[Tensor] = (),
    gains: Sequence[Tensor] = (),
    n_iter: int = 1,
    dim: int | Sequence[int] = 0,
    update: bool = True,
) -> Tensor:
    r"""A penalty of the largest singular values of all weights of a network.

    .. math::
        R = \begin{cases}
            \sum_l (\sigma_l^k - 1)^2 + \sum_l \|b_l\|^{2k} + \sum_i (\gamma_i^k - 1)^2
                & \text{power} \\
            \sum_l \sigma_l & \text{sum} \\
            \max_l \sigma_l & \text{max} \\
            -\sum_l \ln(1 - \sigma_l / c) & \text{barrier}
        \end{cases}

    Parameters
    ----------
    weights, u, v, n_iter, dim, update
        As in :func:`power_iteration`.
    kind : {"power", "sum", "max", "barrier"}
        Which.
    k : int
        The exponent of "power".
    cap : float, optional
        c of "barrier", which is infinite from there on (with gradient 0).
    biases, gains : sequence of Tensor
        b and the factors γ of normalization layers, for "power".

    Returns
    -------
    Tensor
        0-d, float32 (float64 for float64). Differentiable twice, u and v being constants.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The gradient of a weight is :math:`\frac{\partial R}{\partial \sigma} u v^\top`. Bytes moved:
    all weights read once; in the backward, their gradients written.

    References
    ----------
    Lewandowski, Bortkiewicz, Kumar, György, Schuurmans, Ostaszewski and Machado, "Learning
    continually by spectral regularization", ICLR 2025. Yoshida and Miyato, "Spectral norm
    regularization for improving the generalizability of deep learning", 2017.
    """
    op = "spectral_penalty"
    c = _check_kind(op, kind, k, cap)
    ws = check_weights(op, weights)
    dims = resolve_dims(op, ws, dim)
    us, vs = check_pair(op, ws, u, v, dims)
    check_iterations(op, "n_iter", n_iter)
    bs, gs = _check_vector_lists(op, kind, biases, gains, ws[0])
    found = iterate(ws, us, vs, dims, n_iter, None, 0.0, update and n_iter > 0, False)
    sigma, _ = differentiable_sigma(found, ws, dims)
    value = _value(sigma, kind, k, c)
    for term in _vector_terms(bs, gs, k):
        value = value + term.to(value.dtype)
    return value


def add_outer_(
    tensors: Tensor | Sequence[Tensor],
    u: Tensor | Sequence[Tensor],
    v: Tensor | Sequence[Tensor],
    scale: float | Tensor,
    *,
    dim: int | Sequence[int] = 0,
) -> None:
    r"""Adds a matrix of rank 1 to every tensor of a list, in place.

    .. math:: G_l \leftarrow G_l + s_l\, u_l v_l^\top

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        Of two dimensions or more and of one dtype: gradients, say. Any strides.
    u, v : Tensor or sequence of Tensor
        The vectors of rows and of columns.
    scale : float or Tensor
        One number, or one for each tensor.
    dim : int or sequence of int
        The dimension of rows.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd. One pass: every tensor read and written once.
    """
    op = "add_outer_"
    ts = check_weights(op, tensors)
    dims = resolve_dims(op, ts, dim)
    us, vs = check_pair(op, ts, u, v, dims)
    wide = compute_dtype(ts[0])
    if isinstance(scale, Tensor):
        checks.on_device(op, "scale", scale, ts[0])
        if scale.numel() not in (1, len(ts)):
            raise ValueError(
                f"regkern.{op}: expected `scale` of one number or {len(ts)}, got "
                f"{tuple(scale.shape)}"
            )
        numbers = scale.detach().reshape(-1).to(wide).expand(len(ts)).contiguous()
    else:
        numbers = torch.full((len(ts),), scale, dtype=wide, device=ts[0].device)
    with torch.no_grad():
        _add_outer_(ts, us, vs, numbers, dims)


class SpectralPenalty(nn.Module):
    r"""`spectral_penalty` of a model, with the vectors of its power iterations.

    Parameters
    ----------
    model : nn.Module or sequence of Tensor
        A module: all its parameters named ``weight`` of two dimensions or more are penalised, but
        embeddings; transposed convolutions by their second dimension; for "power" the biases and
        the factors of its normalization layers as well. Or the weights themselves.
    kind, k, cap
        As in :func:`spectral_penalty`.
    n_iter : int
        Power iterations at each use.
    generator : torch.Generator, optional
        Where the first vectors are drawn from.

    Attributes
    ----------
    sigma : Tensor
        The spectral norms that were found last.

    Examples
    --------
    >>> penalty = SpectralPenalty(model)
    >>> loss = task(model(x), y) + 1e-3 * penalty()

    or, for less time, with the gradients written straight into ``.grad``:

    >>> task(model(x), y).backward()
    >>> penalty.add_gradients_(1e-3)
    """

    def __init__(
        self,
        model: nn.Module | Sequence[Tensor],
        kind: Kind = "power",
        *,
        k: int = 2,
        cap: float | None = None,
        n_iter: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        op = "SpectralPenalty"
        self.cap = _check_kind(op, kind, k, cap)
        check_iterations(op, "n_iter", n_iter, 1)
        self.kind, self.k, self.n_iter = kind, k, n_iter
        weights, dims, biases, gains = _parameters_of(model)
        weights = check_weights(op, weights)
        # In a tuple, where nn.Module does not take them for its own.
        self._targets = (
            tuple(weights),
            tuple(biases) if kind == "power" else (),
            tuple(gains) if kind == "power" else (),
        )
        self.dims = resolve_dims(op, weights, dims)
        us, vs = random_vectors([w.detach() for w in weights], dim=self.dims, generator=generator)
        for i, (a, b) in enumerate(zip(us, vs, strict=True)):
            self.register_buffer(f"u{i}", a)
            self.register_buffer(f"v{i}", b)
        self.sigma = torch.zeros(len(weights), dtype=us[0].dtype, device=us[0].device)

    def vectors(self) -> tuple[list[Tensor], list[Tensor]]:
        """u and v of every weight."""
        count = len(self._targets[0])
        return (
            [getattr(self, f"u{i}") for i in range(count)],
            [getattr(self, f"v{i}") for i in range(count)],
        )

    def penalty(self) -> Tensor:
        """The value, with gradients, after an iteration (none in eval mode)."""
        weights, biases, gains = self._targets
        us, vs = self.vectors()
        ws, n_iter = list(weights), self.n_iter if self.training else 0
        found = iterate(ws, us, vs, self.dims, n_iter, None, 0.0, n_iter > 0, False)
        self.sigma = found.sigma
        sigma, _ = differentiable_sigma(found, ws, self.dims)
        value = _value(sigma, self.kind, self.k, self.cap)
        for term in _vector_terms(biases, gains, self.k):
            value = value + term.to(value.dtype)
        return value

    def forward(self) -> Tensor:
        return self.penalty()

    @torch.no_grad()
    def add_gradients_(self, scale: float | Tensor = 1.0) -> None:
        """Adds ``scale`` times the gradient of the penalty to every parameter's ``.grad``.

        Parameters
        ----------
        scale : float or Tensor
            The penalty's weight, one number.

        Notes
        -----
        Every weight is read once, and every gradient read and written once. A parameter without a
        ``.grad`` gets one.
        """
        weights, biases, gains = self._targets
        us, vs = self.vectors()
        ws = list(weights)
        found = iterate(ws, us, vs, self.dims, self.n_iter, None, 0.0, True, False)
        self.sigma = found.sigma
        slopes = scale * _slopes(found.sigma, self.kind, self.k, self.cap)
        slopes = torch.where(found.sigma == 0, torch.zeros_like(slopes), slopes)
        pairs = list(zip(ws, self.dims, strict=True))
        u = vectors(found.u, [w.shape[d] for w, d in pairs])
        v = vectors(found.v, [columns_of(w, d) for w, d in pairs])
        slopes = slopes.to(found.sigma.dtype)
        # Some have a gradient to add to, others do not.
        for missing in (False, True):
            at = [i for i, w in enumerate(ws) if (w.grad is None) == missing]
            if not at:
                continue
            some = [ws[i] for i in at]
            chosen = slopes if len(at) == len(ws) else torch.stack([slopes[i] for i in at])
            rest = [u[i] for i in at], [v[i] for i in at], chosen, [self.dims[i] for i in at]
            if missing:
                for w, g in zip(some, _outer(some, *rest), strict=True):
                    w.grad = g
            else:
                _add_outer_([w.grad for w in some], *rest)
        # |b|^2k has the gradient 2k |b|^(2k − 2) b, and (γ^k − 1)² has 2k (γ^k − 1) γ^(k − 1).
        for b in biases:
            norm = torch.linalg.vector_norm(b, dtype=compute_dtype(b))
            _add_to_grad(b, b * (scale * 2 * self.k * norm ** (2 * self.k - 2)).to(b.dtype))
        for g in gains:
            wide = g.to(compute_dtype(g))
            slope = 2 * self.k * (wide**self.k - 1) * wide ** (self.k - 1)
            _add_to_grad(g, (scale * slope).to(g.dtype))


def _add_to_grad(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)


def _parameters_of(
    model: Any,
) -> tuple[list[Tensor], list[int], list[Tensor], list[Tensor]]:
    """Weights, their dimensions of rows, biases, and factors of normalization layers."""
    if not isinstance(model, nn.Module):
        given = checks.tensor_list("SpectralPenalty", "model", model)
        return given, [0] * len(given), [], []
    dims: list[int] = []
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    gains: list[Tensor] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is None or id(p) in seen:
                continue
            seen.add(id(p))
            if isinstance(module, _NORMS):
                (gains if name == "weight" else biases).append(p)
            elif p.dim() > 1 and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
                weights.append(p)
                dims.append(1 if isinstance(module, _TRANSPOSED) else 0)
            elif p.dim() == 1 and "bias" in name:
                biases.append(p)
    return weights, dims, biases, gains

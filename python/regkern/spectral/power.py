"""Power iteration on the weights of a network, each read once per iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply, register

# ---- raw ops: fake kernels and autograd ----

_NUMBERS = 3  # σ, |W|, iterations


def _fake_iteration(weights: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    w, dims, wide = weights[0], rest[2], compute_dtype(weights[0])
    rows = sum(x.shape[d] for x, d in zip(weights, dims, strict=True))
    columns = sum(columns_of(x, d) for x, d in zip(weights, dims, strict=True))
    return (
        w.new_empty((_NUMBERS, len(weights)), dtype=wide),
        w.new_empty((rows,), dtype=wide),
        w.new_empty((columns,), dtype=wide),
    )


_iteration = register("power_iteration", _fake_iteration)
_iteration_ = register("power_iteration_", _fake_iteration)
_outer = register("outer", lambda xs, u, v, scale, dims: [_plain(x) for x in xs])
_add_outer_ = register("add_outer_", lambda *args: None)


def _plain(x: Tensor) -> Tensor:
    if not x.is_contiguous():
        for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if x.dim() == rank and x.is_contiguous(memory_format=layout):
                return torch.empty_like(x, memory_format=layout)
    return x.new_empty(x.shape)


def columns_of(weight: Tensor, dim: int) -> int:
    """The columns of a weight whose rows are dimension `dim`."""
    columns = 1  # not math.prod of a generator, which torch.compile does not take
    for d, n in enumerate(weight.shape):
        columns *= 1 if d == dim else n
    return columns


def as_matrix(weight: Tensor, dim: int) -> Tensor:
    """Dimension `dim` first, all others flattened."""
    return weight.movedim(dim, 0).reshape(weight.shape[dim], -1)


def as_weight(matrix: Tensor, like: Tensor, dim: int) -> Tensor:
    """The inverse of `as_matrix`."""
    others = [n for d, n in enumerate(like.shape) if d != dim]
    return matrix.reshape(like.shape[dim], *others).movedim(0, dim)


class Singular(NamedTuple):
    """What the raw ops give: σ and |W| (n,), iterations (n,), and all u and all v in a row."""

    sigma: Tensor
    frobenius: Tensor
    iterations: Tensor
    u: Tensor
    v: Tensor


def iterate(
    weights: list[Tensor],
    u: list[Tensor],
    v: list[Tensor],
    dims: list[int],
    n_iter: int,
    tol: float | None,
    eps: float,
    update: bool,
    frobenius: bool = True,
) -> Singular:
    """The iteration without gradients. What it returns is not changed by the next one."""
    with torch.no_grad():
        plain = [w.detach() for w in weights]
        run = _iteration_ if update else _iteration
        numbers, all_u, all_v = run(
            plain, u, v, dims, n_iter, -1.0 if tol is None else float(tol), float(eps), frobenius
        )
        sigma, norms, done = numbers.unbind()
        return Singular(sigma, norms, done, all_u, all_v)


def vectors(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The vectors that stand in a row."""
    return list(torch.split(flat, list(sizes)))


class _SigmaOf(torch.autograd.Function):
    """σ and |W| as functions of the weights: dσ = u vᵀ, d|W| = W / |W|."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        dims: tuple[int, ...], sigma: Tensor, frobenius: Tensor, u: Tensor, v: Tensor, *ws: Tensor
    ) -> tuple[Tensor, Tensor]:
        return sigma.clone(), frobenius.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.dims = inputs[0]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gs: Tensor | None, gf: Tensor | None) -> tuple[Any, ...]:
        sigma, frobenius, all_u, all_v, *ws = ctx.saved_tensors
        dims = list(ctx.dims)
        us = vectors(all_u, [w.shape[d] for w, d in zip(ws, dims, strict=True)])
        vs = vectors(all_v, [columns_of(w, d) for w, d in zip(ws, dims, strict=True)])
        grads: list[Tensor | None] = [None] * len(ws)
        if gs is not None:
            # A zero matrix has no direction.
            scale = torch.where(sigma == 0, torch.zeros_like(gs), gs)
            if torch.is_grad_enabled():
                grads = [
                    as_weight(s * torch.outer(a, b), w, d).to(w.dtype)
                    for s, a, b, w, d in zip(scale.unbind(), us, vs, ws, dims, strict=True)
                ]
            else:
                grads = list(_outer(ws, us, vs, scale, dims))
        if gf is not None:
            by_norm = torch.where(frobenius == 0, torch.zeros_like(gf), gf / frobenius)
            for i, (w, f) in enumerate(zip(ws, by_norm.unbind(), strict=True)):
                wide = w.to(f.dtype)
                if torch.is_grad_enabled():
                    norm = torch.linalg.vector_norm(wide)
                    f = torch.where(norm == 0, 0.0, gf[i] / torch.where(norm == 0, 1.0, norm))
                part = (wide * f).to(w.dtype)
                whole = grads[i]
                grads[i] = part if whole is None else whole + part
        return None, None, None, None, None, *grads


def differentiable_sigma(
    found: Singular, weights: list[Tensor], dims: list[int]
) -> tuple[Tensor, Tensor]:
    """σ and |W| with their gradients."""
    pair: tuple[Tensor, Tensor] = function_apply(
        _SigmaOf, tuple(dims), found.sigma, found.frobenius, found.u, found.v, *weights
    )
    return pair


# ---- checks ----


def resolve_dims(op: str, weights: list[Tensor], dim: int | Sequence[int]) -> list[int]:
    """A dimension of rows for each weight, from 0 on."""
    dims = [dim] * len(weights) if isinstance(dim, int) else list(dim)
    if len(dims) != len(weights):
        raise ValueError(
            f"regkern.{op}: expected a `dim` for each of {len(weights)} weights, got {len(dims)}"
        )
    for i, (w, d) in enumerate(zip(weights, dims, strict=True)):
        if w.dim() < 2:
            raise ValueError(
                f"regkern.{op}: expected `weights[{i}]` of two dimensions or more, got "
                f"{tuple(w.shape)}"
            )
        if isinstance(d, bool) or not isinstance(d, int):
            raise TypeError(f"regkern.{op}: expected `dim` to be an integer, got {d!r}")
        if not -w.dim() <= d < w.dim():
            raise ValueError(
                f"regkern.{op}: expected `dim` in [{-w.dim()}, {w.dim() - 1}], got {d}"
            )
    return [d % w.dim() for w, d in zip(weights, dims, strict=True)]


def check_weights(op: str, weights: object) -> list[Tensor]:
    """Floating tensors of one dtype."""
    ws = checks.tensor_list(op, "weights", weights)
    for i, w in enumerate(ws):
        if w.dtype != ws[0].dtype:
            raise TypeError(
                f"regkern.{op}: expected `weights[{i}]` of dtype {ws[0].dtype}, got {w.dtype}"
            )
    return ws


def check_vectors(
    op: str, name: str, value: object, weights: list[Tensor], sizes: list[int]
) -> list[Tensor]:
    """A vector of its size for each weight, of the weight's dtype or of what it computes in."""
    found = checks.tensor_list(op, name, value)
    if len(found) != len(weights):
        raise ValueError(
            f"regkern.{op}: expected as many `{name}` as weights, {len(weights)}, got {len(found)}"
        )
    for i, (x, w, n) in enumerate(zip(found, weights, sizes, strict=True)):
        checks.on_device(op, f"{name}[{i}]", x, w)
        if x.dim() != 1 or x.shape[0] != n:
            raise ValueError(
                f"regkern.{op}: expected `{name}[{i}]` of shape ({n},), got {tuple(x.shape)}"
            )
        if x.dtype != w.dtype and x.dtype != compute_dtype(w):
            raise TypeError(
                f"regkern.{op}: expected `{name}[{i}]` of dtype {w.dtype} or {compute_dtype(w)}, "
                f"got {x.dtype}"
            )
    return found


def check_pair(
    op: str, weights: list[Tensor], u: object, v: object, dims: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """The checked u and v of all weights."""
    pairs = list(zip(weights, dims, strict=True))
    us = check_vectors(op, "u", u, weights, [w.shape[d] for w, d in pairs])
    vs = check_vectors(op, "v", v, weights, [columns_of(w, d) for w, d in pairs])
    return us, vs


def check_iterations(op: str, name: str, value: object, least: int = 0) -> None:
    """A number of iterations."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"regkern.{op}: expected `{name}` to be an integer, got {value!r}")
    if not value >= least:
        raise ValueError(f"regkern.{op}: expected `{name}` to be at least {least}, got {value}")


# ---- public functions ----


class PowerIteration(NamedTuple):
    """What :func:`power_iteration` returns, a number for each weight.

    Attributes
    ----------
    sigma : Tensor
        The largest singular values, float32 (float64 for float64). Differentiable.
    frobenius : Tensor
        The Frobenius norms, likewise.
    iterations : Tensor
        How many iterations were done, of the same dtype.
    """

    sigma: Tensor
    frobenius: Tensor
    iterations: Tensor


def power_iteration(
    weights: Tensor | Sequence[Tensor],
    u: Tensor | Sequence[Tensor],
    v: Tensor | Sequence[Tensor],
    n_iter: int = 1,
    *,
    dim: int | Sequence[int] = 0,
    tol: float | None = None,
    eps: float = 0.0,
    update: bool = True,
) -> PowerIteration:
    r"""The largest singular values of all weights of a network, by power iteration.

    .. math:: u \leftarrow \frac{W v}{\|W v\|}, \qquad v \leftarrow \frac{W^\top u}{\|W^\top u\|},
        \qquad \sigma = u^\top W v

    Parameters
    ----------
    weights : Tensor or sequence of Tensor
        Of two dimensions or more, all of one dtype. As a matrix, W has dimension ``dim`` as its
        rows and all others, flattened in order, as its columns. Any strides.
    u, v : Tensor or sequence of Tensor
        The vectors of each weight, of its rows and of its columns. The iteration starts from v;
        both are overwritten. Of the weights' dtype or, better for halves, float32.
    n_iter : int
        Iterations. 0 evaluates :math:`\sigma = u^\top W v` and changes nothing.
    dim : int or sequence of int
        The rows: 0 for linear and convolutional layers, 1 for transposed convolutions.
    tol : float, optional
        A matrix is done, and not read again, once an iteration changed σ by no more than ``tol``
        σ. No host waits for that.
    eps : float
        A matrix of no greater σ counts as zero.
    update : bool
        Whether ``u`` and ``v`` are overwritten.

    Returns
    -------
    PowerIteration
        ``(sigma, frobenius, iterations)``. The gradient of σ is :math:`u v^\top`, u and v being
        constants; later iterations do not disturb it. Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    With y = W v and t = Wᵀ y, the σ above is |t| / |y|, so a row is used twice while it is in
    registers or in the cache, and the iteration reads every weight once, for all of u, v, σ and
    the Frobenius norm. A zero matrix has σ = 0 and gradient 0 and keeps its vectors; where W has a
    NaN, σ has. Weights of any magnitude will do: sums are scaled where their squares leave the
    range of float32.

    References
    ----------
    Miyato, Kataoka, Koyama and Yoshida, "Spectral normalization for generative adversarial
    networks", ICLR 2018.
    """
    op = "power_iteration"
    ws = check_weights(op, weights)
    dims = resolve_dims(op, ws, dim)
    us, vs = check_pair(op, ws, u, v, dims)
    check_iterations(op, "n_iter", n_iter)
    if tol is not None:
        checks.at_least(op, "tol", tol, 0.0)
    checks.at_least(op, "eps", eps, 0.0)
    found = iterate(ws, us, vs, dims, n_iter, tol, eps, update and n_iter > 0)
    sigma, frobenius = differentiable_sigma(found, ws, dims)
    return PowerIteration(sigma, frobenius, found.iterations)


def stable_rank(
    weights: Tensor | Sequence[Tensor],
    u: Tensor | Sequence[Tensor],
    v: Tensor | Sequence[Tensor],
    n_iter: int = 1,
    *,
    dim: int | Sequence[int] = 0,
    update: bool = True,
) -> Tensor:
    r"""The stable ranks of all weights: how many singular values are about as large as the largest.

    .. math:: r(W) = \frac{\|W\|_F^2}{\sigma_1(W)^2}

    Parameters
    ----------
    weights, u, v, n_iter, dim, update
        As in :func:`power_iteration`.

    Returns
    -------
    Tensor
        A number for each weight; 0 for a zero matrix. Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: those of the power iteration, whose pass has the Frobenius norm as well.

    References
    ----------
    Sanyal, Torr and Dokania, "Stable rank normalization for improved generalization in neural
    networks and GANs", ICLR 2020.
    """
    found = power_iteration(weights, u, v, n_iter, dim=dim, update=update)
    zero = found.sigma == 0
    ratio = found.frobenius / torch.where(zero, torch.ones_like(found.sigma), found.sigma)
    return torch.where(zero, torch.zeros_like(ratio), ratio * ratio)


def random_vectors(
    weights: Tensor | Sequence[Tensor],
    *,
    dim: int | Sequence[int] = 0,
    generator: torch.Generator | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    r"""Random unit vectors u and v to start power iterations from.

    Parameters
    ----------
    weights : Tensor or sequence of Tensor
        Of two dimensions or more.
    dim : int or sequence of int
        As in :func:`power_iteration`.
    generator : torch.Generator, optional
        Where they are drawn from.

    Returns
    -------
    (list of Tensor, list of Tensor)
        u and v of each weight, float32 (float64 for float64).

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    """
    op = "random_vectors"
    ws = check_weights(op, weights)
    dims = resolve_dims(op, ws, dim)

    def unit(w: Tensor, n: int) -> Tensor:
        drawn = torch.randn(n, dtype=compute_dtype(w), device=w.device, generator=generator)
        return torch.nn.functional.normalize(drawn, dim=0)

    pairs = [
        (unit(w, w.shape[d]), unit(w, columns_of(w, d))) for w, d in zip(ws, dims, strict=True)
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]

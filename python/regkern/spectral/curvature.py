"""Traces, diagonals and largest eigenvalues of Hessians, from products with vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern.random import resolve_seed
from regkern.spectral.directions import Kind, random_directions


class _Hessian:
    """Products with the Hessian of a loss, whose first backward pass is taken once."""

    def __init__(self, op: str, loss: Tensor, params: Tensor | Sequence[Tensor]) -> None:
        self.params = checks.tensor_list(op, "params", params)
        checks.floating(op, "loss", loss)
        if loss.numel() != 1:
            raise ValueError(
                f"regkern.{op}: expected `loss` of one element, got {tuple(loss.shape)}"
            )
        found = torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True)
        # What is linear in a parameter has no graph, and a Hessian of zero there.
        self.gradients = [g for g in found if g is not None and g.requires_grad]
        self.places = [i for i, g in enumerate(found) if g is not None and g.requires_grad]

    def product(self, vectors: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
        if not self.gradients:
            return [torch.zeros_like(p) for p in self.params]
        found = torch.autograd.grad(
            self.gradients,
            self.params,
            [vectors[i] for i in self.places],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
        return [
            torch.zeros_like(p) if h is None else h for p, h in zip(self.params, found, strict=True)
        ]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The inner product over all tensors, in float64."""
    parts = [(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]
    return torch.stack(parts).sum()


def _seeds(seed: Tensor, n: int) -> list[Tensor]:
    return [seed if i == 0 else torch.stack([seed[0], seed[1] + i]) for i in range(n)]


def _check_count(op: str, name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"regkern.{op}: expected `{name}` to be at least 1, got {value}")


def hessian_vector_product(
    loss: Tensor,
    params: Tensor | Sequence[Tensor],
    vectors: Tensor | Sequence[Tensor],
    *,
    create_graph: bool = False,
) -> list[Tensor]:
    """H v of a loss, exact, by a second backward pass.

    Parameters
    ----------
    loss : Tensor
        One number, with its graph, which is kept.
    params, vectors : Tensor or sequence of Tensor
        Of the same shapes. Parameters that the loss does not depend on have zeros.
    create_graph : bool
        Whether the products may be differentiated.
    """
    op = "hessian_vector_product"
    hessian = _Hessian(op, loss, params)
    vs = checks.tensor_list(op, "vectors", vectors)
    if len(vs) != len(hessian.params):
        raise ValueError(
            f"regkern.{op}: expected as many `vectors` as `params`, {len(hessian.params)}, got "
            f"{len(vs)}"
        )
    for i, (v, p) in enumerate(zip(vs, hessian.params, strict=True)):
        checks.same(op, f"vectors[{i}]", v, p, f"params[{i}]")
    return hessian.product(vs, create_graph)


def hutchinson_trace(
    loss: Tensor,
    params: Tensor | Sequence[Tensor],
    n: int = 1,
    *,
    kind: Kind = "rademacher",
    create_graph: bool = False,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The trace of the Hessian, by random quadratic forms.

    .. math:: \operatorname{tr} H \approx \frac{1}{n} \sum_\mu v_\mu^\top H v_\mu

    Parameters
    ----------
    loss : Tensor
        One number, with its graph, which is kept.
    params : Tensor or sequence of Tensor
        What H is taken over.
    n : int
        How many vectors: a backward pass each.
    kind : {"rademacher", "normal"}
        Signs have the smaller variance, and none for a diagonal H.
    create_graph : bool
        Whether the result is differentiated, as a penalty.
    seed : Tensor, optional
        int64 ``(key, offset)``; vector μ draws from ``offset`` + μ.
    generator : torch.Generator, optional
        Where the seed is drawn from.

    Returns
    -------
    Tensor
        0-d, float64.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989. "The implicit
    regularization of dynamical stability in stochastic gradient descent", 2023, which watches it.
    """
    op = "hutchinson_trace"
    _check_count(op, "n", n)
    hessian = _Hessian(op, loss, params)
    total: Tensor | float = 0.0
    for s in _seeds(resolve_seed(op, hessian.params[0], seed, generator), n):
        v = random_directions(hessian.params, kind, seed=s)
        total = total + _dot(v, hessian.product(v, create_graph))
    assert isinstance(total, Tensor)
    return total / n


def hutchinson_diagonal(
    loss: Tensor,
    params: Tensor | Sequence[Tensor],
    n: int = 1,
    *,
    create_graph: bool = False,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    r"""The diagonal of the Hessian, by random signs.

    .. math:: \operatorname{diag} H \approx \frac{1}{n} \sum_\mu v_\mu \odot H v_\mu

    Parameters are those of :func:`hutchinson_trace`; the result is a tensor for each parameter.
    """
    op = "hutchinson_diagonal"
    _check_count(op, "n", n)
    hessian = _Hessian(op, loss, params)
    total: list[Tensor] | None = None
    for s in _seeds(resolve_seed(op, hessian.params[0], seed, generator), n):
        v = random_directions(hessian.params, "rademacher", seed=s)
        parts = [a * b for a, b in zip(v, hessian.product(v, create_graph), strict=True)]
        total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
    assert total is not None
    return [t / n for t in total]


def hessian_frobenius(
    loss: Tensor,
    params: Tensor | Sequence[Tensor],
    n: int = 1,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r""":math:`\lVert H \rVert_F \approx (\frac{1}{n} \sum_\mu \lVert H v_\mu \rVert^2)^{1/2}` with
    random signs: 0-d, float64; parameters as of :func:`hutchinson_trace`."""
    op = "hessian_frobenius"
    _check_count(op, "n", n)
    hessian = _Hessian(op, loss, params)
    total = torch.zeros((), dtype=torch.float64, device=hessian.params[0].device)
    for s in _seeds(resolve_seed(op, hessian.params[0], seed, generator), n):
        product = hessian.product(random_directions(hessian.params, "rademacher", seed=s))
        total = total + _dot(product, product)
    return (total / n).sqrt()


class Eigenpair(NamedTuple):
    """An eigenvalue (0-d, float64) and its vector, a tensor for each parameter, of norm 1."""

    value: Tensor
    vector: list[Tensor]


def _unit(vectors: Sequence[Tensor], fallback: Sequence[Tensor]) -> list[Tensor]:
    """Vectors of norm 1 together; where all are zero, the fallback."""
    norm = _dot(vectors, vectors).sqrt()
    zero = norm == 0
    scale = torch.where(zero, 0.0, 1.0 / torch.where(zero, 1.0, norm))
    return [
        torch.where(zero, f, v * scale.to(v.dtype)) for v, f in zip(vectors, fallback, strict=True)
    ]


def hessian_max_eigenvalue(
    loss: Tensor,
    params: Tensor | Sequence[Tensor],
    v0: Sequence[Tensor] | None = None,
    n_iter: int = 20,
    *,
    which: Literal["magnitude", "algebraic"] = "magnitude",
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpair:
    r"""The dominant eigenvalue of the Hessian, by power iteration on its products.

    .. math:: v \leftarrow \frac{H v}{\lVert H v \rVert}, \qquad \lambda = v^\top H v

    Parameters
    ----------
    loss : Tensor
        One number, with its graph, which is kept.
    params : Tensor or sequence of Tensor
        What H is taken over.
    v0 : sequence of Tensor, optional
        Where to begin: the vector of the last call, as training moves on. Default: random.
    n_iter : int
        Products with H for each iteration, one more for the quotient; twice as many for
        ``algebraic``.
    which : {"magnitude", "algebraic"}
        The eigenvalue that is largest in magnitude, with its sign, or the largest one: where the
        dominant λ is negative, :math:`H + |\lambda| I` is iterated on from a fresh vector.
    seed, generator
        As of :func:`hutchinson_trace`.

    Returns
    -------
    Eigenpair
        A Hessian of zero has the eigenvalue 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Nothing waits for the device: the shift is 0 where the dominant eigenvalue is not negative.

    References
    ----------
    "SAM operates far from home: eigenvalue regularization as a dynamical phenomenon", ICML 2023.
    """
    op = "hessian_max_eigenvalue"
    _check_count(op, "n_iter", n_iter)
    checks.one_of(op, "which", which, ("magnitude", "algebraic"))
    hessian = _Hessian(op, loss, params)
    base = resolve_seed(op, hessian.params[0], seed, generator)
    first, second = _seeds(base, 2)
    start = v0 if v0 is not None else random_directions(hessian.params, "normal", seed=first)
    if len(start) != len(hessian.params):
        raise ValueError(
            f"regkern.{op}: expected as many tensors in `v0` as `params`, {len(hessian.params)}, "
            f"got {len(start)}"
        )

    def iterate(v: Sequence[Tensor], shift: Tensor) -> Eigenpair:
        v = _unit(v, random_directions(hessian.params, "normal", seed=second))
        v = _unit(v, v)
        for _ in range(n_iter):
            moved = [h + shift.to(h.dtype) * x for h, x in zip(hessian.product(v), v, strict=True)]
            v = _unit(moved, v)
        return Eigenpair(_dot(v, hessian.product(v)), list(v))

    with torch.no_grad():
        zero = torch.zeros((), dtype=torch.float64, device=hessian.params[0].device)
        found = iterate([v.detach() for v in start], zero)
        if which == "magnitude":
            return found
        shift = (-found.value).clamp(min=0.0)
        # From what the first iteration found where that is the largest already.
        fresh = random_directions(hessian.params, "normal", seed=second)
        again = [torch.where(shift > 0, f, v) for f, v in zip(fresh, found.vector, strict=True)]
        return iterate(again, shift)

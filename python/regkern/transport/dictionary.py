"""Wasserstein CP dictionaries: the smooth dual of entropic transport, block steps over factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.proximal.projections import simplex_projection


def sinkhorn_conjugate(g: Tensor, q: Tensor, cost: Tensor, eps: float | Tensor) -> Tensor:
    r"""The convex conjugate of entropic transport in one of its marginals.

    .. math::
        H_q^*(g) = \max_{p \in Δ} \langle p, g \rangle - W_ε(p, q) = ε \sum_j q_j \Bigl(\log \sum_i
        e^{(g_i - C_{ij}) / ε} - \log q_j\Bigr)

    with :math:`W_ε = \min_P \langle P, C \rangle + ε \sum P \log P` (plain entropy). Its gradient
    is the p of the maximum, :math:`\sum_j q_j \operatorname{softmax}((g - C_{\cdot j}) / ε)`.

    Parameters
    ----------
    g : Tensor
        (..., n).
    q : Tensor
        (..., m), on the simplex. A point of mass 0 adds nothing.
    cost : Tensor
        C, (n, m). Infinite where a pair is forbidden.
    eps : float or Tensor
        ε > 0.

    Returns
    -------
    Tensor
        (...). Differentiable in all arguments, as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Cuturi and Peyré, "A smoothed dual approach for variational Wasserstein problems", 2016.
    """
    op = "sinkhorn_conjugate"
    for name, given in (("g", g), ("q", q), ("cost", cost)):
        checks.floating(op, name, given)
    checks.scale(op, "eps", eps)
    if not isinstance(eps, Tensor) and not eps > 0:
        raise ValueError(f"regkern.{op}: expected `eps` above 0, got {eps}")
    if cost.dim() != 2 or g.dim() < 1 or q.dim() < 1 or cost.shape != (g.shape[-1], q.shape[-1]):
        raise ValueError(
            f"regkern.{op}: expected `cost` of shape (n, m) for `g` (..., n) and `q` (..., m), got "
            f"{tuple(cost.shape)}, {tuple(g.shape)} and {tuple(q.shape)}"
        )
    kind = compute_dtype(g)
    g, q, cost = g.to(kind), q.to(kind), cost.to(kind)
    smooth = torch.logsumexp((g.unsqueeze(-1) - cost) / eps, -2)
    some = q > 0
    terms = torch.where(some, q * (smooth - torch.where(some, q, 1.0).log()), 0.0)
    value: Tensor = eps * terms.sum(-1)
    return value


class WassersteinDictionary(NamedTuple):
    """What :func:`wasserstein_cp_dictionary` finds."""

    #: Factors U_1 … U_K, (n_k, R) each, columns on the simplex: the atoms are their outer products.
    factors: list[Tensor]
    #: (R, N), columns on the simplex.
    codes: Tensor
    #: (sweeps + 1): Σ W_ε(atoms · codes, x) / N, before and after every sweep.
    losses: Tensor


def _atoms(factors: Sequence[Tensor]) -> Tensor:
    """(Π n_k, R): outer products of the factors' columns."""
    atoms = factors[0]
    for u in factors[1:]:
        atoms = (atoms[:, None, :] * u[None, :, :]).flatten(0, 1)
    return atoms


def _dual(p: Tensor, x: Tensor, cost: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    """W_ε of every column of p with that of x (plain entropy), and its gradient by p, up to a
    constant."""
    tiny = torch.finfo(p.dtype).tiny
    log_p, log_x = p.clamp(min=tiny).log(), x.clamp(min=tiny).log()
    h = torch.zeros_like(x)
    for _ in range(steps):
        g = eps * (log_p - torch.logsumexp((h[None] - cost[:, :, None]) / eps, 1))
        h = eps * (log_x - torch.logsumexp((g[:, None] - cost[:, :, None]) / eps, 0))
    conjugate = sinkhorn_conjugate(g.mT, x.mT, cost, eps)
    return (p * g).sum(0) - conjugate, g - g.mean(0)


def wasserstein_cp_dictionary(
    data: Tensor,
    cost: Tensor,
    shape: Sequence[int],
    rank: int,
    eps: float,
    *,
    lam: float = 1.0,
    sweeps: int = 20,
    inner: int = 100,
    factors: Sequence[Tensor] | None = None,
    codes: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> WassersteinDictionary:
    r"""A dictionary of rank-one atoms for distributions on a grid, in Wasserstein distance.

    .. math::
        \min \frac{1}{N} \sum_n W_ε\Bigl(\sum_r h_{rn}\, u^1_r \otimes \cdots \otimes u^K_r,\;
        x_n\Bigr)

    over factors and codes whose columns are on simplices, by block coordinate descent with a
    proximal term: in turn, every block B moves to

    .. math:: \operatorname{argmin}_{B' \in Δ} \langle ∇_B W_ε, B' \rangle + \tfrac{λ}{2} \lVert B'
        - B \rVert^2,

    the projection of a gradient step on simplices; ∇W_ε is had from the smooth dual
    (:func:`sinkhorn_conjugate`). A step that raises the loss is taken back, and λ of its block
    doubles; of one that lowers it λ falls a little.

    Parameters
    ----------
    data : Tensor
        x, (Π n_k, N): columns on the simplex, grids row-major.
    cost : Tensor
        C, (Π n_k, Π n_k).
    shape : sequence of int
        n_1, …, n_K.
    rank : int
        R.
    eps : float
        ε.
    lam : float
        λ to begin with.
    sweeps, inner : int
        Sweeps over all blocks, and Sinkhorn iterations of each gradient.
    factors, codes : optional
        Where to begin. Default: random.
    generator : torch.Generator, optional
        Where these are drawn from.

    Returns
    -------
    WassersteinDictionary

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A recipe for small grids: the duals take (Π n_k)² N memory. Nothing waits for the device.

    References
    ----------
    Kwon and Lyu, "Complexity of block coordinate descent with proximal regularization and
    applications to Wasserstein CP-dictionary learning", ICML 2023.
    """
    op = "wasserstein_cp_dictionary"
    checks.floating(op, "data", data)
    checks.floating(op, "cost", cost)
    sizes = [int(n) for n in shape]
    bins = 1
    for n in sizes:
        bins *= n
    if not sizes or data.dim() != 2 or data.shape[0] != bins:
        raise ValueError(
            f"regkern.{op}: expected `data` of shape ({bins}, N) for `shape` {sizes}, got "
            f"{tuple(data.shape)}"
        )
    if cost.shape != (bins, bins):
        raise ValueError(
            f"regkern.{op}: expected `cost` of shape ({bins}, {bins}), got {tuple(cost.shape)}"
        )
    for name, number, least in (("rank", rank, 1), ("sweeps", sweeps, 0), ("inner", inner, 1)):
        checks.at_least(op, name, number, least)
    for name, positive in (("eps", eps), ("lam", lam)):
        checks.scale(op, name, positive)
        if not positive > 0:
            raise ValueError(f"regkern.{op}: expected `{name}` above 0, got {positive}")
    x = data.to(compute_dtype(data))
    c = cost.to(x.dtype)

    def drawn(rows: int, columns: int) -> Tensor:
        u = torch.rand(rows, columns, dtype=x.dtype, device=x.device, generator=generator)
        return u / u.sum(0)

    with torch.no_grad():
        starts = [drawn(n, rank) for n in sizes] if factors is None else list(factors)
        blocks = [*starts, drawn(rank, x.shape[1]) if codes is None else codes]
        rates = [torch.full((), lam, dtype=x.dtype, device=x.device) for _ in blocks]
        loss, slope = _loss(blocks, x, c, eps, inner)
        losses = [loss]
        for _ in range(sweeps):
            for k, block in enumerate(blocks):
                step = _pulled_back(blocks, k, slope)
                moved = simplex_projection(block - step / rates[k], dim=0)
                trial = [*blocks[:k], moved, *blocks[k + 1 :]]
                new_loss, new_slope = _loss(trial, x, c, eps, inner)
                better = new_loss <= loss
                blocks[k] = torch.where(better, moved, block)
                loss = torch.where(better, new_loss, loss)
                slope = torch.where(better, new_slope, slope)
                rates[k] = torch.where(better, 0.6 * rates[k], 2.0 * rates[k])
            losses.append(loss)
    return WassersteinDictionary(blocks[:-1], blocks[-1], torch.stack(losses))


def _loss(
    blocks: list[Tensor], x: Tensor, cost: Tensor, eps: float, inner: int
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient by atoms · codes."""
    values, slopes = _dual(_atoms(blocks[:-1]) @ blocks[-1], x, cost, eps, inner)
    return values.mean(), slopes / max(x.shape[1], 1)


def _pulled_back(blocks: list[Tensor], k: int, slope: Tensor) -> Tensor:
    """The gradient by block k, from that by atoms · codes."""
    with torch.enable_grad():
        block = blocks[k].detach().requires_grad_()
        inputs = [*blocks[:k], block, *blocks[k + 1 :]]
        product = (_atoms(inputs[:-1]) @ inputs[-1] * slope).sum()
        return torch.autograd.grad(product, block)[0]

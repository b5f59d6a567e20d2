"""Transport plans with few entries: quadratic, cardinality-constrained and group-lasso
regularisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply, once_only, register
from regkern.transport.arguments import check_mass, number_of, weights_of

METHODS = ("semi_dual", "dual")
_MOST_ENTRIES = 2**22

# ---- raw op: fake kernel and autograd ----


def _fake_solve(
    cost: Tensor, a: Tensor, b: Tensor, gamma: Tensor, alpha: Tensor, beta: Tensor, k: int, *_: Any
) -> tuple[Tensor, ...]:
    batch, m = b.shape
    number = a.new_empty((batch,))
    return (
        a.new_empty(a.shape),
        a.new_empty(b.shape),
        number,
        a.new_empty((batch, m, k), dtype=torch.int32),
        a.new_empty((batch, m, k)),
        a.new_empty((batch,)),
        a.new_empty((batch,), dtype=torch.int32),
        a.new_empty((batch,), dtype=torch.int8),
    )


_solve = register("sparse_transport", _fake_solve)


def _dense_plan(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    gamma: Tensor,
    f: Tensor,
    g: Tensor,
    index: Tensor,
    entries: Tensor,
) -> Tensor:
    """P (B, n, m) in float64."""
    if index.shape[-1] > 0:
        # Of what is not there the index is −1 and the entry 0.
        rows = index.clamp(min=0).long().transpose(-1, -2)
        empty = entries.new_zeros((f.shape[0], f.shape[1], b.shape[1]))
        return empty.scatter_add(1, rows, entries.transpose(-1, -2))
    plan = (_excess(cost, a, f, g) / gamma[:, None, None]).minimum(b.unsqueeze(-2))
    return torch.where(a.unsqueeze(-1) > 0, plan, 0.0)


def _excess(cost: Tensor, a: Tensor, f: Tensor, g: Tensor) -> Tensor:
    x = (f.unsqueeze(-1) + g.unsqueeze(-2) - cost).clamp(min=0.0)
    return torch.where(a.unsqueeze(-1) > 0, x, 0.0)


def _group_norms(x: Tensor, group_rows: Tensor, group_starts: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of the columns' groups (B, groups, m), and which one each row is in (n)."""
    # From the first to the last of `group_rows`.
    places = torch.arange(x.shape[1], device=x.device, dtype=group_starts.dtype)
    ids = torch.searchsorted(group_starts, places, right=True) - 1
    label = torch.empty_like(ids).scatter(0, group_rows.long(), ids)
    return x.new_zeros(x.shape).index_add(1, label, x.square()).sqrt(), label


def _grouped_plan(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    gamma: Tensor,
    f: Tensor,
    g: Tensor,
    mu: Tensor,
    group_rows: Tensor,
    group_starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """P (B, n, m) in float64, and the norms of its columns' groups (B, groups, m)."""
    x = _excess(cost, a, f, g)
    size, label = _group_norms(x, group_rows, group_starts)
    norm = ((size - mu[:, None, None]) / gamma[:, None, None]).minimum(b.unsqueeze(-2))
    norm = torch.where((size <= mu[:, None, None]) | (size == 0), 0.0, norm)
    share = torch.where(norm == 0, 0.0, norm / torch.where(size == 0, 1.0, size))
    return x * share.index_select(1, label), norm


def _like(gradient: Tensor, x: Tensor) -> Tensor:
    """Of a cost that all problems share, the sum."""
    if x.shape[0] != gradient.shape[0]:
        gradient = gradient.sum(0, keepdim=True)
    return gradient.to(x.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cost, a, b, gamma = inputs[:4]
    groups = inputs[10:]
    f, g, _, index, entries, error, iterations, status = output
    ctx.mark_non_differentiable(f, g, index, entries, error, iterations, status)
    ctx.save_for_backward(cost, a, b, gamma, f, g, index, entries, *groups)


@once_only("sparse_transport")
def _gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """The envelope theorem: dC = P, da = f, db = g, dγ = ½ |P|², dμ = Σ |p_jG|."""
    cost, a, b, gamma, f, g, index, entries, *groups = ctx.saved_tensors
    up, d_mu = grads[2], None
    x = _excess(cost, a, f, g)
    if groups[0] is None:
        plan = _dense_plan(cost, a, b, gamma, f, g, index, entries)
        free = torch.where(plan > 0, x, 0.0)
    else:
        plan, norms = _grouped_plan(cost, a, b, gamma, f, g, *groups)
        d_mu = up * norms.sum((-1, -2))
        free = _group_norms(x, *groups[1:])[0] - groups[0][:, None, None]
    along = up.unsqueeze(-1)
    # What an entry, or a group, would be beyond b: with b that bound moves as well.
    beyond = (free - (gamma[:, None] * b).unsqueeze(-2)).clamp(min=0.0).sum(-2)
    return (
        _like(up[:, None, None] * plan, cost),
        torch.where(a > 0, along * f, 0.0),
        torch.where(b > 0, along * (g - beyond), 0.0),
        up * 0.5 * plan.square().sum((-1, -2)),
        *((None,) * 6),
        d_mu,
        None,
        None,
    )


_solve.differentiable(_setup, _gradient)


# ---- the plan's own derivative ----

_STEPS = 200


def _marginal_fit(mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """u, v with the least Σ (target − u_i − v_j)² over the mask, by conjugate gradients.

    The columns' v is eliminated. What is left, S u = r, is singular where the mask falls apart, and
    consistent: the iteration stays where r is. Problems that are solved stand still.
    """
    columns = mask.sum(-2)
    per_column = torch.where(columns > 0, 1.0 / columns.clamp(min=1.0), 0.0)
    rows = mask.sum(-1)

    def times(u: Tensor) -> Tensor:
        means = per_column * (mask.mT @ u.unsqueeze(-1)).squeeze(-1)
        return rows * u - (mask @ means.unsqueeze(-1)).squeeze(-1)

    kept = target * mask
    means = per_column * kept.sum(-2)
    r = kept.sum(-1) - (mask @ means.unsqueeze(-1)).squeeze(-1)
    u, p = torch.zeros_like(r), r
    square = r.square().sum(-1, keepdim=True)
    enough = 1e-30 * square
    for _ in range(min(_STEPS, 2 * r.shape[-1] + 10)):
        q = times(p)
        curved = (p * q).sum(-1, keepdim=True)
        live = (square > enough) & (curved > 0)
        step = torch.where(live, square / torch.where(live, curved, 1.0), 0.0)
        u = u + step * p
        r = r - step * q
        new = torch.where(live, r.square().sum(-1, keepdim=True), square)
        p = torch.where(live, r + new / torch.where(live, square, 1.0) * p, p)
        square = new
    v = means - per_column * (mask.mT @ u.unsqueeze(-1)).squeeze(-1)
    return u, v


class _Plan(torch.autograd.Function):
    """P as a function of cost, marginals and γ while its support stays what it is:

    P = (f_i + g_j − C)/γ there, so a change is the projection of −dC/γ to what keeps the marginals.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(plan: Tensor, cost: Tensor, a: Tensor, b: Tensor, gamma: Tensor) -> Tensor:
        return plan.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_only("sparse_transport")
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor | None, ...]:
        plan, cost, a, b, gamma = ctx.saved_tensors
        mask = (plan > 0).to(plan.dtype)
        u, v = _marginal_fit(mask, up)
        rest = mask * (up - u.unsqueeze(-1) - v.unsqueeze(-2))
        d_cost = -rest / gamma[:, None, None]
        # dP/dγ = (projection of C) / γ².
        there = torch.where(plan > 0, cost, 0.0)
        d_gamma = (rest * there).sum((-1, -2)) / gamma.square()
        return (
            None,
            _like(d_cost, cost),
            torch.where(a > 0, u, 0.0),
            torch.where(b > 0, v, 0.0),
            d_gamma,
        )


class _Constant(torch.autograd.Function):
    """A plan whose derivative there is not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(plan: Tensor, *sources: Tensor) -> Tensor:
        return plan.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Any:
        raise RuntimeError(
            "regkern.sparse_transport: expected the gradient of `value` alone with `groups`, got "
            "that of the plan"
        )


# ---- public ----


@dataclass(frozen=True)
class SparseTransport:
    """A solution of `sparse_transport`; ``...`` are the batch dimensions.

    Attributes
    ----------
    f, g : Tensor
        Potentials (..., n) and (..., m) with ⟨a, f⟩ = ⟨b, g⟩: entries of the plan are
        :math:`[f_i + g_j - C_{ij}]_+ / \\gamma`, with groups times what their norms leave.
        Without gradients.
    value : Tensor
        (...,): the dual objective. Differentiable in cost, weights and γ.
    indices : Tensor
        (..., m, k) int32: the rows of each column's entries, −1 where there are fewer. With
        ``k=None`` the last dimension is empty.
    violation : Tensor
        (...,): :math:`(|P 1 - a|_1 + |P^T 1 - b|_1) / |b|_1`. With ``k`` what cannot be removed
        is the duality gap of the cardinality constraint, which is not convex.
    iterations : Tensor
        (...,) int32: evaluations of the dual, each a read of the cost.
    status : Tensor
        (...,) int8: 0 violation within ``tol``, 1 stopped at ``max_iter``, 2 not a number, or a
        column without a finite cost, 3 neither the value nor the violation gets better.
    """

    f: Tensor
    g: Tensor
    value: Tensor
    indices: Tensor
    violation: Tensor
    iterations: Tensor
    status: Tensor
    _raw: tuple[Tensor, ...] = field(repr=False)
    _batch: tuple[int, ...] = field(repr=False)
    # μ, the rows group by group, and where groups begin.
    _groups: tuple[Tensor, ...] | None = field(repr=False, default=None)

    def plan(self) -> Tensor:
        """P (..., n, m). Differentiable by its active support, once; with groups it is not."""
        cost, a, b, gamma, f, g, index, entries = self._raw
        with torch.no_grad():
            if self._groups is None:
                plan = _dense_plan(cost, a, b, gamma, f, g, index, entries)
            else:
                plan = _grouped_plan(cost, a, b, gamma, f, g, *self._groups)[0]
        if self._groups is not None:
            sources = [t for t in (cost, a, b, gamma, self._groups[0]) if t.requires_grad]
            if sources:
                plan = function_apply(_Constant, plan, *sources)
        elif any(t.requires_grad for t in (cost, a, b, gamma)):
            plan = function_apply(_Plan, plan, cost, a, b, gamma)
        return plan.to(self.value.dtype).reshape(*self._batch, *plan.shape[1:])

    @property
    def values(self) -> Tensor:
        """(..., m, k): the entries at `indices`, 0 where there are fewer. Differentiable."""
        entries = self._raw[-1]
        if any(t.requires_grad for t in self._raw[:4]):
            rows = self.indices.clamp(min=0).long().transpose(-1, -2)
            picked = self.plan().gather(-2, rows).transpose(-1, -2)
            return torch.where(self.indices < 0, 0.0, picked)
        return entries.to(self.value.dtype).reshape(self.indices.shape)

    def to_sparse(self) -> Tensor:
        """P as a sparse COO tensor: with k from the entries alone. Counts entries on the host."""
        index, entries = self.indices, self.values
        if index.shape[-1] == 0:
            return self.plan().to_sparse()
        there = (index >= 0) & (entries > 0)
        place = there.nonzero().unbind(-1)
        where = torch.stack([*place[:-2], index[there].long(), place[-2]])
        shape = (*self._batch, self.f.shape[-1], self.g.shape[-1])
        return torch.sparse_coo_tensor(where, entries[there], shape, check_invariants=False)


def sparse_transport(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    gamma: float | Tensor = 1.0,
    k: int | None = None,
    method: str | None = None,
    tol: float | None = 1e-4,
    max_iter: int = 1000,
    init: tuple[Tensor, Tensor] | None = None,
    groups: Tensor | None = None,
    mu: float | Tensor = 1.0,
) -> SparseTransport:
    r"""Transport whose plan is sparse, by quadratic regularisation and at most k entries a column.

    .. math::
        \min_{P \ge 0} \langle P, C \rangle + \frac\gamma2 \lVert P \rVert^2
        \quad \text{with}\quad P 1 = a,\; P^\top 1 = b,\; \lVert p_j \rVert_0 \le k

    solved by its semi-dual or dual,

    .. math::
        \max_f\; \langle f, a \rangle - \sum_j \max_{p \ge 0,\, 1^\top p = b_j,\, \lVert p \rVert_0
        \le k} \langle p, f - c_j \rangle - \frac\gamma2 \lVert p \rVert^2, \qquad
        \max_{f, g}\; \langle f, a \rangle + \langle g, b \rangle - \sum_j
        \frac{1}{2\gamma} \sum_{\text{top-}k} [f_i + g_j - C_{ij}]_+^2

    The inner maximum is the projection of the k largest entries of a column onto the simplex.

    With groups G of rows, say of the same class, it is the group lasso

    .. math::
        \min_{P \in U(a, b)} \langle P, C \rangle + \frac\gamma2 \lVert P \rVert^2
        + \mu \sum_j \sum_G \lVert p_{jG} \rVert, \qquad
        p_{jG} = \frac1\gamma \Bigl[1 - \frac{\mu}{\lVert [x_{jG}]_+ \rVert}\Bigr]_+ [x_{jG}]_+,
        \quad x_j = f + g_j - c_j

    Parameters
    ----------
    cost : Tensor
        (..., n, m): float32, float64, bfloat16 or float16; +inf forbids a pair. A matrix is one
        cost for all problems of the batch.
    a, b : Tensor, optional
        Weights (..., n) and (..., m) of equal totals; uniform by default. A zero excludes a point.
    gamma : float or Tensor
        γ > 0: a number, a 0-d tensor, or one per problem. Plans have more entries as it grows.
    k : int, optional
        At most so many entries in each column; ``None``: quadratic regularisation alone.
    method : str, optional
        ``"semi_dual"``: columns of the plan sum to b exactly; the default with k. ``"dual"``: the
        cheaper evaluation where k is None, and the default then.
    tol : float, optional
        The violation that is good enough, relative to the mass; ``None``: iterates until
        ``max_iter``, or until nothing changes.
    max_iter : int
        At most so many evaluations of the dual, each a read of the cost.
    init : (Tensor, Tensor), optional
        Potentials (f, g) to start from: those of a similar problem save most iterations.
    groups : Tensor, optional
        Labels (n) of the rows, any integers: whole groups are left out of a column. By the dual,
        without k.
    mu : float or Tensor
        μ > 0 of the group lasso, like ``gamma``.

    Returns
    -------
    SparseTransport

    Raises
    ------
    TypeError, ValueError
        For other dtypes, shapes that do not fit, weights below zero or of different totals, γ ≤ 0.

    Notes
    -----
    L-BFGS with eight pairs; the whole solve is one op and does not wait for a GPU. An evaluation
    reads the cost once: nothing of its size is allocated. Entries are compared in the dtype of the
    cost against a bound of their column, and computed in float64 where they may matter, so that
    float32 costs have the plan of the same costs in float64. Of equal entries the first row's is
    taken.

    With k the dual has kinks, the plan need not satisfy the marginals at its maximum, and the
    violation is the duality gap; k at least the number of entries of the quadratic plan has none.

    Gradients: of the value by the envelope theorem, dC = P, da = f, db = g, dγ = ½ |P|²; of the
    plan by its active support, a linear system that is solved by conjugate gradients. Neither has
    a second derivative, and says so. Weights that are 0 have the gradient 0.

    References
    ----------
    T. Liu, J. Puigcerver and M. Blondel, "Sparsity-constrained optimal transport", ICLR 2023.
    M. Blondel, V. Seguy and A. Rolet, "Smooth and sparse optimal transport", AISTATS 2018, whose μ
    is ours over γ. This is not the objective of ``ot.da.sinkhorn_l1l2_gl``, which is entropic.
    """
    op = "sparse_transport"
    checks.floating(op, "cost", cost)
    if cost.dim() < 2 or cost.shape[-1] == 0 or cost.shape[-2] == 0:
        raise ValueError(
            f"regkern.{op}: expected `cost` of shape (..., n, m) with n, m > 0, got "
            f"{tuple(cost.shape)}"
        )
    n, m = cost.shape[-2:]
    if k is not None:
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"regkern.{op}: expected `k` to be an int or None, got {k!r}")
        if not 1 <= k < _MOST_ENTRIES:
            raise ValueError(f"regkern.{op}: expected `k` from 1 to below 2^22, or None, got {k}")
    if method is None:
        method = "dual" if k is None else "semi_dual"
    checks.one_of(op, "method", method, METHODS)
    if tol is not None:
        checks.at_least(op, "tol", tol, 0.0)
    checks.at_least(op, "max_iter", max_iter, 0)
    wa, wb = weights_of(op, "a", a, n, cost), weights_of(op, "b", b, m, cost)
    check_mass(op, wa, wb)
    number = number_of(op, "gamma", gamma, cost)
    shapes = [cost.shape[:-2], wa.shape[:-1], wb.shape[:-1], number.shape]
    of_norms = None
    if groups is not None:
        if k is not None or method != "dual":
            raise ValueError(
                f"regkern.{op}: expected `groups` with k=None and method dual, got k={k} and "
                f"{method}"
            )
        of_norms = number_of(op, "mu", mu, cost)
        shapes.append(of_norms.shape)
    starts = [torch.zeros((), dtype=torch.float64, device=cost.device)] * 2
    if init is not None:
        starts = [
            _start(op, name, t, size, cost)
            for name, t, size in zip(("init[0]", "init[1]"), init, (n, m), strict=True)
        ]
        shapes += [t.shape[:-1] for t in starts]
    batch = _batch_of(op, shapes)
    count = math.prod(batch)
    matrices = cost.reshape(1, n, m) if cost.dim() == 2 else cost.expand(*batch, n, m)
    matrices = matrices.reshape(-1, n, m) if count > 0 else cost.new_empty((0, n, m))
    vectors = (
        _whole(wa, batch, n),
        _whole(wb, batch, m),
        _whole(number, batch),
    )
    grouped: tuple[Tensor, ...] | None = None
    if groups is not None and of_norms is not None:
        grouped = (_whole(of_norms, batch), *_group_places(op, groups, n, cost))
    f, g, value, index, entries, error, iterations, status = _solve(
        matrices,
        *vectors,
        _whole(starts[0], batch, n),
        _whole(starts[1], batch, m),
        0 if k is None else k,
        method,
        -1.0 if tol is None else float(tol),
        max_iter,
        *(grouped or (None, None, None)),
    )
    kind = compute_dtype(cost)
    return SparseTransport(
        f.to(kind).reshape(*batch, n),
        g.to(kind).reshape(*batch, m),
        value.to(kind).reshape(batch),
        index.reshape(*batch, m, index.shape[-1]),
        error.to(kind).reshape(batch),
        iterations.reshape(batch),
        status.reshape(batch),
        (matrices, *vectors, f, g, index, entries),
        batch,
        grouped,
    )


def _group_places(op: str, groups: Tensor, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The rows group by group (n), and where each of n groups, the last ones empty, begins (n +
    1); int32, without looking at labels on the host."""
    checks.on_device(op, "groups", groups, like)
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise TypeError(f"regkern.{op}: expected `groups` of integers, got {groups.dtype}")
    if tuple(groups.shape) != (n,):
        raise ValueError(
            f"regkern.{op}: expected `groups` of shape ({n},), got {tuple(groups.shape)}"
        )
    labels, rows = groups.sort(stable=True)
    first = torch.ones_like(labels, dtype=torch.bool)
    first[1:] = labels[1:] != labels[:-1]
    ids = first.cumsum(0) - 1
    starts = torch.searchsorted(ids, torch.arange(n + 1, device=ids.device))
    return rows.int(), starts.int()


def _whole(t: Tensor, batch: Sequence[int], *size: int) -> Tensor:
    """t for each problem of the batch, which becomes one dimension."""
    return t.expand((*batch, *size)).reshape(math.prod(batch), *size).contiguous()


def _start(op: str, name: str, t: Tensor, size: int, like: Tensor) -> Tensor:
    checks.floating(op, name, t)
    checks.on_device(op, name, t, like)
    if t.dim() == 0 or t.shape[-1] != size:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of shape (..., {size}), got {tuple(t.shape)}"
        )
    return t.detach().double()


def _batch_of(op: str, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(
            f"regkern.{op}: expected batch dimensions that broadcast, got "
            f"{', '.join(str(tuple(s)) for s in shapes)}"
        ) from None

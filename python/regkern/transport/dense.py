"""Sinkhorn's iteration on dense costs: the raw ops, their derivatives, and the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern._registration import function_apply, once_only, register
from regkern.transport.small import is_small, solve_small

#: Elements of a cost that are made into a block of the plan at once, where a product needs it.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 24}


class Settings(NamedTuple):
    """How long an engine iterates, and how fast."""

    tol: float | None
    max_iter: int
    check_every: int
    acceleration: str
    omega: float
    scaling: float


class Potentials(NamedTuple):
    """What a solver returns, for B problems."""

    f: Tensor
    g: Tensor
    error: Tensor
    iterations: Tensor
    status: Tensor


def _fake_solve(cost: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, n, m = cost.shape
    return (
        cost.new_empty((batch, n), dtype=torch.float64),
        cost.new_empty((batch, m), dtype=torch.float64),
        cost.new_empty((batch,), dtype=torch.float64),
        cost.new_empty((batch,), dtype=torch.int32),
        cost.new_empty((batch,), dtype=torch.int8),
    )


def _fake_softmin(cost: Tensor, weight: Tensor, source: Tensor, eps: Tensor, columns: bool) -> Any:
    return source.new_empty((cost.shape[0], cost.shape[2] if columns else cost.shape[1]))


_solve = register("transport_dense_solve", _fake_solve)
_softmin = register("transport_dense_softmin", _fake_softmin)
_plan = register("transport_dense_plan", lambda cost, *rest: cost.new_empty(cost.shape))


def _sum(x: Tensor, dim: int) -> Tensor:
    return x.sum(dim, dtype=torch.float64)


def _over(sums: Tensor, weight: Tensor) -> Tensor:
    """Sums of a plan over the weight that is a factor of them; 0 where that is 0."""
    there = weight != 0
    return torch.where(there, sums / torch.where(there, weight, 1.0), 0.0)


def _times(x: Tensor, y: Tensor) -> Tensor:
    """x y, and 0 where x is 0: a potential without partners and a forbidden pair are infinite."""
    return torch.where(x == 0, 0.0, x * torch.where(x == 0, 0.0, y))


def _exponents(h: Tensor, rows: Tensor, columns: Tensor, f: Tensor, g: Tensor, c: Tensor) -> Tensor:
    """Σ h_ij (f_i + g_j − C_ij) of h with these sums."""
    costs = _sum(_sum(_times(h, c), -1), -1)
    return _times(rows, f).sum(-1) + _times(columns, g).sum(-1) - costs


def _plan_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    cost, a, b, f, g, eps, p, q = inputs
    ctx.save_for_backward(cost, a, b, f, g, eps, output)
    ctx.given = (p is not None, q is not None)


def _plan_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    cost, a, b, f, g, eps, out = ctx.saved_tensors
    needs = ctx.needs_input_grad
    h = _times(out, grad)
    rows, columns = _sum(h, -1), _sum(h, -2)
    e = eps[:, None]
    d_cost = (-h / e[..., None]).to(cost.dtype) if needs[0] else None
    d_eps = None
    if needs[5]:
        d_eps = -_exponents(h, rows, columns, f, g, cost) / eps.square()
    d_p = d_q = None
    if needs[6] or needs[7]:
        alone = _times(_plan(cost, a, b, f, g, eps, torch.ones_like(a), None), grad)
        d_p = _sum(alone, -1) if needs[6] else None
        d_q = _sum(alone, -2) if needs[7] else None
    return d_cost, _over(rows, a), _over(columns, b), rows / e, columns / e, d_eps, d_p, d_q


_plan.differentiable(_plan_setup, _plan_backward)


def _softmin_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    cost, weight, source, eps, columns = inputs
    ctx.save_for_backward(cost, weight, source, eps, output)
    ctx.columns = columns


def _softmin_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The softmin's weights are a plan with marginal 1 on the side of the output."""
    cost, weight, source, eps, out = ctx.saved_tensors
    ones = torch.ones_like(out)
    grad = torch.where(out.isinf(), 0.0, grad)
    if ctx.columns:
        h = _plan(cost, weight, ones, source, out, eps, None, grad)
    else:
        h = _plan(cost, ones, weight, out, source, eps, grad, None)
    rows, columns = _sum(h, -1), _sum(h, -2)
    sums = rows if ctx.columns else columns
    f, g = (source, out) if ctx.columns else (out, source)
    d_eps = None
    if ctx.needs_input_grad[3]:
        d_eps = _exponents(h, rows, columns, f, g, cost) / eps
    return h, -eps[:, None] * _over(sums, weight), -sums, d_eps, None


_softmin.differentiable(_softmin_setup, _softmin_backward)


class _Product(torch.autograd.Function):
    """P v, or Pᵀ v, of a cost; only what is of its size already is in the gradients."""

    @staticmethod
    def forward(
        columns: bool,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        f: Tensor,
        g: Tensor,
        eps: Tensor,
        cost: Tensor,
    ) -> Tensor:
        return DenseCost(cost)._products(a, b, f, g, eps, v, columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.columns = inputs[0]
        ctx.save_for_backward(*inputs[1:], output)

    @staticmethod
    @once_only("Transport.apply")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, a, b, f, g, eps, cost, out = ctx.saved_tensors
        needs = ctx.needs_input_grad
        left, right = (v, grad) if ctx.columns else (grad, v)
        dv, d_cost, costs = DenseCost(cost).product_gradients(
            a, b, f, g, eps, left, right, not ctx.columns, needs[7], needs[6]
        )
        of_left, of_right = (dv, out) if ctx.columns else (out, dv)
        rows, columns = _sum(_times(left, of_left), -1), _sum(_times(right, of_right), -1)
        e = eps[:, None]
        d_eps = None
        if costs is not None:
            exponents = _times(rows, f).sum(-1) + _times(columns, g).sum(-1)
            d_eps = (costs - exponents) / eps.square()
        return (
            None,
            dv,
            _over(rows, a),
            _over(columns, b),
            rows / e,
            columns / e,
            d_eps,
            d_cost,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        results = []
        for i in range(info.batch_size):
            one = (x if d is None else x.select(d, i) for x, d in zip(args, in_dims, strict=True))
            results.append(function_apply(_Product, *one))
        return torch.stack(results), 0


def solve_dense(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    eps: Tensor,
    rho: Tensor,
    settings: Settings,
    eps_start: Tensor | None = None,
    f: Tensor | None = None,
    g: Tensor | None = None,
    keeps_kernel: bool = False,
) -> Potentials:
    """Potentials of B problems with costs (B, n, m), without gradients.

    Weights a (B, n) and b (B, m), eps (B), rho (2, B), potentials f and g to begin with and eps to
    begin with are float64 and dense. The kernel is another (B, n, m), if it is kept.
    """
    with torch.no_grad():
        return Potentials(*_solve(cost, a, b, eps, rho, eps_start, f, g, *settings, keeps_kernel))


class DenseCost:
    """The engine of a cost (B, n, m), dense in memory."""

    def __init__(self, cost: Tensor, keeps_kernel: bool = False) -> None:
        self.cost, self.keeps_kernel = cost, keeps_kernel

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What gradients go to."""
        return (self.cost,)

    def replaced(self, *tensors: Tensor) -> DenseCost:
        """The same engine over other tensors."""
        (cost,) = tensors
        return DenseCost(cost, self.keeps_kernel)

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, n, m = self.cost.shape
        return batch, n, m

    def solve(
        self,
        a: Tensor,
        b: Tensor,
        eps: Tensor,
        rho: Tensor,
        settings: Settings,
        eps_start: Tensor | None,
        f: Tensor | None,
        g: Tensor | None,
    ) -> Potentials:
        cost = self.cost.detach()
        if not self.keeps_kernel and is_small(cost, settings, eps_start):
            with torch.no_grad():
                found = solve_small(cost, a, b, eps, rho, settings, f, g)
            return Potentials(found.f, found.g, *found[3:])
        return solve_dense(cost, a, b, eps, rho, settings, eps_start, f, g, self.keeps_kernel)

    def softmin(self, weight: Tensor, source: Tensor, eps: Tensor, columns: bool) -> Tensor:
        """The soft c-transform, differentiable."""
        result: Tensor = _softmin(self.cost, weight, source, eps, columns)
        return result

    def plan(self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Tensor:
        """The plan (B, n, m), differentiable."""
        result: Tensor = _plan(self.cost, a, b, f, g, eps, torch.ones_like(a), None)
        return result

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Problems and rows of blocks that are dense in memory."""
        batch, n, m = self.shape
        most = _BLOCK.get(self.cost.device.type, 1 << 20)
        if n * m <= most:
            count = max(1, most // max(1, n * m))
            for p in range(0, batch, count):
                yield slice(p, min(p + count, batch)), slice(0, n)
            return
        rows = max(1, most // m)
        for p in range(batch):
            for i in range(0, n, rows):
                yield slice(p, p + 1), slice(i, min(i + rows, n))

    def apply(
        self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor, v: Tensor, columns: bool
    ) -> Tensor:
        """P v (B, n, k) of v (B, m, k), or Pᵀ v (B, m, k) of v (B, n, k), block by block;
        differentiable once."""
        inputs = (v, a, b, f, g, eps, self.cost)
        if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
            result: Tensor = function_apply(_Product, columns, *inputs)
            return result
        return self._products(a, b, f, g, eps, v, columns)

    def _plan_block(
        self,
        ps: slice,
        rows: slice,
        a: Tensor,
        b: Tensor,
        f: Tensor,
        g: Tensor,
        eps: Tensor,
    ) -> Tensor:
        weight = a[ps, rows].contiguous()
        result: Tensor = _plan(
            self.cost[ps, rows],
            weight,
            b[ps],
            f[ps, rows].contiguous(),
            g[ps],
            eps[ps],
            torch.ones_like(weight),
            None,
        )
        return result

    def _products(
        self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor, v: Tensor, columns: bool
    ) -> Tensor:
        batch, n, m = self.shape
        out = v.new_zeros((batch, m if columns else n, v.shape[-1]))
        for ps, rows in self._blocks():
            block = self._plan_block(ps, rows, a, b, f, g, eps).to(v.dtype)
            if columns:
                out[ps] += block.mT @ v[ps, rows]
            else:
                out[ps, rows] = block @ v[ps]
        return out

    def product_gradients(
        self,
        a: Tensor,
        b: Tensor,
        f: Tensor,
        g: Tensor,
        eps: Tensor,
        left: Tensor,
        right: Tensor,
        columns: bool,
        wants_cost: bool,
        wants_eps: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        r"""Of H = P ⊙ (left rightᵀ), with left (B, n, k) and right (B, m, k), in one pass: the
        gradient −H/ε of the cost and ⟨H, C⟩ (B), and before them P right or, with ``columns``,
        Pᵀ left."""
        batch, n, m = self.shape
        out = left.new_zeros((batch, m if columns else n, left.shape[-1]))
        d_cost = torch.empty_like(self.cost) if wants_cost else None
        costs = torch.zeros_like(eps) if wants_eps else None
        for ps, rows in self._blocks():
            block = self._plan_block(ps, rows, a, b, f, g, eps).to(left.dtype)
            if columns:
                out[ps] += block.mT @ left[ps, rows]
            else:
                out[ps, rows] = block @ right[ps]
            if d_cost is None and costs is None:
                continue
            h = _times(block, left[ps, rows] @ right[ps].mT)
            if d_cost is not None:
                d_cost[ps, rows] = (h / -eps[ps, None, None].to(h.dtype)).to(d_cost.dtype)
            if costs is not None:
                costs[ps] += _sum(_sum(_times(h, self.cost[ps, rows]), -1), -1)
        return out, d_cost, costs

    def mean_cost(self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Tensor:
        """⟨P, C⟩ (B)."""
        out = torch.zeros_like(eps)
        for ps, rows in self._blocks():
            cost = self.cost[ps, rows]
            block = self._plan_block(ps, rows, a, b, f, g, eps)
            out[ps] += _times(block, cost).sum((-2, -1), dtype=torch.float64)
        return out

    def argmax(self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor, columns: bool) -> Any:
        """Of each row (column) the place of the largest element; the first of equal ones."""
        batch, n, m = self.shape
        e = eps[:, None]
        own = (g + e * b.log(), f + e * a.log())
        left, right = (torch.where(w > 0, s, -torch.inf) for w, s in zip((b, a), own, strict=True))
        index = torch.zeros((batch, m if columns else n), dtype=torch.int64, device=a.device)
        best = torch.full(index.shape, -torch.inf, dtype=torch.float64, device=a.device)
        for ps, rows in self._blocks():
            cost = self.cost[ps, rows].double()
            if not columns:
                index[ps, rows] = (left[ps][:, None, :] - cost).argmax(-1)
                continue
            value, place = (right[ps, rows][:, :, None] - cost).max(-2)
            better = value > best[ps]
            index[ps] = torch.where(better, place + rows.start, index[ps])
            best[ps] = torch.where(better, value, best[ps])
        return index

    def scale(self, kind: str) -> Tensor:
        """The mean or the largest magnitude of the finite costs (B), without gradients."""
        batch = self.shape[0]
        largest = self.cost.new_zeros((batch,), dtype=torch.float64)
        total, count = torch.zeros_like(largest), torch.zeros_like(largest)
        with torch.no_grad():
            for ps, rows in self._blocks():
                block = self.cost.detach()[ps, rows]
                there = ~block.isinf()
                block = torch.where(there, block, 0.0)
                if kind == "mean":
                    total[ps] += block.sum((-2, -1), dtype=torch.float64)
                    count[ps] += there.sum((-2, -1))
                else:
                    largest[ps] = torch.maximum(largest[ps], block.abs().amax((-2, -1)).double())
        return total / count.clamp(min=1) if kind == "mean" else largest

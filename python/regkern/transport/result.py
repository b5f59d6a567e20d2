"""What an entropic transport problem's solution is: potentials, and a plan that is not formed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern.transport.implicit import Engine
from regkern.transport.small import weights_or_uniform

Given = tuple[Tensor | None, Tensor | None, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Transport:
    r"""The solution of :func:`sinkhorn`; leading dimensions are those of the batch.

    .. math::
        P_{ij} = a_i b_j \exp\left(\frac{f_i + g_j - C_{ij}}{\varepsilon}\right)

    Attributes
    ----------
    f, g : Tensor
        The potentials (..., n) and (..., m); where both marginals are hard,
        :math:`\langle a, f\rangle = \langle b, g\rangle`. float32, or float64 of float64 costs.
    value : Tensor
        The dual objective (...), differentiable.
    error : Tensor
        What the plan's row marginals miss, in L1 and relative to the mass (...); its column
        marginals are exact. Where a side is soft, what they miss of the optimality condition
        :math:`P 1 = a\, e^{-f/\rho}`.
    iterations : Tensor
        int32 (...).
    status : Tensor
        int8 (...): 0 converged, 1 stopped at ``max_iter``, 2 infeasible or not a number.
    """

    f: Tensor
    g: Tensor
    value: Tensor
    error: Tensor
    iterations: Tensor
    status: Tensor
    _engine: Engine = field(repr=False)
    # a, b, f, g and ε of B problems, double and dense; no a is 1/n.
    _given: Given = field(repr=False)
    _batch: tuple[int, ...] = field(repr=False)

    @property
    def _problem(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        a, b, f, g, eps = self._given
        return weights_or_uniform(a, f), weights_or_uniform(b, g), f, g, eps

    def _back(self, x: Tensor) -> Tensor:
        return x.reshape((*self._batch, *x.shape[1:]))

    @property
    def cost(self) -> Tensor:
        r""":math:`\langle P, C\rangle` (...), in one pass over the costs, without gradients."""
        with torch.no_grad():
            return self._back(self._engine.mean_cost(*self._problem)).to(self.value.dtype)

    def plan(self) -> Tensor:
        """P (..., n, m), of the dtype of the costs.

        Differentiable where ``sinkhorn`` was called with ``gradient="implicit"`` or ``"unroll"``,
        and without gradients otherwise.
        """
        return self._back(self._engine.plan(*self._problem))

    def apply(self, v: Tensor, side: str = "rows") -> Tensor:
        r""":math:`P v` (..., n, k) of v (..., m, k), or with ``side="columns"`` :math:`P^T v`
        (..., m, k) of v (..., n, k), without the plan.

        A v without the last dimension gives a result without it. Differentiable in v, and where
        the plan is (:meth:`plan`) in what it depends on, once:

        .. math::
            dv = P^T\,du, \quad dC_{ij} = -\tfrac1\varepsilon P_{ij}\langle du_i, v_j\rangle,
            \quad df_i = \tfrac1\varepsilon\langle du_i, u_i\rangle, \quad
            dg_j = \tfrac1\varepsilon\langle dv_j, v_j\rangle

        of u = P v. A cost's gradient is of its size and nothing else is; those of points take O(n +
        m) numbers, and time in proportion to k d.

        Raises
        ------
        ValueError
            If v does not fit, or ``side`` is neither.
        """
        op = "Transport.apply"
        checks.one_of(op, "side", side, ("rows", "columns"))
        checks.floating(op, "v", v)
        columns = side == "columns"
        batch, n, m = self._engine.shape
        length, depth = (n if columns else m), len(self._batch)
        vector = v.dim() == depth + 1
        if tuple(v.shape[:depth]) != self._batch or v.shape[depth:][:1] != (length,):
            wanted = (*self._batch, length, "k")
            raise ValueError(f"regkern.{op}: expected `v` of shape {wanted}, got {tuple(v.shape)}")
        flat = v.reshape(batch, length, v.shape[-1] if not vector else 1)
        wide = flat if flat.dtype == torch.float64 else flat.float()
        out = self._back(self._engine.apply(*self._problem, wide, columns)).to(v.dtype)
        return out[..., 0] if vector else out

    def argmax(self, side: str = "rows") -> Tensor:
        """Of every row (column) of the plan the place of its largest element, int64; the first of
        equal ones. The rows' weights do not matter for it."""
        checks.one_of("Transport.argmax", "side", side, ("rows", "columns"))
        with torch.no_grad():
            return self._back(self._engine.argmax(*self._problem, side == "columns"))

    def barycentric(self, y: Tensor, side: str = "rows") -> Tensor:
        r"""Where the plan sends every point on average: :math:`\sum_j P_{ij} y_j / \sum_j P_{ij}`.

        y is (..., m, k), or (..., n, k) with ``side="columns"``. Points without mass go where
        their conditional plan, which is a limit, would send them: it is 0 here. Differentiable like
        :meth:`apply`.
        """
        ones = y.new_ones((*y.shape[:-1], 1))
        both = self.apply(torch.cat([y, ones], -1), side)
        mass = both[..., -1:]
        there = mass != 0
        return torch.where(there, both[..., :-1] / torch.where(there, mass, 1.0), 0.0)

"""Budgets of groups: the group envelope (k-support) penalty and top-k groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.proximal import group_prox as ops
from regkern.proximal.groups import Groups, Layout, Weights
from regkern.proximal.penalty import Penalty, ProxReport, threshold


def _least_root(low: Tensor, high: Tensor, slopes: Tensor, caps: Tensor, budget: Tensor) -> Tensor:
    r"""The α with :math:`\sum_g \operatorname{clip}(\text{slope}_g α - \text{offset}_g, 0,
    \text{cap}_g) = \text{budget}`, where piece g rises from ``low`` to ``high``.

    The sum is piecewise linear in α: at the break points in order it is a running sum of slopes,
    and in the segment where it passes the budget the root is a division. NaN gives NaN.
    """
    points = torch.cat([low, high])
    change = torch.cat([slopes, -slopes])
    # What the sum at break point p is: Σ slope (p − low) of begun pieces − Σ slope (p − high).
    order = points.argsort(stable=True)
    points, change = points[order], change[order]
    steep = change.cumsum(0)
    values = points * steep - (change * points).cumsum(0)
    # The first break point where the budget is reached ends the segment.
    reached = (values >= budget).to(torch.int64)
    end = reached.argmax().clamp_min(1)
    found = reached.sum() > 0
    start = points[end - 1]
    rise = (points[end] - start).clamp_min(0)
    slope = steep[end - 1]
    inside = torch.where(slope > 0, (budget - values[end - 1]) / slope, rise)
    alpha = start + torch.minimum(inside.clamp_min(0), rise)
    return torch.where(found, alpha, points[-1])


class GroupEnvelope(Penalty):
    r"""The weighted group sparse envelope (WGSEF), the convex envelope of
    :math:`\tfrac12 \lVert x \rVert^2` on what has at most ``k`` non-zero groups:

    .. math::
        r(x) = \lambda\, \mathrm{gs}_k(x), \qquad
        \mathrm{gs}_k(x) = \tfrac12 \min \Big\{ \sum_g \frac{\lVert x_g \rVert^2}{u_g} :
            0 \le u \le 1,\ \sum_g d_g u_g \le k \Big\}

    With :math:`s_g = \lVert x_g \rVert` and :math:`t = \text{step} \cdot \lambda`, the prox is

    .. math::
        u_g = \operatorname{clip}(\alpha s_g / \sqrt{d_g} - t, 0, 1), \qquad
        x_g \leftarrow x_g\, u_g / (t + u_g)

    where α makes :math:`\sum_g d_g u_g = k`; where all groups that are not zero fit in the
    budget, :math:`x / (1 + t)`.

    Parameters
    ----------
    lam : float or Tensor
        λ, at least 0.
    groups : Groups
        Which elements belong together; the budget is that of the whole list of tensors.
    k : float
        The budget, above 0: how many groups, or how much weight of them.
    weights : {"none", "sqrt"} or Tensor
        :math:`d_g`: 1, the root of the group's size, or a positive number per group.

    Notes
    -----
    A NaN anywhere makes all groups NaN, whose shares depend on each other. Two reads of the
    tensors and a write; between them the root is found among the sorted break
    points, on the device, exactly up to rounding in float64. The budget is soft in one call: more
    than k groups can stay, each with u < 1. With groups of one element and d = 1 it is half the
    squared k-support norm.

    Verified is that `value` and `prox` are those of the envelope stated above, weights included:
    against a numerical minimum over u (SLSQP), and in the tests by bisection. Not verified is that
    the original paper weights the envelope so: it could not be looked up.

    References
    ----------
    "Learning k-level structured sparse neural networks using group envelope regularization"
    (WGSEF); Argyriou, Foygel and Srebro, "Sparse prediction with the k-support norm", 2012.
    """

    def __init__(
        self, lam: float | Tensor, groups: Groups, k: float, weights: Weights = "none"
    ) -> None:
        super().__init__(lam)
        op = "GroupEnvelope"
        if not isinstance(groups, Groups):
            raise TypeError(f"regkern.{op}: expected `groups` to be Groups, got {type(groups)}")
        if isinstance(k, bool) or not isinstance(k, int | float):
            raise TypeError(f"regkern.{op}: expected `k` to be a number, got {k!r}")
        if not k > 0:
            raise ValueError(f"regkern.{op}: expected `k` above 0, got {k}")
        ops.check_weights(op, weights)
        self.groups, self.k, self.weights = groups, float(k), weights

    def _costs(self, layout: Layout, like: Tensor) -> Tensor:
        per_tensor, per_group = ops.weights_of("GroupEnvelope", layout, self.weights, like.device)
        return ops.spread_weights(layout, per_tensor, per_group, like)

    def _shares(self, norms: Tensor, costs: Tensor, t: Tensor) -> Tensor:
        """u at the solution; differentiable in the norms and t through the groups between."""
        with torch.no_grad():
            ratio = norms / costs.sqrt()
            safe = torch.where(ratio > 0, ratio, 1.0)
            alive = ratio > 0
            low = torch.where(alive, t / safe, 0.0)
            high = torch.where(alive, (1.0 + t) / safe, 0.0)
            slopes = torch.where(alive, costs * ratio, 0.0)
            budget = torch.full_like(t, self.k)
            alpha = _least_root(low, high, slopes, costs, budget)
            fits = torch.where(alive, costs, 0.0).sum() <= self.k
            whole = alive & (fits | (alpha * ratio - t >= 1.0))
            between = alive & ~whole & (alpha * ratio - t > 0.0)
            left = self.k - torch.where(whole, costs, 0.0).sum()
            poisoned = norms.isnan().any() | t.isnan()
        # α of the segment in closed form, which is what has a derivative.
        inner = torch.where(between, costs.sqrt() * norms, 0.0).sum()
        weight = torch.where(between, costs, 0.0).sum()
        alpha = (left + t * weight) / torch.where(inner > 0, inner, 1.0)
        u = torch.where(between, (alpha * norms / costs.sqrt() - t).clamp(0.0, 1.0), 0.0)
        u = torch.where(whole, 1.0, u)
        return torch.where(poisoned, torch.nan, u)

    def _factors(self, norms: Tensor, costs: Tensor, t: Tensor) -> Tensor:
        u = self._shares(norms, costs, t)
        total = t + u
        factors = u / torch.where(total == 0, 1.0, total)
        # A zero group stays what it is; a step or λ of 0 is the identity, one of infinity gives 0.
        factors = torch.where((norms == 0) & ~u.isnan(), 1.0, factors)
        nothing = torch.where(norms.isnan().any(), torch.nan, 0.0)
        factors = torch.where(t == torch.inf, nothing, factors)
        return torch.where(t == 0, 1.0, factors)

    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """r(x), 0-d and differentiable: the derivative by a group is :math:`λ x_g / u_g`."""
        tensors = ops.tensors_of_one_dtype("GroupEnvelope", "x", x)
        layout = self.groups.layout(tensors)
        costs = self._costs(layout, tensors[0])
        squares = ops.group_squares(tensors, layout)
        zero = torch.zeros((), dtype=torch.float64, device=squares.device)
        u = self._shares(ops.root(squares), costs, zero)
        none = (squares == 0) & ~u.isnan()
        inverse = torch.where(none, 0.0, 1.0 / torch.where(none, 1.0, u))
        lam = threshold(tensors[0], self.lam)
        return (0.5 * ops.weighted_sum(squares, inverse) * lam.double()).to(lam.dtype)

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The proximal operator, differentiable in x, ``step`` and ``lam`` by regimes."""
        checks.floating("GroupEnvelope", "x", x)
        checks.scale("GroupEnvelope", "step", step)
        layout = self.groups.layout([x])
        norms = ops.root(ops.group_squares([x], layout))
        t = threshold(x, step, self.lam).double()
        return ops.group_scaled(x, self._factors(norms, self._costs(layout, x), t), layout)

    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        """The proximal operator in place; one budget for the whole list."""
        listed = ops.tensors_of_one_dtype("GroupEnvelope", "tensors", tensors)
        checks.scale("GroupEnvelope", "step", step)
        with torch.no_grad():
            layout = self.groups.layout(listed)
            norms = ops.root(ops.group_squares(listed, layout))
            t = threshold(listed[0], step, self.lam).double()
            factors = self._factors(norms, self._costs(layout, listed[0]), t)
            ops.group_scale_(listed, factors, layout)
            return _report(norms * factors, layout, listed[0])


def _report(norms: Tensor, layout: Layout, like: Tensor) -> ProxReport:
    zeros = (norms == 0).sum()
    return ops.report_of(norms.to(compute_dtype(like)), zeros, layout)


class TopKGroups(Penalty):
    r"""The constraint of at most k non-zero groups in all tensors together. Its prox, whatever the
    step, keeps the groups of the largest scores and zeros the others:

    .. math:: x_g \leftarrow x_g \, 1[g \in \text{the } k \text{ largest of } \text{score}_g]

    Parameters
    ----------
    groups : Groups
        Which elements belong together.
    k : int or float
        How many groups to keep; a float in [0, 1] is a fraction of all groups, rounded down.
    score : {"l2", "rms"}
        The norm of a group, or its root mean square, which compares groups of several sizes.

    Notes
    -----
    Exactly k groups stay: of equal scores those of the lowest index in the list. NaN counts as
    larger than all, so that it stays to be seen. Two reads of the tensors and a write of what
    changes; scores are sorted on the device, and nothing waits for it.
    """

    def __init__(self, groups: Groups, k: int | float, score: Literal["l2", "rms"] = "l2") -> None:
        super().__init__(1.0)
        op = "TopKGroups"
        if not isinstance(groups, Groups):
            raise TypeError(f"regkern.{op}: expected `groups` to be Groups, got {type(groups)}")
        if isinstance(k, bool) or not isinstance(k, int | float):
            raise TypeError(f"regkern.{op}: expected `k` to be a number, got {k!r}")
        if k < 0 or (isinstance(k, float) and not k <= 1.0):
            raise ValueError(
                f"regkern.{op}: expected `k` as a count of at least 0 or a fraction in [0, 1], "
                f"got {k}"
            )
        checks.one_of(op, "score", score, ("l2", "rms"))
        self.groups, self.k, self.score = groups, k, score

    def _kept(self, norms: Tensor, layout: Layout, like: Tensor) -> Tensor:
        """1 for the groups that stay, 0 for the others."""
        count = norms.shape[0]
        k = min(int(self.k * count) if isinstance(self.k, float) else self.k, count)
        scores = norms
        if self.score == "rms":
            per_tensor, per_group = ops.weights_of("TopKGroups", layout, "sqrt", like.device)
            scores = norms / ops.spread_weights(layout, per_tensor, per_group, like)
        scores = torch.where(scores.isnan(), torch.inf, scores)
        order = scores.sort(descending=True, stable=True).indices
        kept = torch.zeros_like(norms)
        return kept.index_fill_(0, order[:k], 1.0)

    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """0 where at most k groups are not zero, infinity elsewhere."""
        tensors = ops.tensors_of_one_dtype("TopKGroups", "x", x)
        layout = self.groups.layout(tensors)
        norms = ops.root(ops.group_squares([t.detach() for t in tensors], layout))
        kept = self._kept(norms, layout, tensors[0])
        outside = ((norms != 0) & (kept == 0)).any()
        return torch.where(outside, torch.inf, 0.0).to(compute_dtype(tensors[0]))

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The groups that stay; gradients reach those alone."""
        checks.floating("TopKGroups", "x", x)
        layout = self.groups.layout([x])
        norms = ops.root(ops.group_squares([x.detach()], layout))
        return ops.group_scaled(x, self._kept(norms, layout, x), layout)

    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        """Zeros all other groups in place; one budget for the whole list."""
        listed = ops.tensors_of_one_dtype("TopKGroups", "tensors", tensors)
        with torch.no_grad():
            layout = self.groups.layout(listed)
            norms = ops.root(ops.group_squares(listed, layout))
            kept = self._kept(norms, layout, listed[0])
            ops.group_scale_(listed, kept, layout)
            norms = torch.where(kept == 0, 0.0, norms)
            return _report(norms, layout, listed[0])

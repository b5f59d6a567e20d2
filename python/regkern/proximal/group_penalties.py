"""Penalties on the norms of groups: group lasso and what is built like it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.proximal import group_prox as ops
from regkern.proximal.groups import Groups, Weights
from regkern.proximal.penalty import Penalty, ProxReport, threshold


class GroupPenalty(Penalty):
    r"""What all penalties :math:`\lambda \sum_g w_g\, \varphi(\lVert x_g \rVert_2)` have in common.

    The prox scales every group: with :math:`s = \lVert x_g \rVert`,
    :math:`t = \text{step} \cdot w_g` and :math:`r = \arg\min_{r \ge 0} \tfrac12 (r - s)^2 + t\,
    \lambda\, \varphi(r)`,

    .. math:: x_g \leftarrow x_g \, r / s

    A threshold of 0 is the identity bit for bit, one of infinity gives zeros, a zero group stays
    zero with gradient 0, and a NaN makes its own group NaN and no other.

    Parameters
    ----------
    lam : float or Tensor
        λ, at least 0.
    groups : Groups
        Which elements belong together, in each tensor or across tensors.
    weights : {"sqrt", "none"} or Tensor
        :math:`w_g`: the root of the group's size, 1, or a number per group (of the first tensor,
        then of the second, and so on).

    Notes
    -----
    Bytes moved by ``prox_``: groups that are contiguous (rows, filters, blocks, heads of dimension
    0) are read and written once, and groups that do not change are not written; others are read
    twice and written once. Halves are computed in float32, norms and factors in float64, in an
    order that is the same on every machine.
    """

    law = "soft"
    shape = 0.0
    positive = False

    def __init__(self, lam: float | Tensor, groups: Groups, weights: Weights = "sqrt") -> None:
        super().__init__(lam)
        op = type(self).__name__
        if not isinstance(groups, Groups):
            raise TypeError(f"regkern.{op}: expected `groups` to be Groups, got {type(groups)}")
        ops.check_weights(op, weights)
        self.groups = groups
        self.weights = weights

    # What SparseGroup has besides.
    _soft: float | Tensor | None = None
    _l1: tuple[Tensor, ...] | None = None

    def _features(self, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """The weights of single elements, in the type that is computed in."""
        if self._l1 is None:
            return None
        op = type(self).__name__
        if len(self._l1) != len(tensors):
            raise ValueError(
                f"regkern.{op}: expected `l1_weights` for {len(tensors)} tensors, got "
                f"{len(self._l1)}"
            )
        features = []
        for w, x in zip(self._l1, tensors, strict=True):
            if w.shape != x.shape:
                raise ValueError(
                    f"regkern.{op}: expected `l1_weights` of shape {tuple(x.shape)}, got "
                    f"{tuple(w.shape)}"
                )
            features.append(w.to(x.device, compute_dtype(x)))
        return features

    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """r(x), 0-d and differentiable; for several tensors the sum over all groups.

        One read of the tensors, and one more with a write for the gradient. A zero group has
        gradient 0.
        """
        op = type(self).__name__
        tensors = ops.tensors_of_one_dtype(op, "x", x)
        like = tensors[0]
        layout = self.groups.layout(tensors)
        per_tensor, per_group = ops.weights_of(op, layout, self.weights, like.device)
        weights = ops.spread_weights(layout, per_tensor, per_group, like)
        lam = threshold(like, self.lam)
        norms = ops.root(ops.group_squares(tensors, layout))
        value = ops.penalty_value(norms, lam, self.law, self.shape, weights)
        if self.positive:
            negative = torch.stack([(t < 0).any() for t in tensors]).any()
            value = torch.where(negative, math.inf, value)
        if self._soft is not None:
            value = value + self._l1_value(tensors)
        return value.to(lam.dtype)

    def _l1_value(self, tensors: Sequence[Tensor]) -> Tensor:
        assert self._soft is not None
        features = self._features(tensors)
        total = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
        for i, t in enumerate(tensors):
            signs = t.detach().to(compute_dtype(t)).sign()
            if features is not None:
                signs = signs * features[i]
            total = total + ops.product_sum(t.to(signs.dtype), signs)
        return total * threshold(tensors[0], self._soft).double()

    def prox(self, x: Tensor, step: float | Tensor = 1.0, *, out: Tensor | None = None) -> Tensor:
        """The proximal operator, differentiable in x, ``step`` and ``lam``; into ``out`` where
        that is given, and then not recorded."""
        op = type(self).__name__
        checks.floating(op, "x", x)
        checks.scale(op, "step", step)
        features = self._features([x])
        if out is not None:
            checks.same(op, "out", out, x)
            ops.prox_(
                op, [out], [x.detach()], self.groups, self.weights, step, self.lam, self.law,
                self.shape, self._soft, features, self.positive,
            )  # fmt: skip
            return out
        return ops.prox(
            op, x, self.groups, self.weights, step, self.lam, self.law, self.shape, self._soft,
            None if features is None else features[0], self.positive,
        )  # fmt: skip

    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        """The proximal operator in place, of all tensors in one call. Not recorded by autograd.

        Norms are per tensor; where groups have parts in several tensors (``Groups.union``) or no
        slices of their own, one vector for all.
        """
        op = type(self).__name__
        listed = ops.tensors_of_one_dtype(op, "tensors", tensors)
        checks.scale(op, "step", step)
        return ops.prox_(
            op, listed, [], self.groups, self.weights, step, self.lam, self.law, self.shape,
            self._soft, self._features(listed), self.positive,
        )  # fmt: skip


class GroupL2(GroupPenalty):
    r"""Group lasso

    .. math::
        r(x) = \lambda \sum_g w_g \lVert x_g \rVert_2, \qquad
        x_g \leftarrow \left(1 - \frac{t\,\lambda}{\lVert x_g \rVert}\right)_+ x_g

    Parameters
    ----------
    lam, groups, weights
        As for `GroupPenalty`.
    positive : bool
        With the constraint x ≥ 0: the norm is that of the positive part, and negative elements
        become zero.

    References
    ----------
    Yuan and Lin, "Model selection and estimation in regression with grouped variables", 2006.
    """

    def __init__(
        self,
        lam: float | Tensor,
        groups: Groups,
        weights: Weights = "sqrt",
        positive: bool = False,
    ) -> None:
        super().__init__(lam, groups, weights)
        self.positive = positive


class SparseGroup(GroupPenalty):
    r"""Sparse group lasso

    .. math::
        r(x) = \lambda_{\text{group}} \sum_g w_g \lVert x_g \rVert_2
             + \lambda_{\ell_1} \sum_i v_i \lvert x_i \rvert

    The prox is the soft threshold of the elements, then the group soft threshold, in one pass.

    Parameters
    ----------
    lam_group, lam_l1 : float or Tensor
        The two factors, at least 0. ``lam_group`` is also ``lam``.
    groups, weights
        As for `GroupPenalty`. Elements of no group are left alone by both parts of the prox.
    l1_weights : Tensor or sequence of Tensor, optional
        :math:`v_i`, of the shape of the tensor or of each of them (default: 1).
    positive : bool
        With the constraint x ≥ 0.

    References
    ----------
    Simon, Friedman, Hastie and Tibshirani, "A sparse-group lasso", 2013.
    """

    def __init__(
        self,
        lam_group: float | Tensor,
        lam_l1: float | Tensor,
        groups: Groups,
        weights: Weights = "sqrt",
        l1_weights: Tensor | Sequence[Tensor] | None = None,
        positive: bool = False,
    ) -> None:
        super().__init__(lam_group, groups, weights)
        checks.scale("SparseGroup", "lam_l1", lam_l1)
        self.lam_l1 = lam_l1
        self.positive = positive
        if l1_weights is not None:
            self._l1 = tuple(checks.tensor_list("SparseGroup", "l1_weights", l1_weights))

    @property
    def _soft(self) -> float | Tensor:  # type: ignore[override]
        return self.lam_l1


class GroupL0(GroupPenalty):
    r"""The number of groups that are not zero, :math:`r(x) = \lambda \sum_g w_g 1[x_g \ne 0]`.

    The prox keeps the groups with :math:`\lVert x_g \rVert > \sqrt{2 t \lambda}`.
    """

    law = "hard"


class _Shaped(GroupPenalty):
    """A law with a parameter that shapes it."""

    def _set(self, name: str, value: float, least: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"regkern.{type(self).__name__}: expected `{name}` to be a number, got {value!r}"
            )
        if not value > least:
            raise ValueError(
                f"regkern.{type(self).__name__}: expected `{name}` above {least}, got {value}"
            )
        self.shape = float(value)


class GroupMCP(_Shaped):
    r"""Group minimax concave penalty: :math:`\lambda s - s^2 / (2 \gamma)` up to
    :math:`s = \gamma \lambda` and constant beyond, with :math:`s = \lVert x_g \rVert`.

    Parameters
    ----------
    lam, groups, weights
        As for `GroupPenalty`.
    gamma : float
        Above 0. Where the prox has more than one local minimum (step · weight ≥ γ) it takes the
        global one.

    References
    ----------
    Zhang, "Nearly unbiased variable selection under minimax concave penalty", 2010.
    """

    law = "mcp"

    def __init__(
        self,
        lam: float | Tensor,
        groups: Groups,
        gamma: float = 3.0,
        weights: Weights = "sqrt",
    ) -> None:
        super().__init__(lam, groups, weights)
        self._set("gamma", gamma, 0.0)


class GroupSCAD(_Shaped):
    r"""Group smoothly clipped absolute deviation: slope λ up to :math:`s = \lambda`, falling to 0
    at :math:`a \lambda`, with :math:`s = \lVert x_g \rVert`.

    Parameters
    ----------
    lam, groups, weights
        As for `GroupPenalty`.
    a : float
        Above 1. Beyond the convex domain of the prox (step · weight ≥ a − 1) it takes the global
        minimum.

    References
    ----------
    Fan and Li, "Variable selection via nonconcave penalized likelihood", 2001.
    """

    law = "scad"

    def __init__(
        self,
        lam: float | Tensor,
        groups: Groups,
        a: float = 3.7,
        weights: Weights = "sqrt",
    ) -> None:
        super().__init__(lam, groups, weights)
        self._set("a", a, 1.0)


class GroupLHalf(GroupPenalty):
    r"""The root of the norms, :math:`r(x) = \lambda \sum_g w_g \lVert x_g \rVert^{1/2}`.

    References
    ----------
    Xu, Chang, Xu and Zhang, "L1/2 regularization: a thresholding representation theory", 2012.
    """

    law = "half"


class GroupLogSum(_Shaped):
    r"""Log-sum, :math:`r(x) = \lambda \sum_g w_g \ln(1 + \lVert x_g \rVert / \varepsilon)`.

    Parameters
    ----------
    lam, groups, weights
        As for `GroupPenalty`.
    eps : float
        Above 0.

    References
    ----------
    Candès, Wakin and Boyd, "Enhancing sparsity by reweighted l1 minimization", 2008.
    """

    law = "log_sum"

    def __init__(
        self,
        lam: float | Tensor,
        groups: Groups,
        eps: float = 1.0,
        weights: Weights = "sqrt",
    ) -> None:
        super().__init__(lam, groups, weights)
        self._set("eps", eps, 0.0)


class TreeGroups(Penalty):
    r"""Hierarchical group lasso: groups of which any two are nested or disjoint,

    .. math:: r(x) = \lambda \sum_{\ell} c_\ell \sum_{g \in \ell} w_g \lVert x_g \rVert_2

    The prox is the group soft thresholds of the levels one after the other, from the leaves to the
    root, which is exact for a tree.

    Parameters
    ----------
    lam : float or Tensor
        λ, at least 0.
    levels : sequence of Groups
        From the leaves to the root. Every group of a level is inside one group of the next; that
        is for the caller to see to.
    weights : {"sqrt", "none"}
        The weight of a group: the root of its size, or 1.
    level_weights : sequence of float, optional
        :math:`c_\ell` (default: 1).

    References
    ----------
    Jenatton, Mairal, Obozinski and Bach, "Proximal methods for hierarchical sparse coding", 2011.
    """

    def __init__(
        self,
        lam: float | Tensor,
        levels: Sequence[Groups],
        weights: Weights = "sqrt",
        level_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(lam)
        if level_weights is None:
            level_weights = [1.0] * len(levels)
        if len(levels) == 0 or len(level_weights) != len(levels):
            raise ValueError(
                "regkern.TreeGroups: expected at least one level and a weight for each, got "
                f"{len(levels)} levels and {len(level_weights)} weights"
            )
        for w in level_weights:
            checks.scale("TreeGroups", "level_weights", w)
        self.level_weights = tuple(level_weights)
        self.levels = tuple(GroupL2(1.0, groups, weights) for groups in levels)

    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """r(x), 0-d and differentiable."""
        tensors = ops.tensors_of_one_dtype("TreeGroups", "x", x)
        parts = [
            level.value(tensors) * w
            for level, w in zip(self.levels, self.level_weights, strict=True)
        ]
        total = torch.stack(parts).sum()
        return total * threshold(total, self.lam)

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The proximal operator, differentiable in x, ``step`` and ``lam``; a pass per level."""
        checks.floating("TreeGroups", "x", x)
        checks.scale("TreeGroups", "step", step)
        for level, w in zip(self.levels, self.level_weights, strict=True):
            x = level.prox(x, threshold(x, step, self.lam, w))
        return x

    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        """The proximal operator in place, a pass per level. Reports the groups of the root."""
        listed = ops.tensors_of_one_dtype("TreeGroups", "tensors", tensors)
        checks.scale("TreeGroups", "step", step)
        report = ProxReport((), torch.zeros((), dtype=torch.int64))
        for level, w in zip(self.levels, self.level_weights, strict=True):
            report = level.prox_(listed, threshold(listed[0], step, self.lam, w))
        return report

"""Group penalties on norms other than one Euclidean norm per group of a partition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import function_apply, once_only
from regkern.proximal import group_prox as ops
from regkern.proximal.groups import Groups, Layout, Weights
from regkern.proximal.latent_groups import latent_group_prox, latent_groups
from regkern.proximal.penalty import Penalty, ProxReport, threshold
from regkern.proximal.projections import (
    Lines,
    check_dim,
    prox_exclusive_lasso,
    prox_linf,
    prox_linf_,
)


def _check_dim(op: str, dim: object) -> None:
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"regkern.{op}: expected `dim` to be an int, got {dim!r}")


def _scaled(parts: Sequence[Tensor], lam: float | Tensor, like: Tensor) -> Tensor:
    """λ times the sum of float64 numbers, in the type that is computed in."""
    factor = threshold(like, lam)
    return (ops.weighted_sum(torch.stack(list(parts))) * factor.double()).to(factor.dtype)


class GroupLinf(Penalty):
    r"""Group lasso with the largest magnitude as norm

    .. math::
        r(x) = \lambda \sum_g w_g \lVert x_g \rVert_\infty, \qquad
        x_g \leftarrow \min(\max(x_g, -\theta_g), \theta_g), \qquad
        \sum_{i \in g} [|x_i| - \theta_g]_+ = \tau \lambda w_g

    and :math:`x_g \leftarrow 0` where :math:`\lVert x_g \rVert_1 \le \tau \lambda w_g`. Unlike the
    Euclidean norm it pulls the elements of a group that stays to one magnitude.

    Parameters
    ----------
    lam : float or Tensor
        λ, at least 0.
    dim : int
        A group has the elements of one index of this dimension: with 0, the weights of one output
        channel.
    weights : {"sqrt", "none"} or Tensor
        :math:`w_g`: the root of the group's size, 1, or a number per group (of the first tensor,
        then of the second, and so on).

    Notes
    -----
    ``prox_`` is one call for the whole list (`prox_linf_`): every element is read and written once,
    and the report has the largest magnitude of each group as its norm. The prox is exact, with
    thresholds in float64. The gradient of ``value`` is shared evenly by the elements of the
    largest magnitude, and 0 for a zero group. A NaN or an infinity makes its own group NaN and no
    other.

    References
    ----------
    J. A. Tropp, A. C. Gilbert and M. J. Strauss, "Algorithms for simultaneous sparse approximation.
    Part II: convex relaxation", Signal Processing 86, 2006.
    """

    def __init__(self, lam: float | Tensor, dim: int = 0, weights: Weights = "sqrt") -> None:
        super().__init__(lam)
        _check_dim("GroupLinf", dim)
        ops.check_weights("GroupLinf", weights)
        self.dim = dim
        self.weights = weights

    def _weights(self, tensors: Sequence[Tensor]) -> list[float | Tensor]:
        """For each tensor the weight of its groups, or the vector of their weights."""
        counts = [t.shape[check_dim("GroupLinf", t, self.dim)] for t in tensors]
        if isinstance(self.weights, Tensor):
            if self.weights.numel() != sum(counts):
                raise ValueError(
                    f"regkern.GroupLinf: expected `weights` for {sum(counts)} groups, got "
                    f"{self.weights.numel()}"
                )
            each = self.weights.to(tensors[0].device, torch.float64)
            return list(torch.split(each, counts))
        if self.weights == "none":
            return [1.0] * len(tensors)
        sizes = [t.numel() // max(n, 1) for t, n in zip(tensors, counts, strict=True)]
        return [math.sqrt(n) for n in sizes]

    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """r(x), 0-d and differentiable; for several tensors the sum over all groups."""
        tensors = checks.tensor_list("GroupLinf", "x", x)
        parts = []
        for t, w in zip(tensors, self._weights(tensors), strict=True):
            dim = check_dim("GroupLinf", t, self.dim)
            others = [d for d in range(t.dim()) if d != dim]
            if t.numel() == 0:
                top = t.new_zeros(t.shape[dim], dtype=torch.float64)
            elif others:
                top = t.abs().amax(others).double()
            else:
                top = t.abs().double()
            if isinstance(w, Tensor):
                parts.append(ops.weighted_sum(top, w))
            else:
                parts.append(ops.weighted_sum(top) * w)
        return _scaled(parts, self.lam, tensors[0])

    def _threshold(self, x: Tensor, w: float | Tensor, step: float | Tensor) -> Tensor:
        if not isinstance(w, Tensor):
            return threshold(x, step, self.lam, w)
        # A weight of 0 leaves its group alone, whatever the step.
        return torch.where(w == 0, 0.0, threshold(x, step, self.lam) * w)

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The proximal operator, differentiable in x, ``step`` and ``lam``."""
        checks.floating("GroupLinf", "x", x)
        checks.scale("GroupLinf", "step", step)
        (w,) = self._weights([x])
        t = self._threshold(x, w, step)
        lines = Lines(x, check_dim("GroupLinf", x, self.dim))
        rows = lines.x.movedim(lines.dim, 0)
        groups = rows.shape[0]
        flat = rows.reshape(groups, x.numel() // max(groups, 1))
        return lines.back(prox_linf(flat, t).reshape(rows.shape).movedim(0, lines.dim))

    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        """The proximal operator in place, of all tensors in one call. Not recorded by autograd."""
        listed = checks.tensor_list("GroupLinf", "tensors", tensors)
        checks.scale("GroupLinf", "step", step)
        with torch.no_grad():
            ts = [
                self._threshold(x, w, step)
                for x, w in zip(listed, self._weights(listed), strict=True)
            ]
        return prox_linf_(listed, ts, self.dim)


class ExclusiveLasso(Penalty):
    r"""Squared l1 norms, which let the elements of a group compete

    .. math::
        r(x) = \frac{\lambda}{2} \sum_g \Bigl(\sum_{i \in g} |x_i|\Bigr)^2, \qquad
        x_i \leftarrow \operatorname{sign}(x_i) [|x_i| - \tau \lambda S_g]_+

    with :math:`S_g` the l1 norm of the group after the prox. Sparse inside of every group; no
    group becomes zero as a whole.

    Parameters
    ----------
    lam : float or Tensor
        λ, at least 0.
    dim : int
        The elements along this dimension compete: one group per index of all the others.

    Notes
    -----
    ``prox_`` is the functional prox and a copy, tensor by tensor: every element is read twice and
    written twice. It reports single elements: no norms, and how many elements are zero. A NaN or
    an infinity makes its own group NaN and no other. ``value`` reads x and its signs once.

    References
    ----------
    Y. Zhou, R. Jin and S. Hoi, "Exclusive lasso for multi-task feature selection", AISTATS 2010.
    """

    def __init__(self, lam: float | Tensor, dim: int) -> None:
        super().__init__(lam)
        _check_dim("ExclusiveLasso", dim)
        self.dim = dim
        self._groups: dict[tuple[int, ...], Groups] = {}

    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """r(x), 0-d and differentiable; for several tensors the sum over all groups. An element
        that is zero has gradient 0."""
        tensors = checks.tensor_list("ExclusiveLasso", "x", x)
        parts = []
        for t in tensors:
            dim = check_dim("ExclusiveLasso", t, self.dim)
            kept = tuple(d for d in range(t.dim()) if d != dim)
            groups = self._groups.setdefault(kept, Groups.kept(kept))
            layout = groups.layout([t])
            norms = ops._sum(t, t.detach().sign(), layout.geometry, *layout.mapping)
            parts.append(0.5 * ops.product_sum(norms, norms))
        return _scaled(parts, self.lam, tensors[0])

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The proximal operator, differentiable in x, ``step`` and ``lam``."""
        checks.floating("ExclusiveLasso", "x", x)
        checks.scale("ExclusiveLasso", "step", step)
        return prox_exclusive_lasso(x, threshold(x, step, self.lam), self.dim)

    @torch.no_grad()
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        """The proximal operator in place. Not recorded by autograd."""
        listed = checks.tensor_list("ExclusiveLasso", "tensors", tensors)
        return ProxReport((), _in_place(self, listed, step))


def _in_place(penalty: Penalty, tensors: Sequence[Tensor], step: float | Tensor) -> Tensor:
    """The functional prox and a copy for each; how many elements are zero."""
    zeros = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for x in tensors:
        y = penalty.prox(x, step)
        x.copy_(y)
        zeros = zeros + (y == 0).sum()
    return zeros


# ---- overlapping groups ----


class _Cover:
    """What groups over n indices are to the prox and to the value, on one device."""

    def __init__(
        self,
        op: str,
        groups: Sequence[Tensor],
        colours: Sequence[int],
        weights: Weights,
        n: int,
        dim: int | None,
        device: torch.device,
    ) -> None:
        top = max(int(g.max()) for g in groups)
        if top >= n:
            raise ValueError(f"regkern.{op}: expected `groups` of indices below {n}, got {top}")
        self.latent, self.order = latent_groups(groups, colours, n, device)
        covered = torch.zeros(n, dtype=torch.bool)
        covered[torch.cat(list(groups))] = True
        self.covered = covered.to(device)
        # The pairs (group, member): members by group, and groups by member.
        members = torch.cat(list(groups))
        sizes = torch.tensor([g.numel() for g in groups])
        order = torch.sort(members, stable=True).indices
        self.members = members.to(device)
        self.group_of = torch.arange(len(groups)).repeat_interleave(sizes)[order].to(device)
        self.by_group = Groups.pointers(_pointers(sizes))
        self.by_member = Groups.pointers(_pointers(torch.bincount(members, minlength=n)))
        self.sizes = sizes.to(device, torch.float64)
        self.given = weights.to(device, torch.float64) if isinstance(weights, Tensor) else None
        self.plain = isinstance(weights, str) and weights == "none"

    def weights(self, inner: int) -> Tensor:
        """Of the groups, float64, with ``inner`` elements at every index."""
        if self.given is not None:
            return self.given
        return torch.ones_like(self.sizes) if self.plain else (self.sizes * inner).sqrt()


def _pointers(sizes: Tensor) -> Tensor:
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


class _LatentNorm(torch.autograd.Function):
    """The latent norm as a function of the squares of the indices.

    The factors that attain the minimum do not count in its derivative: it is 1 / (2 ζ).
    """

    @staticmethod
    def forward(squares: Tensor, w: Tensor, cover: _Cover, sweeps: int) -> tuple[Tensor, Tensor]:
        by_group = cover.by_group.layout([cover.members])
        by_member = cover.by_member.layout([cover.members])
        root = squares.sqrt()

        def spread(factors: Tensor) -> Tensor:
            return ops.group_squares([factors.sqrt()[cover.group_of]], by_member)

        def ratio(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))

        factors = ops.group_squares([root[cover.members]], by_group).sqrt() / w
        for _ in range(sweeps):
            u = ratio(root, spread(factors))
            factors = factors * (ops.group_squares([u[cover.members]], by_group).sqrt() / w)
        total = spread(factors)
        value = 0.5 * (
            ops.weighted_sum(ratio(squares, total)) + ops.weighted_sum(factors, w.square())
        )
        infinite = (root.isinf() & cover.covered).any() & ~(root.isnan() & cover.covered).any()
        return torch.where(infinite, math.inf, value), 0.5 * ratio(torch.ones_like(total), total)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    @once_only("OverlappingGroupL2")
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
        _, slope = ctx.saved_tensors
        return g * slope, None, None, None


class OverlappingGroupL2(Penalty):
    r"""Latent group lasso: groups that overlap, and a support that is a union of groups

    .. math::
        r(x) = \lambda \min_{\sum_g v_g = x} \sum_g w_g \lVert v_g \rVert_2
             = \lambda \max_{\lVert u_g \rVert_2 \le w_g} \langle u, x \rangle

    where :math:`v_g` is zero outside of its group. The prox is what the projection onto the
    intersection of the balls :math:`\lVert u_g \rVert \le \tau \lambda w_g` leaves of x:

    .. math:: x - P(x) = \sum_g v_g, \qquad
        v_g \leftarrow \left(1 - \frac{\tau \lambda w_g}{\lVert s \rVert}\right)_+ s, \quad
        s = \Bigl(x - \sum_{h \ne g} v_h\Bigr)_g

    which are the corrections of Dykstra's algorithm. Unlike with a sum of group norms, a group that
    is chosen does not lose elements to neighbours that are not.

    Parameters
    ----------
    lam : float or Tensor
        λ, at least 0.
    groups : sequence of Tensor or of sequences of int, or sparse CSR Tensor
        The indices of each group: of elements of the flattened tensor, or of ``dim``. Or a sparse
        CSR matrix with a row per group, whose columns that are stored are its indices. No group is
        empty or has an index twice. Indices of no group are left alone and do not count.
    weights : {"sqrt", "none"} or Tensor
        :math:`w_g > 0`: the root of the group's size, 1, or a number per group.
    dim : int, optional
        The groups are of indices of this dimension instead of single elements.
    sweeps : int
        How often the prox passes over all groups. One is exact where no groups overlap.
    value_sweeps : int
        How many iterations ``value`` takes.

    Notes
    -----
    At construction groups are coloured, in the order given, so that those of one colour are
    disjoint. A sweep takes one group after the other, all of a colour at the same time, and reads
    and writes a number in double for each member of each group and for each element; the sum over
    the parts at the end is the result. Derivatives go through all sweeps and keep a number for
    each member and sweep; a second one takes the sweeps once more in torch's ops. A fixed number
    of sweeps: nothing waits for the device. The error falls geometrically on common overlaps,
    slower where many groups share most of their elements.

    ``value`` iterates :math:`\eta_g \leftarrow \lVert v_g \rVert / w_g` in
    :math:`\tfrac12 \sum_i x_i^2 / \zeta_i + \tfrac12 \sum_g w_g^2 \eta_g`,
    :math:`\zeta_i = \sum_{g \ni i} \eta_g`, whose minimum is the norm: it is an upper bound, never
    rising with more sweeps, in float64. Its gradient is :math:`x / \zeta`; a second derivative is
    refused.

    A NaN spreads to the groups that overlap with its own, and to those that overlap with these.
    ``prox_`` is the functional prox and a copy, and reports single elements: no norms, and how many
    elements are zero. All tensors of a list have the same groups.

    References
    ----------
    L. Jacob, G. Obozinski and J.-P. Vert, "Group lasso with overlap and graph lasso", ICML 2009.
    G. Obozinski, L. Jacob and J.-P. Vert, "Group lasso with overlaps: the latent group lasso
    approach", arXiv:1110.0413, 2011.
    """

    def __init__(
        self,
        lam: float | Tensor,
        groups: Tensor | Sequence[Tensor | Sequence[int]],
        weights: Weights = "sqrt",
        dim: int | None = None,
        sweeps: int = 100,
        value_sweeps: int = 200,
    ) -> None:
        super().__init__(lam)
        op = "OverlappingGroupL2"
        ops.check_weights(op, weights)
        if dim is not None:
            _check_dim(op, dim)
        for name, count in (("sweeps", sweeps), ("value_sweeps", value_sweeps)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"regkern.{op}: expected `{name}` to be an int, got {count!r}")
            checks.at_least(op, name, count, 1)
        self._members = _index_lists(op, groups)
        if isinstance(weights, Tensor):
            if weights.numel() != len(self._members):
                raise ValueError(
                    f"regkern.{op}: expected `weights` for {len(self._members)} groups, got "
                    f"{weights.numel()}"
                )
            if not bool(((weights > 0) & weights.isfinite()).all()):
                raise ValueError(
                    f"regkern.{op}: expected `weights` that are positive and finite, got {weights}"
                )
        self.weights = weights.cpu() if isinstance(weights, Tensor) else weights
        self.dim = dim
        self.sweeps = sweeps
        self.value_sweeps = value_sweeps
        self._colours = _colours(self._members)
        self._covers: dict[tuple[int, torch.device], _Cover] = {}

    def _cover(self, x: Tensor) -> _Cover:
        n = x.numel()
        if self.dim is not None:
            n = x.shape[check_dim("OverlappingGroupL2", x, self.dim)]
        key = (n, x.device)
        if key not in self._covers:
            self._covers[key] = _Cover(
                "OverlappingGroupL2",
                self._members,
                self._colours,
                self.weights,
                n,
                self.dim,
                x.device,
            )
        return self._covers[key]

    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """r(x), 0-d and differentiable; for several tensors the sum over them."""
        tensors = checks.tensor_list("OverlappingGroupL2", "x", x)
        parts = []
        for t in tensors:
            cover = self._cover(t)
            flat = t.reshape(-1) if self.dim is None else t
            kept = Groups.kept(0 if self.dim is None else self.dim)
            layout: Layout = kept.layout([flat])
            squares = ops.group_squares([flat], layout)
            w = cover.weights(t.numel() // max(squares.numel(), 1))
            parts.append(function_apply(_LatentNorm, squares, w, cover, self.value_sweeps)[0])
        return _scaled(parts, self.lam, tensors[0])

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The proximal operator, differentiable in x, ``step`` and ``lam``."""
        op = "OverlappingGroupL2"
        checks.floating(op, "x", x)
        checks.scale(op, "step", step)
        cover = self._cover(x)
        t = threshold(x, step, self.lam)
        shape = (1, x.numel(), 1)
        if self.dim is not None:
            dim = self.dim % x.dim()
            shape = (math.prod(x.shape[:dim]), x.shape[dim], math.prod(x.shape[dim + 1 :]))
        w = cover.weights(shape[0] * shape[2])[cover.order.to(x.device)]
        # Groups that do not overlap are done after one.
        sweeps = self.sweeps if len(cover.latent.colours) > 1 else 1
        y = latent_group_prox(x.reshape(shape), cover.latent, w, t, sweeps)
        return y.reshape(x.shape)

    @torch.no_grad()
    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        """The proximal operator in place. Not recorded by autograd."""
        listed = checks.tensor_list("OverlappingGroupL2", "tensors", tensors)
        return ProxReport((), _in_place(self, listed, step))


def _index_lists(op: str, groups: object) -> list[Tensor]:
    """The indices of each group, int64 on the CPU."""
    if isinstance(groups, Tensor):
        if groups.layout != torch.sparse_csr or groups.dim() != 2:
            raise ValueError(
                f"regkern.{op}: expected `groups` to be a list of indices or a sparse CSR matrix, "
                f"got a tensor of shape {tuple(groups.shape)} and layout {groups.layout}"
            )
        sizes = groups.crow_indices().diff().tolist()
        lists = list(torch.split(groups.col_indices().cpu().long(), sizes))
    elif isinstance(groups, Sequence) and not isinstance(groups, str):
        lists = [torch.as_tensor(g).cpu() for g in groups]
    else:
        raise TypeError(f"regkern.{op}: expected `groups` to be a list, got {type(groups)}")
    if not lists:
        raise ValueError(f"regkern.{op}: expected at least one group, got none")
    for i, g in enumerate(lists):
        if g.dim() != 1 or g.numel() == 0:
            raise ValueError(
                f"regkern.{op}: expected `groups[{i}]` of one dimension and at least one index, "
                f"got {tuple(g.shape)}"
            )
        if g.is_floating_point() or g.is_complex() or g.dtype == torch.bool:
            raise TypeError(f"regkern.{op}: expected `groups[{i}]` of integers, got {g.dtype}")
        if int(g.min()) < 0:
            raise ValueError(
                f"regkern.{op}: expected `groups[{i}]` of indices of at least 0, got {int(g.min())}"
            )
        if len(set(g.tolist())) != g.numel():
            raise ValueError(
                f"regkern.{op}: expected each index of `groups[{i}]` once, got {g.tolist()}"
            )
    return [g.long() for g in lists]


def _colours(groups: Sequence[Tensor]) -> list[int]:
    """For each group the first colour that none of the earlier ones it overlaps with has."""
    taken: dict[int, int] = {}
    colours = []
    for g in groups:
        members = g.tolist()
        used = 0
        for i in members:
            used |= taken.get(i, 0)
        free = ~used & (used + 1)
        colours.append(free.bit_length() - 1)
        for i in members:
            taken[i] = taken.get(i, 0) | free
    return colours

"""Transport between clouds of points, whose costs are computed as they are needed: the raw ops,
their derivatives, and the engine."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern._registration import compute_dtype, once_only, register
from regkern.transport.dense import Potentials, Settings

COSTS = ("sqeuclidean", "half_sqeuclidean", "euclidean", "cosine", "dot")
SQUARES = ("sqeuclidean", "half_sqeuclidean")
PANEL = 128
FEW_DIMENSIONS = 8

# ---- raw ops: fake kernels and autograd ----


def _fake_softmin(rows: Tensor, *rest: Any) -> Tensor:
    return rows.new_empty(rows.shape[:2], dtype=torch.float64)


def _fake_apply(rows: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    values = rest[-2]
    sums = rows.new_empty(rows.shape[:2], dtype=torch.float64)
    return sums, rows.new_empty((*rows.shape[:2], values.shape[2]))


def _fake_solve(x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    batch, n, m = x.shape[0], x.shape[1], y.shape[1]
    double = torch.float64
    return (
        x.new_empty((batch, n), dtype=double),
        x.new_empty((batch, m), dtype=double),
        x.new_empty((batch,), dtype=double),
        x.new_empty((batch,), dtype=torch.int32),
        x.new_empty((batch,), dtype=torch.int8),
    )


_softmin = register("transport_points_softmin", _fake_softmin)
_argmax = register(
    "transport_points_argmax",
    lambda rows, *rest: rows.new_empty(rows.shape[:2], dtype=torch.int64),
)
_apply = register("transport_points_apply", _fake_apply)
_solve = register("transport_points_solve", _fake_solve)


def to_panels(rows: Tensor) -> Tensor:
    """Points (B, m, d) as panels (B, ceil(m / 128), d, 128), with zeros behind the last."""
    batch, m, d = rows.shape
    panels = (m + PANEL - 1) // PANEL
    padded = torch.nn.functional.pad(rows, (0, 0, 0, panels * PANEL - m))
    return padded.reshape(batch, panels, PANEL, d).mT.contiguous()


def from_panels(panels: Tensor, m: int) -> Tensor:
    """The inverse of `to_panels`."""
    batch, count, d, _ = panels.shape
    return panels.mT.reshape(batch, count * PANEL, d)[:, :m]


def _finite(x: Tensor) -> Tensor:
    """Potentials, with 0 for points without partners: what they are multiplied by is 0."""
    return torch.where(x.isinf(), 0.0, x)


def _softmin_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7], output)
    ctx.kernel, ctx.factor = inputs[7:]


@once_only("transport_points_softmin")
def _softmin_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The softmin's weights W are a plan with marginal 1 on the side of the rows."""
    rows, panels, row_terms, column_terms, weights, potential, eps, out = ctx.saved_tensors
    kernel, factor, needs = ctx.kernel, ctx.factor, ctx.needs_input_grad
    product, dtype = kernel == "product", rows.dtype
    grad = torch.where(out.isinf(), 0.0, grad)
    ones = torch.ones_like(out)
    narrow = grad.to(dtype)[..., None]
    power = 0 if product else -1

    def of_rows(values: Tensor, power: int) -> tuple[Tensor, Tensor]:
        side = (row_terms, column_terms, weights, potential, eps, kernel, factor, ones, out)
        result: tuple[Tensor, Tensor] = _apply(rows, panels, *side, values, power)
        return result

    def of_columns(values: Tensor, power: int) -> Tensor:
        y, x = from_panels(panels, potential.shape[1]), to_panels(rows)
        side = (column_terms, row_terms, ones, out, eps, kernel, factor, weights, potential)
        result: Tensor = _apply(y, x, *side, to_panels(values), power)[1]
        return result

    d_rows = d_panels = d_eps = None
    sums = mapped = ones
    if needs[0] or needs[6]:
        sums, mapped = of_rows(panels, power)
    if needs[0]:
        sent = mapped if product else mapped - sums[..., None].to(dtype) * rows
        d_rows = -factor * narrow * sent
    columns = torch.zeros_like(potential)
    if needs[1] or any(needs[3:7]):
        if product:
            both = of_columns(torch.cat([narrow, narrow * rows], -1), 0)
            d_panels = to_panels(-factor * both[..., 1:])
        else:
            both = of_columns(narrow, 0)
            if needs[1]:
                y = from_panels(panels, potential.shape[1])
                near = of_columns(torch.cat([narrow, narrow * rows], -1), -1)
                d_panels = to_panels(factor * (near[..., :1] * y - near[..., 1:]))
        columns = both[..., 0].double()
    there = weights != 0
    d_weights = -eps[:, None] * torch.where(there, columns / torch.where(there, weights, 1.0), 0.0)
    if needs[6]:
        exponents = (grad * _finite(out)).sum(-1) + (columns * _finite(potential)).sum(-1)
        if product:
            costs = -factor * (grad * (rows * mapped).sum(-1, dtype=torch.float64)).sum(-1)
            costs = costs + (0.0 if row_terms is None else (grad * row_terms).sum(-1))
            costs = costs + (0.0 if column_terms is None else (columns * column_terms).sum(-1))
        else:
            costs = factor * (grad * of_rows(panels[:, :, :1], 1)[0]).sum(-1)
        d_eps = (exponents - costs) / eps
    return (
        d_rows,
        d_panels,
        None if row_terms is None else grad,
        None if column_terms is None else columns,
        d_weights,
        -columns,
        d_eps,
        None,
        None,
    )


_softmin.differentiable(_softmin_setup, _softmin_backward)


#: Numbers of a value and a point's coordinates that are sent through the plan at once.
_WIDTH = 256


def _apply_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.kernel, ctx.factor, ctx.power = *inputs[7:9], inputs[12]
    ctx.save_for_backward(*inputs[:7], *inputs[9:12], *output)


@once_only("transport_points_apply")
def _apply_backward(ctx: Any, d_sums: Tensor, d_out: Tensor) -> tuple[Any, ...]:
    r"""Of :math:`h_{ij} = P_{ij} \langle D_i, V_j\rangle`, where D is the gradient of the sums and
    of the products, and V is 1 and the values."""
    (rows, panels, row_terms, column_terms, weights, potential, eps, own_weights, own, values) = (
        ctx.saved_tensors[:10]
    )
    sums, out = ctx.saved_tensors[10:]
    kernel, factor, needs, dtype = ctx.kernel, ctx.factor, ctx.needs_input_grad, rows.dtype
    if ctx.power != 0:
        raise RuntimeError(
            "regkern.transport_points_apply: expected `power` 0 to be differentiated, got "
            f"{ctx.power}"
        )
    product = kernel == "product"
    x, y = rows, from_panels(panels, potential.shape[1])
    left = torch.cat([d_sums.to(dtype)[..., None], d_out], -1)
    right = from_panels(values, potential.shape[1])
    right = torch.cat([torch.ones_like(right[..., :1]), right], -1)
    of_rows = (panels, row_terms, column_terms, weights, potential)
    of_columns = (to_panels(rows), column_terms, row_terms, own_weights, own)

    def through(columns: bool, sent: Tensor, power: int = 0) -> tuple[Tensor, Tensor]:
        side, back = (of_columns, of_rows) if columns else (of_rows, of_columns)
        result: tuple[Tensor, Tensor] = _apply(
            y if columns else x,
            *side,
            eps,
            kernel,
            factor,
            *back[3:],
            to_panels(sent),
            power,
        )
        return result

    def towards(columns: bool) -> Tensor:
        """Σ_j h_ij y_j, and of distances Σ_j h_ij (y_j − x_i) / |x_i − y_j|; or of the columns."""
        mine, other, points, at = (right, left, x, y) if columns else (left, right, y, x)
        extended = points
        if not product:
            extended = torch.cat([points, torch.ones_like(points[..., :1])], -1)
        width = extended.shape[-1]
        result = torch.zeros_like(at[..., :1]) * extended.new_zeros(width)
        step = max(1, _WIDTH // width)
        for c in range(0, mine.shape[-1], step):
            part = other[..., c : c + step]
            sent = (part[..., None] * extended[..., None, :]).flatten(-2)
            mapped = through(columns, sent, 0 if product else -1)[1]
            mapped = mapped.reshape(*mapped.shape[:-1], part.shape[-1], width)
            result = result + (mine[..., c : c + step, None] * mapped).sum(-2)
        return result if product else result[..., :-1] - result[..., -1:] * at

    e = eps[:, None]
    back = through(True, left)[1]
    row_sums = d_sums * sums + (d_out * out).sum(-1, dtype=torch.float64)
    column_sums = (right * back).sum(-1, dtype=torch.float64)
    d_rows = d_panels = d_eps = None
    near = towards(False) if needs[0] or (needs[6] and product) else None
    if needs[0] and near is not None:
        d_rows = near * (factor / e[..., None]).to(dtype)
    if needs[1]:
        d_panels = to_panels(towards(True) * (factor / e[..., None]).to(dtype))
    if needs[6]:
        exponents = (row_sums * _finite(own)).sum(-1) + (column_sums * _finite(potential)).sum(-1)
        if product and near is not None:
            costs = -factor * (x * near).sum(-1, dtype=torch.float64).sum(-1)
            costs = costs + (0.0 if row_terms is None else (row_sums * row_terms).sum(-1))
            costs = costs + (0.0 if column_terms is None else (column_sums * column_terms).sum(-1))
        else:
            far = through(False, right, 1)[1]
            costs = factor * (left * far).sum((-2, -1), dtype=torch.float64)
        d_eps = (costs - exponents) / eps.square()

    def over(total: Tensor, weight: Tensor) -> Tensor:
        there = weight != 0
        return torch.where(there, total / torch.where(there, weight, 1.0), 0.0)

    return (
        d_rows,
        d_panels,
        None if row_terms is None else -row_sums / e,
        None if column_terms is None else -column_sums / e,
        over(column_sums, weights),
        column_sums / e,
        d_eps,
        None,
        None,
        over(row_sums, own_weights),
        row_sums / e,
        to_panels(back[..., 1:]) if needs[11] else None,
        None,
    )


_apply.differentiable(_apply_setup, _apply_backward)


# ---- the engine ----


class _Side(NamedTuple):
    """One cloud: rows (B, n, d), the same as panels, and what costs have of each point alone."""

    rows: Tensor
    panels: Tensor
    terms: Tensor | None


def cost_of(x: Tensor, y: Tensor, cost_fn: str) -> Tensor:
    """Costs of points whose leading dimensions broadcast, from their differences."""
    if cost_fn == "dot":
        return -(x * y).sum(-1)
    if cost_fn == "cosine":
        return 1.0 - (_unit(x) * _unit(y)).sum(-1)
    square = (x - y).square().sum(-1)
    if cost_fn == "euclidean":
        # The derivative of |x − y| at 0 is 0.
        same = square == 0
        return torch.where(same, 0.0, torch.where(same, 1.0, square).sqrt())
    return square if cost_fn == "sqeuclidean" else 0.5 * square


def _unit(x: Tensor) -> Tensor:
    """x / |x|, and 0 at 0."""
    norm = torch.where((x == 0).all(-1, True), 1.0, x).norm(dim=-1, keepdim=True)
    unit: Tensor = x / norm
    return unit


def _mean(x: Tensor, y: Tensor) -> Tensor:
    """The mean of the points of both clouds (B, 1, d) that are finite, without gradients."""
    with torch.no_grad():
        total = torch.zeros_like(x[:, :1], dtype=torch.float64)
        count = torch.zeros_like(total[..., :1])
        for t in (x, y):
            there = t.isfinite().all(-1, True)
            total = total + torch.where(there, t, 0.0).sum(1, True, dtype=torch.float64)
            count = count + there.sum(1, True)
        return (total / count.clamp(min=1)).to(x.dtype)


class PointCost:
    """The engine of the costs between points x (B, n, d) and y (B, m, d).

    Both are moved by their common mean before anything else where that changes nothing, so that the
    products that costs are made of are no larger than they have to be.
    """

    def __init__(self, x: Tensor, y: Tensor, cost_fn: str = "sqeuclidean") -> None:
        self.x, self.y, self.cost_fn = x, y, cost_fn
        self.kernel = "distance" if cost_fn == "euclidean" else "product"
        self.factor = 2.0 if cost_fn == "sqeuclidean" else 1.0
        self._sides: dict[bool, tuple[_Side, _Side]] = {}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What gradients go to."""
        return self.x, self.y

    def replaced(self, *tensors: Tensor) -> PointCost:
        """The same engine over other tensors."""
        x, y = tensors
        return PointCost(x, y, self.cost_fn)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.x.shape[0], self.x.shape[1], self.y.shape[1]

    @property
    def sides(self) -> tuple[_Side, _Side]:
        # What was prepared without gradients has none.
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in self.tensors)
        if wanted not in self._sides:
            self._sides[wanted] = self._prepared()
        return self._sides[wanted]

    def _prepared(self) -> tuple[_Side, _Side]:
        dtype = compute_dtype(self.x)
        x, y = self.x.to(dtype), self.y.to(dtype)
        if self.cost_fn == "cosine":
            x, y = _unit(x), _unit(y)
        elif self.cost_fn != "dot":
            mean = _mean(x, y)
            x, y = x - mean, y - mean
        terms: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.cost_fn in ("sqeuclidean", "half_sqeuclidean"):
            scale = 0.5 * self.factor
            terms = (scale * x.double().square().sum(-1), scale * y.double().square().sum(-1))
            # A point at infinity is far from all others: its term says so, and NaN as well.
            x, y = (torch.where(t.isfinite().all(-1, True), t, 0.0) for t in (x, y))
        elif self.cost_fn == "cosine":
            terms = (torch.ones_like(x[..., 0], dtype=torch.float64), None)
        return (
            _Side(x.contiguous(), to_panels(x), terms[0]),
            _Side(y.contiguous(), to_panels(y), terms[1]),
        )

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
        with torch.no_grad():
            (x, xs, r), (y, ys, s) = self.sides
            kernel, factor = self.kernel, self.factor
            if x.shape[-1] <= FEW_DIMENSIONS and self.cost_fn in SQUARES:
                # Differences have nothing that cancels. What is left of the terms is what they say
                # of points at infinity.
                kernel, factor = "square", 0.5 * factor
                r, s = (None if t is None else torch.where(t.isfinite(), 0.0, t) for t in (r, s))
            clouds = (x, y, xs, ys, r, s, kernel, factor)
            return Potentials(*_solve(*clouds, a, b, eps, rho, eps_start, f, g, *settings))

    def softmin(self, weight: Tensor, source: Tensor, eps: Tensor, columns: bool) -> Tensor:
        """The soft c-transform, differentiable once."""
        own, other = self._of(columns)
        result: Tensor = _softmin(
            own.rows,
            other.panels,
            own.terms,
            other.terms,
            weight,
            source,
            eps,
            self.kernel,
            self.factor,
        )
        return result

    def _of(self, columns: bool) -> tuple[_Side, _Side]:
        x, y = self.sides
        return (y, x) if columns else (x, y)

    def plan(self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Tensor:
        """The plan (B, n, m), dense in memory and differentiable."""
        dtype = compute_dtype(self.x)
        x, y = self.x.to(dtype), self.y.to(dtype)
        cost = cost_of(x[:, :, None].double(), y[:, None].double(), self.cost_fn)
        exponents = (f[:, :, None] + g[:, None] - cost) / eps[:, None, None]
        mass = a[:, :, None] * b[:, None]
        there = (mass != 0) & (exponents != torch.inf)
        plan = torch.where(there, mass * torch.where(there, exponents, 0.0).exp(), 0.0)
        return plan.to(self.x.dtype)

    def _products(
        self,
        a: Tensor,
        b: Tensor,
        f: Tensor,
        g: Tensor,
        eps: Tensor,
        values: Tensor,
        columns: bool,
        power: int = 0,
    ) -> tuple[Tensor, Tensor]:
        own, other = self._of(columns)
        if columns:
            a, b, f, g = b, a, g, f
        result: tuple[Tensor, Tensor] = _apply(
            own.rows,
            other.panels,
            own.terms,
            other.terms,
            b,
            g,
            eps,
            self.kernel,
            self.factor,
            a,
            f,
            to_panels(values.to(own.rows.dtype)),
            power,
        )
        return result

    def apply(
        self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor, v: Tensor, columns: bool
    ) -> Tensor:
        """P v (B, n, k) of v (B, m, k), or the transposed plan times v (B, n, k); differentiable
        once."""
        return self._products(a, b, f, g, eps, v, columns)[1].to(v.dtype)

    def mean_cost(self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Tensor:
        """⟨P, C⟩ (B)."""
        (x, _, r), (y, _, s) = self.sides
        if self.kernel == "distance":
            return self._products(a, b, f, g, eps, y[..., :1], False, 1)[0].sum(-1)
        terms = torch.zeros_like(b) if s is None else s
        values = torch.cat([y, terms[..., None].to(y.dtype)], -1)
        sums, mapped = self._products(a, b, f, g, eps, values, False)
        costs = mapped[..., -1].double() - self.factor * (x * mapped[..., :-1]).sum(-1).double()
        return (costs if r is None else costs + r * sums).sum(-1)

    def argmax(
        self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor, columns: bool
    ) -> Tensor:
        """Of each row (column) the place of the largest element; the first of equal ones."""
        own, other = self._of(columns)
        weight, source = (a, f) if columns else (b, g)
        result: Tensor = _argmax(
            own.rows, other.panels, other.terms, weight, source, eps, self.kernel, self.factor
        )
        return result

    def scale(self, kind: str) -> Tensor:
        """The mean or the largest magnitude of the costs (B), without gradients."""
        with torch.no_grad():
            (x, _, r), (y, ys, s) = self.sides
            batch, n, m = self.shape
            ones_a, ones_b = x.new_ones((batch, n)).double(), y.new_ones((batch, m)).double()
            if kind == "mean" and self.kernel == "product":
                means = [t.mean(1, dtype=torch.float64) for t in (x, y)]
                terms = sum(t.mean(-1) for t in (r, s) if t is not None)
                return terms - self.factor * (means[0] * means[1]).sum(-1)
            if kind == "mean":
                # At an infinite ε every entry is its weight.
                zeros = (torch.zeros_like(ones_a), torch.zeros_like(ones_b))
                huge = torch.full((batch,), 1e30, dtype=torch.float64, device=x.device)
                sums, _ = self._products(ones_a, ones_b, *zeros, huge, y[..., :1], False, 1)
                return sums.sum(-1) / (n * m)
            # The farthest point of each: the nearest one of the negated costs.
            one = torch.ones((batch,), dtype=torch.float64, device=x.device)
            zero = torch.zeros_like(ones_b)
            largest = torch.zeros_like(one)
            for sign in (-1.0, 1.0) if self.cost_fn == "dot" else (-1.0,):
                rows = sign * x if self.kernel == "product" else x
                factor = self.factor if self.kernel == "product" else -self.factor
                own = None if s is None else sign * s
                place = _argmax(rows, ys, own, ones_b, zero, one, self.kernel, factor)
                far = torch.gather(y, 1, place[..., None].expand(-1, -1, y.shape[-1]))
                cost = cost_of(x.double(), far.double(), self.cost_fn).abs().amax(-1)
                largest = torch.maximum(largest, cost)
            return largest

"""Derivatives of potentials: by the implicit function theorem, and by unrolling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from regkern._registration import function_apply, once_only
from regkern.transport.dense import Potentials, Settings


class Engine(Protocol):
    """What costs can do, be they dense or of points; everything else is double."""

    @property
    def tensors(self) -> tuple[Tensor, ...]: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    def replaced(self, *tensors: Tensor) -> Engine: ...
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
    ) -> Potentials: ...
    def softmin(self, weight: Tensor, source: Tensor, eps: Tensor, columns: bool) -> Tensor: ...
    def plan(self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Tensor: ...
    def apply(
        self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor, v: Tensor, columns: bool
    ) -> Tensor: ...
    def mean_cost(self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor) -> Tensor: ...
    def argmax(
        self, a: Tensor, b: Tensor, f: Tensor, g: Tensor, eps: Tensor, columns: bool
    ) -> Tensor: ...
    def scale(self, kind: str) -> Tensor: ...


def damping(rho: Tensor, eps: Tensor) -> Tensor:
    """ρ / (ρ + ε) as a column, 1 for a hard side."""
    soft = rho.isfinite()
    reach = torch.where(soft, rho, 1.0)
    return torch.where(soft, reach / (reach + eps), 1.0)[:, None]


def target(weight: Tensor, potential: Tensor, rho: Tensor) -> Tensor:
    """The marginal that a side wants at its potential: a, or a e^(−f/ρ)."""
    soft = rho.isfinite()[:, None]
    factor = torch.where(soft, (-potential / torch.where(soft, rho[:, None], 1.0)).exp(), 1.0)
    return torch.where(weight > 0, weight * factor, 0.0)


def centred(f: Tensor, g: Tensor, a: Tensor, b: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """⟨a, f⟩ = ⟨b, g⟩ where both sides are hard."""
    of_a = torch.where((a > 0) & f.isfinite(), a * f, 0.0).sum(-1)
    of_b = torch.where((b > 0) & g.isfinite(), b * g, 0.0).sum(-1)
    mass = a.sum(-1) + b.sum(-1)
    shift = (of_b - of_a) / torch.where(mass > 0, mass, 1.0)
    shift = torch.where(rho.isinf().all(0), shift, 0.0)[:, None]
    return f + shift, g - shift


def unrolled(
    engine: Engine,
    a: Tensor,
    b: Tensor,
    eps: Tensor,
    rho: Tensor,
    iterations: int,
    f: Tensor | None = None,
    g: Tensor | None = None,
) -> Potentials:
    """Exactly so many iterations, with their exact derivative: O(T (n + m)) numbers are kept."""
    batch, n, m = engine.shape
    damping_a, damping_b = damping(rho[0], eps), damping(rho[1], eps)
    if f is None:
        f = a.new_zeros((batch, n))
    if g is None:
        g = b.new_zeros((batch, m))
    for _ in range(iterations):
        f = damping_a * engine.softmin(b, g, eps, False)
        g = damping_b * engine.softmin(a, f, eps, True)
    raw = engine.softmin(b, g, eps, False)
    has = torch.where(a > 0, a * ((f - raw) / eps[:, None]).exp(), 0.0)
    has = torch.where(raw.isinf(), 0.0, has)
    error = (has - target(a, f, rho[0])).abs().sum(-1) / a.sum(-1)
    f = torch.where(a > 0, f, damping_a * raw)
    f, g = centred(f, g, a, b, rho)
    with torch.no_grad():
        status = torch.where(error.isfinite(), 1, 2).to(torch.int8)
        count = torch.full((batch,), iterations, dtype=torch.int32, device=a.device)
    return Potentials(f, g, error.detach(), count, status)


#: Of conjugate gradients, at most.
STEPS = 200


class _AtOptimum(torch.autograd.Function):
    """A function at optimal arguments: its derivative by them is 0, but that of its gradient is
    not."""

    @staticmethod
    def forward(function: Callable[..., Tensor], count: int, *tensors: Tensor) -> Tensor:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.function, ctx.count = inputs[:2]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        optimal, inputs = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            # Other tensors than those on which the optimum depends.
            inputs = [t.view_as(t) if t.requires_grad else t for t in inputs]
            value = ctx.function(*optimal, *inputs)
            wanted = [t for t in inputs if t.requires_grad]
            found = torch.autograd.grad(value, wanted, grad, create_graph=twice, allow_unused=True)
        grads = iter(found)
        mine = (next(grads) if t.requires_grad else None for t in inputs)
        return (None, None, *(None for _ in optimal), *mine)


def at_optimum(
    function: Callable[..., Tensor], optimal: tuple[Tensor, ...], inputs: tuple[Tensor, ...]
) -> Tensor:
    """function(*optimal, *inputs), where its derivative by ``optimal`` is known to be 0."""
    result: Tensor = function_apply(_AtOptimum, function, len(optimal), *optimal, *inputs)
    return result


def conjugate_gradients(
    image: Callable[[Tensor], Tensor],
    right: Tensor,
    condition: Callable[[Tensor], Tensor],
    steps: int,
) -> Tensor:
    """x (B, n) with image(x) = right, which are symmetric and of no negative curvature; `condition`
    is nearly the inverse."""

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(-1, keepdim=True)

    x, residual = torch.zeros_like(right), right
    direction = condition(residual)
    size = dot(residual, direction)
    limit = 1e-24 * size
    for _ in range(steps):
        along = image(direction)
        curvature = dot(direction, along)
        # What has converged, and what has no curvature left but rounding errors, stands still.
        moves = (size > limit) & (curvature > 0)
        if x.device.type == "cpu" and not bool(moves.any()):
            break
        step = torch.where(moves, size / torch.where(moves, curvature, 1.0), 0.0)
        x = x + step * direction
        residual = residual - step * along
        z = condition(residual)
        new = dot(residual, z)
        ratio = torch.where(moves, new / torch.where(moves, size, 1.0), 0.0)
        direction, size = z + ratio * direction, torch.where(moves, new, 0.0)
    return x


def pulled_back(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of the inputs; none of those that want none."""
    kept = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    wanted = [t for t in inputs if t.requires_grad]
    if not kept or not wanted:
        return [None] * len(inputs)
    found = torch.autograd.grad(
        [o for o, _ in kept], wanted, [c for _, c in kept], allow_unused=True
    )
    grads = iter(found)
    return [next(grads) if t.requires_grad else None for t in inputs]


class _Implicit(torch.autograd.Function):
    """The potentials, as functions of what they were solved for."""

    @staticmethod
    def forward(
        engine: Engine,
        steps: int,
        f: Tensor,
        g: Tensor,
        a: Tensor,
        b: Tensor,
        eps: Tensor,
        rho: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return f.clone(), g.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.engine, ctx.steps = inputs[:2]
        # The value's first derivative has no business here, and its second must not be refused.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    @once_only("sinkhorn")
    def backward(ctx: Any, df: Tensor | None, dg: Tensor | None) -> tuple[Any, ...]:
        if df is None and dg is None:
            return (None,) * len(ctx.needs_input_grad)
        f, g, a, b, eps, rho, *tensors = ctx.saved_tensors
        df = torch.zeros_like(f) if df is None else torch.where(a > 0, df, 0.0)
        dg = torch.zeros_like(g) if dg is None else torch.where(b > 0, dg, 0.0)
        needs = ctx.needs_input_grad[4:]
        inputs = [
            t.detach().requires_grad_(need)
            for t, need in zip((a, b, eps, rho, *tensors), needs, strict=True)
        ]
        engine = ctx.engine.replaced(*(t.detach() for t in tensors))
        lf, lg = _adjoint(engine, ctx.steps, f, g, a, b, eps, rho, df, dg)
        with torch.enable_grad():
            a, b, eps, rho = inputs[:4]
            engine = ctx.engine.replaced(*inputs[4:])
            first = damping(rho[0], eps) * engine.softmin(b, g, eps, False)
            second = damping(rho[1], eps) * engine.softmin(a, f, eps, True)
            # The shift to ⟨a, f⟩ = ⟨b, g⟩ depends on the weights by itself.
            shifted = centred(f, g, a, b, rho)
            first = torch.where(a > 0, first, 0.0)
            second = torch.where(b > 0, second, 0.0)
            grads = pulled_back((first, second, *shifted), (lf, lg, df, dg), inputs)
        return (None, None, None, None, *grads)


def _adjoint(
    engine: Engine,
    steps: int,
    f: Tensor,
    g: Tensor,
    a: Tensor,
    b: Tensor,
    eps: Tensor,
    rho: Tensor,
    df: Tensor,
    dg: Tensor,
) -> tuple[Tensor, Tensor]:
    r"""Cotangents of both half-steps, by which those of the fixed point are reached.

    .. math::
        \begin{pmatrix} D_a & P \\ P^T & D_b \end{pmatrix}
        \begin{pmatrix} p \\ q \end{pmatrix} = \begin{pmatrix} df \\ dg \end{pmatrix}

    by conjugate gradients on :math:`D_a - P D_b^{-1} P^T`, whose null vector, the constant one
    where both sides are hard, is projected off.
    """
    hard = rho.isinf().all(0)[:, None]
    here, there = (a > 0) & f.isfinite(), (b > 0) & g.isfinite()
    mass = a.sum(-1, keepdim=True) + b.sum(-1, keepdim=True)
    df, dg = torch.where(here, df, 0.0), torch.where(there, dg, 0.0)
    # Through the shift to ⟨a, f⟩ = ⟨b, g⟩.
    along = torch.where(hard, df.sum(-1, keepdim=True) - dg.sum(-1, keepdim=True), 0.0) / mass
    df, dg = df - along * a, dg + along * b
    rows, columns = target(a, f, rho[0]), target(b, g, rho[1])
    rows, columns = torch.where(here, rows, 0.0), torch.where(there, columns, 0.0)
    da = torch.where(here, rows / damping(rho[0], eps), 1.0)
    db = torch.where(there, columns / damping(rho[1], eps), 1.0)
    df, dg = torch.where(here, df, 0.0), torch.where(there, dg, 0.0)

    def times(v: Tensor, of_columns: bool) -> Tensor:
        return engine.apply(a, b, f, g, eps, v[..., None], of_columns)[..., 0]

    def projected(v: Tensor) -> Tensor:
        count = here.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(here, v - torch.where(hard, v.sum(-1, keepdim=True) / count, 0.0), 0.0)

    def schur(p: Tensor) -> Tensor:
        return projected(da * p - times(times(p, True) / db, False))

    right = projected(df - times(dg / db, False))
    p = conjugate_gradients(schur, right, lambda v: projected(v / da), steps)
    q = torch.where(there, (dg - times(p, True)) / db, 0.0)
    return p * da, q * db


def implicit(
    engine: Engine, found: Potentials, a: Tensor, b: Tensor, eps: Tensor, rho: Tensor, steps: int
) -> Potentials:
    """The same potentials, differentiable."""
    f, g = function_apply(
        _Implicit, engine, steps, found.f, found.g, a, b, eps, rho, *engine.tensors
    )
    return Potentials(f, g, *found[2:])

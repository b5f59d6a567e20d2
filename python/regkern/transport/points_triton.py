"""The soft c-transform between clouds of points as a Triton kernel, beside the compiled one."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from regkern import _checks
from regkern.transport.dense import Potentials, Settings
from regkern.transport.implicit import centred, damping, target
from regkern.transport.points import COSTS, PointCost

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

ENGINES = ("auto", "compiled", "triton")
# Below this a tile of products is not worth a matrix multiplication.
LEAST_DIMENSIONS = 16
_LOG2E = 1.4426950408889634
_LN2 = 0.6931471805599453

if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator, unused-ignore]
    def _softmin_kernel(  # type: ignore[no-untyped-def]
        x,
        y,
        bias,
        most,
        total,
        done,
        n,
        m,
        d,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        DEPTH: tl.constexpr,
    ):
        """The largest exponent of each row and the sum of the powers of two, relative to it."""
        batch = tl.program_id(1).to(tl.int64)
        row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        x += batch * n * d
        y += batch * m * d
        bias += batch * m
        # What is done is not read.
        m = tl.where(tl.load(done + batch) != 0, 0, m)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        sums = tl.zeros((ROWS,), tl.float32)
        for start in range(0, m, COLUMNS):
            column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
            exponents = tl.zeros((ROWS, COLUMNS), tl.float32)
            for first in range(0, d, DEPTH):
                k = first + tl.arange(0, DEPTH)
                own = tl.load(
                    x + row[:, None] * d + k[None, :],
                    mask=(row[:, None] < n) & (k[None, :] < d),
                    other=0.0,
                )
                other = tl.load(
                    y + column[None, :] * d + k[:, None],
                    mask=(column[None, :] < m) & (k[:, None] < d),
                    other=0.0,
                )
                exponents = tl.dot(own, other, exponents, input_precision="ieee")
            exponents += tl.load(bias + column, mask=column < m, other=float("-inf"))[None, :]
            now = tl.maximum(top, tl.max(exponents, 1))
            # −∞ is no number to subtract.
            by = tl.where(now == float("-inf"), 0.0, now)
            sums = sums * tl.exp2(top - by) + tl.sum(tl.exp2(exponents - by[:, None]), 1)
            top = now
        tl.store(most + batch * n + row, top, mask=row < n)
        tl.store(total + batch * n + row, sums, mask=row < n)


def _refusal(engine: PointCost, needs_gradient: bool) -> str | None:
    """Why Triton cannot have this call."""
    x = engine.x
    if triton is None:
        return "the package triton, which is not installed"
    if engine.kernel != "product":
        return "a cost that is made of products"
    if x.dtype == torch.float64:
        return "float32 or a half precision, since it computes in float32"
    if needs_gradient:
        return "tensors without gradients; engine='compiled' is differentiable"
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"CUDA tensors, but they are on {x.device}"
    return None


def _by_triton(
    engine: PointCost,
    weights: Tensor,
    potential: Tensor,
    eps: Tensor,
    done: Tensor | None = None,
) -> Tensor:
    """The rows' soft c-transform; of a problem that is done anything."""
    (x, _, r), (y, _, s) = engine.sides
    batch, n, m = engine.shape
    own = potential if s is None else potential - s
    exponents = _LOG2E * (weights.log() + own / eps[:, None])
    left_out = (weights == 0) | (potential == torch.inf)
    bias = torch.where(left_out, -torch.inf, exponents).float().contiguous()
    scaled = (x * (_LOG2E * engine.factor / eps)[:, None, None].float()).contiguous()
    most, total = (torch.empty((batch, n), device=x.device) for _ in range(2))
    if done is None:
        done = torch.zeros((batch,), dtype=torch.bool, device=x.device)
    if n > 0 and batch > 0:
        rows, columns, d = 64, 64, x.shape[-1]
        depth = 16 if d <= 16 else 32 if d <= 32 else 64
        grid = ((n + rows - 1) // rows, batch)
        _softmin_kernel[grid](
            scaled,
            y,
            bias,
            most,
            total,
            done.to(torch.int8),
            n,
            m,
            d,
            ROWS=rows,
            COLUMNS=columns,
            DEPTH=depth,
        )
    top = torch.where(most == -torch.inf, 0.0, most).double()
    softmin = -eps[:, None] * (top * _LN2 + total.double().log())
    return softmin if r is None else softmin + r


def points_softmin(
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    potential: Tensor,
    eps: Tensor,
    cost_fn: str = "sqeuclidean",
    engine: str = "auto",
) -> Tensor:
    r"""The soft c-transform between clouds of points, by the engine of one's choice:

    .. math:: f_i = -\varepsilon \log \sum_j b_j \, e^{(g_j - c(x_i, y_j)) / \varepsilon}

    Parameters
    ----------
    x, y : Tensor
        Points (B, n, d) and (B, m, d).
    weights, potential : Tensor
        b and g, (B, m), float64.
    eps : Tensor
        ε, (B,), float64.
    cost_fn : str
        One of `regkern.transport.points.COSTS`.
    engine : {"auto", "compiled", "triton"}
        "triton" multiplies tiles of points as matrices, in float32 without TF32; it needs the
        package triton, CUDA tensors (or ``TRITON_INTERPRET=1`` in the environment) of float32 or
        less, a cost other than "euclidean", and has no derivative. "auto" takes it for CUDA tensors
        from 16 dimensions on where it is possible, else the compiled kernel. On the CPU it is never
        taken by itself.

    Returns
    -------
    Tensor
        f, (B, n), float64.

    Raises
    ------
    TypeError
        If an argument is no tensor of a floating-point type.
    ValueError
        If an argument is out of range, or the engine cannot have this call.

    Notes
    -----
    Sums have an order of their own: the two engines agree to float32's precision, not bit by bit.
    The n x m costs are never stored; each of the ⌈n/64⌉ blocks of rows reads y once.

    References
    ----------
    .. [1] Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn
       Divergences", 2019.
    .. [2] Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention", 2022.
    """
    op = "points_softmin"
    given = {"x": x, "y": y, "weights": weights, "potential": potential, "eps": eps}
    for name, t in given.items():
        _checks.floating(op, name, t)
        _checks.on_device(op, name, t, x)
    _checks.one_of(op, "cost_fn", cost_fn, COSTS)
    _checks.one_of(op, "engine", engine, ENGINES)
    if x.dim() != 3 or y.dim() != 3 or y.shape[0] != x.shape[0] or y.shape[2] != x.shape[2]:
        raise ValueError(
            f"regkern.{op}: expected `x` and `y` of shapes (B, n, d) and (B, m, d), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    for name, t, shape in (
        ("weights", weights, y.shape[:2]),
        ("potential", potential, y.shape[:2]),
        ("eps", eps, x.shape[:1]),
    ):
        if t.shape != shape or t.dtype != torch.float64:
            raise ValueError(
                f"regkern.{op}: expected `{name}` of shape {tuple(shape)} and dtype float64, got "
                f"{tuple(t.shape)} and {t.dtype}"
            )
    cost = PointCost(x, y, cost_fn)
    needs = torch.is_grad_enabled() and any(t.requires_grad for t in given.values())
    refusal = _refusal(cost, needs)
    if engine == "triton" and refusal is not None:
        raise ValueError(f"regkern.{op}: engine='triton' needs {refusal}")
    pays = x.is_cuda and x.shape[-1] >= LEAST_DIMENSIONS and refusal is None
    if engine == "triton" or (engine == "auto" and pays):
        return _by_triton(cost, weights, potential, eps)
    return cost.softmin(weights, potential, eps, False)


class TritonPoints(PointCost):
    """The engine of clouds of points whose soft c-transforms Triton computes; the rest is that of
    the compiled one."""

    def replaced(self, *tensors: Tensor) -> TritonPoints:
        """The same engine over other tensors."""
        x, y = tensors
        return TritonPoints(x, y, self.cost_fn)

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
        refusal = _refusal(self, False)
        if settings.acceleration not in ("none", "relaxed") or eps_start is not None:
            refusal = "neither scaling nor an acceleration but over-relaxation"
        if refusal is not None:
            raise ValueError(f"regkern.sinkhorn: engine='triton' needs {refusal}")
        with torch.no_grad():
            return self._iterated(a, b, eps, rho, settings, f, g)

    def _transformed(
        self, weights: Tensor, source: Tensor, eps: Tensor, columns: bool, done: Tensor | None
    ) -> Tensor:
        engine = PointCost(self.y, self.x, self.cost_fn) if columns else self
        return _by_triton(engine, weights, source, eps, done)

    def _iterated(
        self,
        a: Tensor,
        b: Tensor,
        eps: Tensor,
        rho: Tensor,
        settings: Settings,
        f: Tensor | None,
        g: Tensor | None,
    ) -> Potentials:
        """Nothing waits for the device: a problem that is done is skipped there."""
        batch, n, m = self.shape
        damp = (damping(rho[0], eps), damping(rho[1], eps))
        done = torch.zeros((batch,), dtype=torch.bool, device=eps.device)
        count = torch.zeros((batch,), dtype=torch.int32, device=eps.device)
        status = torch.ones((batch,), dtype=torch.int8, device=eps.device)
        if g is None and f is not None:
            g = damp[1] * self._transformed(a, f, eps, True, None)
        f = a.new_zeros((batch, n)) if f is None else f
        g = b.new_zeros((batch, m)) if g is None else g
        mass = a.sum(-1)
        mass = torch.where(mass > 0, mass, 1.0)

        def relaxed(old: Tensor, raw: Tensor, by: Tensor) -> Tensor:
            new = by * raw
            moved = old + settings.omega * (new - old)
            plain = not_relaxed | old.isinf() | raw.isinf()
            return torch.where(plain, new, moved)

        not_relaxed = torch.full((), settings.omega == 1.0, device=eps.device)
        for t in range(1, settings.max_iter + 1):
            raw_f = self._transformed(b, g, eps, False, done)
            new_f = relaxed(f, raw_f, damp[0])
            raw_g = self._transformed(a, new_f, eps, True, done)
            new_g = relaxed(g, raw_g, damp[1])
            due = t % settings.check_every == 0
            if due and settings.tol is not None:
                missed = _missed(a, new_f, raw_f, eps, rho[0]) + _missed(b, g, raw_g, eps, rho[1])
                error = missed / mass
            f = torch.where(done[:, None], f, new_f)
            g = torch.where(done[:, None], g, new_g)
            count = torch.where(done, count, t)
            if due and settings.tol is not None:
                met = torch.where(error < settings.tol, 0, torch.where(error.isnan(), 2, 1))
                status = torch.where(done, status, met.to(torch.int8))
                done = done | (status != 1)
                if f.device.type == "cpu" and bool(done.all()):
                    break
        if settings.omega != 1.0:
            g = damp[1] * self._transformed(a, f, eps, True, None)
        raw = self._transformed(b, g, eps, False, None)
        error = _missed(a, f, raw, eps, rho[0]) / mass
        f = torch.where(a > 0, f, damp[0] * raw)
        lost = ((f == torch.inf) & (a > 0) & rho[0].isinf()[:, None]).any(-1)
        lost = lost | ((g == torch.inf) & (b > 0) & rho[1].isinf()[:, None]).any(-1)
        if settings.tol is not None:
            status = torch.where(error < settings.tol, 0, status)
        status = torch.where(lost | ~error.isfinite(), 2, status).to(torch.int8)
        return Potentials(*centred(f, g, a, b, rho), error, count, status)


def _missed(weight: Tensor, own: Tensor, raw: Tensor, eps: Tensor, rho: Tensor) -> Tensor:
    """What a side misses of its marginal, which it has at its potential `own` (B)."""
    has = torch.where(raw == torch.inf, 0.0, weight * ((own - raw) / eps[:, None]).exp())
    return torch.where(weight > 0, (has - target(weight, own, rho)).abs(), 0.0).sum(-1)

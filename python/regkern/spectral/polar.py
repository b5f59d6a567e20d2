"""Polar factors by matrix products alone, and what is made of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype

#: (a, b, c) of x ← a x + b x³ + c x⁵, on singular values.
Quintic = tuple[float, float, float]

#: Steep at 0: singular values end near 1, not at 1.
STEEP: Quintic = (3.4445, -4.7750, 2.0315)
#: The one that touches 1 to third order.
NEWTON_SCHULZ: Quintic = (15 / 8, -10 / 8, 3 / 8)

# Between its extremes a minimax polynomial comes down to its value at the lower end. What rounding
# adds there must not turn a sign, so no interval is taken wider than this.
_NARROWEST = 1 / 40


def _solve(rows: list[list[float]]) -> list[float]:
    """Four equations, the right side in the last column: Gauss with pivots."""
    rows = [list(row) for row in rows]
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(n):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [x - factor * y for x, y in zip(rows[r], rows[i], strict=True)]
    return [rows[i][n] / rows[i][i] for i in range(n)]


def _minimax(low: float, high: float) -> tuple[Quintic, float]:
    """The odd quintic nearest to 1 on [low, high], and its distance, by exchange of extremes."""
    if low / high > 1 - 1e-5:
        a, b, c = NEWTON_SCHULZ
        return (a / high, b / high**3, c / high**5), 0.0
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    a, b, c, error = 0.0, 0.0, 0.0, 0.0
    for _ in range(100):
        points = ((low, 1.0), (q, -1.0), (r, 1.0), (high, -1.0))
        a, b, c, error = _solve([[x, x**3, x**5, sign, 1.0] for x, sign in points])
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        inner, outer = math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))
        moved = abs(inner - q) + abs(outer - r)
        q, r = inner, outer
        if moved < 1e-14 * high:
            break
    return (a, b, c), error


@functools.cache
def polar_express_coefficients(
    steps: int, lower: float = 1e-3, safety: float = 1.01
) -> tuple[Quintic, ...]:
    r"""The polynomials of Polar Express: each is the best for what those before it leave.

    For singular values in :math:`[l, 1]` the first is the odd quintic p that minimises
    :math:`\max_{[l, 1]} |1 - p|`, the next that for the interval which p maps them to, and so on:
    but for the two guards below, no other ``steps`` odd quintics come nearer to 1.

    Parameters
    ----------
    steps : int
        How many.
    lower : float
        l in (0, 1).
    safety : float
        At least 1: rounding may leave singular values above the interval, so each polynomial is
        that of x / safety until the interval is short.

    Returns
    -------
    tuple of (float, float, float)
        (a, b, c) of a x + b x³ + c x⁵ for every step.

    Raises
    ------
    ValueError
        Where an argument is not as said above.

    Notes
    -----
    While the interval is wider than 1 to 40, the polynomial is the best one from a 40th of its
    upper end on, scaled so that the smallest and the largest value are equally far from 1: the very
    best one comes so near to 0 in between that rounding could turn signs.

    References
    ----------
    Amsel, Persson, Musco and Gower, "The polar express: optimal matrix sign methods and their
    application to the Muon algorithm", 2025.
    """
    op = "polar_express_coefficients"
    checks.at_least(op, "steps", steps, 1)
    checks.at_least(op, "safety", safety, 1.0)
    if not 0.0 < lower < 1.0:
        raise ValueError(f"regkern.{op}: expected `lower` in (0, 1), got {lower}")
    low, high, found = lower, 1.0, []
    for _ in range(steps):
        (a, b, c), error = _minimax(max(low, _NARROWEST * high), high)
        guard = safety if high - low > 0.1 else 1.0
        x = low / guard
        least = a * x + b * x**3 + c * x**5
        if low >= _NARROWEST * high:
            least = min(least, 1 - error)
        scale = 2 / (least + 1 + error)
        found.append((scale * a / guard, scale * b / guard**3, scale * c / guard**5))
        low, high = scale * least, scale * (1 + error)
    return tuple(found)


@functools.cache
def _converging(lower: float) -> tuple[Quintic, ...]:
    """Steps that take [lower, 1] to 1 within rounding."""
    for steps in range(1, 100):
        coefficients = polar_express_coefficients(steps, lower)
        x = lower
        for a, b, c in coefficients:
            x = a * x + b * x**3 + c * x**5
        if abs(1 - x) < 1e-15:
            return (*coefficients, NEWTON_SCHULZ)
    raise AssertionError(lower)


# ---- the iteration, on (batch, m, n) with m ≤ n ----


def _product(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    return torch.bmm(a, b) if out is None else torch.bmm(a, b, out=out)


def _sum_of(
    x: Tensor, beta: float, a: Tensor, b: Tensor, alpha: float, out: Tensor | None
) -> Tensor:
    """beta x + alpha a b."""
    if out is None:
        return torch.baddbmm(x, a, b, beta=beta, alpha=alpha)
    return torch.baddbmm(x, a, b, beta=beta, alpha=alpha, out=out)


def _tightened(x: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """X / √‖X Xᵀ‖_F, which has a spectral norm of at most 1 as well, and its gram matrix."""
    norm = torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True)
    inverse = torch.where(norm == 0, 0.0, 1 / norm)
    return x * inverse.sqrt(), gram * inverse


def _plain_steps(
    x: Tensor, coefficients: Sequence[Quintic], tighten: bool, buffers: bool
) -> Tensor:
    """X ← a X + (b G + c G²) X with G = X Xᵀ."""
    batch, m, _ = x.shape
    first = x.new_empty((batch, m, m)) if buffers else None
    second = x.new_empty((batch, m, m)) if buffers else None
    spare = torch.empty_like(x) if buffers else None
    for i, (a, b, c) in enumerate(coefficients):
        gram = _product(x, x.mT, first)
        if tighten and i == 0:
            x, gram = _tightened(x, gram)
        update = _sum_of(gram, b, gram, gram, c, second)
        y = _sum_of(x, a, update, x, 1.0, spare)
        x, spare = y, x if buffers else None
    return x


def _gram_steps(x: Tensor, coefficients: Sequence[Quintic], tighten: bool, buffers: bool) -> Tensor:
    """The same, on G and on the product Q of Z = a + b G + c G², which m x m matrices are.

    G loses what is below √ε of the largest singular value, and steps enlarge that: X is taken to
    where Q leads after two steps, and every three from then on.
    """
    batch, m, _ = x.shape
    small = [x.new_empty((batch, m, m)) if buffers else None for _ in range(5)]
    spare = torch.empty_like(x) if buffers else None
    last = len(coefficients) - 1
    gram, total = _product(x, x.mT, small[0]), None
    if tighten:
        x, gram = _tightened(x, gram)
    for i, (a, b, c) in enumerate(coefficients):
        # Buffers in turn: G, Z, the product of the Zs before, that with Z, G Z.
        z = _sum_of(gram, b, gram, gram, c, small[1])
        if buffers:
            z.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            z = z + a * torch.eye(m, dtype=x.dtype, device=x.device)
        leave = i == last or (i >= 1 and (i - 1) % 3 == 0)
        if total is not None:
            total = _product(z, total, small[3])
            small[2], small[3] = small[3], small[2]
        if not leave:
            moved = _product(gram, z, small[4])
            gram = _product(z, moved, small[0])
            if total is None:
                total = z
                small[1], small[2] = small[2], small[1]
            continue
        y = _product(z if total is None else total, x, spare)
        x, spare = y, x if buffers else None
        total = None
        if i < last:
            gram = _product(x, x.mT, small[0])
    return x


def _iterated(x: Tensor, coefficients: Sequence[Quintic], gram: bool, tighten: bool) -> Tensor:
    """Polar factors of (batch, m, n), m ≤ n, of a spectral norm of at most 1. May overwrite x."""
    buffers = not _recorded(x)
    with torch.autocast(x.device.type, enabled=False):
        return (_gram_steps if gram else _plain_steps)(x, coefficients, tighten, buffers)


def _normalized(x: Tensor) -> Tensor:
    """X / ‖X‖_F, and 0 for 0, in new memory."""
    # Of elements of at most 1: squares of small ones are not lost, those of large ones no infinity.
    most = torch.linalg.vector_norm(x.detach(), math.inf, (-2, -1), True)
    x = x / torch.where(most == 0, 1.0, most)
    wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    norm = torch.linalg.vector_norm(x, 2, (-2, -1), True, dtype=wide)
    safe = torch.where(norm == 0, 1.0, norm).to(x.dtype)
    return x / safe if _recorded(x) else x.div_(safe)


def _recorded(x: Tensor) -> bool:
    """Whether something looks at what becomes of x: then nothing is written in place."""
    return (
        (torch.is_grad_enabled() and x.requires_grad)
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.compiler.is_compiling()
    )


def _wide(x: Tensor) -> bool:
    return x.shape[-2] <= x.shape[-1]


def _check_matrix(op: str, name: str, x: object) -> None:
    checks.floating(op, name, x)
    assert isinstance(x, Tensor)
    if x.dim() < 2:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of at least 2 dimensions, got {tuple(x.shape)}"
        )


def _check_coefficients(op: str, coefficients: object, steps: int) -> list[Quintic]:
    found = list(coefficients)  # type: ignore[call-overload]
    if len(found) == 3 and all(isinstance(value, int | float) for value in found):
        found = [tuple(found)] * steps
    if len(found) != steps or any(len(tuple(c)) != 3 for c in found):
        raise ValueError(
            f"regkern.{op}: expected `coefficients` of three numbers, or three for each of {steps} "
            f"steps, got {coefficients!r}"
        )
    return [(float(a), float(b), float(c)) for a, b, c in found]


@overload
def orthogonalize(
    matrices: Tensor,
    steps: int = 5,
    *,
    method: Literal["newton_schulz", "polar_express"] = "newton_schulz",
    coefficients: Sequence[float] | Sequence[Quintic] | None = None,
    dtype: torch.dtype | None = None,
    gram: bool | Literal["auto"] = "auto",
    scale: Literal["frobenius", "gram"] = "frobenius",
) -> Tensor: ...
@overload
def orthogonalize(
    matrices: Sequence[Tensor],
    steps: int = 5,
    *,
    method: Literal["newton_schulz", "polar_express"] = "newton_schulz",
    coefficients: Sequence[float] | Sequence[Quintic] | None = None,
    dtype: torch.dtype | None = None,
    gram: bool | Literal["auto"] = "auto",
    scale: Literal["frobenius", "gram"] = "frobenius",
) -> list[Tensor]: ...
def orthogonalize(
    matrices: Tensor | Sequence[Tensor],
    steps: int = 5,
    *,
    method: Literal["newton_schulz", "polar_express"] = "newton_schulz",
    coefficients: Sequence[float] | Sequence[Quintic] | None = None,
    dtype: torch.dtype | None = None,
    gram: bool | Literal["auto"] = "auto",
    scale: Literal["frobenius", "gram"] = "frobenius",
) -> Tensor | list[Tensor]:
    r"""Matrices with their singular values moved to about 1, by matrix products alone.

    .. math::
        X ← X / \lVert X \rVert, \qquad X ← a_k X + b_k (X X^\top) X + c_k (X X^\top)^2 X

    which maps every singular value σ by :math:`a σ + b σ^3 + c σ^5` and leaves singular vectors.

    Parameters
    ----------
    matrices : Tensor or sequence of Tensor
        (..., m, n); float32, float64, bfloat16 or float16. Matrices of one shape, or of one and its
        transpose, go through one batch of products.
    steps : int, default 5
        Steps k.
    method : {"newton_schulz", "polar_express"}
        Coefficients (3.4445, -4.7750, 2.0315) in every step, which leave singular values between
        about 0.7 and 1.2; or :func:`polar_express_coefficients`.
    coefficients : sequence, optional
        (a, b, c), or one such triple for every step, in place of those of ``method``.
    dtype : torch.dtype, optional
        What is computed in: torch.bfloat16, torch.float32 or torch.float64. Default: that of the
        matrices, and float32 for float16.
    gram : bool or "auto"
        Iterates on the smaller gram matrix: for n = 4 m two thirds of the operations. "auto" does
        so from n = 2 m on, in float32 and float64; bfloat16 has too few bits for it.
    scale : {"frobenius", "gram"}
        The norm that is divided by: ‖X‖_F, or then √‖X Xᵀ‖_F, which is nearer to the largest
        singular value and costs one pass more.

    Returns
    -------
    Tensor or list of Tensor
        Like ``matrices``. A zero matrix stays one, and NaN and infinity make theirs NaN. The
        iteration is differentiated exactly, as often as wanted, at the cost of a graph of all its
        steps; the derivative is that of the polynomial, not of the polar factor.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    With m ≤ n, operations per step: 4 m² n + 2 m³, or 8 m³ on gram matrices and 8 m² n once. The
    steps share their buffers.

    References
    ----------
    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; Amsel, Persson,
    Musco and Gower, "The polar express", 2025.
    """
    op = "orthogonalize"
    one = isinstance(matrices, Tensor)
    xs = checks.tensor_list(op, "matrices", matrices)
    for i, x in enumerate(xs):
        _check_matrix(op, f"matrices[{i}]", x)
    checks.at_least(op, "steps", steps, 1)
    checks.one_of(op, "method", method, ("newton_schulz", "polar_express"))
    checks.one_of(op, "scale", scale, ("frobenius", "gram"))
    if gram not in (True, False, "auto"):
        raise ValueError(f"regkern.{op}: expected `gram` to be a bool or 'auto', got {gram!r}")
    if dtype not in (None, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(
            f"regkern.{op}: expected `dtype` bfloat16, float32 or float64, got {dtype}"
        )
    if coefficients is not None:
        quintics: Sequence[Quintic] = _check_coefficients(op, coefficients, steps)
    elif method == "newton_schulz":
        quintics = [STEEP] * steps
    else:
        quintics = polar_express_coefficients(steps)

    batches: dict[tuple[int, int, torch.dtype], list[int]] = {}
    for i, x in enumerate(xs):
        compute = dtype or (torch.float32 if x.dtype == torch.float16 else x.dtype)
        m, n = sorted(x.shape[-2:])
        if x.numel() > 0:
            batches.setdefault((m, n, compute), []).append(i)
    out = [torch.zeros_like(x) if x.numel() == 0 else x for x in xs]
    for (m, n, compute), members in batches.items():
        flat = [_flattened(xs[i]) for i in members]
        batch = _normalized(
            torch.cat([x.to(compute) for x in flat]) if len(flat) > 1 else flat[0].to(compute)
        )
        small = gram if gram != "auto" else n >= 2 * m and compute != torch.bfloat16
        y = _iterated(batch, quintics, bool(small), scale == "gram")
        parts = torch.split(y, [len(x) for x in flat])
        for i, part in zip(members, parts, strict=True):
            part = part if _wide(xs[i]) else part.mT
            out[i] = part.reshape(xs[i].shape).to(xs[i].dtype)
    return out[0] if one else out


def _flattened(x: Tensor) -> Tensor:
    """(batch, m, n) with m ≤ n."""
    x = x.reshape(-1, *x.shape[-2:])
    return x if _wide(x) else x.mT


# ---- polar factors to convergence ----


def _lowest(dtype: torch.dtype) -> float:
    """Singular values below this share of the norm are rounding."""
    return 1e-14 if dtype == torch.float64 else 1e-6


def _polar(x: Tensor) -> Tensor:
    """The polar factor of (..., m, n) in its own dtype."""
    if x.numel() == 0:
        return x.clone()
    flat = _normalized(_flattened(x))
    y = _iterated(flat, _converging(_lowest(x.dtype)), False, True)
    return (y if _wide(x) else y.mT).reshape(x.shape)


def polar_factor(matrix: Tensor) -> Tensor:
    r"""The orthogonal polar factor: the nearest matrix with orthonormal rows or columns.

    .. math:: X = U Σ V^\top \;\mapsto\; U V^\top

    by Polar Express steps, as many as take singular values down to 1e-6 of the Frobenius norm
    (float64: 1e-14) to 1 within rounding.

    Parameters
    ----------
    matrix : Tensor
        (..., m, n); float32, float64, bfloat16 or float16. Halves compute in float32.

    Returns
    -------
    Tensor
        Like ``matrix``. Singular values that are 0 stay 0, those below the bound end between 0 and
        1. Differentiable as :func:`orthogonalize` is: where two singular values add up to little,
        the derivative is large.

    Raises
    ------
    TypeError, ValueError
        Where ``matrix`` is not as said above.

    Notes
    -----
    14 steps in float32, 27 in float64, of three products each; no decomposition, no waiting.
    """
    _check_matrix("polar_factor", "matrix", matrix)
    return _polar(matrix.to(compute_dtype(matrix))).to(matrix.dtype)


class _PolarNorm(torch.autograd.Function):
    """⟨X, U Vᵀ⟩ = Σ σ with gradient U Vᵀ; its own derivative goes through the iteration."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        polar = _polar(x)
        return (x * polar).sum((-2, -1)), polar

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])  # type: ignore[attr-defined]
        ctx.save_for_backward(inputs[0], output[1])  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: object, g: Tensor, _: Tensor) -> Tensor:
        x, polar = ctx.saved_tensors  # type: ignore[attr-defined]
        if torch.is_grad_enabled():
            polar = _polar(x)
        return g[..., None, None] * polar  # type: ignore[no-any-return]


def polar_nuclear_norm(matrix: Tensor) -> Tensor:
    r"""The nuclear norm from the polar factor, without a decomposition.

    .. math:: \lVert X \rVert_* = \langle X, U V^\top \rangle, \qquad
        \nabla \lVert X \rVert_* = U V^\top

    Parameters
    ----------
    matrix : Tensor
        (..., m, n); float32, float64, bfloat16 or float16.

    Returns
    -------
    Tensor
        (...), of the dtype of ``matrix``. Differentiable twice. Where singular values are 0, the
        gradient is the smallest of the subgradients.

    Raises
    ------
    TypeError, ValueError
        Where ``matrix`` is not as said above.

    Notes
    -----
    Costs what :func:`polar_factor` costs, which on a GPU is products instead of an eigenvalue
    problem; :func:`regkern.nuclear_norm` is the exact one, and quicker for small matrices.
    """
    _check_matrix("polar_nuclear_norm", "matrix", matrix)
    wide = matrix.to(compute_dtype(matrix))
    value: Tensor = _PolarNorm.apply(wide)[0]  # type: ignore[no-untyped-call]
    return value.to(matrix.dtype)


def singular_value_clip(matrix: Tensor, cap: float | Tensor) -> Tensor:
    r"""Singular values are capped, singular vectors stay.

    .. math:: U Σ V^\top \;\mapsto\; U \min(Σ, c)\, V^\top

    the projection onto the ball of spectral norm c, from two polar factors: with
    :math:`P = U V^\top`, :math:`H = X P^\top = U Σ U^\top` and the sign :math:`S` of
    :math:`H - c I`,

    .. math:: \tfrac12 (I - S)\, X + \tfrac c2 (I + S)\, P

    Parameters
    ----------
    matrix : Tensor
        (..., m, n); float32, float64, bfloat16 or float16. Halves compute in float32.
    cap : float or Tensor
        c >= 0, one element. Infinity is the identity.

    Returns
    -------
    Tensor
        Like ``matrix``. Differentiable as :func:`orthogonalize` is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A singular value within 1e-6 (float64: 1e-14) of the norm of H - c I from the cap may have a
    sign between -1 and 1, and then becomes a mean of itself and the cap: off by less than its
    distance from it. Small singular values do no harm, whatever their vectors: S is -1 there.
    """
    op = "singular_value_clip"
    _check_matrix(op, "matrix", matrix)
    checks.scale(op, "cap", cap)
    if matrix.numel() == 0:
        return matrix.clone()
    x = _flattened(matrix.to(compute_dtype(matrix)))
    if isinstance(cap, Tensor):
        c = cap.to(device=x.device, dtype=x.dtype).reshape(())
    else:
        c = torch.full((), cap, dtype=x.dtype, device=x.device)
    endless = c.isinf()
    c = torch.where(endless, 0.0, c)
    with torch.autocast(x.device.type, enabled=False):
        p = _polar(x)
        h = torch.bmm(x, p.mT)
        eye = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
        # Symmetric but for rounding.
        s = _polar((h + h.mT) / 2 - c * eye)
        below, above = (eye - s) / 2, (eye + s) / 2
        y = torch.bmm(below, x) + c * torch.bmm(above, p)
    y = torch.where(endless, x, y)
    return (y if _wide(matrix) else y.mT).reshape(matrix.shape).to(matrix.dtype)

"""Penalties on gram matrices: orthogonality of one weight, alignment of two, volume of features.

The products are torch's; everything that happens to them afterwards is one pass over a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import _loop, compute_dtype, function_apply, once_only, register
from regkern.proximal.group_prox import root
from regkern.spectral.polar import polar_factor

Side = Literal["auto", "rows", "columns"]

#: Matrices of one shape and of at most so many elements are multiplied together.
_BATCHED = 1 << 16

# ---- raw op ----


def _fake_residual(grams: Sequence[Tensor], target: str, norm: str) -> Tensor:
    count = sum(g.shape[0] if g.dim() == 3 else 1 for g in grams)
    return grams[0].new_empty((count,), dtype=torch.float64)


_residual_ = register("gram_residual_", _fake_residual)


# ---- derivatives ----


def _gram(w: Tensor, rows: bool) -> Tensor:
    return w @ w.mT if rows else w.mT @ w


def _residual(gram: Tensor, target: str) -> Tensor:
    """What the op leaves, in differentiable torch."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return gram - eye if target == "identity" else gram * (1 - eye)


def _numbers(g: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of the sums of every tensor, to be multiplied with its matrices."""
    out, first = [], 0
    for x in like:
        if x.dim() == 3:
            out.append(g[first : first + x.shape[0], None, None].to(x.dtype))
            first += x.shape[0]
        else:
            out.append(g[first].to(x.dtype))
            first += 1
    return out


class _Orthogonality(torch.autograd.Function):
    """|R|² with R = W Wᵀ − I (rows) or Wᵀ W − I; dW = 4 R W or 4 W R."""

    @staticmethod
    def forward(target: str, rows: tuple[bool, ...], *ws: Tensor) -> tuple[Tensor, ...]:
        grams = [_gram(w, r) for w, r in zip(ws, rows, strict=True)]
        return _residual_(grams, target, "squares"), *grams

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.target, ctx.rows, *ws = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*ws, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Any, ...]:
        count = len(ctx.rows)
        ws: Sequence[Tensor] = ctx.saved_tensors[:count]
        residuals = list(ctx.saved_tensors[count:])
        if torch.is_grad_enabled():
            residuals = [
                _residual(_gram(w, r), ctx.target) for w, r in zip(ws, ctx.rows, strict=True)
            ]
        scaled = [4 * c * r for c, r in zip(_numbers(g, ws), residuals, strict=True)]
        parts = zip(ws, scaled, ctx.rows, strict=True)
        return None, None, *(r @ w if rows else w @ r for w, r, rows in parts)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _loop(lambda *a: function_apply(_Orthogonality, *a), info, in_dims, args)


class _CrossGram(torch.autograd.Function):
    """|C|² or |C|₁ with C = A Bᵀ; dA = D B and dB = Dᵀ A with D = 2 C or sgn C."""

    @staticmethod
    def forward(norm: str, count: int, *abs: Tensor) -> tuple[Tensor, ...]:
        products = [a @ b.mT for a, b in zip(abs[:count], abs[count:], strict=True)]
        return _residual_(products, "zero", norm), *products

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.norm, ctx.count, *abs = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*abs, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Any, ...]:
        saved, n = ctx.saved_tensors, ctx.count
        first, second = list(saved[:n]), list(saved[n : 2 * n])
        products = list(saved[2 * n :])
        squares = ctx.norm == "squares"
        if squares and torch.is_grad_enabled():
            products = [a @ b.mT for a, b in zip(first, second, strict=True)]
        numbers = _numbers(2 * g if squares else g, first)
        ds = [number * c for number, c in zip(numbers, products, strict=True)]
        das = [d @ b for d, b in zip(ds, second, strict=True)]
        return None, None, *das, *(d.mT @ a for d, a in zip(ds, first, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return _loop(lambda *a: function_apply(_CrossGram, *a), info, in_dims, args)


def _regularized(f: Tensor, alpha: float | Tensor, delta: float | Tensor) -> Tensor:
    """α FᵀF + δI."""
    eye = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    return alpha * (f.mT @ f) + delta * eye


class _LogDet(torch.autograd.Function):
    """log det(M) with M = α FᵀF + δI, d/dF = 2 α F M⁻¹; −∞ where M is not positive."""

    generate_vmap_rule = True

    @staticmethod
    def forward(f: Tensor, alpha: float, delta: Tensor) -> tuple[Tensor, Tensor]:
        m = _regularized(f, alpha, delta)
        factor, info = torch.linalg.cholesky_ex(m)
        value = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        # A factorization that breaks off leaves anything behind.
        failed = torch.where(m.isnan().any(-1).any(-1), torch.nan, -torch.inf)
        return torch.where(info > 0, failed.to(f.dtype), value), factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        f, ctx.alpha, delta = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(f, delta, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
        f, delta, factor = ctx.saved_tensors
        if torch.is_grad_enabled():
            m = _regularized(f, ctx.alpha, delta)
            inverse = torch.linalg.inv_ex(m)[0]
            df = f @ inverse
        else:
            inverse = None
            df = torch.cholesky_solve(f.mT, factor).mT
        ddelta = None
        if ctx.needs_input_grad[2]:
            if inverse is None:
                inverse = torch.cholesky_inverse(factor)
            ddelta = g * inverse.diagonal(dim1=-2, dim2=-1).sum(-1)
        return 2 * ctx.alpha * g * df, None, ddelta


class _Invariance(torch.autograd.Function):
    """ρ = gᵀ y with G y = g, G = φᵀφ / n + δI; dg = 2 y, dG = −y yᵀ, dφ = −2 (φ y) yᵀ / n."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, features: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        m = _regularized(features, 1 / max(features.shape[-2], 1), delta)
        factor, info = torch.linalg.cholesky_ex(m)
        y = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        y = torch.where(info > 0, torch.nan, y)
        return (gradient * y).sum(-1), y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
        gradient, features, delta, y = ctx.saved_tensors
        n = max(features.shape[-2], 1)
        if torch.is_grad_enabled():
            m = _regularized(features, 1 / n, delta)
            y = torch.linalg.solve_ex(m, gradient[..., None])[0][..., 0]
        along = features @ y[..., None]
        return 2 * g * y, (-2 / n) * g * along * y[..., None, :], -g * (y * y).sum(-1)


# ---- what the public functions share ----


def _matrix(op: str, name: str, w: Tensor) -> Tensor:
    """(outputs, rest), in the type that is computed in."""
    if w.dim() < 2:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of at least two dimensions, got {tuple(w.shape)}"
        )
    return w.flatten(1).to(compute_dtype(w))


def _matrices(op: str, name: str, weights: object) -> list[Tensor]:
    tensors = checks.tensor_list(op, name, weights)
    return [_matrix(op, f"{name}[{i}]", w) for i, w in enumerate(tensors)]


def _batches(lists: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Lists side by side with those places stacked where all shapes are equal and small."""
    places: dict[Any, list[int]] = {}
    for i, xs in enumerate(zip(*lists, strict=True)):
        small = max(x.numel() for x in xs) <= _BATCHED
        key = tuple((*x.shape, x.dtype) for x in xs) if small else i
        places.setdefault(key, []).append(i)
    out: list[list[Tensor]] = [[] for _ in lists]
    for group in places.values():
        for target, source in zip(out, lists, strict=True):
            each = [source[i] for i in group]
            target.append(each[0] if len(each) == 1 else torch.stack(each))
    return out


def _total(sums: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """The sum of float64 vectors, float64 where a tensor is, else float32."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in like) else torch.float32
    return torch.cat(list(sums)).sum().to(dtype)


def _by_dtype(xs: Sequence[Tensor]) -> list[list[Tensor]]:
    return [[xs[i] for i in group] for group in checks.by_dtype(xs)]


def _is_rows(w: Tensor, side: Side) -> bool:
    return side == "rows" or (side == "auto" and bool(w.shape[-2] <= w.shape[-1]))


def _sums_of_squares(ws: Sequence[Tensor], side: Side, diagonal: bool) -> list[Tensor]:
    """The squared residuals of all matrices, a vector for each dtype."""
    target = "identity" if diagonal else "off_diagonal"
    sums = []
    for each in _by_dtype(ws):
        (stacked,) = _batches([each])
        rows = tuple(_is_rows(w, side) for w in stacked)
        sums.append(function_apply(_Orthogonality, target, rows, *stacked)[0])
    return sums


def _number(op: str, name: str, value: float | Tensor, like: Tensor) -> Tensor:
    checks.scale(op, name, value)
    if isinstance(value, Tensor):
        return value.reshape(()).to(device=like.device, dtype=like.dtype)
    return torch.full((), value, dtype=like.dtype, device=like.device)


# ---- public functions ----


def orthogonality_penalty(
    weights: Tensor | Sequence[Tensor],
    *,
    side: Side = "auto",
    squared: bool = True,
    diagonal: bool = True,
) -> Tensor:
    r"""How far weights are from orthogonal.

    .. math:: R = \sum_l \lVert W_l W_l^\top - I \rVert_F^2 \;\text{(rows) or}\;
        \sum_l \lVert W_l^\top W_l - I \rVert_F^2 \;\text{(columns)}

    Parameters
    ----------
    weights : Tensor or sequence of Tensor
        Weights of at least two dimensions, as matrices of their first dimension by all others;
        float32, float64, bfloat16 or float16, on one device.
    side : {"auto", "rows", "columns"}
        What is to be orthonormal. "auto" takes the smaller gram of every weight, the one that can
        be the identity.
    squared : bool
        Squares of Frobenius norms, or the norms themselves: with the gradient :math:`2 R W / \lVert
        R \rVert_F`, and 0 where the residual is 0.
    diagonal : bool
        False masks the diagonal: :math:`\lVert W W^\top \odot (1 - I) \rVert^2` asks for
        orthogonality and leaves the norms alone.

    Returns
    -------
    Tensor
        0-d, float32 (float64 where a weight is). Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The gradient is :math:`4 (W W^\top - I) W`. Two products of torch for each weight, forward and
    backward; grams are subtracted from, masked and summed in one pass for the whole list, in place.
    Small weights of one shape are multiplied in one batch. bfloat16 and float16 are multiplied in
    float32: in their own precision the residual of an orthogonal weight would be all rounding.

    References
    ----------
    Xie, Xiong and Pu, "All you need is beyond a good init", CVPR 2017. Brock, Donahue and
    Simonyan, "Large scale GAN training for high fidelity natural image synthesis", ICLR 2019.
    """
    op = "orthogonality_penalty"
    ws = _matrices(op, "weights", weights)
    checks.one_of(op, "side", side, ("auto", "rows", "columns"))
    sums = _sums_of_squares(ws, side, diagonal)
    return _total(sums if squared else [root(s) for s in sums], ws)


def sorsa_penalty(us: Tensor | Sequence[Tensor], vs: Tensor | Sequence[Tensor]) -> Tensor:
    r"""The orthonormality of the singular vectors of adapters :math:`U \operatorname{diag}(s) V`.

    .. math:: R = \frac{1}{2 N} \sum_i \lVert U_i^\top U_i - I \rVert_F
        + \lVert V_i V_i^\top - I \rVert_F

    Norms, not squares; the mean is over all matrices.

    Parameters
    ----------
    us, vs : Tensor or sequence of Tensor
        Left factors (outputs, rank) and right factors (rank, inputs), as many of each.

    Returns
    -------
    Tensor
        0-d. Differentiable twice; the gradient of an orthonormal factor is 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    As :func:`orthogonality_penalty`. Factors of one shape go through one batched product.

    References
    ----------
    Cao, "SORSA: Singular values and orthonormal regularized singular vectors adaptation of large
    language models", 2024.
    """
    op = "sorsa_penalty"
    left, right = _matrices(op, "us", us), _matrices(op, "vs", vs)
    checks.on_device(op, "vs[0]", right[0], left[0])
    if len(left) != len(right):
        raise ValueError(f"regkern.{op}: expected `vs` of {len(left)} tensors, got {len(right)}")
    sums = _sums_of_squares(left, "columns", True) + _sums_of_squares(right, "rows", True)
    return _total([root(s) for s in sums], left + right) / (len(left) + len(right))


def srip_penalty(
    weights: Tensor | Sequence[Tensor],
    *,
    side: Side = "auto",
    n_iter: int = 2,
    vectors: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The spectral restricted isometry penalty

    .. math:: R = \sum_l \sigma_{\max}(W_l^\top W_l - I)

    by power iteration on products with W alone: no gram is formed.

    Parameters
    ----------
    weights : Tensor or sequence of Tensor
        As :func:`orthogonality_penalty` takes them.
    side : {"auto", "rows", "columns"}
        Which gram.
    n_iter : int
        Iterations, at least 1; each has two products with W.
    vectors : sequence of Tensor, optional
        A start for every weight, of the length of its gram, in float32 (float64 for float64);
        changed in place to what the iteration ends at, so that the next call goes on from there.
        Without them, starts are normal numbers of ``generator``.

    Returns
    -------
    Tensor
        0-d: :math:`\lVert (W^\top W - I) v \rVert` with a unit vector v that is constant for the
        gradient: from below, and exact at the largest singular value, whatever the signs of the
        eigenvalues. Differentiable twice; the gradient is 0 where the value is.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: every weight is read 2 (n_iter + 1) times.

    References
    ----------
    Bansal, Chen and Wang, "Can we gain more from orthogonality regularizations in training deep
    CNNs?", NeurIPS 2018.
    """
    op = "srip_penalty"
    ws = _matrices(op, "weights", weights)
    checks.one_of(op, "side", side, ("auto", "rows", "columns"))
    checks.at_least(op, "n_iter", n_iter, 1)
    if vectors is not None and len(vectors) != len(ws):
        raise ValueError(
            f"regkern.{op}: expected `vectors` of {len(ws)} tensors, got {len(vectors)}"
        )
    values = []
    for i, w in enumerate(ws):
        a = w.mT if _is_rows(w, side) else w
        if vectors is None:
            v = torch.randn(a.shape[1], dtype=a.dtype, device=a.device, generator=generator)
        else:
            v = vectors[i]
            checks.same(op, f"vectors[{i}]", v, a[0], "a row of the gram")
        with torch.no_grad():
            u = v
            for _ in range(n_iter):
                u = torch.nn.functional.normalize(u, dim=0, eps=1e-30)
                u = a.mT @ (a @ u) - u
            # Where nothing is left of it, the start is as good as any.
            u = torch.where((u == 0).all(), v, u)
            u = torch.nn.functional.normalize(u, dim=0, eps=1e-30)
            if vectors is not None:
                v.copy_(u)
        values.append(root((a.mT @ (a @ u) - u).double().square().sum()).reshape(1))
    return _total(values, ws)


def cross_gram_penalty(
    pairs: Sequence[tuple[Tensor, Tensor]],
    norm: Literal["fro", "l1"] = "fro",
    *,
    squared: bool = False,
) -> Tensor:
    r"""How much the rows of two matrices point the same way.

    .. math:: R = \sum_{(A, B)} \lVert A B^\top \rVert_F, \quad
        \sum_{(A, B)} \lVert A B^\top \rVert_F^2 \;\text{or}\; \sum_{(A, B)} \sum_{ij}
        |(A B^\top)_{ij}|

    PEGO: with the factors A_i (rank, inputs) and B_i (outputs, rank) of low-rank adapters and the
    frozen weight W₀, pairs :math:`(A_i, W_0)` or :math:`(W_0^\top, B_i^\top)` keep adapters away
    from what is there, and ``itertools.combinations(As, 2)`` keeps them apart from each other.

    Parameters
    ----------
    pairs : sequence of (Tensor, Tensor)
        Matrices (a, n) and (b, n); views are fine.
    norm : {"fro", "l1"}
        The norm.
    squared : bool
        The square of the Frobenius norm.

    Returns
    -------
    Tensor
        0-d, float32 (float64 where a tensor is). Differentiable twice; the gradient of a norm that
        is 0 is 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The gradients are D B and Dᵀ A with :math:`D = C / \lVert C \rVert, 2 C` or sgn C of
    :math:`C = A B^\top`. Products are torch's, in one batch for small pairs of one shape; the
    products are summed, and for "l1" replaced by their signs, in one pass over the whole list.

    References
    ----------
    Hu, Zhang, Qi and Shi, "Learn to preserve and diversify: parameter-efficient group with
    orthogonal regularization for domain generalization", ECCV 2024.
    """
    op = "cross_gram_penalty"
    checks.one_of(op, "norm", norm, ("fro", "l1"))
    if squared and norm == "l1":
        raise ValueError(f"regkern.{op}: expected `norm` 'fro' with `squared`, got 'l1'")
    both = [tuple(pair) for pair in pairs]
    if not both:
        raise ValueError(f"regkern.{op}: expected a pair in `pairs`, got none")
    for i, pair in enumerate(both):
        if len(pair) != 2:
            raise ValueError(f"regkern.{op}: expected two tensors in `pairs[{i}]`, got {len(pair)}")
        for k, x in enumerate(pair):
            name = f"pairs[{i}][{k}]"
            checks.floating(op, name, x)
            checks.on_device(op, name, x, both[0][0])
            if x.dim() != 2 or x.shape[1] != pair[0].shape[1] or x.dtype != pair[0].dtype:
                raise ValueError(
                    f"regkern.{op}: expected `{name}` to be a matrix with rows like those of "
                    f"`pairs[{i}][0]` ({tuple(pair[0].shape)}, {pair[0].dtype}), got "
                    f"{tuple(x.shape)}, {x.dtype}"
                )
    first = [_matrix(op, "pairs", a) for a, _ in both]
    second = [_matrix(op, "pairs", b) for _, b in both]
    sums = []
    for group in checks.by_dtype(first):
        a, b = _batches([[first[i] for i in group], [second[i] for i in group]])
        kind = "squares" if norm == "fro" else "magnitudes"
        total = function_apply(_CrossGram, kind, len(a), *a, *b)[0]
        sums.append(total if squared or norm == "l1" else root(total))
    return _total(sums, first)


def log_det_penalty(features: Tensor, delta: float | Tensor = 0.0) -> Tensor:
    r"""Minus the logarithm of the squared volume that columns span.

    .. math:: R = -\log \det(F^\top F + \delta I), \qquad
        \frac{\partial R}{\partial F} = -2 F (F^\top F + \delta I)^{-1}

    Parameters
    ----------
    features : Tensor
        F of shape (samples, columns), float32, float64, bfloat16 or float16; soft memberships, say.
    delta : float or Tensor
        δ, at least 0; a tensor of one element may have a gradient.

    Returns
    -------
    Tensor
        0-d, in the type that is computed in; infinite where the matrix is not positive.
        Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A product and a Cholesky factorization, of which the backward makes two triangular solves.
    Nothing waits for the device.

    References
    ----------
    Nguyen, Ibrahim and Fu, "Deep clustering with incomplete noisy pairwise annotations: a geometric
    regularization approach", ICML 2023.
    """
    op = "log_det_penalty"
    checks.floating(op, "features", features)
    f = _matrix(op, "features", features)
    value: Tensor = function_apply(_LogDet, f, 1.0, _number(op, "delta", delta, f))[0]
    return -value


def coding_rate(features: Tensor, eps: float = 0.5) -> Tensor:
    r"""The rate distortion of features: the bits (nats) that it takes to code them up to ε.

    .. math:: R = \tfrac{1}{2} \log \det\Bigl(I + \frac{d}{n \varepsilon^2} Z^\top Z\Bigr)

    Parameters
    ----------
    features : Tensor
        Z of shape (n, d).
    eps : float
        ε, above 0.

    Returns
    -------
    Tensor
        0-d, to be maximised. Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Through the smaller gram, :math:`Z^\top Z` or :math:`Z Z^\top`, which have one determinant.

    References
    ----------
    Yu, Chan, You, Song and Ma, "Learning diverse and discriminative representations via the
    principle of maximal coding rate reduction", NeurIPS 2020.
    """
    op = "coding_rate"
    checks.floating(op, "features", features)
    z = _matrix(op, "features", features)
    if not eps > 0:
        raise ValueError(f"regkern.{op}: expected `eps` above 0, got {eps}")
    n, d = z.shape
    alpha = d / (max(n, 1) * eps**2)
    one = torch.ones((), dtype=z.dtype, device=z.device)
    value: Tensor = function_apply(_LogDet, z if d <= n else z.mT, alpha, one)[0]
    return 0.5 * value


def invariance_penalty(gradient: Tensor, features: Tensor, delta: float | Tensor = 0.0) -> Tensor:
    r"""The invariance penalty of IRMv2, for one environment.

    .. math:: \rho = g^\top G^{-1} g, \qquad
        G = \frac{1}{n} \sum_i \varphi_i \varphi_i^\top + \delta I

    the squared norm of :math:`G^{-1/2} g`: unlike :math:`\lVert g \rVert^2` it does not change with
    the scale of the features.

    Parameters
    ----------
    gradient : Tensor
        g = ∇_w R_e of shape (d,), the gradient of the environment's risk by the linear head, with
        its graph.
    features : Tensor
        φ of shape (n, d).
    delta : float or Tensor
        δ, at least 0; a tensor of one element may have a gradient.

    Returns
    -------
    Tensor
        0-d; NaN where G is not positive. Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A product and one Cholesky solve y; the gradients are 2 y, :math:`-2 (\varphi y) y^\top / n` and
    :math:`-\lVert y \rVert^2`. Nothing waits for the device.

    References
    ----------
    Khezeli, Blaas, Soboczenski, Chia and Kalantari, "On invariance penalties for risk
    minimization", 2021.
    """
    op = "invariance_penalty"
    checks.floating(op, "gradient", gradient)
    checks.floating(op, "features", features)
    checks.on_device(op, "gradient", gradient, features)
    phi = _matrix(op, "features", features)
    if gradient.dim() != 1 or gradient.shape[0] != phi.shape[1]:
        raise ValueError(
            f"regkern.{op}: expected `gradient` of shape ({phi.shape[1]},), got "
            f"{tuple(gradient.shape)}"
        )
    g = gradient.to(phi.dtype)
    value: Tensor = function_apply(_Invariance, g, phi, _number(op, "delta", delta, phi))[0]
    return value


class _NuclearNorm(torch.autograd.Function):
    """⟨W, P⟩ with the polar factor P, which is the gradient."""

    @staticmethod
    def forward(w: Tensor, polar: Tensor) -> Tensor:
        return (w * polar).sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_only("nuclear_norm_penalty")
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return g * ctx.saved_tensors[1], None


def nuclear_norm_penalty(
    weights: Tensor | Sequence[Tensor], polar: Callable[[Tensor], Tensor] = polar_factor
) -> Tensor:
    r"""The sum of all singular values, through polar factors.

    .. math:: R = \sum_l \lVert W_l \rVert_* = \sum_l \langle W_l, P_l \rangle, \qquad
        \frac{\partial R}{\partial W_l} = P_l = U_l V_l^\top

    Parameters
    ----------
    weights : Tensor or sequence of Tensor
        As :func:`orthogonality_penalty` takes them.
    polar : callable
        The polar factor of a matrix: :func:`polar_factor`, quicker and rougher
        :func:`orthogonalize`, or ``U @ Vh`` of an SVD. What it returns for a zero matrix is the
        gradient there.

    Returns
    -------
    Tensor
        0-d, as exact as the polar factor. Differentiable once; a second derivative is refused.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    """
    op = "nuclear_norm_penalty"
    ws = _matrices(op, "weights", weights)
    if not callable(polar):
        raise TypeError(f"regkern.{op}: expected `polar` to be a function, got {type(polar)}")
    values = []
    for w in ws:
        with torch.no_grad():
            factor = polar(w).to(w.dtype)
        values.append(function_apply(_NuclearNorm, w, factor).double().reshape(1))
    return _total(values, ws)

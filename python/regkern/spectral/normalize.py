"""Weights divided by their spectral norm, and layers that divide their output instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, register
from regkern.spectral.power import (
    Singular,
    _add_outer_,
    _plain,
    as_weight,
    check_iterations,
    check_pair,
    check_weights,
    iterate,
    resolve_dims,
)

# ---- raw ops: fake kernels and autograd ----

_divide = register("spectral_divide", lambda ws, sigma, cap: [dense_like(w) for w in ws])
_divide_ = register("spectral_divide_", lambda *args: None)
_divide_backward = register(
    "spectral_divide_backward", lambda gs, ws, sigma, u, v, dims, cap: [_plain(w) for w in ws]
)


def _factor(sigma: Tensor, cap: float) -> Tensor:
    """1 / max(1, σ / cap), or 1 / σ without a cap; 0 for σ = 0."""
    if cap > 0:
        above = sigma > cap
        inverse = cap / torch.where(above, sigma, torch.ones_like(sigma))
        return torch.where(above | sigma.isnan(), inverse * (sigma / sigma), torch.ones_like(sigma))
    zero = sigma == 0
    return torch.where(zero, torch.zeros_like(sigma), 1 / torch.where(zero, 1.0, sigma))


def _sigma_of(weight: Tensor, value: Tensor, u: Tensor, v: Tensor, dim: int) -> Tensor:
    """The value of σ, and uᵀ W v to whoever differentiates it."""
    product = (as_weight(torch.outer(u, v), weight, dim) * weight.to(u.dtype)).sum()
    return value + (product - product.detach())


class _Divide(torch.autograd.Function):
    """W a(σ), σ = uᵀ W v."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        cap: float, dim: int, sigma: Tensor, u: Tensor, v: Tensor, weight: Tensor
    ) -> Tensor:
        out: Tensor = _divide([weight], sigma, cap)[0]
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.cap, ctx.dim = inputs[:2]
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        sigma, u, v, weight = ctx.saved_tensors
        if not torch.is_grad_enabled():
            grad = _divide_backward([g], [weight], sigma, [u], [v], [ctx.dim], ctx.cap)[0]
            return None, None, None, None, None, grad
        s = _sigma_of(weight, sigma[0], u, v, ctx.dim)
        wide, up = weight.to(u.dtype), g.to(u.dtype)
        a = _factor(s, ctx.cap)
        outer = as_weight(torch.outer(u, v), weight, ctx.dim)
        counts = s != 0 if ctx.cap == 0 else ~(s <= ctx.cap)
        along = torch.where(counts, (up * wide).sum() / torch.where(counts, s, 1.0), 0.0)
        return None, None, None, None, None, (a * (up - along * outer)).to(weight.dtype)


# ---- layers whose output is divided ----

Layer = Callable[[Tensor, Tensor], Tensor]


class _Folded(torch.autograd.Function):
    """layer(x, W) a(σ) + b; W a(σ) is never written."""

    @staticmethod
    def forward(
        layer: Any,
        cap: float,
        dim: int,
        sigma: Tensor,
        u: Tensor,
        v: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        y: Tensor = layer.apply(x, weight)
        factor = _factor(sigma[0], cap).to(y.dtype)
        if bias is None:
            return y.mul_(factor)
        shape = layer.bias_shape
        return torch.addcmul(bias.view(shape).to(y.dtype), y, factor, out=y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layer, ctx.cap, ctx.dim = inputs[:3]
        ctx.save_for_backward(*inputs[3:], output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        sigma, u, v, x, weight, bias, y = ctx.saved_tensors
        none = (None,) * 6
        layer, wants = ctx.layer, ctx.needs_input_grad[6:]
        if torch.is_grad_enabled():
            # Twice differentiable, by torch's rules for each step.
            given = [t for t, want in zip((x, weight, bias), wants, strict=True) if want]
            s = _sigma_of(weight, sigma[0], u, v, ctx.dim)
            out = layer.apply(x, weight) * _factor(s, ctx.cap).to(g.dtype)
            if bias is not None:
                out = out + bias.view(layer.bias_shape)
            found = iter(torch.autograd.grad(out, given, g, create_graph=True))
            return *none, *(next(found) if want else None for want in wants)
        a = _factor(sigma[0], ctx.cap)
        dx, dw = layer.gradients(g * a.to(g.dtype), x, weight, wants[0], wants[1])
        db = None
        if bias is not None:
            summed = [d for d in range(g.dim()) if d != layer.channel_dim % g.dim()]
            db = g.sum(summed)
        if wants[1]:
            # ⟨g, layer(x, W)⟩ a = ⟨g, y⟩ − ⟨db, b⟩, which da/dσ = −a/σ turns into that by σ.
            product = (g * y).sum(dtype=a.dtype)
            if bias is not None and db is not None:
                product = product - (db * bias).sum(dtype=a.dtype)
            s = sigma[0]
            counts = s != 0 if ctx.cap == 0 else ~(s <= ctx.cap)
            scale = torch.where(counts, -product / torch.where(counts, s, 1.0), 0.0)
            _add_outer_([dw], [u], [v], scale.reshape(1), [ctx.dim])
        return *none, dx, dw, db if wants[2] else None


class _LinearLayer:
    channel_dim = -1
    bias_shape = (-1,)

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight)

    def gradients(
        self, g: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        dx = g @ weight if wants_x else None
        dw = g.reshape(-1, g.shape[-1]).t() @ x.reshape(-1, x.shape[-1]) if wants_w else None
        return dx, dw


class _ConvLayer:
    channel_dim = 1

    def __init__(
        self, stride: list[int], padding: list[int], dilation: list[int], groups: int
    ) -> None:
        self.options = (stride, padding, dilation, False, [0] * len(stride), groups)
        self.bias_shape = (-1,) + (1,) * len(stride)

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.aten.convolution(x, weight, None, *self.options)  # type: ignore[no-any-return]

    def gradients(
        self, g: Tensor, x: Tensor, weight: Tensor, wants_x: bool, wants_w: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        found = torch.ops.aten.convolution_backward(
            g, x, weight, None, *self.options, [wants_x, wants_w, False]
        )
        return found[0], found[1]


# ---- public functions ----


def _resolve_cap(op: str, cap: float | None) -> float:
    """The cap, 0 for none."""
    if cap is None:
        return 0.0
    if isinstance(cap, bool) or not isinstance(cap, int | float | torch.SymFloat):
        raise TypeError(f"regkern.{op}: expected `cap` to be a number or None, got {cap!r}")
    if not cap > 0:
        raise ValueError(f"regkern.{op}: expected `cap` above 0, got {cap}")
    return cap * 1.0


def _prepare(
    op: str,
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    n_iter: int,
    dim: int,
    eps: float,
    update: bool,
) -> tuple[Singular, int]:
    ws = check_weights(op, weight)
    dims = resolve_dims(op, ws, dim)
    us, vs = check_pair(op, ws, u, v, dims)
    check_iterations(op, "n_iter", n_iter)
    checks.at_least(op, "eps", eps, 0.0)
    found = iterate(ws, us, vs, dims, n_iter, None, eps, update and n_iter > 0, False)
    return found, dims[0]


def spectral_normalize(
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    n_iter: int = 1,
    cap: float | None = None,
    dim: int = 0,
    eps: float = 0.0,
    update: bool = True,
) -> Tensor:
    r"""A weight divided by its spectral norm.

    .. math:: \hat W = \frac{W}{\sigma} \quad\text{or}\quad \hat W = \frac{W}{\max(1, \sigma / c)},
        \qquad \sigma = u^\top W v

    with a cap c: what is below it stays as it is.

    Parameters
    ----------
    weight : Tensor
        Of two dimensions or more; as a matrix, dimension ``dim`` is its rows.
    u, v : Tensor
        Vectors of the power iteration, which are overwritten.
    n_iter : int
        Power iterations before; 0 takes u and v as they are.
    cap : float, optional
        c. Default: divide in any case.
    dim : int
        The rows: 0, and 1 for transposed convolutions.
    eps : float
        A weight of no greater σ counts as zero.
    update : bool
        Whether ``u`` and ``v`` are overwritten.

    Returns
    -------
    Tensor
        Like ``weight``. Differentiable twice, u and v being constants.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The gradient is :math:`dW = (G - \langle G, \hat W \rangle\, u v^\top) / \sigma`, and G where
    the cap is not reached. A weight with σ = 0 gives zeros, with gradient 0. Bytes moved: the
    weight read once for an iteration and once more, the result written; in the backward, the
    gradient read twice, the weight once, and the result written.

    References
    ----------
    Miyato, Kataoka, Koyama and Yoshida, "Spectral normalization for generative adversarial
    networks", ICLR 2018. Gouk, Frank, Pfahringer and Cree, "Regularisation of neural networks by
    enforcing Lipschitz continuity", Machine Learning, 2021 (the cap).
    """
    op = "spectral_normalize"
    c = _resolve_cap(op, cap)
    found, d = _prepare(op, weight, u, v, n_iter, dim, eps, update)
    out: Tensor = function_apply(_Divide, c, d, found.sigma, found.u, found.v, weight)
    return out


def spectral_normalize_(
    weight: Tensor,
    u: Tensor,
    v: Tensor,
    *,
    n_iter: int = 1,
    cap: float | None = None,
    dim: int = 0,
    eps: float = 0.0,
) -> Tensor:
    """Projects a weight in place, as :func:`spectral_normalize` computes it; not differentiable.

    Parameters
    ----------
    weight, u, v, n_iter, cap, dim, eps
        As in :func:`spectral_normalize`.

    Returns
    -------
    Tensor
        ``weight``.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd, as an optimizer's step is not. Bytes moved: the weight read once for
    an iteration, then once more and written.
    """
    op = "spectral_normalize_"
    c = _resolve_cap(op, cap)
    found, _ = _prepare(op, weight, u, v, n_iter, dim, eps, True)
    with torch.no_grad():
        _divide_([weight], found.sigma, c)
    return weight


def spectral_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    v: Tensor,
    *,
    n_iter: int = 1,
    cap: float | None = None,
    eps: float = 0.0,
    update: bool = True,
) -> Tensor:
    r"""A linear layer with a normalised weight, which is never written.

    .. math:: y = \frac{x W^\top}{\sigma} + b

    Parameters
    ----------
    x : Tensor
        (…, inputs).
    weight : Tensor
        (outputs, inputs).
    bias : Tensor, optional
        (outputs,).
    u, v, n_iter, cap, eps, update
        As in :func:`spectral_normalize`.

    Returns
    -------
    Tensor
        (…, outputs). Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Beyond a plain layer, the forward reads the weight once and passes over its output; the backward
    passes over the output's gradient and adds a matrix of rank 1 to the weight's in place.

    References
    ----------
    As of :func:`spectral_normalize`.
    """
    op = "spectral_linear"
    checks.floating(op, "x", x)
    c = _resolve_cap(op, cap)
    found, d = _prepare(op, weight, u, v, n_iter, 0, eps, update)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"regkern.{op}: expected `weight` (outputs, inputs) and `x` (…, inputs), got "
            f"{tuple(weight.shape)} and {tuple(x.shape)}"
        )
    y: Tensor = function_apply(
        _Folded, _LinearLayer(), c, d, found.sigma, found.u, found.v, x, weight, bias
    )
    return y


def spectral_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    u: Tensor,
    v: Tensor,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    n_iter: int = 1,
    cap: float | None = None,
    eps: float = 0.0,
    update: bool = True,
) -> Tensor:
    r"""A convolution with a normalised weight, which is never written.

    .. math:: y = \frac{W * x}{\sigma} + b

    with the spectral norm σ of the weight as a matrix of one row an output channel, not of the
    convolution as an operator.

    Parameters
    ----------
    x : Tensor
        (batch, inputs, …), of one to three dimensions in space.
    weight : Tensor
        (outputs, inputs / groups, …).
    bias : Tensor, optional
        (outputs,).
    stride, padding, dilation, groups
        As in :func:`torch.nn.functional.conv2d`; numbers.
    u, v, n_iter, cap, eps, update
        As in :func:`spectral_normalize`.

    Returns
    -------
    Tensor
        As of the convolution. Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    As of :func:`spectral_linear`.

    References
    ----------
    As of :func:`spectral_normalize`.
    """
    op = "spectral_conv"
    checks.floating(op, "x", x)
    c = _resolve_cap(op, cap)
    ndim = weight.dim() - 2
    if ndim not in (1, 2, 3) or x.dim() != ndim + 2:
        raise ValueError(
            f"regkern.{op}: expected `x` and `weight` of one rank from 3 to 5, got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    found, d = _prepare(op, weight, u, v, n_iter, 0, eps, update)

    def each(value: int | tuple[int, ...]) -> list[int]:
        return [value] * ndim if isinstance(value, int) else list(value)

    layer = _ConvLayer(each(stride), each(padding), each(dilation), groups)
    y: Tensor = function_apply(_Folded, layer, c, d, found.sigma, found.u, found.v, x, weight, bias)
    return y

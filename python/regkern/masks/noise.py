"""Noise that is drawn again instead of stored: added, multiplied, of diffusions and features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, function_apply, once_only, register
from regkern.random import resolve_seed

Kind = Literal["gaussian", "uniform"]
KINDS = ("gaussian", "uniform")


# ---- raw ops: fake kernels and autograd ----


def _fake_triplet(x: Tensor, seed: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y = torch.empty((3 * x.shape[0], *x.shape[1:]), dtype=x.dtype, device=x.device)
    if not x.is_contiguous():
        for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if x.dim() == rank and x.is_contiguous(memory_format=layout):
                y = y.contiguous(memory_format=layout)
    return y, x.new_empty((x.shape[0],), dtype=torch.float64)


_inject = register(
    "noise_inject",
    lambda x, seed, kind, index, factor, factor_noise, shift, shift_noise, shift_more: dense_like(
        x
    ),
)
_inject_ = register("noise_inject_", lambda *args: None)
_perturb = register(
    "noise_perturb",
    lambda x, seed, factor, shift_noise, shift_more: (dense_like(x), dense_like(x)),
)
_triplet = register("noise_triplet", _fake_triplet)


def _noise(like: Tensor, seed: Tensor, kind: str) -> Tensor:
    """The noise itself, as a tensor."""
    one = torch.ones(1, dtype=compute_dtype(like), device=like.device)
    index = [max(like.numel(), 1), 1, 1]
    n: Tensor = _inject(
        torch.zeros_like(like, memory_format=torch.contiguous_format),
        seed, kind, index, None, None, None, one, None,
    )  # fmt: skip
    return n


def _by_group(product: Tensor, index: Sequence[int], like: Tensor) -> Tensor:
    """The sums of a product's elements by group."""
    width, repeat, run = index
    if product.numel() == 0:
        return torch.zeros_like(like)
    sums = product.reshape(-1, repeat, run, width).sum((1, 3), dtype=torch.float64)
    return sums.reshape(like.shape).to(like.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, seed, ctx.kind, index, factor, factor_noise, shift, shift_noise, more = inputs
    for name, t in (("factor", factor), ("shift", shift), ("shift_more", more)):
        if t is not None and t.requires_grad:
            raise RuntimeError(f"regkern.noise_inject: expected no gradient of `{name}`, got one")
    ctx.index = list(index)
    wanted = factor_noise is not None and factor_noise.requires_grad
    ctx.save_for_backward(x if wanted else None, seed, factor, factor_noise, shift_noise)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, seed, factor, factor_noise, shift_noise = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx = dp = dq = None
    if needs[0]:
        if factor is None and factor_noise is None:
            dx = g
        else:
            dx = _inject(g, seed, ctx.kind, ctx.index, factor, factor_noise, None, None, None)
    if needs[5] or needs[7]:
        noise = _noise(g, seed, ctx.kind)
        if needs[5]:
            dp = _by_group(g * x * noise, ctx.index, factor_noise)
        if needs[7]:
            dq = _by_group(g * noise, ctx.index, shift_noise)
    return dx, None, None, None, None, dp, None, dq, None


_inject.differentiable(_setup, _backward)


def _setup_perturb(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, seed, factor, _, _ = inputs
    ctx.save_for_backward(seed, factor)


def _backward_perturb(ctx: Any, g: Tensor, _: Tensor) -> tuple[Any, ...]:
    # The noise is none of x's: the map is a factor per sample.
    _, factor = ctx.saved_tensors
    dx = (g * factor.reshape(-1, *([1] * (g.dim() - 1)))).to(g.dtype)
    return dx, None, None, None, None


_perturb.differentiable(_setup_perturb, _backward_perturb)


def _backward_triplet(ctx: Any, g: Tensor, _: Tensor) -> tuple[Any, ...]:
    a, b, c = g.chunk(3) if g.shape[0] > 0 else (g, g, g)
    return a + b + c, None, None


_triplet.differentiable(lambda ctx, inputs, output: None, _backward_triplet)


class _InPlace(torch.autograd.Function):
    """The in-place call for autograd, which cannot see through a mutable custom op."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        seed: Tensor,
        kind: str,
        index: list[int],
        factor_noise: Tensor | None,
        shift_noise: Tensor | None,
    ) -> Tensor:
        wanted = factor_noise is not None and factor_noise.requires_grad
        ctx.save_for_backward(x.clone() if wanted else None, seed, None, factor_noise, shift_noise)
        ctx.kind, ctx.index = kind, index
        _inject_.raw(x, seed, kind, index, factor_noise, shift_noise)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    @once_only("noise_inject_")
    def backward(ctx: Any, g: Tensor) -> Any:
        ours = ctx.needs_input_grad
        needs = (ours[0], False, False, False, False, ours[4], False, ours[5], False)
        dx, *_, dp, _, dq, _ = _backward(_Context(ctx, needs), g)
        return dx, None, None, None, dp, dq


class _Context:
    """A context as that of the functional op."""

    def __init__(self, ctx: Any, needs: tuple[bool, ...]) -> None:
        self.saved_tensors = ctx.saved_tensors
        self.kind, self.index, self.needs_input_grad = ctx.kind, ctx.index, needs


# ---- public functions ----


def _grouped(scale: Tensor, x: Tensor) -> tuple[Tensor, list[int]]:
    """A tensor that broadcasts to x, and which of its elements those of x have: x is (outer,
    repeat, run, width) elements, and the groups are (outer, run)."""
    sizes = [1] * (x.dim() - scale.dim()) + list(scale.shape)
    runs: list[list[int]] = []  # [varies, size]
    for n, m in zip(sizes, x.shape, strict=True):
        if m == 1:
            continue
        varies = int(n != 1)
        if runs and runs[-1][0] == varies:
            runs[-1][1] *= m
        else:
            runs.append([varies, m])
    width = runs.pop()[1] if runs and not runs[-1][0] else 1
    run = runs.pop()[1] if runs else 1
    repeat = runs.pop()[1] if runs else 1
    if runs and (len(runs) > 1 or not runs[0][0]):
        return scale.expand(x.shape).reshape(-1), [1, 1, x.numel()]
    return scale.reshape(-1), [width, repeat, run]


def _coefficient(op: str, name: str, value: float | Tensor, x: Tensor) -> tuple[Tensor, list[int]]:
    dtype = compute_dtype(x)
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float | torch.SymFloat):
            raise TypeError(f"regkern.{op}: expected `{name}` to be a number, got {value!r}")
        return torch.full((1,), value, dtype=dtype, device=x.device), [max(x.numel(), 1), 1, 1]
    if not value.is_floating_point():
        raise TypeError(f"regkern.{op}: expected `{name}` to be floating point, got {value.dtype}")
    if value.numel() == 1:
        one = value.reshape(1).to(x.device, dtype)
        return one, [max(x.numel(), 1), 1, 1]
    checks.on_device(op, name, value, x)
    sizes = [1] * (x.dim() - value.dim()) + list(value.shape)
    if len(sizes) != x.dim() or any(n != 1 and n != m for n, m in zip(sizes, x.shape, strict=True)):
        raise ValueError(
            f"regkern.{op}: expected `{name}` of one element or broadcastable to the shape of `x`, "
            f"{tuple(x.shape)}, got {tuple(value.shape)}"
        )
    if x.numel() == 0:
        return value.sum().reshape(1).to(dtype), [1, 1, 1]
    flat, index = _grouped(value, x)
    return flat.to(dtype), index


def _apply(
    op: str,
    inplace: bool,
    x: Tensor,
    scale: float | Tensor,
    kind: Kind,
    multiply: bool,
    shared: int | Sequence[int],
    training: bool,
    seed: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    checks.floating(op, "x", x)
    checks.one_of(op, "kind", kind, KINDS)
    if isinstance(shared, int):
        shared = (shared,)
    for d in shared:
        if isinstance(d, bool) or not isinstance(d, int) or not -x.dim() <= d < x.dim():
            raise ValueError(
                f"regkern.{op}: expected `shared` to be dimensions of `x` of rank {x.dim()}, got "
                f"{tuple(shared)!r}"
            )
    if not training or (not isinstance(scale, Tensor) and scale == 0.0):
        return x
    dims = {d % x.dim() for d in shared}
    given = resolve_seed(op, x, seed, generator)
    if any(x.shape[d] != 1 for d in dims):
        # A small noise, and one pass that broadcasts it.
        sizes = [1 if d in dims else n for d, n in enumerate(x.shape)]
        zeros = torch.zeros(sizes, dtype=compute_dtype(x), device=x.device)
        noise = _apply(op, False, zeros, 1.0, kind, False, (), True, given, None)
        if isinstance(scale, Tensor):
            checks.on_device(op, "scale", scale, x)
        noise = scale * noise
        if multiply:
            noise = 1.0 + noise
        y = (x * noise if multiply else x + noise).to(x.dtype)
        return x.copy_(y) if inplace else y
    coefficient, index = _coefficient(op, "scale", scale, x)
    factor, shift = (coefficient, None) if multiply else (None, coefficient)
    # Functionalisation makes a compiled in-place call the functional op and at most one copy.
    if not inplace or torch.compiler.is_compiling():
        y = _inject(x, given, kind, index, None, factor, None, shift, None)
        return x.copy_(y) if inplace else y
    if torch.is_grad_enabled() and (x.requires_grad or coefficient.requires_grad):
        function_apply(_InPlace, x, given, kind, index, factor, shift)
        return x
    _inject_.raw(x, given, kind, index, factor, shift)
    return x


def noise_inject(
    x: Tensor,
    scale: float | Tensor = 0.1,
    kind: Kind = "gaussian",
    *,
    multiply: bool = False,
    shared: int | Sequence[int] = (),
    training: bool = True,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Adds noise to a tensor, or multiplies it by noise around 1.

    .. math::
        y = x + s \odot n \quad\text{or}\quad y = x \odot (1 + s \odot n), \qquad
        n \sim N(0, 1) \text{ or } U(-1, 1)

    The noise is not stored but drawn again in the backward.

    Parameters
    ----------
    x : Tensor
        Any shape and strides; float32, float64, bfloat16 or float16.
    scale : float or Tensor
        s: the standard deviation of Gaussian noise, half the width of uniform noise. A tensor
        broadcasts to x (one element, one per sample, per channel, ...) and may have a gradient; one
        of one element may change from call to call without recompiling.
    kind : {"gaussian", "uniform"}
        The law of n.
    multiply : bool
        Whether noise multiplies.
    shared : int or sequence of int
        Dimensions along which all elements have one number: (2, 3) of (N, C, H, W) moves channels.
    training : bool
        False: x is returned.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional
        Source of the seed.

    Returns
    -------
    Tensor
        Like x; x itself without noise to add. Differentiable any number of times in x and scale.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Noise depends on seed and logical position alone, not on strides, threads or device. A normal
    takes 16 random bits for each of radius and angle of its pair, and 32 more beyond 4 standard
    deviations; uniform noise takes 24. Bytes moved: x read and y written; with ``shared`` the small
    noise twice more; a gradient of ``scale`` writes the noise and reads it again. Channels last
    takes a copy each way.

    References
    ----------
    Box and Muller, "A note on the generation of random normal deviates", 1958.
    """
    return _apply(
        "noise_inject", False, x, scale, kind, multiply, shared, training, seed, generator
    )


def noise_inject_(
    x: Tensor,
    scale: float | Tensor = 0.1,
    kind: Kind = "gaussian",
    *,
    multiply: bool = False,
    shared: int | Sequence[int] = (),
    training: bool = True,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """In-place `noise_inject`: the same arguments and result, written over x.

    Differentiable once, in the graph of x, which must not be a leaf that requires gradients.

    Returns
    -------
    Tensor
        x.
    """
    return _apply(
        "noise_inject_", True, x, scale, kind, multiply, shared, training, seed, generator
    )


class Perturbed(NamedTuple):
    """``x``, the noisy sample, and ``noise``, what a network is to predict from it."""

    x: Tensor
    noise: Tensor


def diffusion_perturb(
    x0: Tensor,
    alpha_bar: float | Tensor,
    gamma: float = 0.1,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Perturbed:
    r"""The noisy sample of a diffusion's training step, its input perturbed once more.

    .. math::
        y = \sqrt{\bar\alpha}\, x_0 + \sqrt{1 - \bar\alpha}\, (\varepsilon + \gamma \xi), \qquad
        \varepsilon, \xi \sim N(0, I)

    The target is :math:`\varepsilon` alone. :math:`\gamma = 0` is plain DDPM.

    Parameters
    ----------
    x0 : Tensor
        (B, ...); float32, float64, bfloat16 or float16.
    alpha_bar : float or Tensor
        :math:`\bar\alpha` in [0, 1], one or one per sample, (B); no gradient.
    gamma : float
        Strength of the perturbation, at least 0.
    seed, generator
        See `make_seed`.

    Returns
    -------
    Perturbed
        ``x`` and ``noise``, both like x0. Differentiable any number of times in x0.

    Notes
    -----
    Bytes moved: x0 read, y and noise written, in one pass; both normals come from one stream. A
    value of ``alpha_bar`` outside of [0, 1] gives NaN.

    References
    ----------
    Ning, Sangineto, Porrello, Calderara and Cucchiara, "Input perturbation reduces exposure bias in
    diffusion models", ICML 2023.
    """
    op = "diffusion_perturb"
    checks.floating(op, "x0", x0)
    if x0.dim() == 0:
        raise ValueError(f"regkern.{op}: expected `x0` of shape (batch, ...), got ()")
    checks.scale(op, "gamma", gamma)
    batch = x0.shape[0]
    if not isinstance(alpha_bar, Tensor):
        checks.probability(op, "alpha_bar", alpha_bar)
        alpha_bar = torch.full((batch,), alpha_bar, dtype=torch.float64, device=x0.device)
    checks.floating(op, "alpha_bar", alpha_bar)
    checks.on_device(op, "alpha_bar", alpha_bar, x0)
    if alpha_bar.numel() != 1 and alpha_bar.numel() != batch:
        raise ValueError(
            f"regkern.{op}: expected `alpha_bar` of 1 or {batch} elements, got "
            f"{tuple(alpha_bar.shape)}"
        )
    if alpha_bar.requires_grad:
        raise ValueError(f"regkern.{op}: expected `alpha_bar` without a gradient, got one with")
    share = alpha_bar.reshape(-1).double().expand(batch)
    dtype = compute_dtype(x0)
    kept, noise = share.sqrt().to(dtype), (1.0 - share).sqrt()
    more = (gamma * noise).to(dtype) if gamma else None
    given = resolve_seed(op, x0, seed, generator)
    return Perturbed(*_perturb(x0, given, kept, noise.to(dtype), more))


class Triplet(NamedTuple):
    """``x``, (3B, ...): the samples a, b and c of a batch one after the other; ``alpha``, float64
    (B), the share of b in c."""

    x: Tensor
    alpha: Tensor


def noise_triplet(
    x: Tensor,
    eps: float,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Triplet:
    r"""Two noisy copies of a batch and a random point between them.

    .. math::
        x_a, x_b = x + \epsilon\, U(-1, 1), \qquad x_c = (1 - \alpha)\, x_a + \alpha\, x_b, \qquad
        \alpha \sim U(0, 1)

    The penalty of local linearity, without a double backward, is the mean of
    :math:`(\ell(x_c) - (1 - \alpha) \ell(x_a) - \alpha \ell(x_b))^2` over losses per sample of the
    3B samples.

    Parameters
    ----------
    x : Tensor
        (B, ...); float32, float64, bfloat16 or float16.
    eps : float
        Half the width of the noise, at least 0.
    seed, generator
        See `make_seed`.

    Returns
    -------
    Triplet
        Differentiable any number of times in x.

    Notes
    -----
    Bytes moved: x read and the three batches written, in one pass.

    References
    ----------
    Abad Rocamora, Liu, Chrysos, Olmos and Cevher, "Efficient local linearity regularization to
    overcome catastrophic overfitting", ICLR 2024.
    """
    op = "noise_triplet"
    checks.floating(op, "x", x)
    if x.dim() == 0:
        raise ValueError(f"regkern.{op}: expected `x` of shape (batch, ...), got ()")
    checks.scale(op, "eps", eps)
    return Triplet(*_triplet(x, resolve_seed(op, x, seed, generator), eps))


def feature_jitter(
    f: Tensor,
    strength: float = 1.0,
    *,
    training: bool = True,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Jitters features by the statistics that they have over the batch.

    .. math::
        \hat f = \alpha \odot f + \beta, \qquad \alpha \sim N(1, (s\sigma)^2), \quad
        \beta \sim N(s\mu, (s\sigma)^2)

    with :math:`\mu` and :math:`\sigma`, mean and standard deviation of each feature over the
    batch, constants for the gradient, and :math:`s` the strength.

    Parameters
    ----------
    f : Tensor
        (B, ...), a batch of features; float32, float64, bfloat16 or float16.
    strength : float
        s, at least 0; 1 is the paper's, 0 returns f.
    training : bool
        False: f is returned.
    seed, generator
        See `make_seed`.

    Returns
    -------
    Tensor
        Like f. Differentiable any number of times in f, the statistics held fixed.

    Notes
    -----
    Bytes moved: f read twice and written once. The standard deviation is that of the batch itself
    (without Bessel's correction), so one sample has none.

    References
    ----------
    Chen, Zheng, Ji, Qu, Chua, "Composed image retrieval with text feedback via multi-grained
    uncertainty regularization", ICLR 2024.
    """
    op = "feature_jitter"
    checks.floating(op, "f", f)
    if f.dim() == 0:
        raise ValueError(f"regkern.{op}: expected `f` of shape (batch, ...), got ()")
    checks.scale(op, "strength", strength)
    if not training or strength == 0 or f.numel() == 0:
        return f
    given = resolve_seed(op, f, seed, generator)
    with torch.no_grad():
        wide = f.detach().to(compute_dtype(f))
        deviation, mean = (t.reshape(-1) * strength for t in torch.std_mean(wide, 0, correction=0))
    index = [1, f.shape[0], math.prod(f.shape[1:])]
    y: Tensor = _inject(f, given, "gaussian", index, None, deviation, mean, None, deviation)
    return y

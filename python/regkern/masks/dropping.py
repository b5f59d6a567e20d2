"""Dropout whose mask is drawn again instead of stored: of elements, channels, samples, ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, register
from regkern.random import resolve_seed

# ---- raw ops: fake kernels and autograd ----


def _fake(
    x: Tensor,
    seed: Tensor,
    p: float,
    shared: Sequence[int],
    scaled: bool = True,
    p_tensor: Tensor | None = None,
    copies: int = 0,
    sums: bool = False,
) -> Tensor:
    if sums:
        return x.new_empty(x.shape[1:])
    return dense_like(x) if copies == 0 else x.new_empty((copies, *x.shape))


_dropout = register("dropout", _fake)
_dropout_ = register("dropout_", lambda *args: None)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, p, shared, scaled, p_tensor, copies, sums = inputs
    ctx.save_for_backward(seed, p_tensor)
    ctx.options = (p, list(shared), scaled)
    ctx.copies, ctx.sums = copies, sums


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    # The map is linear: its adjoint sums over the masks where it had several of one x.
    seed, p_tensor = ctx.saved_tensors
    sums = ctx.copies > 0 and not ctx.sums
    return _dropout(g, seed, *ctx.options, p_tensor, ctx.copies, sums), *([None] * 7)


_dropout.differentiable(_setup, _backward)


class _InPlace(torch.autograd.Function):
    """The in-place call for autograd, which cannot see through a mutable custom op."""

    @staticmethod
    def forward(
        x: Tensor,
        seed: Tensor,
        p: float,
        shared: list[int],
        scaled: bool,
        p_tensor: Tensor | None,
    ) -> Tensor:
        _dropout_.raw(x, seed, p, shared, scaled, p_tensor)
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_dirty(inputs[0])
        _setup(ctx, (*inputs, 0, False), output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _backward(ctx, g)[:6]


# ---- public functions ----


def _dims(op: str, x: Tensor, shared: int | Sequence[int]) -> list[int]:
    dims = []
    for d in [shared] if isinstance(shared, int) else shared:
        if isinstance(d, bool) or not isinstance(d, int) or not -x.dim() <= d < x.dim():
            raise ValueError(
                f"regkern.{op}: expected `shared` to be dimensions of `x` of rank {x.dim()}, got "
                f"{shared!r}"
            )
        dims.append(d % x.dim())
    return sorted(set(dims))


def _probabilities(
    op: str, p: float | Tensor, x: Tensor, shared: list[int]
) -> tuple[float, Tensor | None]:
    """p as the raw op takes it: a number, one float64 element, or float32 of x's rank."""
    if not isinstance(p, Tensor):
        checks.probability(op, "p", p)
        return p, None
    if p.requires_grad:
        raise ValueError(f"regkern.{op}: expected `p` without a gradient, which dropout has not")
    if p.numel() == 1:
        return 0.0, p.reshape(()).to(x.device, torch.float64)
    checks.on_device(op, "p", p, x)
    if not p.is_floating_point():
        raise TypeError(f"regkern.{op}: expected `p` to be floating point, got {p.dtype}")
    mask = [1 if d in shared else n for d, n in enumerate(x.shape)]
    sizes = [1] * (x.dim() - p.dim()) + list(p.shape)
    if len(sizes) != x.dim() or any(n != 1 and n != m for n, m in zip(sizes, mask, strict=True)):
        raise ValueError(
            f"regkern.{op}: expected `p` of one element or broadcastable to the mask's shape "
            f"{tuple(mask)}, got {tuple(p.shape)}"
        )
    each = p.to(torch.float32).reshape(sizes)
    if shared or _runs(sizes, mask) > 4:
        each = each.expand(mask)
    return 0.0, each.contiguous()


def _runs(sizes: list[int], mask: list[int]) -> int:
    """Runs of neighbouring dimensions over which p varies or stays, from one that varies on."""
    runs, varies = 0, False
    for n, m in zip(sizes, mask, strict=True):
        if m == 1:
            continue
        before, varies = varies, False if n == 1 else True  # noqa: SIM211
        if runs == 0:
            runs = 1 if varies else 2
        elif before is not varies:
            runs += 1
    return runs


def _drop(
    op: str,
    inplace: bool,
    x: Tensor,
    p: float | Tensor,
    training: bool,
    shared: int | Sequence[int],
    scale: bool,
    copies: int | None,
    seed: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    checks.floating(op, "x", x)
    dims = _dims(op, x, shared)
    number, p_tensor = _probabilities(op, p, x, dims)
    if copies is not None:
        if isinstance(copies, bool) or not isinstance(copies, int):
            raise TypeError(f"regkern.{op}: expected `copies` to be an int, got {copies!r}")
        checks.at_least(op, "copies", copies, 1)
    if not training or (p_tensor is None and number == 0.0):
        return x if copies is None else x.expand(copies, *x.shape)
    given = resolve_seed(op, x, seed, generator)
    if copies is not None and any(x.shape[d] != 1 for d in dims):
        # Masks of shared dimensions are small: one more dimension that has its own.
        x = x.expand(copies, *x.shape).contiguous()
        dims = [d + 1 for d in dims]
        if p_tensor is not None and p_tensor.numel() != 1:
            p_tensor = p_tensor.expand(copies, *p_tensor.shape).contiguous()
        copies = None
    fixed = (number, dims, scale, p_tensor)
    # Functionalisation makes a compiled in-place call the functional op and at most one copy.
    if not inplace or torch.compiler.is_compiling():
        y: Tensor = _dropout(x, given, *fixed, copies or 0, False)
        return x.copy_(y) if inplace else y
    if torch.is_grad_enabled() and x.requires_grad:
        function_apply(_InPlace, x, given, *fixed)
        return x
    _dropout_.raw(x, given, *fixed)
    return x


def dropout(
    x: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    shared: int | Sequence[int] = (),
    scale: bool = True,
    copies: int | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Dropout: elements, or what dimensions share, are zeroed at random.

    .. math:: y = x \odot M \cdot \frac{1}{1 - p}, \qquad M \sim \mathrm{Bernoulli}(1 - p)

    The mask is not stored but drawn again in the backward.

    Parameters
    ----------
    x : Tensor
        Any shape and strides; float32, float64, bfloat16 or float16.
    p : float or Tensor
        Probability of a zero, in [0, 1]. A tensor of one element may change from call to call
        without recompiling; one that broadcasts to the mask's shape gives each element (or sample,
        or channel) its own, read as float32. On CUDA its values are not looked at; outside of
        [0, 1] they make the result NaN.
    training : bool
        False: nothing is dropped. Monte-Carlo dropout leaves it True at inference.
    shared : int or sequence of int
        Dimensions along which all elements share their fate: (2, 3) of (N, C, H, W) drops channels,
        (1, 2, 3) samples (stochastic depth), 0 of (T, B, D) keeps one mask for all time steps
        (locked, or variational, dropout). What is not shared may lie in one or two runs of
        neighbouring dimensions.
    scale : bool
        Whether what is kept is multiplied by :math:`1/(1-p)`.
    copies : int, optional
        That many results of independent masks, stacked in a new first dimension; x is not copied
        before, but with ``shared``.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional
        Source of the seed.

    Returns
    -------
    Tensor
        Like x, or (copies, \*x.shape). Without anything to drop it is x itself, or a view of it.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    p is met to :math:`2^{-48}`. The mask depends on seed and logical position alone, not on
    strides, threads or device. Bytes moved: x read and y written (``copies``: x once a copy), the
    probabilities of a tensor read; with ``shared``, one bit per group written and read. Channels
    last without ``shared`` takes a copy each way. A NaN or an infinity in a dropped place gives
    NaN, as in ``torch.nn.functional.dropout``. Differentiable any number of times in x.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR
    2014; Tompson et al. (channels), CVPR 2015; Huang et al. (stochastic depth), ECCV 2016; Gal and
    Ghahramani (locked; Monte-Carlo), NeurIPS and ICML 2016.
    """
    return _drop("dropout", False, x, p, training, shared, scale, copies, seed, generator)


def dropout_(
    x: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    shared: int | Sequence[int] = (),
    scale: bool = True,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """In-place `dropout`: the same arguments and result, written over x.

    Differentiable in the graph of x, which must not be a leaf that requires gradients.

    Returns
    -------
    Tensor
        x.
    """
    return _drop("dropout_", True, x, p, training, shared, scale, None, seed, generator)

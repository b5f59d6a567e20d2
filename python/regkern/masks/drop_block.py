"""DropBlock in one, two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, register
from regkern.random import resolve_seed

Border = Literal["valid", "clip", "same", "wrap"]
Per = Literal["channel", "sample", "batch"]
Normalize = Literal["count", "sample", "expected", "none"]

_BORDERS = ("valid", "clip", "same", "wrap")
_PERS = ("channel", "sample", "batch")
_NORMALIZES = ("count", "sample", "expected", "none")


# ---- raw ops: fake kernels and autograd ----


def _bit_words(bits: int) -> int:
    return (bits + 31) // 32


def _fake_mask(
    seed: Tensor,
    p: float,
    size: Sequence[int],
    block_size: Sequence[int],
    border: str = "valid",
    per: str = "channel",
    normalize: str = "count",
    gamma: str = "exact",
    gamma_scale: float = 1.0,
    p_tensor: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    ndim = len(block_size)
    batched = len(size) == ndim + 2
    batch = size[0] if batched else 1
    planes = {"channel": batch * size[-ndim - 1], "sample": batch, "batch": 1}[per]
    groups = batch if normalize == "sample" and per != "batch" else 1
    words = _bit_words(planes * math.prod(size[-ndim:]))
    return seed.new_empty((words,), dtype=torch.int32), seed.new_empty(
        (groups,), dtype=torch.float64
    )


def _fake_fused(
    x: Tensor,
    seed: Tensor,
    p: float,
    block_size: Sequence[int],
    border: str = "valid",
    per: str = "channel",
    normalize: str = "count",
    gamma: str = "exact",
    gamma_scale: float = 1.0,
    p_tensor: Tensor | None = None,
    noise: float = 0.0,
    relu: bool = False,
    residual: Tensor | None = None,
    save: str = "mask",
) -> tuple[Tensor, Tensor, Tensor]:
    mask, scale = _fake_mask(
        seed, p, x.shape, block_size, border, per, normalize, gamma, gamma_scale, p_tensor
    )
    if save == "seed":
        mask = mask.new_empty((0,))
    active = mask.new_empty((_bit_words(x.numel()) if relu else 0,))
    return mask, scale, active


def _fake_drop_block(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    return (dense_like(x), *_fake_fused(x, *args, **kwargs))


_mask = register("drop_block_mask", _fake_mask)
mask_apply_op = register(
    "mask_apply",
    lambda x, mask, scale, ndim, per="channel", active=None: dense_like(x),
)
_drop_block = register("drop_block", _fake_drop_block)
_drop_block_ = register("drop_block_", _fake_fused)


def _setup_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, mask, scale, ctx.ndim, ctx.per, active = inputs
    ctx.save_for_backward(mask, scale, active)


def _backward_apply(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    # y = x ⊙ M · scale is its own transpose.
    mask, scale, active = ctx.saved_tensors
    return mask_apply_op(g, mask, scale, ctx.ndim, ctx.per, active), None, None, None, None, None


mask_apply_op.differentiable(_setup_apply, _backward_apply)


def _save(
    ctx: Any,
    fixed: tuple[Any, ...],
    shape: tuple[int, ...],
    seed: Tensor,
    p_tensor: Tensor | None,
    drawn: tuple[Tensor, Tensor, Tensor],
    relu: bool,
    save: str,
) -> None:
    """What the gradients need. `fixed` is (p, block_size, border, per, …, gamma_scale)."""
    ctx.fixed, ctx.shape, ctx.relu, ctx.save = fixed, shape, relu, save
    mask, scale, active = drawn
    ctx.save_for_backward(*((seed, p_tensor) if save == "seed" else (mask, scale)), active)


def _gradients(
    ctx: Any, g: Tensor, needs_x: bool, needs_residual: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dx = g ⊙ [y > 0] ⊙ M · scale and dr = g ⊙ [y > 0], the brackets with ReLU."""
    first, second, active = ctx.saved_tensors
    p, block_size, border, per, *rest = ctx.fixed
    if ctx.save == "seed":
        mask, scale = _mask(first, p, ctx.shape, block_size, border, per, *rest, second)
    else:
        mask, scale = first, second
    active = active if ctx.relu else None
    ndim = len(block_size)
    dx = mask_apply_op(g, mask, scale, ndim, per, active) if needs_x else None
    if not needs_residual:
        return dx, None
    dr = g if active is None else mask_apply_op(g, active, torch.ones_like(scale[:1]), ndim)
    return dx, dr


def _setup_drop_block(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, seed, *fixed, p_tensor, _, relu, _, save = inputs
    _, mask, scale, active = output
    ctx.mark_non_differentiable(mask, scale, active)
    ctx.set_materialize_grads(False)
    _save(ctx, tuple(fixed), tuple(x.shape), seed, p_tensor, (mask, scale, active), relu, save)


def _backward_drop_block(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Any, ...]:
    grads: list[Tensor | None] = [None] * 14
    if g is not None:
        needs = ctx.needs_input_grad
        # Arguments at their default, the residual among them, may not be there.
        grads[0], grads[12] = _gradients(ctx, g, needs[0], len(needs) > 12 and needs[12])
    return tuple(grads)


_drop_block.differentiable(_setup_drop_block, _backward_drop_block)


# ---- public functions ----


def _block_of(op: str, x: Tensor, block_size: int | Sequence[int], ndim: int | None) -> list[int]:
    sizes = list(block_size) if isinstance(block_size, list | tuple) else [block_size]
    if any(isinstance(k, bool) or not isinstance(k, int) for k in sizes):
        raise TypeError(
            f"regkern.{op}: expected `block_size` to be an int or a tuple of ints, got {block_size}"
        )
    if any(k < 1 for k in sizes):  # type: ignore[operator]
        raise ValueError(
            f"regkern.{op}: expected every `block_size` to be at least 1, got {block_size}"
        )
    if ndim is None:
        ndim = x.dim() - 2 if isinstance(block_size, int) else len(sizes)
    if not 1 <= ndim <= 3:
        raise ValueError(
            f"regkern.{op}: expected `x` of rank 3, 4 or 5 (or `ndim` from 1 to 3), got shape "
            f"{tuple(x.shape)}"
        )
    if isinstance(block_size, int):
        sizes = [block_size] * ndim
    # Not `in`: under torch.compile membership does not compare symbolic sizes.
    if len(sizes) != ndim or (x.dim() != ndim + 1 and x.dim() != ndim + 2):
        raise ValueError(
            f"regkern.{op}: expected `x` of rank {ndim + 1} or {ndim + 2} and {ndim} block sizes, "
            f"got shape {tuple(x.shape)} and {block_size}"
        )
    return sizes  # type: ignore[return-value]


def _p_tensor(p: float | Tensor, x: Tensor) -> tuple[float, Tensor | None]:
    if not isinstance(p, Tensor):
        return p, None
    return 0.0, p.detach().reshape(()).to(x.device, torch.float64)


class _InPlace(torch.autograd.Function):
    """The in-place call for autograd, which cannot see through a mutable custom op."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        seed: Tensor,
        p_tensor: Tensor | None,
        fixed: tuple[Any, ...],
        noise: float,
        relu: bool,
        save: str,
    ) -> Tensor:
        drawn = _drop_block_.raw(x, seed, *fixed, p_tensor, noise, relu, residual, save)
        ctx.mark_dirty(x)
        _save(ctx, fixed, tuple(x.shape), seed, p_tensor, drawn, relu, save)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        needs = ctx.needs_input_grad
        return *_gradients(ctx, g, needs[0], needs[1]), *([None] * 6)


def _drop(
    op: str,
    inplace: bool,
    x: Tensor,
    p: float | Tensor,
    block_size: int | Sequence[int],
    *,
    ndim: int | None,
    training: bool,
    border: str,
    per: str,
    normalize: str,
    gamma: str,
    gamma_scale: float,
    activation: str | None,
    residual: Tensor | None,
    noise: float,
    save: str,
    seed: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    checks.floating(op, "x", x)
    sizes = _block_of(op, x, block_size, ndim)
    _check_options(op, p, border, per, normalize, gamma, gamma_scale, noise, activation, save)
    if residual is not None:
        checks.same(op, "residual", residual, x)
    relu = activation == "relu"
    if not training or (not isinstance(p, Tensor) and p == 0.0):
        return _without_drop(x, residual, relu, inplace)
    seed = resolve_seed(op, x, seed, generator)
    value, p_tensor = _p_tensor(p, x)
    fixed = (value, sizes, border, per, normalize, gamma, gamma_scale)
    # Functionalisation makes a compiled in-place call the functional op and at most one copy.
    if not inplace or torch.compiler.is_compiling():
        y: Tensor = _drop_block(x, seed, *fixed, p_tensor, noise, relu, residual, save)[0]
        return x.copy_(y) if inplace else y
    if torch.is_grad_enabled() and (
        x.requires_grad or (residual is not None and residual.requires_grad)
    ):
        function_apply(_InPlace, x, residual, seed, p_tensor, fixed, noise, relu, save)
        return x
    _drop_block_.raw(x, seed, *fixed, p_tensor, noise, relu, residual, save)
    return x


def _without_drop(x: Tensor, residual: Tensor | None, relu: bool, inplace: bool) -> Tensor:
    """What is left of the op where nothing is dropped."""
    if not inplace:
        y = x if residual is None else x + residual
        return torch.relu(y) if relu else y
    if residual is not None:
        x.add_(residual)
    return x.relu_() if relu else x


def _check_options(
    op: str,
    p: float | Tensor,
    border: str,
    per: str,
    normalize: str,
    gamma: str,
    gamma_scale: float,
    noise: float = 0.0,
    activation: str | None = None,
    save: str = "mask",
) -> None:
    checks.probability(op, "p", p)
    checks.one_of(op, "border", border, _BORDERS)
    checks.one_of(op, "per", per, _PERS)
    checks.one_of(op, "normalize", normalize, _NORMALIZES)
    checks.one_of(op, "gamma", gamma, ("exact", "paper"))
    checks.at_least(op, "gamma_scale", gamma_scale, 0.0)
    checks.at_least(op, "noise", noise, 0.0)
    checks.one_of(op, "save", save, ("mask", "seed"))
    if activation not in (None, "relu"):
        raise ValueError(
            f"regkern.{op}: expected `activation` to be None or 'relu', got {activation!r}"
        )


def drop_block(
    x: Tensor,
    p: float | Tensor = 0.1,
    block_size: int | Sequence[int] = 7,
    *,
    ndim: int | None = None,
    training: bool = True,
    border: Border = "valid",
    per: Per = "channel",
    normalize: Normalize = "count",
    gamma: Literal["exact", "paper"] = "exact",
    gamma_scale: float = 1.0,
    activation: Literal["relu"] | None = None,
    residual: Tensor | None = None,
    noise: float = 0.0,
    save: Literal["mask", "seed"] = "mask",
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""DropBlock: drops contiguous blocks of a feature map.

    .. math::
        S \sim \mathrm{Bernoulli}(\gamma), \qquad M = 1 - \mathrm{dilate}(S, k), \qquad
        y = \mathrm{act}(x \odot M \cdot s + \varepsilon \odot (1 - M) + r)

    with the scale :math:`s` = (number of elements of M) / (number of ones in M), residual
    :math:`r` and noise :math:`\varepsilon`.

    Parameters
    ----------
    x : Tensor
        (N, C, L), (N, C, H, W) or (N, C, D, H, W); without N if ``ndim`` or a tuple ``block_size``
        says so. float32, float64, bfloat16 or float16, any strides; channels last is kept.
    p : float or 0-d Tensor
        Share of the elements to drop, in [0, 1]. A tensor may change from call to call without
        recompiling. On CUDA its value is not looked at; outside [0, 1] it makes the result NaN.
    block_size : int or tuple of int
        Extent k of a block per dimension, odd or even; larger than the map means the whole map.
    ndim : int, optional
        Number of spatial dimensions. Default: length of ``block_size``, or rank of x less 2.
    training : bool
        False: nothing is dropped.
    border : {"valid", "clip", "same", "wrap"}
        Where blocks may start: only where they fit (the paper); anywhere, clipped, so that every
        element is equally likely to be dropped; centred on any element and clipped (as max-pooling
        implementations do); anywhere, wrapped around.
    per : {"channel", "sample", "batch"}
        What has a mask of its own.
    normalize : {"count", "sample", "expected", "none"}
        Scale by the kept count over the batch, per sample (independent of the other samples and of
        the split over ranks), by the expected count, or not at all.
    gamma : {"exact", "paper"}
        "exact" solves for the seed rate at which the *expected dropped share is p*, at every map
        size; "paper" is :math:`p \prod n / (\prod k \prod (n - k + 1))`.
    gamma_scale : float
        Factor on the seed rate.
    activation : {"relu"}, optional
        Fused after the residual. The backward needs one bit per element.
    residual : Tensor, optional
        Fused addition, like x.
    noise : float
        Standard deviation of Gaussian noise put in the place of dropped elements. No scaling
        applies to it.
    save : {"mask", "seed"}
        What the backward is given: one bit per element of M, or the seed alone (16 bytes), at the
        price of drawing the mask again.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional
        Source of the seed.

    Returns
    -------
    Tensor
        Like x.

    Raises
    ------
    TypeError
        If x is not floating point, or an argument has the wrong type.
    ValueError
        If a value, shape or device does not fit; nothing has been changed then.

    Notes
    -----
    Bytes moved: x read, y written, and 1/32 of x per mask written and read. If everything is
    dropped the result is 0. A NaN or an infinity under a dropped place gives NaN, as in
    ``torch.nn.functional.dropout``. Differentiable any number of times in x and residual; the mask
    and its scale are constants.

    References
    ----------
    Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks", NeurIPS
    2018.
    """
    return _drop(
        "drop_block", False, x, p, block_size, ndim=ndim, training=training, border=border, per=per,
        normalize=normalize, gamma=gamma, gamma_scale=gamma_scale, activation=activation,
        residual=residual, noise=noise, save=save, seed=seed, generator=generator,
    )  # fmt: skip


def drop_block_(
    x: Tensor,
    p: float | Tensor = 0.1,
    block_size: int | Sequence[int] = 7,
    *,
    ndim: int | None = None,
    training: bool = True,
    border: Border = "valid",
    per: Per = "channel",
    normalize: Normalize = "count",
    gamma: Literal["exact", "paper"] = "exact",
    gamma_scale: float = 1.0,
    activation: Literal["relu"] | None = None,
    residual: Tensor | None = None,
    noise: float = 0.0,
    save: Literal["mask", "seed"] = "mask",
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """In-place `drop_block`: the same arguments and result, written over x.

    Differentiable in the graph of x, which must not be a leaf that requires gradients.

    Returns
    -------
    Tensor
        x.
    """
    return _drop(
        "drop_block_", True, x, p, block_size, ndim=ndim, training=training, border=border, per=per,
        normalize=normalize, gamma=gamma, gamma_scale=gamma_scale, activation=activation,
        residual=residual, noise=noise, save=save, seed=seed, generator=generator,
    )  # fmt: skip


def drop_block_mask(
    size: Sequence[int],
    p: float | Tensor = 0.1,
    block_size: int | Sequence[int] = 7,
    *,
    ndim: int | None = None,
    border: Border = "valid",
    per: Per = "channel",
    normalize: Normalize = "count",
    gamma: Literal["exact", "paper"] = "exact",
    gamma_scale: float = 1.0,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """The mask that `drop_block` draws for an input of shape ``size``.

    Returns
    -------
    mask : Tensor
        Packed bits, int32: bit ``i % 32`` of word ``i // 32`` is element i of the mask in row-major
        order, 1 = kept. See `unpack_mask`.
    scale : Tensor
        float64 of shape (1,), or (N,) with ``normalize="sample"``.
    """
    op = "drop_block_mask"
    like = torch.empty(tuple(size), device="meta")
    sizes = _block_of(op, like, block_size, ndim)
    _check_options(op, p, border, per, normalize, gamma, gamma_scale)
    checks.tensor(op, "seed", seed)
    value, p_tensor = _p_tensor(p, seed)
    mask, scale = _mask(
        resolve_seed(op, seed, seed, None), value, list(size), sizes, border, per, normalize, gamma,
        gamma_scale, p_tensor,
    )  # fmt: skip
    return mask, scale


def mask_apply(
    x: Tensor, mask: Tensor, scale: Tensor, ndim: int | None = None, *, per: Per = "channel"
) -> Tensor:
    """y = x ⊙ mask · scale for a packed mask, given instead of drawn.

    Linear in x and its own transpose; differentiable any number of times. Arguments as
    `drop_block_mask` returns them; ``ndim`` is the number of spatial dimensions (default: rank of x
    less 2). Bytes moved: x read, y written, the mask read.
    """
    op = "mask_apply"
    checks.floating(op, "x", x)
    checks.one_of(op, "per", per, _PERS)
    y: Tensor = mask_apply_op(x, mask, scale, x.dim() - 2 if ndim is None else ndim, per)
    return y


def pack_mask(mask: Tensor) -> Tensor:
    """Packs a mask: bit ``i % 32`` of word ``i // 32`` is element i, row-major; nonzero = 1."""
    checks.tensor("pack_mask", "mask", mask)
    flat = (mask != 0).reshape(-1).to(torch.int64)
    words = torch.nn.functional.pad(flat, (0, -flat.numel() % 32)).view(-1, 32)
    shifts = torch.arange(32, device=mask.device)
    packed = (words << shifts).sum(1)
    # Words above 2³¹ wrap to the negative int32 with the same bits.
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def unpack_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Packed bits as a bool tensor of shape ``size``."""
    checks.tensor("unpack_mask", "mask", mask)
    numel = math.prod(size)
    if mask.dtype != torch.int32 or mask.shape != (_bit_words(numel),):
        raise ValueError(
            f"regkern.unpack_mask: expected `mask` to be int32 ({_bit_words(numel)},) for size "
            f"{tuple(size)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    shifts = torch.arange(32, device=mask.device, dtype=torch.int32)
    return ((mask[:, None] >> shifts) & 1).reshape(-1)[:numel].reshape(tuple(size)).bool()

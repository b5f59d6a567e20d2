"""Quant-Noise: quantizes a random part of a weight's blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, function_apply, register
from regkern.random import resolve_seed

#: What stands for a quantized block: a proxy, a codebook, a format, or any function of the weight.
Quantizer = str | Tensor | Callable[[Tensor], Tensor]
Gradient = Literal["identity", "masked", "quantizer"]

_GRADIENTS = ("identity", "masked", "quantizer")


# ---- raw ops: fake kernels and autograd ----


def _fake_nearest(
    w: Tensor, codebook: Tensor, rows: int, row_size: int, *args: Any, **kwargs: Any
) -> Tensor:
    across = -(-row_size // codebook.shape[1])
    return w.new_empty((rows, across), dtype=torch.int32)


_select = register(
    "block_select", lambda w, q, seed, p, rows, row_size, block, *args, **kwargs: dense_like(w)
)
_select_ = register(
    "block_select_", lambda w, q, seed, p, rows, row_size, block, *args, **kwargs: None
)
_nearest = register("nearest_centroid", _fake_nearest)
_gather = register("centroid_select", lambda w, *args, **kwargs: dense_like(w))
_sum = register(
    "centroid_sum",
    lambda g, order, offsets, rows, row_size, block: g.new_empty((offsets.shape[0] - 1, block)),
)
_mean = register("subvector_mean", lambda w, rows, row_size, block: w.new_empty((block,)))


def _setup_select(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, q, seed, ctx.p, ctx.rows, ctx.row_size, ctx.block, *rest = inputs
    defaults: list[Any] = [None, False, False]
    p_tensor, ctx.invert, ctx.straight_through = [*rest, *defaults[len(rest) :]]
    ctx.shared = q is not None and q.shape != output.shape
    ctx.save_for_backward(seed, p_tensor)


def _select_gradients(
    ctx: Any, g: Tensor, needs_w: bool, needs_q: bool
) -> tuple[Tensor | None, Tensor | None]:
    seed, p_tensor = ctx.saved_tensors

    def masked(invert: bool) -> Tensor:
        y: Tensor = _select(
            g, None, seed, ctx.p, ctx.rows, ctx.row_size, ctx.block, p_tensor, invert
        )
        return y

    dw = None
    if needs_w:
        dw = g if ctx.straight_through else masked(ctx.invert)
    if not needs_q:
        return dw, None
    dq = masked(not ctx.invert)
    if ctx.shared:
        # One block for all: the sum over blocks, the short ones padded.
        rows = dq.reshape(ctx.rows, ctx.row_size)
        padded = torch.nn.functional.pad(rows, (0, -ctx.row_size % ctx.block))
        dq = padded.reshape(-1, ctx.block).sum(0)
    return dw, dq


def _backward_select(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad
    return *_select_gradients(ctx, g, needs[0], needs[1]), *([None] * 8)


_select.differentiable(_setup_select, _backward_select)


def _lists(index: Tensor, centroids: int) -> tuple[Tensor, Tensor]:
    """The blocks by centroid, in ascending order, and where each list begins."""
    ordered, order = torch.sort(index.reshape(-1).long(), stable=True)
    bounds = torch.arange(centroids + 1, device=index.device)
    return order, torch.searchsorted(ordered, bounds)


def _setup_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, codebook, index, ctx.rows, ctx.row_size, *rest = inputs
    ctx.straight_through = bool(rest and rest[0])
    ctx.centroids, ctx.block = codebook.shape
    ctx.save_for_backward(index)


def _backward_gather(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (index,) = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dw = dc = None
    if needs[0]:
        dw = g
        if not ctx.straight_through:
            # What was replaced by a centroid has none; a NaN that has no nearest keeps its own.
            zeros = g.new_zeros((ctx.centroids, ctx.block))
            dw = _gather(g, zeros, index.clamp(min=-1), ctx.rows, ctx.row_size)
    if needs[1]:
        order, offsets = _lists(index, ctx.centroids)
        dc = _sum(g, order, offsets, ctx.rows, ctx.row_size, ctx.block)
    return dw, dc, None, None, None, None


_gather.differentiable(_setup_gather, _backward_gather)


def _setup_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, order, offsets, ctx.rows, ctx.row_size, _ = inputs
    ctx.shape = g.shape
    ctx.save_for_backward(order, offsets)


def _backward_sum(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    # Every block of a list gets the list's gradient, blocks in no list none.
    order, offsets = ctx.saved_tensors
    place = torch.arange(order.shape[0], device=order.device)
    centroid = torch.searchsorted(offsets, place, right=True) - 1
    index = torch.empty_like(centroid).scatter(0, order, centroid).to(torch.int32)
    index = torch.where(index < g.shape[0], index, -1).reshape(ctx.rows, -1)
    return _gather(g.new_zeros(ctx.shape), g, index, ctx.rows, ctx.row_size), *([None] * 5)


_sum.differentiable(_setup_sum, _backward_sum)


class _InPlace(torch.autograd.Function):
    """The in-place call for autograd, which cannot see through a mutable custom op."""

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, q: Tensor | None, seed: Tensor, p_tensor: Tensor | None,
        fixed: tuple[Any, ...], straight_through: bool,
    ) -> Tensor:  # fmt: skip
        _select_.raw(w, q, seed, *fixed, p_tensor)
        ctx.mark_dirty(w)
        _setup_select(ctx, (w, q, seed, *fixed, p_tensor, False, straight_through), w)
        return w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        needs = ctx.needs_input_grad
        return *_select_gradients(ctx, g, needs[0], needs[1]), *([None] * 4)


# ---- public functions ----


def blocks_of(shape: Sequence[int], block_size: int) -> tuple[int, int, int]:
    """How a weight is cut: (rows, row size, block).

    Of (out, in) and (out, in, 1, …, 1) a row is an output and a block ``block_size`` consecutive
    inputs, the last of a row maybe shorter. Of (out, in, kernel…) a block is the kernel of one
    output and one input, whatever ``block_size`` is. A vector is one row.
    """
    kernel = math.prod(shape[2:])
    if len(shape) > 2 and kernel != 1:
        return 1, math.prod(shape), max(kernel, 1)
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape[1:] if len(shape) > 1 else shape), block_size


def _check(op: str, w: Tensor, block_size: int) -> tuple[int, int, int]:
    checks.floating(op, "w", w)
    if isinstance(block_size, bool) or not isinstance(block_size, int | torch.SymInt):
        raise TypeError(f"regkern.{op}: expected `block_size` to be an int, got {block_size!r}")
    checks.at_least(op, "block_size", block_size, 1)
    return blocks_of(w.shape, block_size)


def check_quantizer(op: str, quantizer: object) -> None:
    """What can stand for a quantized block."""
    if not isinstance(quantizer, str | Tensor) and not callable(quantizer):
        raise TypeError(
            f"regkern.{op}: expected `quantizer` to be a string, a codebook or a function, got "
            f"{quantizer!r}"
        )


def _check_codebook(op: str, codebook: Tensor, w: Tensor, block: int) -> None:
    if codebook.dim() != 2 or codebook.shape[1] != block or not 1 <= codebook.shape[0] <= 65536:
        raise ValueError(
            f"regkern.{op}: expected a codebook of shape (centroids, {block}) with 1 to 65536 "
            f"centroids, got {tuple(codebook.shape)}"
        )
    if codebook.dtype != w.dtype or codebook.device != w.device:
        raise ValueError(
            f"regkern.{op}: expected a codebook like `w` ({w.dtype}, {w.device}), got "
            f"{codebook.dtype}, {codebook.device}"
        )


def _probability(p: float | Tensor, w: Tensor) -> tuple[float, Tensor | None]:
    if not isinstance(p, Tensor):
        return p, None
    return 0.0, p.detach().reshape(()).to(w.device, torch.float64)


def _quantized(
    op: str, w: Tensor, quantizer: str | Callable[[Tensor], Tensor], block: tuple[int, int, int]
) -> Tensor | None:
    """q(w): None for zeros, one block for all of them, or a tensor like w."""
    if isinstance(quantizer, str):
        if quantizer == "zero":
            return None
        if quantizer == "mean":
            mean: Tensor = _mean(w.detach(), *block)
            return mean
        from regkern import quantize

        return quantize.quantize_weights(w, quantizer)
    q = quantizer(w)
    checks.same(op, "quantizer(w)", q, w, "w")
    return q


def _quant_noise(
    op: str,
    w: Tensor,
    p: float | Tensor,
    block_size: int,
    quantizer: Quantizer,
    gradient: str,
    training: bool,
    inplace: bool,
    seed: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    block = _check(op, w, block_size)
    checks.probability(op, "p", p)
    check_quantizer(op, quantizer)
    checks.one_of(op, "gradient", gradient, _GRADIENTS)
    if isinstance(quantizer, Tensor):
        _check_codebook(op, quantizer, w, block[2])
    if seed is not None or generator is not None:
        # Checked even where nothing is drawn.
        seed = resolve_seed(op, w, seed, generator)
    if not training:
        # Zeros stand for a quantizer that is not known yet: nothing is zeroed once it is.
        p = 0.0 if isinstance(quantizer, str) and quantizer == "zero" else 1.0
    if not isinstance(p, Tensor) and p == 0.0:
        return w
    if seed is None:
        # With p = 1 nothing depends on the seed, and the generator stays where it is.
        if not isinstance(p, Tensor) and p == 1.0:
            seed = torch.zeros(2, dtype=torch.int64, device=w.device)
        else:
            seed = resolve_seed(op, w, seed, generator)
    value, p_tensor = _probability(p, w)
    if isinstance(quantizer, Tensor):
        index = _nearest(w.detach(), quantizer.detach(), *block[:2], seed, value, p_tensor)
        y: Tensor = _gather(w, quantizer, index, *block[:2], gradient == "identity")
        return w.copy_(y) if inplace else y
    if gradient == "quantizer":
        q = _quantized(op, w, quantizer, block)
    else:
        with torch.no_grad():
            q = _quantized(op, w.detach(), quantizer, block)
    straight = gradient == "identity"
    fixed = (value, *block)
    # Functionalisation makes a compiled in-place call the functional op and at most one copy.
    if not inplace or torch.compiler.is_compiling():
        y = _select(w, q, seed, *fixed, p_tensor, False, straight)
        return w.copy_(y) if inplace else y
    if torch.is_grad_enabled() and (w.requires_grad or (q is not None and q.requires_grad)):
        function_apply(_InPlace, w, q, seed, p_tensor, fixed, straight)
        return w
    _select_.raw(w, q, seed, *fixed, p_tensor)
    return w


def quant_noise(
    w: Tensor,
    p: float | Tensor,
    block_size: int = 8,
    quantizer: Quantizer = "zero",
    *,
    gradient: Gradient = "identity",
    training: bool = True,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Quant-Noise: quantizes a random part of a weight's blocks, for one forward.

    .. math::
        \hat w_b = \begin{cases} q(w)_b & \text{with probability } p \\ w_b & \text{else}
        \end{cases}, \qquad \frac{\partial \hat w}{\partial w} = 1

    Parameters
    ----------
    w : Tensor
        A weight; float32, float64, bfloat16 or float16, any strides; channels last is kept. Of
        (out, in) and of 1 x 1 convolutions a block is ``block_size`` consecutive inputs of an
        output, the last of a row maybe shorter; of other convolutions (out, in, kernel…) it is the
        kernel of one output and one input. w itself is not changed.
    p : float or 0-d Tensor
        Share of the blocks to quantize, in [0, 1]. A tensor may change from call to call without
        recompiling. On CUDA its value is not looked at; outside [0, 1] it makes the result NaN.
    block_size : int
    quantizer : {"zero", "mean"}, Tensor, str or callable
        "zero": blocks become 0, the paper's proxy for product quantization. "mean": the mean of all
        blocks. A codebook (K, block), K up to 65536: the nearest centroid (L2, the lowest of
        equals), searched for in the drawn blocks alone. A format such as "int8" or "e4m3fn". Any
        function of w that returns a tensor like it.
    gradient : {"identity", "masked", "quantizer"}
        What w gets: all of the gradient (straight-through, the paper); that of the blocks that
        keep their weights; or that and, through the others, what the quantizer itself passes on
        (for learned step sizes, say).
    training : bool
        False: everything is quantized, and with "zero" nothing, for zeros are a proxy while the
        quantizer is not known.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional

    Returns
    -------
    Tensor
        Like w; w itself for p = 0.

    Raises
    ------
    TypeError
        If w is not floating point, or an argument has the wrong type.
    ValueError
        If a value, shape or device does not fit.

    Notes
    -----
    Bytes moved: w (and q) read, ŵ written; "mean" and codebooks read w once more, the former
    entirely, the latter in the drawn blocks. A codebook that requires gradients gets, for each
    centroid, the sum over the blocks that took it, in an order that does not vary. A drawn block is
    replaced, so a NaN in it is gone; but a codebook has no centroid nearest to a NaN, and such a
    block becomes NaN. Differentiable any number of times.

    References
    ----------
    Fan, Stock, Graham, Grave, Gribonval, Jégou and Joulin, "Training with quantization noise for
    extreme model compression", ICLR 2021.
    """
    return _quant_noise(
        "quant_noise", w, p, block_size, quantizer, gradient, training, False, seed, generator
    )


def quant_noise_(
    w: Tensor,
    p: float | Tensor,
    block_size: int = 8,
    quantizer: Quantizer = "zero",
    *,
    gradient: Gradient = "identity",
    training: bool = True,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """In-place `quant_noise`: the same arguments and result, written over the drawn blocks of w.

    Differentiable in the graph of w, which must not be a leaf that requires gradients. For copies
    of a weight: the weight itself would be destroyed.

    Returns
    -------
    Tensor
        w.
    """
    return _quant_noise(
        "quant_noise_", w, p, block_size, quantizer, gradient, training, True, seed, generator
    )


def nearest_centroid(w: Tensor, codebook: Tensor, block_size: int | None = None) -> Tensor:
    r"""The nearest centroid of every block of a weight.

    .. math:: k_b = \arg\min_k \sum_j (w_{bj} - c_{kj})^2

    Parameters
    ----------
    w : Tensor
        As of `quant_noise`; a shorter last block is compared by what it has.
    codebook : Tensor
        (K, block), K up to 65536, of w's dtype.
    block_size : int, optional
        Default: the codebook's.

    Returns
    -------
    Tensor
        int32 (rows, blocks per row); the lowest of equals, and −2 for a block with a NaN.

    Notes
    -----
    Distances are summed in order of j, in float32 (float64 for doubles). Operations: three per
    element and centroid. Bytes moved: w read, 4 bytes per block written.
    """
    op = "nearest_centroid"
    checks.tensor(op, "codebook", codebook)
    size = codebook.shape[-1] if block_size is None and codebook.dim() > 0 else block_size
    rows, row_size, block = _check(op, w, 1 if size is None else size)
    _check_codebook(op, codebook, w, block)
    index: Tensor = _nearest(w.detach(), codebook.detach(), rows, row_size)
    return index


def subvector_mean(w: Tensor, block_size: int = 8) -> Tensor:
    """The mean of all blocks of a weight, place by place: what `quant_noise` puts for "mean".

    Summed in double, in an order that depends on the shape alone. A place that no block has is 0/0
    and thus NaN; of no elements at all the mean is 0. No gradient. Bytes moved: w read.

    Returns
    -------
    Tensor
        (block,), of w's dtype.
    """
    mean: Tensor = _mean(w.detach(), *_check("subvector_mean", w, block_size))
    return mean

"""Linear layers on dropped features: many masks in one call, and few features of many."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import function_apply
from regkern.masks.dropping import _dropout
from regkern.masks.events import number_of
from regkern.masks.prefixes import uniform_draws
from regkern.random import resolve_seed

# Masked features that exist at a time: as many as the last cache has room for.
CHUNK_ELEMENTS = 1 << 20


def chunk_rows(samples: int, features: int) -> int:
    """Rows of x that share a seed: it decides on the bits, and is the same on every device."""
    return max(1, CHUNK_ELEMENTS // max(samples * features, 1))


def chunk_seed(seed: Tensor, number: int) -> Tensor:
    """That of chunk ``number``: its offset comes so much later."""
    return seed + torch.arange(2, dtype=torch.int64, device=seed.device) * number


class _ManyMasks(torch.autograd.Function):
    """y[m] = (x ⊙ M_m / (1 − p)) Wᵀ, a chunk of rows at a time; masks are drawn again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, seed: Tensor, p: float, p_tensor: Any, samples: int
    ) -> Tensor:
        rows = chunk_rows(samples, x.shape[1])
        ys = []
        for i, chunk in enumerate(torch.split(x, rows)):
            masked = _dropout(chunk, chunk_seed(seed, i), p, [], True, p_tensor, samples, False)
            ys.append(F.linear(masked, weight))
        return torch.cat(ys, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, seed, ctx.p, p_tensor, ctx.samples = inputs
        ctx.save_for_backward(x, weight, seed, p_tensor)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, seed, p_tensor = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        options: tuple[Any, ...] = (ctx.p, [], True, p_tensor, ctx.samples)
        rows = chunk_rows(ctx.samples, x.shape[1])
        dxs = []
        # Sums over chunks in float32, also of bfloat16 and float16.
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        dw = torch.zeros_like(weight, dtype=wide)
        for i, (chunk, gs) in enumerate(
            zip(torch.split(x, rows), torch.split(g, rows, 1), strict=True)
        ):
            at = chunk_seed(seed, i)
            if wants_x:
                dxs.append(_dropout(torch.matmul(gs, weight), at, *options, True))
            if wants_weight:
                masked = _dropout(chunk, at, *options, False)
                dw = dw + gs.flatten(0, 1).t() @ masked.flatten(0, 1)
        dx = torch.cat(dxs, 0) if wants_x else None
        return dx, dw.to(weight.dtype) if wants_weight else None, None, None, None, None


def _check_linear(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, t in (("x", x), ("weight", weight), ("bias", bias)):
        if t is not None:
            checks.floating(op, name, t)
            checks.on_device(op, name, t, x)
    if x.dim() == 0 or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"regkern.{op}: expected `weight` of shape (out, in) with in that of `x` "
            f"{tuple(x.shape)}, got {tuple(weight.shape)}"
        )


def multi_sample_dropout_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float | Tensor = 0.5,
    samples: int = 8,
    training: bool = True,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A linear head on several independent dropouts of one feature (multi-sample dropout).

    .. math::
        y_m = W \Bigl(x \odot \frac{M_m}{1 - p}\Bigr) + b, \qquad
        M_m \sim \mathrm{Bernoulli}(1 - p), \quad m = 1, …, M

    Parameters
    ----------
    x : Tensor
        (\*, in); float32, float64, bfloat16 or float16.
    weight : Tensor
        W, (out, in), of x's dtype.
    bias : Tensor, optional
        b, (out,).
    p : float or Tensor
        Probability of a zero: a number or one element, which may change without recompiling.
    samples : int
        M.
    training : bool
        False: no masks, and all y_m are one (a view).
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional
        Source of the seed.

    Returns
    -------
    Tensor
        (M, \*, out).

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Neither masks nor M masked copies of x exist: chunks of rows are masked where the cache has
    them, and multiplied; the backward draws them again. A chunk's masks are those of `dropout` with
    ``copies`` and a seed whose offset is the chunk's number larger. Bytes moved: x read and y
    written, W once a chunk. ``torch.compile`` makes a graph for each number of rows.

    References
    ----------
    Inoue, "Multi-sample dropout for accelerated training and better generalization", 2019.
    """
    op = "multi_sample_dropout_linear"
    _check_linear(op, x, weight, bias)
    number, p_tensor = number_of(op, "p", p, x)
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise TypeError(f"regkern.{op}: expected `samples` to be an int, got {samples!r}")
    checks.at_least(op, "samples", samples, 1)
    if not training:
        y = F.linear(x, weight, bias)
        return y.expand(samples, *y.shape)
    given = resolve_seed(op, x, seed, generator)
    flat = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
    y = function_apply(_ManyMasks, flat, weight, given, number, p_tensor, samples)
    y = y if bias is None else y + bias
    shaped: Tensor = y.reshape(samples, *x.shape[:-1], weight.shape[0])
    return shaped


def compact_dropout_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.9,
    training: bool = True,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A linear layer on the few features that a very large dropout leaves, the same for a batch.

    .. math:: y = \frac{D}{n} W_{:, K} \, x_K + b, \qquad |K| = n = \max(1, (1 - p) D)

    with n rounded to an integer and K uniform among the subsets of n features.

    Parameters
    ----------
    x : Tensor
        (\*, D); float32, float64, bfloat16 or float16.
    weight : Tensor
        W, (out, D), of x's dtype.
    bias : Tensor, optional
        b, (out,).
    p : float
        Share of the features that are dropped, in [0, 1]. A number: it decides on sizes.
    training : bool
        False: all features, not rescaled.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional
        Source of the seed.

    Returns
    -------
    Tensor
        (\*, out), whose mean over K is the linear layer.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Exactly n features are kept, so no size depends on data and nothing waits for a GPU. Bytes
    moved: the kept columns of x and W are read and written, and read by a product of 1 − p of the
    operations. Gradients of dropped columns are zero.

    References
    ----------
    Zhang and Bottou, "Fine-tuning with very large dropout", 2024 (masks of elements).
    """
    op = "compact_dropout_linear"
    _check_linear(op, x, weight, bias)
    if isinstance(p, Tensor):
        raise TypeError(f"regkern.{op}: expected `p` to be a number, got a tensor")
    checks.probability(op, "p", p)
    size = x.shape[-1]
    kept = max(1, round((1.0 - p) * size))
    if not training or kept >= size:
        return F.linear(x, weight, bias)
    given = resolve_seed(op, x, seed, generator)
    among = uniform_draws(given, size).topk(kept, sorted=False).indices.sort().values
    few = weight.index_select(1, among) * (size / kept)
    return F.linear(x.index_select(-1, among), few, bias)

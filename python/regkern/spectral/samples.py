"""Norms, differences and normalisation of samples, each of them one row of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, register

# ---- raw ops: fake kernels and autograd ----


def _fake_sums(a: Tensor, b: Tensor, lengths: Tensor | None, kind: str) -> Tensor:
    return a.new_empty((3 if kind == "products" else 1, a.shape[0]), dtype=compute_dtype(a))


def _fake_normalize(x: Tensor, scale: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    return dense_like(x), x.new_empty((x.shape[0],), dtype=compute_dtype(x))


_sums = register("sample_sums", _fake_sums)
_combine = register("sample_combine", lambda a, b, p, q, lengths: dense_like(a))
_normalize = register("normalize_samples", _fake_normalize)


def _multiplied(x: Tensor, p: Tensor, lengths: Tensor | None) -> Tensor:
    """p x of each sample."""
    half = 0.5 * p
    scaled: Tensor = _combine(x, x, half, half, lengths)
    return scaled


def _sums_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, lengths, ctx.kind = inputs
    ctx.save_for_backward(a, b, lengths)


def _sums_gradient(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    a, b, lengths = ctx.saved_tensors
    if ctx.kind == "squares":
        return _multiplied(a, 2.0 * g[0], lengths), None, None, None
    if ctx.kind == "difference":
        p, q = 2.0 * g[0], -2.0 * g[0]
        return _combine(a, b, p, q, lengths), _combine(a, b, q, p, lengths), None, None
    da = _combine(a, b, 2.0 * g[0], g[1], lengths)
    return da, _combine(a, b, g[1], 2.0 * g[2], lengths), None, None


def _combine_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, p, q, lengths = inputs
    ctx.save_for_backward(a, b, p, q, lengths)


def _combine_gradient(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    a, b, p, q, lengths = ctx.saved_tensors
    dp = _sums(g, a, lengths, "products")[1]
    dq = _sums(g, b, lengths, "products")[1]
    return _multiplied(g, p, lengths), _multiplied(g, q, lengths), dp, dq, None


def _normalize_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, scale, lengths = inputs
    ctx.save_for_backward(x, scale, lengths)


def _normalize_gradient(ctx: Any, g: Tensor, g_norm: Tensor) -> tuple[Tensor | None, ...]:
    """With u = x / ‖x‖: dx = s/‖x‖ (g − u ⟨u, g⟩) + u g_norm; all of it 0 where x is."""
    x, scale, lengths = ctx.saved_tensors
    one = torch.ones((1,), dtype=scale.dtype, device=scale.device)
    unit, norm = _normalize(x, one, lengths)
    along = _sums(unit, g, lengths, "products")[1]
    zero = norm == 0
    p = torch.where(zero, 0.0, scale / torch.where(zero, 1.0, norm))
    dx = _combine(g, unit, p, g_norm - p * along, lengths)
    return dx, along.sum(0, keepdim=True) if scale.shape[0] == 1 else along, None


_sums.differentiable(_sums_setup, _sums_gradient)
_combine.differentiable(_combine_setup, _combine_gradient)
_normalize.differentiable(_normalize_setup, _normalize_gradient)


def check_samples(op: str, name: str, value: object) -> None:
    """A floating tensor with a batch dimension."""
    checks.floating(op, name, value)
    assert isinstance(value, Tensor)
    if value.dim() == 0:
        raise ValueError(f"regkern.{op}: expected `{name}` of at least one dimension, got ()")


# ---- public functions ----


def squared_norms(x: Tensor) -> Tensor:
    """Σ x² of each sample, (batch), in float32 or of a float64 tensor in float64."""
    check_samples("squared_norms", "x", x)
    sums: Tensor = _sums(x, x, None, "squares")
    return sums[0]


def inner_products(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """⟨a, a⟩, ⟨a, b⟩ and ⟨b, b⟩ of each sample, from one read of both."""
    check_samples("inner_products", "a", a)
    checks.same("inner_products", "b", b, a, "a")
    sums: Tensor = _sums(a, b, None, "products")
    return sums[0], sums[1], sums[2]


def difference_penalty(a: Tensor, b: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    r"""The squared distance of two batches, sample by sample.

    .. math:: d_i = s\, \lVert a_i - b_i \rVert^2

    Parameters
    ----------
    a, b : Tensor
        Of one shape and dtype; the first dimension counts the samples.
    scale : float or Tensor
        s: a number, or a tensor of one element.

    Returns
    -------
    Tensor
        (batch), float32, or float64 where a is. Differentiable in all arguments, any number of
        times.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Squares are added in double. Bytes moved: a and b read once; the gradient reads
    them again and writes one of each.

    References
    ----------
    "Nuclear norm regularization for deep learning", 2024, whose finite differences it adds up.
    """
    op = "difference_penalty"
    check_samples(op, "a", a)
    checks.same(op, "b", b, a, "a")
    checks.scale(op, "scale", scale)
    sums: Tensor = _sums(a, b, None, "difference")[0]
    if isinstance(scale, Tensor):
        scale = scale.to(sums.dtype).reshape(())
    return sums * scale


def normalize_samples(
    x: Tensor,
    scale: float | Tensor = 1.0,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Every sample as a vector of a given length.

    .. math:: y_i = s\, x_i / \lVert x_i \rVert_2

    The norm is taken over all but the first dimension. A sample of zeros stays zero, and its
    gradient is 0.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    scale : float or Tensor
        s: a number, a tensor of one element, or one of (batch).
    lengths : Tensor, optional
        int64 (batch): how many steps of dimension 1 belong to each sample. What is beyond counts
        for nothing, and is 0 in the result.
    mask : Tensor, optional
        bool of the leading dimensions of x: what is False counts for nothing, and becomes 0.

    Returns
    -------
    Tensor
        Like x. Differentiable in x and ``scale``, any number of times.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Squares are added in double, so that no sample of a half underflows. Bytes moved: x read (twice
    where a sample does not fit in the cache) and y written.

    References
    ----------
    Miyato, Maeda, Koyama and Ishii, "Virtual adversarial training", TPAMI 2018. Miyato, Dai and
    Goodfellow, "Adversarial training methods for semi-supervised text classification", ICLR 2017.
    """
    op = "normalize_samples"
    check_samples(op, "x", x)
    batch = x.shape[0]
    if isinstance(scale, Tensor):
        checks.on_device(op, "scale", scale, x)
        if scale.numel() != 1 and tuple(scale.shape) != (batch,):
            raise ValueError(
                f"regkern.{op}: expected `scale` of one element or of shape ({batch},), got "
                f"{tuple(scale.shape)}"
            )
        numbers = scale.to(compute_dtype(x)).reshape(-1)
    else:
        checks.scale(op, "scale", scale)
        numbers = torch.full((1,), scale, dtype=compute_dtype(x), device=x.device)
    if mask is not None:
        checks.on_device(op, "mask", mask, x)
        if mask.dtype != torch.bool or mask.shape != x.shape[: mask.dim()]:
            raise ValueError(
                f"regkern.{op}: expected `mask` to be bool of the leading dimensions of "
                f"{tuple(x.shape)}, got {mask.dtype}, {tuple(mask.shape)}"
            )
        x = x.masked_fill(~mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim())), 0.0)
    if lengths is not None:
        checks.on_device(op, "lengths", lengths, x)
        if lengths.dtype != torch.int64 or tuple(lengths.shape) != (batch,) or x.dim() < 2:
            raise ValueError(
                f"regkern.{op}: expected `lengths` to be int64 of shape ({batch},) for x of two "
                f"dimensions or more, got {lengths.dtype}, {tuple(lengths.shape)}"
            )
        # The op counts elements.
        lengths = (lengths * x[0, 0].numel() if batch else lengths).contiguous()
    y: Tensor = _normalize(x, numbers, lengths)[0]
    return y

"""Ranges, moments, histograms and percentiles: what quantizers and their regularizers look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, register
from regkern.quantize.granularity import blocks_of

# ---- raw ops: fake kernels and autograd ----


def _statistic_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _fake_block_range(x: Tensor, blocks: Sequence[int]) -> tuple[Tensor, Tensor]:
    outer, rows, cols, block_rows, block_cols, shared = blocks
    down = (rows + block_rows - 1) // block_rows
    across = (cols + block_cols - 1) // block_cols
    count = (1 if shared else outer) * down * across
    dtype = _statistic_dtype(x)
    return x.new_empty((count,), dtype=dtype), x.new_empty((count,), dtype=dtype)


def _fake_moments(x: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    channels = 1 if axis is None else x.shape[axis]
    return (
        x.new_empty((3, channels), dtype=torch.float64),
        x.new_empty((4, channels), dtype=torch.float64),
    )


def _fake_moments_list(xs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return (
        xs[0].new_empty((3, len(xs)), dtype=torch.float64),
        xs[0].new_empty((4, len(xs)), dtype=torch.float64),
    )


def _fake_histogram(
    x: Tensor, low: Tensor, high: Tensor, bins: int, clip: bool = False, magnitude: bool = False
) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty((bins,), dtype=torch.int64),
        x.new_empty((3,), dtype=torch.int64),
    )


block_range_op = register("block_range", _fake_block_range)
_moments = register("moments", _fake_moments)
_moments_backward = register("moments_backward", lambda x, moments, grad, axis=None: dense_like(x))
_moments_list = register("moments_list", _fake_moments_list)
_moments_list_backward = register(
    "moments_list_backward", lambda xs, moments, grad: [dense_like(x) for x in xs]
)
_histogram = register("histogram", _fake_histogram)


def _moments_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.axis = inputs
    ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(x, output[1])


def _moments_gradient(ctx: Any, _: Any, grad: Tensor) -> tuple[Any, ...]:
    x, moments = ctx.saved_tensors
    return _moments_backward(x, moments, grad, ctx.axis), None


def _cubic_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, moments, grad, ctx.axis = inputs
    ctx.save_for_backward(x, moments, grad)


def _cubic_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    """The derivative of the derivative, in plain torch.

    dx = a₀ + a₁ z + a₂ z² + a₃ z³ with z = u (x − mean), u = 1 / s, s = √variance. What the
    coefficients and z depend on is per channel, so it is enough to know Aᵣ = Σ g zʳ.
    """
    x, moments, grad = ctx.saved_tensors
    axis = ctx.axis
    n = x.numel() if axis is None else x.numel() // max(x.shape[axis], 1)
    dims = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]

    def spread(v: Tensor) -> Tensor:
        if axis is None:
            return v.reshape(())
        return v.reshape([-1 if d == axis % x.dim() else 1 for d in range(x.dim())])

    mean, variance, skewness, kurtosis = moments.unbind(0)
    _, g_variance, g_skewness, g_kurtosis = grad.unbind(0)
    flat = variance == 0
    s = torch.where(flat, 1.0, variance).sqrt()
    u = torch.where(flat, 0.0, 1.0 / s)
    third = 3.0 * g_skewness * u / n
    fourth = 4.0 * g_kurtosis * u / n
    direct = torch.where(flat, 0.0, 2.0 * s * g_variance / n)
    a1 = direct - third * skewness - fourth * kurtosis

    z = (x.double() - spread(mean)) * spread(u)
    gd = g.double()
    slope = spread(a1) + z * (2.0 * spread(third) + z * (3.0 * spread(fourth)))
    dx = (gd * slope * spread(u)).to(x.dtype)
    power = gd
    sums = []
    for _ in range(4):
        sums.append(power.sum(dims).reshape(-1) if dims else power.reshape(-1))
        power = power * z
    s0, s1, s2, s3 = sums
    # Where the gradient is 0 by definition, so is its derivative.
    alive = torch.where(flat, 0.0, 1.0)
    d_mean = -u * (a1 * s0 + 2.0 * third * s1 + 3.0 * fourth * s2)
    through_a = s0 * (-third - fourth * skewness) + s1 * (a1 - direct) + s2 * third + s3 * fourth
    through_z = a1 * s1 + 2.0 * third * s2 + 3.0 * fourth * s3
    d_s = -u * (through_a + through_z) + alive * 2.0 * g_variance * s1 / n
    d_moments = torch.stack([d_mean, 0.5 * u * d_s, -fourth * s0 - third * s1, -fourth * s1])
    d_grad = torch.stack(
        [
            s0 / n,
            alive * 2.0 * s * s1 / n,
            3.0 * u / n * (s2 - s0 - skewness * s1),
            4.0 * u / n * (s3 - skewness * s0 - kurtosis * s1),
        ]
    )
    return dx, d_moments, d_grad, None


def _moments_list_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    (xs,) = inputs
    ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(*xs, output[1])


def _moments_list_gradient(ctx: Any, _: Any, grad: Tensor) -> Any:
    *xs, moments = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return _moments_list_backward(list(xs), moments, grad)
    # A second derivative may follow, and that is the single op's.
    return [
        _moments_backward(x, moments[:, i : i + 1], grad[:, i : i + 1]) for i, x in enumerate(xs)
    ]


_moments.differentiable(_moments_setup, _moments_gradient)
_moments_backward.differentiable(_cubic_setup, _cubic_gradient)
_moments_list.differentiable(_moments_list_setup, _moments_list_gradient)


# ---- ranges ----


def _memory_order(x: Tensor) -> list[int] | None:
    """The dimensions as they lie in memory where x is channels last, else None.

    By strides: under `torch.func.vmap` a tensor cannot be asked for its memory format.
    """
    if x.dim() not in (4, 5) or x.is_contiguous():
        return None
    order = [0, *range(2, x.dim()), 1]
    expected = 1
    for d in reversed(order):
        if x.shape[d] != 1 and x.stride(d) != expected:
            return None
        expected *= x.shape[d]
    return order


def _check_axis(op: str, axis: int, x: Tensor) -> int:
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"regkern.{op}: expected `axis` to be an int or None, got {axis!r}")
    if not -x.dim() <= axis < x.dim():
        raise ValueError(f"regkern.{op}: expected `axis` in [{-x.dim()}, {x.dim()}), got {axis}")
    return axis % x.dim()


def _range_blocks(
    op: str, x: Tensor, axis: int | None, group_size: int | None, block: tuple[int, int] | None
) -> tuple[list[int], tuple[int, ...]]:
    """The blocks of a row-major tensor and the shape of the result."""
    if block is not None:
        return blocks_of(op, x, "block", block_size=block)
    if axis is None:
        return blocks_of(op, x, "tensor")
    if group_size is not None:
        return blocks_of(op, x, "group", axis, group_size)
    return blocks_of(op, x, "channel", axis)


def _check_range(
    op: str, x: Tensor, axis: int | None, group_size: int | None, block: Sequence[int] | None
) -> tuple[int | None, tuple[int, int] | None]:
    checks.floating(op, "x", x)
    if block is not None:
        if axis is not None or group_size is not None:
            raise ValueError(
                f"regkern.{op}: expected `block` without `axis` and `group_size`, got "
                f"{axis} and {group_size}"
            )
        if len(block) != 2 or min(block) < 1:
            raise ValueError(
                f"regkern.{op}: expected `block` as (rows, columns) of at least 1, got "
                f"{tuple(block)}"
            )
        if x.dim() < 2:
            raise ValueError(
                f"regkern.{op}: expected `x` of two or more dimensions with `block`, got "
                f"{tuple(x.shape)}"
            )
        return None, (block[0], block[1])
    if group_size is not None:
        checks.at_least(op, "group_size", group_size, 1)
        return _check_axis(op, -1 if axis is None else axis, x), None
    return (None if axis is None else _check_axis(op, axis, x)), None


def value_range(
    x: Tensor,
    axis: int | None = None,
    group_size: int | None = None,
    block: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The least and the largest element of a tensor, or of each channel, token, group or block.

    .. math::
        \mathrm{minimum}_b = \min_{i \in b} x_i, \qquad \mathrm{maximum}_b = \max_{i \in b} x_i

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    axis : int, optional
        Ranges per index of this axis, over all the others. With ``group_size``, the axis that is
        cut into groups (default: the last).
    group_size : int, optional
        So many neighbours along ``axis`` share a range; the last group may be shorter. All of the
        axis (``x.shape[-1]``) makes it a range per token.
    block : (int, int), optional
        Blocks of so many rows and columns of the last two dimensions; the last ones may be shorter.

    Returns
    -------
    minimum, maximum : Tensor
        float64 where x is, else float32. Of shape (); (n,) with ``axis``; that of x with the axis
        cut to ⌈n / group_size⌉ with ``group_size``; (…, ⌈rows / r⌉, ⌈columns / c⌉) with ``block``.
        Both NaN where an element is; +inf and −inf where there is none. Not differentiable.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, and an axis or sizes that do not fit x.

    Notes
    -----
    Bytes moved: x read once, whatever the granularity; channels last is read as it lies, other
    strides are copied first. Nothing waits for a GPU.
    """
    op = "value_range"
    checked, blocks = _check_range(op, x, axis, group_size, block)
    x = x.detach()
    # A range of blocks of rows and columns needs these two to be the last ones.
    order = None if block is not None else _memory_order(x)
    # Row-major either way: the raw op would take channels last as it lies.
    x = x.contiguous() if order is None else x.permute(order)
    if order is not None:
        checked = None if checked is None else order.index(checked)
    sizes, shape = _range_blocks(op, x, checked, group_size, blocks)
    if x.numel() == 0:
        dtype = _statistic_dtype(x)
        return x.new_full(shape, math.inf, dtype=dtype), x.new_full(shape, -math.inf, dtype=dtype)
    minimum, maximum = block_range_op(x, sizes)
    minimum, maximum = minimum.reshape(shape), maximum.reshape(shape)
    if order is not None and group_size is not None:
        back = [order.index(d) for d in range(len(order))]
        minimum, maximum = minimum.permute(back), maximum.permute(back)
    return minimum, maximum


# ---- moments ----


class Moments(NamedTuple):
    """Extremes and standardized moments of a tensor or of its channels, float64."""

    minimum: Tensor
    maximum: Tensor
    amax: Tensor
    mean: Tensor
    variance: Tensor
    skewness: Tensor
    kurtosis: Tensor


def moments(x: Tensor, axis: int | None = None) -> Moments:
    r"""Extremes, mean, variance, skewness and kurtosis, in one read.

    .. math::
        \mu = \frac{1}{N} \sum_i x_i, \quad m_k = \frac{1}{N} \sum_i (x_i - \mu)^k, \quad
        \mathrm{variance} = m_2, \quad \mathrm{skewness} = \frac{m_3}{m_2^{3/2}}, \quad
        \mathrm{kurtosis} = \frac{m_4}{m_2^2}

    Population moments; the kurtosis of a normal distribution is 3, of a uniform one 1.8.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    axis : int, optional
        Moments per index of this axis, over all the others.

    Returns
    -------
    Moments
        ``minimum, maximum, amax, mean, variance, skewness, kurtosis``, each float64 of shape () or
        (n,). The last four are differentiable in x, twice or more. Of equal numbers, variance,
        skewness and kurtosis are 0 and so are their gradients. NaN where an element is; the last
        three are NaN where one is infinite. Of no elements, mean and all after it are NaN, the
        extremes those of `value_range`, and ``amax`` is 0.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, and an axis that x does not have.

    Notes
    -----
    Bytes moved: x read once; the gradient reads it once more and writes one tensor. The second
    derivative is made of plain torch ops.

    Chunks of 4 KiB find their own mean first and are merged by Pébay's formulas in double, in one
    fixed order: the result is as good for 1000 ± 0.001 as for 0 ± 1, and the same on all devices.
    Deviations in float64 beyond 1e±75 leave the range of their fourth power. Channels last is read
    as it lies for axis 1; other strides are copied to row-major order first.

    References
    ----------
    P. Pébay, "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order
    statistical moments", Sandia report SAND2008-6212, 2008.
    """
    op = "moments"
    checks.floating(op, "x", x)
    if axis is not None:
        axis = _check_axis(op, axis, x)
    extremes, shape = _moments(x, axis)
    if axis is None:
        extremes, shape = extremes.reshape(3), shape.reshape(4)
    return Moments(*extremes.detach().unbind(0), *shape.unbind(0))


def moments_penalty(
    weights: Tensor | Sequence[Tensor],
    target_kurtosis: float | Tensor = 1.8,
    target_skewness: float | Tensor = 0.0,
) -> Tensor:
    r"""EQ-Net's regularization of weight distributions: skewness and kurtosis near their targets.

    .. math::
        L = \frac{1}{n} \sum_{l=1}^{n} \left(\mathrm{skew}(W_l) - s^*\right)^2 +
            \left(\mathrm{kurt}(W_l) - k^*\right)^2

    Parameters
    ----------
    weights : Tensor or sequence of Tensor
        The weights of a layer, or of several: all in one call, dtypes mixed as they come.
    target_kurtosis, target_skewness : float or Tensor
        Kurtosis 1.8 and skewness 0 are the uniform distribution's, which loses least in
        quantization.

    Returns
    -------
    Tensor
        0-d, float64 if a weight is, else float32. Differentiable in the weights, twice or more.

    Raises
    ------
    TypeError, ValueError
        For an empty list, other dtypes than floating ones, and weights on several devices.

    Notes
    -----
    Bytes moved: each weight read once; in the backward read once more and its gradient written.
    See `moments` for equal numbers and NaN.

    References
    ----------
    Xu et al., "EQ-Net: elastic quantization neural networks", ICCV 2023.
    """
    op = "moments_penalty"
    tensors = checks.tensor_list(op, "weights", weights)
    double = any(w.dtype == torch.float64 for w in tensors)
    compiling = torch.compiler.is_compiling()
    if not compiling and torch._C._functorch.peek_interpreter_stack() is not None:
        # Transforms do not look into lists.
        shape = torch.cat([_moments(w)[1] for w in tensors], 1)
    else:
        shape = _moments_list(tensors)[1]
    skewness, kurtosis = shape[2] - target_skewness, shape[3] - target_kurtosis
    loss = (skewness * skewness + kurtosis * kurtosis).mean()
    return loss.to(torch.float64 if double else torch.float32)


# ---- histograms ----


def _bound(op: str, name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """float64 on x's device. Filled there: a copy from the host would wait for the GPU."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"regkern.{op}: expected `{name}` of one element, got {tuple(value.shape)}"
            )
        checks.on_device(op, name, value, x)
        return value.detach().to(torch.float64)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"regkern.{op}: expected `{name}` to be a number or a tensor, got {value!r}"
        )
    return torch.full((), value, dtype=torch.float64, device=x.device)


_MOST_BINS = 2**24


def _check_bins(op: str, bins: int) -> None:
    if not 1 <= bins <= _MOST_BINS:
        raise ValueError(f"regkern.{op}: expected `bins` in [1, 2^24], got {bins}")


def histogram(
    x: Tensor, bins: int, low: float | Tensor, high: float | Tensor, clip: bool = False
) -> Tensor:
    r"""Counts of the elements in bins of equal width.

    .. math::
        c_k = \left| \left\{ i : \left\lfloor (x_i - \mathrm{low})
            \frac{\mathrm{bins}}{\mathrm{high} - \mathrm{low}} \right\rfloor = k \right\} \right|

    The last bin includes ``high``.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any shape and strides.
    bins : int
        Up to 2²⁴.
    low, high : float or Tensor
        The range; tensors of one element on x's device are not looked at by the host.
    clip : bool
        Counts what is below and above in the end bins instead of dropping it.

    Returns
    -------
    Tensor
        int64 (bins,). NaN is not counted, and nothing is if the range is reversed, infinite or NaN;
        the raw op also returns how many elements were below, above and NaN. Where low = high, the
        elements equal to it are in the first bin. Not differentiable.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, and bins or bounds out of range.

    Notes
    -----
    Bytes moved: x read once. Bins are found in double, so that a tensor and its copy in float64
    count alike. Deterministic: only integers are added.
    """
    op = "histogram"
    checks.floating(op, "x", x)
    _check_bins(op, bins)
    lower, upper = _bound(op, "low", low, x), _bound(op, "high", high, x)
    counts: Tensor = _histogram(x.detach(), lower, upper, bins, clip)[0]
    return counts


def _at_rank(rank: Tensor, cumulative: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """The element of this rank, were those of a bin spread evenly over it."""
    k = torch.searchsorted(cumulative, rank, right=True).clamp(max=cumulative.numel() - 1)
    end = cumulative.gather(0, k)
    begin = torch.where(k > 0, cumulative.gather(0, (k - 1).clamp(min=0)), 0)
    share = (rank - begin + 0.5) / (end - begin).clamp(min=1)
    return low + width * (k + share)


def _quantile(q: float, cumulative: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """Between the elements of the two nearest ranks, as `torch.quantile` has it."""
    rank = (cumulative[-1:] - 1).clamp(min=0) * q
    lower = rank.floor()
    below = _at_rank(lower, cumulative, low, width)
    above = _at_rank(rank.ceil(), cumulative, low, width)
    return (below + (above - below) * (rank - lower)).reshape(())


def percentile_range(
    x: Tensor, percentile: float = 99.9, bins: int = 2048, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    r"""The range that a share of the elements lies in, from a histogram.

    .. math::
        [\, Q(1 - p), \; Q(p) \,], \qquad \text{or symmetric} \quad
        [-Q_{|x|}(p), \; Q_{|x|}(p)], \qquad p = \mathrm{percentile} / 100

    with Q the quantile function of `torch.quantile`.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any shape and strides.
    percentile : float
        In [50, 100]; in [0, 100] if symmetric.
    bins : int
        Of the histogram between the extremes of x.
    symmetric : bool
        The quantile of the magnitudes, with both signs.

    Returns
    -------
    low, high : Tensor
        0-d, float64 where x is, else float32. Each within one bin, (maximum − minimum) / bins or
        amax / bins, of the exact quantile. NaN if an element is NaN or infinite; +inf and −inf of
        no elements. Not differentiable.

    Raises
    ------
    TypeError, ValueError
        For dtypes other than these, and a percentile or bins out of range.

    Notes
    -----
    Bytes moved: x read twice, for its extremes and for the histogram; `torch.quantile` sorts. All
    of it runs on the device: nothing waits for a GPU.
    """
    op = "percentile_range"
    checks.floating(op, "x", x)
    _check_bins(op, bins)
    least = 0.0 if symmetric else 50.0
    if not least <= percentile <= 100.0:
        raise ValueError(
            f"regkern.{op}: expected `percentile` in [{least:g}, 100], got {percentile}"
        )
    x = x.detach()
    minimum, maximum = value_range(x)
    if x.numel() == 0:
        return minimum, maximum
    if symmetric:
        high = torch.maximum(-minimum, maximum).double()
        low = torch.zeros_like(high)
    else:
        low, high = minimum.double(), maximum.double()
    counts, outside = _histogram(x, low, high, bins, False, symmetric)
    width = (high - low) / bins
    # Ranks in double from here on: float32 has none beyond 2²⁴.
    cumulative = counts.cumsum(0).double()
    q = percentile / 100.0
    upper = _quantile(q, cumulative, low, width)
    lower = -upper if symmetric else _quantile(1.0 - q, cumulative, low, width)
    # Without a bin, an element has no place in the range.
    bad = (outside.sum() > 0) | ~torch.isfinite(width)
    dtype = _statistic_dtype(x)
    return (
        torch.where(bad, math.nan, lower).to(dtype),
        torch.where(bad, math.nan, upper).to(dtype),
    )

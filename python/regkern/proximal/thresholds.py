"""Thresholds of whole networks: the k-th magnitude of many tensors, and what stands on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register
from regkern.proximal.elementwise import prox_elementwise_
from regkern.proximal.penalty import ProxReport

# ---- raw ops: fake kernels ----


def _fake_select(
    tensors: Sequence[Tensor], minus: Sequence[Tensor], ranks: Sequence[int], each: bool
) -> tuple[Tensor, Tensor]:
    count = len(tensors) if each else 1
    return (
        tensors[0].new_empty((count,), dtype=compute_dtype(tensors[0])),
        tensors[0].new_empty((count, 2), dtype=torch.int64),
    )


def _fake_mask(
    tensors: Sequence[Tensor],
    minus: Sequence[Tensor],
    ranks: Sequence[int],
    each: bool,
    packed: bool,
) -> tuple[list[Tensor], Tensor]:
    if packed:
        masks = [x.new_empty(((x.numel() + 31) // 32,), dtype=torch.int32) for x in tensors]
    else:
        masks = [x.new_empty(x.shape, dtype=torch.bool) for x in tensors]
    return masks, _fake_select(tensors, minus, ranks, each)[0]


_select = register("magnitude_select", _fake_select)
_scale_ = register(
    "magnitude_scale_", lambda xs, ranks, each, factor: _fake_select(xs, (), ranks, each)
)
_mask = register("magnitude_mask", _fake_mask)


# ---- checks ----


def _same_dtype(op: str, tensors: Any) -> list[Tensor]:
    xs = checks.tensor_list(op, "tensors", tensors)
    for i, x in enumerate(xs):
        if x.dtype != xs[0].dtype:
            raise TypeError(
                f"regkern.{op}: expected `tensors[{i}]` of dtype {xs[0].dtype}, that of the first, "
                f"got {x.dtype}"
            )
    return xs


def _counts(
    op: str, xs: Sequence[Tensor], k: int | None, fraction: float | None, each: bool
) -> list[int]:
    """How many elements of all tensors, or of each, are meant."""
    if (k is None) == (fraction is None):
        got = "neither" if k is None else "both"
        raise ValueError(f"regkern.{op}: expected `k` or `fraction`, got {got}")
    sizes = [x.numel() for x in xs] if each else [sum(x.numel() for x in xs)]
    if fraction is not None:
        checks.probability(op, "fraction", fraction)
        # Half of an ulp of the product does not take one away: 0.29 of 100 are 29.
        return [min(int(fraction * n * (1 + 2e-16) + 1e-9), n) for n in sizes]
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"regkern.{op}: expected `k` to be an integer, got {k!r}")
    if not all(0 <= k <= n for n in sizes):
        raise ValueError(f"regkern.{op}: expected `k` from 0 to {min(sizes)}, got {k}")
    return [k] * len(sizes)


# ---- public functions ----


class KthMagnitude(NamedTuple):
    """The k-th smallest magnitude.

    Attributes
    ----------
    value : Tensor
        0-d, float32 (float64 for float64).
    below, equal : Tensor
        int64, 0-d: how many magnitudes are smaller, and how many are equal to it.
    """

    value: Tensor
    below: Tensor
    equal: Tensor


def kth_magnitude(
    tensors: Tensor | Sequence[Tensor], k: int | None = None, *, fraction: float | None = None
) -> KthMagnitude:
    r"""The k-th smallest of all :math:`|x_i|`, over several tensors together, without a sort.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        float32, float64, bfloat16 or float16, all of one dtype. Any strides.
    k : int
        From 1 to the number of elements.
    fraction : float
        Instead of k: k = ⌊fraction · number⌋, at least 1.

    Returns
    -------
    KthMagnitude
        ``(value, below, equal)``, on the device: nothing waits for it.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Exact: a histogram of 11 bits of the magnitudes at a time narrows it down to one number. NaN
    counts as the largest. Not differentiable. Bytes moved: every element read 3 times (twice for
    bfloat16 and float16, 6 times for float64).
    """
    op = "kth_magnitude"
    xs = _same_dtype(op, tensors)
    ranks = _counts(op, xs, k, fraction, False)
    total = sum(x.numel() for x in xs)
    if total == 0 or k == 0:
        raise ValueError(f"regkern.{op}: expected `k` from 1 to {total}, got {ranks[0]}")
    with torch.no_grad():
        values, counts = _select(xs, [], [max(ranks[0], 1)], False)
    return KthMagnitude(values[0], counts[0, 0], counts[0, 1])


def magnitude_threshold_(
    tensors: Tensor | Sequence[Tensor],
    k: int | None = None,
    *,
    fraction: float | None = None,
    per_tensor: bool = False,
) -> Tensor:
    r"""Keeps the k largest magnitudes and sets all other elements to zero, in place.

    The projection on the vectors of at most k nonzero elements, :math:`H_k`: the step of iterative
    hard thresholding, and magnitude pruning. Exactly k are kept: of equal magnitudes at the
    threshold those of the lowest index, tensors in their order.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        What is overwritten; all of one dtype. Any strides.
    k : int
        How many are kept, from 0 on.
    fraction : float
        Instead of k: the share that is kept, ⌊fraction · number⌋ elements.
    per_tensor : bool
        Whether k or ``fraction`` is for each tensor, or for all together.

    Returns
    -------
    Tensor
        The largest magnitude that was dropped where some were (0 where none), 0-d, or one for each
        tensor.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd. NaN counts as the largest. Bytes moved: for float32 every element read
    4 times and written once; once more where equal magnitudes have to be told apart.

    References
    ----------
    Blumensath and Davies, "Iterative hard thresholding for compressed sensing", ACHA 2009.
    """
    op = "magnitude_threshold_"
    xs = _same_dtype(op, tensors)
    kept = _counts(op, xs, k, fraction, per_tensor)
    sizes = [x.numel() for x in xs] if per_tensor else [sum(x.numel() for x in xs)]
    dropped = [n - m for n, m in zip(sizes, kept, strict=True)]
    with torch.no_grad():
        values: Tensor = _scale_(xs, dropped, per_tensor, 0.0)[0]
    return values if per_tensor else values[0]


def shrink_smallest_(
    tensors: Tensor | Sequence[Tensor],
    factor: float,
    k: int | None = None,
    *,
    fraction: float | None = None,
    per_tensor: bool = True,
) -> Tensor:
    r"""Multiplies the k smallest magnitudes by a factor, in place (iterative soft shrinkage).

    .. math:: w_S \leftarrow c\, w_S, \qquad S = \text{the } k \text{ smallest } |w|

    after every optimizer step, with dense gradients, so that weights can come back. Exactly k: of
    equal magnitudes those of the highest index.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        What is overwritten; all of one dtype. Any strides.
    factor : float
        c in [0, 1]; 0 sets them to zero.
    k : int
        How many.
    fraction : float
        Instead of k: ⌊fraction · number⌋ elements.
    per_tensor : bool
        Whether k or ``fraction`` is for each tensor, or for all together.

    Returns
    -------
    Tensor
        The largest magnitude that was shrunk (0 where none was), before that: one for each tensor,
        or 0-d.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    As `magnitude_threshold_`.

    References
    ----------
    "Iterative soft shrinkage learning for efficient image super-resolution", ICCV 2023.
    """
    op = "shrink_smallest_"
    xs = _same_dtype(op, tensors)
    checks.probability(op, "factor", factor)
    ranks = _counts(op, xs, k, fraction, per_tensor)
    with torch.no_grad():
        values: Tensor = _scale_(xs, ranks, per_tensor, float(factor))[0]
    return values if per_tensor else values[0]


def percentile_shrink_(
    tensors: Tensor | Sequence[Tensor], k: int | None = None, *, fraction: float | None = None
) -> ProxReport:
    r"""Soft threshold at the k-th smallest magnitude of all tensors, in place.

    .. math:: w \leftarrow \operatorname{sgn}(w) (|w| - |w|_{(k)})_+

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        What is overwritten; all of one dtype. Any strides.
    k : int
        From 0 (nothing happens) to the number of elements.
    fraction : float
        Instead of k: k = ⌊fraction · number⌋.

    Returns
    -------
    ProxReport
        ``zeros``: how many elements are 0 now.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd. Bytes moved: for float32 every element read 4 times and written once.
    """
    op = "percentile_shrink_"
    xs = _same_dtype(op, tensors)
    ranks = _counts(op, xs, k, fraction, False)
    with torch.no_grad():
        values = _select(xs, [], ranks, False)[0]
        # Rank 0 is below all of them.
        step = values[0] if ranks[0] > 0 else 0.0
        return prox_elementwise_(xs, "soft", step)


def top_k_mask(
    tensors: Tensor | Sequence[Tensor],
    k: int | None = None,
    *,
    fraction: float | None = None,
    initial: Tensor | Sequence[Tensor] | None = None,
    per_tensor: bool = False,
    packed: bool = False,
) -> list[Tensor]:
    r"""Masks of the k largest magnitudes :math:`|w|`, or of the largest changes :math:`|w - w_0|`.

    With ``initial``, the weights that a first, dense fine-tuning has moved most (LT-SFT): those
    that a second one trains.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        All of one dtype. Any strides.
    k : int
        How many are chosen.
    fraction : float
        Instead of k: ⌊fraction · number⌋ elements.
    initial : Tensor or sequence of Tensor, optional
        Of the shapes and the dtype of ``tensors``. Differences are those of the compute type.
    per_tensor : bool
        Whether k or ``fraction`` is for each tensor, or for all together.
    packed : bool
        int32 words of 32 elements each, in row-major order, instead of bool.

    Returns
    -------
    list of Tensor
        Exactly k elements are chosen: of equal magnitudes those of the lowest index.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    NaN counts as the largest. Bytes moved: for float32 every element (of both lists) read 4 times,
    and the mask written.

    References
    ----------
    Ansell, Ponti, Korhonen and Vulić, "Composable sparse fine-tuning for cross-lingual transfer",
    ACL 2022.
    """
    op = "top_k_mask"
    xs = _same_dtype(op, tensors)
    before: list[Tensor] = []
    if initial is not None:
        before = checks.tensor_list(op, "initial", initial)
        if len(before) != len(xs):
            raise ValueError(
                f"regkern.{op}: expected as many `initial` as `tensors`, {len(xs)}, got "
                f"{len(before)}"
            )
        for i, (b, x) in enumerate(zip(before, xs, strict=True)):
            checks.same(op, f"initial[{i}]", b, x, f"tensors[{i}]")
    kept = _counts(op, xs, k, fraction, per_tensor)
    sizes = [x.numel() for x in xs] if per_tensor else [sum(x.numel() for x in xs)]
    dropped = [n - m for n, m in zip(sizes, kept, strict=True)]
    with torch.no_grad():
        masks: list[Tensor] = _mask(xs, before, dropped, per_tensor, packed)[0]
    return masks

"""Where a sparse weight grows: the largest gradients that it has none of, or random places."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from regkern import _checks as checks
from regkern._registration import compute_dtype, register
from regkern.proximal.thresholds import kth_magnitude, top_k_mask
from regkern.sparse.convolutions import _around, _pair
from regkern.sparse.pattern import SparsePattern, check_pattern
from regkern.sparse.places import places_of
from regkern.sparse.products import _flat

_scan_ = register("sparse_grow_scan_", lambda *args: None)

#: Scores that are there at a time: 4 MiB of float32.
_PANEL = 2**20
#: Of that many rows one is looked at first, if that many of its scores are likely to be chosen.
_STEP, _LEAST = 128, 500
#: Rows that a panel has at least, so that its product is one of matrices.
_ROWS = 16

#: Scores of the rows from the first to before the second number, until the next are asked for.
Panels = Callable[[int, int], Tensor]
#: Of a panel, the sum of those of several processes.
Total = Callable[[Tensor], Tensor]
#: Outputs' gradients and inputs of several calls.
Pairs = Sequence[tuple[Tensor, Tensor]]


class Candidates(NamedTuple):
    """Places where a matrix has no entries, and their scores.

    Attributes
    ----------
    places : Tensor
        int64 (k,), rising: row times number of columns plus column.
    scores : Tensor
        (k,), the magnitudes of the gradient there.
    """

    places: Tensor
    scores: Tensor


def check_free(op: str, name: str, k: object, pattern: object) -> None:
    """A number of places that a pattern has free."""
    check_pattern(op, pattern)
    assert isinstance(pattern, SparsePattern)
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"regkern.{op}: expected `{name}` to be an integer, got {k!r}")
    free = math.prod(pattern.shape) - pattern.nnz
    if not 0 <= k <= free:
        raise ValueError(
            f"regkern.{op}: expected `{name}` from 0 to the {free} places without an entry, got {k}"
        )


def where(mask: Tensor) -> Tensor:
    """The places where a mask is True, int64, rising."""
    if mask.is_cpu:
        # Four times as quick as torch's own.
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero().view(-1)


class _Largest:
    """The k largest of what panels have had so far, and all that a later one may push out.

    What a panel has above the threshold is appended, and when there is twice as much as is wanted,
    the threshold rises to the smallest of the k largest. Of equal ones the first are taken, so that
    later ones need to be more.
    """

    def __init__(self, pattern: SparsePattern, k: int, panel: int, dtype: torch.dtype) -> None:
        self.pattern, self.k = pattern, k
        # Most of it is never touched.
        capacity = min(2 * k + panel, math.prod(pattern.shape) - pattern.nnz)
        self.places = torch.empty(capacity, dtype=torch.int64, device=pattern.device)
        self.scores = torch.empty(capacity, dtype=dtype, device=pattern.device)
        self.found = torch.zeros(1, dtype=torch.int64, device=pattern.device)
        # Nothing is below it but entries.
        self.threshold = torch.full((1,), -1.0, dtype=dtype, device=pattern.device)

    def add(self, scores: Tensor, first: int) -> None:
        """A panel of rows from ``first`` on."""
        p = self.pattern
        _scan_(
            self.places,
            self.scores,
            self.found,
            scores,
            p.offsets,
            p.index,
            first,
            self.threshold,
        )
        if int(self.found) > 2 * self.k:
            places, scores = self.candidates()
            self.places[: self.k] = places
            self.scores[: self.k] = scores
            self.found.fill_(self.k)
            # NaN is the largest, and nothing but NaN is more than infinity.
            self.threshold = scores.nan_to_num(nan=math.inf, posinf=math.inf).amin().view(1)

    def candidates(self) -> Candidates:
        """The k largest, or all if there are fewer."""
        found = int(self.found)
        places, scores = self.places[:found], self.scores[:found]
        if found > self.k:
            chosen = where(top_k_mask(scores, self.k)[0])
            places, scores = places[chosen], scores[chosen]
        return Candidates(places, scores)


def largest_free(
    panels: Panels,
    pattern: SparsePattern,
    k: int,
    group_rows: int | None = None,
    guess: Callable[[], Tensor | None] | None = None,
    of_all: Total | None = None,
) -> Candidates:
    """The k largest magnitudes of scores (R, C) at places without an entry.

    Panels of rows come one after the other, and none spans two groups of rows. ``guess()`` is a
    threshold, of one element, that somewhat more than k are likely to be above; where it is not so,
    everything is done again without one. Of several processes ``of_all`` is the sum of a panel.
    """
    rows, columns = pattern.shape
    device = pattern.device
    if k == 0:
        return Candidates(torch.empty(0, dtype=torch.int64, device=device), torch.empty(0))
    group_rows = rows if group_rows is None else group_rows
    step = min(group_rows, max(_ROWS, _PANEL // max(1, columns)))
    starts = [r for g in range(0, rows, group_rows) for r in range(g, g + group_rows, step)]
    ends = [min(r + step, (r // group_rows + 1) * group_rows) for r in starts]
    # How often processes wait for each other must not hang on what one of them guesses.
    threshold = guess() if guess is not None and of_all is None else None
    largest: _Largest | None = None
    for start, end in zip(starts, ends, strict=True):
        scores = panels(start, end)
        if of_all is not None:
            scores = of_all(scores)
        scores = scores.view(end - start, columns)
        scores = scores.to(compute_dtype(scores))
        if largest is None:
            largest = _Largest(pattern, k, step * columns, scores.dtype)
            if threshold is not None:
                largest.threshold = threshold
        largest.add(scores, start)
    assert largest is not None
    found = largest.candidates()
    if found.places.numel() < k:
        return largest_free(panels, pattern, k, group_rows, of_all=of_all)
    return found


def random_free(
    pattern: SparsePattern, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Places without an entry, each set of ``count`` as likely as any other, int64, rising."""
    check_free("random_free", "count", count, pattern)
    free = math.prod(pattern.shape) - pattern.nnz
    ranks = _distinct(free, count, generator).to(pattern.device)
    # Before entry i there are places[i] − i free places: those are what free places count as.
    gaps = places_of(pattern)
    gaps -= torch.arange(pattern.nnz, device=pattern.device)
    return ranks + torch.searchsorted(gaps, ranks, right=True)


def _distinct(end: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Different numbers in [0, end), sorted: the first ones of a sequence of independent ones."""
    if 4 * count > end:
        return torch.randperm(end, generator=generator)[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while True:
        # A quarter of the numbers is taken at most, so as many again are enough but for chance.
        more = torch.randint(
            end, (max(16, count // 4) + count - drawn.numel(),), generator=generator
        )
        drawn = torch.cat([drawn, more])
        ordered, order = torch.sort(drawn, stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        drawn = drawn[order[first].sort().values]
        if drawn.numel() >= count:
            return drawn[:count].sort().values


@torch.no_grad()
def linear_candidates(
    op: str,
    pairs: Pairs,
    pattern: SparsePattern,
    k: int,
    feature_major: bool,
    of_all: Total | None = None,
) -> Candidates:
    """Of the sum of the gradients of several calls, each an output's gradient and an input."""
    check_free(op, "k", k, pattern)
    flat = []
    for g, x in pairs:
        rows, columns = (
            _flat(op, name, t, features, feature_major).to(compute_dtype(t))
            for name, t, features in (("g", g, pattern.shape[0]), ("x", x, pattern.shape[1]))
        )
        if feature_major:
            rows, columns = rows.t(), columns.t()
        for name, t in (("g", rows), ("x", columns)):
            checks.on_device(op, name, t, pattern.index)
        if rows.shape[0] != columns.shape[0] or rows.dtype != columns.dtype:
            raise ValueError(
                f"regkern.{op}: expected `x` of the batch and dtype of `g` {tuple(g.shape)} "
                f"{g.dtype}, got {tuple(x.shape)} {x.dtype}"
            )
        flat.append((rows, columns))

    space: dict[int, Tensor] = {}

    def panel(first: int, end: int) -> Tensor:
        scores = space.get(end - first)
        if scores is None:
            scores = space[end - first] = flat[0][1].new_empty(end - first, pattern.shape[1])
        return _product([g[:, first:end] for g, _ in flat], [x for _, x in flat], scores)

    return largest_free(panel, pattern, k, guess=lambda: _guess(flat, pattern, k), of_all=of_all)


def _product(gs: Sequence[Tensor], xs: Sequence[Tensor], out: Tensor) -> Tensor:
    """The sum of the gradients of several calls, in ``out``."""
    torch.mm(gs[0].t(), xs[0], out=out)
    for g, x in zip(gs[1:], xs[1:], strict=True):
        out.addmm_(g.t(), x)
    return out


def _guess(pairs: Pairs, pattern: SparsePattern, k: int) -> Tensor | None:
    """A threshold that more than k free places are likely to be above, from a sample of rows.

    Rows of all sizes of g are in it, so that a few large ones do not mislead.
    """
    rows, columns = pattern.shape
    count = -(-rows // _STEP)
    # How many of the sample are above, and some more: three deviations, and a tenth.
    wanted = k * count / rows
    wanted = math.ceil(1.1 * wanted + 3 * math.sqrt(wanted))
    if wanted < _LEAST or wanted * _STEP > rows * columns // 2:
        return None
    sizes = pairs[0][0].square().sum(0)
    for g, _ in pairs[1:]:
        sizes += g.square().sum(0)
    chosen = sizes.argsort()[_STEP // 2 :: _STEP]
    count = chosen.numel()
    space = pairs[0][1].new_empty(count, columns)
    scores = _product([g[:, chosen] for g, _ in pairs], [x for _, x in pairs], space)
    # Entries are the smallest, and zero alone is as small.
    first, lengths = pattern.offsets[chosen], pattern.offsets.diff()[chosen]
    own = torch.repeat_interleave(lengths)
    entries = torch.arange(own.numel(), device=own.device)
    entries += (first - lengths.cumsum(0) + lengths)[own]
    scores[own, pattern.index[entries].long()] = 0.0
    threshold = kth_magnitude(scores, scores.numel() - wanted + 1).value.view(1)
    return torch.where(threshold.isfinite() & (threshold > 0), threshold, -1.0)


def grow_candidates(
    g: Tensor, x: Tensor, pattern: SparsePattern, k: int, feature_major: bool = False
) -> Candidates:
    r"""The places without an entry whose gradients are largest, without the dense gradient.

    .. math::
        \operatorname{top}_k \Big\{ \Big| \sum_b g_{br}\, x_{bc} \Big| : (r, c) \notin P \Big\}

    Parameters
    ----------
    g, x : Tensor
        Gradient of the output and input of a linear layer, (..., R) and (..., C), or with
        ``feature_major`` (R, ...) and (C, ...): float32, float64, bfloat16 or float16.
    pattern : SparsePattern
        P, of shape (R, C).
    k : int
        From 0 to the number of places without an entry.

    Returns
    -------
    Candidates
        Places, rising, and their scores. Of equal scores those of the lowest places; NaN counts as
        the largest. Not differentiable.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Rows are taken in panels of 2²⁰ products, 16 rows at least. A panel is a product of torch's, in
    float32 (float64 of float64) and in torch's order of sums; what of it is above a threshold is
    appended to a list, in one pass. Where k is large, the threshold comes from a sample of rows
    (one of 128), and all is done again if less than k were above it; where k is small, it is that
    of the k largest so far. There is memory for a panel and 2 k candidates, and 2 R C operations an
    element of the batch; what comes beside these does not grow with the batch, and is half of
    them at one of 128. The device is waited for where the number of candidates is wanted.

    References
    ----------
    U. Evci, T. Gale, J. Menick, P. S. Castro and E. Elsen, "Rigging the lottery: making all tickets
    winners", ICML 2020.
    """
    return linear_candidates("grow_candidates", [(g, x)], pattern, k, feature_major)


@torch.no_grad()
def conv_candidates(
    op: str,
    pairs: Pairs,
    pattern: SparsePattern,
    k: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    of_all: Total | None = None,
) -> Candidates:
    """Of the sum of the gradients of several calls, each an output's gradient and an input."""
    check_free(op, "k", k, pattern)
    kernel = _pair(op, "kernel_size", kernel_size, 1)
    strides, dilations = _pair(op, "stride", stride, 1), _pair(op, "dilation", dilation, 1)
    top, bottom, left, right = _around(op, padding, kernel, strides, dilations)
    rows, columns = pattern.shape
    area = math.prod(kernel)
    if groups < 1 or rows % groups or columns % max(1, area):
        raise ValueError(
            f"regkern.{op}: expected `pattern` of (channels out, channels in / groups times "
            f"kernel) with {groups} groups of a kernel of {kernel}, got {pattern.shape}"
        )
    channels, outputs = columns // max(1, area), rows // groups
    ready = []
    for g, x in pairs:
        for name, t, wanted in (("g", g, rows), ("x", x, channels * groups)):
            checks.floating(op, name, t)
            checks.on_device(op, name, t, pattern.index)
            if t.dim() != 4 or t.shape[1] != wanted:
                raise ValueError(
                    f"regkern.{op}: expected `{name}` of shape (batch, {wanted}, height, width), "
                    f"got {tuple(t.shape)}"
                )
        mode = "constant" if padding_mode == "zeros" else padding_mode
        wide = F.pad(x.to(compute_dtype(x)), (left, right, top, bottom), mode)
        sides = zip(wide.shape[2:], kernel, strides, dilations, strict=True)
        places = [(n - d * (size - 1) - 1) // step + 1 for n, size, step, d in sides]
        if tuple(g.shape) != (x.shape[0], rows, *places) or g.dtype != x.dtype:
            raise ValueError(
                f"regkern.{op}: expected `g` of shape {(x.shape[0], rows, *places)} and dtype "
                f"{x.dtype}, got {tuple(g.shape)} {g.dtype}"
            )
        ready.append((g.to(compute_dtype(g)), wide))

    def gradient(g: Tensor, x: Tensor, first: int, end: int) -> Tensor:
        group = first // outputs
        part = x if groups == 1 else x[:, group * channels : (group + 1) * channels]
        shape = (end - first, channels, *kernel)
        weight: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            part, shape, g[:, first:end], strides, 0, dilations
        )
        return weight

    def panel(first: int, end: int) -> Tensor:
        total = gradient(*ready[0], first, end)
        for g, x in ready[1:]:
            total += gradient(g, x, first, end)
        return total

    return largest_free(panel, pattern, k, outputs, of_all=of_all)


def grow_candidates_conv2d(
    g: Tensor,
    x: Tensor,
    pattern: SparsePattern,
    k: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Candidates:
    r""":func:`grow_candidates` of a convolution, whose weight is seen as a matrix
    (O, I / groups · K_h K_w).

    Parameters
    ----------
    g, x : Tensor
        Gradient of the output (B, O, H', W') and input (B, I, H, W).
    pattern : SparsePattern
        Of the matrix.
    k : int
        From 0 to the number of places without an entry.
    kernel_size, stride, padding, dilation, groups, padding_mode
        As in ``torch.nn.functional.conv2d``; ``padding`` may be left, right, top and bottom, too.

    Returns
    -------
    Candidates

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Panels of rows are weight gradients of torch's convolution.
    """
    return conv_candidates(
        "grow_candidates_conv2d",
        [(g, x)],
        pattern,
        k,
        kernel_size,
        stride,
        padding,
        dilation,
        groups,
        padding_mode,
    )

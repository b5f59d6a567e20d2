"""Distances between rows: the prox that pulls pairs together until they meet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register


def _fake_pair_prox(x: Tensor, y: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape),
        x.new_empty(x.shape[:-1], dtype=compute_dtype(x)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, y, threshold = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(x, y, threshold, output[2])


def _backward(ctx: Any, gx: Tensor, gy: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Of d - 2 c d with c = t / |d|: h - 2 t (h - d ⟨d, h⟩ / |d|²) / |d|, and 0 where they met."""
    x, y, threshold, share = ctx.saved_tensors
    wide = share.dtype
    d, h = x.to(wide) - y.to(wide), gx.to(wide) - gy.to(wide)
    share = share[..., None]
    met = share == 0.5
    # The norm once more, as a function of x and y, so that the second derivative is right.
    square = torch.where(met, 1.0, (d * d).sum(-1, keepdim=True))
    norm = square.sqrt()
    t = threshold.reshape(-1)[0] if threshold.numel() == 1 else threshold.reshape(norm.shape)
    inner = (d * h).sum(-1, keepdim=True)
    pulled = t / norm * (h - d * (inner / square))
    # c d where the rows do not move at all, and d is infinitely far from t: no pull.
    pulled = torch.where(met, 0.5 * h, torch.where(share == 0, 0.0, pulled))
    dt = torch.where(met, 0.0, -inner / norm)
    dt = (
        dt.sum().reshape(threshold.shape) if threshold.numel() == 1 else dt.reshape(threshold.shape)
    )
    return gx - pulled.to(gx.dtype), gy + pulled.to(gy.dtype), dt


_pair_prox = register("pair_prox", _fake_pair_prox)
_pair_prox.differentiable(_setup, _backward)
_pair_prox_ = register("pair_prox_", lambda q, pairs, rounds, threshold: None)


def _threshold(op: str, threshold: float | Tensor, x: Tensor, batch: tuple[int, ...]) -> Tensor:
    if not isinstance(threshold, Tensor):
        checks.scale(op, "threshold", threshold)
        return torch.full((), threshold, dtype=compute_dtype(x), device=x.device)
    if threshold.numel() != 1 and threshold.shape != batch:
        raise ValueError(
            f"regkern.{op}: expected `threshold` of one element or of shape {tuple(batch)}, got "
            f"{tuple(threshold.shape)}"
        )
    return threshold.to(device=x.device, dtype=compute_dtype(x))


def prox_pair_difference(x: Tensor, y: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    r"""The prox of the distance of two rows: both move towards each other.

    .. math::
        \operatorname{prox}_{t \lVert x - y \rVert}(x, y) = (x - c\,d,\; y + c\,d), \qquad
        d = x - y, \quad c = \min\!\left(\tfrac{1}{2}, \frac{t}{\lVert d \rVert}\right)

    Parameters
    ----------
    x, y : Tensor
        (..., n), of one shape and dtype: float32, float64, bfloat16 or float16. Rows are the last
        dimension.
    threshold : float or Tensor
        t >= 0: a number, a tensor of one element, or one of shape (...). 0 leaves the rows as they
        are, bit for bit.

    Returns
    -------
    (Tensor, Tensor)
        Rows that meet are equal to the last bit. Differentiable in x, y and the threshold, twice
        too.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: x and y are read and written once.

    References
    ----------
    Fontaine, Chan and Bach, "Recovery bounds on class-based optimal transport: a sum-of-norms
    regularization framework", ICML 2023: the step of its incremental proximal scheme.
    """
    op = "prox_pair_difference"
    checks.floating(op, "x", x)
    checks.same(op, "y", y, x)
    if x.dim() < 1:
        raise ValueError(f"regkern.{op}: expected `x` of at least one dimension, got {x.shape}")
    first, second, _ = _pair_prox(x, y, _threshold(op, threshold, x, x.shape[:-1]))
    return first, second


class PairRounds:
    """Pairs of rows in rounds, in each of which no row occurs twice.

    The pairs of a round are moved at the same time; a round robin has all pairs of L rows in L - 1
    rounds (L, where L is odd).

    Parameters
    ----------
    pairs : Tensor
        int64, (P, 2), on any device.
    ends : sequence of int
        Where each round ends.
    """

    def __init__(self, pairs: Tensor, ends: list[int]) -> None:
        checks.tensor("PairRounds", "pairs", pairs)
        if pairs.dtype != torch.int64 or pairs.dim() != 2 or pairs.shape[1] != 2:
            raise ValueError(
                "regkern.PairRounds: expected `pairs` of dtype int64 and shape (P, 2), got "
                f"{pairs.dtype} and {tuple(pairs.shape)}"
            )
        begin = 0
        for end in ends:
            rows = pairs[begin:end].reshape(-1).tolist()
            if end < begin or end > len(pairs) or len(set(rows)) != len(rows):
                raise ValueError(
                    "regkern.PairRounds: expected `ends` that do not fall, and rounds in which no "
                    f"row occurs twice, got {ends}"
                )
            begin = end
        if begin != len(pairs):
            raise ValueError(
                f"regkern.PairRounds: expected the last round to end at {len(pairs)}, got {ends}"
            )
        self.pairs = pairs
        self.ends = list(ends)
        self.rows = int(pairs.max()) + 1 if pairs.numel() else 0
        if pairs.numel() and int(pairs.min()) < 0:
            raise ValueError("regkern.PairRounds: expected `pairs` of rows from 0 on, got less")

    def __len__(self) -> int:
        return len(self.pairs)

    def to(self, device: torch.device | str) -> PairRounds:
        """The same pairs on another device."""
        moved = object.__new__(PairRounds)
        moved.pairs, moved.ends, moved.rows = self.pairs.to(device), self.ends, self.rows
        return moved

    @classmethod
    def within(cls, labels: Tensor) -> PairRounds:
        """All pairs of rows that have the same label (negative ones: none).

        Parameters
        ----------
        labels : Tensor
            Integers, one per row.
        """
        checks.tensor("PairRounds.within", "labels", labels)
        if labels.dim() != 1 or labels.is_floating_point():
            raise ValueError(
                "regkern.PairRounds.within: expected `labels` of integers and one dimension, got "
                f"{labels.dtype} and {tuple(labels.shape)}"
            )
        rounds: dict[int, list[tuple[int, int]]] = {}
        classes: dict[int, list[int | None]] = {}
        for row, label in enumerate(labels.tolist()):
            if label >= 0:
                classes.setdefault(label, []).append(row)
        for rows in classes.values():
            if len(rows) % 2:
                rows.append(None)  # who draws this one sits out
            for number in range(len(rows) - 1):
                half = len(rows) // 2
                for a, b in zip(rows[:half], reversed(rows[half:]), strict=True):
                    if a is not None and b is not None:
                        rounds.setdefault(number, []).append((min(a, b), max(a, b)))
                # The first keeps its seat, the others move on.
                rows = [rows[0], rows[-1], *rows[1:-1]]
        pairs = [pair for number in sorted(rounds) for pair in rounds[number]]
        ends, total = [], 0
        for number in sorted(rounds):
            total += len(rounds[number])
            ends.append(total)
        return cls(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).to(labels.device), ends)


def prox_pair_difference_(q: Tensor, rounds: PairRounds, threshold: float | Tensor) -> Tensor:
    r"""One sweep of the incremental prox of a sum of norms :math:`\sum t_p \lVert q_i - q_j
    \rVert`, in place.

    Every pair (i, j) in turn is replaced by the prox of its own term,
    :func:`prox_pair_difference`; those of a round at the same time.

    Parameters
    ----------
    q : Tensor
        (L, n), float32, float64, bfloat16 or float16.
    rounds : PairRounds
        The pairs, on the device of q.
    threshold : float or Tensor
        t: a number, a tensor of one element, or one for every pair.

    Returns
    -------
    Tensor
        q. Not recorded by autograd.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: two rows read and written for every pair. One launch for each round.

    References
    ----------
    Fontaine, Chan and Bach, "Recovery bounds on class-based optimal transport: a sum-of-norms
    regularization framework", ICML 2023.
    """
    op = "prox_pair_difference_"
    checks.floating(op, "q", q)
    if q.dim() != 2 or q.shape[0] < rounds.rows:
        raise ValueError(
            f"regkern.{op}: expected `q` of two dimensions and at least {rounds.rows} rows, got "
            f"{tuple(q.shape)}"
        )
    checks.on_device(op, "rounds", rounds.pairs, q)
    with torch.no_grad():
        _pair_prox_(q, rounds.pairs, rounds.ends, _threshold(op, threshold, q, (len(rounds),)))
    return q

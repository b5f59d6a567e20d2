"""How much of a sparse weight moves at an update."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineDecay:
    r"""The share of the entries that move, which falls like a cosine:

    .. math:: f(t) = \frac{α}{2} \left(1 + \cos\frac{π t}{T}\right)

    and 0 from step T = ``end`` on.

    Parameters
    ----------
    end : int
    initial : float, default 0.3
        α.

    Raises
    ------
    ValueError
        Unless ``end`` is at least 1 and ``initial`` is in [0, 1].

    References
    ----------
    U. Evci, T. Gale, J. Menick, P. S. Castro and E. Elsen, "Rigging the lottery: making all tickets
    winners", ICML 2020.
    """

    end: int
    initial: float = 0.3

    def __post_init__(self) -> None:
        if self.end < 1 or not 0.0 <= self.initial <= 1.0:
            raise ValueError(
                "regkern.optim.CosineDecay: expected `end` of at least 1 and `initial` in [0, 1], "
                f"got {self.end} and {self.initial}"
            )

    def __call__(self, step: int) -> float:
        if step >= self.end:
            return 0.0
        return 0.5 * self.initial * (1.0 + math.cos(math.pi * step / self.end))

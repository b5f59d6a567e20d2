"""How much of a penalty there is at a step: factors of its λ."""

from __future__ import annotations

from dataclasses import dataclass


def _check(name: str, begin: int, end: int) -> None:
    if not 0 <= begin <= end:
        raise ValueError(
            f"regkern.optim.{name}: expected 0 <= `begin` <= `end`, got {begin} and {end}"
        )


def _progress(step: int, begin: int, end: int) -> float:
    """0 up to ``begin``, 1 from ``end`` on."""
    if step >= end:
        return 1.0
    return 0.0 if step <= begin else (step - begin) / (end - begin)


@dataclass(frozen=True)
class CubicRamp:
    r"""The factor of λ that grows fast first and slowly in the end,

    .. math::
        f(t) = f_1 + (f_0 - f_1)\left(1 - \frac{t - begin}{end - begin}\right)^3

    between the steps ``begin`` and ``end``, f₀ before and f₁ after. Steps count from 1.

    Parameters
    ----------
    begin, end : int
    initial, final : float, default 0 and 1
        f₀ and f₁.

    Raises
    ------
    ValueError
        Unless 0 <= ``begin`` <= ``end``.

    References
    ----------
    Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", 2017.
    """

    begin: int
    end: int
    initial: float = 0.0
    final: float = 1.0

    def __post_init__(self) -> None:
        _check("CubicRamp", self.begin, self.end)

    def __call__(self, step: int) -> float:
        left = 1.0 - _progress(step, self.begin, self.end)
        return self.final + (self.initial - self.final) * left**3


@dataclass(frozen=True)
class WarmUp:
    r"""The factor of λ that is 0 up to step ``begin`` and grows linearly to 1 at ``end``.

    Parameters
    ----------
    end : int
        Steps count from 1.
    begin : int, default 0

    Raises
    ------
    ValueError
        Unless 0 <= ``begin`` <= ``end``.
    """

    end: int
    begin: int = 0

    def __post_init__(self) -> None:
        _check("WarmUp", self.begin, self.end)

    def __call__(self, step: int) -> float:
        return _progress(step, self.begin, self.end)

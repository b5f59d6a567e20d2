"""Penalties of single elements as objects: value, gradients and proximal operator."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern.proximal import elementwise as ops
from regkern.proximal.penalty import Penalty, ProxReport


class ElementwisePenalty(Penalty):
    r"""A penalty of single elements,

    .. math:: r(x) = \sum_i w_i\, \varphi_\lambda(|x_i|)

    by one of the laws of `prox_elementwise`.

    Parameters
    ----------
    lam : float or Tensor
        λ, at least 0; a tensor has one element.
    weights : Tensor or sequence of Tensor, optional
        w, one tensor for each of those that the penalty is of, or one for all; broadcast.
    """

    law: ops.Law
    shape: float | None = None
    low: float = -math.inf
    high: float = math.inf

    def __init__(
        self, lam: float | Tensor, weights: Tensor | Sequence[Tensor] | None = None
    ) -> None:
        super().__init__(lam)
        self.weights = weights
        self.shape = None

    def _set_shape(self, shape: float, proximal: bool = True) -> None:
        self.shape = ops.check_law(type(self).__name__, self.law, shape, proximal)

    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """r(x), 0-d, differentiable twice in x and ``lam``; for several tensors the sum over them.

        What the constraints of a penalty exclude costs nothing here, but for `Box` and
        `NonNegative`, which are nothing else.
        """
        return ops.penalty_elementwise(
            x, self.law, self.lam, shape=self.shape, weights=self.weights
        )

    def value_and_gradients(self, x: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """r(x) and its gradients by the tensors, from one read. Not recorded by autograd."""
        return ops.penalty_value_and_gradients(
            x, self.law, self.lam, shape=self.shape, weights=self.weights
        )

    def add_gradients_(
        self,
        x: Tensor | Sequence[Tensor],
        grads: Tensor | Sequence[Tensor],
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """Adds ``scale`` times the gradients of r to ``grads``, in one pass; returns r(x)."""
        return ops.penalty_add_gradients_(
            x, grads, self.law, self.lam, scale=scale, shape=self.shape, weights=self.weights
        )

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The proximal operator, differentiable in x, ``step``, ``lam`` and weights."""
        weights = self.weights
        if weights is not None and not isinstance(weights, Tensor):
            if len(weights) != 1:
                raise ValueError(
                    f"regkern.{type(self).__name__}.prox: expected `weights` of one tensor for "
                    f"one, got {len(weights)}"
                )
            weights = weights[0]
        return ops.prox_elementwise(
            x, self.law, step, self.lam, shape=self.shape, weights=weights, low=self.low,
            high=self.high,
        )  # fmt: skip

    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        """The proximal operator in place, of all tensors in one call. Not recorded by autograd."""
        return ops.prox_elementwise_(
            tensors, self.law, step, self.lam, shape=self.shape, weights=self.weights,
            low=self.low, high=self.high,
        )  # fmt: skip


class L1(ElementwisePenalty):
    r""":math:`\lambda \sum w_i |x_i|`, whose operator is the soft threshold (lasso, ISTA).

    Parameters
    ----------
    lam, weights
        As in `ElementwisePenalty`.
    nonnegative : bool
        With the constraint :math:`x \ge 0`.

    Notes
    -----
    A subgradient step on this penalty does not make zeros; its proximal operator does.
    """

    law = "soft"

    def __init__(
        self,
        lam: float | Tensor,
        weights: Tensor | Sequence[Tensor] | None = None,
        nonnegative: bool = False,
    ) -> None:
        super().__init__(lam, weights)
        self.low = 0.0 if nonnegative else -math.inf


class L0(ElementwisePenalty):
    r""":math:`\lambda \sum w_i 1[x_i \ne 0]`: the hard threshold at :math:`\sqrt{2 \tau}`."""

    law = "hard"


class ElasticNet(ElementwisePenalty):
    r""":math:`\lambda \sum w_i (\rho |x_i| + \tfrac{1 - \rho}{2} x_i^2)`.

    Parameters
    ----------
    lam, weights
        As in `ElementwisePenalty`.
    l1_ratio : float
        ρ in [0, 1].
    """

    law = "elastic_net"

    def __init__(
        self,
        lam: float | Tensor,
        l1_ratio: float = 0.5,
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(lam, weights)
        self._set_shape(l1_ratio)


class SquaredL2(ElementwisePenalty):
    r""":math:`\tfrac{\lambda}{2} \sum w_i x_i^2` (ridge): implicit weight decay, x / (1 + τ)."""

    law = "squared"


class SCAD(ElementwisePenalty):
    """Smoothly clipped absolute deviation (Fan and Li, 2001).

    Parameters
    ----------
    lam, weights
        As in `ElementwisePenalty`.
    gamma : float
        Above 1 (usually above 2): beyond γ λ the penalty is constant.
    """

    law = "scad"

    def __init__(
        self,
        lam: float | Tensor,
        gamma: float = 3.7,
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(lam, weights)
        self._set_shape(gamma)


class MCP(ElementwisePenalty):
    """The minimax concave penalty (Zhang, 2010).

    Parameters
    ----------
    lam, weights
        As in `ElementwisePenalty`.
    gamma : float
        Above 0: beyond γ λ the penalty is constant.
    """

    law = "mcp"

    def __init__(
        self,
        lam: float | Tensor,
        gamma: float = 3.0,
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(lam, weights)
        self._set_shape(gamma)


class LogSum(ElementwisePenalty):
    r""":math:`\lambda \sum w_i \ln(1 + |x_i| / \varepsilon)`.

    Parameters
    ----------
    lam, weights
        As in `ElementwisePenalty`.
    eps : float
        ε above 0.
    """

    law = "log_sum"

    def __init__(
        self,
        lam: float | Tensor,
        eps: float = 0.1,
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(lam, weights)
        self._set_shape(eps)


class CappedL1(ElementwisePenalty):
    r""":math:`\lambda \sum w_i \min(|x_i|, \theta)`.

    Parameters
    ----------
    lam, weights
        As in `ElementwisePenalty`.
    theta : float
        At least 0.
    """

    law = "capped"

    def __init__(
        self,
        lam: float | Tensor,
        theta: float = 1.0,
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(lam, weights)
        self._set_shape(theta)


class LHalf(ElementwisePenalty):
    r""":math:`\lambda \sum w_i |x_i|^{1/2}`: zero up to :math:`\tfrac{3}{2} \tau^{2/3}`."""

    law = "half"


class LTwoThirds(ElementwisePenalty):
    r""":math:`\lambda \sum w_i |x_i|^{2/3}`: zero up to :math:`2 (\tfrac{2}{3} \tau)^{3/4}`."""

    law = "two_thirds"


class CEL0(ElementwisePenalty):
    r"""The continuous exact ℓ0 penalty (Soubies et al., 2015),

    .. math:: \lambda - \tfrac{a^2}{2} (|x| - \sqrt{2 \lambda} / a)^2
        \; \text{ up to } \sqrt{2 \lambda} / a, \quad \lambda \text{ beyond}

    Parameters
    ----------
    lam, weights
        As in `ElementwisePenalty`.
    a : float
        The curvature of the data term: the norm of a column. `prox_elementwise` takes one for
        every element.
    """

    law = "cel0"

    def __init__(
        self,
        lam: float | Tensor,
        a: float = 1.0,
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(lam, weights)
        self._set_shape(a)


#: The powers whose proximal operator has a closed form.
_CLOSED: dict[float, tuple[ops.Law, float]] = {
    0.5: ("half", 1.0), 2 / 3: ("two_thirds", 1.0), 1.0: ("soft", 1.0), 2.0: ("squared", 2.0),
}  # fmt: skip


class Power(ElementwisePenalty):
    r""":math:`\lambda \sum w_i |x_i|^\nu` (generalised Gaussian prior), with gradient 0 at 0.

    Parameters
    ----------
    lam, weights
        As in `ElementwisePenalty`.
    nu : float
        Above 0. The proximal operator is there for ½, ⅔, 1 and 2.

    References
    ----------
    "It takes a good model to train a good model: generalized Gaussian priors for optimized LLMs".
    """

    law = "power"

    def __init__(
        self,
        lam: float | Tensor,
        nu: float,
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(lam, weights)
        self._set_shape(nu, proximal=False)
        self.nu = float(nu)

    def _closed(self) -> ElementwisePenalty:
        for nu, (law, factor) in _CLOSED.items():
            if math.isclose(nu, self.nu, rel_tol=1e-12):
                penalty = ElementwisePenalty(self.lam * factor, self.weights)
                penalty.law = law
                return penalty
        raise ValueError(
            f"regkern.Power.prox: expected `nu` to be 1/2, 2/3, 1 or 2, got {self.nu}: other "
            "powers have no closed form"
        )

    def prox(self, x: Tensor, step: float | Tensor = 1.0) -> Tensor:
        """The proximal operator, where it has a closed form."""
        return self._closed().prox(x, step)

    def prox_(self, tensors: Tensor | Sequence[Tensor], step: float | Tensor = 1.0) -> ProxReport:
        """The proximal operator in place, where it has a closed form."""
        return self._closed().prox_(tensors, step)


class Box(ElementwisePenalty):
    r"""The constraint :math:`low \le x \le high`: 0 inside, infinite outside.

    Parameters
    ----------
    low, high : float
        An interval around 0. Its proximal operator is the clamp, whatever the step.
    """

    law = "soft"

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(0.0)
        if not low <= 0 <= high:
            raise ValueError(
                f"regkern.{type(self).__name__}: expected `low` <= 0 <= `high`, got {low} and "
                f"{high}"
            )
        self.low, self.high = float(low), float(high)

    def value(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """0, or infinity where an element is outside; NaN where one is NaN."""
        tensors = checks.tensor_list(type(self).__name__, "x", x)
        values = []
        for t in (t.detach() for t in tensors):
            outside = ((t < self.low) | (t > self.high)).any()
            nan = t.isnan().any()
            number = torch.where(outside, math.inf, torch.zeros((), device=t.device))
            values.append(torch.where(nan, math.nan, number))
        return torch.stack(values).sum()


class NonNegative(Box):
    r"""The constraint :math:`x \ge 0`: its proximal operator is the positive part."""

    def __init__(self) -> None:
        super().__init__(0.0, math.inf)


def expected_power(mean_square: float, mean_absolute: float) -> float:
    r"""ν of the generalised Gaussian whose moments these are.

    .. math:: \frac{E[w^2]}{E[|w|]^2} =
        \frac{\Gamma(1/\nu)\, \Gamma(3/\nu)}{\Gamma(2/\nu)^2}

    Parameters
    ----------
    mean_square, mean_absolute : float
        E[w²] and E[|w|], above 0.

    Returns
    -------
    float
        ν in [0.1, 20], the nearer end where there is none.

    Raises
    ------
    ValueError
        Where the moments are not positive numbers.
    """
    op = "expected_power"
    checks.at_least(op, "mean_square", mean_square, 5e-324)
    checks.at_least(op, "mean_absolute", mean_absolute, 5e-324)
    ratio = math.log(mean_square) - 2 * math.log(mean_absolute)

    def excess(nu: float) -> float:  # falls as ν grows
        at = math.lgamma(1 / nu) + math.lgamma(3 / nu) - 2 * math.lgamma(2 / nu)
        return at - ratio

    low, high = 0.1, 20.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return 0.5 * (low + high)

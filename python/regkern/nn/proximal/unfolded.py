"""Unfolded proximal gradient: the iterations of ISTA and IHT as layers with learned numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.proximal.elementwise import prox_elementwise


class UnfoldedISTA(nn.Module):
    r"""T iterations of proximal gradient descent on
    :math:`\tfrac{1}{2} \lVert A x - y \rVert^2 + r(x)`, each with numbers of its own.

    .. math::
        x_0 = 0, \qquad x_{t+1} = \operatorname{prox}_t\bigl(x_t - \gamma_t A^\top (A x_t - y)\bigr)

    ``law="soft"`` is ISTA: :math:`\operatorname{prox}_t(v) = \operatorname{sgn}(v)(|v| -
    \tau_t)_+`. ``law="hard"`` is IHT with thresholds: v where :math:`|v| > \tau_t`, else 0; the
    thresholds have gradient zero there and stay what they were. With ``k``, IHT keeps the k largest
    magnitudes of every x instead.

    Parameters
    ----------
    dictionary : Tensor
        A, (m, n). A parameter of the module where ``learn_dictionary``, else a buffer.
    n_layers : int
        T.
    lam : float
        The thresholds begin as :math:`\tau_t = \gamma_t\, lam` for ISTA and as
        :math:`\sqrt{2 \gamma_t\, lam}` for IHT, steps as :math:`\gamma_t = 1 / \lVert A
        \rVert_2^2`: T iterations of the algorithm as it is, until something is learned.
    law : {"soft", "hard"}
        See above.
    k : int, optional
        Of IHT.
    learn_steps, learn_thresholds, learn_dictionary : bool
        What is learned. Steps and thresholds are learned by their logarithms, and stay positive.

    Shape
    -----
    (..., m) to (..., n).

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Gregor and LeCun, "Learning fast approximations of sparse coding", ICML 2010. "Comparison
    between supervised and unsupervised learning in deep unfolded sparse signal recovery", 2024.
    """

    dictionary: Tensor
    log_steps: Tensor
    log_thresholds: Tensor

    def __init__(
        self,
        dictionary: Tensor,
        n_layers: int,
        lam: float = 0.1,
        *,
        law: str = "soft",
        k: int | None = None,
        learn_steps: bool = True,
        learn_thresholds: bool = True,
        learn_dictionary: bool = False,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        checks.floating(op, "dictionary", dictionary)
        if dictionary.dim() != 2 or dictionary.numel() == 0:
            raise ValueError(
                f"regkern.{op}: expected `dictionary` of two dimensions, got "
                f"{tuple(dictionary.shape)}"
            )
        checks.one_of(op, "law", law, ("soft", "hard"))
        checks.at_least(op, "n_layers", n_layers, 1)
        if not 0.0 < lam < math.inf:
            raise ValueError(f"regkern.{op}: expected `lam` above 0, got {lam}")
        if k is not None and (law != "hard" or not 0 < k <= dictionary.shape[1]):
            raise ValueError(
                f'regkern.{op}: expected `k` from 1 to {dictionary.shape[1]} with law="hard", got '
                f"{k} with law={law!r}"
            )
        self.law, self.k = law, k
        norm = float(torch.linalg.matrix_norm(dictionary.detach().double(), 2))
        if not 0.0 < norm < math.inf:
            raise ValueError(f"regkern.{op}: expected a finite `dictionary` that is not zero")
        step = norm**-2
        threshold = step * lam if law == "soft" else math.sqrt(2 * step * lam)
        start = {"log_steps": math.log(step), "log_thresholds": math.log(threshold)}
        learned = {"log_steps": learn_steps, "log_thresholds": learn_thresholds}
        for name, value in start.items():
            numbers = torch.full((n_layers,), value, dtype=torch.float32, device=dictionary.device)
            self._hold(name, numbers, learned[name] and (name == "log_steps" or k is None))
        self._hold("dictionary", dictionary.detach().clone(), learn_dictionary)

    def _hold(self, name: str, value: Tensor, learned: bool) -> None:
        if learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    @property
    def steps(self) -> Tensor:
        """γ, one for each layer."""
        return self.log_steps.exp()

    @property
    def thresholds(self) -> Tensor:
        """τ, one for each layer."""
        return self.log_thresholds.exp()

    def forward(self, y: Tensor) -> Tensor:
        a = self.dictionary
        if y.shape[-1] != a.shape[0]:
            raise ValueError(
                f"regkern.{type(self).__name__}: expected `y` of (..., {a.shape[0]}), got "
                f"{tuple(y.shape)}"
            )
        steps, thresholds = self.steps, self.thresholds
        # The first iteration, from zero, needs no product with A.
        x = self._prox(y @ a * steps[0].to(y.dtype), thresholds[0])
        for step, threshold in zip(steps[1:], thresholds[1:], strict=True):
            residual = nn.functional.linear(x, a) - y
            x = self._prox(x - step.to(y.dtype) * (residual @ a), threshold)
        return x

    def _prox(self, v: Tensor, threshold: Tensor) -> Tensor:
        if self.k is not None:
            kept = v.detach().abs().topk(self.k, dim=-1).indices
            return v * torch.zeros_like(v).scatter_(-1, kept, 1.0)
        if self.law == "soft":
            return prox_elementwise(v, "soft", 1.0, threshold)
        # The prox of lam · 1[x ≠ 0] jumps at √(2 lam).
        return prox_elementwise(v, "hard", 1.0, threshold.detach().square() / 2)

    def extra_repr(self) -> str:
        m, n = self.dictionary.shape
        rest = "" if self.k is None else f", k={self.k}"
        return f"m={m}, n={n}, n_layers={len(self.log_steps)}, law={self.law!r}{rest}"

"""Shrinkage as layers, with thresholds that can be learned (unfolded ISTA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.proximal.elementwise import Law, check_law, prox_elementwise


class Shrink(nn.Module):
    r"""The proximal operator of a penalty of single elements as an activation.

    .. math:: y_i = \operatorname{sgn}(x_i)\, r(|x_i|)

    as in :func:`regkern.proximal.elementwise.prox_elementwise`: with ``soft`` the layer of
    learned ISTA, in the place of :class:`torch.nn.Softshrink`.

    Parameters
    ----------
    law : str
        A law of `prox_elementwise`.
    threshold : float
        The step, at least 0.
    lam : float
        The factor of the penalty, at least 0.
    shape : float, optional
        Of the laws that have one.
    learned : bool
        Whether the threshold is a parameter; it is clamped to be at least 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    """

    threshold: Tensor

    def __init__(
        self,
        law: Law = "soft",
        threshold: float = 0.5,
        lam: float = 1.0,
        shape: float | None = None,
        learned: bool = False,
    ) -> None:
        super().__init__()
        check_law("nn.Shrink", law, shape, proximal=True)
        checks.scale("nn.Shrink", "threshold", threshold)
        checks.scale("nn.Shrink", "lam", lam)
        self.law: Law = law
        self.lam, self.shape, self.learned = lam, shape, learned
        value = torch.full((), float(threshold))
        if learned:
            self.threshold = nn.Parameter(value)
        else:
            self.register_buffer("threshold", value)

    def forward(self, x: Tensor) -> Tensor:
        step = self.threshold.clamp_min(0.0) if self.learned else self.threshold
        return prox_elementwise(x, self.law, step, self.lam, shape=self.shape)

    def extra_repr(self) -> str:
        shape = "" if self.shape is None else f", shape={self.shape}"
        return f"{self.law!r}, lam={self.lam}{shape}, learned={self.learned}"

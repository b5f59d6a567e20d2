"""Linear layers on dropped features, and data hidden behind generated ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.masks.events import observed_dropout
from regkern.masks.heads import compact_dropout_linear, multi_sample_dropout_linear


class MultiSampleDropoutLinear(nn.Linear):
    r"""A linear head on several independent dropouts of its input.

    .. math:: y_m = W \Bigl(x \odot \frac{M_m}{1 - p}\Bigr) + b, \qquad m = 1, …, M

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As of `torch.nn.Linear`, with whose state dict.
    p : float or Tensor
        Probability of a zero.
    samples : int
        M; the result is (M, \*, out), in eval mode with equal y.
    generator : torch.Generator, optional
        Of x's device; default: torch's own.

    Notes
    -----
    Bytes moved: those of :func:`regkern.masks.heads.multi_sample_dropout_linear`.

    References
    ----------
    Inoue, "Multi-sample dropout for accelerated training and better generalization", 2019.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        p: float | Tensor = 0.5,
        samples: int = 8,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        checks.probability("MultiSampleDropoutLinear", "p", p)
        checks.at_least("MultiSampleDropoutLinear", "samples", samples, 1)
        self.p = p
        self.samples = samples
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return multi_sample_dropout_linear(
            x,
            self.weight,
            self.bias,
            self.p,
            self.samples,
            self.training,
            generator=self.generator if self.training else None,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={float(self.p):g}, samples={self.samples}"


class CompactDropoutLinear(nn.Linear):
    r"""A linear layer on the few features that a very large dropout leaves, one set a batch.

    .. math:: y = \frac{D}{n} W_{:, K} \, x_K + b, \qquad |K| = n = \max(1, (1 - p) D)

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As of `torch.nn.Linear`, with whose state dict.
    p : float
        Share of the features that are dropped.
    generator : torch.Generator, optional
        Of x's device; default: torch's own.

    Notes
    -----
    Bytes moved: those of :func:`regkern.masks.heads.compact_dropout_linear`.

    References
    ----------
    Zhang and Bottou, "Fine-tuning with very large dropout", 2024 (masks of elements).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        p: float = 0.9,
        *,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_features, out_features, **options)
        checks.probability("CompactDropoutLinear", "p", p)
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        return compact_dropout_linear(
            x,
            self.weight,
            self.bias,
            self.p,
            self.training,
            generator=self.generator if self.training and self.p > 0 else None,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p:g}"


class ObservedDropout(nn.Module):
    r"""Hides observed data behind generated ones while training (ObsDropout).

    .. math::
        y = \begin{cases} x_{obs} & \text{if } d \\ x_{gen} & \text{else} \end{cases}, \qquad
        d \sim \mathrm{Bernoulli}(1 - p) \wedge observed

    Parameters
    ----------
    p : float or Tensor
        Probability that an observed element is hidden.
    generator : torch.Generator, optional
        Of the data's device; default: torch's own.

    Notes
    -----
    Bytes moved: those of :func:`regkern.masks.events.observed_dropout`.

    References
    ----------
    Kim, Kim, Yun, Lee, Lee and Lee, "Probabilistic imputation for time-series classification with
    missing data", ICML 2023.
    """

    def __init__(
        self, p: float | Tensor = 0.5, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        checks.probability("ObservedDropout", "p", p)
        self.p = p
        self.generator = generator

    def forward(self, x_obs: Tensor, x_gen: Tensor, observed: Tensor) -> Tensor:
        y: Tensor = observed_dropout(
            x_obs,
            x_gen,
            observed,
            self.p,
            self.training,
            generator=self.generator if self.training else None,
        )
        return y

    def extra_repr(self) -> str:
        return f"p={float(self.p):g}"

"""Nested dropout as a layer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.masks.prefixes import Law, nested_dropout, prefix_weights


class NestedDropout(nn.Module):
    r"""Keeps a prefix of the features, of random length.

    .. math:: y_d = x_d \cdot 1[d \le k], \qquad k \sim P(k)

    Parameters
    ----------
    size : int
        Features.
    law, sigma, mu, rate
        P, as of :func:`regkern.masks.prefixes.prefix_weights`.
    dim : int
        The dimension of the features.
    per : {"batch", "sample"}
        What has a length of its own.
    k : int, optional
        The length in eval mode; may be set at any time, to score every one of them. Default: all
        features.
    generator : torch.Generator, optional
        Of x's device; default: torch's own.

    Notes
    -----
    P is a buffer that is not saved. Bytes moved: x read and y written.

    References
    ----------
    Rippel, Gelbart and Adams, "Learning ordered representations with nested dropout", ICML 2014;
    Chen, Shen, Hu and Suykens, "Boosting co-teaching with compression regularization for label
    noise", CVPR workshops 2021.
    """

    weights: Tensor

    def __init__(
        self,
        size: int,
        law: Law = "half_gaussian",
        *,
        sigma: float | None = None,
        mu: float = 0.0,
        rate: float | None = None,
        dim: int = 1,
        per: Literal["batch", "sample"] = "batch",
        k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        checks.one_of("NestedDropout", "per", per, ("batch", "sample"))
        weights = prefix_weights(size, law, sigma=sigma, mu=mu, rate=rate)
        self.register_buffer("weights", weights, persistent=False)
        self.law = law
        self.dim = dim
        self.per = per
        self.k = k
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            options: dict[str, Any] = {"per": self.per, "generator": self.generator}
            y: Tensor = nested_dropout(x, self.weights, dim=self.dim, **options)
            return y
        if self.k is None:
            return x
        kept: Tensor = nested_dropout(x, k=self.k, dim=self.dim)
        return kept

    def extra_repr(self) -> str:
        return f"{self.weights.numel()}, law={self.law!r}, dim={self.dim}, per={self.per!r}"

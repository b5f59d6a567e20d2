"""A linear layer with a low-rank branch, of which dropout takes columns and rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.masks.low_rank import lora_dropout


class LoRADropoutLinear(nn.Module):
    r"""A frozen linear layer and a low-rank branch with LoRA dropout.

    .. math::
        y = W x + b + \frac{\alpha}{r} \, m_B \odot \bigl(B (A (m_A \odot x))\bigr)

    Parameters
    ----------
    base : Linear
        W and b, which require no gradients from now on.
    rank : int
        r.
    alpha : float, optional
        Default: r.
    p : float or Tensor
        Probability that a column of A, or a row of B, is dropped.
    samples : int
        With how many masks the branch is averaged while training.
    ensemble : int
        The same in eval mode; 0: no masks.
    generator : torch.Generator, optional
        Of x's device; default: torch's own.

    Notes
    -----
    A is as `torch.nn.Linear` begins and B zero, so the layer begins as ``base``. ``merged()`` is
    the linear layer without masks.

    References
    ----------
    Lin, Ma, Chu, Jin, Yang, Wang and Mei, "LoRA dropout as a sparsity regularizer for overfitting
    control", 2024; Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float | None = None,
        p: float | Tensor = 0.5,
        *,
        samples: int = 1,
        ensemble: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        op = "LoRADropoutLinear"
        if not isinstance(base, nn.Linear):
            raise TypeError(f"regkern.{op}: expected `base` to be a Linear, got {type(base)}")
        checks.at_least(op, "rank", rank, 1)
        checks.at_least(op, "samples", samples, 1)
        checks.at_least(op, "ensemble", ensemble, 0)
        checks.probability(op, "p", p)
        self.base = base.requires_grad_(False)
        self.p = p
        self.scale = (rank if alpha is None else alpha) / rank
        self.samples, self.ensemble = samples, ensemble
        self.generator = generator
        self.a = nn.Parameter(base.weight.new_empty((rank, base.in_features)))
        self.b = nn.Parameter(base.weight.new_zeros((base.out_features, rank)))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        count = self.samples if self.training else self.ensemble
        branch = lora_dropout(
            x,
            self.a,
            self.b,
            self.p,
            count > 0,
            scale=self.scale,
            samples=max(count, 1),
            generator=self.generator if count > 0 else None,
        )
        y: Tensor = self.base(x)
        return y + branch

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A linear layer whose weight is W + α/r · B A."""
        base = self.base
        options = {"device": base.weight.device, "dtype": base.weight.dtype}
        layer = nn.Linear(base.in_features, base.out_features, base.bias is not None, **options)
        layer.weight.copy_(base.weight + self.scale * (self.b @ self.a))
        if base.bias is not None:
            layer.bias.copy_(base.bias)
        return layer

    def extra_repr(self) -> str:
        one = not isinstance(self.p, Tensor) or self.p.numel() == 1
        p = f"{float(self.p):g}" if one else "..."
        return f"rank={self.a.shape[0]}, p={p}, samples={self.samples}, ensemble={self.ensemble}"

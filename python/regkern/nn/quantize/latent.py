"""Latent quantization as a layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from regkern.quantize.latent import LatentQuantized, latent_quantize


class LatentQuantizer(nn.Module):
    r"""Quantizes every dimension of a latent to the nearest scalar of its own codebook.

    .. math:: \hat z_d = v_{d, j}, \quad j = \arg\min_j |z_d - v_{dj}|

    Parameters
    ----------
    num_dims : int
        D, the size of axis ``dim``.
    num_levels : int
        n scalars per dimension, from ``linspace(-1/2, 1/2, n)``.
    dim : int
        The axis of D.
    learnable : bool
        Whether the codebook is a parameter or a buffer.
    reduction : {"mean", "sum"}
        Of the losses.
    device, dtype
        Of the codebook.

    Notes
    -----
    ``forward(z)`` is `latent_quantize`: add ``quantization_loss`` and ``commitment_loss``,
    weighted, to the objective. The paper regularizes the model with strong weight decay besides.

    References
    ----------
    Hsu et al., "Disentanglement via latent quantization", NeurIPS 2023.
    """

    codebook: Tensor

    def __init__(
        self,
        num_dims: int,
        num_levels: int,
        *,
        dim: int = -1,
        learnable: bool = True,
        reduction: Literal["mean", "sum"] = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_dims < 1 or num_levels < 1:
            raise ValueError(
                "regkern.LatentQuantizer: expected `num_dims` and `num_levels` to be at least 1, "
                f"got {num_dims} and {num_levels}"
            )
        levels = torch.linspace(-0.5, 0.5, num_levels, device=device, dtype=dtype)
        codebook = levels.repeat(num_dims, 1)
        if learnable:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        self.dim = dim
        self.reduction: Literal["mean", "sum"] = reduction

    def forward(self, z: Tensor) -> LatentQuantized:
        return latent_quantize(z, self.codebook, self.dim, reduction=self.reduction)

    def decode(self, indices: Tensor) -> Tensor:
        """The scalars of ``indices``, with gradients to the codebook."""
        last = indices.movedim(self.dim, -1).long()
        rows = torch.arange(self.codebook.shape[0], device=last.device)
        return self.codebook[rows, last].movedim(-1, self.dim)

    def extra_repr(self) -> str:
        dims, levels = self.codebook.shape
        learnable = isinstance(self.codebook, nn.Parameter)
        return f"{dims}, {levels}, dim={self.dim}, learnable={learnable}"

"""Layers that no two inputs leave further apart than they came."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.spectral.lipschitz import (
    aol_rescale,
    distance_attention,
    distance_attention_bound,
    sll_scale,
)

Activation = Callable[[Tensor], Tensor]


class AOLLinear(nn.Linear):
    r"""A linear layer of Lipschitz constant at most 1: :math:`y = W D x + b` with almost-orthogonal
    rescaling D.

    Parameters are those of `torch.nn.Linear`; the weight starts orthogonal, where D is the
    identity. See :func:`~regkern.spectral.lipschitz.aol_rescale`.

    Shape
    -----
    (..., in_features) to (..., out_features).

    References
    ----------
    Prach and Lampert, "Almost-orthogonal layers for efficient general-purpose Lipschitz networks",
    ECCV 2022.
    """

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.orthogonal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, aol_rescale(self.weight), self.bias)

    def lipschitz_bound(self) -> float:
        return 1.0


class AOLConv2d(nn.Conv2d):
    r"""A convolution of Lipschitz constant at most 1, by almost-orthogonal rescaling.

    Parameters are those of `torch.nn.Conv2d`, with groups 1 and zero padding.

    Shape
    -----
    As `torch.nn.Conv2d`.

    Raises
    ------
    ValueError
        For groups and for borders other than zeros.

    References
    ----------
    Prach and Lampert, "Almost-orthogonal layers for efficient general-purpose Lipschitz networks",
    ECCV 2022.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros"] = "zeros",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if groups != 1:
            raise ValueError(f"regkern.AOLConv2d: expected `groups` of 1, got {groups}")
        if padding_mode != "zeros":
            raise ValueError(
                f"regkern.AOLConv2d: expected `padding_mode` 'zeros', got {padding_mode!r}"
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            centre = torch.zeros_like(self.weight)
            middle = [k // 2 for k in self.kernel_size]
            orthogonal = torch.empty(self.weight.shape[:2], device=self.weight.device)
            nn.init.orthogonal_(orthogonal)
            centre[:, :, middle[0], middle[1]] = orthogonal.to(centre.dtype)
            # Near a convolution that keeps all norms, and off the kinks of what is summed.
            self.weight.mul_(0.1).add_(centre)

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(input, aol_rescale(self.weight), self.bias)
        return y

    def lipschitz_bound(self) -> float:
        return 1.0


class SLLLinear(nn.Module):
    r"""A residual layer of Lipschitz constant at most 1.

    .. math:: y = x - 2 W T^{-1} \phi(W^\top x + b), \qquad T_{ii} = \sum_j |W^\top W|_{ij}
        \frac{q_j}{q_i}

    Parameters
    ----------
    features : int
        Of inputs and outputs.
    hidden : int, optional
        Columns of W; as many as features if not given.
    activation : callable
        φ, with slopes in [0, 1]: ReLU, tanh, sigmoid.
    device, dtype
        Of the parameters.

    Shape
    -----
    (..., features) to the same.

    Notes
    -----
    q is learned by its logarithm.

    References
    ----------
    Araujo, Havens, Delattre, Allauzen and Hu, "A unified algebraic perspective on Lipschitz neural
    networks", ICLR 2023.
    """

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        activation: Activation = torch.relu,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("SLLLinear", "features", features, 1)
        hidden = features if hidden is None else hidden
        checks.at_least("SLLLinear", "hidden", hidden, 1)
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(features, hidden, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(hidden, device=device, dtype=dtype))
        self.log_q = nn.Parameter(torch.zeros(hidden, device=device, dtype=dtype))
        nn.init.xavier_normal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        inverse = _sll(self.weight, self.log_q)
        inside = self.activation(nn.functional.linear(input, self.weight.mT, self.bias))
        return input - 2 * nn.functional.linear(inverse * inside, self.weight)

    def lipschitz_bound(self) -> float:
        return 1.0

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, hidden={self.weight.shape[1]}"


class SLLConv2d(nn.Module):
    r"""The residual layer of :class:`SLLLinear` with a convolution for :math:`W^\top` and its
    transpose for W.

    Parameters
    ----------
    channels : int
        Of inputs and outputs.
    kernel_size : int
        Odd.
    hidden : int, optional
        Hidden channels; as many as channels if not given.
    activation : callable
        φ, with slopes in [0, 1].
    device, dtype
        Of the parameters.

    Shape
    -----
    (batch, channels, height, width) to the same.

    References
    ----------
    As :class:`SLLLinear`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        hidden: int | None = None,
        activation: Activation = torch.relu,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("SLLConv2d", "channels", channels, 1)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f"regkern.SLLConv2d: expected `kernel_size` to be odd, got {kernel_size}"
            )
        hidden = channels if hidden is None else hidden
        checks.at_least("SLLConv2d", "hidden", hidden, 1)
        self.activation = activation
        shape = (hidden, channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(hidden, device=device, dtype=dtype))
        self.log_q = nn.Parameter(torch.zeros(hidden, device=device, dtype=dtype))
        nn.init.xavier_normal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        padding = self.weight.shape[-1] // 2
        inverse = _sll(self.weight, self.log_q)[:, None, None]
        inside = nn.functional.conv2d(input, self.weight, self.bias, padding=padding)
        inside = inverse * self.activation(inside)
        return input - 2 * nn.functional.conv_transpose2d(inside, self.weight, padding=padding)

    def lipschitz_bound(self) -> float:
        return 1.0

    def extra_repr(self) -> str:
        hidden, channels, size, _ = self.weight.shape
        return f"{channels}, kernel_size={size}, hidden={hidden}"


def _sll(weight: Tensor, log_q: Tensor) -> Tensor:
    """T⁻¹ in the type of the weight."""
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    inverse = sll_scale(weight, log_q.to(wide).exp())
    return inverse.to(weight.dtype)


class DistanceAttention(nn.Module):
    r"""Self-attention by distances, of a known Lipschitz constant.

    One head; see :func:`~regkern.spectral.lipschitz.distance_attention`.

    Parameters
    ----------
    features : int
        Of inputs and outputs.
    radius : float
        Tokens are projected onto the ball of this radius; :math:`\sqrt{features}` if not given.
    alpha : float
        How sharp attention may be.
    device, dtype
        Of the parameters.

    Shape
    -----
    (..., tokens, features) to the same.
    """

    def __init__(
        self,
        features: int,
        radius: float | None = None,
        alpha: float = 1.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("DistanceAttention", "features", features, 1)
        self.radius = math.sqrt(features) if radius is None else radius
        self.alpha = alpha
        shape = (features, features)
        self.wq = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.wk = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.wv = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        for weight in (self.wq, self.wk, self.wv):
            nn.init.xavier_uniform_(weight)

    def forward(self, input: Tensor) -> Tensor:
        return distance_attention(
            input, self.wq, self.wk, self.wv, radius=self.radius, alpha=self.alpha
        )

    def bound(self, tokens: int) -> Tensor:
        """The Lipschitz constant for so many tokens."""
        return distance_attention_bound(tokens, self.wq, self.wk, self.wv, alpha=self.alpha)

    def extra_repr(self) -> str:
        return f"{self.wq.shape[0]}, radius={self.radius:.4g}, alpha={self.alpha}"

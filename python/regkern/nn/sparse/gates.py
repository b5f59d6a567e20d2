"""Layers with gates: masks that are tuned, channels that are left out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.sparse.gates import binary_gate, mask_tuned_linear, mass_gate_loss


class MaskTunedLinear(nn.Module):
    r"""A frozen linear layer whose mask is trained: :func:`regkern.sparse.mask_tuned_linear`.

    .. math:: y = x (W \odot 1[s > \tau])^T + b

    Parameters
    ----------
    linear : torch.nn.Linear
        The layer. Its weight and bias are taken over, without gradients.
    threshold : float
        τ.
    initial : float
        What the scores start from, above τ for a layer that starts as it is.

    Attributes
    ----------
    scores : Parameter
        s, like the weight.
    """

    def __init__(self, linear: nn.Linear, threshold: float = 5e-3, initial: float = 1e-2) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"regkern.MaskTunedLinear: expected `linear` to be a torch.nn.Linear, got "
                f"{type(linear)}"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.threshold = threshold
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.bias: nn.Parameter | None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        else:
            self.register_parameter("bias", None)
        self.scores = nn.Parameter(torch.full_like(self.weight, initial))
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        return mask_tuned_linear(x, self.weight, self.scores, self.threshold, self.bias)

    def density(self) -> Tensor:
        """The share of the weight that is used, 0-d."""
        return (self.scores.detach() > self.threshold).float().mean()

    def to_linear(self) -> nn.Linear:
        """The dense layer with the masked weight."""
        made = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        with torch.no_grad():
            kept = torch.where(self.scores > self.threshold, self.weight, 0.0)
            made.weight = nn.Parameter(kept)
            if self.bias is not None:
                made.bias = nn.Parameter(self.bias.clone())
        return made.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, threshold={self.threshold}"
        )


class ChannelGate(nn.Module):
    r"""Gates for the channels of a layer's output, predicted from its input (Fire Together Wire
    Together).

    .. math::
        z = A \operatorname{mean}_s x_s + a, \qquad b = 1[\sigma(z) > \tfrac12], \qquad
        \tilde y_c = b_c\, y_c

    The predictor learns which channels have a share of the mass of y, sample by sample:
    :func:`regkern.sparse.mass_gate_loss`.

    Parameters
    ----------
    in_channels, out_channels : int
        Of x and y.
    mass : float
        The share r in [0, 1].
    decoupled : bool
        x is detached: the gates' loss trains the predictor alone, and y has no gradient by it.
        Otherwise gradients pass the gates straight through to the predictor, and on to x.

    Attributes
    ----------
    predictor : torch.nn.Linear
        A and a, which starts with every gate open.

    Notes
    -----
    A closed channel is computed and multiplied by zero: what is saved by leaving it out is for the
    inference code that reads :meth:`gates`.

    References
    ----------
    S. Elkerdawy, M. Elhoushi, H. Zhang and N. Ray, "Fire together wire together: a dynamic pruning
    approach with self-supervised mask prediction", CVPR 2022.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mass: float = 0.9,
        decoupled: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.probability("ChannelGate", "mass", mass)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.mass, self.decoupled = mass, decoupled
        self.predictor = nn.Linear(in_channels, out_channels, device=device, dtype=dtype)
        with torch.no_grad():
            self.predictor.bias.fill_(1.0)

    def logits(self, x: Tensor) -> Tensor:
        """z (B, out_channels) of x (B, in_channels, ...)."""
        if x.dim() < 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"regkern.ChannelGate: expected `x` of {self.in_channels} channels, got "
                f"{tuple(x.shape)}"
            )
        x = x.detach() if self.decoupled else x
        pooled = x.flatten(2).mean(2) if x.dim() > 2 else x
        z: Tensor = self.predictor(pooled)
        return z

    def gates(self, x: Tensor) -> Tensor:
        """b (B, out_channels): which channels of y are needed, before y is computed."""
        return binary_gate(self.logits(x))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """b ⊙ y of the layer's output y (B, out_channels, ...), and the predictor's loss, 0-d (0
        in evaluation)."""
        z = self.logits(x)
        if y.dim() < 2 or tuple(y.shape[:2]) != tuple(z.shape):
            raise ValueError(
                f"regkern.ChannelGate: expected `y` of shape {tuple(z.shape)} and more dimensions, "
                f"got {tuple(y.shape)}"
            )
        gates = binary_gate(z.detach() if self.decoupled else z).to(y.dtype)
        gated = y * gates.reshape(*gates.shape, *(1,) * (y.dim() - 2))
        loss = mass_gate_loss(z, y, self.mass) if self.training else z.new_zeros(())
        return gated, loss

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, mass={self.mass}, decoupled={self.decoupled}"
        )

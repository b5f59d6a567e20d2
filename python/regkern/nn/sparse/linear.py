"""Layers whose weight is sparse, trained at the cost of its entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.nn.sparse.base import SparseLayer, entries_of
from regkern.sparse.pattern import SparsePattern
from regkern.sparse.products import ACTIVATIONS, sparse_linear


class SparseLinear(SparseLayer):
    r"""A linear layer with a sparse weight: :func:`regkern.sparse.sparse_linear` as a module.

    .. math:: y = \sigma(x W^T + b)

    Parameters
    ----------
    in_features, out_features : int
        C and R.
    density : float
        The share of the entries of W there are, at random places; not used with ``pattern``.
    pattern : SparsePattern, optional
        Where the entries are, of shape (R, C).
    bias : bool
        Whether there is a b.
    activation : str
        :math:`\sigma`: ``"none"``, ``"relu"``, ``"gelu"``, ``"gelu_tanh"`` or ``"silu"``.
    feature_major : bool
        x is (C, ...) and y (R, ...): layers that follow one another need no transposition.
    generator : torch.Generator, optional
        Of the random places.

    Attributes
    ----------
    values : Parameter
        The entries (nnz,), a parameter for any optimizer, drawn from
        :math:`U(-k_r^{-1/2}, k_r^{-1/2})` with :math:`k_r` entries in the row.
    pattern : SparsePattern
        Where they are. It is saved with the state, and loading one of another pattern takes that.

    Notes
    -----
    16 bytes an entry with the pattern, and none for what is no entry: gradients and the state of
    the optimizer are of the size of ``values`` too.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        density: float = 0.1,
        pattern: SparsePattern | None = None,
        bias: bool = True,
        activation: str = "none",
        feature_major: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.one_of("SparseLinear", "activation", activation, ACTIVATIONS)
        shape = (out_features, in_features)
        super().__init__(shape, density, pattern, bias, generator, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.feature_major = activation, feature_major

    def forward(self, x: Tensor) -> Tensor:
        return sparse_linear(
            x, self.values, self._pattern, self.bias, self.activation, self.feature_major
        )

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, density: float | None = None, pattern: SparsePattern | None = None
    ) -> SparseLinear:
        """The entries of a dense layer: those of a pattern, the largest ones, or without either
        all that are not 0."""
        made = cls(
            linear.in_features,
            linear.out_features,
            pattern=entries_of("SparseLinear", linear.weight, density, pattern),
            bias=linear.bias is not None,
            dtype=linear.weight.dtype,
        )
        made._take(linear.weight, linear.bias)
        made.train(linear.training)
        return made

    def to_linear(self) -> nn.Linear:
        """The dense layer with the same weight. An activation is not part of it."""
        made = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.values.device,
            dtype=self.values.dtype,
        )
        self._give(made.weight, made.bias)
        return made

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"{self._describe_weight()}, activation={self.activation!r}"
        )

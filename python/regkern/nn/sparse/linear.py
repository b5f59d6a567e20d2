"""Layers whose weight is sparse, trained at the cost of its entries."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.proximal.thresholds import top_k_mask
from regkern.sparse.pattern import SparsePattern
from regkern.sparse.products import sparse_linear

_BUFFERS = ("offsets", "index", "t_offsets", "t_index", "t_order")
# What of a pattern is saved: the rest follows from it.
_SAVED = ("offsets", "index")


class SparseLinear(nn.Module):
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
        :math:`\sigma`: ``"none"`` or ``"relu"``.
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
        super().__init__()
        op = "SparseLinear"
        checks.one_of(op, "activation", activation, ("none", "relu"))
        if pattern is None:
            checks.probability(op, "density", density)
            scores = torch.rand(out_features, in_features, generator=generator)
            pattern = SparsePattern.from_mask(_largest(scores, density))
        if pattern.shape != (out_features, in_features):
            raise ValueError(
                f"regkern.{op}: expected `pattern` of shape {(out_features, in_features)}, got "
                f"{pattern.shape}"
            )
        if device is not None:
            pattern = pattern.to(device)
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.feature_major = activation, feature_major
        self._set(pattern)
        like = {"device": pattern.device, "dtype": dtype}
        self.values = nn.Parameter(torch.empty(pattern.nnz, **like))  # type: ignore[arg-type]
        self.bias: nn.Parameter | None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, **like))  # type: ignore[arg-type]
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @property
    def pattern(self) -> SparsePattern:
        """Where the entries of the weight are."""
        return self._pattern

    def reset_parameters(self) -> None:
        """Draws values and bias."""
        counts = self.pattern.offsets.diff().clamp(min=1).to(self.values.dtype)
        bound = counts.rsqrt()[self.pattern.rows()]
        with torch.no_grad():
            self.values.uniform_(-1, 1).mul_(bound)
            if self.bias is not None:
                # As wide as the row of an average number of entries.
                share = max(1.0, self.pattern.nnz / max(1, self.out_features))
                self.bias.uniform_(-1 / math.sqrt(share), 1 / math.sqrt(share))

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
        weight = linear.weight.detach()
        if pattern is None:
            if density is None:
                pattern = SparsePattern.from_mask(weight != 0)
            else:
                checks.probability("SparseLinear", "density", density)
                pattern = SparsePattern.from_mask(_largest(weight.abs(), density))
        made = cls(
            linear.in_features,
            linear.out_features,
            pattern=pattern,
            bias=linear.bias is not None,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            made.values.copy_(pattern.gather(weight))
            if made.bias is not None:
                made.bias.copy_(linear.bias)
        made.values.requires_grad_(linear.weight.requires_grad)
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
        with torch.no_grad():
            made.weight.copy_(self.pattern.scatter(self.values))
            if self.bias is not None:
                made.bias.copy_(self.bias)
        return made

    def _set(self, pattern: SparsePattern) -> None:
        self._pattern = pattern
        for name, t in zip(_BUFFERS, pattern.tensors(), strict=True):
            self.register_buffer(name, t, persistent=name in _SAVED)

    def _apply(self, fn: Any, recurse: bool = True) -> SparseLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = SparsePattern.__new__(SparsePattern)
        moved.shape = self._pattern.shape
        for name in _BUFFERS:
            setattr(moved, name, getattr(self, name))
        self._pattern = moved
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        names = [prefix + name for name in _SAVED]
        if all(name in state_dict for name in names):
            offsets, index = (state_dict[name].to(self.values.device) for name in names)
            own = self._pattern
            same = index.shape == own.index.shape and torch.equal(index, own.index)
            if not (same and torch.equal(offsets, own.offsets)):
                self._set(SparsePattern(offsets, index, self.in_features))
                # The same parameter, which an optimizer may hold.
                self.values.data = self.values.data.new_empty(self._pattern.nnz)
                self.values.grad = None
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"nnz={self.pattern.nnz}, density={self.pattern.density:.4f}, "
            f"bias={self.bias is not None}, activation={self.activation!r}"
        )


def _largest(scores: Tensor, density: float) -> Tensor:
    """Where the share of the largest scores is, exactly as many as it says."""
    k = round(density * scores.numel())
    return top_k_mask(scores, k)[0] if k > 0 else torch.zeros_like(scores, dtype=torch.bool)

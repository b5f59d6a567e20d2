"""What layers with a sparse weight share: entries, their pattern, states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.proximal.thresholds import top_k_mask
from regkern.sparse.pattern import SparsePattern, check_pattern

_BUFFERS = ("offsets", "index", "t_offsets", "t_index", "t_order")
# What of a pattern is saved: the rest follows from it.
_SAVED = ("offsets", "index")


class SparseLayer(nn.Module):
    r"""A layer with a sparse weight, whose entries are a parameter of one dimension.

    The weight of the dense layer is seen as a matrix: its first dimension by all others.

    Parameters
    ----------
    weight_shape : sequence of int
        The shape of the dense layer's weight.
    density : float
        The share of its entries there are, at random places; not used with ``pattern``.
    pattern : SparsePattern, optional
        Where the entries are, of the shape of the matrix.
    bias : bool
        Whether there is a bias, one number a row.
    generator : torch.Generator, optional
        Of the random places.

    Attributes
    ----------
    values : Parameter
        The entries (nnz,), a parameter for any optimizer, drawn from
        :math:`U(-k_r^{-1/2}, k_r^{-1/2})` with :math:`k_r` entries in the row.
    pattern : SparsePattern
        Where they are. It is saved with the state, and loading one of another pattern takes that.
    weight_shape : tuple of int
        As above.
    """

    def __init__(
        self,
        weight_shape: Sequence[int],
        density: float,
        pattern: SparsePattern | None,
        bias: bool,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight_shape = tuple(weight_shape)
        if pattern is None:
            checks.probability(self._op, "density", density)
            scores = torch.rand(self._matrix_shape, generator=generator)
            pattern = SparsePattern.from_mask(largest(scores, density))
        self._check_pattern(pattern)
        if device is not None:
            pattern = pattern.to(device)
        self._set(pattern)
        like = {"device": pattern.device, "dtype": dtype}
        self.values = nn.Parameter(torch.empty(pattern.nnz, **like))  # type: ignore[arg-type]
        self.bias: nn.Parameter | None
        if bias:
            self.bias = nn.Parameter(torch.empty(pattern.shape[0], **like))  # type: ignore[arg-type]
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @property
    def _op(self) -> str:
        return type(self).__name__

    @property
    def _matrix_shape(self) -> tuple[int, int]:
        return self.weight_shape[0], math.prod(self.weight_shape[1:])

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
                share = max(1.0, self.pattern.nnz / max(1, self.pattern.shape[0]))
                self.bias.uniform_(-1 / math.sqrt(share), 1 / math.sqrt(share))

    def set_pattern(self, pattern: SparsePattern, values: Tensor) -> None:
        """Other entries at other places, in the same Parameter, which an optimizer may hold.

        Its gradient is cleared. What an optimizer keeps for the entries stays with the caller.

        Parameters
        ----------
        pattern : SparsePattern
            Of the shape of the old one.
        values : Tensor
            (nnz,). They are copied, in the dtype and on the device of the old ones.

        Raises
        ------
        TypeError, ValueError
            For another shape, or values that are not as many as the entries.
        """
        self._check_pattern(pattern)
        checks.floating(self._op, "values", values)
        if tuple(values.shape) != (pattern.nnz,):
            raise ValueError(
                f"regkern.{self._op}: expected `values` of shape ({pattern.nnz},), got "
                f"{tuple(values.shape)}"
            )
        self._set(pattern.to(self.values.device))
        self._replace_values(values.detach().to(self.values.data, copy=True))

    def dense_weight(self) -> Tensor:
        """The weight of the dense layer, zeros where there are no entries. Differentiable."""
        return self.pattern.scatter(self.values).reshape(self.weight_shape)

    def _take(self, weight: Tensor, bias: Tensor | None) -> None:
        """The entries of a dense layer's parameters."""
        with torch.no_grad():
            self.values.copy_(self.pattern.gather(weight.detach().reshape(self._matrix_shape)))
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias)
        self.values.requires_grad_(weight.requires_grad)

    def _give(self, weight: Tensor, bias: Tensor | None) -> None:
        """A dense layer's parameters from the entries."""
        with torch.no_grad():
            weight.copy_(self.dense_weight())
            if self.bias is not None and bias is not None:
                bias.copy_(self.bias)

    def _check_pattern(self, pattern: object) -> None:
        check_pattern(self._op, pattern)
        assert isinstance(pattern, SparsePattern)
        if pattern.shape != self._matrix_shape:
            raise ValueError(
                f"regkern.{self._op}: expected `pattern` of shape {self._matrix_shape}, got "
                f"{pattern.shape}"
            )

    def _set(self, pattern: SparsePattern) -> None:
        self._pattern = pattern
        for name, t in zip(_BUFFERS, pattern.tensors(), strict=True):
            self.register_buffer(name, t, persistent=name in _SAVED)

    def _replace_values(self, values: Tensor) -> None:
        if values.shape != self.values.shape:
            # A graph that is still alive, as that of the last loss, keeps the parameter's
            # accumulator of gradients with the old number of entries. Data of another dtype makes
            # torch drop it; with as many entries it stays, and so do the hooks on it by which
            # DistributedDataParallel sees gradients.
            other = torch.float32 if values.dtype == torch.float64 else torch.float64
            self.values.data = values.new_empty(0, dtype=other)
        self.values.data = values
        self.values.grad = None

    def _apply(self, fn: Any, recurse: bool = True) -> SparseLayer:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        tensors = (getattr(self, name) for name in _BUFFERS)
        self._pattern = SparsePattern._known(self._pattern.shape, *tensors)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        names = [prefix + name for name in _SAVED]
        if all(name in state_dict for name in names):
            offsets, index = (state_dict[name].to(self.values.device) for name in names)
            own = self._pattern
            same = index.shape == own.index.shape and torch.equal(index, own.index)
            # Another number of rows is torch's to report, as sizes that do not match.
            if offsets.shape == own.offsets.shape and not (
                same and torch.equal(offsets, own.offsets)
            ):
                self._set(SparsePattern(offsets, index, own.shape[1]))
                self._replace_values(self.values.data.new_empty(self._pattern.nnz))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _describe_weight(self) -> str:
        return (
            f"nnz={self.pattern.nnz}, density={self.pattern.density:.4f}, "
            f"bias={self.bias is not None}"
        )


def entries_of(
    op: str, weight: Tensor, density: float | None, pattern: SparsePattern | None
) -> SparsePattern:
    """Which entries of a dense weight there are: those of a pattern, the largest ones, or without
    either all that are not 0."""
    if pattern is not None:
        return pattern
    matrix = weight.detach().reshape(weight.shape[0], -1)
    if density is None:
        return SparsePattern.from_mask(matrix != 0)
    checks.probability(op, "density", density)
    return SparsePattern.from_mask(largest(matrix.abs(), density))


def largest(scores: Tensor, density: float) -> Tensor:
    """Where the share of the largest scores is, exactly as many as it says."""
    k = round(density * scores.numel())
    return top_k_mask(scores, k)[0] if k > 0 else torch.zeros_like(scores, dtype=torch.bool)

"""Dense layers of which some entries of the weight are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regkern import _checks as checks
from regkern.nn.sparse.base import SparseLayer, entries_of
from regkern.sparse.masked import masked_linear, write_entries_
from regkern.sparse.pattern import SparsePattern, check_pattern
from regkern.sparse.updates import entry_map

_FORMS = ("entries", "delta")


class MaskedLayer(SparseLayer):
    """A dense layer with a weight that holds entries which are trained: all but its forward.

    A subclass has the class of the dense layer and its arguments, as attributes of their names.
    """

    _dense: Any  # torch's layer
    _arguments: tuple[str, ...]

    base: Tensor | None

    def __init__(
        self,
        name: str,
        layer: Any,
        pattern: SparsePattern,
        form: str,
        dtype: torch.dtype | None,
    ) -> None:
        checks.one_of(self._op, "form", form, _FORMS)
        if not isinstance(layer, self._dense):
            raise TypeError(
                f"regkern.{self._op}: expected `{name}` to be a torch.nn.{self._dense.__name__}, "
                f"got {type(layer)}"
            )
        check_pattern(self._op, pattern)
        assert isinstance(pattern, SparsePattern)
        weight = _row_major(layer.weight.detach())
        dtype = weight.dtype if dtype is None else dtype
        if dtype != weight.dtype and (dtype != torch.float32 or weight.dtype == torch.float64):
            raise TypeError(
                f"regkern.{self._op}: expected `dtype` {weight.dtype}, or float32 of a half, got "
                f"{dtype}"
            )
        super().__init__(tuple(weight.shape), 0.0, pattern, False, None, weight.device, dtype)
        self.form = form
        for argument in self._arguments:
            setattr(self, argument, getattr(layer, argument))
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("base", None)
        self._followed = False
        entries = self._entries().to(dtype)
        with torch.no_grad():
            if form == "delta":
                self.base = entries
                self.values.zero_()
            else:
                self.values.copy_(entries)
        # The parameter and its version that the weight has.
        self._written: tuple[Tensor, int] | None = (self.values, self.values._version)
        self.train(layer.training)

    @classmethod
    def _pattern_of(
        cls, layer: Any, density: float | None, pattern: SparsePattern | None
    ) -> SparsePattern:
        if pattern is None and density is None:
            raise ValueError(
                f"regkern.{cls.__name__}: expected `density` or `pattern`, got neither of them"
            )
        return entries_of(cls.__name__, layer.weight, density, pattern)

    def reset_parameters(self) -> None:
        """Nothing: the layer that was given has its parameters."""

    def _ready(self) -> None:
        """Before a forward: the weight has the entries as they are."""
        if not torch.compiler.is_compiling():
            if not self._is_written():
                self.merge()
        elif not self._followed:
            write_entries_(self.weight, self.values, self._pattern, self.base)

    def merge(self) -> None:
        """Writes the entries into the weight, whether or not they have changed."""
        write_entries_(self.weight, self.values, self._pattern, self.base)
        self._written = (self.values, self.values._version)

    def follow(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Merges after every step of an optimizer, so that a compiled ``forward`` need not.

        Returns
        -------
        RemovableHandle
            Whose ``remove()`` ends that; a compiled ``forward`` writes the entries no more even so.
        """
        self.merge()
        self._followed = True
        return optimizer.register_step_post_hook(lambda *_: self.merge())

    def dense_weight(self) -> Tensor:
        """The weight with its entries. Not differentiable."""
        if not self._is_written():
            self.merge()
        return self.weight.detach()

    def _to_dense(self) -> Any:
        options = {name: getattr(self, name) for name in self._arguments}
        made = self._dense(**options, bias=self.bias is not None, device="meta")
        made.weight = nn.Parameter(self.dense_weight())
        made.register_parameter("bias", self.bias)
        return made.train(self.training)

    def _removed(self) -> Any:
        if self.base is None:
            raise ValueError(
                f"regkern.{self._op}: expected form 'delta' to remove entries, got {self.form!r}"
            )
        with torch.no_grad():
            self.values.zero_()
        self._take_out(self.base)
        return self._to_dense()

    def select(self, pattern: SparsePattern) -> Tensor:
        """Trains other entries from now on (progressive selection), in the same Parameter.

        Entries that stay keep their values. Those that go keep theirs in the dense weight, or with
        ``form="delta"`` are what they were before; those that come start from the dense weight.

        Returns
        -------
        Tensor
            Which old entry each is, or -1, int64 (nnz,): what an optimizer keeps for the old ones
            is to follow it.
        """
        self._check_pattern(pattern)
        pattern = pattern.to(self.values.device)
        places = entry_map(self._pattern, pattern)
        start = pattern.gather(self.dense_weight().reshape(self._matrix_shape))
        start = start.to(self.values.dtype)
        if self.base is not None:
            start = torch.zeros_like(start)
        kept = torch.nonzero(places >= 0).squeeze(1)
        start[kept] = self.values.detach()[places[kept]]
        self.set_pattern(pattern, start)
        return places

    def set_pattern(self, pattern: SparsePattern, values: Tensor) -> None:
        """Other entries with these values; of the old ones becomes what :meth:`select` says."""
        self._check_pattern(pattern)
        if self.base is not None:
            self._take_out(self.base)
        else:
            self.merge()
        super().set_pattern(pattern, values)
        if self.base is not None:
            self.base = self._entries().to(self.values.dtype)
        self._written = None

    def _take_out(self, base: Tensor) -> None:
        # Not base + 0, of which -0 would come out as 0.
        write_entries_(self.weight, base, self._pattern)
        self._written = (self.values, self.values._version)

    def _entries(self) -> Tensor:
        """Of the weight, as it is."""
        return self._pattern.gather(self.weight.detach().reshape(self._matrix_shape))

    def _is_written(self) -> bool:
        written = self._written
        return (
            written is not None and written[0] is self.values and written[1] == self.values._version
        )

    def _apply(self, fn: Any, recurse: bool = True) -> MaskedLayer:
        super()._apply(fn, recurse)
        self.weight.data = _row_major(self.weight.data)
        self._written = None
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        given = state_dict.get(prefix + "base")
        if self.base is not None and given is not None and given.shape != self.base.shape:
            self.base = self.base.new_empty(given.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._written = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy has parameters of its own.
        return {**self.__dict__, "_written": None}

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._arguments)
        return f"{options}, {self._describe_weight()}, form={self.form!r}"


def _row_major(weight: Tensor) -> Tensor:
    """Entries are written into what is a matrix, so that channels are not last in a weight."""
    return weight.contiguous() if weight.dim() > 2 else weight


class MaskedLinear(MaskedLayer):
    r"""A dense linear layer of which the entries of a pattern are trained (SaRA, SHiRA, LT-SFT).

    .. math:: y = x W^T + b, \qquad W_e = v_e \ \text{or}\ w_e + v_e \ \text{at the entries } e

    The dense weight holds the entries at all times, so that forward is the dense layer's. See
    :func:`regkern.sparse.masked_linear` for the gradients.

    Parameters
    ----------
    linear : torch.nn.Linear
        The layer. Its weight is taken over, not copied: entries are written into it. Its bias
        remains what it is, trained or not.
    pattern : SparsePattern
        Which entries are trained, of the shape of the weight.
    form : str
        ``"entries"``: the parameter is the entries themselves (SaRA, LT-SFT). ``"delta"``: it is
        what is added to them, and starts at zero (SHiRA, RoSA), so that weight decay pulls towards
        the weight that was given, and :meth:`remove` brings that back bit for bit.
    dtype : torch.dtype, optional
        Of the parameter: that of the weight (the default), or float32 where that is a half.

    Attributes
    ----------
    values : Parameter
        v (nnz,), a parameter of one dimension for any optimizer.
    weight : Parameter
        W with the entries, which requires no gradient.
    base : Tensor or None
        w, the entries as they were, with ``form="delta"``.
    pattern : SparsePattern
        It is saved with the state, and loading one of another pattern takes that.

    Notes
    -----
    Writing the entries costs as many operations as there are. It happens in ``forward`` where
    ``values`` have changed since, which their version tells (what is done to ``values.data`` it
    does not: call :meth:`merge` then). ``torch.compile`` cannot look at versions, so a compiled
    ``forward`` writes each time, unless the layer follows its optimizer: :meth:`follow`.

    Besides the dense weight 16 bytes an entry with the pattern, 4 more of a base; gradients and the
    state of an optimizer are of the size of ``values``. A weight into which entries are written is
    another one: where a backward still needs the old one torch refuses it.
    """

    _dense = nn.Linear
    _arguments = ("in_features", "out_features")
    in_features: int
    out_features: int

    def __init__(
        self,
        linear: nn.Linear,
        pattern: SparsePattern,
        form: str = "entries",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__("linear", linear, pattern, form, dtype)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        density: float | None = None,
        pattern: SparsePattern | None = None,
        form: str = "entries",
    ) -> MaskedLinear:
        """Trains the entries of a pattern, or the share of the largest magnitude (Super-Tuning), a
        pattern that can be made again from the weight as it was."""
        return cls(linear, cls._pattern_of(linear, density, pattern), form)

    def forward(self, x: Tensor) -> Tensor:
        self._ready()
        return masked_linear(x, self.weight, self.values, self._pattern, self.bias)

    def to_linear(self) -> nn.Linear:
        """The dense layer with its weight, which is not copied."""
        made: nn.Linear = self._to_dense()
        return made

    def remove(self) -> nn.Linear:
        """The dense layer as it was, bit for bit. With ``form="delta"``; this layer is at its
        beginning again, with values of 0."""
        made: nn.Linear = self._removed()
        return made

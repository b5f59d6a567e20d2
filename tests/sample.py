"""What the samples of the registry are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SEED = (0x243F6A8885A308D3, 0x13198A2E03707344)


def seed() -> Tensor:
    return torch.tensor(SEED, dtype=torch.int64)


def normal(shape: tuple[int, ...], dtype: torch.dtype, salt: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + salt)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=generator)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


@dataclass(frozen=True)
class Sample:
    """`ours(*tensors, **options)` and its definition, on tensors of the given shapes.

    The first tensor is the one whose layout, emptiness and NaN the contract varies; all of them
    have gradients where `differentiable`. `inplace` is the in-place twin of `ours`.
    """

    op: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    options: dict[str, Any] = field(default_factory=dict)
    ours: Callable[..., Any] = field(default=None)  # type: ignore[assignment]
    definition: Callable[..., Any] = field(default=None)  # type: ignore[assignment]
    inplace: Callable[..., Any] | None = None
    dtypes: tuple[torch.dtype, ...] = FLOATS
    differentiable: bool = True
    # Without a batch dimension in front: an empty batch makes no sense.
    batched: bool = True
    # The gradient is straight-through: not the derivative of what is computed, so compared with the
    # definition's gradient alone and not with finite differences.
    straight_through: bool = False
    # The definition computes in the dtype that the kernels compute in, and is given the tensors as
    # they are: a step function of a quotient has other values in float64.
    own_precision: bool = False

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def tensors(self, dtype: torch.dtype = torch.float64, batch: int | None = None) -> list[Tensor]:
        shapes = [s if batch is None else (batch, *s[1:]) for s in self.shapes]
        return [normal(shape, dtype, i) for i, shape in enumerate(shapes)]

    def widened(self, t: Tensor) -> Tensor:
        """What the definition is given for t."""
        return t if self.own_precision or t.dtype == torch.uint8 else t.double()

    def call(self, *tensors: Tensor) -> Any:
        return self.ours(*tensors, **self.options)

    def reference(self, *tensors: Tensor) -> Any:
        return self.definition(*tensors, **self.options)


# With an empty tensor, and with more elements than a block of any kernel.
LIST_SHAPES: tuple[tuple[int, ...], ...] = ((5, 3, 2), (7,), (2, 0), (3, 700))


@dataclass(frozen=True)
class ListSample:
    """`change(xs, *others)` writes the tensors of the list xs in one call, and `definition(xs,
    *others)` returns what they are then.

    `others` are `lists` - 1 more lists of the same shapes, gradients say, which are read.
    """

    op: str
    name: str
    change: Callable[..., Any]
    definition: Callable[..., list[Tensor]]
    shapes: tuple[tuple[int, ...], ...] = LIST_SHAPES
    lists: int = 1
    dtypes: tuple[torch.dtype, ...] = FLOATS
    # Whether a call may have several dtypes; whether the tensors know nothing of each other.
    mixed: bool = True
    separate: bool = True
    compiles: bool = True

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
        return [
            [normal(shape, dtype, 10 * k + i) for i, shape in enumerate(self.shapes)]
            for k in range(self.lists)
        ]

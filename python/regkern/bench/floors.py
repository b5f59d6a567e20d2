"""The floor of a case: the plainest pass over the same bytes, measured in the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from regkern.bench.case import Inputs, Run

#: Where the floor's own tensor lies among the inputs, so that rotating buffers rotate it too.
KEY = "floor"


@dataclass(frozen=True)
class Floor:
    """``prepare`` makes the floor's tensor once; ``run`` is what is timed."""

    prepare: Callable[[torch.Tensor], torch.Tensor]
    run: Run


def _copy(inputs: Inputs) -> None:
    inputs[KEY].copy_(inputs["x"].detach())


def _mul(inputs: Inputs) -> None:
    inputs[KEY].mul_(1)


def _read(inputs: Inputs) -> None:
    inputs["x"].detach().sum()


# The first two read and write every byte of a tensor like `x` once; `mul_` pulls in one stream, not
# two. The last one reads alone.
FLOORS = {
    "copy": Floor(lambda x: torch.zeros_like(x), _copy),
    "mul_": Floor(lambda x: x.detach().clone(), _mul),
    "read": Floor(lambda x: torch.zeros(()), _read),
}


def floor_bytes(x: torch.Tensor, kind: str = "copy") -> int:
    """Bytes read plus bytes written by a floor."""
    return (1 if kind == "read" else 2) * x.numel() * x.element_size()

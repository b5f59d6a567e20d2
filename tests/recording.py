"""Records the raw ops that a call makes, runs a record again elsewhere, and compares.

As a program it replays: another instruction set (REGKERN_CPU_CAPABILITY), the emulator, or the
emulator under sanitizers are other processes.

    python recording.py RECORD OUTPUT [EMULATOR_LIBRARY]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def _copy(value: Any, device: str = "cpu") -> Any:
    """A tensor of the same values and strides that shares nothing."""
    if not isinstance(value, Tensor):
        return value
    detached = value.detach()
    out = torch.empty_strided(
        detached.shape, detached.stride(), dtype=detached.dtype, device=device
    )
    return out.copy_(detached)


class Recorder(TorchDispatchMode):
    """Collects calls of `torch.ops.regkern.*` with copies of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "regkern":
            self.calls.append(
                (func._schema.name.split("::")[1], tree_map(_copy, args), tree_map(_copy, kwargs))
            )
        return func(*args, **kwargs)


def replay(calls: list[Call], namespace: str, device: str = "cpu") -> list[Any]:
    """Outputs and mutated arguments of every call."""
    outputs = []
    for name, args, kwargs in calls:
        op = getattr(getattr(torch.ops, namespace), name).default
        args, kwargs = tree_map(lambda value: _copy(value, device), (args, kwargs))
        result = op(*args, **kwargs)
        mutated = [
            (kwargs[a.name] if a.name in kwargs else args[i])
            for i, a in enumerate(op._schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        ]
        outputs.append((result, mutated))
    return outputs


def equal(a: Any, b: Any) -> bool:
    """Bitwise, in structure, dtype and value (NaN equals NaN)."""
    flat_a, spec_a = tree_flatten(a)
    flat_b, spec_b = tree_flatten(b)
    if spec_a != spec_b:
        return False
    for x, y in zip(flat_a, flat_b, strict=True):
        if not isinstance(x, Tensor):
            if x != y:
                return False
        elif x.shape != y.shape or x.dtype != y.dtype or x.stride() != y.stride():
            return False
        elif x.is_floating_point():
            # The payload of a NaN is the processor's business.
            same = (_bits(x) == _bits(y)) | (x.isnan() & y.isnan())
            if not bool(same.all()):
                return False
        elif not torch.equal(x, y):
            return False
    return True


def _bits(x: Tensor) -> Tensor:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.detach().contiguous().view(kind)


def differences(calls: list[Call], expected: list[Any], actual: list[Any]) -> list[str]:
    """The calls whose outputs differ."""
    return [
        f"{call[0]}{tuple(a if not isinstance(a, Tensor) else tuple(a.shape) for a in call[1])}"
        for call, x, y in zip(calls, expected, actual, strict=True)
        if not equal(x, y)
    ]


def main(record: str, output: str, library: str | None = None) -> None:
    if library is None:
        import regkern

        namespace = "regkern"
        print(regkern.build_info()["cpu_capability"])
    else:
        torch.ops.load_library(library)
        namespace = "regkern_emulator"
    calls = torch.load(Path(record), weights_only=False)
    torch.save(replay(calls, namespace), Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])

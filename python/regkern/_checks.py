"""Argument checks of the public functions: op, argument, expectation and the value received."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"regkern.{op}: expected `{name}` to be a tensor, got {type(value)}")


def floating(op: str, name: str, value: object) -> None:
    tensor(op, name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in FLOATING:
        raise TypeError(
            f"regkern.{op}: expected `{name}` of dtype float32, float64, bfloat16 or float16, "
            f"got {value.dtype}"
        )


def number(op: str, name: str, value: object) -> None:
    """A number of Python, not one in a tensor."""
    if isinstance(value, bool) or not isinstance(value, int | float | torch.SymFloat):
        raise TypeError(f"regkern.{op}: expected `{name}` to be a number, got {value!r}")


def probability(op: str, name: str, value: float | Tensor) -> None:
    """A number in [0, 1]; a tensor of one element is looked at only on the CPU."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"regkern.{op}: expected `{name}` to have one element, got {tuple(value.shape)}"
            )
        return
    number(op, name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"regkern.{op}: expected `{name}` in [0, 1], got {value}")


def one_of(op: str, name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(
            f"regkern.{op}: expected `{name}` to be one of {', '.join(allowed)}, got {value!r}"
        )


def at_least(op: str, name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"regkern.{op}: expected `{name}` to be at least {least}, got {value}")


def on_device(op: str, name: str, value: object, like: Tensor) -> None:
    tensor(op, name, value)
    assert isinstance(value, Tensor)
    if value.device != like.device:
        raise ValueError(f"regkern.{op}: expected `{name}` on {like.device}, got {value.device}")


def same(op: str, name: str, value: Tensor, like: Tensor, what: str = "x") -> None:
    """Same shape, dtype and device."""
    tensor(op, name, value)
    if value.shape != like.shape or value.dtype != like.dtype or value.device != like.device:
        raise ValueError(
            f"regkern.{op}: expected `{name}` like `{what}` ({tuple(like.shape)}, {like.dtype}, "
            f"{like.device}), got {tuple(value.shape)}, {value.dtype}, {value.device}"
        )


def scale(op: str, name: str, value: object) -> None:
    """A number that is at least zero (infinity is one), or a tensor of one element."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"regkern.{op}: expected `{name}` to have one element, got {tuple(value.shape)}"
            )
        return
    number(op, name, value)
    assert isinstance(value, int | float | torch.SymFloat)
    if not value >= 0:
        raise ValueError(f"regkern.{op}: expected `{name}` to be at least 0, got {value}")


def tensor_list(
    op: str, name: str, value: object, check: Callable[[str, str, object], None] = floating
) -> list[Tensor]:
    """A tensor or several, on one device and each as ``check`` wants it, as a list of at least
    one."""
    if isinstance(value, Tensor):
        value = [value]
    if not isinstance(value, Iterable):
        raise TypeError(
            f"regkern.{op}: expected `{name}` to be a tensor or several, got {type(value)}"
        )
    tensors = list(value)
    if not tensors:
        raise ValueError(f"regkern.{op}: expected a tensor in `{name}`, got none")
    if check is floating:
        # The usual case in one pass: a network has hundreds of tensors.
        kinds = {(x.dtype, x.device) if isinstance(x, Tensor) else None for x in tensors}
        if len(kinds) == 1 and None not in kinds and tensors[0].dtype in FLOATING:
            return tensors
    for i, x in enumerate(tensors):
        check(op, f"{name}[{i}]", x)
        on_device(op, f"{name}[{i}]", x, tensors[0])
    return tensors


def by_dtype(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The indices of the tensors of each dtype: a kernel takes one dtype at a time."""
    groups: dict[torch.dtype, list[int]] = {}
    for i, x in enumerate(tensors):
        groups.setdefault(x.dtype, []).append(i)
    return list(groups.values())

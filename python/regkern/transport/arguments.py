"""Weights, numbers and masses as the functions of transport take them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import function_apply, refuse_second


class _Envelope(torch.autograd.Function):
    """The identity on what a value is differentiated by, once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, op: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.op = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return refuse_second(ctx.op, grad, (grad, *ctx.saved_tensors)), None


def once(op: str, x: Tensor) -> Tensor:
    """x, whose second derivative is refused in the name of ``op``."""
    result: Tensor = function_apply(_Envelope, x, op) if x.requires_grad else x
    return result


def is_eager() -> bool:
    """Under a trace or a transform there are no values to look at."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is None


def readable(x: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device."""
    return x.device.type == "cpu" and is_eager()


def weights_of(op: str, name: str, given: Tensor | None, size: int, like: Tensor) -> Tensor:
    """Weights (..., size) in float64; uniform where there are none."""
    if given is None:
        return torch.full((size,), 1.0 / size, dtype=torch.float64, device=like.device)
    checks.floating(op, name, given)
    checks.on_device(op, name, given, like)
    if given.dim() == 0 or given.shape[-1] != size:
        raise ValueError(
            f"regkern.{op}: expected `{name}` of shape (..., {size}), got {tuple(given.shape)}"
        )
    if readable(given) and bool((given < 0).any()):
        raise ValueError(
            f"regkern.{op}: expected `{name}` to be at least 0, got {given.detach().min().item()}"
        )
    return given.double()


def pair_of(op: str, name: str, value: Any) -> tuple[Any, Any]:
    """Of rows and of columns; neither if there is none."""
    if value is None:
        return None, None
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"regkern.{op}: expected `{name}` to be a pair, got {value!r}")
    return value[0], value[1]


def taking_part(
    op: str, mask: Tensor | None, lengths: Tensor | None, shape: tuple[int, ...], like: Tensor
) -> Tensor | None:
    """Which points of ``shape``, a batch of so many, there are; None for all of them."""
    there = None
    size = shape[-1]
    if mask is not None:
        checks.tensor(op, "mask", mask)
        checks.on_device(op, "mask", mask, like)
        if mask.dtype != torch.bool:
            raise TypeError(f"regkern.{op}: expected `mask` of bools, got {mask.dtype}")
        pairs = zip(reversed(mask.shape), reversed(shape), strict=False)
        spread = mask.dim() <= len(shape) and all(s == 1 or s == d for s, d in pairs)
        if not spread or mask.shape[-1:] != (size,):
            raise ValueError(
                f"regkern.{op}: expected `mask` of shape {shape}, got {tuple(mask.shape)}"
            )
        there = mask.expand(shape)
    if lengths is not None:
        checks.tensor(op, "lengths", lengths)
        checks.on_device(op, "lengths", lengths, like)
        if lengths.dtype == torch.bool or lengths.is_floating_point() or lengths.is_complex():
            raise TypeError(f"regkern.{op}: expected integer `lengths`, got {lengths.dtype}")
        if tuple(lengths.shape) != shape[:-1]:
            raise ValueError(
                f"regkern.{op}: expected `lengths` of shape {shape[:-1]}, "
                f"got {tuple(lengths.shape)}"
            )
        first = torch.arange(size, device=like.device) < lengths[..., None]
        there = first if there is None else there & first
    return there


def number_of(op: str, name: str, given: float | Tensor, like: Tensor) -> Tensor:
    """A positive number in float64, 0-d or of the batch's shape."""
    if isinstance(given, Tensor):
        checks.floating(op, name, given)
        checks.on_device(op, name, given, like)
        if readable(given) and not bool((given > 0).all()):
            raise ValueError(
                f"regkern.{op}: expected `{name}` to be positive, got {given.detach()}"
            )
        return given.double()
    checks.scale(op, name, given)
    if not 0.0 < given < math.inf:
        raise ValueError(f"regkern.{op}: expected `{name}` to be positive and finite, got {given}")
    return torch.full((), given, dtype=torch.float64, device=like.device)


def check_mass(op: str, a: Tensor, b: Tensor) -> None:
    if not readable(a) or not readable(b):
        return
    ours, theirs = a.detach().sum(-1), b.detach().sum(-1)
    if bool(((ours - theirs).abs() > 1e-2 * torch.maximum(ours, theirs)).any()):
        raise ValueError(
            f"regkern.{op}: expected `a` and `b` of the same total, got {ours} and {theirs}"
        )


def problem_of(
    op: str, cost: Tensor | None, x: Tensor | None, y: Tensor | None
) -> tuple[tuple[int, ...], int, int, Tensor]:
    """Of a cost (..., n, m), or points (..., n, d) and (..., m, d): the batch, n, m, and what is on
    the device and of the dtype of the problem."""
    if (cost is None) == (x is None or y is None) or (x is None) != (y is None):
        raise ValueError(f"regkern.{op}: expected `cost`, or `x` and `y`, got both or neither")

    def fail(expected: str, got: object) -> None:
        raise ValueError(f"regkern.{op}: expected {expected}, got {got}")

    if cost is not None:
        checks.floating(op, "cost", cost)
        if cost.dim() < 2 or cost.shape[-1] == 0 or cost.shape[-2] == 0:
            fail("`cost` of shape (..., n, m), neither of them 0", tuple(cost.shape))
        return tuple(cost.shape[:-2]), cost.shape[-2], cost.shape[-1], cost
    assert x is not None
    assert y is not None
    for name, t in (("x", x), ("y", y)):
        checks.floating(op, name, t)
        if t.dim() < 2 or t.shape[-2] == 0:
            fail(f"`{name}` of shape (..., points, dimensions)", tuple(t.shape))
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1] or x.dtype != y.dtype:
        fail(f"`y` of shape (..., m, d) like `x` {tuple(x.shape)}", tuple(y.shape))
    checks.on_device(op, "y", y, x)
    return tuple(x.shape[:-2]), x.shape[-2], y.shape[-2], x

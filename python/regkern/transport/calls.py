"""Ops as they are called many times a millisecond."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regkern._registration import Backward, Op, SetupContext, observed


class Quick:
    """A differentiable op with an ``autograd.Function`` of its own in eager mode.

    What `torch.library` does around an op takes longer than thousands of problems of 4 x 4. Under
    `torch.compile`, inside functorch transforms and in forward mode it is the op.
    """

    def __init__(self, op: Op, setup_context: SetupContext, backward: Backward) -> None:
        raw = op.raw

        class Eager(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                with torch._C._AutoDispatchBelowAutograd():
                    output = raw(*args)
                setup_context(ctx, args, output)
                return output

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return backward(ctx, *grads)

        Eager.__name__ = op.name
        self._op, self._raw = op, raw
        self._apply: Any = Eager.apply
        op.differentiable(setup_context, backward)

    def __call__(self, *args: Any) -> Any:
        if observed():
            return self._op(*args)
        if torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, Tensor) and arg.requires_grad:
                    return self._apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return self._raw(*args)

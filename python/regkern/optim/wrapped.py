"""Optimizers around optimizers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class WrappedOptimizer(torch.optim.Optimizer):
    """An optimizer that does something around the steps of another.

    What looks at it sees the wrapped one: parameter groups, state, defaults, so learning-rate
    schedulers and gradient scalers work on it. Hooks are this one's own.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"regkern.optim.{type(self).__name__}: expected `optimizer` to be a "
                f"torch.optim.Optimizer, got {type(optimizer)}"
            )
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        """The base class sets an empty list, and groups once they are loaded."""
        if value:
            self.optimizer.param_groups = value

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        return self.optimizer.state

    @state.setter
    def state(self, value: defaultdict[Tensor, Any]) -> None:
        if value:
            self.optimizer.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        if value:
            self.optimizer.defaults = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if any(group is param_group for group in self.optimizer.param_groups):
            return  # the base class shows those that the wrapped optimizer has
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.optimizer!r})"

"""What the optimizers share: checks, batches of parameters for one call, state dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Batch = list[Tensor]


def dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    *most, last = (str(d).removeprefix("torch.") for d in dtypes)
    return f"{', '.join(most)} or {last}"


class ListOptimizer(torch.optim.Optimizer):
    """An optimizer that updates the parameters of a device and dtype in one call."""

    #: Names of the states that have the shape of a parameter.
    _states: tuple[str, ...] = ()
    #: What parameters may be.
    _dtypes: tuple[torch.dtype, ...] = ()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _fail(self, name: str, expected: str, got: object) -> str:
        return f"regkern.optim.{self._name}: expected `{name}` {expected}, got {got}"

    def _check_at_least_zero(self, **values: Any) -> None:
        for name, value in values.items():
            # A number on a GPU is not looked at: that would wait for it.
            if isinstance(value, Tensor):
                if value.numel() != 1:
                    raise ValueError(self._fail(name, "to have one element", tuple(value.shape)))
                if not value.is_cpu:
                    continue
            if not value >= 0:
                raise ValueError(self._fail(name, "to be at least 0", value))

    def _check_betas(self, betas: tuple[float, float]) -> None:
        for i, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(self._fail(f"betas[{i}]", "in [0, 1)", beta))

    def _check_nesterov(self, group: dict[str, Any]) -> None:
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                self._fail(
                    "nesterov",
                    "with a momentum above 0 and a dampening of 0",
                    f"{group['momentum']} and {group['dampening']}",
                )
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self._check_group(group)
        for p in group["params"]:
            if p.dtype not in self._dtypes:
                raise TypeError(
                    self._fail("params", f"of dtype {dtype_names(self._dtypes)}", p.dtype)
                )

    def _check_group(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _state_dtype(self, p: Tensor, group: dict[str, Any]) -> torch.dtype:
        """What the states of a parameter are kept in."""
        return p.dtype

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this optimizer or of its namesake in ``torch.optim``.

        States go to the dtype that they are kept in and to the parameter's device; the base class
        would round them to the parameter's dtype.
        """
        super().load_state_dict(state_dict)
        saved = (i for group in state_dict["param_groups"] for i in group["params"])
        for group in self.param_groups:
            for p in group["params"]:
                source = state_dict["state"].get(next(saved), {})
                state = self.state[p] if source else {}
                for name in self._states:
                    if isinstance(source.get(name), Tensor):
                        dtype = self._state_dtype(p, group)
                        state[name] = source[name].detach().to(p.device, dtype, copy=True)
                        state[name] = state[name].contiguous()
                if "step" in source:
                    step = torch.as_tensor(source["step"], dtype=torch.float32)
                    state["step"] = step.detach().to(p.device, copy=True)

    def _batches(
        self, group: dict[str, Any], key_of: Callable[[Tensor], tuple[Any, ...]]
    ) -> Iterable[tuple[tuple[Any, ...], Batch]]:
        """The parameters that have gradients, by device, dtypes and what ``key_of`` adds."""
        batches: dict[tuple[Any, ...], Batch] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise ValueError(self._fail("grad", "to be dense", p.grad.layout))
            key = (p.device, p.dtype, p.grad.dtype, *key_of(p))
            batches.setdefault(key, []).append(p)
        return batches.items()

    def _new_state(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        # Row-major whatever the parameter's strides: the kernel walks it as it is.
        return torch.zeros_like(
            p, dtype=self._state_dtype(p, group), memory_format=torch.contiguous_format
        )

    def _adamw_states(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = self._new_state(p, group)
            state["exp_avg_sq"] = self._new_state(p, group)
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = self._new_state(p, group)
        return state

    def _momentum_is_fresh(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Whether this is the first step of the momentum, which it makes room for then."""
        state = self.state[p]
        if state.get("momentum_buffer") is not None:
            return False
        state["momentum_buffer"] = self._new_state(p, group)
        return True

    def _before_updates(self) -> None:
        """What a step begins with."""

    def _update(self, group: dict[str, Any]) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure``, if given, is called first and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._before_updates()
        for group in self.param_groups:
            self._update(group)
        return loss


def rate(lr: float | Tensor, device: torch.device) -> tuple[float, Tensor | None]:
    """A learning rate as a number, or on the device, so that nothing waits for it."""
    if not isinstance(lr, Tensor):
        return float(lr), None
    if lr.is_cpu and device.type != "cpu":
        return float(lr), None
    return 0.0, lr.detach().to(device, torch.float64)

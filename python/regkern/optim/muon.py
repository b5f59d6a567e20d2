"""Muon: momentum, orthogonalized."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from regkern.spectral.polar import STEEP, Quintic, orthogonalize


class Muon(torch.optim.Optimizer):
    r"""Muon, batched by shape.

    .. math::
        B ← μ B + (1 - μ) G, \qquad O ← \operatorname{orthogonalize}((1 - μ) G + μ B), \qquad
        W ← (1 - lr\, λ)\, W - lr\, r\, O

    for matrices W (without Nesterov's momentum: of B), with a factor r for the shape. Called as
    :class:`torch.optim.Muon` is, with the same defaults and state; state dicts of one load into the
    other.

    Parameters
    ----------
    params : iterable of Tensor or of dict
        Matrices alone; embeddings, biases and gains are for another optimizer.
    lr : float or Tensor, default 1e-3
        A tensor stays where it is: nothing waits for it.
    weight_decay : float, default 0.1
        λ.
    momentum : float, default 0.95
        μ in [0, 1].
    nesterov : bool, default True
        Whether the gradient looks ahead.
    ns_coefficients : (float, float, float)
        Of every Newton-Schulz step.
    eps : float, default 1e-7
        Kept for the state dict's sake: a zero gradient moves nothing without it.
    ns_steps : int, default 5
        Newton-Schulz steps.
    adjust_lr_fn : {"original", "match_rms_adamw", None}
        r: √max(1, rows/columns), which is the default, or 0.2 √max(rows, columns).
    method : {"newton_schulz", "polar_express"}
        As in :func:`regkern.spectral.orthogonalize`; the second does not look at
        ``ns_coefficients``.
    dtype : torch.dtype, optional
        What is orthogonalized in. Default: bfloat16, as torch has it; on the CPU float32, since one
        without bfloat16 products takes a hundred times as long for them.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above, or a parameter is no matrix.

    Notes
    -----
    Matrices of one shape, or of one and its transpose, go through one batch of products. torch
    orthogonalizes in bfloat16 everywhere, and rounds the norm of the gradient to that: steps differ
    by a few percent of the learning rate.

    References
    ----------
    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; Liu et al.,
    "Muon is scalable for LLM training", 2025.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: Quintic = STEEP,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        *,
        method: Literal["newton_schulz", "polar_express"] = "newton_schulz",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_coefficients": ns_coefficients,
                "eps": eps,
                "ns_steps": ns_steps,
                "adjust_lr_fn": adjust_lr_fn,
                "method": method,
                "dtype": dtype,
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._check(self.param_groups[-1])

    def _check(self, group: dict[str, Any]) -> None:
        def fail(name: str, expected: str, got: object) -> str:
            return f"regkern.optim.Muon: expected `{name}` {expected}, got {got}"

        lr = group["lr"]
        if isinstance(lr, Tensor):
            if lr.numel() != 1:
                raise ValueError(fail("lr", "to have one element", tuple(lr.shape)))
        elif not lr >= 0:
            raise ValueError(fail("lr", "to be at least 0", lr))
        if not 0 <= group["momentum"] <= 1:
            raise ValueError(fail("momentum", "in [0, 1]", group["momentum"]))
        if not group["weight_decay"] >= 0:
            raise ValueError(fail("weight_decay", "to be at least 0", group["weight_decay"]))
        if group["adjust_lr_fn"] not in (None, "original", "match_rms_adamw"):
            raise ValueError(
                fail("adjust_lr_fn", "to be original or match_rms_adamw", group["adjust_lr_fn"])
            )
        if group["method"] not in ("newton_schulz", "polar_express"):
            raise ValueError(
                fail("method", "to be newton_schulz or polar_express", group["method"])
            )
        if not group["ns_steps"] >= 1:
            raise ValueError(fail("ns_steps", "to be at least 1", group["ns_steps"]))
        for p in group["params"]:
            if p.dim() != 2:
                raise ValueError(fail("params", "to be matrices", tuple(p.shape)))
            if not p.is_floating_point():
                raise TypeError(fail("params", "of a floating dtype", p.dtype))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What a state dict of torch's optimizer does not have is what this one was made with."""
        super().__setstate__(state)
        for group in self.param_groups:
            for key in ("method", "dtype"):
                group.setdefault(key, self.defaults[key])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure``, if given, is called first and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads, buffers = [], []
        for p in params:
            if p.grad.layout != torch.strided:
                raise ValueError(
                    f"regkern.optim.Muon: expected `grad` to be dense, got {p.grad.layout}"
                )
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(
                    p.grad, memory_format=torch.preserve_format
                )
            grads.append(p.grad)
            buffers.append(state["momentum_buffer"])
        mu = group["momentum"]
        torch._foreach_lerp_(buffers, grads, 1 - mu)
        updates = list(torch._foreach_lerp(grads, buffers, mu)) if group["nesterov"] else buffers
        express = group["method"] == "polar_express"
        dtype = group["dtype"]
        if dtype is None and not params[0].is_cpu:
            dtype = torch.bfloat16
        elif dtype is None:
            dtype = torch.float32
        updates = orthogonalize(
            updates,
            group["ns_steps"],
            method=group["method"],
            coefficients=None if express else group["ns_coefficients"],
            dtype=dtype,
        )
        lr = group["lr"]
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for p, update in zip(params, updates, strict=True):
            rows, columns = p.shape
            if group["adjust_lr_fn"] == "match_rms_adamw":
                ratio = 0.2 * math.sqrt(max(rows, columns))
            else:
                ratio = math.sqrt(max(1.0, rows / max(columns, 1)))
            if isinstance(lr, Tensor):
                p.sub_(update * (lr * ratio).to(p.device))
            else:
                p.add_(update, alpha=-lr * ratio)

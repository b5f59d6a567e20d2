"""Logit attenuating weight normalization."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regkern.optim.wrapped import WrappedOptimizer
from regkern.proximal.group_prox import (
    group_combined,
    group_products,
    group_scale_,
    group_squares,
)
from regkern.proximal.groups import Groups


@dataclass(frozen=True)
class _Entry:
    """Where the norm of a tensor stands."""

    norms: dict[int, Tensor]
    index: int

    def keep(self, square: Tensor) -> None:
        """The norm from now on, where there is none yet."""
        if self.index not in self.norms:
            self.norms[self.index] = square.sqrt()

    @property
    def wanted(self) -> Tensor:
        return self.norms[self.index]


class LAWN(WrappedOptimizer):
    r"""Any optimizer, with the norms of the weights held from some step on.

    After ``free_steps`` steps every weight tensor W keeps the norm :math:`c` that it has then:

    .. math::
        G ← G - \frac{\langle G, W \rangle}{\lVert W \rVert^2} W, \qquad
        W ← \text{step}(W, G), \qquad W ← \frac{c}{\lVert W \rVert} W.

    Logits cannot grow any more, so the loss does not vanish and training goes on; there is no
    weight decay with it.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Steps as it would alone.
    free_steps : int
        Steps without a constraint.
    params : iterable of Tensor, optional
        Whose norms are held. Default: all parameters of at least two dimensions.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A tensor of zeros stays zero. Norms and the count of steps are in the state dict. Bytes moved
    beside the step: W and G read twice, G and W written once; all tensors of a dtype in one call.

    References
    ----------
    Ghosh, Gowrav, Natarajan and others, "Logit attenuating weight normalization", 2021.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        free_steps: int,
        params: Iterable[Tensor] | None = None,
    ) -> None:
        if isinstance(free_steps, bool) or not isinstance(free_steps, int):
            raise TypeError(
                f"regkern.optim.LAWN: expected `free_steps` to be an int, got {free_steps!r}"
            )
        if free_steps < 0:
            raise ValueError(
                f"regkern.optim.LAWN: expected `free_steps` to be at least 0, got {free_steps}"
            )
        super().__init__(optimizer)
        self.free_steps = free_steps
        self._chosen = None if params is None else {id(p) for p in params}
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if self._chosen is not None and not self._chosen <= known:
            raise ValueError("regkern.optim.LAWN: expected `params` of the optimizer, got others")

    def __getstate__(self) -> dict[str, Any]:
        held = [
            [self._chosen is None or id(p) in self._chosen for p in group["params"]]
            for group in self.param_groups
        ]
        all_of_them = self._chosen is None
        return {
            "optimizer": self.optimizer,
            "free_steps": self.free_steps,
            "held": None if all_of_them else held,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        held, optimizer = state["held"], state["optimizer"]
        params = None
        if held is not None:
            params = [
                p
                for group, chosen in zip(optimizer.param_groups, held, strict=True)
                for p, is_held in zip(group["params"], chosen, strict=True)
                if is_held
            ]
        self.__init__(optimizer, state["free_steps"], params)  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this optimizer, or one of the wrapped optimizer's kind."""
        self.optimizer.load_state_dict(state_dict)

    def _held(self) -> list[list[tuple[Tensor, _Entry]]]:
        """The tensors whose norms are held now, those of a dtype and device together.

        Norms stand in the parameter group, by the number of the tensor in it: what stands among the
        states of a tensor is cast to its dtype when it is loaded.
        """
        batches: dict[tuple[Any, ...], list[tuple[Tensor, _Entry]]] = {}
        for group in self.param_groups:
            if group.setdefault("lawn_step", 0) < self.free_steps:
                continue
            norms = group.setdefault("lawn_norms", {})
            for i, p in enumerate(group["params"]):
                chosen = p.dim() >= 2 if self._chosen is None else id(p) in self._chosen
                if not chosen or p.grad is None or p.numel() == 0:
                    continue
                if p.grad.is_sparse:
                    raise ValueError(
                        "regkern.optim.LAWN: expected dense gradients, got a sparse one"
                    )
                batches.setdefault((p.dtype, p.device), []).append((p, _Entry(norms, i)))
        return list(batches.values())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure``, if given, is called once, before the gradients are projected."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = self._held()
        for batch in held:
            params = [p for p, _ in batch]
            layout = Groups.whole().layout(params)
            squares = group_squares(params, layout)
            for (_, norm), square in zip(batch, squares.unbind(), strict=True):
                norm.keep(square)
            gradients: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
            along = group_products(gradients, params, layout)
            share = torch.where(squares > 0, -along / torch.where(squares > 0, squares, 1.0), 0.0)
            tangent = group_combined(gradients, torch.ones_like(share), params, share, layout)
            for p, g in zip(params, tangent, strict=True):
                p.grad = g
        self.optimizer.step()
        for batch in held:
            params = [p for p, _ in batch]
            layout = Groups.whole().layout(params)
            norms = group_squares(params, layout).sqrt()
            wanted = torch.stack([norm.wanted.to(norms.device) for _, norm in batch])
            factors = torch.where(norms > 0, wanted / torch.where(norms > 0, norms, 1.0), 1.0)
            group_scale_(params, factors, layout)
        for group in self.param_groups:
            group["lawn_step"] = group.setdefault("lawn_step", 0) + 1
        return loss

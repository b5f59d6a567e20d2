"""AdamW and SGD on bfloat16 weights, with stochastically rounded updates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regkern._registration import register
from regkern.optim.base import Batch, ListOptimizer, rate
from regkern.random import make_seed

_adamw_ = register("adamw_stochastic_", lambda *args, **kwargs: None)
_sgd_ = register("sgd_stochastic_", lambda *args, **kwargs: None)

WEIGHTS = (torch.bfloat16, torch.float16, torch.float32)
STATES = (torch.float32, torch.bfloat16)

#: Elements are numbered from tensor to tensor, each beginning at a multiple of this.
_ALIGN = 128


class _Draws:
    """The random numbers of one step: a seed per device, and the elements that have drawn."""

    def __init__(self, op: str, generator: torch.Generator | None) -> None:
        self._op = op
        self._generator = generator
        self._seeds: dict[torch.device, Tensor] = {}
        self._next: dict[torch.device, int] = {}

    def seed(self, device: torch.device) -> Tensor:
        if device not in self._seeds:
            generator = self._generator
            if generator is not None and generator.device.type != device.type:
                raise ValueError(
                    f"regkern.optim.{self._op}: expected `generator` on {device}, got one on "
                    f"{generator.device}"
                )
            self._seeds[device] = make_seed(device, generator)
        return self._seeds[device]

    def first(self, device: torch.device, params: Batch) -> int:
        """The number of the first element of the next call, which updates ``params``."""
        number = self._next.get(device, 0)
        self._next[device] = number + sum(-(-p.numel() // _ALIGN) * _ALIGN for p in params)
        return number


class _Stochastic(ListOptimizer):
    """Optimizers that round at random: their random numbers, and what states are kept in."""

    _dtypes = WEIGHTS

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        generator: torch.Generator | None,
    ) -> None:
        self._generator = generator
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        if group["state_dtype"] not in STATES:
            raise TypeError(
                self._fail("state_dtype", "to be float32 or bfloat16", group["state_dtype"])
            )

    def _state_dtype(self, p: Tensor, group: dict[str, Any]) -> torch.dtype:
        dtype: torch.dtype = group["state_dtype"]
        return dtype

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_generator", None)
        for group in self.param_groups:
            # A state dict of torch's own optimizer knows nothing of it.
            group.setdefault("state_dtype", self.defaults.get("state_dtype", torch.float32))

    def _before_updates(self) -> None:
        self._draws = _Draws(self._name, self._generator)


class AdamW(_Stochastic):
    r"""AdamW that keeps its weights in bfloat16 alone, without a float32 copy.

    In step t, for a parameter p with gradient g,

    .. math::
        p &← (1 - lr\,λ)\,p \\
        m &← m + (1 - β_1)(g - m) \\
        v &← β_2 v + (1 - β_2)\,g^2 \\
        p &← R\!\left(p - \frac{lr}{1 - β_1^t} \cdot
            \frac{m}{\sqrt{v} / \sqrt{1 - β_2^t} + ε}\right)

    in float32, as ``torch.optim.AdamW`` does it; then R rounds to one of the two neighbours in
    bfloat16 (or float16) at random, with the probabilities that make the mean right. An update
    below half an ulp, 2⁻⁹ of the weight, is lost by rounding to nearest, every time; here it moves
    the weight by a whole ulp once in a while, and on average by what it says. float32 parameters
    are updated without rounding.

    One call updates all parameters of a device and dtype, one launch per 64 tensors on CUDA. The
    step counts are tensors on the device, so nothing waits for the GPU and a step can be captured
    in a CUDA graph.

    Parameters
    ----------
    params : iterable
        Parameters or groups of them: bfloat16, float16 or float32. Any strides; row-major ones are
        updated in place, others through a copy.
    lr : float or Tensor, default 1e-3
        A tensor of one element is read on the device.
    betas : (float, float), default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 1e-2
        λ, decoupled.
    amsgrad, maximize : bool
        As in ``torch.optim.AdamW``.
    state_dtype : torch.dtype, default float32
        What m and v are kept in. bfloat16 halves their memory; they are then rounded stochastically
        as well, with random bits of their own. (Rounded to nearest, v would stay where it is once
        (1 − β₂) g² is below half its ulp.)
    generator : torch.Generator, optional
        Where the seed of each step is drawn from. Default: torch's generator of the device.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above; in ``step``, for sparse gradients.

    Notes
    -----
    State dicts have the keys of ``torch.optim.AdamW``'s (``step``, ``exp_avg``, ``exp_avg_sq``,
    ``max_exp_avg_sq``) and load from and into them. Gradients are of the parameter's dtype or
    float32. Bytes moved for each bfloat16 element: 22 with float32 states, 14 with bfloat16 ones,
    in one pass.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019. Zamirai, Zhang,
    Aberger and De Sa, "Revisiting bfloat16 training", 2020.
    """

    _states = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "state_dtype": state_dtype,
        }
        super().__init__(params, defaults, generator)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        self._check_at_least_zero(
            lr=group["lr"], eps=group["eps"], weight_decay=group["weight_decay"]
        )
        self._check_betas(group["betas"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("amsgrad", False)
            group.setdefault("maximize", False)

    def _update(self, group: dict[str, Any]) -> None:
        def ready(p: Tensor) -> tuple[Any, ...]:
            return (self._adamw_states(p, group)["exp_avg"].dtype,)

        beta1, beta2 = group["betas"]
        for (device, *_), params in self._batches(group, ready):
            states = [self.state[p] for p in params]
            lr, lr_tensor = rate(group["lr"], device)
            _adamw_(
                params,
                [p.grad for p in params],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else [],
                [s["step"] for s in states],
                self._draws.seed(device),
                lr,
                beta1,
                beta2,
                group["eps"],
                group["weight_decay"],
                group["maximize"],
                lr_tensor,
                self._draws.first(device, params),
            )


class SGD(_Stochastic):
    r"""SGD with momentum that keeps its weights in bfloat16 alone, without a float32 copy.

    For a parameter p with gradient g,

    .. math::
        g &← g + λ p \\
        b &← μ b + (1 - dampening)\,g \qquad (b ← g \text{ in the first step}) \\
        p &← R(p - lr\,b) \qquad (\text{Nesterov: } R(p - lr\,(g + μ b)))

    in float32, as ``torch.optim.SGD`` does it; then R rounds to one of the two neighbours in
    bfloat16 (or float16) at random, with the probabilities that make the mean right, so that
    updates below half an ulp are not lost. float32 parameters are updated without rounding.

    Parameters
    ----------
    params : iterable
        Parameters or groups of them: bfloat16, float16 or float32. Any strides; row-major ones are
        updated in place, others through a copy.
    lr : float or Tensor, default 1e-3
        A tensor of one element is read on the device.
    momentum, dampening, weight_decay : float, default 0
        μ, the dampening and λ.
    nesterov, maximize : bool
        As in ``torch.optim.SGD``.
    state_dtype : torch.dtype, default float32
        What b is kept in; bfloat16 is rounded stochastically, with random bits of its own.
    generator : torch.Generator, optional
        Where the seed of each step is drawn from. Default: torch's generator of the device.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above; in ``step``, for sparse gradients.

    Notes
    -----
    State dicts have the key of ``torch.optim.SGD``'s (``momentum_buffer``) and load from and into
    them. Bytes moved for each bfloat16 element: 14 with a float32 momentum, 10 with a bfloat16 one,
    6 without.
    """

    _states = ("momentum_buffer",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "state_dtype": state_dtype,
        }
        super().__init__(params, defaults, generator)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        self._check_at_least_zero(
            lr=group["lr"], momentum=group["momentum"], weight_decay=group["weight_decay"]
        )
        self._check_nesterov(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("nesterov", False)
            group.setdefault("maximize", False)

    def _update(self, group: dict[str, Any]) -> None:
        with_momentum = group["momentum"] != 0

        def fresh(p: Tensor) -> tuple[Any, ...]:
            if not with_momentum:
                return (False, None)
            is_fresh = self._momentum_is_fresh(p, group)
            return (is_fresh, self.state[p]["momentum_buffer"].dtype)

        for (device, _, _, is_fresh, _), params in self._batches(group, fresh):
            lr, lr_tensor = rate(group["lr"], device)
            _sgd_(
                params,
                [p.grad for p in params],
                [self.state[p]["momentum_buffer"] for p in params] if with_momentum else [],
                self._draws.seed(device),
                lr,
                group["momentum"],
                group["dampening"],
                group["weight_decay"],
                group["nesterov"],
                group["maximize"],
                is_fresh,
                lr_tensor,
                self._draws.first(device, params),
            )

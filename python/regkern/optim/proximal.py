"""SGD and AdamW with the proximal operator of a penalty in the same pass."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from regkern._registration import register
from regkern.optim.base import Batch, ListOptimizer, rate
from regkern.optim.fusion import Following, Run, following, run_of
from regkern.optim.half_space import half_space_project_
from regkern.optim.regularized import (
    COUNTERS,
    OBJECTS,
    Schedule,
    check_regularized,
    healing,
    next_step,
    without_objects,
)
from regkern.proximal.group_penalties import GroupPenalty
from regkern.proximal.penalty import Penalty, threshold

_prox_adamw_ = register("prox_adamw_", lambda *args, **kwargs: None)
_prox_sgd_ = register("prox_sgd_", lambda *args, **kwargs: None)

Form = Literal["plain", "latent"]
Metric = Literal["euclidean", "adam"]


class _Plan:
    """What a group's penalty does in one step."""

    def __init__(self, group: dict[str, Any], what: Following | None) -> None:
        self.penalty: Penalty | None = group["penalty"]
        self.held = healing(group)
        self.latent = group["form"] == "latent" and self.penalty is not None
        self.step = next_step(group, self.latent)
        self.what = what if self.step is not None else None

    def options(self, p: Tensor, runs: list[Run] | None) -> dict[str, Any]:
        """The arguments of the op that say what follows the step."""
        if self.what is None or runs is None or self.step is None or self.penalty is None:
            return {"held": self.held}
        what = self.what
        lam, soft = self.penalty.lam, what.soft
        return {
            "after": what.after,
            "law": what.law,
            "shape": what.shape,
            "bounds": what.bounds,
            "positive": what.positive,
            "held": self.held,
            "runs": [r.length for r in runs],
            "weights": [r.weight for r in runs],
            "step": threshold(p, self.step),
            "lam": threshold(p, lam),
            "soft": None if soft is None else threshold(p, self.step, soft),
        }


class _Proximal(ListOptimizer):
    """What the two optimizers share: the penalty of a group, and what is fused of it."""

    _dtypes = (torch.float32, torch.float64)

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._runs: dict[tuple[Any, ...], Run | None] = {}
        super().__init__(params, {**defaults, **COUNTERS})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_runs", {})
        for group in self.param_groups:
            # A state dict of torch's own optimizer knows nothing of them.
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    def state_dict(self) -> dict[str, Any]:
        """As of any optimizer, without penalties and schedules."""
        return without_objects(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this optimizer or of its namesake in ``torch.optim``."""
        kept = [{k: group[k] for k in OBJECTS} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, objects in zip(self.param_groups, kept, strict=True):
            group.update(objects)

    def _check_group(self, group: dict[str, Any]) -> None:
        check_regularized(self._name, group)
        if group["form"] not in ("plain", "latent"):
            raise ValueError(self._fail("form", "to be plain or latent", repr(group["form"])))
        if group["form"] == "latent" and (
            group["prox_every"] != 1 or group["heal_after"] is not None
        ):
            raise ValueError(
                self._fail(
                    "form", "to be plain with `prox_every` or `heal_after`", repr(group["form"])
                )
            )

    def _following(self, group: dict[str, Any]) -> Following | None:
        return following(group["penalty"])

    def _run(self, what: Following, p: Tensor) -> Run | None:
        key = (what.groups, what.root_weights, p.shape)
        if key not in self._runs:
            self._runs[key] = run_of(what, p)
        return self._runs[key]

    def _latent(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "latent" not in state:
            state["latent"] = p.detach().clone(memory_format=torch.contiguous_format)
        latent: Tensor = state["latent"]
        return latent

    def _call(
        self,
        group: dict[str, Any],
        params: Batch,
        stepped: Batch,
        grads: Batch,
        outs: Batch,
        device: torch.device,
        key: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        """One call of the op: ``stepped`` are the parameters, or their latent copies."""
        raise NotImplementedError

    def _key(self, p: Tensor, group: dict[str, Any]) -> tuple[Any, ...]:
        """Makes the states of a parameter, and says what of them one call has to share."""
        raise NotImplementedError

    def _update(self, group: dict[str, Any]) -> None:
        plan = _Plan(group, self._following(group))
        what = plan.what
        fused: dict[Tensor, Run] = {}

        def key_of(p: Tensor) -> tuple[Any, ...]:
            run = self._run(what, p) if what is not None else None
            if run is not None:
                fused[p] = run
            return (run is not None, *self._key(p, group))

        rest: Batch = []
        for (device, _, _, is_fused, *key), params in self._batches(group, key_of):
            stepped = [self._latent(p) for p in params] if plan.latent else params
            outs: Batch = params if plan.latent and is_fused else []
            runs = [fused[p] for p in params] if is_fused else None
            options = plan.options(params[0], runs)
            grads = [p.grad for p in params if p.grad is not None]
            self._call(group, params, stepped, grads, outs, device, tuple(key), options)
            if plan.step is not None and not is_fused:
                rest += params
                if plan.latent:
                    for p, latent in zip(params, stepped, strict=True):
                        p.copy_(latent)
        if rest and plan.step is not None and plan.penalty is not None:
            if what is not None and what.after == "metric":
                raise ValueError(
                    self._fail(
                        "metric",
                        "to be euclidean for groups that are not runs of at most 65536 neighbours",
                        "adam",
                    )
                )
            order = {p: i for i, p in enumerate(group["params"])}
            plan.penalty.prox_(sorted(rest, key=order.__getitem__), plan.step)


class ProxSGD(_Proximal):
    r"""SGD with momentum, followed by the proximal operator of a penalty.

    For a parameter p with gradient g,

    .. math::
        g &← g + μ_w p \\
        b &← μ b + (1 - dampening)\,g \qquad (b ← g \text{ in the first step}) \\
        p &← p - lr\,b \qquad (\text{Nesterov: } p - lr\,(g + μ b)) \\
        p &← \operatorname{prox}_{lr\,λ\,r}(p)

    where :math:`λ r` is the penalty and :math:`μ_w` the weight decay. Penalties of single elements,
    and of groups that are runs of neighbours in memory (output channels, blocks, heads of the first
    dimension), are applied while the step has the parameter in the cache, in one call for all
    parameters of a dtype; others follow with ``penalty.prox_``, which reads and writes the
    parameters again. The bits are the same.

    Parameters
    ----------
    params : iterable
        Parameters or groups of them, float32 or float64. All that follows may differ by group.
        Any strides; row-major ones are updated in place, others through a copy.
    lr : float or Tensor, default 1e-3
        A tensor of one element is read on the device.
    penalty : Penalty, optional
        Of the parameters of a group that have gradients; None: none.
    momentum, dampening, weight_decay : float, default 0
    nesterov, maximize : bool
        As in ``torch.optim.SGD``. The penalty is one whether the loss is minimised or maximised.
    form : {"plain", "latent"}
        ``plain``: the prox replaces the parameter (ISTA). ``latent``: the step goes on from a copy
        that was never shrunk, the state ``latent``, and the parameter is its prox with the sum of
        all learning rates so far, :math:`\operatorname{prox}_{γ λ r}`, :math:`γ = \sum_t lr_t`
        (regularized dual averaging).
    prox_every : int, default 1
        The prox follows each n-th step alone, with the sum of the n learning rates.
    schedule : function of int, optional
        A factor of λ for every step, which count from 1: :class:`CubicRamp`, :class:`WarmUp`.
    heal_after : int, optional
        After so many steps there is no prox any more, and elements that are zero stay zero.
    half_space : float, optional
        ε in [0, 1) of the half-space steps (HSPG) that replace those with a prox after
        ``half_space_after`` steps, for a penalty of groups. The gradient of the penalty, 0 for a
        group that is zero, is added to g, and then a group is zero for good that was zero, or has
        left the half-space of what it was: :math:`\langle p_g, p_g^{old} \rangle < ε \lVert
        p_g^{old} \rVert^2`. None: all steps have a prox.
    half_space_after : int, default 0
        How many steps with a prox come first.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above; in ``step``, for sparse gradients.

    Notes
    -----
    State dicts have the key of ``torch.optim.SGD``'s (``momentum_buffer``) and load from and into
    them; they do not hold penalties and schedules. Bytes moved for each float32 element: 20 with a
    momentum, 12 without; 4 more in the latent form. In a CUDA graph the counters of ``schedule``,
    ``prox_every`` and ``heal_after`` stand still, and so does the sum of the latent form. A
    half-space step copies the parameters, and reads and writes them several times.

    References
    ----------
    Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse
    problems", 2009. Xiao, "Dual averaging methods for regularized stochastic learning and online
    optimization", 2010. Chen, Ji, Ding et al., "Only train once: a one-shot neural network training
    and pruning framework", 2021.
    """

    _states = ("momentum_buffer", "latent")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        penalty: Penalty | None = None,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        form: Form = "plain",
        prox_every: int = 1,
        schedule: Schedule | None = None,
        heal_after: int | None = None,
        half_space: float | None = None,
        half_space_after: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "penalty": penalty,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "form": form,
            "prox_every": prox_every,
            "schedule": schedule,
            "heal_after": heal_after,
            "half_space": half_space,
            "half_space_after": half_space_after,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        self._check_at_least_zero(
            lr=group["lr"], momentum=group["momentum"], weight_decay=group["weight_decay"]
        )
        self._check_nesterov(group)
        if group["half_space"] is not None:
            self._check_half_space(group)

    def _check_half_space(self, group: dict[str, Any]) -> None:
        eps, after, penalty = group["half_space"], group["half_space_after"], group["penalty"]
        if isinstance(eps, bool) or not isinstance(eps, int | float):
            raise TypeError(self._fail("half_space", "to be a number", repr(eps)))
        if not 0.0 <= eps < 1.0:
            raise ValueError(self._fail("half_space", "in [0, 1)", eps))
        if isinstance(after, bool) or not isinstance(after, int):
            raise TypeError(self._fail("half_space_after", "to be an int", repr(after)))
        if after < 0:
            raise ValueError(self._fail("half_space_after", "to be at least 0", after))
        if penalty is not None and not isinstance(penalty, GroupPenalty):
            raise TypeError(
                self._fail("penalty", "to be one of groups for half-space steps", type(penalty))
            )
        if group["form"] != "plain" or group["prox_every"] != 1:
            raise ValueError(
                self._fail("form", "plain and `prox_every` 1 for half-space steps", group["form"])
            )

    def _update(self, group: dict[str, Any]) -> None:
        eps, penalty = group["half_space"], group["penalty"]
        first = group["prox_step"] < group["half_space_after"]
        if eps is None or penalty is None or first or healing(group):
            super()._update(group)
        else:
            self._half_space_update(group, penalty, eps)

    def _half_space_update(self, group: dict[str, Any], penalty: GroupPenalty, eps: float) -> None:
        next_step(group)
        schedule = group["schedule"]
        factor = 1.0 if schedule is None else schedule(group["prox_step"])
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        old = [p.detach().clone() for p in params]
        leaves = [p.requires_grad_() for p in old]
        with torch.enable_grad():
            value = penalty.value(leaves)
        slopes = dict(zip(params, torch.autograd.grad(value, leaves), strict=True))
        # The op turns the sum around where the loss is maximised.
        alpha = -factor if group["maximize"] else factor
        for (device, _, _, *key), some in self._batches(group, lambda p: self._key(p, group)):
            grads = [torch.add(p.grad, slopes[p], alpha=alpha) for p in some if p.grad is not None]
            self._call(group, some, some, grads, [], device, tuple(key), {"held": False})
        half_space_project_(params, [p.detach() for p in old], penalty.groups, eps)

    def _key(self, p: Tensor, group: dict[str, Any]) -> tuple[Any, ...]:
        return (group["momentum"] != 0 and self._momentum_is_fresh(p, group),)

    def _call(
        self,
        group: dict[str, Any],
        params: Batch,
        stepped: Batch,
        grads: Batch,
        outs: Batch,
        device: torch.device,
        key: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        (fresh,) = key
        lr, lr_tensor = rate(group["lr"], device)
        with_momentum = group["momentum"] != 0
        _prox_sgd_(
            stepped,
            grads,
            [self.state[p]["momentum_buffer"] for p in params] if with_momentum else [],
            outs,
            lr,
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            group["nesterov"],
            group["maximize"],
            fresh,
            lr_tensor,
            **options,
        )


class ProxAdamW(_Proximal):
    r"""AdamW, followed by the proximal operator of a penalty.

    In step t, for a parameter p with gradient g,

    .. math::
        p &← (1 - lr\,μ_w)\,p \\
        m &← m + (1 - β_1)(g - m), \qquad v ← β_2 v + (1 - β_2)\,g^2 \\
        p &← p - \frac{lr}{1 - β_1^t} \cdot
            \frac{m}{\sqrt{v} / \sqrt{1 - β_2^t} + ε} \\
        p &← \operatorname{prox}(p)

    where :math:`λ r` is the penalty and :math:`μ_w` the weight decay, decoupled. The prox is

    .. math::
        \arg\min_x \tfrac{1}{2} \lVert x - p \rVert^2 + lr\,λ\,r(x)
        \qquad\text{or}\qquad
        \arg\min_x \tfrac{1}{2} \sum_i d_i (x_i - p_i)^2 + λ\,r(x), \quad
        d_i = \frac{\sqrt{v_i} / \sqrt{1 - β_2^t} + ε}{lr},

    in the euclidean metric or in Adam's own, with the learning rate and the denominators of the
    step. In Adam's metric the l1 norm has the threshold :math:`λ / d_i`; a group is zero if
    :math:`\lVert D p \rVert \le λ`, and otherwise its norm is found by Newton's method.

    Penalties of single elements, and of groups that are runs of neighbours in memory (output
    channels, blocks, heads of the first dimension), are applied while the step has the parameter in
    the cache, in one call for all parameters of a dtype; others follow with ``penalty.prox_``,
    which reads and writes the parameters again. The bits are the same.

    Parameters
    ----------
    params : iterable
        Parameters or groups of them, float32 or float64. All that follows may differ by group.
        Any strides; row-major ones are updated in place, others through a copy.
    lr : float or Tensor, default 1e-3
        A tensor of one element is read on the device.
    penalty : Penalty, optional
        Of the parameters of a group that have gradients; None: none.
    betas : (float, float), default (0.9, 0.999)
    eps : float, default 1e-8
    weight_decay : float, default 1e-2
    amsgrad, maximize : bool
        As in ``torch.optim.AdamW``. With AMSGrad the metric has the largest v as well.
    metric : {"euclidean", "adam"}
        ``adam`` takes :class:`L1` and :class:`GroupL2` of runs of at most 65536 neighbours.
    form, prox_every, schedule, heal_after
        As of :class:`ProxSGD`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above; in ``step``, for sparse gradients.

    Notes
    -----
    State dicts have the keys of ``torch.optim.AdamW``'s (``step``, ``exp_avg``, ``exp_avg_sq``,
    ``max_exp_avg_sq``) and load from and into them; they do not hold penalties and schedules.
    Bytes moved for each float32 element: 28; 8 more with AMSGrad, 4 more in the latent form. Groups
    in Adam's metric are read and written once more on a GPU. Step counts and learning rate tensors
    stay on the device; in a CUDA graph the counters of ``schedule``, ``prox_every`` and
    ``heal_after`` stand still, and so does the sum of the latent form.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019. Deleu and Bengio,
    "Structured sparsity inducing adaptive optimizers for deep learning", 2021. Yun, Lozano and
    Yang, "Adaptive proximal gradient methods for structured neural networks", NeurIPS 2021.
    """

    _states = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "latent")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        penalty: Penalty | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        metric: Metric = "euclidean",
        form: Form = "plain",
        prox_every: int = 1,
        schedule: Schedule | None = None,
        heal_after: int | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "penalty": penalty,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "metric": metric,
            "form": form,
            "prox_every": prox_every,
            "schedule": schedule,
            "heal_after": heal_after,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        self._check_at_least_zero(
            lr=group["lr"], eps=group["eps"], weight_decay=group["weight_decay"]
        )
        self._check_betas(group["betas"])
        if group["metric"] not in ("euclidean", "adam"):
            raise ValueError(self._fail("metric", "to be euclidean or adam", repr(group["metric"])))
        if group["metric"] == "adam" and group["penalty"] is not None:
            what = following(group["penalty"])
            if (
                what is None
                or what.law != "soft"
                or what.bounds
                or what.positive
                or what.soft is not None
            ):
                raise ValueError(
                    self._fail(
                        "penalty",
                        "to be L1 or GroupL2 in Adam's metric",
                        type(group["penalty"]).__name__,
                    )
                )

    def _following(self, group: dict[str, Any]) -> Following | None:
        what = following(group["penalty"])
        if what is None or group["metric"] != "adam":
            return what
        return Following("metric", "soft", groups=what.groups, root_weights=what.root_weights)

    def _key(self, p: Tensor, group: dict[str, Any]) -> tuple[Any, ...]:
        self._adamw_states(p, group)
        return ()

    def _call(
        self,
        group: dict[str, Any],
        params: Batch,
        stepped: Batch,
        grads: Batch,
        outs: Batch,
        device: torch.device,
        key: tuple[Any, ...],
        options: dict[str, Any],
    ) -> None:
        states = [self.state[p] for p in params]
        lr, lr_tensor = rate(group["lr"], device)
        _prox_adamw_(
            stepped,
            grads,
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [s["max_exp_avg_sq"] for s in states] if group["amsgrad"] else [],
            [s["step"] for s in states],
            outs,
            lr,
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["maximize"],
            lr_tensor,
            **options,
        )

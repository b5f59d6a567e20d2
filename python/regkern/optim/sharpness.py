"""Optimizers that look for flat minima: gradients from where the loss is larger nearby."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern.optim.wrapped import WrappedOptimizer
from regkern.spectral.gradient_penalties import SCHEMES, penalized_gradient
from regkern.spectral.network import global_norm, linear_combination
from regkern.spectral.perturb import (
    Kind,
    Perturbation,
    displace_,
    perturb_,
    project_,
    remove_component_,
    restore_,
)

Closure = Callable[[], Any]


@contextmanager
def weight_perturbation(
    params: Tensor | Iterable[Tensor],
    grads: Tensor | Iterable[Tensor],
    rho: float | Tensor,
    **options: Any,
) -> Any:
    """Parameters are perturbed inside of the ``with`` block, and restored bit for bit after it.

    Parameters
    ----------
    params, grads, rho, **options
        Those of :func:`regkern.spectral.perturb_`.

    Yields
    ------
    Perturbation
        What :func:`regkern.spectral.perturb_` returns.
    """
    ps = [params] if isinstance(params, Tensor) else list(params)
    gs = [grads] if isinstance(grads, Tensor) else list(grads)
    saved = perturb_(ps, gs, rho, **options)
    try:
        yield saved
    finally:
        restore_(saved)


class _Perturbing(WrappedOptimizer):
    """An optimizer that evaluates gradients elsewhere than where it steps from."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._saved: Perturbation | None = None
        self._moved = False
        super().__init__(optimizer)
        for name, value in settings.items():
            setattr(self, name, value)
        chosen = settings.get("params")
        if chosen is not None:
            settings["params"] = self.params = list(chosen)

    params: list[Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        self._check_home("copied")
        settings = {name: getattr(self, name) for name in self._settings}
        return {"optimizer": self.optimizer, "settings": settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["optimizer"], **state["settings"])  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's."""
        self._check_home("saved")
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of the wrapped optimizer's kind."""
        self._check_home("loaded")
        self.optimizer.load_state_dict(state_dict)

    def _check_home(self, what: str) -> None:
        if self._moved:
            raise RuntimeError(
                f"regkern.optim.{type(self).__name__}: expected parameters to be restored before "
                f"it is {what}, got perturbed ones"
            )

    def _reached(self) -> list[Tensor]:
        """The parameters that take part, and have gradients."""
        chosen = None if self.params is None else {id(p) for p in self.params}
        found = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or (chosen is not None and id(p) not in chosen):
                    continue
                if p.grad.layout != torch.strided:
                    raise ValueError(
                        f"regkern.optim.{type(self).__name__}: expected `grad` to be dense, got "
                        f"{p.grad.layout}"
                    )
                found.append(p)
        return found

    def _closure(self, closure: Closure | None) -> Closure:
        if closure is None:
            raise ValueError(
                f"regkern.optim.{type(self).__name__}: expected `closure`, which clears gradients, "
                "computes the loss and calls backward, got none"
            )
        return torch.enable_grad()(closure)

    def _reuse(self, params: list[Tensor]) -> Perturbation | None:
        """The buffers of the last step, if they are of the same parameters."""
        saved = self._saved
        if saved is None or len(saved.params) != len(params):
            return None
        same = all(
            a is b and a.shape == c.shape and a.dtype == c.dtype and a.device == c.device
            for a, b, c in zip(saved.params, params, saved.buffers, strict=True)
        )
        return saved if same else None

    def _back(self) -> None:
        if self._moved and self._saved is not None:
            restore_(self._saved)
            self._moved = False

    def _base_step(self) -> None:
        self.optimizer.step()

    def _gradients(self) -> list[tuple[Tensor, Tensor]]:
        """All gradients that there are: closures write those of parameters apart as well."""
        each = [p for group in self.param_groups for p in group["params"]]
        return [(p, p.grad) for p in each if p.grad is not None]


def _grads_of(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _taken(params: list[Tensor]) -> list[Tensor]:
    """Gradients, which the next backward pass will not add to."""
    grads = []
    for p in params:
        grads.append(torch.zeros_like(p) if p.grad is None else p.grad)
        p.grad = None
    return grads


def _give(gradients: Iterable[tuple[Tensor, Tensor]]) -> None:
    for p, g in gradients:
        p.grad = g


def _unit_step(grads: list[Tensor], length: float | Tensor) -> Tensor:
    """length / ‖g‖, and 0 for g = 0."""
    norm = global_norm([g.detach() for g in grads]).double()
    return torch.where(norm == 0, 0.0, length / norm)


class SAM(_Perturbing):
    r"""Sharpness-aware minimization around any optimizer.

    .. math::
        \hat ε = \arg\max_{\lVert ε / T \rVert_p \le ρ} \langle \nabla L(w), ε \rangle, \qquad
        w ← \text{step}(w, \nabla L(w + \hat ε))

    with T = 1, or :math:`T = |w| + η` (adaptive).

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Takes the step, with the gradients found at the perturbed parameters.
    rho : float or Tensor, default 0.05
        ρ; the attribute ``rho`` may be changed between steps.
    adaptive : bool, default False
        ASAM; its ρ is some ten times larger.
    eta : float, default 0.01
        η.
    p : float, default 2
        Above 1, or infinity.
    params : iterable of Tensor, optional
        What is perturbed. Default: all parameters that have gradients.
    storage : {"kept", "swapped"}
        As in :func:`regkern.spectral.perturb_`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    ``step(closure)`` calls the closure, which clears gradients, computes the loss and calls
    backward, twice and returns the first loss. Or in two calls: ``first_step`` after the first
    backward pass, ``second_step`` after the second; ``restore`` goes back without a step. Smooth
    domain adversarial training: ``first_step`` after the backward pass of the task loss; that of
    the task loss once more; ``restore``; that of the adversarial loss, which adds to it;
    ``second_step``.

    Gradient scalers that skip steps are not supported: unscale gradients, and step without one.
    Batch statistics of normalization layers see both passes. On several devices or processes the
    norm is the local one.

    References
    ----------
    Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-aware minimization for efficiently improving
    generalization", ICLR 2021; Kwon, Kim, Park and Choi, "ASAM", ICML 2021; Rangwani, Aithal,
    Mishra, Jain and Babu, "A closer look at smoothness in domain adversarial training", ICML 2022.
    """

    rho: float | Tensor
    adaptive: bool
    eta: float
    p: float
    storage: Literal["kept", "swapped"]

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float | Tensor = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
        p: float = 2.0,
        params: Iterable[Tensor] | None = None,
        storage: Literal["kept", "swapped"] = "kept",
    ) -> None:
        op = f"optim.{type(self).__name__}"
        checks.scale(op, "rho", rho)
        checks.scale(op, "eta", eta)
        checks.one_of(op, "storage", storage, ("kept", "swapped"))
        if not p > 1:
            raise ValueError(f"regkern.{op}: expected `p` to be above 1, got {p}")
        super().__init__(
            optimizer,
            {
                "rho": rho,
                "adaptive": adaptive,
                "eta": eta,
                "p": p,
                "params": params,
                "storage": storage,
            },
        )

    def _kind(self) -> Kind:
        return "asam" if self.adaptive else "sam"

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Perturbs the parameters along the gradients that they have."""
        self._check_home("perturbed again")
        params = self._reached()
        if params:
            self._saved = perturb_(
                params,
                _grads_of(params),
                self.rho,
                kind=self._kind(),
                p=self.p,
                eta=self.eta,
                storage=self.storage,
                reuse=self._reuse(params),
            )
            self._moved = True
        if zero_grad:
            self.zero_grad()

    def restore(self) -> None:
        """Takes the perturbation back, bit for bit, without a step."""
        self._back()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Takes the perturbation back, and the step with the gradients that there are now."""
        self._back()
        self._base_step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Both steps; the closure is called twice, the first of its losses returned."""
        evaluate = self._closure(closure)
        loss = evaluate()
        self.first_step()
        try:
            evaluate()
        finally:
            self._back()
        self._base_step()
        return loss


class AWP(SAM):
    r"""Adversarial weight perturbation around any optimizer.

    .. math::
        v_l = γ \frac{\lVert w_l \rVert}{\lVert \nabla_l L \rVert} \nabla_l L, \qquad
        w ← \text{step}(w, \nabla L(w + v))

    layer by layer, for the loss on adversarial examples, which are the caller's.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Takes the step.
    gamma : float or Tensor, default 0.005
        γ; the attribute ``rho`` may be changed between steps.
    params : iterable of Tensor, optional
        What is perturbed. Default: parameters of at least two dimensions, as in the paper.
    rows : bool, default False
        Relative to every filter instead of every tensor.
    storage : {"kept", "swapped"}
        As in :func:`regkern.spectral.perturb_`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Called as :class:`SAM` is.

    References
    ----------
    Wu, Xia and Wang, "Adversarial weight perturbation helps robust generalization", NeurIPS 2020.
    """

    rows: bool

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        gamma: float | Tensor = 5e-3,
        params: Iterable[Tensor] | None = None,
        rows: bool = False,
        storage: Literal["kept", "swapped"] = "kept",
    ) -> None:
        super().__init__(optimizer, gamma, params=params, storage=storage)
        self.rows = rows
        self._settings = {"gamma": gamma, "params": self.params, "rows": rows, "storage": storage}

    @property
    def gamma(self) -> float | Tensor:
        return self.rho

    def _kind(self) -> Kind:
        return "row" if self.rows else "tensor"

    def _reached(self) -> list[Tensor]:
        found = super()._reached()
        return found if self.params is not None else [p for p in found if p.dim() > 1]


class AMP(_Perturbing):
    r"""Adversarial model perturbation around any optimizer.

    .. math::
        Δ ← 0, \qquad Δ ← Π_{\lVert Δ \rVert \le ε} (Δ + ζ\, \nabla L(w + Δ)) \quad
        (K \text{ times}), \qquad w ← \text{step}(w, \nabla L(w + Δ))

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Takes the step, with the gradients found at w + Δ.
    epsilon : float or Tensor
        ε, the radius.
    zeta : float or Tensor, default 1
        ζ, the learning rate of the ascent.
    inner_steps : int, default 1
        K.
    per : {"tensor", "all"}
        A ball for each parameter tensor, or one for all. Which of them the paper means has not been
        confirmed; its published code is reported to take one for each tensor.
    params : iterable of Tensor, optional
        What is perturbed. Default: all parameters that have gradients.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    ``step(closure)`` calls the closure, which clears gradients, computes the loss and calls
    backward, K + 1 times and returns the first loss.

    References
    ----------
    Zheng, Zhang and Mao, "Regularizing neural networks via adversarial model perturbation",
    CVPR 2021.
    """

    epsilon: float | Tensor
    zeta: float | Tensor
    inner_steps: int
    per: Literal["tensor", "all"]

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        epsilon: float | Tensor,
        zeta: float | Tensor = 1.0,
        inner_steps: int = 1,
        per: Literal["tensor", "all"] = "tensor",
        params: Iterable[Tensor] | None = None,
    ) -> None:
        op = "optim.AMP"
        checks.scale(op, "epsilon", epsilon)
        checks.scale(op, "zeta", zeta)
        checks.at_least(op, "inner_steps", inner_steps, 1)
        checks.one_of(op, "per", per, ("tensor", "all"))
        super().__init__(
            optimizer,
            {
                "epsilon": epsilon,
                "zeta": zeta,
                "inner_steps": inner_steps,
                "per": per,
                "params": params,
            },
        )

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step; the closure is called K + 1 times, the first of its losses returned."""
        evaluate = self._closure(closure)
        loss = evaluate()
        params = self._reached()
        deltas: list[Tensor] | None = None
        try:
            for _ in range(self.inner_steps if params else 0):
                grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
                if deltas is None:
                    deltas = linear_combination(grads, self.zeta, grads, 0.0)
                    project_(deltas, self.epsilon, per=self.per)
                else:
                    project_(deltas, self.epsilon, grads=grads, step=self.zeta, per=self.per)
                self._back()
                self._saved = displace_(params, deltas, 1.0, self._reuse(params))
                self._moved = True
                evaluate()
        finally:
            self._back()
        self._base_step()
        return loss


class GAM(_Perturbing):
    r"""Gradient norm aware minimization around any optimizer: first-order flatness.

    The step is taken with the gradient of :math:`L + α R`, where

    .. math:: R(w) = ρ \max_{\lVert w' - w \rVert \le ρ} \lVert \nabla L(w') \rVert,

    to first order: with :math:`h = \nabla \lVert \nabla L(w) \rVert = H g / \lVert g \rVert` the
    maximum is taken at :math:`w^* = w + ρ\, h / \lVert h \rVert`, and its gradient is
    :math:`ρ\, H^* g^* / \lVert g^* \rVert`, both products by finite differences of length r:

    .. math::
        g + α \frac ρr \Bigl( \nabla L\bigl(w^* + r \tfrac{g^*}{\lVert g^* \rVert}\bigr) - g^*
        \Bigr), \qquad g^* = \nabla L(w^*)

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Takes the step.
    rho : float or Tensor, default 0.05
        ρ, the radius.
    alpha : float or Tensor, default 1
        α, the weight of R.
    r : float or Tensor, default 0.01
        The step of the differences.
    params : iterable of Tensor, optional
        What is perturbed. Default: all parameters that have gradients.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    ``step(closure)`` calls the closure four times and returns the first loss. The formula above
    follows from the definition of R. The authors' implementation mixes the gradients of the four
    points with coefficients of its own, which have not been confirmed and are not used here.

    References
    ----------
    Zhang, Xu, Yu, Zou and Cui, "Gradient norm aware minimization seeks first-order flatness and
    improves generalization", CVPR 2023.
    """

    rho: float | Tensor
    alpha: float | Tensor
    r: float | Tensor

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float | Tensor = 0.05,
        alpha: float | Tensor = 1.0,
        r: float | Tensor = 0.01,
        params: Iterable[Tensor] | None = None,
    ) -> None:
        for name, value in (("rho", rho), ("alpha", alpha), ("r", r)):
            checks.scale("optim.GAM", name, value)
        if not isinstance(r, Tensor) and r == 0:
            raise ValueError(f"regkern.optim.GAM: expected `r` above 0, got {r}")
        super().__init__(optimizer, {"rho": rho, "alpha": alpha, "r": r, "params": params})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step; the closure is called four times, the first of its losses returned."""
        evaluate = self._closure(closure)
        loss = evaluate()
        params = self._reached()
        if not params:
            self._base_step()
            return loss
        before = self._gradients()
        here = _taken(params)

        def at(vectors: list[Tensor], length: float | Tensor) -> list[Tensor]:
            moved = displace_(params, vectors, _unit_step(vectors, length))
            try:
                evaluate()
            finally:
                restore_(moved)
            return _taken(params)

        rise = linear_combination(at(here, self.r), 1.0, here, -1.0)
        self._saved = displace_(params, rise, _unit_step(rise, self.rho), self._reuse(params))
        self._moved = True
        try:
            evaluate()
            top = _taken(params)
            beyond = at(top, self.r)
        finally:
            self._back()
        change = linear_combination(beyond, 1.0, top, -1.0)
        weight = self.alpha * self.rho / self.r
        total = linear_combination(here, 1.0, change, weight)
        _give([*before, *zip(params, total, strict=True)])
        self._base_step()
        return loss


class GradientNormPenalty(_Perturbing):
    r"""Any optimizer, with a penalty of the norm of the loss's gradient.

    .. math:: L + \tfrac γ2 \lVert \nabla L \rVert^2 \qquad\text{or}\qquad L + γ \lVert \nabla L
        \rVert

    by finite differences, :func:`regkern.spectral.penalized_gradient`.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Takes the step.
    weight : float or Tensor
        γ.
    eps : float or Tensor, default 0.01
        The step of the difference, in units of the gradient, or of the gradient's direction where
        the norm is not squared.
    squared : bool, default True
        Which of the two.
    scheme : {"forward", "backward", "central"}
        Of the difference. Forward, with a norm that is not squared and γ = ε, is SAM.
    params : iterable of Tensor, optional
        By what the gradient is taken. Default: all parameters that have gradients.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    ``step(closure)`` calls the closure twice (central: three times) and returns the first loss.

    References
    ----------
    Karakida, Takase, Hayase and Osawa, "Understanding gradient regularization in deep learning",
    ICML 2023; Zhao, Zhang and Hu, "Penalizing gradient norm for efficiently improving
    generalization in deep learning", ICML 2022.
    """

    weight: float | Tensor
    eps: float | Tensor
    squared: bool
    scheme: Literal["forward", "backward", "central"]

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weight: float | Tensor,
        eps: float | Tensor = 1e-2,
        squared: bool = True,
        scheme: Literal["forward", "backward", "central"] = "forward",
        params: Iterable[Tensor] | None = None,
    ) -> None:
        op = f"optim.{type(self).__name__}"
        checks.scale(op, "weight", weight)
        checks.scale(op, "eps", eps)
        checks.one_of(op, "scheme", scheme, SCHEMES)
        if not isinstance(eps, Tensor) and eps == 0:
            raise ValueError(f"regkern.{op}: expected `eps` above 0, got {eps}")
        super().__init__(
            optimizer,
            {
                "weight": weight,
                "eps": eps,
                "squared": squared,
                "scheme": scheme,
                "params": params,
            },
        )

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step; the first of the closure's losses is returned."""
        evaluate = self._closure(closure)
        loss = evaluate()
        params = self._reached()
        if params:
            before = self._gradients()
            here = _taken(params)

            def gradient() -> list[Tensor]:
                evaluate()
                return _taken(params)

            total = penalized_gradient(
                gradient,
                params,
                self.weight,
                self.eps,
                squared=self.squared,
                scheme=self.scheme,
                base=here,
            )
            _give([*before, *zip(params, total, strict=True)])
        self._base_step()
        return loss


class IGNITE(GradientNormPenalty):
    r"""The penalty of IGNITE for surrogates of offline optimization: λρ times the gradient's norm.

    .. math:: L + λ ρ \lVert \nabla L \rVert \approx L + λ \bigl( \max_{\lVert ε \rVert \le ρ} L(w +
        ε) - L(w) \bigr)

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Takes the step.
    lam : float or Tensor
        λ.
    rho : float or Tensor, default 0.05
        ρ, which is the step of the finite difference as well.
    params : iterable of Tensor, optional
        Default: all parameters that have gradients.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Called as :class:`GradientNormPenalty` is. The paper states a constraint; that its multiplier is
    a fixed λ here, and the step of the difference ρ, has not been confirmed.

    References
    ----------
    Dao, Nguyen, Truong and Hoang, "Incorporating surrogate gradient norm to improve offline
    optimization techniques", NeurIPS 2024.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lam: float | Tensor,
        rho: float | Tensor = 0.05,
        params: Iterable[Tensor] | None = None,
    ) -> None:
        checks.scale("optim.IGNITE", "lam", lam)
        checks.scale("optim.IGNITE", "rho", rho)
        super().__init__(optimizer, lam * rho, rho, squared=False, params=params)
        self.lam, self.rho = lam, rho
        self._settings = {"lam": lam, "rho": rho, "params": self.params}


class OrthogonalGrad(_Perturbing):
    r"""Any optimizer, with gradients that have no component along the weights.

    .. math:: g_l ← g_l - \frac{\langle g_l, w_l \rangle}{\langle w_l, w_l \rangle}\, w_l

    for each parameter tensor: what makes logits grow without learning, and ends in softmax
    collapse, is left out.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Takes the step.
    rescale : bool, default True
        Gives gradients the length back that they had.
    params : iterable of Tensor, optional
        Whose gradients. Default: all.

    Raises
    ------
    TypeError
        Where ``optimizer`` is none.

    Notes
    -----
    Gradients are changed in place. ``step`` calls the closure, if given, once.

    References
    ----------
    Prieto, Barsbey, Mediano and Birdal, "Grokking at the edge of numerical stability", ICLR 2025.
    """

    rescale: bool

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rescale: bool = True,
        params: Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__(optimizer, {"rescale": rescale, "params": params})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One step; ``closure``, if given, is called first and its loss returned."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        params = self._reached()
        if params:
            remove_component_(_grads_of(params), params, rescale=self.rescale)
        self._base_step()
        return loss

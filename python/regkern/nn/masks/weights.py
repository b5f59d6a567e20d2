"""Weights under random masks, as parametrizations: dropout, mixout, annealed subnetworks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regkern import _checks as checks
from regkern.masks.dropping import dropout
from regkern.masks.events import subnetwork_mask
from regkern.masks.prefixes import uniform_draws
from regkern.masks.weights import mixout
from regkern.random import make_seed


class _WeightMask(nn.Module):
    """A parametrization that is the identity to whoever sets the weight."""

    def right_inverse(self, w: Tensor) -> Tensor:
        return w


class _DroppedWeight(_WeightMask):
    """With a probability of its own, and dimensions that share their fate."""

    def __init__(
        self, p: float | Tensor, shared: int | Sequence[int], generator: torch.Generator | None
    ) -> None:
        super().__init__()
        checks.probability(type(self).__name__, "p", p)
        self.p = p
        self.shared = shared
        self.generator = generator

    def extra_repr(self) -> str:
        return f"p={float(self.p):g}"


class WeightDropout(_DroppedWeight):
    r"""DropConnect: dropout of the weights, drawn anew whenever they are read.

    .. math:: \hat W = W \odot M \cdot \frac{1}{1 - p}, \qquad M \sim \mathrm{Bernoulli}(1 - p)

    A parametrization: see `weight_dropout`.

    Parameters
    ----------
    p : float or Tensor
        As of :func:`regkern.dropout`.
    shared : int or sequence of int
        Dimensions along which all weights share their fate.
    scale : bool
        Whether what is kept is multiplied by :math:`1/(1 - p)`.
    generator : torch.Generator, optional
        Of the weights' device; default: torch's own.

    References
    ----------
    Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks using DropConnect",
    ICML 2013.
    """

    def __init__(
        self,
        p: float | Tensor = 0.5,
        shared: int | Sequence[int] = (),
        *,
        scale: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, shared, generator)
        self.scale = scale

    def forward(self, w: Tensor) -> Tensor:
        return dropout(
            w,
            self.p,
            self.training,
            shared=self.shared,
            scale=self.scale,
            generator=self.generator if self.training else None,
        )


class Mixout(_DroppedWeight):
    r"""Mixout with the weights of the moment it is built, or with given ones.

    .. math::
        \hat W = W_0 + (W - W_0) \odot \frac{M}{1 - p}, \qquad M \sim \mathrm{Bernoulli}(1 - p)

    A parametrization: see `mixout_weights`.

    Parameters
    ----------
    pretrained : Tensor
        :math:`W_0`; a copy becomes the buffer ``pretrained``.
    p, shared, author_grad
        As of :func:`regkern.masks.weights.mixout`.
    generator : torch.Generator, optional
        Of the weights' device; default: torch's own.

    References
    ----------
    Lee, Cho and Kang, "Mixout: effective regularization to finetune large-scale pretrained language
    models", ICLR 2020.
    """

    pretrained: Tensor

    def __init__(
        self,
        pretrained: Tensor,
        p: float | Tensor = 0.5,
        shared: int | Sequence[int] = (),
        *,
        author_grad: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(p, shared, generator)
        self.register_buffer("pretrained", pretrained.detach().clone())
        self.author_grad = author_grad

    def forward(self, w: Tensor) -> Tensor:
        return mixout(
            w,
            self.pretrained,
            self.p,
            self.training,
            shared=self.shared,
            author_grad=self.author_grad,
            generator=self.generator if self.training else None,
        )


class SubnetworkAnnealing(_WeightMask):
    r"""Weights on their way to a pruned subnetwork: removed ones appear less and less often.

    .. math::
        \hat W = W \odot M, \qquad M \sim \mathrm{Bernoulli}(m + (1 - m) \, \tau_t P_0), \qquad
        \tau_t = \tau_0 (1 - t/T) \;\text{or}\; \tau_0 \tfrac{1}{2} (1 + \cos(\pi t/T))

    ``step()`` goes from t to t + 1; from T on, and in eval mode, :math:`\hat W = W \odot m`. A
    parametrization: ``torch.nn.utils.parametrize.register_parametrization(layer, "weight", …)``.

    Parameters
    ----------
    target : Tensor
        m: bool, True for the weights of the subnetwork.
    steps : int
        T, at least 1.
    tau : float
        :math:`\tau_0`.
    schedule : {"linear", "cosine"}
        Which of these.
    random : bool
        :math:`P_0` uniform in (0, 1), drawn once (random annealing), instead of 1 (temperature
        annealing).
    generator : torch.Generator, optional
        Of the weights' device; default: torch's own.

    Notes
    -----
    Target, temperature, step and :math:`P_0` are buffers. The temperature is filled in place, which
    recompiles nothing.

    References
    ----------
    Whitaker and Whitley, "Stochastic subnetwork annealing: a regularization technique for fine
    tuning pruned subnetworks", 2024.
    """

    target: Tensor
    tau: Tensor
    count: Tensor
    probabilities: Tensor | None

    def __init__(
        self,
        target: Tensor,
        steps: int,
        tau: float = 1.0,
        schedule: str = "linear",
        *,
        random: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        op = "SubnetworkAnnealing"
        checks.tensor(op, "target", target)
        if target.dtype != torch.bool:
            raise TypeError(f"regkern.{op}: expected `target` to be bool, got {target.dtype}")
        checks.at_least(op, "steps", steps, 1)
        checks.probability(op, "tau", tau)
        checks.one_of(op, "schedule", schedule, ("linear", "cosine"))
        self.steps, self.start, self.schedule = steps, tau, schedule
        self.generator = generator
        self.register_buffer("target", target.clone())
        self.register_buffer("tau", torch.tensor(tau, dtype=torch.float64, device=target.device))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        drawn = None
        if random:
            seed = make_seed(target.device, generator)
            drawn = uniform_draws(seed, target.numel()).float().reshape(target.shape)
        self.register_buffer("probabilities", drawn)

    def step(self) -> None:
        self.count += 1
        done = min(int(self.count) / self.steps, 1.0)
        left = 1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        self.tau.fill_(self.start * left)

    def forward(self, w: Tensor) -> Tensor:
        if not self.training:
            return w * self.target
        return subnetwork_mask(
            w, self.target, self.tau, self.probabilities, generator=self.generator
        )

    def extra_repr(self) -> str:
        return f"steps={self.steps}, schedule={self.schedule!r}, tau={float(self.tau):g}"


# ---- what puts them on layers ----


def _names(op: str, module: nn.Module, names: str | Iterable[str]) -> list[str]:
    found = [names] if isinstance(names, str) else list(names)
    for name in found:
        if not isinstance(getattr(module, name, None), Tensor):
            raise ValueError(
                f"regkern.{op}: expected `names` of tensors of {type(module).__name__}, got "
                f"{name!r}"
            )
    return found


def _register(module: nn.Module, name: str, rule: nn.Module) -> None:
    # Unsafe means: not called now, which would draw from the generator.
    parametrize.register_parametrization(module, name, rule, unsafe=True)
    if isinstance(module, nn.RNNBase) and not hasattr(module, "_reads_weights"):
        # An RNN keeps a list of its weights, which does not know of parametrizations.
        module.register_forward_pre_hook(_read_weights)
        module._reads_weights = True


def _read_weights(module: Any, args: Any) -> None:
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


def weight_dropout(
    module: nn.Module,
    p: float | Tensor = 0.5,
    names: str | Iterable[str] = "weight",
    *,
    shared: int | Sequence[int] = (),
    scale: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Registers `WeightDropout` (DropConnect) on weights of a layer.

    .. math:: \hat W = W \odot M \cdot \frac{1}{1 - p}, \qquad M \sim \mathrm{Bernoulli}(1 - p)

    Parameters
    ----------
    module : Module
        A layer, or an RNN of torch: the recurrent weights of an LSTM are ``"weight_hh_l0"``.
    p, shared, scale, generator
        As of `WeightDropout`.
    names : str or iterable of str
        Of the weights.

    Returns
    -------
    Module
        ``module``.

    Raises
    ------
    ValueError
        Where a name is not that of a tensor of the layer.

    Notes
    -----
    Undone by ``torch.nn.utils.parametrize.remove_parametrizations``. An RNN draws once a forward,
    one mask for all time steps; on CUDA its weights are not flattened then.

    References
    ----------
    Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of neural networks using DropConnect",
    ICML 2013; Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models", ICLR
    2018 (recurrent weights).
    """
    for name in _names("weight_dropout", module, names):
        _register(module, name, WeightDropout(p, shared, scale=scale, generator=generator))
    return module


def mixout_weights(
    module: nn.Module,
    p: float | Tensor = 0.5,
    names: str | Iterable[str] = "weight",
    *,
    shared: int | Sequence[int] = (),
    author_grad: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Registers `Mixout` on weights of a layer, with what they are now as the pre-trained ones.

    .. math::
        \hat W = W_0 + (W - W_0) \odot \frac{M}{1 - p}, \qquad M \sim \mathrm{Bernoulli}(1 - p)

    Parameters
    ----------
    module : Module
        A layer, or an RNN of torch.
    p, shared, author_grad, generator
        As of `Mixout`.
    names : str or iterable of str
        Of the weights.

    Returns
    -------
    Module
        ``module``.

    Raises
    ------
    ValueError
        Where a name is not that of a tensor of the layer.

    Notes
    -----
    Undone by ``torch.nn.utils.parametrize.remove_parametrizations``.

    References
    ----------
    Lee, Cho and Kang, "Mixout: effective regularization to finetune large-scale pretrained language
    models", ICLR 2020.
    """
    for name in _names("mixout_weights", module, names):
        weight = getattr(module, name)
        options: dict[str, Any] = {"author_grad": author_grad, "generator": generator}
        _register(module, name, Mixout(weight, p, shared, **options))
    return module

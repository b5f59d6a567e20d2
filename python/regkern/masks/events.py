"""Events of elements: samples, masks and selections whose probabilities are data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, register
from regkern.random import resolve_seed

Gradient = Literal["straight_through", "score"]

# ---- raw ops: fake kernels and autograd ----


def _fake(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return dense_like(x)


#: y by an event of each element: see csrc/masks/blend.h.
bernoulli_blend = register("bernoulli_blend", _fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, seed, p, p_tensor, each, given, blend, draw, scaled = inputs
    # The gradient of probabilities is that of the event, which x is a factor of.
    factor = x if blend == "product" and ctx.needs_input_grad[5] else None
    ctx.save_for_backward(seed, p_tensor, each, given, factor)
    ctx.p, ctx.blend, ctx.draw, ctx.scaled = p, blend, draw, scaled


def _event_gradient(ctx: Any, g: Tensor) -> Tensor:
    """Straight through: the event's derivative by its probability is 1."""
    _, p_tensor, _, given, _ = ctx.saved_tensors
    dp: Tensor = g if ctx.draw else -g
    if p_tensor is not None:
        dp = dp * p_tensor.to(g.dtype)
    elif ctx.p != 1.0:
        dp = dp * ctx.p
    if given is not None:
        dp = dp.masked_fill(given if ctx.draw else ~given, 0.0)
    return dp


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    seed, p_tensor, each, given, factor = ctx.saved_tensors
    wants_x, wants_other, wants_each = (ctx.needs_input_grad[i] for i in (0, 1, 5))
    dx = dother = deach = None

    def masked(blend: str) -> Tensor:
        y: Tensor = bernoulli_blend(
            g, None, seed, ctx.p, p_tensor, each, given, blend, ctx.draw, ctx.scaled
        )
        return y

    if ctx.blend == "sample":
        return _event_gradient(ctx, g), *([None] * 9)
    if ctx.blend == "mix":
        dx = masked("product")
        dother = g - dx if wants_other else None
    elif ctx.blend == "product":
        dx = masked("product") if wants_x else None
        if wants_each:
            assert factor is not None
            deach = _event_gradient(ctx, g * factor).to(each.dtype)
    elif ctx.blend == "select":
        dx = masked("select") if wants_x else None
        dother = masked("other") if wants_other else None
    else:
        dx = masked("other")
    return dx, dother, None, None, None, deach, None, None, None, None


bernoulli_blend.differentiable(_setup, _backward)


# ---- arguments ----


def number_of(op: str, name: str, p: float | Tensor, x: Tensor) -> tuple[float, Tensor | None]:
    """A probability as the raw ops take it: a number, or one float64 element."""
    checks.probability(op, name, p)
    if isinstance(p, Tensor):
        if p.requires_grad:
            raise ValueError(f"regkern.{op}: expected `{name}` without a gradient")
        return 0.0, p.reshape(()).to(x.device, torch.float64)
    return p, None


def each_of(op: str, name: str, p: Tensor, x: Tensor) -> Tensor:
    """Probabilities of all elements of x, in float32 or the dtype of x."""
    checks.floating(op, name, p)
    checks.on_device(op, name, p, x)
    try:
        each = p.expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"regkern.{op}: expected `{name}` broadcastable to {tuple(x.shape)}, got "
            f"{tuple(p.shape)}"
        ) from None
    each = each if p.shape == x.shape else each.contiguous()
    return each if each.dtype == x.dtype else each.to(torch.float32)


def _bool_like(op: str, name: str, mask: object, x: Tensor) -> Tensor:
    checks.on_device(op, name, mask, x)
    assert isinstance(mask, Tensor)
    if mask.dtype != torch.bool or mask.shape != x.shape:
        raise ValueError(
            f"regkern.{op}: expected `{name}` to be a bool tensor {tuple(x.shape)}, got "
            f"{mask.dtype} {tuple(mask.shape)}"
        )
    return mask


Dims = int | Sequence[int] | None


def _sum(x: Tensor, dim: Dims) -> Tensor:
    return x.sum() if dim is None else x.sum([dim] if isinstance(dim, int) else list(dim))


# ---- public functions ----


def bernoulli(
    p: Tensor,
    gradient: Gradient = "straight_through",
    *,
    dim: Dims = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    r"""Zeros and ones of given probabilities, with a gradient.

    .. math:: b \sim \mathrm{Bernoulli}(p)

    Parameters
    ----------
    p : Tensor
        Probabilities of a one; any shape and strides; float32, float64, bfloat16 or float16.
    gradient : {"straight_through", "score"}
        Straight through: :math:`\partial L / \partial p = \partial L / \partial b`. Score: b has no
        gradient, and :math:`\ln p(b)` is returned beside it, whose gradient times a reward is an
        unbiased one of the reward's mean (REINFORCE).
    dim : int or sequence of int, optional
        With "score": what the logarithms are summed over. Default: all dimensions.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional
        Source of the seed.

    Returns
    -------
    Tensor or tuple of Tensor
        b like p; with "score" (b, log_prob).

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Probabilities are read as float32 and met to :math:`2^{-48}`; outside of [0, 1] they make NaN.
    The sample depends on seed and position alone. Bytes moved: p read and b written.

    References
    ----------
    Bengio, Léonard and Courville, "Estimating or propagating gradients through stochastic neurons
    for conditional computation", 2013. Williams, "Simple statistical gradient-following algorithms
    for connectionist reinforcement learning", 1992.
    """
    op = "bernoulli"
    checks.floating(op, "p", p)
    checks.one_of(op, "gradient", gradient, ("straight_through", "score"))
    if gradient != "score" and dim is not None:
        raise ValueError(f"regkern.{op}: expected `dim` with `gradient` 'score', got {dim!r}")
    given = resolve_seed(op, p, seed, generator)
    source = p if gradient == "straight_through" else p.detach()
    b: Tensor = bernoulli_blend(source, None, given, 1.0, None, None, None, "sample", True, False)
    return b if gradient == "straight_through" else (b, bernoulli_log_prob(b, p, dim=dim))


def bernoulli_log_prob(sample: Tensor, p: Tensor, *, dim: Dims = None) -> Tensor:
    r"""Logarithm of the probability of a sample, summed over dimensions.

    .. math:: \ln p(b) = \sum_e b_e \ln p_e + (1 - b_e) \ln(1 - p_e)

    Parameters
    ----------
    sample : Tensor
        Zeros and ones, or bool.
    p : Tensor
        Their probabilities, which get the gradient :math:`1/p_e` or :math:`-1/(1 - p_e)`.
    dim : int or sequence of int, optional
        Default: all dimensions.

    Returns
    -------
    Tensor
        The sums.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Composed of torch's ops: about five passes over p.

    References
    ----------
    Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
    learning", 1992.
    """
    op = "bernoulli_log_prob"
    checks.floating(op, "p", p)
    checks.on_device(op, "sample", sample, p)
    if sample.shape != p.shape:
        raise ValueError(
            f"regkern.{op}: expected `sample` of shape {tuple(p.shape)}, got {tuple(sample.shape)}"
        )
    return _sum(torch.where(sample.bool(), p, 1 - p).log(), dim)


def bernoulli_mask(
    x: Tensor,
    p: float | Tensor,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A tensor times zeros and ones of given probabilities, in one pass.

    .. math:: y = x \odot b, \qquad b \sim \mathrm{Bernoulli}(p)

    Parameters
    ----------
    x : Tensor
        Any shape and strides; float32, float64, bfloat16 or float16.
    p : float or Tensor
        Probability that an element is kept: a number, one element, or what broadcasts to x. A
        tensor gets the straight-through gradient :math:`\partial L/\partial y \odot x`.
    seed, generator
        As of `bernoulli`, whose sample of the same seed and probabilities is the mask.

    Returns
    -------
    Tensor
        Like x. Nothing is rescaled.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The mask is drawn again in the backward. Bytes moved: x and p read and y written; what
    broadcasts is written out first.

    References
    ----------
    Bengio, Léonard and Courville, "Estimating or propagating gradients through stochastic neurons
    for conditional computation", 2013.
    """
    op = "bernoulli_mask"
    checks.floating(op, "x", x)
    if isinstance(p, Tensor) and (p.numel() != 1 or p.requires_grad):
        number, p_tensor, each = 1.0, None, each_of(op, "p", p, x)
    else:
        (number, p_tensor), each = number_of(op, "p", p, x), None
    given = resolve_seed(op, x, seed, generator)
    y: Tensor = bernoulli_blend(
        x, None, given, number, p_tensor, each, None, "product", True, False
    )
    return y


def subnetwork_mask(
    w: Tensor,
    target: Tensor,
    tau: float | Tensor,
    probabilities: Tensor | None = None,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Weights under a random mask on its way to that of a pruned subnetwork.

    .. math::
        \hat W = W \odot M, \qquad M \sim \mathrm{Bernoulli}(m + (1 - m) \, \tau \, P_0)

    Parameters
    ----------
    w : Tensor
        Any shape and strides; float32, float64, bfloat16 or float16.
    target : Tensor
        m: bool, True for the weights of the subnetwork. They are always kept.
    tau : float or Tensor
        In [0, 1]: 1 before, 0 at the end of the annealing. One element may change from call to call
        without recompiling.
    probabilities : Tensor, optional
        :math:`P_0` of the removed weights (random annealing); default: ones (temperature
        annealing).
    seed, generator
        As of `bernoulli`.

    Returns
    -------
    Tensor
        Like w. Nothing is rescaled; the gradient is :math:`\partial L/\partial\hat W \odot M`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The mask is drawn again in the backward. Bytes moved: w, a byte of the target an element and
    the probabilities read, and the result written.

    References
    ----------
    Whitaker and Whitley, "Stochastic subnetwork annealing: a regularization technique for fine
    tuning pruned subnetworks", 2024.
    """
    op = "subnetwork_mask"
    checks.floating(op, "w", w)
    mask = _bool_like(op, "target", target, w)
    number, p_tensor = number_of(op, "tau", tau, w)
    each = None if probabilities is None else each_of(op, "probabilities", probabilities, w)
    given = resolve_seed(op, w, seed, generator)
    y: Tensor = bernoulli_blend(
        w, None, given, number, p_tensor, each, mask, "product", True, False
    )
    return y


def observed_dropout(
    x_obs: Tensor,
    x_gen: Tensor,
    observed: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    log_prob: bool = False,
    dim: Dims = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    r"""Observed data, some of which are hidden behind generated ones (ObsDropout).

    .. math::
        y = \begin{cases} x_{obs} & \text{if } d \\ x_{gen} & \text{else} \end{cases}, \qquad
        d \sim \mathrm{Bernoulli}(1 - p) \wedge observed

    Parameters
    ----------
    x_obs, x_gen : Tensor
        Of one shape and dtype; float32, float64, bfloat16 or float16. What is not taken may be NaN.
    observed : Tensor
        bool, of that shape.
    p : float or Tensor
        Probability that an observed element is hidden: a number or one element.
    training : bool
        False: d = observed.
    log_prob : bool
        Whether :math:`\sum_{observed} \ln p(d)` is returned as well, float32, with a gradient to a
        tensor p that requires one.
    dim : int or sequence of int, optional
        What that is summed over. Default: all dimensions.
    seed, generator
        As of `bernoulli`.

    Returns
    -------
    Tensor or tuple of Tensor
        y, or (y, log_prob).

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    d is drawn again in the backward, which sends :math:`g \odot d` to x_obs and
    :math:`g \odot (1 - d)` to x_gen. Bytes moved: both tensors and a byte an element read, y
    written; ``log_prob`` draws d once more and counts it.

    References
    ----------
    Kim, Kim, Yun, Lee, Lee and Lee, "Probabilistic imputation for time-series classification with
    missing data", ICML 2023.
    """
    op = "observed_dropout"
    checks.floating(op, "x_obs", x_obs)
    checks.same(op, "x_gen", x_gen, x_obs, "x_obs")
    mask = _bool_like(op, "observed", observed, x_obs)
    fixed = p.detach() if isinstance(p, Tensor) else p
    number, p_tensor = number_of(op, "p", fixed, x_obs)
    if not training:
        y = torch.where(mask, x_obs, x_gen)
        return (y, _sum(mask, dim).float() * 0.0) if log_prob else y
    given = resolve_seed(op, x_obs, seed, generator)
    options = (given, number, p_tensor, None, mask)
    y = bernoulli_blend(x_obs, x_gen, *options, "select", False, False)
    if not log_prob:
        return y
    d = bernoulli_blend(mask.float(), None, *options, "select", False, False)
    kept, all_observed = _sum(d, dim), _sum(mask, dim).float()
    level = p.float().reshape(()) if isinstance(p, Tensor) else torch.full_like(kept, p)
    return y, torch.xlogy(kept, 1 - level) + torch.xlogy(all_observed - kept, level)

"""Nested dropout: what is kept of a dimension is a prefix of random length."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, register
from regkern.random import resolve_seed

Law = Literal["half_gaussian", "geometric", "uniform"]

# ---- raw ops: fake kernels and autograd ----

_prefix_mask = register("prefix_mask", lambda x, k, dim: dense_like(x))
_uniform_draws = register(
    "uniform_draws", lambda seed, count: seed.new_empty((count,), dtype=torch.float64)
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.dim = inputs[2]


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (k,) = ctx.saved_tensors
    return _prefix_mask(g, k, ctx.dim), None, None


_prefix_mask.differentiable(_setup, _backward)


def uniform_draws(seed: Tensor, count: int) -> Tensor:
    """That many float64 numbers in (0, 1) of a seed."""
    u: Tensor = _uniform_draws(seed, count)
    return u


# ---- public functions ----


def prefix_weights(
    size: int,
    law: Law = "half_gaussian",
    *,
    sigma: float | None = None,
    mu: float = 0.0,
    rate: float | None = None,
    device: torch.device | None = None,
) -> Tensor:
    r"""Weights, not normalised, of the lengths 1 … size of a prefix.

    .. math::
        P(k) \propto e^{-((k - \mu)/\sigma)^2}, \qquad P(k) \propto (1 - r)^{k - 1}, \qquad
        P(k) \propto 1

    for "half_gaussian", "geometric" and "uniform".

    Parameters
    ----------
    size : int
        At least 1.
    law : {"half_gaussian", "geometric", "uniform"}
        Which of these.
    sigma, mu : float
        With "half_gaussian"; sigma has no default.
    rate : float
        r in [0, 1), with "geometric".
    device : torch.device, optional
        Where the result is.

    Returns
    -------
    Tensor
        float64 of shape (size,).

    Raises
    ------
    ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: those of the result.

    References
    ----------
    Rippel, Gelbart and Adams, "Learning ordered representations with nested dropout", ICML 2014
    (geometric); Chen, Shen, Hu and Suykens, "Boosting co-teaching with compression regularization
    for label noise", CVPR workshops 2021 (half Gaussian).
    """
    op = "prefix_weights"
    checks.one_of(op, "law", law, ("half_gaussian", "geometric", "uniform"))
    checks.at_least(op, "size", size, 1)
    k = torch.arange(1, size + 1, dtype=torch.float64, device=device)
    if law == "half_gaussian":
        if sigma is None or not sigma > 0:
            raise ValueError(f"regkern.{op}: expected `sigma` above 0, got {sigma}")
        # The largest exponent is 0: far from all k there is still a law.
        exponents = -(((k - mu) / sigma) ** 2)
        return torch.exp(exponents - exponents.max())
    if law == "geometric":
        if rate is None or not 0 <= rate < 1:
            raise ValueError(f"regkern.{op}: expected `rate` in [0, 1), got {rate}")
        return torch.pow(torch.full_like(k, 1 - rate), k - 1)
    return torch.ones_like(k)


def nested_dropout(
    x: Tensor,
    weights: Tensor | None = None,
    training: bool = True,
    *,
    k: int | Tensor | None = None,
    dim: int = 1,
    per: Literal["batch", "sample"] = "batch",
    return_k: bool = False,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    r"""Nested dropout: a prefix of random length is kept of a dimension, the rest is zero.

    .. math:: y_d = x_d \cdot 1[d \le k], \qquad k \sim P(k), \quad k \in \{1, …, D\}

    Parameters
    ----------
    x : Tensor
        Any shape and strides; float32, float64, bfloat16 or float16.
    weights : Tensor, optional
        P, not necessarily normalised, (D,): see `prefix_weights`. Not looked at with ``k``;
        default: uniform.
    training : bool
        False: x itself, but with ``k``.
    k : int or Tensor, optional
        The length, instead of a random one: a number, or int64, one or (``per`` sample) one for
        each of the first dimension. 0 keeps nothing.
    dim : int
        The dimension, D long.
    per : {"batch", "sample"}
        What has a length of its own; samples are the first dimension, and ``dim`` is another.
    return_k : bool
        Whether k is returned as well.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional
        Source of the seed.

    Returns
    -------
    Tensor or tuple of Tensor
        y like x, or (y, k) with k int64 of shape (1,) or (samples,).

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Nothing is rescaled; the backward keeps the same prefix, and only k is saved. A NaN behind the
    prefix stays NaN. Bytes moved: x read and y written. Nothing waits for a GPU.

    References
    ----------
    Rippel, Gelbart and Adams, "Learning ordered representations with nested dropout", ICML 2014;
    Chen, Shen, Hu and Suykens, "Boosting co-teaching with compression regularization for label
    noise", CVPR workshops 2021; Chen, Hu, Shen, Ai and Suykens, "Compressing features for learning
    with noisy labels", 2022.
    """
    op = "nested_dropout"
    checks.floating(op, "x", x)
    checks.one_of(op, "per", per, ("batch", "sample"))
    if isinstance(dim, bool) or not isinstance(dim, int) or not -x.dim() <= dim < x.dim():
        raise ValueError(
            f"regkern.{op}: expected `dim` to be a dimension of `x` of rank {x.dim()}, got {dim!r}"
        )
    dim = dim % x.dim()
    if per == "sample" and dim == 0:
        raise ValueError(f"regkern.{op}: expected `dim` beyond the first with samples, got {dim}")
    size = x.shape[dim]
    count = x.shape[0] if per == "sample" else 1
    if k is not None:
        lengths = _lengths(op, k, x, count)
    elif not training:
        lengths = torch.full((count,), size, dtype=torch.int64, device=x.device)
        return (x, lengths) if return_k else x
    else:
        if weights is None:
            weights = torch.ones(size, dtype=torch.float64, device=x.device)
        checks.on_device(op, "weights", weights, x)
        if not weights.is_floating_point() or weights.shape != (size,):
            raise ValueError(
                f"regkern.{op}: expected `weights` to be floating point of shape ({size},), got "
                f"{weights.dtype} {tuple(weights.shape)}"
            )
        given = resolve_seed(op, x, seed, generator)
        ends = weights.detach().double().cumsum(0)
        u = uniform_draws(given, count) * ends[-1:]
        # As many ends as are no larger: a length of weight zero is never drawn.
        lengths = torch.searchsorted(ends, u, right=True).clamp(max=size - 1) + 1
    y: Tensor = _prefix_mask(x, lengths, dim)
    return (y, lengths) if return_k else y


def _lengths(op: str, k: int | Tensor, x: Tensor, count: int) -> Tensor:
    if not isinstance(k, Tensor):
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"regkern.{op}: expected `k` to be an int or a tensor, got {k!r}")
        checks.at_least(op, "k", k, 0)
        return torch.full((1,), k, dtype=torch.int64, device=x.device)
    checks.on_device(op, "k", k, x)
    if k.dtype != torch.int64 or (k.numel() != 1 and k.shape != (count,)):
        raise ValueError(
            f"regkern.{op}: expected `k` to be int64 of one element or shape ({count},), got "
            f"{k.dtype} {tuple(k.shape)}"
        )
    return k.reshape(-1)

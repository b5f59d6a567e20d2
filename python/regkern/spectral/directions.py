"""Random directions: what estimators of traces and norms multiply with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import dense_like, register
from regkern.random import resolve_seed
from regkern.spectral.samples import check_samples, normalize_samples

Kind = Literal["normal", "rademacher"]
KINDS = ("normal", "rademacher")

# ---- raw ops: fake kernels and autograd ----

_directions = register(
    "random_directions", lambda xs, seed, scale, kind: [x.new_empty(x.shape) for x in xs]
)
_noise = register("add_noise", lambda x, seed, scale, kind: dense_like(x))


def _noise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, scale, ctx.kind = inputs
    ctx.save_for_backward(seed, scale)


def _noise_gradient(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    seed, scale = ctx.saved_tensors
    dscale = None
    if ctx.needs_input_grad[2]:
        drawn = _noise(torch.zeros_like(g), seed, torch.ones_like(scale), ctx.kind)
        dscale = (g.double() * drawn.double()).sum().reshape(scale.shape)
    return g, None, dscale, None


_noise.differentiable(_noise_setup, _noise_gradient)


def _number(x: Tensor, value: float | Tensor) -> Tensor:
    """A number as what the ops take."""
    if isinstance(value, Tensor):
        return value.to(device=x.device, dtype=torch.float64).reshape(())
    return torch.full((), value, dtype=torch.float64, device=x.device)


# ---- public functions ----


@overload
def random_directions(
    like: Tensor,
    kind: Kind = ...,
    *,
    scale: float | Tensor = ...,
    seed: Tensor | None = ...,
    generator: torch.Generator | None = ...,
) -> Tensor: ...


@overload
def random_directions(
    like: Sequence[Tensor],
    kind: Kind = ...,
    *,
    scale: float | Tensor = ...,
    seed: Tensor | None = ...,
    generator: torch.Generator | None = ...,
) -> list[Tensor]: ...


def random_directions(
    like: Tensor | Sequence[Tensor],
    kind: Kind = "rademacher",
    *,
    scale: float | Tensor = 1.0,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor | list[Tensor]:
    r"""Random vectors with independent elements of variance :math:`s^2`, of any number of tensors.

    Parameters
    ----------
    like : Tensor or sequence of Tensor
        What the vectors are shaped like. Dtypes may differ; values are not looked at.
    kind : {"rademacher", "normal"}
        :math:`\pm s` with equal chances, or :math:`s\,N(0, 1)`.
    scale : float or Tensor
        s, one number.
    seed : Tensor, optional
        int64 ``(key, offset)``, see :func:`regkern.make_seed`. Default: drawn from torch's
        generator.
    generator : torch.Generator, optional
        Where the seed is drawn from.

    Returns
    -------
    Tensor or list of Tensor
        Constants, for autograd.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    One call for all tensors; elements are numbered over the list, so that no two share a draw.
    Bytes moved: the result written once.
    """
    op = "random_directions"
    tensors = checks.tensor_list(op, "like", like)
    checks.one_of(op, "kind", kind, KINDS)
    checks.scale(op, "scale", scale)
    seed = resolve_seed(op, tensors[0], seed, generator)
    with torch.no_grad():
        drawn = list(_directions(tensors, seed, _number(tensors[0], scale), kind))
    return drawn[0] if isinstance(like, Tensor) else drawn


def sphere_directions(
    like: Tensor,
    *,
    scale: float | Tensor = 1.0,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Vectors that are uniform on the sphere of radius ``scale``, one for each sample of ``like``.

    Parameters and errors are those of :func:`random_directions`; ``scale`` may be of (batch) too.
    """
    check_samples("sphere_directions", "like", like)
    drawn = random_directions(like, "normal", seed=seed, generator=generator)
    return normalize_samples(drawn, scale)


def add_noise(
    x: Tensor,
    std: float | Tensor,
    kind: Kind = "normal",
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""x with noise, in one pass.

    .. math:: y = x + \sigma n, \qquad n \sim N(0, 1) \text{ or } n = \pm 1

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16; any strides.
    std : float or Tensor
        σ, at least 0; one number.
    kind : {"normal", "rademacher"}
        The distribution of n.
    seed, generator
        As of :func:`random_directions`, which draws the same numbers from the same seed.

    Returns
    -------
    Tensor
        Like x. Differentiable in x and in ``std``.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: x read and y written.
    """
    op = "add_noise"
    checks.floating(op, "x", x)
    checks.one_of(op, "kind", kind, KINDS)
    checks.scale(op, "std", std)
    y: Tensor = _noise(x, resolve_seed(op, x, seed, generator), _number(x, std), kind)
    return y

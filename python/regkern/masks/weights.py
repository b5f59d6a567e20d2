"""Mixtures of weights with those of before: mixout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import function_apply, register
from regkern.masks.dropping import _dims, dropout
from regkern.masks.events import bernoulli_blend, number_of
from regkern.random import resolve_seed

_mixout_ = register("mixout_", lambda *args, **kwargs: None)


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: Any) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        factor = inputs[1]
        ctx.save_for_backward(factor if isinstance(factor, Tensor) else None)
        ctx.factor = None if isinstance(factor, Tensor) else factor

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (factor,) = ctx.saved_tensors
        return g * (ctx.factor if factor is None else factor.to(g.dtype)), None


def mixout(
    w: Tensor,
    pretrained: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    shared: int | Sequence[int] = (),
    author_grad: bool = False,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Mixout: weights of which some are, for one forward, those of before fine-tuning.

    .. math::
        \hat W = \frac{M \odot W + (1 - M) \odot W_0 - p W_0}{1 - p}
               = W_0 + (W - W_0) \odot \frac{M}{1 - p}, \qquad M \sim \mathrm{Bernoulli}(1 - p)

    so that the mean of :math:`\hat W` is W, and :math:`W_0 = 0` is dropout of weights. With
    G the gradient of :math:`\hat W`,

    .. math:: dW = G \odot \frac{M}{1 - p}, \qquad dW_0 = G - dW

    Parameters
    ----------
    w : Tensor
        Any shape and strides; float32, float64, bfloat16 or float16.
    pretrained : Tensor
        :math:`W_0`, like w.
    p : float or Tensor
        Probability of the pre-trained weight, in [0, 1]: a number, or one element, which may change
        without recompiling.
    training : bool
        False: w itself.
    shared : int or sequence of int
        Dimensions along which all weights share their fate: 0 of (out, in) mixes whole input
        columns, as the authors' code does.
    author_grad : bool
        :math:`dW = G \odot M`, without the :math:`1/(1 - p)`, as in the authors' code. It is not
        the derivative.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional
        Source of the seed.

    Returns
    -------
    Tensor
        Like w. Where w and pretrained are equal it is exactly that.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The mask is that of `dropout` for the same seed and drawn again in the backward. Bytes moved:
    both tensors read and the result written; ``author_grad`` costs one more pass in the backward,
    ``shared`` in bfloat16 and float16 conversions from and to float32.

    References
    ----------
    Lee, Cho and Kang, "Mixout: effective regularization to finetune large-scale pretrained language
    models", ICLR 2020.
    """
    op = "mixout"
    checks.floating(op, "w", w)
    checks.same(op, "pretrained", pretrained, w, "w")
    number, p_tensor = number_of(op, "p", p, w)
    dims = _dims(op, w, shared)
    if not training:
        return w
    given = resolve_seed(op, w, seed, generator)
    if author_grad:
        factor = 1 - number if p_tensor is None else 1 - p_tensor
        w = function_apply(_ScaledGradient, w, factor)
    if not dims:
        y: Tensor = bernoulli_blend(
            w, pretrained, given, number, p_tensor, None, None, "mix", False, True
        )
        return y
    # One factor for each group: small.
    sizes = [1 if d in dims else n for d, n in enumerate(w.shape)]
    wide = torch.float64 if w.dtype == torch.float64 else torch.float32
    ones = torch.ones(sizes, dtype=wide, device=w.device)
    factors = dropout(ones, number if p_tensor is None else p_tensor, seed=given)
    mixed: Tensor = torch.lerp(pretrained.to(wide), w.to(wide), factors)
    return mixed.to(w.dtype)


def mixout_(
    weights: Tensor | Iterable[Tensor],
    pretrained: Tensor | Iterable[Tensor] | None = None,
    p: float | Tensor = 0.5,
    *,
    scale: bool = True,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> None:
    r"""`mixout`, or dropout, of all weights of a network in place and in one call.

    .. math::
        W \leftarrow W_0 + (W - W_0) \odot M \cdot \frac{1}{1 - p}, \qquad
        M \sim \mathrm{Bernoulli}(1 - p)

    Parameters
    ----------
    weights : Tensor or iterable of Tensor
        On one device; float32, float64, bfloat16 or float16, also of several dtypes.
    pretrained : Tensor or iterable of Tensor, optional
        :math:`W_0`, tensor by tensor like the weights. None: zeros. The gradients of weights that
        were mixed by some seed become those of the weights before by the call with that seed on the
        gradients alone.
    p : float or Tensor
        As of `mixout`.
    scale : bool
        False: without the :math:`1/(1 - p)`.
    seed, generator
        As of `mixout`. Elements are numbered over the whole list, each tensor beginning at a
        multiple of 128, so that no two tensors share random bits; a list of one tensor has the mask
        of `mixout`.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd; leaves that require gradients may be written. Bytes moved: both
    tensors read and one written.

    References
    ----------
    Lee, Cho and Kang, "Mixout: effective regularization to finetune large-scale pretrained language
    models", ICLR 2020.
    """
    op = "mixout_"
    xs = checks.tensor_list(op, "weights", weights)
    old = [] if pretrained is None else checks.tensor_list(op, "pretrained", pretrained)
    if old and len(old) != len(xs):
        raise ValueError(
            f"regkern.{op}: expected as many `pretrained` as `weights`, {len(xs)}, got {len(old)}"
        )
    for i, (x, y) in enumerate(zip(xs, old, strict=False)):
        checks.same(op, f"pretrained[{i}]", y, x, f"weights[{i}]")
    number, p_tensor = number_of(op, "p", p, xs[0])
    given = resolve_seed(op, xs[0], seed, generator)
    with torch.no_grad():
        _mixout_(xs, old, given, number, p_tensor, scale)

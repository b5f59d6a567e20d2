"""Stablemax and its cross-entropy, the weight compander and ASH, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.proximal.projections import check_dim
from regkern.proximal.simplex import Reduction


def number(op: str, name: str, value: float | Tensor, like: Tensor) -> float | Tensor:
    """A parameter that is at least 0; a tensor becomes 0-d, of the compute type of ``like``."""
    checks.scale(op, name, value)
    if isinstance(value, Tensor):
        return value.to(device=like.device, dtype=compute_dtype(like)).reshape(())
    return value


def positive(op: str, name: str, value: float | Tensor, like: Tensor) -> float | Tensor:
    """As `number`, and a number is not 0. Tensors are not looked at."""
    checked = number(op, name, value, like)
    if not isinstance(checked, Tensor) and checked == 0:
        raise ValueError(f"regkern.{op}: expected `{name}` above 0, got {value}")
    return checked


def _log_scores(x: Tensor) -> Tensor:
    """ln s(x) = ±ln(1 + |x|). The slope at 0 is 1, which that of |x| is not."""
    below = x < 0
    logs = torch.where(below, -x, x).log1p()
    return torch.where(below, -logs, logs)


def stablemax(x: Tensor, dim: int = -1) -> Tensor:
    r"""Stablemax: softmax whose scores grow linearly, not exponentially.

    .. math:: p_i = \frac{s(x_i)}{\sum_j s(x_j)}, \qquad
        s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1 / (1 - x) & x < 0 \end{cases}

    Parameters
    ----------
    x : Tensor
        Logits: float32, float64, bfloat16 or float16.
    dim : int
        The dimension that adds up to 1.

    Returns
    -------
    Tensor
        Like ``x``. A logit of −∞ has probability 0; as with softmax, a slice of nothing else, or
        with ∞, is NaN. Differentiable as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The softmax of :math:`\ln s(x) = \operatorname{sgn}(x) \ln(1 + |x|)`: sums of scores do not
    overflow. Plain torch: x is read and written by every step.

    References
    ----------
    Prieto, Barsbey, Mediano and Birdal, "Grokking at the edge of numerical stability", ICLR 2025.
    """
    dim = check_dim("stablemax", x, dim)
    return _log_scores(x.to(compute_dtype(x))).softmax(dim).to(x.dtype)


def stablemax_cross_entropy(
    x: Tensor,
    target: Tensor,
    dim: int = -1,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""The cross-entropy of stablemax probabilities.

    .. math:: L = -\ln \frac{s(x_y)}{\sum_j s(x_j)}
        = \ln\Bigl(1 + \sum_{j \ne y} \frac{s(x_j)}{s(x_y)}\Bigr)

    with the scores s of `stablemax`.

    Parameters
    ----------
    x : Tensor
        Logits: float32, float64, bfloat16 or float16.
    target : Tensor
        int64 class indices y of x's shape without ``dim``.
    dim : int
        The dimension of the classes.
    ignore_index : int
        Slices of this class index have loss and gradient 0 and are not counted in the mean.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` of no slices is NaN, as torch's.

    Returns
    -------
    Tensor
        0-d, or of x's shape without ``dim``; of x's dtype. NaN for a class index that does not
        exist. Differentiable as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Computed from the right form above, in logarithms: neither the loss nor its gradient is absorbed
    where all others together are less than an ulp of the target's score. Plain torch: x is read and
    written by every step.

    References
    ----------
    Prieto, Barsbey, Mediano and Birdal, "Grokking at the edge of numerical stability", ICLR 2025.
    """
    op = "stablemax_cross_entropy"
    dim = check_dim(op, x, dim)
    checks.on_device(op, "target", target, x)
    checks.one_of(op, "reduction", reduction, ("none", "mean", "sum"))
    if target.dtype != torch.int64:
        raise TypeError(f"regkern.{op}: expected `target` of dtype int64, got {target.dtype}")
    wanted = tuple(n for d, n in enumerate(x.shape) if d != dim)
    if tuple(target.shape) != wanted:
        raise ValueError(
            f"regkern.{op}: expected `target` of shape {wanted}, got {tuple(target.shape)}"
        )
    classes = x.shape[dim]
    if classes == 0:
        raise ValueError(f"regkern.{op}: expected `x` with classes, got {tuple(x.shape)}")
    counted = target != ignore_index
    known = (target >= 0) & (target < classes)
    index = target.clamp(0, classes - 1).unsqueeze(dim)
    # What is not counted has no gradient, even if it is not a number.
    wide = x.to(compute_dtype(x)).masked_fill(~counted.unsqueeze(dim), 0.0)
    logs = _log_scores(wide)
    others = logs.scatter(dim, index, -torch.inf)
    # Of nothing but -inf, the gradient of logsumexp is not a number.
    none = (others == -torch.inf).all(dim, keepdim=True)
    rest = others.masked_fill(none, 0.0).logsumexp(dim, keepdim=True).masked_fill(none, -torch.inf)
    loss = -F.logsigmoid(logs.gather(dim, index) - rest).squeeze(dim)
    loss = torch.where(known, loss, torch.nan).masked_fill(~counted, 0.0)
    if reduction == "mean":
        loss = loss.sum() / counted.sum()
    elif reduction == "sum":
        loss = loss.sum()
    return loss.to(x.dtype)


# Far below the root a step about squares the distance from 0, near it the error.
_NEWTON_STEPS = 64


def compand(v: Tensor, a: float | Tensor, b: float | Tensor, c: float | Tensor = 0.0) -> Tensor:
    r"""The weight compander, which holds large weights back and pushes small ones off zero.

    .. math:: \psi(v) = a \arctan(v / b) + c\, v

    Odd and rising; with slope :math:`a / b + c` at 0 and, for c = 0, below
    :math:`a \pi / 2` in magnitude.

    Parameters
    ----------
    v : Tensor
        float32, float64, bfloat16 or float16.
    a, c : float or Tensor
        At least 0; one element, differentiable.
    b : float or Tensor
        Above 0; one element, differentiable.

    Returns
    -------
    Tensor
        Like ``v``. Differentiable as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    `regkern.nn.proximal.WeightCompander` is the parametrization of a module's weight. Plain torch:
    v is read and written by every step.

    References
    ----------
    Cakaj, Mehnert and Yang, "Weight Compander: a simple weight reparameterization for
    regularization", IJCNN 2023.
    """
    op = "compand"
    checks.floating(op, "v", v)
    height, width, slope = number(op, "a", a, v), positive(op, "b", b, v), number(op, "c", c, v)
    wide = v.to(compute_dtype(v))
    bent = height * (wide / width).atan()
    if isinstance(slope, Tensor) or slope != 0:
        bent = bent + slope * wide
    return bent.to(v.dtype)


def compand_inverse(
    w: Tensor, a: float | Tensor, b: float | Tensor, c: float | Tensor = 0.0
) -> Tensor:
    r"""The inverse of `compand`: the v of which ψ(v) = w.

    Parameters
    ----------
    w : Tensor
        float32, float64, bfloat16 or float16.
    a, b, c : float or Tensor
        As in `compand`.

    Returns
    -------
    Tensor
        Like ``w``. For c = 0 no v reaches beyond :math:`a \pi / 2`: there, and so close below that
        the slope is lost in rounding, the v of :math:`a (\pi / 2 - \sqrt \epsilon)`. Not recorded
        by autograd.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    For c = 0 in closed form. Else Newton's iteration from 0, in float64 and a fixed number of
    steps: ψ is concave above 0, so every iterate is below the root and above the one before. The
    device is not waited for.

    References
    ----------
    See `compand`.
    """
    op = "compand_inverse"
    checks.floating(op, "w", w)
    with torch.no_grad():
        wide = w.double()
        height, width, slope = number(op, "a", a, w), positive(op, "b", b, w), number(op, "c", c, w)
        magnitude = wide.abs()
        bound = torch.pi / 2 - torch.finfo(compute_dtype(w)).eps ** 0.5
        v = (magnitude / height).clamp(max=bound).tan() * width
        if isinstance(slope, Tensor) or slope != 0:
            root = torch.zeros_like(wide)
            for _ in range(_NEWTON_STEPS):
                share = root / width
                miss = magnitude - height * share.atan() - slope * root
                root = root + miss / (height / width / (1 + share * share) + slope)
            root = torch.where(magnitude == torch.inf, magnitude, root)
            v = torch.where(slope == 0, v, root) if isinstance(slope, Tensor) else root
        return v.copysign(wide).to(w.dtype)


def ash(
    x: Tensor,
    k: float,
    alpha: float | Tensor = 1.0,
    dim: int | Sequence[int] = -1,
    hard: bool = False,
) -> Tensor:
    r"""ASH: a smooth threshold that lets the largest k of a layer's activations through, were they
    normally distributed; hard ASH makes zeros of the others.

    .. math:: y = x\, \sigma\bigl(\alpha (x - \mu - z_k s)\bigr), \qquad z_k = \Phi^{-1}(1 - k)

    with mean μ and standard deviation s of each slice, and the logistic function σ or, for hard
    ASH, :math:`\sigma(u) = \min(\max(u / 6 + 1/2, 0), 1)`.

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16 or float16.
    k : float
        The share of activations above the threshold, between 0 and 1.
    alpha : float or Tensor
        The steepness α, at least 0; one element, differentiable.
    dim : int or sequence of int
        The dimensions over which mean and standard deviation are taken.
    hard : bool
        The piecewise linear σ.

    Returns
    -------
    Tensor
        Like ``x``. Differentiable as often as wanted, through μ and s as well; the gradient of s is
        0 where all are equal.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    s is the population's standard deviation. Plain torch: x is read and written by every step.

    References
    ----------
    Keskinen, "Hard ASH: sparsity and the right optimizer make a continual learner", Tiny Papers at
    ICLR 2024. Lee, Yang, Lee and Hwang, "Stochastic adaptive activation function", NeurIPS
    2022.
    """
    op = "ash"
    dims = [check_dim(op, x, d) for d in ([dim] if isinstance(dim, int) else dim)]
    if isinstance(k, Tensor):
        raise TypeError(f"regkern.{op}: expected `k` to be a number, got {type(k)}")
    checks.probability(op, "k", k)
    if k == 0 or k == 1:
        raise ValueError(f"regkern.{op}: expected `k` between 0 and 1, got {k}")
    steepness = number(op, "alpha", alpha, x)
    if x.numel() == 0:
        return x.clone()
    wide = x.to(compute_dtype(x))
    variance, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
    equal = variance == 0
    deviation = torch.where(equal, 1.0, variance).sqrt().masked_fill(equal, 0.0)
    quantile: Tensor = -torch.special.ndtri(torch.full((), k, dtype=torch.float64, device=x.device))
    u = steepness * (wide - mean - quantile * deviation)
    share = (u / 6 + 0.5).clamp(0, 1) if hard else u.sigmoid()
    return (wide * share).to(x.dtype)

"""Penalties of whole networks and of activations, value and gradient fused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply, register
from regkern.proximal.thresholds import _same_dtype, kth_magnitude

# ---- raw ops: fake kernels and autograd ----


def _fake_pool(x: Tensor, keep: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    batch, _, columns = x.shape
    rows = batch if kind == "max" else 0
    return x.new_empty((batch, columns)), x.new_empty((rows, columns), dtype=torch.int32)


_pool = register("column_pool", _fake_pool)
_pool_backward = register(
    "column_pool_backward", lambda g, x, keep, place, kind: x.new_empty(x.shape)
)
_sums = register(
    "network_sums", lambda xs, centre, form: xs[0].new_empty((3,), dtype=torch.float64)
)
_gradients = register(
    "network_gradients", lambda xs, numbers, form: [x.new_empty(x.shape) for x in xs]
)


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, keep, ctx.kind = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, keep, output[1])


def _pool_gradient(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    x, keep, place = ctx.saved_tensors
    return _pool_backward(g, x, keep, place, ctx.kind), None, None


def _pool_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, x, keep, place, ctx.kind = inputs
    ctx.save_for_backward(g, x, keep, place)


def _pool_second(ctx: Any, back: Tensor) -> tuple[Any, ...]:
    """With dx = g h(x): Σ back h(x) and back g h'(x), in plain torch."""
    g, x, keep, place = ctx.saved_tensors
    wide, up = x.to(compute_dtype(x)), back.to(compute_dtype(x))
    if ctx.kind == "magnitude":
        slope, bend = wide.sign() / max(x.shape[1], 1), torch.zeros_like(wide)
    else:
        at = wide > 0
        if ctx.kind == "max":
            steps = torch.arange(x.shape[1], device=x.device, dtype=torch.int32)
            at = at & (place[:, None] == steps[None, :, None])
        elif keep is not None:
            at = at & keep[:, :, None]
        slope = torch.where(at, 1 / (1 + torch.where(at, wide, 0.0)), 0.0)
        bend = -slope * slope
    dg = (up * slope).sum(1)
    dx = up * g.to(wide.dtype)[:, None] * bend
    return dg.to(g.dtype), dx.to(x.dtype), None, None, None


_pool.differentiable(_pool_setup, _pool_gradient)
_pool_backward.differentiable(_pool_backward_setup, _pool_second)


class _Polarization(torch.autograd.Function):
    @staticmethod
    def forward(t: Tensor, *xs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = sum(x.numel() for x in xs)
        zero = torch.zeros((), dtype=torch.float64, device=xs[0].device)
        plain = _sums(list(xs), zero, "centred")
        mean = plain[0] / max(count, 1)
        centred = _sums(list(xs), mean, "centred")
        value = t.double() * plain[1] - centred[1]
        pull = centred[2] / max(count, 1)
        return value.to(compute_dtype(xs[0])), torch.stack([mean, pull]), plain[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Any, ...]:
        t, *xs, numbers, total = ctx.saved_tensors
        mean, pull = numbers.unbind()
        wide, zero, one = g.double(), torch.zeros_like(mean), torch.ones_like(mean)
        dt = (wide * total).to(t.dtype)
        if not torch.is_grad_enabled():
            weights = torch.stack([mean, t.double() * wide, -wide, wide * pull])
            return dt, *_gradients(xs, weights, "centred")
        # Signs are constant almost everywhere; g and t are not.
        with torch.no_grad():
            signs = _gradients(xs, torch.stack([mean, one, zero, zero]), "centred")
            centred = _gradients(xs, torch.stack([mean, zero, -one, pull]), "centred")
        pairs = zip(signs, centred, strict=True)
        dt = (wide * sum(x.double().abs().sum() for x in xs)).to(t.dtype)
        return dt, *(g.to(a.dtype) * (t.to(a.dtype) * a + b) for a, b in pairs)


class _HyperSparse(torch.autograd.Function):
    @staticmethod
    def forward(kth: Tensor, *xs: Tensor) -> tuple[Tensor, Tensor]:
        kth = kth.double()
        # Where so many weights are zero already, nothing is pulled.
        reached = kth == 0
        s = torch.where(reached, 1.0, math.atanh(1 / math.sqrt(3)) / kth)
        sums = _sums(list(xs), s, "saturated")
        slope = torch.where(reached, 0.0, s * sums[0] / sums[1])
        # Zero, but for what is not a number.
        value = (sums[0] - sums[0]).to(compute_dtype(xs[0]))
        return value, torch.stack([s, slope])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[1:], output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("regkern.hypersparse: expected no second derivative, got one")
        *xs, numbers = ctx.saved_tensors
        zero = torch.zeros_like(numbers[0])
        weights = torch.stack([numbers[0], g.double() * numbers[1], zero, zero])
        return None, *_gradients(xs, weights, "saturated")


# ---- public functions ----


def polarization(tensors: Tensor | Sequence[Tensor], t: float | Tensor = 1.2) -> Tensor:
    r"""The polarization regularizer of scaling factors.

    .. math:: R = \sum_i t\, |\gamma_i| - |\gamma_i - \bar\gamma|

    with the mean :math:`\bar\gamma` over all tensors: factors move to 0 or to a common value.

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        The scaling factors of a network, all of one dtype.
    t : float or Tensor
        The weight of the ℓ1 term, one element; differentiable.

    Returns
    -------
    Tensor
        0-d, float32 (float64 for float64). Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The gradient is :math:`t\, \operatorname{sgn} \gamma_i - \operatorname{sgn}(\gamma_i -
    \bar\gamma) + \operatorname{mean}_j \operatorname{sgn}(\gamma_j - \bar\gamma)`. Bytes moved:
    factors read twice, in the backward once more.

    References
    ----------
    Zhuang et al., "Neuron-level structured pruning using polarization regularizer", NeurIPS 2020.
    """
    op = "polarization"
    xs = _same_dtype(op, tensors)
    dtype = compute_dtype(xs[0])
    if isinstance(t, Tensor):
        checks.on_device(op, "t", t, xs[0])
        if t.numel() != 1:
            raise ValueError(f"regkern.{op}: expected `t` of one element, got {tuple(t.shape)}")
        factor = t.reshape(()).to(dtype)
    else:
        factor = torch.full((), t, dtype=dtype, device=xs[0].device)
    value: Tensor = function_apply(_Polarization, factor, *xs)[0]
    return value


def hypersparse(tensors: Tensor | Sequence[Tensor], fraction: float) -> Tensor:
    r"""The HyperSparse loss: its value is 0, its gradient pulls the weights to be pruned to zero.

    .. math:: L = \frac{1}{A} \sum_i |w_i| \sum_j \tanh(s |w_j|) - \sum_i |w_i|, \qquad
        A = \sum_j \tanh(s |w_j|), \quad s = \frac{\operatorname{artanh}(1/\sqrt 3)}{|w|_{(k)}}

    with s and A held fixed and the k-th smallest magnitude of all weights, :math:`k = \lfloor
    \kappa N \rfloor`:

    .. math:: \frac{\partial L}{\partial w_j} = \operatorname{sgn}(w_j)\, \frac{\sum_i |w_i|}{A}\,
        s\, (1 - \tanh^2(s w_j))

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        All weights that are pruned, of one dtype.
    fraction : float
        κ in [0, 1]: the share of weights to be pruned.

    Returns
    -------
    Tensor
        0-d, 0 (NaN where a weight is NaN or infinite). Differentiable once: a second derivative is
        refused. Where the k-th magnitude is 0 already, the gradient is 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: for float32 weights read 4 times; in the backward once more, and gradients written.

    References
    ----------
    Glandorf, Kaiser and Rosenhahn, "HyperSparse neural networks: shifting exploration to
    exploitation through adaptive regularization", ICCV Workshops 2023.
    """
    op = "hypersparse"
    xs = _same_dtype(op, tensors)
    checks.probability(op, "fraction", fraction)
    kth = kth_magnitude([x.detach() for x in xs], fraction=fraction).value
    value: Tensor = function_apply(_HyperSparse, kth, *xs)[0]
    return value


def flops_penalty(activations: Tensor) -> Tensor:
    r"""The FLOPs regularizer of sparse representations.

    .. math:: F = \sum_j \Bigl( \frac{1}{n} \sum_i |A_{ij}| \Bigr)^2

    Parameters
    ----------
    activations : Tensor
        A of shape (n, p), with a batch dimension in front.

    Returns
    -------
    Tensor
        0-d, of the dtype of ``activations``. Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: A read once; in the backward read once more, and its gradient written.

    References
    ----------
    Paria, Yeh, Yen, Xu, Ravikumar and Póczos, "Minimizing FLOPs to learn efficient sparse
    representations", ICLR 2020.
    """
    op = "flops_penalty"
    checks.floating(op, "activations", activations)
    if activations.dim() != 2:
        raise ValueError(
            f"regkern.{op}: expected `activations` of shape (n, p), got {tuple(activations.shape)}"
        )
    mean: Tensor = _pool(activations[None], None, "magnitude")[0]
    wide = mean.to(compute_dtype(mean))
    return (wide * wide).sum().to(activations.dtype)


def splade_pool(
    logits: Tensor, mask: Tensor | None = None, pooling: Literal["max", "sum"] = "max"
) -> Tensor:
    r"""The term weights of SPLADE, from the logits of a language model.

    .. math:: w_{bj} = \max_t \ln(1 + \operatorname{relu}(x_{btj})) \;\text{ or }\;
        \sum_t \ln(1 + \operatorname{relu}(x_{btj}))

    over the tokens t that the mask keeps.

    Parameters
    ----------
    logits : Tensor
        (batch, tokens, vocabulary); float32, float64, bfloat16 or float16.
    mask : Tensor, optional
        (batch, tokens): what is not 0 is kept. Where nothing is, the weight is 0.
    pooling : {"max", "sum"}
        Maximum (version 2) or sum (version 1).

    Returns
    -------
    Tensor
        (batch, vocabulary), like ``logits``. Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Gradients of a maximum go to the first token that has it. Bytes moved: logits read once, with no
    activations of their shape in between; in the backward read once more and the gradient written.

    References
    ----------
    Formal, Piwowarski and Clinchant, "SPLADE: sparse lexical and expansion model for first stage
    ranking", SIGIR 2021.
    """
    op = "splade_pool"
    checks.floating(op, "logits", logits)
    checks.one_of(op, "pooling", pooling, ("max", "sum"))
    if logits.dim() != 3:
        raise ValueError(
            f"regkern.{op}: expected `logits` of shape (batch, tokens, vocabulary), got "
            f"{tuple(logits.shape)}"
        )
    if mask is not None:
        checks.on_device(op, "mask", mask, logits)
        if mask.shape != logits.shape[:2]:
            raise ValueError(
                f"regkern.{op}: expected `mask` of shape {tuple(logits.shape[:2])}, got "
                f"{tuple(mask.shape)}"
            )
        mask = mask != 0
    out: Tensor = _pool(logits, mask, pooling)[0]
    return out


def path_norm(weights: Sequence[Tensor]) -> Tensor:
    r"""The ℓ1 path norm of a chain of linear layers: the sum over all paths of the products of the
    magnitudes of their weights.

    .. math:: R = 1^\top |W_L| \cdots |W_2|\, |W_1|\, 1

    Parameters
    ----------
    weights : sequence of Tensor
        W_1 to W_L of shapes (outputs, inputs), in the order in which they are applied.

    Returns
    -------
    Tensor
        0-d. Differentiable as often as wanted.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Matrix-vector products of :func:`torch.mv`: every weight is read and its magnitude written.

    References
    ----------
    Neyshabur, Tomioka and Srebro, "Norm-based capacity control in neural networks", COLT 2015.
    """
    op = "path_norm"
    ws = _same_dtype(op, weights)
    for i, w in enumerate(ws):
        if w.dim() != 2 or (i > 0 and w.shape[1] != ws[i - 1].shape[0]):
            inputs = ws[i - 1].shape[0] if i > 0 else "inputs"
            raise ValueError(
                f"regkern.{op}: expected `weights[{i}]` of shape (outputs, {inputs}), got "
                f"{tuple(w.shape)}"
            )
    paths = ws[0].new_ones(ws[0].shape[1])
    for w in ws:
        paths = w.abs() @ paths
    return paths.sum()

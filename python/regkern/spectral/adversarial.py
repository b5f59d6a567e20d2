"""Virtual adversarial training: divergences of logits, and the directions that raise them most."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, register
from regkern.spectral.directions import sphere_directions
from regkern.spectral.samples import check_samples, normalize_samples

Reduction = Literal["none", "mean", "sum"]

# ---- raw ops: fake kernels and autograd ----


def _fake_kl(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    value = p.new_empty((p.shape[0],), dtype=compute_dtype(p))
    return value, value.new_empty((6, p.shape[0]))


def _fake_kl_backward(
    g: Tensor, p: Tensor, q: Tensor, value: Tensor, stats: Tensor, both: bool
) -> tuple[Tensor, Tensor]:
    return p.new_empty((p.shape[0] if both else 0, p.shape[1])), q.new_empty(q.shape)


_kl = register("softmax_kl", _fake_kl)
_kl_backward = register("softmax_kl_backward", _fake_kl_backward)


def _kl_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _kl_gradient(ctx: Any, g: Tensor, _: Any) -> tuple[Tensor | None, Tensor]:
    p, q, value, stats = ctx.saved_tensors
    both = ctx.needs_input_grad[0]
    dp, dq = _kl_backward(g, p, q, value, stats, both)
    return dp if both else None, dq


def _kl_second_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    g, p, q, _, _, ctx.both = inputs
    ctx.save_for_backward(g, p, q)


def _kl_second(ctx: Any, u: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:
    """The derivative of Σ g (⟨u, dp⟩ + ⟨v, dq⟩), in plain torch, value and statistics included."""
    g, p, q = ctx.saved_tensors
    kind = compute_dtype(p)
    # A row that p rules out has nothing to differentiate.
    ruled_out = (p == -torch.inf).all(1, keepdim=True)
    p_log, q_log = (torch.where(ruled_out, 0.0, t.to(kind)).log_softmax(1) for t in (p, q))
    scale = torch.where(ruled_out[:, 0], 0.0, g)[:, None]
    p_all, q_all = p_log.exp(), q_log.exp()
    v = v.to(kind)
    v_p, v_q = (p_all * v).sum(1, keepdim=True), (q_all * v).sum(1, keepdim=True)
    dg = v_q - v_p
    dp = -p_all * (v - v_p)
    dq = q_all * (v - v_q)
    if ctx.both:
        u = u.to(kind)
        d = torch.where(p_all > 0, q_log - p_log, 0.0)
        e = -d + (p_all * d).sum(1, keepdim=True)  # −d − KL
        mean = (p_all * u).sum(1, keepdim=True)
        along = (p_all * e * u).sum(1, keepdim=True)
        dg = dg + along
        dp = dp + p_all * ((e + 1.0) * (u - mean) - along)
        dq = dq + p_all * (mean - u)
    dg = torch.where(ruled_out, 0.0, dg)
    return dg[:, 0], (scale * dp).to(p.dtype), (scale * dq).to(q.dtype), None, None, None


_kl.differentiable(_kl_setup, _kl_gradient)
_kl_backward.differentiable(_kl_second_setup, _kl_second)


def _reduced(op: str, value: Tensor, reduction: Reduction) -> Tensor:
    checks.one_of(op, "reduction", reduction, ("none", "mean", "sum"))
    if reduction == "none":
        return value
    return value.mean() if reduction == "mean" else value.sum()


# ---- public functions ----


def softmax_kl(
    p_logits: Tensor,
    q_logits: Tensor,
    dim: int = -1,
    *,
    both: bool = False,
    reduction: Reduction = "none",
) -> Tensor:
    r"""The divergence of two softmax distributions, from their logits.

    .. math::
        \operatorname{KL}(P \,\Vert\, Q) = \sum_i P_i \ln \frac{P_i}{Q_i}, \qquad
        P = \operatorname{softmax}(p), \; Q = \operatorname{softmax}(q)

    It is computed as :math:`\sum_i P_i (e^{d_i} - 1 - d_i)` with :math:`d = \ln Q - \ln P`, where
    no term is negative and nothing cancels: logits that differ by 1e-6 have a divergence of about
    1e-12, in float32 too.

    Parameters
    ----------
    p_logits, q_logits : Tensor
        Of one shape and dtype, at least one dimension. −∞ in both is a class that adds nothing; in
        q alone it makes the divergence infinite. A row that p rules out altogether has divergence
        and gradients 0.
    dim : int
        The classes.
    both : bool
        Whether p has a gradient as well. Otherwise it is a constant.
    reduction : {"none", "mean", "sum"}
        Over the rows.

    Returns
    -------
    Tensor
        One number for each row, or 0-d; float32, or float64 where the logits are. Differentiable
        any number of times.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Bytes moved: both logits read once; the gradient reads them again and writes one or two of them.
    Nothing but six numbers a row is saved besides the logits.

    References
    ----------
    Miyato, Maeda, Koyama and Ishii, "Virtual adversarial training: a regularization method for
    supervised and semi-supervised learning", TPAMI 2018.
    """
    op = "softmax_kl"
    check_samples(op, "p_logits", p_logits)
    checks.same(op, "q_logits", q_logits, p_logits, "p_logits")
    if not -p_logits.dim() <= dim < p_logits.dim():
        raise ValueError(
            f"regkern.{op}: expected `dim` in [{-p_logits.dim()}, {p_logits.dim() - 1}], got {dim}"
        )
    p = p_logits if both else p_logits.detach()
    rows = [t.movedim(dim, -1) for t in (p, q_logits)]
    shape = rows[0].shape
    value: Tensor = _kl(*(t.reshape(math.prod(shape[:-1]), shape[-1]) for t in rows))[0]
    return _reduced(op, value.reshape(shape[:-1]), reduction)


def softmax_entropy(logits: Tensor, dim: int = -1, *, reduction: Reduction = "mean") -> Tensor:
    r"""The entropy :math:`-\sum_i P_i \ln P_i` of a softmax, which VAT minimises besides.

    A class with logit −∞ adds nothing.
    """
    checks.floating("softmax_entropy", "logits", logits)
    log_p = logits.to(compute_dtype(logits)).log_softmax(dim)
    p = log_p.exp()
    value = -(p * torch.where(p > 0, log_p, 0.0)).sum(dim)
    return _reduced("softmax_entropy", value, reduction)


def adversarial_perturbation(
    loss: Tensor,
    x: Tensor,
    eps: float | Tensor,
    *,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""The step of length ε that raises a loss most, sample by sample.

    .. math:: r_i = \varepsilon\, g_i / \lVert g_i \rVert, \qquad g = \partial loss / \partial x

    For text, x are the embedded words, and the norm is that of the whole sequence.

    Parameters
    ----------
    loss : Tensor
        0-d; its graph is kept.
    x : Tensor
        What requires a gradient, (batch, ...).
    eps : float or Tensor
        ε: a number, or one for each sample.
    lengths, mask : Tensor, optional
        What belongs to a sample: see :func:`normalize_samples`.

    Returns
    -------
    Tensor
        Like x; a constant. 0 for a sample whose gradient is 0.

    References
    ----------
    Miyato, Dai and Goodfellow, "Adversarial training methods for semi-supervised text
    classification", ICLR 2017.
    """
    check_samples("adversarial_perturbation", "x", x)
    (g,) = torch.autograd.grad(loss, x, retain_graph=True)
    return normalize_samples(g, eps, lengths=lengths, mask=mask)


def virtual_adversarial_loss(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    xi: float = 1e-2,
    eps: float | Tensor = 1.0,
    n_iter: int = 1,
    logits: Tensor | None = None,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Local distributional smoothness: the divergence in the direction where it grows fastest.

    .. math::
        \operatorname{mean}_i \operatorname{KL}\bigl(\hat{p}(x_i) \,\Vert\, p(x_i + \varepsilon
        d_i)\bigr), \qquad d \leftarrow \frac{g}{\lVert g \rVert}, \;
        g = \nabla_r \operatorname{KL}\bigl(\hat{p}(x) \,\Vert\, p(x + r)\bigr) \big|_{r = \xi d}

    with n_iter steps of the finite-difference power iteration from a random direction, and
    :math:`\hat{p}` constant.

    Parameters
    ----------
    model : callable
        Gives logits (batch, ..., classes). It is called ``n_iter`` + 1 times, and once more without
        ``logits``: batch statistics should be frozen meanwhile.
    x : Tensor
        (batch, ...).
    xi : float
        ξ, the step of the difference. The divergence does not cancel, so that it may be small.
    eps : float or Tensor
        ε, the length of the perturbation: a number, or one for each sample.
    n_iter : int
        Power iterations, at least 0 (a random direction).
    logits : Tensor, optional
        Those of x, where they are known; a constant.
    lengths, mask : Tensor, optional
        What belongs to a sample: see :func:`normalize_samples`.
    seed, generator
        As of :func:`random_directions`.

    Returns
    -------
    Tensor
        0-d, differentiable in the model's parameters.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Miyato, Maeda, Koyama and Ishii, "Virtual adversarial training: a regularization method for
    supervised and semi-supervised learning", TPAMI 2018.
    """
    op = "virtual_adversarial_loss"
    check_samples(op, "x", x)
    if n_iter < 0:
        raise ValueError(f"regkern.{op}: expected `n_iter` to be at least 0, got {n_iter}")
    if not xi > 0.0:
        raise ValueError(f"regkern.{op}: expected `xi` to be positive, got {xi}")
    x = x.detach()
    with torch.no_grad():
        known = model(x) if logits is None else logits.detach()
    d = sphere_directions(x, seed=seed, generator=generator)
    d = normalize_samples(d, lengths=lengths, mask=mask)
    for _ in range(n_iter):
        with torch.enable_grad():
            r = (xi * d).requires_grad_()
            growth = softmax_kl(known, model(x + r), reduction="sum")
            (g,) = torch.autograd.grad(growth, r)
        d = normalize_samples(g, lengths=lengths, mask=mask)
    return softmax_kl(known, model(x + normalize_samples(d, eps)), reduction="mean")


def normalize_embeddings(weight: Tensor, frequencies: Tensor) -> Tensor:
    r"""Embeddings of mean 0 and variance 1 over the words of a text.

    .. math::
        \bar{v}_k = \frac{v_k - \mu}{\sqrt{\sigma^2}}, \qquad \mu = \sum_j f_j v_j, \quad
        \sigma^2 = \sum_j f_j (v_j - \mu)^2

    so that no perturbation becomes small by embeddings that grow.

    Parameters
    ----------
    weight : Tensor
        (words, D).
    frequencies : Tensor
        (words), not negative: counts, or shares.

    Returns
    -------
    Tensor
        Like ``weight``, differentiable in it. A dimension that does not vary is 0.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Miyato, Dai and Goodfellow, "Adversarial training methods for semi-supervised text
    classification", ICLR 2017.
    """
    op = "normalize_embeddings"
    checks.floating(op, "weight", weight)
    checks.on_device(op, "frequencies", frequencies, weight)
    if weight.dim() != 2 or tuple(frequencies.shape) != (weight.shape[0],):
        raise ValueError(
            f"regkern.{op}: expected `weight` of shape (words, D) and `frequencies` of shape "
            f"(words), got {tuple(weight.shape)} and {tuple(frequencies.shape)}"
        )
    wide = weight.to(compute_dtype(weight))
    share = frequencies.to(wide.dtype)
    share = share / share.sum()
    centred = wide - share @ wide
    variance = share @ centred.square()
    still = variance == 0
    factor = torch.where(still, 0.0, torch.where(still, 1.0, variance).rsqrt())
    return (centred * factor).to(weight.dtype)

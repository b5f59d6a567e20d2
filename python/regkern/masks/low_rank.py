"""Dropout of the rows and columns of a low-rank branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regkern import _checks as checks
from regkern.masks.dropping import dropout
from regkern.random import resolve_seed


def lora_dropout(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    scale: float = 1.0,
    samples: int = 1,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A low-rank branch without random input columns and output rows (LoRA dropout).

    .. math::
        y = \frac{s}{N} \sum_{n=1}^N m_B^{(n)} \odot \bigl(B (A (m_A^{(n)} \odot x))\bigr), \qquad
        m_A, m_B \sim \mathrm{Bernoulli}(1 - p)

    The masks are shared by the batch; the rank is not dropped and nothing is rescaled.

    Parameters
    ----------
    x : Tensor
        (\*, in).
    a : Tensor
        A, (rank, in).
    b : Tensor
        B, (out, rank).
    p : float or Tensor
        Probability of a zero: a number or one element, which may change without recompiling.
    training : bool
        False: no masks.
    scale : float
        s.
    samples : int
        N masks whose branches are averaged: an ensemble at test time, with ``training`` True.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional
        Source of the seed.

    Returns
    -------
    Tensor
        (\*, out).

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The masks are applied to A and B, which are small, and an ensemble is one branch of rank N·rank:
    x is read once and no masked copy of it exists. Gradients of dropped columns of A and rows of B
    are exactly zero. Bytes moved: those of the two products, and A and B once more.

    References
    ----------
    Lin, Ma, Chu, Jin, Yang, Wang and Mei, "LoRA dropout as a sparsity regularizer for overfitting
    control", 2024.
    """
    op = "lora_dropout"
    for name, t in (("x", x), ("a", a), ("b", b)):
        checks.floating(op, name, t)
        checks.on_device(op, name, t, x)
    if a.dim() != 2 or x.dim() == 0 or a.shape[1] != x.shape[-1]:
        raise ValueError(
            f"regkern.{op}: expected `a` of shape (rank, in) with in that of `x` "
            f"{tuple(x.shape)}, got {tuple(a.shape)}"
        )
    if b.dim() != 2 or b.shape[1] != a.shape[0]:
        raise ValueError(
            f"regkern.{op}: expected `b` of shape (out, {a.shape[0]}), got {tuple(b.shape)}"
        )
    checks.probability(op, "p", p)
    checks.at_least(op, "samples", samples, 1)
    if training:
        given = resolve_seed(op, x, seed, generator)
        widths = [a.shape[1], b.shape[0]]
        ones = torch.ones((samples, sum(widths)), dtype=a.dtype, device=x.device)
        masks = dropout(ones, p, scale=False, seed=given)
        columns, rows = masks[:, : widths[0]], masks[:, widths[0] :] * (scale / samples)
        a = (a * columns.unsqueeze(1)).flatten(0, 1)
        b = (b.unsqueeze(1) * rows.t().unsqueeze(2)).flatten(1, 2)
    elif scale != 1.0:
        b = b * scale
    return F.linear(F.linear(x, a), b)

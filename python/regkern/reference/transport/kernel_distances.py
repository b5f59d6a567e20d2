"""Definitions: sums of kernels over clouds of points, and the distances of measures made of them."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i − y_j|² as (..., n, m)."""
    return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)


def kernel_matrix(x: Tensor, y: Tensor, kernel: str, scale: Tensor) -> Tensor:
    """k(x_i, y_j), summed over the scales."""
    square = squared_distances(x, y)
    # A root with slope 0 where it is 0.
    root = torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).sqrt())
    total = torch.zeros_like(square)
    for s in scale.tolist():
        if kernel == "gaussian":
            total = total + torch.exp(-square / (2 * s * s))
        elif kernel == "laplacian":
            total = total + torch.exp(-root / s)
        elif kernel == "energy":
            total = total - root
        elif kernel == "imq":
            total = total + s / (s + square)
        else:
            total = total + (1 + square / (2 * s)) ** -s
    return total


def _without_diagonal(matrix: Tensor, skip: bool) -> Tensor:
    if not skip:
        return matrix
    diagonal = torch.eye(matrix.shape[-2], matrix.shape[-1], dtype=torch.bool)
    return torch.where(diagonal, 0.0, matrix)


def kernel_sums(
    x: Tensor, y: Tensor, w: Tensor, scale: Tensor, kernel: str, skip_diagonal: bool
) -> Tensor:
    matrix = _without_diagonal(kernel_matrix(x, y, kernel, scale), skip_diagonal)
    w = w.unsqueeze(-2)
    return torch.where(w == 0, 0.0, w * matrix).sum(-1)


def kernel_forces(x: Tensor, y: Tensor, w: Tensor, scale: Tensor, kernel: str) -> Tensor:
    """∂/∂x_i of the sums, by autograd."""
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        total = kernel_sums(z, y.detach(), w.detach(), scale, kernel, False).sum()
        return torch.autograd.grad(total, z)[0]


def mmd(
    x: Tensor,
    y: Tensor,
    kernel: str = "gaussian",
    bandwidth: float | list[float] = 1.0,
    a: Tensor | None = None,
    b: Tensor | None = None,
    unbiased: bool = False,
) -> Tensor:
    numbers = [bandwidth] if isinstance(bandwidth, float | int) else bandwidth
    scale = torch.tensor(numbers, dtype=torch.float64)
    n, m = x.shape[-2], y.shape[-2]
    a = torch.full(x.shape[:-1], 1.0 / n, dtype=x.dtype) if a is None else a
    b = torch.full(y.shape[:-1], 1.0 / m, dtype=x.dtype) if b is None else b

    def form(u: Tensor, p: Tensor, v: Tensor, q: Tensor, same: bool) -> Tensor:
        matrix = _without_diagonal(kernel_matrix(u, v, kernel, scale), same and unbiased)
        value = torch.einsum("...i,...ij,...j->...", p, matrix, q)
        if same and unbiased:
            value = value / (p.sum(-1) ** 2 - (p * p).sum(-1))
        elif unbiased:
            value = value / (p.sum(-1) * q.sum(-1))
        return value

    return form(x, a, x, a, True) + form(y, b, y, b, True) - 2 * form(x, a, y, b, False)

"""Latent quantization: a scalar codebook for each dimension of a latent."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, register
from regkern.quantize.levels import (
    axis,
    check_count,
    code_dtype,
    empty_codes,
    level_sum,
    needs,
    taken,
)

Reduction = Literal["mean", "sum"]


# ---- raw ops: fake kernels and autograd ----


def _fake(
    z: Tensor, codebook: Tensor, dim: int = -1, mean: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, twin = (z.new_empty((), dtype=compute_dtype(z)) for _ in range(2))
    return dense_like(z), empty_codes(z, code_dtype(codebook.shape[-1])), loss, twin


def _fake_backward(
    g: Tensor,
    g_quantization: Tensor,
    g_commitment: Tensor,
    z: Tensor,
    codebook: Tensor,
    indices: Tensor,
    dim: int = -1,
    mean: bool = True,
    codebook_grad: bool = True,
) -> tuple[Tensor, Tensor]:
    dcodebook = torch.empty_like(codebook) if codebook_grad else codebook.new_empty((0,))
    return dense_like(z), dcodebook


_latent = register("latent_quantize", _fake)
_latent_backward = register("latent_quantize_backward", _fake_backward)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, codebook, ctx.dim, ctx.mean = inputs
    ctx.save_for_backward(z, codebook, output[1])


def _backward(ctx: Any, g: Tensor, _: Any, gq: Tensor, gc: Tensor) -> tuple[Any, ...]:
    z, codebook, indices = ctx.saved_tensors
    train = needs(ctx, 1)
    dz, dcodebook = _latent_backward(g, gq, gc, z, codebook, indices, ctx.dim, ctx.mean, train)
    return dz, dcodebook if train else None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, gq, gc, z, codebook, indices, ctx.dim, ctx.mean, ctx.train = inputs
    ctx.save_for_backward(gq, gc, z, codebook, indices)


def _backward_backward(ctx: Any, u: Tensor, t: Tensor) -> tuple[Any, ...]:
    # With k = 2/N (or 2) and the residual r = z − v_code:
    #   dz = g + k gc r,   dv_dj = −k gq Σ_{code = j} r,
    # where the codebook is held fixed in the first and z in the second, as in the losses.
    gq, gc, z, codebook, indices = ctx.saved_tensors
    dtype = compute_dtype(z)
    k = 2.0 / max(z.numel(), 1) if ctx.mean else 2.0
    dim = ctx.dim % z.dim()
    r = z.to(dtype) - taken(codebook, indices, dim)
    wide = u.to(dtype)
    weight = taken(t, indices, dim) if ctx.train else torch.zeros_like(r)
    dcodebook = None
    if needs(ctx, 4):
        dcodebook = level_sum(k * gq * weight, indices, codebook.shape[1], True, dim)
    dgq, dgc = -k * (weight * r).sum(), k * (wide * r).sum()
    return (
        u, dgq.reshape(gq.shape), dgc.reshape(gc.shape), (k * gc * wide).to(z.dtype), dcodebook,
        None, None, None, None,
    )  # fmt: skip


_latent.differentiable(_setup, _backward)
_latent_backward.differentiable(_setup_backward, _backward_backward)


# ---- public functions ----


class LatentQuantized(NamedTuple):
    """A quantized latent, its codes and the two losses."""

    zhat: Tensor
    indices: Tensor
    quantization_loss: Tensor
    commitment_loss: Tensor


def latent_quantize(
    z: Tensor, codebook: Tensor, dim: int = -1, *, reduction: Reduction = "mean"
) -> LatentQuantized:
    r"""Quantizes every dimension of a latent to the nearest scalar of its own codebook.

    .. math::
        \hat z_d = v_{d, j}, \quad j = \arg\min_j |z_d - v_{dj}|; \qquad
        L_q = \lVert \mathrm{sg}(z) - \hat z \rVert^2, \quad
        L_c = \lVert z - \mathrm{sg}(\hat z) \rVert^2

    Parameters
    ----------
    z : Tensor
        (…, D, …), D at axis ``dim``; float32, float64, bfloat16 or float16. Any strides; channels
        last is kept.
    codebook : Tensor
        (D, n), n from 1 to 4096, sorted or not. Taken in float32 (float64 for a float64 z); among
        equally near scalars the first counts.
    dim : int
        The axis of D.
    reduction : {"mean", "sum"}
        Of the losses, over all elements of z. The mean of nothing is 0.

    Returns
    -------
    LatentQuantized
        ``zhat`` like z, exactly the scalars; ``indices`` of its shape, uint8 up to n = 256 and else
        int32 (``.long()`` before indexing with them); ``quantization_loss``, whose gradient goes to
        the codebook, and ``commitment_loss``, whose gradient goes to z, 0-d in float32 (float64).
        The gradient of zhat goes straight through to z.

    Notes
    -----
    Bytes moved: z read, zhat and indices written, the losses in the same pass. Backward reads g, z
    and indices and writes dz, the codebook's sums in the same pass, in double and in an order that
    depends neither on threads nor on the device. NaN gives NaN, index 0 and NaN losses.

    References
    ----------
    Hsu et al., "Disentanglement via latent quantization", NeurIPS 2023.
    """
    op = "latent_quantize"
    checks.floating(op, "z", z)
    checks.floating(op, "codebook", codebook)
    checks.on_device(op, "codebook", codebook, z)
    checks.one_of(op, "reduction", reduction, ("mean", "sum"))
    d = axis(op, z, dim)
    if codebook.dim() != 2 or codebook.shape[0] != z.shape[d]:
        raise ValueError(
            f"regkern.{op}: expected `codebook` of shape ({z.shape[d]}, n), got "
            f"{tuple(codebook.shape)}"
        )
    check_count(op, "codebook", codebook.shape[1])
    return LatentQuantized(*_latent(z, codebook.to(compute_dtype(z)), d, reduction == "mean"))

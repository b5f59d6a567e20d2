"""Spectral normalization of convolutions as operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.spectral.conv_operator import ConvOperator, _iterate, conv_operator

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class ConvSpectralNorm(nn.Module):
    """The parametrization that :func:`conv_spectral_norm` registers.

    The buffer ``_v`` is the right vector, where the next iteration starts: it changes in training
    only, and no graph holds it.
    """

    _v: Tensor

    def __init__(
        self, weight: Tensor, operator: ConvOperator, cap: float | None, n_power_iterations: int
    ) -> None:
        super().__init__()
        self.operator = operator
        self.cap = cap
        self.n_power_iterations = n_power_iterations
        channels = weight.shape[0 if operator.transposed else 1]
        if not operator.transposed:
            channels *= operator.groups
        v = torch.randn(
            (channels, *operator.input_shape), dtype=compute_dtype(weight), device=weight.device
        )
        with torch.no_grad():
            # As torch's spectral_norm, 15 to begin with.
            v = _iterate(operator, weight.detach().to(v.dtype), v, 15).v
        self.register_buffer("_v", v)

    def forward(self, weight: Tensor) -> Tensor:
        w = weight.to(self._v.dtype)
        steps = self.n_power_iterations if self.training else 0
        # A copy: the buffer changes before the graph is used.
        found = _iterate(self.operator, w, self._v if steps > 0 else self._v.clone(), steps)
        if steps > 0:
            with torch.no_grad():
                self._v.copy_(found.v)
        sigma = found.sigma
        if self.cap is None:
            zero = sigma == 0
            factor = torch.where(zero, 1.0, 1 / torch.where(zero, 1.0, sigma))
        else:
            factor = self.cap / sigma.clamp(min=self.cap)
        return (w * factor).to(weight.dtype)

    def extra_repr(self) -> str:
        return f"input_shape={self.operator.input_shape}, cap={self.cap}"


def conv_spectral_norm(
    module: nn.Module,
    input_shape: int | Sequence[int],
    *,
    cap: float | None = None,
    n_power_iterations: int = 1,
    name: str = "weight",
) -> nn.Module:
    r"""A convolution whose norm as an operator is 1, or at most ``cap``.

    .. math:: \hat K = K / \sigma(K) \quad\text{or}\quad K / \max(1, \sigma(K) / c)

    with σ the largest singular value of the convolution of inputs of one size, and not of the
    kernel as a matrix: strides, padding, dilation and groups count.

    Parameters
    ----------
    module : torch.nn.Module
        A convolution or transposed convolution of 1 to 3 dimensions, with zero or circular padding.
    input_shape : int or sequence of int
        The spatial size of its inputs.
    cap : float, optional
        c, above 0. Without it, σ becomes 1.
    n_power_iterations : int
        In each forward in training; in evaluation the vector is as it was.
    name : str
        The parameter.

    Returns
    -------
    torch.nn.Module
        ``module``, with a parametrization: its state has ``parametrizations.weight.original`` and
        ``parametrizations.weight.0._v``.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    An iteration costs a convolution and a transposed one of a single image. The gradient goes
    through σ with constant vectors. A kernel of zeros stays zero.
    """
    op = "conv_spectral_norm"
    if not isinstance(module, nn.modules.conv._ConvNd):
        raise TypeError(f"regkern.{op}: expected `module` to be a convolution, got {type(module)}")
    if cap is not None and not cap > 0:
        raise ValueError(f"regkern.{op}: expected `cap` above 0, got {cap}")
    checks.at_least(op, "n_power_iterations", n_power_iterations, 1)
    weight = getattr(module, name, None)
    checks.tensor(op, name, weight)
    assert isinstance(weight, Tensor)
    options: Any = {
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
        "groups": module.groups,
        "transposed": isinstance(module, _TRANSPOSED),
        "output_padding": module.output_padding,
        "padding_mode": module.padding_mode,
    }
    operator = conv_operator(op, weight, input_shape, **options)
    made = ConvSpectralNorm(weight, operator, cap, n_power_iterations)
    made.train(module.training)
    return parametrize.register_parametrization(module, name, made)

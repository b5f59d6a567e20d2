"""Swap rules of the spectral family: torch's spectral norm, as parametrization and as hook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook

from regkern.nn.spectral.norm import SpectralNorm
from regkern.spectral.normalize import spectral_normalize
from regkern.spectral.power import as_matrix, as_weight
from regkern.swap import Change, register_carried, register_swap


@register_swap("torch.nn.utils.parametrizations._SpectralNorm")
def _parametrization(old: Any) -> nn.Module:
    new = SpectralNorm.__new__(SpectralNorm)
    nn.Module.__init__(new)
    new.dim, new.eps, new.cap = old.dim, old.eps, None
    # A vector has neither.
    new.n_power_iterations = getattr(old, "n_power_iterations", 1)
    for name in ("_u", "_v"):
        if hasattr(old, name):
            new.register_buffer(name, getattr(old, name))
    return new


class SpectralNormHook(TorchHook):
    """In the place of the hook of ``torch.nn.utils.spectral_norm``, under its names."""

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        weight = getattr(module, f"{self.name}_orig")
        u, v = getattr(module, f"{self.name}_u"), getattr(module, f"{self.name}_v")
        # There the iteration starts from u: that of the transposed matrix.
        matrix = as_matrix(weight, self.dim)
        n_iter = self.n_power_iterations if do_power_iteration else 0
        return as_weight(spectral_normalize(matrix, v, u, n_iter=n_iter, dim=1), weight, self.dim)


@register_carried
def _hook(layer: nn.Module) -> Iterator[Change]:
    for key, hook in layer._forward_pre_hooks.items():
        # A subclass may do something else.
        if type(hook) is TorchHook:
            new = SpectralNormHook(hook.name, hook.n_power_iterations, hook.dim, hook.eps)

            def make(key: int = key, new: SpectralNormHook = new) -> None:
                layer._forward_pre_hooks[key] = new

            old = "torch.nn.utils.spectral_norm.SpectralNorm"
            yield Change(hook.name, old, "SpectralNormHook", make)

"""Seeds: the only state that random ops have, as an argument."""

from __future__ import annotations

import torch
from torch import Tensor

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


def make_seed(
    device: torch.device | str | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """A seed tensor ``(key, offset)``, int64, for the ``seed=`` of any random op.

    Drawn from torch's generator of ``device`` (or from ``generator``), so ``torch.manual_seed``
    rules it. The same seed gives the same bits on CPU and CUDA, for any number of threads.

    Parameters
    ----------
    device : torch.device, optional
        Where the op runs. Default: the CPU.
    generator : torch.Generator, optional
        Must be of that device.

    Returns
    -------
    Tensor
        int64 of shape (2,).

    Notes
    -----
    Under ``torch.compile`` Inductor draws other numbers than eager mode does, unless
    ``torch._inductor.config.fallback_random`` is set; the ops themselves give the same bits for the
    same seed either way.
    """
    return torch.randint(
        _LOWEST, _HIGHEST, (2,), dtype=torch.int64, device=device, generator=generator
    )


def resolve_seed(
    op: str, x: Tensor, seed: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """The seed of a call: the given one, checked, or a fresh one on x's device."""
    if seed is None:
        return make_seed(x.device, generator)
    if generator is not None:
        raise ValueError(f"regkern.{op}: expected `seed` or `generator`, got both")
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64 or seed.shape != (2,):
        got = f"{seed.dtype} {tuple(seed.shape)}" if isinstance(seed, Tensor) else repr(seed)
        raise ValueError(f"regkern.{op}: expected `seed` to be an int64 tensor (2,), got {got}")
    if seed.device != x.device:
        raise ValueError(f"regkern.{op}: expected `seed` on {x.device}, got {seed.device}")
    return seed

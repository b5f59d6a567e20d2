"""Noise as modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern.masks.noise import (
    KINDS,
    Kind,
    Perturbed,
    diffusion_perturb,
    feature_jitter,
    noise_inject,
    noise_inject_,
)


class NoiseInject(nn.Module):
    r"""Additive or multiplicative noise as a layer, in training.

    .. math:: y = x + s \odot n \quad\text{or}\quad y = x \odot (1 + s \odot n)

    Parameters
    ----------
    scale : float or Tensor
        s, as of :func:`regkern.masks.noise.noise_inject`. A tensor becomes a buffer.
    kind : {"gaussian", "uniform"}
        The law of n.
    multiply : bool
        Whether noise multiplies.
    shared : int or sequence of int
        Dimensions that share one number.
    learn : bool
        Make a parameter of a tensor ``scale``.
    always : bool
        Noise in eval mode as well.
    inplace : bool
        Write over x.
    generator : torch.Generator, optional
        Of x's device; default: torch's own.

    Notes
    -----
    Bytes moved: those of the function.
    """

    scale: float | Tensor

    def __init__(
        self,
        scale: float | Tensor = 0.1,
        kind: Kind = "gaussian",
        *,
        multiply: bool = False,
        shared: int | Sequence[int] = (),
        learn: bool = False,
        always: bool = False,
        inplace: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        checks.one_of("NoiseInject", "kind", kind, KINDS)
        if learn and not isinstance(scale, Tensor):
            raise TypeError(
                f"regkern.NoiseInject: expected `scale` to be a tensor with `learn`, got {scale!r}"
            )
        if learn:
            assert isinstance(scale, Tensor)
            self.scale = nn.Parameter(scale.detach().clone())
        elif isinstance(scale, Tensor):
            self.register_buffer("scale", scale)
        else:
            self.scale = scale
        self.kind: Kind = kind
        self.multiply = multiply
        self.shared = (shared,) if isinstance(shared, int) else tuple(shared)
        self.always = always
        self.inplace = inplace
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        inject = noise_inject_ if self.inplace else noise_inject
        return inject(
            x, self.scale, self.kind, multiply=self.multiply, shared=self.shared,
            training=self.training or self.always, generator=self.generator,
        )  # fmt: skip

    def extra_repr(self) -> str:
        one = not isinstance(self.scale, Tensor) or self.scale.numel() == 1
        shown = [f"scale={float(self.scale):g}" if one else "scale=..."]
        plain = {
            "kind": "gaussian", "multiply": False, "shared": (), "always": False, "inplace": False
        }  # fmt: skip
        shown += [f"{k}={getattr(self, k)!r}" for k, v in plain.items() if getattr(self, k) != v]
        return ", ".join(shown)


class FeatureJitter(nn.Module):
    """Jitter of features by their statistics over the batch, in training.

    Parameters
    ----------
    strength : float
        As of :func:`regkern.masks.noise.feature_jitter`.
    generator : torch.Generator, optional
        Of the features' device; default: torch's own.
    """

    def __init__(self, strength: float = 1.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        checks.scale("FeatureJitter", "strength", strength)
        self.strength = strength
        self.generator = generator

    def forward(self, f: Tensor) -> Tensor:
        return feature_jitter(f, self.strength, training=self.training, generator=self.generator)

    def extra_repr(self) -> str:
        return f"strength={self.strength:g}"


class DiffusionPerturb(nn.Module):
    """The noisy samples of a diffusion's training step: ``layer(x0, alpha_bar)``.

    Parameters
    ----------
    gamma : float
        As of :func:`regkern.masks.noise.diffusion_perturb`. In eval mode it is 0.
    generator : torch.Generator, optional
        Of the samples' device; default: torch's own.
    """

    def __init__(self, gamma: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__()
        checks.scale("DiffusionPerturb", "gamma", gamma)
        self.gamma = gamma
        self.generator = generator

    def forward(self, x0: Tensor, alpha_bar: float | Tensor) -> Perturbed:
        gamma = self.gamma if self.training else 0.0
        return diffusion_perturb(x0, alpha_bar, gamma, generator=self.generator)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}"

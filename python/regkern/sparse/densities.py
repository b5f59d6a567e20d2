"""How many entries each layer has, where all have a share together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from regkern import _checks as checks
from regkern.proximal.thresholds import top_k_mask

_DISTRIBUTIONS = ("uniform", "erdos_renyi", "erdos_renyi_kernel")


def _raw(shape: Sequence[int], distribution: str) -> float:
    """What a layer's density is proportional to."""
    if distribution == "uniform":
        return 1.0
    sides = shape[:2] if distribution == "erdos_renyi" else shape
    return sum(sides) / max(1, math.prod(sides))


def layer_densities(
    shapes: Mapping[str, Sequence[int]],
    density: float,
    distribution: str = "erdos_renyi_kernel",
    dense: Sequence[str] = (),
) -> dict[str, float]:
    r"""The densities of layers that have a share of all weights together.

    .. math::
        d_l = \min\Big(1,\ ε\, \frac{n_{in} + n_{out} + k_h + k_w}{n_{in}\, n_{out}\, k_h\, k_w}
        \Big)

    with the ε for which :math:`\sum_l d_l N_l = d \sum_l N_l`. Without the sides of the kernel
    that is the Erdős–Rényi distribution, and uniform is :math:`d_l` the same for all.

    Parameters
    ----------
    shapes : mapping from name to shape
        Of the weights: (out, in), or (out, in, ...) of convolutions.
    density : float
        d in [0, 1].
    distribution : str
        ``"uniform"``, ``"erdos_renyi"`` or ``"erdos_renyi_kernel"``.
    dense : names
        Layers that are to stay dense: the others have fewer entries for it.

    Returns
    -------
    dict from name to float

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above, or what stays dense is more than there is to be.

    References
    ----------
    U. Evci, T. Gale, J. Menick, P. S. Castro and E. Elsen, "Rigging the lottery: making all tickets
    winners", ICML 2020. D. C. Mocanu et al., Nature Communications 2018.
    """
    op = "layer_densities"
    checks.probability(op, "density", density)
    checks.one_of(op, "distribution", distribution, _DISTRIBUTIONS)
    for name in dense:
        if name not in shapes:
            raise ValueError(
                f"regkern.{op}: expected `dense` to be names of {list(shapes)}, got {name!r}"
            )
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(
                f"regkern.{op}: expected `shapes` of two dimensions or more, got {tuple(shape)} "
                f"for {name!r}"
            )
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = density * sum(sizes.values())
    full = set(dense)
    while True:
        # Every round fills a layer, or is the last one.
        rest = [name for name in shapes if name not in full]
        left = total - sum(sizes[name] for name in full)
        if left < -1e-6 * sum(sizes.values()):
            raise ValueError(
                f"regkern.{op}: expected `density` of at least that of the layers that stay dense, "
                f"{sum(sizes[n] for n in full) / max(1, sum(sizes.values())):.4f}, got {density}"
            )
        raw = {name: _raw(shapes[name], distribution) for name in rest}
        weight = sum(raw[name] * sizes[name] for name in rest)
        scale = max(0.0, left) / weight if weight else 0.0
        over = [name for name in rest if scale * raw[name] > 1.0]
        if not over:
            return {name: 1.0 if name in full else scale * raw[name] for name in shapes}
        full.update(over)


def global_densities(weights: Mapping[str, Tensor], density: float) -> dict[str, float]:
    """The densities that layers have when the largest magnitudes of all of them are kept.

    Parameters
    ----------
    weights : mapping from name to Tensor
        Of one dtype, on one device.
    density : float
        The share that is kept, in [0, 1]; exactly as many as it says, ties as `top_k_mask` has it.
    """
    op = "global_densities"
    checks.probability(op, "density", density)
    tensors = checks.tensor_list(op, "weights", list(weights.values()))
    k = round(density * sum(t.numel() for t in tensors))
    masks = top_k_mask([t.detach() for t in tensors], k)
    return {
        name: float(mask.sum()) / max(1, mask.numel())
        for name, mask in zip(weights, masks, strict=True)
    }

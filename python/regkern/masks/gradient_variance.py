"""How much the directions of mini-batch gradients differ."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from regkern import _checks as checks


def gradient_direction_variance(gradients: Iterable[Tensor | Iterable[Tensor]]) -> Tensor:
    r"""Mean cosine distance between pairs of gradients.

    .. math::
        \mathrm{GDV} = \frac{1}{n (n - 1)} \sum_{i \ne j}
        \Bigl(1 - \frac{\langle g_i, g_j \rangle}{\|g_i\| \|g_j\|}\Bigr)
        = 1 - \frac{\bigl\|\sum_i g_i/\|g_i\|\bigr\|^2 - n}{n (n - 1)}

    Parameters
    ----------
    gradients : iterable
        Of at least two mini-batches: a tensor each, or the tensors of all parameters.

    Returns
    -------
    Tensor
        0-d, float32 or float64: 0 where all point the same way, 1 where they are orthogonal.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    The second form: one sum of unit vectors is kept, not n gradients, where ``gradients`` is a
    generator. A zero gradient adds no direction. Bytes moved: each gradient read twice.

    References
    ----------
    Liu, Xu, Jin, Shen and Darrell, "Dropout reduces underfitting", ICML 2023.
    """
    op = "gradient_direction_variance"
    total: list[Tensor] = []
    count = 0
    square: Tensor | None = None
    for i, gradient in enumerate(gradients):
        tensors = checks.tensor_list(op, f"gradients[{i}]", gradient)
        wide = [t.detach() if t.dtype == torch.float64 else t.detach().float() for t in tensors]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in wide]))
        inverse = torch.where(norm > 0, 1 / norm, norm)
        if total and [t.shape for t in total] != [t.shape for t in wide]:
            raise ValueError(
                f"regkern.{op}: expected `gradients[{i}]` of the shapes of `gradients[0]`, got "
                f"{[tuple(t.shape) for t in wide]}"
            )
        for k, t in enumerate(wide):
            if count == 0:
                total.append(t * inverse)
            else:
                total[k] += t * inverse
        one = (norm * inverse) ** 2
        square = one if square is None else square + one
        count += 1
    if count < 2 or square is None:
        raise ValueError(f"regkern.{op}: expected at least two `gradients`, got {count}")
    length = torch.stack([(t * t).sum() for t in total]).sum()
    return 1 - (length - square) / (count * (count - 1))

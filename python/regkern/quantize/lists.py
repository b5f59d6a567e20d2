"""Stochastic copies of whole lists of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import register
from regkern.random import resolve_seed

_copy_stochastic_ = register("copy_stochastic_", lambda *args, **kwargs: None)

NARROW = (torch.bfloat16, torch.float16)


def copy_stochastic_(
    dst: Sequence[Tensor] | Tensor,
    src: Sequence[Tensor] | Tensor,
    *,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> None:
    r"""Copies tensors into bfloat16 or float16, rounding up or down at random.

    For ``x`` between its neighbours ``lower`` and ``upper`` in the format of ``dst``, those away
    from zero being the upper ones,

    .. math::
        y = \begin{cases}
            upper & \text{if } \frac{|x| - lower}{upper - lower} > \frac{U + 1/2}{2^{16}} \\
            lower & \text{otherwise}
        \end{cases}, \qquad U \in \{0, …, 2^{16} - 1\}

    with 16 random bits U an element, so the mean of y is x (exactly, from float32 to bfloat16; from
    finer formats the probability is rounded to 16 bits). Numbers that the format holds never move,
    NaN and infinities stay, and a finite number never becomes infinite: beyond the largest finite
    number it becomes that.

    One call for all parameters of a network: float32 master weights to the bfloat16 weights that
    compute, say. Elements are numbered over the whole list, so no two tensors share random bits,
    and the result does not depend on memory layout or number of threads.

    Parameters
    ----------
    dst : sequence of Tensor, or Tensor
        What is written: bfloat16 or float16. Any strides. A tensor of the dtype of its source is
        copied as it is (norms and biases that stay in float32, say).
    src : sequence of Tensor, or Tensor
        float32, float64, bfloat16 or float16, of the shapes and on the device of ``dst``.
    seed : Tensor, optional
        int64 ``(key, offset)``, see :func:`regkern.make_seed`. Default: drawn from torch's
        generator.
    generator : torch.Generator, optional
        Where the seed is drawn from.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Not recorded by autograd, as an optimizer's step is not; leaves that require gradients may be
    written. Bytes moved: 4 read and 2 written for an element (float32 to bfloat16), in one pass.

    References
    ----------
    Gupta, Agrawal, Gopalakrishnan and Narayanan, "Deep learning with limited numerical precision",
    ICML 2015. Zamirai, Zhang, Aberger and De Sa, "Revisiting bfloat16 training", 2020.
    """
    op = "copy_stochastic_"
    to = _list(op, "dst", dst)
    source = _list(op, "src", src)
    if len(to) != len(source):
        raise ValueError(
            f"regkern.{op}: expected as many `src` as `dst`, {len(to)}, got {len(source)}"
        )
    for i, (d, s) in enumerate(zip(to, source, strict=True)):
        checks.floating(op, f"src[{i}]", s)
        checks.tensor(op, f"dst[{i}]", d)
        if d.dtype not in NARROW and d.dtype != s.dtype:
            raise TypeError(
                f"regkern.{op}: expected `dst[{i}]` of dtype bfloat16, float16 or {s.dtype}, the "
                f"source's, got {d.dtype}"
            )
        if d.shape != s.shape:
            raise ValueError(
                f"regkern.{op}: expected `src[{i}]` of shape {tuple(d.shape)}, got {tuple(s.shape)}"
            )
        checks.on_device(op, f"src[{i}]", s, to[0])
        checks.on_device(op, f"dst[{i}]", d, to[0])
    if not to:
        return
    seed = resolve_seed(op, to[0], seed, generator)
    with torch.no_grad():
        _copy_stochastic_(to, source, seed)


def _list(op: str, name: str, value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, Sequence):
        raise TypeError(
            f"regkern.{op}: expected `{name}` to be a list of tensors, got {type(value)}"
        )
    return list(value)

"""Masks over patches, exactly k of n in every sample; tokens gathered by them and put back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import register
from regkern.random import make_seed, resolve_seed

KINDS = ("random", "block", "hard")

# ---- raw ops: fake kernels and autograd ----


def _mask_fake(
    seed: Tensor, batch: int, n: int, keep: int, *options: Any, **named: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        seed.new_empty((batch, n), dtype=torch.bool),
        seed.new_empty((batch, keep)),
        seed.new_empty((batch, n)),
    )


_patch_mask = register("patch_mask", _mask_fake)
_patch_gather = register(
    "patch_gather",
    lambda x, ids, fill=None: x.new_empty((x.shape[0], ids.shape[1], *x.shape[2:])),
)
_patch_inverse = register("patch_inverse", lambda ids, count: ids.new_empty((ids.shape[0], count)))
_patch_fill_sum = register("patch_fill_sum", lambda g, ids, count: g.new_empty(g.shape[2:]))


def _setup_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ids, _ = inputs
    ctx.save_for_backward(ids)
    ctx.count = x.shape[1]


def _needs(ctx: Any, i: int) -> bool:
    # Trailing arguments at their default are not counted.
    return len(ctx.needs_input_grad) > i and bool(ctx.needs_input_grad[i])


def _backward_gather(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (ids,) = ctx.saved_tensors
    dx = dfill = None
    if _needs(ctx, 0):
        dx = _patch_gather(g, _patch_inverse(ids, ctx.count), None)
    if _needs(ctx, 2):
        dfill = _patch_fill_sum(g, ids, ctx.count)
    return dx, None, dfill


def _setup_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ids, ctx.count = inputs
    ctx.save_for_backward(ids)


def _backward_sum(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (ids,) = ctx.saved_tensors
    zeros = g.new_zeros((ids.shape[0], ctx.count, *g.shape))
    return _patch_gather(zeros, ids, g), None, None


_patch_gather.differentiable(_setup_gather, _backward_gather)
_patch_fill_sum.differentiable(_setup_sum, _backward_sum)


# ---- checks that the functions on tokens share ----


def count_of(op: str, name: str, value: Any, least: int = 0) -> Any:
    """A number of things, which may be symbolic."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"regkern.{op}: expected `{name}` to be an int, got {value!r}")
    checks.at_least(op, name, value, least)  # type: ignore[arg-type]
    return value


def share_of(op: str, name: str, value: object) -> Any:
    if isinstance(value, Tensor):
        raise TypeError(f"regkern.{op}: expected `{name}` to be a number, got a tensor")
    checks.probability(op, name, value)  # type: ignore[arg-type]
    return value


def seed_of(
    op: str,
    device: torch.device | str | None,
    seed: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The seed of a call that has no tensor; ``device`` is where, unless the seed says it."""
    if seed is None:
        if device is None and generator is not None:
            device = generator.device
        return make_seed(device, generator)
    if device is not None and isinstance(seed, Tensor) and seed.device != torch.device(device):
        raise ValueError(f"regkern.{op}: expected `seed` on {device}, got {seed.device}")
    return resolve_seed(op, seed, seed, generator)


def _grid_of(op: str, n: int | Sequence[int]) -> list[Any]:
    if not isinstance(n, Sequence):
        return [count_of(op, "n", n)]
    if len(n) not in (2, 3):
        raise ValueError(
            f"regkern.{op}: expected `n` to be a number of patches, (height, width) or (depth, "
            f"height, width), got {tuple(n)}"
        )
    return [count_of(op, "n", side) for side in n]


def _range_of(op: str, name: str, value: object, most: float) -> tuple[float, float]:
    ok = isinstance(value, Sequence) and len(value) == 2
    if not ok or not 0.0 < value[0] <= value[1] <= most:  # type: ignore[index]
        end = "" if most == math.inf else f" <= {most:g}"
        raise ValueError(
            f"regkern.{op}: expected `{name}` to be (low, high), 0 < low <= high{end}, got "
            f"{value!r}"
        )
    return float(value[0]), float(value[1])  # type: ignore[index]


def kept_of(n: Any, ratio: float) -> Any:
    """How many of n a mask of ``ratio`` leaves: rounded down, but for what (1 − ratio) lost."""
    return math.floor(n * (1.0 - ratio) + 1e-9)


class MaskedPatches(NamedTuple):
    """What `patch_mask` returns.

    Attributes
    ----------
    mask : Tensor
        bool (batch, n), True where a patch is masked.
    ids_keep : Tensor
        int64 (batch, n_keep): the patches that are kept, ascending.
    ids_restore : Tensor
        int64 (batch, n): where a patch stands if the kept ones come first and the masked ones after
        them, each in their order.
    """

    mask: Tensor
    ids_keep: Tensor
    ids_restore: Tensor


def _through_depth(flat: MaskedPatches, depth: int) -> MaskedPatches:
    """The mask of a plane in every plane of a volume."""
    mask, keep, restore = flat
    n, k = mask.shape[1], keep.shape[1]
    plane = torch.arange(depth, device=mask.device).view(1, depth, 1)
    ids_keep = (keep.unsqueeze(1) + plane * n).flatten(1)
    masked = restore.unsqueeze(1) + (depth - 1) * k + plane * (n - k)
    kept = restore.unsqueeze(1) + plane * k
    ids_restore = torch.where(mask.unsqueeze(1), masked, kept).flatten(1)
    return MaskedPatches(mask.repeat(1, depth), ids_keep, ids_restore)


# ---- public functions ----


def patch_mask(
    batch: int,
    n: int | Sequence[int],
    ratio: float = 0.75,
    *,
    keep: int | None = None,
    kind: str = "random",
    scores: Tensor | None = None,
    alpha: float | Tensor = 0.5,
    area: Sequence[float] = (0.15, 0.2),
    aspect: Sequence[float] = (0.75, 1.5),
    blocks: int = 32,
    tube: bool = False,
    device: torch.device | str | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> MaskedPatches:
    r"""Masks of patches with exactly :math:`n_\text{keep}` kept in every sample.

    .. math::
        |\{i : m_i = 0\}| = n_\text{keep} = \lfloor n (1 - \mathrm{ratio}) \rfloor

    `random` draws the masked set uniformly among all of its size. `hard` masks the
    :math:`\lfloor \alpha (n - n_\text{keep}) \rfloor` patches of highest score, and the rest of the
    masked ones at random among the others. `block` masks rectangles of a grid one after the other
    until the count is met: of the last one as many patches as are missing, from its end in
    row-major order, and random patches where all rectangles together are not enough.

    Parameters
    ----------
    batch : int
        Samples.
    n : int or sequence of int
        Patches of a sample, or their grid, (height, width) or (depth, height, width), in row-major
        order.
    ratio : float
        Share that is masked, in [0, 1].
    keep : int, optional
        :math:`n_\text{keep}` itself, instead of ``ratio``.
    kind : {"random", "block", "hard"}
        Which are masked.
    scores : Tensor
        For ``hard``: (batch, n), the predicted losses, compared as float32. Of equal ones the first
        patch counts as higher, NaN as highest. Not differentiated.
    alpha : float or Tensor
        For ``hard``: share of the masked patches that scores choose, in [0, 1]; a tensor of one
        element may change without recompiling.
    area, aspect : (float, float)
        For ``block``: range of a rectangle's share of height · width (uniform), and of height over
        width (log-uniform). On a grid with depth it is as deep as a uniform draw says.
    blocks : int
        For ``block``: rectangles at most, up to 256.
    tube : bool
        One mask of (height, width) for all of the depth; scores are (batch, height · width) then.
        ``keep`` still counts patches of the volume and is a multiple of the depth.
    device : torch.device, optional
        Default: that of ``scores``, ``seed`` or ``generator``, else the CPU.
    seed : Tensor, optional
        int64 (2,), see `make_seed`. Default: drawn from ``generator`` or torch's own.
    generator : torch.Generator, optional
        Source of the seed.

    Returns
    -------
    MaskedPatches
        ``(mask, ids_keep, ids_restore)``; `patch_gather` takes ``ids_keep``, `patch_restore`
        ``ids_restore``.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A random key of 31 bits for every patch and the selection of a threshold, digit by digit: time
    linear in n, and no sort. The same seed gives the same masks on every device. Written: 9 bytes a
    patch and 8 a kept one.

    References
    ----------
    He et al., "Masked autoencoders are scalable vision learners", CVPR 2022; Bao et al., "BEiT",
    ICLR 2022 (blocks); Tong et al., "VideoMAE", NeurIPS 2022 (tubes); Wang et al., "Hard patches
    mining for masked image modeling", CVPR 2023.
    """
    op = "patch_mask"
    grid = _grid_of(op, n)
    count_of(op, "batch", batch)
    checks.one_of(op, "kind", kind, KINDS)
    depth = grid[0] if tube else 1
    if tube and len(grid) != 3:
        raise ValueError(f"regkern.{op}: expected `n` to be (depth, height, width), got {n!r}")
    sides = grid[1:] if tube else grid
    total = math.prod(sides)
    if keep is None:
        kept = kept_of(total, share_of(op, "ratio", ratio))
    else:
        count_of(op, "keep", keep)
        if keep > total * depth or keep % max(depth, 1) != 0:
            multiple = f", a multiple of {depth}," if tube else ""
            raise ValueError(
                f"regkern.{op}: expected `keep`{multiple} to be at most {total * depth}, got {keep}"
            )
        kept = keep // max(depth, 1)
    given: dict[str, Any] = {}
    if kind == "hard":
        scores = _scores(op, scores, batch, total)
        device = scores.device if device is None else device
        given["scores"] = scores
        if isinstance(alpha, Tensor):
            checks.probability(op, "alpha", alpha)
            given["alpha_tensor"] = alpha.detach().reshape(()).to(scores.device, torch.float64)
        else:
            given["alpha"] = share_of(op, "alpha", alpha)
    elif scores is not None:
        raise ValueError(f"regkern.{op}: expected `scores` with kind 'hard' alone, got {kind!r}")
    if kind == "block":
        if len(sides) == 1:
            raise ValueError(
                f"regkern.{op}: expected `n` to be (height, width) or (depth, height, width) with "
                f"kind 'block', got {n!r}"
            )
        if count_of(op, "blocks", blocks, 1) > 256:
            raise ValueError(f"regkern.{op}: expected `blocks` of at most 256, got {blocks}")
        shares = _range_of(op, "area", area, 1.0)
        ratios = _range_of(op, "aspect", aspect, math.inf)
        given["grid"] = [1, *sides][-3:]
        given["box"] = [*shares, *map(math.log, ratios)]
        given["boxes"] = blocks
    own = seed_of(op, device, seed, generator)
    if kind == "hard" and own.device != given["scores"].device:
        raise ValueError(
            f"regkern.{op}: expected `scores` on {own.device}, got {given['scores'].device}"
        )
    flat = MaskedPatches(*_patch_mask(own, batch, total, kept, **given))
    return _through_depth(flat, depth) if tube else flat


def _scores(op: str, scores: Tensor | None, batch: int, n: int) -> Tensor:
    checks.floating(op, "scores", scores)
    assert scores is not None
    if scores.dim() != 2 or scores.shape[0] != batch or scores.shape[1] != n:
        raise ValueError(
            f"regkern.{op}: expected `scores` of shape ({batch}, {n}), got {tuple(scores.shape)}"
        )
    return scores.detach().to(torch.float32)


def _ids(op: str, name: str, ids: object, x: Tensor) -> None:
    checks.floating(op, "x" if op == "patch_gather" else "kept", x)
    checks.on_device(op, name, ids, x)
    assert isinstance(ids, Tensor)
    if ids.dtype != torch.int64:
        raise TypeError(f"regkern.{op}: expected `{name}` of dtype int64, got {ids.dtype}")
    if x.dim() < 2 or ids.dim() != 2 or ids.shape[0] != x.shape[0]:
        raise ValueError(
            f"regkern.{op}: expected tokens (batch, n, ...) and `{name}` (batch, ids), got "
            f"{tuple(x.shape)} and {tuple(ids.shape)}"
        )


def patch_gather(x: Tensor, ids: Tensor) -> Tensor:
    r"""The tokens of a list, sample by sample.

    .. math::
        y_{bj} = x_{b,\,\mathrm{ids}_{bj}}, \qquad
        y_{bj} = 0 \text{ where } \mathrm{ids}_{bj} = -1

    Parameters
    ----------
    x : Tensor
        (batch, n, \*features); float32, float64, bfloat16 or float16. Samples and tokens may have
        any stride; of features that are strided a copy is made.
    ids : Tensor
        int64 (batch, k), in [0, n), or −1 for padding. For gradients no token may be twice in a
        sample.

    Returns
    -------
    Tensor
        (batch, k, \*features), contiguous.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    RuntimeError
        On the CPU, for ids that are out of range, and in the backward for ids that are there twice:
        subsets that overlap are gathered one by one. On CUDA ids are not looked at: the first give
        zeros, the second the gradient of one of them.

    Notes
    -----
    Bytes moved: what is gathered, read and written. The backward writes every token once, from the
    inverse list, with no additions: dx read and written. Differentiable any number of times in x.
    """
    _ids("patch_gather", "ids", ids, x)
    y: Tensor = _patch_gather(x, ids, None)
    return y


def patch_restore(kept: Tensor, ids_restore: Tensor, mask_token: Tensor | None = None) -> Tensor:
    r"""Kept tokens back in their places, with a mask token in all others.

    .. math::
        y_{bi} = \mathrm{kept}_{b,\,r_{bi}} \text{ if } r_{bi} < k, \text{ else }
        \mathrm{mask\_token}

    The same as gathering from the kept tokens followed by copies of the mask token, which are not
    made.

    Parameters
    ----------
    kept : Tensor
        (batch, k, \*features); float32, float64, bfloat16 or float16.
    ids_restore : Tensor
        int64 (batch, n), a permutation in each sample, as of `patch_mask`.
    mask_token : Tensor, optional
        As many elements as a token has, of kept's dtype. Default: zeros.

    Returns
    -------
    Tensor
        (batch, n, \*features), contiguous.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.
    RuntimeError
        On the CPU, for ids that are out of range.

    Notes
    -----
    Bytes moved: kept read, the result written. Backward: the result's gradient is read once, for
    what is kept and, added up in a fixed order, for the mask token. Differentiable any number of
    times in both.

    References
    ----------
    He et al., "Masked autoencoders are scalable vision learners", CVPR 2022.
    """
    op = "patch_restore"
    _ids(op, "ids_restore", ids_restore, kept)
    features = kept.shape[2:]
    if mask_token is None:
        mask_token = kept.new_zeros(features)
    checks.on_device(op, "mask_token", mask_token, kept)
    if mask_token.dtype != kept.dtype:
        raise TypeError(
            f"regkern.{op}: expected `mask_token` of dtype {kept.dtype}, got {mask_token.dtype}"
        )
    if mask_token.numel() != math.prod(features):
        raise ValueError(
            f"regkern.{op}: expected `mask_token` of {math.prod(features)} elements, got "
            f"{tuple(mask_token.shape)}"
        )
    y: Tensor = _patch_gather(kept, ids_restore, mask_token.reshape(features))
    return y

"""Which elements of a dense network are trained.

The largest magnitudes, and the largest changes since an initial state (LT-SFT), are
:func:`regkern.top_k_mask`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern.proximal.thresholds import top_k_mask
from regkern.sparse.pattern import SparsePattern


def _fail(op: str, expected: str, got: object) -> None:
    raise ValueError(f"regkern.{op}: expected {expected}, got {got}")


def small_weight_mask(
    tensors: Tensor | Sequence[Tensor],
    threshold: float | None = None,
    *,
    fraction: float | None = None,
    per_tensor: bool = False,
) -> list[Tensor]:
    r"""Masks of the smallest magnitudes: weights that matter least, which SaRA trains.

    .. math:: M = \{|w| < t\}

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        All of one dtype: float32, float64, bfloat16 or float16. Any strides.
    threshold : float
        t, at least 0.
    fraction : float
        Instead of t: the ⌊fraction · number⌋ smallest; of equal magnitudes those of the highest
        index.
    per_tensor : bool
        Whether ``fraction`` is of each tensor, or of all together.

    Returns
    -------
    list of Tensor
        bool. NaN is not chosen by a threshold, and last by a fraction.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    "SaRA: high-efficient diffusion model fine-tuning with progressive sparse low-rank adaptation",
    2024.
    """
    op = "small_weight_mask"
    xs = checks.tensor_list(op, "tensors", tensors)
    if (threshold is None) == (fraction is None):
        got = "neither" if threshold is None else "both"
        _fail(op, "`threshold` or `fraction`", got)
    if threshold is not None:
        checks.at_least(op, "threshold", threshold, 0.0)
        return [x.detach().abs() < threshold for x in xs]
    assert fraction is not None
    checks.probability(op, "fraction", fraction)
    groups = [[x] for x in xs] if per_tensor else [xs]
    masks: list[Tensor] = []
    for group in groups:
        total = sum(x.numel() for x in group)
        kept = total - int(fraction * total * (1 + 2e-16) + 1e-9)
        masks += [~mask for mask in top_k_mask(group, kept)]
    return masks


def snip_mask(
    weights: Tensor | Sequence[Tensor],
    gradients: Tensor | Sequence[Tensor],
    k: int | None = None,
    *,
    fraction: float | None = None,
    per_tensor: bool = False,
) -> list[Tensor]:
    r"""Masks of the k largest :math:`|w\, \partial L / \partial w|` (SNIP, and SHiRA-SNIP).

    Parameters
    ----------
    weights, gradients : Tensor or sequence of Tensor
        As many of either, of the same shapes, all of one dtype.
    k, fraction, per_tensor
        See :func:`regkern.top_k_mask`.

    Returns
    -------
    list of Tensor
        bool; of equal products those of the lowest index.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    N. Lee, T. Ajanthan and P. Torr, "SNIP: single-shot network pruning based on connection
    sensitivity", ICLR 2019. K. Bhardwaj et al., "Sparse high rank adapters", NeurIPS 2024.
    """
    op = "snip_mask"
    ws = checks.tensor_list(op, "weights", weights)
    gs = checks.tensor_list(op, "gradients", gradients)
    if len(ws) != len(gs):
        _fail(op, f"as many `gradients` as `weights`, {len(ws)}", len(gs))
    for i, (w, g) in enumerate(zip(ws, gs, strict=True)):
        checks.same(op, f"gradients[{i}]", g, w, f"weights[{i}]")
    with torch.no_grad():
        products = torch._foreach_mul(ws, gs)
    return top_k_mask(products, k, fraction=fraction, per_tensor=per_tensor)


class GradientSquares:
    r"""Mean squares of gradients over batches, and the masks of the largest (RoSA).

    .. math:: s = \frac{1}{n} \sum_{i=1}^{n} \Bigl( \frac{\partial L_i}{\partial w} \Bigr)^2

    Parameters
    ----------
    parameters : iterable of Tensor
        Whose ``.grad`` is looked at by :meth:`add`.

    Attributes
    ----------
    squares : list of Tensor
        The sums, in float32 (float64 of float64), as large as the parameters.
    count : int
        n.

    References
    ----------
    M. Nikdan, S. Tabesh, E. Crnčević and D. Alistarh, "RoSA: accurate parameter-efficient
    fine-tuning via robust adaptation", ICML 2024.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = checks.tensor_list("GradientSquares", "parameters", parameters)
        wide = [
            torch.float64 if p.dtype == torch.float64 else torch.float32 for p in self.parameters
        ]
        self.squares = [
            torch.zeros_like(p, dtype=dtype, requires_grad=False)
            for p, dtype in zip(self.parameters, wide, strict=True)
        ]
        self.count = 0

    def add(self) -> None:
        """Adds the squares of the present gradients; a parameter without one has zeros."""
        with torch.no_grad():
            for p, s in zip(self.parameters, self.squares, strict=True):
                if p.grad is not None:
                    g = p.grad.to(s.dtype)
                    s.addcmul_(g, g)
        self.count += 1

    def means(self) -> list[Tensor]:
        """s."""
        return [s / max(1, self.count) for s in self.squares]

    def mask(
        self, k: int | None = None, *, fraction: float | None = None, per_tensor: bool = True
    ) -> list[Tensor]:
        """Masks of the k largest means, of each parameter or of all: :func:`regkern.top_k_mask`."""
        return top_k_mask(self.squares, k, fraction=fraction, per_tensor=per_tensor)


# ---- patterns that look at no weight ----


def _shape(op: str, shape: Sequence[int]) -> tuple[int, int]:
    if len(shape) != 2 or not all(isinstance(n, int) and n >= 0 for n in shape):
        _fail(op, "`shape` of two sizes", tuple(shape))
    return shape[0], shape[1]


def random_pattern(
    shape: Sequence[int],
    nnz: int | None = None,
    *,
    rank: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> SparsePattern:
    r"""Entries at random places, all sets of them equally likely (SHiRA-Rand).

    Parameters
    ----------
    shape : sequence of int
        (R, C).
    nnz : int
        How many, from 0 to R C.
    rank : int
        Instead of it, as many parameters as an adapter of low rank r has: r (R + C), or R C.
    generator : torch.Generator, optional
        Of ``device``.
    device : torch.device, optional
        Default: the CPU.

    Returns
    -------
    SparsePattern

    Raises
    ------
    ValueError
        Where an argument is not as said above.

    Notes
    -----
    Takes memory for nnz places (for R C from a half of all on).

    References
    ----------
    K. Bhardwaj et al., "Sparse high rank adapters", NeurIPS 2024.
    """
    op = "random_pattern"
    rows, columns = _shape(op, shape)
    total = rows * columns
    if (nnz is None) == (rank is None):
        _fail(op, "`nnz` or `rank`", "neither" if nnz is None else "both")
    if rank is not None:
        checks.at_least(op, "rank", rank, 0)
        nnz = min(rank * (rows + columns), total)
    assert nnz is not None
    if not 0 <= nnz <= total:
        _fail(op, f"`nnz` from 0 to {total}", nnz)
    if 2 * nnz >= total:
        places = torch.randperm(total, generator=generator, device=device)[:nnz]
    else:
        # Drawn with repetition until there are enough different ones, of which any are left out.
        places = torch.empty(0, dtype=torch.int64, device=device)
        while places.numel() < nnz:
            size = (nnz + nnz // 4 + 16,)
            more = torch.randint(total, size, generator=generator, device=device)
            places = torch.cat([places, more]).unique()  # type: ignore[no-untyped-call]
        keep = torch.randperm(places.numel(), generator=generator, device=device)[:nnz]
        places = places[keep]
    width = max(1, columns)
    return SparsePattern.from_coo(places // width, places % width, (rows, columns))


def structured_pattern(
    shape: Sequence[int],
    rows: Sequence[int] | Tensor = (),
    columns: Sequence[int] | Tensor = (),
    diagonals: Sequence[int] = (),
    device: torch.device | str | None = None,
) -> SparsePattern:
    r"""Whole rows, columns and diagonals (SHiRA-Struct).

    Parameters
    ----------
    shape : sequence of int
        (R, C).
    rows, columns : sequence of int or Tensor
        Which are trained.
    diagonals : sequence of int
        Of a square or oblong matrix: diagonal d has the places (r, r + d) there are.
    device : torch.device, optional
        Default: the CPU.

    Returns
    -------
    SparsePattern
        The places of any of them.

    Raises
    ------
    ValueError
        For a row, column or diagonal that the shape does not have.

    References
    ----------
    K. Bhardwaj et al., "Sparse high rank adapters", NeurIPS 2024.
    """
    op = "structured_pattern"
    size = _shape(op, shape)
    mask = torch.zeros(size, dtype=torch.bool, device=device)
    for name, given, dim in (("rows", rows, 0), ("columns", columns, 1)):
        index = torch.as_tensor(given, dtype=torch.int64, device=device)
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= size[dim]):
            _fail(op, f"`{name}` in [0, {size[dim]})", index.tolist())
        mask.index_fill_(dim, index, True)
    for d in diagonals:
        if not -size[0] < d < size[1]:
            _fail(op, f"`diagonals` between {-size[0]} and {size[1]}", d)
        mask.diagonal(d).fill_(True)
    return SparsePattern.from_mask(mask)


def adapter_density(shape: Sequence[int], rank: int) -> float:
    """The density at which a weight has as many trained entries as an adapter of low rank has
    parameters: r (R + C) / (R C), at most 1."""
    rows, columns = _shape("adapter_density", shape)
    checks.at_least("adapter_density", "rank", rank, 0)
    total = math.prod((rows, columns))
    return min(1.0, rank * (rows + columns) / total) if total else 1.0

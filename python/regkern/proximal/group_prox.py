"""The ops on groups: proximal operators, norms, and what their derivatives are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, dense_like, refuse_second, register
from regkern.proximal.groups import Groups, Layout, Weights
from regkern.proximal.penalty import ProxReport, threshold

Mapping = tuple[Tensor | None, Tensor | None, Tensor | None]

# ---- raw ops: fake kernels ----


def _groups(geometry: Sequence[int], starts: Tensor | None) -> int:
    return sum(geometry[1::3]) if starts is None else starts.shape[0] - 1


def _fake_prox_(
    ys: Sequence[Tensor],
    xs: Sequence[Tensor],
    step: Tensor,
    lam: Tensor,
    geometry: Sequence[int],
    weights: Sequence[float],
    law: str,
    shape: float,
    group_weights: Tensor | None = None,
    map: Tensor | None = None,
    starts: Tensor | None = None,
    members: Tensor | None = None,
    soft: Tensor | None = None,
    l1: Sequence[Tensor] | None = None,
    positive: bool = False,
) -> tuple[Tensor, Tensor]:
    norms = ys[0].new_empty((_groups(geometry, starts),), dtype=compute_dtype(ys[0]))
    return norms, ys[0].new_empty((), dtype=torch.int64)


def _fake_prox(
    x: Tensor,
    step: Tensor,
    lam: Tensor,
    soft: Tensor | None,
    l1: Tensor | None,
    geometry: Sequence[int],
    weight: float,
    law: str,
    shape: float,
    group_weights: Tensor | None = None,
    map: Tensor | None = None,
    starts: Tensor | None = None,
    members: Tensor | None = None,
    positive: bool = False,
) -> tuple[Tensor, Tensor]:
    return dense_like(x), x.new_empty((_groups(geometry, starts),), dtype=torch.float64)


def _fake_sums(
    xs: Sequence[Tensor],
    zs: Sequence[Tensor],
    geometry: Sequence[int],
    map: Tensor | None = None,
    starts: Tensor | None = None,
    members: Tensor | None = None,
) -> Tensor:
    return xs[0].new_empty((_groups(geometry, starts),), dtype=torch.float64)


_prox_in_place = register("group_prox_", _fake_prox_)
_prox = register("group_prox", _fake_prox)
_sums = register("group_sums", _fake_sums)
_scale = register("group_scale", lambda xs, *_, **__: [dense_like(x) for x in xs])
_sum = register(
    "group_sum",
    lambda x, z, geometry, map, starts, members: x.new_empty(
        (_groups(geometry, starts),), dtype=torch.float64
    ),
)
_multiply = register("group_multiply", lambda x, *_: dense_like(x))
_scale_in_place = register("group_scale_", lambda *_, **__: None)
_slopes = register(
    "group_slopes",
    lambda norms, *_, **__: norms.new_empty((4, norms.shape[0]), dtype=torch.float64),
)
_penalty = register(
    "group_penalty",
    lambda norms, *_, **__: norms.new_empty((3, norms.shape[0]), dtype=torch.float64),
)


# ---- derivatives: sums and scales are closed under differentiation ----


def _sums_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    xs, zs, ctx.geometry, *mapping = inputs
    assert not zs, "products of lists have no derivative"
    ctx.save_for_backward(*xs, *mapping)


def _sums_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    *xs, map, starts, members = ctx.saved_tensors
    mapping = (map, starts, members)
    g = 2.0 * g.to(compute_dtype(xs[0]))
    none = (None,) * 4
    if not torch.is_grad_enabled():
        return _scale(xs, g, [], None, ctx.geometry, *mapping, False), [], *none
    # A second derivative may follow, and that is the single op's.
    dxs, first = [], 0
    for i, x in enumerate(xs):
        geometry = list(ctx.geometry[3 * i : 3 * i + 3])
        if map is None:
            own: Mapping = (None, None, None)
            part = g[first : first + geometry[1]]
        else:
            own = _part_of(mapping, first, geometry[1])
            part = g
        dxs.append(_multiply(x, part, None, None, geometry, *own, False))
        first += geometry[1]
    return dxs, [], *none


def _part_of(mapping: Mapping, first: int, slices: int) -> Mapping:
    """The map of one tensor of a list. Sums over it are those of the tensor's slices alone."""
    map, starts, members = mapping
    assert map is not None
    assert starts is not None
    assert members is not None
    own = map[first : first + slices].contiguous()
    inside = (members >= first) & (members < first + slices)
    counts = torch.cat([inside.new_zeros(1, dtype=torch.int64), inside.long().cumsum(0)])
    order = inside.to(torch.int8).argsort(descending=True, stable=True)
    return own, counts[starts], (members - first)[order].contiguous()


def _sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, z, ctx.geometry, *mapping = inputs
    ctx.save_for_backward(x, z, *mapping)


def _sum_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, z, *mapping = ctx.saved_tensors
    g = g.to(compute_dtype(x))
    none = (None,) * 4
    if z is None:
        return _multiply(x, 2.0 * g, None, None, ctx.geometry, *mapping, False), None, *none
    dx = _multiply(z, g, None, None, ctx.geometry, *mapping, False)
    dz = _multiply(x, g, None, None, ctx.geometry, *mapping, False)
    return dx, dz, *none


def _multiply_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, a, z, b, ctx.geometry, *mapping, ctx.keep = inputs
    ctx.save_for_backward(x, a, z, b, *mapping)


def _multiply_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, a, z, b, *mapping = ctx.saved_tensors
    dx = _multiply(g, a, None, None, ctx.geometry, *mapping, ctx.keep)
    da = _sum(x, g, ctx.geometry, *mapping).to(a.dtype)
    none = (None,) * 5
    if z is None:
        return dx, da, None, None, *none
    dz = _multiply(g, b, None, None, ctx.geometry, *mapping, False)
    db = _sum(z, g, ctx.geometry, *mapping).to(a.dtype)
    return dx, da, dz, db, *none


_sums.differentiable(_sums_setup, _sums_gradient)
_sum.differentiable(_sum_setup, _sum_gradient)
_multiply.differentiable(_multiply_setup, _multiply_gradient)


def product_sum(x: Tensor, z: Tensor) -> Tensor:
    """Σ x z of two tensors of one shape, float64, 0-d, in the library's fixed order."""
    total: Tensor = _sum(x, z, [1, 1, x.numel()], None, None, None)
    return total.reshape(())


def weighted_sum(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ values · weights of float64 vectors in the library's fixed order, 0-d."""
    return product_sum(values, torch.ones_like(values) if weights is None else weights)


def _penalty_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    norms, lam, _, _, _ = inputs
    ctx.save_for_backward(norms, lam, output)


def _penalty_gradient(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    norms, lam, out = ctx.saved_tensors
    with torch.no_grad():
        by_lam = weighted_sum(g[0], out[2]).to(lam.dtype).reshape(lam.shape)
        by_norms = g[0] * out[1] * norms
    inputs = (norms, lam, g)
    return (
        refuse_second("group_prox", by_norms, inputs),
        refuse_second("group_prox", by_lam, inputs),
        None,
        None,
        None,
    )


_penalty.differentiable(_penalty_setup, _penalty_gradient)


def _soft(x: Tensor, soft: Tensor | None, l1: Tensor | None, positive: bool) -> Tensor:
    """What the group prox is given: x after the soft threshold and the positive part."""
    z = x
    if soft is not None:
        z = x.to(soft.dtype)
        t = soft if l1 is None else soft * l1
        z = torch.where(z.abs() <= t, torch.zeros_like(z), z - t * z.detach().sign())
    if positive:
        z = torch.where(z < 0, torch.zeros_like(z), z)
    return z


def _prox_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, step, lam, soft, l1, ctx.geometry, ctx.weight, ctx.law, ctx.shape = inputs[:9]
    group_weights, map, starts, members, ctx.positive = inputs[9:]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, step, lam, soft, l1, group_weights, map, starts, members, output[1])


def _l2_slopes(
    s: Tensor, step: Tensor, lam: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `group_slopes` computes for the law "soft", differentiable any number of times."""
    t, lam = step.double() * weights, lam.double()
    tau = t * lam
    same = (t == 0) | (lam == 0)
    active = ((s > tau) | s.isnan()) & (s > 0) | s.isnan()
    safe = torch.where(active, s, 1.0)
    a = torch.where(same, 1.0, torch.where(active, 1.0 - tau / safe, 0.0))
    b = torch.where(active & ~same, tau / (safe * safe * safe), 0.0)
    inverse = torch.where(active, 1.0 / safe, 0.0)
    return a, b, -lam * weights * inverse, -t * inverse


def _prox_derivatives(
    ctx: Any, g: Tensor, slopes: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """dx = a g + b x ⟨x, g⟩ and the sums for the parameters."""
    x, step, lam, soft, l1, group_weights, map, starts, members, norms = ctx.saved_tensors
    mapping = (map, starts, members)
    compute = compute_dtype(x)
    plain = soft is None and not ctx.positive
    z = x if plain else _soft(x, soft, l1, ctx.positive)
    if not plain:
        g = g.to(z.dtype)
    weights = group_weights
    if weights is None:
        weights = torch.full_like(norms, ctx.weight)
    a, b, by_step, by_lam = slopes(z, weights)
    dots = _sum(z, g, ctx.geometry, *mapping)
    dz = _multiply(g, a.to(compute), z, (b * dots).to(compute), ctx.geometry, *mapping, True)
    dstep = weighted_sum(dots, by_step).to(step.dtype).reshape(step.shape)
    dlam = weighted_sum(dots, by_lam).to(lam.dtype).reshape(lam.shape)
    if plain:
        return dz, dstep, dlam, None, None
    covered = None
    if map is not None:
        # Elements of no group are not thresholded either.
        ones = torch.ones_like(z)
        every = torch.ones_like(norms, dtype=compute)
        covered = _multiply(ones, every, None, None, ctx.geometry, *mapping, False)
    alive = torch.where((z == 0) if covered is None else (z == 0) & (covered > 0), 0.0, dz)
    same = alive if soft is None else torch.where(soft == 0, dz, alive)
    if ctx.positive:
        same = torch.where((x < 0) if covered is None else (x < 0) & (covered > 0), 0.0, same)
    if soft is None:
        return same.to(x.dtype), dstep, dlam, None, None
    signs = z.detach().sign() if covered is None else z.detach().sign() * covered
    dt = -(alive * signs)
    dsoft = product_sum(dt, torch.ones_like(dt) if l1 is None else l1)
    dl1 = None if l1 is None else dt * soft
    return same.to(x.dtype), dstep, dlam, dsoft.to(soft.dtype).reshape(soft.shape), dl1


def _prox_once(ctx: Any, g: Tensor) -> Any:
    x, step, lam, soft, l1, *_, norms = ctx.saved_tensors

    def slopes(_: Tensor, weights: Tensor) -> Any:
        return _slopes(norms, step, lam, ctx.law, ctx.shape, weights).unbind(0)

    with torch.no_grad():
        grads = _prox_derivatives(ctx, g, slopes)
    return tuple(refuse_second("group_prox", d, (x, step, lam, soft, l1, g)) for d in grads)


def _prox_gradient(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    none = (None,) * 9
    if ctx.law != "soft" or not torch.is_grad_enabled():
        return *_prox_once(ctx, g), *none
    _, step, lam, _, _, _, *mapping, _ = ctx.saved_tensors

    def slopes(z: Tensor, weights: Tensor) -> Any:
        squares = _sum(z, None, ctx.geometry, *mapping)
        return _l2_slopes(root(squares), step, lam, weights)

    return *_prox_derivatives(ctx, g, slopes), *none


_prox.differentiable(_prox_setup, _prox_gradient)


def root(squares: Tensor) -> Tensor:
    """√ with the derivative 0 at 0."""
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


# ---- what penalties call ----


def tensors_of_one_dtype(op: str, name: str, value: object) -> list[Tensor]:
    """A tensor or several: groups may span them, and a kernel takes one dtype."""
    tensors = checks.tensor_list(op, name, value)
    for t in tensors:
        if t.dtype != tensors[0].dtype:
            raise TypeError(
                f"regkern.{op}: expected `{name}` of one dtype, got {tensors[0].dtype} and "
                f"{t.dtype}"
            )
    return tensors


def check_weights(op: str, weights: object) -> None:
    if isinstance(weights, Tensor):
        if weights.dim() != 1 or weights.is_complex():
            raise ValueError(
                f"regkern.{op}: expected `weights` of one dimension, a number per group, got "
                f"{tuple(weights.shape)}"
            )
    elif weights not in ("sqrt", "none"):
        raise ValueError(
            f"regkern.{op}: expected `weights` to be 'sqrt', 'none' or a tensor, got {weights!r}"
        )


def weights_of(
    op: str, layout: Layout, weights: Weights, device: torch.device
) -> tuple[list[float], Tensor | None]:
    """The weight of the groups of each tensor, and a factor per group where they differ."""
    ones = [1.0] * len(layout.sizes)
    if isinstance(weights, Tensor):
        if weights.numel() != sum(layout.groups):
            raise ValueError(
                f"regkern.{op}: expected `weights` for {sum(layout.groups)} groups, got "
                f"{weights.numel()}"
            )
        return ones, weights.to(device, torch.float64)
    if weights == "none":
        return ones, None
    if layout.group_sizes is not None:
        return ones, layout.group_sizes.sqrt()
    return [float(int(n)) ** 0.5 for n in layout.sizes], None


def spread_weights(
    layout: Layout, per_tensor: Sequence[float], per_group: Tensor | None, like: Tensor
) -> Tensor:
    """The weight of every group, float64."""
    if per_group is not None:
        return per_group
    options: Any = {"dtype": torch.float64, "device": like.device}
    if layout.map is not None:
        return torch.ones((sum(layout.groups),), **options)
    each = [torch.full((n,), w, **options) for n, w in zip(layout.groups, per_tensor, strict=True)]
    return each[0] if len(each) == 1 else torch.cat(each)


def group_squares(tensors: Sequence[Tensor], layout: Layout) -> Tensor:
    """‖x_g‖² of all groups, float64, differentiable."""
    geometry, mapping = layout.geometry, layout.mapping
    if len(tensors) == 1:
        return _sum(tensors[0], None, geometry, *mapping)  # type: ignore[no-any-return]
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return _sums(list(tensors), [], geometry, *mapping)  # type: ignore[no-any-return]
    # Transforms see no tensors in lists.
    if layout.map is not None:
        raise RuntimeError(
            "regkern: groups over several tensors, or with a map for several, have no derivative "
            "under torch.func transforms; use torch.autograd"
        )
    each = [_sum(t, None, geometry[3 * i : 3 * i + 3], *mapping) for i, t in enumerate(tensors)]
    return torch.cat(each)


def group_products(xs: Sequence[Tensor], zs: Sequence[Tensor], layout: Layout) -> Tensor:
    """⟨x_g, z_g⟩ of all groups, float64, differentiable."""
    return _sums(list(xs), list(zs), layout.geometry, *layout.mapping)  # type: ignore[no-any-return]


def group_combined(
    xs: Sequence[Tensor], a: Tensor, zs: Sequence[Tensor], b: Tensor, layout: Layout
) -> list[Tensor]:
    """a[g] · x_g + b[g] · z_g, differentiable."""
    compute = compute_dtype(xs[0])
    return _scale(  # type: ignore[no-any-return]
        list(xs), a.to(compute), list(zs), b.to(compute), layout.geometry, *layout.mapping, True
    )


def group_scaled(x: Tensor, factors: Tensor, layout: Layout) -> Tensor:
    """x_g · factors[g], differentiable in both."""
    factors = factors.to(compute_dtype(x))
    return _multiply(  # type: ignore[no-any-return]
        x, factors, None, None, layout.geometry, *layout.mapping, True
    )


def group_scale_(tensors: Sequence[Tensor], factors: Tensor, layout: Layout) -> None:
    """x_g ← x_g · factors[g]; 0 gives zeros, also of what is not finite."""
    _scale_in_place(
        list(tensors),
        factors.to(compute_dtype(tensors[0])).contiguous(),
        layout.geometry,
        *layout.mapping,
    )


def penalty_value(norms: Tensor, lam: Tensor, law: str, shape: float, weights: Tensor) -> Tensor:
    """Σ weight φ_λ(norm), 0-d float64."""
    if law == "soft":
        return weighted_sum(norms, weights) * lam.double()
    return weighted_sum(_penalty(norms, lam, law, shape, weights)[0])


def report_of(norms: Tensor, zeros: Tensor, layout: Layout) -> ProxReport:
    """The norms of all groups, cut into those of each tensor."""
    each: tuple[Tensor, ...] = torch.split(norms, layout.groups)
    return ProxReport(each, zeros)


def prox(
    op: str,
    x: Tensor,
    groups: Groups,
    weights: Weights,
    step: float | Tensor,
    lam: float | Tensor,
    law: str,
    shape: float,
    soft: float | Tensor | None = None,
    l1: Tensor | None = None,
    positive: bool = False,
) -> Tensor:
    """The group prox of one tensor, differentiable in x, step, λ and the soft threshold."""
    layout = groups.layout([x])
    (weight,), per_group = weights_of(op, layout, weights, x.device)
    y, _ = _prox(
        x,
        threshold(x, step),
        threshold(x, lam),
        None if soft is None else threshold(x, step, soft),
        l1,
        layout.geometry,
        weight,
        law,
        shape,
        per_group,
        *layout.mapping,
        positive,
    )
    return y  # type: ignore[no-any-return]


def prox_(
    op: str,
    tensors: Sequence[Tensor],
    sources: Sequence[Tensor],
    groups: Groups,
    weights: Weights,
    step: float | Tensor,
    lam: float | Tensor,
    law: str,
    shape: float,
    soft: float | Tensor | None = None,
    l1: Sequence[Tensor] | None = None,
    positive: bool = False,
) -> ProxReport:
    """The group prox of a list of tensors in place, or of other sources into them."""
    like = tensors[0]
    layout = groups.layout(tensors)
    per_tensor, per_group = weights_of(op, layout, weights, like.device)
    with torch.no_grad():
        norms, zeros = _prox_in_place(
            list(tensors),
            list(sources),
            threshold(like, step),
            threshold(like, lam),
            layout.geometry,
            per_tensor,
            law,
            shape,
            per_group,
            *layout.mapping,
            None if soft is None else threshold(like, step, soft),
            l1,
            positive,
        )
    return report_of(norms, zeros, layout)


def group_norms(tensors: Tensor | Sequence[Tensor], groups: Groups) -> Tensor:
    r"""The Euclidean norms of groups

    .. math:: s_g = \lVert x_g \rVert_2

    Parameters
    ----------
    tensors : Tensor or sequence of Tensor
        float32, float64, bfloat16 or float16, of one dtype; any strides.
    groups : Groups
        The groups of each tensor, or of all together.

    Returns
    -------
    Tensor
        float64, (groups,): the groups of the first tensor, then those of the second, and so on.
        Differentiable any number of times; the gradient of a zero group is 0.

    Raises
    ------
    TypeError, ValueError
        For tensors of other or of several dtypes, and groups that do not fit them.

    Notes
    -----
    Each tensor is read once. Squares are added in the type that is computed in, in an order that
    is the same everywhere, and in float64 where they overflow or underflow.
    """
    xs = tensors_of_one_dtype("group_norms", "tensors", tensors)
    return root(group_squares(xs, groups.layout(xs)))

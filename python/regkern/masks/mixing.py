"""CutMix and MixUp of a batch: images, masks and targets in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import composite, dense_like, register
from regkern.random import resolve_seed

Pairing = Literal["roll", "flip", "perm", "derange", "identity"]
Target = Tensor | tuple[Tensor, Tensor, Tensor] | None

PAIRINGS = ("roll", "flip", "perm", "derange", "identity")


# ---- raw ops: fake kernels and autograd ----


def _fake_adjoint(
    g: Tensor,
    partner: Tensor,
    others: int,
    box: Tensor | None = None,
    weight: Tensor | None = None,
    own: bool = True,
    from_partner: bool = True,
) -> Tensor:
    return dense_like(g) if own else _resized(g, others)


def _resized(g: Tensor, batch: int) -> Tensor:
    """An empty tensor with another batch size and the memory layout of g."""
    empty = torch.empty((batch, *g.shape[1:]), dtype=g.dtype, device=g.device)
    if not g.is_contiguous():
        for rank, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if g.dim() == rank and g.is_contiguous(memory_format=layout):
                return empty.contiguous(memory_format=layout)
    return empty


def _fake_params(
    seed: Tensor, batch: int, height: int, width: int, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        seed.new_empty((batch,)),
        seed.new_empty((batch, 4), dtype=torch.int32),
        seed.new_empty((batch,), dtype=torch.float32),
        seed.new_empty((batch,), dtype=torch.float32),
    )


_params = register("mix_params", _fake_params)
_mix = register("mix", lambda x, partner, box=None, weight=None, other=None: dense_like(x))
_mix_out = register("mix_out", lambda x, partner, out, box=None, weight=None, other=None: None)
_adjoint = register("mix_adjoint", _fake_adjoint)
_dot = register(
    "mix_dot",
    lambda g, x, partner, box=None, other=None: x.new_empty((x.shape[0],), dtype=torch.float64),
)
_labels = register(
    "mix_labels",
    lambda labels, partner, lam, num_classes, dtype, smoothing=0.0, other_labels=None: (
        labels.new_empty((labels.shape[0], num_classes), dtype=dtype)
    ),
)


# The three ops are closed under differentiation. With L the mix as a linear map of (x, other),
# Lᵀ its adjoint and P the box part with weight 0:
#   ∂ mix / ∂a_i · g  = ⟨g_i, x_i − o_π(i)⟩ inside the box     (mix_dot)
#   ∂ Lᵀg / ∂g · u    = L u,   ∂ Lᵀg / ∂a_i · u = ⟨g_i, u_i − u_π(i)⟩ inside the box
#   ∂ dot / ∂g_i · v  = v_i (x_i − o_π(i)) inside the box = v_i (x − mix(x, a = 0, other))_i
#   ∂ dot / ∂x        = v g − own part of the adjoint of (v g) at a = 0
#   ∂ dot / ∂other    = − partner part of the adjoint of (v g) at a = 0


def _per_sample(v: Tensor, like: Tensor) -> Tensor:
    return v.to(like.dtype).reshape(-1, *([1] * (like.dim() - 1)))


def _setup_mix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, partner, box, weight, other = inputs
    ctx.save_for_backward(
        x if weight is not None and weight.requires_grad else None, partner, box, weight, other
    )
    ctx.batch = x.shape[0]


def _backward_mix(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, partner, box, weight, other = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dx = dweight = dother = None
    if other is None:
        if needs[0]:
            dx = _adjoint(g, partner, ctx.batch, box, weight)
    else:
        if needs[0]:
            dx = _adjoint(g, partner, ctx.batch, box, weight, True, False)
        if len(needs) > 4 and needs[4]:
            dother = _adjoint(g, partner, other.shape[0], box, weight, False, True)
    if len(needs) > 3 and needs[3]:
        dweight = _dot(g, x, partner, box, other).to(weight.dtype)
    return dx, None, None, dweight, dother


_mix.differentiable(_setup_mix, _backward_mix)


def _setup_adjoint(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, partner, ctx.others, box, weight, ctx.own, ctx.from_partner = inputs
    keep = weight is not None and weight.requires_grad
    ctx.save_for_backward(g if keep else None, partner, box, weight)
    ctx.shape = tuple(g.shape)


def _backward_adjoint(ctx: Any, u: Tensor) -> tuple[Any, ...]:
    g, partner, box, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    dg = dweight = None
    # u is of the own batch, of the other batch, or of both where they are one.
    own = u if ctx.own else u.new_zeros(ctx.shape)
    other = u if ctx.from_partner else torch.zeros_like(u)
    if needs[0]:
        dg = _mix(own, partner, box, weight, other)
    if len(needs) > 4 and needs[4]:
        dweight = _dot(g, own, partner, box, other).to(weight.dtype)
    return dg, None, None, None, dweight, None, None


_adjoint.differentiable(_setup_adjoint, _backward_adjoint)


def _setup_dot(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_dot(ctx: Any, v: Tensor) -> tuple[Any, ...]:
    g, x, partner, box, other = ctx.saved_tensors
    needs = ctx.needs_input_grad
    scaled = _per_sample(v, x)
    dg = dx = dother = None
    if needs[0]:
        dg = scaled * (x - _mix(x, partner, box, None, other))
    if other is None:
        if needs[1]:
            dx = scaled * g - _adjoint(scaled * g, partner, x.shape[0], box)
    else:
        if needs[1]:
            dx = scaled * g - _adjoint(scaled * g, partner, x.shape[0], box, None, True, False)
        if len(needs) > 4 and needs[4]:
            dother = -_adjoint(scaled * g, partner, other.shape[0], box, None, False, True)
    return dg, dx, None, None, dother


_dot.differentiable(_setup_dot, _backward_dot)


def _setup_labels(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    labels, partner, lam, _, _, ctx.smoothing, other_labels = inputs
    theirs = labels if other_labels is None else other_labels
    ctx.save_for_backward(labels, theirs.index_select(0, partner))
    ctx.lam_dtype = lam.dtype


def _backward_labels(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    # λ moves weight from the partner's label to the own one.
    own, theirs = (g.gather(1, y[:, None])[:, 0] for y in ctx.saved_tensors)
    dlam = ((1.0 - ctx.smoothing) * (own - theirs)).to(ctx.lam_dtype)
    return None, None, dlam, None, None, None, None


_labels.differentiable(_setup_labels, _backward_labels)


# The two by their own names, as ops that decompose into `mix`.
composite(
    "cutmix(Tensor x, Tensor partner, Tensor box, Tensor? other=None) -> Tensor",
    lambda x, partner, box, other=None: _mix(x, partner, box, None, other),
)
composite(
    "mixup(Tensor x, Tensor partner, Tensor lam, Tensor? other=None) -> Tensor",
    lambda x, partner, lam, other=None: _mix(x, partner, None, lam, other),
)


# ---- public functions ----


class MixParams(NamedTuple):
    """How a batch was mixed. Passed back as ``params=`` it mixes another one alike.

    ``partner`` int64 (B), the sample mixed in; ``box`` int32 (B, 4), (y0, y1, x0, x1), half open;
    ``weight`` float32 (B), share of the own pixels inside the box; ``lam`` float32 (B), share of
    the own label.
    """

    partner: Tensor
    box: Tensor
    weight: Tensor
    lam: Tensor


class Mixed(NamedTuple):
    """A mixed batch."""

    x: Tensor
    target: Target
    masks: tuple[Tensor, ...]
    params: MixParams


def mix(
    x: Tensor,
    partner: Tensor,
    *,
    box: Tensor | None = None,
    weight: Tensor | None = None,
    other: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Mixes every sample with a partner inside a box.

    .. math::
        y_i = \begin{cases} a_i x_i + (1 - a_i)\, o_{\pi(i)} & \text{inside box}_i \\
        x_i & \text{outside} \end{cases}

    Parameters
    ----------
    x : Tensor
        (B, …, H, W), or (B, features) and (B,) without a box. float32, float64, bfloat16, float16
        or uint8 (rounded half to even); any dtype if ``weight`` is None.
    partner : Tensor
        π, int64 (B), in [0, batch of ``other``).
    box : Tensor, optional
        int32 (B, 4), (y0, y1, x0, x1), half open, inside the image. Default: the whole image.
    weight : Tensor, optional
        a, float32 or float64 (B). Default: 0, a paste. Where it is exactly 0 or 1 the image without
        a share is not read, so its NaN does not spread.
    other : Tensor, optional
        o, another batch of images like x. Default: x.
    out : Tensor, optional
        Where to write; must not share memory with x or ``other``. Not differentiable.

    Returns
    -------
    Tensor
        Like x. Differentiable any number of times in x, other and weight.

    Notes
    -----
    Bytes moved: x read and y written, and the partner's box read. On CUDA the values of
    ``partner`` and ``box`` are not looked at by the host: boxes are clipped to the image, and a
    partner out of range gives NaN (0 for integers).

    References
    ----------
    Yun et al., "CutMix", ICCV 2019 (a = 0). Zhang et al., "mixup: Beyond empirical risk
    minimization", ICLR 2018 (no box).
    """
    checks.tensor("mix", "x", x)
    for name, value in (
        ("partner", partner), ("box", box), ("weight", weight), ("other", other), ("out", out),
    ):  # fmt: skip
        if value is not None:
            checks.on_device("mix", name, value, x)
    if out is None:
        y: Tensor = _mix(x, partner, box, weight, other)
        return y
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, other, weight)
    ):
        raise ValueError(
            "regkern.mix: expected no input to require gradients with `out`, got one that does"
        )
    _mix_out.raw(x, partner, out, box, weight, other)
    return out


class _How(NamedTuple):
    """What comes along with the images, and how it comes out."""

    masks: Sequence[Tensor] = ()
    other: Tensor | None = None
    other_target: Tensor | None = None
    other_masks: Sequence[Tensor] | None = None
    num_classes: int | None = None
    smoothing: float = 0.0
    target_dtype: torch.dtype | None = None
    out: Tensor | None = None


def _mix_target(target: Tensor, params: MixParams, how: _How) -> Target:
    """Soft targets, or (y, y of the partner, λ) for labels without a number of classes."""
    other_target, dtype = how.other_target, how.target_dtype
    labels = not target.is_floating_point()
    if labels and target.dim() == 1 and how.num_classes is not None:
        soft: Tensor = _labels(
            target.long(),
            params.partner,
            params.lam.float(),
            how.num_classes,
            dtype or torch.float32,
            how.smoothing,
            None if other_target is None else other_target.long(),
        )
        return soft
    theirs = target if other_target is None else other_target
    if labels:
        return target, theirs.index_select(0, params.partner), params.lam
    dtype = dtype or target.dtype
    if how.smoothing:
        # In float32 at least, so that a half-precision target is rounded once, at the end.
        wide = torch.promote_types(target.dtype, torch.float32)
        target, theirs = (
            t.to(wide) * (1.0 - how.smoothing) + how.smoothing / t.shape[-1]
            for t in (target, theirs)
        )
    mixed: Tensor = _mix(
        target, params.partner, None, params.lam, None if other_target is None else theirs
    )
    return mixed.to(dtype)


def _check_batch(op: str, x: Tensor, target: Tensor | None, how: _How) -> None:
    checks.tensor(op, "x", x)
    if x.dim() < 3:
        raise ValueError(
            f"regkern.{op}: expected `x` of shape (batch, …, height, width), got {tuple(x.shape)}"
        )
    checks.probability(op, "smoothing", how.smoothing)
    for name, value in (("target", target), ("other_target", how.other_target)):
        if value is None:
            continue
        checks.tensor(op, name, value)
        batch = x.shape[0] if name == "target" or how.other is None else how.other.shape[0]
        if value.dim() == 0 or value.shape[0] != batch:
            raise ValueError(
                f"regkern.{op}: expected `{name}` with {batch} entries, one per image, got "
                f"{tuple(value.shape)}"
            )
        if value.device != x.device:
            raise ValueError(f"regkern.{op}: expected `{name}` on {x.device}, got {value.device}")
    if how.num_classes is not None and (isinstance(how.num_classes, bool) or how.num_classes < 1):
        raise ValueError(
            f"regkern.{op}: expected `num_classes` to be at least 1, got {how.num_classes}"
        )
    if how.other is not None and target is not None and how.other_target is None:
        raise ValueError(
            f"regkern.{op}: expected `other_target` with `other` and `target`, got None"
        )
    for mask in how.masks:
        checks.tensor(op, "masks", mask)
        if mask.dim() < 3 or mask.shape[0] != x.shape[0] or mask.shape[-2:] != x.shape[-2:]:
            raise ValueError(
                f"regkern.{op}: expected every one of `masks` of shape ({x.shape[0]}, …, "
                f"{x.shape[-2]}, {x.shape[-1]}), got {tuple(mask.shape)}"
            )


def _given_partner(op: str, partner: Tensor, x: Tensor, other: Tensor | None) -> Tensor:
    checks.tensor(op, "partner", partner)
    if partner.shape != (x.shape[0],) or partner.dtype != torch.int64:
        raise ValueError(
            f"regkern.{op}: expected `partner` to be int64 ({x.shape[0]},), got {partner.dtype} "
            f"{tuple(partner.shape)}"
        )
    if partner.device != x.device:
        raise ValueError(f"regkern.{op}: expected `partner` on {x.device}, got {partner.device}")
    return partner


def _draw(
    op: str,
    x: Tensor,
    other: Tensor | None,
    *,
    pairing: str,
    partner: Tensor | None,
    per: str,
    seed: Tensor | None,
    generator: torch.Generator | None,
    **options: Any,
) -> MixParams:
    checks.one_of(op, "per", per, ("sample", "batch"))
    checks.one_of(op, "pairing", pairing, PAIRINGS)
    if partner is not None:
        partner = _given_partner(op, partner, x, other)
    elif other is not None and other.shape[0] != x.shape[0]:
        raise ValueError(
            f"regkern.{op}: expected `partner` with an `other` of another batch size, got None"
        )
    drawn = MixParams(
        *_params(
            resolve_seed(op, x, seed, generator),
            x.shape[0],
            x.shape[-2],
            x.shape[-1],
            pairing=pairing,
            per_batch=per == "batch",
            **options,
        )
    )
    return drawn if partner is None else drawn._replace(partner=partner)


def _mixed(
    op: str,
    x: Tensor,
    target: Tensor | None,
    params: MixParams,
    how: _How,
    *,
    box: bool,
    weight: bool,
) -> Mixed:
    if how.other is not None and how.masks and how.other_masks is None:
        raise ValueError(f"regkern.{op}: expected `other_masks` with `other` and `masks`, got None")
    theirs = [None] * len(how.masks) if how.other_masks is None else list(how.other_masks)

    def one(image: Tensor, other: Tensor | None, out: Tensor | None = None) -> Tensor:
        return mix(
            image,
            params.partner,
            box=params.box if box else None,
            weight=params.weight if weight else None,
            other=other,
            out=out,
        )

    return Mixed(
        one(x, how.other, how.out),
        None if target is None else _mix_target(target, params, how),
        tuple(one(m, o) for m, o in zip(how.masks, theirs, strict=True)),
        params,
    )


def cutmix(
    x: Tensor,
    target: Tensor | None = None,
    *,
    alpha: float = 1.0,
    p: float = 1.0,
    per: Literal["sample", "batch"] = "sample",
    pairing: Pairing = "roll",
    partner: Tensor | None = None,
    border: Literal["clip", "inside"] = "clip",
    minmax: tuple[float, float] | None = None,
    correct_lam: bool = True,
    masks: Sequence[Tensor] = (),
    other: Tensor | None = None,
    other_target: Tensor | None = None,
    other_masks: Sequence[Tensor] | None = None,
    num_classes: int | None = None,
    smoothing: float = 0.0,
    target_dtype: torch.dtype | None = None,
    params: MixParams | None = None,
    out: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    r"""CutMix: pastes a box of the partner's image and mixes the labels by area.

    .. math::
        \lambda \sim \mathrm{Beta}(\alpha, \alpha), \quad
        (h, w) = \lfloor (H, W) \sqrt{1 - \lambda} \rfloor, \quad
        y_i = (1 - B_i) \odot x_i + B_i \odot x_{\pi(i)}, \quad
        t_i = \lambda_i t_i + (1 - \lambda_i) t_{\pi(i)}

    with the box B around a uniform centre, clipped at the border, and λ corrected to the share of
    the image that is really kept.

    Parameters
    ----------
    x : Tensor
        Images (B, C, H, W), videos (B, C, T, H, W), or (B, …, H, W). Any dtype, any strides.
    target : Tensor, optional
        Labels (integer, (B,)) or soft targets (floating point, (B, K)).
    alpha : float
        Of the Beta distribution, > 0.
    p : float
        Probability of mixing at all, per sample or batch.
    per : {"sample", "batch"}
        What has a box of its own.
    pairing : {"roll", "flip", "perm", "derange", "identity"}
        Partner: the sample before; the mirrored index; a random permutation; a random cycle, in
        which nobody is paired with itself; itself (SelfMix, with ``other`` a second view).
    partner : Tensor, optional
        int64 (B): the pairing, given.
    border : {"clip", "inside"}
        Boxes are clipped at the border (the paper), or placed inside the image.
    minmax : (float, float), optional
        The box's sides as shares of the image's, uniform in between, instead of from λ.
    correct_lam : bool
        λ is 1 − area / (H W) of the box after clipping; else as drawn.
    masks : sequence of Tensor
        (B, …, H, W), any dtype: mixed like x, segmentation masks say.
    other, other_target, other_masks
        Another batch to take partners from. Default: the same.
    num_classes : int, optional
        With labels: soft targets (B, num_classes) come back. Without: ``(target,
        target[partner], lam)``.
    smoothing : float
        Label smoothing of soft targets.
    target_dtype : torch.dtype, optional
        Of soft targets. Default: float32 for labels, else the target's.
    params : MixParams, optional
        Replays an earlier call instead of drawing.
    out : Tensor, optional
        Where to write the images; see `mix`.
    seed, generator
        See `make_seed`.

    Returns
    -------
    Mixed
        ``x``, ``target``, ``masks`` and ``params``.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; nothing has been changed then.

    Notes
    -----
    Bytes moved: x read once and written once. Parameters are drawn on x's device without a
    synchronisation. Differentiable in x and other, any number of times.

    References
    ----------
    Yun et al., "CutMix: Regularization strategy to train strong classifiers with localizable
    features", ICCV 2019.
    """
    op = "cutmix"
    how = _How(masks, other, other_target, other_masks, num_classes, smoothing, target_dtype, out)
    _check_batch(op, x, target, how)
    if params is None:
        checks.probability(op, "p", p)
        checks.one_of(op, "border", border, ("clip", "inside"))
        check_alpha(op, "alpha", alpha)
        params = _draw(
            op,
            x,
            other,
            pairing=pairing,
            partner=partner,
            per=per,
            seed=seed,
            generator=generator,
            cutmix_alpha=alpha,
            p=p,
            inside=border == "inside",
            correct_lam=correct_lam,
            **_cut_range(op, minmax),
        )
    return _mixed(op, x, target, params, how, box=True, weight=False)


def check_alpha(op: str, name: str, alpha: float) -> None:
    if not alpha > 0.0 or alpha == float("inf"):
        raise ValueError(f"regkern.{op}: expected `{name}` to be positive and finite, got {alpha}")


def _cut_range(op: str, minmax: tuple[float, float] | None) -> dict[str, float]:
    if minmax is None:
        return {}
    low, high = minmax
    if not 0.0 <= low <= high <= 1.0 or high == 0.0:
        raise ValueError(
            f"regkern.{op}: expected `minmax` with 0 <= low <= high <= 1 and 0 < high, got {minmax}"
        )
    return {"min_cut": low, "max_cut": high}


def mixup(
    x: Tensor,
    target: Tensor | None = None,
    *,
    alpha: float = 1.0,
    p: float = 1.0,
    per: Literal["sample", "batch"] = "sample",
    pairing: Pairing = "roll",
    partner: Tensor | None = None,
    lam: Tensor | None = None,
    masks: Sequence[Tensor] = (),
    other: Tensor | None = None,
    other_target: Tensor | None = None,
    other_masks: Sequence[Tensor] | None = None,
    num_classes: int | None = None,
    smoothing: float = 0.0,
    target_dtype: torch.dtype | None = None,
    params: MixParams | None = None,
    out: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    r"""MixUp: convex combinations of images and labels.

    .. math::
        \lambda_i \sim \mathrm{Beta}(\alpha, \alpha), \quad
        y_i = \lambda_i x_i + (1 - \lambda_i) x_{\pi(i)}, \quad
        t_i = \lambda_i t_i + (1 - \lambda_i) t_{\pi(i)}

    Parameters are those of `cutmix`, and:

    Parameters
    ----------
    x : Tensor
        float32, float64, bfloat16, float16 or uint8 (rounded half to even).
    lam : Tensor, optional
        λ, float32 or float64 (B), given: AdaMixUp's λ = a + Δ · ε, say. Differentiable.

    Returns
    -------
    Mixed
        Differentiable any number of times in x, other and lam.

    References
    ----------
    Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018. Guo et al., "MixUp as
    locally linear out-of-manifold regularization", AAAI 2019.
    """
    op = "mixup"
    how = _How(masks, other, other_target, other_masks, num_classes, smoothing, target_dtype, out)
    _check_batch(op, x, target, how)
    if x.dtype != torch.uint8:
        checks.floating(op, "x", x)
    for mask in masks:
        if mask.dtype != torch.uint8:
            checks.floating(op, "masks", mask)
    if params is None:
        checks.probability(op, "p", p)
        check_alpha(op, "alpha", alpha)
        params = _draw(
            op,
            x,
            other,
            pairing=pairing,
            partner=partner,
            per=per,
            seed=seed,
            generator=generator,
            mixup_alpha=alpha,
            p=p,
        )
        if lam is not None:
            if lam.shape != (x.shape[0],) or lam.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"regkern.{op}: expected `lam` to be float32 or float64 ({x.shape[0]},), got "
                    f"{lam.dtype} {tuple(lam.shape)}"
                )
            params = params._replace(weight=lam, lam=lam)
    return _mixed(op, x, target, params, how, box=False, weight=True)


def cutmix_or_mixup(
    x: Tensor,
    target: Tensor | None = None,
    *,
    cutmix_alpha: float = 1.0,
    mixup_alpha: float = 1.0,
    switch_prob: float = 0.5,
    p: float = 1.0,
    per: Literal["sample", "batch"] = "sample",
    pairing: Pairing = "flip",
    partner: Tensor | None = None,
    border: Literal["clip", "inside"] = "clip",
    minmax: tuple[float, float] | None = None,
    correct_lam: bool = True,
    num_classes: int | None = None,
    smoothing: float = 0.0,
    target_dtype: torch.dtype | None = None,
    params: MixParams | None = None,
    out: Tensor | None = None,
    seed: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """CutMix with probability ``switch_prob``, else MixUp, per sample or batch.

    The choice is made on x's device, in the same kernel. An alpha of 0 turns one of them off.
    Further parameters and the result are those of `cutmix` and `mixup`.

    References
    ----------
    Wightman, Touvron and Jégou, "ResNet strikes back", 2021: the recipe that mixes both.
    """
    op = "cutmix_or_mixup"
    how = _How(num_classes=num_classes, smoothing=smoothing, target_dtype=target_dtype, out=out)
    _check_batch(op, x, target, how)
    if x.dtype != torch.uint8:
        checks.floating(op, "x", x)
    if params is None:
        checks.probability(op, "p", p)
        checks.probability(op, "switch_prob", switch_prob)
        checks.one_of(op, "border", border, ("clip", "inside"))
        checks.at_least(op, "cutmix_alpha", cutmix_alpha, 0.0)
        checks.at_least(op, "mixup_alpha", mixup_alpha, 0.0)
        if cutmix_alpha == 0.0 and mixup_alpha == 0.0:
            raise ValueError(f"regkern.{op}: expected a positive alpha, got two zeros")
        params = _draw(
            op,
            x,
            None,
            pairing=pairing,
            partner=partner,
            per=per,
            seed=seed,
            generator=generator,
            cutmix_alpha=cutmix_alpha,
            mixup_alpha=mixup_alpha,
            switch_prob=switch_prob,
            p=p,
            inside=border == "inside",
            correct_lam=correct_lam,
            **_cut_range(op, minmax),
        )
    return _mixed(op, x, target, params, how, box=True, weight=True)

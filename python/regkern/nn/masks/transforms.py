"""CutMix, MixUp and random erasing with the call signature of torchvision's v2 transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from regkern import _checks as checks
from regkern.masks.erasing import check_options, random_erasing, random_erasing_
from regkern.masks.mixing import (
    PAIRINGS,
    Mixed,
    MixParams,
    Pairing,
    check_alpha,
    cutmix,
    mixup,
)

# torchvision need not be installed, so its tensor classes are known by name: `Image` and `Video`
# are images, the others describe them.
_UNMIXABLE = ("BoundingBoxes", "KeyPoints")


def _kind(value: object) -> str | None:
    """The name of a torchvision tensor class, "Tensor" for any other tensor, None for the rest."""
    if not isinstance(value, Tensor):
        return None
    for cls in type(value).__mro__:
        if cls.__module__.startswith("torchvision.tv_tensors"):
            return cls.__name__
    return "Tensor"


def _is_pil(value: object) -> bool:
    return any(cls.__module__ == "PIL.Image" for cls in type(value).__mro__)


def _images(op: str, flat: Sequence[object]) -> list[int]:
    """Which leaves are images: torchvision's `Image` and `Video`, else the first plain tensor."""
    kinds = [_kind(value) for value in flat]
    marked = [i for i, kind in enumerate(kinds) if kind in ("Image", "Video")]
    if marked:
        return marked
    if any(map(_is_pil, flat)):
        raise TypeError(f"regkern.{op}: expected images as tensors, got a PIL image")
    if "Tensor" not in kinds:
        raise TypeError(f"regkern.{op}: expected a tensor of images, got none")
    return [kinds.index("Tensor")]


def _plain(value: Tensor) -> Tensor:
    return value if type(value) is Tensor else value.as_subclass(Tensor)


def _like(value: Tensor, like: Tensor) -> Tensor:
    if _kind(like) == "Tensor" or isinstance(value, type(like)):
        return value
    # The subclasses that are images or masks carry nothing but the tensor.
    return value.as_subclass(type(like))


def _labels_of(inputs: Any) -> Any:
    """The second item of a tuple or list, or what is called "label" in it or in a mapping."""
    if isinstance(inputs, tuple | list):
        inputs = inputs[1] if len(inputs) > 1 else None
    if _kind(inputs) == "Tensor":
        return inputs
    if isinstance(inputs, Mapping):
        keys = [key for key in inputs if isinstance(key, str)]
        for match in (
            lambda key: key.lower() == "labels",
            lambda key: "label" in key.lower(),
        ):
            found = next(filter(match, keys), None)
            if found is not None:
                return inputs[found]
    raise ValueError(
        "expected the labels to be the second input, or under a key with 'label' in its name; say "
        "where they are with `labels_getter`"
    )


class _Transform(nn.Module):
    _shown: tuple[str, ...]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shown)


class _Mix(_Transform):
    def __init__(
        self,
        *,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels_getter: Callable[[Any], Any] | Literal["default"] | None = "default",
        p: float = 1.0,
        per: Literal["sample", "batch"] = "sample",
        pairing: Pairing = "roll",
        smoothing: float = 0.0,
        target_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_alpha(name, "alpha", alpha)
        checks.probability(name, "p", p)
        checks.probability(name, "smoothing", smoothing)
        checks.one_of(name, "per", per, ("sample", "batch"))
        checks.one_of(name, "pairing", pairing, PAIRINGS)
        if labels_getter not in ("default", None) and not callable(labels_getter):
            raise ValueError(
                f"regkern.{name}: expected `labels_getter` to be 'default', a callable or None, "
                f"got {labels_getter!r}"
            )
        self.alpha = float(alpha)
        self.num_classes = num_classes
        self.labels_getter = labels_getter
        self.p = p
        self.per: Literal["sample", "batch"] = per
        self.pairing: Pairing = pairing
        self.smoothing = smoothing
        self.target_dtype = target_dtype
        self.generator = generator

    _shown = ("alpha", "num_classes", "p", "per", "pairing")

    def _mix(self, x: Tensor, target: Tensor | None, params: MixParams | None) -> Mixed:
        raise NotImplementedError

    def _labels(self, inputs: Any) -> Tensor | None:
        op = type(self).__name__
        if self.labels_getter is None:
            return None
        try:
            getter = self.labels_getter
            labels = getter(inputs) if callable(getter) else _labels_of(inputs)
        except ValueError as error:
            raise ValueError(f"regkern.{op}: {error}") from None
        if not isinstance(labels, Tensor) or labels.dim() not in (1, 2):
            got = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels)
            raise ValueError(
                f"regkern.{op}: expected labels to be a tensor (batch,) or (batch, num_classes), "
                f"got {got}"
            )
        if labels.dim() == 1 and self.num_classes is None:
            raise ValueError(
                f"regkern.{op}: expected `num_classes` with labels of shape (batch,), got None"
            )
        if labels.dim() == 2 and self.num_classes not in (None, labels.shape[1]):
            raise ValueError(
                f"regkern.{op}: expected labels of {self.num_classes} classes, got "
                f"{labels.shape[1]}"
            )
        return labels

    def _mixed_too(self, kind: str | None) -> bool:
        return False

    def forward(self, *inputs: Any) -> Any:
        op = type(self).__name__
        structure = inputs if len(inputs) > 1 else inputs[0]
        flat, spec = tree_flatten(structure)
        if any(_is_pil(value) or _kind(value) in _UNMIXABLE for value in flat):
            raise ValueError(
                f"regkern.{op}: expected batches of image tensors, got a PIL image, bounding boxes "
                f"or key points"
            )
        labels = self._labels(structure)
        images = _images(op, flat)
        images += [i for i, value in enumerate(flat) if self._mixed_too(_kind(value))]
        first = flat[images[0]]
        for i in images:
            x = flat[i]
            if x is labels or x.dim() < 3 or x.shape[0] != first.shape[0]:
                raise ValueError(
                    f"regkern.{op}: expected a batch (B, …, H, W) of images, got {tuple(x.shape)}"
                )
            if x.shape[-2:] != first.shape[-2:]:
                raise ValueError(
                    f"regkern.{op}: expected images of one size, got {tuple(first.shape[-2:])} and "
                    f"{tuple(x.shape[-2:])}"
                )
        target = labels
        if target is not None and target.dim() == 2 and not target.is_floating_point():
            target = target.float()
        params: MixParams | None = None
        for i in images:
            mixed = self._mix(_plain(flat[i]), target if params is None else None, params)
            if params is None and labels is not None:
                position = next(j for j, value in enumerate(flat) if value is labels)
                flat[position] = mixed.target
            params = mixed.params
            flat[i] = _like(mixed.x, flat[i])
        return tree_unflatten(flat, spec)


class CutMix(_Mix):
    r"""CutMix of batches, with the signature of ``torchvision.transforms.v2.CutMix``.

    .. math::
        y_i = (1 - B_i) \odot x_i + B_i \odot x_{\pi(i)}, \qquad
        t_i = \lambda_i t_i + (1 - \lambda_i) t_{\pi(i)}

    ``CutMix(num_classes=10)(images, labels)`` returns both, ``labels`` as (batch, num_classes).
    Any structure of inputs comes back as it is, a single tuple as well, so the transform can stand
    in a ``collate_fn``. It acts in eval mode too, as all transforms do.

    Parameters
    ----------
    alpha : float
        Of the Beta distribution of λ.
    num_classes : int, optional
        Needed for labels of shape (batch,).
    labels_getter : callable, "default" or None
        From the inputs to the labels. Default: the second input, or in it or in the only input
        what is called "label". None: there are no labels.
    p : float
        Probability of mixing, per sample or batch.
    per : {"sample", "batch"}
        What has a box of its own; torchvision's is "batch".
    pairing, border, minmax, correct_lam, smoothing, target_dtype
        As of `regkern.cutmix`.
    generator : torch.Generator, optional
        Default: torch's own, which data loaders seed differently in every worker. A given one is
        the same in all of them.

    Raises
    ------
    TypeError, ValueError
        For PIL images, bounding boxes, and labels that do not fit.

    Notes
    -----
    Images are torchvision's ``Image`` and ``Video`` tensors, else the first plain tensor; its
    ``Mask`` is cut like the images. All of them get the same boxes. What is no image comes back
    untouched.
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels_getter: Callable[[Any], Any] | Literal["default"] | None = "default",
        p: float = 1.0,
        per: Literal["sample", "batch"] = "sample",
        pairing: Pairing = "roll",
        border: Literal["clip", "inside"] = "clip",
        minmax: tuple[float, float] | None = None,
        correct_lam: bool = True,
        smoothing: float = 0.0,
        target_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            alpha=alpha,
            num_classes=num_classes,
            labels_getter=labels_getter,
            p=p,
            per=per,
            pairing=pairing,
            smoothing=smoothing,
            target_dtype=target_dtype,
            generator=generator,
        )
        checks.one_of("CutMix", "border", border, ("clip", "inside"))
        self.border: Literal["clip", "inside"] = border
        self.minmax = minmax
        self.correct_lam = correct_lam

    def _mixed_too(self, kind: str | None) -> bool:
        return kind == "Mask"

    def _mix(self, x: Tensor, target: Tensor | None, params: MixParams | None) -> Mixed:
        return cutmix(
            x,
            target,
            alpha=self.alpha,
            p=self.p,
            per=self.per,
            pairing=self.pairing,
            border=self.border,
            minmax=self.minmax,
            correct_lam=self.correct_lam,
            num_classes=self.num_classes,
            smoothing=self.smoothing,
            target_dtype=self.target_dtype,
            params=params,
            generator=self.generator,
        )


class MixUp(_Mix):
    r"""MixUp of batches, with the signature of ``torchvision.transforms.v2.MixUp``.

    .. math::
        y_i = \lambda_i x_i + (1 - \lambda_i) x_{\pi(i)}, \qquad
        t_i = \lambda_i t_i + (1 - \lambda_i) t_{\pi(i)}

    Parameters and calls are those of `CutMix`. Images may be uint8, which is rounded half to even.
    """

    def forward(self, *inputs: Any) -> Any:
        if any(_kind(value) == "Mask" for value in tree_flatten(inputs)[0]):
            raise ValueError("regkern.MixUp: expected images and labels, got a segmentation mask")
        return super().forward(*inputs)

    def _mix(self, x: Tensor, target: Tensor | None, params: MixParams | None) -> Mixed:
        return mixup(
            x,
            target,
            alpha=self.alpha,
            p=self.p,
            per=self.per,
            pairing=self.pairing,
            num_classes=self.num_classes,
            smoothing=self.smoothing,
            target_dtype=self.target_dtype,
            params=params,
            generator=self.generator,
        )


class RandomErasing(_Transform):
    r"""Random erasing with the signature of ``torchvision.transforms.v2.RandomErasing``.

    .. math::
        y = x \text{ outside the box}, \qquad y = v \text{ inside};
        \qquad h = \sqrt{s H W r}, \; w = \sqrt{s H W / r}

    Takes one image (C, H, W), or a batch (N, C, H, W) in which every sample has a box of its own.
    Other inputs come back untouched. It acts in eval mode too, as all transforms do.

    Parameters
    ----------
    p : float
        Probability of erasing, per sample or batch.
    scale, ratio : (float, float)
        Range of the erased share of the image, and of height / width.
    value : float, sequence, "random" or "channel"
        A number, or one per channel; "random": a standard normal per element, as torchvision means
        it; "channel": one per box and channel.
    inplace : bool
        Writes over the images.
    count, sampler
        As of `regkern.random_erasing`.
    per : {"sample", "batch"}
        What has boxes of its own; torchvision's is "batch".
    generator : torch.Generator, optional
        Default: torch's own, which data loaders seed differently in every worker.

    Notes
    -----
    Images are torchvision's ``Image`` and ``Video`` tensors, else the first plain tensor. Rank 5,
    and a ``Video`` of rank 4, has torchvision's order (…, T, C, H, W), and one box per video.
    """

    _shown = ("p", "scale", "ratio", "value", "inplace", "per")

    def __init__(
        self,
        p: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: float | Sequence[float] | Literal["random", "channel"] = 0.0,
        inplace: bool = False,
        *,
        count: int | tuple[int, int] = 1,
        sampler: Literal["retry", "fit"] = "retry",
        per: Literal["sample", "batch"] = "sample",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        op = "RandomErasing"
        if isinstance(value, str):
            checks.one_of(op, "value", value, ("random", "channel"))
        elif not isinstance(value, int | float | tuple | list):
            raise TypeError(
                f"regkern.{op}: expected `value` to be a number, a sequence of them, 'random' or "
                f"'channel', got {value!r}"
            )
        check_options(op, p, scale, ratio, count, sampler, per)
        self.p = p
        self.scale = (scale[0], scale[1])
        self.ratio = (ratio[0], ratio[1])
        self.value = value
        self.inplace = inplace
        self.count = count
        self.sampler: Literal["retry", "fit"] = sampler
        self.per: Literal["sample", "batch"] = per
        self.generator = generator

    def _erase(self, x: Tensor, per: Literal["sample", "batch"]) -> Tensor:
        value: Any = "pixel" if self.value == "random" else self.value
        return (random_erasing_ if self.inplace else random_erasing)(
            x,
            self.p,
            self.scale,
            self.ratio,
            value,
            count=self.count,
            sampler=self.sampler,
            per=per,
            generator=self.generator,
        )

    def _erase_any(self, x: Tensor) -> Tensor:
        video = _kind(x) == "Video"
        plain = _plain(x)
        if x.dim() == 3:
            y = self._erase(plain[None], self.per)[0]
        elif x.dim() == 4:
            # The frames of one video share their boxes.
            y = self._erase(plain, "batch" if video else self.per)
        elif x.dim() == 5:
            y = self._erase(plain.transpose(1, 2), self.per).transpose(1, 2)
        else:
            raise ValueError(
                f"regkern.RandomErasing: expected an image (C, H, W) or a batch (N, C, H, W), got "
                f"shape {tuple(x.shape)}"
            )
        return x if self.inplace else _like(y, x)

    def forward(self, *inputs: Any) -> Any:
        flat, spec = tree_flatten(inputs if len(inputs) > 1 else inputs[0])
        for i in _images("RandomErasing", flat):
            flat[i] = self._erase_any(flat[i])
        return tree_unflatten(flat, spec)

"""Convolutions as linear operators: their norms, bounds of them, and how far from orthogonal.

The convolutions are torch's; what is here is the operator around them, exactly adjoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from regkern import _checks as checks
from regkern._registration import compute_dtype, function_apply
from regkern.proximal.group_prox import root

Sizes = int | Sequence[int]

_CONV: tuple[Callable[..., Tensor], ...] = (
    torch.nn.functional.conv1d,
    torch.nn.functional.conv2d,
    torch.nn.functional.conv3d,
)
_TRANSPOSED: tuple[Callable[..., Tensor], ...] = (
    torch.nn.functional.conv_transpose1d,
    torch.nn.functional.conv_transpose2d,
    torch.nn.functional.conv_transpose3d,
)


class ConvPowerIteration(NamedTuple):
    """What :func:`conv_power_iteration` returns.

    Attributes
    ----------
    sigma : Tensor
        0-d: the largest of ``sigmas``.
    sigmas : Tensor
        (groups,): the norm of the operator of every group.
    u : Tensor
        (C_out, ...): the left vectors, one of norm 1 in the channels of each group.
    v : Tensor
        (C_in, ...): the right vectors, where the next call starts.
    """

    sigma: Tensor
    sigmas: Tensor
    u: Tensor
    v: Tensor


def _sizes(op: str, name: str, value: Sizes, dims: int, least: int) -> tuple[int, ...]:
    if not isinstance(value, int | torch.SymInt | Sequence) or isinstance(value, str):
        raise TypeError(f"regkern.{op}: expected `{name}` to be an int or several, got {value!r}")
    each = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(each) != dims:
        raise ValueError(
            f"regkern.{op}: expected `{name}` to be an int or {dims} of them, got {value!r}"
        )
    for n in each:
        if isinstance(n, bool) or not isinstance(n, int | torch.SymInt):
            raise TypeError(f"regkern.{op}: expected `{name}` to hold ints, got {n!r}")
        if n < least:
            raise ValueError(f"regkern.{op}: expected `{name}` to be at least {least}, got {n}")
    return each


def _kernel(op: str, weight: Tensor, groups: int, transposed: bool) -> int:
    """Checks the kernel, and returns its spatial dimensions."""
    checks.floating(op, "weight", weight)
    dims = weight.dim() - 2
    if dims < 1 or dims > 3:
        raise ValueError(
            f"regkern.{op}: expected `weight` of 3 to 5 dimensions, got {tuple(weight.shape)}"
        )
    checks.at_least(op, "groups", groups, 1)
    if weight.shape[0] % groups != 0:
        raise ValueError(
            f"regkern.{op}: expected `groups` to divide {weight.shape[0]} channels, got {groups}"
        )
    return dims


@dataclass(frozen=True)
class ConvOperator:
    """A convolution without bias, and its adjoint, for inputs of one spatial size."""

    input_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    transposed: bool
    circular: bool

    def output_shape(self) -> tuple[int, ...]:
        out = []
        for n, k, s, p, d, extra in zip(
            self.input_shape,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.output_padding,
            strict=True,
        ):
            reach = d * (k - 1) + 1
            size = (n - 1) * s - 2 * p + reach + extra if self.transposed else n + 2 * p - reach
            out.append(size if self.transposed else size // s + 1)
        return tuple(out)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        dims = len(self.kernel)
        if self.transposed:
            return _TRANSPOSED[dims - 1](
                x,
                weight,
                None,
                self.stride,
                self.padding,
                self.output_padding,
                self.groups,
                self.dilation,
            )
        padding = self.padding
        if self.circular:
            around = [p for p in reversed(padding) for _ in range(2)]
            x = torch.nn.functional.pad(x, around, mode="circular")
            padding = (0,) * dims
        return _CONV[dims - 1](x, weight, None, self.stride, padding, self.dilation, self.groups)

    def adjoint(self, y: Tensor, weight: Tensor) -> Tensor:
        dims = len(self.kernel)
        if self.transposed:
            x = _CONV[dims - 1](
                y, weight, None, self.stride, self.padding, self.dilation, self.groups
            )
            # Where the output padding is longer than a stride, there is more than went in.
            for i, n in enumerate(self.input_shape):
                if x.shape[2 + i] != n:
                    x = x.narrow(2 + i, 0, n)
            return x
        padding = (0,) * dims if self.circular else self.padding
        grown = [
            n + (2 * p if self.circular else 0)
            for n, p in zip(self.input_shape, self.padding, strict=True)
        ]
        extra = [
            n + 2 * p - (d * (k - 1) + 1) - (m - 1) * s
            for n, p, k, d, m, s in zip(
                grown, padding, self.kernel, self.dilation, y.shape[2:], self.stride, strict=True
            )
        ]
        x = _TRANSPOSED[dims - 1](
            y, weight, None, self.stride, padding, extra, self.groups, self.dilation
        )
        return self._unwrapped(x) if self.circular else x

    def _unwrapped(self, x: Tensor) -> Tensor:
        """The adjoint of circular padding: the margins are added to where they came from."""
        for i, (n, p) in enumerate(zip(self.input_shape, self.padding, strict=True)):
            if p == 0:
                continue
            d = 2 + i
            low, x, high = torch.split(x, [p, n, p], dim=d)
            rest = list(x.shape)
            rest[d] = n - p
            gap = x.new_zeros(rest)
            x = x + torch.cat([gap, low], d) + torch.cat([high, gap], d)
        return x


def conv_operator(
    op: str,
    weight: Tensor,
    input_shape: Sizes,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: Sizes = 0,
    padding_mode: str = "zeros",
) -> ConvOperator:
    """The operator of checked arguments; ``op`` is named in errors."""
    dims = _kernel(op, weight, groups, transposed)
    checks.one_of(op, "padding_mode", padding_mode, ("zeros", "circular"))
    kernel = tuple(weight.shape[2:])
    steps = _sizes(op, "stride", stride, dims, 1)
    apart = _sizes(op, "dilation", dilation, dims, 1)
    if isinstance(padding, str):
        checks.one_of(op, "padding", padding, ("valid", "same"))
        both = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, apart, strict=True)]
        if any(b % 2 != 0 for b in both):
            raise ValueError(
                f"regkern.{op}: expected `padding` 'same' of kernels of odd reach, got {kernel}"
            )
        around = tuple(b // 2 for b in both)
    else:
        around = _sizes(op, "padding", padding, dims, 0)
    if transposed and padding_mode == "circular":
        raise ValueError(f"regkern.{op}: expected zero padding with `transposed`, got 'circular'")
    made = ConvOperator(
        _sizes(op, "input_shape", input_shape, dims, 1),
        kernel,
        steps,
        around,
        apart,
        _sizes(op, "output_padding", output_padding, dims, 0),
        groups,
        transposed,
        padding_mode == "circular",
    )
    if min(made.output_shape()) < 1:
        raise ValueError(
            f"regkern.{op}: expected an input that the kernel {kernel} fits into, got "
            f"{made.input_shape}"
        )
    return made


def _unit(x: Tensor, instead: Tensor | None, groups: int) -> Tensor:
    """Vectors of norm 1; where there is nothing to normalise, ``instead`` or zero."""
    each = x.reshape(groups, -1)
    norms = torch.linalg.vector_norm(each, dim=1, keepdim=True)
    zero = norms == 0
    unit = each * torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, norms))
    if instead is not None:
        unit = torch.addcmul(unit, instead.reshape(groups, -1), zero.to(x.dtype))
    return unit.reshape(x.shape)


def _dots(x: Tensor, y: Tensor, groups: int) -> Tensor:
    """The inner products of the channels of every group, (groups,)."""
    return (x.reshape(groups, -1) * y.reshape(groups, -1)).sum(1)


def conv_power_iteration(
    weight: Tensor,
    v: Tensor,
    input_shape: Sizes,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    n_iter: int = 1,
    *,
    transposed: bool = False,
    output_padding: Sizes = 0,
    padding_mode: Literal["zeros", "circular"] = "zeros",
) -> ConvPowerIteration:
    r"""The norm of a convolution as the linear operator that it is, by power iteration

    .. math:: u \leftarrow \frac{K v}{\lVert K v \rVert}, \qquad
        v \leftarrow \frac{K^\top u}{\lVert K^\top u \rVert}, \qquad
        \sigma = \lVert K^\top u \rVert

    with :math:`K^\top` the transposed convolution of the same stride, padding and dilation. The
    norm of the kernel as a matrix (C_out, C_in k_h k_w), which ``torch.nn.utils.parametrizations.
    spectral_norm`` takes, is another number, smaller or larger.

    Parameters
    ----------
    weight : Tensor
        The kernel of a convolution of 1 to 3 dimensions, or of a transposed one; float32, float64,
        bfloat16 or float16 (computed in float32).
    v : Tensor
        Where to start: (C_in, *input_shape), in float32 (float64 for float64); not changed. Each
        group's channels are a vector of their own.
    input_shape : int or sequence of int
        The spatial size of inputs.
    stride, padding, dilation, groups, output_padding
        As the layer has them; padding may be "same" or "valid".
    n_iter : int
        Iterations. 0 takes ``v`` as it is, of norm 1: :math:`\sigma = \lVert K v \rVert`.
    transposed : bool
        The layer is a transposed convolution.
    padding_mode : {"zeros", "circular"}
        What the layer pads with.

    Returns
    -------
    ConvPowerIteration
        ``sigma``, ``sigmas``, ``u`` and ``v``. Norms are from below, and differentiable: u and v
        are constants, so dσ is the gradient of the kernel for output gradient u and input v. A
        kernel of zeros has norm 0 and keeps v.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Groups share no channels, so the operator is block-diagonal: its norm is the largest of those of
    the groups, which are iterated side by side. An iteration is one convolution and one transposed
    convolution; σ costs nothing more.

    References
    ----------
    Farnia, Zhang and Tse, "Generalizable adversarial training via spectral normalization", ICLR
    2019.
    """
    op = "conv_power_iteration"
    operator = conv_operator(
        op,
        weight,
        input_shape,
        stride,
        padding,
        dilation,
        groups,
        transposed,
        output_padding,
        padding_mode,
    )
    checks.at_least(op, "n_iter", n_iter, 0)
    checks.on_device(op, "v", v, weight)
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    w = weight.to(compute_dtype(weight))
    if v.shape != (channels, *operator.input_shape) or v.dtype != w.dtype:
        raise ValueError(
            f"regkern.{op}: expected `v` of shape {(channels, *operator.input_shape)} and dtype "
            f"{w.dtype}, got {tuple(v.shape)}, {v.dtype}"
        )
    return _iterate(operator, w, v.detach(), n_iter)


def _iterate(operator: ConvOperator, w: Tensor, v: Tensor, n_iter: int) -> ConvPowerIteration:
    groups = operator.groups
    constant = w.detach()
    x = v[None]
    if n_iter == 0:
        y = operator.forward(x, w)
        with torch.no_grad():
            u = _unit(y, None, groups)
        sigmas = _dots(y, u, groups)
        return ConvPowerIteration(sigmas.amax(), sigmas, u[0], v)
    for i in range(n_iter):
        with torch.no_grad():
            u = _unit(operator.forward(x, constant), None, groups)
        # The last of the products is the one that is differentiated.
        last = i + 1 == n_iter
        z = operator.adjoint(u, w if last else constant)
        with torch.no_grad():
            x = _unit(z, x, groups)
    sigmas = _dots(z, x, groups)
    return ConvPowerIteration(sigmas.amax(), sigmas, u[0], x[0])


# ---- bounds ----


def _grouped(weight: Tensor, groups: int) -> Tensor:
    """(groups, a, c, taps ...) with the fewer channels first: transposing keeps all norms."""
    g = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return g.transpose(1, 2) if g.shape[1] > g.shape[2] else g


def _self_correlation(kernel: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Σ_c Σ_p K_i(c, p + s t) K_j(c, p) of every group: (groups, a, a, taps ...)."""
    groups, a, c = kernel.shape[:3]
    taps = kernel.shape[3:]
    images = kernel.transpose(0, 1).reshape(a, groups * c, *taps)
    filters = kernel.reshape(groups * a, c, *taps)
    out = _CONV[len(taps) - 1](images, filters, None, stride, padding, 1, groups)
    return out.reshape(a, groups, a, *out.shape[2:]).transpose(0, 1)


def _symbol_bound(gram: Tensor) -> Tensor:
    """For every group no less than the norm of Σ_t G_t e^{iθt} at any θ."""
    magnitudes = gram.abs().flatten(3).sum(3)
    rows = magnitudes.sum(2).amax(1)
    frobenius = root(magnitudes.square().sum((1, 2)))
    return torch.minimum(rows, frobenius)


def _gram_bound(weight: Tensor, groups: int, n_iter: int) -> Tensor:
    gram = _grouped(weight, groups)
    logs = torch.zeros(groups, dtype=weight.dtype, device=weight.device)
    for _ in range(n_iter):
        with torch.no_grad():
            scale = gram.abs().flatten(1).amax(1)
            scale = torch.where(scale == 0, 1.0, scale)
        gram = gram / scale.reshape(-1, *(1,) * (gram.dim() - 1))
        logs = 2 * (logs + scale.log())
        reach = [k - 1 for k in gram.shape[3:]]
        gram = _self_correlation(gram, (1,) * len(reach), reach)
    bound = _symbol_bound(gram)
    zero = bound == 0
    power = 0.5**n_iter
    value = (torch.where(zero, 1.0, bound).log() * power + logs * power).exp()
    return torch.where(zero, 0.0, value).amax()


def _reshape_bound(
    weight: Tensor, groups: int, stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    kernel = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).double()
    taps = kernel.shape[3:]
    # How often a pixel of the input appears in patches.
    often = [-(-k // (s // math.gcd(s, d))) for k, s, d in zip(taps, stride, dilation, strict=True)]
    bounds = []
    flat = ((kernel, math.prod(often)), (kernel.transpose(1, 2), math.prod(taps)))
    for k, copies in flat:
        m = k.flatten(2)
        gram = m @ m.mT if m.shape[1] <= m.shape[2] else m.mT @ m
        finite = gram.isfinite().all()
        # LAPACK raises where it meets a NaN; the answer is NaN.
        gram = torch.where(finite, gram, torch.eye(gram.shape[-1], device=gram.device).double())
        largest = torch.linalg.eigvalsh(gram)[:, -1].amax().clamp(min=0)
        bounds.append(torch.where(finite, copies**0.5 * root(largest), torch.nan))
    return torch.minimum(*bounds).to(weight.dtype)


def conv_norm_bound(
    weight: Tensor,
    *,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    groups: int = 1,
    transposed: bool = False,
    method: Literal["gram", "reshape"] = "gram",
    n_iter: int = 3,
) -> Tensor:
    r"""An upper bound of the norm of a convolution, for inputs of any size.

    "gram", by products of the kernel with itself: with :math:`G_0 = K` and :math:`G_{t+1} = G_t
    \star G_t` (correlation over taps, a product over channels),

    .. math:: \lVert K \rVert \le \Bigl( \min\bigl( \max_i \sum_j A_{ij},\, \lVert A \rVert_F
        \bigr) \Bigr)^{2^{-T}}, \qquad A_{ij} = \sum_\tau |G_T(i, j, \tau)|

    "reshape", from the kernel as a matrix R of (C_out, C_in k) or (C_in, C_out k):

    .. math:: \lVert K \rVert \le \sqrt{c}\, \lVert R \rVert_2

    where a pixel appears in c patches: :math:`\prod \lceil k / s' \rceil` with the stride over its
    common divisor with the dilation, :math:`\prod k` for the second matrix.

    Parameters
    ----------
    weight : Tensor
        The kernel of a convolution of 1 to 3 dimensions, or of a transposed one (which has the norm
        of its adjoint).
    stride, dilation, groups
        As the layer has them; only "reshape" gains from strides.
    transposed : bool
        The layer is a transposed convolution.
    method : {"gram", "reshape"}
        See above.
    n_iter : int
        T of "gram": the bound is tighter, and 4 times or more as expensive, with each. Kernels grow
        to :math:`2^T (k - 1) + 1`.

    Returns
    -------
    Tensor
        0-d, in the type that is computed in, right up to its rounding. Differentiable.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    Why, and where it holds. A convolution with zero padding, whatever its width, is a part of the
    rows and columns of the one on the whole grid, whose norm is the supremum over frequencies of
    that of the matrix :math:`\hat K(\theta) = \sum_\tau K_\tau e^{i \theta \tau}`; with circular
    padding of at most half the reach, :math:`2 p \le d (k - 1)`, it is a part of a circulant one,
    which has some of those frequencies. A stride takes rows away, dilation multiplies θ, and the
    blocks of groups are apart: the largest counts. :math:`\hat G_T` is Hermitian and its norm is
    that of :math:`\hat K` to the power :math:`2^T`; both A-norms are above it at every θ. Reflected
    and replicated borders are outside. "reshape" takes eigenvalues of the smaller gram in float64,
    which are waited for; "gram" waits for nothing.

    References
    ----------
    Delattre, Barthélemy, Araujo and Allauzen, "Spectral norm of convolutional layers with circular
    and zero paddings", 2024. Tsuzuku, Sato and Sugiyama, "Lipschitz-margin training", NeurIPS 2018.
    """
    op = "conv_norm_bound"
    dims = _kernel(op, weight, groups, transposed)
    checks.one_of(op, "method", method, ("gram", "reshape"))
    checks.at_least(op, "n_iter", n_iter, 1)
    steps = _sizes(op, "stride", stride, dims, 1)
    apart = _sizes(op, "dilation", dilation, dims, 1)
    w = weight.to(compute_dtype(weight))
    if w.numel() == 0:
        return w.sum()
    # A transposed convolution has the kernel of the convolution whose adjoint it is.
    if method == "gram":
        return _gram_bound(w, groups, n_iter)
    return _reshape_bound(w, groups, steps, apart)


def circular_singular_values(weight: Tensor, n: Sizes) -> Tensor:
    r"""All singular values of a convolution with circular padding and stride 1.

    .. math:: \sigma(K) = \bigcup_\theta \sigma\Bigl( \sum_\tau K_\tau e^{i \theta \tau} \Bigr),
        \qquad \theta \in \tfrac{2 \pi}{n} \{0, \ldots, n - 1\}^d

    Parameters
    ----------
    weight : Tensor
        (C_out, C_in, k, ...), without groups.
    n : int or sequence of int
        The spatial size of inputs.

    Returns
    -------
    Tensor
        (frequencies, min(C_out, C_in)), descending for every frequency; in float32 (float64 for
        float64). Differentiable where singular values are apart.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A Fourier transform and :math:`n^d` singular value decompositions: exact, for checks and not for
    training. Kernels larger than the input are wrapped around.

    References
    ----------
    Sedghi, Gupta and Long, "The singular values of convolutional layers", ICLR 2019.
    """
    op = "circular_singular_values"
    dims = _kernel(op, weight, 1, False)
    size = _sizes(op, "n", n, dims, 1)
    w = weight.to(compute_dtype(weight))
    for i, length in enumerate(size):
        d = 2 + i
        missing = -w.shape[d] % length
        if w.shape[d] > length:
            after = [0, 0] * (dims - 1 - i) + [0, missing]
            w = torch.nn.functional.pad(w, after)
            w = w.reshape(*w.shape[:d], -1, length, *w.shape[d + 1 :]).sum(d)
    transform = torch.fft.fftn(w, s=size, dim=tuple(range(2, 2 + dims)))
    values: Tensor = torch.linalg.svdvals(transform.flatten(2).permute(2, 0, 1))
    return values


# ---- orthogonality ----


def _correlation_residual(kernel: Tensor, stride: Sequence[int]) -> Tensor:
    """Conv(K, K; stride, padding) − I at the centre tap."""
    padding = [(k - 1) // s * s for k, s in zip(kernel.shape[3:], stride, strict=True)]
    out = _self_correlation(kernel, stride, padding)
    eye = torch.eye(kernel.shape[1], dtype=kernel.dtype, device=kernel.device)
    centre = math.prod(out.shape[3:]) // 2
    taps = torch.arange(math.prod(out.shape[3:]), device=kernel.device) == centre
    identity = (eye[:, :, None] * taps).reshape(out.shape[1:])
    return out - identity


class _ConvOrthogonality(torch.autograd.Function):
    """|R|² with R = K ⋆ K − I. As R_ij(t) = R_ji(−t), both factors have one gradient:

    dK = 4 Σ_j Σ_t R_ij(t) K_j(· − s t), a transposed convolution.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(kernel: Tensor, stride: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        residual = _correlation_residual(kernel, stride)
        return residual.square().sum(), residual

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        kernel, ctx.stride = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(kernel, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
        kernel, residual = ctx.saved_tensors
        if torch.is_grad_enabled():
            residual = _correlation_residual(kernel, ctx.stride)
        groups, a, c = kernel.shape[:3]
        taps = kernel.shape[3:]
        padding = [(k - 1) // s * s for k, s in zip(taps, ctx.stride, strict=True)]
        images = (4 * g * residual).transpose(0, 1).reshape(a, groups * a, *residual.shape[3:])
        filters = kernel.reshape(groups * a, c, *taps)
        reach = zip(taps, padding, images.shape[2:], ctx.stride, strict=True)
        extra = [k + p - (m - 1) * s + p - k for k, p, m, s in reach]
        dk = _TRANSPOSED[len(taps) - 1](images, filters, None, ctx.stride, padding, extra, groups)
        return dk.reshape(a, groups, c, *taps).transpose(0, 1), None


def conv_orthogonality(
    weight: Tensor, stride: Sizes = 1, *, groups: int = 1, squared: bool = True
) -> Tensor:
    r"""How far a convolution is from orthogonal as an operator.

    .. math:: L = \lVert \operatorname{Conv}(K, K;\, \text{stride } S,\, \text{padding } P) - I_{r0}
        \rVert_F^2 - \max(M - C S^d, 0), \qquad P = \lfloor (k - 1) / S \rfloor S

    with M filters of C channels, and the identity at the centre tap. Where :math:`M \le C S^d`, L
    is zero if and only if the rows of the operator are orthonormal, else if and only if its columns
    are: with more filters rows cannot be orthonormal, and the constant is what is left.

    Parameters
    ----------
    weight : Tensor
        (M, C / groups, k, ...), of 1 to 3 spatial dimensions; float32, float64, bfloat16 or
        float16.
    stride : int or sequence of int
        S.
    groups : int
        Sums over groups.
    squared : bool
        False takes the root of L: for the row case the norm without the square. Its gradient is 0
        where L is.

    Returns
    -------
    Tensor
        0-d, in the type that is computed in. Differentiable twice.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    A convolution of the kernel with itself; the backward is one transposed convolution with the
    residual, as the gradients of both factors are equal. The norm of the operator is within
    :math:`\sqrt{1 \pm \sqrt{L}}` up to border effects.

    References
    ----------
    Achour, Malgouyres and Mamalet, "Existence, stability and scalability of orthogonal
    convolutional neural networks", JMLR 2022. Wang, Chen, Chakraborty and Yu, "Orthogonal
    convolutional neural networks", CVPR 2020.
    """
    op = "conv_orthogonality"
    dims = _kernel(op, weight, groups, False)
    steps = _sizes(op, "stride", stride, dims, 1)
    w = weight.to(compute_dtype(weight))
    kernel = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    value: Tensor = function_apply(_ConvOrthogonality, kernel, steps)[0]
    m, c = kernel.shape[1:3]
    value = value - groups * max(m - c * math.prod(steps), 0)
    return value if squared else root(value.clamp(min=0))

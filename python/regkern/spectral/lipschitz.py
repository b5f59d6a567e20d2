"""Lipschitz constants: bounds of networks layer by layer, and layers that have one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regkern import _checks as checks
from regkern._registration import compute_dtype
from regkern.proximal.group_prox import root
from regkern.spectral.conv_operator import _self_correlation, conv_norm_bound

# ---- bounds ----


@dataclass(frozen=True)
class LayerBound:
    """The Lipschitz constant of a layer is at most ``bound``, a 0-d float64 tensor."""

    name: str
    kind: str
    bound: Tensor


@dataclass(frozen=True)
class LipschitzReport:
    """A bound of a network, and those of its layers, of which it is the product."""

    bound: Tensor
    layers: tuple[LayerBound, ...]

    def __str__(self) -> str:
        wide = max([len(layer.name) for layer in self.layers] + [5])
        rows = [(layer.name, layer.kind, layer.bound) for layer in self.layers]
        rows.append(("total", "", self.bound))
        return "\n".join(
            f"{name:{wide}}  {kind:20}  {float(b.detach()):.6g}" for name, kind, b in rows
        )


def _matrix_norm(weight: Tensor) -> Tensor:
    """σ_max of a matrix, through the smaller gram in float64."""
    w = weight.double()
    if w.numel() == 0:
        return w.sum()
    gram = w @ w.mT if w.shape[0] <= w.shape[1] else w.mT @ w
    finite = gram.isfinite().all()
    # LAPACK raises where it meets a NaN; the answer is NaN.
    gram = torch.where(finite, gram, torch.eye(gram.shape[0], dtype=w.dtype, device=w.device))
    largest = torch.linalg.eigvalsh(gram)[-1].clamp(min=0.0)
    return torch.where(finite, root(largest), torch.nan)


#: The largest slopes of activations without parameters. SiLU, GELU and Mish are rounded up.
_SLOPES: dict[type[nn.Module], float] = {
    nn.Identity: 1.0,
    nn.Flatten: 1.0,
    nn.Unflatten: 1.0,
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Tanh: 1.0,
    nn.Hardtanh: 1.0,
    nn.Softplus: 1.0,
    nn.Softsign: 1.0,
    nn.Softshrink: 1.0,
    nn.LogSigmoid: 1.0,
    nn.Tanhshrink: 1.0,
    nn.Sigmoid: 0.25,
    nn.Hardsigmoid: 1 / 6,
    nn.Hardswish: 1.5,
    nn.SELU: 1.0507009873554805 * 1.6732632423543772,
    nn.SiLU: 1.09984,
    nn.GELU: 1.12905,
    nn.Mish: 1.08850,
    nn.Softmax: 0.5,
    nn.ChannelShuffle: 1.0,
    nn.PixelShuffle: 1.0,
    nn.PixelUnshuffle: 1.0,
    nn.ZeroPad1d: 1.0,
    nn.ZeroPad2d: 1.0,
    nn.ZeroPad3d: 1.0,
}

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_MAX_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVG_POOL = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (int(value),) * dims


def _conv_bound(name: str, layer: Any, n_iter: int) -> Tensor:
    transposed = isinstance(layer, _TRANSPOSED)
    dims = layer.weight.dim() - 2
    if layer.padding_mode == "circular":
        around = layer.padding
        if isinstance(around, str):
            around = 0
        sizes = zip(
            _tuple(around, dims), layer.kernel_size, _tuple(layer.dilation, dims), strict=True
        )
        fits = all(2 * p <= d * (k - 1) for p, k, d in sizes)
    else:
        fits = layer.padding_mode == "zeros"
    if not fits:
        raise ValueError(
            f"regkern.lipschitz_bound: expected `{name}` to pad with zeros, or circularly by at "
            f"most half its reach, got {layer.padding_mode!r} of {layer.padding}"
        )
    options: Any = {
        "stride": layer.stride,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "transposed": transposed,
    }
    gram = conv_norm_bound(layer.weight, n_iter=n_iter, **options)
    patches = conv_norm_bound(layer.weight, method="reshape", **options)
    return torch.minimum(gram, patches)


def _pool_copies(layer: Any, dims: int, dilation: Any = 1) -> tuple[int, int]:
    """In how many windows an element may be, and how many elements a window has."""
    kernel = _tuple(layer.kernel_size, dims)
    stride = _tuple(layer.stride, dims)
    apart = _tuple(dilation, dims)
    often = [-(-k // (s // math.gcd(s, d))) for k, s, d in zip(kernel, stride, apart, strict=True)]
    return math.prod(often), math.prod(kernel)


def _gain(layer: Any) -> Tensor:
    if layer.weight is None:
        return torch.ones((), dtype=torch.float64)
    gain: Tensor = layer.weight.double().abs().amax()
    return gain


def _leaf_bound(name: str, layer: nn.Module, n_iter: int) -> Tensor | float | None:
    """The bound of a layer without children, or None where it is not known."""
    if isinstance(layer, nn.Linear):
        return _matrix_norm(layer.weight)
    if isinstance(layer, _CONV + _TRANSPOSED):
        return _conv_bound(name, layer, n_iter)
    if isinstance(layer, _BATCH_NORM):
        if layer.training or layer.running_var is None:
            raise ValueError(
                f"regkern.lipschitz_bound: expected `{name}` in evaluation mode with running "
                "statistics: those of a batch have no bound, got training mode or none"
            )
        scale = (layer.running_var.double() + layer.eps).rsqrt()
        return (scale if layer.weight is None else scale * layer.weight.double().abs()).amax()
    if isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        eps = layer.eps
        if eps is None:
            eps = torch.finfo(torch.float32 if layer.weight is None else layer.weight.dtype).eps
        return _gain(layer) / math.sqrt(eps) if eps > 0 else math.inf
    if isinstance(layer, _DROPOUT):
        return 1 / (1 - layer.p) if layer.training and layer.p < 1 else 1.0
    if isinstance(layer, nn.LeakyReLU):
        return max(1.0, abs(layer.negative_slope))
    if isinstance(layer, nn.ELU | nn.CELU):
        return max(1.0, abs(layer.alpha)) if isinstance(layer, nn.ELU) else 1.0
    if isinstance(layer, nn.PReLU):
        return _gain(layer).clamp(min=1.0)
    if isinstance(layer, _MAX_POOL):
        dims = 1 + [isinstance(layer, kind) for kind in _MAX_POOL].index(True)
        return math.sqrt(_pool_copies(layer, dims, layer.dilation)[0])
    if isinstance(layer, _AVG_POOL):
        dims = 1 + [isinstance(layer, kind) for kind in _AVG_POOL].index(True)
        often, size = _pool_copies(layer, dims)
        # A window at the border may be divided by fewer, or by another number.
        whole = getattr(layer, "count_include_pad", True) and not layer.ceil_mode
        divisor: int | None = getattr(layer, "divisor_override", None)
        if divisor is not None:
            return math.sqrt(often * size) / divisor
        return math.sqrt(often / size) if whole else math.sqrt(often)
    if isinstance(layer, _ADAPTIVE):
        target: Any = layer.output_size
        single = all(n == 1 for n in (target if isinstance(target, tuple) else (target,)))
        return 1.0 if single else None
    return _SLOPES.get(type(layer))


def lipschitz_bound(
    model: nn.Module,
    *,
    known: Mapping[type[nn.Module], Callable[[Any], float | Tensor]] | None = None,
    n_iter: int = 3,
) -> LipschitzReport:
    r"""A bound of the Lipschitz constant of a sequential network in the Euclidean norm.

    .. math:: \operatorname{Lip}(f_L \circ \cdots \circ f_1) \le \prod_l \operatorname{Lip}(f_l)

    Parameters
    ----------
    model : torch.nn.Module
        A layer, or `torch.nn.Sequential` of layers and further ones.
    known : mapping of type to function, optional
        Bounds of other layers: called with the layer, before anything else is tried. A layer with a
        method ``lipschitz_bound()`` is asked as well.
    n_iter : int
        Of :func:`~regkern.spectral.conv_operator.conv_norm_bound`.

    Returns
    -------
    LipschitzReport
        The product and its factors; ``str`` makes a table of it. Bounds are 0-d tensors, with
        gradients where gradients are enabled.

    Raises
    ------
    TypeError
        For a layer that has no bound here; it is named.
    ValueError
        For a layer that has none in its mode: batch norm in training, borders that are reflected.

    Notes
    -----
    Linear layers: the largest singular value, from the smaller gram in float64. Convolutions: the
    smaller of both certified bounds of ``conv_norm_bound``, for inputs of any size. Batch norm in
    evaluation mode: :math:`\max |\gamma| / \sqrt{\mathrm{var} + \epsilon}`. Layer, group and RMS
    norm: :math:`\max |\gamma| / \sqrt{\epsilon}`, reached at constant inputs: large, and true.
    Softmax: ½. Pooling: the root of how many windows an element may be in, for averages over the
    root of their size. Bounds of single layers multiply: the product is far above the constant of
    deep networks. Eigenvalues are waited for: this is for reports and for certificates.
    """
    op = "lipschitz_bound"
    if not isinstance(model, nn.Module):
        raise TypeError(f"regkern.{op}: expected `model` to be a module, got {type(model)}")
    layers: list[LayerBound] = []

    def add(name: str, layer: nn.Module, value: float | Tensor) -> None:
        if not isinstance(value, Tensor):
            value = torch.full((), value, dtype=torch.float64)
        layers.append(LayerBound(name, type(layer).__name__, value.double()))

    def visit(name: str, layer: nn.Module) -> None:
        for kind, function in (known or {}).items():
            if isinstance(layer, kind):
                return add(name, layer, function(layer))
        own = getattr(layer, "lipschitz_bound", None)
        if callable(own):
            return add(name, layer, own())
        if isinstance(layer, nn.Sequential):
            for child_name, child in layer.named_children():
                visit(f"{name}.{child_name}" if name else child_name, child)
            return None
        value = _leaf_bound(name or type(layer).__name__, layer, n_iter)
        if value is None:
            raise TypeError(
                f"regkern.{op}: expected layers with a known bound, got `{name}` of "
                f"{type(layer).__name__}; give its bound in `known`"
            )
        return add(name, layer, value)

    visit("", model)
    total = torch.ones((), dtype=torch.float64)
    for layer in layers:
        total = total.to(layer.bound.device) * layer.bound
    return LipschitzReport(total, tuple(layers))


# ---- weights of 1-Lipschitz layers ----


def _weighted_sums(magnitudes: Tensor, q: Tensor | None) -> Tensor:
    """Σ_j M_ij q_j / q_i."""
    if q is None:
        return magnitudes.sum(-1)
    sums: Tensor = (magnitudes @ q[..., None])[..., 0] / q
    return sums


def _inverse(sums: Tensor) -> Tensor:
    """1 / s, and 0 where a row of the gram is 0."""
    zero = sums == 0
    return torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, sums))


def _kernel_magnitudes(kernel: Tensor) -> Tensor:
    """Σ over taps of |K_i ⋆ K_j|, for kernels (a, c, k, ...)."""
    taps = kernel.shape[2:]
    gram = _self_correlation(kernel[None], (1,) * len(taps), [k - 1 for k in taps])
    return gram[0].abs().flatten(2).sum(2)


def aol_rescale(weight: Tensor, q: Tensor | None = None) -> Tensor:
    r"""Almost-orthogonal rescaling: a weight of spectral norm at most 1.

    .. math:: \hat W = W D, \qquad D_{ii} = \Bigl( \sum_j |W^\top W|_{ij}\, \frac{q_j}{q_i}
        \Bigr)^{-1/2}

    over input channels i; for a kernel, with sums of magnitudes over the taps of its correlation
    with itself.

    Parameters
    ----------
    weight : Tensor
        (outputs, inputs), or (outputs, inputs, k, ...); float32, float64, bfloat16 or float16.
    q : Tensor, optional
        Positive numbers, (inputs,); ones if not given.

    Returns
    -------
    Tensor
        Like ``weight``. Differentiable twice almost everywhere. A column of zeros stays zero.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    :math:`\operatorname{diag}(s) - W^\top W` with :math:`s_i = \sum_j |W^\top W|_{ij} q_j / q_i`
    is, scaled by q from both sides, diagonally dominant with a diagonal of the right sign, hence
    positive semidefinite, and :math:`\lVert W D \rVert \le 1`. The same holds for a convolution
    with zero padding of any width and any stride, which is a part of the one without borders.

    References
    ----------
    Prach and Lampert, "Almost-orthogonal layers for efficient general-purpose Lipschitz networks",
    ECCV 2022.
    """
    op = "aol_rescale"
    w = _checked(op, weight, q, 1)
    magnitudes = (w.mT @ w).abs() if w.dim() == 2 else _kernel_magnitudes(w.transpose(0, 1))
    factor = root(_inverse(_weighted_sums(magnitudes, q)))
    out: Tensor = (w * factor.reshape(-1, *(1,) * (w.dim() - 2))).to(weight.dtype)
    return out


def sll_scale(weight: Tensor, q: Tensor | None = None) -> Tensor:
    r"""The inverse of the diagonal matrix of an SDP-based Lipschitz layer.

    .. math:: T^{-1}, \qquad T_{ii} = \sum_j |W^\top W|_{ij}\, \frac{q_j}{q_i}

    over hidden units i, for :math:`y = x - 2 W T^{-1} \phi(W^\top x + b)`.

    Parameters
    ----------
    weight : Tensor
        W of shape (inputs, hidden), or the kernel (hidden, inputs, k, ...) of :math:`W^\top` as a
        convolution.
    q : Tensor, optional
        Positive numbers, (hidden,); ones if not given.

    Returns
    -------
    Tensor
        (hidden,), in the type that is computed in; 0 for a unit without weights.

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    References
    ----------
    Araujo, Havens, Delattre, Allauzen and Hu, "A unified algebraic perspective on Lipschitz neural
    networks", ICLR 2023.
    """
    op = "sll_scale"
    w = _checked(op, weight, q, 1 if weight.dim() == 2 else 0)
    magnitudes = (w.mT @ w).abs() if w.dim() == 2 else _kernel_magnitudes(w)
    return _inverse(_weighted_sums(magnitudes, q))


def _checked(op: str, weight: Tensor, q: Tensor | None, dim: int) -> Tensor:
    checks.floating(op, "weight", weight)
    if weight.dim() < 2 or weight.dim() > 5:
        raise ValueError(
            f"regkern.{op}: expected `weight` of 2 to 5 dimensions, got {tuple(weight.shape)}"
        )
    w = weight.to(compute_dtype(weight))
    if q is not None:
        checks.on_device(op, "q", q, weight)
        if q.shape != (weight.shape[dim],) or q.dtype != w.dtype:
            raise ValueError(
                f"regkern.{op}: expected `q` of shape ({weight.shape[dim]},) and dtype {w.dtype}, "
                f"got {tuple(q.shape)}, {q.dtype}"
            )
    return w


# ---- attention ----


def _clipped(x: Tensor, radius: float) -> Tensor:
    """Tokens projected onto the ball: no two of them move apart."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    clipped: Tensor = x * (radius / norms.clamp(min=radius))
    return clipped


def distance_attention(
    x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, *, radius: float, alpha: float = 1.0
) -> Tensor:
    r"""Self-attention by distances, which is Lipschitz.

    .. math:: y_i = \sum_j P_{ij} W_V x_j, \qquad P_{ij} \propto \exp\Bigl( -\alpha
        \frac{\lVert W_Q x_i - W_K x_j \rVert^2}{r^2 (\lVert W_Q \rVert_F + \lVert W_K
        \rVert_F)^2} \Bigr)

    with tokens projected onto the ball of radius r first. LRFormer scales distances by norms of the
    inputs instead; such scores are homogeneous of degree 0, and have no bound near 0.

    Parameters
    ----------
    x : Tensor
        (..., tokens, features).
    wq, wk : Tensor
        (inner, features).
    wv : Tensor
        (outputs, features).
    radius : float
        r, above 0.
    alpha : float
        α, at least 0: how sharp attention may be; distances over r are at most 4 α in the exponent.

    Returns
    -------
    Tensor
        (..., tokens, outputs).

    Raises
    ------
    TypeError, ValueError
        Where an argument is not as said above.

    Notes
    -----
    :func:`torch.nn.functional.scaled_dot_product_attention` with a bias for every key: what depends
    on the query alone drops out of the softmax. Its constant is
    :func:`distance_attention_bound`.

    References
    ----------
    Ye, Cao, Wang and Rehg, "Mitigating transformer overconfidence via Lipschitz regularization",
    UAI 2023. Kim, Papamakarios and Mnih, "The Lipschitz constant of self-attention", ICML 2021.
    """
    op = "distance_attention"
    checks.floating(op, "x", x)
    if x.dim() < 2:
        raise ValueError(
            f"regkern.{op}: expected `x` of shape (..., tokens, features), got {tuple(x.shape)}"
        )
    for name, w in (("wq", wq), ("wk", wk), ("wv", wv)):
        checks.on_device(op, name, w, x)
        if (
            w.dim() != 2
            or w.shape[1] != x.shape[-1]
            or w.shape[0] != (wv if w is wv else wq).shape[0]
        ):
            raise ValueError(
                f"regkern.{op}: expected `{name}` of shape (inner, {x.shape[-1]}), got "
                f"{tuple(w.shape)}"
            )
    _check_attention(op, radius, alpha)
    x = _clipped(x, radius)
    scale = radius * (torch.linalg.vector_norm(wq) + torch.linalg.vector_norm(wk))
    # τ |q − k|² = τ |q|² − 2 τ q k + τ |k|², with the root of 2 τ in each factor.
    factor = torch.where(
        scale == 0, 0.0, math.sqrt(2 * alpha) / torch.where(scale == 0, 1.0, scale)
    )
    q, k = (x @ wq.mT) * factor, (x @ wk.mT) * factor
    bias = -0.5 * (k * k).sum(-1)[..., None, :]
    out: Tensor = torch.nn.functional.scaled_dot_product_attention(
        q, k, x @ wv.mT, attn_mask=bias.expand(*bias.shape[:-2], q.shape[-2], -1), scale=1.0
    )
    return out


def _check_attention(op: str, radius: float, alpha: float) -> None:
    if not radius > 0:
        raise ValueError(f"regkern.{op}: expected `radius` above 0, got {radius}")
    checks.at_least(op, "alpha", alpha, 0.0)


def distance_attention_bound(
    tokens: int, wq: Tensor, wk: Tensor, wv: Tensor, *, alpha: float = 1.0
) -> Tensor:
    r"""A Lipschitz constant of :func:`distance_attention` for sequences of N tokens.

    .. math:: \lVert W_V \rVert_2 \Bigl( \sqrt{N}\, \Bigl(1 + \frac{2 \alpha B}{A + B}\Bigr) +
        \frac{2 \alpha A}{A + B} \Bigr), \qquad A = \lVert W_Q \rVert_F, \; B = \lVert W_K
        \rVert_F

    in the Frobenius norm of inputs and outputs, whatever the radius.

    Parameters
    ----------
    tokens : int
        N.
    wq, wk, wv, alpha
        As :func:`distance_attention` takes them.

    Returns
    -------
    Tensor
        0-d, float64.

    Notes
    -----
    Why. The projection onto the ball moves no two tokens apart. With scores S, temperature
    :math:`\tau = \alpha / (r (A + B))^2` and a change dx of the tokens, :math:`dS_{ij} = -2 \tau
    \langle q_i - k_j, W_Q dx_i - W_K dx_j \rangle`, so :math:`|dS_{ij}| \le 2 \tau r (A + B) (A
    |dx_i| + B |dx_j|)`. The change of the weights moves a row by the covariance of dS and x under
    P, which is at most r times the root of :math:`\sum_j P_{ij} dS_{ij}^2`. With
    :math:`m_i^2 = \sum_j P_{ij} |dx_j|^2`, Minkowski's inequality gives :math:`|dy_i| \le \lVert
    W_V \rVert (m_i + 2 \tau r^2 (A + B) (A |dx_i| + B m_i))`, and columns of P sum to at most N,
    so that :math:`|m| \le \sqrt{N} |dx|`. The constant is this derivation's own, not the paper's.
    """
    op = "distance_attention_bound"
    checks.at_least(op, "tokens", tokens, 1)
    _check_attention(op, 1.0, alpha)
    a = torch.linalg.vector_norm(wq.double())
    b = torch.linalg.vector_norm(wk.double())
    both = torch.where(a + b == 0, 1.0, a + b)
    n = math.sqrt(tokens)
    factor: Tensor = n * (1 + 2 * alpha * b / both) + 2 * alpha * a / both
    return _matrix_norm(wv) * factor

"""Convolutions as operators, against their dense matrices."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from regkern.nn.spectral.conv import conv_spectral_norm
from regkern.reference.spectral import conv_operator as reference
from regkern.spectral import conv_operator as C
from torch import Tensor, nn

D = torch.float64


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = D) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=D, generator=generator).to(dtype)


# Kernel, input, what the layer has.
LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "same": ((3, 2, 3, 3), (5, 6), {"padding": 1}),
    "wide": ((2, 3, 3, 3), (4, 4), {"padding": 3}),
    "stride-groups": ((4, 2, 3, 3), (5, 6), {"padding": 1, "stride": 2, "groups": 2}),
    "dilation": ((3, 2, 3, 3), (7, 6), {"padding": 2, "dilation": 2, "stride": 2}),
    "circular": ((3, 2, 3, 3), (7, 6), {"padding": 1, "padding_mode": "circular"}),
    "circular-stride": (
        (3, 2, 3, 3),
        (7, 6),
        {"padding": 1, "padding_mode": "circular", "stride": (2, 1)},
    ),
    "transposed": (
        (3, 2, 4, 3),
        (5, 4),
        {"padding": 1, "stride": 2, "transposed": True, "output_padding": 1},
    ),
    # Output padding beyond the stride.
    "transposed-dilation": (
        (4, 2, 3, 3),
        (5, 4),
        {"padding": 1, "dilation": 2, "transposed": True, "groups": 2, "output_padding": 1},
    ),
    "1d": ((3, 2, 5), (9,), {"stride": 3}),
    "3d": ((2, 2, 2, 2, 3), (3, 3, 4), {"padding": 1, "stride": 2}),
}

layers = pytest.mark.parametrize("name", LAYERS)


def dense(weight: Tensor, shape: tuple[int, ...], options: dict[str, Any]) -> Tensor:
    rest = {k: v for k, v in options.items() if k != "padding_mode"}
    circular = options.get("padding_mode") == "circular"
    return reference.dense_operator(weight, shape, circular=circular, **rest)


def start(weight: Tensor, shape: tuple[int, ...], options: dict[str, Any]) -> Tensor:
    groups = options.get("groups", 1)
    channels = weight.shape[0] if options.get("transposed") else weight.shape[1] * groups
    return normal(channels, *shape, seed=5, dtype=weight.dtype)


@layers
def test_adjoint_is_the_transposed_matrix(name: str) -> None:
    kernel, shape, options = LAYERS[name]
    w = normal(*kernel)
    operator = C.conv_operator("test", w, shape, **options)
    matrix, v = dense(w, shape, options), start(w, shape, options)
    y = operator.forward(v[None], w)
    assert y.shape[2:] == operator.output_shape()
    torch.testing.assert_close(y.flatten(), matrix @ v.flatten())
    u = normal(*y.shape, seed=7)
    torch.testing.assert_close(operator.adjoint(u, w).flatten(), matrix.mT @ u.flatten())


@layers
def test_norm_and_bounds(name: str) -> None:
    kernel, shape, options = LAYERS[name]
    w = normal(*kernel).requires_grad_()
    twin = w.detach().clone().requires_grad_()
    sigma = torch.linalg.svdvals(dense(twin, shape, options))[0]
    # Near the vector that it goes to: some spectra are close.
    v = start(w, shape, options)
    near = torch.linalg.svd(dense(w.detach(), shape, options))[2][0].reshape(v.shape) + 1e-3 * v
    result = C.conv_power_iteration(w, near, shape, n_iter=30, **options)
    torch.testing.assert_close(result.sigma, sigma, rtol=1e-6, atol=0)
    (dw,), (expected,) = torch.autograd.grad(result.sigma, w), torch.autograd.grad(sigma, twin)
    torch.testing.assert_close(dw, expected, rtol=1e-3, atol=1e-4)
    assert result.sigma == result.sigmas.max()
    assert result.sigmas.shape == (options.get("groups", 1),)
    # What it ended at is where the norm is.
    again = C.conv_power_iteration(w, result.v, shape, n_iter=0, **options)
    torch.testing.assert_close(again.sigma, sigma, rtol=1e-6, atol=0)
    known = {k: options[k] for k in options if k in ("stride", "dilation", "groups", "transposed")}
    for method in ("gram", "reshape"):
        bound = C.conv_norm_bound(w.detach(), method=method, **known)  # type: ignore[arg-type]
        assert bound >= sigma


def test_groups_count_by_their_maximum() -> None:
    w = normal(4, 1, 3, 3)
    w[3] *= 10
    result = C.conv_power_iteration(w, normal(4, 6, 6), 6, padding=1, groups=4, n_iter=150)
    for g in range(4):
        alone = reference.operator_norm(w[g : g + 1], (6, 6), padding=1)
        torch.testing.assert_close(result.sigmas[g], alone, rtol=1e-3, atol=0)
    assert result.sigma == result.sigmas[3]


def test_the_reshaped_kernel_is_another_number() -> None:
    w = torch.ones(1, 1, 3, 3, dtype=D)
    sigma = C.conv_power_iteration(w, normal(1, 16, 16), 16, padding=1, n_iter=100).sigma
    assert 8.5 < sigma < 9
    assert torch.linalg.matrix_norm(w.flatten(1), 2) == 3
    bound = C.conv_norm_bound(w, method="reshape")
    torch.testing.assert_close(bound, torch.tensor(9.0, dtype=D))


def test_bounds_tighten() -> None:
    w = normal(4, 4, 3, 3)
    exact = C.circular_singular_values(w, 24).amax()
    bounds = [C.conv_norm_bound(w, n_iter=t) for t in (1, 2, 3, 4)]
    assert all(a >= b for a, b in itertools.pairwise(bounds))
    assert exact <= bounds[-1] < 1.1 * exact
    # Scales neither overflow nor underflow on the way.
    for scale in (1e-20, 1e20):
        scaled = C.conv_norm_bound((w * scale).float())
        torch.testing.assert_close(scaled.double(), bounds[2] * scale, rtol=1e-5, atol=0)
    leaf = w.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: C.conv_norm_bound(x, n_iter=2), leaf, fast_mode=True)


def test_zero_and_nan() -> None:
    w, v = torch.zeros(2, 2, 3, 3, requires_grad=True), normal(2, 4, 4, dtype=torch.float32)
    for n_iter in (0, 2):
        result = C.conv_power_iteration(w, v, 4, padding=1, n_iter=n_iter)
        assert result.sigma == 0
        assert torch.equal(result.v, v)
        assert torch.autograd.grad(result.sigma, w)[0].isfinite().all()
    for method in ("gram", "reshape"):
        bound = C.conv_norm_bound(w, method=method)  # type: ignore[arg-type]
        assert bound == 0
        assert torch.autograd.grad(bound, w)[0].eq(0).all()
        nan = torch.full((2, 2, 3, 3), torch.nan)
        assert C.conv_norm_bound(nan, method=method).isnan()  # type: ignore[arg-type]
    assert C.conv_power_iteration(w + torch.nan, v, 4, padding=1).sigma.isnan()


@pytest.mark.parametrize("shape", [(5, 6), (3, 3)])
def test_circular_singular_values(shape: tuple[int, int]) -> None:
    w = normal(3, 2, 3, 3)
    exact = torch.linalg.svdvals(reference.dense_operator(w, shape, padding=1, circular=True))
    ours = C.circular_singular_values(w, shape)
    assert ours.shape == (shape[0] * shape[1], 2)
    torch.testing.assert_close(ours.flatten().sort().values, exact.sort().values)
    # A kernel larger than the image is wrapped around it.
    wide = torch.nn.functional.pad(w, (0, shape[1] - 1, 0, 0))
    folded = wide[..., : shape[1]].clone()
    rest = wide[..., shape[1] :]
    folded[..., : rest.shape[-1]] += rest
    torch.testing.assert_close(
        C.circular_singular_values(wide, shape), C.circular_singular_values(folded, shape)
    )


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((3, 2, 3, 3), 1), ((3, 2, 3, 3), 2), ((9, 2, 3, 3), 2), ((4, 2, 4, 4), 2), ((9, 2, 5, 5), 2)],
)
def test_conv_orthogonality(kernel: tuple[int, ...], stride: int) -> None:
    a, b = normal(*kernel).requires_grad_(), normal(*kernel).requires_grad_()
    ours, theirs = C.conv_orthogonality(a, stride), reference.conv_orthogonality(b, stride)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, a), torch.autograd.grad(theirs, b))
    norm = C.conv_orthogonality(a.detach(), stride, squared=False)
    torch.testing.assert_close(norm.square(), theirs.detach())


def test_conv_orthogonality_twice_and_by_groups() -> None:
    w = normal(4, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(C.conv_orthogonality, w, fast_mode=True)
    grouped = C.conv_orthogonality(w, 1, groups=2)
    each = C.conv_orthogonality(w[:2]) + C.conv_orthogonality(w[2:])
    torch.testing.assert_close(grouped, each)
    line = normal(3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: C.conv_orthogonality(x, 2), line, fast_mode=True)


@pytest.mark.parametrize(("m", "c", "stride"), [(4, 4, 1), (3, 4, 1), (4, 2, 1), (4, 1, 2)])
def test_conv_orthogonality_is_zero_for_isometries(m: int, c: int, stride: int) -> None:
    k = 3 if stride == 1 else 2
    w = torch.zeros(m, c, k, k, dtype=D)
    if stride == 1:
        q = torch.linalg.qr(normal(4, 4))[0]
        w[:, :, 1, 1] = q[:m, :c]
    else:
        w = torch.linalg.qr(normal(4, 4))[0].reshape(m, c, 2, 2)
    assert C.conv_orthogonality(w, stride).abs() < 1e-20
    values = torch.linalg.svdvals(
        reference.dense_operator(w, (4, 4), padding=1 if stride == 1 else 0, stride=stride)
    )
    torch.testing.assert_close(values, torch.ones_like(values))
    leaf = w.requires_grad_()
    (dw,) = torch.autograd.grad(C.conv_orthogonality(leaf, stride, squared=False), leaf)
    assert dw.isfinite().all()


# ---- the parametrization ----


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(3, 5, 3, padding=1),
        lambda: nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False),
        lambda: nn.Conv2d(3, 4, 3, padding=1, stride=2, padding_mode="circular"),
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
        lambda: nn.Conv1d(3, 4, 5),
    ],
)
def test_spectral_norm(make: Any) -> None:
    torch.manual_seed(0)
    layer = make()
    dims = layer.weight.dim() - 2
    with torch.no_grad():
        layer.weight.mul_(3)
    conv_spectral_norm(layer, 6, n_power_iterations=20)
    for _ in range(4):
        weight = layer.weight
    transposed = isinstance(layer, nn.ConvTranspose2d)
    options: dict[str, Any] = {"output_padding": layer.output_padding} if transposed else {}
    around = layer.padding
    padding = 1 if isinstance(around, str) else int(around[0])
    sigma = reference.operator_norm(
        weight.detach(),
        (6,) * dims,
        padding=padding,
        transposed=transposed,
        groups=layer.groups,
        circular=layer.padding_mode == "circular",
        stride=layer.stride,
        **options,
    )
    torch.testing.assert_close(sigma, torch.ones_like(sigma), rtol=1e-3, atol=0)


def test_spectral_norm_semantics() -> None:
    torch.manual_seed(1)
    layer = conv_spectral_norm(nn.Conv2d(2, 3, 3, padding=1), (5, 5))
    assert sorted(layer.state_dict()) == [
        "bias",
        "parametrizations.weight.0._v",
        "parametrizations.weight.original",
    ]
    x = torch.randn(2, 2, 5, 5)
    # Two forwards before one backward: no graph holds the buffer.
    (layer(x).sum() + layer(2 * x).square().sum()).backward()
    # A gradient penalty, through the normalisation.
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(layer(leaf).square().sum(), leaf, create_graph=True)
    dx.square().sum().backward()
    # Evaluation changes nothing.
    layer.eval()
    before = layer.parametrizations.weight[0]._v.clone()  # type: ignore[union-attr, index]
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(before, layer.parametrizations.weight[0]._v)  # type: ignore[union-attr, index]
    loaded = conv_spectral_norm(nn.Conv2d(2, 3, 3, padding=1), (5, 5)).eval()
    loaded.load_state_dict(layer.state_dict())
    assert torch.equal(loaded(x), layer(x))


def test_compiled() -> None:
    torch._dynamo.reset()
    torch.manual_seed(3)
    layer = conv_spectral_norm(nn.Conv2d(2, 3, 3, padding=1), 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 2, 5, 5)
    vector = layer.parametrizations.weight[0]._v  # type: ignore[union-attr, index]
    before = vector.clone()
    actual = compiled(x)
    assert not torch.equal(vector, before)
    with torch.no_grad():
        vector.copy_(before)
    torch.testing.assert_close(layer(x), actual)


def test_cap_and_zero() -> None:
    torch.manual_seed(2)
    small = nn.Conv2d(2, 2, 3, padding=1)
    with torch.no_grad():
        small.weight.mul_(0.01)
    kept = small.weight.detach().clone()
    conv_spectral_norm(small, 5, cap=1.0)
    assert torch.equal(small.weight, kept)
    zero = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    nn.init.zeros_(zero.weight)
    conv_spectral_norm(zero, 5)
    y = zero(torch.randn(1, 2, 5, 5))
    y.sum().backward()
    assert y.eq(0).all()
    gradient = zero.parametrizations.weight.original.grad  # type: ignore[union-attr]
    assert gradient.isfinite().all()  # type: ignore[union-attr, operator]
    half = conv_spectral_norm(nn.Conv2d(2, 2, 3).bfloat16(), 5)
    assert half.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda w, v: C.conv_power_iteration(w[0], v, 5), ValueError, "`v` of shape"),
        (lambda w, v: C.conv_power_iteration(w[0, 0], v, 5), ValueError, "3 to 5 dimensions"),
        (lambda w, v: C.conv_power_iteration(w, v, (5,)), ValueError, "an int or 2 of them"),
        (lambda w, v: C.conv_power_iteration(w, v, 5, stride=0), ValueError, "at least 1, got 0"),
        (lambda w, v: C.conv_power_iteration(w, v, 5, groups=2), ValueError, "divide 3 channels"),
        (lambda w, v: C.conv_power_iteration(w, v, 2), ValueError, "fits into"),
        (lambda w, v: C.conv_power_iteration(w, v, 4), ValueError, r"`v` of shape \(2, 4, 4\)"),
        (lambda w, v: C.conv_power_iteration(w, v.float(), 5), ValueError, "torch.float32"),
        (lambda w, v: C.conv_power_iteration(w, v, 5, n_iter=-1), ValueError, "at least 0"),
        (lambda w, v: C.conv_power_iteration(w.long(), v, 5), TypeError, "float32"),
        (lambda w, v: C.conv_norm_bound(w, method="fft"), ValueError, "got 'fft'"),
        (lambda w, v: C.conv_orthogonality(w, 1.5), TypeError, "got 1.5"),
        (lambda w, v: conv_spectral_norm(nn.Linear(2, 2), 5), TypeError, "a convolution"),
        (lambda w, v: conv_spectral_norm(nn.Conv2d(2, 2, 3), 5, cap=0.0), ValueError, "above 0"),
        (
            lambda w, v: conv_spectral_norm(nn.Conv2d(2, 2, 3, padding_mode="reflect"), 5),
            ValueError,
            "zeros, circular, got 'reflect'",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(normal(3, 2, 3, 3), normal(2, 5, 5))

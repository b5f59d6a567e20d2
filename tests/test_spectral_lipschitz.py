"""Lipschitz bounds against singular values and sampled ratios; layers of constant 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from regkern.nn.spectral import conditioning
from regkern.nn.spectral import lipschitz as layers
from regkern.reference.spectral.conv_operator import operator_norm
from regkern.spectral import lipschitz as L
from torch import Tensor, nn

D = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def jacobian_norm(f: Any, x: Tensor) -> Tensor:
    """The largest singular value of the derivative at x."""
    jacobian = torch.autograd.functional.jacobian(f, x)
    return torch.linalg.matrix_norm(jacobian.reshape(-1, x.numel()), 2)


# ---- bounds of layers ----


def _norm(layer: Any) -> Any:
    with torch.no_grad():
        layer.running_var.uniform_(0.5, 2)
        layer.weight.uniform_(-2, 2)
    return layer.eval()


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "conv": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 5, 5)),
    "conv-circular": (lambda: nn.Conv2d(2, 3, 3, 1, 1, padding_mode="circular"), (2, 5, 5)),
    "conv-stride": (lambda: nn.Conv2d(2, 4, 4, stride=4, groups=2), (2, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 3, 3)),
    "batch-norm": (lambda: _norm(nn.BatchNorm1d(5)), (5,)),
    "layer-norm": (lambda: nn.LayerNorm(6, eps=0.1), (6,)),
    "group-norm": (lambda: nn.GroupNorm(2, 4, eps=0.1), (4, 3)),
    "rms-norm": (lambda: nn.RMSNorm(6, eps=0.1), (6,)),
    "max-pool": (lambda: nn.MaxPool2d(3, stride=1), (1, 5, 5)),
    "avg-pool": (lambda: nn.AvgPool2d(3, stride=2, padding=1), (1, 6, 6)),
    "avg-pool-1d": (lambda: nn.AvgPool1d(2), (2, 6)),
    "divided": (lambda: nn.AvgPool2d(2, divisor_override=1), (1, 4, 4)),
    "global": (lambda: nn.AdaptiveAvgPool2d(1), (2, 3, 3)),
    "leaky": (lambda: nn.LeakyReLU(-1.5), (5,)),
    "elu": (lambda: nn.ELU(1.7), (5,)),
    "selu": (lambda: nn.SELU(), (5,)),
    "prelu": (lambda: nn.PReLU(init=1.4), (1, 5)),
    "softmax": (lambda: nn.Softmax(-1), (5,)),
    "hardswish": (lambda: nn.Hardswish(), (5,)),
    "flatten": (lambda: nn.Flatten(), (2, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double()
    bound = L.lipschitz_bound(layer).bound
    for seed, scale in enumerate((0.01, 2.0)):
        x = scale * normal(1, *shape, seed=seed)
        assert jacobian_norm(layer, x) <= bound * (1 + 1e-9)
    if name in ("linear", "batch-norm", "avg-pool-1d", "divided", "flatten"):
        torch.testing.assert_close(jacobian_norm(layer, x), bound)


@pytest.mark.parametrize(
    "layer",
    [
        nn.SiLU(),
        nn.GELU(),
        nn.GELU("tanh"),
        nn.Mish(),
        nn.Sigmoid(),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Tanhshrink(),
        nn.Softsign(),
        nn.SELU(),
    ],
)
def test_slopes_of_activations(layer: nn.Module) -> None:
    x = torch.linspace(-8, 8, 160001, dtype=D, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    bound = L.lipschitz_bound(layer).bound
    assert 0.999 * bound < slope.abs().max() <= bound + 1e-8


def test_report_of_a_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.5)),
        nn.Linear(12, 4),
    ).eval()
    report = L.lipschitz_bound(model)
    assert [layer.name for layer in report.layers] == ["0", "1", "2.0", "2.1", "2.2", "3"]
    product = torch.stack([layer.bound for layer in report.layers]).prod()
    torch.testing.assert_close(report.bound, product)
    torch.testing.assert_close(report.layers[2].bound, torch.tensor(0.5, dtype=D))
    # What the network does to pairs of inputs.
    x, y = normal(64, 1, 4, 4).float(), normal(64, 1, 4, 4, seed=1).float()
    moved = (model(x) - model(y)).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert moved.max() <= report.bound
    text = str(report)
    assert "Conv2d" in text
    assert text.splitlines()[-1].startswith("total")
    report.bound.backward()
    assert model[0].weight.grad is not None  # it can be trained


def test_unknown_layers_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Bilinear(2, 2, 2)))
    with pytest.raises(TypeError, match=r"got `1\.1` of Bilinear"):
        L.lipschitz_bound(model)
    report = L.lipschitz_bound(model, known={nn.Bilinear: lambda layer: 3.0})
    assert report.layers[-1].bound == 3
    with pytest.raises(ValueError, match="expected `1` in evaluation mode"):
        L.lipschitz_bound(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match="to pad with zeros"):
        L.lipschitz_bound(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    # Circular padding that repeats pixels more often than the kernel reaches.
    with pytest.raises(ValueError, match="half its reach"):
        L.lipschitz_bound(nn.Conv2d(2, 2, 1, padding=1, padding_mode="circular"))
    with pytest.raises(TypeError, match="a module"):
        L.lipschitz_bound(lambda x: x)  # type: ignore[arg-type]


# ---- layers of constant 1 ----


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_aol_linear(shape: tuple[int, int]) -> None:
    w = 3 * normal(*shape)
    for q in (None, normal(shape[1], seed=1).exp()):
        assert torch.linalg.matrix_norm(L.aol_rescale(w, q), 2) <= 1 + 1e-12
    assert torch.autograd.gradcheck(L.aol_rescale, w.clone().requires_grad_(), fast_mode=True)
    # Orthogonal columns are only normalised, and a column of zeros stays.
    q = torch.linalg.qr(normal(6, 3))[0] * torch.tensor([2.0, 0.5, 0.0])
    q.requires_grad_()
    rescaled = L.aol_rescale(q)
    torch.testing.assert_close(
        rescaled.norm(dim=0), torch.tensor([1.0, 1.0, 0.0], dtype=D), rtol=1e-6, atol=1e-9
    )
    assert torch.autograd.grad(rescaled.sum(), q)[0].isfinite().all()


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 2}, {"padding": 1, "stride": 2}])
def test_aol_conv(options: dict[str, Any]) -> None:
    w = 2 * normal(3, 2, 3, 3)
    for q in (None, normal(2, seed=1).exp()):
        assert operator_norm(L.aol_rescale(w, q), (6, 6), **options) <= 1 + 1e-12


def test_aol_modules() -> None:
    torch.manual_seed(0)
    linear = layers.AOLLinear(5, 8).double()
    # Orthogonal to begin with: an isometry.
    torch.testing.assert_close(
        linear(normal(3, 5)).sub(linear.bias).norm(dim=1), normal(3, 5).norm(dim=1)
    )
    conv = layers.AOLConv2d(2, 4, 3, padding=1).double()
    assert operator_norm(L.aol_rescale(conv.weight), (5, 5), padding=1) <= 1 + 1e-12
    assert L.lipschitz_bound(nn.Sequential(conv, nn.ReLU(), nn.Flatten())).bound == 1
    assert conv(normal(1, 2, 5, 5)).shape == (1, 4, 5, 5)
    with pytest.raises(ValueError, match="`groups` of 1, got 2"):
        layers.AOLConv2d(2, 2, 3, groups=2)
    with pytest.raises(ValueError, match="'zeros', got 'circular'"):
        layers.AOLConv2d(2, 2, 3, padding_mode="circular")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: layers.SLLLinear(5, hidden=7), (1, 5)),
        (lambda: layers.SLLLinear(5, hidden=3, activation=torch.tanh), (1, 5)),
        (lambda: layers.SLLConv2d(2, 3, hidden=3), (1, 2, 4, 4)),
        (lambda: layers.SLLConv2d(2, 1), (1, 2, 3, 3)),
    ],
)
def test_sll(layer: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = layer().double()
    with torch.no_grad():
        module.weight.mul_(4)
        module.log_q.normal_()
        module.bias.normal_()
    for seed in range(3):
        norm = jacobian_norm(module, 2 * normal(*shape, seed=seed))
        assert 0.1 < norm <= 1 + 1e-9
    x, y = normal(50, *shape[1:]), normal(50, *shape[1:], seed=1)
    moved = (module(x) - module(y)).flatten(1).norm(dim=1)
    assert (moved <= (x - y).flatten(1).norm(dim=1) * (1 + 1e-12)).all()
    with torch.no_grad():
        module.weight.zero_()
    torch.testing.assert_close(module(x), x)
    module(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_sll_scale_is_what_the_proof_needs() -> None:
    w, q = normal(6, 4), normal(4, seed=1).exp()
    gap = torch.diag(1 / L.sll_scale(w, q)) - w.mT @ w
    scaled = torch.diag(q) @ gap @ torch.diag(q)
    assert torch.linalg.eigvalsh(scaled)[0] >= -1e-9


# ---- attention ----


@pytest.mark.parametrize("alpha", [0.0, 1.0, 20.0])
def test_distance_attention(alpha: float) -> None:
    n, d = 4, 3
    wq, wk, wv = normal(5, d), normal(5, d, seed=1), normal(2, d, seed=2)
    x = 3 * normal(n, d, seed=3)
    radius = 2.0

    def attention(x: Tensor) -> Tensor:
        return L.distance_attention(x, wq, wk, wv, radius=radius, alpha=alpha)

    # The definition.
    clipped = x * (radius / x.norm(dim=1, keepdim=True)).clamp(max=1)
    distances = torch.cdist(clipped @ wq.mT, clipped @ wk.mT).square()
    weights = (-alpha * distances / (radius * (wq.norm() + wk.norm())) ** 2).softmax(1)
    torch.testing.assert_close(attention(x), weights @ (clipped @ wv.mT))
    bound = L.distance_attention_bound(n, wq, wk, wv, alpha=alpha)
    for seed in range(4):
        for scale in (0.1, 1.0, 5.0):
            assert jacobian_norm(attention, scale * normal(n, d, seed=seed)) <= bound
    batch = torch.stack([x, 0.5 * x])
    torch.testing.assert_close(attention(batch)[0], attention(x))


def test_distance_attention_module() -> None:
    torch.manual_seed(0)
    module = layers.DistanceAttention(4)
    x = torch.randn(2, 3, 4, requires_grad=True)
    y = module(x)
    y.square().sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None
    assert module.bound(3) > 0
    wq = torch.ones(2, 4)
    with pytest.raises(ValueError, match="`radius` above 0"):
        L.distance_attention(x, wq, wq, wq, radius=0.0)
    with pytest.raises(ValueError, match=r"`wk` of shape \(inner, 4\), got \(3, 4\)"):
        L.distance_attention(x, wq, torch.ones(3, 4), wq, radius=1.0)


# ---- weight conditioning ----


@pytest.mark.parametrize("side", ["rows", "columns", "both"])
def test_weight_conditioning(side: Any) -> None:
    torch.manual_seed(0)
    layer = conditioning.weight_conditioning(nn.Linear(6, 4), side=side)
    norms = layer.weight.norm(dim=1 if side == "rows" else 0)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    layer(torch.randn(2, 6)).square().sum().backward()
    assert layer.parametrizations.weight.original.grad is not None  # type: ignore[union-attr]


def test_weight_conditioning_is_weight_norm_without_a_gain() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    theirs.load_state_dict(ours.state_dict())
    conditioning.weight_conditioning(ours)
    nn.utils.parametrizations.weight_norm(theirs)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.fill_(1)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(ours.weight, theirs.weight)
    with pytest.raises(ValueError, match="got 'all'"):
        conditioning.weight_conditioning(ours, side="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda w: L.aol_rescale(w.long()), TypeError, "float32"),
        (lambda w: L.aol_rescale(w[0]), ValueError, "2 to 5 dimensions"),
        (lambda w: L.aol_rescale(w, torch.ones(3, dtype=D)), ValueError, r"\(2,\) and dtype"),
        (lambda w: L.sll_scale(w, torch.ones(2)), ValueError, "torch.float64, got"),
        (lambda w: layers.SLLConv2d(2, 4), ValueError, "odd, got 4"),
        (lambda w: layers.SLLLinear(0), ValueError, "at least 1, got 0"),
    ],
)
def test_errors(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(normal(3, 2))

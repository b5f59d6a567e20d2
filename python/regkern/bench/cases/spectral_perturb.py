"""Norms and perturbations of ResNet-50's parameters, and polar factors by matrix products."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.bench.networks import parts, resnet50, size
from regkern.reference.spectral import perturb as reference
from regkern.reference.spectral import polar as polar_reference
from regkern.spectral.network import clip_norm_, global_norm
from regkern.spectral.perturb import Perturbation, perturb_, restore_
from regkern.spectral.polar import STEEP, orthogonalize, polar_express_coefficients

#: All parameters one behind the other.
NETWORK = resnet50()
SHAPE = (size(NETWORK),)
SMALL = (3000,)
RHO = 0.05


def _network(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=dtype, device=device)
    return {"x": x, "grad": torch.randn_like(x), "kept": {}}


def _kept(i: Inputs, key: object, make: Any) -> Any:
    """What is made for the first call with this x, and stays for the next."""
    x, made = i["kept"].get(key, (None, None))
    if x is not i["x"]:
        made = make()
        i["kept"][key] = (i["x"], made)
    return made


def _lists(i: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    return _kept(i, "lists", lambda: (parts(i["x"], NETWORK), parts(i["grad"], NETWORK)))  # type: ignore[no-any-return]


# ---- norms ----


def _torch_norm(i: Inputs) -> Tensor:
    return torch.nn.utils.get_total_norm(_lists(i)[0])


def _within(i: Inputs) -> Tensor:
    clip_norm_(_lists(i)[0], 1e6)
    x: Tensor = i["x"]
    return x


def _torch_clip(i: Inputs) -> Tensor:
    def make() -> list[Tensor]:
        params = [torch.nn.Parameter(p.detach()) for p in _lists(i)[0]]
        for p in params:
            p.grad = p.detach()
        return params  # type: ignore[return-value]

    torch.nn.utils.clip_grad_norm_(_kept(i, "clip", make), 1e6)
    x: Tensor = i["x"]
    return x


# ---- perturbations ----


def _perturb(kind: str, storage: str, back: bool, i: Inputs) -> Tensor:
    params, grads = _lists(i)
    key = (kind, storage)
    x, saved = i["kept"].get(key, (None, None))
    reuse: Perturbation | None = saved if x is i["x"] else None
    saved = perturb_(params, grads, RHO, kind=kind, storage=storage, reuse=reuse)  # type: ignore[arg-type]
    i["kept"][key] = (i["x"], saved)
    if back:
        restore_(saved)
    y: Tensor = i["x"]
    return y


def _perturb_definition(kind: str, back: bool, i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    if back:
        return x
    params, grads = parts(x, NETWORK), parts(i["grad"], NETWORK)
    wide = ([p.double() for p in params], [g.double() for g in grads])
    for p, moved in zip(params, reference.perturbed(*wide, RHO, kind), strict=True):
        p.copy_(moved)
    return x


def _foreach(back: bool, i: Inputs) -> Tensor:
    """SAM with torch's lists, and buffers that stay."""
    params, grads = _lists(i)
    buffers = _kept(i, "foreach", lambda: [torch.empty_like(p) for p in params])
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_copy_(buffers, params)
    torch._foreach_add_(params, torch._foreach_mul(grads, RHO / norm))
    if back:
        torch._foreach_copy_(params, buffers)
    x: Tensor = i["x"]
    return x


def _perturb_case(
    variant: str,
    passes: float,
    kind: str = "sam",
    storage: str = "kept",
    back: bool = True,
    bar: float | None = None,
) -> Case:
    return Case(
        op="perturb_",
        variant=variant,
        shape=SHAPE,
        small=SMALL,
        make=_network,
        ours=partial(_perturb, kind, storage, back),
        reference=partial(_perturb_definition, kind, back),
        rivals=(Rival("torch foreach", "torch", lambda: partial(_foreach, back), "SAM"),),
        floor="mul_",
        passes=passes,
        inplace=True,
        bar=bar,
    )


# ---- polar factors ----


def _matrix(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape, dtype=dtype, device=device), "kept": {}}


def _definition(method: str, i: Inputs) -> Tensor:
    quintics = polar_express_coefficients(5) if method == "polar_express" else [STEEP] * 5
    x: Tensor = i["x"]
    return polar_reference.orthogonalized(x.double(), quintics).to(x.dtype)


def _products() -> Run:
    """The products of five steps and nothing else, into memory that is there."""

    def run(i: Inputs) -> Tensor:
        x: Tensor = i["x"]
        m = x.shape[0]
        a, b, y = _kept(
            i, "products", lambda: (x.new_empty(m, m), x.new_empty(m, m), torch.empty_like(x))
        )
        for _ in range(5):
            torch.mm(x, x.mT, out=a)
            torch.mm(a, a, out=b)
            torch.mm(b, x, out=y)
        return y  # type: ignore[no-any-return]

    return run


def _torch_muon() -> Run:
    from torch.optim import _muon

    return lambda i: _muon._zeropower_via_newtonschulz(i["x"], STEEP, 5, 1e-7)


def _polar_case(variant: str, method: str, gram: bool, bar: float | None = None) -> Case:
    return Case(
        op="orthogonalize",
        variant=variant,
        shape=(512, 2048),
        small=(12, 40),
        make=_matrix,
        ours=lambda i: orthogonalize(i["x"], method=method, gram=gram),  # type: ignore[call-overload]
        reference=partial(_definition, method),
        rivals=(
            Rival("products alone", "torch", _products, "no sums, not the gram form"),
            Rival("torch.optim.Muon", "torch", _torch_muon, "bfloat16"),
        ),
        bar=bar,
    )


CASES = (
    Case(
        op="global_norm",
        variant="",
        shape=SHAPE,
        small=SMALL,
        make=_network,
        ours=lambda i: global_norm(_lists(i)[0]),
        reference=lambda i: reference.global_norm([i["x"].double()]).to(i["x"].dtype),
        rivals=(Rival("torch.nn.utils.get_total_norm", "torch", lambda: _torch_norm),),
        floor="mul_",
        passes=1.0,
    ),
    Case(
        op="clip_norm_",
        variant="within",
        shape=SHAPE,
        small=SMALL,
        make=_network,
        ours=_within,
        reference=lambda i: i["x"],
        rivals=(
            Rival("torch.nn.utils.clip_grad_norm_", "torch", lambda: _torch_clip, "writes always"),
        ),
        floor="mul_",
        passes=1.0,
        inplace=True,
    ),
    _perturb_case("", 5.0, back=False),
    _perturb_case("asam", 6.0, kind="asam", back=False),
    _perturb_case("tensor", 6.0, kind="tensor", back=False),
    _perturb_case("restore", 7.0),
    _perturb_case("restore_swapped", 4.0, storage="swapped", bar=3.0),
    _polar_case("plain", "newton_schulz", False),
    _polar_case("gram", "newton_schulz", True),
    _polar_case("polar_express", "polar_express", True),
)

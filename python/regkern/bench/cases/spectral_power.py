"""Power iteration, division by spectral norms, penalties of spectral norms."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from regkern.bench.case import Case, Inputs, Rival, Run
from regkern.bench.networks import parts, resnet50_weights, size
from regkern.nn.spectral.norm import spectral_norm
from regkern.reference.spectral import penalties as reference_penalties
from regkern.reference.spectral import power as reference
from regkern.spectral.normalize import spectral_linear, spectral_normalize, spectral_normalize_
from regkern.spectral.power import power_iteration, random_vectors
from regkern.spectral.spectral_penalties import add_outer_, spectral_penalty

SQUARE, SMALL = (4096, 4096), (12, 20)
MORE_FLOATS = (torch.bfloat16, torch.float16, torch.float64)

NETWORK = resnet50_weights()


def _views(x: Tensor) -> list[Tensor]:
    return [x] if x.dim() == 2 else parts(x, NETWORK)


def _make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    x = torch.randn(shape, dtype=torch.float32, device=device).to(dtype)
    u, v = random_vectors(_views(x))
    return {"x": x, "u": u, "v": v}


def _fresh(i: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """Vectors that may be overwritten."""
    return [u.clone() for u in i["u"]], [v.clone() for v in i["v"]]


# ---- power iteration ----


def _ours(i: Inputs) -> Tensor:
    return power_iteration(_views(i["x"]), *_fresh(i)).sigma


def _definition(i: Inputs) -> Tensor:
    pairs = zip(_views(i["x"]), i["u"], i["v"], strict=True)
    wide = [(w.to(v.dtype), u, v) for w, u, v in pairs]
    return torch.stack([reference.singular_triple(*triple, 1)[2] for triple in wide])


@torch.no_grad()
def _eager(i: Inputs) -> Tensor:
    """What torch's parametrization does, but for the division."""
    sigmas = []
    for w, u, v in zip(_views(i["x"]), *_fresh(i), strict=True):
        m = w.flatten(1)
        vector = v.to(m.dtype)
        a = F.normalize(torch.mv(m, vector), dim=0, out=u.to(m.dtype))
        b = F.normalize(torch.mv(m.mT, a), dim=0)
        sigmas.append(torch.vdot(a, torch.mv(m, b)))
    return torch.stack(sigmas)


def _iteration(variant: str, shape: tuple[int, ...], small: tuple[int, ...], bar: float) -> Case:
    return Case(
        op="power_iteration",
        variant=variant,
        shape=shape,
        small=small,
        more_dtypes=MORE_FLOATS,
        make=_make,
        ours=_ours,
        reference=_definition,
        rivals=(Rival("eager", "torch", lambda: _eager, "three reads"),),
        floor="read",
        passes=1.0,
        bar=bar,
    )


# ---- division ----


def _normalized(cap: float | None, i: Inputs) -> Tensor:
    (u,), (v,) = _fresh(i)
    return spectral_normalize(i["x"], u, v, cap=cap)


def _normalized_(i: Inputs) -> Tensor:
    (u,), (v,) = _fresh(i)
    # A cap that is never reached, so that the weight keeps its size from call to call.
    return spectral_normalize_(i["x"], u, v, cap=1e30)


def _unchanged(i: Inputs) -> Tensor:
    x: Tensor = i["x"]
    return x


def _normalized_definition(cap: float | None, i: Inputs) -> Tensor:
    x, (u,), (v,) = i["x"], i["u"], i["v"]
    return reference.spectral_normalize(x.to(v.dtype), u, v, 1, cap).to(x.dtype)


def _parametrized(register: Any, i: Inputs) -> Tensor:
    """The rule alone, made for the first call."""
    key = f"rule of {register.__module__}"
    if key not in i:
        layer = nn.Module()
        layer.weight = nn.Parameter(i["x"].detach())
        register(layer)
        i[key] = layer.parametrizations.weight[0]  # type: ignore[index, union-attr]
    out: Tensor = i[key](i["x"])
    return out


def _parametrization(register: Any) -> Run:
    return partial(_parametrized, register)


def _division(variant: str, cap: float | None) -> Case:
    return Case(
        op="spectral_normalize",
        variant=variant,
        shape=SQUARE,
        small=SMALL,
        more_dtypes=MORE_FLOATS,
        make=_make,
        ours=partial(_normalized, cap),
        reference=partial(_normalized_definition, cap),
        rivals=(
            Rival("spectral_norm", "regkern", lambda: _parametrization(spectral_norm)),
            Rival(
                "parametrizations.spectral_norm",
                "torch",
                lambda: _parametrization(parametrizations.spectral_norm),
            ),
        ),
        passes=3.0,
        differentiable=True,
        bar=2.0,
        bar_backward=4.5,
    )


# ---- folded ----

ROWS = 16


def _layer_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Inputs:
    inputs = _make(shape, dtype, device)
    inputs["a"] = torch.randn(ROWS, shape[1], device=device).to(dtype)
    return inputs


def _folded(i: Inputs) -> Tensor:
    (u,), (v,) = _fresh(i)
    return spectral_linear(i["a"], i["x"], None, u, v)


def _folded_definition(i: Inputs) -> Tensor:
    return F.linear(i["a"], _normalized_definition(None, i))


def _plain(i: Inputs) -> Tensor:
    return F.linear(i["a"], i["x"])


# ---- penalties ----


def _penalty(i: Inputs) -> Tensor:
    return spectral_penalty(_views(i["x"]), *_fresh(i))


def _penalty_definition(i: Inputs) -> Tensor:
    return reference_penalties.of_sigmas(_definition(i), "power")


def _outer(i: Inputs) -> Tensor:
    add_outer_(_views(i["x"]), i["u"], i["v"], 1e-6)
    x: Tensor = i["x"]
    return x


def _outer_definition(i: Inputs) -> Tensor:
    for w, u, v in zip(_views(i["x"]), i["u"], i["v"], strict=True):
        w.add_((1e-6 * torch.outer(u, v)).view(w.shape).to(w.dtype))
    x: Tensor = i["x"]
    return x


def _ger(i: Inputs) -> Tensor:
    for w, u, v in zip(_views(i["x"]), i["u"], i["v"], strict=True):
        w.view(w.shape[0], -1).addr_(u.to(w.dtype), v.to(w.dtype), alpha=1e-6)
    x: Tensor = i["x"]
    return x


CASES = (
    _iteration("", SQUARE, SMALL, 1.6),
    _iteration("network", (size(NETWORK),), (300,), 2.0),
    _division("", None),
    _division("cap", 2.0),
    Case(
        op="spectral_normalize",
        variant="inplace",
        shape=SQUARE,
        small=SMALL,
        make=_make,
        ours=_normalized_,
        reference=_unchanged,
        floor="mul_",
        passes=3.0,
        inplace=True,
    ),
    Case(
        op="spectral_linear",
        variant="",
        shape=SQUARE,
        small=SMALL,
        make=_layer_inputs,
        ours=_folded,
        reference=_folded_definition,
        rivals=(Rival("F.linear", "torch", lambda: _plain, "without the division"),),
        floor="read",
        passes=2.0,
    ),
    Case(
        op="spectral_penalty",
        variant="network",
        shape=(size(NETWORK),),
        small=(300,),
        make=_make,
        ours=_penalty,
        reference=_penalty_definition,
        floor="read",
        passes=1.0,
    ),
    Case(
        op="add_outer",
        variant="network",
        shape=(size(NETWORK),),
        small=(300,),
        more_dtypes=MORE_FLOATS,
        make=_make,
        ours=_outer,
        reference=_outer_definition,
        rivals=(Rival("addr_", "torch", lambda: _ger),),
        floor="mul_",
        inplace=True,
    ),
)

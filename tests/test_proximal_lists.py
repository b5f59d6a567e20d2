"""Ops over lists of the proximal family, which the registry of samples does not hold: schemas, fake
kernels, `torch.compile`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from regkern.proximal import complex_magnitude as C
from regkern.proximal import elementwise as E
from regkern.proximal import penalties as P
from regkern.proximal import sensitivity as S
from regkern.proximal import thresholds as T
from torch import Tensor


def pair() -> list[Tensor]:
    g = torch.Generator().manual_seed(9)
    return [torch.randn(5, 4, generator=g), torch.randn(7, generator=g)]


ONE = torch.ones(())
RAW: dict[str, Any] = {
    "prox_elementwise_": lambda x: (x, ONE, ONE, [], [], "soft", 0.0, -1.0, 1.0),
    "penalty_list": lambda x: (x, ONE, [], "soft", 0.0),
    "penalty_list_backward": lambda x: (ONE, x, ONE, [], "soft", 0.0),
    "penalty_list_gradients": lambda x: (x, ONE, [], "soft", 0.0),
    "penalty_list_add_": lambda x: (x, pair(), ONE, ONE, [], "soft", 0.0),
    "magnitude_select": lambda x: (x, [], [3], False),
    "magnitude_scale_": lambda x: (x, [3, 2], True, 0.5),
    "magnitude_mask": lambda x: (x, pair(), [3], False, True),
    "sensitivity_shrink_": lambda x: (x, pair(), [], [], ONE, None, "lobster"),
    "network_sums": lambda x: (x, ONE.double(), "centred"),
    "network_gradients": lambda x: (x, torch.ones(4).double(), "saturated"),
    "prox_complex_": lambda x: ([torch.randn(3, 2)], ONE, ONE, "soft", 0.0),
}


@pytest.mark.parametrize("name", RAW)
def test_schemas_and_fake_kernels(name: str) -> None:
    op = getattr(torch.ops.regkern, name).default
    torch.library.opcheck(op, RAW[name](pair()), test_utils=("test_schema", "test_faketensor"))


def _prox(a: Tensor, b: Tensor) -> None:
    E.prox_elementwise_([a, b], "soft", 0.3)


def _hard(a: Tensor, b: Tensor) -> None:
    T.magnitude_threshold_([a, b], 9)


def _lobster(a: Tensor, b: Tensor) -> None:
    S.sensitivity_shrink_([a, b], [0.5 * a, 0.5 * b], 0.3, lr=0.1)


def test_compiled_complex() -> None:
    torch._dynamo.reset()
    z = torch.view_as_complex(pair()[0].reshape(-1, 2)).clone()
    compiled = torch.compile(C.prox_complex, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(z, "soft", 0.3), C.prox_complex(z, "soft", 0.3))


@pytest.mark.parametrize("change", [_prox, _hard, _lobster])
def test_compiled_in_place(change: Any) -> None:
    torch._dynamo.reset()
    expected, actual = pair(), pair()
    change(*expected)
    torch.compile(change, fullgraph=True, dynamic=True, backend="aot_eager")(*actual)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    "value",
    [
        lambda a, b: P.polarization([a, b]),
        lambda a, b: P.hypersparse([a, b], 0.5),
        lambda a, b: E.penalty_elementwise([a, b], "mcp", shape=2.0),
    ],
)
def test_compiled_gradients(value: Any) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(value, fullgraph=True, dynamic=True, backend="aot_eager")
    leaves = [x.requires_grad_() for x in pair()]
    expected = torch.autograd.grad(value(*leaves), leaves)
    actual = torch.autograd.grad(compiled(*leaves), leaves)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)

"""Ops over lists of the proximal family, which the registry of samples does not hold: schemas, fake
kernels, `torch.compile`, and what they say of lists that are none."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from regkern.optim import half_space_project_
from regkern.proximal import complex_magnitude as C
from regkern.proximal import elementwise as E
from regkern.proximal import penalties as P
from regkern.proximal import sensitivity as S
from regkern.proximal.envelope import GroupEnvelope, TopKGroups
from regkern.proximal.group_norm_penalties import ExclusiveLasso, GroupLinf, OverlappingGroupL2
from regkern.proximal.group_penalties import GroupL2, SparseGroup, TreeGroups
from regkern.proximal.group_prox import group_norms
from regkern.proximal.groups import Groups
from regkern.proximal.nuclear import NuclearNorm
from regkern.proximal.patterns import n_m_projection_
from regkern.proximal.projections import prox_linf_
from regkern.proximal.recipes import mask_sparsity
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


def test_compiled_complex() -> None:
    torch._dynamo.reset()
    z = torch.view_as_complex(pair()[0].reshape(-1, 2)).clone()
    compiled = torch.compile(C.prox_complex, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(z, "soft", 0.3), C.prox_complex(z, "soft", 0.3))


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


# ---- what is not a list of tensors ----

ROWS = Groups.kept(0)
PENALTIES = [
    GroupL2(1.0, ROWS),
    TreeGroups(1.0, [ROWS]),
    GroupEnvelope(1.0, ROWS, 2.0),
    TopKGroups(ROWS, 2),
    GroupLinf(1.0),
    ExclusiveLasso(1.0, 0),
    OverlappingGroupL2(1.0, [[0, 1], [1, 2]]),
    NuclearNorm(1.0),
]
# The op, the argument, and a call with a value for it.
LISTS: list[tuple[str, str, Any]] = [
    ("group_norms", "tensors", lambda v: group_norms(v, ROWS)),
    ("n_m_projection_", "tensors", n_m_projection_),
    ("prox_linf_", "tensors", lambda v: prox_linf_(v, 1.0)),
    ("prox_elementwise_", "tensors", lambda v: E.prox_elementwise_(v, "soft")),
    ("optim.half_space_project_", "new", lambda v: half_space_project_(v, pair())),
    ("optim.half_space_project_", "old", lambda v: half_space_project_(pair(), v)),
    ("SparseGroup", "l1_weights", lambda v: SparseGroup(1.0, 1.0, ROWS, l1_weights=v)),
    ("mask_sparsity", "gamma", lambda v: mask_sparsity(v, pair(), 1.0)),
    *((type(p).__name__, "x", p.value) for p in PENALTIES),
    *((type(p).__name__, "tensors", p.prox_) for p in PENALTIES),
]
X = torch.ones(4)


@pytest.mark.parametrize(("op", "name", "call"), LISTS, ids=lambda v: v if type(v) is str else "")
def test_lists_say_what_is_wrong(op: str, name: str, call: Any) -> None:
    for value, error, message in (
        ([], ValueError, f"expected a tensor in `{name}`, got none"),
        (3, TypeError, f"expected `{name}` to be a tensor or several, got <class 'int'>"),
        ([X, 3], TypeError, f"expected `{name}[1]` to be a tensor, got <class 'int'>"),
        ([X, X.int()], TypeError, f"expected `{name}[1]` of dtype float32, float64, bfloat16 or"),
        ([X, X.to("meta")], ValueError, f"expected `{name}[1]` on cpu, got meta"),
    ):
        with pytest.raises(error, match=re.escape(f"regkern.{op}: {message}")):
            call(value)


def test_masks_and_complex_numbers_say_what_is_wrong() -> None:
    for masks in ([], [X > 0, 3]):
        with pytest.raises((TypeError, ValueError), match=r"mask_sparsity: expected .*`mask"):
            mask_sparsity([X, X], masks, 1.0)
        with pytest.raises((TypeError, ValueError), match=r"shrink_: expected .*`keep"):
            S.sensitivity_shrink_([X, X], [X, X], 0.1, keep=masks)
        with pytest.raises((TypeError, ValueError), match=r"elementwise_: expected .*`weights"):
            E.prox_elementwise_([X, X], "soft", weights=masks)
    with pytest.raises(
        TypeError, match=r"prox_complex_: expected `tensors\[1\]` of dtype complex64"
    ):
        C.prox_complex_([X.to(torch.complex64), X], "soft")

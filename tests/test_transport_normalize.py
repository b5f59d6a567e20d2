"""Doubly stochastic matrices: laws, corners, errors, and the recipes that they serve."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from recording import Call, Recorder
from regkern.nn.transport.normalize import SinkhornNormalize
from regkern.reference.transport import normalize as reference
from regkern.transport.normalize import sinkhorn_normalize
from sample import normal
from torch import Tensor

DOUBLE = torch.float64
# Lanes, the square ones of them, and rows.
SHAPES = ((9, 4, 4), (2, 8, 8), (3, 3, 5), (2, 17, 6), (1, 40, 70))


def draw(*shape: int, salt: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return normal(shape, dtype, 50 + salt)


def close(a: Tensor, b: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=atol)


def compare(x: Tensor, atol: float = 1e-10, slope_atol: float = 1e-9, **options: Any) -> None:
    """Result and all gradients against the definition."""
    tensors = {"x": x, **{k: v for k, v in options.items() if isinstance(v, Tensor)}}
    tensors = {k: v for k, v in tensors.items() if v.is_floating_point()}
    ours = {k: v.clone().requires_grad_() for k, v in tensors.items()}
    theirs = {k: v.double().clone().requires_grad_() for k, v in tensors.items()}
    y = sinkhorn_normalize(**{**options, **ours})
    z = reference.sinkhorn_normalize(**{**options, **theirs})
    close(y, z, atol)
    g = torch.where(z.isinf(), 0.0, draw(*z.shape, salt=7))
    for a, b in zip(
        torch.autograd.grad(y, list(ours.values()), g.to(y.dtype)),
        torch.autograd.grad(z, list(theirs.values()), g),
        strict=True,
    ):
        close(a, b, slope_atol * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("shape", SHAPES)
def test_definition(shape: tuple[int, int, int]) -> None:
    x = draw(*shape)
    a, b = draw(shape[1], salt=1).square() + 0.1, draw(*shape[::2], salt=2).square() + 0.1
    a[1] = 0
    b[:, 0] = 0
    compare(x)
    compare(x.float(), 1e-6, 1e-5)
    compare(x, n_iter=3, order="column_first", log_output=True, a=a, b=b)
    compare(x, n_iter=3, a=a, b=b, tau=torch.tensor(0.7, dtype=DOUBLE))
    compare(x, slack=draw(shape[0], salt=3), tau=0.5, log_output=True)
    compare(x.exp(), log_input=False, n_iter=4, log_output=True)
    compare(x, n_iter=3, eps=1e-2, a=a, b=b)
    compare(x.exp(), log_input=False, n_iter=3, eps=1e-2, log_output=True)


def test_doubly_stochastic() -> None:
    y = sinkhorn_normalize(draw(2, 3, 6, 6), 200)
    ones = torch.ones(2, 3, 6, dtype=DOUBLE)
    close(y.sum(-1), ones)
    close(y.sum(-2), ones)
    first = sinkhorn_normalize(draw(3, 5), 1)
    close(first.sum(0), torch.full((5,), 3 / 5, dtype=DOUBLE))
    close(sinkhorn_normalize(draw(3, 5), 1, order="column_first").sum(1), torch.ones(3).double())


def test_shifts_and_permutations() -> None:
    x = draw(2, 5, 5)
    y = sinkhorn_normalize(x)
    close(sinkhorn_normalize(x + draw(2, 5, 1, salt=1) + 100.0), y)
    # A shift of columns is undone by the first step on columns, if not by one on rows before.
    limit = sinkhorn_normalize(x, 300)
    close(sinkhorn_normalize(x + draw(2, 1, 5, salt=1), 300), limit)
    order = torch.tensor([3, 0, 4, 1, 2])
    close(sinkhorn_normalize(x[:, order]), y[:, order])
    close(sinkhorn_normalize(x.mT, order="column_first"), y.mT)


@pytest.mark.parametrize("std", [20.0, 80.0, 1000.0])
@pytest.mark.parametrize("shape", [(64, 4, 4), (3, 18, 18)])
def test_logits_of_any_size(std: float, shape: tuple[int, int, int]) -> None:
    """In float32 the scaling form leaves its range from a standard deviation of 40 on."""
    x = (std * draw(*shape)).float()
    scale = max(1.0, std / 10)
    compare(x, 2e-6 * scale, 2e-5 * scale)
    compare(x, 2e-5 * scale, 2e-5 * scale, log_output=True)


@pytest.mark.parametrize("n", [4, 8])
def test_range_of_two_sums_together(n: int) -> None:
    """Of squares two sums are inverted by one division: their product may be no number."""
    x = draw(6, n, n, dtype=torch.float32)
    x[1::2, :, 2:4] -= 46.0  # e^−46 is normal, and its square is not
    x[3:, 0:2] *= 0.5
    x.requires_grad_()
    y = sinkhorn_normalize(x, 5)
    z = reference.sinkhorn_normalize(x.double(), 5)
    close(y, z, 1e-5)
    g = draw(6, n, n, salt=1)
    close(*(torch.autograd.grad((p * g).sum(), x, retain_graph=True)[0] for p in (y, z)), 1e-5)


@pytest.mark.parametrize("order", ["row_first", "column_first"])
@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (2, 8), (8, 4), (3, 5)], ids=str)
def test_problems_do_not_see_each_other(shape: tuple[int, int], order: Any) -> None:
    """Whatever the lane is, and whether its vector is full."""
    for dtype in (torch.float32, torch.bfloat16, DOUBLE):
        x = draw(37, *shape, dtype=dtype).requires_grad_()
        y = sinkhorn_normalize(x, 3, order=order)
        (slope,) = torch.autograd.grad(y.square().sum(), x)
        for i in (0, 15, 16, 31, 36):
            alone = x.detach()[i : i + 1].requires_grad_()
            p = sinkhorn_normalize(alone, 3, order=order)
            assert torch.equal(p, y[i : i + 1])
            assert torch.equal(torch.autograd.grad(p.square().sum(), alone)[0], slope[i : i + 1])


def test_range_of_a_positive_matrix() -> None:
    compare((40 * draw(3, 4, 4)).exp(), 1e-10, 1e-9, log_input=False)
    tiny = torch.full((1, 3, 3), 1e-30)
    close(sinkhorn_normalize(tiny, log_input=False), torch.full((1, 3, 3), 1 / 3), 1e-6)


def test_masks_and_lengths() -> None:
    x = draw(3, 5, 6).requires_grad_()
    lengths, widths = torch.tensor([2, 5, 0]), torch.tensor([3, 6, 0])
    y = sinkhorn_normalize(x, rows=lengths, columns=widths)
    plan = y.detach()
    close(y[0, :2, :3], sinkhorn_normalize(x[0, :2, :3]))
    assert float(plan[0, 2:].abs().max()) == float(plan[0, :, 3:].abs().max()) == 0
    close(y[1], sinkhorn_normalize(x[1]))
    assert float(plan[2].abs().max()) == 0
    mask = torch.arange(5) < lengths.unsqueeze(1)
    close(sinkhorn_normalize(x, rows=mask, columns=widths), y)
    (g,) = torch.autograd.grad((y * draw(3, 5, 6, salt=1)).sum(), x)
    assert bool(g.isfinite().all())
    assert float(g[0, 2:].abs().max()) == float(g[2].abs().max()) == 0
    # What is masked may be anything.
    garbage = x.detach().clone()
    garbage[0, 2:] = math.nan
    garbage[0, :, 3:] = math.inf
    close(sinkhorn_normalize(garbage, rows=lengths, columns=widths)[0], y[0])


def test_forbidden_pairs() -> None:
    x = draw(2, 4, 4)
    x[:, torch.eye(4, dtype=torch.bool)] = -math.inf
    for n in (1, 20):
        y = sinkhorn_normalize(x, n)
        assert float(y.diagonal(dim1=1, dim2=2).abs().max()) == 0
        close(y.sum(-2), torch.ones(2, 4).double())
    x.requires_grad_()
    (g,) = torch.autograd.grad((sinkhorn_normalize(x) * draw(2, 4, 4, salt=1)).sum(), x)
    assert bool(g.isfinite().all())
    blocked = x.detach().clone()
    blocked[0, 1] = -math.inf  # a row without a partner: no plan
    y = sinkhorn_normalize(blocked)
    assert bool(y[0].isnan().any())
    assert bool(y[1].isfinite().all())


def test_one_and_none() -> None:
    close(sinkhorn_normalize(draw(3, 1, 1)), torch.ones(3, 1, 1).double())
    assert sinkhorn_normalize(draw(0, 3, 4)).shape == (0, 3, 4)
    assert sinkhorn_normalize(draw(2, 0, 4)).shape == (2, 0, 4)
    assert sinkhorn_normalize(draw(3, 4)).shape == (3, 4)


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 18)])
def test_gradcheck(shape: tuple[int, int, int]) -> None:
    x, a, b = draw(*shape), draw(shape[1], salt=1), draw(shape[0], shape[2], salt=2)
    z, t = draw(shape[0], salt=3), draw(salt=4).square() + 0.5

    def plan(x: Tensor, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return sinkhorn_normalize(x, 4, a=a.square() + 0.1, b=b.square() + 0.1, tau=t)

    inputs = [v.requires_grad_() for v in (x, a, b, t)]
    assert torch.autograd.gradcheck(plan, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda x, z: sinkhorn_normalize(x, 3, slack=z, log_output=True),
        (x, z.requires_grad_()),
        fast_mode=True,
    )


def test_implicit_gradient_is_the_limit_of_the_unrolled() -> None:
    for dtype, atol in ((DOUBLE, 1e-9), (torch.float32, 1e-4)):
        x = draw(3, 4, 4, dtype=dtype).requires_grad_()
        t = torch.tensor(0.8, dtype=dtype, requires_grad=True)
        g = draw(3, 4, 4, salt=1, dtype=dtype)
        mask = torch.tensor([4, 3, 2])
        options: Any = {"n_iter": 400, "tau": t, "rows": mask, "columns": mask}
        unrolled = torch.autograd.grad(sinkhorn_normalize(x, **options), (x, t), g)
        implicit = torch.autograd.grad(
            sinkhorn_normalize(x, gradient="implicit", **options), (x, t), g
        )
        for a, b in zip(unrolled, implicit, strict=True):
            close(a, b, atol)


# ---- recipes, as their authors wrote them ----


def test_hyper_connections() -> None:
    """DeepSeek's: a softmax and ε, then columns and rows with ε in every denominator."""
    x = draw(6, 4, 4) * 3
    y = x.softmax(-1) + 1e-6
    y = y / (y.sum(-2, keepdim=True) + 1e-6)
    for _ in range(9):
        y = y / (y.sum(-1, keepdim=True) + 1e-6)
        y = y / (y.sum(-2, keepdim=True) + 1e-6)
    close(sinkhorn_normalize(x, 10, eps=1e-6), y)


def test_superglue() -> None:
    """Log domain, dustbins as a row and a column, masses in shares and taken back at the end."""
    scores, alpha, (m, n) = draw(2, 5, 7), draw(salt=1), (5, 7)
    bins = alpha.expand(2, m, 1), alpha.expand(2, 1, n), alpha.expand(2, 1, 1)
    z = torch.cat([torch.cat([scores, bins[0]], -1), torch.cat([bins[1], bins[2]], -1)], 1)
    norm = -math.log(m + n)
    log_mu = torch.tensor([norm] * m + [math.log(n) + norm], dtype=DOUBLE)
    log_nu = torch.tensor([norm] * n + [math.log(m) + norm], dtype=DOUBLE)
    u, v = torch.zeros(2, m + 1).double(), torch.zeros(2, n + 1).double()
    for _ in range(30):
        u = log_mu - torch.logsumexp(z + v.unsqueeze(1), 2)
        v = log_nu - torch.logsumexp(z + u.unsqueeze(2), 1)
    expected = z + u.unsqueeze(2) + v.unsqueeze(1) - norm
    close(sinkhorn_normalize(scores, 30, slack=alpha, log_output=True), expected)


# ---- the same bits elsewhere ----


def record() -> list[Call]:
    """Calls that no sample makes: the log domain, marked problems among others, more steps."""
    calls: list[Call] = []
    for shape, options in (
        ((10, 4, 4), {}),
        ((3, 4, 4), {"eps": 1e-3, "tau": 0.5}),
        ((3, 4, 4), {"eps": 1e-3, "log_output": True, "order": "column_first"}),
        ((3, 4, 4), {"log_output": True, "tau": 2.0}),
        ((2, 8, 8), {"order": "column_first"}),
        ((2, 3, 5), {"log_output": True, "slack": 0.5}),
        ((2, 40, 37), {}),
        ((2, 5, 33), {"eps": 1e-3}),
    ):
        for std in (1.0, 80.0):
            x = (std * draw(*shape)).float().requires_grad_()
            with Recorder() as recorder:
                y = sinkhorn_normalize(x, 6, **options)  # type: ignore[arg-type]
                torch.autograd.grad(torch.where(y.isinf(), 0.0, y).square().sum(), x)
            calls += recorder.calls
    for shape in ((3, 4, 4), (2, 3, 20)):
        x = draw(*shape).exp().to(torch.bfloat16).requires_grad_()
        with Recorder() as recorder:
            y = sinkhorn_normalize(x, 4, log_input=False, rows=torch.tensor(shape[1]))
            torch.autograd.grad(y.float().square().sum(), x)
            y = sinkhorn_normalize(x, 4, log_input=False, log_output=True)
            torch.autograd.grad(y.float().square().sum(), x)
        calls += recorder.calls
    return calls


# ---- arguments ----


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"x": torch.ones(3)}, ValueError, "at least two dimensions"),
        ({"x": torch.ones(3, 3).int()}, TypeError, "dtype float32"),
        ({"n_iter": 0}, ValueError, "`n_iter` to be at least 1"),
        ({"n_iter": 1.5}, TypeError, "`n_iter` to be an int"),
        ({"eps": -1.0}, ValueError, "`eps` to be at least 0"),
        ({"order": "rows"}, ValueError, "row_first, column_first"),
        ({"gradient": "no"}, ValueError, "unroll, implicit"),
        ({"a": torch.ones(4)}, ValueError, "`a` of 3 numbers"),
        ({"b": -torch.ones(4)}, ValueError, "`b` of at least 0, got -1"),
        ({"rows": torch.ones(3)}, TypeError, "bool mask or integer lengths"),
        ({"columns": torch.ones(3).bool()}, ValueError, "mask `columns` of 4 elements"),
        ({"tau": 0.0}, ValueError, "`tau` greater than 0"),
        ({"tau": 0.5, "log_input": False}, ValueError, "no `tau`"),
        ({"slack": "x"}, TypeError, "`slack` to be a number"),
        ({"gradient": "implicit", "slack": 1.0}, ValueError, "neither slack nor eps"),
    ],
)
def test_arguments(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"regkern.sinkhorn_normalize: expected .*{text}"):
        sinkhorn_normalize(**{"x": torch.ones(2, 3, 4), **options})


def test_module() -> None:
    layer = SinkhornNormalize(5, tau=0.5)
    x = draw(2, 4, 4)
    close(layer(x), sinkhorn_normalize(x, 5, tau=0.5))
    assert "n_iter=5" in repr(layer)
    learned = SinkhornNormalize(slack=1.0, learn_slack=True, log_output=True)
    learned(x.float()).exp().square().sum().backward()
    assert learned.slack.grad is not None

"""Optimizers with a proximal operator: fused is unfused, Adam's metric, schedules, state dicts."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from recording import Call, Recorder, equal, replay
from regkern.optim.half_space import half_space_project_
from regkern.optim.proximal import ProxAdamW, ProxSGD
from regkern.optim.report import sparsity_report
from regkern.optim.schedules import CubicRamp, WarmUp
from regkern.optim.wrapper import Proximal
from regkern.proximal.group_penalties import GroupL0, GroupL2, GroupMCP, SparseGroup
from regkern.proximal.groups import Groups
from regkern.proximal.penalties_elementwise import L0, L1, MCP, ElasticNet, LHalf
from regkern.reference.proximal import optim as definition
from sample import normal
from torch import Tensor, nn

ROWS = Groups.kept(0)
#: Rows of one element, of less than a vector, of a few, of more than a warp's and than a tile.
SHAPES = [(5, 3, 3, 3), (7,), (3, 1), (6, 300), (3, 700), (2, 2100), (4, 0)]
OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (ProxSGD, {}),
    (ProxSGD, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (ProxSGD, {"momentum": 0.5, "dampening": 0.2, "maximize": True}),
    (ProxAdamW, {}),
    (ProxAdamW, {"amsgrad": True, "maximize": True, "betas": (0.4, 0.9), "eps": 1e-6}),
]
PENALTIES: dict[str, Any] = {
    "l1": lambda: L1(0.8),
    "nonnegative": lambda: L1(0.8, nonnegative=True),
    "l0": lambda: L0(0.3),
    "elastic net": lambda: ElasticNet(0.8, 0.5),
    "mcp": lambda: MCP(0.8, 2.0),
    "half": lambda: LHalf(0.4),
    "rows": lambda: GroupL2(0.8, ROWS),
    "unweighted rows": lambda: GroupL2(2.0, ROWS, weights="none"),
    "positive rows": lambda: GroupL2(0.8, ROWS, positive=True),
    "sparse rows": lambda: SparseGroup(0.5, 0.4, ROWS),
    "hard rows": lambda: GroupL0(1.0, ROWS),
    "mcp rows": lambda: GroupMCP(0.6, ROWS, 3.0),
    "blocks": lambda: GroupL2(1.3, Groups.blocks(8)),
    "columns": lambda: GroupL2(0.8, Groups.kept(-1)),
}


def parameters(dtype: torch.dtype = torch.float32, shapes: Any = SHAPES) -> list[Tensor]:
    return [normal(shape, dtype, i) for i, shape in enumerate(shapes)]


def set_gradients(step: int, *lists: list[Tensor]) -> None:
    for params in lists:
        for i, p in enumerate(params):
            p.grad = normal(tuple(p.shape), p.dtype, 100 + 10 * step + i)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return equal([x.detach() for x in a], [x.detach() for x in b])


def zeros(params: list[Tensor]) -> int:
    return sum(int((p == 0).sum()) for p in params)


# ---- the step ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_without_a_penalty_as_torch(kind: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    optimizer = kind(ours, lr=0.1, **options)
    rival = getattr(torch.optim, kind.__name__[4:])(theirs, lr=0.1, **options)
    for step in range(4):
        set_gradients(step, ours, theirs)
        optimizer.step()
        rival.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_fused_is_unfused(kind: Any, options: dict[str, Any], penalty: str) -> None:
    """The bits of a step, and then the penalty's own prox."""
    for dtype in (torch.float32, torch.float64):
        fused, apart = parameters(dtype), parameters(dtype)
        r = PENALTIES[penalty]()
        optimizer = kind(fused, lr=0.3, penalty=r, **options)
        alone = kind(apart, lr=0.3, **options)
        for step in range(3):
            set_gradients(step, fused, apart)
            optimizer.step()
            alone.step()
            r.prox_(apart, 0.3)
        assert same(fused, apart)
        assert zeros(fused) > 0


@pytest.mark.parametrize("penalty", ["l1", "rows", "columns"])
def test_strides_and_numbers_on_the_device(penalty: str) -> None:
    """Transposed and channels-last parameters; lr and λ as tensors."""
    plain, other = parameters(shapes=[(6, 4, 3, 3), (9, 5)]), []
    other.append(plain[0].clone(memory_format=torch.channels_last))
    other.append(plain[1].t().contiguous().t())
    r, s = PENALTIES[penalty](), PENALTIES[penalty]()
    s.lam = torch.tensor(s.lam)
    lr = torch.tensor(0.25)
    first, second = ProxAdamW(plain, lr=0.25, penalty=r), ProxAdamW(other, lr=lr, penalty=s)
    for step in range(2):
        set_gradients(step, plain, other)
        first.step()
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    assert not other[1].is_contiguous()


def test_groups_across_tensors() -> None:
    """Filter, γ and β of a channel; nothing is shrunk before all of them are stepped."""
    groups = Groups.union([(0, 0), (1, 0), (2, 0)])
    params, apart = (parameters(shapes=[(6, 3, 3, 3), (6,), (6,), (4, 6)]) for _ in range(2))
    r = GroupL2(1.5, groups)
    optimizer = ProxAdamW([{"params": params[:3], "penalty": r}, {"params": params[3:]}], lr=0.3)
    alone = ProxAdamW(apart, lr=0.3)
    for step in range(3):
        set_gradients(step, params, apart)
        optimizer.step()
        alone.step()
        r.prox_(apart[:3], 0.3)
    assert same(params, apart)
    gone = (params[1] == 0).nonzero().flatten().tolist()
    assert 0 < len(gone) < 6
    assert all(bool((p[gone] == 0).all()) for p in params[:3])


def test_large_and_tiny_groups() -> None:
    """Squares that overflow and underflow in float32; a NaN stays in its group."""
    p = torch.tensor([[3e30, 4e30], [3e-30, 4e-30], [math.nan, 1.0], [1.0, 2.0], [0.0, 0.0]])
    p.grad = torch.zeros_like(p)
    optimizer = ProxSGD([p], lr=1.0, penalty=GroupL2(2.5e-30, ROWS, weights="none"))
    optimizer.step()
    torch.testing.assert_close(p[0], torch.tensor([3e30, 4e30]))
    torch.testing.assert_close(p[1], torch.tensor([1.5e-30, 2e-30]), atol=0.0, rtol=1e-6)
    assert bool(p[2].isnan().all())
    assert p[3].tolist() == [1.0, 2.0]
    assert p[4].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("metric", ["euclidean", "adam"])
@pytest.mark.parametrize("penalty", [L1, lambda lam: GroupL2(lam, ROWS)])
def test_no_threshold_is_the_identity_and_an_infinite_one_zero(penalty: Any, metric: Any) -> None:
    """Zero groups and λ = 0 made others NaN."""
    with_zeros, plain, gone = parameters(), parameters(), parameters()
    for params in (with_zeros, plain, gone):
        params[0].zero_()
    set_gradients(0, with_zeros, plain, gone)
    for params in (with_zeros, plain):
        params[0].grad = torch.zeros_like(params[0])
    ProxAdamW(with_zeros, penalty=penalty(0.0), metric=metric).step()
    ProxAdamW(plain).step()
    assert same(with_zeros, plain)
    assert bool((with_zeros[0] == 0).all())
    ProxAdamW(gone, penalty=penalty(math.inf), metric=metric).step()
    assert all(bool((p == 0).all()) for p in gone)
    # A zero group under a threshold above zero.
    ProxAdamW(with_zeros, penalty=penalty(0.1), metric=metric).step()
    assert bool((with_zeros[0] == 0).all())


# ---- Adam's metric ----


def defined(options: dict[str, Any], steps: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """Iterates before the last prox and denominators, in float64, without prox between."""
    results = []
    for i, p in enumerate(parameters(dtype)):
        z = p.double()
        m, v = torch.zeros_like(z), torch.zeros_like(z)
        most = torch.zeros_like(z) if options.get("amsgrad") else None
        rest = {k: o for k, o in options.items() if k != "amsgrad"}
        d = z
        for t in range(1, steps + 1):
            g = normal(tuple(p.shape), dtype, 100 + 10 * (t - 1) + i).double()
            z, m, v, most, d = definition.adamw_step(z, g, m, v, most, t, **rest)
        results.append([z, d])
    return results


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", ["none", "sqrt"])
def test_groups_in_the_metric_of_adam(weights: Any, dtype: torch.dtype, amsgrad: bool) -> None:
    """Against bisection, with the bias-corrected denominators and the learning rate of the step."""
    options = {"lr": 0.05, "amsgrad": amsgrad, "betas": (0.8, 0.95), "weight_decay": 0.1}
    for lam in (0.02, 3.0, 30.0):
        params = parameters(dtype)
        r = GroupL2(lam, ROWS, weights=weights)
        # The first step has no prox: moments are no longer those of one gradient.
        optimizer = ProxAdamW(params, penalty=r, metric="adam", schedule=lambda t: t - 1, **options)
        expected = defined(options, 2, dtype)
        for step in range(2):
            set_gradients(step, params)
            optimizer.step()
        for p, (z, d) in zip(params, expected, strict=True):
            size = p[0].numel() if p.numel() else 1
            t = 0.05 * lam * (math.sqrt(size) if weights == "sqrt" else 1.0)
            rows = [definition.metric_group_prox(a, b, t) for a, b in zip(z, d, strict=True)]
            tolerance = 2e-5 if dtype == torch.float32 else 1e-9
            torch.testing.assert_close(
                p.double(), torch.stack(rows), rtol=tolerance, atol=tolerance * 0.1
            )


def test_the_metric_prox_minimises() -> None:
    """No neighbour is better, and the gradient of the objective is zero."""
    torch.manual_seed(0)
    p = torch.randn(40, 6, dtype=torch.float64)
    grads = [torch.randn_like(p) * torch.logspace(-3, 3, 6).double() for _ in range(3)]
    plain = p.clone()
    lr = 0.1
    alone = ProxAdamW([plain], lr=lr)
    for g in grads:
        plain.grad = g.clone()
        alone.step()
    v = alone.state[plain]["exp_avg_sq"] / (1 - 0.999**3)
    d = (v.sqrt() + 1e-8) / (3 * lr)  # the threshold of three steps
    lam = float((d * plain).norm(dim=1).median())
    r = GroupL2(lam, ROWS, weights="none")
    optimizer = ProxAdamW([p], lr=lr, penalty=r, metric="adam", prox_every=3)
    for g in grads:
        p.grad = g.clone()
        optimizer.step()
    alive = p.norm(dim=1) > 0
    assert 0 < int(alive.sum()) < 40
    slope = d * (p - plain) + lam * p / p.norm(dim=1, keepdim=True)
    torch.testing.assert_close(slope[alive], torch.zeros_like(p[alive]), atol=1e-6, rtol=0)
    assert bool(((d * plain).norm(dim=1)[~alive] <= lam).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elements_in_the_metric_of_adam(dtype: torch.dtype) -> None:
    params = parameters(dtype)
    options = {"lr": 0.05, "betas": (0.8, 0.95)}
    optimizer = ProxAdamW(params, penalty=L1(3.0), metric="adam", **options)
    set_gradients(0, params)
    optimizer.step()
    for p, (z, d) in zip(params, defined(options, 1, dtype), strict=True):
        expected = definition.metric_soft_threshold(z, d, 0.05 * 3.0)
        torch.testing.assert_close(p.double(), expected, rtol=1e-5, atol=1e-5)
    assert zeros(params) > 0


def test_metric_takes_what_it_can() -> None:
    p = torch.zeros(3, 4)
    for r in (L0(1.0), MCP(1.0), L1(1.0, nonnegative=True), SparseGroup(1.0, 1.0, ROWS)):
        with pytest.raises(ValueError, match="to be L1 or GroupL2 in Adam's metric"):
            ProxAdamW([p], penalty=r, metric="adam")
    p.grad = torch.zeros_like(p)
    optimizer = ProxAdamW([p], penalty=GroupL2(1.0, Groups.kept(1)), metric="adam")
    with pytest.raises(ValueError, match="runs of at most 65536 neighbours"):
        optimizer.step()


# ---- forms and schedules ----


@pytest.mark.parametrize("penalty", ["l1", "rows", "columns"])
@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
def test_the_latent_form_is_regularized_dual_averaging(kind: Any, penalty: str) -> None:
    """The weights are the prox, with the sum of all learning rates, of what was never shrunk."""
    params, latents = parameters(), parameters()
    r = PENALTIES[penalty]()
    optimizer = kind(params, lr=0.1, penalty=r, form="latent")
    alone = kind(latents, lr=0.1)
    for step in range(3):
        set_gradients(step, params, latents)
        lr = 0.1 / (step + 1)
        optimizer.param_groups[0]["lr"] = alone.param_groups[0]["lr"] = lr
        optimizer.step()
        alone.step()
    expected = [p.clone() for p in latents]
    r.prox_(expected, 0.1 / 3 + (0.1 / 2 + (0.1 + 0.0)))
    assert same(params, expected)
    assert same([optimizer.state[p]["latent"] for p in params], latents)


def test_a_prox_every_few_steps_has_their_learning_rates() -> None:
    params, apart = parameters(), parameters()
    r = GroupL2(0.3, ROWS)
    optimizer, alone = ProxSGD(params, 0.1, r, prox_every=3), ProxSGD(apart, 0.1)
    for step in range(7):
        set_gradients(step, params, apart)
        optimizer.step()
        alone.step()
        if step % 3 == 2:
            r.prox_(apart, 0.1 + (0.1 + (0.1 + 0.0)))
        assert same(params, apart)


def test_a_schedule_scales_the_penalty() -> None:
    params, apart = parameters(), parameters()
    r = L1(0.3)
    ramp = CubicRamp(1, 4)
    optimizer, alone = ProxSGD(params, 0.1, r, schedule=ramp), ProxSGD(apart, 0.1)
    for step in range(5):
        set_gradients(step, params, apart)
        optimizer.step()
        alone.step()
        r.prox_(apart, 0.1 * ramp(step + 1))
        assert same(params, apart)


def test_ramps() -> None:
    ramp = CubicRamp(10, 20, initial=0.5, final=2.0)
    assert [ramp(t) for t in (0, 10, 20, 99)] == [0.5, 0.5, 2.0, 2.0]
    assert ramp(15) == 2.0 - 1.5 * 0.5**3
    assert [WarmUp(4)(t) for t in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert WarmUp(3, begin=3)(3) == 1.0
    with pytest.raises(ValueError, match="expected 0 <= `begin` <= `end`, got 3 and 2"):
        WarmUp(2, begin=3)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("penalty", ["l1", "rows", "columns"])
def test_healing_keeps_zeros_and_shrinks_no_more(penalty: str, wrapped: bool) -> None:
    params, apart = parameters(), parameters()
    r = PENALTIES[penalty]()
    if wrapped:
        optimizer: Any = Proximal(torch.optim.SGD(params, 0.3), r, heal_after=2)
    else:
        optimizer = ProxSGD(params, 0.3, r, heal_after=2)
    alone = torch.optim.SGD(apart, 0.3)
    for step in range(4):
        set_gradients(step, params, apart)
        mask = [p == 0 for p in apart]
        optimizer.step()
        alone.step()
        if step < 2:
            r.prox_(apart, 0.3)
        else:
            for p, zero in zip(apart, mask, strict=True):
                p[zero] = 0.0
        for p, q in zip(params, apart, strict=True):
            torch.testing.assert_close(p, q)
            assert torch.equal(p == 0, q == 0)
    assert zeros(params) > 0


# ---- what an optimizer has to do ----


@pytest.mark.parametrize(
    ("kind", "options"), [(ProxSGD, {"momentum": 0.9}), (ProxAdamW, {"amsgrad": True})]
)
def test_state_dicts_of_torch(kind: Any, options: dict[str, Any]) -> None:
    """Ours load into torch's optimizer and its into ours."""
    rival = getattr(torch.optim, kind.__name__[4:])
    for first, second in ((kind, rival), (rival, kind), (kind, kind)):
        a, b = parameters(), parameters()
        optimizer = first(a, lr=0.1, **options)
        set_gradients(0, a)
        optimizer.step()
        for p, q in zip(a, b, strict=True):
            q.copy_(p)
        other = second(b, lr=0.5, **options)
        other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
        assert other.param_groups[0]["lr"] == 0.1
        set_gradients(1, a, b)
        optimizer.step()
        other.step()
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["plain", "latent"])
def test_a_loaded_optimizer_goes_on(form: Any, tmp_path: Path) -> None:
    """Counters and latent copies are state; the penalty is the new optimizer's."""
    every = 2 if form == "plain" else 1
    options = {"lr": 0.1, "form": form, "prox_every": every}
    a, b = parameters(), parameters()
    optimizer = ProxAdamW(a, penalty=L1(0.4), schedule=WarmUp(5), **options)
    other = ProxAdamW(b, penalty=L1(0.4), schedule=WarmUp(5), **options)
    for step in range(3):
        set_gradients(step, a)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for p, q in zip(a, b, strict=True):
        q.copy_(p)
    for step in range(3, 6):
        set_gradients(step, a, b)
        optimizer.step()
        other.step()
    assert same(a, b)
    assert zeros(a) > 0
    twin = copy.deepcopy(optimizer)
    assert isinstance(twin.param_groups[0]["penalty"], L1)


def test_param_groups_and_schedulers() -> None:
    """Penalties by group; a learning rate that changes is the threshold's, too."""
    a, b = parameters(), parameters()
    optimizer = ProxSGD([{"params": a[:3], "penalty": L1(0.5)}, {"params": a[3:]}], lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for step in range(3):
        set_gradients(step, a, b)
        optimizer.step()
        scheduler.step()
        for p in b:
            p.sub_(p.grad, alpha=0.4 * 0.5**step)
        L1(0.5).prox_(b[:3], 0.4 * 0.5**step)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert zeros(a[:3]) > 0
    assert zeros(a[3:]) == 0


def test_closures_missing_gradients_and_empty_groups() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = ProxSGD([p, q], lr=0.5, penalty=L1(1.0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure)) == 3.0
    assert p.tolist() == [0.0, 0.0, 0.0]
    assert q.tolist() == [1.0, 1.0, 1.0]  # no gradient, no step, no prox
    empty = ProxAdamW([{"params": []}], penalty=L1(1.0))
    empty.step()
    p.grad = torch.eye(3)[0].to_sparse()
    with pytest.raises(ValueError, match="expected `grad` to be dense"):
        optimizer.step()


@pytest.mark.parametrize("kind", [ProxSGD, ProxAdamW])
def test_errors(kind: Any) -> None:
    p = [torch.zeros(3)]
    with pytest.raises(TypeError, match="expected `penalty` to be a Penalty or None"):
        kind(p, penalty=0.1)
    with pytest.raises(ValueError, match="expected `lr` to be at least 0, got -1"):
        kind(p, lr=-1)
    with pytest.raises(ValueError, match="expected `prox_every` to be at least 1, got 0"):
        kind(p, prox_every=0)
    with pytest.raises(TypeError, match=r"expected `heal_after` to be an int, got 1\.5"):
        kind(p, heal_after=1.5)
    with pytest.raises(ValueError, match="expected `form` to be plain or latent"):
        kind(p, form="dual")
    with pytest.raises(ValueError, match="plain with `prox_every` or `heal_after`"):
        kind(p, form="latent", prox_every=2)
    with pytest.raises(TypeError, match=r"of dtype float32 or float64, got torch\.bfloat16"):
        kind([torch.zeros(3, dtype=torch.bfloat16)])
    with pytest.raises(TypeError, match="expected `schedule` to be a function"):
        kind(p, schedule=3)


def test_errors_of_raw_calls() -> None:
    x, one = torch.zeros(4), torch.ones(())
    call = torch.ops.regkern.prox_sgd_
    with pytest.raises(RuntimeError, match=r"expected `grads\[0\]` of shape \(4\), got \(3\)"):
        call([x], [torch.zeros(3)], [], [], 0.1, 0.0, 0.0, 0.0)
    with pytest.raises(RuntimeError, match=r"`runs\[0\]` in \[1, 65536\], a divisor"):
        call([x], [x], [], [], 0.1, 0.0, 0.0, 0.0, after="groups", runs=[3], weights=[1.0],
             step=one, lam=one)  # fmt: skip
    with pytest.raises(RuntimeError, match="`step` and `lam` with a penalty, got none"):
        call([x], [x], [], [], 0.1, 0.0, 0.0, 0.0, after="elements", runs=[1], weights=[1.0])
    with pytest.raises(RuntimeError, match="`law` to be one of soft, hard"):
        call([x], [x], [], [], 0.1, 0.0, 0.0, 0.0, law="power")
    with pytest.raises(RuntimeError, match="`after` other than metric"):
        call([x], [x], [], [], 0.1, 0.0, 0.0, 0.0, after="metric", runs=[1], weights=[1.0],
             step=one, lam=one)  # fmt: skip
    with pytest.raises(RuntimeError, match="`eps` in \\[0, 1\\), got 1"):
        torch.ops.regkern.half_space_project_([x], [x], [1], 1.0)


def test_training_a_sparse_regression() -> None:
    """Lasso by ISTA: the zeros are those of the coordinates that matter not."""
    torch.manual_seed(0)
    x = torch.randn(200, 20, dtype=torch.float64)
    truth = torch.zeros(20, dtype=torch.float64)
    truth[[1, 7, 12]] = torch.tensor([2.0, -3.0, 1.0]).double()
    w = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    for optimizer in (
        ProxSGD([w], lr=0.5, penalty=L1(0.1)),
        ProxAdamW([w], lr=0.05, weight_decay=0.0, penalty=L1(0.1), metric="adam"),
    ):
        with torch.no_grad():
            w.zero_()
        for _ in range(300):
            optimizer.zero_grad()
            (0.5 * (x @ (w - truth)).square().mean()).backward()
            optimizer.step()
        assert w.nonzero().flatten().tolist() == [1, 7, 12]
        # The conditions of optimality.
        slope = x.T @ (x @ (w - truth)).detach() / 200
        torch.testing.assert_close(
            slope[[1, 7, 12]], -0.1 * w.detach().sign()[[1, 7, 12]], atol=2e-3, rtol=0
        )


# ---- the wrapper ----


@pytest.mark.parametrize("penalty", ["l1", "columns"])
def test_any_optimizer_with_a_penalty(penalty: str) -> None:
    a, b = parameters(), parameters()
    r = PENALTIES[penalty]()
    optimizer = Proximal(torch.optim.RMSprop(a, lr=0.1), r)
    alone = torch.optim.RMSprop(b, lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for step in range(3):
        set_gradients(step, a, b)
        lr = optimizer.param_groups[0]["lr"]
        alone.param_groups[0]["lr"] = lr
        optimizer.step()
        alone.step()
        r.prox_(b, lr)
        scheduler.step()
    assert same(a, b)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0125)
    assert isinstance(optimizer, torch.optim.Optimizer)


def test_the_wrapper_is_the_optimizer_for_others() -> None:
    a, b = [nn.Parameter(p) for p in parameters()], parameters()
    optimizer = Proximal(torch.optim.SGD(a[:2], lr=0.1, momentum=0.9), L1(0.5), prox_every=2)
    optimizer.add_param_group({"params": a[2:], "penalty": None})
    assert len(optimizer.optimizer.param_groups) == 2

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((p.sum() for p in a), torch.zeros(()))
        loss.backward()
        return loss

    assert torch.is_tensor(optimizer.step(closure))
    state = optimizer.state_dict()
    assert "penalty" not in state["param_groups"][0]
    other = Proximal(torch.optim.SGD(b[:2], lr=0.3, momentum=0.9), L1(0.5), prox_every=2)
    other.add_param_group({"params": b[2:], "penalty": None})
    for p, q in zip(a, b, strict=True):
        q.copy_(p.detach())
    other.load_state_dict(copy.deepcopy(state))  # torch would share the momentum
    optimizer.step()
    for p, q in zip(a, b, strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    other.step()
    assert same(a, b)
    assert zeros([p.detach() for p in a[:2]]) > 0
    assert other.param_groups[0]["prox_step"] == 2
    # Its own state dict, or that of the optimizer inside.
    other.load_state_dict(optimizer.optimizer.state_dict())
    twin = copy.deepcopy(optimizer)
    assert twin.param_groups is twin.optimizer.param_groups
    assert twin.param_groups[0]["prox_every"] == 2


def test_errors_of_the_wrapper() -> None:
    with pytest.raises(TypeError, match=r"expected `optimizer` to be a torch\.optim\.Optimizer"):
        Proximal(L1(1.0), L1(1.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected `penalty` to be a Penalty"):
        Proximal(torch.optim.SGD(parameters(), 0.1), 0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected `optimizer` to be one without a penalty"):
        Proximal(ProxSGD(parameters(), 0.1), L1(1.0))


# ---- half-spaces and reports ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_half_space_projection(dtype: torch.dtype) -> None:
    shapes = [(64, 3, 3, 3), (50,), (9, 3000), (3, 70000), (4, 0)]
    old = [normal(s, dtype, i) for i, s in enumerate(shapes)]
    new = [(x.double() + 2.0 * normal(x.shape, dtype, 9).double()).to(dtype) for x in old]
    old[0][3] = 0.0
    new[0][4] = math.nan
    expected = [
        definition.half_space_project(x, y, 0.9) for x, y in zip(new[:4], old, strict=False)
    ]
    half_space_project_(new, old, eps=0.9)
    for a, b in zip(new, expected, strict=False):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert bool((new[0][3] == 0).all())
    assert bool(new[0][4].isnan().all())
    assert 0 < zeros(new[1:2]) < 50


def test_half_space_projection_of_columns() -> None:
    old, new = normal((5, 7, 3), torch.float32, 1), normal((5, 7, 3), torch.float32, 2)
    twin = new.transpose(0, 1).contiguous()
    expected = definition.half_space_project(twin, old.transpose(0, 1), 0.0)
    half_space_project_(new, old, Groups.kept(1))
    assert torch.equal(new, expected.transpose(0, 1))
    with pytest.raises(ValueError, match="expected `eps` in"):
        half_space_project_(new, old, eps=1.5)
    with pytest.raises(ValueError, match="slices of a tensor"):
        half_space_project_(new, old, Groups.blocks(4))
    with pytest.raises(ValueError, match=r"expected `old\[0\]` like"):
        half_space_project_(new, twin)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.float64, {"momentum": 0.9, "maximize": True, "schedule": CubicRamp(0, 5)}),
    ],
)
def test_half_space_steps(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """A prox first; then the step with the penalty's gradient, and the projection, by hand."""
    plain = {k: v for k, v in options.items() if k != "schedule"}
    first, mine, hand = parameters(dtype), parameters(dtype), parameters(dtype)
    penalty = GroupL2(0.6, ROWS)
    optimizer = ProxSGD(
        mine, lr=0.3, penalty=penalty, half_space=0.2, half_space_after=2, **options
    )
    prox = ProxSGD(first, lr=0.3, penalty=penalty, **options)
    by_hand = ProxSGD(hand, lr=0.3, **plain)
    for step in range(2):
        set_gradients(step, mine, first)
        optimizer.step()
        prox.step()
        assert same(mine, first)
    if "momentum" in options:
        for p, q in zip(hand, first, strict=True):
            by_hand.state[p]["momentum_buffer"] = prox.state[q]["momentum_buffer"].clone()
    for p, q in zip(hand, first, strict=True):
        p.copy_(q.detach())
    gone = zeros(first)
    for step in range(2, 5):
        set_gradients(step, mine, hand)
        factor = options["schedule"](step + 1) if "schedule" in options else 1.0
        old = [p.clone().requires_grad_() for p in hand]
        slopes = torch.autograd.grad(penalty.value(old), old)
        for p, slope in zip(hand, slopes, strict=True):
            p.grad = torch.add(p.grad, slope, alpha=-factor if "maximize" in options else factor)
        optimizer.step()
        by_hand.step()
        half_space_project_(hand, [x.detach() for x in old], ROWS, 0.2)
        assert same(mine, hand)
    assert zeros(mine) > gone


def test_half_space_steps_say_what_is_wrong() -> None:
    for options, error, message in (
        ({"half_space": 1.0}, ValueError, r"`half_space` in \[0, 1\), got 1.0"),
        ({"half_space": "0"}, TypeError, "`half_space` to be a number, got '0'"),
        ({"half_space_after": 0.5}, TypeError, "`half_space_after` to be an int, got 0.5"),
        ({"half_space_after": -1}, ValueError, "`half_space_after` to be at least 0, got -1"),
        ({"penalty": L1(1.0)}, TypeError, "`penalty` to be one of groups for half-space steps"),
        ({"prox_every": 2}, ValueError, "`form` plain and `prox_every` 1 for half-space steps"),
    ):
        with pytest.raises(error, match=f"ProxSGD: expected {message}"):
            ProxSGD(parameters(), **{"penalty": GroupL2(1.0, ROWS), "half_space": 0.0, **options})


def test_sparsity_report() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Conv2d(3, 6, 3))
    with torch.no_grad():
        model[0].weight[[1, 2]] = 0.0
        model[0].weight[:, 3] = 0.0
        model[2].weight[:, 1] = -0.0
        model[2].weight[5] = 0.0
        model[2].weight[4, 0, 0, 0] = math.nan
    report = sparsity_report(model)
    first, norm, conv = report.tensors[0], report.tensors[3], report.tensors[4]
    assert (first.zeros, first.zero_rows, first.zero_columns) == (12, 2, 1)
    assert (norm.name, norm.zeros, norm.zero_rows) == ("1.bias", 4, 4)
    assert (conv.zeros, conv.zero_rows, conv.zero_columns) == (6 * 9 + 27 - 9, 1, 1)
    assert report.numel == sum(p.numel() for p in model.parameters())
    assert (report.rows, report.zero_rows) == (10, 3)
    text = str(report)
    assert "2.weight" in text
    assert "1/6" in text
    assert len(text.splitlines()) == len(report.tensors) + 2


def test_sparsity_report_of_tensors() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(s) for s in [(), (0, 3), (70, 999), (2, 50000), (33, 7, 5, 5)]]
    tensors += [t.to(d) for t in tensors for d in (torch.float64, torch.bfloat16, torch.float16)]
    tensors = [t * (torch.rand(t.shape) > 0.5).to(t.dtype) for t in tensors]
    tensors[2][:, 5] = 0.0
    tensors.append(tensors[2].t())
    for got, t in zip(sparsity_report(tensors).tensors, tensors, strict=True):
        zero = t == 0
        rows = zero.all(tuple(range(1, t.dim()))) if t.dim() > 1 else zero
        columns = zero.transpose(0, 1).flatten(1).all(1) if t.dim() > 1 else zero.all()
        expected = (int(zero.sum()), int(rows.sum()), int(columns.sum()))
        assert (got.zeros, got.zero_rows, got.zero_columns) == expected
    with pytest.raises(TypeError, match="expected a module or tensors"):
        sparsity_report(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"floating-point tensors, got torch\.int64 at 0"):
        sparsity_report([torch.zeros(3, dtype=torch.int64)])


# ---- the same bits elsewhere: see test_contract ----


def record() -> list[Call]:
    calls: list[Call] = []
    for dtype in (torch.float32, torch.float64):
        for i, (kind, options) in enumerate(OPTIMIZERS):
            names = list(PENALTIES)[i :: len(OPTIMIZERS)] if i else list(PENALTIES)
            for name in names:
                params = parameters(dtype)
                params[3][2, 5] = math.nan
                params[4][1] *= 1e25 if dtype == torch.float32 else 1.0
                extra = {"form": "latent"} if i % 2 else {"heal_after": 1}
                optimizer = kind(params, lr=0.3, penalty=PENALTIES[name](), **options, **extra)
                for step in range(2):
                    set_gradients(step, params)
                    with Recorder() as recorder:
                        optimizer.step()
                    calls += [c for c in recorder.calls if c[0] in ("prox_sgd_", "prox_adamw_")]
        for r in (L1(2.0), GroupL2(2.0, ROWS)):
            params = parameters(dtype)
            optimizer = ProxAdamW(params, penalty=r, metric="adam", amsgrad=True, lr=0.1)
            for step in range(2):
                set_gradients(step, params)
                with Recorder() as recorder:
                    optimizer.step()
                calls += recorder.calls
    with Recorder() as recorder:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            half_space_project_(parameters(dtype), [-p for p in parameters(dtype)], eps=0.1)
            old = [p * normal(tuple(p.shape), dtype, 50) for p in parameters(dtype)]
            half_space_project_(parameters(dtype), old, eps=0.1)
            sparsity_report([p.clamp(min=0) for p in parameters(dtype)] + [torch.zeros(3, 5)])
        # More than one piece of work for a thread.
        for r in (L1(0.3), GroupL2(0.3, ROWS)):
            params = parameters(shapes=[(64, 3000), (30, 1200), (50000,), (3, 40000)])
            set_gradients(0, params)
            old = [p.clone() for p in params]
            ProxAdamW(params, penalty=r, lr=0.3).step()
            half_space_project_(params, old, eps=0.999)
            sparsity_report(params)
    return calls + recorder.calls


def test_record_has_what_is_written() -> None:
    calls = record()
    assert {call[0] for call in calls} == {
        "prox_sgd_", "prox_adamw_", "half_space_project_", "zero_counts",
    }  # fmt: skip
    for (name, args, _), (_, mutated) in zip(calls, replay(calls, "regkern"), strict=True):
        assert name == "zero_counts" or not equal(mutated[0], args[0])

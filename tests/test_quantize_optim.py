"""Stochastic copies of lists of tensors, and optimizers on stochastically rounded weights."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import regkern
import torch
from recording import Call, Recorder, equal, replay
from regkern.optim import SGD, AdamW
from regkern.quantize.lists import copy_stochastic_
from regkern.reference.quantize import optim as definition
from sample import normal, seed
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)
SOURCES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def every_kind(dtype: torch.dtype, count: int = 5000) -> Tensor:
    """Any bits: normal and subnormal numbers, infinities, NaN; then what lies around float16."""
    generator = torch.Generator().manual_seed(5)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    low, high = torch.iinfo(integer).min, torch.iinfo(integer).max
    bits = torch.randint(low, high, (count,), dtype=integer, generator=generator).view(dtype)
    exponents = torch.randint(-28, 18, (count,), generator=generator).double().exp2()
    numbers = torch.randn(count, dtype=torch.float64, generator=generator) * exponents
    largest = [torch.finfo(d).max for d in NARROW]
    corners = [0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, 65519.0, 65504.5, 6e-8, 2e-8, 1e-45]
    corners += [s * v * f for v in largest for s in (1, -1) for f in (1.0, 1.001, 0.9999)]
    tail = torch.tensor(corners, dtype=torch.float64)
    return torch.cat([bits, numbers.to(dtype), tail.to(dtype)])


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    equal_bits = a.contiguous().view(integer) == b.contiguous().view(integer)
    return bool((equal_bits | (a.isnan() & b.isnan())).all())


def copied(
    src: list[Tensor], dtype: torch.dtype | list[torch.dtype], key: Tensor | None = None
) -> list[Tensor]:
    dtypes = dtype if isinstance(dtype, list) else [dtype] * len(src)
    dst = [torch.full(x.shape, 9.0, dtype=d) for x, d in zip(src, dtypes, strict=True)]
    copy_stochastic_(dst, src, seed=seed() if key is None else key)
    return dst


# ---- copy_stochastic_ ----


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("source", SOURCES)
def test_copy_matches_definition(source: torch.dtype, dtype: torch.dtype) -> None:
    src = [normal((3, 5), source, 1), every_kind(source), normal((2, 0, 4), source, 2)]
    src += [normal((), source, 3), normal((128,), source, 4), normal((1, 129), source, 5)]
    expected = definition.copy_stochastic(src, [dtype] * len(src), seed())
    for a, b in zip(copied(src, dtype), expected, strict=True):
        assert same_bits(a, b)


def test_copy_of_mixed_dtypes() -> None:
    dtypes = [(s, d) for s in SOURCES for d in (*NARROW, s)]
    src = [normal((7, 9), s, i) for i, (s, _) in enumerate(dtypes)]
    wanted = [d for _, d in dtypes]
    expected = definition.copy_stochastic(src, wanted, seed())
    for a, b in zip(copied(src, wanted), expected, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("dtype", NARROW)
def test_copy_keeps_what_the_format_holds(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    (y,) = copied([every.float()], dtype)
    assert same_bits(y, every)


@pytest.mark.parametrize("dtype", NARROW)
def test_copy_moves_to_a_neighbour_and_never_to_infinity(dtype: torch.dtype) -> None:
    x = every_kind(torch.float32)
    (y,) = copied([x], dtype)
    finite = x.isfinite()
    assert bool(y[finite].isfinite().all())
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.isinf(), x.isinf())
    assert torch.equal(y.signbit()[~x.isnan()], x.signbit()[~x.isnan()])
    # Rounding again is exact, so between the neighbours there is nothing.
    within = finite & (x.abs() <= torch.finfo(dtype).max)
    assert bool(((y[within].float() - x[within]).abs() < spacing(x[within], dtype)).all())


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    form = definition.FORMATS[dtype]
    _, exponent = torch.frexp(x.double())
    return (exponent - 1).clamp(min=form.lowest).double().sub(form.mantissa).exp2()


@pytest.mark.parametrize("fraction", [2.0**-16, 0.1, 0.5, 1 - 2.0**-16])
def test_copy_has_the_right_mean(fraction: float) -> None:
    count = 1 << 20
    steps = round(fraction * 2**16)
    x = torch.full((count,), 1.0 + steps * 2.0**-23)
    (y,) = copied([x], torch.bfloat16)
    ups = int((y > 1).sum())
    assert ups == int((definition.random_bits(seed(), 0, count) < steps).sum())
    p = steps / 2**16
    assert abs(ups - count * p) < 5 * math.sqrt(count * p * (1 - p))


def test_tensors_of_a_list_share_no_random_bits() -> None:
    x = torch.full((1000,), 1.0 + 2.0**-8)  # half way
    a, b = copied([x, x], torch.bfloat16)
    agreeing = int((a == b).sum())
    assert abs(agreeing - 500) < 5 * math.sqrt(250)
    # The second begins at the next multiple of 128.
    (joined,) = copied([torch.cat([x, x[:24], x])], torch.bfloat16)
    assert torch.equal(joined[:1000], a)
    assert torch.equal(joined[1024:], b)
    later = torch.empty_like(b)
    torch.ops.regkern.copy_stochastic_([later], [x], seed(), 1024)
    assert torch.equal(later, b)
    # Across 2³² counters.
    first = 2**35 - 512
    torch.ops.regkern.copy_stochastic_([later], [x], seed(), first)
    (expected,) = definition.copy_stochastic([x], [torch.bfloat16], seed(), first)
    assert torch.equal(later, expected)


def test_copy_does_not_depend_on_layout() -> None:
    x = normal((4, 3, 5, 7), torch.float32, 1)
    (expected,) = copied([x], torch.bfloat16)
    sources = [
        x.contiguous(memory_format=torch.channels_last),
        x.new_empty((*x.shape, 2)).select(-1, 1).copy_(x),
        torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x),
        x.movedim(0, -1).contiguous().movedim(-1, 0),
    ]
    for source in sources:
        narrow = source.bfloat16()  # the source's strides
        for target in (narrow, torch.zeros_like(expected)):
            strides = target.stride()
            copy_stochastic_([target], [source], seed=seed())
            assert torch.equal(target, expected)
            assert target.stride() == strides
    odd = torch.zeros(x.numel() + 1, dtype=torch.bfloat16)[1:].view(x.shape)
    copy_stochastic_([odd], [x], seed=seed())
    assert torch.equal(odd, expected)


def test_copy_of_nothing() -> None:
    copy_stochastic_([], [])
    copy_stochastic_(torch.empty(0, 3, dtype=torch.bfloat16), torch.empty(0, 3))


def test_copy_draws_from_the_generator() -> None:
    x, y, z = torch.randn(1000), *torch.zeros(2, 1000, dtype=torch.bfloat16)
    torch.manual_seed(3)
    copy_stochastic_(y, x)
    copy_stochastic_(z, x, generator=torch.Generator().manual_seed(3))
    assert torch.equal(y, z)
    copy_stochastic_(z, x)
    assert not torch.equal(y, z)


def test_copy_says_what_is_wrong() -> None:
    x, y = torch.randn(3), torch.zeros(3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"as many `src` as `dst`, 2, got 1"):
        copy_stochastic_([y, y], [x])
    with pytest.raises(ValueError, match=r"`src\[0\]` of shape \(3,\), got \(2,\)"):
        copy_stochastic_([y], [x[:2]])
    with pytest.raises(TypeError, match=r"`dst\[0\]` of dtype bfloat16, float16 or torch.float32"):
        copy_stochastic_([y.double()], [x])
    with pytest.raises(TypeError, match=r"`src\[1\]` of dtype float32.*got torch.int64"):
        copy_stochastic_([y, y], [x, x.long()])
    with pytest.raises(TypeError, match=r"`dst` to be a list of tensors"):
        copy_stochastic_(3, [x])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`seed` to be an int64 tensor"):
        copy_stochastic_(y, x, seed=torch.zeros(3))
    raw = torch.ops.regkern.copy_stochastic_
    with pytest.raises(RuntimeError, match=r"copy_stochastic_: expected `src\[1\]` of shape \(3\)"):
        raw([y, y], [x, x[:2]], seed())
    with pytest.raises(RuntimeError, match="expected `src` of as many tensors as `dst`, 2, got 1"):
        raw([y, y], [x], seed())
    with pytest.raises(RuntimeError, match=r"expected `dst\[0\]` of dtype bfloat16, float16"):
        raw([x], [x.double()], seed())
    with pytest.raises(RuntimeError, match="`first` to be a multiple of 128"):
        raw([y], [x], seed(), 5)


def test_lists_in_place_bump_versions_and_refuse_gradients() -> None:
    x = torch.randn(2, 5)
    weights = [torch.nn.Parameter(torch.zeros(5, dtype=torch.bfloat16)) for _ in range(2)]
    versions = [w._version for w in weights]
    copy_stochastic_(weights, list(x), seed=seed())
    assert all(w._version > v for w, v in zip(weights, versions, strict=True))
    saved = weights[1].float() * weights[1].float()
    product = (weights[1] * weights[0]).sum() + saved.sum()
    copy_stochastic_(weights, list(x), seed=seed())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with pytest.raises(RuntimeError, match="expected no input to require gradients"):
        torch.ops.regkern.copy_stochastic_(weights, list(x), seed())


def test_copy_compiles() -> None:
    def f(x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        a, b = torch.zeros_like(x, dtype=torch.bfloat16), torch.zeros_like(y, dtype=torch.float16)
        copy_stochastic_([a, b], [x, y], seed=key)
        return a.float() + b.float()

    torch._dynamo.reset()
    x, y = torch.randn(2, 40, 5)
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x, y, seed()), f(x, y, seed()))


# ---- optimizers against their definitions and against torch ----

SHAPES = ((3,), (17, 9), (0, 4), (130,), (2, 3, 4, 5), ())


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(normal(s, dtype, i)) for i, s in enumerate(SHAPES)]


def train(
    optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], steps: int = 10
) -> list[Tensor]:
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = normal(tuple(p.shape), p.dtype, 100 + 10 * step + i)
        optimizer.step()
    return [p.detach() for p in params]


ADAMW = [
    {},
    {"lr": 0.1, "betas": (0.0, 0.5), "eps": 1e-3},
    {"lr": 0.1, "betas": (0.4, 0.99), "amsgrad": True, "maximize": True, "weight_decay": 0.3},
    {"lr": torch.tensor(0.05), "weight_decay": 0.0},
]
MOMENTUM = [
    {},
    {"lr": 0.1, "weight_decay": 0.2, "maximize": True},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    {"lr": torch.tensor(0.05), "momentum": 0.9, "dampening": 0.3, "maximize": True},
]
EVERY = [(AdamW, o) for o in ADAMW] + [(SGD, o) for o in MOMENTUM]


@pytest.mark.parametrize(("kind", "options"), EVERY)
def test_float32_steps_agree_with_torch(kind: Any, options: dict[str, Any]) -> None:
    ours, theirs = parameters(), parameters()
    train(kind(ours, **options), ours)
    train(getattr(torch.optim, kind.__name__)(theirs, **options), theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def definitions(kind: Any, options: dict[str, Any], params: list[Tensor], steps: int) -> Any:
    """The parameters and their states after every step, by the definition."""
    group = kind([torch.zeros(1)], **options).param_groups[0]
    dtype = group["state_dtype"]
    common = {"lr": float(group["lr"]), "maximize": group["maximize"]}
    numbers = definition.numbered(params)
    if kind is AdamW:
        count = 3 if group["amsgrad"] else 2
        common |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
        common |= {k: group[k] for k in ("eps", "weight_decay")}
    else:
        count = int(group["momentum"] != 0)
        common |= {k: group[k] for k in ("momentum", "dampening", "weight_decay", "nesterov")}
    states = [[torch.zeros(p.shape, dtype=dtype) for _ in range(count)] for p in params]
    params = [p.clone() for p in params]
    for step in range(steps):
        key = yield params, states
        for i, p in enumerate(params):
            g = normal(tuple(p.shape), p.dtype, 100 + 10 * step + i)
            if kind is AdamW:
                given = [*states[i], None][:3]
                out = definition.adamw_step(
                    p, g, *given, step + 1, key, **common, number=numbers[i]
                )
            else:
                given = states[i][0] if count else None
                out = definition.sgd_step(
                    p, g, given, key, **common, fresh=step == 0, number=numbers[i]
                )
            params[i], states[i] = out[0], list(out[1:])
    yield params, states


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
@pytest.mark.parametrize(("kind", "options"), EVERY)
def test_step_matches_definition(
    kind: Any, options: dict[str, Any], dtype: torch.dtype, state_dtype: torch.dtype
) -> None:
    """Two steps. float32 against float64 may fall to the other side of a random threshold."""
    options = options | {"state_dtype": state_dtype}
    params = parameters(dtype)
    expected = definitions(kind, options, [p.detach() for p in params], 2)
    next(expected)
    optimizer = kind(params, **options, generator=torch.Generator().manual_seed(1))
    keys = torch.Generator().manual_seed(1)
    for step in range(2):
        for i, p in enumerate(params):
            p.grad = normal(tuple(p.shape), p.dtype, 100 + 10 * step + i)
        optimizer.step()
        theirs, states = expected.send(regkern.make_seed(generator=keys))
        for i, p in enumerate(params):
            ours = [p.detach()]
            for name in kind._states[: len(states[i])]:
                ours.append(optimizer.state[p][name])
            for a, b in zip(ours, [theirs[i], *states[i]], strict=True):
                assert a.dtype == b.dtype
                if a.dtype == torch.float32:
                    torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6)
                    continue
                differs = (a != b).flatten()
                assert int(differs.sum()) <= max(1, a.numel() // 50)
                gap = (a.double() - b.double()).abs()
                assert bool((gap <= 1.01 * spacing(a, a.dtype)).all())
                # Go on from the same place.
                b.copy_(a)


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_float32_gradients_of_bfloat16_weights(kind: Any) -> None:
    p, g = normal((7, 9), torch.bfloat16, 1), normal((7, 9), torch.bfloat16, 2)
    results = []
    for grad in (g, g.float()):
        q = p.clone()
        zeros = [torch.zeros(p.shape) for _ in range(2)]
        if kind is AdamW:
            torch.ops.regkern.adamw_stochastic_(
                [q], [grad], zeros[:1], zeros[1:], [], [torch.zeros(())], seed(),
                0.1, 0.9, 0.99, 1e-8, 0.1,
            )  # fmt: skip
        else:
            torch.ops.regkern.sgd_stochastic_([q], [grad], zeros[:1], seed(), 0.1, 0.9, 0.0, 0.1)
        results.append((q, *zeros))
    assert equal(*results)
    assert not torch.equal(results[0][0], p)


def test_nan_stays_and_infinite_weights_have_no_decay_of_nothing() -> None:
    p = torch.tensor([1.0, math.nan, math.inf, 1.0, -1.0], dtype=torch.bfloat16)
    p.grad = torch.tensor([math.nan, 1.0, 1.0, math.inf, 0.0], dtype=torch.bfloat16)
    SGD([p], lr=0.5).step()
    assert p.isnan().tolist() == [True, True, False, False, False]
    assert p[2:].tolist() == [math.inf, -math.inf, -1.0]
    p = torch.tensor([1.0, 1.0], dtype=torch.bfloat16)
    p.grad = torch.tensor([math.nan, 0.0], dtype=torch.bfloat16)
    AdamW([p], eps=0.0, weight_decay=0.0).step()
    # As torch: without ε, the step of a gradient of zero is 0/0.
    assert bool(p.isnan().all())


# ---- what stochastic rounding is for ----


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_updates_below_half_an_ulp_are_not_lost(kind: Any) -> None:
    """A constant gradient moves w by 0.1 of an ulp of bfloat16 a step."""
    count, steps, lr = 4096, 40, 0.1 * 2.0**-7
    options = {"weight_decay": 0.0} if kind is AdamW else {}
    plain = torch.ones(count, dtype=torch.bfloat16)
    ours = torch.ones(count, dtype=torch.bfloat16)
    theirs = getattr(torch.optim, kind.__name__)([plain], lr=lr, **options)
    optimizer = kind([ours], lr=lr, generator=torch.Generator().manual_seed(2), **options)
    plain.grad = torch.full_like(plain, -1.0)
    ours.grad = torch.full_like(ours, -1.0)
    for _ in range(steps):
        theirs.step()
        optimizer.step()
    assert bool((plain == 1).all())
    ulps = (ours.float() - 1) * 2.0**7
    # A sum of `steps` independent moves of one ulp with probability 0.1.
    deviation = math.sqrt(steps * 0.1 * 0.9 / count)
    assert abs(float(ulps.mean()) - 0.1 * steps) < 5 * deviation
    assert float(ulps.var()) == pytest.approx(steps * 0.1 * 0.9, rel=0.15)


def test_a_quadratic_is_minimised_only_with_stochastic_rounding() -> None:
    """½ (w − 1.5)² from 1, with steps that start at 0.064 ulp: to nearest nothing ever moves."""
    results = {}
    for kind in (torch.optim.SGD, SGD):
        torch.manual_seed(0)
        w = torch.nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
        optimizer = kind([w], lr=0.001)
        for _ in range(3000):
            optimizer.zero_grad()
            (0.5 * (w - 1.5) ** 2).sum().backward()
            optimizer.step()
        results[kind] = w.detach().float()
    assert bool((results[torch.optim.SGD] == 1).all())
    exact = 1.5 - 0.5 * 0.999**3000
    assert float(results[SGD].mean()) == pytest.approx(exact, abs=0.01)


def test_a_bfloat16_second_moment_does_not_stall() -> None:
    """v ← 0.999 v + 0.001 g² moves by less than half an ulp of v once v is above 0.4 g²."""
    p = torch.zeros(4096)
    optimizer = AdamW([p], state_dtype=torch.bfloat16, generator=torch.Generator().manual_seed(4))
    p.grad = torch.ones_like(p)
    nearest = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(1500):
        optimizer.step()
        nearest = (0.999 * nearest.float() + 0.001).bfloat16()
    v = optimizer.state[p]["exp_avg_sq"]
    assert v.dtype == torch.bfloat16
    exact = 1 - 0.999**1500
    assert float(v.float().mean()) == pytest.approx(exact, abs=0.003)
    assert float(nearest) < 0.6 * exact


def test_weights_and_states_are_rounded_independently() -> None:
    count = 1 << 14
    p = torch.ones(count, dtype=torch.bfloat16)
    p.grad = torch.full_like(p, 2.0**-7 + 2.0**-14)
    # Neither the momentum ½ b + g nor the weight 1 − lr b is a bfloat16.
    optimizer = SGD([p], 0.25, 0.5, state_dtype=torch.bfloat16)
    torch.manual_seed(9)
    optimizer.state[p]["momentum_buffer"] = torch.full_like(p, 2.0**-8 + 2.0**-15)
    optimizer.step()
    b = optimizer.state[p]["momentum_buffer"].float()
    assert len(b.unique()) == 2
    assert len(p.unique()) == 2
    up_p, up_b = (t == t.max() for t in (p, b))
    both = float((up_p & up_b).float().mean())
    expected = float(up_p.float().mean()) * float(up_b.float().mean())
    assert abs(both - expected) < 5 * 0.5 / math.sqrt(count)


# ---- the optimizers as torch's ----


def test_seeds_come_from_torch_or_the_generator() -> None:
    def run(seed: int, generator: torch.Generator | None = None) -> list[Tensor]:
        torch.manual_seed(seed)
        params = parameters(torch.bfloat16)
        return train(AdamW(params, lr=0.01, generator=generator), params)

    assert equal(run(1), run(1))
    assert not equal(run(1), run(2))
    assert equal(run(1), run(5, torch.Generator().manual_seed(1)))


def test_every_call_of_a_step_draws_its_own_bits() -> None:
    """Two groups, and two dtypes in a group: four calls with one seed."""
    params = [torch.full((500,), 1.0, dtype=d) for d in (torch.bfloat16, torch.float16) * 2]
    for p in params:
        p.grad = torch.full_like(p, -1.0)
    with Recorder() as recorder:
        SGD([{"params": params[:2]}, {"params": params[2:]}], lr=2.0**-12).step()
    calls = [call for call in recorder.calls if call[0] == "sgd_stochastic_"]
    assert [call[1][12] if len(call[1]) > 12 else 0 for call in calls] == [0, 512, 1024, 1536]
    assert equal(calls[0][1][3], calls[3][1][3])
    assert not torch.equal(params[0], params[2])
    assert not torch.equal(params[1], params[3])


def test_groups_missing_gradients_closures_and_schedules() -> None:
    ours, theirs = parameters(), parameters()
    pair = []
    for params, kind in ((ours, AdamW), (theirs, torch.optim.AdamW)):
        groups = [
            {"params": params[:2], "lr": 0.1, "weight_decay": 0.0},
            {"params": params[2:], "betas": (0.5, 0.9)},
        ]
        optimizer = kind(groups, lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        for step in range(5):
            optimizer.zero_grad()
            assert all(p.grad is None for p in params)

            def closure(params: Any = params, step: int = step) -> Tensor:
                used = params[step % 2 :: 2]  # the others have no gradient in this step
                loss = sum((p**2).sum() for p in used)
                assert isinstance(loss, Tensor)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            schedule.step()
        pair.append((loss.item(), [optimizer.state[p] for p in params]))
    assert pair[0][0] == pytest.approx(pair[1][0], rel=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6)
    for a, b in zip(pair[0][1], pair[1][1], strict=True):
        assert float(a["step"]) == float(b["step"])


def test_a_step_bumps_versions() -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    optimizer = AdamW([p])
    optimizer.step()
    assert optimizer.state[p]["exp_avg"]._version > 0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_strided_parameters(kind: Any) -> None:
    options = {"lr": 0.1} | ({"momentum": 0.9} if kind is SGD else {})
    x, g = normal((2, 3, 4, 5), torch.bfloat16, 1), normal((2, 3, 4, 5), torch.bfloat16, 2)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        for place in (0, 1):  # the second is not aligned and, with a stride, not dense
            memory = torch.empty((*x.shape, 1 + place), dtype=x.dtype)
            p = memory.select(-1, place) if place else x.clone(memory_format=layout)
            p.copy_(x)
            p.grad = g.clone(memory_format=layout)
            strides = p.stride()
            optimizer = kind([p], **options, generator=torch.Generator().manual_seed(3))
            optimizer.step()
            optimizer.step()
            assert p.stride() == strides
            results.append((p, optimizer.state[p][kind._states[0]]))
    for p, state in results[1:]:
        assert torch.equal(p, results[0][0])
        assert torch.equal(state, results[0][1])
    assert not torch.equal(results[0][0], x)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "options"), [(AdamW, {"amsgrad": True}), (SGD, {"momentum": 0.9, "lr": 0.1})]
)
def test_state_dicts(
    kind: Any, options: dict[str, Any], state_dtype: torch.dtype, tmp_path: Path
) -> None:
    params = parameters(torch.bfloat16)
    optimizer = kind(params, **options, state_dtype=state_dtype)
    train(optimizer, params, 3)
    path = tmp_path / "state.pt"
    torch.save(optimizer.state_dict(), path)

    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    loaded = kind(twins, **options, state_dtype=state_dtype)
    loaded.load_state_dict(torch.load(path))
    copies = copy.deepcopy((optimizer, params)), pickle.loads(pickle.dumps((optimizer, params)))
    for other, mine in ((loaded, twins), *copies):
        for p, q in zip(params, mine, strict=True):
            # float32 states of bfloat16 weights were not rounded on the way.
            assert equal(dict(optimizer.state[p]), dict(other.state[q]))
    torch.manual_seed(7)
    expected = train(optimizer, params, 2)
    for other, mine in ((loaded, twins), *copies):
        torch.manual_seed(7)
        assert equal(train(other, mine, 2), expected)


@pytest.mark.parametrize(("kind", "options"), EVERY)
def test_state_dicts_to_and_from_torch(kind: Any, options: dict[str, Any]) -> None:
    twin = getattr(torch.optim, kind.__name__)
    for first, second in ((kind, twin), (twin, kind)):
        params, reference = parameters(), parameters()
        train(first(params, **options), params, 3)  # the same steps, to begin with
        one = first(params, **options)
        train(one, params, 3)
        two = second(params, **options)
        two.load_state_dict(copy.deepcopy(one.state_dict()))
        train(two, params, 2)
        train(first(reference, **options), reference, 3)
        same = first(reference, **options)
        train(same, reference, 3)
        train(same, reference, 2)
        for a, b in zip(params, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=3e-6, atol=3e-6)


def test_optimizers_say_what_is_wrong() -> None:
    p = torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"optim\.AdamW: expected `lr` to be at least 0, got -1"):
        AdamW([p], lr=-1.0)
    with pytest.raises(ValueError, match=r"expected `betas\[1\]` in \[0, 1\), got 1.0"):
        AdamW([p], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="expected `eps` to be at least 0, got -1e-08"):
        AdamW([{"params": [p], "eps": -1e-8}])
    with pytest.raises(ValueError, match="`lr` to have one element"):
        SGD([p], lr=torch.zeros(2))
    with pytest.raises(ValueError, match="`nesterov` with a momentum above 0"):
        SGD([p], nesterov=True)
    with pytest.raises(
        TypeError, match=r"`state_dtype` to be float32 or bfloat16, got torch\.float16"
    ):
        SGD([p], state_dtype=torch.float16)
    for dtype in (torch.float64, torch.complex64):
        with pytest.raises(TypeError, match="`params` of dtype bfloat16, float16 or float32"):
            AdamW([torch.nn.Parameter(torch.zeros(3, dtype=dtype))])
    p.grad = torch.eye(3, dtype=torch.bfloat16).to_sparse()
    for kind in (AdamW, SGD):
        with pytest.raises(ValueError, match=r"expected `grad` to be dense, got torch\.sparse_coo"):
            kind([p]).step()


def test_raw_steps_say_what_is_wrong() -> None:
    p, one = torch.zeros(3, dtype=torch.bfloat16), torch.zeros(())
    m, v = torch.zeros(2, 3)

    def adamw(**changes: Any) -> None:
        given = {
            "params": [p], "grads": [p], "exp_avgs": [m], "exp_avg_sqs": [v],
            "max_exp_avg_sqs": [], "steps": [one], "seed": seed(), "lr": 0.1, "beta1": 0.9,
            "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0,
        }  # fmt: skip
        torch.ops.regkern.adamw_stochastic_(**(given | changes))

    for changes, message in (
        ({"grads": []}, "`grads` of as many tensors as `params`, 1, got 0"),
        ({"grads": [p.half()]}, "`grads` of the dtype of `params`, or float32"),
        ({"params": [p.double()]}, "`params` of dtype bfloat16, float16 or float32, got float64"),
        ({"exp_avgs": [m[:2]]}, r"`exp_avgs\[0\]` of shape \(3\), got \(2\)"),
        ({"exp_avgs": [m.half()]}, "`exp_avgs` of dtype float32 or bfloat16, as all states"),
        ({"exp_avg_sqs": [v.bfloat16()]}, "`exp_avg_sqs` of dtype float32 or bfloat16, as all"),
        ({"steps": [m]}, r"`steps\[0\]` to be one float32 number"),
        ({"steps": []}, "a tensor in `steps` for each"),
        ({"beta1": 1.0}, r"`beta1` and `beta2` in \[0, 1\)"),
        ({"lr_tensor": one}, "`lr_tensor` of dtype float64"),
        ({"seed": seed()[:1]}, r"`seed` of shape \(2\)"),
    ):
        with pytest.raises(RuntimeError, match="adamw_stochastic_: expected " + message):
            adamw(**changes)
    assert float(one) == 0
    with pytest.raises(RuntimeError, match="`momentum_buffers` with a momentum, got none"):
        torch.ops.regkern.sgd_stochastic_([p], [p], [], seed(), 0.1, 0.9, 0.0, 0.0)


# ---- the same bits elsewhere: see test_contract ----


def record() -> list[Call]:
    with Recorder() as recorder:
        for source in SOURCES:
            for dtype in NARROW:
                x = every_kind(source, 700)
                odd = torch.zeros(x.numel() + 1, dtype=dtype)[1:]
                copy_stochastic_([odd, torch.zeros_like(x, dtype=dtype)], [x, x], seed=seed())
        # More tensors than one launch takes, and more tiles than one wave of blocks.
        many = [normal((1 + i % 5,), torch.float32, i) for i in range(270)]
        copy_stochastic_([x.bfloat16() for x in many], many, seed=seed())
        large = normal((70_001,), torch.float32, 1)
        copy_stochastic_(large.bfloat16(), large, seed=seed())
        image = normal((2, 3, 4, 5), torch.float32, 2)
        last = image.contiguous(memory_format=torch.channels_last)
        copy_stochastic_([last.bfloat16()], [image], seed=seed())
        torch.ops.regkern.copy_stochastic_([x.half() for x in image], list(image), seed(), 2**35)
        generator = torch.Generator().manual_seed(6)
        for kind, options in EVERY:
            for dtype in (torch.float32, *NARROW):
                for state_dtype in (torch.float32, torch.bfloat16):
                    params = parameters(dtype)
                    params[3].data = torch.ones(131, dtype=dtype)[1:]  # not aligned
                    given = options | {"state_dtype": state_dtype, "generator": generator}
                    train(kind(params, **given), params, 2)
        for kind in (AdamW, SGD):
            list_of = [x.bfloat16() for x in many]
            for x in list_of:
                x.grad = x.clone()
            kind(list_of, lr=0.1, generator=generator).step()
    return recorder.calls


def test_record_has_what_is_written() -> None:
    calls = record()
    names = {call[0] for call in calls}
    assert names == {"copy_stochastic_", "adamw_stochastic_", "sgd_stochastic_"}
    for (_, args, _), (_, mutated) in zip(calls, replay(calls, "regkern"), strict=True):
        assert not equal(mutated[0], args[0])

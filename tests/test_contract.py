"""The contract of every op, over every sample of the registry."""

from __future__ import annotations

import copy
import functools
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import regkern
import torch
from recording import Call, Recorder, differences, equal, replay
from regkern._registration import DIFFERENTIABLE
from samples import SAMPLES, Sample
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_map

# Against the definition in float64: a few roundings of the result in the dtype. bfloat16 and
# float16 round once more where an op adds in float32 what the definition adds in float64.
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 2e-6},  # normals are float32 polynomials
    torch.float32: {"rtol": 2e-6, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2**-8, "atol": 2**-9},
    torch.float16: {"rtol": 2**-11, "atol": 2**-11},
    torch.uint8: {"rtol": 0.0, "atol": 1.0},  # λ is float32: a tie may fall to the other side
}

every = pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.id)
differentiable = pytest.mark.parametrize(
    "sample", [s for s in SAMPLES if s.differentiable], ids=lambda s: s.id
)


def record(sample: Sample, backward: bool = True) -> list[Call]:
    """The raw calls of one forward (and backward)."""
    calls: list[Call] = []
    for dtype in sample.dtypes:
        tensors = sample.tensors(dtype)
        grad = backward and sample.differentiable and dtype.is_floating_point
        tensors = [t.requires_grad_(grad) for t in tensors]
        with Recorder() as recorder:
            y = sample.call(*tensors)
            if grad:
                torch.autograd.grad(y.sum() + (y * y).sum(), tensors, allow_unused=True)
            if sample.inplace is not None and not grad:
                sample.inplace(*sample.tensors(dtype), **sample.options)
        calls += recorder.calls
    if sample.inplace is not None:
        with Recorder() as recorder:
            sample.inplace(*sample.tensors(torch.float32), **sample.options)
        calls += recorder.calls
    if len(sample.shapes[0]) == 4:
        with Recorder() as recorder:
            sample.call(*(_channels_last(t) for t in sample.tensors(torch.float32)))
        calls += recorder.calls
    return calls


def _channels_last(t: Tensor) -> Tensor:
    if t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    if t.dim() == 5:
        return t.contiguous(memory_format=torch.channels_last_3d)
    return t


@every
def test_matches_definition(sample: Sample) -> None:
    for dtype in sample.dtypes:
        tensors = sample.tensors(dtype)
        expected = sample.reference(*(sample.widened(t) for t in tensors))
        actual = sample.call(*tensors)
        assert actual.dtype == dtype
        torch.testing.assert_close(
            actual.double(),
            expected.double(),
            **TOLERANCE[dtype],
            msg=lambda m, d=dtype: f"{d}: {m}",
        )


@every
def test_opcheck(sample: Sample) -> None:
    seen = set()
    for name, args, kwargs in record(sample):
        key = _graph(name, args)
        if key not in seen:
            seen.add(key)
            _opcheck(name, args, kwargs, "test_schema", "test_autograd_registration")
            _opcheck(name, args, kwargs, "test_faketensor")
    assert seen


def _graph(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What tells one call's graph from another's; bfloat16 and float16 have that of float32."""
    halves = (torch.bfloat16, torch.float16)
    dtypes = [a.dtype if isinstance(a, Tensor) else a is None for a in args]
    return name, tuple(torch.float32 if d in halves else d for d in dtypes)


def _opcheck(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *utils: str) -> None:
    op = getattr(torch.ops.regkern, name).default
    if op._schema.is_mutable:
        # There is no functional form to trace, and autograd is refused.
        utils = tuple(u for u in utils if u in ("test_schema", "test_faketensor"))
    # Gradients for what the op can differentiate: the float tensors of a differentiable op.
    elif name in DIFFERENTIABLE:
        args = tuple(
            a.clone().requires_grad_()
            if i == 0 and isinstance(a, Tensor) and a.is_floating_point()
            else a
            for i, a in enumerate(args)
        )
    if utils:
        torch.library.opcheck(op, args, kwargs, test_utils=utils)


@differentiable
def test_gradients(sample: Sample) -> None:
    if sample.straight_through:
        return
    tensors = [t.requires_grad_() for t in sample.tensors()]
    assert torch.autograd.gradcheck(sample.call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(sample.call, tensors, fast_mode=True)


@differentiable
def test_gradients_match_definition(sample: Sample) -> None:
    for dtype in (torch.float64, torch.float32):
        tensors = [t.requires_grad_() for t in sample.tensors(dtype)]
        twins = [sample.widened(t.detach()).clone().requires_grad_() for t in tensors]
        y, z = sample.call(*tensors), sample.reference(*twins)
        g = torch.randn(z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        ours = torch.autograd.grad(y, tensors, g.to(y.dtype))
        theirs = torch.autograd.grad(z, twins, g.to(z.dtype))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


@every
def test_vmap(sample: Sample) -> None:
    batches = [sample.tensors() for _ in range(2)]
    stacked = [torch.stack([a, a.flip(-1)]) for a in batches[0]]
    mapped = torch.func.vmap(sample.call)(*stacked)
    looped = torch.stack([sample.call(*(s[i] for s in stacked)) for i in range(2)])
    assert torch.equal(mapped, looped)


@differentiable
def test_functional_transforms(sample: Sample) -> None:
    tensors = sample.tensors()

    def loss(x: Tensor) -> Tensor:
        return (sample.call(x, *tensors[1:]) ** 2).sum()

    x = tensors[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(tensors[0]), expected)
    stacked = torch.stack([tensors[0], tensors[0].flip(-1)])
    per_sample = torch.func.vmap(torch.func.grad(loss))(stacked)
    torch.testing.assert_close(per_sample[0], expected)
    torch.testing.assert_close(
        torch.func.vjp(loss, tensors[0])[1](torch.tensor(1.0).double())[0], expected
    )
    if tensors[0].numel() <= 150:
        hessian = torch.func.jacrev(torch.func.grad(loss))(tensors[0])
        assert hessian.shape == (*x.shape, *x.shape)


@differentiable
def test_forward_mode(sample: Sample) -> None:
    """Right, or refused: what torch.library does by itself is to drop the tangent."""
    x, *rest = sample.tensors()
    tangent = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(4))
    for grad in (False, True):
        slope, refusal = None, ""
        with forward_ad.dual_level(), torch.set_grad_enabled(grad):
            try:
                y = sample.call(forward_ad.make_dual(x, tangent), *rest)
            except (NotImplementedError, RuntimeError) as error:
                refusal = str(error)
            else:
                slope = forward_ad.unpack_dual(y).tangent
        if refusal:
            assert re.search("forward.mode|forward AD|jvp", refusal)
            continue
        assert slope is not None
        g = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(5))
        own = x.clone().requires_grad_()
        (back,) = torch.autograd.grad(sample.call(own, *rest), own, g)
        torch.testing.assert_close((slope * g).sum(), (back * tangent).sum())


@every
def test_compile(sample: Sample) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sample.call, fullgraph=True, dynamic=True, backend="aot_eager")
    tensors = sample.tensors(torch.float32)
    grad = sample.differentiable
    eager_in = [t.clone().requires_grad_(grad) for t in tensors]
    compiled_in = [t.clone().requires_grad_(grad) for t in tensors]
    expected, actual = sample.call(*eager_in), compiled(*compiled_in)
    assert equal(expected.detach(), actual.detach())
    if grad:
        for a, b in zip(
            torch.autograd.grad((expected * expected).sum(), eager_in),
            torch.autograd.grad((actual * actual).sum(), compiled_in),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


class _Module(torch.nn.Module):
    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample

    def forward(self, *tensors: Tensor) -> Any:
        return self.sample.call(*tensors)


@every
def test_export(sample: Sample) -> None:
    tensors = tuple(sample.tensors(torch.float32))
    program = torch.export.export(_Module(sample), tensors, strict=False)
    assert equal(program.module()(*tensors), sample.call(*tensors))


@every
def test_layouts(sample: Sample) -> None:
    tensors = sample.tensors(torch.float32)
    expected = sample.call(*tensors)
    strided = [t.new_empty((*t.shape, 2)).select(-1, 1).copy_(t) for t in tensors]
    offset = [torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t) for t in tensors]
    transposed = [t.movedim(0, -1).contiguous().movedim(-1, 0) for t in tensors]
    mixed = [strided[0], *tensors[1:]]
    for variant in (strided, offset, transposed, mixed):
        assert torch.equal(sample.call(*variant), expected)
    last = [_channels_last(t) for t in tensors]
    y = sample.call(*last)
    assert torch.equal(y, expected)
    if last[0].dim() == 4 and not last[0].is_contiguous():
        assert y.is_contiguous(memory_format=torch.channels_last)
    for halves in (torch.bfloat16, torch.float16):
        h = sample.tensors(halves)
        assert torch.equal(sample.call(*(_channels_last(t) for t in h)), sample.call(*h))


@every
def test_channels_last_gradient(sample: Sample) -> None:
    if not sample.differentiable or len(sample.shapes[0]) != 4:
        return
    tensors = [t.requires_grad_() for t in sample.tensors(torch.float32)]
    last = [_channels_last(t.detach()).requires_grad_() for t in tensors]
    y, z = sample.call(*tensors), sample.call(*last)
    g = torch.randn_like(y)
    expected = torch.autograd.grad(y, tensors, g)
    for gradient in (g, _channels_last(g)):
        actual = torch.autograd.grad(z, last, gradient, retain_graph=True)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)


@every
def test_empty_and_single(sample: Sample) -> None:
    for batch in (0, 1) if sample.batched else ():
        tensors = sample.tensors(torch.float32, batch=batch)
        y = sample.call(*tensors)
        assert y.shape == sample.reference(*tensors).shape
        if batch:
            torch.testing.assert_close(
                y.double(),
                sample.reference(*(sample.widened(t) for t in tensors)).double(),
                rtol=1e-5,
                atol=1e-5,
            )
        if sample.differentiable:
            tensors = [t.requires_grad_() for t in tensors]
            for gradient, t in zip(
                torch.autograd.grad(sample.call(*tensors).sum(), tensors), tensors, strict=True
            ):
                assert gradient.shape == t.shape


@every
def test_nan_and_infinity(sample: Sample) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensors = sample.tensors(dtype)
        flat = tensors[0].view(-1)
        flat[::7], flat[1::11], flat[2::13] = float("nan"), float("inf"), float("-inf")
        actual = sample.call(*tensors).double()
        expected = sample.reference(*(sample.widened(t) for t in tensors))
        assert torch.equal(actual.isnan(), expected.isnan())
        assert torch.equal(actual.isinf(), expected.isinf())


@every
def test_inplace_form(sample: Sample) -> None:
    if sample.inplace is None:
        return
    for dtype in sample.dtypes:
        tensors = sample.tensors(dtype)
        expected = sample.call(*tensors)
        x = tensors[0].clone()
        y = sample.inplace(x, *tensors[1:], **sample.options)
        assert y.data_ptr() == x.data_ptr()
        assert equal(y, expected)
        view = tensors[0].new_empty((*x.shape, 2)).select(-1, 0).copy_(tensors[0])
        sample.inplace(view, *tensors[1:], **sample.options)
        assert torch.equal(view, expected)
    if not sample.differentiable:
        return
    tensors = [t.requires_grad_() for t in sample.tensors()]
    expected_grads = torch.autograd.grad((sample.call(*tensors) ** 2).sum(), tensors)
    y = sample.inplace(tensors[0] * 1.0, *tensors[1:], **sample.options)
    for a, b in zip(torch.autograd.grad((y**2).sum(), tensors), expected_grads, strict=True):
        torch.testing.assert_close(a, b)


@every
def test_inputs_unchanged(sample: Sample) -> None:
    tensors = sample.tensors(torch.float32)
    before = copy.deepcopy(tensors)
    sample.call(*tensors)
    assert equal(tensors, before)


@every
def test_same_bits_for_any_number_of_threads(sample: Sample) -> None:
    calls = record(sample)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = replay(calls, "regkern")
        for n in (2, 3):
            torch.set_num_threads(n)
            assert equal(replay(calls, "regkern"), expected)
    finally:
        torch.set_num_threads(threads)


# ---- the same bits elsewhere: other instruction sets, the emulated CUDA kernels ----


# Test modules with a `record()` of calls that no sample makes: lists, optimizers, odd lengths.
RECORDERS = (
    "test_contract_lists",
    "test_noise_inject",
    "test_patches",
    "test_proximal_complex",
    "test_proximal_groups",
    "test_proximal_optim",
    "test_quantize_optim",
    "test_sparse_conv",
    "test_transport_normalize",
    "test_transport_points_engines",
)


@functools.cache
def _more_calls() -> list[Call]:
    return [call for name in RECORDERS for call in importlib.import_module(name).record()]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Call], list[Any]]:
    """All raw calls of all samples and more, in a file, with this process's outputs."""
    calls = [call for sample in SAMPLES for call in record(sample)] + _more_calls()
    path = tmp_path_factory.mktemp("recorded") / "calls.pt"
    torch.save(calls, path)
    return path, calls, replay(calls, "regkern")


def _replay_elsewhere(
    recorded: tuple[Path, list[Call], list[Any]], out: Path, env: dict[str, str], *library: str
) -> str:
    path, calls, expected = recorded
    script = Path(__file__).with_name("recording.py")
    run = subprocess.run(
        [sys.executable, str(script), str(path), str(out), *library],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-8000:]
    different = differences(calls, expected, torch.load(out, weights_only=False))
    assert not different, f"{len(different)} of {len(calls)} calls differ: {different[:5]}"
    return run.stdout


def _elements(call: Call) -> int:
    return sum(x.numel() for x in tree_flatten(call[1:])[0] if isinstance(x, Tensor))


def _fewer_large(recorded: tuple[Path, list[Call], list[Any]], path: Path) -> Any:
    """The same calls, but only one of each op's that have many elements: in the emulator these take
    most of the time, and go the same ways."""
    _, calls, expected = recorded
    sizes = [_elements(call) for call in calls]
    seen: set[str] = set()
    kept = []
    for i in sorted(range(len(calls)), key=sizes.__getitem__):
        large = sizes[i] > 20_000
        if not large or calls[i][0] not in seen:
            kept.append(i)
        if large:
            seen.add(calls[i][0])
    fewer = [calls[i] for i in kept]
    torch.save(fewer, path)
    return path, fewer, [expected[i] for i in kept]


# One process of several records, for all that replay.
replays = pytest.mark.xdist_group("recorded")


@replays
def test_opcheck_traces_every_graph(recorded: Any) -> None:
    """The slow part of opcheck, once for every op and set of optional arguments of the samples."""
    _, calls, _ = recorded
    graphs: dict[tuple[Any, ...], Call] = {}
    for call in calls[: len(calls) - len(_more_calls())]:
        graphs.setdefault((call[0], tuple(a is None for a in call[1])), call)
    for name, args, kwargs in graphs.values():
        _opcheck(name, args, kwargs, "test_aot_dispatch_dynamic")


@replays
def test_opcheck_of_lists() -> None:
    """Schemas and fake kernels, once for every op and set of optional arguments."""
    graphs: dict[tuple[Any, ...], Call] = {}
    for call in _more_calls():
        arguments = (*call[1], *call[2].values())
        key = (call[0], tuple(call[2]), tuple(a is None or a == [] for a in arguments))
        if key not in graphs or _elements(call) < _elements(graphs[key]):
            graphs[key] = call
    for name, args, kwargs in graphs.values():
        _opcheck(name, args, kwargs, "test_schema", "test_faketensor")


@replays
def test_lists_have_the_same_bits_for_any_number_of_threads() -> None:
    calls = _more_calls()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = replay(calls, "regkern")
        torch.set_num_threads(3)
        different = differences(calls, expected, replay(calls, "regkern"))
    finally:
        torch.set_num_threads(threads)
    assert not different, f"{len(different)} of {len(calls)} calls differ: {different[:5]}"


@replays
@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_same_bits_in_every_instruction_set(recorded: Any, tmp_path: Path, capability: str) -> None:
    order = ["baseline", "avx2", "avx512"]
    best = regkern.build_info()["cpu_capability"]
    if "REGKERN_CPU_CAPABILITY" not in os.environ and order.index(capability) > order.index(best):
        pytest.skip(f"this machine runs {best} at best")
    printed = _replay_elsewhere(
        recorded, tmp_path / "out.pt", {"REGKERN_CPU_CAPABILITY": capability}
    )
    assert printed.strip() == capability


@replays
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffle:1", "shuffle:2"])
def test_same_bits_in_the_emulator(
    recorded: Any, emulator: Path, tmp_path: Path, order: str
) -> None:
    calls = recorded if order == "forward" else _fewer_large(recorded, tmp_path / "calls.pt")
    _replay_elsewhere(calls, tmp_path / "out.pt", {"REGKERN_EMULATOR_ORDER": order}, str(emulator))


@replays
def test_emulator_under_sanitizers(recorded: Any, sanitized_emulator: Path, tmp_path: Path) -> None:
    runtime = " ".join(
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    )
    env = {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "REGKERN_EMULATOR_ORDER": "shuffle:3",
    }
    fewer = _fewer_large(recorded, tmp_path / "calls.pt")
    _replay_elsewhere(fewer, tmp_path / "out.pt", env, str(sanitized_emulator))


# ---- on a GPU, where there is one ----

on_gpu = pytest.mark.skipif(
    not regkern.build_info()["cuda_loaded"] or not torch.cuda.is_available(),
    reason="no GPU, or the CUDA library is not built",
)


@replays
@on_gpu
def test_same_bits_on_the_gpu(recorded: Any) -> None:
    _, calls, expected = recorded
    actual = tree_map(
        lambda value: value.cpu() if isinstance(value, Tensor) else value,
        replay(calls, "regkern", "cuda"),
    )
    different = differences(calls, expected, actual)
    assert not different, f"{len(different)} of {len(calls)} calls differ: {different[:5]}"


@replays
@on_gpu
def test_nothing_waits_for_the_gpu(recorded: Any) -> None:
    _, calls, _ = recorded
    on_device = tree_map(lambda value: value.cuda() if isinstance(value, Tensor) else value, calls)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for name, args, kwargs in on_device:
            getattr(torch.ops.regkern, name).default(*args, **kwargs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_cuda_graphs() -> None:
    """A replay draws from the seed that is in the tensor then."""
    x = torch.randn(4, 8, 32, 32, device="cuda")
    seed = torch.tensor([1, 2], device="cuda")
    regkern.drop_block(x, 0.2, 5, seed=seed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = regkern.drop_block(x, 0.2, 5, seed=seed)
        z = regkern.cutmix(y, seed=seed).x
    for key in (1, 7):
        seed[0] = key
        graph.replay()
        expected = regkern.drop_block(x, 0.2, 5, seed=seed)
        assert torch.equal(y, expected)
        assert torch.equal(z, regkern.cutmix(expected, seed=seed).x)

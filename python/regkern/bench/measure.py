"""Measures one task in this process: our op, its reference, its rivals and its floor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from regkern.bench.case import Case, Inputs, Rival, Run, Task, dtype_of
from regkern.bench.cases import all_cases
from regkern.bench.check import difference, reason, tensors_of, with_grad
from regkern.bench.floors import FLOORS, KEY, floor_bytes
from regkern.bench.saved import saved_for_backward
from regkern.bench.timing import Timing, buffers_for, interleave, sampler

OURS, REFERENCE, COMPILED = "regkern", "reference", "reference compiled"
#: However slow a call is.
LEAST_SAMPLES = 2
_FLOOR = "\0floor"


@dataclass(frozen=True)
class Options:
    """How to measure.

    ``against`` holds reference, compiled, peers, or names of packages. ``skip`` names contenders to
    leave out, and ``once`` those too slow to be warmed up and timed repeatedly.
    """

    against: tuple[str, ...] = ("reference", "peers")
    seconds: float = 0.2
    patience: float = 1.0
    check: bool = False
    skip: tuple[str, ...] = ()
    once: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contender:
    """Whatever is timed beside the floor. ``load`` may raise."""

    name: str
    kind: str
    package: str
    note: str
    load: Callable[[], Run]


def contenders(case: Case, against: Sequence[str]) -> list[Contender]:
    """Ours first, then whoever of the reference and the rivals ``against`` names."""
    chosen = [Contender(OURS, "ours", "regkern", "", lambda: case.ours)]
    if "reference" in against:
        chosen.append(Contender(REFERENCE, "reference", "regkern", "", lambda: case.reference))
    if "compiled" in against:
        own = case.compiled or Rival(COMPILED, "regkern", lambda: _compiled(case))
        chosen.append(Contender(own.name, "compiled", own.package, own.note, own.load))
    for rival in case.rivals:
        if "peers" in against or rival.package in against:
            chosen.append(Contender(rival.name, "peer", rival.package, rival.note, rival.load))
    return chosen


def measure(
    task: Task, options: Options, announce: Callable[[str], None] = lambda name: None
) -> dict[str, Any]:
    """Measure ``task`` and return what JSON and table are made from, for this process' malloc.

    ``announce`` is told what is about to run for the first time, so that whoever watches this
    process knows who ended it.
    """
    case = all_cases()[task.case]
    device, dtype = torch.device(task.device), dtype_of(task.dtype)
    torch.set_num_threads(task.threads)
    if options.check:
        announce("check")
        failure = difference(case, case.small, dtype, device)
        if failure is not None:
            return {"check": failure, "floor": None, "runs": []}

    announce("inputs")
    # What was drawn before must not change the masks that are measured, or no two runs compare.
    torch.manual_seed(0)
    inputs = case.make(task.shape, dtype, device)
    x: torch.Tensor = inputs["x"]
    input_bytes = x.numel() * x.element_size()
    more = (
        case.make(task.shape, dtype, device) for _ in range(1, buffers_for(device, input_bytes))
    )
    buffers = [inputs, *more]
    floor = FLOORS[case.floor]
    for buffer in buffers:
        buffer[KEY] = floor.prepare(buffer["x"])
    upstream = torch.randn_like(x) if task.backward else None

    records: list[dict[str, Any]] = []
    runs: dict[str, Run] = {}
    for contender in contenders(case, options.against):
        if contender.name in options.skip:
            continue
        record = {key: getattr(contender, key) for key in ("name", "kind", "package", "note")}
        record |= {"timing": None, "saved_bytes": None, "error": None, "estimate_ms": None}
        records.append(record)
        announce(contender.name)
        try:
            call = contender.load()
            if contender.kind in ("reference", "peer") and options.patience < math.inf:
                record["estimate_ms"] = _estimate(case, call, task, options.patience)
            if record["estimate_ms"] is None:
                runs[contender.name] = _with_backward(call, upstream)
                if contender.name not in options.once:
                    record["saved_bytes"] = _warm_up(case, call, inputs)
                if contender.kind == "compiled":
                    # It compiles once more for calls that need no gradients, or that take them.
                    runs[contender.name](inputs)
        except Exception as error:
            runs.pop(contender.name, None)
            record["error"] = reason(error)

    announce("timing")
    sample, statistic = sampler(device, task.threads)
    timings = interleave(
        {_FLOOR: floor.run, **runs},
        buffers,
        sample,
        statistic,
        options.seconds,
        lambda name: 1 if name in options.once else LEAST_SAMPLES,
        _restore(buffers) if case.inplace else None,
    )
    for record in records:
        timing = timings.get(record["name"])
        if isinstance(timing, Timing):
            record["timing"] = asdict(timing)
        elif timing is not None:
            record["error"] = reason(timing)
    floor_timing = timings[_FLOOR]
    if isinstance(floor_timing, Exception):
        raise floor_timing
    return {
        "check": "same" if options.check else None,
        "bytes": case.bytes_moved(x, task.backward),
        "input_bytes": input_bytes,
        "floor": {
            "kind": case.floor,
            "bytes": floor_bytes(x, case.floor),
            "timing": asdict(floor_timing),
        },
        "runs": records,
    }


def _compiled(case: Case) -> Run:
    def reference(inputs: Inputs) -> Any:
        return case.reference(inputs)

    compiled: Run = torch.compile(reference)
    return compiled


def _estimate(case: Case, call: Run, task: Task, patience: float) -> float | None:
    """Milliseconds that a call would take, where that is more than ``patience`` seconds.

    Taken from as many of the batch as fit into that, so that one slow rival does not hold up the
    run: two at first, for what is set up once, then twice as many each time. A batch of small
    problems costs a rival hardly more than two of them.

    None for a tensor of one dimension: that is a whole network, and two of its elements tell
    nothing.
    """
    if len(task.shape) == 1 or task.shape[0] <= 2:
        return None
    device = torch.device(task.device)
    call(case.make((2, *task.shape[1:]), dtype_of(task.dtype), device))
    rows = 2
    while True:
        inputs = case.make((rows, *task.shape[1:]), dtype_of(task.dtype), device)
        start = time.perf_counter()
        call(inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        whole = seconds * task.shape[0] / rows
        if rows == task.shape[0]:
            return 1e3 * whole if whole > patience else None
        if 2 * seconds > patience:
            return 1e3 * whole
        rows = min(2 * rows, task.shape[0])


def _warm_up(case: Case, call: Run, inputs: Inputs) -> int | None:
    """The first call, which also tells what a call saves for its backward."""
    if not case.differentiable or not inputs["x"].is_floating_point():
        call(inputs)
        return None
    leaf = with_grad(inputs)
    try:
        return saved_for_backward(lambda: call(leaf), tensors_of(leaf))
    except RuntimeError:
        # A rival that works in place refuses a leaf, which says nothing about its forward.
        call(inputs)
        return None


def _with_backward(call: Run, upstream: torch.Tensor | None) -> Run:
    if upstream is None:
        return call

    def run(inputs: Inputs) -> None:
        leaf = with_grad(inputs)
        output = tensors_of(call(leaf))[0]
        torch.autograd.grad(output, [leaf["x"]], upstream)

    return run


def _restore(buffers: Sequence[Inputs]) -> Callable[[Inputs], None]:
    """A call that scales its input in place would else run on infinities before long."""
    originals = {id(inputs): inputs["x"].clone() for inputs in buffers}

    def restore(inputs: Inputs) -> None:
        inputs["x"].copy_(originals[id(inputs)])

    return restore

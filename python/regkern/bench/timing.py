"""How long calls take: interleaved samples, their minimum, median and spread."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regkern.bench.case import Inputs, Run

#: A sample shorter than this is mostly clock and interpreter, so short calls are repeated in it.
SHORTEST_SAMPLE_S = 2e-4
#: What is launched before a CUDA sample, so that the GPU never waits for Python inside it.
SPACER_BYTES, SPACER_LAUNCHES = 1 << 28, 8

Sample = Callable[[Run, Iterator[Inputs], int], float]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call. ``value`` is what ratios are made of."""

    min_ms: float
    median_ms: float
    iqr_ms: float
    repeats: int
    statistic: str

    @property
    def value(self) -> float:
        return self.min_ms if self.statistic == "min" else self.median_ms


def summarize(samples_s: Sequence[float], statistic: str) -> Timing:
    """Minimum, median and interquartile range of ``samples_s``, given in seconds."""
    ms = sorted(1e3 * sample for sample in samples_s)
    quartiles = statistics.quantiles(ms, n=4, method="inclusive") if len(ms) > 1 else [ms[0]] * 3
    return Timing(ms[0], quartiles[1], quartiles[2] - quartiles[0], len(ms), statistic)


def _host_sampler(clock: Callable[[], float]) -> Sample:
    def sample(run: Run, buffers: Iterator[Inputs], number: int) -> float:
        inputs = next(buffers)
        start = clock()
        for _ in range(number):
            run(inputs)
        return (clock() - start) / number

    return sample


def _cuda_sampler(device: torch.device) -> Sample:
    event: Any = torch.cuda.Event
    spacer = torch.empty(SPACER_BYTES, dtype=torch.uint8, device=device)

    def sample(run: Run, buffers: Iterator[Inputs], number: int) -> float:
        with torch.cuda.device(device):
            start, end = event(enable_timing=True), event(enable_timing=True)
            for _ in range(SPACER_LAUNCHES):
                spacer.zero_()
            start.record()
            for _ in range(number):
                run(next(buffers))
            end.record()
            end.synchronize()
        return 1e-3 * float(start.elapsed_time(end)) / number

    return sample


def sampler(device: torch.device, threads: int) -> tuple[Sample, str]:
    """How to take one sample on ``device``, and the statistic that its ratios use.

    One CPU thread is timed by the CPU time of the process, whose minimum repeats on a machine that
    others use too. Several threads only show in wall time. CUDA is timed by events, by the median.
    """
    if device.type == "cuda":
        return _cuda_sampler(device), "median"
    if threads == 1:
        return _host_sampler(time.process_time), "min"
    return _host_sampler(time.perf_counter), "min"


def buffers_for(device: torch.device, input_bytes: int) -> int:
    """How many sets of inputs to rotate, so that none of them is still in the L2 of a GPU."""
    if device.type != "cuda":
        return 1
    l2_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
    return min(16, 1 + math.ceil(2 * l2_bytes / max(1, input_bytes)))


def interleave(
    runs: dict[str, Run],
    buffers: Sequence[Inputs],
    sample: Sample,
    statistic: str,
    seconds: float,
    least: Callable[[str], int],
    reset: Callable[[Inputs], None] | None = None,
) -> dict[str, Timing | Exception]:
    """Time every run in turn, round after round, each until its own ``seconds`` are spent.

    Turn by turn, a slow phase of the machine slows all of them. ``least`` is the least number of
    samples of a run. ``reset`` restores overwritten inputs before each sample, untimed. A run
    that raises drops out, and its exception stands in place of its timing.
    """
    rotation = itertools.cycle(buffers)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    number = dict.fromkeys(runs, 1)
    failed: dict[str, Exception] = {}
    collecting = gc.isenabled()
    gc.disable()
    try:
        waiting = list(runs)
        while waiting:
            for name in list(waiting):
                if reset is not None:
                    for inputs in buffers:
                        reset(inputs)
                begin = time.perf_counter()
                try:
                    taken = sample(runs[name], rotation, number[name])
                except Exception as error:
                    failed[name] = error
                    waiting.remove(name)
                    continue
                spent[name] += time.perf_counter() - begin
                if number[name] * taken < SHORTEST_SAMPLE_S / 2:
                    number[name] = math.ceil(SHORTEST_SAMPLE_S / max(taken, 1e-7))
                else:
                    samples[name].append(taken)
                if spent[name] >= seconds and len(samples[name]) >= least(name):
                    waiting.remove(name)
    finally:
        if collecting:
            gc.enable()
    return {
        name: failed[name] if name in failed else summarize(samples[name], statistic)
        for name in runs
    }

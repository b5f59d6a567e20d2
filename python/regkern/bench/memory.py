"""The most memory that a call has at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most bytes of tensors that a call adds to what there was, on the CPU and all GPUs.

    Counted by torch's allocators, so what kernels take elsewhere for a moment, packed tiles for
    instance, is not in it. Nothing may be freed meanwhile that was there before, but is counted
    too: the number is then too small by as much.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, profile_memory=True) as profiler:
        call()
    results: Any = profiler.profiler.kineto_results
    sizes = [
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]"
    ]
    now = most = 0
    for _, size in sorted(sizes, key=lambda one: one[0]):
        now += size
        most = max(most, now)
    return most

"""The cases of the transport family under pytest-benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from regkern.bench.case import Case
from regkern.bench.cases import cases_of

CASES = cases_of("transport")


@pytest.mark.benchmark(timer=time.process_time, disable_gc=True)
def bench_transport(
    bench_case: Callable[[Case, torch.dtype, str], None],
    case: Case,
    dtype: torch.dtype,
    contender: str,
) -> None:
    bench_case(case, dtype, contender)

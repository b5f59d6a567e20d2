"""The cases of the sparse family under pytest-benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from regkern.bench.case import Case
from regkern.bench.cases import cases_of

CASES = cases_of("sparse")


@pytest.mark.benchmark(timer=time.process_time, disable_gc=True)
def bench_sparse(
    bench_case: Callable[[Case, torch.dtype, str], None],
    case: Case,
    dtype: torch.dtype,
    contender: str,
) -> None:
    bench_case(case, dtype, contender)

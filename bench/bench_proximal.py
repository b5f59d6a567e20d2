"""The cases of the proximal family under pytest-benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from regkern.bench.case import Case
from regkern.bench.cases import (
    proximal_elementwise,
    proximal_groups,
    proximal_optim,
    proximal_projections,
)

SUBJECTS = (proximal_elementwise, proximal_groups, proximal_projections, proximal_optim)
CASES = tuple(case for subject in SUBJECTS for case in subject.CASES)


@pytest.mark.benchmark(timer=time.process_time, disable_gc=True)
def bench_proximal(
    bench_case: Callable[[Case, torch.dtype, str], None],
    case: Case,
    dtype: torch.dtype,
    contender: str,
) -> None:
    bench_case(case, dtype, contender)

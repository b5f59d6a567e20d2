"""The cases of the spectral family under pytest-benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from regkern.bench.case import Case
from regkern.bench.cases import spectral_power

SUBJECTS = (spectral_power,)
CASES = tuple(case for subject in SUBJECTS for case in subject.CASES)


@pytest.mark.benchmark(timer=time.process_time, disable_gc=True)
def bench_spectral(
    bench_case: Callable[[Case, torch.dtype, str], None],
    case: Case,
    dtype: torch.dtype,
    contender: str,
) -> None:
    bench_case(case, dtype, contender)

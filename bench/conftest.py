"""pytest-benchmark over the cases of ``regkern bench``: one file per family, one group per case.

``pytest bench --benchmark-columns=min,median,iqr``. One thread, CPU time, forward, and the malloc
of this process; ``regkern bench`` has the rest. ``--small`` only shows that everything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from regkern.bench.case import Case, dtype_name
from regkern.bench.floors import FLOORS, KEY
from regkern.bench.measure import contenders

AGAINST = ("reference", "peers")
FLOOR = "floor"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--small", action="store_true", help="benchmark on small shapes")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every default dtype of the module's ``CASES``, for the floor and for every contender."""
    if "contender" not in metafunc.fixturenames:
        return
    params = [
        pytest.param(case, dtype, name, id=f"{case.name}-{dtype_name(dtype)}-{name}")
        for case in metafunc.module.CASES
        for dtype in case.dtypes
        for name in (FLOOR, *(contender.name for contender in contenders(case, AGAINST)))
    ]
    metafunc.parametrize(("case", "dtype", "contender"), params)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bench_case(
    benchmark: Any, one_thread: None, request: pytest.FixtureRequest
) -> Callable[[Case, torch.dtype, str], None]:
    """Benchmarks one contender of a case; a rival that cannot run is skipped with its reason."""

    def run(case: Case, dtype: torch.dtype, name: str) -> None:
        torch.manual_seed(0)
        shape = case.small if request.config.getoption("--small") else case.shape
        inputs = case.make(shape, dtype, torch.device("cpu"))
        x = inputs["x"]
        inputs[KEY] = FLOORS[case.floor].prepare(x)
        # What overwrites its input would else run on infinities before long.
        original = x.clone()
        chosen = {contender.name: contender for contender in contenders(case, AGAINST)}
        try:
            call = FLOORS[case.floor].run if name == FLOOR else chosen[name].load()
            call(inputs)
        except Exception as error:
            if name == FLOOR or chosen[name].kind == "ours":
                raise
            pytest.skip(f"{name}: {error}")
        benchmark.group = f"{case.name} {'x'.join(map(str, shape))} {dtype_name(dtype)}"
        benchmark.extra_info |= {
            "bytes": case.bytes_moved(x, backward=False),
            "device": "cpu",
            "capability": torch.backends.cpu.get_cpu_capability(),
        }

        def restore() -> None:
            x.copy_(original)

        benchmark.pedantic(call, (inputs,), setup=restore, rounds=5, warmup_rounds=1)

    return run

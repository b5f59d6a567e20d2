"""The CUDA emulator: right kernels are right in every order, and each kind of mistake shows."""

from __future__ import annotations

import ctypes
import math
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "tests" / "emulator" / "kernels.cu"
SCHEDULER = ROOT / "csrc" / "emulator" / "cuda_on_cpu.cpp"
LAUNCH = ROOT / "csrc" / "core" / "launch.cu"
ORDERS = ["forward", "reverse", "shuffle", "shuffle:1", "shuffle:2", "shuffle:12345"]
CXX = os.environ.get("CXX", "g++")
FLAGS = [
    "-std=c++20",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-DREGKERN_EMULATOR",
    f"-I{ROOT / 'csrc'}",
]
SANITIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
SANITIZE += ["-fno-sanitize-recover=undefined"]

pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"no C++ compiler `{CXX}`")


def build(path: Path, *flags: str) -> Path:
    sources = [str(SCHEDULER), "-x", "c++", str(LAUNCH), str(KERNELS)]
    command = [CXX, *FLAGS, *flags, "-o", str(path), *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


class Library:
    """The entry points of kernels.cu; a call that fails raises RuntimeError with the text."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def call(self, name: str, *args: object) -> None:
        error = ctypes.create_string_buffer(2048)
        if getattr(self._library, name)(*args, error) != 0:
            raise RuntimeError(error.value.decode())


@pytest.fixture(scope="session", params=["native", "ucontext"])
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Both ways to switch between fibers: this machine's own, and the portable one."""
    flags = ["-DREGKERN_EMULATOR_UCONTEXT"] if request.param == "ucontext" else []
    path = tmp_path_factory.mktemp("emulator") / f"{request.param}.so"
    return Library(build(path, "-O2", "-g1", *flags))


def preloads() -> list[str]:
    """The libraries that Python, itself not built with sanitizers, has to start with.

    libstdc++ is one of them: the sanitizer looks up the function that throws when it starts.
    """
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    commands = [[CXX, f"-print-file-name={name}"] for name in names]
    return [subprocess.check_output(command, text=True).strip() for command in commands]


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A compiler that does not have a file prints its bare name.
    if not all(Path(path).is_absolute() for path in preloads()):
        pytest.skip(f"`{CXX}` has no sanitizer libraries to preload")
    path = tmp_path_factory.mktemp("sanitized") / "sanitized.so"
    return build(path, *SANITIZE)


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("REGKERN_EMULATOR_ORDER", request.param)
    return str(request.param)


def ints(values: list[int]) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * len(values))(*values)


def check_block_sum(library: Library) -> None:
    n, blocks = 5003, 3
    values = [float(i % 17) for i in range(n)]
    out = (ctypes.c_float * blocks)()
    library.call("block_sum", (ctypes.c_float * n)(*values), out, ctypes.c_int64(n), blocks, 1)
    expected = [
        sum(v for i, v in enumerate(values) if i // 256 % blocks == b) for b in range(blocks)
    ]
    assert list(out) == expected


def check_reverse(library: Library, barrier: bool = True) -> None:
    blocks = 4
    out = (ctypes.c_int * (256 * blocks))()
    library.call("reverse", ints(list(range(256 * blocks))), out, blocks, int(barrier))
    expected = [256 * b + 255 - i for b in range(blocks) for i in range(256)]
    assert list(out) == expected


def check_compact(library: Library) -> None:
    values = [random.Random(0).randint(-5, 5) for _ in range(1000)]
    expected = [v for v in values if v > 0]
    out, total = (ctypes.c_int * len(values))(), ctypes.c_int()
    library.call("compact", ints(values), out, ctypes.byref(total), len(values))
    assert total.value == len(expected)
    assert list(out)[: len(expected)] == expected


def check_transpose(library: Library) -> None:
    batch, rows, columns = 2, 45, 70
    n = batch * rows * columns
    out = (ctypes.c_double * n)()
    library.call("transpose", (ctypes.c_double * n)(*range(n)), out, batch, rows, columns)
    expected = [
        (b * rows + r) * columns + c
        for b in range(batch)
        for c in range(columns)
        for r in range(rows)
    ]
    assert list(out) == expected


def check_histogram(library: Library) -> None:
    values = [i * i % 13 for i in range(3000)]
    out = (ctypes.c_int * 13)()
    library.call("histogram", ints(values), out, len(values), 13)
    assert list(out) == [values.count(b) for b in range(13)]


def check_intrinsics(library: Library) -> None:
    out = (ctypes.c_uint * (19 * 32))()
    library.call("intrinsics", out)
    wide = [ctypes.c_uint64.from_buffer(ctypes.c_double(1 / 3 + 31)).value & 0xFFFFFFFF] * 32
    lanes = range(32)
    low = sum(1 << i for i in range(12) if i % 3 == 0)
    high = sum(1 << i for i in range(12, 32) if i % 2 == 0)
    expected = {
        "shfl": [i // 8 * 8 + 5 for i in lanes],
        "up": [i - 3 if i >= 3 else i for i in lanes],
        "down": [i + 3 if i % 16 < 13 else i for i in lanes],
        "xor": [i ^ 9 if i ^ 9 <= i | 7 else i for i in lanes],
        "ballot": [low if i < 12 else high for i in lanes],
        "any": [1] * 32,
        "all": [0] * 32,
        "and": [1] * 32,
        "or": [0] * 32,
        "brev": [int(f"{i:032b}"[::-1], 2) for i in lanes],
        "funnel_l": [i << 4 & 0xFFFFFFFF | 8 for i in lanes],
        "funnel_r": [(i << 32 | 0x80000001) >> 4 & 0xFFFFFFFF for i in lanes],
        "umulhi": [(i << 28 & 0xFFFFFFFF) * 48 >> 32 for i in lanes],
        "clz": [32 - i.bit_length() for i in lanes],
        "ffs": [(i & -i).bit_length() for i in lanes],
        "min": [0x3F800000] * 32,
        "max": [0xFFFFFFFF] * 32,
        "wide": wide,
        "atomic": [i + 9 + 100 if i <= 9 else i + i + i for i in lanes],
    }
    for k, (name, values) in enumerate(expected.items()):
        assert (name, list(out)[32 * k : 32 * k + 32]) == (name, values)


def check_early_exit(library: Library) -> None:
    out = (ctypes.c_int * 70)()
    library.call("early_exit", out, 70)
    assert list(out) == [0 if i % 2 else 35 for i in range(70)]


RIGHT = {
    "block_sum": check_block_sum,
    "reverse": check_reverse,
    "compact": check_compact,
    "transpose": check_transpose,
    "histogram": check_histogram,
    "intrinsics": check_intrinsics,
    "early_exit": check_early_exit,
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels(emulator: Library, order: str, name: str) -> None:
    RIGHT[name](emulator)


@pytest.mark.parametrize("order", ORDERS[1:])
def test_a_missing_barrier_shows(
    emulator: Library, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGKERN_EMULATOR_ORDER", order)
    with pytest.raises(AssertionError):
        check_reverse(emulator, barrier=False)


def test_a_missing_barrier_before_a_warp_reduction_shows(
    emulator: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 2560
    ones = (ctypes.c_float * n)(*[1.0] * n)
    wrong = []
    for order in ORDERS:
        monkeypatch.setenv("REGKERN_EMULATOR_ORDER", order)
        out = (ctypes.c_float * 2)()
        emulator.call("block_sum", ones, out, ctypes.c_int64(n), 2, 0)
        if list(out) != [1280.0, 1280.0]:
            wrong.append(order)
    # Where warp 0 happens to run last nothing is missing, so not every order shows it.
    assert "forward" in wrong
    assert len(wrong) >= 3


def test_shared_memory_starts_as_nan(emulator: Library, order: str) -> None:
    out = ctypes.c_float()
    emulator.call("uninitialised", ctypes.byref(out), 3)
    assert math.isnan(out.value)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "barrier",
            r"divergent_kernel, block \(0, 0, 0\): divergent barrier: "
            r"threads 0-39 wait in __syncthreads at kernels.cu:\d+; "
            r"threads 40-63 wait in __syncthreads at kernels.cu:\d+",
        ),
        (
            "deadlock",
            r"deadlock_kernel, .*deadlock: threads 0-15 wait in __syncthreads at kernels.cu:\d+; "
            r"threads 16-31 wait in __shfl_sync at kernels.cu:\d+ with mask 0xffffffff",
        ),
        (
            "exited",
            r"exited_lane_kernel, .*deadlock: threads 0-2, 4-31 wait in __shfl_down_sync .*"
            r"which names the exited lanes 3; threads 3 have exited",
        ),
        ("inactive", r"inactive_lane_kernel, .*reads from lane 20, which does not take part"),
        ("mask", r"thread \(0, 0, 0\): __any_sync .*0xfffffffe does not name the calling lane"),
        ("trap", r"kernel trap_kernel, block \(0, 0, 0\), thread \(33, 0, 0\): __trap\(\)"),
    ],
)
def test_misuse_is_an_error(
    emulator: Library, monkeypatch: pytest.MonkeyPatch, what: str, message: str
) -> None:
    monkeypatch.setenv("REGKERN_EMULATOR_ORDER", "forward")
    out = (ctypes.c_int * 64)()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            emulator.call("misuse", what.encode(), out)
        check_block_sum(emulator)


@pytest.mark.parametrize("what", ["barrier", "deadlock", "exited", "inactive", "mask", "trap"])
def test_misuse_is_an_error_in_every_order(emulator: Library, order: str, what: str) -> None:
    with pytest.raises(RuntimeError, match="emulator: kernel"):
        emulator.call("misuse", what.encode(), (ctypes.c_int * 64)())
    check_reverse(emulator)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "large", "message"),
    [
        (1, 1024, 48 << 10, 0, None),
        (2, 32, 227 << 10, 1, None),
        (0, 32, 0, 0, r"grid \(0, 1, 1\) and block \(32, 1, 1\) failed: the grid is empty"),
        (1, 0, 0, 0, "the block is empty"),
        (1, 1025, 0, 0, "at most 1024 threads"),
        (1 << 31, 32, 0, 0, "a grid has at most"),
        ((1 << 32) + 1, 32, 0, 0, "4294967297 does not fit in 32 bits"),
        (1, -1, 0, 0, "-1 does not fit"),
        (1, 32, (48 << 10) + 1, 0, "trap_kernel .*49153 bytes of dynamic .*large_shared"),
        (1, 32, (227 << 10) + 1, 1, "232449 bytes of dynamic shared memory exceed 232448"),
    ],
)
def test_launch_limits(
    emulator: Library, grid: int, block: int, shared: int, large: int, message: str | None
) -> None:
    args = (ctypes.c_int64(grid), block, ctypes.c_int64(shared), large)
    if message is None:
        emulator.call("launch_shape", *args)
        return
    with pytest.raises(RuntimeError, match=message):
        emulator.call("launch_shape", *args)


@pytest.mark.parametrize("value", ["backward", "shuffle:", "shuffle:x", "shuffle:-1"])
def test_an_unknown_order_is_an_error(
    emulator: Library, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("REGKERN_EMULATOR_ORDER", value)
    with pytest.raises(RuntimeError, match=f"REGKERN_EMULATOR_ORDER: .*got `{value}`"):
        check_reverse(emulator)


def test_launches_from_several_threads(emulator: Library, order: str) -> None:
    def work(i: int) -> None:
        for check in (check_block_sum, check_transpose):
            check(emulator)
        with pytest.raises(RuntimeError, match="deadlock"):
            emulator.call("misuse", b"deadlock", (ctypes.c_int * 64)())
        check_reverse(emulator)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def run_sanitized(code: str, order: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preloads()),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
        # The sanitizer guards what malloc gives out, and Python has an allocator of its own.
        "PYTHONMALLOC": "malloc",
        "REGKERN_EMULATOR_ORDER": order,
    }
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def library_code(path: Path) -> str:
    return (
        "import ctypes\n"
        f"library = ctypes.CDLL({str(path)!r})\n"
        "error = ctypes.create_string_buffer(2048)\n"
    )


@pytest.mark.parametrize("kernel", ["global_write", "static_write", "dynamic_write"])
def test_an_access_out_of_bounds_shows(sanitized: Path, kernel: str) -> None:
    code = library_code(sanitized) + f"assert library.{kernel}({{}}, error) == 0, error.value\n"
    within = run_sanitized(code.format(0), "shuffle:3")
    assert within.returncode == 0, within.stderr
    beyond = run_sanitized(code.format(1), "shuffle:3")
    assert beyond.returncode != 0
    assert "heap-buffer-overflow" in beyond.stderr
    assert f"{kernel}_kernel" in beyond.stderr


@pytest.mark.parametrize("order", ["forward", "shuffle:7"])
def test_right_kernels_are_clean_under_sanitizers(sanitized: Path, order: str) -> None:
    # Misuse leaves fibers behind in the middle of a kernel: what follows must be clean too.
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import ctypes, pathlib, test_emulator as t\n"
        f"library = t.Library(pathlib.Path({str(sanitized)!r}))\n"
        "for what in b'bdeimt':\n"
        "    try: library.call('misuse', bytes([what]), (ctypes.c_int * 64)())\n"
        "    except RuntimeError as error: assert 'emulator' in str(error), error\n"
        "    else: raise AssertionError(what)\n"
        "    for check in t.RIGHT.values(): check(library)\n"
    )
    done = run_sanitized(code, order)
    assert done.returncode == 0, done.stderr
    assert "runtime error" not in done.stderr


def test_the_same_text_compiles_for_the_gpu(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    command = [nvcc, "-arch=sm_90", "-std=c++20", "-c", "-Werror", "all-warnings"]
    command += ["-Xcompiler", "-Wall,-Wextra,-Werror", f"-I{ROOT / 'csrc'}"]
    command += ["-o", str(tmp_path / "kernels.o"), str(KERNELS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

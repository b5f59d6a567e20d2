"""Shared fixtures: the emulator libraries, built once per session."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """What a test draws without a generator does not depend on the tests before it, or on luck."""
    import torch

    torch.manual_seed(0x5EED)


def _tool(name: str) -> str:
    path = shutil.which(name) or str(Path(sys.executable).parent / name)
    assert Path(path).exists(), f"the tests need {name}: pip install {name}"
    return path


def build_library(name: str, *options: str) -> Path:
    """Configures and builds one flavour of the CMake project; kept between sessions."""
    folder = ROOT / "build" / "tests" / name
    folder.mkdir(parents=True, exist_ok=True)
    # Test processes that run side by side build it once.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build(folder, options)
    return folder


def _build(folder: Path, options: tuple[str, ...]) -> None:
    import torch

    subprocess.run(
        [
            _tool("cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DREGKERN_TORCH_DIR={Path(torch.__file__).parent}",
            "-DREGKERN_NATIVE=OFF", "-DREGKERN_WERROR=ON",
            *options,
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    built = subprocess.run([_tool("cmake"), "--build", str(folder)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr


_EMULATOR = ("-DREGKERN_CPU=OFF", "-DREGKERN_CUDA=OFF", "-DREGKERN_EMULATOR=ON")


@pytest.fixture(scope="session")
def emulator() -> Path:
    """libregkern_emulator.so: the CUDA kernels, run on the CPU."""
    return build_library("emulator", *_EMULATOR) / "libregkern_emulator.so"


@pytest.fixture(scope="session")
def sanitized_emulator() -> Path:
    """The same under AddressSanitizer and UBSan."""
    folder = build_library("emulator-sanitized", *_EMULATOR, "-DREGKERN_SANITIZE=ON")
    return folder / "libregkern_emulator.so"

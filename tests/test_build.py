"""The package as it was built: facts, symbols, the choice of the instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import regkern
import torch


def _import_with(**env: str) -> subprocess.CompletedProcess[str]:
    code = "import regkern; print(regkern.build_info()['cpu_capability'])"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True
    )


def test_build_info() -> None:
    info = regkern.build_info()
    assert info["cpu_capability"] in ("baseline", "avx2", "avx512")
    assert info["torch"] == torch.__version__
    assert info["version"] == regkern.__version__
    assert info["cuda_loaded"] <= info["cuda_built"]


def test_capability_override() -> None:
    run = _import_with(REGKERN_CPU_CAPABILITY="baseline")
    assert run.stdout.strip() == "baseline", run.stderr


def test_unknown_capability_is_an_error_and_no_crash() -> None:
    run = _import_with(REGKERN_CPU_CAPABILITY="avx1024")
    assert run.returncode == 1
    assert (
        "expected REGKERN_CPU_CAPABILITY to be baseline, avx2 or avx512, got avx1024" in run.stderr
    )


def test_native_probes() -> None:
    from regkern import _native

    assert _native.copy_bandwidth(bytes=1 << 20, threads=2, repeats=2) > 0
    assert _native.fma_rate() > 0
    assert _native.exp_rate() > 0


def test_loading_does_not_change_floating_point_modes() -> None:
    """-ffast-math would make the linker flip denormals to zero in the whole process."""
    tiny = torch.tensor([1e-40], dtype=torch.float32)
    assert float((tiny * 0.5)[0]) > 0.0


def test_without_torch_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    # An interpreter that sees setuptools and nothing of torch.
    code = (
        "import sys, runpy, setuptools;"
        "sys.argv = ['setup.py', 'build_ext'];"
        "import subprocess; real = subprocess.run;"
        "subprocess.run = lambda *a, **k: subprocess.CompletedProcess(a, 0, '', '');"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.returncode == 1
    assert "run `pip install torch` for your platform first" in run.stderr

"""What a result was measured on."""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import regkern
from regkern.bench.rivals import version

_MALLOC_VARIABLES = ("LD_PRELOAD", "THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX")
_PEERS = ("torchvision", "timm", "kornia", "dropblock")


def metadata(device: str, threads: int) -> dict[str, Any]:
    """Versions, machine, allocator and the commit, where the package lies in a git checkout."""
    build = regkern.build_info()
    return {
        "torch": torch.__version__,
        "regkern": build.get("version", version("regkern")),
        "build": {key: _plain(value) for key, value in build.items()},
        "peers": {peer: version(peer) for peer in _PEERS},
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "capability": build.get("cpu_capability"),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "malloc": {
            "libc": " ".join(platform.libc_ver()),
            **{name: os.environ[name] for name in _MALLOC_VARIABLES if name in os.environ},
        },
        "probes": _probes(threads),
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _commit() -> str | None:
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # An environment may lie inside somebody else's checkout: only a tracked file tells.
        git("ls-files", "--error-unmatch", here.name)
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _probes(threads: int) -> dict[str, float | str]:
    """Peaks of this machine, by the library's own probes; or why there are none."""
    try:
        native = importlib.import_module("regkern._native")
    except ImportError as error:
        return {"n/a": str(error)}
    # Far beyond any cache.
    size = 1 << 28
    return {
        "copy_gb_s": float(native.copy_bandwidth(size, threads)),
        "fma_gflop_s": float(native.fma_rate()),
        "exp_g_s": float(native.exp_rate()),
    }

"""Loads the compiled libraries, once, at import."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

_HERE = Path(__file__).resolve().parent
_MINIMUM = (2, 11)


def _load() -> bool:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _MINIMUM:
        raise ImportError(f"regkern needs torch 2.11 or newer, found {torch.__version__}")
    library = _HERE / "libregkern.so"
    if not library.exists():
        raise ImportError(
            f"regkern: {library} is missing; build it with `pip install .` in the source tree"
        )
    torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    # The instruction set is chosen here, so that a wrong override is told by the import.
    torch.ops.regkern.cpu_capability()
    cuda = _HERE / "libregkern_cuda.so"
    # It needs libtorch_cuda, which only a CUDA build of torch has.
    if torch.version.cuda is None or not cuda.exists():
        return False
    torch.ops.load_library(str(cuda))  # type: ignore[no-untyped-call]
    return True


_CUDA_LOADED = _load()


def build_info() -> dict[str, Any]:
    """What was built and what runs.

    Returns
    -------
    dict
        ``version`` of regkern, ``compiler``, ``torch`` in use, ``cpu_capability`` (``baseline``,
        ``avx2`` or ``avx512``; environment variable ``REGKERN_CPU_CAPABILITY`` overrides it),
        ``cuda_built`` and ``cuda_loaded`` (the library is loaded only where torch has CUDA).
    """
    native = importlib.import_module("regkern._native")
    return {
        "version": native.version,
        "compiler": native.compiler,
        "torch": torch.__version__,
        "cpu_capability": torch.ops.regkern.cpu_capability(),
        "cuda_built": (_HERE / "libregkern_cuda.so").exists(),
        "cuda_loaded": _CUDA_LOADED,
    }

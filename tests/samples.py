"""The registry: one entry per op and option worth testing. Every contract test runs over all of it.

A new op adds its samples to the `samples_<subject>.py` of its family (a line or two each) and gets
the whole contract: reference, opcheck, gradients, vmap, torch.func, compile, export, layouts,
empty, NaN, threads, instruction sets, emulator.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from sample import Sample as Sample

SAMPLES: list[Sample] = [
    sample
    for path in sorted(Path(__file__).parent.glob("samples_*.py"))
    for sample in importlib.import_module(path.stem).SAMPLES
]

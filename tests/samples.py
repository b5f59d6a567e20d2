"""The registry: one entry per op and option worth testing. Every contract test runs over all of it.

A new op adds its samples to the `samples_<subject>.py` of its family (a line or two each) and gets
the whole contract: reference, opcheck, gradients, vmap, torch.func, compile, export, layouts,
empty, NaN, threads, instruction sets, emulator. Ops that write lists of tensors have theirs in
`LISTS`, and the contract of test_contract_lists.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from sample import ListSample as ListSample
from sample import Sample as Sample

_MODULES = [
    importlib.import_module(path.stem)
    for path in sorted(Path(__file__).parent.glob("samples_*.py"))
]
SAMPLES: list[Sample] = [sample for module in _MODULES for sample in getattr(module, "SAMPLES", [])]
LISTS: list[ListSample] = [sample for module in _MODULES for sample in getattr(module, "LISTS", [])]

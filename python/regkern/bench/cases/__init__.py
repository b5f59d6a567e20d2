"""The cases, one module per family: each has a tuple ``CASES`` and is found by being here."""

from __future__ import annotations

import importlib
import pkgutil

from regkern.bench.case import Case


def all_cases() -> dict[str, Case]:
    """Every case of every family, by name."""
    found: dict[str, Case] = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        for case in importlib.import_module(f"{__name__}.{module.name}").CASES:
            if case.name in found:
                raise ValueError(f"two benchmark cases are called {case.name!r}")
            found[case.name] = case
    return found

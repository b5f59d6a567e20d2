"""The cases, one module per family: each has a tuple ``CASES`` and is found by being here."""

from __future__ import annotations

import importlib
import pkgutil

from regkern.bench.case import Case


def _modules(family: str = "") -> list[str]:
    return sorted(
        info.name
        for info in pkgutil.iter_modules(__path__, f"{__name__}.")
        if (info.name.removeprefix(f"{__name__}.").startswith(family))
    )


def cases_of(family: str) -> tuple[Case, ...]:
    """The cases of the modules ``family`` and ``family_<subject>``."""
    return tuple(case for name in _modules(family) for case in importlib.import_module(name).CASES)


def all_cases() -> dict[str, Case]:
    """Every case of every family, by name."""
    found: dict[str, Case] = {}
    for case in cases_of(""):
        if case.name in found:
            raise ValueError(f"two benchmark cases are called {case.name!r}")
        found[case.name] = case
    return found

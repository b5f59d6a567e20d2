"""The libraries that regkern is compared with, or the reason why a test has to do without."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from regkern.bench import rivals


def rival(module: str) -> Any:
    """Imports a module of torchvision, timm or dropblock; skips the test where it is missing."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, which is not installed")
    try:
        return rivals.torchvision(module)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{package} cannot be imported here: {error}")

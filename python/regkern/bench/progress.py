"""A progress bar on stderr, for people only."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

_WIDTH = 24


class Progress:
    """``with Progress(n) as progress: progress.step("what is next")``; silent without a tty."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total = max(1, total)
        self._done = -1
        self._start = time.monotonic()
        self._shown = self._stream.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()

    def clear(self) -> None:
        """Make way for other output."""
        self._write("")

    def step(self, label: str) -> None:
        """The previous step is done and ``label`` begins."""
        self._done += 1
        full = _WIDTH * self._done // self._total
        bar = "#" * full + "." * (_WIDTH - full)
        seconds = time.monotonic() - self._start
        self._write(f"[{bar}] {self._done}/{self._total} {seconds:4.0f} s  {label}")

    def _write(self, line: str) -> None:
        if self._shown:
            # Erases the line that the cursor is in, then writes over it.
            self._stream.write(f"\r\x1b[2K{line[:100]}")
            self._stream.flush()

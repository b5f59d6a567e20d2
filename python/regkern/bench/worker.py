"""A measuring process: tasks come as lines of JSON on stdin, results go back the same way.

Apart, since the allocator is chosen by the environment before a process starts, and since a rival
that crashes takes its process with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from typing import Any, TextIO

from regkern.bench.case import Task
from regkern.bench.measure import OURS, Options, measure

_MALLOC = {
    # glibc gives blocks above 32 MB back at once, so that each output costs its page faults anew.
    # Above these thresholds it keeps them: what a caching allocator would do.
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
}


def environment(malloc: str) -> dict[str, str]:
    """The environment of a process with a ``"warm"`` or a ``"cold"`` allocator."""
    kept = {name: value for name, value in os.environ.items() if name not in _MALLOC}
    return kept | _MALLOC if malloc == "warm" else kept


class Worker:
    """Starts a measuring process at the first task, and again after one that died."""

    def __init__(self, malloc: str) -> None:
        self.malloc = malloc
        self._process: subprocess.Popen[str] | None = None
        self._files = contextlib.ExitStack()
        self._errors: TextIO | None = None

    def measure(self, task: Task, options: Options) -> dict[str, Any]:
        """Measure ``task``; whoever kills the process is left out, with that as the reason."""
        died: list[dict[str, Any]] = []
        while True:
            running = self._start()
            assert running.stdin is not None
            assert running.stdout is not None
            skip = (*options.skip, *(record["name"] for record in died))
            request = {"task": asdict(task), "options": asdict(replace(options, skip=skip))}
            running.stdin.write(json.dumps(request) + "\n")
            running.stdin.flush()
            current = "start"
            for line in running.stdout:
                reply: dict[str, Any] = json.loads(line)
                if "result" in reply:
                    result: dict[str, Any] = reply["result"]
                    result.get("runs", []).extend(died)
                    return result
                if "error" in reply:
                    return {"error": reply["error"], "runs": died}
                current = reply["announce"]
            error = f"its process ended with status {running.wait()}{self._last_words()}"
            self.close()
            if current in ("start", "check", "inputs", "timing", OURS):
                return {"error": f"{current}: {error}", "runs": died}
            kind = "reference" if current.startswith("reference") else "peer"
            record = dict.fromkeys(("timing", "saved_bytes", "estimate_ms"))
            package = "regkern" if kind == "reference" else ""
            died.append(
                {"name": current, "kind": kind, "package": package, "note": "", "error": error}
                | record
            )

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None
        self._files.close()

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            # A file, not a pipe: nobody reads it while the process runs. `close` closes it.
            self._errors = self._files.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
            self._process = subprocess.Popen(
                [sys.executable, "-m", "regkern.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment(self.malloc),
                text=True,
            )
        return self._process

    def _last_words(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def serve(requests: TextIO, replies: TextIO) -> None:
    """Answer requests until there are no more."""

    def send(message: dict[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    for line in requests:
        request = json.loads(line)
        task = Task(**{**request["task"], "shape": tuple(request["task"]["shape"])})
        options = Options(**request["options"])
        try:
            send({"result": measure(task, options, lambda name: send({"announce": name}))})
        except Exception as error:
            send({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    # What rivals print must not end up among the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, replies)

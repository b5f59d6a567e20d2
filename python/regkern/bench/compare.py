"""``regkern bench compare``: what got slower between two files of results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regkern.bench.report import number, title
from regkern.bench.results import Result, ratio, value

_DIFFERENT_MACHINE = ("cpu", "cores", "capability", "device", "torch")


@dataclass(frozen=True)
class Change:
    """One figure of ours before and after, in times the floor or in milliseconds."""

    what: str
    before: float
    after: float
    spread: float
    unit: str
    tolerance: float
    counts: bool = True

    @property
    def verdict(self) -> str:
        """``slower`` or ``faster`` only beyond the tolerance and beyond the spread of both."""
        if abs(self.after - self.before) <= max(self.spread, self.tolerance * self.before):
            return "same"
        return "slower" if self.after > self.before else "faster"

    def __str__(self) -> str:
        percent = 100 * (self.after / self.before - 1)
        figures = " -> ".join(number(figure, self.unit) for figure in (self.before, self.after))
        spread = number(self.spread, self.unit)
        remark = "" if self.counts else " (does not count)"
        change = f"{self.verdict:>6}  {percent:+6.1f} %  {figures}  (spread {spread})"
        return f"{change}  {self.what}{remark}"


@dataclass(frozen=True)
class Comparison:
    """All that changed, and what only one of the two could measure."""

    changes: list[Change]
    lost: list[str]
    remarks: list[str]

    @property
    def worse(self) -> bool:
        return bool(self.lost) or any(
            change.counts and change.verdict == "slower" for change in self.changes
        )

    def __str__(self) -> str:
        order = {"slower": 0, "faster": 1, "same": 2}
        changes = sorted(self.changes, key=lambda change: order[change.verdict])
        counts = {word: sum(c.verdict == word for c in changes) for word in order}
        totals = ", ".join(f"{count} {word}" for word, count in counts.items())
        return "\n".join([*self.remarks, *map(str, changes), *self.lost, totals])


def _ours(result: Result) -> dict[str, Any] | None:
    if result["floor"] is None:
        return None
    return next((run for run in result["runs"] if run["kind"] == "ours"), None)


def _figure(result: Result, malloc: str, absolute: bool) -> tuple[float, float] | None:
    """Ours with its spread: over the floor of its own run, or in milliseconds if ``absolute``."""
    run = _ours(result)
    timing = run["timing"].get(malloc) if run else None
    if timing is None:
        return None
    floor = 1.0 if absolute else value(result["floor"]["timing"].get(malloc))
    took, spread = ratio(value(timing), floor), ratio(timing["iqr_ms"], floor)
    return None if took is None or spread is None else (took, spread)


def compare(
    before: dict[str, Any],
    after: dict[str, Any],
    tolerance: float = 0.05,
    absolute: bool = False,
    cold: bool = False,
) -> Comparison:
    """Compare two files of results, case by case.

    Times are taken over the floor of their own run, since machines differ and have busy days;
    ``absolute`` compares milliseconds. Beside warm times, cold ones only count if ``cold``: what a
    page fault costs depends on the state of the machine's memory and may double between two runs.
    """
    then = {title(result): result for result in before["results"]}
    now = {title(result): result for result in after["results"]}
    changes, lost = [], []
    remarks = [
        f"note: {key} was {before['metadata'].get(key)}, is {after['metadata'].get(key)}"
        for key in _DIFFERENT_MACHINE
        if before["metadata"].get(key) != after["metadata"].get(key)
    ]
    for name in then.keys() & now.keys():
        for malloc in ("warm", "cold"):
            old, new = (_figure(side[name], malloc, absolute) for side in (then, now))
            if old is not None and new is not None:
                unit = " ms" if absolute else "x"
                spread = max(old[1], new[1])
                what = f"{name}  {malloc}"
                counts = cold or malloc == now[name]["malloc"]
                changes.append(Change(what, old[0], new[0], spread, unit, tolerance, counts))
            elif old is not None and now[name]["malloc"] == then[name]["malloc"] == malloc:
                run = _ours(now[name])
                why = (run and run["error"]) or now[name]["error"] or now[name]["check"]
                lost.append(f"no longer measured  {name}  {malloc}: {why}")
    remarks += [f"note: only in the first file: {name}" for name in sorted(then.keys() - now)]
    remarks += [f"note: only in the second file: {name}" for name in sorted(now.keys() - then)]
    return Comparison(sorted(changes, key=lambda change: change.what), sorted(lost), remarks)

"""Joins what the warm and the cold process measured into one result, with its ratios."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from regkern.bench.case import Case, Task

Result = dict[str, Any]


def value(timing: dict[str, Any] | None) -> float | None:
    """The milliseconds that ratios are made of; see :class:`regkern.bench.timing.Timing`."""
    if timing is None:
        return None
    return float(timing["min_ms" if timing["statistic"] == "min" else "median_ms"])


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Their quotient, or None where either is missing."""
    return numerator / denominator if numerator is not None and denominator else None


def join(case: Case, task: Task, by_malloc: dict[str, dict[str, Any]]) -> Result:
    """One result: the task, its floor, and every contender with its ratios.

    The first of ``by_malloc`` decides the ratios; its key is the ``malloc`` of the result.
    """
    malloc, first = next(iter(by_malloc.items()))
    result: Result = {
        **asdict(task),
        "op": case.op,
        "malloc": malloc,
        "check": first.get("check"),
        "error": first.get("error"),
        "bytes": first.get("bytes"),
        "input_bytes": first.get("input_bytes"),
        "floor": None,
        "bar": case.bar_of(task) if malloc == "warm" else None,
        "bar_met": None,
        "runs": [],
    }
    if not first.get("floor"):
        result["runs"] = first.get("runs", [])
        return result

    floors = {
        name: measured["floor"]["timing"] if measured.get("floor") else None
        for name, measured in by_malloc.items()
    }
    floor_ms = value(floors[malloc])
    kind, size = first["floor"]["kind"], first["floor"]["bytes"]
    floor_gb_s = ratio(1e-6 * size, floor_ms)
    result["floor"] = {"kind": kind, "bytes": size, "gb_s": floor_gb_s, "timing": floors}

    joined = []
    for run in first["runs"]:
        timings, errors = {}, {}
        for name, measured in by_malloc.items():
            same = [other for other in measured.get("runs", []) if other["name"] == run["name"]]
            timings[name] = same[0]["timing"] if same else None
            errors[name] = same[0]["error"] if same else measured.get("error")
        took = value(timings[malloc])
        gb_s = ratio(1e-6 * first["bytes"], took)
        joined.append(
            {
                **{key: run[key] for key in ("name", "kind", "package", "note", "estimate_ms")},
                "error": next((error for error in errors.values() if error), None),
                "timing": timings,
                "x_floor": {
                    name: ratio(value(timing), value(floors[name]))
                    for name, timing in timings.items()
                },
                "gb_s": gb_s,
                "floor_share": ratio(gb_s, floor_gb_s),
                "saved_bytes": run["saved_bytes"],
                "saved_x": ratio(run["saved_bytes"], first["input_bytes"]),
            }
        )
    ours = next((run for run in joined if run["kind"] == "ours"), None)
    for run in joined:
        own = value(ours["timing"][malloc]) if ours else None
        took = value(run["timing"][malloc])
        # An estimate is good enough to say by how much a call that nobody waited for is slower.
        run["ratio"] = ratio(took if took is not None else run["estimate_ms"], own)
    if ours and result["bar"] is not None and ours["x_floor"][malloc] is not None:
        result["bar_met"] = ours["x_floor"][malloc] <= result["bar"]
    result["runs"] = joined
    return result

"""The table: what people read, made from nothing but the results that JSON has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regkern.bench.case import Task
from regkern.bench.results import Result, value

_HEADER = (
    ("", 34),
    ("min ms", 9),
    ("median", 9),
    ("iqr", 8),
    ("GB/s", 7),
    ("share", 6),
    ("x floor", 8),
    ("cold ms", 9),
    ("x floor", 8),
    ("saved", 7),
    ("regkern is", 16),
)

LEGEND = """\
min, median, iqr   milliseconds of one call{clock}
GB/s, share        the fewest bytes of the case over the time; over what the floor reaches
x floor            time over that of the floor, measured in turn with the case
cold               with the default malloc, which returns large blocks to the system at each call
saved              kept for backward beyond the inputs, in multiples of the input"""


def _cells(values: Sequence[str]) -> str:
    pairs = zip(values, _HEADER, strict=True)
    cells = [text.rjust(width) for text, (_, width) in pairs]
    return " ".join([values[0].ljust(_HEADER[0][1]), *cells[1:]]).rstrip()


def number(amount: float | None, suffix: str = "") -> str:
    """Three digits, and ``-`` for what was not measured."""
    if amount is None:
        return "-"
    digits = 0 if amount >= 100 else 1 if amount >= 10 else 2 if amount >= 0.1 else 3
    return f"{amount:.{digits}f}{suffix}"


def title(result: Result) -> str:
    """What was measured, in one line."""
    keys = ("case", "dtype", "device", "backward", "threads")
    return Task(shape=tuple(result["shape"]), **{key: result[key] for key in keys}).title


def verdict(run: dict[str, Any]) -> str:
    """How ours compares with this contender: losses read like wins."""
    times = run.get("ratio")
    if run["kind"] == "ours" or times is None:
        return ""
    if abs(times - 1) < 0.005:
        return "as fast"
    about = "~" if run["estimate_ms"] is not None else ""
    word = "faster" if times >= 1 else "slower"
    return f"{about}{number(times if times >= 1 else 1 / times)}x {word}"


def _row(name: str, timing: dict[str, Any], malloc: str, columns: Sequence[str]) -> str:
    main = timing.get(malloc)
    figures = [main[key] if main else None for key in ("min_ms", "median_ms", "iqr_ms")]
    return _cells([f"  {name}", *map(number, figures), *columns])


def _run_row(result: Result, run: dict[str, Any]) -> str:
    malloc = result["malloc"]
    cold = run["timing"].get("cold") if malloc != "cold" else None
    cold_floor = run["x_floor"].get("cold") if malloc != "cold" else None
    share = run["floor_share"]
    columns = [
        number(run["gb_s"]),
        "-" if share is None else f"{share:.0%}",
        number(run["x_floor"][malloc], "x"),
        number(value(cold)),
        number(cold_floor, "x"),
        number(run["saved_x"], "x"),
        verdict(run),
    ]
    return _row(run["name"], run["timing"], malloc, columns)


def _remarks(run: dict[str, Any], patience: float) -> list[str]:
    remarks = []
    if run["estimate_ms"] is not None:
        seconds = number(1e-3 * run["estimate_ms"])
        remarks.append(
            f"not timed: about {seconds} s a call, going by a part of the batch "
            f"(--patience {patience:g})"
        )
    elif run["timing"].get("warm") and "cold" in run["timing"] and not run["timing"]["cold"]:
        remarks.append("too slow to be timed cold as well")
    if run["error"]:
        remarks.append(f"failed: {run['error']}")
    if run["note"]:
        remarks.append(run["note"])
    return remarks


def block(result: Result, patience: float) -> str:
    """The table of one result."""
    lines = [title(result)]
    floor = result["floor"]
    if floor is None:
        what = f"differs from the reference: {result['check']}" if result["check"] else ""
        lines.append(f"  NOT MEASURED: {result['error'] or what}")
        lines += [f"  {run['name']}: failed: {run['error']}" for run in result["runs"]]
        return "\n".join(lines)
    lines.append(_cells([name for name, _ in _HEADER]))
    cold = value(floor["timing"].get("cold")) if result["malloc"] != "cold" else None
    columns = [number(floor["gb_s"]), "100%", "1.00x", number(cold), "", "", ""]
    lines.append(_row(f"floor: {floor['kind']}", floor["timing"], result["malloc"], columns))
    for run in result["runs"]:
        remarks = _remarks(run, patience)
        timed = any(timing is not None for timing in run["timing"].values())
        if timed or run["estimate_ms"] is not None:
            lines.append(_run_row(result, run))
            lines += [f"    {remark}" for remark in remarks]
        else:
            lines.append(f"  {run['name']}: {'; '.join(remarks)}")
    if result["check"]:
        lines.append(f"  check against the reference: {result['check']}")
    if result["bar"] is not None:
        word = {True: "met", False: "MISSED", None: "not measured"}[result["bar_met"]]
        lines.append(f"  bar: at most {result['bar']:g}x the floor: {word}")
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """Wins, losses and bars over all results. Every loss is named."""
    against = [
        (result, run)
        for result in results
        for run in result["runs"]
        if run["kind"] != "ours" and run.get("ratio") is not None
    ]
    wins = [(result, run) for result, run in against if verdict(run).endswith("faster")]
    losses = [(result, run) for result, run in against if verdict(run).endswith("slower")]
    bars = [result for result in results if result["bar"] is not None]
    missed = [result for result in bars if not result["bar_met"]]
    lines = [
        f"faster in {len(wins)} of {len(against)} comparisons, slower in {len(losses)}; "
        f"{len(bars) - len(missed)} of {len(bars)} bars met"
    ]
    lines += [f"  slower: {title(result)}: {run['name']}: {verdict(run)}" for result, run in losses]
    lines += [f"  bar missed: {title(result)}" for result in missed]
    failed = {
        f"{run['name']}: {run['error']}"
        for result in results
        for run in result["runs"]
        if run["error"]
    }
    lines += [f"  failed: {text}" for text in sorted(failed)]
    return "\n".join(lines)


def heading(metadata: dict[str, Any]) -> str:
    """The machine and the versions, in a few lines."""
    peers = metadata["peers"].items()
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in peers)
    probes = ", ".join(
        f"{name} {number(figure) if isinstance(figure, float) else figure}"
        for name, figure in metadata["probes"].items()
    )
    return "\n".join(
        [
            f"regkern {metadata['regkern']} ({metadata['commit'] or 'no commit'}), "
            f"torch {metadata['torch']}, {versions}",
            f"{metadata['cpu']}, {metadata['cores']} cores, {metadata['capability']} kernels "
            f"(torch: {metadata['torch_capability']}), {metadata['device']}",
            f"probes of this machine: {probes}",
        ]
    )

"""The command line: ``regkern bench`` and ``regkern bench compare``."""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from regkern.bench import compare as comparing
from regkern.bench import report, rivals
from regkern.bench.case import Case, Task, dtype_name, dtype_of
from regkern.bench.cases import all_cases
from regkern.bench.measure import Options
from regkern.bench.metadata import metadata
from regkern.bench.progress import Progress
from regkern.bench.results import Result, join
from regkern.bench.worker import Worker

DESCRIPTION = """\
Times every op beside its floor, its reference and the peers that are installed. Without arguments
it measures each case at its default shape, and forward+backward where a bar is set for it."""


def main(argv: Sequence[str] | None = None) -> int:
    """The script ``regkern``, whose one subcommand is ``bench``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["bench"]:
        return bench(arguments[1:])
    parser = argparse.ArgumentParser(prog="regkern", description="Tools of the regkern library.")
    subcommands = parser.add_subparsers(title="commands", required=True)
    subcommands.add_parser("bench", help="microbenchmarks: `regkern bench --help`", add_help=False)
    parser.parse_args(arguments)
    return 0


def bench(argv: Sequence[str]) -> int:
    """``regkern bench`` with its arguments; returns the exit status."""
    return _compare(argv[1:]) if argv[:1] == ["compare"] else _measure(argv)


def _compare(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="regkern bench compare",
        description="Says what got slower, beyond the spread of both; exit status 1 if it did.",
    )
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument(
        "--tolerance", type=float, default=0.05, help="what may be lost, as a share (%(default)s)"
    )
    parser.add_argument(
        "--absolute", action="store_true", help="compare milliseconds, not times the floor"
    )
    parser.add_argument(
        "--cold", action="store_true", help="cold times count too: page faults are not steady"
    )
    arguments = parser.parse_args(argv)
    files = []
    for path in (arguments.before, arguments.after):
        try:
            files.append(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            parser.error(f"cannot read {path}: {error}")
    comparison = comparing.compare(
        files[0], files[1], arguments.tolerance, arguments.absolute, arguments.cold
    )
    print(comparison)
    return int(comparison.worse)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="regkern bench",
        description=DESCRIPTION,
        epilog="`regkern bench compare A.json B.json` says what got slower.",
    )
    add = parser.add_argument
    add("--list", action="store_true", help="list the cases and the peers, and measure nothing")
    add("--op", action="append", metavar="NAME", help="an op, a case, or a pattern; repeatable")
    add("--shape", metavar="32x256x56x56", help="of the main input; or `small`")
    add("--dtype", metavar="NAME[,NAME]", help="float32, bfloat16, ... (the case's own)")
    add("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    add("--backward", action="store_true", help="also forward+backward, where there are gradients")
    add(
        "--against",
        default="reference,peers",
        metavar="WHO[,WHO]",
        help="reference, compiled (the reference under torch.compile: slow to start), peers, "
        "the name of a package, all, or none (%(default)s)",
    )
    add("--check", action="store_true", help="first verify each case against the reference")
    add(
        "--malloc",
        choices=("both", "warm", "cold"),
        default="both",
        help="the allocator: one that keeps freed memory, the default one, or both (%(default)s)",
    )
    add("--seconds", type=float, default=0.2, help="to spend on each implementation (%(default)s)")
    add(
        "--patience",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="estimate, and do not time, a rival whose call takes longer (%(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="write the results; `-` for stdout")
    return parser


def _select(parser: argparse.ArgumentParser, names: Sequence[str] | None) -> list[Case]:
    cases = all_cases()
    if not names:
        return list(cases.values())
    selected = []
    for name in names:
        found = [c for c in cases.values() if name == c.op or fnmatch.fnmatchcase(c.name, name)]
        if not found:
            parser.error(f"unknown op {name!r}; there are: {', '.join(cases)}")
        selected += [case for case in found if case not in selected]
    return selected


def _shape(parser: argparse.ArgumentParser, text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split("x"))
        if min(shape) > 0:
            return shape
    except ValueError:
        pass
    parser.error(f"expected a shape such as 32x256x56x56, got {text!r}")


def _plan(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> tuple[list[tuple[Case, Task]], list[str]]:
    """What to measure, and what was left out with the reason."""
    small = arguments.shape == "small"
    shape = None if small or arguments.shape is None else _shape(parser, arguments.shape)
    try:
        wanted = [dtype_of(name) for name in (arguments.dtype or "").split(",") if name]
    except ValueError as error:
        parser.error(str(error))
    tasks, left_out = [], []
    for case in _select(parser, arguments.op):
        if shape is not None and len(shape) != len(case.shape):
            left_out.append(f"{case.name}: its inputs have {len(case.shape)} dimensions")
            continue
        for dtype in wanted or case.dtypes:
            if dtype not in (*case.dtypes, *case.more_dtypes):
                left_out.append(f"{case.name}: not for {dtype_name(dtype)}")
                continue
            task = Task(
                case=case.name,
                shape=shape or (case.small if small else case.shape),
                dtype=dtype_name(dtype),
                device=arguments.device,
                threads=arguments.threads,
            )
            tasks.append((case, task))
            there_and_back = replace(task, backward=True)
            asked = arguments.backward or case.bar_of(there_and_back) is not None
            if case.differentiable and dtype.is_floating_point and asked:
                tasks.append((case, there_and_back))
            elif arguments.backward:
                left_out.append(f"{case.name} {task.dtype}: no gradients to measure")
    if not tasks:
        parser.error("nothing to measure: " + "; ".join(left_out))
    return tasks, left_out


def _against(parser: argparse.ArgumentParser, text: str) -> tuple[str, ...]:
    packages = {rival.package for case in all_cases().values() for rival in case.rivals}
    words = {"reference", "compiled", "peers"}
    chosen = tuple(name for name in text.split(",") if name and name != "none")
    if "all" in chosen:
        return tuple(sorted(words))
    for name in chosen:
        if name not in words | packages:
            choices = ", ".join([*sorted(words), "all", "none", *sorted(packages)])
            parser.error(f"--against: unknown {name!r}; there are: {choices}")
    return chosen


def _measure(argv: Sequence[str]) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.list:
        print(_listing(_select(parser, arguments.op)))
        return 0
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    on_cuda = arguments.device.partition(":")[0] == "cuda"
    if not on_cuda and arguments.device != "cpu":
        parser.error(f"--device must be cpu or cuda, got {arguments.device!r}")
    if on_cuda and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: this torch sees no CUDA device")
    against = _against(parser, arguments.against)
    tasks, left_out = _plan(parser, arguments)
    options = Options(
        against=against,
        seconds=arguments.seconds,
        patience=arguments.patience,
        check=arguments.check,
    )
    # Torch caches CUDA memory itself: what malloc does shows on CPU only.
    both = ("warm",) if on_cuda else ("warm", "cold")
    mallocs = both if arguments.malloc == "both" else (arguments.malloc,)

    about = metadata(arguments.device, arguments.threads)
    out = sys.stderr if arguments.json == Path("-") else sys.stdout
    clock = "" if on_cuda else ": CPU time" if arguments.threads == 1 else ": wall time"
    print(report.heading(about), report.LEGEND.format(clock=clock), sep="\n\n", file=out)
    start = time.monotonic()
    results = _run(tasks, options, mallocs, arguments.patience, out)
    print(f"\n{report.summary(results)}", file=out)
    for text in left_out:
        print(f"  left out: {text}", file=out)
    for word in ("reference", "compiled", "peers"):
        if word not in against:
            print(f"  not asked for: --against {word}", file=out)
    print(f"  {time.monotonic() - start:.0f} s", file=out)
    if arguments.json is not None:
        text = json.dumps({"metadata": about, "results": results}, indent=1) + "\n"
        if arguments.json == Path("-"):
            sys.stdout.write(text)
        else:
            arguments.json.write_text(text)
    ours = [run for result in results for run in result["runs"] if run["kind"] == "ours"]
    complete = len(ours) == len(results) and not any(run["error"] for run in ours)
    return 0 if complete else 1


def _run(
    tasks: Sequence[tuple[Case, Task]],
    options: Options,
    mallocs: Sequence[str],
    patience: float,
    out: Any,
) -> list[Result]:
    workers = {malloc: Worker(malloc) for malloc in mallocs}
    results = []
    try:
        with Progress(len(tasks) * len(workers)) as progress:
            for case, task in tasks:
                measured: dict[str, dict[str, Any]] = {}
                for malloc, worker in workers.items():
                    progress.step(f"{task.title}  {malloc}")
                    how = _again(options, measured) if measured else options
                    measured[malloc] = worker.measure(task, how)
                    if not measured[malloc].get("floor"):
                        break
                progress.clear()
                results.append(join(case, task, measured))
                print(f"\n{report.block(results[-1], patience)}", file=out, flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return results


def _again(options: Options, measured: dict[str, dict[str, Any]]) -> Options:
    """Options for the second process, which need not find out again what the first one did."""
    runs = [run for result in measured.values() for run in result["runs"]]
    slow_ms = 1e3 * options.seconds
    slow = [run for run in runs if run["timing"] and run["timing"]["min_ms"] > slow_ms]
    # A reference is full of temporaries, each of which costs its page faults.
    references = [run["name"] for run in slow if run["kind"] == "reference"]
    return replace(
        options,
        check=False,
        patience=math.inf,
        seconds=options.seconds / 2,
        skip=(*references, *(run["name"] for run in runs if run["timing"] is None)),
        once=tuple(run["name"] for run in slow),
    )


def _listing(cases: Sequence[Case]) -> str:
    lines = []
    for case in cases:
        shape = "x".join(map(str, case.shape))
        dtypes = ",".join(map(dtype_name, case.dtypes))
        more = ",".join(map(dtype_name, case.more_dtypes))
        lines.append(f"{case.name}  {shape} {dtypes}" + (f" (or {more})" if more else ""))
        bars = {"forward": case.bar, "forward+backward": case.bar_backward}
        for direction, bar in bars.items():
            if bar is not None:
                lines.append(f"  bar: {direction} at most {bar:g}x {case.floor}")
        lines += [f"  rival: {rival.name}" for rival in case.rivals]
    packages = sorted({rival.package for case in cases for rival in case.rivals})
    lines.append("")
    for package in packages:
        lines.append(f"{package}: {rivals.version(package) or 'not installed'}")
    return "\n".join(lines)

"""The microbenchmark CLI. No test depends on how long anything takes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from regkern.bench import cases, cli, compare, networks, report, rivals, saved, timing
from regkern.bench.case import Case, Rival, Task
from regkern.bench.check import difference
from regkern.bench.measure import Options, _estimate, measure
from regkern.bench.progress import Progress
from regkern.bench.results import join
from regkern.bench.worker import Worker, environment

QUICK = ["--seconds", "0.001"]
CPU = torch.device("cpu")


def scale_case(**changes: Any) -> Case:
    """A case that needs none of our kernels: multiply by a tensor that is saved for backward."""

    def make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        return {"x": torch.ones(shape, dtype=dtype, device=device)}

    def ours(inputs: dict[str, Any]) -> torch.Tensor:
        x: torch.Tensor = inputs["x"]
        return x * torch.full_like(x, 2.0)

    arguments: dict[str, Any] = {
        "op": "scale",
        "variant": "",
        "shape": (4, 8),
        "small": (2, 3),
        "make": make,
        "ours": ours,
        "reference": lambda inputs: 2 * inputs["x"],
        "differentiable": True,
        "bar": 1e9,
    }
    return Case(**(arguments | changes))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the given cases the only ones, for what measures in this process."""

    def use(*chosen: Case) -> None:
        registry = {case.name: case for case in chosen}
        for module in ("regkern.bench.measure", "regkern.bench.cli"):
            monkeypatch.setattr(f"{module}.all_cases", lambda: registry)

    return use


def measured(case: Case, options: Options | None = None, **task: Any) -> dict[str, Any]:
    asked = Task(**{"case": case.name, "shape": case.shape, "dtype": "float32", **task})
    options = options or Options(seconds=0.0, against=("reference", "peers"))
    return join(case, asked, {"warm": measure(asked, options)})


def test_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    argv = ["bench", "--op", "drop_block", "--shape", "2x3x9x9", "--dtype", "float32"]
    argv += ["--backward", "--check", "--json", str(path), *QUICK]
    assert cli.main(argv) == 0

    out, err = capfd.readouterr()
    assert err == ""  # no progress bar without a terminal
    for column in ("min ms", "median", "iqr", "GB/s", "share", "x floor", "cold ms", "saved"):
        assert column in out
    for name in ("regkern", "reference", "torchvision", "timm", "dropblock", "F.dropout"):
        assert f"\n  {name}" in out
    assert "check against the reference: same" in out
    assert "left out: drop_block:3d: its inputs have 5 dimensions" in out
    assert "not asked for: --against compiled" in out

    data = json.loads(path.read_text())
    about = {"torch", "regkern", "cpu", "capability", "threads", "device", "date", "commit"}
    assert about | {"malloc"} <= data["metadata"].keys()
    directions = [r["backward"] for r in data["results"] if r["case"] == "drop_block"]
    assert directions == [False, True]
    for result in data["results"]:
        assert result["shape"] == [2, 3, 9, 9]
        ours = result["runs"][0]
        assert ours["kind"] == "ours"
        for malloc in ("warm", "cold"):
            found = ours["timing"][malloc]
            assert 0 < found["min_ms"] <= found["median_ms"]
            assert ours["x_floor"][malloc] == pytest.approx(
                found["min_ms"] / result["floor"]["timing"][malloc]["min_ms"]
            )
        assert all(run["timing"]["warm"] or run["error"] for run in result["runs"])


def test_as_a_module_with_json_on_stdout() -> None:
    argv = ["--op", "drop_block:inplace", "--shape", "small", "--against", "none", *QUICK]
    command = [sys.executable, "-m", "regkern.bench", *argv, "--malloc", "warm", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (result,) = json.loads(done.stdout)["results"]
    assert [run["name"] for run in result["runs"]] == ["regkern"]
    assert "bench" not in done.stdout
    assert "drop_block:inplace" in done.stderr


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    for case in cases.all_cases().values():
        assert f"\n{case.name}  " in f"\n{out}"
        assert all(rival.name in out for rival in case.rivals)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--op", "no_such_op"], "unknown op 'no_such_op'; there are: "),
        (["--shape", "4x"], "expected a shape such as 32x256x56x56, got '4x'"),
        (["--dtype", "float31"], "unknown dtype 'float31'"),
        (["--against", "nobody"], "unknown 'nobody'"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
        (["--shape", "7x1x1x1x1x1x1"], "nothing to measure: "),
        (["compare", "missing.json", "missing.json"], "cannot read missing.json"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["bench", *argv])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_cases_are_sound() -> None:
    for case in cases.all_cases().values():
        assert len(case.shape) == len(case.small)
        x = case.make(case.small, case.dtypes[0], CPU)["x"]
        assert x.shape == case.small
        assert case.bytes_moved(x, backward=True) >= case.bytes_moved(x, backward=False) > 0


@pytest.mark.parametrize("elements", [1, 7, 100])
def test_networks_of_any_size(elements: int) -> None:
    x = torch.arange(float(elements))
    views = networks.parts(x, networks.resnet50())
    assert torch.cat([v.flatten() for v in views]).equal(x)
    assert all(v.data_ptr() >= x.data_ptr() and v.dim() > 1 for v in views if v.numel())
    shapes = networks.resnet50()
    assert len(shapes) == 161
    assert networks.size(shapes) == 25_557_032


@pytest.mark.parametrize("name", cases.all_cases())
def test_ours_is_the_reference_on_the_small_shape(name: str) -> None:
    case = cases.all_cases()[name]
    for dtype in case.dtypes:
        assert difference(case, case.small, dtype, CPU) is None


@pytest.mark.parametrize("name", cases.all_cases())
def test_rivals_run_or_give_their_reason(name: str) -> None:
    case = cases.all_cases()[name]
    result = measured(case, shape=case.small)
    assert {run["name"] for run in result["runs"]} >= {rival.name for rival in case.rivals}
    for run in result["runs"]:
        # What is installed must work: a broken adapter would pass for a broken rival.
        if run["package"] in ("regkern", "torch") or rivals.version(run["package"]):
            assert run["error"] is None
        else:
            assert run["package"] in run["error"]


def test_missing_rival_is_named_with_its_reason(only: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dropblock", None)
    case = scale_case(rivals=(rivals.dropblock_package(),))
    only(case)
    result = measured(case)
    assert "import of dropblock halted" in result["runs"][-1]["error"]
    for text in (report.block(result, patience=2.0), report.summary([result])):
        assert "dropblock DropBlock2D: " in text
        assert "import of dropblock halted" in text


def test_failing_rival_does_not_break_the_run(only: Any) -> None:
    calls = []

    def fails_later(inputs: dict[str, Any]) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("enough")
        return torch.zeros(())

    late = Rival("late", "torch", lambda: fails_later)
    case = scale_case(rivals=(late,), differentiable=False)
    only(case)
    result = measured(case)
    assert result["runs"][-1]["error"] == "RuntimeError: enough"
    assert result["runs"][0]["timing"]["warm"] is not None


def test_crashing_rival_does_not_break_the_run(tmp_path: Path) -> None:
    (tmp_path / "dropblock.py").write_text("import os\nos._exit(7)\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    worker = Worker("warm")
    task = Task(case="drop_block", shape=(2, 3, 9, 9), dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        result = worker.measure(task, Options(seconds=0.0, against=("dropblock",)))
    worker.close()
    runs = {run["name"]: run for run in result["runs"]}
    assert runs["regkern"]["timing"] is not None
    assert "ended with status 7" in runs["dropblock DropBlock2D"]["error"]
    case = cases.all_cases()["drop_block"]
    assert "ended with status 7" in report.block(join(case, task, {"warm": result}), patience=2.0)


def test_wrong_op_is_not_timed(only: Any) -> None:
    case = scale_case(reference=lambda inputs: 3 * inputs["x"])
    only(case)
    result = measured(case, Options(check=True, seconds=0.0))
    assert result["runs"] == []
    assert "differs from the reference: AssertionError" in report.block(result, patience=2.0)


def test_no_estimate_from_two_elements_of_a_network() -> None:
    """A tensor of one dimension holds many tensors; its time does not grow from its first two."""
    case = cases.all_cases()["kth_magnitude"]
    task = Task(case.name, (100_000,), "float32")

    def call(inputs: Any) -> None:
        raise AssertionError("was timed")

    assert _estimate(case, call, task, 0.0) is None


def test_a_batch_of_small_problems_is_not_taken_for_slow() -> None:
    """Two of 4096 take a batched rival as long as all: from two of them it would take minutes."""
    case = cases.all_cases()["sinkhorn_normalize:4x4"]
    task = Task(case.name, (4096, 4, 4), "float32")
    rows = []

    def call(inputs: Any) -> None:
        rows.append(inputs["x"].shape[0])
        time.sleep(0.002)

    assert _estimate(case, call, task, 1.0) is None
    assert rows[-1] == 4096


def test_impatience_gives_an_estimate(only: Any) -> None:
    case = scale_case()
    only(case)
    result = measured(case, Options(patience=0.0, seconds=0.0))
    reference = result["runs"][1]
    assert reference["timing"]["warm"] is None
    assert reference["estimate_ms"] > 0
    assert reference["ratio"] > 0
    assert "reference" in report.block(result, patience=0.0)
    assert "not timed: about" in report.block(result, patience=0.0)


def test_in_place_cases_start_from_their_inputs(only: Any) -> None:
    seen = []

    def ours(inputs: dict[str, Any]) -> torch.Tensor:
        seen.append(float(inputs["x"].max()))
        x: torch.Tensor = inputs["x"]
        return x.mul_(1.1)

    case = scale_case(ours=ours, inplace=True, differentiable=False, floor="mul_")
    only(case)
    assert measured(case, Options(seconds=0.2, against=()))["floor"]["kind"] == "mul_"
    assert len(seen) > 1000
    assert max(seen) < 1e30  # 1.1 to the power of all calls is infinite


def test_saved_for_backward_counts_what_is_not_an_input() -> None:
    x = torch.ones(10, 10, requires_grad=True)
    factor = torch.ones(10, 10)
    # A product saves both factors: here one input and one other tensor.
    assert saved.saved_for_backward(lambda: x * factor, [x]) == 400
    assert saved.saved_for_backward(lambda: x * factor, [x, factor]) == 0
    assert saved.saved_for_backward(lambda: x.exp(), [x]) == 400
    # Two views of one storage are one piece of memory, and it is all kept.
    assert saved.saved_for_backward(lambda: (x[:2] * factor[:2]) * factor[2:4], [x]) == 400
    assert saved.saved_for_backward(lambda: x + factor, [x]) == 0


def test_saved_for_backward_in_a_result(only: Any) -> None:
    case = scale_case()
    only(case)
    for backward in (False, True):
        runs = measured(case, backward=backward)["runs"]
        assert [run["saved_x"] for run in runs] == [1.0, 0.0]


def test_bars_are_printed_as_met_or_missed(only: Any) -> None:
    for bar, word in ((1e9, "met"), (0.0, "MISSED")):
        case = scale_case(bar=bar)
        only(case)
        result = measured(case)
        assert f"the floor: {word}" in report.block(result, patience=2.0)
        assert ("bar missed: scale" in report.summary([result])) == (word == "MISSED")
    # Bars hold for the default configuration only.
    assert measured(case, shape=(2, 2))["bar"] is None
    assert measured(case, threads=2)["bar"] is None
    assert measured(case, backward=True)["bar"] is None


def test_losses_read_like_wins(only: Any) -> None:
    case = scale_case()
    only(case)
    result = measured(case)
    reference = result["runs"][1]
    for times, expected in ((4.0, "4.00x faster"), (0.25, "4.00x slower"), (1.001, "as fast")):
        reference["ratio"] = times
        assert expected in report.block(result, patience=2.0)
    reference["ratio"] = 0.25
    assert "slower: scale  4x8 float32  forward  1 thread: reference: 4.00x slower" in (
        report.summary([result])
    )


def test_summarize() -> None:
    found = timing.summarize([5e-3, 1e-3, 2e-3, 3e-3, 4e-3], "min")
    expected = {"min_ms": 1.0, "median_ms": 3.0, "iqr_ms": 2.0, "repeats": 5}
    assert {key: asdict(found)[key] for key in expected} == pytest.approx(expected)
    assert found.value == pytest.approx(1.0)
    assert timing.summarize([2e-3], "median").iqr_ms == 0


def test_malloc_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert int(environment("warm")["MALLOC_TRIM_THRESHOLD_"]) > 1 << 30
    assert "MALLOC_TRIM_THRESHOLD_" not in environment("cold")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar() -> None:
    for stream, shown in ((_Terminal(), True), (io.StringIO(), False)):
        with Progress(2, stream) as progress:
            progress.step("first")
            progress.step("second")
        assert ("1/2" in stream.getvalue() and "second" in stream.getvalue()) == shown
        assert bool(stream.getvalue()) == shown


def results_file(path: Path, ms: float, *, floor_ms: float = 1.0, iqr_ms: float = 0.01) -> Path:
    """A file of results in which ours took ``ms`` on one case, and 2 ms on another."""

    def timed(took: float, spread: float) -> dict[str, Any]:
        return asdict(timing.Timing(took, took, spread, 9, "min"))

    results = []
    for name, took in (("changing", ms), ("steady", 2.0)):
        case = scale_case(op=name)
        run = {"name": "regkern", "kind": "ours", "package": "regkern", "note": "", "error": None}
        run |= {"timing": timed(took, iqr_ms), "saved_bytes": 0, "estimate_ms": None}
        floor = {"kind": "copy", "bytes": 256, "timing": timed(floor_ms, 0.0)}
        one = {"check": None, "bytes": 256, "input_bytes": 128, "floor": floor, "runs": [run]}
        task = Task(case=name, shape=(4, 8), dtype="float32")
        results.append(join(case, task, {"warm": one, "cold": one}))
    path.write_text(json.dumps({"metadata": {"cpu": "some"}, "results": results}))
    return path


@pytest.mark.parametrize(
    ("after", "options", "status", "words"),
    [
        ({"ms": 1.5}, [], 1, "slower"),
        ({"ms": 0.5}, [], 0, "faster"),
        ({"ms": 1.02}, [], 0, "same"),
        ({"ms": 1.5}, ["--tolerance", "0.6"], 0, "same"),
        ({"ms": 1.5, "iqr_ms": 0.7}, [], 0, "same"),
        ({"ms": 1.5, "floor_ms": 1.5}, [], 0, "same"),
        ({"ms": 1.5, "floor_ms": 1.5}, ["--absolute"], 1, "slower"),
    ],
)
def test_compare(
    after: dict[str, float],
    options: list[str],
    status: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = results_file(tmp_path / "a.json", 1.0)
    second = results_file(tmp_path / "b.json", **after)
    assert cli.main(["bench", "compare", str(first), str(second), *options]) == status
    lines = capsys.readouterr().out.splitlines()
    changed = [line for line in lines if "changing" in line]
    assert len(changed) == 2  # warm and cold
    assert all(line.split()[0] == words for line in changed)


@pytest.mark.parametrize("cold", [False, True])
def test_compare_counts_cold_times_on_request(cold: bool, tmp_path: Path) -> None:
    before = json.loads(results_file(tmp_path / "a.json", 1.0).read_text())
    after = json.loads(results_file(tmp_path / "b.json", 1.0).read_text())
    after["results"][0]["runs"][0]["timing"]["cold"]["min_ms"] = 3.0
    comparison = compare.compare(before, after, cold=cold)
    assert "+200.0 %" in str(comparison)
    assert comparison.worse == cold


def test_compare_reports_what_is_gone_and_what_no_longer_runs(tmp_path: Path) -> None:
    before = json.loads(results_file(tmp_path / "a.json", 1.0).read_text())
    after = json.loads(results_file(tmp_path / "b.json", 1.0).read_text())
    after["metadata"]["cpu"] = "another"
    gone = after["results"].pop(1)
    comparison = compare.compare(before, after)
    assert not comparison.worse
    assert f"only in the first file: {report.title(gone)}" in str(comparison)
    assert "note: cpu was some, is another" in str(comparison)

    after["results"][0]["runs"][0] |= {"timing": {"warm": None, "cold": None}, "error": "broke"}
    comparison = compare.compare(before, after)
    assert comparison.worse
    assert "no longer measured  changing  4x8 float32  forward  1 thread  warm: broke" in (
        str(comparison)
    )

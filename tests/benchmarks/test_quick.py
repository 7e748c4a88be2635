"""--quick of every benchmark runs in a clone: own text, published results kept, what is missing named."""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
from itertools import groupby
from pathlib import Path

import pytest
from benchmarks.__main__ import REPORT, main
from benchmarks.support import results, workloads

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
TARGETS = re.findall(r"^(bench-[a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.fixture
def no_shared_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "SHARED_DATA", None)


@pytest.fixture(scope="module")
def names() -> dict[str, str]:
    """The benchmark that each target runs with FLAGS=--quick."""
    done = subprocess.run(
        ["make", "--dry-run", "FLAGS=--quick", "VENV=/", "-o", "//.done", *TARGETS],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.findall(r"-m benchmarks (\S+) --quick$", done.stdout, re.MULTILINE)
    return dict(zip(TARGETS, found, strict=True))


def test_every_target_runs_one_benchmark_that_has_a_quick_mode(names: dict[str, str]) -> None:
    for target, name in names.items():
        path = BENCHMARKS / f"{name.replace('.', '/')}.py"
        assert re.search(r"benchmark_parser\(|\"--quick\"", path.read_text("utf-8")), target


def test_every_result_is_written_where_its_options_say(names: dict[str, str]) -> None:
    for name in {*names.values()} - {REPORT}:
        path = BENCHMARKS / f"{name}.py"
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        for call in calls:
            if ast.unparse(call.func) == "write_result":
                given = {each.arg: ast.unparse(each.value) for each in call.keywords}
                assert given["quick"] == "options.quick", path.name


def test_a_quick_result_leaves_the_published_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "published")
    monkeypatch.setattr(results, "QUICK_RESULTS", tmp_path / "quick")
    published = results.write_result("latency", {"rows": [1]}, quick=False)
    before = published.read_bytes()
    assert results.write_result("latency", {"rows": [2]}, quick=True).parent == tmp_path / "quick"
    assert published.read_bytes() == before
    assert not results.QUICK_RESULTS.is_relative_to(BENCHMARKS)


@pytest.mark.usefixtures("no_shared_data")
def test_bundled_samples_stand_in_for_best_of_8_and_are_named() -> None:
    found = list(workloads.records(workloads.BEST_OF_8))
    groups = [list(group) for _, group in groupby(found, key=lambda each: each["problem_id"])]
    assert {len(group) for group in groups} == {8}
    assert all(each["steps"] for each in found)
    assert "bundled samples" in workloads.text_of(workloads.BEST_OF_8)


@pytest.mark.usefixtures("no_shared_data")
def test_other_text_is_not_replaced_in_silence() -> None:
    with pytest.raises(SystemExit, match="STEPSCORE_SHARED_DATA"):
        next(workloads.records("gsm8k_solutions"))


def test_real_text_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"problem": "1 + 1?", "steps": ["2"]}
    (tmp_path / f"{workloads.BEST_OF_8}.jsonl").write_text(json.dumps(record) + "\n")
    monkeypatch.setattr(workloads, "SHARED_DATA", tmp_path)
    assert list(workloads.records(workloads.BEST_OF_8)) == [record]
    assert workloads.text_of(workloads.BEST_OF_8) == workloads.BEST_OF_8


@pytest.mark.parametrize(
    ("library", "command"),
    [
        ("torch", "pip install 'stepscore[torch]'"),
        ("onnxruntime", "pip install 'stepscore[cpu]'"),
        ("optimum.exporters", "pip install 'stepscore[optimum]'"),
        ("pynvml", "pip install 'stepscore[peers]'"),
        ("filelock", "make setup"),
    ],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, library: str, command: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(name=library)

    monkeypatch.setattr(runpy, "run_module", fail)
    monkeypatch.setattr("sys.argv", ["pytest"])
    text = str(main(["latency", "--quick"]))
    assert text.startswith(f"{library.partition('.')[0]} is not installed")
    assert command in text


def test_an_unknown_benchmark_is_answered_with_the_names() -> None:
    text = str(main(["speed"]))
    assert {"latency", "throughput", REPORT} <= set(re.findall(r"[a-z_.]+", text))

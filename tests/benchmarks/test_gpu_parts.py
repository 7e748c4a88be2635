"""The GPU benchmark without a GPU: its plan and lines, runs that go on, tables, parts on the CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.reporting.gpu_tables import gpu as gpu_tables
from benchmarks.support import gpu_bench
from benchmarks.support.cublas_floor import layer_gemms
from benchmarks.support.forms import LOSSLESS
from benchmarks.support.gpu_bench import Bench, call_seconds
from benchmarks.support.gpu_lines import (
    append_line,
    gpu_results,
    lines_name,
    measured,
    read_lines,
    with_shares,
)
from benchmarks.support.gpu_plan import GPU_FORMS, QUICK_SIZES, Part, PartName, plan
from benchmarks.support.results import RESULTS
from benchmarks.support.shapes import QUICK, QWEN_7B

from benchmarks import gpu
from stepscore.enums import Provider, Residency

EVERYTHING = plan(PartName, GPU_FORMS)
ON_CPU = ("--device", "cpu", "--quick")


def line(part: PartName, *arguments: str, **row: Any) -> dict[str, Any]:
    known = {"part": part.value, "arguments": list(arguments), "device": "cpu", "card": "cpu", "layers": 2}
    return known | row


def window(tokens: int, speed: float) -> dict[str, Any]:
    rate = {"median": speed, "slowest": speed - 1, "fastest": speed + 1, "n": 3}
    return {"tokens": tokens, **rate, "peak_mb": 1200, "estimated_mb": 1100}


def floor_row(rows: int, speed: float) -> dict[str, Any]:
    return {
        "rows": rows,
        "burst": {"tokens_per_second": 2 * speed},
        "sustained": {"tokens_per_second": speed, "tflops": 1.0},
    }


@pytest.fixture
def tiny_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A tiny pair, in a place where nothing has been measured."""
    monkeypatch.setattr(gpu, "QUICK_RESULTS", tmp_path)
    bench = Bench(tmp_path / "scratch", QUICK, Provider.CPU, quick=True)
    bench.scratch.mkdir()
    bench.write()
    return bench


def test_plan_has_every_part_once_and_every_form_in_every_residency() -> None:
    assert {part.name for part in EVERYTHING} == set(PartName)
    assert len(set(EVERYTHING)) == len(EVERYTHING)
    engines = {part.arguments for part in EVERYTHING if part.name is PartName.ENGINE}
    residencies = Residency.RESIDENT, Residency.PARTIAL, Residency.STREAM
    assert engines == {(form, residency) for form in GPU_FORMS for residency in residencies}
    assert {part.arguments[0] for part in EVERYTHING if part.name is PartName.FIDELITY} >= set(GPU_FORMS)


def test_plan_measures_the_floor_of_a_form_before_the_form() -> None:
    seen: set[Part] = set()
    for part in EVERYTHING:
        if part.name is PartName.ENGINE:
            precision = "bf16" if GPU_FORMS[part.arguments[0]].precision == "bf16" else "fp16"
            assert Part.of(PartName.FLOOR, precision) in seen
        seen.add(part)


def test_plan_keeps_to_chosen_parts_and_forms_after_the_facts() -> None:
    chosen = plan([PartName.ENGINE, PartName.TEXT], ["fp16"])
    assert chosen[0] == Part(PartName.FACTS)
    assert {part.form for part in chosen if part.name is PartName.ENGINE} == {"fp16"}
    assert {part.arguments for part in chosen if part.name is PartName.TEXT} == {("fp16",), ("transformers",)}


def test_a_line_that_failed_does_not_count_as_measured() -> None:
    failed, worked = line(PartName.FACTS, failed=["no"]), line(PartName.FACTS, machine={})
    assert measured([failed]) == {}
    assert measured([worked, failed]) == {(Part(PartName.FACTS), 2): worked}


def test_a_line_that_was_cut_is_left_out_and_the_next_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "gpu_cpu.jsonl"
    path.write_text(json.dumps(line(PartName.FACTS)) + '\n{"part": "flo')
    append_line(path, line(PartName.CUDA_TESTS))
    assert [each["part"] for each in read_lines(path)] == ["facts", "cuda_tests"]


def test_share_of_a_window_is_that_of_the_most_rows_that_are_not_more() -> None:
    floor = line(PartName.FLOOR, "bf16", rows=[floor_row(1024, 100.0), floor_row(4096, 200.0)])
    other = line(PartName.FLOOR, "fp16", rows=[floor_row(1024, 1.0)])
    windows = [window(512, 50.0), window(1024, 50.0), window(32_768, 50.0), {"tokens": 9, "failed": "full"}]
    found = with_shares(line(PartName.ENGINE, LOSSLESS, "stream", windows=windows), [other, floor])
    assert [each.get("share_of_floor") for each in found["windows"]] == [None, 0.5, 0.25, None]


def test_a_run_goes_on_where_the_last_one_ended(
    tiny_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Part] = []

    def run_part(_bench: Bench, part: Part) -> dict[str, Any]:
        ran.append(part)
        return {"failed": ["out of memory"]} if part.name is PartName.CUDA_TESTS else {}

    monkeypatch.setattr(gpu, "run_part", run_part)
    parts = [Part(PartName.FACTS), Part(PartName.CUDA_TESTS), Part.of(PartName.PEER, "nf4")]
    gpu.run_plan(tiny_bench, parts[:2], gpu.parsed_options([*ON_CPU]))
    gpu.run_plan(tiny_bench, parts, gpu.parsed_options([*ON_CPU]))
    assert ran == [*parts[:2], *parts[1:]]
    lines = read_lines(tmp_path / lines_name("cpu"))
    assert [each["part"] for each in lines] == ["facts", "cuda_tests", "cuda_tests", "peer"]
    assert [json.loads(each) for each in capsys.readouterr().out.splitlines()] == lines
    again = gpu.parsed_options([*ON_CPU, "--again"])
    gpu.run_plan(tiny_bench, parts, again)
    assert ran[-3:] == parts


def test_lines_in_another_folder_follow_those_of_the_usual_one(
    tiny_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "run_part", lambda *_each: {})
    name, parts = lines_name("cpu"), [Part(PartName.FACTS), Part.of(PartName.PEER, "nf4")]
    append_line(tmp_path / name, line(PartName.FACTS, machine={}))
    gpu.run_plan(tiny_bench, parts, gpu.parsed_options([*ON_CPU, "--results", str(tmp_path / "other")]))
    assert [each["part"] for each in read_lines(tmp_path / "other" / name)] == ["peer"]
    assert [each["part"] for each in read_lines(tmp_path / name)] == ["facts"]


def test_no_part_starts_after_the_seconds_given(
    tiny_bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "run_part", lambda *_each: pytest.fail("a part has started"))
    gpu.run_plan(tiny_bench, EVERYTHING, gpu.parsed_options([*ON_CPU, "--seconds", "-1"]))
    assert f"{len(EVERYTHING)} parts are left" in capsys.readouterr().err


def test_a_cpu_is_never_measured_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.parsed_options(["--device", "cpu"])
    assert "--device cpu requires --quick" in capsys.readouterr().err


def test_calls_are_timed_after_one_to_warm_up() -> None:
    calls: list[int] = []
    assert len(call_seconds(lambda: calls.append(1), 3)) == 3
    assert len(calls) == 4


def test_layer_gemms_have_the_weights_of_a_layer() -> None:
    attention = 3584 * (3584 + 2 * 4 * 128) + 3584 * 3584
    mlp = 3 * 3584 * 18_944
    assert sum(depth * columns for depth, columns in layer_gemms(QWEN_7B).values()) == attention + mlp


def test_tables_show_lines_of_a_card_before_the_old_figures(tmp_path: Path) -> None:
    machine = {"machine": {"cpu": "a CPU"}, "quick": False}
    path = tmp_path / "gpu_cpu.jsonl"
    for each in (
        line(PartName.FACTS, **machine),
        line(PartName.FLOOR, "fp16", rows=[floor_row(1024, 100.0)]),
        line(PartName.ENGINE, "fp16", "stream", windows=[window(1024, 80.0) | {"share_of_floor": 0.8}]),
        line(PartName.FIDELITY, "fp16", log_ratio_error={"16-bit logits": 0.0098, "fp32 logits": 0.0069}),
        line(PartName.CUDA_TESTS, last_line="5 passed in 2.00s"),
        line(PartName.PEER, "nf4", failed=["Traceback", "ModuleNotFoundError: no bitsandbytes"]),
    ):
        append_line(path, each)
    old = json.loads((RESULTS / "gpu_h200.json").read_text())
    tables = gpu_tables({"gpu_h200": old} | gpu_results(tmp_path))
    assert [table.caption.startswith("Old, ") for table in tables] == [False] * 5 + [True] * 4
    assert tables[0].rows == [["fp16, stream", "80 (80 %)", "1,200", "1,100"]]
    assert tables[1].rows == [["fp16", "0.98 %", "0.69 %"]]
    assert "5 passed" in tables[1].note
    assert tables[4].rows == [["peer nf4", "ModuleNotFoundError: no bitsandbytes"]]


def test_a_file_without_facts_of_its_machine_is_no_result(tmp_path: Path) -> None:
    append_line(tmp_path / "gpu_cpu.jsonl", line(PartName.CUDA_TESTS, last_line="1 passed"))
    (tmp_path / "gpu_probes_h200.jsonl").write_text('{"part": "P0", "what": "host"}\n')
    assert gpu_results(tmp_path) == {}


@pytest.mark.slow
def test_a_part_that_dies_leaves_its_last_lines(tiny_bench: Bench) -> None:
    row = gpu.run_part(tiny_bench, Part.of(PartName.FLOOR, "fp17"))
    assert row["failed"][-1] == "ValueError: 'fp17' is not a valid Precision"


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_ended(tiny_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_bench, "QUICK_SIZES", replace(QUICK_SIZES, part_seconds=0.01))
    row = gpu.run_part(tiny_bench, Part(PartName.FACTS))
    assert row["failed"][0] == "ended after 0 seconds"


@pytest.mark.slow
@pytest.mark.torch
def test_parts_run_on_the_cpu_in_place_of_a_gpu(tiny_bench: Bench) -> None:
    parts = [Part.of(PartName.FLOOR, "fp16"), Part.of(PartName.ENGINE, "fp16", Residency.PARTIAL)]
    rows = {part: gpu.run_part(tiny_bench, part) for part in parts}
    assert not any("failed" in row for row in rows.values())
    partial = rows[Part.of(PartName.ENGINE, "fp16", Residency.PARTIAL)]
    assert [each["tokens"] for each in partial["windows"]] == list(tiny_bench.sizes.windows)
    assert all(each["peak_mb"] > 0 and each["estimated_mb"] > 0 for each in partial["windows"])
    assert len(rows[Part.of(PartName.FLOOR, "fp16")]["rows"]) == len(tiny_bench.sizes.windows) - 1

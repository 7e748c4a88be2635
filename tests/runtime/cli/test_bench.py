"""`stepscore bench`: a user's own pair, timed. No test looks at a speed."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from stepscore.artifact.pair import Pair
from stepscore.bench import BenchOptions, Workload, measure, random_workloads, text_workload
from stepscore.cli.bench_table import bench_table
from stepscore.cli.main import main
from stepscore.errors import InvalidRecord, NoSteps
from stepscore.jobs.provenance import Provenance
from stepscore.prompt.encoder import PromptEncoder

LINES = [
    b'{"problem": "1+1?", "steps": ["1+1 is 2.", "So 2."]}',
    b'{"problem": "1+1?", "steps": ["1+1 is 3.", "So 3."]}',
]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def encoder_of(pair: Path) -> PromptEncoder:
    opened = Pair.open(pair)
    return opened.encoder()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "solutions.jsonl"
    path.write_bytes(b"\n".join(LINES) + b"\n")
    return path


def test_bench_prints_a_table_of_timings(tiny_pair: Path) -> None:
    result = run(tiny_pair, "--repeats", "1")
    assert result.exit_code == 0
    for wanted in ("loading", "first result", "128 random tokens", "512 random tokens", "peak memory"):
        assert wanted in result.stdout
    assert "2,048 random tokens" not in result.stdout  # the tiny model has 512 positions


def test_bench_json_has_the_numbers_of_the_table(tiny_pair: Path, data: Path) -> None:
    result = run(tiny_pair, data, "--repeats", "2", "--threads", "1", "--json")
    report = json.loads(result.stdout)
    (timing,) = report["timings"]
    assert (timing["name"], timing["sequences"], timing["speed"]["n"]) == ("solutions.jsonl", 2, 2)
    assert timing["sharing"] is not None
    assert (report["provider"], report["threads"]) == ("cpu", 1)
    assert report["peak_mb"] > 0
    assert report["machine"]["cores"] >= 1
    assert "onnxruntime" in report["machine"]["packages"]
    origin = report["stepscore"]
    assert (origin["pair"], origin["beta"]) == (Pair.open(tiny_pair).fingerprint, None)
    assert origin["version"] == version("stepscore")
    assert origin["date"]


def test_the_limit_takes_the_first_lines(tiny_pair: Path, data: Path) -> None:
    result = run(tiny_pair, data, "--limit", "1", "--repeats", "1", "--json")
    assert json.loads(result.stdout)["timings"][0]["sequences"] == 1


def test_a_limit_without_data_is_a_mistake(tiny_pair: Path) -> None:
    assert run(tiny_pair, "--limit", "1").exit_code == 2


def test_an_empty_file_is_a_mistake(tiny_pair: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    assert run(tiny_pair, tmp_path / "empty.jsonl").exit_code == 2


def test_a_bad_line_is_named(tiny_pair: Path) -> None:
    with pytest.raises(InvalidRecord, match="line 2: `problem`"):
        text_workload("x", [LINES[0], b'{"problem": 3}'], encoder_of(tiny_pair))
    with pytest.raises(NoSteps, match="line 1"):
        text_workload("x", [b'{"problem": "1+1?", "steps": []}'], encoder_of(tiny_pair))


def test_tokens_are_input_tokens(tiny_pair: Path) -> None:
    twice = text_workload("x", [LINES[0], LINES[0]], encoder_of(tiny_pair))
    assert twice.tokens == 2 * len(twice.sequences[0])


def test_sharing_is_timed_only_where_something_is_shared(tiny_pair: Path) -> None:
    apart = Workload("apart", [np.arange(10, 20), np.arange(30, 40)])
    together = Workload("together", [np.arange(10, 20), np.arange(10, 22)])
    report = measure(Pair.open(tiny_pair), [apart, together], BenchOptions(repeats=1))
    first, second = report.timings
    assert first.sharing is None
    assert second.sharing is not None
    alone, shared = bench_table(report, Provenance()).records()
    assert (alone["sharing"], shared["sharing"]) == (None, second.sharing)


def test_random_workloads_fit_the_model() -> None:
    assert [each.tokens for each in random_workloads(100, 4096)] == [128, 512, 2048]
    assert [each.tokens for each in random_workloads(100, 64)] == [64]

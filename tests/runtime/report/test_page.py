"""The README says what the result files say; the page needs nothing but itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
from benchmarks.reporting.cpu_tables import TABLES
from benchmarks.reporting.docs_tables import regenerated
from benchmarks.reporting.table import Table, markdown
from benchmarks.support.machine import RESULTS

pytest.importorskip("matplotlib", reason="plots need the extra torch")
from benchmarks.reporting.plots import all_plots
from benchmarks.reporting.report import README, is_stale, page, read_results

MACHINE = {
    "cpu": "a <fast> CPU",
    "cpu_features": ["avx2"],
    "cores": 2,
    "memory_gb": 25.3,
    "load_average": 0.1,
    "python": "3.11.7",
    "packages": {"onnxruntime": "1.31.1"},
}
SHAPE = {"name": "1.5b", "num_hidden_layers": 8}


def speed(median: float) -> dict[str, float]:
    return {"median": median, "slowest": median - 1, "fastest": median + 2, "n": 5}


def measured(round_: int, peer: str, median: float, error: float | None = 0.01) -> dict[str, Any]:
    rate = {"pair_tokens_per_second": speed(median), "log_ratio_error": error, "load_seconds": 1.0}
    return {"round": round_, "peer": peer, "seconds": [1.0], **rate, "peak_mb": 4200}


CALLS = {
    "texts": 16,
    "tokens": 1000,
    "distinct_tokens": 400,
    "shared": speed(300.0),
    "not_shared": speed(150.0),
    "factor": 2.0,
}
RESULTS_MADE_UP: dict[str, dict[str, Any]] = {
    "throughput_1.5b": {
        "machine": MACHINE,
        "quick": False,
        "amx": True,
        "threads": 2,
        "shape": SHAPE,
        "all_layers": 28,
        "workloads": [
            {
                "workload": "one solution",
                "sample": "math-0-0",
                "sequences": 1,
                "tokens": 512,
                "rows": [
                    measured(1, "transformers fp32, one at a time", 72.0, 0.0),
                    measured(1, "stepscore int8 + int8, int8 activations", 180.0),
                    {"round": 1, "peer": "llama.cpp Q8_0", "skipped": "llama_cpp is not installed"},
                ],
                "verdicts": [
                    {
                        "workload": "one solution",
                        "against": "transformers fp32",
                        "at_least": 2.2,
                        "ratio": 2.5,
                        "reached": True,
                    }
                ],
            }
        ],
        "sharing": {"skipped": "the shared data is not here"},
        "profile": {
            "share_of_kernels": 0.7,
            "share_of_wall": 0.65,
            "in_run_gops": 600.0,
            "alone_gops": 700.0,
            "in_run_over_alone": 0.857,
            "repeats": 5,
        },
    },
    "latency_1.5b": {
        "machine": MACHINE,
        "quick": True,
        "threads": 2,
        "shape": SHAPE,
        "all_layers": 8,
        "rows": [
            {
                "peer": "stepscore fp32",
                "load_seconds": 0.5,
                "peak_mb": 900,
                "lengths": [
                    {"tokens": 64, "n": 20, "p50": 0.1, "p90": 0.2, "p99": 0.3},
                    {"tokens": 128, "n": 20, "p50": 0.2, "p90": 0.3, "p99": 0.4},
                ],
                "cold_start_seconds": {"median": 1.5, "slowest": 2.0, "fastest": 1.0, "n": 5},
            },
            {"peer": "llama.cpp Q8_0", "skipped": "llama_cpp is not installed"},
        ],
    },
    "beam_search": {
        "machine": MACHINE,
        "quick": False,
        "threads": 2,
        "shape": SHAPE,
        "all_layers": 28,
        "trace": "beam search of 2 problems",
        "rounds": [{"round": 1, **CALLS}, {"round": 2, **CALLS}],
        "total": CALLS,
        "distinct_in_trace": 300,
    },
    "matrix": {
        "machine": MACHINE,
        "threads": 2,
        "repeats": 3,
        "problems": 400,
        "shape": SHAPE,
        "all_layers": 28,
        "workload": "one solution",
        "rows": [
            {
                "format": "bitsandbytes",
                "precision": "nf4",
                "disk_mb": 1234,
                "peak_mb": 2345,
                "pair_tokens_per_second": speed(101.4),
                "log_ratio_error": 0.564,
                "first_errors": 0.9,
            },
            {"format": "ONNX (optimum)", "precision": "fp32", "skipped": "no such option"},
        ],
    },
    "memory_score": {"machine": MACHINE, "rows": [{"precision": "fp32", "peak_mb": 934}, {"tokens": 4096}]},
}


def test_the_readme_says_what_the_files_say() -> None:
    assert not is_stale(README, read_results(RESULTS)), "run `make bench-report`"


def test_every_marker_of_the_readme_is_one_that_is_filled() -> None:
    text = README.read_text(encoding="utf-8")
    opened = re.findall(r"<!-- bench:(.*?) -->", text)
    assert set(opened) <= set(TABLES)
    assert len(opened) == text.count("<!-- /bench -->")


def test_a_stale_table_is_replaced_and_nothing_else() -> None:
    stale = "before\n<!-- bench:verdicts -->\nold\n<!-- /bench -->\nafter\n"
    fresh = regenerated(stale, RESULTS_MADE_UP)
    assert fresh.startswith("before\n<!-- bench:verdicts -->\nstepscore's default form")
    assert fresh.endswith("2.50 x |\n<!-- /bench -->\nafter\n")
    assert regenerated(fresh, RESULTS_MADE_UP) == fresh


def test_an_unknown_marker_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        regenerated("<!-- bench:nothing -->\n<!-- /bench -->", {})


@pytest.mark.parametrize("name", TABLES)
def test_no_results_no_tables(name: str) -> None:
    assert TABLES[name]({}) == []


@pytest.mark.parametrize("results", [RESULTS_MADE_UP, read_results(RESULTS)], ids=["made up", "measured"])
@pytest.mark.parametrize("name", TABLES)
def test_rows_are_no_longer_than_their_headings(name: str, results: dict[str, dict[str, Any]]) -> None:
    for table in TABLES[name](results):
        assert table.rows
        assert all(len(row) <= len(table.headings) for row in table.rows)


def test_a_skipped_peer_keeps_its_reason() -> None:
    (table,) = TABLES["throughput"](RESULTS_MADE_UP)
    assert "skipped: llama_cpp is not installed" in markdown(table)


def test_a_format_that_is_skipped_keeps_its_reason_among_those_that_are_not() -> None:
    (table,) = TABLES["matrix"](RESULTS_MADE_UP)
    assert table.rows == [
        ["bitsandbytes, nf4", "1,234", "2,345", "101", "56 %", "90.00%"],
        ["ONNX (optimum), fp32", "skipped: no such option", "", "", "", ""],
    ]


def test_a_ratio_is_taken_inside_a_round() -> None:
    (table,) = TABLES["throughput"](RESULTS_MADE_UP)
    assert [row[4] for row in table.rows] == ["2.50", "1.00", ""]


def test_a_search_is_shown_round_by_round_and_in_all() -> None:
    (table,) = TABLES["beam_search"](RESULTS_MADE_UP)
    assert [row[0] for row in table.rows] == ["1", "2", "all"]
    assert table.rows[-1] == ["all", "16", "1,000", "40%", "300", "150", "2.00"]
    assert "30% of the tokens are distinct" in table.caption


def test_memory_rows_may_differ() -> None:
    expected = Table(
        "memory of score", ["precision", "peak mb", "tokens"], [["fp32", "934", ""], ["", "", "4,096"]]
    )
    assert TABLES["memory"](RESULTS_MADE_UP) == [expected]


def test_the_page_loads_nothing_and_escapes_everything() -> None:
    text = page(RESULTS_MADE_UP, all_plots(RESULTS_MADE_UP))
    assert "a &lt;fast&gt; CPU" in text
    assert "latency_1.5b (quick)" in text
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text)


def test_plots_are_the_same_bytes_again() -> None:
    plots = all_plots(RESULTS_MADE_UP)
    assert set(plots) == {"throughput", "latency"}
    assert plots == all_plots(RESULTS_MADE_UP)
    assert all_plots({}) == {}

"""Tables, plots and the HTML page of result files."""

from __future__ import annotations

import re
from typing import Any

import pytest
from benchmarks.reporting.docs_tables import TABLES, regenerated
from benchmarks.reporting.table import Table, markdown
from benchmarks.support.results import RESULTS, read_results

pytest.importorskip("matplotlib", reason="figures need the extra plots")
from benchmarks.reporting.plots import all_plots
from benchmarks.reporting.report import page

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
        "note": "other work ran",
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
                    measured(2, "stepscore int8 + int8, int8 activations", 120.0) | {"peak_mb": 4300},
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
}


def tables(name: str, *, folded: bool = False) -> list[Table]:
    return [table for table in TABLES[name](RESULTS_MADE_UP) if table.folded is folded]


def test_regenerated_replaces_stale_tables_and_nothing_else() -> None:
    stale = "before\n<!-- bench:verdicts -->\nold\n<!-- /bench -->\nafter\n"
    fresh = regenerated(stale, RESULTS_MADE_UP)
    assert fresh.startswith("before\n<!-- bench:verdicts -->\nHow many times as fast the default form is")
    assert fresh.endswith("**2.50 x** |\n<!-- /bench -->\nafter\n")
    assert regenerated(fresh, RESULTS_MADE_UP) == fresh


def test_regenerated_rejects_unknown_marks() -> None:
    with pytest.raises(KeyError, match="nothing"):
        regenerated("<!-- bench:nothing -->\n<!-- /bench -->", {})


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"families"}))  # which no benchmark measures
def test_tables_are_empty_without_results(name: str) -> None:
    assert TABLES[name]({}) == []


@pytest.mark.parametrize("results", [RESULTS_MADE_UP, read_results(RESULTS)], ids=["made up", "measured"])
@pytest.mark.parametrize("name", TABLES)
def test_table_rows_are_no_longer_than_their_headings(name: str, results: dict[str, dict[str, Any]]) -> None:
    for table in TABLES[name](results):
        assert table.rows
        assert all(len(row) <= len(table.headings) for row in table.rows)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_measured_results(name: str) -> None:
    assert TABLES[name](read_results(RESULTS))


def test_throughput_takes_ratios_within_a_round() -> None:
    speeds, _ = tables("throughput")
    assert speeds.rows == [
        ["stepscore int8 + int8, int8 activations", "150"],
        ["transformers fp32, one at a time", "72 (2.50 x)"],
        ["llama.cpp Q8_0", "skipped"],
    ]


def test_throughput_gives_the_largest_peak_of_all_rounds() -> None:
    _, peaks = tables("throughput")
    assert [row[1] for row in peaks.rows] == ["4,300", "4,200", ""]


def test_throughput_folds_rounds_and_reasons_of_skipped_engines() -> None:
    (rounds,) = tables("throughput", folded=True)
    assert [row[1] for row in rounds.rows] == [
        "72.0",
        "180.0",
        "skipped: llama_cpp is not installed",
        "120.0",
    ]
    assert rounds.note == "Text: math-0-0; 1 sequences, 512 tokens. 2 threads. Note: other work ran."


def test_matrix_keeps_the_reason_of_a_skipped_format() -> None:
    (table,) = tables("matrix")
    assert table.rows == [
        ["bitsandbytes, nf4", "1,234", "2,345", "101", "56 %", "90.00 %"],
        ["ONNX (optimum), fp32", "skipped: no such option", "", "", "", ""],
    ]


def test_beam_search_has_a_row_per_round_and_a_total() -> None:
    (table,) = tables("beam_search")
    assert [row[0] for row in table.rows] == ["1", "2", "all"]
    assert table.rows[-1] == ["all", "16", "1,000", "40 %", "300", "150", "2.00"]
    assert table.note.startswith("Over all calls together 30 % of the prefixes are distinct")


def test_a_page_shows_folded_tables_in_details() -> None:
    (spread,) = tables("matrix", folded=True)
    text = markdown(spread)
    assert text.startswith("<details><summary>Spread, tokens/s</summary>\n\n| format, precision |")
    assert text.endswith("|\n\n</details>")


def test_the_html_page_loads_nothing_and_escapes_everything() -> None:
    text = page(RESULTS_MADE_UP, all_plots(RESULTS_MADE_UP))
    assert "a &lt;fast&gt; CPU" in text
    assert "latency_1.5b (quick)" in text
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text)


def test_plots_of_equal_results_are_equal_bytes() -> None:
    plots = all_plots(RESULTS_MADE_UP)
    assert set(plots) == {"throughput", "latency"}
    assert plots == all_plots(RESULTS_MADE_UP)
    assert all_plots({}) == {}

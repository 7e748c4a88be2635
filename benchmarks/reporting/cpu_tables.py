"""Latency, operators and a beam search on the CPU, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.reporting.table import (
    Result,
    Results,
    Table,
    machine_name,
    of_kind,
    percent,
    shape_name,
    spread,
)

SHOWN_OPERATORS = 4


def latency(results: Results) -> list[Table]:
    """Return p50 by length, and loading and cold start; p90, p99 and the spread are folded."""
    return [
        table
        for result in of_kind(results, "latency")
        for table in (_p50(result), _cold_start(result), _percentiles(result), _cold_spread(result))
    ]


def operators(results: Results) -> list[Table]:
    """Return the operators with the largest shares of each form's time, by machine; real pairs separately."""
    names = [name for name in sorted(results) if name.startswith("products")]
    made = [name for name in names if not name.endswith("_real")]
    real = [name for name in names if name.endswith("_real")]
    headings = ["CPU, form", "measured on", "tokens/s, fastest", "largest shares of kernel time", "n"]
    return [
        Table(
            f"{of}: time by operator",
            headings,
            [row for name in of_group for row in _operators(name, results)],
        )
        for of, of_group in (("Qwen2.5-1.5B shape", made), ("Real pair", real))
        if of_group
    ]


def _operators(name: str, results: Results) -> list[list[str]]:
    result, unit = results[name], name.removeprefix("products_").removesuffix("_real").upper()
    rows = []
    for row in result["rows"]:
        merged = f", {row['products']}" if row["products"] else ""
        shares = list(row["shares"]["both"].items())[:SHOWN_OPERATORS]
        rows.append(
            [
                f"{unit}: {row['base']} + {row['difference']}, {row['activations']} activations{merged}",
                f"{row['layers']} layers, {result['tokens']} tokens",
                f"{row['pair_tokens_per_second']:,.0f}",
                ", ".join(f"{kind} {percent(share, 0)}" for kind, share in shares),
                str(result["repeats"]),
            ]
        )
    return rows


def beam_search(results: Results) -> list[Table]:
    """Return the speed of a search's calls with and without prefix sharing, and with kept prefixes."""
    tables = []
    for result in of_kind(results, "beam_search"):
        calls = [*result["rounds"], {"round": "all", **result["total"]}]
        rows = [
            [
                str(row["round"]),
                f"{row['texts']}",
                f"{row['tokens']:,}",
                percent(row["distinct_tokens"] / row["tokens"], 0),
                f"{row['shared']['median']:,.0f}",
                f"{row['not_shared']['median']:,.0f}",
                f"{row['factor']:.2f}",
            ]
            for row in calls
        ]
        total = result["total"]
        caption = (
            f"{shape_name(result)}: {result['trace']}, convention exact, {result['threads']} threads, "
            f"median of {total['shared']['n']}"
        )
        note = (
            f"Over all calls together {percent(result['distinct_in_trace'] / total['tokens'], 0)} of the "
            "prefixes are distinct; these two keep nothing between calls."
        )
        headings = [
            "round",
            "texts",
            "tokens",
            "distinct prefixes",
            "shared, tokens/s",
            "not shared",
            "factor",
        ]
        tables.append(Table(caption, headings, rows, note))
        ranges = [[str(row["round"]), spread(row["shared"]), spread(row["not_shared"])] for row in calls]
        headings = ["round", "shared, slowest to fastest", "not shared, slowest to fastest"]
        tables.append(Table(f"{shape_name(result)}: spread, tokens/s", headings, ranges, folded=True))
        if "kept" in total:
            tables.append(_kept(result, calls))
    return tables


def _kept(result: Result, calls: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            str(row["round"]),
            f"{row['shared']['median']:,.0f}",
            f"{row['kept']['median']:,.0f}",
            spread(row["kept"]),
            f"{row['kept_factor']:.2f}",
        ]
        for row in calls
    ]
    memory = result["memory"]
    note = (
        f"{result['computed_with_kept']:,} tokens were computed. In a process of its own, with a cache of "
        f"{memory['prefix_cache'] / 1e6:,.0f} MB that held {memory['kept_tokens']:,} tokens at the end: peak "
        f"{memory['peak_mb']:,} MB, estimated for full batches {memory['estimated_mb']:,} MB."
    )
    headings = ["round", "shared within a call, tokens/s", "kept", "kept, slowest to fastest", "factor"]
    return Table(f"{shape_name(result)}: the same calls with kept prefixes", headings, rows, note)


def _measured(result: Result) -> list[Mapping[str, Any]]:
    return [row for row in result["rows"] if "skipped" not in row]


def _lengths(result: Result) -> list[str]:
    lengths = _measured(result)[0]["lengths"] if _measured(result) else []
    return [f"{each['tokens']:,} tokens" for each in lengths]


def _p50(result: Result) -> Table:
    cells = [[row["peer"], *(f"{each['p50']:.3g}" for each in row["lengths"])] for row in _measured(result)]
    skipped = [[row["peer"], f"skipped: {row['skipped']}"] for row in result["rows"] if "skipped" in row]
    measured_on = f"{shape_name(result)}, {machine_name(result)}, {result['threads']} threads"
    caption = f"{measured_on}: seconds per solution, p50"
    return Table(caption, ["engine", *_lengths(result)], [*cells, *skipped])


def _percentiles(result: Result) -> Table:
    cells = [
        [
            row["peer"],
            *(f"{each['p90']:.3g} / {each['p99']:.3g} (n = {each['n']})" for each in row["lengths"]),
        ]
        for row in _measured(result)
    ]
    caption = f"{shape_name(result)}, {machine_name(result)}: seconds per solution, p90 / p99"
    return Table(caption, ["engine", *_lengths(result)], cells, folded=True)


def _cold_start(result: Result) -> Table:
    return Table(
        f"{shape_name(result)}, {machine_name(result)}: loading, and cold start to first result",
        ["engine", "loading, s", "cold start, s (median)", "n", "peak MB"],
        [
            [
                row["peer"],
                f"{row['load_seconds']:.2f}",
                f"{row['cold_start_seconds']['median']:.2f}",
                str(row["cold_start_seconds"]["n"]),
                f"{row['peak_mb']:,}",
            ]
            for row in _measured(result)
            if "cold_start_seconds" in row
        ],
    )


def _cold_spread(result: Result) -> Table:
    return Table(
        f"{shape_name(result)}, {machine_name(result)}: cold start, spread",
        ["engine", "fastest to slowest, s"],
        [
            [row["peer"], f"{cold['fastest']:.2f} to {cold['slowest']:.2f}"]
            for row in _measured(result)
            if (cold := row.get("cold_start_seconds")) is not None
        ],
        folded=True,
    )

"""Tokens per second on the CPU, engine by engine: tables of throughput_*.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.reporting.table import (
    Result,
    Results,
    Table,
    machine_name,
    note_of,
    of_kind,
    percent,
    shape_name,
    spread,
)

Row = Mapping[str, Any]


def throughput(results: Results) -> list[Table]:
    """Return speed and memory by engine for each workload, a column a result; rounds are folded."""
    found = of_kind(results, "throughput")
    columns = [_column(result) for result in found]
    tables: list[Table] = []
    folded: list[Table] = []
    for name in dict.fromkeys(workload["workload"] for result in found for workload in result["workloads"]):
        engines = [_engines(result, name) for result in found]
        names = _stepscore_first(dict.fromkeys(engine for each in engines for engine in each))
        speeds = [[name, *(_speed(each.get(name)) for each in engines)] for name in names]
        peaks = [[name, *(_peak(each.get(name)) for each in engines)] for name in names]
        ratio = "in brackets how many times as fast the default form is, in the same round"
        tables += [
            Table(f"{_capital(name)}: tokens/s, median; {ratio}", ["engine", *columns], speeds),
            Table(f"{_capital(name)}: peak resident memory, MB", ["engine", *columns], peaks),
        ]
        folded += [_rounds(result, workload) for result in found for workload in _workloads(result, name)]
    return tables + folded


def verdicts(results: Results) -> list[Table]:
    """Return the aims next to the ratios that were reached, a column a result."""
    found = of_kind(results, "throughput")
    reached: dict[tuple[str, str, float], dict[int, Row]] = {}
    for column, result in enumerate(found):
        for workload in result["workloads"]:
            for each in workload["verdicts"]:
                aim = (each["workload"], each["against"], each["at_least"])
                reached.setdefault(aim, {})[column] = each
    rows = [
        [workload, against, f"{at_least:g} x", *(_verdict(cells.get(i)) for i in range(len(found)))]
        for (workload, against, at_least), cells in reached.items()
    ]
    headings = ["workload", "against", "aim", *map(_column, found)]
    caption = (
        "How many times as fast the default form is, medians of one round; bold where the aim is reached"
    )
    return [Table(caption, headings, rows)] * bool(rows)


def sharing(results: Results) -> list[Table]:
    """Return the speed-up of prefix sharing by file, a column a result; speeds are folded."""
    found = [
        result
        for result in of_kind(results, "throughput")
        if isinstance(result["sharing"], list) and result["sharing"]
    ]
    factors: dict[tuple[str, int, int], dict[int, float]] = {}
    for column, result in enumerate(found):
        for row in result["sharing"]:
            text = (f"{row['workload']}, {row['sample']}", row["tokens"], row["distinct_tokens"])
            factors.setdefault(text, {})[column] = row["factor"]
    rows = [
        [
            text,
            f"{tokens:,}",
            percent(distinct / tokens, 0),
            *(f"{cells[i]:.2f}" if i in cells else "" for i in range(len(found))),
        ]
        for (text, tokens, distinct), cells in factors.items()
    ]
    headings = ["text", "tokens", "distinct prefixes", *map(_column, found)]
    caption = "How many times as fast scoring is with prefix sharing as without, medians"
    return [Table(caption, headings, rows)] * bool(rows) + [_sharing_speeds(result) for result in found]


def profile(results: Results) -> list[Table]:
    """Return the share of the integer GEMMs in a run, and their rate in it and alone."""
    rows = [
        [
            f"{shape_name(result)}, {machine_name(result)}",
            percent(each["share_of_kernels"], 0),
            percent(each["share_of_wall"], 0),
            f"{each['in_run_gops']:,.0f}",
            f"{each['alone_gops']:,.0f}",
            percent(each["in_run_over_alone"], 0),
            f"{each['from_memory_gops']:,.0f}" if "from_memory_gops" in each else "",
            percent(each["in_run_over_from_memory"], 0) if "from_memory_gops" in each else "",
            str(each["repeats"]),
        ]
        for result in of_kind(results, "throughput")
        if "profile" in result
        for each in [result["profile"]]
    ]
    headings = [
        *("shape", "share of kernel time", "of wall time"),
        *("10^9 op/s in the run", "alone", "in the run / alone"),
        *("alone, weights from memory", "in the run / that", "n"),
    ]
    return [Table("Integer GEMMs of the default form, one solution", headings, rows)] * bool(rows)


def _column(result: Result) -> str:
    shape, unit = result["shape"], machine_name(result).removeprefix("CPU with ")
    layers = "real" if result.get("real") else f"{shape['num_hidden_layers']} layers"
    return f"{shape['name'].upper()} ({layers}), {unit}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _workloads(result: Result, name: str) -> Iterator[Row]:
    return (workload for workload in result["workloads"] if workload["workload"] == name)


def _engines(result: Result, name: str) -> dict[str, list[Row]]:
    """Return the rows of one workload by engine, each with its speed relative to the default form."""
    engines: dict[str, list[Row]] = {}
    for workload in _workloads(result, name):
        for row in workload["rows"]:
            ratio = {"ratio": _ratio(row, workload["rows"])}
            engines.setdefault(row["peer"], []).append({**row, **ratio})
    return engines


def _stepscore_first(names: Mapping[str, None]) -> list[str]:
    return sorted(names, key=lambda name: not name.startswith("stepscore"))


def _speed(rows: Sequence[Row] | None) -> str:
    """Return the median of an engine's rounds; the default form is in each of them."""
    if rows is None:
        return ""
    measured = [row for row in rows if "skipped" not in row]
    if not measured:
        return "skipped"
    speed = median(row["pair_tokens_per_second"]["median"] for row in measured)
    ratio = measured[0]["ratio"]
    return f"{speed:,.0f}" if ratio in {None, 1} else f"{speed:,.0f} ({ratio:.2f} x)"


def _peak(rows: Sequence[Row] | None) -> str:
    peaks = [row["peak_mb"] for row in rows or () if "skipped" not in row]
    return f"{max(peaks):,}" if peaks else ""


def _verdict(verdict: Row | None) -> str:
    if verdict is None:
        return ""
    return f"**{verdict['ratio']:.2f} x**" if verdict["reached"] else f"{verdict['ratio']:.2f} x"


def _ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """Return how many times as fast as a row the default form is in its round, where both were measured."""
    default = next((each for each in rows if each["round"] == row["round"] and _is_stepscore(each)), None)
    if default is None or "skipped" in row:
        return None
    ratio: float = default["pair_tokens_per_second"]["median"] / row["pair_tokens_per_second"]["median"]
    return ratio


def _is_stepscore(row: Row) -> bool:
    return "skipped" not in row and row["peer"].startswith("stepscore")


def _rounds(result: Result, workload: Row) -> Table:
    rows = []
    for row in workload["rows"]:
        name = f"{row['peer']} (round {row['round']})"
        if "skipped" in row:
            rows.append([name, f"skipped: {row['skipped']}", *[""] * 5])
            continue
        speed, ratio, error = (
            row["pair_tokens_per_second"],
            _ratio(row, workload["rows"]),
            row["log_ratio_error"],
        )
        rows.append(
            [
                name,
                f"{speed['median']:,.1f}",
                spread(speed, 1),
                str(speed["n"]),
                "" if ratio is None else f"{ratio:.2f}",
                "" if error is None else percent(error),
                f"{row['peak_mb']:,}",
            ]
        )
    sample = f"{workload['sample']}; {workload['sequences']} sequences, {workload['tokens']:,} tokens"
    measured_on = f"{shape_name(result)}, {machine_name(result)}"
    return Table(
        f"{_capital(workload['workload'])}, {measured_on}: rounds, spread and error",
        [
            "engine",
            "tokens/s",
            "slowest to fastest",
            "n",
            "default form / engine",
            "log-ratio error",
            "peak MB",
        ],
        rows,
        f"Text: {sample}. {result['threads']} threads. {note_of(result)}".rstrip(),
        folded=True,
    )


def _sharing_speeds(result: Result) -> Table:
    return Table(
        f"{shape_name(result)}, {machine_name(result)}: speeds with and without prefix sharing",
        ["text", "shared, tokens/s", "slowest to fastest", "not shared", "slowest to fastest", "factor", "n"],
        [
            [
                f"{row['workload']}, {row['sample']}",
                f"{row['shared']['median']:,.1f}",
                spread(row["shared"], 1),
                f"{row['not_shared']['median']:,.1f}",
                spread(row["not_shared"], 1),
                f"{row['factor']:.2f}",
                str(row["shared"]["n"]),
            ]
            for row in result["sharing"]
        ],
        f"{result['threads']} threads.",
        folded=True,
    )

"""Results as tables: JSON of benchmarks/results in, headings and cells out. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.reporting.gpu_tables import gpu
from benchmarks.reporting.table import Result, Results, Table, of_kind, percent, shape_name
from benchmarks.support.machine import integer_unit


def throughput(results: Results) -> list[Table]:
    """Return a table for each shape and workload: speed, spread, fidelity and memory of each engine."""
    return [
        Table(
            f"{shape_name(result)}: {workload['workload']} ({workload['sample']}; {workload['sequences']} "
            f"sequences, {workload['tokens']:,} tokens), {result['threads']} threads{_machine(result)}"
            + (f" ({result['note']})" if "note" in result else ""),
            [
                "engine",
                "tokens/s",
                "slowest to fastest",
                "n",
                "default form is x as fast",
                "log-ratio error",
                "peak MB",
            ],
            [_engine(row, workload["rows"]) for row in workload["rows"]],
        )
        for result in of_kind(results, "throughput")
        for workload in result["workloads"]
    ]


def verdicts(results: Results) -> list[Table]:
    """Return what was aimed at beside what was reached."""
    rows = [
        [
            f"{shape_name(result)}{_machine(result)}",
            each["workload"],
            each["against"],
            f"{each['at_least']:g} x",
            f"{each['ratio']:.2f} x",
        ]
        for result in of_kind(results, "throughput")
        for workload in result["workloads"]
        for each in workload["verdicts"]
    ]
    headings = ["shape", "workload", "against", "aim", "reached"]
    return [Table("stepscore's default form against its peers, medians of one round", headings, rows)] * bool(
        rows
    )


def sharing(results: Results) -> list[Table]:
    """Return what computing every shared prefix once is worth, by file."""
    return [
        Table(
            f"{shape_name(result)}: shared prefixes computed once, {result['threads']} threads"
            f"{_machine(result)}",
            ["text", "tokens", "distinct in all", "tokens/s", "not shared", "factor", "n"],
            [
                [
                    f"{row['workload']}, {row['sample']}",
                    f"{row['tokens']:,}",
                    f"{row['distinct_tokens'] / row['tokens']:.0%}",
                    f"{row['shared']['median']:,.1f}",
                    f"{row['not_shared']['median']:,.1f}",
                    f"{row['factor']:.2f}",
                    str(row["shared"]["n"]),
                ]
                for row in result["sharing"]
            ],
        )
        for result in of_kind(results, "throughput")
        if isinstance(result["sharing"], list)
    ]


def profile(results: Results) -> list[Table]:
    """Return how much of the run the integer products are, and how fast they are in it and alone."""
    rows = [
        [
            f"{shape_name(result)}{_machine(result)}",
            f"{each['share_of_kernels']:.0%}",
            f"{each['share_of_wall']:.0%}",
            f"{each['in_run_gops']:,.0f}",
            f"{each['alone_gops']:,.0f}",
            f"{each['in_run_over_alone']:.0%}",
            f"{each['from_memory_gops']:,.0f}" if "from_memory_gops" in each else "",
            f"{each['in_run_over_from_memory']:.0%}" if "from_memory_gops" in each else "",
            str(each["repeats"]),
        ]
        for result in of_kind(results, "throughput")
        if "profile" in result
        for each in [result["profile"]]
    ]
    headings = [
        *("shape", "products of all kernels", "of the wall clock"),
        *("10^9 op/s in the run", "alone", "in the run / alone"),
        *("alone, weights from memory", "in the run / that", "n"),
    ]
    return [Table("Integer products of the default form, one solution", headings, rows)] * bool(rows)


def latency(results: Results) -> list[Table]:
    """Return p50, p90 and p99 by length, and what comes before the first result."""
    tables = []
    for result in of_kind(results, "latency"):
        measured = [row for row in result["rows"] if "lengths" in row]
        skipped = [[row["peer"], f"skipped: {row['skipped']}"] for row in result["rows"] if "skipped" in row]
        lengths = [each["tokens"] for each in measured[0]["lengths"]] if measured else []
        cells = [[row["peer"], *(_percentiles(each) for each in row["lengths"])] for row in measured]
        tables.append(
            Table(
                f"{shape_name(result)}: p50 / p90 / p99 in seconds, {result['threads']} threads"
                f"{_machine(result)}",
                ["engine", *(f"{length:,} tokens" for length in lengths)],
                [*cells, *skipped],
            )
        )
        cold = [row for row in measured if "cold_start_seconds" in row]
        tables.append(
            Table(
                f"{shape_name(result)}: from nothing to a result{_machine(result)}",
                ["engine", "loading", "cold start to first result", "n", "peak MB"],
                [
                    [
                        row["peer"],
                        f"{row['load_seconds']:.2f} s",
                        f"{row['cold_start_seconds']['median']:.2f} s",
                        str(row["cold_start_seconds"]["n"]),
                        f"{row['peak_mb']:,}",
                    ]
                    for row in cold
                ],
            )
        )
    return tables


def memory(results: Results) -> list[Table]:
    """Return the rows of every memory result as they are."""
    tables = []
    for name in sorted(results):
        rows = results[name].get("rows", [])
        if name.startswith("memory") and rows:
            keys = list(dict.fromkeys(key for row in rows for key in row))
            cells = [[_cell(row.get(key)) for key in keys] for row in rows]
            tables.append(Table(name.replace("_", " of "), [key.replace("_", " ") for key in keys], cells))
    return tables


def products(results: Results) -> list[Table]:
    """Return the operators that take the time of each form."""
    return [
        Table(
            f"{result['rows'][0]['layers']} layers of Qwen2.5-1.5B, {result['tokens']} tokens, CPU with "
            f"{name.removeprefix('products_').upper()}, n = {result['repeats']}",
            ["form", "tokens/s", "largest shares of the kernels' time"],
            [
                [
                    f"{row['base']} + {row['difference']}, {row['activations']} activations"
                    + (f", {row['products']}" if row["products"] else ""),
                    f"{row['pair_tokens_per_second']:,.0f}",
                    ", ".join(f"{kind} {part:.0%}" for kind, part in list(row["shares"]["both"].items())[:4]),
                ]
                for row in result["rows"]
            ],
        )
        for name, result in sorted(results.items())
        if name.startswith("products")
    ]


def fidelity(results: Results) -> list[Table]:
    """Return the error of the log-ratio of every way of scoring, pair by pair."""
    if "fidelity" not in results:
        return []
    pairs = results["fidelity"]["pairs"]
    first = next(iter(pairs.values()))
    rows = []
    for way, decided in first["ways"].items():
        if decided["size"] is None:
            continue
        of_first = decided["against_fp64"]
        rows.append(
            [
                way.removeprefix("stepscore ").replace("pytorch-", "PyTorch "),
                f"{decided['size']['bits_a_pair']:.3g}",
                *(percent(pair["ways"][way]["against_fp64"]["ratio_error"]) for pair in pairs.values()),
                f"{of_first['step_signs']:.1%}",
                f"{of_first['first_errors']:.2%}",
                f"{decided['f1']:.3f}",
            ]
        )
    errors = [f"{name} {percent(pair['distance'])}" for name, pair in pairs.items()]
    headings = ["scored by", "bits", *errors, "same sign", "same first error", "F1"]
    return [
        Table("Relative RMS error of the log-ratio against fp64, by pair and its distance", headings, rows)
    ]


def residency(results: Results) -> list[Table]:
    """Return peak memory beside its estimate, and what streaming costs by the size of the window."""
    tables = []
    for result in of_kind(results, "residency"):
        peaks = [
            [
                f"{row['form']}, {row['residency']}",
                f"{row['peak_mb']:,}",
                f"{row['estimated_mb']:,}",
                f"{row['estimated_mb'] / row['peak_mb'] - 1:+.0%}",
                f"{row['tokens_per_second']:,.0f}",
            ]
            for row in result["peaks"]
        ]
        what = (
            f"{result['layers']} layers of Qwen2.5-1.5B's shape, real solutions, batches of 1,024 tokens"
            f"{_machine(result)}"
        )
        headings = ["form, residency", "peak MB", "estimated", "off by", "tokens/s"]
        note = f" ({result['note']})" if "note" in result else ""
        tables.append(Table(f"Peak memory of one window: {what}, n = 1{note}", headings, peaks))
        windows = [
            [
                row["form"],
                f"{row['tokens']:,}",
                f"{row['resident_tokens_per_second']:,.0f}",
                f"{row['stream_tokens_per_second']:,.0f}",
                f"{row['stream_over_resident']:.0%}",
            ]
            for row in result["windows"]
        ]
        headings = ["form", "tokens of the window", "resident tokens/s", "stream tokens/s", "stream keeps"]
        count = result["windows"][0]["n"]
        tables.append(
            Table(f"What streaming costs: the same, in turns, median of {count}", headings, windows)
        )
    return tables


def full_size(results: Results) -> list[Table]:
    """Return what the steps of a pair of the real size take."""
    return [
        Table(
            f"Two models of Qwen2.5-7B's shape, {result['layers']} of 28 layers, bf16 source, "
            f"{result['tokens']:,} tokens scored, n = 1"
            + (f" ({result['note']})" if "note" in result else ""),
            ["step", "peak MB", "estimated", "seconds", "tokens/s"],
            [
                [
                    row["step"],
                    f"{row['peak_mb']:,}",
                    f"{row['estimated_mb']:,}",
                    f"{row['seconds']:,.0f}",
                    f"{row['tokens_per_second']:.1f}" if "tokens_per_second" in row else "",
                ]
                for row in result["rows"]
            ],
        )
        for result in of_kind(results, "full_size")
    ]


def beam_search(results: Results) -> list[Table]:
    """Return what a search's calls cost with and without sharing, round by round and in all."""
    tables = []
    for result in of_kind(results, "beam_search"):
        rows = [
            [
                str(row["round"]),
                f"{row['texts']}",
                f"{row['tokens']:,}",
                f"{row['distinct_tokens'] / row['tokens']:.0%}",
                f"{row['shared']['median']:,.0f}",
                f"{row['not_shared']['median']:,.0f}",
                f"{row['factor']:.2f}",
            ]
            for row in [*result["rounds"], {"round": "all", **result["total"]}]
        ]
        total = result["total"]
        caption = (
            f"{shape_name(result)}: {result['trace']}, convention exact, {result['threads']} threads, "
            f"median of {total['shared']['n']}. Over all calls together "
            f"{result['distinct_in_trace'] / total['tokens']:.0%} of the tokens are distinct"
        )
        headings = ["round", "texts", "tokens", "distinct in the call", "tokens/s", "not shared", "factor"]
        tables.append(Table(caption, headings, rows))
    return tables


def matrix(results: Results) -> list[Table]:
    """Return format x precision: disk, memory, speed and fidelity."""
    tables = []
    for result in of_kind(results, "matrix"):
        measured = f"{shape_name(result)}, {result['workload']}, {result['threads']} threads"
        caption = (
            f"Disk, memory and speed: {measured}, n = {result['repeats']}. Fidelity: the bundled pair against"
            f" fp64, {result['problems']} problems"
        )
        headings = [
            "format, precision",
            "disk MB",
            "peak MB",
            "tokens/s",
            "log-ratio error",
            "same first error",
        ]
        tables.append(Table(caption, headings, [_of_matrix(row) for row in result["rows"]]))
    return tables


TABLES: Mapping[str, Callable[[Results], list[Table]]] = {
    "throughput": throughput,
    "verdicts": verdicts,
    "sharing": sharing,
    "profile": profile,
    "latency": latency,
    "memory": memory,
    "residency": residency,
    "full_size": full_size,
    "products": products,
    "fidelity": fidelity,
    "beam_search": beam_search,
    "matrix": matrix,
    "gpu": gpu,
}
"""What a marker in the README may ask for."""


def _engine(row: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    if "skipped" in row:
        return [row["peer"], f"skipped: {row['skipped']}", *[""] * 5]
    speed = row["pair_tokens_per_second"]
    ours = next((each for each in rows if each["round"] == row["round"] and _is_ours(each)), None)
    ratio = 0.0 if ours is None else ours["pair_tokens_per_second"]["median"] / speed["median"]
    error = row["log_ratio_error"]
    return [
        f"{row['peer']} (round {row['round']})",
        f"{speed['median']:,.1f}",
        f"{speed['slowest']:,.1f} to {speed['fastest']:,.1f}",
        str(speed["n"]),
        f"{ratio:.2f}" if ratio else "",
        "" if error is None else percent(error),
        f"{row['peak_mb']:,}",
    ]


def _of_matrix(row: Mapping[str, Any]) -> list[str]:
    name = f"{row['format']}, {row['precision']}"
    if "skipped" in row:
        return [name, f"skipped: {row['skipped']}", *[""] * 4]
    return [
        name,
        f"{row['disk_mb']:,}",
        f"{row['peak_mb']:,}",
        f"{row['pair_tokens_per_second']['median']:,.0f}",
        percent(row["log_ratio_error"]),
        f"{row['first_errors']:.2%}",
    ]


def _is_ours(row: Mapping[str, Any]) -> bool:
    return "skipped" not in row and row["peer"].startswith("stepscore")


def _percentiles(row: Mapping[str, Any]) -> str:
    return f"{row['p50']:.3g} / {row['p90']:.3g} / {row['p99']:.3g} (n = {row['n']})"


def _machine(result: Result) -> str:
    if "gpu" in result:
        return f", {result['gpu']['name']}"
    return f", CPU with {integer_unit(result['machine']['cpu_features'], amx=result.get('amx', True))}"


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)

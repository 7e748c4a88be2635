"""Error against fp64 by form, and every format in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.reporting.table import Results, Table, of_kind, percent, shape_name, spread

SUMMARY = {
    ("PyTorch", "fp16"): "PyTorch fp16",
    ("PyTorch", "bf16"): "PyTorch bf16",
    ("bitsandbytes", "int8"): "bitsandbytes int8, run by stepscore",
    ("ONNX (stepscore)", "int8 + int8, int8 activations"): (
        "**stepscore int8 + int8, int8 activations** (CPU default)"
    ),
    ("ONNX (stepscore)", "int8 + int4"): "stepscore int8 + int4, exact activations",
}
"""The rows of the README's table, by format and precision."""


def fidelity(results: Results) -> list[Table]:
    """Return the log-ratio error of every form, pair by pair; other errors of the first pair are folded."""
    if "fidelity" not in results:
        return []
    pairs = results["fidelity"]["pairs"]
    name, first = next(iter(pairs.items()))
    ways = {way: found for way, found in first["ways"].items() if found["size"] is not None}
    rows = [
        [
            _form(way),
            f"{found['size']['bits_a_pair']:.1f}",
            *(percent(pair["ways"][way]["against_fp64"]["ratio_error"]) for pair in pairs.values()),
            percent(found["against_fp64"]["step_signs"], 1),
            percent(found["against_fp64"]["first_errors"], 2),
            f"{found['f1']:.3f}",
        ]
        for way, found in ways.items()
    ]
    more = [
        [
            _form(way),
            f"{found['size']['megabytes']:.1f}",
            percent(errors["step_error"]),
            percent(errors["cumulative_error"]),
            f"{errors['logprob_rms']:.2g}",
            f"{errors['logprob_max']:.2g}",
            f"{errors['correlation']:.4f}",
        ]
        for way, found in ways.items()
        for errors in [found["against_fp64"]]
    ]
    distances = [f"{name} {percent(pair['distance'])}" for name, pair in pairs.items()]
    headings = ["scored by", "bits", *distances, "same sign", "same first error", "F1"]
    details = [
        *("scored by", "MB", "step reward error", "cumulative reward error"),
        *("log-prob RMS (nats)", "log-prob max (nats)", "correlation of log-ratios"),
    ]
    caption = "Relative RMS error of the log-ratio against fp64, by pair and its distance"
    return [
        Table(caption, headings, rows),
        Table(f"Pair {name}: size and further errors", details, more, folded=True),
    ]


def checkpoint_fidelity(results: Results) -> list[Table]:
    """Return the error of every form on real checkpoints, with and without each remedy."""
    tables = []
    for result in of_kind(results, "checkpoint_fidelity"):
        rows = [
            [
                row["form"].replace("; neither", "; without either"),
                percent(row["ratio_error"]),
                " to ".join(percent(each) for each in row["ratio_error_interval"]),
                percent(row["cumulative_error"]),
                f"{row['reference_logprob_rms']:.3f}",
                percent(row["first_errors"], 1),
                f"{row['same_best']} of {row['problems']}",
            ]
            for row in result["rows"]
        ]
        first = result["rows"][0]
        caption = (
            f"{result['model']}: {' from '.join(result['checkpoints'])}, distance "
            f"{percent(result['distance'])}, log-ratio {first['ratio_rms']:.2f} nats RMS: "
            f"{first['num_sequences']} solutions, {first['num_tokens']:,} tokens"
        )
        headings = [
            *("form", "log-ratio error", "90 % interval", "cumulative reward error"),
            *("reference's log-probs, RMS (nats)", "same first error", "same best of N"),
        ]
        tables.append(Table(caption, headings, rows))
    return tables


def matrix(results: Results) -> list[Table]:
    """Return format x precision: disk, memory, speed and fidelity; the spread is folded."""
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
        tables.append(Table(caption, headings, [_format(row) for row in result["rows"]]))
        ranges = [
            [f"{row['format']}, {row['precision']}", spread(row["pair_tokens_per_second"], 1)]
            for row in result["rows"]
            if "skipped" not in row
        ]
        headings = ["format, precision", "slowest to fastest"]
        tables.append(Table("Spread, tokens/s", headings, ranges, folded=True))
    return tables


def summary(results: Results) -> list[Table]:
    """Return the rows of the matrix that the README shows."""
    rows = [
        [
            SUMMARY[row["format"], row["precision"]],
            f"{row['pair_tokens_per_second']['median']:,.0f}",
            percent(row["log_ratio_error"]),
            f"{row['disk_mb']:,}",
            f"{row['peak_mb']:,}",
        ]
        for result in of_kind(results, "matrix")
        for row in result["rows"]
        if (row["format"], row["precision"]) in SUMMARY and "skipped" not in row
    ]
    rows.sort(key=lambda row: list(SUMMARY.values()).index(row[0]))
    headings = ["engine", "tokens/s", "log-ratio error", "disk, MB", "peak memory, MB"]
    return [Table("", headings, rows)] * bool(rows)


def _form(way: str) -> str:
    """Return the name of a form; pairs with a difference, which stepscore alone has, are bold."""
    name = way.removeprefix("stepscore ").replace("pytorch-", "PyTorch ")
    return f"**{name}**" if " + " in name else name


def _format(row: Mapping[str, Any]) -> list[str]:
    name = f"{row['format']}, {row['precision']}"
    if "skipped" in row:
        return [name, f"skipped: {row['skipped']}", *[""] * 4]
    return [
        name,
        f"{row['disk_mb']:,}",
        f"{row['peak_mb']:,}",
        f"{row['pair_tokens_per_second']['median']:,.0f}",
        percent(row["log_ratio_error"]),
        percent(row["first_errors"], 2),
    ]

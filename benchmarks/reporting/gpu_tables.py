"""What `make bench-gpu` found, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.reporting.table import Result, Results, Table, of_kind, percent


def gpu(results: Results) -> list[Table]:
    """Return speed and memory by window, and the text and its peers."""
    return [
        table
        for result in of_kind(results, "gpu")
        for table in (_windows(result), _text(result))
        if table.rows
    ]


def _windows(result: Result) -> Table:
    floors = {
        name: row[name]["tokens_per_second"] for row in _rows(result, "floor") for name in ("fp16", "bf16")
    }
    rows = []
    for row in _rows(result, "ours"):
        floor = floors.get("bf16" if row["form"] == "bf16" else "fp16")
        for window in row["windows"]:
            rows.append(
                [
                    f"{row['form']}, {row['residency']}",
                    f"{window['tokens']:,}",
                    f"{window['median']:,.0f}",
                    "" if floor is None else f"{window['median'] / floor:.0%}",
                    f"{window['peak_mb']:,}",
                    str(window["n"]),
                ]
            )
    headings = [
        "form, residency",
        "tokens of the window",
        "tokens/s",
        "of the floor",
        "peak MB of the GPU",
        "n",
    ]
    return Table(
        f"{_where(result)}: windows of sequences of 512 random tokens. The floor, by cuBLAS in the same run: "
        + ", ".join(f"{floor:,.0f} tokens/s at {name}" for name, floor in floors.items()),
        headings,
        rows,
    )


def _text(result: Result) -> Table:
    errors: dict[str, float] = {}
    for row in _rows(result, "fidelity"):
        errors = row["log_ratio_error"]
    speeds = list(_speeds(result))
    cards = [speed["median"] for name, speed, _ in speeds if name == "transformers fp16, one at a time"]
    rows = [
        [
            name,
            f"{speed['median']:,.0f}",
            f"{speed['median'] / cards[0]:.2f}" if cards else "",
            percent(errors[of]) if of in errors else "",
            str(speed["n"]),
        ]
        for name, speed, of in speeds
    ]
    counts = next(
        (f"{speed['sequences']} sequences, {speed['tokens']:,} tokens" for _, speed, _ in speeds), ""
    )
    return Table(
        f"{_where(result)}: best-of-8 text, {counts}. Log-ratio errors are those of the bundled pair there",
        ["engine", "tokens/s", "x transformers fp16", "log-ratio error", "n"],
        rows,
    )


def _speeds(result: Result) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Give the name of an engine, its speed on the text, and what its error is found under."""
    for row in _rows(result, "ours"):
        if "text" in row:
            yield f"stepscore {row['form']}", row["text"], row["form"]
        if "text_not_shared" in row:
            yield f"stepscore {row['form']}, prefixes not shared", row["text_not_shared"], row["form"]
    for row in _rows(result, "peer"):
        yield f"{row['peer']}, one at a time", row["text"], row["peer"]
        yield f"{row['peer']}, padded batches of 8", row["text_batches_of_8"], row["peer"]


def _rows(result: Result, part: str) -> list[Mapping[str, Any]]:
    """Return what a part found, where it ran."""
    return [row for row in result["rows"] if row["part"] == part and not {"skipped", "failed"} & row.keys()]


def _where(result: Result) -> str:
    layers = result["shape"]["num_hidden_layers"]
    return f"{result['gpu']['name']}, two models of Qwen2.5-7B's shape, {layers} layers"

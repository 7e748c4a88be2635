"""Speed and memory on a GPU before the weights of layers were inputs of graphs, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.reporting.table import Result, Table, note_of, percent, spread


def old_gpu(result: Result) -> list[Table]:
    """Return speed and memory by window, and best-of-8 text next to PyTorch; the spread is folded."""
    tables = _windows(result), _text(result), _window_spread(result), _text_spread(result)
    return [table for table in tables if table.rows]


def _windows(result: Result) -> Table:
    floors = {
        name: row[name]["tokens_per_second"] for row in _rows(result, "floor") for name in ("fp16", "bf16")
    }
    sizes = sorted({window["tokens"] for row in _rows(result, "pair") for window in row["windows"]})
    rows = []
    for row in _rows(result, "pair"):
        floor = floors.get("bf16" if row["form"] == "bf16" else "fp16")
        by_size = {window["tokens"]: window for window in row["windows"]}
        cells = [_of_floor(by_size[size]["median"], floor) if size in by_size else "" for size in sizes]
        peak = max(window["peak_mb"] for window in row["windows"])
        rows.append([f"{row['form']}, {row['residency']}", *cells, f"{peak:,}"])
    floor_text = ", ".join(f"{floor:,.0f} tokens/s at {name}" for name, floor in floors.items())
    return Table(
        f"{_where(result)}: tokens/s by window of random sequences of 512 tokens, median",
        ["form, residency", *(f"{size:,} tokens" for size in sizes), "peak MB of the GPU"],
        rows,
        (f"In brackets the share of the floor, by cuBLAS in the same run: {floor_text}. " if floors else "")
        + note_of(result),
    )


def _of_floor(speed: float, floor: float | None) -> str:
    return f"{speed:,.0f}" if floor is None else f"{speed:,.0f} ({percent(speed / floor, 0)})"


def _window_spread(result: Result) -> Table:
    return Table(
        f"{_where(result)}: windows, spread and memory",
        ["form, residency", "tokens per window", "slowest to fastest, tokens/s", "peak MB of the GPU", "n"],
        [
            [
                f"{row['form']}, {row['residency']}",
                f"{window['tokens']:,}",
                spread(window),
                f"{window['peak_mb']:,}",
                str(window["n"]),
            ]
            for row in _rows(result, "pair")
            for window in row["windows"]
        ],
        folded=True,
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
        ]
        for name, speed, of in speeds
    ]
    counts = next(
        (f"{speed['sequences']} sequences, {speed['tokens']:,} tokens" for _, speed, _ in speeds), ""
    )
    return Table(
        f"{_where(result)}: best-of-8 text, {counts}, median",
        ["engine", "tokens/s", "x transformers fp16", "log-ratio error of the bundled pair"],
        rows,
    )


def _text_spread(result: Result) -> Table:
    return Table(
        f"{_where(result)}: best-of-8 text, spread",
        ["engine", "slowest to fastest, tokens/s", "n"],
        [[name, spread(speed), str(speed["n"])] for name, speed, _ in _speeds(result)],
        folded=True,
    )


def _speeds(result: Result) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield the name of an engine, its speed on the text, and the key of its error."""
    for row in _rows(result, "pair"):
        if "text" in row:
            yield f"stepscore {row['form']}", row["text"], row["form"]
        if "text_not_shared" in row:
            yield f"stepscore {row['form']}, prefixes not shared", row["text_not_shared"], row["form"]
    for row in _rows(result, "peer"):
        yield f"{row['peer']}, one at a time", row["text"], row["peer"]
        yield f"{row['peer']}, padded batches of 8", row["text_batches_of_8"], row["peer"]


def _rows(result: Result, part: str) -> list[Mapping[str, Any]]:
    """Return the rows of a part that were measured."""
    return [row for row in result["rows"] if row["part"] == part and not {"skipped", "failed"} & row.keys()]


def _where(result: Result) -> str:
    layers = result["shape"]["num_hidden_layers"]
    return f"Old, {result['old']}: {result['gpu']['name']}, two models of Qwen2.5-7B's shape, {layers} layers"

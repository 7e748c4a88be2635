"""Memory of exports, of scoring and of each residency, as tables."""

from __future__ import annotations

from benchmarks.reporting.table import Result, Results, Table, machine_name, note_of, of_kind, percent


def full_size(results: Results) -> list[Table]:
    """Return memory and time of the steps of a pair of the real size."""
    return [
        Table(
            f"Two models of Qwen2.5-7B's shape, {result['layers']} of 28 layers, bf16 source, "
            f"{result['tokens']:,} tokens scored, n = 1",
            ["step", "peak MB", "estimated MB", "seconds", "tokens/s"],
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
            note_of(result),
        )
        for result in of_kind(results, "full_size")
    ]


def full_size_scoring(results: Results) -> list[Table]:
    """Return memory and speed of scoring with a pair of the real size, for docs/memory.md."""
    rows = [
        [
            *row["step"].removeprefix("score ").rsplit(", ", 1),
            f"{row['peak_mb']:,}",
            f"{row['estimated_mb']:,}",
            f"{row['tokens_per_second']:.1f}",
        ]
        for result in of_kind(results, "full_size")
        for row in result["rows"]
        if "tokens_per_second" in row
    ]
    headings = ["form", "residency", "peak memory, MB", "estimated, MB", "tokens/s"]
    return [Table("", headings, rows)] * bool(rows)


def residency(results: Results) -> list[Table]:
    """Return peak memory next to its estimate, and the speed of streaming by the size of the window."""
    return [
        table
        for result in of_kind(results, "residency")
        for table in (_peaks(result), _streaming(result))
        if table.rows
    ]


def memory(results: Results) -> list[Table]:
    """Return the peak memory of exports by precision, and of scoring one long sequence."""
    exports = [
        [
            f"{row['precision']}, {row['layers']} layers",
            f"{row['parameters_of_both'] / 1e9:.2f}",
            f"{row['pair_bytes'] / 1e9:.2f}",
            f"{row['seconds']:,.0f}",
            f"{row['peak_mb']:,}",
            f"{row['estimated_mb']:,}",
        ]
        for result in of_kind(results, "memory_export")
        for row in result["rows"]
    ]
    scored = [
        [
            row["precision"],
            f"{row['tokens']:,}",
            f"{row['vocab_size']:,}",
            f"{row['peak_mb']:,}",
            f"{row['above_loaded_mb']:,}",
            f"{row['above_warm_mb']:,}",
        ]
        for result in of_kind(results, "memory_score")
        for row in result["rows"]
    ]
    export_headings = [
        "precision",
        "parameters of both, 10^9",
        "pair GB",
        "seconds",
        "peak MB",
        "estimated MB",
    ]
    headings = ["precision", "tokens", "vocabulary", "peak MB", "above loaded MB", "above warmed-up MB"]
    return [
        *[Table("Export of Qwen2.5-1.5B's shape, n = 1", export_headings, exports)] * bool(exports),
        *[Table("Scoring one long sequence, n = 1", headings, scored)] * bool(scored),
    ]


def _peaks(result: Result) -> Table:
    return Table(
        f"Peak memory of one window: {result['layers']} layers of Qwen2.5-1.5B's shape, real solutions, "
        f"batches of 1,024 tokens, {machine_name(result)}, n = 1",
        ["form, residency", "peak MB", "estimated MB", "estimate off by", "tokens/s"],
        [
            [
                f"{row['form']}, {row['residency']}",
                f"{row['peak_mb']:,}",
                f"{row['estimated_mb']:,}",
                f"{100 * (row['estimated_mb'] / row['peak_mb'] - 1):+.0f} %",
                f"{row['tokens_per_second']:,.0f}",
            ]
            for row in result["peaks"]
        ],
        note_of(result),
    )


def _streaming(result: Result) -> Table:
    return Table(
        "Speed of streaming by the size of the window: resident and streaming engine alternate, median of "
        f"{result['windows'][0]['n'] if result['windows'] else 0}",
        ["form", "tokens per window", "resident, tokens/s", "stream, tokens/s", "stream / resident"],
        [
            [
                row["form"],
                f"{row['tokens']:,}",
                f"{row['resident_tokens_per_second']:,.0f}",
                f"{row['stream_tokens_per_second']:,.0f}",
                percent(row["stream_over_resident"], 0),
            ]
            for row in result["windows"]
        ],
    )

"""ProcessBench figures as a table."""

from __future__ import annotations

from typing import TextIO

from rich import box
from rich.table import Table
from rich.text import Text

from stepscore.cli.tables import console
from stepscore.evaluation.processbench import ProcessBenchReport
from stepscore.visible import printable


def print_verdict(stream: TextIO, verdict: ProcessBenchReport) -> None:
    """Print one row per subset, the average, and the threshold."""
    screen = console(stream)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        safe_box=True,
        title=f"ProcessBench, first wrong step by {verdict.series} rewards, in %",
        title_justify="left",
    )
    for name in ("subset", "erroneous", "correct", "error acc", "correct acc", "F1", "upper bound F1"):
        table.add_column(name, justify="left" if name == "subset" else "right")
    for subset in verdict.subsets:
        table.add_row(
            Text(printable(subset.name)),
            f"{subset.num_error:,}",
            f"{subset.num_correct:,}",
            *map(
                _percent, (subset.accuracy_error, subset.accuracy_correct, subset.f1, subset.upper_bound.f1)
            ),
        )
    table.add_section()
    averages = map(_percent, (verdict.average_f1, verdict.average_f1_upper_bound))
    table.add_row("average", "", "", "", "", *averages)
    screen.print(table)
    limit = verdict.threshold
    origin = "given" if limit.chosen_on is None else f"chosen on {printable(limit.chosen_on)}"
    if limit.nats is None:
        size = f"reward {limit.reward:.6g} (give --beta to see it in nats)"
    else:
        size = f"{limit.nats:.6g} nats, reward {limit.reward:.6g} at beta {verdict.beta:g}"
    screen.print(Text(f"threshold {size}; {origin}"))
    screen.print(
        Text("upper bound: oracle threshold, chosen on each subset's own labels; not a reportable result")
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"

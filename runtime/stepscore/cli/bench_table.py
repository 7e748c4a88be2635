"""Timings of a pair as a table."""

from __future__ import annotations

from collections.abc import Iterator

from stepscore.bench import BenchReport
from stepscore.jobs.provenance import Provenance
from stepscore.jobs.provenance_facts import provenance_facts
from stepscore.tabular.table import Cell, Column, Fact, Table

COLUMNS = (
    Column.of("workload", is_text=True),
    Column.of("sequences"),
    Column.of("tokens"),
    Column("tokens/s", ("tokens_per_second", "slowest", "fastest")),
    Column.of("repeats"),
    Column.of("sharing"),
)


def bench_table(report: BenchReport, origin: Provenance) -> Table:
    """Return one row per workload: the median speed, and the slowest to the fastest below."""
    rows = []
    for timing in report.timings:
        speed = timing.speed
        rates = (speed.median, speed.slowest, speed.fastest)
        median, slowest, fastest = (f"{rate:,.0f}" for rate in rates)
        sharing = "-" if timing.sharing is None else f"{timing.sharing:.2f} x"
        rows.append(
            (
                Cell.of(timing.name),
                Cell.of(timing.sequences, f"{timing.sequences:,}"),
                Cell.of(timing.tokens, f"{timing.tokens:,}"),
                Cell(f"{median}\n{slowest} to {fastest}", rates),
                Cell.of(speed.n),
                Cell.of(timing.sharing, sharing),
            )
        )
    return Table(
        title=f"speed of {report.pair}",
        columns=COLUMNS,
        rows=tuple(rows),
        notes=(
            "tokens/s: input tokens through both models, median of the repeats; below: the slowest to the "
            "fastest; sharing: speedup from prefix sharing",
        ),
        facts=(*_facts(report), *report.machine.facts(), *provenance_facts(origin)),
    )


def _facts(report: BenchReport) -> Iterator[Fact]:
    yield Fact.of("provider", "provider", report.provider)
    yield Fact.of("threads", "threads", report.threads)
    yield Fact.of("residency", "residency", report.residency)
    yield Fact.of("batches of", "max_batch_tokens", report.max_batch_tokens, f"{report.max_batch_tokens:,}")
    yield Fact.of("loading", "load_seconds", report.load_seconds, f"{report.load_seconds:.2f} s")
    seconds = report.first_result_seconds
    yield Fact.of("first result", "first_result_seconds", seconds, f"{seconds:.2f} s after that")
    known = report.peak_mb is not None
    text = f"{report.peak_mb:,.0f} MB resident" if known else "not told by this system"
    yield Fact.of("peak memory", "peak_mb", report.peak_mb, text)

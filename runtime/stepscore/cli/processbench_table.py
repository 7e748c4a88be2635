"""ProcessBench figures as a table."""

from __future__ import annotations

from collections.abc import Iterator

from stepscore.evaluation.processbench import ProcessBenchReport
from stepscore.jobs.provenance import Provenance
from stepscore.jobs.provenance_facts import provenance_facts
from stepscore.tabular.table import Cell, Column, Fact, Table

COLUMNS = (
    Column.of("subset", is_text=True),
    Column.of("erroneous", "num_error"),
    Column.of("correct", "num_correct"),
    Column.of("error acc", "accuracy_error"),
    Column.of("correct acc", "accuracy_correct"),
    Column.of("F1", "f1"),
    Column.of("upper bound F1", "upper_bound_f1"),
)


def processbench_table(verdict: ProcessBenchReport, origin: Provenance) -> Table:
    """Return one row per subset, and the average: percentages, fractions in CSV."""
    rows = [
        (
            Cell.of(subset.name),
            *(Cell.of(count, f"{count:,}") for count in (subset.num_error, subset.num_correct)),
            *map(
                _percent, (subset.accuracy_error, subset.accuracy_correct, subset.f1, subset.upper_bound.f1)
            ),
        )
        for subset in verdict.subsets
    ]
    averages = map(_percent, (verdict.average_f1, verdict.average_f1_upper_bound))
    rows.append((Cell.of("average"), *([Cell.of(None, "")] * 4), *averages))
    return Table(
        title=f"ProcessBench, first wrong step by {verdict.series} rewards, in %",
        columns=COLUMNS,
        rows=tuple(rows),
        totals=1,
        notes=(
            _threshold(verdict),
            "upper bound: oracle threshold, chosen on each subset's own labels; not a reportable result",
        ),
        facts=(*_facts(verdict), *provenance_facts(origin)),
    )


def _facts(verdict: ProcessBenchReport) -> Iterator[Fact]:
    """Yield what title and notes say, for CSV."""
    limit = verdict.threshold
    yield Fact.of("series", "series", verdict.series, "")
    yield Fact.of("threshold", "threshold_reward", limit.reward, "")
    yield Fact.of("threshold from", "threshold_chosen_on", limit.chosen_on, "")


def _threshold(verdict: ProcessBenchReport) -> str:
    limit = verdict.threshold
    origin = "given" if limit.chosen_on is None else f"chosen on {limit.chosen_on}"
    if limit.nats is None:
        return f"threshold: reward {limit.reward:.6g} (give --beta to see it in nats); {origin}"
    return f"threshold {limit.nats:.6g} nats, reward {limit.reward:.6g} at beta {verdict.beta:g}; {origin}"


def _percent(value: float | None) -> Cell:
    return Cell.of(value, "-" if value is None else f"{100 * value:.1f}")

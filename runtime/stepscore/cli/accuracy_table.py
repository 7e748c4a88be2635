"""Accuracies of a selection, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from stepscore.enums import Equality, Method
from stepscore.jobs.provenance import Provenance, document
from stepscore.jobs.provenance_facts import provenance_facts
from stepscore.jobs.schema import ErrorLine
from stepscore.selection.best_of_n import Accuracy, MeanWithInterval, Problem, SelectionMethod
from stepscore.selection.expected_accuracy import LEVEL, MOST_SUBSETS, RESAMPLES
from stepscore.tabular.table import Cell, Column, Fact, Table


class SelectionReport(msgspec.Struct, frozen=True, tag_field="command", tag="select"):
    """Output of `stepscore select --json`; accuracies are fractions."""

    method: str
    score_name: str
    temperature: float | None
    equality: str
    num_samples: int
    num_problems: int
    num_without_answer: int
    undecided_pairs: int
    """Pairs of answers that could not be compared; they count as different."""
    confidence: float
    resamples: int
    seed: int
    accuracies: list[Accuracy]
    errors: list[ErrorLine]


def as_json(
    origin: Provenance,
    problems: Sequence[Problem],
    rule: SelectionMethod,
    equality: Equality,
    accuracies: list[Accuracy],
    *,
    errors: list[ErrorLine],
    undecided_pairs: int,
) -> str:
    """Return the report as JSON text, line feed included."""
    report = SelectionReport(
        method=rule.method,
        score_name=rule.score_name,
        temperature=rule.vote_temperature if rule.method is Method.WEIGHTED else None,
        equality=equality,
        num_samples=sum(len(problem.ids) for problem in problems),
        num_problems=len(problems),
        num_without_answer=sum(problem.answers.count(None) for problem in problems),
        undecided_pairs=undecided_pairs,
        confidence=LEVEL,
        resamples=RESAMPLES,
        seed=rule.seed,
        accuracies=accuracies,
        errors=errors,
    )
    return document(report, origin).decode()


def accuracy_table(origin: Provenance, rule: SelectionMethod, accuracies: Sequence[Accuracy]) -> Table:
    """Return one row per n: percentages, with their confidence intervals below; fractions in CSV."""
    compared = any(row.majority is not None for row in accuracies)
    columns = [
        Column.of("n"),
        Column.of("problems", "num_problems"),
        Column.of_interval(str(rule.method), "chosen"),
        *([Column.of_interval("majority", "majority")] if compared else []),
        *([Column.of_interval("minus majority", "over_majority")] if compared else []),
        Column.of_interval("random", "random"),
        Column.of_interval("pass@n", "pass_at_n"),
    ]
    rows = []
    for row in accuracies:
        voting = [_percent(row.majority), _percent(row.over_majority, sign="+")] if compared else []
        counts = [Cell.of(count, f"{count:,}") for count in (row.n, row.num_problems)]
        rows.append((*counts, _percent(row.chosen), *voting, _percent(row.random), _percent(row.pass_at_n)))
    drawn = any(row.drawn_subsets is not None for row in accuracies)
    over = f"voting: {MOST_SUBSETS:,} random subsets where there are more" if drawn else "exact"
    note = (
        f"means over all subsets of n samples ({over}); below: {LEVEL:.0%} confidence intervals from "
        f"{RESAMPLES:,} bootstrap resamples of the problems, seed {rule.seed}"
    )
    return Table(
        title=f"accuracy in %, {name_of(rule)}",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(note,),
        facts=(*_facts(rule), *provenance_facts(origin)),
    )


def name_of(rule: SelectionMethod) -> str:
    """Return method, score and temperature in words."""
    if rule.method is Method.MAJORITY:
        return "majority"
    temperature = f", temperature {rule.vote_temperature:g}" if rule.method is Method.WEIGHTED else ""
    return f"{rule.method} by {rule.score_name}{temperature}"


def _facts(rule: SelectionMethod) -> Iterator[Fact]:
    """Yield what title and notes say, for CSV."""
    yield Fact.of("method", "method", rule.method.value, "")
    yield Fact.of("score", "score_name", rule.score_name, "")
    temperature = rule.vote_temperature if rule.method is Method.WEIGHTED else None
    yield Fact.of("temperature", "temperature", temperature, "")
    yield Fact.of("confidence", "confidence", LEVEL, "")
    yield Fact.of("seed", "seed", rule.seed, "")


def _percent(estimate: MeanWithInterval | None, sign: str = "") -> Cell:
    if estimate is None:
        return Cell("-", (None, None, None))
    values = (estimate.mean, estimate.low, estimate.high)
    mean, low, high = (f"{100 * value:{sign}z.1f}" for value in values)
    return Cell(f"{mean}\n{low} to {high}", values)

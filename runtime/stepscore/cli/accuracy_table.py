"""Accuracies of a selection, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from stepscore.cli.tables import console
from stepscore.enums import Equality, Method
from stepscore.jobs.provenance import Provenance, document
from stepscore.jobs.schema import ErrorLine
from stepscore.selection.best_of_n import Accuracy, MeanWithInterval, Problem, SelectionMethod
from stepscore.selection.expected_accuracy import LEVEL, MOST_SUBSETS, RESAMPLES


class SelectionReport(msgspec.Struct, frozen=True):
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


def print_accuracies(stream: TextIO, rule: SelectionMethod, accuracies: Sequence[Accuracy]) -> None:
    """Print one row per n: percentages, with their confidence intervals below."""
    screen = console(stream)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        safe_box=True,
        title=f"accuracy in %, {_name(rule)}",
        title_justify="left",
    )
    columns = ["n", "problems", str(rule.method), "random", "pass@n"]
    compared = any(row.majority is not None for row in accuracies)
    if compared:
        columns[3:3] = ["majority", "minus majority"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in accuracies:
        cells = [f"{row.n:,}", f"{row.num_problems:,}", _percent(row.chosen)]
        if compared:
            cells += [_percent(row.majority), _percent(row.over_majority, sign="+")]
        table.add_row(*cells, _percent(row.random), _percent(row.pass_at_n))
    screen.print(table)
    drawn = any(row.drawn_subsets is not None for row in accuracies)
    over = f"voting: {MOST_SUBSETS:,} random subsets where there are more" if drawn else "exact"
    screen.print(
        Text(
            f"means over all subsets of n samples ({over}); below: {LEVEL:.0%} confidence intervals from "
            f"{RESAMPLES:,} bootstrap resamples of the problems, seed {rule.seed}"
        )
    )


def _name(rule: SelectionMethod) -> str:
    if rule.method is Method.MAJORITY:
        return "majority"
    temperature = f", temperature {rule.vote_temperature:g}" if rule.method is Method.WEIGHTED else ""
    return f"{rule.method} by {rule.score_name}{temperature}"


def _percent(estimate: MeanWithInterval | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    mean, low, high = (f"{100 * value:{sign}z.1f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean}\n{low} to {high}"

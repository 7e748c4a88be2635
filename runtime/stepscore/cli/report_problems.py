"""Group the records of a report by problem, and select a sample of each by every method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stepscore.enums import Equality, Method
from stepscore.errors import ExtraMissing, NoAnswer, NotComparable
from stepscore.jobs.schema import ErrorLine
from stepscore.jobs.scored_records import Scored
from stepscore.report.formulas import Formulas
from stepscore.report.markup import spans
from stepscore.report.page import Problem
from stepscore.report.solutions import ReportRecord
from stepscore.selection.answers import Comparer, Same
from stepscore.selection.best_of_n import SelectionMethod, group, judged, select_sample
from stepscore.selection.sample_answers import AnswerField, examine

_LATEX = frozenset("\\^_{")


def problems(
    lines: Iterable[Scored | ErrorLine],
    records: Sequence[ReportRecord],
    equality: Equality,
    formulas: Formulas,
) -> tuple[list[Problem], list[str]]:
    """Return the problems of several samples, and remarks on how their answers were compared.

    `lines` are what `read_scored` finds in the same file, in the series `cumulative`: one for each record.
    """
    shown = {
        line.offset: (line, index)
        for index, (line, record) in enumerate(zip(lines, records, strict=False))
        if isinstance(line, Scored) and record.error is None
    }
    at = {offset: index for offset, (_, index) in shown.items()}
    groups = [samples for samples in group(line for line, _ in shown.values()).samples if len(samples) > 1]
    try:
        return _selected(groups, at, equality, formulas)
    except ExtraMissing as error:
        found, remarks = _selected(groups, at, Equality.EXACT, formulas)
        return found, [f"answers are compared as text, for {error.message}: {error.hint}", *remarks]


def _selected(
    groups: Sequence[Sequence[Scored]], at: dict[int, int], equality: Equality, formulas: Formulas
) -> tuple[list[Problem], list[str]]:
    remarks: list[str] = []
    with Comparer(equality) as comparer:
        field: AnswerField | None = None
        try:
            field = examine(groups, comparer.same)
        except NotComparable as error:
            remarks.append(error.message)
        found = [
            _problem(samples, [at[sample.offset] for sample in samples], field, comparer.same, formulas)
            for samples in groups
        ]
        if comparer.undecided:
            remarks.append(
                f"{comparer.undecided:,} pairs of answers could not be compared, and count as different"
            )
    return found, remarks


def _problem(
    samples: Sequence[Scored], at: list[int], field: AnswerField | None, same: Same, formulas: Formulas
) -> Problem:
    if field is None:
        return Problem(at)
    try:
        problem = judged(samples, SelectionMethod(Method.WEIGHTED), field, same)
    except NotComparable as error:
        return Problem(at, fault=error.message)
    selected = {}
    for method in Method:
        try:
            selected[method.value] = select_sample(problem, SelectionMethod(method))
        except NoAnswer:
            continue
    return Problem(
        samples=at,
        answers=list(problem.answers) if any(problem.answers) else [],
        answer_spans=[_answer_spans(answer, formulas) for answer in problem.answers],
        correct=[] if problem.correct is None else problem.correct.tolist(),
        selected=selected,
    )


def _answer_spans(answer: str | None, formulas: Formulas) -> list[int]:
    """Return the spans of an answer, which is a formula without delimiters where it is LaTeX at all."""
    if not answer or not _LATEX & {*answer}:
        return []
    number = formulas.number(answer, display=False)
    return spans(answer, formulas) if number is None else [0, len(answer.encode("utf-16-le")) // 2, number]

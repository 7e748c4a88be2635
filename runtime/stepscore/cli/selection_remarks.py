"""Say in words what a selection did that its fields or options do not suggest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stepscore.selection.best_of_n import Accuracy, Grouped, Problem
from stepscore.selection.equality.library import SECONDS
from stepscore.selection.sample_answers import AnswerField
from stepscore.visible import printable


def remarks(
    problems: Sequence[Problem],
    groups: Grouped,
    field: AnswerField | None,
    table: Sequence[Accuracy],
    sizes: Sequence[int] | None,
    *,
    undecided: int,
    unanswered: int,
) -> Iterator[str]:
    """Yield one line per finding; `field` is None where nothing depends on the answers."""
    samples = sum(len(problem.ids) for problem in problems)
    yield f"{samples:,} samples of {len(problems):,} problems"
    yield from _about_groups(groups, problems)
    unknown = sum(problem.correct is None for problem in problems)
    if field is not None:
        yield from _about_answers(
            field, unknown > 0, sum(problem.answers.count(None) for problem in problems)
        )
    if unanswered:
        yield f"{unanswered:,} problems have no answer to vote for: an error line is written for each"
    if undecided:
        yield (
            f"{undecided:,} pairs of answers could not be compared (too large or long, or more than "
            f"{SECONDS:g} s): they count as different"
        )
    if unknown:
        yield (
            f"{unknown:,} problems are not evaluated: `final_answer` (text, a number or a list of one) or "
            "`final_answer_correct` is missing"
        )
    yield from _about_sizes(problems, sizes, table)


def _about_groups(groups: Grouped, problems: Sequence[Problem]) -> Iterator[str]:
    if groups.repeated:
        yield (
            f"warning: {len(groups.repeated):,} samples are there more than once (first: "
            f"{_short(groups.repeated[0])}), with the same id, problem and rewards, and count each time: "
            "leave out the file that was added twice"
        )
    if groups.reused_ids:
        yield (
            f"{len(groups.reused_ids):,} values of `problem_id` have several problem texts (first: "
            f"{_short(groups.reused_ids[0])}): each text is a problem of its own"
        )
    alone = sum(len(problem.ids) == 1 for problem in problems)
    if alone == len(problems):
        yield "nothing to choose: every problem has one sample (samples of one problem have the same text)"
    elif alone:
        yield f"{alone:,} problems have one sample, which is selected as it is"


def _about_answers(field: AnswerField, unknown: bool, silent: int) -> Iterator[str]:
    if field.differing:
        reading = (
            "the field counts only where there is no box"
            if field.own
            else "the field, the same for all samples of a problem, is read as the data set's answer"
            + (": name it `final_answer` to evaluate" if unknown else "")
        )
        yield (
            f"`answer` differs from the last \\boxed{{}} in {len(field.differing):,} of {field.both:,} "
            f"samples (first: {_short(field.differing[0])}): the box counts; {reading}"
        )
    if field.alone and field.own:
        doubt = "; it never differs within a problem: if it is the true answer, name it `final_answer`"
        yield f"{field.alone:,} samples have no \\boxed{{}}: their `answer` counts" + (
            doubt if field.constant else ""
        )
    if silent:
        yield f"{silent:,} samples have no answer (\\boxed{{}} or `answer`) and do not vote"


def _about_sizes(
    problems: Sequence[Problem], sizes: Sequence[int] | None, table: Sequence[Accuracy]
) -> Iterator[str]:
    known = [len(problem.ids) for problem in problems if problem.correct is not None]
    left_out = sorted(set(sizes or ()) - {row.n for row in table})
    if left_out and known:
        named = ",".join(map(str, left_out))
        yield f"no accuracies for --n {named}: no evaluated problem has more than {max(known)} samples"
    elif left_out:
        yield "no accuracies, although --n is given: the true answers are missing"


def _short(value: str | int) -> str:
    return printable(str(value))[:80]

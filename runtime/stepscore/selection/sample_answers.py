r"""Find the answer of each sample: its last \boxed{}, else its field `answer`, where that is its own.

Data sets use the name `answer` for the samples' answers and for the true one. The box decides. Where the
field differs from the box in some sample, the samples of the file show which of the two the field is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from stepscore.errors import NotComparable
from stepscore.jobs.scored_records import Scored
from stepscore.selection.answers import Same

_HINT = "remove or rename the field in the input, e.g. jq -c 'del(.answer)', or correct it"


@dataclass(slots=True)
class AnswerField:
    """Findings about the field `answer` of a file."""

    both: int = 0
    """Samples with the field and a box."""
    differing: list[str | int] = field(default_factory=list)
    """Ids of those in which the two differ."""
    own: bool = True
    """The field is the sample's own answer, and stands for a missing box."""
    constant: bool = False
    """The field is the same for all samples of every problem, and some problem has several."""
    alone: int = 0
    """Samples with the field and without a box."""

    def answer(self, sample: Scored) -> str | None:
        """Return the answer of a sample."""
        return sample.boxed or (sample.answer if self.own else None)


def examine(groups: Sequence[Sequence[Scored]], same: Same) -> AnswerField:
    """Compare field and box of all samples; raise NotComparable where the field can be neither answer.

    In files where field and box differ in some sample: a field that is the same for all samples of each
    problem is read as the data set's answer, another one as the samples' own. One that differs between the
    samples of a problem and is not the box in most samples is neither.
    """
    found = AnswerField()
    example = ""
    for sample in chain.from_iterable(groups):
        if sample.answer is None:
            continue
        if sample.boxed is None:
            found.alone += 1
            continue
        found.both += 1
        if not same(sample.answer, sample.boxed):
            found.differing.append(sample.id)
            example = example or (
                f"{sample.answer!r:.60} in {sample.id!r:.80}, whose box holds {sample.boxed!r:.60}"
            )
    if found.differing or found.alone:
        varies = any(_varies((sample.answer for sample in samples), same) for samples in groups)
        found.constant = not varies and any(len(samples) > 1 for samples in groups)
        found.own = varies or not found.differing
    if found.differing and found.own and 2 * len(found.differing) >= found.both:
        raise NotComparable(
            f"`answer` is neither the sample's answer nor the data set's: it is {example}; it differs from "
            f"the box in {len(found.differing):,} of {found.both:,} samples, and within a problem",
            hint=_HINT,
        )
    return found


def refuse_two_truths(samples: Sequence[Scored], same: Same) -> None:
    """Raise NotComparable where samples of one problem have different true answers."""
    truths = [
        (sample.id, sample.final_answer)
        for sample in samples
        if sample.final_answer_correct is None and sample.final_answer is not None
    ]
    for other, answer in truths[1:]:
        first, truth = truths[0]
        if not same(truth, answer):
            raise NotComparable(
                "`final_answer` must be the problem's true answer, but its samples have different ones: "
                f"{truth!r:.60} in {first!r:.60}, {answer!r:.60} in {other!r:.60}",
                hint="name it `answer` if it is a sample's own; give different problems a `problem_id` each",
            )


def _varies(values: Iterable[str | None], same: Same) -> bool:
    distinct = list(dict.fromkeys(value for value in values if value is not None))
    return any(not same(distinct[0], other) for other in distinct[1:])

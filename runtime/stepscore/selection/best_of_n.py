"""Select one sample per problem from scored records, and estimate the accuracy of the selection.

A sample is correct if its `final_answer_correct` is true; without that field, if its answer equals its
`final_answer`. (ProcessBench records have both; there, `final_answer` is the sample's own answer.) Samples of
one problem have the same text of the problem and, where they have one, the same `problem_id`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import comb
from statistics import median_low

import msgspec
import numpy as np

from stepscore.enums import Method, Reducer, Series
from stepscore.errors import NoAnswer
from stepscore.jobs.scored_records import Scored
from stepscore.rewards import aggregate, probability
from stepscore.selection.answers import Same, group_answers
from stepscore.selection.expected_accuracy import (
    MOST_SUBSETS,
    RESAMPLES,
    best_of_n_accuracy,
    bootstrap,
    pass_at_n,
    subsets,
    voting_accuracy,
)
from stepscore.selection.rules import answer_codes, best_of_n, elect, vote_weights
from stepscore.selection.sample_answers import AnswerField, refuse_two_truths


@dataclass(frozen=True, slots=True)
class SelectionMethod:
    """How one sample is selected; `seed` is that of random subsets and of the bootstrap.

    A `temperature` that is given also asks for the probability of the selected sample; None weighs votes
    with 1.
    """

    method: Method = Method.BEST_OF_N
    series: Series = Series.CUMULATIVE
    reducer: Reducer = Reducer.LAST
    temperature: float | None = None
    seed: int = 0

    @property
    def vote_temperature(self) -> float:
        """Return the temperature of the weights of votes."""
        return 1.0 if self.temperature is None else self.temperature

    @property
    def score_name(self) -> str:
        """Return the name of the score: <series>-<reducer>."""
        return f"{self.series}-{self.reducer}"


@dataclass(frozen=True, slots=True)
class Problem:
    """The samples of one problem, in the order of the file."""

    ids: tuple[str | int, ...]
    offsets: tuple[int, ...]
    scores: np.ndarray  # float64 [N]
    answers: tuple[str | None, ...]  # equal ones are the same string
    codes: np.ndarray  # int64 [N], -1 for no answer
    correct: np.ndarray | None  # bool [N], None unless known for every sample


class Selection(msgspec.Struct, frozen=True, omit_defaults=True):
    """Field `selection` that `select` adds to the line of a selected sample."""

    method: str
    score_name: str
    score: float
    num_samples: int
    probability: float | None = None
    """sigmoid(score / temperature), where a temperature was given."""
    answer: str | None = None
    votes: int | None = None
    """Number of samples with an equal answer."""


class MeanWithInterval(msgspec.Struct, frozen=True):
    """Mean over problems and its 95 % bootstrap confidence interval, as fractions."""

    mean: float
    low: float
    high: float


class Accuracy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Accuracy of selecting among n samples; the voting fields are None where no sample has an answer."""

    n: int
    num_problems: int
    chosen: MeanWithInterval
    random: MeanWithInterval
    pass_at_n: MeanWithInterval
    majority: MeanWithInterval | None = None
    over_majority: MeanWithInterval | None = None
    """Chosen minus majority, on the same bootstrap resamples."""
    drawn_subsets: int | None = None
    """Number of random subsets per problem that voting was averaged over; None: all subsets."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """Samples of each problem, in the order of their first samples."""

    samples: tuple[tuple[Scored, ...], ...]
    reused_ids: tuple[str | int, ...]
    """Every `problem_id` that several problems have."""
    repeated: tuple[str | int, ...] = ()
    """Id of every sample that is there once more, with the same problem and rewards."""


def group(records: Iterable[Scored]) -> Grouped:
    """Group records by problem: by its text and its `problem_id`."""
    members: dict[Hashable, list[Scored]] = {}
    seen: set[Hashable] = set()
    repeated = []
    for record in records:
        problem = (record.problem_id, record.problem_digest)
        members.setdefault(problem, []).append(record)
        sample = (problem, record.id, record.scores.tobytes(), record.boxed)
        if sample in seen:
            repeated.append(record.id)
        seen.add(sample)
    ids = Counter(samples[0].problem_id for samples in members.values())
    reused = tuple(one for one, count in ids.items() if one is not None and count > 1)
    return Grouped(tuple(map(tuple, members.values())), reused, tuple(repeated))


def needs_answers(groups: Grouped, rule: SelectionMethod) -> bool:
    """Return whether anything depends on the samples' answers: a vote or an accuracy."""
    return rule.method is not Method.BEST_OF_N or any(map(_is_known, groups.samples))


def judged(
    samples: Sequence[Scored], rule: SelectionMethod, field: AnswerField | None, same: Same
) -> Problem:
    """Return a problem with scores, grouped answers and verdicts; compare answers only if they are needed.

    Raises NotComparable where its samples have different true answers.
    """
    answers = [(field or AnswerField()).answer(sample) for sample in samples]
    correct = None
    if _is_known(samples):
        refuse_two_truths(samples, same)
        verdicts = [_is_right(sample, answer, same) for sample, answer in zip(samples, answers, strict=True)]
        correct = np.array(verdicts, dtype=bool)
    if rule.method is not Method.BEST_OF_N or correct is not None:
        answers = group_answers(answers, same)
    return Problem(
        ids=tuple(sample.id for sample in samples),
        offsets=tuple(sample.offset for sample in samples),
        scores=np.array([aggregate(sample.scores, rule.reducer) for sample in samples]),
        answers=tuple(answers),
        codes=answer_codes(answers),
        correct=correct,
    )


def select_sample(problem: Problem, rule: SelectionMethod) -> int:
    """Return the index of the selected sample; raise NoAnswer where there is nothing to vote for."""
    if rule.method is Method.BEST_OF_N:
        return best_of_n(problem.scores)
    at = int(elect(_weights(problem, rule), problem.codes, np.arange(len(problem.ids))[None])[0])
    if at < 0:
        raise NoAnswer(
            f"none of {len(problem.ids)} samples has an answer (`answer` or \\boxed{{}}) to vote for"
        )
    return at


def selection(problem: Problem, at: int, rule: SelectionMethod) -> Selection:
    """Return the score, answer and votes of sample `at`, the selected one."""
    answer, score = problem.answers[at], float(problem.scores[at])
    return Selection(
        method=rule.method,
        score_name=rule.score_name,
        score=score,
        num_samples=len(problem.ids),
        probability=None if rule.temperature is None else probability(score, rule.temperature),
        answer=answer,
        votes=None if answer is None else problem.answers.count(answer),
    )


def usual_sizes(problems: Sequence[Problem]) -> list[int]:
    """Return 1, 2, 4, ... up to the median number of samples per problem, and that number.

    >>> from types import SimpleNamespace as Of
    >>> usual_sizes([Of(ids="abcdef"), Of(ids="abcdef"), Of(ids="ab")])
    [1, 2, 4, 6]
    """
    most = median_low([len(problem.ids) for problem in problems])
    return sorted({2**power for power in range(most.bit_length())} | {most})


def accuracies(
    problems: Sequence[Problem], rule: SelectionMethod, sizes: Iterable[int]
) -> Iterator[Accuracy]:
    """Yield the accuracy for each n, over problems of known correctness with at least n samples."""
    for n in sizes:
        judged = [problem for problem in problems if problem.correct is not None and len(problem.ids) >= n]
        if judged:
            yield _accuracy(judged, rule, n)


def _accuracy(problems: list[Problem], rule: SelectionMethod, n: int) -> Accuracy:
    figures = np.array([_figures(problem, rule, n) for problem in problems])
    figures = np.column_stack([figures, figures[:, 0] - figures[:, 3]])
    low, high = bootstrap(figures, resamples=RESAMPLES, seed=rule.seed)
    chosen, random, passed, majority, over = (
        MeanWithInterval(*map(float, column)) for column in zip(figures.mean(axis=0), low, high, strict=True)
    )
    votes = any((problem.codes >= 0).any() for problem in problems)
    compared = votes and rule.method is not Method.MAJORITY
    drawn = any(comb(len(problem.ids), n) > MOST_SUBSETS for problem in problems)
    return Accuracy(
        n=n,
        num_problems=len(problems),
        chosen=chosen,
        random=random,
        pass_at_n=passed,
        majority=majority if compared else None,
        over_majority=over if compared else None,
        drawn_subsets=MOST_SUBSETS if drawn and votes else None,
    )


def _figures(problem: Problem, rule: SelectionMethod, n: int) -> tuple[float, float, float, float]:
    """Return expected accuracies with n samples: the method's, a random sample's, pass@n, the majority's."""
    correct = problem.correct
    assert correct is not None
    ballots = subsets(len(problem.ids), n, seed=rule.seed)
    plain = np.ones(len(problem.ids), dtype=np.int64)
    majority = voting_accuracy(plain, problem.codes, correct, ballots)
    match rule.method:
        case Method.BEST_OF_N:
            chosen = best_of_n_accuracy(problem.scores, correct, n)
        case Method.WEIGHTED:
            chosen = voting_accuracy(_weights(problem, rule), problem.codes, correct, ballots)
        case Method.MAJORITY:
            chosen = majority
    return chosen, float(correct.mean()), pass_at_n(correct, n), majority


def _weights(problem: Problem, rule: SelectionMethod) -> np.ndarray:
    if rule.method is Method.WEIGHTED:
        return vote_weights(problem.scores, problem.codes, rule.vote_temperature)
    return np.ones(len(problem.ids), dtype=np.int64)


def _is_known(samples: Sequence[Scored]) -> bool:
    return all(
        sample.final_answer_correct is not None or sample.final_answer is not None for sample in samples
    )


def _is_right(sample: Scored, answer: str | None, same: Same) -> bool:
    if sample.final_answer_correct is not None:
        return sample.final_answer_correct
    return answer is not None and sample.final_answer is not None and same(sample.final_answer, answer)

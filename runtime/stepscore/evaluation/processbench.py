"""ProcessBench: accuracies and F1 per subset of labelled, scored records, at one threshold for all subsets.

The subset of a record is the prefix of its id (gsm8k of `gsm8k-17`, as in ProcessBench); if the id is not of
the form WORD-NUMBER, the name of its file up to the first dot. Subsets name output files, hence one word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from stepscore.enums import Series
from stepscore.errors import InvalidRecord, NotScored
from stepscore.evaluation.first_error import choose_threshold, first_error, processbench_f1
from stepscore.jobs.schema import ErrorLine
from stepscore.jobs.scored_records import Scored


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """A solution: its rewards, and the label of its first wrong step (-1: none)."""

    id: str | int
    subset: str
    file: int
    offset: int
    scores: np.ndarray  # float64 [n], rewards
    label: int


class Threshold(msgspec.Struct, frozen=True):
    """Threshold below which a step counts as wrong; nats are None where the run's beta is unknown."""

    reward: float
    nats: float | None
    chosen_on: str | None
    """Subset that it was chosen on, None where it was given."""

    @classmethod
    def of(cls, reward: float, beta: float | None, *, chosen_on: str | None) -> Threshold:
        """Return a threshold given as a reward."""
        return cls(reward, None if beta is None else reward / beta, chosen_on)


class BestThreshold(msgspec.Struct, frozen=True):
    """F1 at the oracle threshold of a subset, chosen on its own labels: not a reportable result."""

    f1: float | None
    threshold_reward: float | None


class Subset(msgspec.Struct, frozen=True):
    """Figures of one subset, as fractions; None where it has no erroneous or no correct samples."""

    name: str
    num_error: int
    num_correct: int
    accuracy_error: float | None
    accuracy_correct: float | None
    f1: float | None
    upper_bound: BestThreshold


class ProcessBenchReport(msgspec.Struct, frozen=True, tag_field="command", tag="evaluate processbench"):
    """Output of `evaluate processbench`; averages are unweighted means over the subsets."""

    series: str
    beta: float | None
    threshold: Threshold
    subsets: list[Subset]
    average_f1: float | None
    average_f1_upper_bound: float | None
    errors: list[ErrorLine]


def subset_of(record_id: str | int, file_name: str) -> str:
    """Return the subset of a record.

    >>> subset_of("gsm8k-17", "scored.jsonl"), subset_of(17, "math.scored.jsonl")
    ('gsm8k', 'math')
    """
    found = re.fullmatch(r"(\w[\w.-]*)-[0-9]+", record_id, re.ASCII) if isinstance(record_id, str) else None
    return found[1] if found else file_name.partition(".")[0]


def labelled(record: Scored, file: int, file_name: str) -> LabelledSolution:
    """Return a record's rewards and label; raise InvalidRecord where the label is missing or out of range."""
    scores = record.scores
    if record.label is None:
        raise InvalidRecord("`label` is missing: the 0-based index of the first wrong step, or -1")
    if not -1 <= record.label < scores.size:
        raise InvalidRecord(
            f"`label` is {record.label}, expected -1 to {scores.size - 1} for {scores.size} steps"
        )
    subset = subset_of(record.id, file_name)
    return LabelledSolution(record.id, subset, file, record.offset, scores, record.label)


def best_threshold(samples: Sequence[LabelledSolution], subset: str, beta: float | None) -> Threshold:
    """Return the threshold with the highest F1 on one subset, found exactly."""
    chosen = [sample for sample in samples if sample.subset == subset]
    if not chosen:
        there = ", ".join(sorted({sample.subset for sample in samples}))
        raise NotScored(
            f"no record belongs to subset {subset}, on which the threshold is chosen",
            hint=f"use --threshold-from with one of: {there}; or --threshold REWARD",
        )
    try:
        reward = choose_threshold([sample.scores for sample in chosen], [sample.label for sample in chosen])
    except ValueError as error:
        raise NotScored(f"cannot choose a threshold on {subset}: it {error}") from None
    return Threshold.of(reward, beta, chosen_on=subset)


def evaluate_processbench(
    samples: Sequence[LabelledSolution],
    threshold: Threshold,
    *,
    series: Series,
    beta: float | None,
    errors: Iterable[ErrorLine] = (),
) -> ProcessBenchReport:
    """Evaluate all samples at one threshold; subsets are in the order of their first samples."""
    names = dict.fromkeys(sample.subset for sample in samples)
    subsets = [_subset(name, [s for s in samples if s.subset == name], threshold.reward) for name in names]
    return ProcessBenchReport(
        series=series,
        beta=beta,
        threshold=threshold,
        subsets=subsets,
        average_f1=_mean([subset.f1 for subset in subsets]),
        average_f1_upper_bound=_mean([subset.upper_bound.f1 for subset in subsets]),
        errors=list(errors),
    )


def _subset(name: str, samples: list[LabelledSolution], threshold: float) -> Subset:
    labels = [sample.label for sample in samples]
    num_correct = labels.count(-1)
    found = _f1(samples, threshold)
    upper_bound = BestThreshold(None, None)
    if 0 < num_correct < len(samples):
        best = choose_threshold([sample.scores for sample in samples], labels)
        upper_bound = BestThreshold(_f1(samples, best)[2], best)
    return Subset(name, len(samples) - num_correct, num_correct, *found, upper_bound)


def _f1(samples: list[LabelledSolution], threshold: float) -> tuple[float | None, float | None, float | None]:
    """Return the accuracy on erroneous samples, the accuracy on correct ones, and F1."""
    predictions = [first_error(sample.scores, threshold) for sample in samples]
    found = processbench_f1(predictions, [sample.label for sample in samples])
    error, correct, f1 = (
        None if np.isnan(value) else value
        for value in (found.accuracy_error, found.accuracy_correct, found.f1)
    )
    return error, correct, f1


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None

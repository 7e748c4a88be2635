"""First wrong step: thresholds and ProcessBench F1. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepscore.rewards import Scores

Labels = Sequence[int] | np.ndarray


@dataclass(frozen=True, slots=True)
class ProcessBench:
    """ProcessBench's three figures, as fractions; NaN where samples of that kind are missing."""

    accuracy_error: float  # of samples with a wrong step: its index is predicted exactly
    accuracy_correct: float  # of samples without one: -1 is predicted
    f1: float  # harmonic mean of the two


def processbench_f1(predictions: Labels, labels: Labels) -> ProcessBench:
    """Return the F1 of first wrong steps as ProcessBench defines it, which is not one of true positives.

    With hit = (prediction == label), samples split by label == -1 (no wrong step)::

        f1 = 2 * a * b / (a + b),  a = mean(hit[label != -1]),  b = mean(hit[label == -1]);  0 if a + b = 0

    predictions, labels: int [N], 0-based index of the first wrong step or -1. Raises ValueError when the
    shapes differ. Source: ProcessBench (Zheng et al., 2024), `code/run_eval.py`.

    >>> processbench_f1([1, 0, -1, -1], [1, 2, -1, -1])
    ProcessBench(accuracy_error=0.5, accuracy_correct=1.0, f1=0.6666666666666666)
    """
    predicted, label = np.asarray(predictions), np.asarray(labels)
    if predicted.shape != label.shape:
        raise ValueError(f"{predicted.shape} predictions for {label.shape} labels")
    hit, wrong = predicted == label, label != -1
    error = float(hit[wrong].mean()) if wrong.any() else float("nan")
    correct = float(hit[~wrong].mean()) if not wrong.all() else float("nan")
    return ProcessBench(error, correct, float(_harmonic_mean(np.array(error), np.array(correct))))


def first_error(scores: Scores, threshold: float) -> int:
    """Return the index of the first step whose score is below the threshold, -1 if there is none.

    >>> first_error([0.3, -0.1, -0.5], 0.0), first_error([0.3, 0.0], 0.0)
    (1, -1)
    """
    below = np.flatnonzero(np.asarray(scores) < threshold)
    return int(below[0]) if below.size else -1


def choose_threshold(scores_per_sample: Sequence[Scores], labels: Labels) -> float:
    """Return the threshold of `first_error` with the highest `processbench_f1`; the lowest of several.

    Exact, without a grid: every threshold is equivalent to one below all scores, between two neighbours of
    the sorted distinct scores (their midpoint is returned) or above all. A sample with scores s and label l
    is a hit for exactly the thresholds t with::

        s[l] < t <= min(s[:l])   (l >= 0)          t <= min(s)   (l = -1)

    so the hits at all thresholds are cumulative sums over interval ends: O(S log S) for S scores.

    scores_per_sample: N sequences of finite floats, any unit. labels: int [N], -1 or the index of a score.
    Raises ValueError when lengths differ, a score is not finite, a label is out of range, or one of the two
    kinds of sample is missing, since F1 is then undefined.

    >>> choose_threshold([[1.0, -1.0], [2.0, 0.5], [0.0]], [1, -1, -1])
    -0.5
    """
    label = np.asarray(labels)
    samples = [np.asarray(scores, dtype=np.float64) for scores in scores_per_sample]
    if label.shape != (len(samples),):
        raise ValueError(f"{len(samples)} samples, but labels of shape {label.shape}")
    if any(not -1 <= at < scores.size for at, scores in zip(label, samples, strict=True)):
        raise ValueError("a label is neither -1 nor the index of one of its sample's scores")
    wrong = label != -1
    if wrong.all() or not wrong.any():
        raise ValueError("needs samples with a wrong step and samples without one")
    values = np.unique(np.concatenate(samples))
    if not np.isfinite(values).all():
        raise ValueError("a score is NaN or infinite")

    # Thresholds in order: t[0] below all, t[i] in (values[i-1], values[i]], t[-1] above all. A sample hits at
    # t[low..high], empty where an earlier step is no higher than the wrong one.
    def rank(limits: list[float]) -> np.ndarray:
        ranks: np.ndarray = np.searchsorted(values, np.array(limits))
        return ranks

    pairs = list(zip(label, samples, strict=True))
    low = np.where(wrong, rank([float(s[at]) for at, s in pairs]) + 1, 0)
    high = rank([float(s[: at if at >= 0 else s.size].min(initial=np.inf)) for at, s in pairs])

    def hits(chosen: np.ndarray) -> np.ndarray:
        real = chosen & (low <= high)
        size = values.size + 2
        change = np.bincount(low[real], minlength=size) - np.bincount(high[real] + 1, minlength=size)
        fractions: np.ndarray = np.cumsum(change)[:-1] / chosen.sum()
        return fractions

    best = int(np.argmax(_harmonic_mean(hits(wrong), hits(~wrong))))
    if best == 0:
        return float(np.nextafter(values[0], -np.inf))
    if best == values.size:
        return float(np.nextafter(values[-1], np.inf))
    lower, upper = values[best - 1], values[best]
    middle = lower / 2 + upper / 2
    return float(middle if lower < middle <= upper else upper)


def _harmonic_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """2ab / (a + b) elementwise, 0 where both are 0."""
    total = a + b
    mean: np.ndarray = 2 * a * b / np.where(total == 0, 1, total)
    return mean

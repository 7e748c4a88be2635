"""ProcessBench's figures, the first step below a threshold, and the threshold with the best F1."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.evaluation.first_error import ProcessBench, choose_threshold, first_error, processbench_f1

# Few distinct values, so that ties are the rule; neighbouring floats, so that a midpoint may not exist.
SCORE = st.sampled_from([-1.0, 0.0, 5e-324, 0.25, np.nextafter(0.25, 1), 3.0]) | st.floats(-1e300, 1e300)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    """Samples of both kinds, in any order."""
    scores = draw(st.lists(st.lists(SCORE, min_size=1, max_size=5), min_size=2, max_size=12))
    labels = [draw(st.integers(-1, len(sample) - 1)) for sample in scores]
    labels[0], labels[1] = -1, draw(st.integers(0, len(scores[1]) - 1))
    return scores, labels


def plain_f1(predictions: list[int], labels: list[int]) -> float:
    """ProcessBench's definition, a sample at a time."""
    error = [p == label for p, label in zip(predictions, labels, strict=True) if label != -1]
    correct = [p == label for p, label in zip(predictions, labels, strict=True) if label == -1]
    a, b = sum(error) / len(error), sum(correct) / len(correct)
    return 2 * a * b / (a + b) if a + b else 0.0


def plain_first_error(scores: list[float], threshold: float) -> int:
    return next((at for at, score in enumerate(scores) if score < threshold), -1)


def f1_at(scores: list[list[float]], labels: list[int], threshold: float) -> float:
    return plain_f1([plain_first_error(sample, threshold) for sample in scores], labels)


# F1


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), min_size=1))
def test_f1_is_the_harmonic_mean_of_the_two_accuracies(pairs: list[tuple[int, int]]) -> None:
    pairs += [(0, -1), (0, 0)]  # both kinds are there
    predictions, labels = (list(column) for column in zip(*pairs, strict=True))
    assert processbench_f1(predictions, labels).f1 == pytest.approx(plain_f1(predictions, labels), abs=1e-15)


def test_a_prediction_near_the_wrong_step_is_no_hit() -> None:
    assert processbench_f1([1, -1], [2, -1]) == ProcessBench(0.0, 1.0, 0.0)


def test_f1_is_zero_without_correct_predictions() -> None:
    assert processbench_f1([-1, 0], [0, -1]) == ProcessBench(0.0, 0.0, 0.0)


def test_f1_is_nan_without_both_kinds_of_samples() -> None:
    only_wrong = processbench_f1([1], [1])
    assert (only_wrong.accuracy_error, math.isnan(only_wrong.f1)) == (1.0, True)
    assert math.isnan(only_wrong.accuracy_correct)
    assert math.isnan(processbench_f1([-1], [-1]).accuracy_error)


def test_f1_needs_a_label_for_each_prediction() -> None:
    with pytest.raises(ValueError, match="predictions for"):
        processbench_f1([1, 2], [1])


# First error


@given(st.lists(SCORE, max_size=6), SCORE)
def test_first_error_is_the_first_step_below_the_threshold(scores: list[float], threshold: float) -> None:
    assert first_error(scores, threshold) == plain_first_error(scores, threshold)


# Threshold


@given(labelled())
def test_no_threshold_does_better_than_the_chosen_one(case: tuple[list[list[float]], list[int]]) -> None:
    scores, labels = case
    values = sorted({score for sample in scores for score in sample})
    best = max(f1_at(scores, labels, threshold) for threshold in [*values, math.inf])  # one of each kind
    assert f1_at(scores, labels, choose_threshold(scores, labels)) == best


@given(labelled())
def test_of_several_best_thresholds_the_lowest_is_chosen(case: tuple[list[list[float]], list[int]]) -> None:
    scores, labels = case
    chosen = choose_threshold(scores, labels)
    lower = {score for sample in scores for score in sample if score < chosen}
    assert all(f1_at(scores, labels, value) < f1_at(scores, labels, chosen) for value in lower)


@given(labelled())
def test_the_threshold_lies_between_scores(case: tuple[list[list[float]], list[int]]) -> None:
    scores, labels = case
    chosen = choose_threshold(scores, labels)
    values = sorted({score for sample in scores for score in sample})
    assert math.isfinite(chosen)
    below, above = [v for v in values if v < chosen], [v for v in values if v >= chosen]
    if below and above and (middle := below[-1] / 2 + above[0] / 2) > below[-1]:
        assert chosen == middle


@given(labelled(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(
    case: tuple[list[list[float]], list[int]], random: object
) -> None:
    scores, labels = case
    order = list(range(len(labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert choose_threshold([scores[i] for i in order], [labels[i] for i in order]) == choose_threshold(
        scores, labels
    )


def test_a_threshold_below_all_scores_is_returned_when_crying_wolf_never_pays() -> None:
    chosen = choose_threshold([[1.0], [1.0, 2.0]], [-1, 1])  # the wrong step scores above a right one
    assert chosen < 1.0
    assert first_error([1.0, 2.0], chosen) == -1


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[0.0]], [0, -1], "1 samples"),
        ([[0.0], [1.0]], [1, -1], "neither -1 nor"),
        ([[0.0], [1.0]], [-2, -1], "neither -1 nor"),
        ([[], [1.0]], [0, -1], "neither -1 nor"),
        ([[0.0], [1.0]], [0, 0], "needs samples"),
        ([[0.0], [1.0]], [-1, -1], "needs samples"),
        ([[0.0], [math.nan]], [0, -1], "NaN or infinite"),
        ([[0.0], [math.inf]], [0, -1], "NaN or infinite"),
    ],
)
def test_choose_threshold_rejects_invalid_input(
    scores: list[list[float]], labels: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_threshold(scores, labels)


def test_numpy_input_is_accepted() -> None:
    assert choose_threshold([np.array([1.0, -1.0]), np.array([2.0])], np.array([1, -1])) == 0.0

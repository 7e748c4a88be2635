"""The numbers behind plots: quartiles, precision and recall, groups by label, calibration."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepscore.evaluation.first_error import first_error
from stepscore.plots.calibration import expected_calibration_error, reliability, wilson
from stepscore.plots.first_error import detections, thresholds_of
from stepscore.plots.position import Axis, quartiles
from stepscore.plots.step_rewards import bin_edges, rewards_by_label

SCORES = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=6)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    """Solutions with labels, at least one of them with a wrong step."""
    solutions = draw(st.lists(SCORES, min_size=1, max_size=8))
    labels = [draw(st.integers(-1, len(scores) - 1)) for scores in solutions]
    labels[0] = max(labels[0], 0)
    return solutions, labels


@given(labelled(), st.lists(st.integers(-10, 10).map(lambda n: n / 2), min_size=1))
def test_detections_are_those_of_the_first_step_below_the_threshold(
    data: tuple[list[list[float]], list[int]], thresholds: list[float]
) -> None:
    solutions, labels = data
    for found in detections(solutions, labels, thresholds):
        predicted = [first_error(scores, found.threshold) for scores in solutions]
        marked = [at >= 0 for at in predicted]
        hits = [at == label >= 0 for at, label in zip(predicted, labels, strict=True)]
        assert (found.num_marked, found.num_found) == (sum(marked), sum(hits))
        assert found.recall == sum(hits) / sum(label >= 0 for label in labels)
        assert found.precision == (sum(hits) / sum(marked) if any(marked) else None)


@given(st.lists(SCORES, min_size=1))
def test_thresholds_lie_between_neighbours_of_the_scores(solutions: list[list[float]]) -> None:
    values = sorted({score for scores in solutions for score in scores})
    assert thresholds_of(solutions).tolist() == [(low + high) / 2 for low, high in pairwise(values)]


def test_thresholds_of_many_scores_are_at_even_ranks() -> None:
    found = thresholds_of([np.arange(1001.0)], most=5)
    assert found.tolist() == [0.5, 250.5, 500.5, 749.5, 999.5]


def test_detections_without_a_wrong_step_are_refused() -> None:
    with pytest.raises(ValueError, match="no solution has a wrong step"):
        detections([[0.1]], [-1], [0.0])


@given(st.lists(SCORES, min_size=1), st.sampled_from(Axis), st.integers(2, 7))
def test_every_step_has_one_position(solutions: list[list[float]], axis: Axis, bins: int) -> None:
    found = quartiles(solutions, axis, bins)
    assert sum(one.num_steps for one in found) == sum(map(len, solutions))
    assert all(one.low <= one.median <= one.high for one in found)
    most = max(map(len, solutions)) if axis is Axis.STEP else 1
    assert all(0 < one.position <= most for one in found)


def test_the_last_step_belongs_to_the_last_bin_of_shares() -> None:
    (*_, last) = quartiles([[0.0] * 9 + [5.0], [7.0]], Axis.SHARE, bins=10)
    assert (last.position, last.median, last.num_steps) == (0.95, 6.0, 2)


@given(labelled())
def test_groups_by_label_hold_every_step_once(data: tuple[list[list[float]], list[int]]) -> None:
    solutions, labels = data
    groups = rewards_by_label(solutions, labels)
    assert sorted(np.concatenate(list(groups.values()))) == sorted(chain.from_iterable(solutions))
    assert groups["first wrong"].size == sum(label >= 0 for label in labels)


def test_bins_of_equal_rewards_hold_them() -> None:
    edges = bin_edges(np.full(3, 0.25))
    assert np.histogram(np.full(3, 0.25), edges)[0].sum() == 3


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1), st.integers(2, 12))
def test_bins_hold_every_probability_within_them(pairs: list[tuple[float, bool]], bins: int) -> None:
    probabilities, right = (np.array(values) for values in zip(*pairs, strict=True))
    found = reliability(probabilities, right, bins)
    assert sum(one.count for one in found) == len(pairs)
    assert sum(one.count * (one.share_right or 0) for one in found) == pytest.approx(right.sum())
    for one in found:
        mean = one.mean_probability
        assert mean is None or one.low - 1e-12 <= mean <= one.high + 1e-12
    assert 0 <= expected_calibration_error(found) <= 1


def test_ece_of_calibrated_probabilities_is_0_and_of_opposite_ones_1() -> None:
    half = reliability(np.full(4, 0.5), np.array([True, False, True, False]))
    assert expected_calibration_error(half) == 0
    assert expected_calibration_error(reliability(np.array([1.0, 0.0]), np.array([False, True]))) == 1


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (3, 7), (50, 1000)])
def test_wilson_interval_solves_its_equation(right: int, count: int) -> None:
    """The ends are the p for which the share lies 1.96 standard errors away."""
    share = right / count
    for bound in wilson(share, count):
        if 0 < bound < 1:
            assert abs(share - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / count) ** 0.5)


def test_ece_without_solutions_is_refused() -> None:
    empty: Any = reliability(np.empty(0), np.empty(0, bool))
    with pytest.raises(ValueError, match="no solutions"):
        expected_calibration_error(empty)

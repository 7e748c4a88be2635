"""Comparing log-probs of two engines: which are summed, and how the error runs over positions."""

from __future__ import annotations

import numpy as np

from stepscore_export.parity.compare import ScoredSolution, compare, profile


def test_rewards_are_compared_from_the_first_log_prob_that_is_summed() -> None:
    policy = np.array([9, 1, 2, 3], np.float32)
    ours = ScoredSolution(1, np.arange(5), (policy, np.zeros(4, np.float32)), np.array([1, 3]), start=1)
    found = compare([ours], [(policy.astype(np.float64), np.zeros(4))], beta=0.5)
    assert found.step_rewards.tolist() == found.pytorch_step_rewards.tolist() == [0.5, 2.5]
    assert found.positions.tolist() == [2, 3, 4]
    assert found.fidelity.num_tokens == 3


def test_a_profile_has_bins_of_equal_count_in_order() -> None:
    positions = np.random.default_rng(0).permutation(1000)
    found = profile(positions, positions.astype(float))
    assert len(found.positions) == 20
    assert (np.diff(found.positions) > 0).all()
    np.testing.assert_array_equal(found.median, found.positions)
    assert (found.percentile90 > found.median).all()

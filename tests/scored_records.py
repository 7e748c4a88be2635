"""Scored records for tests of the report."""

from __future__ import annotations

from itertools import accumulate
from typing import Any


def scored(*rewards: float, **other: Any) -> dict[str, Any]:
    """A line of `score` with these step rewards: two of them unless told otherwise."""
    steps = ["1 + 1 = 2", "So 2."] if not rewards else [f"Step {k + 1}." for k in range(len(rewards))]
    values = list(rewards) or [0.02, -0.01]
    return {
        "id": "a",
        "problem": "1 + 1?",
        "steps": steps,
        "step_rewards": values,
        "cumulative_rewards": list(accumulate(values)),
        "outcome_reward": sum(values),
        "num_tokens": 8,
        "step_ends": list(range(len(values))),
        **other,
    }

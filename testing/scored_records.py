"""Scored records for tests of the report."""

from __future__ import annotations

from typing import Any

from testing import scored_lines


def scored(*rewards: float, **other: Any) -> dict[str, Any]:
    """A line of `score` with these step rewards: two of them unless told otherwise."""
    steps = ["1 + 1 = 2", "So 2."] if not rewards else [f"Step {k + 1}." for k in range(len(rewards))]
    line = scored_lines.scored(rewards or (0.02, -0.01), id="a", problem="1 + 1?", steps=steps)
    return {**line, "num_tokens": 8, **other}

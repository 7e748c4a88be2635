"""Whether a threshold lies within what the rewards span: outside, it separates nothing."""

from __future__ import annotations

from collections.abc import Iterable

from stepscore.rewards import Scores


def outside_of(threshold: float, solutions: Iterable[Scores]) -> str | None:
    """Return what a threshold outside of all rewards does, None for one within them or without rewards.

    >>> outside_of(-2.5, [[0.1, -0.3]])
    'threshold -2.5 is not above the lowest reward (-0.3 to 0.1): no step is below it'
    >>> outside_of(0.0, [[0.1, -0.3]])
    """
    spans = [(min(scores), max(scores)) for scores in solutions if len(scores)]
    if not spans:
        return None
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    span = f"({low:.4g} to {high:.4g})"
    if threshold <= low:
        return f"threshold {threshold:g} is not above the lowest reward {span}: no step is below it"
    if threshold > high:
        return f"threshold {threshold:g} is above the highest reward {span}: every step is below it"
    return None

"""Records that cannot be encoded: what is wrong with them, and where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepscore.errors import InvalidRecord, NoSteps


def check_text(problem: str, steps: Sequence[str]) -> None:
    """Raise NoSteps without steps, InvalidRecord for a blank step or a lone surrogate."""
    if not steps:
        raise NoSteps("`steps` is empty: nothing to score")
    for k, step in enumerate(steps):
        if not step.strip():
            raise InvalidRecord(f"steps[{k}] is {'white space' if step else 'empty'}: nothing to score")
        check_unicode(f"steps[{k}]", step)
    check_unicode("problem", problem)


def check_unicode(name: str, text: str) -> None:
    """Raise InvalidRecord for a lone surrogate, which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecord(f"{name} contains a lone surrogate at character {error.start}") from None


def check_ends(step_ends: np.ndarray, start: int, count: int) -> None:
    """Raise InvalidRecord for an index outside start..count-1, which would read another log-prob."""
    outside = np.flatnonzero((step_ends < start) | (step_ends >= count))
    if outside.size:
        k = int(outside[0])
        raise InvalidRecord(
            f"steps[{k}] ends at log-prob {step_ends[k]}, outside the summed range {start}..{count - 1}",
            hint="use another convention with this tokenizer",
        )

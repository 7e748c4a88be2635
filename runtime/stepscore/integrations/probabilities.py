"""Rewards as values in (0, 1), for clients that expect the probabilities of a PRM with a head."""

from __future__ import annotations

import math
import warnings

from stepscore.rewards import probability

LARGEST_LOGIT = math.log((1 - 1e-7) / 1e-7)
"""Log-odds, 16.1, at which its_hub clips a value before it takes the inverse sigmoid."""


def open_probability(value: float, temperature: float) -> float:
    """Return sigmoid(value / temperature), within (0, 1), whose inverse sigmoid is value / temperature.

    value: in units of beta times nats. Up to 16.1 temperatures the inverse gives it back within 1e-8
    temperatures in float64. Further out its_hub clips it, and beyond 37 the order of values is lost: that is
    a RuntimeWarning, and the result at most the largest number below 1. A larger temperature avoids it, and
    keeps the order of all values. Raises ValueError for a temperature that is not above 0.

    >>> [round(open_probability(value, 1.0), 4) for value in (0.0, -2.0, 2.0)]
    [0.5, 0.1192, 0.8808]
    """
    found = probability(value, temperature)
    if abs(value) > LARGEST_LOGIT * temperature:
        warnings.warn(
            f"a reward of {value:.4g} is beyond {LARGEST_LOGIT:.1f} times the temperature {temperature:g}, "
            f"and its sigmoid loses it: use a temperature of {abs(value) / LARGEST_LOGIT:.2g} or more",
            RuntimeWarning,
            stacklevel=2,
        )
    return min(max(found, math.nextafter(0.0, 1.0)), math.nextafter(1.0, 0.0))

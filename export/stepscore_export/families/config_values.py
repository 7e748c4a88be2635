"""Values of a `config.json` that nobody has checked yet: each is read as its type, or rejected by its key.

A key that is absent or null takes the default that transformers has for it.
"""

from __future__ import annotations

from stepscore.errors import CheckpointCorrupt
from stepscore_export.families.base import Json

# An export stores a rotary table of all positions; the longest contexts today are 10 million tokens.
MOST_POSITIONS = 1 << 24
# The names of all layers are spelled out before the first is looked for.
MOST_LAYERS = 1000


def positive_int(config: Json, key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
    """Return an integer from 1 to `most`."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= most:
        raise CheckpointCorrupt(f"config.json: {key} is {value!r}, expected an integer from 1 to {most}")
    return value


def positive_float(config: Json, key: str, default: float) -> float:
    """Return a finite number above 0."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise CheckpointCorrupt(f"config.json: {key} is {value!r}, expected a positive number")
    return float(value)


def strings(config: Json, key: str) -> list[str]:
    """Return a list of names, empty by default."""
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise CheckpointCorrupt(f"config.json: {key} is {value!r}, expected a list of names")
    return value


def flag(config: Json, key: str, *, default: bool = False) -> bool:
    """Return true or false."""
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not bool:
        raise CheckpointCorrupt(
            f"config.json: {key} is {value!r}, expected true or false",
            hint="write true or false, without quotes, as the model was trained",
        )
    return value

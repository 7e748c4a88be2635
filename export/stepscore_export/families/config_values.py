"""Values of a `config.json` that nobody has checked yet: each is read as its type, or rejected by its key.

A key that is absent or null takes the default that transformers has for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from stepscore.errors import CheckpointCorrupt, UnsupportedArchitecture
from stepscore_export.families.base import Json


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


def flag(config: Json, key: str) -> bool:
    """Return true or false, false by default."""
    value = config.get(key) or False
    if type(value) is not bool:
        raise CheckpointCorrupt(f"config.json: {key} is {value!r}, expected true or false")
    return value


def default_rope_theta(config: Json) -> float:
    """Return the base of rotary embeddings without scaling; UnsupportedArchitecture where they are scaled.

    transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 both into `rope_parameters`.
    """
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key) or {}
        if not isinstance(rope, Mapping):
            raise CheckpointCorrupt(f"config.json: {key} is {rope!r}, expected an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or set(rope) - {"rope_type", "type", "rope_theta"}:
            raise UnsupportedArchitecture(
                f"config.json: {key} is {dict(rope)!r}; rope scaling other than 'default' is not supported"
            )
    parameters = config.get("rope_parameters") or {}
    theta = positive_float(config, "rope_theta", 10000.0)
    nested = positive_float(parameters, "rope_theta", theta)
    if config.get("rope_theta") is not None and nested != theta:
        raise CheckpointCorrupt(f"config.json: rope_theta is {theta}, but rope_parameters has {nested}")
    return nested

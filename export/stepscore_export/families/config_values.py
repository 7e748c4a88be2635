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
        raise CheckpointCorrupt(
            f"config.json: {key} is {value!r}, expected true or false",
            hint="write true or false, without quotes, as the model was trained",
        )
    return value


_OTHER_KINDS = frozenset(
    {
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
    }
)
"""Keys that transformers reads for other kinds of rotary embeddings, and ignores for 'default'."""


def default_rope_theta(config: Json) -> float:
    """Return the base of rotary embeddings without scaling; UnsupportedArchitecture where they are scaled.

    transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 both into `rope_parameters`.
    """
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key) or {}
        if not isinstance(rope, Mapping):
            raise CheckpointCorrupt(f"config.json: {key} is {rope!r}, expected an object")
        _check_default_rope(key, rope)
    if config.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedArchitecture(
            f"config.json: partial_rotary_factor is {config['partial_rotary_factor']!r}, expected 1.0",
            hint="transformers' Qwen2 rotates all of a head: remove the key if the model was trained so",
        )
    parameters = config.get("rope_parameters") or {}
    theta = positive_float(config, "rope_theta", 10000.0)
    nested = positive_float(parameters, "rope_theta", theta)
    if config.get("rope_theta") is not None and nested != theta:
        raise CheckpointCorrupt(
            f"config.json: rope_theta is {theta}, but rope_parameters has {nested}",
            hint="remove the one that the model was not trained with",
        )
    return nested


def _check_default_rope(key: str, rope: Json) -> None:
    kind = rope.get("rope_type", rope.get("type"))
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise UnsupportedArchitecture(
            f"config.json: {key} is nested by kind of layer, {dict(rope)!r}; one for all layers is expected",
            hint=f"if all layers are of one kind, write its values directly into {key}",
        )
    known = {"rope_type", "type", "rope_theta", *(_OTHER_KINDS if kind == "default" else ())}
    if kind not in ("default", None) or (others := set(rope) - known):
        found = f"{key} is {dict(rope)!r}"
        if kind == "default":
            found += f"; {min(map(str, others))} is not supported"
        raise UnsupportedArchitecture(
            f"config.json: {found}; rope scaling other than 'default' is not supported",
            hint="a model trained without scaling has none: remove it if it was added to read longer texts",
        )

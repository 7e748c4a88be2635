"""Reads the rotary embedding of a `config.json`.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 both into `rope_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from stepscore.errors import CheckpointCorrupt, UnsupportedArchitecture
from stepscore_export.families.base import Json
from stepscore_export.families.config_values import MOST_POSITIONS, flag, positive_float, positive_int
from stepscore_export.families.rope import ROPE_KINDS, DefaultRope, Llama3Rope, Rope, YarnRope

_PLACES = ("rope_scaling", "rope_parameters")
_ORIGINAL = "original_max_position_embeddings"
_OF_KIND: Mapping[str | None, frozenset[str]] = {
    None: frozenset(),
    # Keys that transformers reads for other kinds, and ignores for this one.
    "default": frozenset(
        {
            *("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow"),
            *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
        }
    ),
    "llama3": frozenset({"factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset(
        {
            *("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow"),
            *("mscale", "mscale_all_dim", "truncate"),
        }
    ),
}
"""Keys of each kind that is supported, beside its name and theta."""


def parse_rope(config: Json, positions: int) -> Rope:
    """Return the rotary embedding of a model that is trained to read `positions` tokens.

    Raises UnsupportedArchitecture for another kind, CheckpointCorrupt for a value that is missing or
    impossible, or that two keys state differently.
    """
    if config.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedArchitecture(
            f"config.json: partial_rotary_factor is {config['partial_rotary_factor']!r}, expected 1.0",
            hint="all of a head is rotated: remove the key if the model was trained so",
        )
    stated = {key: _stated(config, key) for key in _PLACES}
    theta = _theta(config, stated)
    ropes = {key: _parsed(key, rope, theta, positions) for key, rope in stated.items() if rope}
    if len(set(ropes.values())) > 1:
        raise CheckpointCorrupt(
            f"config.json: rope_scaling is {stated['rope_scaling']!r}, but rope_parameters is "
            f"{stated['rope_parameters']!r}",
            hint="remove the one that the model was not trained with",
        )
    rope = next(iter(ropes.values()), DefaultRope(theta))
    outside = config.get(_ORIGINAL)
    if isinstance(rope, DefaultRope) or outside in (None, rope.original_max_position_embeddings):
        return rope
    raise CheckpointCorrupt(
        f"config.json: {_ORIGINAL} is {outside!r}, but its RoPE scaling has "
        f"{rope.original_max_position_embeddings}",
        hint="remove the one that the model was not trained with",
    )


def longest_text(config: Json, rope: Rope, positions: int) -> int:
    """Return how many tokens the model reads: `positions`, or more where YaRN was added to read longer texts.

    A config may keep its `max_position_embeddings` when YaRN is added; the original length times the factor
    is what the model then reads. CheckpointCorrupt beyond MOST_POSITIONS.
    """
    stated = any(_stated(config, key).get(_ORIGINAL) is not None for key in _PLACES)
    if not isinstance(rope, YarnRope) or not stated:
        return positions
    reach = rope.factor * rope.original_max_position_embeddings
    if reach > MOST_POSITIONS:
        raise CheckpointCorrupt(
            f"config.json: YaRN reaches {reach:.3g} tokens, at most {MOST_POSITIONS} expected"
        )
    return max(positions, int(reach))


def _stated(config: Json, key: str) -> Json:
    rope = config.get(key) or {}
    if not isinstance(rope, Mapping):
        raise CheckpointCorrupt(f"config.json: {key} is {rope!r}, expected an object")
    return rope


def _theta(config: Json, stated: Mapping[str, Json]) -> float:
    """Return the base of the frequencies, which may stand in several places."""
    found = {"rope_theta": config, **stated}
    thetas = {
        place: positive_float(values, "rope_theta", 0.0)
        for place, values in found.items()
        if values.get("rope_theta") is not None
    }
    if len(set(thetas.values())) > 1:
        (one, first), *_, (other, second) = thetas.items()
        raise CheckpointCorrupt(
            f"config.json: {one} is {first}, but {other} has {second}",
            hint="remove the one that the model was not trained with",
        )
    return next(iter(thetas.values()), 10000.0)


def _parsed(key: str, rope: Json, theta: float, positions: int) -> Rope:
    kind, older = rope.get("rope_type", rope.get("type")), rope.get("type")
    if older is not None and older != kind:
        raise CheckpointCorrupt(
            f"config.json: {key} has rope_type {kind!r} and type {older!r}",
            hint="remove the one that the model was not trained with",
        )
    _check_keys(key, rope, kind)
    values = {name: value for name, value in rope.items() if value is not None}
    match kind:
        case "llama3":
            return _llama3(key, values, theta)
        case "yarn":
            return _yarn(key, values, theta, positions)
        case _:
            return DefaultRope(theta)


def _check_keys(key: str, rope: Json, kind: object) -> None:
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise UnsupportedArchitecture(
            f"config.json: {key} is nested by kind of layer, {dict(rope)!r}; one for all layers is expected",
            hint=f"if all layers are of one kind, write its values directly into {key}",
        )
    of_kind = _OF_KIND.get(kind) if kind is None or isinstance(kind, str) else None
    if of_kind is None or (kind is None and set(rope) - {"rope_theta", "rope_type", "type"}):
        raise UnsupportedArchitecture(
            f"config.json: {key} is {dict(rope)!r}; supported kinds of RoPE are "
            + ", ".join(map(repr, ROPE_KINDS)),
            hint="a model trained without scaling has none: remove it if it was added to read longer texts",
        )
    if others := set(rope) - of_kind - {"rope_theta", "rope_type", "type"}:
        is_plain = kind == "default"
        raise UnsupportedArchitecture(
            f"config.json: {key} is {dict(rope)!r}; {min(map(str, others))} is not supported for {kind!r}",
            hint="a model trained without scaling has none: remove it if it was added to read longer texts"
            if is_plain
            else "remove the key if the model was trained without it: transformers ignores it for this kind",
        )


def _llama3(key: str, rope: Json, theta: float) -> Llama3Rope:
    low, high = _required(key, rope, "low_freq_factor"), _required(key, rope, "high_freq_factor")
    if low >= high:
        raise CheckpointCorrupt(
            f"config.json: {key} has low_freq_factor {low} and high_freq_factor {high}, expected a larger one"
        )
    return Llama3Rope(theta, _required(key, rope, "factor"), low, high, positive_int(rope, _ORIGINAL))


def _yarn(key: str, rope: Json, theta: float, positions: int) -> YarnRope:
    if theta <= 1:
        raise CheckpointCorrupt(f"config.json: rope_theta is {theta}, YaRN needs one above 1")
    factor = _required(key, rope, "factor")
    implied = _mscale(factor, 1.0)
    if "mscale" in rope and "mscale_all_dim" in rope:  # else transformers ignores them
        one, other = (positive_float(rope, name, 0.0) for name in ("mscale", "mscale_all_dim"))
        implied = _mscale(factor, one) / _mscale(factor, other)
    return YarnRope(
        theta=theta,
        factor=factor,
        original_max_position_embeddings=positive_int(rope, _ORIGINAL, positions),
        attention_factor=positive_float(rope, "attention_factor", implied),
        beta_fast=positive_float(rope, "beta_fast", 32.0),
        beta_slow=positive_float(rope, "beta_slow", 1.0),
        truncate=flag(rope, "truncate", default=True),
    )


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _required(key: str, rope: Json, name: str) -> float:
    if name not in rope:
        raise CheckpointCorrupt(f"config.json: {key} is {dict(rope)!r}, without {name}")
    return positive_float(rope, name, 0.0)

"""Read the rotary embedding of a model's config.json, as `stepscore export` has transformers write it.

An export writes every number of it: where transformers would take a default, or derive one, a key is missing
and the configuration is not that of an export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stepscore.engine.pytorch.refusal import Json, positive, refuse, shown

Check = Callable[[str, Json, str], Any]
_ORIGINAL = "original_max_position_embeddings"


def checked_rope(name: str, config: Json) -> dict[str, Any]:
    """Return the rotary embedding that config.json states, under transformers' keys (`rope_keys`).

    Raises ModelInvalid for another kind than default, llama3 and yarn, for a number that is missing or
    impossible, and where two keys state different ones.
    """
    places = {key: _place(name, config, key) for key in ("rope_scaling", "rope_parameters")}
    thetas = [
        positive(name, "rope_theta", place["rope_theta"])
        for place in (config, *places.values())
        if place.get("rope_theta") is not None
    ]
    if not thetas or len(set(thetas)) > 1:
        refuse(name, f"rope_theta is {shown(thetas)}, expected one positive number")
    ropes = [_rope(f"{name}: {key}", place, thetas[0]) for key, place in places.items() if place]
    if any(rope != ropes[0] for rope in ropes):
        refuse(name, "rope_scaling and rope_parameters differ")
    return rope_keys(thetas[0], ropes[0] if ropes else {"rope_type": "default"})


def rope_keys(theta: float, rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rotary embedding under the keys of both: transformers 4 reads two of them, 5 the third.

    theta: base of the frequencies; rope: `rope_type` and the numbers of that kind.
    """
    keys = {"rope_theta": theta, "rope_parameters": {"rope_theta": theta, **rope}}
    return keys if rope["rope_type"] == "default" else keys | {"rope_scaling": dict(rope)}


def _place(name: str, config: Json, key: str) -> Json:
    place = config.get(key) or {}
    if not isinstance(place, Mapping):
        refuse(name, f"{key} is {shown(place)}, expected an object")
    return place


def _rope(name: str, place: Json, theta: float) -> dict[str, Any]:
    kind = place.get("rope_type", place.get("type", "default"))
    checks = _NUMBERS.get(kind) if isinstance(kind, str) else None
    if checks is None:
        refuse(name, f"the type is {shown(kind)}, expected one of {', '.join(_NUMBERS)}")
    rope = {"rope_type": kind} | {key: check(name, place, key) for key, check in checks.items()}
    if kind == "llama3" and not rope["low_freq_factor"] < rope["high_freq_factor"]:
        refuse(name, "low_freq_factor is not below high_freq_factor")
    if kind == "yarn" and not theta > 1:
        refuse(name, f"rope_theta is {theta}, expected more than 1")
    return rope


def _number(name: str, place: Json, key: str) -> float:
    return positive(name, key, place.get(key))


def _length(name: str, place: Json, key: str) -> int:
    value = place.get(key)
    if type(value) is not int or not 0 < value < 2**31:
        refuse(name, f"{key} is {shown(value)}, expected a number of tokens")
    return value


def _flag(name: str, place: Json, key: str) -> bool:
    value = place.get(key)
    if type(value) is not bool:
        refuse(name, f"{key} is {shown(value)}, expected true or false")
    return value


_NUMBERS: Mapping[str, Mapping[str, Check]] = {
    "default": {},
    "llama3": {
        "factor": _number,
        "low_freq_factor": _number,
        "high_freq_factor": _number,
        _ORIGINAL: _length,
    },
    "yarn": {
        "factor": _number,
        _ORIGINAL: _length,
        "attention_factor": _number,
        "beta_fast": _number,
        "beta_slow": _number,
        "truncate": _flag,
    },
}
"""What each kind of rotary embedding has, and how it is checked."""

"""Values of a config.json that was not written by an export: how each is checked, shown and refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from stepscore.errors import ModelInvalid

Json = Mapping[str, Any]


def expect(name: str, config: Json, key: str, value: object) -> None:
    """Refuse a configuration whose `key` has another value, or the same one as another type."""
    if config.get(key) != value or type(config.get(key)) is not type(value):
        refuse(name, f"{key} is {shown(config.get(key))}, expected {value!r}")


def positive(name: str, key: str, value: object) -> float:
    """Return a finite number above 0; refuse anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        refuse(name, f"{key} is {shown(value)}, expected a positive number")
    try:
        return float(value)
    except OverflowError:
        refuse(name, f"{key} is {shown(value)}, expected a positive number")


def shown(value: object) -> str:
    """Return a value as an error shows it, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refuse(name: str, fault: str) -> NoReturn:
    """Raise ModelInvalid for the file `name`."""
    raise ModelInvalid(
        f"{name} is not as `stepscore export` writes it: {fault}",
        hint="export the pair from checkpoints you trust; do not run this one",
    )

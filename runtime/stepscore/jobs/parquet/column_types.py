"""Types of columns that hold the values of a JSON field in all lines. Pure: values in, types out.

A field whose values fit one type becomes a column of it: numbers, text, booleans, lists and objects of
them. Any other field (numbers and text mixed, integers over 64 bits, objects with nulls, with no fields or
with very many) becomes a column of JSON text, so that no value changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from math import isfinite
from typing import Any

MOST_FIELDS = 64
MOST_DEPTH = 6
EXACT = 1 << 53
"""Integers up to this are float64 without loss."""


class Plain(Enum):
    """Types without parts."""

    NULL = auto()
    BOOLEAN = auto()
    SMALL_INTEGER = auto()
    """An integer that is also a float64."""
    INTEGER = auto()
    NUMBER = auto()
    TEXT = auto()
    JSON = auto()
    """Anything, as JSON text."""


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list; NULL values where all lists are empty."""

    value: ColumnType


@dataclass(frozen=True, slots=True)
class ObjectOf:
    """An object; a field that a value lacks is null."""

    fields: Mapping[str, ColumnType]


ColumnType = Plain | ListOf | ObjectOf
_NUMBERS = (Plain.SMALL_INTEGER, Plain.INTEGER, Plain.NUMBER)
_SUMS = {
    frozenset((Plain.SMALL_INTEGER, Plain.INTEGER)): Plain.INTEGER,
    frozenset((Plain.SMALL_INTEGER, Plain.NUMBER)): Plain.NUMBER,
}
"""What holds both of two kinds of numbers; nothing holds an INTEGER and a NUMBER."""


def type_of(value: Any, depth: int = 0) -> ColumnType:
    """Return the type of one decoded JSON value.

    >>> type_of([1, 2.5]), type_of([1, "a"])
    (ListOf(value=<Plain.NUMBER: 5>), <Plain.JSON: 7>)
    """
    if isinstance(value, list | dict):
        if depth == MOST_DEPTH:
            return Plain.JSON
        if isinstance(value, list):
            return _list_of(value, depth)
        return _object_of({name: type_of(each, depth + 1) for name, each in value.items()})
    if isinstance(value, bool | str | None):
        return Plain.NULL if value is None else Plain.TEXT if isinstance(value, str) else Plain.BOOLEAN
    return _number(value)


def _number(value: Any) -> Plain:
    """Return the type of an integer or a float; a literal such as 1e999 has no value that a column holds."""
    if isinstance(value, float):
        return Plain.NUMBER if isfinite(value) else Plain.JSON
    if abs(value) <= EXACT:
        return Plain.SMALL_INTEGER
    return Plain.INTEGER if -(1 << 63) <= value < 1 << 63 else Plain.JSON


def merged(one: ColumnType, other: ColumnType) -> ColumnType:
    """Return the type that holds the values of both.

    >>> merged(Plain.SMALL_INTEGER, Plain.NUMBER), merged(Plain.INTEGER, Plain.NUMBER)
    (<Plain.NUMBER: 5>, <Plain.JSON: 7>)
    """
    if one == other or other is Plain.NULL:
        return one
    if one is Plain.NULL:
        return other
    if one in _NUMBERS and other in _NUMBERS:
        return _SUMS.get(frozenset((one, other)), Plain.JSON)
    if isinstance(one, ListOf) and isinstance(other, ListOf):
        value = merged(one.value, other.value)
        return Plain.JSON if value is Plain.JSON else ListOf(value)
    if isinstance(one, ObjectOf) and isinstance(other, ObjectOf):
        lacking = dict.fromkeys([*one.fields, *other.fields], Plain.NULL)
        ours, theirs = ({**lacking, **each.fields} for each in (one, other))
        return _object_of({name: merged(ours[name], theirs[name]) for name in lacking})
    return Plain.JSON


def _list_of(values: list[Any], depth: int) -> ColumnType:
    found: ColumnType = Plain.NULL
    for each in values:
        found = merged(found, type_of(each, depth + 1))
        if found is Plain.JSON:
            return Plain.JSON
    return ListOf(found)


def _object_of(fields: Mapping[str, ColumnType]) -> ColumnType:
    """Return the type of an object; JSON where a part is, and where a null would say what was not there."""
    if not 0 < len(fields) <= MOST_FIELDS or any(
        kind in (Plain.JSON, Plain.NULL) for kind in fields.values()
    ):
        return Plain.JSON
    return ObjectOf(fields)

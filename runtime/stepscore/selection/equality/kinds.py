"""Kinds of answers, as they are read and compared."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from stepscore.selection.equality.exact_numbers import Number
from stepscore.selection.equality.units import Unit


class Order(enum.Enum):
    """Whether the order of items matters."""

    FREE = "free"
    FIXED = "fixed"


@dataclass(frozen=True, slots=True)
class Incomputable:
    """A number too large to compute, or a text too long to read: nothing is known to equal it."""

    text: str


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a given base."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Words:
    """Words, compared without case."""

    text: str


@dataclass(frozen=True, slots=True)
class Name:
    """A name of points, such as an angle; `sign` is what it names, "" for bare letters."""

    sign: str
    letters: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """A magnitude with a unit."""

    magnitude: Answer
    unit: Unit


@dataclass(frozen=True, slots=True)
class Named:
    """A value with the name of what has it: x = 5."""

    name: str
    value: Answer
    text: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Items:
    """Several answers: a list, set, tuple, interval, ratio or union, told apart by their brackets."""

    opening: str
    closing: str
    order: Order
    items: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Expression:
    """Any other mathematics, in plain spelling."""

    text: str


Answer = Number | Incomputable | Based | Words | Name | Quantity | Named | Items | Expression

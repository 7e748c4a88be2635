"""Compare two readings of answers, symmetrically; a unit or name that only one has is no difference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from typing import Protocol

from stepscore.selection.equality.exact_numbers import Number
from stepscore.selection.equality.kinds import (
    Answer,
    Based,
    Expression,
    Incomputable,
    Items,
    Name,
    Named,
    Order,
    Quantity,
    Words,
)
from stepscore.selection.equality.library import Undecided, Value
from stepscore.selection.equality.units import PERCENT

_CONTEXT = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)
_AGREE = Decimal("1e-30")
_NOT_FOR_THE_LIBRARY = ("\\text", "\\ldots", "'")
_SHORT = 10**30


class Asked(Protocol):
    """The part of a Library that comparing needs."""

    def value(self, text: str) -> Value | None:
        """Return the parts of a number."""

    def equal(self, first: str, second: str) -> bool:
        """Return whether two expressions are equal."""


def same(one: Answer, other: Answer, library: Asked) -> bool:
    """Return whether two answers are equal; raise Undecided where that cannot be computed."""
    if one == other:
        return True
    return _same(one, other, library) if _rank(one) <= _rank(other) else _same(other, one, library)


_ORDER = (Named, Incomputable, Quantity, Items, Based, Name, Words, Number, Expression)


def _rank(answer: Answer) -> int:
    return _ORDER.index(type(answer))


def _same(one: Answer, other: Answer, library: Asked) -> bool:
    """Compare two different readings, the first of the earlier kind: values within names and quantities."""
    equal = False
    match one, other:
        case Named(), Named():
            equal = one.name == other.name and same(one.value, other.value, library)
        case Named(), Expression() if "=" in other.text:
            equal = _equal_expressions(one.text, other.text, library)
        case Named(), _:
            equal = same(one.value, other, library)
        case Incomputable(), Incomputable() | Quantity() | Number() | Expression():
            raise Undecided
        case Quantity(), Quantity():
            equal = _same_quantity(one, other, library)
        case Quantity(), Number() if _is_share(one, other):
            equal = True
        case Quantity(), Items() | Based() | Number() | Expression():
            equal = same(one.magnitude, other, library)
        case _:
            equal = _same_plain(one, other, library)
    return equal


def _same_plain(one: Answer, other: Answer, library: Asked) -> bool:
    equal = False
    match one, other:
        case Items(), Items():
            equal = _same_items(one, other, library)
        case Based(), Based():
            equal = _in_base(one) == _in_base(other)
        case Based(), Number():
            equal = one.digits.replace(".", "").isdigit() and Fraction(one.digits) == other.value
        case Name(), Name():
            equal = _same_name(one, other)
        case Name(sign=""), Words():
            equal = one.letters.casefold() == other.text
        case Words(), Expression():
            equal = one.text == other.text.casefold()
        case Number(), Number():
            equal = _same_number(one, other)
        case Number(), Expression():
            equal = _has_value(one, other, library)
        case Expression(), Expression():
            equal = _equal_expressions(one.text, other.text, library)
    return equal


def _is_share(percentage: Quantity, share: Number) -> bool:
    """Return whether 50 % and 0.5 are given."""
    magnitude = percentage.magnitude
    is_percentage = percentage.unit == PERCENT and isinstance(magnitude, Number)
    return is_percentage and isinstance(magnitude, Number) and magnitude.value == 100 * share.value


def _same_quantity(one: Quantity, other: Quantity, library: Asked) -> bool:
    if one.unit.powers != other.unit.powers:
        return False
    if one.unit.factor == other.unit.factor:
        return same(one.magnitude, other.magnitude, library)
    left, right = one.magnitude, other.magnitude
    if isinstance(left, Number) and isinstance(right, Number):
        return left.value * one.unit.factor == right.value * other.unit.factor
    return False


def _same_items(one: Items, other: Items, library: Asked) -> bool:
    if len(one.items) != len(other.items) or not _same_brackets(one, other):
        return False
    if Order.FIXED in {one.order, other.order}:
        return all(same(a, b, library) for a, b in zip(one.items, other.items, strict=True))
    return _matched(one.items, other.items, library)


def _same_brackets(one: Items, other: Items) -> bool:
    first, second = one.opening, other.opening
    if {first, second} <= {"(", "["}:  # two items may be an interval, whose brackets matter
        return len(one.items) > 2 or (first, one.closing) == (second, other.closing)
    if "" in {first, second}:
        return {first, second} <= {"", "(", "\\{", "\\cup"}
    return first == second


def _matched(left: Sequence[Answer], right: Sequence[Answer], library: Asked) -> bool:
    """Return whether the items can be paired so that all pairs are equal (augmenting paths)."""
    equal = [[at for at, b in enumerate(right) if same(a, b, library)] for a in left]
    partner: dict[int, int] = {}

    def place(item: int, tried: set[int]) -> bool:
        for at in equal[item]:
            if at not in tried:
                tried.add(at)
                if at not in partner or place(partner[at], tried):
                    partner[at] = item
                    return True
        return False

    return all(place(item, set()) for item in range(len(left)))


def _same_name(one: Name, other: Name) -> bool:
    if one.sign and other.sign:
        return one == other
    letters = {one.letters, other.letters}
    if "\\triangle" in {one.sign, other.sign}:
        return len({"".join(sorted(text)) for text in letters}) == 1
    directed = {one.sign, other.sign} & {"\\vec", "\\overrightarrow"}
    return len(letters) == 1 or (not directed and len({min(text, text[::-1]) for text in letters}) == 1)


def _in_base(answer: Based) -> Fraction:
    whole, _, rest = answer.digits.partition(".")
    return Fraction(int(whole + rest, answer.base), answer.base ** len(rest))


def _same_number(one: Number, other: Number) -> bool:
    if one.value == other.value:
        return True
    shorter = min(filter(None, (one.decimals, other.decimals)), default=0)
    return shorter > 0 and abs(one.value - other.value) < Fraction(1, 10**shorter)


def _has_value(number: Number, expression: Expression, library: Asked) -> bool:
    value = _value(expression.text, library)
    if value is None:
        short = max(abs(number.value.numerator), number.value.denominator) < _SHORT
        fraction = f"\\frac{{{number.value.numerator}}}{{{number.value.denominator}}}" if short else ""
        return short and _equal_expressions(fraction, expression.text, library)
    if Decimal(value[1]):
        return False
    exact = _CONTEXT.divide(Decimal(number.value.numerator), Decimal(number.value.denominator))
    near = Decimal(value[0])
    if number.decimals and abs(_CONTEXT.subtract(exact, near)) < Decimal(1).scaleb(-number.decimals):
        return True
    return _agree(exact, near)


def _equal_expressions(first: str, second: str, library: Asked) -> bool:
    if not _is_readable(first) or not _is_readable(second):
        return False
    values = [_value(text, library) for text in (first, second)]
    if values[0] is None or values[1] is None:
        return library.equal(first, second)
    return all(_agree(Decimal(a), Decimal(b)) for a, b in zip(values[0], values[1], strict=True))


def _value(text: str, library: Asked) -> Value | None:
    return library.value(text) if _is_readable(text) else None


def _is_readable(text: str) -> bool:
    """Return whether math-verify can read a text as a whole; it drops what it does not know."""
    braces = re.sub(r"\\.", "", text)
    balanced = braces.count("{") == braces.count("}")
    return balanced and bool(text) and not any(mark in text for mark in _NOT_FOR_THE_LIBRARY)


def _agree(one: Decimal, other: Decimal) -> bool:
    size = max(one.copy_abs(), other.copy_abs())
    return _CONTEXT.subtract(one, other).copy_abs() <= _CONTEXT.multiply(size, _AGREE)

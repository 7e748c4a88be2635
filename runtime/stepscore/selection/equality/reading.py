r"""Read an answer: a list, interval, relation ... of parts; what no rule reads stays text for math-verify."""

from __future__ import annotations

import re

from stepscore.selection.equality.exact_numbers import Number
from stepscore.selection.equality.kinds import (
    Answer,
    Expression,
    Incomputable,
    Items,
    Named,
    Order,
    Quantity,
    Words,
)
from stepscore.selection.equality.leaves import read_leaf
from stepscore.selection.equality.relations import RELATION, read_relation
from stepscore.selection.equality.spelling import MAX_CHARACTERS, plain, tokens

MAX_DEPTH = 20
_THOUSANDS = re.compile(r"[^,]*?(?<!\d)\d{1,3}(?:,\d{3})+(?![\d,])[^,]*", re.ASCII)  # 1,234 but not 1,23
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")


def read(answer: str) -> Answer:
    r"""Read an answer as it stands in a box or a field.

    >>> read("2516_7"), read("\\angle ABC") == read("\\angle CBA"), read("x<2") == read("2>x")
    (Based(digits='2516', base=7), True, True)
    """
    if len(answer) > MAX_CHARACTERS:
        return Incomputable(answer.strip())
    return _read(plain(answer), 0)


def _read(text: str, depth: int) -> Answer:
    text = text.strip()
    if depth > MAX_DEPTH:
        return Incomputable(text)
    compound = _compound(text, depth)
    return read_leaf(text, lambda part: _read(part, depth + 1)) if compound is None else compound


def _compound(text: str, depth: int) -> Answer | None:
    bracketed = _bracketed(text, depth)
    if bracketed is not None:
        return bracketed
    if len(_PLUS_MINUS.findall(text)) == 1:
        both = tuple(_read(_PLUS_MINUS.sub(sign, text), depth + 1) for sign in ("+", "-"))
        return Items("", "", Order.FREE, both)
    for separator in ";" if _THOUSANDS.fullmatch(text) else ",;":
        parts = _split(text, separator)
        if len(parts) > 1:
            return _list([part for part in parts if part], depth)
    relation = read_relation(text, lambda part: _read(part, depth + 1))
    return relation or _union(text, depth) or _ratio(text, depth)


def _list(parts: list[str], depth: int) -> Answer:
    if not parts:
        return Expression("")
    items = [_read(part, depth + 1) for part in parts]
    order = _order(parts)
    if isinstance(items[0], Named) and not any(isinstance(item, Named) for item in items[1:]):
        values = (items[0].value, *items[1:])  # x = 1, 2
        return Named(items[0].name, Items("", "", order, values), ", ".join(parts))
    names = {item.name for item in items if isinstance(item, Named)}
    if len(names) == 1 and all(isinstance(item, Named) for item in items):  # x = 1 or x = 2
        found = tuple(item.value for item in items if isinstance(item, Named))
        return Named(
            names.pop(), found[0] if len(found) == 1 else Items("", "", order, found), ", ".join(parts)
        )
    return items[0] if len(items) == 1 else Items("", "", order, tuple(items))


def _order(parts: list[str]) -> Order:
    return Order.FIXED if any("\\ldots" in part for part in parts) else Order.FREE


def _bracketed(text: str, depth: int) -> Answer | None:
    for opening in ("\\{", "(", "["):
        if not text.startswith(opening):
            continue
        for closing in ("\\}", ")", "]"):
            if text.endswith(closing) and _closes(text, len(text) - len(closing)):
                inner = text[len(opening) : -len(closing)].strip()
                separator = ";" if ";" in inner else ","
                parts = _split(inner, separator)
                is_set = opening == "\\{"
                if len(parts) == 1 and (is_set or not inner or RELATION.search(inner)):
                    return _read(inner, depth + 1) if inner else Words(f"{opening}{closing}")
                if len(parts) == 1:
                    only = _read(inner, depth + 1)
                    return only if opening + closing == "()" or isinstance(only, Number) else None
                items = tuple(_read(part, depth + 1) for part in parts)
                return Items(opening, closing, _order(parts) if is_set else Order.FIXED, items)
    return None


def _closes(text: str, end: int) -> bool:
    """Return whether the bracket that opens a text is closed at `end` and not before."""
    return all(depth > 0 or at >= end for at, _, depth in tokens(text))


def _split(text: str, separator: str) -> list[str]:
    parts, start = [], 0
    for at, token, depth in tokens(text):
        if token == separator and depth == 0:
            parts.append(text[start:at].strip())
            start = at + len(token)
    return [*parts, text[start:].strip()]


def _union(text: str, depth: int) -> Answer | None:
    parts = _split(text, "\\cup")
    if len(parts) < 2 or not all(parts):
        return None
    return Items("\\cup", "", Order.FREE, tuple(_read(part, depth + 1) for part in parts))


def _ratio(text: str, depth: int) -> Answer | None:
    parts = _split(text, ":")
    if len(parts) < 2 or not all(parts):
        return None
    last = _read(parts[-1], depth + 1)
    if isinstance(last, Quantity):  # 4:30 p.m.
        items = (*(_read(part, depth + 1) for part in parts[:-1]), last.magnitude)
        return Quantity(Items(":", "", Order.FIXED, items), last.unit)
    return Items(":", "", Order.FIXED, (*(_read(part, depth + 1) for part in parts[:-1]), last))

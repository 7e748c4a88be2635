r"""Read relations: a value with its name, and inequalities as intervals."""

from __future__ import annotations

import re

from stepscore.selection.equality.kinds import Answer, Expression, Items, Named, Order
from stepscore.selection.equality.leaves import Read
from stepscore.selection.equality.spelling import tokens

RELATION = re.compile(r"(\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|\\in(?![a-z])|<=|>=|<|>|=)")
_LONG = {"<=": "\\le", ">=": "\\ge"}
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_SYMBOL = re.compile(
    r"""
    \\?[A-Za-z]+'*(?:\s*_\s*(?:\{[^{}]*\}|[A-Za-z0-9]))?'*(?:\s*\([^()=<>]*\))?   # x, x_1, x', f(2)
    |m?\s*\\angle\s*\{?[A-Z]+\}?
    |\\(?:overline|vec|text)\s*\{[^{}]*\}
    |\(?[a-z](?:\s*,\s*[a-z])+\)?                                                # (x, y)
    """,
    re.VERBOSE,
)
_INFINITY, _MINUS_INFINITY = Expression("\\infty"), Expression("-\\infty")


def read_relation(text: str, inner: Read) -> Answer | None:
    """Read `name = value`, `name in set` and inequalities of one name; None for anything else."""
    found = _found(text)
    ends = [0, *(at + len(sign) for at, sign in found)]
    starts = [*(at for at, _ in found), len(text)]
    parts = [text[end:start].strip() for end, start in zip(ends, starts, strict=True)]
    signs = [_LONG.get(sign, sign) for _, sign in found]
    if not found or not all(parts):
        return None
    first, last = parts[0], parts[-1]
    if set(signs) == {"="} and _is_symbol(first):
        return Named(_name(first), inner(last), text)
    if signs == ["="] and _is_symbol(last):
        return Named(_name(last), inner(first), text)
    if signs == ["\\in"] and _is_symbol(first):
        return Named(_name(first), inner(last), text)
    if signs[0] in {">", "\\ge"} and set(signs) <= set(_FLIPPED):
        parts, signs = parts[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
    return _interval(parts, signs, text, inner) if set(signs) <= {"<", "\\le"} else None


def _interval(parts: list[str], signs: list[str], text: str, inner: Read) -> Answer | None:
    """Read ascending inequalities, such as 1 < x <= 2, x < 2 and 1 <= x."""
    brackets = [("(", ")") if sign == "<" else ("[", "]") for sign in signs]
    if len(parts) == 3 and _is_symbol(parts[1]):
        name, opening, closing = parts[1], brackets[0][0], brackets[1][1]
        items = (inner(parts[0]), inner(parts[2]))
    elif len(parts) == 2 and _is_symbol(parts[0]):
        name, opening, closing = parts[0], "(", brackets[0][1]
        items = (_MINUS_INFINITY, inner(parts[1]))
    elif len(parts) == 2 and _is_symbol(parts[1]):
        name, opening, closing = parts[1], brackets[0][0], ")"
        items = (inner(parts[0]), _INFINITY)
    else:
        return None
    return Named(_name(name), Items(opening, closing, Order.FIXED, items), text)


def _found(text: str) -> list[tuple[int, str]]:
    """Return place and sign of every relation outside brackets."""
    depths = {at: depth for at, _, depth in tokens(text)}
    return [(found.start(), found[0]) for found in RELATION.finditer(text) if depths.get(found.start()) == 0]


def _is_symbol(text: str) -> bool:
    return text != "e" and _SYMBOL.fullmatch(text) is not None


def _name(text: str) -> str:
    return re.sub(r"\\text\{([^{}]*)\}|[\s{}]", lambda found: (found[1] or "").lower().replace(" ", ""), text)

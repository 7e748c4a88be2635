r"""Read the parts of an answer: numbers, numbers in a base, names of points, words, quantities."""

from __future__ import annotations

import re
from collections.abc import Callable

from stepscore.selection.equality.exact_numbers import TooLarge, read_number
from stepscore.selection.equality.kinds import (
    Answer,
    Based,
    Expression,
    Incomputable,
    Items,
    Name,
    Order,
    Quantity,
    Words,
)
from stepscore.selection.equality.spelling import tokens
from stepscore.selection.equality.units import CURRENCIES, is_known, read_unit

Read = Callable[[str], Answer]

_BASE_WORDS = dict(
    zip(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], range(2, 11), strict=True)
)
_BASE_WORDS |= {"eleven": 11, "twelve": 12, "sixteen": 16}
_SHORT_WORDS = {"yes", "no", "odd", "all", "mon", "tue", "wed", "thu", "fri", "sat", "sun"}
_BASED = re.compile(
    r"\(?([0-9A-Z]+(?:\.[0-9A-Z]+)?)\)?\s*_\s*"
    r"(?:\{\s*(?:\\text\{)?\s*(?:base)?\s*\}?\s*(\d+|[a-z]+)\s*\}?\s*\}|(\d))"
)
_LINE = re.compile(
    r"(?P<sign>\\(?:angle|triangle|Delta|odot|overline|overrightarrow|overleftrightarrow|vec|widehat|overarc))"
    r"\s*\{?\s*(?P<letters>[A-Z]['0-9]*(?:\s*[A-Z]['0-9]*)*)\s*\}?"
)
_SPACES = re.compile(r"(?<=[^A-Za-z0-9])\s+|\s+(?=[^A-Za-z0-9])")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREES = re.compile(r"\{?(\d+(?:\.\d+)?)\}?\s*\^\s*\\circ")
_HALF_OF_DAY = re.compile(r"[ap]\.?m\b", re.IGNORECASE)
_NOT_FUNCTIONS = re.compile(
    r"\\(?:frac|sqrt|sin|cos|tan|log|ln|binom|times|cdot|pi|infty|theta|alpha|beta)(?![A-Za-z])"
)


def read_leaf(text: str, inner: Read) -> Answer:
    """Read an answer without brackets, lists or relations; `inner` reads the magnitude of a quantity."""
    if _TRIGONOMETRIC.search(text):
        text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    try:
        number = read_number(text)
    except TooLarge:
        return Incomputable(text)
    return (
        number
        or _based(text)
        or _points(text)
        or _words(text)
        or _quantity(text, inner)
        or _all_reals(text)
        or Expression(_SPACES.sub("", text).removeprefix("+"))
    )


def _all_reals(text: str) -> Items | None:
    if not re.fullmatch(r"\\mathbb\s*(?:R|\{R\})|\\R", text):
        return None
    return Items("(", ")", Order.FIXED, (Expression("-\\infty"), Expression("\\infty")))


def _based(text: str) -> Based | None:
    found = _BASED.fullmatch(text)
    if not found:
        return None
    given = found[2] or found[3]
    base = int(given) if given.isdigit() and len(given) < 3 else _BASE_WORDS.get(given, 0)
    valid = 2 <= base <= 36 and all(int(digit, 36) < base for digit in found[1].replace(".", ""))
    return Based(found[1], base) if valid else None


def _points(text: str) -> Name | None:
    found = _LINE.fullmatch(text)
    if not found:
        bare = re.fullmatch(r"[A-Z]{2,}", text)
        return Name("", _either_way(text) if len(text) == 2 else text) if bare else None
    sign = {"\\Delta": "\\triangle", "\\overarc": "\\widehat"}.get(found["sign"], found["sign"])
    letters = re.sub(r"\s", "", found["letters"])
    points = re.findall(r"[A-Z]['0-9]*", letters)
    if sign == "\\triangle":
        return Name(sign, "".join(sorted(points)))
    directed = sign in {"\\overrightarrow", "\\vec"}
    return Name(sign, letters if directed else min(letters, "".join(reversed(points))))


def _either_way(letters: str) -> str:
    return min(letters, letters[::-1])


def _words(text: str) -> Words | None:
    content = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    spelled = re.sub(r"[\s~]+", " ", content).strip().rstrip(".").strip()
    has_text = content != text
    is_words = re.fullmatch(r"[^\W\d_][^\d_\\{}^=+*/<>()\[\]]*", spelled) is not None
    has_symbol = re.search(r"(?<![^\W\d_])[^\W\d_](?![^\W\d_])", re.sub(r"\\text\s*\{[^{}]*\}", " ", text))
    if not is_words or has_symbol:
        return None
    known = has_text or re.search(r"[^\W\d_]{4}", spelled) or spelled.casefold() in _SHORT_WORDS
    return Words(spelled.casefold()) if known else None


def _quantity(text: str, inner: Read) -> Answer | None:
    currency = re.fullmatch(rf"(-?)\s*([{CURRENCIES}])\s*(.+)", text)
    if currency:
        amount = inner(currency[1] + currency[3])
        unit = read_unit(currency[2])
        if unit and isinstance(amount, Quantity) and amount.unit == unit:
            return amount  # $18 dollars
        return Quantity(amount, unit) if unit and not isinstance(amount, Quantity) else None
    at = _unit_start(text)
    unit = None if at is None else read_unit(text[at:])
    if at is None or unit is None or not unit.powers or not text[:at].strip():
        return None
    magnitude = inner(text[:at])
    return None if isinstance(magnitude, Words | Quantity | Name) else Quantity(magnitude, unit)


def _unit_start(text: str) -> int | None:
    r"""Return where a unit may start: at \text, the sign of a unit, or a word after a number."""
    for at, token, depth in tokens(text):
        if at == 0 or depth > (token == "{"):
            continue
        if text.startswith("\\text", at) or token in {"%", *CURRENCIES} or text.startswith("^\\circ", at):
            return at
        word = (
            re.match(r"[A-Za-z]+", text[at:]) if not text[at - 1].isalpha() and text[at - 1] != "\\" else None
        )
        if word and not _NOT_FUNCTIONS.search(text[at:]):
            spaced = text[at - 1] == " "
            known = (is_known(word[0]) and (len(word[0]) > 1 or spaced)) or _HALF_OF_DAY.match(text[at:])
            if (known or (spaced and len(word[0]) > 2)) and re.search(r"[\d})]\s*$", text[:at]):
                return at
    return None

r"""Read rational numbers exactly: decimals, fractions, mixed numbers, powers, factorials, roots of squares.

Nothing is rounded, so 1/2004! and 1/2006! differ. Numbers beyond MAX_BITS are not computed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import comb, isqrt, prod

MAX_BITS = 100_000
MAX_DEPTH = 50
MIN_DIGITS = 6
"""Decimals, and significant digits, from which a decimal stands for any number that it is the start of."""


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number; `decimals` counts those of a long decimal, and is 0 for any other number."""

    value: Fraction
    decimals: int = 0


class TooLarge(Exception):
    """The number has more than MAX_BITS bits."""


class _Unread(Exception):
    """The text is not a rational number in this grammar."""


_DECIMAL = re.compile(r"(?P<whole>\d*)\.(?P<digits>\d*)|(?P<integer>\d+)", re.ASCII)
_EXPONENT = re.compile(r"[eE](-?\d{1,6})(?![\w.])", re.ASCII)
_REPEATED = re.compile(
    r"\\(?:overline|bar|dot)\s*\{(?P<block>\d+)\}|\((?P<brackets>\d+)\)(?![\d(])|(?P<ellipsis>\\ldots)",
    re.ASCII,
)
_TOKEN = re.compile(r"\s*(\\[A-Za-z]+|.)", re.DOTALL)
_SHORT_FRACTION = re.compile(r"(\d+) ?/ ?(\d+)(?![\d^!.])", re.ASCII)


def read_number(text: str) -> Number | None:
    r"""Return the number that a text in plain spelling is, None if it is not one; raise TooLarge.

    >>> [read_number(text).value for text in ("-1\\frac{1}{2}", "1.6\\times 10^{-3}", "0.\\overline{3}")]
    [Fraction(-3, 2), Fraction(1, 625), Fraction(1, 3)]
    >>> read_number("x+1")
    """
    if not any(char.isdigit() for char in text):
        return None
    literal = _long_decimal(text)
    reader = _Reader(_without_thousands(text))
    try:
        value = reader.sum()
        reader.end()
    except (_Unread, RecursionError):
        return None
    return Number(value, literal)


def _long_decimal(text: str) -> int:
    found = re.fullmatch(r"[-+]?(\d*)\.(\d+)", text, re.ASCII)
    if not found:
        return 0
    significant = len((found[1] + found[2]).lstrip("0"))
    return len(found[2]) if min(significant, len(found[2])) >= MIN_DIGITS else 0


def _without_thousands(text: str) -> str:
    return re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda found: found[0].replace(",", ""), text)


class _Reader:
    """A recursive descent over sums, products, powers and atoms."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0

    def end(self) -> None:
        if self._text[self._at :].strip():
            raise _Unread

    def sum(self) -> Fraction:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Unread
        total = self._product()
        while (sign := self._peek()) in {"+", "-"}:
            self._take()
            other = self._product()
            total = _checked(total + other if sign == "+" else total - other)
        self._depth -= 1
        return total

    def _product(self) -> Fraction:
        sign = 1
        while self._peek() in {"+", "-"}:
            sign = -sign if self._take() == "-" else sign
        total = self._power()
        while True:
            operator = self._peek()
            if operator in {"*", r"\times", r"\cdot"}:
                self._take()
                total = _checked(total * self._signed_power())
            elif operator in {"/", r"\div"}:
                self._take()
                total = _checked(_divided(total, self._signed_power()))
            elif operator in {"(", r"\sqrt", r"\binom"}:
                total = _checked(total * self._power())
            else:
                return sign * total

    def _signed_power(self) -> Fraction:
        sign = 1
        while self._peek() in {"+", "-"}:
            sign = -sign if self._take() == "-" else sign
        return sign * self._power()

    def _power(self) -> Fraction:
        base = self._atom()
        while self._peek() == "!":
            self._take()
            step = 1
            while self._peek() == "!":
                step += len(self._take())
            base = _factorial(base, step)
        if self._peek() != "^":
            return base
        self._take()
        return _raised(base, self._argument())

    def _argument(self) -> Fraction:
        """Read {...} or a number; without braces, LaTeX takes one digit, but people mean the number."""
        return self._group() if self._peek() == "{" else self._signed_power()

    def _group(self) -> Fraction:
        if self._take() != "{":
            raise _Unread
        value = self.sum()
        if self._take() != "}":
            raise _Unread
        return value

    def _atom(self) -> Fraction:
        token = self._peek()
        if token.isdigit() or token == ".":
            return self._literal()
        self._take()
        if token == "(":
            value = self.sum()
            if self._take() != ")":
                raise _Unread
            return value
        if token == "{":
            self._at -= 1
            return self._group()
        if token == r"\frac":
            above = self._group()
            return _checked(_divided(above, self._group()))
        if token == r"\binom":
            of, chosen = self._group(), self._group()
            if of.denominator != 1 or chosen.denominator != 1 or not 0 <= chosen <= of <= 5000:
                raise _Unread
            return Fraction(comb(int(of), int(chosen)))
        if token == r"\sqrt" and self._peek() == "{":
            return _square_root(self._group())
        raise _Unread

    def _literal(self) -> Fraction:
        found = _DECIMAL.match(self._text, self._skipped())
        if found is None or found[0] == ".":
            raise _Unread
        self._at = found.end()
        if len(found[0]) > MAX_BITS // 4:
            raise TooLarge
        if found["integer"]:
            return self._scaled(self._mixed(_whole(found["integer"])))
        digits = found["digits"]
        start = Fraction(_whole((found["whole"] or "0") + digits), 10 ** len(digits))
        repeated = _REPEATED.match(self._text, self._at)
        if not repeated:
            return self._scaled(start)
        self._at = repeated.end()
        if repeated["ellipsis"]:
            return _continued(found["whole"] or "0", digits)
        block = repeated["block"] or repeated["brackets"]
        return start + Fraction(_whole(block), (10 ** len(block) - 1) * 10 ** len(digits))

    def _mixed(self, whole: int) -> Fraction:
        r"""Add a proper fraction that follows an integer: 1\frac{1}{2} and 1 1/2."""
        at = self._skipped()
        if self._text.startswith(r"\frac", at):
            fraction = self._atom()
            if not 0 < fraction < 1:
                raise _Unread
            return whole + fraction
        found = _SHORT_FRACTION.match(self._text, at) if at > self._at else None
        if found and 0 < _whole(found[1]) < _whole(found[2]):
            self._at = found.end()
            return whole + Fraction(_whole(found[1]), _whole(found[2]))
        return Fraction(whole)

    def _scaled(self, value: Fraction) -> Fraction:
        found = _EXPONENT.match(self._text, self._at)
        if not found:
            return value
        self._at = found.end()
        return _checked(value * _raised(Fraction(10), Fraction(found[1])))

    def _skipped(self) -> int:
        at = self._at
        while at < len(self._text) and self._text[at] == " ":
            at += 1
        return at

    def _peek(self) -> str:
        found = _TOKEN.match(self._text, self._at)
        return found[1] if found else ""

    def _take(self) -> str:
        found = _TOKEN.match(self._text, self._at)
        if not found:
            raise _Unread
        self._at = found.end()
        return found[1]


def _whole(digits: str) -> int:
    """Return an integer of any length: int() refuses more than 4,300 digits."""
    if len(digits) <= 4000:
        return int(digits)
    low = len(digits) // 2
    scale: int = 10**low
    return _whole(digits[:-low]) * scale + _whole(digits[-low:])


def _checked(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooLarge
    return value


def _factorial(value: Fraction, step: int) -> Fraction:
    """Return n! or, for step 2, n!! = n (n - 2) (n - 4) ..."""
    if value.denominator != 1 or value < 0 or step > 2:
        raise _Unread
    if value > MAX_BITS or value * int(value).bit_length() > 2 * MAX_BITS:
        raise TooLarge
    return _checked(Fraction(prod(range(int(value), 0, -step))))


def _divided(above: Fraction, below: Fraction) -> Fraction:
    if not below:
        raise _Unread
    return above / below


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent == Fraction(1, 2):
        return _square_root(base)
    if exponent.denominator != 1 or (not base and exponent <= 0):
        raise _Unread
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and base and (bits - 1 or 1) * abs(exponent) > MAX_BITS:
        raise TooLarge
    if abs(base) == 1 or not base:
        exponent = exponent % 2 if base else Fraction(1)
    return _checked(base ** int(exponent))


def _square_root(value: Fraction) -> Fraction:
    if value < 0:
        raise _Unread
    above, below = isqrt(value.numerator), isqrt(value.denominator)
    if above * above != value.numerator or below * below != value.denominator:
        raise _Unread
    return Fraction(above, below)


def _continued(whole: str, digits: str) -> Fraction:
    r"""Return 0.333\ldots as 1/3: the shortest block that ends the digits twice, three digits at least."""
    for length in range(1, len(digits) // 2 + 1):
        times = 3 if length == 1 else 2
        block = digits[-length:]
        if len(digits) >= times * length and digits.endswith(block * times):
            start = Fraction(_whole(whole + digits), 10 ** len(digits))
            return start + Fraction(_whole(block), (10**length - 1) * 10 ** len(digits))
    raise _Unread

r"""Find formulas and a small subset of Markdown in a text: bold, headings, list items.

The text itself is never changed. A span says how a part of it is shown; spans nest. What is no span is shown
as typed, and so are the markers of lists: `- 3` at the start of a line may be a subtraction.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import chain

from stepscore.report.formulas import MAX_CHARS, Formulas

BOLD, HEADING, ITEM = -1, -2, -3
"""Kinds of spans; a kind from 0 is the number of a formula."""

MAX_BACKSLASHES = 8

Span = tuple[int, int, int]
"""Start, end (exclusive), kind."""

_ENVIRONMENTS = "align|alignat|aligned|equation|gather|gathered|multline|eqnarray|array|cases|[pbvBV]?matrix"
_OPENING = re.compile(
    rf"\\[(\[]|\$\$?|\\begin\{{((?:{_ENVIRONMENTS})\*?)\}}|(?P<box>\\boxed\{{[^{{}}$\\\n]{{1,60}}\}})"
)
_CLOSING = {r"\(": r"\)", r"\[": r"\]", "$$": "$$", "$": "$"}
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_WORDS = re.compile(r"\\(?:text[a-z]*|emph|mbox)\{[^{}]*\}|\\[a-zA-Z]+|[A-Za-z][a-z]+")

# `2**3**4` is a power, so bold touches no letter or digit outside.
_BOLD = re.compile(r"(?<![\w)\]*])\*\*(?=[^\s*])[^\n*]{1,1000}(?<=\S)\*\*(?![\w(\[*])")
_HEADING = re.compile(r"^#{2,6}[ \t]+\S[^\n]*", re.MULTILINE)
_ITEM = re.compile(r"^[ \t]{0,12}(?:[-*•]|\d{1,3}[.)])[ \t]+\S[^\n]*", re.MULTILINE)
_BEYOND_16_BITS = re.compile("[\U00010000-\U0010ffff]")


def spans(text: str, formulas: Formulas) -> list[int]:
    r"""Return start, end and kind of every span, flat, outer ones first; offsets as JavaScript counts them.

    >>> found = Formulas()
    >>> spans(r"**So** \(x^2\) costs $5 to $10.", found)
    [0, 6, -1, 7, 14, 0]
    """
    if not text or not any(mark in text for mark in _MARKS):
        return _flat(text, _lines(text))
    leaves = list(_leaves(text, formulas))
    masked = _masked(text, leaves)
    bold = ((match.start(), match.end(), BOLD) for match in _BOLD.finditer(masked))
    return _flat(text, chain(leaves, bold, _lines(masked)))


_MARKS = ("\\", "$", "*")


def _lines(text: str) -> Iterator[Span]:
    for pattern, kind in ((_HEADING, HEADING), (_ITEM, ITEM)):
        yield from ((match.start(), match.end(), kind) for match in pattern.finditer(text))


def _flat(text: str, found: Iterator[Span] | chain[Span]) -> list[int]:
    order = sorted(found, key=lambda span: (span[0], -span[1], span[2] >= 0))
    if not order or text.isascii():
        return list(chain.from_iterable(order))
    wide = [match.start() for match in _BEYOND_16_BITS.finditer(text)]
    shifted = ((s + bisect_right(wide, s - 1), e + bisect_right(wide, e - 1), kind) for s, e, kind in order)
    return list(chain.from_iterable(shifted))


def _leaves(text: str, formulas: Formulas) -> Iterator[Span]:
    """Yield formulas, from left to right; the end of each is looked for in at most MAX_CHARS characters."""
    at = 0
    while match := _OPENING.search(text, at):
        start, opening = match.start(), match[0]
        at = match.end()
        if _is_escaped(text, start):
            at = start + 1 + (opening[0] == "\\")
            continue
        if match["box"]:  # the one command that solutions write without delimiters
            number = formulas.number(opening, display=False) if _words(opening) < 2 else None
            if number is not None:
                yield start, at, number
            continue
        closing = f"\\end{{{match[1]}}}" if match[1] else _CLOSING[opening]
        end = _end(text, at, closing)
        if end is None or (opening == "$" and not _is_inline(text, at, end)):
            continue
        inner = text[start : end + len(closing)] if match[1] else text[at:end]
        number = formulas.number(inner, display=opening not in (r"\(", "$"))
        if number is not None:
            at = end + len(closing)
            yield start, at, number
        elif opening != "$":  # the second of two dollars may open a formula
            at = end + len(closing)


def _end(text: str, first: int, closing: str) -> int | None:
    """Return where the closing delimiter is, None where there is none in the rest of the paragraph."""
    stop = min(first + MAX_CHARS, len(text))
    at = text.find(closing, first, stop)
    while at >= 0 and _is_escaped(text, at):
        at = text.find(closing, at + 1, stop)
    return at if at > first and not _BLANK_LINE.search(text, first, at) else None


def _is_escaped(text: str, at: int) -> bool:
    before = at
    while before and text[before - 1] == "\\" and at - before < MAX_BACKSLASHES:
        before -= 1
    return (at - before) % 2 == 1


def _is_inline(text: str, first: int, end: int) -> bool:
    r"""Return whether `$...$` is a formula, not two amounts of money.

    As pandoc has it, no white space stands inside the dollars and no digit after them. Besides, a formula is
    one line, has no two words outside of \text, and neither begins nor ends with what joins two amounts.
    """
    inside = text[first:end]
    if "\n" in inside or text[end + 1 : end + 2].isdigit():
        return False
    if inside[0] in " \t/=,;:)" or inside[-1] in " \t=+-*/(":
        return False
    return _words(inside) < 2


def _words(inside: str) -> int:
    return sum(not word.startswith("\\") for word in _WORDS.findall(inside))


def _masked(text: str, leaves: list[Span]) -> str:
    """Return the text with leaves blacked out, so that no other pattern begins, ends or breaks in them."""
    parts, at = [], 0
    for start, end, _ in leaves:
        parts += [text[at:start], "\0" * (end - start)]
        at = end
    return "".join([*parts, text[at:]])

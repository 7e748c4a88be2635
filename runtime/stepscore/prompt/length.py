"""Notice that a text has too many tokens without encoding all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

PIECE_CHARS = 1 << 14
CHARS_PER_TOKEN = 8
"""A text of fewer characters per allowed token than this is encoded at once."""

# Qwen2's pre-tokenizer never matches across these: a space starts a match where no white space is before it,
# and what ends in line breaks ends with the last of them.
_CUT = re.compile(r"(?<=\S)(?= )|(?<=\n)(?=\S)")


def least_tokens(texts: Iterable[str], count: Callable[[str], int], limit: int, longest: int) -> int:
    """Return the number of tokens of texts; above `limit`, a number that it has at least.

    For Qwen2's pre-tokenizer, where the counts of pieces add up. A token has at most `longest` characters of
    normalized text.
    """
    total = 0
    for piece in (piece for text in texts for piece in _pieces(text)):
        # Of a piece that could not be cut. NFC makes one character of at most four.
        least = len(piece) // (longest if piece.isascii() else 4 * longest)
        total += least if total + least > limit else count(piece)
        if total > limit:
            break
    return total


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + PIECE_CHARS)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end

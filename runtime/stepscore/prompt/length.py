"""Notice that a text has too many tokens without encoding all of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

PIECE_CHARS = 1 << 14
CHARS_PER_TOKEN = 8
"""A text of fewer characters per allowed token than this is encoded at once."""


def least_tokens(
    texts: Iterable[str], count: Callable[[str], int], limit: int, longest: int, cut: re.Pattern[str]
) -> int:
    """Return the number of tokens of texts; above `limit`, a number that it has at least.

    `cut` matches where the counts of the parts add up (`PreTokenizer.cut`). A token has at most `longest`
    characters of normalized text.
    """
    total = 0
    for piece in (piece for text in texts for piece in _pieces(text, cut)):
        # Of a piece that could not be cut. NFC makes one character of at most four.
        least = len(piece) // (longest if piece.isascii() else 4 * longest)
        total += least if total + least > limit else count(piece)
        if total > limit:
            break
    return total


def _pieces(text: str, cut: re.Pattern[str]) -> Iterator[str]:
    start = 0
    while start < len(text):
        found = cut.search(text, start + PIECE_CHARS)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end

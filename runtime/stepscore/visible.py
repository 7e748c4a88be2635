"""Text of strangers on a terminal: no control character acts, and nothing fills the screen."""

from __future__ import annotations

import json
import unicodedata

_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    r"""Return the text with control characters escaped, except line feeds: no escape sequence acts.

    >>> printable("a\x1b[31m\tb\n")
    'a\\x1b[31m\\tb\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        repr(char)[1:-1] if char != "\n" and unicodedata.category(char) in _UNSAFE else char for char in text
    )


def one_line(text: str, most: int) -> str:
    r"""Return the text as one printable line of at most `most` characters, its end cut off.

    >>> one_line("a\nb\x1b" + "c" * 90, 16)
    'a\\nb\\x1bccccc...'
    """
    line = printable(text[: most + 1]).replace("\n", "\\n")
    return line if len(line) <= most else line[: most - 3] + "..."


def printable_json(data: bytes) -> bytes:
    r"""Return JSON text with the same values and no control character but line feeds.

    >>> printable_json('{"a": "\x9b31m"}\n'.encode())
    b'{"a": "\\u009b31m"}\n'
    """
    text = data.decode()
    unsafe = {char for char in {*text} - {"\n"} if unicodedata.category(char) in _UNSAFE}
    return text.translate({ord(char): json.dumps(char)[1:-1] for char in unsafe}).encode()

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
    r"""Return the text as one printable line of at most `most` characters, cut in the middle.

    The end of a message says what is wrong with a long name before it.

    >>> one_line("a\nb\x1b" + "c" * 90 + " is long", 24)
    'a\\nb\\x1bccccc... is long'
    """
    if len(text) > 2 * most:
        text = text[:most] + text[-most:]
    line = printable(text).replace("\n", "\\n")
    if len(line) <= most:
        return line
    end = most // 3
    return f"{line[: most - end - 3]}...{line[-end:]}"


def printable_json(data: bytes) -> bytes:
    r"""Return JSON text with the same values and no control character but line feeds.

    >>> printable_json('{"a": "\x9b31m"}\n'.encode())
    b'{"a": "\\u009b31m"}\n'
    """
    text = data.decode()
    unsafe = {char for char in {*text} - {"\n"} if unicodedata.category(char) in _UNSAFE}
    return text.translate({ord(char): json.dumps(char)[1:-1] for char in unsafe}).encode()

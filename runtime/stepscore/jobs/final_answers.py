r"""Final answers of a record: the content of the last \boxed{} of its text, and fields that hold one."""

from __future__ import annotations

import re

import msgspec

# A box, an escaped character (\{ and \} are literal braces), or a brace. In `\\boxed{`, the box counts.
_TOKEN = re.compile(r"\\boxed\s*\{|\\(?!\\boxed\s*\{).|[{}]", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""Return the content of the last closed \boxed{...} of a text, None if there is none.

    Of nested boxes the innermost is the last. The time is linear in the length of the text.

    >>> boxed(r"So \boxed{1}. No: \boxed{\frac{1}{2}}."), boxed("It is 7.")
    ('\\frac{1}{2}', None)
    """
    last: tuple[int, int] | None = None
    open_braces: list[int | None] = []  # where the content of a box starts; None for a plain brace
    for token in _TOKEN.finditer(text):
        match token[0][-1]:
            case "{" if token[0] == "{":
                open_braces.append(None)
            case "{" if token[0].startswith("\\boxed"):
                open_braces.append(token.end())
            case "}" if token[0] == "}" and open_braces:
                start = open_braces.pop()
                if start is not None and (last is None or start > last[0]):
                    last = start, token.start()
    return None if last is None else text[last[0] : last[1]].strip()


def answer_text(value: msgspec.Raw | None) -> str | None:
    """Return the answer that a field holds: a string, a number as it is written, or a list of one of them.

    None for anything else, an empty string included.

    >>> [answer_text(msgspec.Raw(text)) for text in (b'" 1/2 "', b'["2"]', b"2.50")]
    ['1/2', '2', '2.50']
    """
    if value is None:
        return None
    decoded = msgspec.json.decode(value)
    if isinstance(decoded, list) and len(decoded) == 1:
        (value,) = msgspec.json.decode(value, type=list[msgspec.Raw])
        (decoded,) = decoded
    if isinstance(decoded, str):
        return decoded.strip() or None
    is_number = isinstance(decoded, int | float) and not isinstance(decoded, bool)
    return bytes(value).decode() if is_number else None

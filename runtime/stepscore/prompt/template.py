"""The chat template as literals, and the separator of steps."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from stepscore.errors import InvalidRecord

SEPARATOR = "\n\n"
_SYSTEM = "system"
_BLANK_LINE = re.compile(r"\r?\n[^\S\n]*\n")
_ENDS_BLANK = re.compile(r"\r?\n[^\S\n]*\n\Z")


class Strip(enum.StrEnum):
    """Characters that a chat template removes from one end of a text; each kind includes those before it."""

    NOTHING = "nothing"
    LINE_FEEDS = "line_feeds"
    r"""As by `str.strip("\n")`."""
    WHITE_SPACE = "white_space"
    """As by `str.strip()` and Jinja's `trim`."""

    def left(self, text: str) -> str:
        """Return a text without its first characters of this kind."""
        return text.lstrip(_STRIPPED[self])

    def right(self, text: str) -> str:
        """Return a text without its last characters of this kind."""
        return text.rstrip(_STRIPPED[self])


_STRIPPED = {Strip.NOTHING: "", Strip.LINE_FEEDS: "\n", Strip.WHITE_SPACE: None}


class TextRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a chat template does to a text besides writing it."""

    left: Strip = Strip.NOTHING
    right: Strip = Strip.NOTHING
    rejected: tuple[str, ...] = ()
    """Tags that the template looks for, such as `</think>`: it writes otherwise a text that contains one."""

    def strip(self, text: str) -> str:
        """Return a text without what is removed from its ends.

        >>> TextRule(left=Strip.LINE_FEEDS, right=Strip.WHITE_SPACE).strip("\\n 1 \\n")
        ' 1'
        """
        return self.right.right(self.left.left(text))

    def check(self, name: str, text: str) -> None:
        """Raise InvalidRecord for a text that contains a rejected tag."""
        found = next((tag for tag in self.rejected if tag in text), None)
        if found is not None:
            raise InvalidRecord(
                f"{name} contains {found!r}, which the pair's chat template does not write as it is",
                hint="score the text without it, such as the answer after a block of thinking",
            )


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The chat template as three literals: a render is prefix, problem, between, response, suffix.

    Each literal contains at least one control token, as in ChatML: an added token of the tokenizer that is
    flagged special or that a literal uses. The response is the steps joined by blank lines. Problem and
    response lose at their ends what their rule strips.
    """

    prefix: str
    between: str
    suffix: str
    problem: TextRule = TextRule()
    response: TextRule = TextRule()

    def render(self, problem: str, steps: Sequence[str]) -> str:
        """Return the chat template's output for one user and one assistant turn, without generation prompt.

        >>> Template("<user>", "<assistant>", "<end>").render("1 + 1?", ["Add them.", "2"])
        '<user>1 + 1?<assistant>Add them.\\n\\n2<end>'
        """
        response = self.response.strip(SEPARATOR.join(steps))
        return self.prefix + self.problem.strip(problem) + self.between + response + self.suffix

    def written(self, steps: Sequence[str], *, unfinished: bool) -> tuple[str, ...]:
        """Return the steps as they are rendered; an unfinished response goes on, and has no end to strip."""
        parts = [self.response.left.left(steps[0]), *steps[1:]]
        if not unfinished:
            parts[-1] = self.response.right.right(parts[-1])
        return tuple(parts)

    def check(self, problem: str, steps: Sequence[str]) -> None:
        """Raise InvalidRecord for a text that the template does not write as it is."""
        self.problem.check("problem", problem)
        for k, step in enumerate(steps):
            self.response.check(f"steps[{k}]", step)


def system_message(prefix: str, control_tokens: re.Pattern[str]) -> str | None:
    """Return the text of the system turn in a template's prefix, None if there is none.

    The turn is the text between two control tokens that begins with its role, or follows the role where that
    stands between two of its own; line feeds after the role belong to the template.

    >>> chatml = re.compile(r"<im_start>|<im_end>")
    >>> system_message("<im_start>system\\nBe brief.<im_end>\\n<im_start>user\\n", chatml)
    'Be brief.'
    """
    pieces = control_tokens.split(prefix)[1:-1]
    for piece, following in pairwise([*pieces, ""]):
        if piece.strip() == _SYSTEM:
            return following.lstrip("\n") if following else None
        if piece.startswith(_SYSTEM + "\n"):
            return piece.removeprefix(_SYSTEM).lstrip("\n")
    return None


def split_steps(text: str) -> tuple[tuple[str, ...], bool]:
    r"""Return the steps of a text, and whether it is unfinished: terminated by a blank line.

    A step ends at a blank line, "\n\n", which may hold white space and end in "\r\n". Scoring puts "\n\n"
    there; no other character is lost: the steps joined with their blank lines (plus a final one if
    unfinished) are the text. An empty step is merged into the next one, at the end into the one before. A
    text of white space has no steps.

    >>> split_steps("3 * 4 = 12.\n\nSo 12.")
    (('3 * 4 = 12.', 'So 12.'), False)
    >>> split_steps("3 * 4 = 12.\r\n\r\nSo 12.\n \n")
    (('3 * 4 = 12.', 'So 12.'), True)
    >>> split_steps("One.\n\n\n\nTwo.\n\n\n\n")
    (('One.', '\n\nTwo.\n\n'), True)
    """
    if not text.strip():
        return (), False
    end = _ENDS_BLANK.search(text)
    body = text[: end.start()] if end else text
    between: list[re.Match[str]] = []
    begin = 0
    for blank in _BLANK_LINE.finditer(body):
        if body[begin : blank.start()].strip():
            between.append(blank)
        begin = blank.end()
    if between and not body[between[-1].end() :].strip():
        between.pop()
    starts = [0, *(blank.end() for blank in between)]
    ends = [*(blank.start() for blank in between), len(body)]
    return tuple(body[start:stop] for start, stop in zip(starts, ends, strict=True)), end is not None

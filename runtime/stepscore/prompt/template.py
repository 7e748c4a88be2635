"""The chat template as literals, and the separator of steps."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

SEPARATOR = "\n\n"


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chat template as three literals: a render is prefix, problem, between, response, suffix.

    Each literal contains at least one control token, as in ChatML: an added token of the tokenizer that is
    flagged special or that a literal uses.
    """

    prefix: str
    between: str
    suffix: str

    def render(self, problem: str, steps: Sequence[str]) -> str:
        """Return the chat template's output for one user and one assistant turn, without generation prompt.

        >>> Template("<user>", "<assistant>", "<end>").render("1 + 1?", ["Add them.", "2"])
        '<user>1 + 1?<assistant>Add them.\\n\\n2<end>'
        """
        return self.prefix + problem + self.between + SEPARATOR.join(steps) + self.suffix


def split_steps(text: str) -> tuple[tuple[str, ...], bool]:
    r"""Return the steps of a text, and whether it is unfinished: terminated by a blank line.

    A step ends at a blank line ("\n\n"). No character is lost: the steps joined with blank lines (plus a
    final one if unfinished) are the text. An empty step is merged into the next one, at the end into the one
    before. A text of white space has no steps.

    >>> split_steps("3 * 4 = 12.\n\nSo 12.")
    (('3 * 4 = 12.', 'So 12.'), False)
    >>> split_steps("3 * 4 = 12.\n\n")
    (('3 * 4 = 12.',), True)
    >>> split_steps("One.\n\n\n\nTwo.\n\n\n\n")
    (('One.', '\n\nTwo.\n\n'), True)
    """
    if not text.strip():
        return (), False
    unfinished = text.endswith(SEPARATOR)
    steps: list[str] = []
    blank = ""
    for part in text.removesuffix(SEPARATOR).split(SEPARATOR):
        if part.strip():
            steps.append(blank + part)
            blank = ""
        else:
            blank += part + SEPARATOR
    if blank:
        steps[-1] += SEPARATOR + blank.removesuffix(SEPARATOR)
    return tuple(steps), unfinished

"""The chat template as literals, and the step separator."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

SEPARATOR = "\n\n"


class Template(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chat template as three literals: prefix, problem, between, response, suffix make the render.

    Each literal holds at least one control token, as ChatML's do: an added token of the tokenizer that is
    flagged special or that a literal uses.
    """

    prefix: str
    between: str
    suffix: str

    def render(self, problem: str, steps: Sequence[str]) -> str:
        """What the chat template gives for one user turn and one assistant turn, no generation prompt.

        >>> Template("<user>", "<assistant>", "<end>").render("1 + 1?", ["Add them.", "2"])
        '<user>1 + 1?<assistant>Add them.\\n\\n2<end>'
        """
        return self.prefix + problem + self.between + SEPARATOR.join(steps) + self.suffix


def split_steps(text: str) -> tuple[tuple[str, ...], bool]:
    r"""Return the steps of a text, and whether it is unfinished: whether a blank line closes its last step.

    A step ends at a blank line ("\n\n"). No character is lost: joined with blank lines (and one more, where
    unfinished) the steps are the text again. What would be an empty step belongs to the next, at the end to
    the one before. A text of white space has no steps.

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

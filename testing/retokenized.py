"""Token ids and step ends of the model card, by tokenizing every prefix of the text again."""

from __future__ import annotations

import re

from testing.byte_level import CHATML, SPECIAL, without_special
from tokenizers import Tokenizer

from stepscore.prompt.template import Template


class Reference:
    """The rule read literally: real re-tokenisation, control tokens only where the literals hold them."""

    def __init__(self, tokenizer: Tokenizer, template: Template = CHATML) -> None:
        self.plain = without_special(tokenizer)
        # Each control token of a literal becomes a private-use character, which no text here holds.
        self.control = {chr(0xE000 + at): tokenizer.token_to_id(text) for at, text in enumerate(SPECIAL)}
        literals = [template.prefix, template.between, template.suffix]
        for mark, text in zip(self.control, SPECIAL, strict=True):
            literals = [literal.replace(text, mark) for literal in literals]
        self.template = Template(*literals, problem=template.problem, response=template.response)

    def ids(self, render: str) -> list[int]:
        """Tokenize text in which control tokens are private-use characters."""
        ids: list[int] = []
        for part in re.split("([\ue000-\ue002])", render):
            ids += [self.control[part]] if part in self.control else self.plain.encode(part).ids
        return ids

    def render_ids(self, problem: str, steps: list[str]) -> list[int]:
        """Tokenize the whole dialogue."""
        return self.ids(self.template.render(problem, steps))

    def card(self, problem: str, steps: list[str]) -> list[int]:
        """The card's loop: every prefix again, stripped, the separator behind all but the last."""
        n = len(steps)
        renders = (self.template.render(problem, steps[:k]).strip() for k in range(1, n + 1))
        return [len(self.ids(text + ("\n\n" if k < n else ""))) - 2 for k, text in enumerate(renders, 1)]

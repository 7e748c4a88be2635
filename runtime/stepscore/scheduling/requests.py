"""What a caller asks for: a record and what its result holds, and how many tokens it may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepscore.errors import StepscoreError
from stepscore.records import Record, TokenRecord, record_from
from stepscore.results import Result, TokenResult

Answer = Result | TokenResult | StepscoreError
"""Outcome of one request: an error is that request's alone."""


@dataclass(frozen=True, slots=True)
class Request:
    """A record to score; with `tokens` the result of a text holds the log-prob of every token.

    Token ids always give one log-prob for each token of the response.
    """

    item: Record | TokenRecord
    tokens: bool = False

    @classmethod
    def of(cls, given: Record | TokenRecord | Mapping[str, Any], *, tokens: bool = False) -> Request:
        """Return the request of a record, or of a mapping with the fields of an input line.

        Raises InvalidRecord.
        """
        return cls(given if isinstance(given, Record | TokenRecord) else record_from(given), tokens)

    def most_tokens(self, template_tokens: int, max_tokens: int) -> int:
        """Return an upper estimate of its tokens before it is tokenized; more than `max_tokens` are an error.

        A token is a byte of UTF-8 or more; the chat template adds `template_tokens`.
        """
        if isinstance(self.item, TokenRecord):
            count = len(self.item.prompt_token_ids) + len(self.item.response_token_ids)
        else:
            texts = (self.item.problem, *self.item.steps)
            separators = 2 * len(self.item.steps)
            count = sum(_num_bytes(text) for text in texts) + separators + template_tokens
        return min(count, max_tokens)


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))

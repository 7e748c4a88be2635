"""Read what a trainer hands over for one sample, a prompt and a sampled response, into a record to score.

Token ids are scored as they were sampled, nothing tokenized again. They must be those of the pair's own
tokenizer: where the trainer also gives the text, the ids are decoded and compared with it, since ids of
another vocabulary would give numbers without meaning.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from tokenizers import Tokenizer

from stepscore.artifact.pair import Pair
from stepscore.errors import InputError, InvalidRecord
from stepscore.integrations.conversations import Conversations, as_text, beginning, record_of_text
from stepscore.records import Record, TokenRecord

_LIKE_A_CONTROL_TOKEN = re.compile(r"<\|[\w-]+\|>")

Rollout = Record | TokenRecord | InputError
"""A sample to score, or why it cannot be."""


class RolloutReader:
    """Reads samples for one pair; immutable, so threads may share it.

    `drop_system`: leave out a prompt's own system message, which the pair's chat template does not have.
    """

    def __init__(self, pair: Pair, *, drop_system: bool = False) -> None:
        self._encoder = pair.encoder()
        self._conversations = Conversations(pair, drop_system=drop_system)
        self._tokenizer = Tokenizer.from_str(pair.tokenizer_json())  # matches control tokens
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._control_ids = {token for token, text in added.items() if text.special}

    def of_text(self, prompt: object, response: object) -> Rollout:
        """Return the record of a prompt, text or messages, and a response, split at blank lines."""
        try:
            problem = self._conversations.problem("prompt", prompt)
            return record_of_text(problem, self._conversations.solution("completion", response))
        except InputError as error:
            return error.untraced()

    def of_response_ids(self, prompt: object, response: object, response_ids: Sequence[int]) -> Rollout:
        """Return the record of a prompt, put into the pair's chat template, and a response of token ids.

        `response` is their text, by which they are checked.
        """
        try:
            problem = self._conversations.problem("prompt", prompt)
            self._check(response_ids, self._conversations.solution("completion", response))
            return _token_record(self._encoder.prompt_ids(problem).tolist(), response_ids)
        except InputError as error:
            return error.untraced()

    def of_ids(self, prompt_ids: Sequence[int], response_ids: Sequence[int], response: str) -> Rollout:
        """Return the record of a prompt and a response of token ids; `response` is the text of the latter."""
        try:
            self._check(response_ids, response)
            return _token_record(prompt_ids, response_ids)
        except InputError as error:
            return error.untraced()

    def of_query(self, query: object, prompt: object) -> Rollout:
        """Return the record of a decoded text that begins with its prompt, control tokens spelled out.

        A prompt that ends as the pair's template ends one is tokenized as it is, whatever its system message.
        One without any control token is a problem, and is put into the template. Both texts are tokenized
        apart, so that no token lies across the boundary; the ids may differ from those that were sampled.
        """
        try:
            whole, start = as_text("query", query), as_text("prompt", prompt)
            if not whole.startswith(start):
                start = unicodedata.normalize("NFC", start)  # a tokenizer's normalizer does so to the query
            if not whole.startswith(start):
                raise InvalidRecord(
                    f"query does not begin with its prompt: it is {beginning(whole)}, the prompt "
                    f"{beginning(start)}",
                    hint="raise the trainer's prompt length: a prompt that was cut is not scored",
                )
            return _token_record(self._prompt_ids(start), self._ids(whole[len(start) :]))
        except InputError as error:
            return error.untraced()

    def _prompt_ids(self, prompt: str) -> Sequence[int]:
        template = self._encoder.template
        ids = self._ids(prompt)
        if prompt.endswith(template.between):
            return ids
        foreign = _LIKE_A_CONTROL_TOKEN.search(prompt) if self._control_ids.isdisjoint(ids) else None
        if foreign:
            raise InvalidRecord(
                f"the prompt has {foreign.group()!r}, which looks like a control token of another tokenizer",
                hint="score with a pair of the same tokenizer, or send prompts without a template",
            )
        if self._control_ids.isdisjoint(ids):
            problem: list[int] = self._encoder.prompt_ids(prompt).tolist()
            return problem
        raise InvalidRecord(
            f"the prompt has control tokens, but does not end as the pair's do, {template.between!r}",
            hint="score with a pair of the same chat template, or send prompts without a template",
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _check(self, ids: Sequence[int], text: str) -> None:
        """Raise InvalidRecord where the ids do not decode to the text, with its control tokens or without.

        White space does not count: trainers clean it up.
        """
        known = [token for token in ids if 0 <= token < self._tokenizer.get_vocab_size()]
        found = [self._tokenizer.decode(known, skip_special_tokens=skips) for skips in (True, False)]
        if "".join(text.split()) not in ["".join(each.split()) for each in found]:
            raise InvalidRecord(
                f"the response's token ids are {beginning(found[0])} by the pair's tokenizer, but its text "
                f"is {beginning(text)}",
                hint="score the text, or use a pair whose tokenizer is that of the trained model",
            )


def _token_record(prompt_ids: Sequence[int], response_ids: Sequence[int]) -> TokenRecord:
    return TokenRecord.of({"prompt_token_ids": prompt_ids, "response_token_ids": response_ids})

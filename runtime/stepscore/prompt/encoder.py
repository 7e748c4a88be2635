"""Encode problem and steps into token ids, and find the token at which each step ends.

All indices refer to the *render*: prefix + problem + between + "\\n\\n".join(steps) + suffix, the output of
the chat template, whose literals were extracted at export. The render is cut at the literals' control tokens.
The text between two of them is encoded as one string, because BPE merges may cross from a literal into the
text, and with special-token matching off, because text is data.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer

from stepscore.enums import Convention
from stepscore.errors import InvalidRecord, ManifestInvalid, ModelInvalid, TooLong
from stepscore.prompt.checks import check_ends, check_text, check_unicode
from stepscore.prompt.length import CHARS_PER_TOKEN, least_tokens
from stepscore.prompt.pretokenizer import pre_tokenizer
from stepscore.prompt.template import SEPARATOR, Template, system_message
from stepscore.prompt.token_texts import TokenTexts
from stepscore.prompt.tokenizer_faults import tokenizer_faults_as
from stepscore.records import TokenRecord

_LETTER = "a"
_EXPORT_AGAIN = "export the pair again from checkpoints you trust"


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Token ids of one record, and the indices that its rewards are computed from."""

    token_ids: np.ndarray  # int64 [L]
    response_start: int  # h: tokens of the render up to and including `between`, encoded with nothing after
    first_summed: int  # index of the first log-prob summed: 0 by the convention `card`, else h - 1
    step_ends: np.ndarray  # int64 [n], indices into the log-probs: index j scores token j + 1
    special_text: bool  # the problem or a step spells a control token; it was encoded as ordinary text


class PromptEncoder:
    """Encodes records for one tokenizer and template; immutable, so threads may share it."""

    def __init__(self, tokenizer_json: str, template: Template, *, max_tokens: int) -> None:
        self.template = template
        self.max_tokens = max_tokens
        with tokenizer_faults_as(ModelInvalid, "tokenizer.json cannot be used", _EXPORT_AGAIN):
            self._prepare(tokenizer_json)

    def _prepare(self, tokenizer_json: str) -> None:
        template = self.template
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        if getattr(self._tokenizer.model, "dropout", None):
            raise ModelInvalid("tokenizer.json drops merges at random (dropout)", hint=_EXPORT_AGAIN)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.post_processor = None  # not needed, and may trim offsets
        self._tokenizer.encode_special_tokens = True  # encode them as ordinary text
        added = list(self._tokenizer.get_added_tokens_decoder().values())
        self._added = _any_of(token.content for token in added)
        self._added_ids = np.array(sorted(self._tokenizer.get_added_tokens_decoder()), dtype=np.int64)
        self._special = self._claim_control_tokens(added)
        literals = (template.prefix, template.between, template.suffix)
        self._control_texts = [text for literal in literals for text in self._special.findall(literal)]

        # Each literal as: text | control tokens and the text between them | text.
        before, core, self._problem_head = self._parts("prefix", template.prefix)
        self._lead = self._literal_ids(before + core)
        self._problem_tail, core, self._response_head = self._parts("between", template.between)
        self._middle = self._literal_ids(core)
        self._response_tail, core, after = self._parts("suffix", template.suffix)
        self._end = self._literal_ids(core + after)

        self._opening = self._count(self._response_head)
        # The card strips the rendered string: tokens removed from its front, and tokens left at its end.
        stripped = self._parts("prefix", template.prefix.lstrip())
        self._card_shift = len(self._literal_ids(stripped[0] + stripped[1])) - len(self._lead)
        self._card_end = len(self._literal_ids((core + after).rstrip()))
        self._card_end_open = len(self._literal_ids((core + after).rstrip() + SEPARATOR))
        crossing = any("\n" in token.content for token in added)
        proved = pre_tokenizer(tokenizer_json)
        self._is_local = proved.is_local and not crossing and not self._response_tail
        spaced = any(token.lstrip or token.rstrip or re.search(r"\s", token.content) for token in added)
        self._cut = None if spaced else proved.cut
        self._goes_on = _LETTER if proved.looks_past_separator else ""
        self._token_texts = TokenTexts(self._tokenizer)

    def encode(
        self, problem: str, steps: Sequence[str], convention: Convention, *, unfinished: bool = False
    ) -> EncodedPrompt:
        """Return the token ids of the render and the log-prob index of each step's end.

        Token ids equal transformers' `apply_chat_template(tokenize=True)` for any text that spells no control
        token; text that does is encoded as ordinary text, and flagged. A template that strips problem and
        response does so here.

        With log-prob j that of token j + 1, h as in `EncodedPrompt`, and ids() the encoding:

        - card, response: the indices of the model card, which tokenizes every prefix again; for k = 1..n
          `len(ids(render(steps[:k]).strip() + ("\\n\\n" if k < n else ""))) - 2`.
          The last one is the control token after the response. Indices may repeat: a last step of one token
          after a merged ".\\n\\n" ends where the step before it ends, with a reward of exactly 0. In a small
          vocabulary, where "\\n\\n" is two tokens, the last index may even be one less than the one before.
          Both are the card's own values, and kept; an index after the last log-prob, where the card's code
          fails, is an InvalidRecord. Where the template strips the response, each prefix is stripped.
        - exact: the token that contains the last character of the "\\n\\n" after the step; for the last step,
          the control token after the response. Never decreases.

        `unfinished`: the last step is terminated by "\\n\\n", and its continuation is not known. Nothing
        after that separator is encoded, and the last step ends at the token that contains its last character,
        in every convention. With `exact` this index stays the same when the solution is continued; the card's
        index would be one or two tokens later. Where the pre-tokenizer looks past the separator (SmolLM2's,
        GPT-2's), that holds for a solution that goes on with anything but a digit or white space: the
        separator is encoded as before a letter.

        Raises NoSteps; InvalidRecord for an empty or white-space step (as by str.isspace), a lone surrogate,
        a text that the template does not write as it is (`TextRule.rejected`), an index outside the
        log-probs that the convention sums, or a text that the tokenizer fails on; TooLong, since nothing is
        truncated.
        """
        check_text(problem, steps)
        self.template.check(problem, steps)
        with tokenizer_faults_as(
            InvalidRecord, "the tokenizer fails on this text", "change or drop the text"
        ):
            return self._encoded(problem, steps, convention, unfinished=unfinished)

    def encode_ids(self, record: TokenRecord, vocab_size: int) -> EncodedPrompt:
        """Return a record of token ids with the log-prob index of each step's end; no id is changed.

        Log-probs are summed from the first response token on. A step ends at its `step_ends`; without them
        at the token that completes a separator, a blank line, and at the last token of the response.

        Raises InvalidRecord for an id outside the vocabulary, or step ends that are outside the response or
        decrease; TooLong.
        """
        ids = np.array(record.prompt_token_ids + record.response_token_ids, np.int64)
        start, count = len(record.prompt_token_ids), len(record.response_token_ids)
        if len(ids) > self.max_tokens:
            raise TooLong(
                f"{len(ids)} tokens exceed the context length of {self.max_tokens}; nothing is truncated"
            )
        outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if outside.size:
            at = int(outside[0])
            where = f"prompt_token_ids[{at}]" if at < start else f"response_token_ids[{at - start}]"
            raise InvalidRecord(f"`{where}` is {ids[at]}, outside the vocabulary of {vocab_size} tokens")
        ends = np.array(record.step_ends or self._separator_ends(ids, start), np.int64)
        wrong = np.flatnonzero((ends < 0) | (ends >= count) | (np.diff(ends, prepend=0) < 0))
        if wrong.size:
            k = int(wrong[0])
            raise InvalidRecord(
                f"`step_ends[{k}]` is {ends[k]}: step ends do not decrease and are in 0..{count - 1}"
            )
        return EncodedPrompt(ids, start, start - 1, start - 1 + ends, special_text=False)

    def _separator_ends(self, ids: np.ndarray, start: int) -> list[int]:
        texts = self.texts(ids.tolist())[start:]
        response, lengths = "".join(texts), np.cumsum([len(text) for text in texts])
        found = [match.end() - 1 for match in re.finditer(rf"(?<=\S){SEPARATOR}", response)]
        last = len(texts) - 1
        return [*dict.fromkeys([*np.searchsorted(lengths, found, side="right").tolist(), last])]

    def _encoded(
        self, problem: str, steps: Sequence[str], convention: Convention, *, unfinished: bool
    ) -> EncodedPrompt:
        turn = self._turn(problem)
        parts = self._normalized(self.template.written(steps, unfinished=unfinished))
        after = SEPARATOR if unfinished else self._response_tail
        segment = self._response_head + SEPARATOR.join(parts) + after
        self._refuse_long(turn, segment)
        user = self._encode(turn)
        assistant = self._encode_before(segment, self._goes_on if unfinished else "")
        end = [] if unfinished else self._end
        ids = [*self._lead, *user.ids, *self._middle, *assistant.ids, *end]
        if len(ids) > self.max_tokens:
            raise TooLong(
                f"{len(ids)} tokens exceed the context length of {self.max_tokens}; nothing is truncated"
            )

        if not len(assistant):
            raise InvalidRecord("the tokenizer gives no token for the steps")

        prompt = len(self._lead) + len(user) + len(self._middle)  # tokens before the segment
        # The end of each step but the last, in characters of the segment.
        lengths = np.array([len(step) + len(SEPARATOR) for step in parts[:-1]], dtype=np.int64)
        behind = len(self._response_head) + np.cumsum(lengths) - len(SEPARATOR)
        if convention is Convention.EXACT:
            separators = _tokens_at(_starts(assistant), behind + len(SEPARATOR) - 1)
            step_ends = prompt + np.append(separators, len(assistant)) - 1
        else:
            stripped = [len(step) - len(self.template.response.right.right(step)) for step in parts[:-1]]
            prefixes = self._prefix_lengths(segment, assistant, behind - np.array(stripped, np.int64))
            lengths = np.append(prefixes + self._card_end_open, len(assistant) + self._card_end)
            step_ends = prompt + self._card_shift + lengths - 2
        if unfinished:
            step_ends[-1] = prompt + len(assistant) - 2
        response_start = prompt + self._opening
        first_summed = 0 if convention is Convention.CARD else response_start - 1
        check_ends(step_ends, first_summed, len(ids) - 1)
        special = self._special.findall(self.template.render(problem, steps)) != self._control_texts
        return EncodedPrompt(np.array(ids, dtype=np.int64), response_start, first_summed, step_ends, special)

    def prefix_ids(self) -> np.ndarray:
        """Return the tokens of the template up to the problem: most records begin with all of them.

        The last of them may become another token where a problem begins with white space.
        """
        return np.array([*self._lead, *self._encode(self._problem_head).ids], dtype=np.int64)

    def prompt_ids(self, problem: str) -> np.ndarray:
        """Return the tokens that a model continues for a problem, int64 [h]: the render up to the response.

        Raises InvalidRecord for a lone surrogate, a text that the template does not write as it is or one
        that the tokenizer fails on; TooLong only where a glance shows it.
        """
        check_unicode("problem", problem)
        self.template.problem.check("problem", problem)
        turn = self._turn(problem)
        with tokenizer_faults_as(
            InvalidRecord, "the tokenizer fails on this text", "change or drop the text"
        ):
            self._refuse_long(turn)
            parts = (self._lead, self._encode(turn).ids, self._middle, self._encode(self._response_head).ids)
        return np.array([*chain.from_iterable(parts)], dtype=np.int64)

    def system_message(self) -> str | None:
        """Return the text of the system message that the template itself adds, None if it adds none."""
        return system_message(self.template.prefix, self._special)

    def rendered_ids(self, text: str) -> list[int]:
        """Return the token ids of a prompt that is written out, template and all; nothing is added.

        Control tokens in it are matched, as transformers, vLLM and SGLang do: a text from elsewhere belongs
        into a record, where it is data. Raises InvalidRecord for a lone surrogate or a text that the
        tokenizer fails on; TooLong for one that is far too long.
        """
        check_unicode("the prompt", text)
        with tokenizer_faults_as(
            InvalidRecord, "the tokenizer fails on this text", "change or drop the text"
        ):
            self._refuse_long(*self._special.split(text))
            return self._literal_ids(text)

    def control_tokens(self, text: str) -> list[str]:
        """Return the control tokens that a text spells, in their order."""
        return self._special.findall(text)

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """Return the text that each token adds; a character of several tokens comes with the last one."""
        return self._token_texts.of(token_ids)

    def _refuse_long(self, *texts: str) -> None:
        """Raise TooLong where texts that are far too long show it before all of them is encoded."""
        if self._cut is None or sum(map(len, texts)) <= CHARS_PER_TOKEN * self.max_tokens:
            return
        count = least_tokens(texts, self._count, self.max_tokens, self._longest_token, self._cut)
        if count > self.max_tokens:
            limit = self.max_tokens
            raise TooLong(
                f"at least {count} tokens exceed the context length of {limit}; nothing is truncated"
            )

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._tokenizer.get_vocab()))  # a character of the vocabulary is a byte or more

    def _prefix_lengths(self, segment: str, encoding: Encoding, behind: np.ndarray) -> np.ndarray:
        """Return the number of tokens of the segment cut after each step, followed by the suffix's own text.

        A cut before the separator, or before the white space at a step's end that the template strips,
        changes no pre-token before the one that contains the last character (`PreTokenizer.is_local`): only
        from there to the cut is encoded again.

        This does not hold for a step whose last pre-token contains an added token's text that was not matched
        there, or was matched with white space after the cut; and never with another pre-tokenizer, text in
        the suffix before its control token, an added token that may cross the cut, or a normalizer that moves
        characters. In these cases whole prefixes are encoded, in time quadratic in the record's length.
        """
        ends = behind.tolist()

        def whole(end: int) -> int:
            return self._count(segment[:end] + self._response_tail)

        if not self._is_local or not unicodedata.is_normalized("NFC", segment):
            return np.array([whole(end) for end in ends], dtype=np.int64)
        starts = _starts(encoding)
        words = np.fromiter(encoding.word_ids, np.int64, len(encoding))
        first = np.searchsorted(words, words[_tokens_at(starts, behind - 1)])
        matched = np.isin(np.array(encoding.ids, dtype=np.int64)[first], self._added_ids)
        pieces = [segment[a:b] for a, b in zip(starts[first].tolist(), ends, strict=True)]
        counts = {piece: self._count(piece) for piece in dict.fromkeys(pieces)}
        holds = {piece: bool(self._added.search(piece)) for piece in counts}
        rows = zip(first.tolist(), pieces, matched.tolist(), ends, strict=True)
        lengths = [at + counts[piece] if holds[piece] == was else whole(end) for at, piece, was, end in rows]
        return np.array(lengths, dtype=np.int64)

    def _normalized(self, steps: Sequence[str]) -> Sequence[str]:
        """Return the steps in NFC, for exact offsets; unchanged where NFC would change an added token."""
        joined = SEPARATOR.join(steps)
        normalizer = self._tokenizer.normalizer
        if normalizer is None or not self._is_local or unicodedata.is_normalized("NFC", joined):
            return steps
        parts = [normalizer.normalize_str(step) for step in steps]  # its own Unicode version, not Python's
        same = self._added.findall(SEPARATOR.join(parts)) == self._added.findall(joined)
        return parts if same else steps

    def _turn(self, problem: str) -> str:
        return self._problem_head + self.template.problem.strip(problem) + self._problem_tail

    def _encode_before(self, text: str, more: str) -> Encoding:
        """Return the tokens of a text that are before `more`, which follows it."""
        encoding = self._encode(text + more)
        if more:
            encoding.truncate(int(np.searchsorted(_starts(encoding), len(text))))
        return encoding

    def _encode(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _count(self, text: str) -> int:
        return len(self._encode(text))

    def _claim_control_tokens(self, added: list[AddedToken]) -> re.Pattern[str]:
        """Return the pattern of all control tokens: those flagged special, and those that literals use."""
        literals = (self.template.prefix, self.template.between, self.template.suffix)
        used = {text for literal in literals for text in self._added.findall(literal)}
        for token in added:
            if token.content in used:
                if token.lstrip or token.rstrip or token.single_word or token.normalized:
                    raise ManifestInvalid(
                        f"control token {token.content!r} has lstrip, rstrip, single_word or normalized set, "
                        "which is not supported"
                    )
                token.special = True
                self._tokenizer.add_special_tokens([token])
        return _any_of(token.content for token in added if token.special)

    def _parts(self, name: str, literal: str) -> tuple[str, str, str]:
        """Return the text before the first control token, from the first to the last, and after the last."""
        matches = list(self._special.finditer(literal))
        if not matches:
            raise ManifestInvalid(f"the template's {name} contains no control token of the tokenizer")
        first, last = matches[0].start(), matches[-1].end()
        return literal[:first], literal[first:last], literal[last:]

    def _literal_ids(self, literal: str) -> list[int]:
        ids: list[int] = []
        position = 0
        for match in self._special.finditer(literal):
            ids += self._encode(literal[position : match.start()]).ids
            ids.append(self._tokenizer.token_to_id(match.group()))
            position = match.end()
        ids += self._encode(literal[position:]).ids
        return ids


def _starts(encoding: Encoding) -> np.ndarray:
    """Return the first character of each token, int64 [tokens], non-decreasing."""
    return np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding))[::2]


def _tokens_at(starts: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """Return the token that contains each character; the last one of a character of several tokens."""
    return np.searchsorted(starts, characters, side="right") - 1


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a leftmost-longest pattern, as the tokenizer matches added tokens; it never matches if empty."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")

"""Problem and steps -> token ids, and the index at which each step is read.

Everything here is about the *render*: prefix + problem + between + "\\n\\n".join(steps) + suffix, the chat
template's output with its literals known since export. The render is cut at the literals' control tokens; the
text between two of them is encoded as one string, because merges may cross from a literal into the text, with
special-token matching off, because text is data.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.decoders import DecodeStream

from stepscore.enums import Convention
from stepscore.errors import InvalidRecord, ManifestInvalid, NoSteps, TooLong
from stepscore.prompt.template import SEPARATOR, Template


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One record, ready for the models."""

    token_ids: np.ndarray  # int64 [L]
    response_start: int  # h: tokens of the render up to and including `between`, encoded with nothing after
    step_ends: np.ndarray  # int64 [n], indices into the log-probs: index j scores token j + 1
    special_text: bool  # the problem or a step spells a control token; it was encoded as ordinary text


class PromptEncoder:
    """Encodes records for one tokenizer and one template; immutable, so threads may share it."""

    def __init__(self, tokenizer_json: str, template: Template, *, max_tokens: int) -> None:
        self.template = template
        self.max_tokens = max_tokens
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.post_processor = None  # adds nothing here, but may trim offsets
        self._tokenizer.encode_special_tokens = True  # as text, that is
        added = list(self._tokenizer.get_added_tokens_decoder().values())
        self._added = _any_of(token.content for token in added)
        self._added_ids = np.array(sorted(self._tokenizer.get_added_tokens_decoder()), dtype=np.int64)
        self._special = self._claim_control_tokens(added)
        literals = (template.prefix, template.between, template.suffix)
        self._control_texts = [text for literal in literals for text in self._special.findall(literal)]

        # Each literal as text | control tokens and what lies between them | text.
        before, core, self._problem_head = self._cut("prefix", template.prefix)
        self._lead = self._literal_ids(before + core)
        self._problem_tail, core, self._response_head = self._cut("between", template.between)
        self._middle = self._literal_ids(core)
        self._response_tail, core, after = self._cut("suffix", template.suffix)
        self._end = self._literal_ids(core + after)

        self._opening = self._count(self._response_head)
        # The card strips the render as a string: what that takes from the front, and what it leaves behind.
        stripped = self._cut("prefix", template.prefix.lstrip())
        self._card_shift = len(self._literal_ids(stripped[0] + stripped[1])) - len(self._lead)
        self._card_end = len(self._literal_ids((core + after).rstrip()))
        self._card_end_open = len(self._literal_ids((core + after).rstrip() + SEPARATOR))
        crossing = any("\n" in token.content for token in added)
        self._is_local = _is_qwen2(tokenizer_json) and not crossing and not self._response_tail

    def encode(
        self, problem: str, steps: Sequence[str], convention: Convention, *, unfinished: bool = False
    ) -> EncodedPrompt:
        """Token ids of the render and the log-prob index of each step's end.

        Token ids equal transformers' `apply_chat_template(tokenize=True)` on any text that spells no control
        token; text that does is encoded as ordinary text, and flagged.

        With index j scoring token j + 1, h as in `EncodedPrompt`, and ids() the encoding:

        - card, response: what the model card's re-tokenisation of prefixes gives, for k = 1..n
          `len(ids(render(steps[:k]).strip() + ("\\n\\n" if k < n else ""))) - 2`.
          Its last index is the control token after the response. The card's indices may stand still: a last
          step of one token after a merged ".\\n\\n" ends where the step before it ends, and earns exactly 0.
          In a small vocabulary, where "\\n\\n" is two tokens, the last index may even lie one before the one
          before it. Both are the card's own values, and kept; an index past the last log-prob, where the
          card's code fails, is an InvalidRecord.
        - exact: the token that holds the last character of the "\\n\\n" after the step; for the last step the
          control token after the response. Never runs backwards.

        `unfinished`: the last step is closed by a "\\n\\n", and what follows is not known yet. Nothing after
        that separator is encoded, and the last step is read at the token that holds its last character, in
        every convention. In `exact` that is the index it keeps when the answer goes on; the card's index is
        one or two tokens further, and they are not there.

        Raises NoSteps; InvalidRecord for an empty or white-space step (as str.isspace has it), a lone
        surrogate, or an index outside the log-probs the convention sums; TooLong, for nothing is truncated.
        """
        _check_text(problem, steps)
        user = self._encode(self._problem_head + problem + self._problem_tail)
        parts = self._normalized(steps)
        after = SEPARATOR if unfinished else self._response_tail
        segment = self._response_head + SEPARATOR.join(parts) + after
        assistant = self._encode(segment)
        end = [] if unfinished else self._end
        ids = [*self._lead, *user.ids, *self._middle, *assistant.ids, *end]
        if len(ids) > self.max_tokens:
            raise TooLong(f"{len(ids)} tokens, the limit is {self.max_tokens}; nothing is ever truncated")

        prompt = len(self._lead) + len(user) + len(self._middle)  # tokens before the segment
        # Behind each step but the last, in characters of the segment.
        lengths = np.array([len(step) + len(SEPARATOR) for step in parts[:-1]], dtype=np.int64)
        behind = len(self._response_head) + np.cumsum(lengths) - len(SEPARATOR)
        if convention is Convention.EXACT:
            separators = _tokens_at(_starts(assistant), behind + len(SEPARATOR) - 1)
            step_ends = prompt + np.append(separators, len(assistant)) - 1
        else:
            prefixes = self._prefix_lengths(segment, assistant, behind)
            lengths = np.append(prefixes + self._card_end_open, len(assistant) + self._card_end)
            step_ends = prompt + self._card_shift + lengths - 2
        if unfinished:
            step_ends[-1] = prompt + len(assistant) - 2
        response_start = prompt + self._opening
        start = 0 if convention is Convention.CARD else response_start - 1
        _check_ends(step_ends, start, len(ids) - 1)
        special = self._special.findall(self.template.render(problem, steps)) != self._control_texts
        return EncodedPrompt(np.array(ids, dtype=np.int64), response_start, step_ends, special)

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """The text that each token adds; a character of several tokens comes with the last of them."""
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(self._tokenizer, token) or "" for token in token_ids]

    def _prefix_lengths(self, segment: str, encoding: Encoding, behind: np.ndarray) -> np.ndarray:
        """Tokens of the segment cut behind each step, encoded with only the suffix's own text after it.

        Qwen2's pattern never looks back, and it looks ahead only from within white space, which before a line
        break is one match with it. So a cut before the separator changes no pre-token before the one that
        holds the step's last character: from there to the cut is all that is encoded again.

        That fails for a step whose last pre-token holds an added token's text that was not matched there, or
        was matched with white space from behind the cut; and altogether with another pre-tokeniser, text in
        the suffix before its control token, an added token that may lie across the cut, or a normaliser that
        moves characters. There prefixes are encoded as a whole, in time quadratic in the record's length.
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
        """The steps as NFC makes them, for exact offsets; as they are where that touches an added token."""
        joined = SEPARATOR.join(steps)
        normalizer = self._tokenizer.normalizer
        if normalizer is None or not self._is_local or unicodedata.is_normalized("NFC", joined):
            return steps
        parts = [normalizer.normalize_str(step) for step in steps]  # its own Unicode version, not Python's
        same = self._added.findall(SEPARATOR.join(parts)) == self._added.findall(joined)
        return parts if same else steps

    def _encode(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _count(self, text: str) -> int:
        return len(self._encode(text))

    def _claim_control_tokens(self, added: list[AddedToken]) -> re.Pattern[str]:
        """The pattern of all control tokens: those flagged special, and those that the literals use."""
        literals = (self.template.prefix, self.template.between, self.template.suffix)
        used = {text for literal in literals for text in self._added.findall(literal)}
        for token in added:
            if token.content in used:
                if token.lstrip or token.rstrip or token.single_word or token.normalized:
                    raise ManifestInvalid(f"the control token {token.content!r} matches by its context")
                token.special = True
                self._tokenizer.add_special_tokens([token])
        return _any_of(token.content for token in added if token.special)

    def _cut(self, name: str, literal: str) -> tuple[str, str, str]:
        """Text before the first control token, all from the first to the last, text after the last."""
        matches = list(self._special.finditer(literal))
        if not matches:
            raise ManifestInvalid(f"the template's {name} holds no control token of the tokenizer")
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


def _check_text(problem: str, steps: Sequence[str]) -> None:
    if not steps:
        raise NoSteps("steps is empty: there is nothing to score")
    for k, step in enumerate(steps):
        if not step.strip():
            raise InvalidRecord(f"steps[{k}] is {'white space' if step else 'empty'}: nothing to score")
        _check_unicode(f"steps[{k}]", step)
    _check_unicode("problem", problem)


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecord(f"{name} holds a lone surrogate at character {error.start}") from None


def _check_ends(step_ends: np.ndarray, start: int, count: int) -> None:
    """No index outside start..count-1 may reach the log-probs, where it would wrap or read another's."""
    outside = np.flatnonzero((step_ends < start) | (step_ends >= count))
    if outside.size:
        k = int(outside[0])
        raise InvalidRecord(
            f"steps[{k}] would be read at log-prob {step_ends[k]}, outside the {start}..{count - 1} summed",
            hint="another convention may fit this tokenizer",
        )


def _starts(encoding: Encoding) -> np.ndarray:
    """First character of each token, int64 [tokens], never decreasing."""
    return np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding))[::2]


def _tokens_at(starts: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """The token that holds each character; the last of them where a character takes several."""
    return np.searchsorted(starts, characters, side="right") - 1


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Leftmost-longest, as the tokenizer matches added tokens; no text at all matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _is_qwen2(tokenizer_json: str) -> bool:
    """Whether text becomes pre-tokens exactly as in Qwen2: NFC or nothing, then its pattern, then bytes."""
    parts: dict[str, Any] = msgspec.json.decode(tokenizer_json)
    match parts.get("normalizer"), parts.get("pre_tokenizer"):
        case (
            None | {"type": "NFC"},
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            },
        ):
            return bool(pattern == _QWEN2_PATTERN)
    return False

"""Scheduling windows: encode records, fill windows, and plan each into batches. Needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stepscore.batching.batch import BatchGroup
from stepscore.batching.given_rows import NO_ROWS, Given
from stepscore.batching.pace import STEADY, Pace
from stepscore.batching.planner import plan
from stepscore.enums import Convention
from stepscore.errors import InputError
from stepscore.prompt.encoder import EncodedPrompt, PromptEncoder
from stepscore.records import Record, TokenRecord, record_from

T = TypeVar("T")

Input = Record | Mapping[str, Any]
"""A record to score; a mapping has the fields of an input line."""


@dataclass(frozen=True, slots=True)
class PlannedItem(Generic[T]):
    """One input: the caller's key, and the encoded prompt or the error that prevents it.

    `tokens`: whether its result has the log-prob of every token. `of_ids`: whether it is a TokenRecord.
    `steps`: the texts of the steps, for the result.
    """

    key: T
    prompt: EncodedPrompt | InputError
    tokens: bool = False
    of_ids: bool = False
    num_chars: int = 0  # of the record that has the error
    steps: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of the prompt, 0 for an error."""
        return 0 if isinstance(self.prompt, InputError) else len(self.prompt.token_ids)

    @property
    def encoded(self) -> EncodedPrompt:
        """Return the prompt of an item that has no error."""
        assert isinstance(self.prompt, EncodedPrompt)
        return self.prompt

    @property
    def first_computed(self) -> int:
        """Return the index of the first log-prob that is computed."""
        return 0 if self.tokens else self.encoded.first_summed


@dataclass(frozen=True, slots=True)
class Window(Generic[T]):
    """Consecutive inputs, the valid ones among them, and the batches planned from these."""

    items: Sequence[PlannedItem[T]]
    valid: Sequence[PlannedItem[T]]
    groups: Sequence[BatchGroup]

    @property
    def num_computed(self) -> int:
        """Return the number of packed tokens of all batches: each prefix counts once a batch."""
        return sum(len(group.batch.input_ids) for group in self.groups)


HELD_CHARS = 1 << 22
"""Most characters of errors that wait in a window behind a record; so they take bounded memory."""
CHARS_OF_ERROR = 1024
"""Number of characters that an error counts as, besides those of its record."""


def fill_windows(
    items: Iterable[T],
    window_tokens: int,
    num_tokens: Callable[[T], int],
    num_chars: Callable[[T], int] = lambda _: 0,
    pauses: Callable[[], bool] = STEADY.pauses,
) -> Iterator[list[T]]:
    """Cut consecutive items into windows of at most `window_tokens` tokens; a longer item is a window alone.

    A window is emitted once it is full. An item of no tokens, an error, joins the window being filled; with
    no item in it, it is emitted at once. Where errors of HELD_CHARS characters (4,096 short ones) wait behind
    a record, its window is emitted before it is full; so it is where `pauses` says True after an item.

    >>> list(fill_windows(["abc", "", "abcd", "abcdefghi", "a", "b"], 7, len))
    [['abc', '', 'abcd'], ['abcdefghi'], ['a', 'b']]
    >>> list(fill_windows(["", "", "abc", ""], 7, len))
    [[''], [''], ['abc', '']]
    """
    window: list[T] = []
    total = held = 0
    for item in items:
        tokens = num_tokens(item)
        if window and tokens and total + tokens > window_tokens:
            yield window
            window, total, held = [], 0, 0
        window.append(item)
        total += tokens
        held += 0 if tokens else CHARS_OF_ERROR + num_chars(item)
        if not total or total >= window_tokens or held >= HELD_CHARS or pauses():
            yield window
            window, total, held = [], 0, 0
    if window:
        yield window


@dataclass(frozen=True, slots=True)
class WindowPlanner:
    """Turns inputs into planned windows.

    A window has up to `window_tokens` tokens (at least one record), a batch `max_batch_tokens` packed tokens.
    With `tokens` every log-prob of a record of texts is computed, else those that the convention sums. Ids
    outside a vocabulary of `vocab_size` are errors. `share` computes common prefixes of a window once;
    `materializes_scores` is passed to `plan`.
    """

    encoder: PromptEncoder
    convention: Convention
    max_batch_tokens: int
    window_tokens: int
    vocab_size: int
    tokens: bool = False
    share: bool = True
    materializes_scores: bool = True
    given: Given = NO_ROWS

    def of(
        self, items: Iterable[tuple[T, Input | TokenRecord | InputError]], pace: Pace = STEADY
    ) -> Iterator[Window[T]]:
        """Encode records, fill windows and plan each; an error takes no room in a window.

        So an invalid record changes no other record's batch, unless thousands wait behind a record.
        """
        encoded = (self.encoded(key, record) for key, record in items)
        sizes = (lambda item: item.num_tokens), (lambda item: item.num_chars)
        for window in fill_windows(encoded, self.window_tokens, *sizes, pace.pauses):
            yield self.planned(window)

    def encoded(
        self, key: T, given: Input | TokenRecord | InputError, *, tokens: bool = False
    ) -> PlannedItem[T]:
        """Return a record's token ids, or the error that prevents them, with its key; may run in any thread.

        `tokens` asks for every log-prob of this record, as the planner's own `tokens` does for all.
        """
        if isinstance(given, InputError):
            return PlannedItem(key, given)
        num_chars = 0
        try:
            if isinstance(given, TokenRecord):
                prompt = self.encoder.encode_ids(given, self.vocab_size)
                return PlannedItem(key, prompt, of_ids=True)
            record = given if isinstance(given, Record) else record_from(given)
            num_chars = len(record.problem) + sum(map(len, record.steps))
            prompt = self.encoder.encode(
                record.problem, record.steps, self.convention, unfinished=record.unfinished
            )
            return PlannedItem(key, prompt, tokens=tokens or self.tokens, steps=record.steps)
        except InputError as error:
            return PlannedItem(key, error.untraced(), num_chars=num_chars)

    def planned(self, items: Sequence[PlannedItem[T]]) -> Window[T]:
        """Plan the batches of one window."""
        valid = [item for item in items if not isinstance(item.prompt, InputError)]
        groups = plan(
            [item.encoded.token_ids for item in valid],
            [item.first_computed for item in valid],
            self.max_batch_tokens,
            share=self.share,
            materializes_scores=self.materializes_scores,
            given=self.given,
        )
        return Window(items, valid, groups)

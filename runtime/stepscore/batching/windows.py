"""Records -> windows: encoded, and planned into batches. No model is needed for that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stepscore.batching.batch import BatchGroup
from stepscore.batching.given_rows import NO_ROWS, GivenRows
from stepscore.batching.planner import plan
from stepscore.enums import Convention
from stepscore.errors import InputError
from stepscore.prompt.encoder import EncodedPrompt, PromptEncoder
from stepscore.records import Record, record_from

T = TypeVar("T")

Input = Record | Mapping[str, Any]
"""What can be scored; a mapping has the fields of a line of JSON."""


@dataclass(frozen=True, slots=True)
class PlannedItem(Generic[T]):
    """One input on its way: what the caller wants back, and the prompt or why there is none."""

    key: T
    prompt: EncodedPrompt | InputError

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt; an error has none."""
        return 0 if isinstance(self.prompt, InputError) else len(self.prompt.token_ids)


@dataclass(frozen=True, slots=True)
class Window(Generic[T]):
    """Consecutive inputs, the prompts among them, and the batches these make: groups of prompts."""

    items: Sequence[PlannedItem[T]]
    prompts: Sequence[EncodedPrompt]
    groups: Sequence[BatchGroup]


@dataclass(frozen=True, slots=True)
class WindowPlanner:
    """How inputs become windows.

    A window holds up to `window_tokens` tokens (at least one record), a batch `max_batch_tokens` distinct
    ones. With `tokens` every log-prob is computed, else those that the convention sums; `share` computes once
    what records of a window begin with alike; `materializes_scores` is a matter of the plan.
    """

    encoder: PromptEncoder
    convention: Convention
    max_batch_tokens: int
    window_tokens: int
    tokens: bool = False
    share: bool = True
    materializes_scores: bool = True
    given: GivenRows = NO_ROWS

    def of(self, items: Iterable[tuple[T, Input | InputError]]) -> Iterator[Window[T]]:
        """Encode and plan; an error that no record of its window stands before is a window by itself.

        Windows are filled with valid records only: a bad one changes no other record's batch.
        """
        waiting: list[PlannedItem[T]] = []
        tokens = 0
        for key, record in items:
            item = self._encode(key, record)
            if not item.num_tokens and not waiting:
                yield self._planned([item])
                continue
            if item.num_tokens and waiting and tokens + item.num_tokens > self.window_tokens:
                yield self._planned(waiting)
                waiting, tokens = [], 0
            waiting.append(item)
            tokens += item.num_tokens
        if waiting:
            yield self._planned(waiting)

    def first_summed(self, prompt: EncodedPrompt) -> int:
        """Return the first log-prob that the convention sums."""
        return 0 if self.convention is Convention.CARD else prompt.response_start - 1

    def first_computed(self, prompt: EncodedPrompt) -> int:
        """Return the first log-prob that is computed."""
        return 0 if self.tokens else self.first_summed(prompt)

    def texts(self, prompt: EncodedPrompt) -> list[str]:
        """Return the text that each token adds."""
        return self.encoder.texts(prompt.token_ids.tolist())

    def _encode(self, key: T, given: Input | InputError) -> PlannedItem[T]:
        if isinstance(given, InputError):
            return PlannedItem(key, given)
        try:
            record = given if isinstance(given, Record) else record_from(given)
            prompt = self.encoder.encode(
                record.problem, record.steps, self.convention, unfinished=record.unfinished
            )
            return PlannedItem(key, prompt)
        except InputError as error:
            return PlannedItem(key, error)

    def _planned(self, items: Sequence[PlannedItem[T]]) -> Window[T]:
        prompts = [item.prompt for item in items if not isinstance(item.prompt, InputError)]
        sequences = [prompt.token_ids for prompt in prompts]
        starts = [self.first_computed(prompt) for prompt in prompts]
        groups = plan(
            sequences,
            starts,
            self.max_batch_tokens,
            share=self.share,
            materializes_scores=self.materializes_scores,
            given=self.given,
        )
        return Window(items, prompts, groups)

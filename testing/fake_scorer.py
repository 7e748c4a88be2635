"""A scorer with the signatures of the real one and no model: its numbers are made of the text.

It holds back `window` valid records before it answers, as a real one holds back a batch. Run as a script it
is the command line with this scorer in it, which takes FAKE_SECONDS a window.
"""

from __future__ import annotations

import os
import signal
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from stepscore.batching.pace import STEADY, Pace
from stepscore.cli.main import main
from stepscore.errors import InputError, NonFinite, NoSteps, TooLong
from stepscore.records import AnyRecord, Record, TokenRecord
from stepscore.results import TokenResult
from stepscore.scorer import Scorer

T = TypeVar("T")


@dataclass
class FakeResult:
    cumulative_rewards: list[float]
    step_rewards: list[float]
    outcome_reward: float
    num_tokens: int
    step_ends: list[int]
    special_text: bool = False
    response_start: int = 1
    first_summed: int = 0
    token_ids: Any = None
    policy_logprobs: Any = None
    reference_logprobs: Any = None
    token_texts: Any = None


@dataclass
class FakeScorer:
    window: int = 3
    pair: str = "fake"
    beta: float = 0.001
    convention: str = "card"
    tokens: bool = False
    max_tokens: int = 4096
    seconds: float = 0.0
    scored: list[AnyRecord] = field(default_factory=list)

    @classmethod
    def load(cls, pair: object, **options: Any) -> FakeScorer:
        """What `Scorer.load` is replaced by."""
        return cls(
            pair=str(pair),
            beta=options["beta"] or 0.001,
            convention=options["convention"],
            tokens=options["tokens"],
            seconds=float(os.environ.get("FAKE_SECONDS", "0")),
        )

    def __enter__(self) -> FakeScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def fingerprint(self) -> dict[str, str]:
        return {"pair": self.pair, "beta": repr(self.beta), "convention": self.convention}

    def stream(
        self, items: Iterable[tuple[T, AnyRecord | InputError]], pace: Pace = STEADY
    ) -> Iterator[tuple[T, FakeResult | TokenResult | InputError | NonFinite]]:
        waiting: list[tuple[T, AnyRecord | InputError]] = []
        valid = 0
        for key, record in items:
            checked = self._check(record)
            waiting.append((key, checked))
            valid += not isinstance(checked, InputError)
            pace.engine_waits(True)
            if valid == self.window or pace.pauses():
                yield from self._flush(waiting)
                waiting, valid = [], 0
        yield from self._flush(waiting)

    def _check(self, record: AnyRecord | InputError) -> AnyRecord | InputError:
        if isinstance(record, InputError):
            return record
        if isinstance(record, TokenRecord):
            return TooLong("too many ids") if record.num_tokens > self.max_tokens else record
        if not record.steps:
            return NoSteps("there are no steps")
        if len(record.problem) + sum(map(len, record.steps)) > self.max_tokens:
            return TooLong("too many characters")
        return record

    def _flush(
        self, waiting: list[tuple[T, AnyRecord | InputError]]
    ) -> Iterator[tuple[T, FakeResult | TokenResult | InputError | NonFinite]]:
        time.sleep(self.seconds)
        for key, item in waiting:
            if isinstance(item, TokenRecord):
                yield key, self._token_result(item)
            else:
                yield key, item if isinstance(item, InputError) else self._result(item)

    def _token_result(self, record: TokenRecord) -> TokenResult:
        """Each token has its id as its log-ratio; a step ends where it is told, or at the last token."""
        self.scored.append(record)
        ratios = np.array(record.response_token_ids, np.float64)
        ends = list(record.step_ends or [len(ratios) - 1])
        cumulative = self.beta * np.cumsum(ratios)[ends]
        reference = np.full(len(ratios), -0.1, np.float32)
        return TokenResult(
            policy_logprobs=(reference + ratios).astype(np.float32),
            reference_logprobs=reference,
            token_rewards=(self.beta * ratios).astype(np.float32),
            step_ends=ends,
            cumulative_rewards=cumulative.tolist(),
            step_rewards=np.diff(cumulative, prepend=0.0).tolist(),
            outcome_reward=float(cumulative[-1]),
        )

    def _result(self, record: Record) -> FakeResult | NonFinite:
        self.scored.append(record)
        if record.problem == "nan":
            return NonFinite("a log-probability is not finite")
        rewards = [self.beta * (zlib.crc32(step.encode()) / 2**31 - 1) for step in record.steps]
        cumulative = np.cumsum(rewards)
        length = len(record.problem) + sum(map(len, record.steps))
        result = FakeResult(
            cumulative_rewards=cumulative.tolist(),
            step_rewards=rewards,
            outcome_reward=float(cumulative[-1]),
            num_tokens=length,
            step_ends=list(range(len(rewards))),
            special_text="<|im_end|>" in record.problem,
        )
        if self.tokens:
            result.token_ids = np.arange(length)
            result.token_texts = list(record.problem + "".join(record.steps))
            result.policy_logprobs = np.linspace(-1, 0, length - 1, dtype=np.float32)
            result.reference_logprobs = np.full(length - 1, -0.1, np.float32)
        return result


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell takes it away from what runs behind it
    Scorer.load = FakeScorer.load  # type: ignore[assignment,method-assign]
    main()

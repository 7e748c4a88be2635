"""Estimate the time of a run from a short measurement: a few of its records, scored with its settings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepscore.batching.windows import WindowPlanner
from stepscore.cli.results import TimeNeed
from stepscore.cli.run_job import load_scorer
from stepscore.errors import StepscoreError
from stepscore.extras import missing_extra
from stepscore.memory.settings import Settings
from stepscore.records import AnyRecord
from stepscore.scorer import Scorer
from stepscore.system import available_bytes

FEW_TOKENS = 256
"""Tokens of the first measurement; it decides how many records the second one can have."""
SECONDS = 10.0
"""Time that the second measurement may take, as the first one predicts it."""


@dataclass(slots=True)
class Sample:
    """First records of a file, of at most `most_tokens` tokens but at least one record."""

    most_tokens: int = 0
    records: list[AnyRecord] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, record: Any, num_tokens: int) -> None:
        """Take a record while there is room."""
        if not self.records or sum(self.tokens) + num_tokens <= self.most_tokens:
            self.records.append(record)
            self.tokens.append(num_tokens)

    def first(self, tokens: float) -> int:
        """Return how many records have at most this many tokens together, at least one.

        >>> Sample(99, ["a", "b", "c"], [5, 5, 5]).first(12.0)
        2
        """
        total = 0
        for index, each in enumerate(self.tokens):
            total += each
            if total > tokens:
                return max(index, 1)
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """Why a time is unknown."""

    reason: str


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured: seconds to load a pair and score a first record, then of a window and of a token in it."""

    load_seconds: float
    window_seconds: float
    token_seconds: float
    records: int
    tokens: int

    def of_run(self, *, windows: int, computed: int, tokens: int) -> TimeNeed:
        """Return the time of a run: load + windows x window_seconds + computed x token_seconds."""
        scoring = windows * self.window_seconds + computed * self.token_seconds
        return TimeNeed(
            seconds=self.load_seconds + scoring,
            load_seconds=self.load_seconds,
            tokens_per_second=tokens / scoring,
            measured_records=self.records,
            measured_tokens=self.tokens,
        )


def reason_not_to_measure(sample: Sample, needed: int, settings: Settings) -> NotMeasured | None:
    """Return why no pair should be loaded: nothing to score, or less free memory than `needed`."""
    if not sample.records:
        return NotMeasured("no record can be scored")
    free = None if settings.on_gpu else available_bytes()
    if free is not None and needed > free:
        return NotMeasured(f"{free / 1e9:,.2f} GB of memory are free")
    return None


def measure(path: Path, load: dict[str, Any], sample: Sample, planner: WindowPlanner) -> Speed | NotMeasured:
    """Load a pair as the run would, and time one record, a few, then as many as SECONDS allow.

    The first record reads weights from disk that are not in memory yet, which a run does once too.
    """
    started = time.perf_counter()
    try:
        with load_scorer(path, load) as scorer:
            _seconds(scorer, sample.records[:1])
            loaded = time.perf_counter() - started
            few = sample.first(FEW_TOKENS)
            first = _seconds(scorer, sample.records[:few])
            tokens = sum(sample.tokens[:few])
            more = max(sample.first(tokens * SECONDS / first), few)
            second = _seconds(scorer, sample.records[:more]) if more > few else first
    except StepscoreError as error:
        return NotMeasured(error.message)
    except ModuleNotFoundError as error:
        fault = missing_extra(error)
        if fault is None:
            raise
        return NotMeasured(fault.message)
    costs = _computed(planner, sample.records[:few]), _computed(planner, sample.records[:more])
    window, token = _fitted((costs[0], first), (costs[1], second))
    return Speed(loaded, window, token, more, sum(sample.tokens[:more]))


def _fitted(few: tuple[int, float], more: tuple[int, float]) -> tuple[float, float]:
    """Return seconds of a window and of a token, by two windows of (computed tokens, seconds).

    A window costs time of its own where weights are streamed for it. Where the second window is not longer in
    proportion, all its time is that of its tokens.

    >>> _fitted((100, 2.0), (300, 4.0)), _fitted((100, 1.0), (300, 3.0)), _fitted((100, 1.0), (100, 1.0))
    ((1.0, 0.01), (0.0, 0.01), (0.0, 0.01))
    """
    (a, first), (b, second) = few, more
    window = max((first * b - second * a) / (b - a), 0.0) if b > a and second > first else 0.0
    return window, (second - window) / b


def _seconds(scorer: Scorer, records: Sequence[AnyRecord]) -> float:
    started = time.perf_counter()
    for _, outcome in scorer.stream(enumerate(records)):
        if isinstance(outcome, StepscoreError):
            raise outcome
    return time.perf_counter() - started


def _computed(planner: WindowPlanner, records: Sequence[AnyRecord]) -> int:
    return sum(window.num_computed for window in planner.of(enumerate(records)))

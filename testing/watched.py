"""A scorer with what its engine computes, and what it reads, taken down."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from testing.solutions import load

from stepscore.artifact.manifest import ModelName
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.engine.base import Engine, PairLogprobs
from stepscore.records import Record


class WatchedEngine(Engine):
    """An open engine, which stays open: its windows and batches are noted, its log-probs may be changed."""

    def __init__(
        self, inner: Engine, change: Callable[[Batch, PairLogprobs], None] = lambda *_: None
    ) -> None:
        self.inner, self.change = inner, change
        self.provider, self.given = inner.provider, inner.given
        self.windows: list[list[Batch]] = []
        self.computed = 0
        """Batches."""
        self.error: type[BaseException] | None = None
        """What the next window is answered with."""
        self.closed = False

    @classmethod
    def check(cls, pair: Pair) -> None:
        pass

    def run(self, batches: Sequence[Batch]) -> Generator[PairLogprobs]:
        if self.error is not None:
            raise self.error
        self.windows.append(list(batches))
        for batch, logprobs in zip(batches, self.inner.run(batches), strict=True):
            self.computed += 1
            self.change(batch, logprobs)
            yield logprobs

    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]:
        return self.inner.trace(batch)

    def close(self) -> None:
        self.closed = True

    def rows(self) -> int:
        """Return how many tokens were computed."""
        return sum(len(batch.input_ids) for window in self.windows for batch in window)


class Watched:
    """A scorer over an open engine of its pair, and how far its input was read."""

    def __init__(self, pair: Path, engine: Engine, **options: object) -> None:
        self.engine = WatchedEngine(engine)
        self.scorer = load(pair, engine=self.engine, **options)
        self.read = 0
        self.readers: set[int] = set()

    def source(self, records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        """Yield the records with their numbers, noting how many and in which thread."""
        for self.read, record in enumerate(records, start=1):
            self.readers.add(threading.get_ident())
            yield self.read, record

"""A few solutions to score, and the scorer of a pair with what its engine computes taken down."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stepscore import scorer as scorer_module
from stepscore.artifact.manifest import ModelName
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch
from stepscore.engine import engine_of, open_engine
from stepscore.engine.base import Engine, EngineOptions, PairLogprobs
from stepscore.records import Record, Result
from stepscore.scorer import Scorer

SOLUTIONS = [
    Record("1 + 1?", ("1 + 1 = 2.", "So 2.")),
    Record("A much longer problem, with 3 pens in each of 12 boxes.", ("12 * 3 = 36.",)),
    Record("x?", ("First.", "Then, at some length, the same once more.", "Last.", "Done.")),
    Record("2 + 2?", ("5",)),
]
SAMPLES = [
    Record(f"How many pens are in {problem} boxes of 12?", ("12 pens a box.", f"So {sample}."))
    for sample in range(3)
    for problem in range(2)
]
"""Three samples of each of two problems, which share a prefix; no two of a problem are neighbours."""


def load(pair: Path, **options: object) -> Scorer:
    """Load a scorer, whatever the options are."""
    return Scorer.load(pair, **options)  # type: ignore[arg-type]


def alone(scorer: Scorer, record: Record) -> Result:
    """Score one record."""
    (result,) = scorer.score([record])
    return result


class WatchedEngine(Engine):
    """An engine that notes the windows it is asked for and counts the batches it has computed."""

    def __init__(self, pair: Pair, options: EngineOptions | None = None) -> None:
        self.inner = open_engine(pair, options)
        self.provider = self.inner.provider
        self.windows: list[list[Batch]] = []
        self.computed = 0
        self.error: type[BaseException] | None = None
        """What the next window is answered with."""

    @classmethod
    def check(cls, pair: Pair) -> None:
        engine_of(pair.manifest.format).check(pair)

    def run(self, batches: Sequence[Batch]) -> Iterator[PairLogprobs]:
        if self.error is not None:
            raise self.error
        self.windows.append(list(batches))
        for logprobs in self.inner.run(batches):
            self.computed += 1
            yield logprobs

    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]:
        return self.inner.trace(batch)

    def close(self) -> None:
        self.inner.close()


class Watched:
    """A pair's scorer, what its engine was asked for, and how far its input was read."""

    def __init__(self, pair: Path, **options: object) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scorer_module, "open_engine", self._open)
            self.scorer = load(pair, **options)
        self.read = 0
        self.readers: set[int] = set()

    def _open(self, pair: Pair, options: EngineOptions | None) -> Engine:
        self.engine = WatchedEngine(pair, options)
        return self.engine

    @property
    def windows(self) -> list[list[Batch]]:
        """The windows the engine was asked for."""
        return self.engine.windows

    @property
    def computed(self) -> int:
        """How many batches the engine has computed."""
        return self.engine.computed

    def source(self, records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        """Yield the records with their numbers, noting how many and in which thread."""
        for self.read, record in enumerate(records, start=1):
            self.readers.add(threading.get_ident())
            yield self.read, record

    def rows(self) -> int:
        """Return how many tokens the engine computed."""
        return sum(len(batch.input_ids) for window in self.windows for batch in window)

"""stepscore itself, as `Scorer` runs it: windows of sequences, planned into packed batches, then run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.contender import Models, PairLogprobs, Tokens

from stepscore.artifact import Pair
from stepscore.bench import windows
from stepscore.engines import EngineOptions, PairEngine, open_engine
from stepscore.memory import BATCH_TOKENS, WINDOW_BATCHES
from stepscore.plan import plan


@dataclass(frozen=True, slots=True)
class Ours:
    """An exported pair; `share` computes every distinct prefix of a window once."""

    form: str
    pair: Path
    threads: int
    share: bool = True

    @property
    def name(self) -> str:
        """Return the name in tables."""
        return f"stepscore {self.form}" + ("" if self.share else ", prefixes not shared")

    def prepare(self, models: Models) -> None:
        """The pair is exported already."""

    def load(self, models: Models) -> LoadedPair:
        """Open the pair; the checkpoints are not needed any more."""
        return LoadedPair(open_engine(Pair.open(self.pair), EngineOptions(threads=self.threads)), self.share)


@dataclass(frozen=True, slots=True)
class LoadedPair:
    """An engine and how its windows are planned."""

    engine: PairEngine
    share: bool

    def logprobs(self, sequences: Sequence[Tokens]) -> list[PairLogprobs]:
        """Score window after window; planning is part of the work."""
        cut = windows(sequences, WINDOW_BATCHES * BATCH_TOKENS)
        return [each for window in cut for each in self._window(window)]

    def _window(self, window: Sequence[Tokens]) -> list[PairLogprobs]:
        groups = plan(window, [0] * len(window), BATCH_TOKENS, share=self.share)
        results: dict[int, PairLogprobs] = {}
        for group, logprobs in zip(groups, self.engine.run([group.batch for group in groups]), strict=True):
            for member, pairs in zip(group.members, group.batch.pairs, strict=True):
                results[member] = logprobs["policy"][pairs], logprobs["reference"][pairs]
        return [results[member] for member in range(len(window))]

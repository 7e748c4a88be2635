"""stepscore, run as `Scorer` runs it: windows of sequences, planned into packed batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.contender import Checkpoints, SequenceLogprobs, Tokens

from stepscore.artifact.pair import Pair
from stepscore.batching.windows import fill_windows
from stepscore.bench import planned
from stepscore.engine import open_engine
from stepscore.engine.base import Engine, EngineOptions
from stepscore.enums import Residency
from stepscore.memory.fit import fit_settings
from stepscore.memory.settings import Settings, usual_batch_tokens


@dataclass(frozen=True, slots=True)
class StepscorePair:
    """An exported pair; `share` switches prefix sharing within a window on."""

    form: str
    pair: Path
    threads: int
    share: bool = True

    @property
    def name(self) -> str:
        """Return the name in tables."""
        return f"stepscore {self.form}" + ("" if self.share else ", prefixes not shared")

    def prepare(self, models: Checkpoints) -> None:
        """Do nothing: the pair is exported already."""

    def load(self, models: Checkpoints) -> LoadedPair:
        """Open the pair; the checkpoints are not used."""
        pair = Pair.open(self.pair)
        tokens = usual_batch_tokens(pair.manifest)  # not what free memory suggests: other engines are loaded
        settings = fit_settings(pair.manifest, residency=Residency.RESIDENT, max_batch_tokens=tokens)
        options = EngineOptions(threads=self.threads, head_rows=settings.head_rows)
        return LoadedPair(open_engine(pair, options), settings, self.share)


@dataclass(frozen=True, slots=True)
class LoadedPair:
    """An engine, and how its windows are planned."""

    engine: Engine
    settings: Settings
    share: bool = True

    def logprobs(self, sequences: Sequence[Tokens]) -> list[SequenceLogprobs]:
        """Score window by window; planning is timed too."""
        cut = fill_windows(sequences, self.settings.window_tokens, len)
        return [each for window in cut for each in self.window(window)]

    def window(self, window: Sequence[Tokens]) -> list[SequenceLogprobs]:
        """Score sequences as one window."""
        groups = planned(window, self.settings, share=self.share)
        results: dict[int, SequenceLogprobs] = {}
        for group, logprobs in zip(groups, self.engine.run([group.batch for group in groups]), strict=True):
            for member, pairs in zip(group.members, group.batch.target_of, strict=True):
                results[member] = logprobs["policy"][pairs], logprobs["reference"][pairs]
        return [results[member] for member in range(len(window))]

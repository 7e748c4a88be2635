"""What runs a pair: an engine for each format, all with one face.

ONNX Runtime's is here (engine.py). The others come by entry point: a package registers a PairEngine in the
group `stepscore.engines`, under the name of the format; it is imported when a pair of that format is opened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import ModelName
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch, pack
from stepscore.batching.given_rows import NO_ROWS, GivenRows
from stepscore.enums import Provider, Residency

PairLogprobs = dict[ModelName, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to run; none of it changes a number by more than rounding."""

    provider: Provider = Provider.AUTO
    residency: Residency = Residency.RESIDENT
    threads: int | None = None
    gpu_mem_limit: int | None = None
    head_rows: int | None = None
    prefetch_next_layer: bool = True
    """Whether `stream` opens the next layer while one is run: faster, and one layer more in memory."""

    @property
    def by_batch(self) -> bool:
        """Whether a batch goes through everything before the next one."""
        return self.residency in {Residency.RESIDENT, Residency.AUTO}


class Engine(ABC):
    """An open pair, ready to run windows of batches."""

    provider: Provider
    """What it runs on: cpu or cuda."""
    given: GivenRows = NO_ROWS
    """Rows that batches may be planned with: they are known."""

    @abstractmethod
    def __init__(self, pair: Pair, options: EngineOptions | None = None) -> None:
        """Load what stays in memory; raise ProviderUnavailable or PairIncompatible."""

    @classmethod
    @abstractmethod
    def check(cls, pair: Pair) -> None:
        """Raise ProviderUnavailable unless this machine has what the pair needs; load no model."""

    @abstractmethod
    def run(self, batches: Sequence[Batch]) -> Iterator[PairLogprobs]:
        """Give the log-probs (nats, float32 [g + t], see Batch) of each batch, by model, in order."""

    @abstractmethod
    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]:
        """Return the hidden rows [m, hidden_size] that the head reads as well, by model."""

    @abstractmethod
    def close(self) -> None:
        """Release the models and their memory."""

    def logprobs(
        self, sequences: list[NDArray[np.int64]]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Return (policy, reference) log-probs [L-1] of each sequence [L], all in one batch."""
        batch = pack(sequences, [0] * len(sequences), given=self.given)
        (results,) = self.run([batch])
        return [(results["policy"][pairs], results["reference"][pairs]) for pairs in batch.target_of]


@dataclass(frozen=True, slots=True)
class LogSoftmaxAccumulator:
    """logit - log-sum-exp of targets [t], float64, summed over tiles of the vocabulary in their order."""

    logits: NDArray[np.float64]
    log_sums: NDArray[np.float64]

    @classmethod
    def of(cls, batch: Batch) -> LogSoftmaxAccumulator:
        """Begin with no tile."""
        count = len(batch.target_ids)
        return cls(np.zeros(count), np.full(count, -np.inf))

    def add(self, pairs: slice, parts: NDArray[np.float32]) -> None:
        """Take a head's parts [pairs, 2, tiles]: the target's logit, 0 in tiles without it; log-sum-exp."""
        for logit, log_sum in parts.transpose(2, 1, 0):
            self.logits[pairs] += logit
            self.log_sums[pairs] = np.logaddexp(self.log_sums[pairs], log_sum)

    def total(self) -> NDArray[np.float32]:
        """Return the log-probs, once all tiles are in; not finite where a logit was not."""
        with np.errstate(invalid="ignore"):
            return (self.logits - self.log_sums).astype(np.float32)

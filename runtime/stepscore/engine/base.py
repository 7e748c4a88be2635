"""Interface of engines: ort/ runs pairs of ONNX graphs, pytorch/ runs bitsandbytes pairs.

Another engine is passed to `Scorer.load`, or registered by its package in the entry point group
`stepscore.engines` under the name of the format that it runs.
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
from stepscore.enums import Provider, Residency

PairLogprobs = dict[ModelName, NDArray[np.float32]]
"""Log-probs of a batch's targets by model, nats, float32 [t]."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of an engine; none changes a log-prob by more than rounding."""

    provider: Provider = Provider.AUTO
    residency: Residency = Residency.RESIDENT
    threads: int | None = None
    gpu_mem_limit: int | None = None
    head_rows: int | None = None
    prefetch_next_layer: bool = True
    """Whether `stream` prefetches the next layer while one runs: faster, with one more layer in memory."""

    @property
    def by_batch(self) -> bool:
        """Return whether each batch runs through all layers before the next one."""
        return self.residency in {Residency.RESIDENT, Residency.AUTO}


class Engine(ABC):
    """An open pair that runs windows of batches."""

    provider: Provider
    """Execution provider in use: cpu or cuda."""

    @abstractmethod
    def __init__(self, pair: Pair, options: EngineOptions | None = None) -> None:
        """Load the weights that stay in memory; raise ProviderUnavailable or PairIncompatible."""

    @classmethod
    @abstractmethod
    def check(cls, pair: Pair) -> None:
        """Raise ProviderUnavailable unless this machine can run the pair; load no model."""

    @abstractmethod
    def run(self, batches: Sequence[Batch]) -> Iterator[PairLogprobs]:
        """Yield the log-probs (nats, float32 [t]) of each batch's targets, by model, in order."""

    @abstractmethod
    def trace(self, batch: Batch) -> tuple[dict[ModelName, NDArray[np.floating]], PairLogprobs]:
        """Return the final hidden states [m, hidden_size], the head's input, by model, and the log-probs."""

    @abstractmethod
    def close(self) -> None:
        """Release the models and their memory."""

    def logprobs(
        self, sequences: list[NDArray[np.int64]]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Return (policy, reference) log-probs [L-1] of each sequence [L], all in one batch."""
        batch = pack(sequences, [0] * len(sequences))
        (results,) = self.run([batch])
        return [(results["policy"][targets], results["reference"][targets]) for targets in batch.target_of]


@dataclass(frozen=True, slots=True)
class LogSoftmaxAccumulator:
    """Log-probs of targets [t], logit - log-sum-exp in float64, summed over vocabulary tiles in order."""

    logits: NDArray[np.float64]
    log_sums: NDArray[np.float64]

    @classmethod
    def of(cls, batch: Batch) -> LogSoftmaxAccumulator:
        """Return an accumulator without any tile."""
        count = len(batch.target_ids)
        return cls(np.zeros(count), np.full(count, -np.inf))

    def add(self, targets: slice, parts: NDArray[np.float32]) -> None:
        """Add a head's outputs [targets, 2, tiles]: the target's logit (0 in other tiles) and log-sum-exp."""
        for logit, log_sum in parts.transpose(2, 1, 0):
            self.logits[targets] += logit
            self.log_sums[targets] = np.logaddexp(self.log_sums[targets], log_sum)

    def total(self) -> NDArray[np.float32]:
        """Return the log-probs after all tiles; not finite where a logit is not."""
        with np.errstate(invalid="ignore"):
            return (self.logits - self.log_sums).astype(np.float32)

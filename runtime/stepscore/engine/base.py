"""Interface of engines: ort/ runs pairs of ONNX graphs, pytorch/ runs bitsandbytes pairs.

Another engine is passed to `Scorer.load`, or registered by its package in the entry point group
`stepscore.engines` under the name of the format that it runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import ModelName
from stepscore.artifact.pair import Pair
from stepscore.batching.batch import Batch, pack
from stepscore.batching.given_rows import NO_ROWS, Given
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
    """Most bytes of a GPU that PyTorch may take; ONNX pairs keep to a limit by their settings."""
    head_rows: int | None = None
    resident_stages: int = 0
    """With `partial`: how many layers and parts of the head stay on the device."""
    prefetch_next_layer: bool = True
    """Whether `stream` prefetches the next layer while one runs: faster, with one more layer in memory."""
    prefix_cache: int = 0
    """Bytes in which an engine with `resident` weights keeps prefixes of earlier batches; 0: none is kept."""

    @property
    def by_batch(self) -> bool:
        """Return whether each batch runs through all layers before the next one."""
        return self.residency in {Residency.RESIDENT, Residency.AUTO}


class Engine(ABC):
    """An open pair that runs windows of batches."""

    provider: Provider
    """Execution provider in use: cpu or cuda."""
    given: Given = NO_ROWS
    """Packed tokens that batches may be planned with: they need not be computed."""

    @abstractmethod
    def __init__(self, pair: Pair, options: EngineOptions | None = None) -> None:
        """Load the weights that stay in memory; raise ProviderUnavailable or PairIncompatible."""

    @classmethod
    @abstractmethod
    def check(cls, pair: Pair) -> None:
        """Raise ProviderUnavailable unless this machine can run the pair; load no model."""

    def prepare(self, batches: Sequence[Batch]) -> None:  # noqa: B027 (an engine may need nothing)
        """Do what a window needs before it runs, while another one runs; called from another thread."""

    @abstractmethod
    def run(self, batches: Sequence[Batch]) -> Generator[PairLogprobs]:
        """Yield the log-probs (nats, float32 [g + t], see Batch) of each batch, by model, in order.

        Closing the generator leaves out the batches that have not run. Several may be open at once, and
        advance in turns, each by whole batches: nothing that another one changes is needed across a yield.
        """

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
        batch = pack(sequences, [0] * len(sequences), given=self.given)
        (results,) = self.run([batch])
        return [(results["policy"][targets], results["reference"][targets]) for targets in batch.target_of]


def logprobs_of(parts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log-probs [t] (nats): logit - log-sum-exp of the log-sum-exps of all tiles, in float64.

    `parts` [t, 2, tiles] are a head's outputs: the target's logit (0 in other tiles) and the log-sum-exp of
    each tile. Not finite where a logit is not.
    """
    logits, log_sums = parts[:, 0].astype(np.float64), parts[:, 1].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        most = log_sums.max(axis=1, initial=-np.inf)
        total = most + np.log(np.exp(log_sums - most[:, None]).sum(axis=1))
        return np.asarray(logits.sum(axis=1) - total, np.float32)

"""Interface of the engines that are compared: token ids in, log-probs of policy and reference out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
SequenceLogprobs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Log-probs of one sequence: policy and reference, float32 [L-1], nats; element j scores token j + 1."""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The two checkpoints, and a folder for files that contenders make from them."""

    policy: Path
    reference: Path
    scratch: Path


class LoadedEngine(Protocol):
    """Both models in memory, ready to score."""

    def logprobs(self, sequences: Sequence[Tokens]) -> list[SequenceLogprobs]:
        """Score sequences of L >= 2 token ids each, in their order."""


class Contender(Protocol):
    """An engine and its settings; it is pickled into the processes that prepare and load it."""

    @property
    def name(self) -> str:
        """Name in tables: engine, precision, batching."""

    @property
    def threads(self) -> int:
        """Number of CPU threads, the same for all contenders of a run."""

    def prepare(self, models: Checkpoints) -> None:
        """Convert the checkpoints, if the engine needs other files; runs in a separate process."""

    def load(self, models: Checkpoints) -> LoadedEngine:
        """Load both models; raise ModuleNotFoundError if a package is missing."""

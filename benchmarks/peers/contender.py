"""The job of every engine that is compared: token ids in, log-probs of policy and reference out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
PairLogprobs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Policy and reference, float32 [L-1], nats: element j scores token j + 1."""


@dataclass(frozen=True, slots=True)
class Models:
    """The two checkpoints, and a folder where a contender may write what it makes of them."""

    policy: Path
    reference: Path
    scratch: Path


class Loaded(Protocol):
    """Both models in memory, ready to score."""

    def logprobs(self, sequences: Sequence[Tokens]) -> list[PairLogprobs]:
        """Score sequences of L >= 2 token ids each, in their order."""


class Contender(Protocol):
    """An engine and its settings; pickled into the processes that prepare and load it."""

    @property
    def name(self) -> str:
        """What a reader calls it: engine, precision, batching."""

    @property
    def threads(self) -> int:
        """Of the CPU, as many as all others have."""

    def prepare(self, models: Models) -> None:
        """Write what is loaded, if that is not the checkpoints themselves; runs in a process of its own."""

    def load(self, models: Models) -> Loaded:
        """Load both models; ModuleNotFoundError where a package is missing."""

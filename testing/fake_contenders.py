"""Contenders of a benchmark that need no model.

Their processes import this file: nothing of the benchmarks is in it, so that they start fast.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepscore.errors import ProviderUnavailable

Tokens = NDArray[np.int64]
PairLogprobs = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Echo:
    """Says that both models give every token its own id."""

    name: str
    threads: int = 1

    def prepare(self, models: object) -> None:
        pass

    def load(self, models: object) -> Echo:
        return self

    def logprobs(self, sequences: Sequence[Tokens]) -> list[PairLogprobs]:
        return [(each[1:].astype(np.float32), each[1:].astype(np.float32)) for each in sequences]


@dataclass(frozen=True)
class Missing(Echo):
    def load(self, models: object) -> Echo:
        raise ModuleNotFoundError("no such package", name="peer_package")


@dataclass(frozen=True)
class Refusing(Echo):
    def load(self, models: object) -> Echo:
        raise ProviderUnavailable("this CPU saturates", hint="none")


@dataclass(frozen=True)
class Full(Echo):
    def load(self, models: object) -> Echo:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@dataclass(frozen=True)
class Crashing(Echo):
    def logprobs(self, sequences: Sequence[Tokens]) -> list[PairLogprobs]:
        os._exit(132)

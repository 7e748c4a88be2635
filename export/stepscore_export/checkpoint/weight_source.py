"""What everything behind the checkpoint reads of a model: its config and rows of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stepscore.artifact.manifest import ModelName, Source
from stepscore_export.families.base import DecoderConfig, Family


class WeightSource(Protocol):
    """A checkpoint as it is stored, or seen through a rotation."""

    source: Source
    folder: Path
    family: Family
    config: DecoderConfig

    @property
    def head_name(self) -> str:
        """Name of the matrix of the head; that of a tied model is its embedding."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; KeyError if the model has none of that name."""

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return a type that holds a tensor's numbers."""

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows [start:stop] of a tensor as float32; CheckpointCorrupt if a value is not finite."""

    def embedded(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return looked-up rows [n, hidden_size] of the embedding as they enter the first layer."""

    def values_as_stored(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return attention values [n, kv_heads * D] of the original as the stored model computes them."""

    def head_input(self, normed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the stored head reads, from normed but unscaled rows [n, H] of the original."""

    def rotation_matrix(self) -> NDArray[np.float32] | None:
        """Return what looked-up rows are multiplied with, float32 [H, H]; None if with nothing."""

    def read_ahead(self, names: Iterable[str]) -> None:
        """Prefetch tensors: the kernel reads them in the background."""

    def naming(self) -> AbstractContextManager[None]:
        """Have errors raised in this context say which model of the pair this is."""

    def num_bytes(self) -> int:
        """Return the size of the model's tensors as stored."""

    def parameters(self) -> int:
        """Count the numbers in the model's tensors."""


Members = Mapping[ModelName, WeightSource]
"""The models of a unit as they are stored, in the order of its streams."""

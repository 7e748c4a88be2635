"""The interface of a backend: one way to store the two models of a pair as files and graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

import onnx_ir as ir

from stepscore.artifact.manifest import Difference, Distance, Extent
from stepscore.enums import Coding, Exporter, Format, Precision, Target
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.quantization.error_propagation import Statistics
from stepscore_export.staging import Stage
from stepscore_export.weights.row_blocks import Advance

Progress = Callable[[str, int], None]
"""Called with what is being done and the number of parameters done since the last call."""

W = TypeVar("W")
"""What a backend knows of weights it has written."""


@dataclass(frozen=True, slots=True)
class ExportEstimate:
    """Sizes in bytes, time in seconds; `weight_bytes` by the folder of the unit."""

    parameters: int
    source_bytes: int
    weight_bytes: dict[str, int]
    memory_bytes: int
    seconds: float

    @classmethod
    def of(
        cls,
        checkpoints: Members,
        weight_bytes: dict[str, int],
        memory_bytes: int,
        parameters_per_second: float,
    ) -> ExportEstimate:
        """Add what the checkpoints themselves tell."""
        parameters = sum(model.parameters() for model in checkpoints.values())
        source_bytes = sum(model.num_bytes() for model in checkpoints.values())
        return cls(parameters, source_bytes, weight_bytes, memory_bytes, parameters / parameters_per_second)

    @property
    def disk_bytes(self) -> int:
        """Space that must be free where the pair goes; graphs and tokenizer are a few MB."""
        return sum(self.weight_bytes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How a backend stores a pair, in the terms of the manifest."""

    format: Format
    exporter: Exporter
    precision: Precision
    block_size: int
    target: Target | None
    coding: Coding
    difference: Difference | None
    beta: float
    packages: tuple[str, ...]
    """Packages whose versions decide the bytes that are written."""


@dataclass(frozen=True, slots=True)
class StoredUnit(Generic[W]):
    """A unit whose weights are in the stage: one weight file and its graphs, of one model or of both."""

    folder: str
    members: Members
    weights: W
    extents: dict[str, Extent]


class Backend(ABC, Generic[W]):
    """One way to store a pair. `resolve` comes before everything else but `require`."""

    @abstractmethod
    def require(self) -> None:
        """Raise ProviderUnavailable unless the packages that the backend needs are installed."""

    @abstractmethod
    def resolve(self, distance: Distance, *, calibrated: bool) -> Self:
        """Make every choice that the options leave open, for models this far apart.

        Raises ExportError or ProviderUnavailable for what could not be stored, or not be run on this machine.
        """

    @property
    def reader(self) -> str | None:
        """What needs transformers to read the folders of the checkpoints; None where nothing does."""
        return None

    @property
    def calibrates(self) -> bool:
        """Whether the weights depend on calibration text; `resolve` first."""
        return False

    @property
    @abstractmethod
    def storage(self) -> Storage:
        """What the manifest says of the pair; `resolve` first."""

    @abstractmethod
    def describe(self) -> str:
        """Return precision and coding in a few words."""

    @abstractmethod
    def estimate(self, checkpoints: Members, batch_tokens: int) -> ExportEstimate:
        """Predict the size of the weight files to the byte, or nearly; memory and time roughly.

        At the end of an export both checkpoints and the pair are run on batches of `batch_tokens` tokens.
        """

    @abstractmethod
    def prepare(self, checkpoints: Members, progress: Progress) -> None:
        """Do what can fail before anything is written."""

    @property
    def keeps_prefix(self) -> bool:
        """Whether a pair stores the results of the tokens that every record begins with."""
        return False

    def view(self, checkpoints: Members) -> Members:
        """Return the models as they are stored: equal in exact arithmetic."""
        return checkpoints

    def units(self, checkpoints: Members) -> dict[str, Members]:
        """Return the models that share a weight file, by the folder of the unit."""
        return {name: {name: checkpoint} for name, checkpoint in checkpoints.items()}

    @abstractmethod
    def store(
        self, staged: Stage, folder: str, members: Members, statistics: Statistics, advance: Advance
    ) -> StoredUnit[W]:
        """Write the weights of one unit into the stage."""

    @abstractmethod
    def graphs(self, unit: StoredUnit[W]) -> Iterator[tuple[str, ir.Model]]:
        """Give the graphs of a stored unit by the names of their files."""

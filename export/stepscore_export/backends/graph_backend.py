"""What the two exporters of ONNX graphs share: options, one weights.bin for a unit, its size beforehand."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

from stepscore.artifact.graph_contract import WEIGHTS
from stepscore.artifact.manifest import Difference, Distance, Extent
from stepscore.enums import Activations, Coding, Format, Precision, Products
from stepscore.fileio import os_errors_as_output_errors
from stepscore_export.backends.base import Backend, ExportEstimate, Storage, StoredUnit
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.families.base import DecoderConfig
from stepscore_export.options import ExportOptions
from stepscore_export.quantization.coding import choose_coding, choose_difference_precision
from stepscore_export.quantization.error_propagation import NoStatistics, Statistics
from stepscore_export.staging import Stage
from stepscore_export.weights.row_blocks import Advance
from stepscore_export.weights.weight_file import SizeOnly, TensorSink, WeightFile

# Parameters of both models per second, self-test included, on two cores (benchmarks/results:
# memory_export.json and full_size.json); machines and disks make a factor of two.
PARAMETERS_PER_SECOND = {
    Precision.FP32: 34e6,
    Precision.FP16: 34e6,
    Precision.BF16: 34e6,
    Precision.INT8: 18e6,
    Precision.INT4: 18e6,
}
BASE_BYTES = 360 << 20  # Python, numpy, ONNX Runtime, a tokenizer, row blocks while they are converted


class UnitLayout(Protocol):
    """Where the tensors of a unit are in its weight file."""

    def extents(self) -> dict[str, Extent]:
        """Return which bytes of the weight file each graph reads, by the name of the graph's file."""
        ...


L = TypeVar("L", bound=UnitLayout)


@dataclass(frozen=True)
class GraphBackend(Backend[L]):
    """A pair of ONNX graphs over weights.bin."""

    options: ExportOptions

    def resolve(self, distance: Distance, *, calibrated: bool) -> Self:
        """Make every choice that the options leave open; raise for what cannot be stored or run."""
        resolved = replace(self, options=resolve_options(self.options, distance))
        resolved.check(calibrated=calibrated)
        return resolved

    @abstractmethod
    def check(self, *, calibrated: bool) -> None:
        """Raise ExportError or ProviderUnavailable where the resolved options cannot be met."""

    @property
    def storage(self) -> Storage:
        """What the manifest says of the pair."""
        options = self.options
        return Storage(
            format=Format.ONNX,
            exporter=options.exporter,
            precision=options.precision,
            block_size=options.block_size,
            target=options.target,
            coding=options.coding,
            difference=_difference(options),
            beta=options.beta,
            packages=("onnx-ir",),
        )

    def estimate(self, checkpoints: Members, batch_tokens: int) -> ExportEstimate:
        """Predict weight files to the byte, memory and time roughly."""
        sizes, peaks = {}, []
        for folder, members in self.units(checkpoints).items():
            sink = SizeOnly()
            weights = self.write_unit(members, sink, NoStatistics(), lambda _count: None)
            sizes[folder] = sink.num_bytes
            peaks.append(self.memory_bytes(weights, checkpoints["policy"].config, batch_tokens))
        speed = PARAMETERS_PER_SECOND[self.options.precision]
        return ExportEstimate.of(checkpoints, sizes, max(peaks), speed)

    def store(
        self, staged: Stage, folder: str, members: Members, statistics: Statistics, advance: Advance
    ) -> StoredUnit[L]:
        """Write weights.bin of one unit into the stage."""
        place = staged.folder / folder
        with os_errors_as_output_errors(place):
            place.mkdir()
        with _naming(members), WeightFile(place / WEIGHTS) as file:
            weights = self.write_unit(members, file, statistics, advance)
            staged.files[f"{folder}/{WEIGHTS}"] = file.close()
        return StoredUnit(folder, members, weights, weights.extents())

    @abstractmethod
    def write_unit(self, members: Members, file: TensorSink, statistics: Statistics, advance: Advance) -> L:
        """Append every tensor of a unit to `file` and return where each is."""

    @abstractmethod
    def memory_bytes(self, weights: L, config: DecoderConfig, batch_tokens: int) -> int:
        """Return the expected peak of an export, which is that of running the unit or its checkpoints."""


def resolve_options(options: ExportOptions, distance: Distance) -> ExportOptions:
    """Return the options with coding, precision of the difference, activations and matmuls chosen."""
    if choose_coding(options, distance) is Coding.DIFFERENCE:
        products = Products.MERGED if options.merged else Products.SEPARATE
        return replace(
            options,
            coding=Coding.DIFFERENCE,
            difference_precision=choose_difference_precision(options, distance),
            activations=Activations.INT8 if options.has_int8_activations else Activations.EXACT,
            products=None if options.has_int8_activations or options.lossless else products,
        )
    return replace(
        options,
        coding=Coding.INDEPENDENT,
        difference_precision=None,
        activations=Activations.EXACT,
        products=None,
    )


def _difference(options: ExportOptions) -> Difference | None:
    if options.difference_precision is None:
        return None
    activations = options.activations or Activations.EXACT
    return Difference(options.difference_precision, activations, options.products, rotated=options.rotated)


def _naming(members: Members) -> AbstractContextManager[None]:
    """Have errors name the model where a unit has but one; those of a coded pair name the tensor's part."""
    if len(members) > 1:
        return nullcontext()
    (checkpoint,) = members.values()
    return checkpoint.naming()

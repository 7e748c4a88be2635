"""The backend of stepscore's own graphs: packed tokens, one file per layer, every precision and coding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from stepscore.artifact.graph_contract import (
    BODY,
    EMBED,
    HEAD,
    TILE,
    layer_file,
    piece_rows,
    unsigned_file,
)
from stepscore.engine.ort.provider_checks import needs_unsigned_weights
from stepscore.enums import Activations, Coding
from stepscore.errors import ExportError
from stepscore_export.backends.base import Progress, StoredUnit
from stepscore_export.backends.graph_backend import BASE_BYTES, GraphBackend
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.families.base import DecoderConfig
from stepscore_export.graphs.decoder import body_graph, embed_graph, layer_graph
from stepscore_export.graphs.head import head_graph
from stepscore_export.graphs.shape import Shape, graph_shape
from stepscore_export.quantization.error_propagation import Statistics
from stepscore_export.weights.layout import UnitWeights, head_parts, tensors
from stepscore_export.weights.rotated_checkpoint import RotatedCheckpoint
from stepscore_export.weights.row_blocks import Advance
from stepscore_export.weights.weight_file import TensorSink
from stepscore_export.weights.writer import store_unit

ARRAYS = 9  # of [tokens, intermediate_size] that are alive in a layer


@dataclass(frozen=True)
class OnnxBackend(GraphBackend[UnitWeights]):
    """Graphs over packed tokens; close models share a unit, stored as a base and a difference."""

    def require(self) -> None:
        """Accept any machine: the packages of the export stage are enough."""

    def check(self, *, calibrated: bool) -> None:
        """Raise where int8 matmuls are wrong on this CPU, or a pair without a base is to be calibrated."""
        if self.options.activations is Activations.INT8:
            needs_unsigned_weights()
        if calibrated and self.options.coding is Coding.INDEPENDENT:
            raise ExportError(
                "only the base of a coded pair is calibrated, and this pair is coded independently",
                hint="drop --calibration, or use --coding difference with --precision int8 or int4",
            )

    def describe(self) -> str:
        """Return precision and coding in a few words."""
        options = self.options
        if options.bits is None:
            return options.precision.value
        if options.difference_precision is None:
            return f"{options.precision}, each model quantized alone"
        activations = ", int8 activations" if options.activations is Activations.INT8 else ""
        return f"{options.precision} reference + {options.difference_precision} difference{activations}"

    def memory_bytes(self, weights: UnitWeights, config: DecoderConfig, batch_tokens: int) -> int:
        """Return the expected peak, which is that of running what was written, or the checkpoints.

        One layer or part of the head is open at a time: its weights as stored (mapped pages count), what is
        dequantized of a matrix at a time, and arrays of [tokens, intermediate_size].
        """
        stored = max(_num_bytes(part) for part in (*weights.layers, *head_parts(weights.head).values()))
        widest = max(config.intermediate_size, min(TILE, config.vocab_size)) * config.hidden_size
        piece = piece_rows(config.intermediate_size) * config.intermediate_size
        merged = self.options.coding is Coding.DIFFERENCE and self.options.merged
        copied = 4 * min(widest, piece) if merged else widest
        return BASE_BYTES + stored + 4 * (copied + ARRAYS * batch_tokens * config.intermediate_size)

    def prepare(self, checkpoints: Members, progress: Progress) -> None:
        """Leave everything to `store`: nothing else can fail."""

    @property
    def calibrates(self) -> bool:
        """Calibrate the base of a coded pair."""
        return self.options.coding is Coding.DIFFERENCE

    @property
    def keeps_prefix(self) -> bool:
        """Store the results of the prefix unless told not to."""
        return self.options.prefix

    def view(self, checkpoints: Members) -> Members:
        """Rotate both models where that pays."""
        if not self.options.rotated:
            return checkpoints
        return {name: RotatedCheckpoint(each) for name, each in checkpoints.items()}

    def units(self, checkpoints: Members) -> dict[str, Members]:
        """Return one unit of both models where their difference is coded, else one of each."""
        if self.options.coding is Coding.DIFFERENCE:
            return {"both": {name: checkpoints[name] for name in ("reference", "policy")}}
        return super().units(checkpoints)

    def write_unit(
        self, members: Members, file: TensorSink, statistics: Statistics, advance: Advance
    ) -> UnitWeights:
        """Append every tensor of a unit to `file` and return where each is."""
        return store_unit(members, file, self.options, advance, statistics)

    def graphs(self, unit: StoredUnit[UnitWeights]) -> Iterator[tuple[str, ir.Model]]:
        """Give embed, body, layers, head and its parts; with int8 activations also over unsigned weights."""
        shape = graph_shape(unit.members, self.options)
        yield EMBED, embed_graph(unit.weights.embedding, shape, unit.weights.rotation)
        yield from _matmul_graphs(unit.weights, shape)
        if self.options.activations is Activations.INT8:
            for name, model in _matmul_graphs(unit.weights, replace(shape, unsigned=True)):
                yield unsigned_file(name), model


def _matmul_graphs(weights: UnitWeights, shape: Shape) -> Iterator[tuple[str, ir.Model]]:
    yield BODY, body_graph(weights, shape)
    last = len(weights.layers) - 1
    for index, layer in enumerate(weights.layers):
        norm = weights.norm if index == last else None
        yield layer_file(index), layer_graph(layer, weights.rotary, shape, index, norm)
    yield HEAD, head_graph(weights.head, shape)
    for name, part in head_parts(weights.head).items():
        yield name, head_graph(part, shape)


def _num_bytes(part: object) -> int:
    return sum(tensor.num_bytes for tensor in tensors(part))

"""The backend of pairs for CUDA: a handful of graphs whose weights are inputs, and a table of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from stepscore.artifact import generic_graphs as names
from stepscore.artifact.generic_graphs import decoders, generic_file
from stepscore.artifact.graph_contract import stream_names
from stepscore.artifact.tensor_table import TENSORS
from stepscore.enums import Precision
from stepscore.errors import ExportError
from stepscore_export.backends.base import StoredUnit
from stepscore_export.backends.onnx import OnnxBackend
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.families.base import EMBEDDING, DecoderConfig, architecture
from stepscore_export.graphs.builder import FLOAT
from stepscore_export.graphs.decoder import embed_graph
from stepscore_export.graphs.generic import (
    cast_graph,
    decoder_graph,
    generic_head_tile,
    generic_layer,
    of_models,
)
from stepscore_export.graphs.shape import Shape, graph_shape
from stepscore_export.quantization.error_propagation import Statistics
from stepscore_export.staging import Stage
from stepscore_export.weights.layout import UnitWeights
from stepscore_export.weights.row_blocks import Advance
from stepscore_export.weights.tensor_names import tensor_table


@dataclass(frozen=True)
class CudaBackend(OnnxBackend):
    """Generic graphs: the weights of a layer, of a tile of the head, are their inputs."""

    @property
    def calibrates(self) -> bool:
        """Calibrate the base of a pair with a rounded difference."""
        return super().calibrates and not self.options.lossless

    def check(self, *, calibrated: bool) -> None:
        """Raise where a lossless pair, which rounds nothing, is to be calibrated."""
        if calibrated and self.options.lossless:
            raise ExportError("a lossless pair rounds nothing to calibrate", hint="drop --calibration")
        super().check(calibrated=calibrated)

    def describe(self) -> str:
        """Return precision and coding in a few words."""
        if self.options.lossless:
            return f"{self.options.precision} reference + lossless difference"
        return super().describe()

    def store(
        self, staged: Stage, folder: str, members: Members, statistics: Statistics, advance: Advance
    ) -> StoredUnit[UnitWeights]:
        """Write weights.bin of one unit and the table of its tensors into the stage."""
        if self.options.lossless:
            _require_16_bits(members, self.options.precision)
        unit = super().store(staged, folder, members, statistics, advance)
        staged.write(f"{folder}/{TENSORS}", tensor_table(unit.weights, tuple(members)))
        return unit

    def memory_bytes(self, weights: UnitWeights, config: DecoderConfig, batch_tokens: int) -> int:
        """Return the expected peak: running what was written on the CPU, a layer at a time.

        A layer is copied as stored, and one model's weights of it are decoded to fp32.
        """
        heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        decoded = config.hidden_size * (heads + 3 * config.intermediate_size)
        return super().memory_bytes(weights, config, batch_tokens) + 4 * decoded

    def graphs(self, unit: StoredUnit[UnitWeights]) -> Iterator[tuple[str, ir.Model]]:
        """Give each graph twice: in the compute type, and in fp32 for the CPU provider."""
        shape = graph_shape(unit.members, self.options)
        for in_fp32 in (False, True):
            variant = replace(shape, compute=FLOAT, on_cpu=True) if in_fp32 else shape
            for name, model in self._variant(unit, variant, shape.compute):
                yield generic_file(name, in_fp32=in_fp32), model

    def _variant(
        self, unit: StoredUnit[UnitWeights], shape: Shape, stored: ir.DataType
    ) -> Iterator[tuple[str, ir.Model]]:
        config = next(iter(unit.members.values())).config
        weights = unit.weights
        yield names.EMBED_GRAPH, embed_graph(weights.embedding, shape, weights.rotation)
        for name, last in ((names.LAYER, False), (names.LAST_LAYER, True)):
            each = zip(stream_names(name, shape.models), weights.rotary.cos, of_models(shape), strict=True)
            for of_model, table, alone in each:
                yield of_model, generic_layer(alone, table.shape[0], config.intermediate_size, last=last)
        alone = next(of_models(shape))
        yield names.HEAD_TILE, generic_head_tile(alone)
        coders = decoders(
            architecture(config),
            self.options.precision,
            self.options.block_size,
            self.options.difference_precision,
        )
        for decoder in coders:
            yield decoder.name, decoder_graph(decoder, stored, alone)
        if shape.compute != FLOAT:
            yield names.HEAD_TILE_FP32, generic_head_tile(alone, fp32_logits=True)
        elif not coders:
            yield names.CAST, cast_graph(stored, alone)


def _require_16_bits(members: Members, precision: Precision) -> None:
    """Raise ExportError unless both checkpoints are stored in the type of the pair."""
    wanted = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}[precision]
    for name, checkpoint in members.items():
        found = checkpoint.dtype(EMBEDDING).name
        if found != wanted:
            raise ExportError(
                f"a lossless difference at {precision} requires checkpoints in {wanted}; "
                f"the {name} is in {found}",
                hint="use --precision int8, or drop --coding",
            )

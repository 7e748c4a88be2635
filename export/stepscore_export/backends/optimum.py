"""The backend of transformers' own modelling code, traced by optimum-onnx, on padded batches.

An independent implementation of the layers, to cross-check the others with. Embedding and head are those of
the onnx backend; each model is stored alone, as fp32, fp16 or bf16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from stepscore.artifact.graph_contract import BODY, EMBED, HEAD, TILE
from stepscore.artifact.manifest import Extent
from stepscore.batching.planner import MAX_PADDING
from stepscore.errors import ExportError
from stepscore.memory.settings import HEAD_ROWS
from stepscore_export.backends.base import Progress, Storage, StoredUnit
from stepscore_export.backends.graph_backend import BASE_BYTES, GraphBackend
from stepscore_export.backends.optimum_body import body_of
from stepscore_export.backends.optimum_trace import PACKAGES, require_optimum, trace
from stepscore_export.checkpoint.checkpoint import Checkpoint, Members
from stepscore_export.families.base import EMBEDDING, DecoderConfig, tensor_shapes
from stepscore_export.families.base import HEAD as HEAD_WEIGHT
from stepscore_export.graphs.decoder import embed_graph
from stepscore_export.graphs.head import head_graph
from stepscore_export.graphs.shape import graph_shape
from stepscore_export.options import OPTIMUM_HINT
from stepscore_export.quantization.error_propagation import Statistics
from stepscore_export.weights.layout import HeadTile, Table, extent_of, tensors
from stepscore_export.weights.row_blocks import Advance
from stepscore_export.weights.weight_file import TensorRef, TensorSink
from stepscore_export.weights.writer import UnitWriter, converted

TORCH_BYTES = 260 << 20  # PyTorch, transformers and optimum
TRACED_ARRAYS = 4  # of [positions, intermediate_size], and of [tokens of a chunk, TILE]


@dataclass(frozen=True, slots=True)
class TracedWeights:
    """A unit in one weight file; `layers` are the parameters of the traced code under their own names."""

    embedding: tuple[Table, ...]
    layers: tuple[TensorRef, ...]
    head: tuple[HeadTile, ...]

    def extents(self) -> dict[str, Extent]:
        """Return which bytes of the weight file each graph reads."""
        parts = {EMBED: self.embedding, BODY: self.layers, HEAD: self.head}
        return {name: extent_of(part) for name, part in parts.items()}


@dataclass(frozen=True)
class OptimumBackend(GraphBackend[TracedWeights]):
    """Graphs of the traced modelling code, all layers in one."""

    def require(self) -> None:
        """Raise ProviderUnavailable unless optimum-onnx, torch and transformers can trace."""
        require_optimum()

    def check(self, *, calibrated: bool) -> None:
        """Raise ExportError for a calibration: nothing is quantized."""
        if calibrated:
            raise ExportError("--calibration is not supported with --exporter optimum", hint=OPTIMUM_HINT)

    @property
    def storage(self) -> Storage:
        """What the manifest says of the pair; the traced code depends on more packages."""
        found = super().storage
        return replace(found, packages=(*found.packages, *PACKAGES))

    def describe(self) -> str:
        """Return the precision, and that the graphs were traced."""
        return f"{self.options.precision}, traced by optimum"

    def memory_bytes(self, weights: TracedWeights, config: DecoderConfig, batch_tokens: int) -> int:
        """Return the expected peak, that of running one whole model: a traced one is not cut into layers.

        Its weights in fp32, one matrix twice while it is packed, a batch of the fidelity's texts as padded
        positions, and a chunk of the head; tracing needs less.
        """
        parts = (weights.layers, weights.head)
        parameters = sum(math.prod(tensor.shape) for part in parts for tensor in tensors(part))
        matrix = config.intermediate_size * config.hidden_size
        batch = TRACED_ARRAYS * MAX_PADDING * batch_tokens * config.intermediate_size
        logits = TRACED_ARRAYS * HEAD_ROWS * min(TILE, config.vocab_size)
        return BASE_BYTES + TORCH_BYTES + 4 * (parameters + matrix + batch + logits)

    def prepare(self, checkpoints: Members, progress: Progress) -> None:
        """Trace the modelling code, so that an export that cannot be traced fails before it writes."""
        progress("tracing the modelling code", 0)
        for checkpoint in checkpoints.values():
            with checkpoint.naming():
                trace(checkpoint)  # is kept

    def write_unit(
        self, members: Members, file: TensorSink, statistics: Statistics, advance: Advance
    ) -> TracedWeights:
        """Append one model to `file`, a matrix at a time, and return where each tensor is."""
        (checkpoint,) = members.values()
        writer = UnitWriter(members, file, self.options, advance)
        embedding = writer.embedding()
        layers = tuple(self._write(checkpoint, name, file, advance) for name in _layer_names(checkpoint))
        return TracedWeights(embedding, layers, writer.head(embedding))

    def graphs(self, unit: StoredUnit[TracedWeights]) -> Iterator[tuple[str, ir.Model]]:
        """Give embed, body and head; ExportError where the traced graph is not as expected."""
        (checkpoint,) = unit.members.values()
        weights, shape = unit.weights, graph_shape(unit.members, self.options)
        yield EMBED, embed_graph(weights.embedding, shape)
        yield BODY, body_of(trace(checkpoint), weights.layers, shape)
        yield HEAD, head_graph(weights.head, shape)

    def _write(self, checkpoint: Checkpoint, name: str, file: TensorSink, advance: Advance) -> TensorRef:
        """Append one tensor, a matrix transposed: the traced code multiplies with it as it is stored."""
        shape = checkpoint.shape(name)
        dtype = self.options.storage if len(shape) == 2 else self.options.compute

        def blocks() -> Iterator[np.ndarray]:
            values = converted(checkpoint.rows(name), dtype, name)
            yield np.ascontiguousarray(values.T)
            advance(values.size)

        return file.append(name, dtype, shape[::-1], blocks())


def _layer_names(checkpoint: Checkpoint) -> list[str]:
    return [name for name in tensor_shapes(checkpoint.config) if name not in {EMBEDDING, HEAD_WEIGHT}]

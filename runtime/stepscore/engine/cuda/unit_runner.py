"""Run windows through the stages of one unit: embedding, layers, head, of one model or of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stepscore.artifact import generic_graphs as names
from stepscore.artifact import graph_contract as contract
from stepscore.artifact.manifest import ModelName, Unit
from stepscore.artifact.pair import Pair
from stepscore.artifact.tensor_table import Stage, TensorEntry, TensorTable, tile_starts
from stepscore.engine.base import logprobs_of
from stepscore.engine.cuda.batches import GivenValues, LoadedBatch, cut
from stepscore.engine.cuda.decoding import Decoding, GraphFiles, OpenGraphs, Weights
from stepscore.engine.cuda.device import Buffer, Tensor, run_graph
from stepscore.engine.cuda.embedding import Embedding
from stepscore.engine.cuda.hardware import Hardware
from stepscore.engine.cuda.mapped_file import MappedFile
from stepscore.engine.cuda.weight_ring import LoadedStage, StoredStage
from stepscore.engine.element_types import BITS, FLOAT, ONNX_TYPES, STORED_AS, as_float32, in_type
from stepscore.engine.row_values import RowValues

Logprobs = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class UnitFiles:
    """One unit on disk: its mapped weight file, the table of its tensors, its stages in order."""

    unit: Unit
    table: TensorTable
    stages: Sequence[Stage]
    weights: MappedFile

    @classmethod
    def open(cls, pair: Pair, unit: Unit) -> UnitFiles:
        """Open one unit of a pair; raise ModelInvalid for a table that no exporter writes."""
        table = TensorTable.read(pair.path, pair.manifest, unit)
        return cls(unit, table, table.stages(), MappedFile(pair.path / unit.folder / contract.WEIGHTS))

    def stored(self) -> list[StoredStage]:
        """Return the stages with their bytes."""
        return [StoredStage(stage, self.weights) for stage in self.stages]

    def floats(self, entry: TensorEntry) -> NDArray[np.float32]:
        """Return a stored vector or table as float32."""
        raw = self.weights.part(entry.offset, entry.num_bytes).view(STORED_AS[entry.type])
        return as_float32(raw.reshape(entry.shape), ONNX_TYPES[entry.type])


@dataclass(frozen=True, slots=True)
class ModelVectors:
    """Norms, biases and rotary tables of one model on the device, by the names of inputs."""

    of_layers: Sequence[Weights]
    rotary: Weights
    final_norm: Weights


@dataclass(slots=True)
class Window:
    """The batches of a window, and the hidden states of one unit by model, of every batch."""

    batches: Sequence[LoadedBatch]
    rows: dict[ModelName, list[Tensor]]
    """Input and output of a layer: it writes its output over its input."""
    hidden: dict[ModelName, list[Tensor]]
    """What the head reads."""
    parts: dict[ModelName, list[list[NDArray[np.float32]]]]
    """What the head gave: [t, 2, tiles] for each part of it."""


class UnitRunner:
    """Runs windows through the stages of one unit; `scratch` holds decoded weights."""

    def __init__(
        self,
        pair: Pair,
        files: UnitFiles,
        opened: OpenGraphs,
        hardware: Hardware,
        scratch: Buffer,
        *,
        num_slots: int = 0,
    ) -> None:
        self.models = files.unit.models
        self._shape = pair.manifest.architecture
        self._hardware, self._device, self._compute = hardware, hardware.device, hardware.compute
        self._stages = [stage.name for stage in files.stages]
        folder = pair.path / files.unit.folder
        graphs = GraphFiles(folder, opened, in_fp32=hardware.compute == FLOAT)
        self._layers, self._last_layers = (
            dict(zip(self.models, map(graphs.open, contract.stream_names(kind, self.models)), strict=True))
            for kind in (names.LAYER, names.LAST_LAYER)
        )
        self._head = self._open_head(graphs)
        self.embedding = Embedding(graphs.embed(), self.models, self._shape.hidden_size, self._compute)
        rows = RowValues(self.models, pair.prefix(), self._shape, num_slots, hardware.compute)
        self._given = GivenValues(rows, hardware)
        inputs = [each.get_inputs() for each in (*self._layers.values(), *self._last_layers.values())]
        self.keeps_rows = all(any(value.name == contract.KEPT_INDEX for value in each) for each in inputs)
        """Whether the graphs have outputs for kept rows; those of old pairs do not."""
        self._decoding = Decoding(hardware, graphs, scratch)
        self._vectors = {model: self._put_vectors(files, model) for model in self.models}
        self._held: list[Buffer] = []

    def run(self, batches: Sequence[LoadedBatch], stages: Iterator[LoadedStage]) -> Window:
        """Run a window through the next stages, all of the unit's."""
        window = self._embedded(batches)
        last = self._shape.num_hidden_layers - 1
        for index in range(len(self._stages)):
            stage = next(stages)
            for model, weights in self._decoding.of(stage, self.models):
                if index <= last:
                    self._run_layer(index, model, weights, window)
                else:
                    self._run_head(index - last - 1, model, weights, window)
            del stage
        return window

    def logprobs(self, window: Window, model: ModelName) -> list[Logprobs]:
        """Return the log-probs [g + t] of every batch of a window that has run; keep results to be kept."""
        computed = (logprobs_of(np.concatenate(parts, axis=2)) for parts in window.parts[model])
        known = (self._given.logprobs(model, each.batch) for each in window.batches)
        found = [np.concatenate(both) for both in zip(known, computed, strict=True)]
        for each, hidden, logprobs in zip(window.batches, window.hidden[model], found, strict=True):
            if each.keeping is not None:
                self._given.keep_results(model, hidden, logprobs, each.keeping)
        return found

    def release(self) -> None:
        """Give back the hidden states of a window."""
        for buffer in self._held:
            self._device.give_back(buffer)
        self._held.clear()

    def _open_head(self, graphs: GraphFiles) -> ort.InferenceSession:
        if self._hardware.fp32_logits:
            return graphs.open(names.HEAD_TILE_FP32, use_tf32=True)
        return graphs.open(names.HEAD_TILE)

    def _put_vectors(self, files: UnitFiles, model: ModelName) -> ModelVectors:
        def put(entries: dict[str, TensorEntry]) -> Weights:
            return {
                name: self._device.put(in_type(files.floats(entry), self._compute), self._compute)
                for name, entry in entries.items()
            }

        layers = range(self._shape.num_hidden_layers)
        shared = put(files.table.shared(model))
        return ModelVectors(
            [put(files.table.vectors(layer, model)) for layer in layers],
            {name: shared[name] for name in (names.ROTARY_COS, names.ROTARY_SIN)},
            {names.FINAL_NORM: shared[names.FINAL_NORM]},
        )

    def _embedded(self, batches: Sequence[LoadedBatch]) -> Window:
        computed = [len(each.batch.input_ids) for each in batches]
        scored = [each.batch.num_scored for each in batches]
        rows = {model: self._allocate(computed) for model in self.models}
        for index, each in enumerate(batches):
            for model, looked_up in self.embedding.take(each.batch).items():
                target = rows[model][index]
                self._hardware.copies.copy(looked_up, target.buffer, target.offset)
        hidden = {model: self._allocate(scored) for model in self.models}
        return Window(batches, rows, hidden, {model: [[] for _ in batches] for model in self.models})

    def _allocate(self, lengths: Sequence[int]) -> list[Tensor]:
        width = self._shape.hidden_size
        buffer = self._device.allocate(sum(lengths) * width * BITS[self._compute] // 8)
        self._held.append(buffer)
        return cut(buffer.tensor((sum(lengths), width), self._compute), lengths)

    def _run_layer(self, index: int, model: ModelName, weights: Weights, window: Window) -> None:
        last = index == self._shape.num_hidden_layers - 1
        graph = (self._last_layers if last else self._layers)[model]
        vectors = self._vectors[model]
        same = weights | vectors.of_layers[index] | vectors.rotary | (vectors.final_norm if last else {})
        output, outputs = (
            (contract.HIDDEN, window.hidden[model]) if last else (contract.NEXT_ROWS, window.rows[model])
        )
        for each, rows, result in zip(window.batches, window.rows[model], outputs, strict=True):
            given = self._given.keys_values(model, index, each.batch)
            inputs = same | each.indices | given | {contract.ROWS: rows}
            if self.keeps_rows:
                inputs |= each.kept_index
            if last:
                inputs |= each.scored | self._given.hidden(model, each.batch)
            if each.keeping is None:
                run_graph(graph, inputs, {output: result}, self._device)
                continue
            kept = self._given.output(each.keeping)
            try:
                run_graph(graph, inputs, {output: result, names.KEPT: kept}, self._device)
                self._given.keep(model, index, kept, each.keeping)
            finally:
                self._device.give_back(kept.buffer)

    def _run_head(self, part: int, model: ModelName, weights: Weights, window: Window) -> None:
        """Append the parts [t, 2, tiles] of every batch for the tiles of one part of the head."""
        starts = tile_starts(self._shape.vocab_size, part)
        of_batches = zip(window.batches, window.hidden[model], window.parts[model], strict=True)
        for each, hidden, parts in of_batches:
            found = np.zeros((len(starts), len(each.batch.target_ids), 2), np.float32)
            for tile, start in enumerate(starts):
                weight = weights[str(start)]
                inputs = {names.TILE_WEIGHT: weight, contract.HIDDEN: hidden} | _range(start, weight)
                for chunk in each.chunks:
                    result = found[tile, chunk.part, :, None]
                    run_graph(self._head, inputs | chunk.inputs, {contract.PARTS: result}, self._device)
            parts.append(found.transpose(1, 2, 0))


def _range(start: int, weight: Tensor) -> dict[str, NDArray[np.int64]]:
    return {names.START: np.array([0, start]), names.END: np.array([2**62, weight.shape[0] - 1])}
